//! The adapter of the control mount: the protocol that engines speak (reference: docs/design.md, "Engine protocol").
//!
//! A lookup of a layer's `diff` is the only message that may wait; it waits in a task. Nothing here has a negative
//! lifetime: what an image does not have now, it may have at the next pull (invariant 6).

use std::{
    collections::HashMap,
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, PollEvents,
    PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyXattr, Request,
    TimeOrNow,
};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::{
    Parts, attr,
    blob::{self, BlobRead},
    errno::AlsError,
    names::{self, Item},
    nodes::{self, Node, Nodes},
    ops::Ops,
    tree,
};
use crate::{
    digest::Digest,
    image::{Layer, Record},
    mount::{MountName, session},
};

/// How long the kernel may believe what it was told here, except of the root.
const TTL: Duration = Duration::from_secs(1);
/// The same of the root's attributes: each engine that starts is to be seen, and an engine at work comes by often.
const ROOT_TTL: Duration = Duration::from_millis(20);

/// The control mount.
pub(crate) struct Control {
    parts: Arc<Parts>,
    ops: Ops,
    nodes: Arc<Nodes>,
    since: SystemTime,
    blobs: Mutex<HashMap<u64, mpsc::UnboundedSender<BlobRead>>>,
    next_handle: AtomicU64,
}

/// Where a layer's tree is, from the directory that holds `diff`.
fn link(layer: &Layer) -> String {
    format!(
        "../../../layers/{}/{}/diff",
        layer.mount().dir_name(),
        layer.slot
    )
}

impl Control {
    pub(crate) fn new(parts: &Arc<Parts>) -> Self {
        Self {
            ops: Ops::new(&parts.metrics, MountName::Control),
            parts: Arc::clone(parts),
            nodes: Arc::default(),
            since: SystemTime::now(),
            blobs: Mutex::default(),
            next_handle: AtomicU64::new(1),
        }
    }

    fn node(&self, ino: u64) -> Result<Node, AlsError> {
        self.nodes.get(ino).ok_or(AlsError::Stale(ino))
    }

    fn record(&self, reference: &str, key: &Digest) -> Result<Arc<Record>, AlsError> {
        self.parts
            .images
            .recorded(reference, key)
            .ok_or(AlsError::NoEntry)
    }

    /// What a name is, of what is known without asking anybody.
    fn child(&self, parent: &Node, name: &[u8]) -> Result<Node, AlsError> {
        let none = AlsError::NoEntry;
        match parent {
            Node::Root if name == tree::PRIME.as_bytes() => Ok(Node::Prime),
            Node::Root => names::reference(name)
                .map(|reference| Node::Reference(reference.into()))
                .ok_or(none),
            Node::Reference(reference) => names::digest(name)
                .map(|digest| Node::Digest(Arc::clone(reference), digest))
                .ok_or(none),
            Node::Digest(reference, digest) => Item::parse(name)
                .map(|item| Node::Item(Arc::clone(reference), *digest, item))
                .ok_or(none),
            Node::Prime | Node::Item(..) => Err(AlsError::NotDirectory),
        }
    }

    fn attr(&self, ino: u64, node: &Node) -> Result<FileAttr, AlsError> {
        let (kind, perm, size) = match node {
            Node::Root => (FileType::Directory, 0o700, 0),
            Node::Prime => (FileType::RegularFile, 0o400, 0),
            Node::Reference(_) | Node::Digest(..) => (FileType::Directory, 0o755, 0),
            Node::Item(reference, digest, item) => {
                let record = self.record(reference, digest)?;
                return Ok(item_attr(ino, *item, &record, self.since));
            }
        };
        Ok(attr::own(ino, kind, perm, size, self.since))
    }

    /// The bytes of a file that is in memory.
    fn in_memory(&self, ino: u64) -> Result<bytes::Bytes, AlsError> {
        match self.node(ino)? {
            Node::Prime => Ok(bytes::Bytes::new()),
            Node::Item(reference, digest, Item::Info) => {
                Ok(self.record(&reference, &digest)?.info.clone())
            }
            _ => Err(AlsError::NotFile),
        }
    }
}

fn item_attr(ino: u64, item: Item, record: &Record, since: SystemTime) -> FileAttr {
    let (kind, perm, size) = match item {
        Item::Diff => (FileType::Symlink, 0o777, link(&record.layer).len() as u64),
        Item::Info => (FileType::RegularFile, 0o444, record.info.len() as u64),
        Item::Blob => (
            FileType::RegularFile,
            0o444,
            record.layer.index.facts().size,
        ),
    };
    attr::own(ino, kind, perm, size, since)
}

impl Filesystem for Control {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        session::negotiate(config, false);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.ops.lookup.inc();
        let found = self
            .node(parent.0)
            .and_then(|parent| self.child(&parent, name.as_bytes()));
        let node = match found {
            Ok(node) => node,
            Err(error) => return reply.error(error.errno()),
        };
        if let Node::Item(reference, digest, Item::Diff) = &node {
            let known = self.parts.images.recorded(reference, digest).is_some();
            let (reference, digest) = (Arc::clone(reference), *digest);
            let (parts, nodes) = (Arc::clone(&self.parts), Arc::clone(&self.nodes));
            let since = self.since;
            if known {
                // The answer is given at once, below; this tells the store that somebody pulls the image again.
                self.parts.runtime.spawn(async move {
                    let _ = parts.images.lookup(&reference, &digest).await;
                });
            } else {
                self.parts.runtime.spawn(async move {
                    match parts.images.lookup(&reference, &digest).await {
                        Ok(record) => {
                            let ino = nodes.looked_up(node);
                            let attr = item_attr(ino, Item::Diff, &record, since);
                            reply.entry(&TTL, &attr, Generation(0));
                        }
                        // Whatever the reason, and logged where it was found out: the engine pulls the layer itself.
                        Err(_) => reply.error(Errno::ENOENT),
                    }
                });
                return;
            }
        }
        // Asked before the table counts a lookup that fails.
        match self.attr(nodes::number(&node), &node) {
            Ok(attr) => {
                let ino = self.nodes.looked_up(node);
                let attr = FileAttr {
                    ino: INodeNo(ino),
                    ..attr
                };
                reply.entry(&TTL, &attr, Generation(0));
            }
            Err(error) => reply.error(error.errno()),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.ops.forget.inc();
        self.nodes.forget(ino.0, lookups);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.ops.getattr.inc();
        let ttl = if ino.0 == nodes::ROOT {
            // The engines that use this store are root's.
            if request.uid() == 0 {
                self.parts.hooks.seen(request.pid());
            }
            &ROOT_TTL
        } else {
            &TTL
        };
        match self.node(ino.0).and_then(|node| self.attr(ino.0, &node)) {
            Ok(attr) => reply.attr(ttl, &attr),
            Err(error) => reply.error(error.errno()),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.ops.readlink.inc();
        let target = self.node(ino.0).and_then(|node| match node {
            Node::Item(reference, digest, Item::Diff) => {
                Ok(link(&self.record(&reference, &digest)?.layer))
            }
            _ => Err(AlsError::NotLink),
        });
        match target {
            Ok(target) => reply.data(target.as_bytes()),
            Err(error) => reply.error(error.errno()),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.ops.open.inc();
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(AlsError::NotPermitted.errno());
        }
        let handle = self.node(ino.0).and_then(|node| match node {
            Node::Item(reference, digest, Item::Blob) => {
                let record = self.record(&reference, &digest)?;
                let reads = blob::open(&self.parts, Arc::clone(&record.layer));
                let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
                self.blobs.lock().insert(handle, reads);
                Ok(handle)
            }
            _ => self.in_memory(ino.0).map(|_| 0),
        });
        match handle {
            // Past the page cache: `info` may change, and wrong bytes of a `blob` must not stay.
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO),
            Err(error) => reply.error(error.errno()),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.ops.read.inc();
        if fh.0 != 0 {
            let read = BlobRead {
                offset,
                len: size,
                reply,
            };
            let sent = match self.blobs.lock().get(&fh.0) {
                Some(reads) => reads.send(read).map_err(|error| error.0),
                None => Err(read),
            };
            if let Err(read) = sent {
                // Opened in another life of the store: what was read so far is not here any more.
                tracing::warn!(
                    handle = fh.0,
                    "a read of a blob that was opened before the store's restart"
                );
                read.reply.error(Errno::EIO);
            }
            return;
        }
        match self.in_memory(ino.0) {
            Ok(bytes) => {
                let from = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                let to = from.saturating_add(size as usize).min(bytes.len());
                reply.data(&bytes[from..to]);
            }
            Err(error) => reply.error(error.errno()),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.ops.flush.inc();
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.ops.release.inc();
        self.blobs.lock().remove(&fh.0);
        reply.ok();
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.ops.readdir.inc();
        let node = match self.node(ino.0) {
            Ok(node) => node,
            Err(error) => return reply.error(error.errno()),
        };
        // References and digests are answered when asked for, whatever they are: there is no list of them.
        let mut names = vec![
            (ino.0, FileType::Directory, "."),
            (nodes::ROOT, FileType::Directory, ".."),
        ];
        match &node {
            Node::Root | Node::Reference(_) => {}
            Node::Digest(reference, digest) => {
                if self.parts.images.recorded(reference, digest).is_some() {
                    names.extend(Item::ALL.map(|item| {
                        let node = Node::Item(Arc::clone(reference), *digest, item);
                        let kind = match item {
                            Item::Diff => FileType::Symlink,
                            Item::Info | Item::Blob => FileType::RegularFile,
                        };
                        (nodes::number(&node), kind, item.name())
                    }));
                }
            }
            Node::Prime | Node::Item(..) => {
                return reply.error(AlsError::NotDirectory.errno());
            }
        }
        for ((ino, kind, name), next) in names.into_iter().zip(1_u64..) {
            if next > offset && reply.add(INodeNo(ino), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.ops.statfs.inc();
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
    }

    /// `use` must not come to be: creating it is how an engine says that it uses the layer.
    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        self.ops.create.inc();
        match self.node(parent.0) {
            Ok(Node::Digest(reference, digest)) if name.as_bytes() == names::USE => {
                self.parts.hooks.used(&reference, &digest);
                reply.error(Errno::ENOENT);
            }
            Ok(_) => reply.error(AlsError::NotPermitted.errno()),
            Err(error) => reply.error(error.errno()),
        }
    }

    /// Removing a digest's directory is how an engine says that it uses the layer no more; the directory stays.
    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.ops.rmdir.inc();
        match (self.node(parent.0), names::digest(name.as_bytes())) {
            (Ok(Node::Reference(reference)), Some(digest)) => {
                self.parts.hooks.released(&reference, &digest);
                reply.error(Errno::ENOENT);
            }
            (Ok(_), _) => reply.error(AlsError::NotPermitted.errno()),
            (Err(error), _) => reply.error(error.errno()),
        }
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        self.ops.getxattr.inc();
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        self.ops.listxattr.inc();
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        self.ops.other.inc();
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        self.ops.other.inc();
        reply.error(Errno::ENOTTY);
    }

    // Go asks for every file it opens.
    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        self.ops.other.inc();
        reply.error(Errno::ENOSYS);
    }

    // Nothing else can be changed here.

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.ops.other.inc();
        reply.error(AlsError::NotPermitted.errno());
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        self.ops.other.inc();
        reply.error(AlsError::NotPermitted.errno());
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        self.ops.other.inc();
        reply.error(AlsError::NotPermitted.errno());
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        self.ops.other.inc();
        reply.error(AlsError::NotPermitted.errno());
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        self.ops.other.inc();
        reply.error(AlsError::NotPermitted.errno());
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        self.ops.other.inc();
        reply.error(AlsError::NotPermitted.errno());
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.ops.other.inc();
        reply.error(AlsError::NotPermitted.errno());
    }
}
