//! Page ranges: bringing arbitrary touches of one file into disjoint ranges in page order.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::TouchedRange;
use crate::protocol::Access;

/// Disjoint ranges in page order that cover the same pages, each page with its earliest touch (of two at one time,
/// the smaller [`Access`]); neighbours with equal time and access are one range. Empty ranges vanish.
#[must_use]
pub fn normalise(mut ranges: Vec<TouchedRange>) -> Vec<TouchedRange> {
    ranges.retain(|range| range.pages > 0);
    if !needs_work(&ranges) {
        return ranges;
    }
    ranges.sort_by_key(|range| range.page);
    let mut bounds: Vec<u64> = ranges.iter().flat_map(|r| [r.page, r.end()]).collect();
    bounds.sort_unstable();
    bounds.dedup();

    // A sweep over the bounds; the heap holds the ranges that have begun, the earliest touch on top.
    let mut active: BinaryHeap<Reverse<(i64, Access, u64)>> = BinaryHeap::new();
    let mut out: Vec<TouchedRange> = Vec::with_capacity(ranges.len());
    let mut next = ranges.iter().peekable();
    for pair in bounds.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        while let Some(range) = next.next_if(|range| range.page <= from) {
            active.push(Reverse((range.at_us, range.access, range.end())));
        }
        while active
            .peek()
            .is_some_and(|Reverse((_, _, end))| *end <= from)
        {
            active.pop();
        }
        if let Some(Reverse((at_us, access, _))) = active.peek() {
            push(&mut out, from, to, *at_us, *access);
        }
    }
    out
}

fn needs_work(ranges: &[TouchedRange]) -> bool {
    ranges.windows(2).any(|pair| {
        let (a, b) = (pair[0], pair[1]);
        b.page < a.end() || (b.page == a.end() && joinable(&a, &b))
    })
}

fn joinable(a: &TouchedRange, b: &TouchedRange) -> bool {
    a.at_us == b.at_us && a.access == b.access && a.pages.checked_add(b.pages).is_some()
}

/// Appends `[from, to)`, to the last range where that is the same touch.
fn push(out: &mut Vec<TouchedRange>, mut from: u64, to: u64, at_us: i64, access: Access) {
    while from < to {
        let pages = u32::try_from(to - from).unwrap_or(u32::MAX);
        let piece = TouchedRange {
            page: from,
            pages,
            at_us,
            access,
        };
        from = piece.end();
        match out.last_mut() {
            Some(last) if last.end() == piece.page && joinable(last, &piece) => {
                last.pages += piece.pages;
            }
            _ => out.push(piece),
        }
    }
}
