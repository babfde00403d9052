#![expect(clippy::unwrap_used, reason = "tests")]

mod hurry;
mod model;
mod nearby;
mod registries;
mod rules;
mod simulation;

use std::{ops::Range, sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::{
    Action, Arrival, ChunkFailure, DemandId, Event, Given, LayerKey, Limits, PlanId, Request,
    RequestId, Scheduler,
};
use crate::{
    cache::ChunkState,
    config,
    digest::Digest,
    fetch::origin::{Blob, Refusal},
    format::Chunk,
    metrics::Lane,
};

/// A blob of chunks of 1000 compressed bytes with 100 bytes between them; every `zeros`-th is zeros.
#[derive(Debug)]
struct Fake {
    name: String,
    zeros: u32,
    hosts: Mutex<Vec<String>>,
    states: Mutex<Vec<ChunkState>>,
    /// What was asked for before the layer was known.
    early: Mutex<Vec<Range<u64>>>,
    spans: Vec<Range<u64>>,
}

impl Fake {
    fn new(name: &str, chunks: u32) -> Self {
        let spans = (0..u64::from(chunks)).map(|n| n * 1100..n * 1100 + 1000);
        Self {
            name: name.to_owned(),
            zeros: u32::MAX,
            hosts: Mutex::new(vec!["one".to_owned()]),
            states: Mutex::new(vec![ChunkState::Missing; chunks as usize]),
            early: Mutex::default(),
            spans: spans.collect(),
        }
    }
    fn set(&self, chunk: u32, state: ChunkState) {
        self.states.lock()[chunk as usize] = state;
    }
}

impl Blob for Fake {
    fn digest(&self) -> Digest {
        Digest::of(self.name.as_bytes())
    }
    fn chunk_count(&self) -> u32 {
        u32::try_from(self.spans.len()).unwrap()
    }
    fn chunk(&self, chunk: u32) -> Result<Chunk, String> {
        let span = self.spans.get(chunk as usize);
        let span = span.ok_or_else(|| "past the end".to_owned())?;
        let zeros = chunk % self.zeros == self.zeros - 1;
        Ok(Chunk {
            id: chunk,
            node: 1,
            file_offset: 0,
            len: 1000,
            data_offset: u64::from(chunk) * 1000,
            span: if zeros { 0..0 } else { span.clone() },
            skip: 0,
            digest: Digest::of(b""),
            zeros,
        })
    }
    fn state(&self, chunk: u32) -> ChunkState {
        let states = self.states.lock();
        states
            .get(chunk as usize)
            .copied()
            .unwrap_or(ChunkState::Missing)
    }
    fn hosts(&self) -> Vec<String> {
        self.hosts.lock().clone()
    }
    fn early(&self, _: usize, span: &Range<u64>) -> Option<Range<u64>> {
        let early = self.early.lock();
        let holds = |early: &&Range<u64>| early.start <= span.start && span.end <= early.end;
        early.iter().find(holds).cloned()
    }
}

/// A scheduler, its clock, and everything it has said.
#[derive(Debug)]
struct Bench {
    scheduler: Scheduler<Fake>,
    now: Duration,
    blobs: Vec<Arc<Fake>>,
    /// Requests started and not ended.
    requests: Vec<Request<Fake>>,
    /// All that were ever started.
    started: Vec<(Lane, Vec<u32>)>,
    local: Vec<(LayerKey, u32)>,
    /// What of it is not to wait behind what is decoded ahead.
    urgent: Vec<(LayerKey, u32)>,
    held: Vec<RequestId>,
    hurried: Vec<RequestId>,
    replies: Vec<(DemandId, Result<(), Given>)>,
    finished: Vec<(PlanId, u32)>,
    brought: Vec<(u32, Lane, bool)>,
    /// Chunk whose reader is to be told of.
    mark: Option<u32>,
}

fn limits() -> Limits {
    Limits::from(&config::Fetch {
        max_requests: 6,
        max_ahead_requests: 4,
        max_request_bytes: 10_000,
        max_gap_bytes: 200,
        nearby_bytes: 0,
        ..config::Fetch::default()
    })
}

fn busy(why: &str) -> Refusal {
    Refusal {
        why: why.to_owned(),
        retry: Some(Duration::ZERO),
    }
}

impl Bench {
    fn new(limits: Limits, blobs: Vec<Fake>) -> Self {
        let mut scheduler = Scheduler::new(limits, 1);
        let blobs: Vec<_> = blobs.into_iter().map(Arc::new).collect();
        for (n, blob) in blobs.iter().enumerate() {
            let key = scheduler.layer(&blob.digest(), || Arc::clone(blob));
            assert_eq!(key, n);
        }
        Self {
            scheduler,
            now: Duration::ZERO,
            blobs,
            requests: Vec::new(),
            started: Vec::new(),
            local: Vec::new(),
            urgent: Vec::new(),
            held: Vec::new(),
            hurried: Vec::new(),
            replies: Vec::new(),
            finished: Vec::new(),
            brought: Vec::new(),
            mark: None,
        }
    }

    fn one(chunks: u32) -> Self {
        Self::new(limits(), vec![Fake::new("layer", chunks)])
    }

    fn apply(&mut self, events: impl IntoIterator<Item = Event>) {
        for action in self.scheduler.apply(self.now, events) {
            match action {
                Action::Request(request) => {
                    let chunks = request.chunks.iter().map(|(chunk, _)| *chunk).collect();
                    self.started.push((request.lane, chunks));
                    self.requests.push(request);
                }
                Action::Prove {
                    layer,
                    chunk,
                    urgent,
                    ..
                }
                | Action::Zeros {
                    layer,
                    chunk,
                    urgent,
                    ..
                } => {
                    self.local.push((layer, chunk));
                    if urgent {
                        self.urgent.push((layer, chunk));
                    }
                }
                Action::Mark { chunk, .. } => self.mark = Some(chunk),
                Action::Hurry {
                    request,
                    hurry: true,
                } => self.hurried.push(request),
                Action::Hurry {
                    request,
                    hurry: false,
                } => self.hurried.retain(|id| *id != request),
                Action::Hold { request, hold } => {
                    self.held.retain(|id| *id != request);
                    if hold {
                        self.held.push(request);
                    }
                }
                Action::Reply { demand, result } => self.replies.push((demand, result)),
                Action::Finished { plan, failed, .. } => self.finished.push((plan, failed)),
                Action::Brought {
                    chunk, lane, late, ..
                } => self.brought.push((chunk, lane, late)),
            }
        }
    }

    /// The link is known to carry gigabytes while an answer is waited for.
    fn long_fat_link(&mut self) {
        let (pace, now) = (&mut self.scheduler.pace, Duration::from_secs(1));
        pace.answered("one", Duration::ZERO, Duration::from_secs(10));
        pace.came("one", now, 1 << 30);
        pace.stops("one", now);
    }

    fn demand(&mut self, id: DemandId, chunks: Range<u32>) {
        self.apply([Event::Demand {
            id,
            layer: 0,
            chunks,
        }]);
    }

    fn predict(&mut self, id: PlanId, name: &str, chunks: impl IntoIterator<Item = u32>) {
        self.apply([Event::Predict {
            id,
            name: name.to_owned(),
            steps: chunks.into_iter().map(|chunk| (0, chunk)).collect(),
            lasts: Duration::ZERO,
        }]);
    }

    /// A reader comes to a chunk.
    fn reached(&mut self, chunk: u32) {
        self.apply([Event::Reached { layer: 0, chunk }]);
    }

    /// The layer is to come completely, and no plan was made for it.
    fn background(&mut self) {
        self.apply([Event::Background { layer: 0 }]);
        self.wait(super::start::BEFORE_PLAN);
    }

    /// The n-th running request brings its next chunk.
    fn arrive(&mut self, n: usize, result: Result<(), ChunkFailure>) {
        let request = &mut self.requests[n];
        let (chunk, _) = request.chunks.remove(0);
        if result.is_ok() {
            request.blob.set(chunk, ChunkState::Present);
        }
        let arrival = Arrival {
            request: request.id,
            source: request.source,
            layer: request.layer,
            chunk,
            result,
        };
        self.apply([Event::Arrived(arrival)]);
    }

    /// The n-th running request is over.
    fn end(&mut self, n: usize, result: Result<(), Refusal>) {
        let request = self.requests.remove(n);
        self.held.retain(|id| *id != request.id);
        self.apply([Event::Ended {
            request: request.id,
            result,
            missing: request.chunks.iter().map(|(chunk, _)| *chunk).collect(),
        }]);
    }

    /// The n-th running request brings everything it was to bring.
    fn complete(&mut self, n: usize) {
        while !self.requests[n].chunks.is_empty() {
            self.arrive(n, Ok(()));
        }
        self.end(n, Ok(()));
    }

    /// The n-th piece of work that needs no network is done. Only what is unproven or a hole can be proven or made; done
    /// again it says what the first time had made of it.
    fn finish_local(&mut self, n: usize, result: Result<bool, String>) {
        let (layer, chunk) = self.local.remove(n);
        let blob = &self.blobs[layer];
        let open = match blob.state(chunk) {
            ChunkState::Present => false,
            ChunkState::Unproven => true,
            ChunkState::Missing => blob.chunk(chunk).unwrap().zeros,
        };
        let result = if open {
            blob.set(
                chunk,
                if result == Ok(true) {
                    ChunkState::Present
                } else {
                    ChunkState::Missing
                },
            );
            result
        } else {
            result.map(|_| blob.state(chunk) == ChunkState::Present)
        };
        self.apply([Event::Local {
            layer,
            chunk,
            result,
        }]);
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.apply([Event::Tick]);
    }

    /// Lets time pass until the scheduler wants to be woken.
    fn wait_for_deadline(&mut self) {
        self.now = self.now.max(self.scheduler.deadline().unwrap());
        self.apply([Event::Tick]);
    }

    /// Lanes and chunks of the requests started since the last call.
    fn news(&mut self) -> Vec<(Lane, Vec<u32>)> {
        std::mem::take(&mut self.started)
    }
}
