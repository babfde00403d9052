//! The READs that the kernel sends around touched pages, for a read-ahead of 32 pages (`read_ahead_kb` 128, which the
//! data mounts keep). What must be present for a touch is the whole READ (docs/design.md, "READ windows").
//!
//! | access | READ around it |
//! |---|---|
//! | a mapping | 16 pages before, since it is centred, to 32 behind, since executable mappings are read forward |
//! | `read` from the start of a file on | a ramp of 4, 8, 16, 32, 32 ... pages, always one step ahead |
//! | `read` of one page elsewhere | that page |
//! | `read` of more elsewhere | up to as much again ahead, at most 32 pages |
//! | seen entering the page cache | itself: the pages of a READ are what was seen |

use forelayer_profiler::{model::PAGE, protocol::Access};

/// Pages that the kernel reads at once at most.
const READ_AHEAD: u64 = 32;

/// Pages of one file that were or will be touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Touched {
    /// First page.
    pub page: u64,
    /// The page behind the last.
    pub end: u64,
    /// Microseconds from the first exec.
    pub at_us: i64,
    /// How.
    pub access: Access,
}

/// Pages that must be present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First page.
    pub page: u64,
    /// The page behind the last.
    pub end: u64,
    /// When.
    pub at_us: i64,
}

impl Window {
    /// The bytes of a file of this size that it covers.
    #[must_use]
    pub fn bytes(&self, size: u64) -> std::ops::Range<u64> {
        let end = self.end.saturating_mul(PAGE).min(size);
        self.page.saturating_mul(PAGE).min(end)..end
    }
}

/// Cuts touches at the end of a file; those behind it vanish.
#[must_use]
pub fn clamp(touched: impl IntoIterator<Item = Touched>, size: u64) -> Vec<Touched> {
    let pages = size.div_ceil(PAGE);
    touched
        .into_iter()
        .map(|mut touched| {
            touched.end = touched.end.min(pages);
            touched
        })
        .filter(|touched| touched.page < touched.end)
        .collect()
}

/// The windows of a file's touches, one a touch, cut at the end of the file. `touched` is by page and disjoint.
#[must_use]
pub fn windows(touched: &[Touched], size: u64) -> Vec<Window> {
    let pages = size.div_ceil(PAGE);
    let mut out = Vec::with_capacity(touched.len());
    // Where the sequence of `read`s began that the current touch continues.
    let mut sequence: Option<(u64, u64)> = None;
    for touch in clamp(touched.iter().copied(), size) {
        let (page, end) = match touch.access {
            Access::Map => (
                touch.page.saturating_sub(READ_AHEAD / 2),
                touch.end.saturating_add(READ_AHEAD),
            ),
            Access::Add => (touch.page, touch.end),
            Access::Read => {
                let start = match sequence {
                    Some((start, end)) if end == touch.page => start,
                    _ => touch.page,
                };
                sequence = Some((start, touch.end));
                (touch.page, read_until(start, touch.end))
            }
        };
        out.push(Window {
            page,
            end: end.min(pages),
            at_us: touch.at_us,
        });
    }
    out
}

/// The page behind the last that the kernel reads for `read`s of `[start, end)`.
fn read_until(start: u64, end: u64) -> u64 {
    if start > 0 {
        let pages = end - start;
        return if pages == 1 {
            end
        } else {
            end.saturating_add(pages.min(READ_AHEAD))
        };
    }
    // Touching the first page of a window sends the next: [0,4) and, from page 1 on, [4,12), [12,28), [28,60) ...
    match end {
        0..=1 => 4,
        2..=4 => 12,
        5..=12 => 28,
        13..=28 => 60,
        _ => 60_u64.saturating_add((end - 28).div_ceil(READ_AHEAD).saturating_mul(READ_AHEAD)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(ranges: &[(u64, u64, Access)], pages: u64) -> Vec<(u64, u64)> {
        let touched: Vec<Touched> = ranges
            .iter()
            .map(|(page, end, access)| Touched {
                page: *page,
                end: *end,
                at_us: 0,
                access: *access,
            })
            .collect();
        windows(&touched, pages * PAGE)
            .iter()
            .map(|w| (w.page, w.end))
            .collect()
    }

    #[test]
    fn a_mapped_page_is_read_in_the_middle_or_at_the_start_of_its_window() {
        // Measured: 1000 -> 984..1015; executable: 1000 -> 1000..1031; both lie inside.
        assert_eq!(of(&[(1000, 1001, Access::Map)], 5000), [(984, 1033)]);
        assert_eq!(of(&[(5, 6, Access::Map)], 5000), [(0, 38)]);
        assert_eq!(of(&[(4999, 5000, Access::Map)], 5000), [(4983, 5000)]);
    }

    #[test]
    fn reads_from_the_start_ramp_up() {
        // Measured: READs of 4, 8, 16, 32, 32 pages, each sent when the one before is begun.
        for (end, until) in [
            (1, 4),
            (2, 12),
            (4, 12),
            (5, 28),
            (12, 28),
            (13, 60),
            (28, 60),
            (29, 92),
            (60, 92),
            (61, 124),
        ] {
            assert_eq!(of(&[(0, end, Access::Read)], 5000), [(0, until)], "{end}");
        }
        assert_eq!(of(&[(0, 40, Access::Read)], 50), [(0, 50)]);
    }

    #[test]
    fn one_page_elsewhere_is_read_alone_and_a_sequence_is_known_as_one() {
        assert_eq!(of(&[(700, 701, Access::Read)], 5000), [(700, 701)]);
        assert_eq!(of(&[(700, 716, Access::Read)], 5000), [(700, 732)]);
        assert_eq!(of(&[(700, 900, Access::Read)], 5000), [(700, 932)]);
        assert_eq!(
            of(
                &[
                    (0, 4, Access::Read),
                    (4, 8, Access::Read),
                    (9, 10, Access::Read)
                ],
                5000
            ),
            [(0, 12), (4, 28), (9, 10)]
        );
    }

    #[test]
    fn what_was_seen_entering_the_cache_is_not_widened() {
        assert_eq!(of(&[(984, 1016, Access::Add)], 5000), [(984, 1016)]);
    }

    #[test]
    fn touches_behind_the_end_vanish() {
        assert_eq!(
            of(&[(0, 2782, Access::Read), (3000, 3001, Access::Map)], 1668),
            [(0, 1668)]
        );
        assert!(of(&[(0, 1, Access::Read)], 0).is_empty());
    }

    proptest! {
        #[test]
        fn every_touched_page_of_the_file_is_covered_and_nothing_behind_it(
            page in prop_oneof![0..200_u64, any::<u64>()], pages in prop_oneof![1..200_u64, any::<u64>()],
            file in prop_oneof![0..300_u64, 0..u64::MAX / PAGE], access in 0..3_u8,
        ) {
            let access = [Access::Read, Access::Map, Access::Add][usize::from(access)];
            let end = page.saturating_add(pages);
            let got = of(&[(page, end, access)], file);
            if page >= file || page == end {
                prop_assert!(got.is_empty());
            } else {
                let (from, to) = got[0];
                prop_assert!(from <= page && to >= end.min(file) && to <= file);
            }
        }
    }
}
