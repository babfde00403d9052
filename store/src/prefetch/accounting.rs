//! What became of predicted chunks: used in time, used late, or waste.
//!
//! Every predicted chunk is counted once. A start is open from its plan or its container's mount until all its
//! containers handed their traces in; what nobody touched by then is waste. Without any trace (nobody watches, or the
//! image was not started yet) nobody knows what was used, and nothing is counted.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use super::plan::ChunkKey;
use crate::{
    fetch::Arrival,
    metrics::{ByOutcome, Lane, Metrics, Outcome},
};

/// How long after a trace the others of the same image are waited for: mounts need not be containers.
const OTHERS: Duration = Duration::from_secs(20);
/// How long after a plan its image's first start is waited for.
const UNSTARTED: Duration = Duration::from_secs(24 * 3600);
/// Starts that are open at once; the oldest gives way.
const MAX_OPEN: usize = 64;

/// The open starts.
#[derive(Debug)]
pub struct Books {
    open: Vec<Start>,
    metrics: Arc<Metrics>,
    longest: Duration,
}

#[derive(Debug)]
struct Start {
    slots: Vec<u32>,
    predicted: HashMap<ChunkKey, u64>,
    undecided: HashSet<ChunkKey>,
    /// Of the predicted ones, those that the plan gave up: not predicted unless they came all the same.
    given_up: HashSet<ChunkKey>,
    mounts: u32,
    traces: u32,
    touched: Instant,
}

/// What a trace says of the predictions for its start.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Account {
    /// Touched chunks that were fetched because a reader waited.
    pub demanded: u64,
    /// Predicted chunks that were touched, late ones included.
    pub used: u64,
    /// Of these, those that a reader waited for.
    pub late: u64,
    /// Decoded bytes predicted.
    pub predicted_bytes: u64,
    /// Decoded bytes of `unused`.
    pub waste_bytes: u64,
    /// Predicted chunks that were not touched, in order.
    pub unused: Vec<ChunkKey>,
}

impl Books {
    /// Nothing open. A start that no trace follows is closed `longest` after its last mount.
    #[must_use]
    pub const fn new(metrics: Arc<Metrics>, longest: Duration) -> Self {
        Self {
            open: Vec::new(),
            metrics,
            longest,
        }
    }

    /// A plan for the layers in these slots begins.
    pub fn planned(
        &mut self,
        slots: &[u32],
        chunks: &HashMap<ChunkKey, u64>,
        now: Instant,
    ) -> Vec<Closed> {
        let (start, closed) = self.start(slots, now);
        for (chunk, bytes) in chunks {
            if start.predicted.insert(*chunk, *bytes).is_none() {
                start.undecided.insert(*chunk);
            }
            start.given_up.remove(chunk);
        }
        closed
    }

    /// The plan of an open start now holds `chunks` only, of what was not here yet.
    pub fn narrowed(&mut self, slots: &[u32], chunks: &HashMap<ChunkKey, u64>) {
        let slots = sorted(slots);
        let Some(start) = self.open.iter_mut().find(|start| start.slots == slots) else {
            return;
        };
        for (chunk, bytes) in chunks {
            if start.predicted.insert(*chunk, *bytes).is_none() {
                start.undecided.insert(*chunk);
            }
        }
        let given_up = start
            .predicted
            .keys()
            .filter(|chunk| !chunks.contains_key(chunk));
        start.given_up = given_up.copied().collect();
    }

    /// A container of these layers was mounted: a trace may follow.
    pub fn mounted(&mut self, slots: &[u32], now: Instant) -> Vec<Closed> {
        let (start, closed) = self.start(slots, now);
        start.mounts += 1;
        closed
    }

    /// Whether a start with the layer in this slot is open: how its chunks came is still to be told.
    #[must_use]
    pub fn is_open(&self, slot: u32) -> bool {
        self.open.iter().any(|start| start.slots.contains(&slot))
    }

    /// A container's trace came in: `touched` are the chunks it needed, `arrivals` how the chunks of its layers came.
    pub fn trace(
        &mut self,
        slots: &[u32],
        touched: &HashMap<ChunkKey, u64>,
        arrivals: &HashMap<ChunkKey, Arrival>,
        now: Instant,
    ) -> (Account, Vec<Closed>) {
        let slots = sorted(slots);
        let waited = |chunk: &ChunkKey| {
            arrivals
                .get(chunk)
                .is_some_and(|a| a.late || a.lane == Lane::Demand)
        };
        let mut account = Account {
            demanded: (touched.keys())
                .filter(|chunk| {
                    arrivals
                        .get(chunk)
                        .is_some_and(|arrival| arrival.lane == Lane::Demand)
                })
                .count() as u64,
            ..Account::default()
        };
        if let Some(start) = self.open.iter_mut().find(|start| start.slots == slots) {
            for chunk in std::mem::take(&mut start.given_up) {
                let brought = |arrival: &Arrival| arrival.lane == Lane::Predicted;
                if !arrivals.get(&chunk).is_some_and(brought) {
                    start.predicted.remove(&chunk);
                    start.undecided.remove(&chunk);
                }
            }
        }
        // A chunk that another image's plan brought is used just the same.
        for start in &mut self.open {
            for (chunk, bytes) in touched {
                if start.undecided.remove(chunk) {
                    count(
                        &self.metrics,
                        if waited(chunk) {
                            Outcome::Late
                        } else {
                            Outcome::Used
                        },
                        *bytes,
                    );
                }
            }
        }
        if let Some(start) = self.open.iter_mut().find(|start| start.slots == slots) {
            start.traces += 1;
            start.touched = now;
            for (chunk, bytes) in &start.predicted {
                account.predicted_bytes += bytes;
                if touched.contains_key(chunk) {
                    account.used += 1;
                    account.late += u64::from(waited(chunk));
                } else {
                    account.waste_bytes += bytes;
                    account.unused.push(*chunk);
                }
            }
            account.unused.sort_unstable();
        }
        (account, self.settle(now))
    }

    /// Closes what is over. Call it now and then ([`Books::next`]).
    pub fn settle(&mut self, now: Instant) -> Vec<Closed> {
        let longest = self.longest;
        let (over, open) = std::mem::take(&mut self.open)
            .into_iter()
            .partition(|start| start.ends(longest) <= now);
        self.open = open;
        over.into_iter()
            .map(|start: Start| self.close(start))
            .collect()
    }

    /// When [`Books::settle`] has something to do.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.open.iter().map(|start| start.ends(self.longest)).min()
    }

    fn start(&mut self, slots: &[u32], now: Instant) -> (&mut Start, Vec<Closed>) {
        let slots = sorted(slots);
        let mut closed = Vec::new();
        let at = self
            .open
            .iter()
            .position(|start| start.slots == slots)
            .unwrap_or_else(|| {
                if self.open.len() >= MAX_OPEN {
                    let oldest = self.open.remove(0);
                    closed.push(self.close(oldest));
                }
                self.open.push(Start {
                    slots,
                    predicted: HashMap::new(),
                    undecided: HashSet::new(),
                    given_up: HashSet::new(),
                    mounts: 0,
                    traces: 0,
                    touched: now,
                });
                self.open.len() - 1
            });
        self.open[at].touched = now;
        (&mut self.open[at], closed)
    }

    fn close(&self, start: Start) -> Closed {
        if start.traces > 0 {
            for chunk in &start.undecided {
                count(
                    &self.metrics,
                    Outcome::Waste,
                    start.predicted.get(chunk).copied().unwrap_or_default(),
                );
            }
        }
        Closed {
            windows: start.mounts.saturating_sub(start.traces),
            slots: start.slots,
        }
    }
}

/// A start that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// Its layers.
    pub slots: Vec<u32>,
    /// Mounts that no trace followed.
    pub windows: u32,
}

impl Start {
    fn ends(&self, longest: Duration) -> Instant {
        self.touched
            + match (self.traces, self.mounts) {
                (0, 0) => UNSTARTED,
                (0, _) => longest,
                (traces, mounts) if traces >= mounts => Duration::ZERO,
                _ => OTHERS,
            }
    }
}

fn sorted(slots: &[u32]) -> Vec<u32> {
    let mut slots = slots.to_vec();
    slots.sort_unstable();
    slots.dedup();
    slots
}

fn count(metrics: &Metrics, outcome: Outcome, bytes: u64) {
    metrics
        .predictions
        .get_or_create(&ByOutcome { outcome })
        .inc();
    metrics
        .predicted_bytes
        .get_or_create(&ByOutcome { outcome })
        .inc_by(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(660);

    struct Case {
        books: Books,
        metrics: Arc<Metrics>,
        now: Instant,
    }

    fn case() -> Case {
        let metrics = Arc::new(Metrics::new());
        let books = Books::new(Arc::clone(&metrics), LONGEST);
        Case {
            books,
            metrics,
            now: Instant::now(),
        }
    }

    fn chunks(numbers: &[u32]) -> HashMap<ChunkKey, u64> {
        numbers.iter().map(|number| ((1, *number), 100)).collect()
    }

    /// Chunks counted as used, late and waste; bytes are 100 times that.
    fn counted(metrics: &Metrics) -> [u64; 3] {
        [Outcome::Used, Outcome::Late, Outcome::Waste].map(|outcome| {
            let chunks = metrics
                .predictions
                .get_or_create(&ByOutcome { outcome })
                .get();
            assert_eq!(
                metrics
                    .predicted_bytes
                    .get_or_create(&ByOutcome { outcome })
                    .get(),
                100 * chunks
            );
            chunks
        })
    }

    #[test]
    fn every_predicted_chunk_is_used_late_or_waste() {
        let Case {
            mut books,
            metrics,
            now,
        } = case();
        books.planned(&[2, 1], &chunks(&[1, 2, 3, 4]), now);
        books.mounted(&[1, 2], now);
        let arrivals = [
            (1, Lane::Predicted, false),
            (2, Lane::Predicted, true),
            (3, Lane::Demand, false),
            (9, Lane::Demand, false),
            (8, Lane::Demand, false),
        ]
        .map(|(chunk, lane, late)| ((1, chunk), Arrival { chunk, lane, late }));
        let (account, closed) = books.trace(
            &[2, 1],
            &chunks(&[1, 2, 3, 9]),
            &HashMap::from(arrivals),
            now,
        );
        assert_eq!(
            account,
            Account {
                demanded: 2,
                used: 3,
                late: 2,
                predicted_bytes: 400,
                waste_bytes: 100,
                unused: vec![(1, 4)]
            }
        );
        assert_eq!(
            closed,
            [Closed {
                slots: vec![1, 2],
                windows: 0
            }]
        );
        assert_eq!(counted(&metrics), [1, 2, 1]);
        assert!(!books.is_open(1));
        assert!(books.next().is_none());
    }

    #[test]
    fn what_a_plan_gave_up_was_not_predicted_unless_it_came_all_the_same() {
        let Case {
            mut books,
            metrics,
            now,
        } = case();
        books.planned(&[1], &chunks(&[1, 2, 3, 4]), now);
        books.mounted(&[1], now);
        // 1 is wanted still and 5 is new; 2 was here already, 3 is on its way, 4 was not asked for yet.
        books.narrowed(&[1], &chunks(&[1, 5]));
        let arrivals = [1, 2, 3, 5].map(|chunk| {
            let lane = Lane::Predicted;
            let late = false;
            ((1, chunk), Arrival { chunk, lane, late })
        });
        let touched = chunks(&[1, 2, 5]);
        let (account, _) = books.trace(&[1], &touched, &HashMap::from(arrivals), now);
        assert_eq!((account.used, account.unused), (3, vec![(1, 3)]));
        assert_eq!(account.predicted_bytes, 400);
        assert_eq!(counted(&metrics), [3, 0, 1]);
    }

    #[test]
    fn what_a_plan_gave_up_and_a_reader_waited_for_is_a_miss() {
        let Case {
            mut books,
            metrics,
            now,
        } = case();
        books.planned(&[1], &chunks(&[1, 2]), now);
        books.mounted(&[1], now);
        books.narrowed(&[1], &chunks(&[]));
        let missed = Arrival {
            chunk: 2,
            lane: Lane::Demand,
            late: false,
        };
        let arrivals = HashMap::from([((1, 2), missed)]);
        let (account, _) = books.trace(&[1], &chunks(&[2]), &arrivals, now);
        assert_eq!((account.demanded, account.used, account.late), (1, 0, 0));
        assert_eq!(counted(&metrics), [0, 0, 0]);
    }

    #[test]
    fn two_containers_of_one_image_share_their_predictions() {
        let Case {
            mut books,
            metrics,
            now,
        } = case();
        books.planned(&[1], &chunks(&[1, 2, 3]), now);
        books.mounted(&[1], now);
        books.mounted(&[1], now);
        let (first, closed) = books.trace(&[1], &chunks(&[1]), &HashMap::new(), now);
        assert_eq!(first.unused, [(1, 2), (1, 3)]);
        assert!(closed.is_empty());
        assert_eq!(
            counted(&metrics),
            [1, 0, 0],
            "the second container may still use the rest"
        );
        let (second, _) = books.trace(&[1], &chunks(&[1, 2]), &HashMap::new(), now);
        assert_eq!((second.used, second.unused), (2, vec![(1, 3)]));
        assert_eq!(counted(&metrics), [2, 0, 1]);
    }

    #[test]
    fn a_mount_that_is_no_container_is_not_waited_for_long() {
        let Case {
            mut books,
            metrics,
            now,
        } = case();
        books.planned(&[1], &chunks(&[1, 2]), now);
        books.mounted(&[1], now);
        books.mounted(&[1], now);
        books.trace(&[1], &chunks(&[1]), &HashMap::new(), now);
        assert_eq!(books.next(), Some(now + OTHERS));
        assert_eq!(
            books.settle(now + OTHERS),
            [Closed {
                slots: vec![1],
                windows: 1
            }]
        );
        assert_eq!(counted(&metrics), [1, 0, 1]);
    }

    #[test]
    fn without_a_trace_nothing_is_known() {
        let Case {
            mut books,
            metrics,
            now,
        } = case();
        books.planned(&[1], &chunks(&[1]), now);
        books.mounted(&[1], now);
        assert_eq!(
            books.settle(now + LONGEST),
            [Closed {
                slots: vec![1],
                windows: 1
            }]
        );
        assert_eq!(counted(&metrics), [0, 0, 0]);
        books.planned(&[1], &chunks(&[1]), now);
        assert!(
            books.settle(now + LONGEST).is_empty(),
            "it may be started later"
        );
        books.settle(now + UNSTARTED);
        assert_eq!(counted(&metrics), [0, 0, 0]);
        assert!(!books.is_open(1));
    }

    #[test]
    fn a_chunk_brought_for_a_sister_image_counts_as_used_once() {
        let Case {
            mut books,
            metrics,
            now,
        } = case();
        books.planned(&[1, 2], &chunks(&[1]), now);
        books.mounted(&[1, 3], now);
        let (account, _) = books.trace(&[1, 3], &chunks(&[1]), &HashMap::new(), now);
        assert_eq!(
            account.predicted_bytes, 0,
            "nothing was predicted for this start"
        );
        books.mounted(&[1, 2], now);
        books.trace(&[1, 2], &chunks(&[1]), &HashMap::new(), now);
        assert_eq!(counted(&metrics), [1, 0, 0]);
    }

    #[test]
    fn the_number_of_open_starts_is_bounded() {
        let Case { mut books, now, .. } = case();
        let opened = u32::try_from(MAX_OPEN).unwrap_or(u32::MAX) + 5;
        let closed: usize = (1..=opened)
            .map(|slot| books.mounted(&[slot], now).len())
            .sum();
        assert_eq!(closed, 5);
        assert!(!books.is_open(5) && books.is_open(6));
    }
}
