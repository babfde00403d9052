//! What the control socket may ask of the store.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use forelayer_profiler::protocol::{Started, Trace};
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use crate::{
    config::Config,
    control::{
        ImageStatus, LayerStatus, PrefetchProgress, PrefetchRequest, RunSummary, Status,
        WitnessHub, server,
    },
    fetch::Fetcher,
    image::{Images, Layer},
    prefetch::Prefetcher,
};

/// See [`server::Backend`].
#[derive(Debug)]
pub(super) struct Backend {
    images: Arc<Images>,
    fetcher: Fetcher,
    prefetcher: Prefetcher,
    hub: Arc<WitnessHub>,
    store: PathBuf,
    background: bool,
    paused: AtomicBool,
    started: Instant,
}

impl Backend {
    pub(super) fn new(
        images: Arc<Images>,
        fetcher: Fetcher,
        prefetcher: Prefetcher,
        hub: Arc<WitnessHub>,
        config: &Config,
    ) -> Self {
        Self {
            images,
            fetcher,
            prefetcher,
            hub,
            store: config.store_dir(),
            background: config.fetch.background,
            paused: AtomicBool::new(false),
            started: Instant::now(),
        }
    }
}

impl server::Backend for Backend {
    fn status(&self) -> Status {
        let image = |image: &Arc<crate::image::Image>| ImageStatus {
            reference: image.reference().to_owned(),
            layers: image.layers.iter().map(|layer| status(layer)).collect(),
        };
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            store: self.store.clone(),
            witness: self.hub.connected(),
            background: self.background,
            background_paused: self.paused.load(Ordering::Relaxed),
            images: self.images.images().iter().map(image).collect(),
        }
    }

    fn started(&self, started: Started) {
        self.prefetcher.started(started);
    }

    fn take_in(&self, trace: Trace) -> BoxFuture<'static, Result<RunSummary, String>> {
        let prefetcher = self.prefetcher.clone();
        Box::pin(async move { prefetcher.take_in(trace).await })
    }

    fn prefetch(
        &self,
        request: PrefetchRequest,
    ) -> BoxFuture<'static, Result<mpsc::Receiver<PrefetchProgress>, String>> {
        let prefetcher = self.prefetcher.clone();
        Box::pin(async move { prefetcher.request(request).await })
    }

    fn pause_background(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
        self.fetcher.pause_background(paused);
    }
}

fn status(layer: &Layer) -> LayerStatus {
    let facts = layer.index.facts();
    let (present_chunks, present_bytes) = layer.cache.progress();
    LayerStatus {
        blob: facts.blob,
        toc: facts.toc,
        format: facts.format,
        bound: facts.bound,
        slot: layer.slot,
        chunks: layer.index.chunk_count(),
        present_chunks,
        bytes: layer.index.data_len(),
        present_bytes,
    }
}
