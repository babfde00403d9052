//! eStargz and zstd:chunked -> one [`LayerIndex`] file: compact, verified, mapped from disk.
//!
//! Invariant: an index file exists only if its TOC hashed to the digest that the engine or the manifest named (or was
//! explicitly accepted as unbound), and everything in it was checked; what is read from the mapping is bounds-checked
//! again at use, so that no damage on disk can crash the store.

pub mod annotations;
pub mod footer;
pub mod index;
pub mod limits;
pub mod toc;

pub use annotations::{Annotated, annotated};
pub use index::{Child, Chunk, Entry, Kind, LayerIndex, NodeId};

/// Which of the two lazy formats a layer is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerFormat {
    /// gzip members, one a chunk; TOC digest over the uncompressed JSON.
    Estargz,
    /// zstd frames, one a chunk; TOC digest over the compressed JSON.
    ZstdChunked,
}
