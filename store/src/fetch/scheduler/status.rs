//! What the scheduler says of itself, for `forelayer status` and tests.

use super::{Cursor, Priority, Scheduler, want::Status};
use crate::{digest::Digest, fetch::origin::Blob};

/// Chunks by lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaneCounts {
    /// Somebody waited or waits for them.
    pub demand: u64,
    /// A plan wanted them first.
    pub predicted: u64,
    /// They lay behind a chunk that somebody waited for.
    pub nearby: u64,
    /// The rest.
    pub background: u64,
}

/// All layers and plans of which something is under way or was fetched since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The layers.
    pub layers: Vec<LayerStatus>,
    /// The plans that are not finished.
    pub plans: Vec<PlanStatus>,
    /// Range requests under way.
    pub requests: usize,
    /// Demands that wait.
    pub demands: usize,
    /// Whether the background lane is paused.
    pub paused: bool,
}

/// A layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerStatus {
    /// Digest of its blob.
    pub blob: Digest,
    /// Chunks waiting to be asked for, by who needs them most. The background lane's are not counted one by one.
    pub queued: LaneCounts,
    /// Chunks on their way, by who needs them most.
    pub in_flight: LaneCounts,
    /// Chunks brought since the start of the store, by who asked first.
    pub brought: LaneCounts,
    /// Whether the background lane is at it.
    pub background: bool,
}

/// A plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanStatus {
    /// Its name.
    pub name: String,
    /// Its steps.
    pub steps: usize,
    /// Those that are neither here nor given up.
    pub left: usize,
    /// Those given up.
    pub failed: u32,
}

impl LaneCounts {
    pub(super) fn add(&mut self, priority: Priority) {
        match priority {
            Priority::Demand => self.demand += 1,
            Priority::Predicted => self.predicted += 1,
            Priority::Nearby => self.nearby += 1,
            Priority::Background => self.background += 1,
        }
    }
}

impl<B: Blob + ?Sized> Scheduler<B> {
    /// As it is now.
    pub(in crate::fetch) fn snapshot(&self) -> Snapshot {
        let layers = self.layers.iter().map(|layer| {
            let mut queued = LaneCounts::default();
            let mut in_flight = LaneCounts::default();
            for want in layer.wants.values() {
                match want.status {
                    Status::Queued | Status::Waiting { .. } => queued.add(want.priority),
                    Status::Requested | Status::Local => in_flight.add(want.priority),
                }
            }
            LayerStatus {
                blob: layer.blob.digest(),
                queued,
                in_flight,
                brought: layer.counts,
                background: matches!(layer.cursor, Cursor::At { .. }),
            }
        });
        let plans = self.plans.iter().map(|plan| PlanStatus {
            name: plan.name.clone(),
            steps: plan.steps.len(),
            left: plan.steps.len() - plan.next + plan.open,
            failed: plan.failed,
        });
        Snapshot {
            layers: layers.collect(),
            plans: plans.collect(),
            requests: self.running.len(),
            demands: self.demands.len(),
            paused: self.background.paused,
        }
    }
}
