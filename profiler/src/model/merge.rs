//! Merging copies of a profile: the union of their runs, the newest kept, and those that are pinned.
//!
//! Commutative, associative and idempotent: of two runs with one id (they differ only if somebody edited one) the
//! greater in a total order stays, and the order "newest first" has no ties between different ids. Pins are this
//! machine's: copies that agree on them merge in any order.

use std::{cmp::Ordering, collections::HashMap};

use super::{Identity, Profile, Run};

/// Why two profiles were not merged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// They are of different workloads.
    #[error("profile of {theirs} cannot be merged into that of {ours}")]
    Identity {
        /// The one merged into.
        ours: Box<Identity>,
        /// The other.
        theirs: Box<Identity>,
    },
}

impl Profile {
    /// Takes in the other's runs and keeps the newest `keep` (at least one, at most [`super::MAX_RUNS`]) besides those
    /// that are pinned here or there.
    ///
    /// # Errors
    /// [`MergeError::Identity`] if they are not of the same image and workload.
    pub fn merge(&mut self, other: Self, keep: usize) -> Result<(), MergeError> {
        if self.identity != other.identity {
            return Err(MergeError::Identity {
                ours: Box::new(self.identity.clone()),
                theirs: Box::new(other.identity),
            });
        }
        self.normalise();
        let mut runs: HashMap<String, Run> = HashMap::new();
        for mut run in self.runs.drain(..).chain(other.runs) {
            run.normalise();
            match runs.get_mut(&run.id) {
                Some(kept) => {
                    let pinned = kept.pinned || run.pinned;
                    if greater(&run, kept) {
                        *kept = run;
                    }
                    kept.pinned = pinned;
                }
                None => {
                    runs.insert(run.id.clone(), run);
                }
            }
        }
        self.runs.extend(runs.into_values());
        self.runs.sort_by(newest_first);
        self.keep_newest(keep);
        Ok(())
    }

    /// Drops the oldest runs that are not pinned. Where nearly all are, the oldest pinned one gives way: a new start is
    /// always learned.
    fn keep_newest(&mut self, keep: usize) {
        let mut pinned = self.pinned().min(super::MAX_RUNS - 1);
        let mut others = keep.clamp(1, super::MAX_RUNS - pinned);
        self.runs.retain(|run| {
            let left = if run.pinned { &mut pinned } else { &mut others };
            let stays = *left > 0;
            *left = left.saturating_sub(1);
            stays
        });
    }

    /// [`Profile::merge`] of a single run of this workload.
    pub fn add(&mut self, run: Run, keep: usize) {
        let one = Self {
            schema: self.schema,
            identity: self.identity.clone(),
            runs: vec![run],
        };
        // The identities are equal by construction.
        let _ = self.merge(one, keep);
    }
}

/// Newest first; runs of one millisecond by id.
pub(super) fn newest_first(a: &Run, b: &Run) -> Ordering {
    (b.started_ms, &b.id).cmp(&(a.started_ms, &a.id))
}

/// A total order on runs with one id: by time, then by their text, whether pinned or not.
fn greater(a: &Run, b: &Run) -> bool {
    // Two copies of a profile have most runs in common, and writing one out takes milliseconds.
    if a == b {
        return false;
    }
    a.started_ms
        .cmp(&b.started_ms)
        .then_with(|| text(a).cmp(&text(b)))
        .is_gt()
}

fn text(run: &Run) -> String {
    // Plain structs with string keys: serialising them cannot fail, and an equal empty text would only keep ours.
    let unpinned = Run {
        pinned: false,
        ..run.clone()
    };
    serde_json::to_string(&unpinned).unwrap_or_default()
}
