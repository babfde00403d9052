//! The predicted lane: plans, followed through a window that moves over their steps.

use std::{collections::VecDeque, time::Duration};

use super::{
    Action, Given, LayerKey, PlanId, Priority, Scheduler,
    start::{AFTER_PLAN, BEFORE_EXEC, LONGEST_AFTER_PLAN},
    want::Status,
};
use crate::{
    cache::ChunkState,
    fetch::{backoff::Leave, origin::Blob},
};

/// Steps of a plan that may be ready at once. Chunks of the window that lie together in the blob share a request;
/// a wider window makes fewer requests, a narrower one keeps to the order of need. At 50 ms and 1 Gbit/s a start of 3,100
/// chunks in 31 MB took 340 requests and stalled 0.35 s with 256, 180 requests and 0.1 s with 1,024 (`cargo xtask bench`).
pub(super) const WINDOW: usize = 1024;

/// Nor more than so many times the bytes that may be on their way: what lies further behind would only hold up what is
/// needed first.
const WINDOW_AHEAD: u64 = 4;

#[derive(Debug)]
pub(super) struct Plan {
    pub(super) id: PlanId,
    pub(super) name: String,
    pub(super) steps: Vec<(LayerKey, u32)>,
    /// From the first need to the last, when the start was recorded.
    pub(super) lasts: Duration,
    /// The first step not looked at.
    pub(super) next: usize,
    /// Steps looked at and not asked for yet, in order, each with the bytes of the plan before it; entries may be out of
    /// date.
    pub(super) window: VecDeque<((LayerKey, u32), u64)>,
    /// Bytes of the plan up to the window's end.
    pub(super) bytes: u64,
    /// Chunks that it waits for.
    pub(super) open: usize,
    pub(super) failed: u32,
    pub(super) first: Option<Given>,
}

impl<B: Blob + ?Sized> Scheduler<B> {
    pub(super) fn predict(
        &mut self,
        id: PlanId,
        name: String,
        steps: Vec<(LayerKey, u32)>,
        lasts: Duration,
    ) {
        for old in 0..self.plans.len() {
            if self.plans[old].name == name {
                // The new plan knows better what is left to do.
                let next = self.plans[old].next;
                for (layer, chunk) in self.plans[old].steps.split_off(next) {
                    self.set_planned(layer, chunk, false);
                }
            }
        }
        for (layer, chunk) in &steps {
            self.set_planned(*layer, *chunk, true);
        }
        self.plans.push(Plan {
            id,
            name,
            steps,
            lasts,
            next: 0,
            window: VecDeque::new(),
            bytes: 0,
            open: 0,
            failed: 0,
            first: None,
        });
    }

    /// Whether a plan is being followed that the link and the processors are left to. One whose registry is left alone
    /// for now, because it fails, keeps nobody waiting.
    pub(super) fn follows_a_plan(&self, now: Duration) -> bool {
        self.plans.iter().filter(|plan| plan.open > 0).any(|plan| {
            let free = |layer: LayerKey| {
                matches!(self.breakers.leave(&self.host(layer), now), Leave::Free)
            };
            (plan.window.front()).is_none_or(|((layer, _), _)| free(*layer))
        })
    }

    /// Looks at steps until the window is full or the plan at its end.
    pub(super) fn fill_window(&mut self, plan: usize) {
        let most = match self.plans[plan].next < self.plans[plan].steps.len() {
            true => self.window_bytes(plan),
            false => 0,
        };
        loop {
            let Plan {
                id,
                steps,
                next,
                window,
                bytes,
                ..
            } = &mut self.plans[plan];
            let id = *id;
            while let Some(((layer, chunk), _)) = window.front()
                && !matches!(
                    self.layers[*layer].wants.get(chunk).map(|want| want.status),
                    Some(Status::Queued | Status::Local)
                )
            {
                window.pop_front();
            }
            let long = (window.front()).is_some_and(|(_, before)| *bytes - before > most);
            if long || window.len() >= WINDOW || *next == steps.len() {
                return;
            }
            let (layer, chunk) = steps[*next];
            *next += 1;
            self.set_planned(layer, chunk, false);
            if self.layers[layer].blob.state(chunk) == ChunkState::Present {
                continue;
            }
            match self.predict_chunk(id, layer, chunk) {
                Ok(length) => {
                    let plan = &mut self.plans[plan];
                    plan.open += 1;
                    plan.window.push_back(((layer, chunk), plan.bytes));
                    plan.bytes += length;
                }
                Err(why) => {
                    let plan = &mut self.plans[plan];
                    plan.failed += 1;
                    plan.first.get_or_insert(Given {
                        layer,
                        chunk,
                        host: String::new(),
                        why,
                    });
                }
            }
        }
    }

    /// Bytes of a plan that may be looked at at once.
    fn window_bytes(&self, plan: usize) -> u64 {
        let plan = &self.plans[plan];
        let front = plan.window.front().map(|(step, _)| step);
        let step = front.or_else(|| plan.steps.get(plan.next));
        step.map_or(0, |(layer, _)| {
            WINDOW_AHEAD * self.pace.ahead(&self.host(*layer))
        })
    }

    fn predict_chunk(&mut self, id: PlanId, layer: LayerKey, chunk: u32) -> Result<u64, String> {
        if let Some(want) = self.layers[layer].wants.get_mut(&chunk) {
            want.plans.push(id);
            if want.priority < Priority::Predicted {
                want.priority = Priority::Predicted;
            }
            return Ok(want.span.end - want.span.start);
        }
        let want = self.want(layer, chunk, Priority::Predicted, Priority::Predicted)?;
        want.plans.push(id);
        Ok(want.span.end - want.span.start)
    }

    /// A chunk of a plan is here or given up.
    pub(super) fn plan_settled(&mut self, id: PlanId, failure: Option<&Given>) {
        if let Some(plan) = self.plans.iter_mut().find(|plan| plan.id == id) {
            plan.open = plan.open.saturating_sub(1);
            if let Some(failure) = failure {
                plan.failed += 1;
                plan.first.get_or_insert_with(|| failure.clone());
            }
        }
    }

    /// Takes out the plans of which nothing is left to do.
    pub(super) fn finish_plans(&mut self, now: Duration) {
        let (mut brought, mut rest) = (0, Duration::ZERO);
        self.plans.retain(|plan| {
            let over = plan.next == plan.steps.len() && plan.open == 0;
            if over {
                brought = brought.max(plan.steps.len());
                rest = rest.max(plan.lasts);
                self.actions.push(Action::Finished {
                    plan: plan.id,
                    failed: plan.failed,
                    first: plan.first.clone(),
                });
            }
            !over
        });
        if brought > 0 {
            self.background.planned = u32::try_from(brought).unwrap_or(u32::MAX);
            self.background.missed = 0;
            // The start goes on where the plan has ended: no longer than when it was recorded, mostly.
            let rest = (rest + BEFORE_EXEC).clamp(AFTER_PLAN, LONGEST_AFTER_PLAN);
            self.background.after_plan = now + rest;
            self.wake_at(self.background.after_plan);
        }
    }

    /// Whether a plan will still come to a chunk.
    pub(super) fn is_planned(&self, layer: LayerKey, chunk: u32) -> bool {
        let word = self.layers[layer].planned.get(chunk as usize / 64);
        word.is_some_and(|word| word >> (chunk % 64) & 1 == 1)
    }

    fn set_planned(&mut self, layer: LayerKey, chunk: u32, planned: bool) {
        let layer = &mut self.layers[layer];
        if planned && layer.planned.is_empty() {
            let words = layer.blob.chunk_count().div_ceil(64);
            layer.planned = vec![0; words as usize];
        }
        if let Some(word) = layer.planned.get_mut(chunk as usize / 64) {
            *word &= !(1 << (chunk % 64));
            *word |= u64::from(planned) << (chunk % 64);
        }
    }
}
