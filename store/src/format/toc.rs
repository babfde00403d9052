//! TOC -> index file: the JSON is parsed as a stream and never held as a tree (docs/formats.md, "TOC rules").
//!
//! Invariant: an index is written only from a TOC whose digest is the expected one, and in which every entry was
//! checked.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{footer::TocPlace, index::BlobFacts, limits::Limits};
use crate::digest::Digest;

mod build;
mod chunks;
mod entry;
mod json;
mod layout;
mod name;
mod piped;
pub mod refusal;
mod section;
mod tree;

use refusal::Refusal;

/// Why a TOC was refused. The message names the entry; the caller adds the layer.
#[derive(Debug, thiserror::Error)]
pub enum TocError {
    /// It does not hash to what the engine or the manifest named.
    #[error("the TOC hashes to {found}, expected {expected}")]
    Digest {
        /// What was expected.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// The section is not what its place says, or the place is impossible.
    #[error("the TOC cannot be where it is said to be: {0}")]
    Place(String),
    /// The section cannot be decompressed.
    #[error("the TOC cannot be decompressed")]
    Unpack(#[source] io::Error),
    /// What is in the section is no TOC.
    #[error("the TOC's archive cannot be used: {0}")]
    Archive(String),
    /// The TOC is larger than the limit.
    #[error("the TOC has {len} bytes of JSON, the limit is {limit} (limits.max_toc_bytes)")]
    Size {
        /// Its uncompressed length.
        len: u64,
        /// The limit.
        limit: u64,
    },
    /// The JSON is none, or not that of a TOC.
    #[error("the TOC's JSON is malformed at byte {at}: {why}")]
    Json {
        /// Where, from the start of the JSON.
        at: u64,
        /// How.
        why: String,
    },
    /// A version of the format that this reader does not know.
    #[error("the TOC has version {}, 1 is expected", .0.map_or("none".to_owned(), |found| found.to_string()))]
    Version(Option<u64>),
    /// An entry is refused.
    #[error("entry {number} {name:?} is refused: {why}")]
    Entry {
        /// Which entry, counted from 1.
        number: u64,
        /// Its name.
        name: String,
        /// Why.
        why: Refusal,
    },
    /// The layer is refused as a whole.
    #[error("the TOC is refused: {0}")]
    Layer(Refusal),
    /// More entries than the limit.
    #[error("the TOC has more than {0} entries (limits.max_entries)")]
    Entries(u32),
    /// The index cannot be written.
    #[error("cannot write index {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl TocError {
    /// An entry that is refused; a hostile name is shortened.
    fn entry(number: u64, name: &str, why: Refusal) -> Self {
        Self::Entry {
            number,
            name: name.chars().take(300).collect(),
            why,
        }
    }
}

/// Verifies the compressed TOC `section` (the bytes of `place`), builds the index of the blob and writes it to `dest`
/// (atomically; durable when this returns). `expected`: the TOC digest from the engine's key or the annotation; `None`
/// only for unbound TOCs (`probe_unannotated`).
///
/// Takes a third of a second for 100,000 entries: not for an async thread.
///
/// # Errors
/// When the TOC does not have the digest, breaks a rule of docs/formats.md or a limit, or the file cannot be written.
pub fn build_index(
    section: &[u8],
    place: &TocPlace,
    blob: Digest,
    blob_size: u64,
    expected: Option<Digest>,
    limits: &Limits,
    dest: &Path,
) -> Result<BlobFacts, TocError> {
    let (layout, toc) = read(section, place, blob_size, expected, limits)?;
    let facts = BlobFacts {
        blob,
        size: blob_size,
        format: place.format,
        toc,
        bound: expected.is_some(),
    };
    layout
        .write(&facts, dest)
        .map_err(|source| TocError::Write {
            path: dest.to_owned(),
            source,
        })?;
    Ok(facts)
}

/// Checks a TOC as [`build_index`] does and writes nothing. Answers its digest.
///
/// # Errors
/// As [`build_index`].
pub fn check(
    section: &[u8],
    place: &TocPlace,
    blob_size: u64,
    expected: Option<Digest>,
    limits: &Limits,
) -> Result<Digest, TocError> {
    read(section, place, blob_size, expected, limits).map(|(_, toc)| toc)
}

fn read(
    section: &[u8],
    place: &TocPlace,
    blob_size: u64,
    expected: Option<Digest>,
    limits: &Limits,
) -> Result<(layout::Layout, Digest), TocError> {
    place.within(blob_size).map_err(TocError::Place)?;
    if section.len() as u64 != place.len {
        return Err(TocError::Place(format!(
            "{} bytes were brought, it has {}",
            section.len(),
            place.len
        )));
    }
    let mut builder = build::Builder::new(place, limits);
    let toc = section::read(section, place, expected, limits, |entry| {
        builder.entry(&entry)
    })?;
    Ok((builder.finish()?, toc))
}

#[cfg(test)]
mod tests;
