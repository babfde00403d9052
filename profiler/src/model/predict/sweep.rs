//! Ranges of several runs, and of several predictions, brought together page by page.

use super::{PredictedRange, THRESHOLD, Touching};
use crate::model::Run;

/// One sweep over the bounds of all runs' ranges of a file; each run's are disjoint and sorted.
pub(super) fn ranges_of(
    runs: &[&Run],
    weights: &[f64],
    touches: &Touching<'_>,
) -> Vec<PredictedRange> {
    let mut bounds: Vec<u64> = (touches.iter())
        .flat_map(|(_, file)| file.ranges.iter().flat_map(|r| [r.page, r.end()]))
        .collect();
    bounds.sort_unstable();
    bounds.dedup();
    // What the complete runs weigh: each counts against every page that it did not touch.
    let complete: f64 = runs
        .iter()
        .zip(weights)
        .filter(|(run, _)| run.is_complete())
        .map(|(_, w)| w)
        .sum();
    let mut cursors = vec![0_usize; touches.len()];
    let mut times: Vec<(i64, f64)> = Vec::with_capacity(touches.len());
    let mut out: Vec<PredictedRange> = Vec::new();
    for pair in bounds.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        times.clear();
        let (mut touched, mut all, mut access) = (0.0, complete, None);
        for ((at, file), cursor) in touches.iter().zip(&mut cursors) {
            while file
                .ranges
                .get(*cursor)
                .is_some_and(|range| range.end() <= from)
            {
                *cursor += 1;
            }
            let Some(range) = file.ranges.get(*cursor).filter(|range| range.page <= from) else {
                continue;
            };
            touched += weights[*at];
            if !runs[*at].is_complete() {
                all += weights[*at];
            }
            access = access.or(Some(range.access));
            times.push((range.at_us, weights[*at]));
        }
        let (Some(access), probability) = (access, touched / all) else {
            continue;
        };
        if probability < THRESHOLD {
            continue;
        }
        let at_us = median(&mut times, touched);
        push(&mut out, from, to, at_us, access, probability.min(1.0));
    }
    out
}

/// The time before which half of the weight was touched.
fn median(times: &mut [(i64, f64)], sum: f64) -> i64 {
    times.sort_unstable_by_key(|(at_us, _)| *at_us);
    let mut passed = 0.0;
    for (at_us, weight) in times.iter() {
        passed += weight;
        if passed * 2.0 >= sum {
            return *at_us;
        }
    }
    times.last().map_or(0, |(at_us, _)| *at_us)
}

fn push(
    out: &mut Vec<PredictedRange>,
    mut from: u64,
    to: u64,
    at_us: i64,
    access: crate::protocol::Access,
    probability: f64,
) {
    while from < to {
        let pages = u32::try_from(to - from).unwrap_or(u32::MAX);
        let piece = PredictedRange {
            page: from,
            pages,
            at_us,
            access,
            probability,
        };
        from = piece.end();
        match out.last_mut() {
            Some(last)
                if last.end() == piece.page
                    && last.at_us == at_us
                    && last.access == access
                    && last.probability.total_cmp(&probability).is_eq()
                    && last.pages.checked_add(pages).is_some() =>
            {
                last.pages += pages;
            }
            _ => out.push(piece),
        }
    }
}

/// Disjoint ranges over both; where they overlap, the more probable one's.
pub(super) fn union(a: &[PredictedRange], b: &[PredictedRange]) -> Vec<PredictedRange> {
    let mut bounds: Vec<u64> = a.iter().chain(b).flat_map(|r| [r.page, r.end()]).collect();
    bounds.sort_unstable();
    bounds.dedup();
    let mut out = Vec::with_capacity(a.len() + b.len());
    let (mut next_a, mut next_b) = (0, 0);
    for pair in bounds.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        let best = match (at(a, &mut next_a, from), at(b, &mut next_b, from)) {
            (Some(a), Some(b)) if b.probability > a.probability => Some(b),
            (Some(a), _) => Some(a),
            (None, b) => b,
        };
        if let Some(best) = best {
            push(
                &mut out,
                from,
                to,
                best.at_us,
                best.access,
                best.probability,
            );
        }
    }
    out
}

fn at<'a>(ranges: &'a [PredictedRange], next: &mut usize, page: u64) -> Option<&'a PredictedRange> {
    while ranges.get(*next).is_some_and(|range| range.end() <= page) {
        *next += 1;
    }
    ranges.get(*next).filter(|range| range.page <= page)
}
