//! Starting requests: which chunk goes first, and which others go along.

use std::{ops::Range, time::Duration};

use super::{
    Action, Cursor, LayerKey, Priority, Request, Running, Scheduler,
    want::{Status, Want},
};
use crate::{
    cache::ChunkState,
    fetch::{backoff::Leave, origin::Blob, ranges::Growing},
};

/// Background requests at once to one registry: 8 of 4 MiB keep a 1 Gbit/s link full at 50 ms and up to 200 ms of latency.
pub(super) const BACKGROUND_REQUESTS: usize = 8;
/// The background lane waits this long after a layer was looked up, unless it is told that there will be no plan: the plan
/// for its image is being made, and what the background has asked for by then would come before it.
pub(super) const BEFORE_PLAN: Duration = Duration::from_millis(500);
/// The background lane stands still after a plan has ended, for as long as the plan's start took when it was recorded,
/// but for this long at least: what it brings must be decoded, and the start needs the processors in these seconds.
pub(super) const AFTER_PLAN: Duration = Duration::from_secs(2);
/// And for this long at the most: a recording may have taken minutes over a slow link.
pub(super) const LONGEST_AFTER_PLAN: Duration = Duration::from_secs(10);
/// Longer than the recorded start: that counts from the first exec, and a plan may be followed before the engine has asked
/// its registry anything (0.3 s before the first exec at 50 ms, by samples of a bench's start).
pub(super) const BEFORE_EXEC: Duration = Duration::from_millis(500);
/// Background chunks being hashed or made holes at once.
const BACKGROUND_LOCAL: usize = 16;
/// A pass over a layer of which some chunks could not be had is repeated after this, doubled each time up to an hour.
const NEXT_PASS: Duration = Duration::from_secs(60);
/// Chunks looked at for one background request at most: bounds the time of one `apply`.
const BACKGROUND_SCAN: u32 = 4096;

impl<B: Blob + ?Sized> Scheduler<B> {
    /// Starts whatever may be started now.
    pub(super) fn start(&mut self, now: Duration) {
        self.wake = None;
        for plan in 0..self.plans.len() {
            self.fill_window(plan);
        }
        self.finish_plans(now);
        while self.start_demand(now)
            || self.any_place(Priority::Predicted)
                && (self.start_again(now, Priority::Predicted)
                    || self.start_predicted(now)
                    || self.start_nearby(now))
            || self.any_place(Priority::Background)
                && (self.start_again(now, Priority::Background) || self.start_background(now))
        {
        }
        self.finish_plans(now);
    }

    fn start_demand(&mut self, now: Duration) -> bool {
        // Layers whose registry has no place left: those of others do not wait behind them.
        let mut passed = Vec::new();
        let mut n = 0;
        while let Some((layer, chunk)) = self.demanded.get(n).copied() {
            if passed.contains(&layer) {
                n += 1;
            } else if !self.is_ready(layer, chunk, Priority::Demand) {
                self.demanded.remove(n);
            } else if !self.has_place(layer, Priority::Demand) {
                passed.push(layer);
                n += 1;
            } else {
                self.demanded.remove(n);
                self.request_around(now, layer, chunk, Priority::Demand);
                return true;
            }
        }
        false
    }

    /// Asks again for what a plan, or the background, could not have at first.
    fn start_again(&mut self, now: Duration, priority: Priority) -> bool {
        if priority == Priority::Background {
            let rest = self.background.not_before.max(self.background.after_plan);
            if rest > now && !self.again.is_empty() {
                self.wake_at(rest);
            }
            if rest > now || !self.may_follow(now) {
                return false;
            }
        }
        let mut again = std::mem::take(&mut self.again);
        again.retain(|(layer, chunk)| {
            self.is_ready(*layer, *chunk, Priority::Predicted)
                || self.is_ready(*layer, *chunk, Priority::Background)
        });
        let mut passed = Vec::new();
        let next = again.iter().position(|(layer, chunk)| {
            if passed.contains(layer) || !self.is_ready(*layer, *chunk, priority) {
                return false;
            }
            let may = self.has_place(*layer, priority) && self.may_ask(*layer, now);
            if !may {
                passed.push(*layer);
            }
            may
        });
        let next = next.and_then(|n| again.remove(n));
        self.again = again;
        let Some((layer, chunk)) = next else {
            return false;
        };
        self.request_around(now, layer, chunk, priority);
        if priority == Priority::Background
            && let Some((_, running)) = self.running.last_key_value()
        {
            self.spend(now, running.bytes);
        }
        true
    }

    /// Whether the background may ask for anything: nobody waits for what can come, and no plan is being followed.
    fn may_follow(&self, now: Duration) -> bool {
        !self.background.paused && !self.readers(now) && !self.follows_a_plan(now)
    }

    fn start_predicted(&mut self, now: Duration) -> bool {
        for plan in 0..self.plans.len() {
            self.fill_window(plan);
            // Layers whose registry is not asked now, or has no place left: the plan goes on with the others.
            let mut passed = Vec::new();
            loop {
                let ready = |(layer, chunk): &&(LayerKey, u32)| {
                    !passed.contains(layer) && self.is_ready(*layer, *chunk, Priority::Predicted)
                };
                let mut steps = self.plans[plan].window.iter().map(|(step, _)| step);
                let Some((layer, chunk)) = steps.find(ready).copied() else {
                    break;
                };
                if !self.has_place(layer, Priority::Predicted)
                    || !self.may_ask(layer, now)
                    || !self.has_room(layer)
                {
                    passed.push(layer);
                    continue;
                }
                self.request_around(now, layer, chunk, Priority::Predicted);
                // The plans take turns: containers that start together share the link.
                self.plans[plan..].rotate_left(1);
                return true;
            }
        }
        false
    }

    fn start_background(&mut self, now: Duration) -> bool {
        if !self.may_follow(now) {
            return false;
        }
        if self.background.before_plan <= now {
            self.background.awaiting.clear();
        }
        let mut not_before = self.background.not_before.max(self.background.after_plan);
        if !self.background.awaiting.is_empty() {
            not_before = not_before.max(self.background.before_plan);
        }
        if not_before > now {
            self.wake_at(not_before);
            return false;
        }
        for _ in 0..self.background.layers.len() {
            let Some(layer) = self.background.layers.front().copied() else {
                return false;
            };
            if !self.has_place(layer, Priority::Background) {
                self.background.layers.rotate_left(1);
                continue;
            }
            if self.may_ask(layer, now) && self.advance(layer, now) {
                return true;
            }
            self.background.layers.rotate_left(1);
            if self.layers[layer].cursor == Cursor::Done {
                self.background.layers.retain(|other| *other != layer);
            }
        }
        false
    }

    /// Moves a layer's cursor on to the next missing chunks and asks for them; false if nothing was asked for.
    fn advance(&mut self, layer: LayerKey, now: Duration) -> bool {
        let Cursor::At {
            mut next,
            mut failed,
            mut passes,
            mut not_before,
        } = self.layers[layer].cursor
        else {
            return false;
        };
        if not_before > now {
            self.wake_at(not_before);
            return false;
        }
        let count = self.layers[layer].blob.chunk_count();
        let bounds = self.bounds(layer, Priority::Background);
        let mut growing: Option<(Growing, u32)> = None;
        let mut looked_at = 0;
        while next < count && looked_at < BACKGROUND_SCAN {
            let state = &self.layers[layer];
            if state.blob.state(next) == ChunkState::Present || state.wants.contains_key(&next) {
                next += 1;
                // What is here is passed over quickly; only the neighbours of a request are bounded.
                looked_at += u32::from(growing.is_some());
                continue;
            }
            let Ok(chunk) = state.blob.chunk(next) else {
                failed = failed.or(Some(next));
                next += 1;
                continue;
            };
            if chunk.zeros || state.blob.state(next) == ChunkState::Unproven {
                if self.background.local >= BACKGROUND_LOCAL {
                    break;
                }
            } else if let Some((growing, _)) = &mut growing {
                if !growing.take(&chunk.span) {
                    break;
                }
            } else {
                growing = Some((Growing::new(chunk.span, bounds), next));
            }
            let wanted = self.want(layer, next, Priority::Background, Priority::Background);
            if wanted.is_err() {
                failed = failed.or(Some(next));
            }
            looked_at += 1;
            next += 1;
        }
        self.layers[layer].cursor = if next < count {
            Cursor::At {
                next,
                failed,
                passes,
                not_before,
            }
        } else if let Some(first) = failed {
            not_before = now + NEXT_PASS * 2_u32.pow(passes.min(6));
            passes = passes.saturating_add(1);
            self.wake_at(not_before);
            Cursor::At {
                next: first,
                failed: None,
                passes,
                not_before,
            }
        } else {
            Cursor::Done
        };
        let Some((growing, seed)) = growing else {
            return false;
        };
        self.request(now, layer, seed, Priority::Background, &growing);
        self.spend(now, growing.range().end - growing.range().start);
        true
    }

    /// Has the background wait for as long as its rate gives these bytes.
    fn spend(&mut self, now: Duration, bytes: u64) {
        if let Some(micros) =
            (bytes.saturating_mul(1_000_000)).checked_div(self.limits.background_rate)
        {
            self.background.not_before =
                self.background.not_before.max(now) + Duration::from_micros(micros);
        }
    }

    /// Asks for a queued chunk and its queued neighbours that are wanted as much.
    fn request_around(&mut self, now: Duration, layer: LayerKey, seed: u32, priority: Priority) {
        let bounds = self.bounds(layer, priority);
        let state = &self.layers[layer];
        let Some(want) = state.wants.get(&seed) else {
            return;
        };
        let mut growing = Growing::new(want.span.clone(), bounds);
        let place = (want.span.start, seed);
        // What was asked for before the layer was known needs no request; one that reaches beyond would ask for it again.
        let source = state.source % state.blob.hosts().len().max(1);
        let early = |span: &Range<u64>| state.blob.early(source, span);
        let seed_early = early(&want.span);
        let wanted = |chunk: &u32| {
            let want = state.wants.get(chunk)?;
            (want.priority >= priority && early(&want.span) == seed_early).then_some(&want.span)
        };
        for (start, chunk) in state.queued.range(place..) {
            if growing.is_past(*start) {
                break;
            }
            if let Some(span) = wanted(chunk) {
                growing.take(span);
            }
        }
        for (start, chunk) in state.queued.range(..place).rev() {
            // Spans before this one may still reach near, but none of a usual length.
            if growing.range().start - start > bounds.max_bytes.max(self.limits.max_gap_bytes) {
                break;
            }
            if let Some(span) = wanted(chunk) {
                growing.take(span);
            }
        }
        self.request(now, layer, seed, priority, &growing);
    }

    /// Asks for a range; every queued chunk inside goes along.
    pub(super) fn request(
        &mut self,
        now: Duration,
        layer: LayerKey,
        seed: u32,
        priority: Priority,
        growing: &Growing,
    ) {
        let id = self.next_request;
        self.next_request += 1;
        let range = growing.range();
        let state = &mut self.layers[layer];
        let inside: Vec<(u64, u32)> = state
            .queued
            .range((range.start, 0)..(range.end, 0))
            .copied()
            .collect();
        let mut chunks = Vec::with_capacity(inside.len());
        let mut demanded = 0;
        for place in inside {
            let chunk = place.1;
            let Some(want) = state.wants.get_mut(&chunk) else {
                continue;
            };
            if chunk != seed && !growing.holds(&want.span) {
                continue;
            }
            want.status = Status::Requested;
            want.requests.push(id);
            if want.priority == Priority::Demand {
                want.urgent_in = Some(id);
                demanded += 1;
            }
            state.queued.remove(&place);
            chunks.push((chunk, want.first.lane()));
        }
        let source = state.source % state.blob.hosts().len().max(1);
        let host = state.blob.host(source);
        self.takes_place(&host, priority);
        let state = &self.layers[layer];
        self.running.insert(
            id,
            Running {
                layer,
                priority,
                source,
                host: host.clone(),
                position: range.start,
                demanded,
                held: false,
                was_held: false,
                flowing: false,
                asked: now,
                end: range.end,
                bytes: range.end - range.start,
            },
        );
        self.actions.push(Action::Request(Request {
            id,
            layer,
            blob: state.blob.clone(),
            source,
            host,
            range,
            chunks,
            lane: priority.lane(),
        }));
    }

    fn is_ready(&self, layer: LayerKey, chunk: u32, priority: Priority) -> bool {
        let want: Option<&Want> = self.layers[layer].wants.get(&chunk);
        want.is_some_and(|want| want.status == Status::Queued && want.priority == priority)
    }

    /// Whether the host that has a layer may be asked ahead of need.
    pub(super) fn may_ask(&mut self, layer: LayerKey, now: Duration) -> bool {
        let host = self.host(layer);
        match self.breakers.leave(&host, now) {
            Leave::Free => true,
            Leave::Probe => self.hosts.get(&host).is_none_or(|places| places.all == 0),
            Leave::Closed(until) => {
                self.wake_at(until);
                false
            }
        }
    }

    pub(super) fn wake_at(&mut self, at: Duration) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}
