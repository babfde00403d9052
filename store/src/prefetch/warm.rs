//! Fills dentries and page cache ahead of a start.
//!
//! Invariants: no thread of the store uses the mounts (a process that serves a mount must not wait for it), so paths
//! are looked up by a short-lived child without the devices' descriptors; pages are stored only from verified chunks,
//! only after the dentries (what is stored into an inode that the kernel does not know is lost) and never past the end
//! of a file. Nobody waits for any of it, and it ends within a bound.

mod lookups;
mod pages;
#[cfg(test)]
mod tests;

use std::{io, path::PathBuf, sync::Arc, time::Duration};

pub use lookups::look_up;

use super::{names::NameLog, plan::PlannedPages};
use crate::{
    als,
    format::{NodeId, index::IndexError},
    image::Layer,
    metrics::Metrics,
};

/// Puts bytes into the kernel's page cache; what serves the mounts implements it.
pub trait PageStore: Send + Sync + 'static {
    /// Stores bytes of a file; `offset` is the start of a page, the end that of a page or of the file. Answers how
    /// many the kernel was given.
    ///
    /// # Errors
    /// If the kernel takes none.
    fn store(
        &self,
        layer: &Layer,
        node: NodeId,
        offset: u64,
        bytes: &[u8],
    ) -> Result<u64, als::WarmError>;
}

impl PageStore for als::Warm {
    fn store(
        &self,
        layer: &Layer,
        node: NodeId,
        offset: u64,
        bytes: &[u8],
    ) -> Result<u64, als::WarmError> {
        Self::store(self, layer, node, offset, bytes)
    }
}

/// How long the child may take; the lookups of a large start take less than a tenth of a second.
const PATIENCE: Duration = Duration::from_secs(20);

/// Warms; shared by all starts.
pub struct Warmer {
    /// The program with the hidden subcommand `warm`: this one.
    pub program: PathBuf,
    /// The directory of the data mounts.
    pub layers_dir: PathBuf,
    /// Where pages go; `None`: nowhere (no mounts, as in tests).
    pub store: Option<Arc<dyn PageStore>>,
    /// Who is told whose lookups are no start's.
    pub names: Arc<NameLog>,
    /// Paths looked up for one start at most.
    pub max_paths: usize,
    /// Bytes stored for one start at most.
    pub max_bytes: u64,
    /// The table.
    pub metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Warmer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Warmer({} paths, {} bytes)",
            self.max_paths, self.max_bytes
        )
    }
}

/// Why paths could not be looked up. The start finds out by itself: nothing is lost but time.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    /// A layer's index cannot be read.
    #[error("the paths cannot be found in the layers")]
    Index(#[from] IndexError),
    /// The child cannot be started or spoken to.
    #[error("the warmer {program} does not run")]
    Run {
        /// What was started.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It failed.
    #[error("the warmer ended with {status}: {said}")]
    Failed {
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The end of what it printed to standard error.
        said: String,
    },
    /// It took too long and was ended.
    #[error("the warmer took more than {} seconds and was ended", PATIENCE.as_secs())]
    Slow,
    /// A path is not usable.
    #[error("the warmer refuses {0:?}: only paths within the mounts are looked up")]
    Refused(String),
}

impl Warmer {
    /// Looks up, in the layers (top first), all that overlayfs will look up for these paths; answers how many
    /// lookups that were.
    ///
    /// # Errors
    /// If the child cannot do it.
    pub async fn dentries(
        &self,
        layers: Vec<Arc<Layer>>,
        paths: Vec<String>,
    ) -> Result<usize, WarmError> {
        lookups::warm(self, layers, paths).await
    }

    /// Stores pages, in order, as soon as their chunks are present, until `arriving` ends; answers the bytes stored.
    pub async fn pages(&self, pages: Vec<PlannedPages>, arriving: impl Future<Output = ()>) -> u64 {
        match &self.store {
            Some(store) if self.max_bytes > 0 => {
                let stored = pages::warm(store, pages, self.max_bytes, arriving).await;
                self.metrics.warmed_bytes.inc_by(stored);
                stored
            }
            _ => 0,
        }
    }
}
