//! Anything may happen in any order: the invariants hold after every step, and in the end everybody has heard.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::fetch::scheduler::{Priority, room::Places, want::Status};

#[derive(Debug, Clone)]
enum Step {
    Demand(usize, u32, u32),
    Predict(u8, Vec<(usize, u32)>),
    Background(usize),
    Pause(bool),
    Arrive(usize, u8),
    End(usize, u8),
    Local(usize, u8),
    Wait(u32),
}

const CHUNKS: u32 = 60;

fn step() -> impl Strategy<Value = Step> {
    let place = || (0..2_usize, 0..CHUNKS + 1);
    prop_oneof![
        4 => (place(), 0..6_u32).prop_map(|((layer, from), len)| Step::Demand(layer, from, len)),
        2 => (0..3_u8, proptest::collection::vec(place(), 0..40))
            .prop_map(|(name, steps)| Step::Predict(name, steps)),
        1 => (0..2_usize).prop_map(Step::Background),
        1 => any::<bool>().prop_map(Step::Pause),
        12 => (any::<usize>(), any::<u8>()).prop_map(|(n, how)| Step::Arrive(n, how)),
        4 => (any::<usize>(), any::<u8>()).prop_map(|(n, how)| Step::End(n, how)),
        4 => (any::<usize>(), any::<u8>()).prop_map(|(n, how)| Step::Local(n, how)),
        2 => (0..5000_u32).prop_map(Step::Wait),
    ]
}

impl Bench {
    fn check(&self) {
        let scheduler = &self.scheduler;
        let mut places: HashMap<&str, Places> = HashMap::new();
        for running in scheduler.running.values() {
            let places = places.entry(&running.host).or_default();
            places.all += 1;
            places.ahead += usize::from(running.priority != Priority::Demand);
            places.background += usize::from(running.priority == Priority::Background);
        }
        for (host, kept) in &scheduler.hosts {
            assert_eq!(
                places.get(host.as_str()).copied().unwrap_or_default(),
                *kept
            );
            assert!(kept.all <= scheduler.limits.max_requests);
            assert!(kept.ahead <= scheduler.limits.max_ahead_requests);
        }

        // Who waits for a request is counted, and what was asked for ahead hurries for as long as somebody does.
        let wants = scheduler
            .layers
            .iter()
            .flat_map(|layer| layer.wants.values());
        let mut waited_for: HashMap<RequestId, u32> = HashMap::new();
        for want in wants {
            if let Some(request) = want.urgent_in {
                *waited_for.entry(request).or_default() += 1;
            }
        }
        for (id, running) in &scheduler.running {
            let waited_for = waited_for.get(id).copied().unwrap_or_default();
            assert_eq!(waited_for, running.demanded, "{running:?}");
            let hurries = self.hurried.contains(id);
            let ahead = running.priority != Priority::Demand;
            assert_eq!(hurries, ahead && waited_for > 0, "{running:?}");
        }

        // Single flight: two only where a demand overtakes.
        let mut carriers: HashMap<(LayerKey, u32), Vec<Lane>> = HashMap::new();
        for request in &self.requests {
            let (range, blob) = (&request.range, &request.blob);
            let one = request.chunks.len() == 1;
            assert!(one || range.end - range.start <= scheduler.limits.max_request_bytes);
            for (chunk, _) in &request.chunks {
                let span = blob.chunk(*chunk).unwrap().span;
                assert!(range.start <= span.start && span.end <= range.end);
                if blob.state(*chunk) != ChunkState::Present {
                    let lanes = carriers.entry((request.layer, *chunk)).or_default();
                    lanes.push(request.lane);
                }
            }
        }
        for (chunk, mut lanes) in carriers {
            let last = lanes.pop();
            assert!(
                lanes.is_empty() || last == Some(Lane::Demand) && !lanes.contains(&Lane::Demand),
                "{chunk:?} is in {lanes:?} and {last:?}"
            );
        }

        // Nobody waits while the registry has a place, and the greater goes first.
        for (key, layer) in scheduler.layers.iter().enumerate() {
            let taken = places.get(scheduler.host(key).as_str());
            let room = taken.is_none_or(|taken| taken.all < scheduler.limits.max_requests);
            for (chunk, want) in &layer.wants {
                if want.status == Status::Queued {
                    assert!(
                        !(room && want.priority == Priority::Demand),
                        "demand {key}/{chunk} waits"
                    );
                }
                if want.status == Status::Requested {
                    let known = |id| scheduler.running.contains_key(id);
                    assert!(want.requests.iter().any(known), "{key}/{chunk} is nowhere");
                    // Nobody waits for a body that is not read.
                    let waits = |reader| scheduler.demands.contains_key(reader);
                    let held = |id| {
                        scheduler
                            .running
                            .get(id)
                            .is_some_and(|running| running.held)
                    };
                    assert!(
                        !want.demands.iter().any(waits) || !want.requests.iter().all(held),
                        "{key}/{chunk} is held, and a reader waits for it"
                    );
                }
            }
        }
        // There is always something that will go on.
        let wanted = scheduler.layers.iter().any(|layer| !layer.wants.is_empty());
        if wanted && self.requests.is_empty() && self.local.is_empty() {
            assert!(
                scheduler.deadline().is_some() || scheduler.background.paused,
                "stuck: {scheduler:?}"
            );
        }
    }

    fn take(&mut self, step: Step, next: &mut u64) {
        let first_new = self.started.len();
        *next += 1;
        match step {
            Step::Demand(layer, from, len) => self.apply([Event::Demand {
                id: *next,
                layer,
                chunks: from..from + len,
            }]),
            Step::Predict(name, steps) => self.apply([Event::Predict {
                id: *next,
                name: name.to_string(),
                steps,
                lasts: Duration::ZERO,
            }]),
            Step::Background(layer) => self.apply([Event::Background { layer }]),
            Step::Pause(paused) => self.apply([Event::Pause(paused)]),
            Step::Arrive(n, how) => {
                let with: Vec<_> = (0..self.requests.len())
                    .filter(|n| !self.requests[*n].chunks.is_empty())
                    .collect();
                if !with.is_empty() {
                    let result = match how {
                        0..20 => Err(ChunkFailure::Wrong("wrong".to_owned())),
                        20..30 => Err(ChunkFailure::Store("full".to_owned())),
                        _ => Ok(()),
                    };
                    self.arrive(with[n % with.len()], result);
                }
            }
            Step::End(n, how) => {
                if !self.requests.is_empty() {
                    let n = n % self.requests.len();
                    let result = match how {
                        0..60 => Err(busy("broken")),
                        60..80 => Err(Refusal {
                            why: "404".to_owned(),
                            retry: None,
                        }),
                        _ if self.requests[n].chunks.is_empty() => Ok(()),
                        _ => Err(Refusal {
                            why: "429".to_owned(),
                            retry: Some(Duration::from_secs(3)),
                        }),
                    };
                    self.end(n, result);
                }
            }
            Step::Local(n, how) => {
                if !self.local.is_empty() {
                    let result = match how {
                        0..40 => Ok(false),
                        40..60 => Err("disk".to_owned()),
                        _ => Ok(true),
                    };
                    self.finish_local(n % self.local.len(), result);
                }
            }
            Step::Wait(millis) => self.wait(Duration::from_millis(millis.into())),
        }
        for (lane, _) in &self.started[first_new..] {
            if *lane == Lane::Background {
                assert!(self.all_readers_pause());
                assert!(!self.scheduler.background.paused);
            }
        }
    }

    /// Whether each reader waits for a chunk that is not asked for before half a second has passed.
    fn all_readers_pause(&self) -> bool {
        let soon = self.now + Duration::from_millis(500);
        let wants = || (self.scheduler.layers.iter()).flat_map(|layer| layer.wants.values());
        let pauses = |reader: &DemandId| {
            wants().any(|want| {
                want.demands.contains(reader)
                    && matches!(want.status, Status::Waiting { until, .. } if until > soon)
            })
        };
        self.scheduler.demands.keys().all(pauses)
    }

    /// Everything works from now on.
    fn settle(&mut self) {
        self.apply([Event::Pause(false)]);
        for _ in 0..20_000 {
            if !self.local.is_empty() {
                self.finish_local(0, Ok(true));
            } else if let Some(n) = self
                .requests
                .iter()
                .position(|request| !self.held.contains(&request.id))
            {
                self.complete(n);
            } else if let Some(deadline) = self.scheduler.deadline() {
                self.now = self.now.max(deadline);
                self.apply([Event::Tick]);
            } else {
                return;
            }
            self.check();
        }
        panic!("it never ends: {:?}", self.scheduler);
    }
}

proptest! {
    #[test]
    fn whatever_happens_everybody_is_told_once(
        steps in proptest::collection::vec(step(), 1..200),
        unproven in proptest::collection::vec((0..2_usize, 0..CHUNKS), 0..20),
        hosts in 1..3_usize,
        nearby_bytes in prop_oneof![Just(0), Just(5000), Just(100_000)],
    ) {
        let mut blobs = vec![Fake::new("one", CHUNKS), Fake::new("two", CHUNKS)];
        blobs[1].zeros = 7;
        let limits = Limits { nearby_bytes, ..limits() };
        let mut bench = Bench::new(limits, blobs);
        for blob in &bench.blobs {
            *blob.hosts.lock() = (0..hosts).map(|n| format!("host {n}")).collect();
        }
        for (layer, chunk) in unproven {
            bench.blobs[layer].set(chunk, ChunkState::Unproven);
        }
        let mut next = 0;
        let (mut demands, mut plans) = (HashSet::new(), HashSet::new());
        let mut background = HashSet::new();
        for step in steps {
            match &step {
                Step::Demand(..) => { demands.insert(next + 1); }
                Step::Predict(..) => { plans.insert(next + 1); }
                Step::Background(layer) => { background.insert(*layer); }
                _ => {}
            }
            bench.take(step, &mut next);
            bench.check();
        }
        bench.settle();
        let mut answered: Vec<_> = bench.replies.iter().map(|(id, _)| *id).collect();
        let count = answered.len();
        answered.sort_unstable();
        answered.dedup();
        prop_assert_eq!(answered.len(), count);
        prop_assert_eq!(answered.into_iter().collect::<HashSet<_>>(), demands);
        let finished: Vec<_> = bench.finished.iter().map(|(id, _)| *id).collect();
        prop_assert_eq!(finished.len(), plans.len());
        prop_assert_eq!(finished.into_iter().collect::<HashSet<_>>(), plans);
        for layer in background {
            for chunk in 0..CHUNKS {
                prop_assert_eq!(bench.blobs[layer].state(chunk), ChunkState::Present);
            }
        }
        for layer in &bench.scheduler.layers {
            prop_assert!(layer.wants.is_empty() && layer.queued.is_empty());
            prop_assert!(layer.planned.iter().all(|word| *word == 0));
        }
        prop_assert!(bench.scheduler.running.is_empty());
        prop_assert!(bench.scheduler.demands.is_empty());
    }
}
