//! What an engine sees: the protocol tree, the layers' files, inode numbers; thin adapters to fuser.
//!
//! Invariants: metadata of an accepted layer is answered from memory and the mapped index; inode numbers are a function
//! of slot and node; a READ is answered whole up to the end of the file, or with EIO; no thread that reads the kernel's
//! requests waits for the network.

mod attr;
pub mod blob;
mod control;
mod data;
pub mod errno;
pub mod inode;
mod names;
mod nodes;
mod ops;
mod reading;
mod tree;
mod warm;

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::runtime::Handle;

use crate::{
    digest::Digest,
    fetch::Fetcher,
    format::NodeId,
    image::{DataMount, Images, Layer},
    metrics::Metrics,
    mount::{MountError, MountName, Mounts, session, session::Running},
    sys::primer,
};
pub use warm::{Warm, WarmError};

/// What the mounts tell the rest of the store. Called on the threads that read the kernel's requests: must not wait.
pub trait Hooks: Send + Sync + 'static {
    /// The process `_pid` of root's (0: unknown) looked at the store's directory, as engines do when they start.
    fn seen(&self, _pid: u32) {}
    /// An overlay is being mounted on this layer: a container starts in 0.1 to 0.3 s. The kernel's answer waits for
    /// the future (a witness that attaches), for at most [`Parts::attach_wait`].
    fn mounted(&self, _layer: &Arc<Layer>) -> Option<BoxFuture<'static, ()>> {
        None
    }
    /// The process `_pid` (0 where the kernel does not say) asked for a name that is not in this directory of a layer.
    fn missing(&self, _layer: &Arc<Layer>, _dir: NodeId, _name: &[u8], _pid: u32) {}
    /// An engine says that it uses (reference, digest) once more. Counts are a hint: engines lose some.
    fn used(&self, _reference: &str, _key: &Digest) {}
    /// An engine says that it uses (reference, digest) once less.
    fn released(&self, _reference: &str, _key: &Digest) {}
}

/// Nobody listens.
impl Hooks for () {}

/// What the mounts are made of.
pub struct Parts {
    /// All layers.
    pub images: Arc<Images>,
    /// For what is not here yet.
    pub fetcher: Fetcher,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Who wants to know.
    pub hooks: Arc<dyn Hooks>,
    /// Where answers that have to wait are worked on.
    pub runtime: Handle,
    /// Directory for unnamed files of raw blobs.
    pub state_dir: PathBuf,
    /// How long a container's mount may wait for the witness.
    pub attach_wait: Duration,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

/// The three mounts, being served. Dropping it changes nothing: they end when they are unmounted.
#[derive(Debug)]
pub struct Served {
    /// For filling the kernel's page cache.
    pub warm: Warm,
    sessions: Vec<Running>,
}

/// Serves the connections that the holder handed over: INIT or adoption, priming, and the word to the holder that they
/// can be adopted from now on. Blocks for some milliseconds; call it on a thread that may.
///
/// # Errors
/// A connection cannot be served or primed; the holder has gone.
pub fn serve(parts: Parts, mounts: &Mounts) -> Result<Served, MountError> {
    let parts = Arc::new(parts);
    let adopt = mounts.adopt;
    let device = |name| mounts.device(name);
    let reading = Arc::<reading::Reading>::default();
    let control = control::Control::new(&parts);
    let control = session::start(
        control,
        MountName::Control,
        device(MountName::Control)?,
        adopt,
    )?;
    let plain = data::Data::new(&parts, &reading, DataMount::Plain);
    let plain = session::start(plain, MountName::Plain, device(MountName::Plain)?, adopt)?;
    let xattr = data::Data::new(&parts, &reading, DataMount::Xattr);
    let xattr = session::start(xattr, MountName::Xattr, device(MountName::Xattr)?, adopt)?;
    if !mounts.adopt {
        for mount in mounts.all() {
            // So that the kernel has heard once that files are opened and closed without asking: a close that had to
            // ask a dead store would hang its process, also on exit.
            let prime = mount.target.join(tree::PRIME);
            primer::open_and_close(&prime, &mount.target).map_err(|source| {
                MountError::Session {
                    mount: mount.name,
                    what: "prime the connection",
                    source,
                }
            })?;
        }
    }
    mounts.serving()?;
    Ok(Served {
        warm: Warm::new(plain.notifier.clone(), xattr.notifier.clone(), reading),
        sessions: vec![control, plain, xattr],
    })
}

impl Served {
    /// Waits until one of the mounts ends (unmounted or aborted by somebody), and says which and why.
    pub async fn ended(&self) -> (MountName, String) {
        let mut all: FuturesUnordered<_> = self
            .sessions
            .iter()
            .map(|running| running.ended().map(move |why| (running.name, why)))
            .collect();
        match all.next().await {
            Some(ended) => ended,
            None => std::future::pending().await,
        }
    }
}
