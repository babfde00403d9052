//! What the cache must know of a layer: how many chunks, where each lies in the data file, and what it hashes to.
//!
//! A seam: the index in the program, a few lines in tests.

use std::fmt;

use crate::{digest::Digest, format::LayerIndex};

/// A chunk as the data file holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where its decoded bytes lie in the data file.
    pub offset: u64,
    /// How many there are.
    pub len: u64,
    /// What they hash to; meaningless for zeros.
    pub digest: Digest,
    /// All of them are zero: a hole.
    pub zeros: bool,
}

/// Where a blob's chunks lie.
pub trait Geometry: Send + Sync + fmt::Debug {
    /// Digest of the blob.
    fn blob(&self) -> Digest;
    /// Digest of the TOC that numbers the chunks.
    fn toc(&self) -> Digest;
    /// Number of chunks.
    fn chunk_count(&self) -> u32;
    /// Size of the data file in bytes.
    fn data_len(&self) -> u64;
    /// One chunk. Errors (past the end, damaged index) as text for [`super::CacheError::Chunk`].
    fn extent(&self, chunk: u32) -> Result<Extent, String>;
}

impl Geometry for LayerIndex {
    fn blob(&self) -> Digest {
        self.facts().blob
    }
    fn toc(&self) -> Digest {
        self.facts().toc
    }
    fn chunk_count(&self) -> u32 {
        Self::chunk_count(self)
    }
    fn data_len(&self) -> u64 {
        Self::data_len(self)
    }
    fn extent(&self, chunk: u32) -> Result<Extent, String> {
        let found = self.chunk(chunk).map_err(|error| error.to_string())?;
        let found = found
            .ok_or_else(|| format!("the layer has only {} chunks", Self::chunk_count(self)))?;
        Ok(Extent {
            offset: found.data_offset,
            len: found.len,
            digest: found.digest,
            zeros: found.zeros,
        })
    }
}
