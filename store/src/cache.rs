//! One sparse data file and one presence map a blob, shared by every reference to it (docs/formats.md, "Cache").
//!
//! Invariant 1: a presence bit is set only after verified data was written, and cleared durably before its hole is
//! punched. Bits are trusted within one boot or after a clean stop; otherwise a chunk is hashed again at first use
//! ([`ChunkState::Unproven`]).

mod blob;
pub mod disk;
mod gate;
mod geometry;
mod presence;
mod stamp;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;

use crate::{digest::Digest, format::LayerIndex};
pub use blob::BlobCache;
use disk::{Disk, RealDisk};
use gate::Gate;
pub use geometry::{Extent, Geometry};
pub use presence::ChunkState;
use stamp::{Machine, Stamp, Trust};

/// The cache directory: `<state>/blobs/sha256/<hex>/{index,data,present,meta.json}`.
#[derive(Debug)]
pub struct Cache {
    disk: Arc<dyn Disk>,
    state: PathBuf,
    stamp: Stamp,
    trust: Trust,
    gate: Arc<Gate>,
    // Held only to look a name up, never while a file is used.
    blobs: Mutex<HashMap<Digest, Arc<BlobCache>>>,
}

/// Why the cache could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A file of the cache cannot be used.
    #[error("cannot {what} {path}")]
    Io {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The layer's index does not say where a chunk lies.
    #[error("chunk {chunk} of layer {blob}: {what}")]
    Chunk {
        /// The layer.
        blob: Digest,
        /// The chunk.
        chunk: u32,
        /// What is wrong.
        what: String,
    },
    /// The blob is in use with another TOC, so its chunks would be numbered differently.
    #[error("layer {blob} is in use with TOC {open}, so it cannot be used with TOC {asked} too")]
    OtherToc {
        /// The layer.
        blob: Digest,
        /// The TOC it was opened with.
        open: Digest,
        /// The TOC it was now asked for with.
        asked: Digest,
    },
    /// The cache was closed: nothing may be written behind the clean-stop stamp.
    #[error("the cache is closed")]
    Closed,
}

impl CacheError {
    /// For `map_err`: an error of this operation on this file.
    fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}

impl Cache {
    /// Opens (or makes) the cache below `state`. Decides from its stamp file whether bits can be trusted
    /// (same boot id, or clean stop) and marks it unclean until [`Cache::close`].
    pub fn open(state: &Path) -> Result<Self, CacheError> {
        Self::open_on(Arc::new(RealDisk), state, &Machine::this()?)
    }

    /// The same on any disk and machine.
    pub(crate) fn open_on(
        disk: Arc<dyn Disk>,
        state: &Path,
        machine: &Machine,
    ) -> Result<Self, CacheError> {
        let blobs = state.join("blobs/sha256");
        disk.create_dir(&blobs)
            .map_err(CacheError::io("make directory", &blobs))?;
        let (stamp, trust) = Stamp::take(disk.as_ref(), state, machine)?;
        if trust == Trust::None {
            tracing::info!(
                state = %state.display(),
                "the cache was not closed before this boot: what it holds is checked again at first use"
            );
        }
        Ok(Self {
            disk,
            state: state.to_owned(),
            stamp,
            trust,
            gate: Arc::default(),
            blobs: Mutex::default(),
        })
    }

    /// Where a blob's files lie; made if it is not there.
    pub fn blob_dir(&self, blob: &Digest) -> Result<PathBuf, CacheError> {
        let dir = self.state.join("blobs/sha256").join(blob.hex());
        self.disk
            .create_dir(&dir)
            .map_err(CacheError::io("make directory", &dir))?;
        Ok(dir)
    }

    /// Whether the last stop was clean (or within this boot): index checksums need no re-check.
    #[must_use]
    pub fn trusted(&self) -> bool {
        self.trust != Trust::None
    }

    /// The chunks of a blob; one object a blob however often it is asked for.
    pub fn blob(&self, index: &Arc<LayerIndex>) -> Result<Arc<BlobCache>, CacheError> {
        let geometry: Arc<LayerIndex> = Arc::clone(index);
        self.blob_of(geometry)
    }

    /// The same for anything that knows where chunks lie.
    pub(crate) fn blob_of(
        &self,
        geometry: Arc<dyn Geometry>,
    ) -> Result<Arc<BlobCache>, CacheError> {
        let digest = geometry.blob();
        let toc = geometry.toc();
        let known = self.blobs.lock().get(&digest).map(Arc::clone);
        let blob = if let Some(blob) = known {
            blob
        } else {
            let opened = Arc::new(BlobCache::load(
                Arc::clone(&self.disk),
                &self.blob_dir(&digest)?,
                geometry,
                self.stamp.epoch,
                Arc::clone(&self.gate),
            )?);
            // Somebody else may have been faster; loading twice harms nothing, writing through two objects would.
            Arc::clone(self.blobs.lock().entry(digest).or_insert(opened))
        };
        if blob.toc() != toc {
            return Err(CacheError::OtherToc {
                blob: digest,
                open: blob.toc(),
                asked: toc,
            });
        }
        Ok(blob)
    }

    /// Writes out all data and presence maps and then the clean-stop stamp. Commits under way are awaited, later ones
    /// are refused with [`CacheError::Closed`]; reading goes on.
    pub fn close(&self) -> Result<(), CacheError> {
        if !self.gate.close() {
            return Ok(());
        }
        if self.trust == Trust::SameBoot {
            // What was written before an earlier process of this boot was killed may never have been synced.
            let below = self.state.join("blobs/sha256");
            self.disk
                .sync_below(&below)
                .map_err(CacheError::io("sync", &below))?;
        }
        let blobs: Vec<_> = self.blobs.lock().values().map(Arc::clone).collect();
        for blob in blobs {
            blob.sync()?;
        }
        self.stamp.leave(self.disk.as_ref(), &self.state)
    }
}
