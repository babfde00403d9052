//! The plans that are being carried out, and how they are narrowed once it is known what starts.
//!
//! A plan is made before the command of its container is known, from all workloads of the image. The witness names the
//! command at the container's first exec; then the steps that only other workloads need are taken back. The containers
//! of the same layers share one plan: it is narrowed when each of those mounted has said what it runs, to what they run
//! together.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use forelayer_profiler::protocol::Started;
use tokio::sync::mpsc;

use super::{Owner, slots};
use crate::{fetch::Plan, image::Layer, prefetch::engine::Lanes};

/// A plan under way.
#[derive(Debug)]
pub(super) struct Running {
    /// The fetcher's name of it: a plan of the same name takes its place.
    name: String,
    /// What is sent here takes its place. Closed when the plan has ended.
    replace: mpsc::UnboundedSender<Plan>,
    /// Containers of these layers that were mounted since.
    mounts: usize,
    /// What the containers run that have said so.
    started: Vec<String>,
    /// Whether it no longer holds what another workload needs.
    narrowed: bool,
}

/// Carries a plan out, and then what is sent to take its place while it runs.
pub(in crate::prefetch::engine) async fn fetch(
    lanes: Arc<dyn Lanes>,
    plan: Plan,
    mut replaced: mpsc::UnboundedReceiver<Plan>,
) {
    let mut end = lanes.predict(plan);
    loop {
        tokio::select! {
            biased;
            // What the old plan asked for already still comes, and is waited for where the new one wants it too.
            Some(plan) = replaced.recv() => end = lanes.predict(plan),
            _ = &mut end => return,
        }
    }
}

/// The running plans by slots, sorted.
#[derive(Debug, Default)]
pub(super) struct Plans(HashMap<Vec<u32>, Running>);

impl Plans {
    /// A plan begins; answers what is to be given to [`fetch`]. Where one of the same layers runs still, its containers
    /// are this one's too.
    pub(super) fn begin(&mut self, slots: &[u32], name: &str) -> mpsc::UnboundedReceiver<Plan> {
        self.forget_ended();
        let (replace, replaced) = mpsc::unbounded_channel();
        let (mounts, started) =
            (self.0.remove(slots)).map_or_else(|| (0, Vec::new()), |old| (old.mounts, old.started));
        let running = Running {
            name: name.to_owned(),
            replace,
            mounts,
            started,
            narrowed: false,
        };
        self.0.insert(slots.to_vec(), running);
        replaced
    }

    /// Whether a plan of these layers runs that another container cannot share.
    pub(super) fn is_narrowed(&mut self, slots: &[u32]) -> bool {
        self.forget_ended();
        self.0.get(slots).is_some_and(|running| running.narrowed)
    }

    /// A container of these layers was mounted.
    pub(super) fn mounted(&mut self, slots: &[u32]) {
        if let Some(running) = self.0.get_mut(slots) {
            running.mounts += 1;
        }
    }

    fn forget_ended(&mut self) {
        self.0.retain(|_, running| !running.replace.is_closed());
    }
}

impl Owner {
    /// A container called its first exec. Nothing happens if no plan of its layers runs any more, or if one of its
    /// containers runs what no profile knows: the plan is then the best guess.
    pub(super) fn started(&mut self, started: Started) {
        // Its own mount is to be counted before it.
        self.group_complete();
        self.running.forget_ended();
        let layers: Vec<Arc<Layer>> = (started.slots.iter())
            .filter_map(|slot| self.parts.library.layer(*slot))
            .collect();
        let slots = slots(&layers);
        let Some(running) = self.running.0.get_mut(&slots) else {
            return;
        };
        running.started.push(started.workload);
        if running.started.len() < running.mounts {
            return;
        }
        let workloads: BTreeSet<String> = running.started.iter().cloned().collect();
        let name = running.name.clone();
        let Some(planned) = self.plan(Some(&name), &layers, Some(&workloads)) else {
            return;
        };
        let Some(running) = self.running.0.get_mut(&slots) else {
            return;
        };
        tracing::info!(
            image = name,
            workloads = ?workloads,
            chunks = planned.bytes.len(),
            bytes = planned.bytes.values().sum::<u64>(),
            "what starts is known: its plan is narrowed to it"
        );
        if running.replace.send(planned.plan).is_ok() {
            running.narrowed = true;
            self.books.narrowed(&slots, &planned.bytes);
        }
    }
}
