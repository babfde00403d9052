//! A chunk that somebody wants: from the first who asks until it is here or given up.

use std::{ops::Range, time::Duration};

use super::{Action, DemandId, LayerKey, PlanId, Priority, RequestId, Scheduler};
use crate::{cache::ChunkState, fetch::origin::Blob};

/// A demanded chunk that lies this many compressed bytes behind what its stream has brought gets a request of its
/// own: on a shared 100 Mbit/s link that is 80 ms, more than a request on an idle connection takes.
pub(super) const OVERTAKE_BYTES: u64 = 1 << 20;

/// Who wants a chunk and how far it is.
#[derive(Debug)]
pub(super) struct Want {
    pub(super) span: Range<u64>,
    /// Who asked first: in whose lane it is counted.
    pub(super) first: Priority,
    /// Who needs it most now.
    pub(super) priority: Priority,
    pub(super) status: Status,
    /// Requests under way that carry it.
    pub(super) requests: Vec<RequestId>,
    /// The request that must not be held because of it.
    pub(super) urgent_in: Option<RequestId>,
    /// Failed requests.
    pub(super) attempts: u32,
    /// Times it came and was wrong.
    pub(super) wrong: u32,
    /// Hosts that will not give it.
    pub(super) refused: u32,
    pub(super) demands: Vec<DemandId>,
    pub(super) plans: Vec<PlanId>,
    /// It was predicted, but a reader had to wait for it.
    pub(super) late: bool,
}

/// How far a chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// It can be asked for.
    Queued,
    /// It can be asked for then.
    Waiting {
        until: Duration,
        /// The registry said so.
        told: bool,
    },
    /// It is on its way.
    Requested,
    /// It needs no network.
    Local,
}

impl<B: Blob + ?Sized> Scheduler<B> {
    /// Starts wanting a chunk that nobody wanted. The error says why it cannot be had at all.
    pub(super) fn want(
        &mut self,
        layer: LayerKey,
        chunk: u32,
        first: Priority,
        priority: Priority,
    ) -> Result<&mut Want, String> {
        let state = &mut self.layers[layer];
        let known = state.blob.chunk(chunk)?;
        let local = known.zeros || state.blob.state(chunk) == ChunkState::Unproven;
        if local {
            self.locally(layer, chunk, known.zeros, priority == Priority::Demand);
            if priority == Priority::Background {
                self.background.local += 1;
            }
        }
        let want = Want {
            span: known.span,
            first,
            priority,
            status: Status::Local,
            requests: Vec::new(),
            urgent_in: None,
            attempts: 0,
            wrong: 0,
            refused: 0,
            demands: Vec::new(),
            plans: Vec::new(),
            late: false,
        };
        self.layers[layer].wants.insert(chunk, want);
        if !local {
            self.queue(layer, chunk);
        }
        self.layers[layer]
            .wants
            .get_mut(&chunk)
            .ok_or_else(|| "the want just made is gone".to_owned())
    }

    /// Has done what needs no network.
    fn locally(&mut self, layer: LayerKey, chunk: u32, zeros: bool, urgent: bool) {
        let blob = self.layers[layer].blob.clone();
        // Zeros are never hashed: making the hole again is as quick.
        self.actions.push(if zeros {
            Action::Zeros {
                layer,
                blob,
                chunk,
                urgent,
            }
        } else {
            Action::Prove {
                layer,
                blob,
                chunk,
                urgent,
            }
        });
    }

    /// Makes a wanted chunk ready to be asked for.
    pub(super) fn queue(&mut self, layer: LayerKey, chunk: u32) {
        let state = &mut self.layers[layer];
        let Some(want) = state.wants.get_mut(&chunk) else {
            return;
        };
        want.status = Status::Queued;
        state.queued.insert((want.span.start, chunk));
        if want.priority == Priority::Demand {
            self.demanded.push_back((layer, chunk));
        }
    }

    /// A reader waits for a chunk that is not present; answers whether nobody had asked for it before.
    pub(super) fn demand_chunk(
        &mut self,
        id: DemandId,
        layer: LayerKey,
        chunk: u32,
    ) -> Result<bool, String> {
        let predicted = self.is_planned(layer, chunk);
        let Some(want) = self.layers[layer].wants.get_mut(&chunk) else {
            let first = if predicted {
                Priority::Predicted
            } else {
                Priority::Demand
            };
            let want = self.want(layer, chunk, first, Priority::Demand)?;
            want.demands.push(id);
            want.late = predicted;
            let local = want.status == Status::Local;
            return Ok(!predicted && !local);
        };
        want.demands.push(id);
        want.late |= predicted || want.first == Priority::Predicted;
        if want.priority == Priority::Demand {
            return Ok(false);
        }
        want.priority = Priority::Demand;
        match want.status {
            Status::Queued => self.demanded.push_back((layer, chunk)),
            Status::Waiting { told, .. } => {
                // What the lanes ahead have used up is not taken from the reader's budget.
                want.attempts = 0;
                if !told {
                    self.queue(layer, chunk);
                }
            }
            Status::Requested => self.wait_or_overtake(layer, chunk),
            // What waits behind all that is decoded ahead is done at once; done a second time it changes nothing.
            Status::Local => {
                let zeros = want.span.is_empty();
                self.locally(layer, chunk, zeros, true);
            }
        }
        Ok(false)
    }

    fn wait_or_overtake(&mut self, layer: LayerKey, chunk: u32) {
        let Some(want) = self.layers[layer].wants.get_mut(&chunk) else {
            return;
        };
        let Some(id) = want.requests.last().copied() else {
            return;
        };
        let Some(running) = self.running.get_mut(&id) else {
            // Its bytes are here and being decoded, or wait for it.
            self.hurry(id);
            return;
        };
        if want.span.start.saturating_sub(running.position) > OVERTAKE_BYTES {
            self.queue(layer, chunk);
        } else {
            running.demanded += 1;
            want.urgent_in = Some(id);
            self.hurry(id);
        }
    }

    /// A reader waits for something that a request brings or has brought.
    pub(super) fn hurry(&mut self, request: RequestId) {
        let last = self.actions.iter().rev().find_map(|action| match action {
            Action::Hurry { request: of, hurry } if *of == request => Some(*hurry),
            _ => None,
        });
        // One is enough for all chunks of a READ.
        if last != Some(true) {
            self.actions.push(Action::Hurry {
                request,
                hurry: true,
            });
        }
    }

    /// Ends wanting a chunk.
    pub(super) fn forget(&mut self, layer: LayerKey, chunk: u32) -> Option<Want> {
        let state = &mut self.layers[layer];
        let want = state.wants.remove(&chunk)?;
        state.queued.remove(&(want.span.start, chunk));
        if let Some(request) = want.urgent_in {
            self.reader_leaves(request);
        }
        Some(want)
    }

    /// A chunk of a request that a reader waited for has come, or will not.
    pub(super) fn reader_leaves(&mut self, request: RequestId) {
        let Some(running) = self.running.get_mut(&request) else {
            return;
        };
        running.demanded = running.demanded.saturating_sub(1);
        if running.demanded == 0 && running.priority != Priority::Demand {
            self.actions.push(Action::Hurry {
                request,
                hurry: false,
            });
        }
    }
}
