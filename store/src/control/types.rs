//! The documents of the control socket; server and client share them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{digest::Digest, format::LayerFormat};

/// Answer to `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the store.
    pub version: String,
    /// Seconds since it was started.
    pub uptime_seconds: u64,
    /// What storage.conf has to name, without `:ref`.
    pub store: PathBuf,
    /// Whether a witness is connected: starts are recorded.
    pub witness: bool,
    /// Whether the background lane is switched on (`fetch.background`).
    pub background: bool,
    /// Whether it is paused.
    pub background_paused: bool,
    /// Images by name.
    pub images: Vec<ImageStatus>,
}

/// An image of which at least one layer is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStatus {
    /// What engines call it.
    pub reference: String,
    /// Its layers that are served, bottom first.
    pub layers: Vec<LayerStatus>,
}

/// A layer that is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerStatus {
    /// Digest of its compressed blob.
    pub blob: Digest,
    /// Digest of its TOC.
    pub toc: Digest,
    /// Its format.
    pub format: LayerFormat,
    /// Whether the TOC was bound to the blob by the manifest or the engine.
    pub bound: bool,
    /// Its number on the data mounts.
    pub slot: u32,
    /// Chunks it has.
    pub chunks: u32,
    /// Chunks that are in the cache.
    pub present_chunks: u32,
    /// Decoded bytes it has.
    pub bytes: u64,
    /// Decoded bytes that are in the cache.
    pub present_bytes: u64,
}

impl ImageStatus {
    /// Decoded bytes of all layers: (in the cache, in all).
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        self.layers.iter().fold((0, 0), |(present, all), layer| {
            (present + layer.present_bytes, all + layer.bytes)
        })
    }
}

/// Answer to `POST /v1/traces`: what was made of a trace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSummary {
    /// The run's id.
    pub run: String,
    /// The image.
    pub image: String,
    /// The workload's name within the image.
    pub workload: String,
    /// The profile's file.
    pub profile: PathBuf,
    /// Runs that the profile holds now.
    pub runs: usize,
    /// Files that were touched.
    pub files: u64,
    /// Bytes of the pages that were touched.
    pub touched_bytes: u64,
    /// Chunks that these pages and their READ windows lie in.
    pub touched_chunks: u64,
    /// Decoded bytes of those chunks.
    pub touched_chunk_bytes: u64,
    /// Of the touched chunks, how many were fetched because a reader waited for them.
    pub demanded_chunks: u64,
    /// Predicted chunks that were used, of those late ones that a reader had to wait for, and those nobody used.
    pub used_chunks: u64,
    /// See `used_chunks`.
    pub late_chunks: u64,
    /// See `used_chunks`.
    pub waste_chunks: u64,
    /// Decoded bytes predicted for this start.
    pub predicted_bytes: u64,
    /// Decoded bytes of the waste.
    pub waste_bytes: u64,
    /// Events the kernel could not hand over.
    pub lost: u64,
}

/// Body of `POST /v1/prefetch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefetchRequest {
    /// The image as engines write it.
    pub reference: String,
    /// Everything, not only what the profile predicts.
    #[serde(default)]
    pub all: bool,
}

/// One line of the answer to `POST /v1/prefetch`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefetchProgress {
    /// Chunks of the plan that are in the cache.
    pub done_chunks: u64,
    /// Chunks of the plan.
    pub chunks: u64,
    /// Decoded bytes of these.
    pub done_bytes: u64,
    /// Decoded bytes of the plan.
    pub bytes: u64,
    /// The last line.
    pub finished: bool,
    /// Why not everything could be brought, on the last line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Body of `POST /v1/background`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Background {
    /// Whether the background lane stands still.
    pub paused: bool,
}

/// Body of every answer with an error status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What was tried, on what, and why it failed.
    pub error: String,
}
