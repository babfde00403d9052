//! What two predictions have in common: files, pages, and the order in which they are needed.
//!
//! A file is the same by path and content, else by content alone (moved), else by path alone (changed). The pages of a
//! changed file are compared by number: what is in them differs.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::{PredictedFile, PredictedRange, Prediction};
use crate::Digest;

/// What differs between two predictions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// Files of the first only, in order of first touch.
    pub only_a: Vec<OneSided>,
    /// Files of the second only, in order of first touch.
    pub only_b: Vec<OneSided>,
    /// Files of both, in the first's order of first touch.
    pub common: Vec<Common>,
}

/// A file that one prediction has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OneSided {
    /// From the root of the layer.
    pub path: String,
    /// Pages of 4096 bytes.
    pub pages: u64,
    /// First touch in microseconds from the first exec.
    pub at_us: i64,
}

/// A file that both predictions have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Common {
    /// Its path in the first.
    pub path: String,
    /// Its path in the second, where that is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moved: Option<String>,
    /// Whether its content is another.
    pub changed: bool,
    /// Pages of the first only, of the second only, and of both.
    pub pages_a: u64,
    /// See `pages_a`.
    pub pages_b: u64,
    /// See `pages_a`.
    pub pages: u64,
    /// First touch in the first, in microseconds from the first exec.
    pub at_us_a: i64,
    /// First touch in the second.
    pub at_us_b: i64,
    /// Whether its turn among the common files is another: the fewest files are named without which the order of the
    /// others is the same.
    pub reordered: bool,
}

/// Pages of a [`Diff`], summed up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Pages {
    /// In the first only, those of common files included.
    pub only_a: u64,
    /// In the second only.
    pub only_b: u64,
    /// In both.
    pub common: u64,
}

impl Diff {
    /// The sums over all files.
    #[must_use]
    pub fn pages(&self) -> Pages {
        let one = |files: &[OneSided]| files.iter().map(|file| file.pages).sum::<u64>();
        let both = |pages: fn(&Common) -> u64| self.common.iter().map(pages).sum::<u64>();
        Pages {
            only_a: one(&self.only_a) + both(|file| file.pages_a),
            only_b: one(&self.only_b) + both(|file| file.pages_b),
            common: both(|file| file.pages),
        }
    }
}

/// Compares two predictions; the paths besides files (`found`, `missing`) are left out.
#[must_use]
pub fn diff(a: &Prediction, b: &Prediction) -> Diff {
    let (a, b) = (&a.files, &b.files);
    let pairs = pairs(a, b);
    let steady = longest_rising(&pairs.values().copied().collect::<Vec<_>>());
    let mut of_b = vec![false; b.len()];
    let mut out = Diff::default();
    for (at, file) in a.iter().enumerate() {
        let Some(other) = pairs.get(&at) else {
            out.only_a.push(one_sided(file));
            continue;
        };
        of_b[*other] = true;
        let reordered = steady.binary_search(other).is_err();
        out.common.push(common(file, &b[*other], reordered));
    }
    out.only_b = (b.iter().zip(of_b))
        .filter(|(_, paired)| !paired)
        .map(|(file, _)| one_sided(file))
        .collect();
    out
}

/// Which file of `b` each file of `a` is: the surest relation first, each file once.
fn pairs(a: &[PredictedFile], b: &[PredictedFile]) -> BTreeMap<usize, usize> {
    type Key<'a> = (Option<&'a str>, Option<Digest>);
    let keys: [fn(&PredictedFile) -> Key<'_>; 3] = [
        |file| (Some(&file.path), file.content),
        |file| (None, file.content),
        |file| (Some(&file.path), None),
    ];
    let mut pairs = BTreeMap::new();
    let mut taken = vec![false; b.len()];
    for key in keys {
        let mut places: HashMap<Key<'_>, Vec<usize>> = HashMap::new();
        for (at, file) in b.iter().enumerate().rev() {
            if !taken[at] {
                places.entry(key(file)).or_default().push(at);
            }
        }
        for (at, file) in a.iter().enumerate() {
            let key = key(file);
            if key == (None, None) || pairs.contains_key(&at) {
                continue;
            }
            // The first in order of touch is the last of the list.
            if let Some(other) = places.get_mut(&key).and_then(Vec::pop) {
                pairs.insert(at, other);
                taken[other] = true;
            }
        }
    }
    pairs
}

/// The values of a longest rising subsequence, in order.
fn longest_rising(values: &[usize]) -> Vec<usize> {
    // For each length the place of the smallest value that ends a rising sequence of it, and who came before it.
    let mut ends: Vec<usize> = Vec::new();
    let mut before: Vec<Option<usize>> = Vec::with_capacity(values.len());
    for (at, value) in values.iter().enumerate() {
        let len = ends.partition_point(|end| values[*end] < *value);
        before.push(len.checked_sub(1).map(|shorter| ends[shorter]));
        match ends.get_mut(len) {
            Some(end) => *end = at,
            None => ends.push(at),
        }
    }
    let mut rising: Vec<usize> = std::iter::successors(ends.last().copied(), |at| before[*at])
        .map(|at| values[at])
        .collect();
    rising.reverse();
    rising
}

fn one_sided(file: &PredictedFile) -> OneSided {
    OneSided {
        path: file.path.clone(),
        pages: pages(&file.ranges),
        at_us: first(file),
    }
}

fn common(a: &PredictedFile, b: &PredictedFile, reordered: bool) -> Common {
    let both = overlap(&a.ranges, &b.ranges);
    Common {
        path: a.path.clone(),
        moved: (a.path != b.path).then(|| b.path.clone()),
        changed: a.content != b.content,
        pages_a: pages(&a.ranges) - both,
        pages_b: pages(&b.ranges) - both,
        pages: both,
        at_us_a: first(a),
        at_us_b: first(b),
        reordered,
    }
}

fn first(file: &PredictedFile) -> i64 {
    (file.ranges.iter().map(|range| range.at_us).min()).unwrap_or_default()
}

fn pages(ranges: &[PredictedRange]) -> u64 {
    ranges.iter().map(|range| u64::from(range.pages)).sum()
}

/// Pages that lie in both; each side's ranges are disjoint and sorted.
fn overlap(a: &[PredictedRange], b: &[PredictedRange]) -> u64 {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    let mut pages = 0;
    while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
        pages += x.end().min(y.end()).saturating_sub(x.page.max(y.page));
        if x.end() <= y.end() {
            a.next();
        } else {
            b.next();
        }
    }
    pages
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::protocol::Access;

    fn file(path: &str, content: &str, ranges: &[(u64, u32)]) -> PredictedFile {
        let range = |&(page, pages): &(u64, u32)| PredictedRange {
            page,
            pages,
            at_us: 7,
            access: Access::Read,
            probability: 1.0,
        };
        PredictedFile {
            path: path.to_owned(),
            content: Some(Digest::of(content.as_bytes())),
            layer: None,
            size: 1 << 20,
            ranges: ranges.iter().map(range).collect(),
        }
    }

    fn of(files: Vec<PredictedFile>) -> Prediction {
        Prediction {
            files,
            ..Prediction::default()
        }
    }

    #[test]
    fn files_are_told_apart_as_gone_new_moved_and_changed() {
        let a = of(vec![
            file("same", "same", &[(0, 4), (9, 1)]),
            file("old/name", "moved", &[(0, 1)]),
            file("conf", "before", &[(0, 2)]),
            file("gone", "gone", &[(0, 3)]),
        ]);
        let b = of(vec![
            file("new", "new", &[(0, 5)]),
            file("new/name", "moved", &[(0, 1)]),
            file("conf", "after", &[(1, 2)]),
            file("same", "same", &[(2, 4)]),
        ]);
        let diff = diff(&a, &b);
        let names: Vec<_> = diff.only_a.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(names, ["gone"]);
        let names: Vec<_> = diff.only_b.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(names, ["new"]);
        let common: Vec<_> = (diff.common.iter())
            .map(|c| (c.path.as_str(), c.moved.as_deref(), c.changed, c.reordered))
            .collect();
        assert_eq!(
            common,
            [
                ("same", None, false, true),
                ("old/name", Some("new/name"), false, false),
                ("conf", None, true, false),
            ]
        );
        let pages = |c: &Common| (c.pages_a, c.pages_b, c.pages);
        assert_eq!(
            diff.common.iter().map(pages).collect::<Vec<_>>(),
            [(3, 2, 2), (0, 0, 1), (1, 1, 1)]
        );
        let sums = Pages {
            only_a: 7,
            only_b: 8,
            common: 4,
        };
        assert_eq!(diff.pages(), sums);
    }

    fn any_files() -> impl Strategy<Value = Vec<PredictedFile>> {
        let one = ("[a-d]", "[a-c]", 0..5_u64, 1..4_u32);
        let one = one.prop_map(|(path, content, page, pages)| {
            file(&path, &content, &[(page, pages), (page + 9, 1)])
        });
        proptest::collection::vec(one, 0..8).prop_map(|files| {
            let mut seen = BTreeSet::new();
            let new = |file: &PredictedFile| seen.insert((file.path.clone(), file.content));
            files.into_iter().filter(new).collect()
        })
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_counted_twice_and_turning_it_round_turns_it_round(a in any_files(), b in any_files()) {
            let (a, b) = (of(a), of(b));
            let there = diff(&a, &b);
            let all = |side: &Prediction| side.files.iter().map(|file| pages(&file.ranges)).sum::<u64>();
            let sums = there.pages();
            prop_assert_eq!(sums.only_a + sums.common, all(&a));
            prop_assert_eq!(sums.only_b + sums.common, all(&b));
            prop_assert_eq!(there.only_a.len() + there.common.len(), a.files.len());
            prop_assert_eq!(there.only_b.len() + there.common.len(), b.files.len());
            let same = diff(&a, &a);
            prop_assert!(same.only_a.is_empty() && same.only_b.is_empty());
            prop_assert!(same.common.iter().all(|c| !c.reordered && !c.changed && c.pages_a + c.pages_b == 0));
            let back = diff(&b, &a);
            prop_assert_eq!(back.only_a.len(), there.only_b.len());
        }

        #[test]
        fn the_rest_keeps_its_order(order in Just((0..9_usize).collect::<Vec<_>>()).prop_shuffle()) {
            let steady = longest_rising(&order);
            prop_assert!(steady.windows(2).all(|pair| pair[0] < pair[1]));
            let in_order: Vec<_> = order.iter().copied().filter(|value| steady.contains(value)).collect();
            prop_assert_eq!(in_order, steady);
        }
    }
}
