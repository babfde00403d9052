//! How a want ends: the chunk is here, is asked for again, or is given up.

use std::{cmp::Reverse, time::Duration};

use super::{
    Action, Arrival, ChunkFailure, Cursor, Given, LayerKey, Priority, RequestId, Scheduler,
    want::Status,
};
use crate::fetch::{
    backoff::pause,
    origin::{Blob, Refusal},
};

/// How often a chunk may come wrong from a single host: once more than not at all, in case the network did it.
const WRONG_FROM_ONE: u32 = 2;
/// The background lane stands still for this long after the cache could not take a chunk (a full disk, mostly).
const AFTER_STORE_FAILURE: Duration = Duration::from_secs(60);

/// Why a chunk did not come.
#[derive(Debug, Clone)]
enum Failure {
    Wrong(String),
    Store(String),
    /// With a number drawn once a request, so that its chunks wait equally long and are asked for together again.
    Refused(Refusal, f64),
    /// We stopped reading ourselves for a demand.
    Held,
}

impl<B: Blob + ?Sized> Scheduler<B> {
    pub(super) fn arrived(&mut self, now: Duration, arrival: Arrival) {
        let Arrival {
            request,
            source,
            layer,
            chunk,
            result,
        } = arrival;
        if let (Some(want), Some(running)) = (
            self.layers[layer].wants.get(&chunk),
            self.running.get_mut(&request),
        ) {
            let came = want.span.end.saturating_sub(running.position);
            running.position += came;
            if running.flowing {
                self.pace.came(&running.host, now, came);
            }
        }
        let failure = match result {
            Ok(()) => return self.present(layer, chunk, true),
            Err(ChunkFailure::Wrong(why)) => {
                self.next_source(layer, source);
                Failure::Wrong(why)
            }
            Err(ChunkFailure::Store(why)) => {
                let until = now + AFTER_STORE_FAILURE;
                self.background.not_before = self.background.not_before.max(until);
                Failure::Store(why)
            }
        };
        let host = self.layers[layer].blob.host(source);
        self.failed(now, (request, &host), layer, chunk, &failure);
    }

    pub(super) fn ended(
        &mut self,
        now: Duration,
        request: RequestId,
        result: Result<(), Refusal>,
        missing: &[u32],
    ) {
        let Some(running) = self.running.remove(&request) else {
            return;
        };
        self.leaves_place(&running.host, running.priority);
        if running.flowing && !running.held {
            if result.is_ok() {
                // What is still being decoded.
                let rest = running.end.saturating_sub(running.position);
                self.pace.came(&running.host, now, rest);
            }
            self.pace.stops(&running.host, now);
        }
        let draw = self.jitter.draw();
        let failure = match result {
            Ok(()) => {
                self.breakers.succeeded(&running.host, now);
                let refusal = Refusal {
                    why: "the answer did not hold it".to_owned(),
                    retry: Some(Duration::ZERO),
                };
                Failure::Refused(refusal, draw)
            }
            // What a registry answers instead of a body is its own doing.
            Err(_) if running.was_held && running.flowing => Failure::Held,
            Err(refusal) => {
                if let Some(asked) = refusal.retry {
                    self.breakers.failed(&running.host, now, asked, draw);
                }
                self.next_source(running.layer, running.source);
                Failure::Refused(refusal, draw)
            }
        };
        for chunk in missing {
            let from = (request, running.host.as_str());
            self.failed(now, from, running.layer, *chunk, &failure);
        }
    }

    /// What needed no network is done.
    pub(super) fn local(&mut self, layer: LayerKey, chunk: u32, result: &Result<bool, String>) {
        // It may have been done twice, the second time because a reader came.
        let Some(want) = self.layers[layer]
            .wants
            .get(&chunk)
            .filter(|want| want.status == Status::Local)
        else {
            return;
        };
        if want.first == Priority::Background {
            self.background.local = self.background.local.saturating_sub(1);
        }
        let zeros = want.span.is_empty();
        match result {
            Ok(true) => self.present(layer, chunk, false),
            // There is nothing to fetch.
            Ok(false) | Err(_) if zeros => {
                let why = result.as_ref().err().cloned();
                let why = why.unwrap_or_else(|| "the hole was not made".to_owned());
                self.give_up(layer, chunk, String::new(), why);
            }
            // It was not what it should be, or could not be read: fetch it.
            Ok(false) | Err(_) => self.queue_again(layer, chunk),
        }
    }

    /// Lets chunks be asked for again whose pause is over.
    pub(super) fn wake_waiting(&mut self, now: Duration) {
        while let Some(Reverse((until, layer, chunk))) = self.waiting.peek().copied()
            && until <= now
        {
            self.waiting.pop();
            let want = self.layers[layer].wants.get(&chunk);
            if want.is_some_and(
                |want| matches!(want.status, Status::Waiting { until: own, .. } if own == until),
            ) {
                self.queue_again(layer, chunk);
            }
        }
    }

    fn queue_again(&mut self, layer: LayerKey, chunk: u32) {
        self.queue(layer, chunk);
        let want = self.layers[layer].wants.get(&chunk);
        if want.is_some_and(|want| want.priority != Priority::Demand) {
            self.again.push_back((layer, chunk));
        }
    }

    fn present(&mut self, layer: LayerKey, chunk: u32, fetched: bool) {
        let Some(want) = self.forget(layer, chunk) else {
            return;
        };
        if fetched {
            let lane = want.first.lane();
            let state = &mut self.layers[layer];
            state.counts.add(want.first);
            self.actions.push(Action::Brought {
                blob: state.blob.clone(),
                chunk,
                lane,
                late: want.late,
            });
        }
        for demand in want.demands {
            if let Some(waits) = self.demands.get_mut(&demand) {
                *waits -= 1;
                if *waits == 0 {
                    self.demands.remove(&demand);
                    self.actions.push(Action::Reply {
                        demand,
                        result: Ok(()),
                    });
                }
            }
        }
        for plan in want.plans {
            self.plan_settled(plan, None);
        }
    }

    fn failed(
        &mut self,
        now: Duration,
        (request, host): (RequestId, &str),
        layer: LayerKey,
        chunk: u32,
        failure: &Failure,
    ) {
        let hosts = u32::try_from(self.layers[layer].blob.hosts().len()).unwrap_or(u32::MAX);
        let Some(want) = self.layers[layer].wants.get_mut(&chunk) else {
            return;
        };
        want.requests.retain(|id| *id != request);
        if want.urgent_in.take_if(|id| *id == request).is_some() {
            self.reader_leaves(request);
        }
        let Some(want) = self.layers[layer].wants.get_mut(&chunk) else {
            return;
        };
        if !want.requests.is_empty() || want.status != Status::Requested {
            // Another request carries it, or will. If a reader overtook that one, it waits for it again from now on.
            if want.status == Status::Requested
                && want.priority == Priority::Demand
                && want.urgent_in.is_none()
                && let Some(other) = want.requests.last().copied()
            {
                if let Some(running) = self.running.get_mut(&other) {
                    running.demanded += 1;
                    want.urgent_in = Some(other);
                }
                self.hurry(other);
            }
            return;
        }
        let attempts = match want.priority {
            Priority::Demand => self.limits.demand_attempts,
            Priority::Predicted | Priority::Background => self.limits.ahead_attempts,
            // Nobody asked for it: whoever does is told what happens then.
            Priority::Nearby => 0,
        };
        let (why, pause) = match failure {
            Failure::Held if attempts > 0 => (String::new(), Some((Duration::ZERO, false))),
            Failure::Held => (String::new(), None),
            Failure::Store(why) => (why.clone(), None),
            Failure::Wrong(why) => {
                want.wrong += 1;
                let again = attempts > 0 && want.wrong < hosts.max(WRONG_FROM_ONE);
                (why.clone(), again.then_some((Duration::ZERO, false)))
            }
            Failure::Refused(Refusal { why, retry: None }, _) => {
                want.refused += 1;
                let again = attempts > 0 && want.refused < hosts;
                (why.clone(), again.then_some((Duration::ZERO, false)))
            }
            Failure::Refused(
                Refusal {
                    why,
                    retry: Some(asked),
                },
                draw,
            ) => {
                want.attempts += 1;
                let again = want.attempts < attempts;
                let pause = pause(want.attempts, *asked, *draw);
                (why.clone(), again.then_some((pause, !asked.is_zero())))
            }
        };
        match pause {
            None => self.give_up(layer, chunk, host.to_owned(), why),
            Some((pause, _)) if pause.is_zero() => self.queue_again(layer, chunk),
            Some((pause, told)) => {
                let until = now + pause;
                want.status = Status::Waiting { until, told };
                self.waiting.push(Reverse((until, layer, chunk)));
            }
        }
    }

    fn give_up(&mut self, layer: LayerKey, chunk: u32, host: String, why: String) {
        let Some(want) = self.forget(layer, chunk) else {
            return;
        };
        let given = Given {
            layer,
            chunk,
            host,
            why,
        };
        for demand in want.demands {
            if self.demands.remove(&demand).is_some() {
                self.actions.push(Action::Reply {
                    demand,
                    result: Err(given.clone()),
                });
            }
        }
        for plan in want.plans {
            self.plan_settled(plan, Some(&given));
        }
        // The background lane comes back to it.
        let chunks = self.layers[layer].blob.chunk_count();
        match &mut self.layers[layer].cursor {
            Cursor::At { next, failed, .. } if chunk < *next => {
                *failed = Some(failed.map_or(chunk, |first| first.min(chunk)));
            }
            cursor @ Cursor::Done => {
                *cursor = Cursor::At {
                    next: chunks,
                    failed: Some(chunk),
                    passes: 0,
                    not_before: Duration::ZERO,
                };
                self.background.layers.push_back(layer);
            }
            Cursor::At { .. } | Cursor::Off => {}
        }
    }

    fn next_source(&mut self, layer: LayerKey, failed: usize) {
        let state = &mut self.layers[layer];
        let hosts = state.blob.hosts().len().max(1);
        if state.source % hosts == failed % hosts {
            state.source = (failed + 1) % hosts;
        }
        self.note_hosts(layer);
    }
}
