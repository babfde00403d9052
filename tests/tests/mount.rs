//! The holder, the handing over and the adoption of connections, on real mounts (root and /dev/fuse).
//!
//! The store of these tests is a toy that serves one file; it runs in processes of its own, so that it can be killed.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::File,
    io::{self, BufRead, BufReader, PipeWriter, Write},
    os::{fd::AsFd, unix::fs::FileExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, UNIX_EPOCH},
};

use forelayer::mount::{MountError, MountName, Paths, client, holder, mountinfo, session};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, Request,
};
use libtest_mimic::{Arguments, Failed, Trial};

/// Set in the processes that play the store: the directory of [`Paths`].
const ROLE: &str = "FORELAYER_TEST_STORE";

/// Longest wait for something that must happen; only a failing test waits so long.
const LIMIT: Duration = Duration::from_secs(30);

const FILE_LEN: u64 = 1 << 20;
const FILE_INO: u64 = 7;

fn main() -> ExitCode {
    if let Some(dir) = std::env::var_os(ROLE) {
        return toy_store(Path::new(&dir));
    }
    let missing = missing();
    let trial = |name: &str, test: fn() -> Result<(), Failed>| {
        let reason = missing.clone();
        Trial::ignorable_test(name, move || match reason {
            Some(reason) => Ok(libtest_mimic::Completion::ignored_with(reason)),
            None => test().map(|()| libtest_mimic::Completion::Completed),
        })
    };
    let tests = vec![
        trial(
            "readers_do_not_notice_killed_stores",
            readers_do_not_notice_killed_stores,
        ),
        trial(
            "what_was_never_served_is_mounted_afresh",
            what_was_never_served_is_mounted_afresh,
        ),
        trial(
            "a_second_store_waits_for_the_first",
            a_second_store_waits_for_the_first,
        ),
        trial("a_second_holder_is_refused", a_second_holder_is_refused),
        trial("stale_mounts_are_taken_away", stale_mounts_are_taken_away),
        trial(
            "foreign_mounts_are_left_alone",
            foreign_mounts_are_left_alone,
        ),
        trial(
            "a_holder_that_cannot_start_says_why",
            a_holder_that_cannot_start_says_why,
        ),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

/// Why these tests cannot run here.
fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root: mounts".to_owned());
    }
    File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .err()
        .map(|error| format!("needs /dev/fuse: {error}"))
}

// ---- the toy store ------------------------------------------------------------------------------------------------

fn content(offset: u64) -> u8 {
    // Every page differs from every other.
    (offset / 4096 * 37 + offset % 251) as u8
}

fn attr(ino: u64) -> FileAttr {
    let directory = ino == 1;
    FileAttr {
        ino: INodeNo(ino),
        size: if ino == FILE_INO { FILE_LEN } else { 0 },
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
        perm: if directory { 0o700 } else { 0o400 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

struct Toy;

impl Filesystem for Toy {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        session::negotiate(config, true);
        Ok(())
    }
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name.to_str() {
            Some("file") => reply.entry(&LIMIT, &attr(FILE_INO), Generation(0)),
            _ => reply.error(Errno::ENOENT),
        }
    }
    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::ZERO, &attr(ino.0));
    }
    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }
    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }
    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let end = (offset + u64::from(size)).min(FILE_LEN);
        let bytes: Vec<u8> = (offset..end).map(content).collect();
        // Long enough that a kill finds requests that were read and not answered.
        std::thread::sleep(Duration::from_millis(1));
        reply.data(&bytes);
    }
}

/// Serves, says so on standard output, and ends when standard input is closed.
fn toy_store(dir: &Path) -> ExitCode {
    let say = |text: &str| {
        println!("{text}");
        io::stdout().flush().unwrap();
    };
    let mounts = match client::connect(&paths(dir), None) {
        Ok(mounts) => mounts,
        Err(error) => {
            say(&format!("error {error}"));
            return ExitCode::FAILURE;
        }
    };
    let mut sessions = Vec::new();
    for name in MountName::ALL {
        let device = mounts.device(name).unwrap();
        sessions.push(session::start(Toy, name, device, mounts.adopt).unwrap());
    }
    say(&format!("running adopt={}", mounts.adopt));
    let mut line = String::new();
    io::stdin().read_line(&mut line).unwrap();
    if line.trim() == "serving" {
        mounts.serving().unwrap();
        say("serving");
        io::stdin().read_line(&mut line).unwrap();
    }
    ExitCode::SUCCESS
}

// ---- what the tests hold ------------------------------------------------------------------------------------------

fn paths(dir: &Path) -> Paths {
    Paths {
        mounts: dir.join("state"),
        socket: dir.join("run/mount.sock"),
    }
}

/// A holder on a thread of this process. Dropping it stops it, which ends the connections: nobody hangs.
struct Holder {
    paths: Paths,
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<Result<(), MountError>>>,
    _dir: tempfile::TempDir,
}

fn run_holder(paths: &Paths) -> (PipeWriter, JoinHandle<Result<(), MountError>>, bool) {
    let (stop, stopper) = io::pipe().unwrap();
    let (ready, is_ready) = mpsc::channel();
    let paths = paths.clone();
    let thread = std::thread::spawn(move || {
        holder::run(&paths, holder::Mode::Child, stop.as_fd(), || {
            ready.send(()).map_err(io::Error::other)
        })
    });
    // An error means that it ended before it was ready.
    let came_up = is_ready.recv_timeout(LIMIT).is_ok();
    (stopper, thread, came_up)
}

impl Holder {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let (stop, thread, came_up) = run_holder(&paths);
        if !came_up {
            panic!("no holder: {:?}", thread.join().unwrap());
        }
        Self {
            paths,
            stop: Some(stop),
            thread: Some(thread),
            _dir: dir,
        }
    }
    fn dir(&self) -> &Path {
        self._dir.path()
    }
    fn file(&self) -> PathBuf {
        self.paths.target(MountName::Plain).join("file")
    }
    /// Stops it and says what is still mounted.
    fn stop(mut self) -> usize {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap().unwrap();
        mounted(&self.paths)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn mounted(paths: &Paths) -> usize {
    MountName::ALL
        .into_iter()
        .filter(|&name| mountinfo::at(&paths.target(name)).unwrap().is_some())
        .count()
}

/// A process that plays the store.
struct Store {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Store {
    fn spawn(dir: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(ROLE, dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
    fn say(&mut self, text: &str) {
        let input = self.child.stdin.as_mut().unwrap();
        writeln!(input, "{text}").unwrap();
    }
    /// Starts one that serves.
    fn serving(dir: &Path, adopt: bool) -> Self {
        let mut store = Self::spawn(dir);
        assert_eq!(store.line(), format!("running adopt={adopt}"));
        store.say("serving");
        assert_eq!(store.line(), "serving");
        store
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads all of the file in a scattered order and compares; nothing comes from the page cache.
fn read_all(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let mut page = vec![0; 4096];
    for n in 0..FILE_LEN / 4096 {
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        let offset = n * 97 % (FILE_LEN / 4096) * 4096;
        file.read_exact_at(&mut page, offset)?;
        if let Some(at) = page
            .iter()
            .zip(offset..)
            .position(|(byte, at)| *byte != content(at))
        {
            return Err(io::Error::other(format!("wrong byte at {offset}+{at}")));
        }
    }
    Ok(())
}

// ---- the tests ----------------------------------------------------------------------------------------------------

fn readers_do_not_notice_killed_stores() -> Result<(), Failed> {
    let holder = Holder::start();
    let mut store = Store::serving(holder.dir(), false);
    let stop = Arc::new(AtomicBool::new(false));
    let (progress, rounds) = mpsc::channel();
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (stop, progress, path) = (Arc::clone(&stop), progress.clone(), holder.file());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let round = read_all(&path);
                    let failed = round.is_err();
                    let _ = progress.send(round);
                    if failed {
                        break;
                    }
                }
            })
        })
        .collect();
    for _ in 0..8 {
        // Some rounds end while this store serves; the kill comes in the middle of others.
        for _ in 0..2 {
            rounds.recv_timeout(LIMIT)??;
        }
        store.child.kill()?;
        store.child.wait()?;
        store = Store::serving(holder.dir(), true);
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.join().unwrap();
    }
    drop(progress);
    for round in rounds {
        round?;
    }
    drop(store);
    assert_eq!(holder.stop(), 0, "all is unmounted");
    Ok(())
}

fn what_was_never_served_is_mounted_afresh() -> Result<(), Failed> {
    let holder = Holder::start();
    {
        let mut store = Store::spawn(holder.dir());
        assert_eq!(store.line(), "running adopt=false");
        // Dies without a word: for all the holder knows, INIT is half done.
    }
    // An INIT that is not the connection's first would be waited for in vain.
    let _store = Store::serving(holder.dir(), false);
    read_all(&holder.file())?;
    Ok(())
}

fn a_second_store_waits_for_the_first() -> Result<(), Failed> {
    let holder = Holder::start();
    let first = Store::serving(holder.dir(), false);
    let mut second = Store::spawn(holder.dir());
    let pid = first.child.id();
    drop(first);
    // It adopts once the first has gone, and never while it is there.
    assert_eq!(second.line(), "running adopt=true");
    second.say("serving");
    assert_eq!(second.line(), "serving");
    read_all(&holder.file())?;

    let mut third = Store::spawn(holder.dir());
    let said = third.line();
    assert!(
        said.contains("already has a store") && said.contains(&second.child.id().to_string()),
        "{said}"
    );
    assert!(!said.contains(&pid.to_string()));
    Ok(())
}

fn a_second_holder_is_refused() -> Result<(), Failed> {
    let holder = Holder::start();
    let (_stop, thread, came_up) = run_holder(&holder.paths);
    assert!(!came_up);
    let error = thread.join().unwrap().unwrap_err();
    assert!(matches!(error, MountError::Held { .. }), "{error}");
    // The first is unharmed.
    let _store = Store::serving(holder.dir(), false);
    read_all(&holder.file())?;
    Ok(())
}

fn stale_mounts_are_taken_away() -> Result<(), Failed> {
    let holder = Holder::start();
    // What a holder that was killed leaves behind: a mount whose connection is dead.
    let target = holder.paths.target(MountName::Xattr);
    let device = forelayer::sys::device::open_fuse()?;
    forelayer::sys::device::mount_fuse(device.as_fd(), &target, true)?;
    drop(device);
    let stacked = mountinfo::read()?
        .into_iter()
        .filter(|line| line.target == target)
        .count();
    assert_eq!(stacked, 2);
    // The holder sees at the next hand-over that its mount is covered, and makes all of them anew.
    let _store = Store::serving(holder.dir(), false);
    read_all(&target.join("file"))?;
    assert_eq!(holder.stop(), 0);
    Ok(())
}

fn foreign_mounts_are_left_alone() -> Result<(), Failed> {
    let dir = tempfile::tempdir()?;
    let paths = paths(dir.path());
    let target = paths.target(MountName::Control);
    std::fs::create_dir_all(&target)?;
    rustix::mount::mount(
        "none",
        &target,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        None,
    )?;
    let (_stop, thread, came_up) = run_holder(&paths);
    let ended = thread.join().unwrap();
    let there = mountinfo::at(&target)?.map(|line| line.fs_type);
    rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH)?;
    assert!(!came_up);
    assert!(
        matches!(ended, Err(MountError::Foreign { .. })),
        "{ended:?}"
    );
    assert_eq!(there.as_deref(), Some("tmpfs"));
    Ok(())
}

fn a_holder_that_cannot_start_says_why() -> Result<(), Failed> {
    let dir = tempfile::tempdir()?;
    let cannot = |program: &str, args: &[&str]| {
        let command = client::HolderCommand {
            program: program.into(),
            args: args.iter().map(Into::into).collect(),
        };
        client::connect(&paths(dir.path()), Some(&command))
            .unwrap_err()
            .to_string()
    };
    let reasons: HashMap<&str, String> = HashMap::from([
        ("ended", cannot("/bin/sh", &["-c", "exit 3"])),
        ("talked", cannot("/bin/sh", &["-c", "echo hello"])),
        ("absent", cannot("/no/such/program", &[])),
    ]);
    assert!(reasons["ended"].contains("exit status: 3"), "{reasons:?}");
    assert!(reasons["talked"].contains("hello"), "{reasons:?}");
    assert!(
        reasons["absent"].contains("/no/such/program"),
        "{reasons:?}"
    );
    let nobody = client::connect(&paths(dir.path()), None).unwrap_err();
    assert!(nobody.to_string().contains("mount.sock"), "{nobody}");
    Ok(())
}
