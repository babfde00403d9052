//! Fetches chunks: one scheduler that owns all state, three lanes, decode and verify off the async threads.
//!
//! Invariants: only this room starts blob requests for chunks; a chunk is fetched at most once at a time, whoever
//! wants it; a demand is never behind a prediction or the background; FUSE threads never wait here.

mod arrivals;
mod backoff;
mod batch;
#[doc(hidden)]
pub mod bench;
mod decode;
mod executor;
mod origin;
mod pool;
mod ranges;
mod raw;
mod request;
mod scheduler;
#[cfg(test)]
mod tests;

use std::{ops::Range, sync::Arc, time::Duration};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{config, digest::Digest, image::Layer, metrics::Metrics, registry};
pub use arrivals::Arrival;
use arrivals::Arrivals;
use executor::{Command, Executor, Wanted};
use origin::{LayerOrigin, Origin};
use pool::Pool;
pub use raw::RawBody;
use request::{Budget, Shared};
pub use scheduler::{LaneCounts, LayerStatus, PlanStatus, Snapshot};

/// The handle that the other rooms hold; cheap to clone.
#[derive(Debug, Clone)]
pub struct Fetcher {
    commands: mpsc::UnboundedSender<Command>,
    client: Option<registry::Client>,
    metrics: Arc<Metrics>,
    arrivals: Arc<Arrivals>,
    done: CancellationToken,
    max_ahead_requests: usize,
}

/// Chunks in the order in which they will be needed, over all layers of an image.
#[derive(Debug, Clone)]
pub struct Plan {
    /// For logs and status: what was predicted from (image and workload). A plan takes the place of an earlier one of
    /// the same name: of that, only what was already asked for is still brought.
    pub name: String,
    /// First needed first.
    pub steps: Vec<PlanStep>,
}

/// One predicted chunk.
#[derive(Debug, Clone)]
pub struct PlanStep {
    /// The layer.
    pub layer: Arc<Layer>,
    /// The chunk.
    pub chunk: u32,
    /// Microseconds from the container's first exec at which it is expected to be needed.
    pub at_us: i64,
}

/// What became of a plan.
#[derive(Debug, Clone, Default)]
pub struct PlanOutcome {
    /// Chunks that could not be had.
    pub failed: u32,
    /// Why the first of them could not.
    pub error: Option<FetchError>,
}

/// Why chunks could not be brought. Names layer, file and chunk.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// The store is stopping.
    #[error("the store is stopping")]
    Stopping,
    /// A chunk could not be fetched, verified or stored.
    #[error("cannot bring chunk {chunk} ({file}) of layer {layer}: {why}")]
    Chunk {
        /// The layer.
        layer: Digest,
        /// Path of the file in the layer.
        file: Box<str>,
        /// The chunk.
        chunk: u32,
        /// The host that was asked last, if any, and what happened there.
        why: Box<str>,
    },
    /// The raw blob could not be opened.
    #[error("cannot read the blob of layer {layer}: {why}")]
    Raw {
        /// The layer.
        layer: Digest,
        /// What happened with the last of its sources.
        why: Box<str>,
    },
}

impl Fetcher {
    /// Starts the scheduler; it ends when `stop` is cancelled (waiting demands get [`FetchError::Stopping`]).
    ///
    /// # Errors
    /// If no thread can be started.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(
        config: &config::Fetch,
        client: registry::Client,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> std::io::Result<Self> {
        let mut fetcher = Self::start_without_client(config, metrics, stop)?;
        fetcher.client = Some(client);
        Ok(fetcher)
    }

    fn start_without_client(
        config: &config::Fetch,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> std::io::Result<Self> {
        let arrivals = Arc::<Arrivals>::default();
        let (commands, receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            pool: Pool::start(config.decode_threads)?,
            metrics: Arc::clone(&metrics),
            demand_budget: Budget::new(config.max_bytes_in_flight / 4),
            ahead_budget: Budget::new(config.max_bytes_in_flight / 4 * 3),
        });
        let done = CancellationToken::new();
        let guard = done.clone().drop_guard();
        let run = Executor::run(config.into(), shared, Arc::clone(&arrivals), receiver, stop);
        tokio::spawn(async move {
            run.await;
            drop(guard);
        });
        Ok(Self {
            commands,
            client: None,
            metrics,
            arrivals,
            done,
            max_ahead_requests: config.max_ahead_requests.max(1),
        })
    }

    /// Asks the registry of an image for what a pull will need before its layers are known; `wanted` is told how many
    /// requests are made at once.
    #[must_use]
    pub fn ahead(
        &self,
        reference: &str,
        wanted: impl FnOnce(usize) -> Vec<registry::Early>,
    ) -> Option<registry::Ahead> {
        let reference: registry::Reference = reference.parse().ok()?;
        let at_once = self.max_ahead_requests;
        let wanted = wanted(at_once);
        Some(
            self.client
                .as_ref()?
                .ahead(&reference.repository, wanted, at_once),
        )
    }

    /// Brings chunks somebody waits for. Returns when all are present and proven, or on the first that cannot be had.
    pub async fn demand(&self, layer: &Arc<Layer>, chunks: Range<u32>) -> Result<(), FetchError> {
        if layer.cache.all_present(chunks.clone()) {
            return Ok(());
        }
        self.demand_of(self.wanted(layer)?, chunks).await
    }

    async fn demand_of(&self, origin: Wanted, chunks: Range<u32>) -> Result<(), FetchError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Demand {
            origin,
            chunks,
            reply,
        };
        if self.commands.send(command).is_err() {
            return Err(FetchError::Stopping);
        }
        answer.await.unwrap_or(Err(FetchError::Stopping))
    }

    /// Puts a plan into the predicted lane; chunks that are present or on their way are skipped. Resolves when the
    /// plan's last chunk is present, given up, or superseded. Dropping the future does not cancel the plan.
    pub async fn predict(&self, plan: Plan) -> PlanOutcome {
        let needs = plan.steps.iter().map(|step| step.at_us);
        let lasts = (needs.clone().max().zip(needs.min()))
            .and_then(|(last, first)| u64::try_from(last.checked_sub(first)?).ok())
            .map_or(Duration::ZERO, Duration::from_micros);
        let mut steps = Vec::with_capacity(plan.steps.len());
        let mut known: Vec<(Arc<Layer>, Wanted)> = Vec::new();
        for step in plan.steps {
            // Steps of one layer come in runs; an image has few layers.
            let found = known
                .iter()
                .rposition(|(layer, _)| Arc::ptr_eq(layer, &step.layer));
            let found = match found {
                Some(found) => found,
                None => match self.wanted(&step.layer) {
                    Ok(wanted) => {
                        known.push((step.layer, wanted));
                        known.len() - 1
                    }
                    Err(error) => return stopped(error),
                },
            };
            steps.push((known[found].1.clone(), step.chunk));
        }
        self.predict_of(plan.name, steps, lasts).await
    }

    async fn predict_of(
        &self,
        name: String,
        steps: Vec<(Wanted, u32)>,
        lasts: Duration,
    ) -> PlanOutcome {
        let (reply, answer) = oneshot::channel();
        let command = Command::Predict {
            name,
            steps,
            lasts,
            reply,
        };
        if self.commands.send(command).is_err() {
            return stopped(FetchError::Stopping);
        }
        answer
            .await
            .unwrap_or_else(|_| stopped(FetchError::Stopping))
    }

    /// A reader came to a chunk that was marked ([`Layer::set_mark`]): it follows what was brought for being nearby.
    pub fn reached(&self, layer: &Arc<Layer>, chunk: u32) {
        if let Ok(wanted) = self.wanted(layer) {
            let _ = self.commands.send(Command::Reached(wanted, chunk));
        }
    }

    /// Adds a layer's missing chunks to the background lane, in file order. Nothing happens where `fetch.background`
    /// is off.
    pub fn background(&self, layer: &Arc<Layer>) {
        if let Ok(wanted) = self.wanted(layer) {
            // A store that is stopping fetches nothing more.
            let _ = self.commands.send(Command::Background(wanted));
        }
    }

    /// Nothing is predicted for a layer: the background lane need not wait for a plan.
    pub fn unplanned(&self, layer: &Arc<Layer>) {
        if let Ok(wanted) = self.wanted(layer) {
            let _ = self.commands.send(Command::Unplanned(wanted));
        }
    }

    /// Stops or resumes the background lane. Requests under way are brought to their end.
    pub fn pause_background(&self, paused: bool) {
        let _ = self.commands.send(Command::Pause(paused));
    }

    /// What is queued, on its way and brought; empty when the store is stopping.
    pub async fn snapshot(&self) -> Snapshot {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Snapshot(reply)).is_err() {
            return Snapshot::default();
        }
        answer.await.unwrap_or_default()
    }

    /// By which lane the chunks of a layer came since the store was started or [`Fetcher::forget_arrivals`].
    #[must_use]
    pub fn arrivals(&self, layer: &Layer) -> Vec<Arrival> {
        self.arrivals.of(layer.blob())
    }

    /// Forgets by which lane the chunks of a layer came, when no window needs to know any more.
    pub fn forget_arrivals(&self, layer: &Layer) {
        self.arrivals.forget(layer.blob());
    }

    /// The raw bytes of a layer's blob (engine's `blob` file), as one background-priority request counted in lane
    /// `raw`.
    pub async fn raw(&self, layer: &Arc<Layer>, from: u64) -> Result<RawBody, FetchError> {
        let Some(client) = &self.client else {
            return Err(FetchError::Stopping);
        };
        RawBody::open(client, layer, from, Arc::clone(&self.metrics)).await
    }

    /// Waits until the scheduler has ended after `stop`: no request is started any more.
    pub async fn stopped(&self) {
        self.done.cancelled().await;
    }

    fn wanted(&self, layer: &Arc<Layer>) -> Result<Wanted, FetchError> {
        let Some(client) = self.client.clone() else {
            return Err(FetchError::Stopping);
        };
        let origin: Arc<dyn Origin> = Arc::new(LayerOrigin {
            layer: Arc::clone(layer),
            client,
        });
        Ok(Wanted {
            digest: *layer.blob(),
            identity: Arc::as_ptr(layer).addr(),
            origin,
        })
    }
}

fn stopped(error: FetchError) -> PlanOutcome {
    PlanOutcome {
        failed: 0,
        error: Some(error),
    }
}
