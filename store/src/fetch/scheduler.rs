//! What is fetched next: one owner of all state, a synchronous `apply(events) -> actions` without clock or network.
//!
//! Invariants: a chunk is in at most one request, except that a demand may overtake a prediction that lies far behind
//! in its stream; a demand goes before a prediction, and that before the background; whoever wants a chunk hears of
//! it exactly once, brought or not; the limits on requests hold.

mod nearby;
mod pace;
mod plans;
mod room;
mod settle;
mod start;
mod status;
#[cfg(test)]
mod tests;
mod want;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use super::{
    backoff::{Breakers, Jitter},
    origin::{Blob, Refusal},
};
use crate::{cache::ChunkState, config, digest::Digest, metrics::Lane};
use plans::Plan;
use room::Places;
pub use status::{LaneCounts, LayerStatus, PlanStatus, Snapshot};
use want::Want;

/// A reader whose request is not answered for so long may be waiting behind bodies that are not read because of it.
const UNANSWERED: Duration = Duration::from_millis(500);

/// A layer in the scheduler's table.
pub(super) type LayerKey = usize;
/// A range request.
pub(super) type RequestId = u64;
/// Somebody who waits.
pub(super) type DemandId = u64;
/// A plan.
pub(super) type PlanId = u64;

/// Who needs a chunk; the greater goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Priority {
    Background,
    Nearby,
    Predicted,
    Demand,
}

impl Priority {
    pub(super) const fn lane(self) -> Lane {
        match self {
            Self::Background => Lane::Background,
            Self::Nearby => Lane::Nearby,
            Self::Predicted => Lane::Predicted,
            Self::Demand => Lane::Demand,
        }
    }
}

/// What happens to the scheduler.
#[derive(Debug)]
pub(super) enum Event {
    /// Somebody waits for chunks.
    Demand {
        id: DemandId,
        layer: LayerKey,
        chunks: Range<u32>,
    },
    /// A plan is to be followed.
    Predict {
        id: PlanId,
        name: String,
        steps: Vec<(LayerKey, u32)>,
        /// From the first need to the last, when the start was recorded.
        lasts: Duration,
    },
    /// A reader came to a chunk that was marked.
    Reached { layer: LayerKey, chunk: u32 },
    /// A layer is to be brought completely.
    Background { layer: LayerKey },
    /// No plan is made for a layer.
    Unplanned { layer: LayerKey },
    /// The background lane stops or goes on.
    Pause(bool),
    /// A chunk's bytes came; they were verified and stored, or not.
    Arrived(Arrival),
    /// The answer to a request begins to come from the registry.
    Flowing { request: RequestId },
    /// A request is over. Chunks in `missing` did not come; others may still be decoded.
    Ended {
        request: RequestId,
        result: Result<(), Refusal>,
        missing: Vec<u32>,
    },
    /// What needed no network (hashing, holes) is done: the chunk is present or not.
    Local {
        layer: LayerKey,
        chunk: u32,
        result: Result<bool, String>,
    },
    /// Time has passed.
    Tick,
}

/// What became of a chunk whose bytes came.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) request: RequestId,
    /// Which of the blob's hosts was asked.
    pub(super) source: usize,
    pub(super) layer: LayerKey,
    pub(super) chunk: u32,
    pub(super) result: Result<(), ChunkFailure>,
}

/// Why a chunk that came was not stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ChunkFailure {
    /// Its bytes are not what the TOC says.
    Wrong(String),
    /// The cache could not take it.
    Store(String),
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Action<B: ?Sized> {
    /// Start a range request.
    Request(Request<B>),
    /// Hash what an unclean stop left behind.
    Prove {
        layer: LayerKey,
        blob: Arc<B>,
        chunk: u32,
        urgent: bool,
    },
    /// Make a hole.
    Zeros {
        layer: LayerKey,
        blob: Arc<B>,
        chunk: u32,
        urgent: bool,
    },
    /// Say when a reader comes to this chunk.
    Mark { blob: Arc<B>, chunk: u32 },
    /// Stop reading the body of a request, or go on.
    Hold { request: RequestId, hold: bool },
    /// A reader waits for something that a request brings, which was asked for ahead of need; or not any more.
    Hurry { request: RequestId, hurry: bool },
    /// A demand is met, or cannot be.
    Reply {
        demand: DemandId,
        result: Result<(), Given>,
    },
    /// Nothing of a plan is left to do.
    Finished {
        plan: PlanId,
        failed: u32,
        first: Option<Given>,
    },
    /// A chunk was fetched, verified and stored.
    Brought {
        blob: Arc<B>,
        chunk: u32,
        lane: Lane,
        late: bool,
    },
}

/// A range request.
#[derive(Debug)]
pub(super) struct Request<B: ?Sized> {
    pub(super) id: RequestId,
    pub(super) layer: LayerKey,
    pub(super) blob: Arc<B>,
    /// Which of the blob's hosts is asked.
    pub(super) source: usize,
    pub(super) host: String,
    pub(super) range: Range<u64>,
    /// Chunks to be taken out of it, each with the lane its bytes are counted in.
    pub(super) chunks: Vec<(u32, Lane)>,
    pub(super) lane: Lane,
}

/// A chunk that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) layer: LayerKey,
    pub(super) chunk: u32,
    pub(super) host: String,
    pub(super) why: String,
}

/// The scheduler's limits.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    max_requests: usize,
    max_ahead_requests: usize,
    max_request_bytes: u64,
    max_gap_bytes: u64,
    nearby_bytes: u64,
    background: bool,
    background_rate: u64,
    demand_attempts: u32,
    ahead_attempts: u32,
}

impl From<&config::Fetch> for Limits {
    fn from(config: &config::Fetch) -> Self {
        let max_requests = config.max_requests.max(2);
        Self {
            max_requests,
            // At least one place is always left for demands.
            max_ahead_requests: config.max_ahead_requests.clamp(1, max_requests - 1),
            max_request_bytes: config.max_request_bytes.max(1),
            max_gap_bytes: config.max_gap_bytes,
            nearby_bytes: config.nearby_bytes,
            background: config.background,
            background_rate: config.background_bytes_per_second,
            demand_attempts: config.demand_attempts.max(1),
            ahead_attempts: config.ahead_attempts.max(1),
        }
    }
}

/// The state. Times are since the scheduler's start.
#[derive(Debug)]
pub(super) struct Scheduler<B: ?Sized> {
    limits: Limits,
    layers: Vec<Layer<B>>,
    keys: HashMap<Digest, LayerKey>,
    /// Chunks that each demand still waits for.
    demands: HashMap<DemandId, usize>,
    plans: Vec<Plan>,
    running: BTreeMap<RequestId, Running>,
    /// All that have a layer, with what is asked of them now.
    hosts: BTreeMap<String, Places>,
    next_request: RequestId,
    /// Demanded chunks in the order they were asked for; entries may be out of date.
    demanded: VecDeque<(LayerKey, u32)>,
    /// Predicted and background chunks that are wanted again after a failure; entries may be out of date.
    again: VecDeque<(LayerKey, u32)>,
    /// Pauses before the next attempt; entries may be out of date.
    waiting: BinaryHeap<Reverse<(Duration, LayerKey, u32)>>,
    background: Background,
    nearby: nearby::Missed,
    breakers: Breakers,
    pace: pace::Pace,
    jitter: Jitter,
    /// When something can be started that could not be just now.
    wake: Option<Duration>,
    actions: Vec<Action<B>>,
}

#[derive(Debug)]
struct Layer<B: ?Sized> {
    blob: Arc<B>,
    wants: HashMap<u32, Want>,
    /// Chunks that are wanted and not asked for, by place in the blob.
    queued: BTreeSet<(u64, u32)>,
    /// One bit a chunk: a plan will come to it.
    planned: Vec<u64>,
    /// Which of the hosts is asked next.
    source: usize,
    cursor: Cursor,
    near: nearby::Near,
    counts: LaneCounts,
    /// No plan is made for it.
    unplanned: bool,
}

/// How far the background lane has come in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Cursor {
    /// Nobody asked for it.
    #[default]
    Off,
    /// All before this chunk are here, on their way or given up.
    At {
        next: u32,
        /// The first that was given up in this pass.
        failed: Option<u32>,
        passes: u32,
        not_before: Duration,
    },
    /// Everything is here or was on its way.
    Done,
}

#[derive(Debug, Default)]
struct Background {
    paused: bool,
    layers: VecDeque<LayerKey>,
    /// The rate allows the next request then.
    not_before: Duration,
    /// Layers for which a plan may be being made, and until when that is waited for.
    awaiting: BTreeSet<LayerKey>,
    before_plan: Duration,
    /// A start that a plan has brought everything for has the processors to itself until then.
    after_plan: Duration,
    /// Steps of the last plan that ended, and chunks that were missed since.
    planned: u32,
    missed: u32,
    /// Chunks being hashed or made holes.
    local: usize,
}

#[derive(Debug)]
struct Running {
    layer: LayerKey,
    priority: Priority,
    source: usize,
    host: String,
    /// How far its bytes have come.
    position: u64,
    /// Chunks in it that somebody waits for.
    demanded: u32,
    held: bool,
    was_held: bool,
    /// Its answer has begun.
    flowing: bool,
    /// When it was asked.
    asked: Duration,
    /// Where its range ends, and how long it is.
    end: u64,
    bytes: u64,
}

impl<B: Blob + ?Sized> Scheduler<B> {
    /// With nothing to do.
    pub(super) fn new(limits: Limits, seed: u64) -> Self {
        Self {
            limits,
            layers: Vec::new(),
            keys: HashMap::new(),
            demands: HashMap::new(),
            plans: Vec::new(),
            running: BTreeMap::new(),
            hosts: BTreeMap::new(),
            next_request: 0,
            demanded: VecDeque::new(),
            again: VecDeque::new(),
            waiting: BinaryHeap::new(),
            background: Background::default(),
            nearby: nearby::Missed::default(),
            breakers: Breakers::default(),
            pace: pace::Pace::default(),
            jitter: Jitter(seed),
            wake: None,
            actions: Vec::new(),
        }
    }

    /// The key of a blob; made by `new` when it was not known.
    pub(super) fn layer(&mut self, digest: &Digest, new: impl FnOnce() -> Arc<B>) -> LayerKey {
        if let Some(key) = self.keys.get(digest) {
            return *key;
        }
        let key = self.layers.len();
        self.layers.push(Layer {
            blob: new(),
            wants: HashMap::new(),
            queued: BTreeSet::new(),
            planned: Vec::new(),
            source: 0,
            cursor: Cursor::Off,
            near: nearby::Near::default(),
            counts: LaneCounts::default(),
            unplanned: false,
        });
        self.keys.insert(*digest, key);
        self.note_hosts(key);
        key
    }

    /// What a key stands for.
    pub(super) fn blob(&self, layer: LayerKey) -> &Arc<B> {
        &self.layers[layer].blob
    }

    /// Replaces what a key stands for: the layer was loaded again.
    pub(super) fn set_blob(&mut self, layer: LayerKey, blob: Arc<B>) {
        self.layers[layer].blob = blob;
        self.note_hosts(layer);
        if self.layers[layer].cursor == Cursor::Done {
            self.layers[layer].cursor = Cursor::Off;
        }
    }

    /// Takes in what happened and says what is to be done, in order.
    pub(super) fn apply(
        &mut self,
        now: Duration,
        events: impl IntoIterator<Item = Event>,
    ) -> Vec<Action<B>> {
        for event in events {
            self.take(now, event);
        }
        self.wake_waiting(now);
        self.start(now);
        self.hold(now);
        std::mem::take(&mut self.actions)
    }

    /// When [`Event::Tick`] is due, if nothing else happens.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let waiting = self.waiting.peek().map(|Reverse((until, ..))| *until);
        waiting.into_iter().chain(self.wake).min()
    }

    fn take(&mut self, now: Duration, event: Event) {
        match event {
            Event::Demand { id, layer, chunks } => self.demand(now, id, layer, chunks),
            Event::Predict {
                id,
                name,
                steps,
                lasts,
            } => self.predict(id, name, steps, lasts),
            Event::Reached { layer, chunk } => self.reached(now, layer, chunk),
            Event::Background { layer } => self.want_all(now, layer),
            Event::Unplanned { layer } => self.unplanned(layer),
            Event::Pause(paused) => self.background.paused = paused,
            Event::Arrived(arrival) => self.arrived(now, arrival),
            Event::Flowing { request } => {
                if let Some(running) = self.running.get_mut(&request)
                    && !running.flowing
                {
                    running.flowing = true;
                    let after = now.saturating_sub(running.asked);
                    self.pace.answered(&running.host, now, after);
                    if running.held {
                        // Its body is not read: what does not come says nothing of the link.
                        self.pace.stops(&running.host, now);
                    }
                }
            }
            Event::Ended {
                request,
                result,
                missing,
            } => self.ended(now, request, result, &missing),
            Event::Local {
                layer,
                chunk,
                result,
            } => self.local(layer, chunk, &result),
            Event::Tick => {}
        }
    }

    fn demand(&mut self, now: Duration, id: DemandId, layer: LayerKey, chunks: Range<u32>) {
        let (mut waits, mut missed) = (0, None);
        for chunk in chunks {
            if self.layers[layer].blob.state(chunk) == ChunkState::Present {
                continue;
            }
            let outcome = self.demand_chunk(id, layer, chunk);
            if let Ok(true) = outcome {
                missed = Some(chunk);
            }
            if let Err(why) = outcome {
                self.actions.push(Action::Reply {
                    demand: id,
                    result: Err(Given {
                        layer,
                        chunk,
                        host: String::new(),
                        why,
                    }),
                });
                return;
            }
            waits += 1;
        }
        // One reader's miss, however many chunks it is of.
        if let Some(last) = missed {
            self.missed(now, layer, last);
        }
        if waits == 0 {
            self.actions.push(Action::Reply {
                demand: id,
                result: Ok(()),
            });
        } else {
            self.demands.insert(id, waits);
        }
    }

    fn want_all(&mut self, now: Duration, layer: LayerKey) {
        if !self.limits.background {
            return;
        }
        let cursor = &mut self.layers[layer].cursor;
        // Asked for with every lookup of an engine: what is under way or done is not looked through again.
        if let Cursor::At { not_before, .. } = cursor {
            *not_before = Duration::ZERO;
        } else if *cursor == Cursor::Off {
            *cursor = Cursor::At {
                next: 0,
                failed: None,
                passes: 0,
                not_before: Duration::ZERO,
            };
            self.background.layers.push_back(layer);
            if !self.layers[layer].unplanned {
                self.background.awaiting.insert(layer);
                self.background.before_plan = now + start::BEFORE_PLAN;
            }
        }
    }

    /// The background need not wait for a plan of this layer.
    fn unplanned(&mut self, layer: LayerKey) {
        self.layers[layer].unplanned = true;
        self.background.awaiting.remove(&layer);
    }

    /// Whether somebody waits for what can come now: whoever is in a pause that a registry asked for, or that grew with
    /// its failures, gains nothing from others standing still.
    fn readers(&self, now: Duration) -> bool {
        if self.waiting.is_empty() || self.demands.is_empty() {
            return !self.demands.is_empty();
        }
        let mut paused: BTreeSet<DemandId> = BTreeSet::new();
        for Reverse((until, layer, chunk)) in &self.waiting {
            let want = self.layers[*layer].wants.get(chunk);
            let waits = want.filter(|want| {
                matches!(want.status, want::Status::Waiting { until: own, .. } if own == *until)
            });
            if *until > now + UNANSWERED {
                paused.extend(waits.into_iter().flat_map(|want| &want.demands));
            }
        }
        self.demands.keys().any(|demand| !paused.contains(demand))
    }

    /// While a reader waits, no body is read that only the background wants; while the reader's own bytes come, none
    /// that only lies near to what others waited for. A host that works at a few requests at once may have taken on
    /// those that stand still and not the reader's: then they go on until it answers.
    fn hold(&mut self, now: Duration) {
        let demands = self.readers(now);
        let running = self.running.values();
        let flowing: Vec<String> = running
            .filter(|running| running.demanded > 0 && running.flowing)
            .map(|running| running.host.clone())
            .collect();
        let (mut queued, mut next, mut served) = (Vec::new(), None, !flowing.is_empty());
        let unanswered =
            (self.running.values()).filter(|running| running.demanded > 0 && !running.flowing);
        for running in unanswered {
            let until = running.asked + UNANSWERED;
            if until <= now {
                queued.push(running.host.clone());
            } else {
                served = true;
                next = Some(next.map_or(until, |next: Duration| next.min(until)));
            }
        }
        if let Some(next) = next {
            self.wake_at(next);
        }
        // Readers whom nobody answers hold up nobody; they themselves may wait behind what their host has taken on.
        let readers = demands && (served || queued.is_empty());
        for (id, running) in &mut self.running {
            let hold = running.demanded == 0
                && match running.priority {
                    Priority::Background => readers && !queued.contains(&running.host),
                    Priority::Nearby => flowing.contains(&running.host),
                    Priority::Predicted | Priority::Demand => false,
                };
            if hold != running.held {
                running.held = hold;
                running.was_held |= hold;
                match (running.flowing, hold) {
                    (true, true) => self.pace.stops(&running.host, now),
                    (true, false) => self.pace.flows(&running.host, now),
                    (false, _) => {}
                }
                self.actions.push(Action::Hold { request: *id, hold });
            }
        }
    }
}
