//! `forelayer prefetch`: how far a plan that somebody asked for is.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;

use super::engine::Lanes;
use crate::{
    cache::ChunkState,
    control::PrefetchProgress,
    fetch::{Plan, PlanOutcome},
    image::Layer,
};

/// Time between two lines.
const PACE: Duration = Duration::from_millis(200);

/// One chunk of a plan and its decoded bytes.
pub(super) struct Wanted {
    pub(super) layer: Arc<Layer>,
    pub(super) chunk: u32,
    pub(super) bytes: u64,
}

/// Carries a plan out and tells how far it is; the last line is sent when the plan ended. A listener that goes away
/// changes nothing.
pub(super) async fn follow(
    lanes: Arc<dyn Lanes>,
    plan: Plan,
    mut missing: Vec<Wanted>,
    lines: mpsc::Sender<PrefetchProgress>,
) {
    let name = plan.name.clone();
    let mut progress = PrefetchProgress {
        chunks: missing.len() as u64,
        bytes: missing.iter().map(|wanted| wanted.bytes).sum(),
        ..PrefetchProgress::default()
    };
    let mut fetching = lanes.predict(plan);
    let mut outcome = PlanOutcome::default();
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let ended = tokio::select! {
            ended = &mut fetching => {
                outcome = ended;
                true
            }
            _ = pace.tick() => false,
        };
        missing.retain(|wanted| {
            let here = wanted.layer.cache.state(wanted.chunk) == ChunkState::Present;
            if here {
                progress.done_chunks += 1;
                progress.done_bytes += wanted.bytes;
            }
            !here
        });
        if ended {
            break;
        }
        // A full channel: the listener sees a later line.
        if matches!(
            lines.try_send(progress.clone()),
            Err(mpsc::error::TrySendError::Closed(_))
        ) {
            fetching.await;
            return;
        }
    }
    progress.finished = true;
    if let Some(first) = missing.first() {
        progress.error = Some(format!(
            "{} of {} chunks of {name} were not fetched: {}",
            missing.len(),
            progress.chunks,
            match outcome.error {
                Some(error) => error.to_string(),
                None => format!(
                    "another plan took over before chunk {} of layer {}",
                    first.chunk,
                    first.layer.blob()
                ),
            },
        ));
    }
    // The listener may be gone.
    let _ = lines.send(progress).await;
}
