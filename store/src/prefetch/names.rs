//! The names that the kernel asked for on the data mounts while containers started.
//!
//! The witness sees opens, not stats: the names that a start only asks about come from here. Names are kept between a
//! container's mount and its trace, and at most [`LIMIT`] of them; outside such windows a lookup costs one atomic read.

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicUsize, Ordering},
};

use parking_lot::Mutex;

use crate::format::NodeId;

/// Names kept over all layers.
const LIMIT: usize = 200_000;

/// See the module's text. Shared by the FUSE threads and the owner of the plans.
#[derive(Debug, Default)]
pub struct NameLog {
    open: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    slots: HashMap<u32, Slot>,
    names: usize,
    warmers: HashSet<u32>,
}

#[derive(Debug, Default)]
struct Slot {
    windows: usize,
    names: HashSet<(NodeId, Box<[u8]>)>,
}

impl NameLog {
    /// The kernel looks `name` up in a directory of a layer, for the process `pid` (0 if it does not say).
    pub fn looked_up(&self, slot: u32, directory: NodeId, name: &[u8], pid: u32) {
        if self.open.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut state = self.state.lock();
        if state.names >= LIMIT || state.warmers.contains(&pid) {
            return;
        }
        let Some(slot) = state.slots.get_mut(&slot) else {
            return;
        };
        if slot.names.insert((directory, name.into())) {
            state.names += 1;
        }
    }

    /// A container with this layer was mounted: a window opens.
    pub(super) fn open(&self, slot: u32) {
        let mut state = self.state.lock();
        state.slots.entry(slot).or_default().windows += 1;
        self.open.store(state.slots.len(), Ordering::Relaxed);
    }

    /// A window closes; answers the names asked for in the layer since its oldest open window began.
    pub(super) fn close(&self, slot: u32) -> Vec<(NodeId, Box<[u8]>)> {
        let mut state = self.state.lock();
        let Some(kept) = state.slots.get_mut(&slot) else {
            return Vec::new();
        };
        kept.windows = kept.windows.saturating_sub(1);
        if kept.windows > 0 {
            return kept.names.iter().cloned().collect();
        }
        let names = state
            .slots
            .remove(&slot)
            .map(|slot| slot.names)
            .unwrap_or_default();
        state.names -= names.len();
        self.open.store(state.slots.len(), Ordering::Relaxed);
        names.into_iter().collect()
    }

    /// From now on, what this process looks up is not a start's doing.
    pub(super) fn warmer(&self, pid: u32, runs: bool) {
        let mut state = self.state.lock();
        if runs {
            state.warmers.insert(pid);
        } else {
            state.warmers.remove(&pid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(names: &[(NodeId, Box<[u8]>)]) -> usize {
        names.len()
    }

    #[test]
    fn names_are_kept_while_a_window_is_open_and_no_longer() {
        let log = NameLog::default();
        log.looked_up(1, 0, b"before", 7);
        log.open(1);
        log.open(1);
        log.looked_up(1, 0, b"a", 7);
        log.looked_up(1, 0, b"a", 8);
        log.looked_up(2, 0, b"other layer", 7);
        assert_eq!(count(&log.close(1)), 1, "the second window is still open");
        log.looked_up(1, 3, b"a", 7);
        assert_eq!(count(&log.close(1)), 2);
        log.looked_up(1, 0, b"after", 7);
        assert_eq!(count(&log.close(1)), 0);
        assert_eq!(log.state.lock().names, 0);
    }

    #[test]
    fn what_the_warmer_asks_for_is_not_learned() {
        let log = NameLog::default();
        log.open(1);
        log.warmer(7, true);
        log.looked_up(1, 0, b"warmed", 7);
        log.warmer(7, false);
        log.looked_up(1, 0, b"asked", 7);
        assert_eq!(log.close(1), [(0, b"asked".as_slice().into())]);
    }

    #[test]
    fn memory_is_bounded() {
        let log = NameLog::default();
        log.open(1);
        for name in 0..LIMIT + 10 {
            log.looked_up(1, 0, &name.to_le_bytes(), 0);
        }
        assert_eq!(count(&log.close(1)), LIMIT);
    }
}
