//! What a pull asks a registry for before the layers are known: kept, so that the next pull of the image can ask for it
//! at once (crate::prefetch::early).

use serde::{Deserialize, Serialize};

use super::Images;
use crate::digest::Digest;

/// What a pull asks a registry for before the layers are known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Digests by which an engine may ask for the image's layers.
    pub keys: Vec<Digest>,
    /// The image's config and the TOCs of its layers.
    pub ranges: Vec<BlobRange>,
}

/// Bytes of a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRange {
    /// The blob.
    pub blob: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// The first byte.
    pub start: u64,
    /// The byte behind the last.
    pub end: u64,
}

impl Images {
    /// What a pull of an image asked its registry for before its layers were known, to be asked for at once the next
    /// time. Nothing where a record of an earlier version says too little.
    #[must_use]
    pub fn metadata(&self, reference: &str) -> Option<Metadata> {
        let image = self.image(reference)?;
        let (config, size) = image.record.config?;
        let mut metadata = Metadata {
            keys: Vec::new(),
            ranges: vec![BlobRange {
                blob: config,
                size,
                start: 0,
                end: size,
            }],
        };
        for blob in &image.record.current {
            let recorded = image
                .record
                .layers
                .iter()
                .find(|layer| layer.blob == *blob)?;
            let layer = self.tables.by_blob.get(blob)?;
            let (start, end) = recorded.toc_bytes?;
            metadata.keys.extend([recorded.blob, recorded.toc]);
            metadata.ranges.push(BlobRange {
                blob: *blob,
                size: layer.index.facts().size,
                start,
                end,
            });
        }
        Some(metadata)
    }
}
