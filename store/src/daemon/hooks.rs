//! What the mounts tell: an engine or a container starts, a name is missing.

use std::sync::{Arc, OnceLock};

use futures_util::future::BoxFuture;

use crate::{
    als,
    control::WitnessHub,
    format::NodeId,
    image::Layer,
    prefetch::{NameLog, Prefetcher},
};

/// Passes the news on to the witness and to the predictions.
#[derive(Debug)]
pub(super) struct Hooks {
    hub: Arc<WitnessHub>,
    names: Arc<NameLog>,
    prefetcher: OnceLock<Prefetcher>,
}

impl Hooks {
    pub(super) const fn new(hub: Arc<WitnessHub>, names: Arc<NameLog>) -> Self {
        Self {
            hub,
            names,
            prefetcher: OnceLock::new(),
        }
    }

    /// The mounts are served before there can be a prefetcher, which fills their page cache.
    pub(super) fn set_prefetcher(&self, prefetcher: Prefetcher) {
        let _ = self.prefetcher.set(prefetcher);
    }
}

impl als::Hooks for Hooks {
    fn seen(&self, pid: u32) {
        if let Some(prefetcher) = self.prefetcher.get() {
            prefetcher.seen(pid);
        }
    }

    fn mounted(&self, layer: &Arc<Layer>) -> Option<BoxFuture<'static, ()>> {
        if let Some(prefetcher) = self.prefetcher.get() {
            prefetcher.mounted(layer.slot);
        }
        let attached = self.hub.mounted(layer.slot)?;
        Some(Box::pin(attached))
    }

    fn missing(&self, layer: &Arc<Layer>, dir: NodeId, name: &[u8], pid: u32) {
        self.names.looked_up(layer.slot, dir, name, pid);
    }
}
