//! What the next pull of an image can ask for before its manifest is there: the metadata that this pull asked for, and
//! the ranges of its layers that its profile predicts.
//!
//! A pull costs the store three round trips, one after the other, before the first predicted byte can be asked for:
//! manifest, TOCs, content. What an image with this name asked for last time is nearly always what it will ask for, so
//! all of it is asked for at once with the first lookup ([`crate::registry::Client::ahead`]). Invariants: nothing that
//! comes is believed because it is written here; it is used only for an image that has the digest that is looked up; a
//! document that is wrong costs its bytes and nothing else. Format: docs/formats.md, "Early requests".

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    io::Write as _,
    ops::Range,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    fetch::PlanStep,
    format::index::IndexError,
    image::{BlobRange, Metadata},
    metrics::Lane,
    registry::{Early, in_pieces, pieces},
};

/// Version of the document.
const SCHEMA: u32 = 1;
/// Bytes of a document at most: twice what as many ranges as there may be take.
const MAX_BYTES: u64 = 4 << 20;
/// Ranges in a document at most.
const MAX_RANGES: usize = 8192;
/// Bytes of metadata asked for early at most: TOCs of large images have some megabytes.
const MAX_METADATA: u64 = 64 << 20;
/// A TOC is asked for in parts of about so many bytes: a new connection is slow at first, and
/// one of many gets its share of the link only. Shorter than where nothing is known, since connections are made for what
/// follows.
const PART: u64 = 512 << 10;
/// A gap of at most this many bytes between two chunks is asked for with them, as in `fetch.max_gap_bytes`.
const MAX_GAP: u64 = 64 << 10;
/// Bytes of one request at most.
const MAX_REQUEST: u64 = 2 << 20;
/// Chunks needed about the same time: those that lie together in the blob share a request.
const TOGETHER: usize = 1024;
/// Content asked for along with the metadata, which must not wait for it: requests of at most so many bytes, and of so
/// many together, 8 ms of a 1 Gbit/s link.
const SMALL: u64 = 128 << 10;
const SMALL_ALL: u64 = 1 << 20;

/// What the next pull of an image asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlyRequests {
    schema: u32,
    /// The image as the engine was asked for it.
    pub image: String,
    /// First of all.
    pub metadata: Metadata,
    /// Then this, first needed first.
    pub content: Vec<BlobRange>,
}

/// Why a document cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum EarlyError {
    /// The file.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What is in it.
    #[error(
        "early requests {path} cannot be used: {why}; remove the file to let the store make it anew"
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

impl EarlyRequests {
    /// Of an image whose start needs these chunks, first needed first, `budget` bytes of them at most.
    ///
    /// # Errors
    /// If an index is damaged.
    pub fn new(
        image: &str,
        metadata: Metadata,
        steps: &[PlanStep],
        budget: u64,
    ) -> Result<Self, IndexError> {
        let (mut content, mut left) = (Vec::new(), budget);
        let places = MAX_RANGES.saturating_sub(metadata.ranges.len());
        for batch in steps.chunks(TOGETHER) {
            for range in ranges(batch)? {
                let bytes = range.end - range.start;
                if bytes > left || content.len() >= places {
                    return Ok(Self::of(image, metadata, content));
                }
                left -= bytes;
                content.push(range);
            }
        }
        Ok(Self::of(image, metadata, content))
    }

    fn of(image: &str, metadata: Metadata, content: Vec<BlobRange>) -> Self {
        Self {
            schema: SCHEMA,
            image: image.to_owned(),
            metadata,
            content,
        }
    }

    /// The requests in order: what comes with the first, and what comes when the metadata is there.
    #[must_use]
    pub fn requests(&self, at_once: usize) -> Vec<Early> {
        let early = |range: &BlobRange, lane, later| Early {
            blob: range.blob,
            size: range.size,
            range: range.start..range.end,
            lane,
            later,
        };
        let metadata = self.metadata.ranges.iter().flat_map(split);
        let mut requests: Vec<Early> = metadata
            .map(|range| early(&range, Lane::Metadata, false))
            .collect();
        let (mut places, mut left) = (at_once.saturating_sub(requests.len()), SMALL_ALL);
        for range in &self.content {
            let bytes = range.end - range.start;
            let now = bytes <= SMALL.min(left) && places > 0;
            if now {
                left -= bytes;
                places -= 1;
            }
            requests.push(early(range, Lane::Predicted, !now));
        }
        requests
    }

    /// Leaves out the blobs that the store has layers of: their TOCs are not asked for, and their plan needs no head
    /// start.
    pub fn leave_out(&mut self, known: &HashSet<Digest>) {
        (self.metadata.ranges).retain(|range| !known.contains(&range.blob));
        self.content.retain(|range| !known.contains(&range.blob));
    }

    /// What is kept of an image in a directory; `None` if nothing.
    ///
    /// # Errors
    /// If there is something that cannot be used.
    pub fn load(dir: &Path, image: &str) -> Result<Option<Self>, EarlyError> {
        let path = path(dir, image);
        let failed = |source| EarlyError::Io {
            what: "read",
            path: path.clone(),
            source,
        };
        let malformed = |why: String| EarlyError::Malformed {
            path: path.clone(),
            why,
        };
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() > MAX_BYTES => {
                return Err(malformed(format!(
                    "{} bytes, more than {MAX_BYTES}",
                    metadata.len()
                )));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        }
        let text = fs::read(&path).map_err(failed)?;
        let this: Self =
            serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
        this.check(image).map_err(malformed)?;
        Ok(Some(this))
    }

    /// Whether anything is kept of an image, usable or not.
    #[must_use]
    pub fn is_kept(dir: &Path, image: &str) -> bool {
        path(dir, image).exists()
    }

    /// Removes what is kept of an image, if anything is.
    ///
    /// # Errors
    /// If it is there and cannot be removed.
    pub fn forget(dir: &Path, image: &str) -> Result<(), EarlyError> {
        let path = path(dir, image);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(EarlyError::Io {
                what: "remove",
                path,
                source,
            }),
            _ => Ok(()),
        }
    }

    /// Numbers from a file decide how much is asked for.
    fn check(&self, image: &str) -> Result<(), String> {
        if self.schema != SCHEMA {
            return Err(format!(
                "schema {}, this version knows {SCHEMA}",
                self.schema
            ));
        }
        if self.image != image {
            return Err(format!("it is of {}", self.image));
        }
        let ranges = || self.metadata.ranges.iter().chain(&self.content);
        if ranges().count() > MAX_RANGES {
            return Err(format!("more than {MAX_RANGES} ranges"));
        }
        for range in ranges() {
            if range.start >= range.end || range.end > range.size {
                return Err(format!(
                    "{}..{} is no part of a blob of {} bytes",
                    range.start, range.end, range.size
                ));
            }
        }
        let bytes = |ranges: &[BlobRange]| {
            let bytes = ranges.iter().map(|range| range.end - range.start);
            bytes.fold(0, u64::saturating_add)
        };
        if bytes(&self.metadata.ranges) > MAX_METADATA {
            return Err(format!("more than {MAX_METADATA} bytes of metadata"));
        }
        Ok(())
    }

    /// Keeps it, in place of what was kept of the image.
    ///
    /// # Errors
    /// If it cannot be written, or could not be read again.
    pub fn store(&self, dir: &Path) -> Result<(), EarlyError> {
        let path = path(dir, &self.image);
        if let Err(why) = self.check(&self.image) {
            return Err(EarlyError::Malformed { path, why });
        }
        let write = || -> io::Result<()> {
            fs::create_dir_all(dir)?;
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            serde_json::to_writer(&mut file, self)?;
            file.write_all(b"\n")?;
            // Not synced: what is lost in a crash costs some round trips.
            file.persist(&path).map_err(|error| error.error)?;
            Ok(())
        };
        write().map_err(|source| EarlyError::Io {
            what: "write",
            path: path.clone(),
            source,
        })
    }
}

fn path(dir: &Path, image: &str) -> PathBuf {
    dir.join(format!("{}.json", Digest::of(image.as_bytes()).hex()))
}

/// A range in equal parts.
fn split(range: &BlobRange) -> impl Iterator<Item = BlobRange> + use<> {
    let range = range.clone();
    let bytes = range.end.saturating_sub(range.start);
    in_pieces(&(range.start..range.end), pieces(bytes, PART)).map(move |piece| BlobRange {
        start: piece.start,
        end: piece.end,
        ..range
    })
}

/// The ranges of the blobs that hold these chunks, first needed first.
fn ranges(steps: &[PlanStep]) -> Result<Vec<BlobRange>, IndexError> {
    /// A chunk's bytes, and its place in the order.
    type Placed = (Range<u64>, usize);
    // By blob: its size, and the chunks.
    let mut blobs: HashMap<Digest, (u64, Vec<Placed>)> = HashMap::new();
    for (order, step) in steps.iter().enumerate() {
        let facts = step.layer.index.facts();
        let Some(chunk) = step.layer.index.chunk(step.chunk)? else {
            continue;
        };
        if !chunk.zeros && chunk.span.start < chunk.span.end && chunk.span.end <= facts.size {
            let blob = blobs.entry(facts.blob).or_insert((facts.size, Vec::new()));
            blob.1.push((chunk.span, order));
        }
    }
    let mut found: Vec<(usize, BlobRange)> = Vec::new();
    for (blob, (size, mut spans)) in blobs {
        spans.sort_by_key(|(span, _)| (span.start, span.end));
        let first = found.len();
        for (span, order) in spans {
            match found[first..].last_mut() {
                Some((first, range))
                    if span.start <= range.end.saturating_add(MAX_GAP)
                        && span.end.max(range.end) - range.start <= MAX_REQUEST =>
                {
                    *first = order.min(*first);
                    range.end = range.end.max(span.end);
                }
                _ => found.push((
                    order,
                    BlobRange {
                        blob,
                        size,
                        start: span.start,
                        end: span.end,
                    },
                )),
            }
        }
    }
    found.sort_by_key(|(order, _)| *order);
    Ok(found.into_iter().map(|(_, range)| range).collect())
}

#[cfg(test)]
mod tests;
