//! One start: a program that touches chunks, what decides about requests, and the link, in virtual time.

use std::{collections::HashMap, sync::Arc};

use super::{
    super::super::{Action, Arrival, DemandId, Event, Request, RequestId},
    link::{Link, News, Wire},
    policy::{Policy, Stored, predict},
    trace::{Nanos, SECOND, Touch, Trace},
};
use crate::{
    digest::Digest,
    fetch::origin::{Blob as _, Refusal},
    metrics::Lane,
};

/// A start that takes longer hangs.
const HANGS: Nanos = 100_000 * SECOND;

/// What became of a start.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Outcome {
    /// From the plan to ready.
    pub(super) ready: Nanos,
    /// When nothing was left to do.
    pub(super) over: Nanos,
    /// Until ready.
    pub(super) requests: u32,
    /// Bytes asked for until ready.
    pub(super) bytes: u64,
    /// Demands.
    pub(super) demands: u32,
    /// Demands that were answered with an error.
    pub(super) errors: u32,
    /// Whether each plan was told of.
    pub(super) finished: bool,
}

struct Flying {
    request: Request<Stored>,
    /// Its chunks that have not come.
    left: Vec<u32>,
}

struct Start<'a> {
    trace: &'a Trace,
    policy: &'a mut dyn Policy,
    layers: &'a [Arc<Stored>],
    wire: Wire,
    now: Nanos,
    flying: HashMap<RequestId, Flying>,
    /// The next touch, and how late the program is.
    next: usize,
    late: Nanos,
    /// It waits since then.
    waits: Option<(DemandId, Nanos)>,
    /// Chunks that the scheduler wants to know of when the program comes to them.
    marks: HashMap<Digest, u32>,
    outcome: Outcome,
}

/// Starts a program with a plan; `all`: the layers are to come completely as well.
pub(super) fn start(
    trace: &Trace,
    link: &Link,
    plan: &[Touch],
    all: bool,
    policy: &mut dyn Policy,
    layers: &[Arc<Stored>],
) -> Outcome {
    let mut start = Start {
        trace,
        policy,
        layers,
        wire: Wire::new(link, 1),
        now: 0,
        flying: HashMap::new(),
        next: 0,
        late: trace.lead,
        waits: None,
        outcome: Outcome::default(),
        marks: HashMap::new(),
    };
    let mut events = Vec::new();
    if all {
        events.extend((0..layers.len()).map(|layer| Event::Background { layer }));
    }
    if !plan.is_empty() {
        events.push(predict(plan));
    }
    start.outcome.finished = plan.is_empty();
    start.apply(events);
    start.run();
    start.outcome
}

impl Start<'_> {
    fn run(&mut self) {
        loop {
            let touch = match (self.waits, self.trace.touches.get(self.next)) {
                (None, Some(touch)) => Some(touch.at + self.late),
                (None, None) if self.outcome.ready == 0 => {
                    self.outcome.ready = self.trace.ready + self.late;
                    Some(self.outcome.ready)
                }
                _ => None,
            };
            // An answer may come for what the program has come to by then.
            let times = [touch, self.wire.next(), self.policy.deadline()];
            let Some(then) = times.into_iter().flatten().min() else {
                break;
            };
            self.now = self.now.max(then);
            assert!(self.now < HANGS, "it hangs");
            let mut events = vec![];
            for (id, news) in self.wire.pass(self.now) {
                self.tell(id, news, &mut events);
            }
            if touch.is_some_and(|touch| touch <= self.now) {
                self.touch(&mut events);
            }
            if events.is_empty() {
                events.push(Event::Tick);
            }
            self.apply(events);
        }
        assert!(self.waits.is_none(), "a reader waits for ever");
        assert!(self.wire.is_empty() && self.flying.is_empty());
        self.outcome.over = self.now;
    }

    /// The program goes on until it needs something that is not here.
    fn touch(&mut self, events: &mut Vec<Event>) {
        while let Some(touch) = self.trace.touches.get(self.next)
            && touch.at + self.late <= self.now
        {
            self.next += 1;
            let blob = self.layers[touch.layer].digest();
            if self.marks.get(&blob) == Some(&touch.chunk) {
                self.marks.remove(&blob);
                events.push(Event::Reached {
                    layer: touch.layer,
                    chunk: touch.chunk,
                });
            }
            if self.layers[touch.layer].has(touch.chunk) {
                continue;
            }
            self.outcome.demands += 1;
            let id = self.next as DemandId;
            self.waits = Some((id, touch.at + self.late));
            events.push(Event::Demand {
                id,
                layer: touch.layer,
                chunks: touch.chunk..touch.chunk + 1,
            });
            return;
        }
    }

    fn tell(&mut self, id: RequestId, news: News, events: &mut Vec<Event>) {
        let flying = self.flying.get_mut(&id).unwrap();
        let request = &flying.request;
        match news {
            News::Flowing => events.push(Event::Flowing { request: id }),
            News::Read(mark) => {
                let come =
                    |chunk: &u32| request.blob.span(*chunk).end - request.range.start <= mark;
                for chunk in flying.left.extract_if(.., |chunk| come(chunk)) {
                    request.blob.store(chunk);
                    events.push(Event::Arrived(Arrival {
                        request: id,
                        source: request.source,
                        layer: request.layer,
                        chunk,
                        result: Ok(()),
                    }));
                }
            }
            News::Over | News::Broken | News::Busy => {
                let result = match news {
                    News::Over => Ok(()),
                    _ => Err(Refusal {
                        why: format!("{news:?}"),
                        retry: Some(std::time::Duration::ZERO),
                    }),
                };
                let missing = self.flying.remove(&id).unwrap().left;
                events.push(Event::Ended {
                    request: id,
                    result,
                    missing,
                });
            }
        }
    }

    fn apply(&mut self, events: Vec<Event>) {
        for action in self.policy.apply(self.now, events) {
            match action {
                Action::Request(request) => self.ask(request),
                Action::Mark { blob, chunk } => {
                    self.marks.insert(blob.digest(), chunk);
                }
                Action::Hold { request, hold } => self.wire.hold(request, hold),
                Action::Reply { demand, result } => {
                    let (waits, since) = self.waits.take().expect("nobody waits");
                    assert_eq!(demand, waits);
                    self.late += self.now - since;
                    self.outcome.errors += u32::from(result.is_err());
                }
                Action::Finished { .. } => self.outcome.finished = true,
                Action::Brought { .. } | Action::Hurry { .. } => {}
                Action::Prove { .. } | Action::Zeros { .. } => unreachable!(),
            }
        }
    }

    fn ask(&mut self, request: Request<Stored>) {
        if self.outcome.ready == 0 {
            self.outcome.requests += 1;
            self.outcome.bytes += request.range.end - request.range.start;
        }
        let mut left: Vec<u32> = request.chunks.iter().map(|(chunk, _)| *chunk).collect();
        for other in self.flying.values() {
            if other.request.layer == request.layer {
                let twice = left.iter().any(|chunk| other.left.contains(chunk));
                let lanes = (request.lane, other.request.lane);
                let overtakes = lanes.0 == Lane::Demand && lanes.1 != Lane::Demand;
                assert!(!twice || overtakes, "asked for twice at once: {lanes:?}");
            }
        }
        left.retain(|chunk| !request.blob.has(*chunk));
        let mut marks: Vec<u64> = (left.iter())
            .map(|chunk| request.blob.span(*chunk).end - request.range.start)
            .collect();
        marks.sort_unstable();
        marks.dedup();
        let len = request.range.end - request.range.start;
        self.wire.ask(request.id, len, marks.into());
        self.flying.insert(request.id, Flying { request, left });
    }
}
