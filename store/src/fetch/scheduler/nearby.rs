//! What lies behind a chunk that nobody predicted: a start that is not known yet is likely to need it soon.
//!
//! Each such miss lets a window of bytes behind it be asked for, which doubles with every miss that follows soon. A miss
//! costs the link's latency whatever it brings; with windows of about what the link carries in that time, a start that
//! needs most of a layer takes at most twice as long as bringing all of it, and one that needs little brings little. Where a
//! window begins there is a mark: a reader that comes to it is told of, and the next window is asked for while this one
//! is read.
//! Invariants: a plan that is being followed has the link for itself; of a host at most one largest window is under way, so a
//! slow link is asked for less; nothing here is asked for twice.

use std::{collections::VecDeque, time::Duration};

use super::{Action, LayerKey, Priority, Scheduler};
use crate::{
    cache::ChunkState,
    fetch::{origin::Blob, ranges::Growing},
};

/// The first window is this part of the largest.
const FIRST: u64 = 64;
/// A window that a reader follows is so many times the one before.
const FOLLOWED: u64 = 8;
/// The largest, in what the link carries while an answer is waited for, and what it never is less than.
const ANSWERS: u64 = 8;
const LEAST: u64 = 64 << 10;
/// A miss this long after the one before begins with the first window again.
const FORGET: Duration = Duration::from_secs(10);
/// A start is still the one that was planned for as long as it misses less than this part of the plan's chunks.
const PLANNED_FOR: u32 = 50;
/// Chunks looked at for one request at most: bounds the time of one `apply`.
const SCAN: u32 = 4096;

/// Layers with a window that is not used up.
#[derive(Debug, Default)]
pub(super) struct Missed {
    layers: VecDeque<LayerKey>,
}

/// A layer's window.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Near {
    /// Where the last miss lets the search begin.
    next: u32,
    /// Bytes that may still be asked for.
    left: u64,
    window: u64,
    missed_at: Duration,
    /// Where this window begins: a reader that comes here follows.
    mark: Option<u32>,
}

impl<B: Blob + ?Sized> Scheduler<B> {
    /// A reader waits for a chunk that nobody had asked for before.
    pub(super) fn missed(&mut self, now: Duration, layer: LayerKey, chunk: u32) {
        self.background.missed = self.background.missed.saturating_add(1);
        if self.background.missed.saturating_mul(PLANNED_FOR) > self.background.planned {
            // This start is not the one that was planned for: the sooner everything is here the better.
            self.background.after_plan = Duration::ZERO;
        }
        let largest = self.largest_window(layer);
        if largest == 0 {
            return;
        }
        let state = &mut self.layers[layer];
        let span = state.wants.get(&chunk).map(|want| want.span.clone());
        let length = span.map_or(0, |span| span.end - span.start);
        let near = &mut state.near;
        let soon = near.window > 0 && now.saturating_sub(near.missed_at) < FORGET;
        let grown = if soon {
            near.window.saturating_mul(2)
        } else {
            self.limits.nearby_bytes / FIRST
        };
        // Where chunks are large, a window must hold one about as long as the one that was missed to be of use.
        let window = match length > grown {
            true => length.saturating_add(length / 4),
            false => grown,
        };
        near.window = window.clamp(1, largest);
        near.left = near.window;
        near.next = chunk.saturating_add(1);
        near.missed_at = now;
        near.mark = None;
        if !self.nearby.layers.contains(&layer) {
            self.nearby.layers.push_back(layer);
        }
    }

    /// A reader came to where a window begins: the next one is asked for behind it, before it is missed. Who reads what
    /// lies nearby will probably read on, so windows grow faster than by misses.
    pub(super) fn reached(&mut self, now: Duration, layer: LayerKey, chunk: u32) {
        let largest = self.largest_window(layer);
        let near = &mut self.layers[layer].near;
        if near.mark != Some(chunk) || largest == 0 {
            return;
        }
        near.mark = None;
        near.window = near.window.saturating_mul(FOLLOWED).min(largest);
        near.left = near.window;
        near.missed_at = now;
        if !self.nearby.layers.contains(&layer) {
            self.nearby.layers.push_back(layer);
        }
    }

    /// Starts one request of a window; false if there is none to start.
    pub(super) fn start_nearby(&mut self, now: Duration) -> bool {
        if self.nearby.layers.is_empty() || self.follows_a_plan(now) {
            return false;
        }
        for _ in 0..self.nearby.layers.len() {
            let Some(layer) = self.nearby.layers.front().copied() else {
                return false;
            };
            if self.near_on_its_way(&self.host(layer)) >= self.largest_window(layer)
                || !self.has_place(layer, Priority::Nearby)
            {
                self.nearby.layers.rotate_left(1);
                continue;
            }
            if self.layers[layer].near.left > 0
                && self.may_ask(layer, now)
                && self.ask_near(now, layer)
            {
                self.nearby.layers.rotate_left(1);
                return true;
            }
            self.nearby.layers.pop_front();
        }
        false
    }

    /// Where a miss is cheap, bytes are dear: no more than the link carries while a few answers are waited for.
    fn largest_window(&self, layer: LayerKey) -> u64 {
        let carried = self.pace.carried(&self.host(layer));
        let most = carried.map(|bytes| bytes.saturating_mul(ANSWERS).max(LEAST));
        self.limits.nearby_bytes.min(most.unwrap_or(u64::MAX))
    }

    /// Asks for the next missing chunks of a layer's window; false if there are none.
    fn ask_near(&mut self, now: Duration, layer: LayerKey) -> bool {
        let mut bounds = self.bounds(layer, Priority::Nearby);
        bounds.max_bytes = bounds.max_bytes.min(self.layers[layer].near.left);
        let count = self.layers[layer].blob.chunk_count();
        let mut next = self.layers[layer].near.next;
        let mut growing: Option<(Growing, u32)> = None;
        for _ in 0..SCAN {
            let state = &self.layers[layer];
            if next >= count {
                break;
            }
            let missing = state.blob.state(next) == ChunkState::Missing
                && !state.wants.contains_key(&next)
                && !self.is_planned(layer, next);
            let known = missing.then(|| state.blob.chunk(next).ok()).flatten();
            // What needs no network costs its reader nothing; what cannot be had is the reader's to hear of.
            let Some(chunk) = known.filter(|chunk| !chunk.zeros) else {
                next += 1;
                continue;
            };
            if let Some((growing, _)) = &mut growing {
                if !growing.take(&chunk.span) {
                    break;
                }
            } else if chunk.span.end - chunk.span.start > bounds.max_bytes {
                break;
            } else {
                growing = Some((Growing::new(chunk.span, bounds), next));
            }
            if self
                .want(layer, next, Priority::Nearby, Priority::Nearby)
                .is_err()
            {
                break;
            }
            next += 1;
        }
        let near = &mut self.layers[layer].near;
        near.next = next;
        let Some((growing, seed)) = growing else {
            near.left = 0;
            return false;
        };
        let bytes = growing.range().end - growing.range().start;
        near.left = near.left.saturating_sub(bytes);
        if near.mark.is_none() {
            near.mark = Some(seed);
            let blob = self.layers[layer].blob.clone();
            self.actions.push(Action::Mark { blob, chunk: seed });
        }
        self.request(now, layer, seed, Priority::Nearby, &growing);
        true
    }

    /// Bytes of windows that a host was asked for and that are not all here.
    fn near_on_its_way(&self, host: &str) -> u64 {
        let near = (self.running.values())
            .filter(|running| running.priority == Priority::Nearby && running.host == host);
        near.map(|running| running.bytes).sum()
    }
}
