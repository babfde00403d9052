//! The adapter of a data mount: messages of the kernel in, [`Tree`] asked, replies out. No logic of its own.
//!
//! Nothing here waits for the network: what is not in the cache is handed to a task together with its reply.

use std::{cell::RefCell, ffi::OsStr, io, os::unix::ffi::OsStrExt, sync::Arc, time::Instant};

use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, Filesystem, Generation, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyXattr, Request,
};

use super::{
    Parts,
    attr::{self, FOREVER},
    errno::{AlsError, chain},
    ops::Ops,
    reading::{Reading, Waits},
    tree::{Extent, Found, Place, Tree},
};
use crate::{
    format::NodeId,
    image::{DataMount, Layer},
    mount::{MountName, session},
};

/// One data mount.
pub(crate) struct Data {
    tree: Tree,
    parts: Arc<Parts>,
    reading: Arc<Reading>,
    ops: Ops,
    name: MountName,
}

impl Data {
    pub(crate) fn new(parts: &Arc<Parts>, reading: &Arc<Reading>, mount: DataMount) -> Self {
        let name = match mount {
            DataMount::Plain => MountName::Plain,
            DataMount::Xattr => MountName::Xattr,
        };
        Self {
            tree: Tree {
                images: Arc::clone(&parts.images),
                mount,
            },
            ops: Ops::new(&parts.metrics, name),
            parts: Arc::clone(parts),
            reading: Arc::clone(reading),
            name,
        }
    }

    /// The errno of an error; failures are logged.
    fn errno(&self, what: &'static str, ino: u64, error: &AlsError) -> Errno {
        if error.is_failure() {
            tracing::error!(mount = %self.name, what, ino, error = chain(error), "cannot answer the kernel");
        }
        error.errno()
    }

    fn attribute(&self, ino: u64, name: Option<&[u8]>, size: u32) -> Result<Vec<u8>, AlsError> {
        let place = self.tree.place(ino)?;
        let value = match name {
            Some(name) => Tree::attribute(&place, name)?,
            None => Tree::attributes(&place)?,
        };
        if size != 0 && value.len() > size as usize {
            return Err(AlsError::TooLong);
        }
        Ok(value)
    }

    fn reply_attribute(&self, ino: u64, name: Option<&[u8]>, size: u32, reply: ReplyXattr) {
        if self.tree.mount == DataMount::Plain {
            // For the whole connection: the kernel asks no more.
            reply.error(Errno::ENOSYS);
            return;
        }
        match self.attribute(ino, name, size) {
            // Values are bounded by the index (64 KiB each).
            Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
            Ok(value) => reply.data(&value),
            Err(error) => reply.error(self.errno("an attribute", ino, &error)),
        }
    }
}

/// Pages of a data file on their way to the kernel; one a FUSE thread, so that a READ allocates nothing.
fn with_buffer<R>(len: usize, use_it: impl FnOnce(&mut [u8]) -> R) -> R {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        use_it(&mut buffer[..len])
    })
}

/// Answers a READ that has to wait.
async fn read_later(
    parts: Arc<Parts>,
    (reading, waits): (Arc<Reading>, Waits),
    layer: Arc<Layer>,
    node: NodeId,
    offset: u64,
    extent: Extent,
    reply: ReplyData,
) {
    let begun = Instant::now();
    let brought = async {
        parts.fetcher.demand(&layer, extent.chunks.clone()).await?;
        let mut buffer = vec![0; extent.len];
        layer.cache.read_at(extent.data_offset, &mut buffer)?;
        Ok::<_, AlsError>(buffer)
    }
    .await;
    let waited = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    parts.metrics.stall_microseconds.inc_by(waited);
    match brought {
        Ok(buffer) => reply.data(&buffer),
        Err(error) if error.is_stopping() && !reading.answers_all() => leave_unanswered(reply),
        Err(error) => {
            read_failed(&parts, &layer, node, offset, &error);
            reply.error(error.errno());
        }
    }
    drop(waits);
}

/// The kernel hands the request to whoever adopts the connection, or ends it when nobody does.
fn leave_unanswered<R>(reply: R) {
    // Dropping a reply would answer EIO.
    std::mem::forget(reply);
}

/// Counts and logs a READ that is answered with an error.
fn read_failed(parts: &Parts, layer: &Layer, node: NodeId, offset: u64, error: &AlsError) {
    parts.metrics.read_errors.inc();
    let path = layer.index.path(node).unwrap_or_default();
    tracing::error!(
        layer = %layer.blob(),
        path = %String::from_utf8_lossy(&path),
        offset,
        error = chain(error),
        "a read fails"
    );
}

/// An entry without an inode: the name is known not to be there, for ever.
fn never(reply: ReplyEntry) {
    let nothing = attr::own(0, fuser::FileType::RegularFile, 0, 0, std::time::UNIX_EPOCH);
    reply.entry(&FOREVER, &nothing, Generation(0));
}

impl Filesystem for Data {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        session::negotiate(config, true);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.ops.lookup.inc();
        tracing::trace!(mount = %self.name, parent = parent.0, ?name, "lookup");
        let place = match self.tree.place(parent.0) {
            Ok(place) => place,
            Err(error) => return reply.error(self.errno("a lookup", parent.0, &error)),
        };
        match self.tree.lookup(&place, name.as_bytes()) {
            Ok(Found::Attr(attr)) => reply.entry(&FOREVER, &attr, Generation(0)),
            Ok(Found::Never) => {
                never(reply);
                if let Place::Node(layer, dir) = &place {
                    self.parts
                        .hooks
                        .missing(layer, *dir, name.as_bytes(), request.pid());
                }
            }
            Ok(Found::NotNow) => reply.error(Errno::ENOENT),
            Err(error) => reply.error(self.errno("a lookup", parent.0, &error)),
        }
    }

    // Inode numbers are computed: there is nothing to forget.
    fn forget(&self, _: &Request, _: INodeNo, _: u64) {
        self.ops.forget.inc();
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.ops.getattr.inc();
        match self
            .tree
            .place(ino.0)
            .and_then(|place| self.tree.attr(&place))
        {
            Ok(attr) => reply.attr(&FOREVER, &attr),
            Err(error) => reply.error(self.errno("attributes", ino.0, &error)),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.ops.readlink.inc();
        match self.tree.place(ino.0).and_then(|place| Tree::link(&place)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(self.errno("a link", ino.0, &error)),
        }
    }

    // Once, then the kernel opens files by itself (zero-message open): so there is no per-open state either.
    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.ops.open.inc();
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.ops.opendir.inc();
        reply.error(Errno::ENOSYS);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.ops.flush.inc();
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.ops.release.inc();
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, _: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.ops.releasedir.inc();
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.ops.read.inc();
        let (layer, node) = match self.tree.place(ino.0) {
            Ok(Place::Node(layer, node)) => (layer, node),
            Ok(Place::Prime) => return reply.data(&[]),
            Ok(Place::Root | Place::Slot(_)) => return reply.error(Errno::EISDIR),
            Err(error) => return reply.error(self.errno("a read", ino.0, &error)),
        };
        let failed = |error: AlsError, reply: ReplyData| {
            if error.is_failure() {
                read_failed(&self.parts, &layer, node, offset, &error);
            }
            reply.error(error.errno());
        };
        let extent = match Tree::extent(&layer, node, offset, size) {
            Ok(extent) => extent,
            Err(error) => return failed(error, reply),
        };
        if let Some(mark) = layer.take_mark(extent.chunks.clone()) {
            self.parts.fetcher.reached(&layer, mark);
        }
        if !layer.cache.all_present(extent.chunks.clone()) {
            self.parts.metrics.cache_misses.inc();
            let parts = Arc::clone(&self.parts);
            let reading = (Arc::clone(&self.reading), self.reading.waits(ino.0));
            let later = read_later(parts, reading, layer, node, offset, extent, reply);
            self.parts.runtime.spawn(later);
            return;
        }
        self.parts.metrics.cache_hits.inc();
        with_buffer(extent.len, |buffer| {
            match layer.cache.read_at(extent.data_offset, buffer) {
                Ok(()) => reply.data(buffer),
                Err(error) => failed(error.into(), reply),
            }
        });
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
        let listed = self.tree.place(ino.0).and_then(|place| {
            self.tree
                .list(&place, offset, |next, name, attr: &FileAttr| {
                    reply.add(attr.ino, next, attr.kind, OsStr::from_bytes(name))
                })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.errno("a listing", ino.0, &error)),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.ops.readdirplus.inc();
        let listed = self.tree.place(ino.0).and_then(|place| {
            self.tree
                .list(&place, offset, |next, name, attr: &FileAttr| {
                    let name = OsStr::from_bytes(name);
                    reply.add(attr.ino, next, name, &FOREVER, attr, Generation(0))
                })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.errno("a listing", ino.0, &error)),
        }
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.ops.statfs.inc();
        let layer = match self.tree.place(ino.0) {
            Ok(Place::Node(layer, _) | Place::Slot(layer)) => layer,
            Ok(Place::Root | Place::Prime) => return answer_statfs(None, reply),
            Err(error) => return reply.error(self.errno("a statfs", ino.0, &error)),
        };
        // An overlay that is being mounted asks for its lowers' trees: a container starts soon.
        match self.parts.hooks.mounted(&layer) {
            None => answer_statfs(Some(&layer), reply),
            Some(attached) => {
                let wait = self.parts.attach_wait;
                self.parts.runtime.spawn(async move {
                    // Watching is worth that much of the container's time and no more.
                    let _ = tokio::time::timeout(wait, attached).await;
                    answer_statfs(Some(&layer), reply);
                });
            }
        }
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.ops.getxattr.inc();
        self.reply_attribute(ino.0, Some(name.as_bytes()), size, reply);
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.ops.listxattr.inc();
        self.reply_attribute(ino.0, None, size, reply);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        self.ops.other.inc();
        reply.error(Errno::ENOSYS);
    }

    // FS_IOC_GETFLAGS: overlayfs asks for each directory it copies up. Refused, and asked again: the kernel has no word
    // for "none here" as it has for opens.
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
        self.ops.ioctl.inc();
        reply.error(Errno::ENOTTY);
    }

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

    // ENOSYS: the kernel takes the whole file as data, by itself.
    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        self.ops.lseek.inc();
        reply.error(Errno::ENOSYS);
    }
}

/// Size of the unit that blocks are counted in.
const BLOCK: u32 = 4096;

/// A full, read-only file system as large as the layer's content.
fn answer_statfs(layer: Option<&Layer>, reply: ReplyStatfs) {
    let (bytes, files) = layer.map_or((0, 0), |layer| {
        (layer.index.data_len(), u64::from(layer.index.node_count()))
    });
    let blocks = bytes.div_ceil(u64::from(BLOCK));
    reply.statfs(blocks, 0, 0, files, 0, BLOCK, 255, BLOCK);
}
