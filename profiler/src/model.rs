//! Profiles and predictions: what starts of a workload touched, and what the next one will touch.
//!
//! Pure: no files, no clock, nothing of the store. What a profile *is* is only the list of its last runs; weights,
//! probabilities and ageing are derived when it is read ([`predict`]). That is why merging two copies is a union by
//! run id ([`Profile::merge`]), in any order and any number of times with the same result: nodes can exchange
//! profiles. Invariant: every [`Profile`] that came through [`Profile::from_json`] or [`Profile::new`] is in normal
//! form ([`Run::normalise`]) and within the limits below, whatever the file said.

mod diff;
mod identity;
mod json;
mod merge;
mod predict;
mod ranges;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use diff::{Common, Diff, OneSided, Pages, diff};
pub(crate) use identity::repository;
pub use identity::{Identity, workload};
pub use merge::MergeError;
pub use predict::{PredictedFile, PredictedRange, Prediction, predict, predict_known};
pub use ranges::normalise;

use crate::{
    Digest,
    protocol::{Access, Level},
};

/// Version of the file that this program writes; it refuses others.
pub const SCHEMA: u32 = 1;
/// Bytes in a page, everywhere in traces and profiles.
pub const PAGE: u64 = 4096;
/// Bytes a profile file may have. A start of 1,600 files takes about 200 kB a run.
pub const MAX_BYTES: u64 = 64 << 20;
/// Runs a profile may hold.
pub const MAX_RUNS: usize = 64;
/// Files, paths or execs that one run may hold, each.
pub const MAX_ITEMS: usize = 200_000;
/// Page ranges that one run may hold over all its files.
pub const MAX_RANGES: usize = 1_000_000;
/// Bytes of a path; Linux's PATH_MAX.
pub const MAX_PATH: usize = 4096;
/// First page number that is refused: byte offsets stay below 2^63.
pub const MAX_PAGE: u64 = 1 << 51;

/// The last runs of one workload of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Whose.
    pub identity: Identity,
    /// Newest first: by time of start, then by id.
    pub runs: Vec<Run>,
}

/// One recorded start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Unique among all runs on all nodes: lower-case hexadecimal digits.
    pub id: String,
    /// Unix time of the container's first exec in milliseconds.
    pub started_ms: u64,
    /// What the witness could see.
    pub level: Level,
    /// Events the kernel could not hand over.
    #[serde(default)]
    pub lost: u64,
    /// Whether the recording was ended before the start was over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
    /// Whether it stays and counts fully, however many newer runs there are. A decision of this machine's operator: it
    /// is not taken over from others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// Digests of the layers' blobs, top layer first.
    #[serde(default)]
    pub layers: Vec<Digest>,
    /// Programs in order of time.
    #[serde(default)]
    pub execs: Vec<RunExec>,
    /// Files whose pages were touched.
    #[serde(default)]
    pub files: Vec<FileTouches>,
    /// Paths asked for and found that are not among `files` (directories, links, empty files), from the root of the
    /// container, sorted.
    #[serde(default)]
    pub found: Vec<String>,
    /// Paths asked for and not found, sorted.
    #[serde(default)]
    pub missing: Vec<String>,
    /// What was fetched because it was predicted and then not touched by this run.
    #[serde(default)]
    pub predicted_unused: Vec<UnusedFile>,
}

/// A program that was started.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RunExec {
    /// Microseconds from the first exec.
    pub at_us: i64,
    /// As the container named it.
    pub path: String,
}

/// What was touched of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileTouches {
    /// From the root of the layer, without a leading slash; bytes that are not UTF-8 are replaced (then only the
    /// content digest finds the file again).
    pub path: String,
    /// Digest of the whole content, where the layer's TOC gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Digest>,
    /// Blob of the layer that it was found in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<Digest>,
    /// Bytes.
    pub size: u64,
    /// By page, disjoint.
    pub ranges: Vec<TouchedRange>,
}

/// Pages that were touched together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TouchedRange {
    /// First page.
    pub page: u64,
    /// Number of pages, at least 1.
    pub pages: u32,
    /// First touch in microseconds from the first exec; negative before it.
    pub at_us: i64,
    /// How.
    pub access: Access,
}

impl TouchedRange {
    /// The page behind the last.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.page.saturating_add(self.pages as u64)
    }
}

/// Predicted pages of a file that a run did not touch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UnusedFile {
    /// From the root of the layer.
    pub path: String,
    /// Digest of the whole content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Digest>,
    /// Whole chunks, as pages.
    pub ranges: Vec<UnusedRange>,
}

/// Pages of a chunk that were predicted and not touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UnusedRange {
    /// First page.
    pub page: u64,
    /// Number of pages, at least 1.
    pub pages: u32,
}

/// Why a text is no profile. The message names the place, not the file: that is the caller's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// Bigger than [`MAX_BYTES`].
    #[error("{bytes} bytes; at most {MAX_BYTES} are read")]
    TooLarge {
        /// Size of the text.
        bytes: u64,
    },
    /// Not the JSON of a profile.
    #[error("not the JSON of a profile: {0}")]
    Json(String),
    /// Written by another version.
    #[error("schema {0}; this program reads schema {SCHEMA}")]
    Schema(u32),
    /// More of something than one profile can need.
    #[error("{place} has {count} {what}; at most {limit} are read")]
    Limit {
        /// Where.
        place: String,
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many are read.
        limit: usize,
    },
    /// A value that cannot be.
    #[error("{place}: {what}")]
    Value {
        /// Where.
        place: String,
        /// What is wrong.
        what: String,
    },
}

impl Profile {
    /// A profile without runs.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        Self {
            schema: SCHEMA,
            identity,
            runs: Vec::new(),
        }
    }

    /// Pins all runs that are there, or none.
    pub fn set_pinned(&mut self, pinned: bool) {
        self.runs.iter_mut().for_each(|run| run.pinned = pinned);
    }

    /// Number of pinned runs.
    #[must_use]
    pub fn pinned(&self) -> usize {
        self.runs.iter().filter(|run| run.pinned).count()
    }

    /// Digests of the layers of the newest run, top first; empty without runs.
    #[must_use]
    pub fn layers(&self) -> &[Digest] {
        self.runs.first().map_or(&[], |run| &run.layers)
    }

    /// Puts runs into order and each into normal form.
    pub(crate) fn normalise(&mut self) {
        for run in &mut self.runs {
            run.normalise();
        }
        self.runs.sort_by(merge::newest_first);
    }
}

impl Run {
    /// Whether what this run did not touch was not needed: only where every touch is seen, none was lost and the
    /// recording was not cut short.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        matches!(self.level, Level::Tracepoints | Level::Kprobes) && self.lost == 0 && !self.cut
    }

    /// Pages touched, over all files.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.files
            .iter()
            .flat_map(|file| &file.ranges)
            .map(|range| u64::from(range.pages))
            .sum()
    }

    /// Sorts everything and makes it unique: one entry a (path, content), disjoint ranges in page order with the
    /// earliest touch of every page, sorted paths. Applying it again changes nothing.
    pub fn normalise(&mut self) {
        self.files.sort_by(|a, b| {
            (&a.path, &a.content, &a.layer, a.size).cmp(&(&b.path, &b.content, &b.layer, b.size))
        });
        self.files.dedup_by(|next, kept| {
            let same = next.path == kept.path && next.content == kept.content;
            if same {
                kept.ranges.append(&mut next.ranges);
            }
            same
        });
        for file in &mut self.files {
            file.ranges = normalise(std::mem::take(&mut file.ranges));
        }
        self.files.retain(|file| !file.ranges.is_empty());
        self.predicted_unused.sort();
        self.predicted_unused.dedup();
        for paths in [&mut self.found, &mut self.missing] {
            paths.sort();
            paths.dedup();
        }
        self.execs.sort();
    }
}
