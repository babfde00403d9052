//! The layer as a unit: one object a blob, whatever the number of references.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use crate::{
    cache::BlobCache,
    digest::Digest,
    format::{LayerFormat, LayerIndex},
    registry::Repository,
};

/// Later repositories are a fallback, not a history. When there are so many, further ones are left out: who came first
/// has served, who comes last only says that it could.
const MAX_SOURCES: usize = 8;

/// A layer the store serves.
#[derive(Debug)]
pub struct Layer {
    /// Its place on the data mounts; makes its inode numbers. At least 1, never reused.
    pub slot: u32,
    /// What is in it.
    pub index: Arc<LayerIndex>,
    /// What of it is here.
    pub cache: Arc<BlobCache>,
    sources: parking_lot::RwLock<Vec<Repository>>,
    /// See [`Self::set_mark`].
    mark: AtomicU32,
}

/// No chunk has this number: a layer has fewer.
const NO_MARK: u32 = u32::MAX;

/// Which data mount serves a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DataMount {
    /// Layers without xattrs and opaque directories: the connection answers ENOSYS to xattr calls.
    Plain,
    /// The others.
    Xattr,
}

impl DataMount {
    /// Name of its directory below `<state>/layers`.
    #[must_use]
    pub const fn dir_name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Xattr => "xattr",
        }
    }
}

impl Layer {
    /// A layer whose blob the `sources` hold.
    #[must_use]
    pub const fn new(
        slot: u32,
        index: Arc<LayerIndex>,
        cache: Arc<BlobCache>,
        sources: Vec<Repository>,
    ) -> Self {
        Self {
            slot,
            index,
            cache,
            sources: parking_lot::RwLock::new(sources),
            mark: AtomicU32::new(NO_MARK),
        }
    }

    /// Marks a chunk: whoever fetches wants to know when a reader comes to it. It takes the place of the mark before.
    pub fn set_mark(&self, chunk: u32) {
        self.mark.store(chunk, Ordering::Relaxed);
    }

    /// Takes the mark away if it is on one of these chunks, and answers which. A load, for nearly every read.
    pub fn take_mark(&self, chunks: std::ops::Range<u32>) -> Option<u32> {
        let mark = self.mark.load(Ordering::Relaxed);
        let taken = chunks.contains(&mark)
            && (self.mark)
                .compare_exchange(mark, NO_MARK, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        taken.then_some(mark)
    }

    /// Which mount serves it.
    #[must_use]
    pub fn mount(&self) -> DataMount {
        if self.index.needs_xattrs() {
            DataMount::Xattr
        } else {
            DataMount::Plain
        }
    }

    /// Digest of the compressed blob.
    #[must_use]
    pub fn blob(&self) -> &Digest {
        &self.index.facts().blob
    }

    /// How its blob is written.
    #[must_use]
    pub fn format(&self) -> LayerFormat {
        self.index.facts().format
    }

    /// Repositories that are known to hold the blob, in the order in which they came.
    #[must_use]
    pub fn sources(&self) -> Vec<Repository> {
        self.sources.read().clone()
    }

    /// Host of the n-th of them, counted round; empty if there is none. For those who ask often.
    pub(crate) fn source_host(&self, n: usize) -> String {
        let sources = self.sources.read();
        let source = sources.get(n % sources.len().max(1));
        source.map_or_else(String::new, |source| source.host.clone())
    }

    /// Adds a repository behind the others, so that one that works stays the first to be asked whatever other images
    /// say; answers whether that changed anything.
    pub(super) fn add_source(&self, repository: &Repository) -> bool {
        let mut sources = self.sources.write();
        if sources.len() >= MAX_SOURCES || sources.contains(repository) {
            return false;
        }
        sources.push(repository.clone());
        true
    }
}
