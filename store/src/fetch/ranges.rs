//! Which chunks one range request carries.

use std::ops::Range;

/// Bounds of one request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Compressed bytes at most, unless a single chunk is larger.
    pub(super) max_bytes: u64,
    /// The most bytes between two wanted chunks that are fetched along.
    pub(super) max_gap: u64,
}

/// A range that grows from one chunk to its neighbours.
#[derive(Debug, Clone)]
pub(super) struct Growing {
    range: Range<u64>,
    bounds: Bounds,
}

impl Growing {
    /// Starts with one chunk's span.
    pub(super) fn new(seed: Range<u64>, bounds: Bounds) -> Self {
        Self {
            range: seed,
            bounds,
        }
    }

    /// What it is now.
    pub(super) fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Takes a chunk in if it lies near enough and the whole does not become too long.
    pub(super) fn take(&mut self, span: &Range<u64>) -> bool {
        let start = self.range.start.min(span.start);
        let end = self.range.end.max(span.end);
        let near = span.start <= self.range.end.saturating_add(self.bounds.max_gap)
            && self.range.start <= span.end.saturating_add(self.bounds.max_gap);
        let fits = end - start <= self.bounds.max_bytes || self.holds(span);
        if near && fits {
            self.range = start..end;
        }
        near && fits
    }

    /// Whether a span lies inside.
    pub(super) fn holds(&self, span: &Range<u64>) -> bool {
        self.range.start <= span.start && span.end <= self.range.end
    }

    /// Whether no chunk that starts here or later can be taken in.
    pub(super) fn is_past(&self, start: u64) -> bool {
        start > self.range.end.saturating_add(self.bounds.max_gap)
            || start.saturating_sub(self.range.start) >= self.bounds.max_bytes
                && start >= self.range.end
    }
}
