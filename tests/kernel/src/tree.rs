//! A file system whose files are made up on the spot: `f<number>` is the file with that inode number.
//!
//! Mounted as the store mounts its data: by itself, read-only, infinite validity, and open answered by "not
//! implemented", so that a file that is known costs no message at all.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, Request, Session, SessionACL,
};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::program;

/// As long as the kernel can remember.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Bytes of a plain file: 300 pages and a bit.
pub const PLAIN_SIZE: u64 = 300 * 4096 + 100;
/// Bytes of a huge file.
pub const HUGE_SIZE: u64 = 1 << 40;

/// What lies behind an inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// [`PLAIN_SIZE`] bytes.
    Plain,
    /// [`program::bytes`].
    Program,
    /// [`HUGE_SIZE`] bytes.
    Huge,
}

impl Kind {
    fn of(ino: u64) -> Self {
        match ino % 4 {
            1 => Self::Program,
            2 => Self::Huge,
            _ => Self::Plain,
        }
    }

    fn size(self) -> u64 {
        match self {
            Self::Plain => PLAIN_SIZE,
            Self::Program => program::SIZE as u64,
            Self::Huge => HUGE_SIZE,
        }
    }
}

/// A mounted tree; unmounted when dropped.
#[derive(Debug)]
pub struct Tree {
    place: PathBuf,
    device: u32,
    messages: Arc<AtomicU64>,
    next: AtomicU64,
    _session: BackgroundSession,
}

impl Tree {
    /// Mounts a tree at an existing directory.
    ///
    /// # Errors
    /// No FUSE here, or not privileged.
    pub fn mount(place: &Path) -> Result<Self> {
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .context("cannot open /dev/fuse")?;
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
            device.as_raw_fd()
        );
        let options = std::ffi::CString::new(options)?;
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("forelayer-test", place, "fuse", flags, options.as_c_str())
            .with_context(|| format!("cannot mount FUSE at {}", place.display()))?;
        let messages = Arc::new(AtomicU64::new(0));
        let files = Files {
            messages: Arc::clone(&messages),
            program: program::bytes(),
        };
        let mut config = Config::default();
        config.n_threads = Some(2);
        let session = Session::from_fd(files, OwnedFd::from(device), SessionACL::All, config)
            .and_then(Session::spawn)
            .context("cannot serve the mount")?;
        let device = device_of(place)?;
        // Beyond 32 bits, so that a number cut anywhere on its way is seen.
        let next = AtomicU64::new(1 << 44);
        Ok(Self {
            place: place.to_owned(),
            device,
            messages,
            next,
            _session: session,
        })
    }

    /// A file that nobody has touched yet: its inode number.
    pub fn fresh(&self, kind: Kind) -> u64 {
        let number = self.next.fetch_add(4, Ordering::Relaxed);
        match kind {
            Kind::Plain => number,
            Kind::Program => number + 1,
            Kind::Huge => number + 2,
        }
    }

    /// A file's path below `root`, which is this mount or an overlay of it.
    #[must_use]
    pub fn path_in(root: &Path, ino: u64) -> PathBuf {
        root.join(format!("f{ino}"))
    }

    /// A file's path.
    #[must_use]
    pub fn path(&self, ino: u64) -> PathBuf {
        Self::path_in(&self.place, ino)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Its device as the kernel's events name it: `major << 20 | minor`.
    #[must_use]
    pub fn device(&self) -> u32 {
        self.device
    }

    /// Messages the kernel has sent so far.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.messages.load(Ordering::SeqCst)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.place, UnmountFlags::DETACH);
    }
}

/// The device of the mount at `place`, from mountinfo: asking the mount itself would be a message.
///
/// # Errors
/// There is no such mount.
pub fn device_of(place: &Path) -> Result<u32> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")
        .context("cannot read /proc/self/mountinfo")?;
    let found = mounts.lines().rev().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let (major, minor) = fields.get(2)?.split_once(':')?;
        (Path::new(fields.get(4)?) == place).then_some(())?;
        Some((major.parse::<u32>().ok()?) << 20 | minor.parse::<u32>().ok()?)
    });
    found.with_context(|| format!("{} is not in mountinfo", place.display()))
}

/// The pages of a file of this kind.
#[must_use]
pub fn pages(kind: Kind) -> u64 {
    kind.size().div_ceil(4096)
}

#[derive(Debug)]
struct Files {
    messages: Arc<AtomicU64>,
    program: Vec<u8>,
}

impl Files {
    fn count(&self) {
        self.messages.fetch_add(1, Ordering::SeqCst);
    }

    fn attr(ino: u64) -> FileAttr {
        let directory = ino == INodeNo::ROOT.0;
        let size = if directory { 0 } else { Kind::of(ino).size() };
        FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if directory {
                FileType::Directory
            } else {
                FileType::RegularFile
            },
            perm: 0o755,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Files {
    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.count();
        let number = name
            .as_bytes()
            .strip_prefix(b"f")
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match number
            .and_then(|digits| digits.parse::<u64>().ok())
            .filter(|ino| *ino > INodeNo::ROOT.0)
        {
            Some(ino) => reply.entry(&FOREVER, &Self::attr(ino), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.count();
        reply.attr(&FOREVER, &Self::attr(ino.0));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count();
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.count();
        let kind = Kind::of(ino.0);
        let length = u64::from(size).min(kind.size().saturating_sub(offset));
        let bytes: Vec<u8> = match kind {
            Kind::Program => {
                let start = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(self.program.len());
                let end = start
                    .saturating_add(usize::try_from(length).unwrap_or(0))
                    .min(self.program.len());
                self.program[start..end].to_vec()
            }
            Kind::Plain | Kind::Huge => (offset..offset + length).map(content).collect(),
        };
        reply.data(&bytes);
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.count();
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count();
        reply.opened(FileHandle(0), FopenFlags::FOPEN_CACHE_DIR);
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        reply: ReplyDirectory,
    ) {
        self.count();
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.count();
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
    }

    fn getxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _size: u32,
        reply: fuser::ReplyXattr,
    ) {
        self.count();
        reply.error(Errno::ENOSYS);
    }
}

/// The byte at an offset of a file that is no program.
#[must_use]
pub fn content(offset: u64) -> u8 {
    (offset / 4096 * 31 + offset % 251).to_le_bytes()[0]
}
