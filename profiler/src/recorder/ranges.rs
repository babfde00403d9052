//! Which pages of a file were touched already.

use std::collections::BTreeMap;

/// A set of pages, kept as runs that neither overlap nor adjoin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ranges {
    /// First page of a run -> page after its last.
    runs: BTreeMap<u64, u64>,
}

impl Ranges {
    /// Adds `pages` pages from `page` on; returns the runs of it that are new, in order.
    pub(super) fn insert(&mut self, page: u64, pages: u32) -> Vec<(u64, u64)> {
        let end = page.saturating_add(u64::from(pages));
        let mut new = Vec::new();
        let mut at = page;
        let (mut from, mut to) = (page, end);
        // Runs that overlap or adjoin: at most one starts before `page`.
        let before = self
            .runs
            .range(..page)
            .next_back()
            .filter(|&(_, &stop)| stop >= page)
            .map(|(&start, &stop)| (start, stop));
        let touching: Vec<(u64, u64)> = before
            .into_iter()
            .chain(self.runs.range(page..=end).map(|(&a, &b)| (a, b)))
            .collect();
        for (start, stop) in touching {
            if start > at {
                new.push((at, start.min(end)));
            }
            at = at.max(stop);
            from = from.min(start);
            to = to.max(stop);
            self.runs.remove(&start);
        }
        if at < end {
            new.push((at, end));
        }
        if from < to {
            self.runs.insert(from, to);
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_is_new_comes_back() {
        let mut ranges = Ranges::default();
        assert_eq!(ranges.insert(10, 10), [(10, 20)]);
        assert_eq!(ranges.insert(5, 30), [(5, 10), (20, 35)]);
        assert_eq!(ranges.insert(5, 30), []);
        assert_eq!(ranges.insert(u64::MAX - 1, 9), [(u64::MAX - 1, u64::MAX)]);
    }

    proptest! {
        #[test]
        fn as_if_page_by_page(touches in proptest::collection::vec((0u64..200, 0u32..40), 0..60)) {
            let mut ranges = Ranges::default();
            let mut pages = BTreeSet::new();
            for (page, count) in touches {
                let wanted: Vec<u64> = (page..page + u64::from(count)).filter(|p| pages.insert(*p)).collect();
                let new = ranges.insert(page, count);
                let got: Vec<u64> = new.iter().flat_map(|&(a, b)| a..b).collect();
                prop_assert_eq!(got, wanted);
                // Runs neither overlap nor adjoin.
                let runs: Vec<_> = ranges.runs.iter().collect();
                for pair in runs.windows(2) {
                    prop_assert!(pair[0].1 < pair[1].0);
                }
            }
        }
    }
}
