//! Which containers' mounts were announced and not yet followed by a container.
//!
//! An overlay mount asks each of its layers for its state, topmost first and within a fraction of a millisecond; two
//! mounts at the same time mix their questions.

use std::collections::BTreeSet;

/// Questions of one mount come within this time, the store's wait for the witness (20 ms by default) included.
const TOGETHER_NS: u64 = 200_000_000;
/// A container that is known takes the oldest mount that fits up to this age: of two that start together each is to get
/// all that its runtime touched. Older ones are `podman image mount` and the like.
const SURE_NS: u64 = 3_000_000_000;

/// One overlay mount of layers of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mounted {
    /// Monotonic time of its first question.
    pub(super) at_ns: u64,
    last_ns: u64,
    pub(super) slots: BTreeSet<u32>,
    /// Events lost when it came.
    pub(super) lost: u64,
}

/// Mounts that wait for their container.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    waiting: Vec<Mounted>,
}

impl Mounts {
    /// A layer was asked for its state; true when that starts another mount.
    pub(super) fn add(&mut self, slot: u32, now_ns: u64, lost: u64) -> bool {
        let same = self.waiting.iter_mut().find(|mount| {
            now_ns.saturating_sub(mount.last_ns) <= TOGETHER_NS && !mount.slots.contains(&slot)
        });
        if let Some(mount) = same {
            mount.slots.insert(slot);
            mount.last_ns = now_ns;
            return false;
        }
        self.waiting.push(Mounted {
            at_ns: now_ns,
            last_ns: now_ns,
            slots: BTreeSet::from([slot]),
            lost,
        });
        true
    }

    /// Takes the mount of the container with these layers that called its first exec at `exec_ns`. Of two different
    /// images whose questions came together the other's layers stay.
    pub(super) fn take(&mut self, slots: &BTreeSet<u32>, exec_ns: u64) -> Option<Mounted> {
        // A mount that names exactly its layers is better than one that names some, whatever their age.
        let fit = |mount: &Mounted| match () {
            () if mount.at_ns > exec_ns || mount.slots.is_disjoint(slots) => 0,
            () if mount.slots == *slots => 3,
            () if mount.slots.is_subset(slots) => 2,
            () => 1,
        };
        let best = self.waiting.iter().map(fit).max().filter(|&fit| fit > 0)?;
        let mut fitting = self
            .waiting
            .iter()
            .enumerate()
            .filter(|(_, mount)| fit(mount) == best)
            .map(|(index, mount)| (index, exec_ns - mount.at_ns));
        let index = fitting
            .clone()
            .find(|&(_, age)| age <= SURE_NS)
            .or_else(|| fitting.next_back())
            .map(|(index, _)| index)?;
        let mount = self.waiting.get_mut(index)?;
        let taken = mount.clone();
        mount.slots.retain(|slot| !slots.contains(slot));
        if mount.slots.is_empty() {
            self.waiting.remove(index);
        }
        Some(taken)
    }

    /// Drops the mounts that `gone` says will have no container.
    pub(super) fn expire(&mut self, gone: impl Fn(&Mounted) -> bool) {
        self.waiting.retain(|mount| !gone(mount));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const MS: u64 = 1_000_000;

    fn set(slots: &[u32]) -> BTreeSet<u32> {
        slots.iter().copied().collect()
    }

    #[test]
    fn questions_that_come_together_are_one_mount() {
        let mut mounts = Mounts::default();
        assert!(mounts.add(3, 0, 0));
        assert!(!mounts.add(2, MS, 0));
        assert!(mounts.add(2, 1000 * MS, 0), "much later");
        assert_eq!(mounts.take(&set(&[2, 3]), 1100 * MS).unwrap().at_ns, 0);
        assert_eq!(mounts.take(&set(&[2]), 1100 * MS).unwrap().at_ns, 1000 * MS);
        assert!(mounts.is_empty());
    }

    #[test]
    fn two_mounts_of_one_image_at_the_same_time_are_two() {
        let mut mounts = Mounts::default();
        for (slot, at) in [(3, 0), (3, 1), (2, 2), (2, 3), (1, 4), (1, 5)] {
            mounts.add(slot, at * MS, 0);
        }
        let layers = set(&[1, 2, 3]);
        assert_eq!(mounts.take(&layers, 100 * MS).unwrap().at_ns, 0);
        assert_eq!(mounts.take(&layers, 120 * MS).unwrap().at_ns, MS);
        assert_eq!(mounts.take(&layers, 130 * MS), None);
    }

    #[test]
    fn two_mounts_of_different_images_at_the_same_time_are_two() {
        let mut mounts = Mounts::default();
        for (slot, at) in [(2, 0), (4, 1), (1, 2), (3, 3)] {
            mounts.add(slot, at * MS, 0);
        }
        assert_eq!(mounts.take(&set(&[3, 4]), 100 * MS).unwrap().at_ns, 0);
        assert_eq!(mounts.take(&set(&[3, 4]), 110 * MS), None);
        assert_eq!(mounts.take(&set(&[1, 2]), 120 * MS).unwrap().at_ns, 0);
        assert!(mounts.is_empty());
    }

    #[test]
    fn an_older_image_mount_is_not_taken_for_the_container_s() {
        let mut mounts = Mounts::default();
        mounts.add(1, 0, 0);
        mounts.add(1, 9000 * MS, 0);
        assert_eq!(mounts.take(&set(&[1]), 9100 * MS).unwrap().at_ns, 9000 * MS);
        // With nothing better it is.
        assert_eq!(mounts.take(&set(&[1]), 9100 * MS).unwrap().at_ns, 0);
    }

    #[test]
    fn the_mount_with_the_same_layers_is_preferred() {
        let mut mounts = Mounts::default();
        mounts.add(1, 0, 0);
        mounts.add(1, MS, 0);
        mounts.add(2, MS, 0);
        mounts.add(2, 2 * MS, 0);
        // {1, 2}, {1, 2}: the second question for 2 goes to the mount that lacks it.
        assert_eq!(mounts.take(&set(&[1, 2, 9]), 5 * MS).unwrap().at_ns, 0);
        mounts.add(7, 300 * MS, 0);
        assert_eq!(
            mounts.take(&set(&[7, 1]), 400 * MS).unwrap().slots,
            set(&[7])
        );
        assert_eq!(mounts.take(&set(&[8]), 400 * MS), None);
        assert_eq!(
            mounts.take(&set(&[1]), 0),
            None,
            "no mount comes after its container"
        );
    }
}
