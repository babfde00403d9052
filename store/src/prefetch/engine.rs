//! The owner of profiles and open plans: one thread that hears of pulls, mounts, starts, traces and requests, and does
//! what follows from them.
//!
//! Invariant: the handle's methods never wait for it ([`Prefetcher::resolved`] and [`Prefetcher::mounted`] are called
//! where an engine waits); it does no network I/O itself.

mod owner;
#[cfg(test)]
mod tests;

use std::{
    path::PathBuf,
    sync::{Arc, mpsc::SyncSender},
    time::Duration,
};

use forelayer_profiler::{
    profiles::{ProfileDir, ProfileError},
    protocol::{Started, Trace},
};
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    commands::Commands,
    early::EarlyRequests,
    names::NameLog,
    warm::{PageStore, Warmer},
};
use crate::{
    config,
    control::{PrefetchProgress, PrefetchRequest, RunSummary},
    digest::Digest,
    fetch::{Arrival, Fetcher, Plan, PlanOutcome},
    image::{Images, Layer, Metadata},
    metrics::Metrics,
    registry::Ahead,
};
use owner::{Event, Owner};

/// Events that may wait. More come only if the disk hangs; then losing one costs a prediction.
const QUEUE: usize = 4096;

/// What the owner knows of images; [`Images`] in the store.
pub trait Library: Send + Sync + 'static {
    /// The layer in a slot.
    fn layer(&self, slot: u32) -> Option<Arc<Layer>>;
    /// Names of images and their layers, bottom first.
    fn images(&self) -> Vec<(String, Vec<Arc<Layer>>)>;
    /// The layers of an image, bottom first, asked for now.
    fn resolve(
        self: Arc<Self>,
        reference: String,
    ) -> BoxFuture<'static, Result<Vec<Arc<Layer>>, String>>;
    /// Whether any layer of an image of this name is served.
    fn knows(&self, reference: &str) -> bool;
    /// An engine is about to look this image up, by this digest or another of its layers: looks it up for it. Answers
    /// whether it is there.
    fn expect(self: Arc<Self>, reference: String, key: Digest) -> BoxFuture<'static, bool>;
    /// What a pull of an image asks its registry for before its layers are known.
    fn metadata(&self, reference: &str) -> Option<Metadata>;
}

impl Library for Images {
    fn layer(&self, slot: u32) -> Option<Arc<Layer>> {
        Self::layer(self, slot)
    }
    fn images(&self) -> Vec<(String, Vec<Arc<Layer>>)> {
        Self::images(self)
            .iter()
            .map(|image| (image.reference().to_owned(), image.layers.clone()))
            .collect()
    }
    fn resolve(
        self: Arc<Self>,
        reference: String,
    ) -> BoxFuture<'static, Result<Vec<Arc<Layer>>, String>> {
        Box::pin(async move {
            match Self::resolve(&self, &reference).await {
                Ok(image) => Ok(image.layers.clone()),
                Err(error) => Err(error.to_string()),
            }
        })
    }
    fn knows(&self, reference: &str) -> bool {
        self.image(reference).is_some()
    }
    fn expect(self: Arc<Self>, reference: String, key: Digest) -> BoxFuture<'static, bool> {
        Box::pin(async move { Self::expect(&self, &reference, &key).await })
    }
    fn metadata(&self, reference: &str) -> Option<Metadata> {
        Self::metadata(self, reference)
    }
}

/// What carries plans out; the [`Fetcher`] in the store.
pub trait Lanes: Send + Sync + 'static {
    /// Puts a plan into the predicted lane when it is first polled; the future ends with the plan, dropping it changes
    /// nothing.
    fn predict(&self, plan: Plan) -> BoxFuture<'static, PlanOutcome>;
    /// No plan will come for a layer.
    fn unplanned(&self, layer: &Arc<Layer>);
    /// By which lane the chunks of a layer came since [`Lanes::forget_arrivals`].
    fn arrivals(&self, layer: &Layer) -> Vec<Arrival>;
    /// Nobody needs to know any more how a layer's chunks came.
    fn forget_arrivals(&self, layer: &Layer);
    /// Asks for what an image will need before its layers are known; `None` where nobody can. Called within a runtime.
    fn ahead(&self, reference: &str, requests: &EarlyRequests) -> Option<Ahead>;
}

impl Lanes for Fetcher {
    fn predict(&self, plan: Plan) -> BoxFuture<'static, PlanOutcome> {
        let fetcher = self.clone();
        Box::pin(async move { fetcher.predict(plan).await })
    }
    fn unplanned(&self, layer: &Arc<Layer>) {
        Self::unplanned(self, layer);
    }
    fn arrivals(&self, layer: &Layer) -> Vec<Arrival> {
        Self::arrivals(self, layer)
    }
    fn forget_arrivals(&self, layer: &Layer) {
        Self::forget_arrivals(self, layer);
    }
    fn ahead(&self, reference: &str, requests: &EarlyRequests) -> Option<Ahead> {
        Self::ahead(self, reference, |at_once| requests.requests(at_once))
    }
}

/// What the room is made of.
pub struct Parts {
    /// The images.
    pub library: Arc<dyn Library>,
    /// The fetcher.
    pub lanes: Arc<dyn Lanes>,
    /// What serves the mounts, if there are any.
    pub pages: Option<Arc<dyn PageStore>>,
    /// Told by the data mounts.
    pub names: Arc<NameLog>,
    /// Where profiles are kept.
    pub profiles_dir: PathBuf,
    /// Where early requests are kept.
    pub early_dir: PathBuf,
    /// Where the data mounts are.
    pub layers_dir: PathBuf,
    /// This program, for the warmer.
    pub program: PathBuf,
    /// `[prefetch]`.
    pub config: config::Prefetch,
    /// How long a start's trace may take (`witness.max_window`).
    pub max_window: Duration,
    /// The table.
    pub metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Parts({})", self.profiles_dir.display())
    }
}

/// Starts reading the command lines of engines, if they are to be read.
fn commands(parts: &Parts, events: &SyncSender<Event>) -> std::io::Result<Option<Commands>> {
    let config = &parts.config;
    if !config.enabled || !config.read_commands || config.early_bytes == 0 {
        return Ok(None);
    }
    let (dir, events) = (parts.early_dir.clone(), events.clone());
    let is_kept = move |image: &str| EarlyRequests::is_kept(&dir, image);
    let told = move |reference| {
        if let Err(error) = events.try_send(Event::Expected { reference }) {
            tracing::debug!(%error, "an image is looked up when the engine asks");
        }
    };
    Commands::start(is_kept, told).map(Some)
}

/// The handle of the room; cheap to clone.
#[derive(Clone)]
pub struct Prefetcher {
    events: SyncSender<Event>,
    names: Arc<NameLog>,
    library: Arc<dyn Library>,
    commands: Option<Commands>,
}

impl std::fmt::Debug for Prefetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Prefetcher")
    }
}

impl Prefetcher {
    /// Opens the profiles and starts the owner on a thread of its own; it ends with `stop`.
    ///
    /// # Errors
    /// If the profiles' directory cannot be used or no thread started.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(parts: Parts, stop: CancellationToken) -> Result<Self, ProfileError> {
        let dir = parts.profiles_dir.clone();
        let profiles = ProfileDir::open(&dir)?;
        let (events, queue) = std::sync::mpsc::sync_channel(QUEUE);
        let no_thread = |what| {
            let path = dir.clone();
            move |source| ProfileError::Io { what, path, source }
        };
        let handle = Self {
            events: events.clone(),
            names: Arc::clone(&parts.names),
            library: Arc::clone(&parts.library),
            commands: commands(&parts, &events)
                .map_err(no_thread("start the thread that reads commands for"))?,
        };
        let warmer = Warmer {
            program: parts.program.clone(),
            layers_dir: parts.layers_dir.clone(),
            store: parts.pages.clone(),
            names: Arc::clone(&parts.names),
            max_paths: usize::try_from(parts.config.warm_paths).unwrap_or(usize::MAX),
            max_bytes: parts.config.warm_bytes,
            metrics: Arc::clone(&parts.metrics),
        };
        let owner = Owner::new(
            parts,
            profiles,
            warmer,
            tokio::runtime::Handle::current(),
            stop.clone(),
        );
        // A thread of its own: the runtime's shutdown must not wait for it.
        std::thread::Builder::new()
            .name("prefetch".to_owned())
            .spawn(move || owner.run(&queue))
            .map_err(no_thread("start the thread that owns"))?;
        // The owner looks at `stop` between events; this one wakes it.
        tokio::spawn(async move {
            stop.cancelled().await;
            let _ = events.try_send(Event::Stop);
        });
        Ok(handle)
    }

    /// A process (0: unknown) looked at the store's directory: it may be an engine that is about to pull an image.
    pub fn seen(&self, pid: u32) {
        if let Some(commands) = &self.commands {
            commands.seen(pid);
        }
    }

    /// An engine looks a layer up that is not known: its registry is being asked. `key` is the digest that the engine
    /// has for the layer.
    pub fn searched(&self, reference: &str, key: &Digest) {
        self.send(Event::Searched {
            reference: reference.to_owned(),
            key: *key,
        });
    }

    /// An engine looked a layer of an image up: its pull has begun. `layers` bottom first, as manifests list them.
    pub fn resolved(&self, reference: &str, layers: &[Arc<Layer>]) {
        let layers = layers.iter().rev().map(Arc::clone).collect();
        self.send(Event::Resolved {
            reference: reference.to_owned(),
            layers,
        });
    }

    /// An overlay mount asked for the state of the layer in this slot: a container starts.
    pub fn mounted(&self, slot: u32) {
        // At once: the first lookups may come before the owner hears of it.
        self.names.open(slot);
        if !self.send(Event::Mounted { slot }) {
            drop(self.names.close(slot));
        }
    }

    /// A container called its first exec, and its command is known.
    pub fn started(&self, started: Started) {
        self.send(Event::Started(started));
    }

    /// Takes a trace into its profile.
    ///
    /// # Errors
    /// Why nothing was learned from it.
    pub async fn take_in(&self, trace: Trace) -> Result<RunSummary, String> {
        let (reply, answer) = oneshot::channel();
        self.send(Event::Trace {
            trace: Box::new(trace),
            reply,
        });
        answer
            .await
            .unwrap_or_else(|_| Err("the store is stopping or overloaded".to_owned()))
    }

    /// Fetches an image ahead: what its profiles predict, or everything.
    ///
    /// # Errors
    /// If the image cannot be looked up, or nothing predicts it.
    pub async fn request(
        &self,
        request: PrefetchRequest,
    ) -> Result<mpsc::Receiver<PrefetchProgress>, String> {
        let mut layers = Arc::clone(&self.library)
            .resolve(request.reference.clone())
            .await?;
        layers.reverse();
        let (reply, answer) = oneshot::channel();
        self.send(Event::Request {
            reference: request.reference,
            layers,
            all: request.all,
            reply,
        });
        answer
            .await
            .unwrap_or_else(|_| Err("the store is stopping or overloaded".to_owned()))
    }

    /// Whether the owner will hear of it.
    fn send(&self, event: Event) -> bool {
        let sent = self.events.try_send(event);
        if let Err(error) = &sent {
            tracing::debug!(%error, "the owner of the profiles does not keep up; a prediction or a trace is lost");
        }
        sent.is_ok()
    }
}
