//! What is kept in memory of a profile: enough to list it and to choose it.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::{
    Digest,
    model::{Identity, Profile, Run},
};

/// Files of a profile by whose contents it can be found: those with the most touched pages. They decide which image is
/// the nearest; 9 kB a profile.
const CONTENTS: usize = 128;

/// What a profile says in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Name of its file in the directory.
    pub file: String,
    /// Whose it is.
    pub identity: Identity,
    /// Number of runs.
    pub runs: usize,
    /// Of these, the pinned ones.
    #[serde(default)]
    pub pinned: usize,
    /// Unix time of the newest run's first exec in milliseconds; 0 without runs.
    pub newest_ms: u64,
    /// Layers of the newest run, top first.
    pub layers: Vec<Digest>,
    /// Files touched by the newest run.
    pub files: usize,
    /// Pages of 4096 bytes touched by the newest run.
    pub pages: u64,
    /// Pages touched by the newest run in each layer.
    #[serde(skip)]
    pub(super) pages_by_layer: HashMap<Digest, u64>,
    /// Contents touched by the newest run, most pages first.
    #[serde(skip)]
    pub(super) contents: Vec<Content>,
}

/// A file of which pages were touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) content: Digest,
    /// Blob of its layer.
    pub(super) layer: Option<Digest>,
    pub(super) pages: u64,
}

impl Summary {
    pub(super) fn of(file: String, profile: &Profile) -> Self {
        let newest = profile.runs.first();
        let mut pages_by_layer: HashMap<Digest, u64> = HashMap::new();
        let mut contents = Vec::new();
        for touches in newest.iter().flat_map(|run| &run.files) {
            let pages: u64 = touches.ranges.iter().map(|r| u64::from(r.pages)).sum();
            if let Some(layer) = touches.layer {
                *pages_by_layer.entry(layer).or_default() += pages;
            }
            if let Some(content) = touches.content {
                contents.push(Content {
                    content,
                    layer: touches.layer,
                    pages,
                });
            }
        }
        // Stable: the file's order decides between equals.
        contents.sort_by_key(|file| std::cmp::Reverse(file.pages));
        contents.truncate(CONTENTS);
        contents.shrink_to_fit();
        Self {
            file,
            identity: profile.identity.clone(),
            runs: profile.runs.len(),
            pinned: profile.pinned(),
            newest_ms: newest.map_or(0, |run| run.started_ms),
            layers: profile.layers().to_vec(),
            files: newest.map_or(0, |run| run.files.len()),
            pages: newest.map_or(0, Run::pages),
            pages_by_layer,
            contents,
        }
    }
}
