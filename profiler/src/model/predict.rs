//! From runs to a prediction: how probable a touch is, and when it comes first.
//!
//! A run weighs [`DECAY`] times the next newer one. The probability of a page is the share of weight of the runs that
//! touched it among those that say something about it: a run that could not see everything ([`Run::is_complete`])
//! never counts against a page. With a decay of 0.6 and a threshold of 0.25, a page that one run touched first
//! is predicted at once (its share is never below 1 - 0.6), one that was touched always is dropped after three runs
//! without it, and one that was touched once after two.
//!
//! Pinned runs do not age: among themselves they weigh the same, and a page is as probable as the pinned runs or the
//! others make it, whichever is more.

mod sweep;

use std::collections::{BTreeMap, HashMap};

use super::{FileTouches, Identity, Profile, Run};
use crate::{Digest, protocol::Access};
use sweep::{ranges_of, union};

/// Weight of a run relative to the next newer one.
const DECAY: f64 = 0.6;
/// What is less probable is not predicted.
const THRESHOLD: f64 = 0.25;
/// What is at least this probable is brought in the order of need.
const LIKELY: f64 = 0.5;
/// By how much later than its first touch the less probable is brought, in microseconds: it must not hold up what is
/// certain and needed a little later. At 1 Gbit/s that is 25 MB, about what a start needs in all.
const UNLIKELY_WAIT_US: i64 = 200_000;
/// Weight of an image's start relative to the next newer one, when its workloads are weighed against each other.
const WORKLOAD_DECAY: f64 = 0.8;
/// A workload with less than this share of an image's last starts is not predicted while the command is unknown: one
/// of five that take turns stays (0.2 and more), a single start falls out after six others.
const WORKLOAD_THRESHOLD: f64 = 0.06;

/// What the next start will touch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prediction {
    /// Files in order of their first touch.
    pub files: Vec<PredictedFile>,
    /// Paths that will be asked for and are there, besides those of `files`; most often seen first.
    pub found: Vec<String>,
    /// Paths that will be asked for and are not there; most often seen first.
    pub missing: Vec<String>,
}

/// A file of a prediction.
#[derive(Debug, Clone, PartialEq)]
pub struct PredictedFile {
    /// From the root of the layer.
    pub path: String,
    /// Digest of the whole content.
    pub content: Option<Digest>,
    /// Blob of the layer that the newest run found it in.
    pub layer: Option<Digest>,
    /// Bytes, in the newest run.
    pub size: u64,
    /// By page, disjoint.
    pub ranges: Vec<PredictedRange>,
}

/// Pages that will be touched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PredictedRange {
    /// First page.
    pub page: u64,
    /// Number of pages, at least 1.
    pub pages: u32,
    /// Expected first touch in microseconds from the first exec.
    pub at_us: i64,
    /// How.
    pub access: Access,
    /// From the threshold to 1.
    pub probability: f64,
}

impl PredictedRange {
    /// The page behind the last.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.page.saturating_add(self.pages as u64)
    }

    /// The place in the order in which ranges are brought, in microseconds from the first exec: the expected first
    /// touch, or [`UNLIKELY_WAIT_US`] after it where the touch is less probable than not. So of two ranges needed
    /// within that time of each other, the unlikely one never comes before the likely one.
    #[must_use]
    pub fn due_us(&self) -> i64 {
        if self.probability < LIKELY {
            self.at_us.saturating_add(UNLIKELY_WAIT_US)
        } else {
            self.at_us
        }
    }
}

impl Prediction {
    /// Whether nothing is predicted.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.files.is_empty() && self.found.is_empty() && self.missing.is_empty()
    }
}

/// Predicts the next start from the profiles of an image. Copies of one workload's profile are merged; of several
/// workloads, those among the last starts count, each page by the workload that needs it most.
#[must_use]
pub fn predict(profiles: &[Profile]) -> Prediction {
    predict_above(profiles, WORKLOAD_THRESHOLD)
}

/// Like [`predict`] where it is known that these workloads are what starts: none is left out, however rare it was.
#[must_use]
pub fn predict_known(profiles: &[Profile]) -> Prediction {
    predict_above(profiles, 0.0)
}

fn predict_above(profiles: &[Profile], least_share: f64) -> Prediction {
    let mut workloads: BTreeMap<&Identity, Profile> = BTreeMap::new();
    for profile in profiles {
        match workloads.get_mut(&profile.identity) {
            // The identities are equal.
            Some(kept) => drop(kept.merge(profile.clone(), super::MAX_RUNS)),
            None => {
                workloads.insert(&profile.identity, profile.clone());
            }
        }
    }
    let shares = shares(workloads.values());
    let mut files: BTreeMap<(String, Option<Digest>), PredictedFile> = BTreeMap::new();
    let (mut found, mut missing) = (HashMap::new(), HashMap::new());
    for (profile, share) in workloads.values().zip(shares) {
        if share < least_share && profile.pinned() == 0 {
            continue;
        }
        for file in files_of(profile) {
            match files.entry((file.path.clone(), file.content)) {
                std::collections::btree_map::Entry::Vacant(place) => {
                    place.insert(file);
                }
                std::collections::btree_map::Entry::Occupied(mut kept) => {
                    let ranges = std::mem::take(&mut kept.get_mut().ranges);
                    kept.get_mut().ranges = union(&ranges, &file.ranges);
                }
            }
        }
        for run in &profile.runs {
            run.found
                .iter()
                .for_each(|path| *found.entry(path.clone()).or_insert(0_u32) += 1);
            run.missing
                .iter()
                .for_each(|path| *missing.entry(path.clone()).or_insert(0_u32) += 1);
        }
    }
    let mut files: Vec<PredictedFile> = files.into_values().collect();
    files.sort_by_cached_key(|file| (file.ranges.iter().map(|r| r.at_us).min(), file.path.clone()));
    Prediction {
        files,
        found: by_count(found),
        missing: by_count(missing),
    }
}

/// Paths by how many runs asked for them. They do not age: a name that was warmed is not asked for again, so that
/// "not seen" says nothing; they leave with the last run that holds them.
fn by_count(paths: HashMap<String, u32>) -> Vec<String> {
    let mut paths: Vec<(u32, String)> = paths
        .into_iter()
        .map(|(path, count)| (count, path))
        .collect();
    paths.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    paths.into_iter().map(|(_, path)| path).collect()
}

/// The share of each profile's runs among all, newer starts heavier.
fn shares<'a>(profiles: impl Iterator<Item = &'a Profile> + Clone) -> Vec<f64> {
    let mut starts: Vec<(u64, usize)> = profiles
        .clone()
        .enumerate()
        .flat_map(|(at, profile)| profile.runs.iter().map(move |run| (run.started_ms, at)))
        .collect();
    starts.sort_unstable_by(|a, b| b.cmp(a));
    let mut shares = vec![0.0; profiles.count()];
    let (mut weight, mut sum) = (1.0, 0.0);
    for (_, at) in starts {
        shares[at] += weight;
        sum += weight;
        weight *= WORKLOAD_DECAY;
    }
    shares
        .iter_mut()
        .for_each(|share| *share /= f64::max(sum, f64::MIN_POSITIVE));
    shares
}

/// The touches of one file by the number of their run, newest first.
type Touching<'a> = Vec<(usize, &'a FileTouches)>;

/// The files of a profile; those that pinned runs and others touched may come twice.
fn files_of(profile: &Profile) -> Vec<PredictedFile> {
    let (pinned, others): (Vec<&Run>, Vec<&Run>) = profile.runs.iter().partition(|r| r.pinned);
    let mut files = files_by(&pinned, |_| 1.0);
    files.append(&mut files_by(&others, |weight| weight * DECAY));
    files
}

/// What these runs (newest first) predict, each weighing what `next` makes of the weight of the one before it.
fn files_by(runs: &[&Run], next: fn(f64) -> f64) -> Vec<PredictedFile> {
    let mut seen: BTreeMap<_, Touching<'_>> = BTreeMap::new();
    for (at, run) in runs.iter().enumerate() {
        for file in &run.files {
            seen.entry((file.path.as_str(), file.content))
                .or_default()
                .push((at, file));
        }
    }
    let weights: Vec<f64> = std::iter::successors(Some(1.0), |weight| Some(next(*weight)))
        .take(runs.len())
        .collect();
    seen.into_values()
        .filter_map(|touches| {
            let ranges = ranges_of(runs, &weights, &touches);
            // Newest first, as the runs are.
            let newest = touches.first()?.1;
            (!ranges.is_empty()).then(|| PredictedFile {
                path: newest.path.clone(),
                content: newest.content,
                layer: newest.layer,
                size: newest.size,
                ranges,
            })
        })
        .collect()
}
