//! Carries out what the scheduler decides: one task that owns it, a task for each request, the pool for the rest.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    FetchError, PlanOutcome,
    arrivals::Arrivals,
    origin::Origin,
    request::{self, Orders, Shared},
    scheduler::{
        Action, DemandId, Event, Given, LayerKey, Limits, PlanId, RequestId, Scheduler, Snapshot,
    },
};
use crate::{
    cache::CacheError, digest::Digest, metrics::ByLane, sys::allocator::give_back_what_is_free,
};

/// When nothing was asked for so long, what fetching has left free in the heaps goes back: after half a gigabyte nearly
/// 200 MB of it (`cargo xtask bench --goals idle`).
const QUIET: Duration = Duration::from_secs(5);

/// What the handle asks for.
pub(super) enum Command {
    Demand {
        origin: Wanted,
        chunks: std::ops::Range<u32>,
        reply: oneshot::Sender<Result<(), FetchError>>,
    },
    Predict {
        name: String,
        steps: Vec<(Wanted, u32)>,
        lasts: Duration,
        reply: oneshot::Sender<PlanOutcome>,
    },
    Reached(Wanted, u32),
    Background(Wanted),
    Unplanned(Wanted),
    Pause(bool),
    Snapshot(oneshot::Sender<Snapshot>),
}

/// A layer that a command is about.
#[derive(Clone)]
pub(super) struct Wanted {
    pub(super) digest: Digest,
    /// Tells one loading of a layer from the next: the address of its object.
    pub(super) identity: usize,
    pub(super) origin: Arc<dyn Origin>,
}

/// The task's state beside the scheduler.
pub(super) struct Executor {
    scheduler: Scheduler<dyn Origin>,
    shared: Arc<Shared>,
    arrivals: Arc<Arrivals>,
    identities: HashMap<LayerKey, usize>,
    events: mpsc::UnboundedSender<Event>,
    demands: HashMap<DemandId, oneshot::Sender<Result<(), FetchError>>>,
    plans: HashMap<PlanId, oneshot::Sender<PlanOutcome>>,
    requests: HashMap<RequestId, watch::Sender<Orders>>,
    tasks: JoinSet<()>,
    next_id: u64,
    started: Instant,
    /// When the heaps are to be emptied, if there was anything since they last were.
    quiet: Option<Instant>,
}

impl Executor {
    /// Runs until `stop`; then everybody who waits is told so.
    pub(super) async fn run(
        limits: Limits,
        shared: Arc<Shared>,
        arrivals: Arc<Arrivals>,
        mut commands: mpsc::UnboundedReceiver<Command>,
        stop: CancellationToken,
    ) {
        let (events, mut happened) = mpsc::unbounded_channel();
        let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let seed = seed.map_or(0, |time| u64::from(time.subsec_nanos()));
        let mut executor = Self {
            scheduler: Scheduler::new(limits, seed),
            shared,
            arrivals,
            identities: HashMap::new(),
            events,
            demands: HashMap::new(),
            plans: HashMap::new(),
            requests: HashMap::new(),
            tasks: JoinSet::new(),
            next_id: 0,
            started: Instant::now(),
            quiet: None,
        };
        loop {
            let deadline = executor.scheduler.deadline();
            let mut batch = Vec::new();
            tokio::select! {
                () = stop.cancelled() => break,
                command = commands.recv() => match command {
                    Some(command) => executor.command(command, &mut batch),
                    // The last handle is gone; what was asked for still goes on.
                    None => {
                        stop.cancelled().await;
                        break;
                    }
                },
                Some(event) = happened.recv() => batch.push(event),
                () = sleep_until(executor.started, deadline) => batch.push(Event::Tick),
                Some(_) = executor.tasks.join_next() => continue,
                () = until(executor.quiet) => {
                    executor.quiet = None;
                    tokio::task::spawn_blocking(give_back_what_is_free);
                    continue;
                }
            }
            // What is there already goes into the same step: neighbours then share a request.
            while let Ok(command) = commands.try_recv() {
                executor.command(command, &mut batch);
            }
            while let Ok(event) = happened.try_recv() {
                batch.push(event);
            }
            executor.step(batch);
        }
        executor.tasks.abort_all();
        for (_, reply) in executor.demands.drain() {
            let _ = reply.send(Err(FetchError::Stopping));
        }
    }

    fn command(&mut self, command: Command, batch: &mut Vec<Event>) {
        match command {
            Command::Demand {
                origin,
                chunks,
                reply,
            } => {
                let layer = self.layer(origin);
                let id = self.id();
                self.demands.insert(id, reply);
                batch.push(Event::Demand { id, layer, chunks });
            }
            Command::Predict {
                name,
                steps,
                lasts,
                reply,
            } => {
                let steps = steps
                    .into_iter()
                    .map(|(origin, chunk)| (self.layer(origin), chunk))
                    .collect();
                let id = self.id();
                self.plans.insert(id, reply);
                batch.push(Event::Predict {
                    id,
                    name,
                    steps,
                    lasts,
                });
            }
            Command::Reached(origin, chunk) => {
                let layer = self.layer(origin);
                batch.push(Event::Reached { layer, chunk });
            }
            Command::Background(origin) => {
                let layer = self.layer(origin);
                batch.push(Event::Background { layer });
            }
            Command::Unplanned(origin) => {
                let layer = self.layer(origin);
                batch.push(Event::Unplanned { layer });
            }
            Command::Pause(paused) => batch.push(Event::Pause(paused)),
            Command::Snapshot(reply) => {
                let _ = reply.send(self.scheduler.snapshot());
            }
        }
    }

    fn layer(&mut self, wanted: Wanted) -> LayerKey {
        let key = self
            .scheduler
            .layer(&wanted.digest, || Arc::clone(&wanted.origin));
        if self.identities.insert(key, wanted.identity) != Some(wanted.identity) {
            self.scheduler.set_blob(key, wanted.origin);
        }
        key
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn step(&mut self, batch: Vec<Event>) {
        for event in &batch {
            if let Event::Ended { request, .. } = event {
                self.requests.remove(request);
            }
        }
        if self.quiet.is_some() || !self.requests.is_empty() {
            self.quiet = Some(Instant::now() + QUIET);
        }
        let now = self.started.elapsed();
        for action in self.scheduler.apply(now, batch) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action<dyn Origin>) {
        match action {
            Action::Request(request) => {
                let (orders, given) = watch::channel(Orders::default());
                self.requests.insert(request.id, orders);
                let shared = Arc::clone(&self.shared);
                let events = self.events.clone();
                self.tasks
                    .spawn(request::run(request, shared, given, events));
            }
            Action::Mark { blob, chunk } => blob.mark(chunk),
            Action::Hold { request, hold } => {
                if let Some(orders) = self.requests.get(&request) {
                    orders.send_modify(|orders| orders.hold = hold);
                }
            }
            Action::Hurry { request, hurry } => {
                if let Some(orders) = self.requests.get(&request) {
                    orders.send_modify(|orders| orders.hurry = hurry);
                }
                if hurry {
                    self.shared.pool.hurry(request);
                }
            }
            Action::Prove {
                layer,
                blob,
                chunk,
                urgent,
            } => self.local(layer, chunk, urgent, move || blob.prove(chunk)),
            Action::Zeros {
                layer,
                blob,
                chunk,
                urgent,
            } => self.local(layer, chunk, urgent, move || {
                blob.commit_zeros(chunk).map(|()| true)
            }),
            Action::Reply { demand, result } => {
                if let Some(reply) = self.demands.remove(&demand) {
                    let result = result.map_err(|given| self.error(&given));
                    let _ = reply.send(result);
                }
            }
            Action::Finished {
                plan,
                failed,
                first,
            } => {
                if let Some(reply) = self.plans.remove(&plan) {
                    let error = first.map(|given| self.error(&given));
                    let _ = reply.send(PlanOutcome { failed, error });
                }
            }
            Action::Brought {
                blob,
                chunk,
                lane,
                late,
            } => {
                let metrics = &self.shared.metrics;
                metrics.chunks.get_or_create(&ByLane { lane }).inc();
                self.arrivals
                    .note(blob.digest(), blob.chunk_count(), chunk, lane, late);
            }
        }
    }

    /// Has the pool do what needs no network.
    fn local(
        &self,
        layer: LayerKey,
        chunk: u32,
        urgent: bool,
        work: impl FnOnce() -> Result<bool, CacheError> + Send + 'static,
    ) {
        let mut told = Told {
            layer,
            chunk,
            result: Err("the work on it broke off".to_owned()),
            events: self.events.clone(),
        };
        let job = move |_: &mut super::decode::Decoders| {
            told.take(work());
        };
        match urgent {
            true => self.shared.pool.submit_urgent(Box::new(job)),
            false => self.shared.pool.submit(None, Box::new(job)),
        }
    }

    fn error(&self, given: &Given) -> FetchError {
        let blob = self.scheduler.blob(given.layer);
        FetchError::Chunk {
            layer: blob.digest(),
            file: blob.file(given.chunk).into(),
            chunk: given.chunk,
            why: if given.host.is_empty() {
                given.why.as_str().into()
            } else {
                format!("{}: {}", given.host, given.why).into()
            },
        }
    }
}

/// Tells what became of work that needs no network when it is dropped, also if that is because of a panic.
struct Told {
    layer: LayerKey,
    chunk: u32,
    result: Result<bool, String>,
    events: mpsc::UnboundedSender<Event>,
}

impl Told {
    fn take(&mut self, result: Result<bool, CacheError>) {
        self.result = result.map_err(|error| error.to_string());
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        // A scheduler that is gone needs no news.
        let _ = self.events.send(Event::Local {
            layer: self.layer,
            chunk: self.chunk,
            result: std::mem::replace(&mut self.result, Ok(false)),
        });
    }
}

async fn sleep_until(started: Instant, deadline: Option<Duration>) {
    until(deadline.map(|deadline| started + deadline)).await;
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
