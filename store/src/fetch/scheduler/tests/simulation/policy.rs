//! What decides what is fetched: the scheduler, and simpler ones to measure it by.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{
    super::super::{
        Action, Arrival, DemandId, Event, LayerKey, Limits, Request, RequestId, Scheduler,
    },
    trace::{Nanos, Places, Touch, Trace},
};
use crate::{
    cache::ChunkState, config, digest::Digest, fetch::origin::Blob, format::Chunk, metrics::Lane,
};

/// A layer and what is here of it.
#[derive(Debug)]
pub(super) struct Stored {
    number: usize,
    places: Arc<Places>,
    present: Vec<AtomicBool>,
}

impl Stored {
    pub(super) fn all(trace: &Trace) -> Vec<Arc<Self>> {
        let layers = trace.layers.iter().enumerate();
        layers
            .map(|(number, places)| {
                let present = places.spans.iter().map(|_| AtomicBool::new(false));
                Arc::new(Self {
                    number,
                    places: Arc::clone(places),
                    present: present.collect(),
                })
            })
            .collect()
    }
    pub(super) fn span(&self, chunk: u32) -> Range<u64> {
        self.places.spans[chunk as usize].clone()
    }
    pub(super) fn has(&self, chunk: u32) -> bool {
        self.present[chunk as usize].load(Ordering::Relaxed)
    }
    pub(super) fn store(&self, chunk: u32) {
        self.present[chunk as usize].store(true, Ordering::Relaxed);
    }
    pub(super) fn has_all(&self) -> bool {
        self.present.iter().all(|bit| bit.load(Ordering::Relaxed))
    }
}

impl Blob for Stored {
    fn digest(&self) -> Digest {
        Digest::of(&self.number.to_le_bytes())
    }
    fn chunk_count(&self) -> u32 {
        u32::try_from(self.present.len()).unwrap()
    }
    fn chunk(&self, chunk: u32) -> Result<Chunk, String> {
        Ok(Chunk {
            id: chunk,
            node: 1,
            file_offset: 0,
            len: 1000,
            data_offset: u64::from(chunk) * 1000,
            span: self.span(chunk),
            skip: 0,
            digest: Digest::of(b""),
            zeros: false,
        })
    }
    fn state(&self, chunk: u32) -> ChunkState {
        match self.present.get(chunk as usize) {
            Some(bit) if bit.load(Ordering::Relaxed) => ChunkState::Present,
            _ => ChunkState::Missing,
        }
    }
    fn hosts(&self) -> Vec<String> {
        vec!["host".to_owned()]
    }
    fn early(&self, _: usize, _: &Range<u64>) -> Option<Range<u64>> {
        None
    }
}

/// Decides what is fetched.
pub(super) trait Policy {
    fn apply(&mut self, now: Nanos, events: Vec<Event>) -> Vec<Action<Stored>>;
    fn deadline(&self) -> Option<Nanos> {
        None
    }
}

/// The scheduler itself.
pub(super) struct Real(pub(super) Scheduler<Stored>);

impl Real {
    pub(super) fn new(config: &config::Fetch, layers: &[Arc<Stored>]) -> Self {
        let mut scheduler = Scheduler::new(Limits::from(config), 1);
        for layer in layers {
            scheduler.layer(&layer.digest(), || Arc::clone(layer));
        }
        Self(scheduler)
    }
}

impl Policy for Real {
    fn apply(&mut self, now: Nanos, events: Vec<Event>) -> Vec<Action<Stored>> {
        self.0.apply(Duration::from_nanos(now), events)
    }
    fn deadline(&self) -> Option<Nanos> {
        let deadline = self.0.deadline()?;
        Some(u64::try_from(deadline.as_nanos()).unwrap())
    }
}

/// The event that a plan is.
pub(super) fn predict(steps: &[Touch]) -> Event {
    Event::Predict {
        id: 1,
        name: "plan".to_owned(),
        steps: steps.iter().map(|step| (step.layer, step.chunk)).collect(),
        lasts: Duration::ZERO,
    }
}

/// What a simple policy does besides answering demands one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Simple {
    /// Nothing.
    DemandOnly,
    /// The plan in order, a request a chunk, so many at once.
    OneByOne(usize),
    /// The plan in order; steps that follow each other in plan and blob share a request.
    Runs(usize),
    /// Each layer as a whole.
    Whole,
}

/// A simple policy at work.
#[derive(Debug)]
pub(super) struct Simpleton {
    kind: Simple,
    layers: Vec<Arc<Stored>>,
    plan: VecDeque<(LayerKey, u32)>,
    waits: HashMap<(LayerKey, u32), Vec<DemandId>>,
    coming: HashSet<(LayerKey, u32)>,
    ahead: HashSet<RequestId>,
    next: RequestId,
    actions: Vec<Action<Stored>>,
}

impl Simpleton {
    pub(super) fn new(kind: Simple, layers: &[Arc<Stored>]) -> Self {
        Self {
            kind,
            layers: layers.to_vec(),
            plan: VecDeque::new(),
            waits: HashMap::new(),
            coming: HashSet::new(),
            ahead: HashSet::new(),
            next: 0,
            actions: Vec::new(),
        }
    }

    fn ask(&mut self, layer: LayerKey, chunks: Range<u32>, lane: Lane) {
        let blob = Arc::clone(&self.layers[layer]);
        let range = blob.span(chunks.start).start..blob.span(chunks.end - 1).end;
        self.coming
            .extend(chunks.clone().map(|chunk| (layer, chunk)));
        self.next += 1;
        if lane == Lane::Predicted {
            self.ahead.insert(self.next);
        }
        self.actions.push(Action::Request(Request {
            id: self.next,
            layer,
            blob,
            source: 0,
            host: "host".to_owned(),
            range,
            chunks: chunks.map(|chunk| (chunk, lane)).collect(),
            lane,
        }));
    }

    fn wanted(&self, step: (LayerKey, u32)) -> bool {
        !self.layers[step.0].has(step.1) && !self.coming.contains(&step)
    }

    fn look_ahead(&mut self) {
        let (Simple::OneByOne(most) | Simple::Runs(most)) = self.kind else {
            return;
        };
        while self.ahead.len() < most {
            let Some((layer, chunk)) = self.plan.pop_front() else {
                return;
            };
            if !self.wanted((layer, chunk)) {
                continue;
            }
            let mut chunks = chunk..chunk + 1;
            while matches!(self.kind, Simple::Runs(_))
                && self.plan.front() == Some(&(layer, chunks.end))
                && self.wanted((layer, chunks.end))
            {
                chunks.end += 1;
                self.plan.pop_front();
            }
            self.ask(layer, chunks, Lane::Predicted);
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Demand { id, layer, chunks } => {
                let place = (layer, chunks.start);
                self.waits.entry(place).or_default().push(id);
                if self.wanted(place) {
                    self.ask(layer, chunks, Lane::Demand);
                }
            }
            Event::Predict { steps, .. } => {
                self.plan = steps.into_iter().map(|step| (step.0, step.1)).collect();
            }
            Event::Background { layer } if self.kind == Simple::Whole => {
                let all = 0..self.layers[layer].chunk_count();
                self.ask(layer, all, Lane::Background);
            }
            Event::Arrived(Arrival { layer, chunk, .. }) => {
                self.coming.remove(&(layer, chunk));
                for demand in self.waits.remove(&(layer, chunk)).unwrap_or_default() {
                    let result = Ok(());
                    self.actions.push(Action::Reply { demand, result });
                }
            }
            Event::Ended { request, .. } => {
                self.ahead.remove(&request);
            }
            _ => {}
        }
    }
}

impl Policy for Simpleton {
    fn apply(&mut self, _: Nanos, events: Vec<Event>) -> Vec<Action<Stored>> {
        for event in events {
            self.take(event);
        }
        self.look_ahead();
        std::mem::take(&mut self.actions)
    }
}
