//! The chunks of regular files: collected entry by entry, checked when a file is complete, placed when all are known.
//!
//! Invariant: after [`Chunks::place`] the chunks of every file cover it without gaps, and every chunk that is stored
//! lies before the TOC.

use super::{entry::RawEntry, name, refusal::Refusal};
use crate::{
    digest::Digest,
    format::{LayerFormat, limits::Limits},
};

/// A chunk while the TOC is read.
#[derive(Debug, Clone)]
pub(super) struct RawChunk {
    pub file_offset: u64,
    pub len: u64,
    pub start: u64,
    /// 0: up to the next start of the blob.
    pub end: u64,
    pub skip: u64,
    pub digest: [u8; 32],
    pub has_digest: bool,
    pub zeros: bool,
}

/// The regular file whose chunks are coming.
#[derive(Debug)]
struct Current {
    /// `None` for a file that is not shown.
    node: Option<u32>,
    number: u64,
    size: u64,
    end: u64,
    digest: Option<Digest>,
    first: usize,
}

/// A file that is complete.
#[derive(Debug)]
pub(super) struct Complete {
    pub node: u32,
    pub chunks: (u32, u32),
    pub content: Option<Digest>,
}

/// All chunks so far.
pub(super) struct Chunks {
    format: LayerFormat,
    limits: Limits,
    /// Where the TOC starts.
    toc: u64,
    pub all: Vec<RawChunk>,
    /// Every place of the blob at which an entry's bytes start, also of entries that are not shown.
    starts: Vec<u64>,
    current: Option<Current>,
    /// Name of the current file, and its number among the entries.
    pub current_name: String,
}

impl Chunks {
    /// With room for `room` chunks at first.
    pub(super) fn new(format: LayerFormat, toc: u64, limits: &Limits, room: usize) -> Self {
        Self {
            format,
            limits: limits.clone(),
            toc,
            all: Vec::with_capacity(room),
            starts: Vec::with_capacity(room),
            current: None,
            current_name: String::new(),
        }
    }

    /// Number of the entry of the file whose chunks are coming.
    pub(super) fn current_number(&self) -> u64 {
        self.current.as_ref().map_or(0, |current| current.number)
    }

    /// A regular file starts. `node`: `None` if it is not shown; its content is of no matter then.
    pub(super) fn file(
        &mut self,
        entry: &RawEntry<'_>,
        number: u64,
        node: Option<u32>,
    ) -> Result<(), Refusal> {
        let size = small("size", entry.size)?;
        self.current_name.clear();
        self.current_name.push_str(&entry.name);
        self.current = Some(Current {
            node,
            number,
            size,
            end: match self.format {
                LayerFormat::Estargz => 0,
                LayerFormat::ZstdChunked => small("endOffset", entry.end_offset)?,
            },
            digest: digest("digest", &entry.digest)?,
            first: self.all.len(),
        });
        if size == 0 {
            return Ok(());
        }
        self.push(entry)
    }

    /// A chunk entry.
    pub(super) fn chunk(&mut self, entry: &RawEntry<'_>) -> Result<(), Refusal> {
        if self.current.is_none() {
            return Err(Refusal::ChunkAlone);
        }
        if !entry.name.is_empty() && !name::same(&entry.name, &self.current_name) {
            return Err(Refusal::ChunkElsewhere(self.current_name.clone()));
        }
        self.push(entry)
    }

    fn push(&mut self, entry: &RawEntry<'_>) -> Result<(), Refusal> {
        let start = small("offset", entry.offset)?;
        if start != 0 {
            self.starts.push(start);
        }
        let found = digest("chunkDigest", &entry.chunk_digest)?;
        let zeros = match &*entry.chunk_type {
            "" | "data" => false,
            "zeros" => true,
            other => return Err(Refusal::Type(format!("chunk of {other}"))),
        };
        self.all.push(RawChunk {
            file_offset: small("chunkOffset", entry.chunk_offset)?,
            len: small("chunkSize", entry.chunk_size)?,
            start,
            end: 0,
            skip: small("innerOffset", entry.inner_offset)?,
            digest: found.map_or([0; 32], |digest| *digest.as_bytes()),
            has_digest: found.is_some(),
            zeros,
        });
        Ok(())
    }

    /// No more chunks of the current file come: checks that they are the file.
    pub(super) fn complete(&mut self) -> Result<Option<Complete>, Refusal> {
        let Some(current) = self.current.take() else {
            return Ok(None);
        };
        let Some(node) = current.node else {
            self.all.truncate(current.first);
            return Ok(None);
        };
        let chunks = &mut self.all[current.first..];
        if let ([only], Some(digest)) = (&mut *chunks, current.digest)
            && !only.has_digest
        {
            only.digest = *digest.as_bytes();
            only.has_digest = true;
        }
        let mut expected = 0_u64;
        for n in 0..chunks.len() {
            let next_start = chunks.get(n + 1).map_or(current.end, |next| next.start);
            let chunk = &mut chunks[n];
            if chunk.file_offset != expected {
                return Err(Refusal::ChunkOrder {
                    expected,
                    found: chunk.file_offset,
                });
            }
            if chunk.len == 0 {
                chunk.len = current.size.saturating_sub(expected);
            }
            expected = expected
                .checked_add(chunk.len)
                .filter(|&end| chunk.len > 0 && end <= current.size)
                .ok_or(Refusal::ChunkCover {
                    size: current.size,
                    found: expected.saturating_add(chunk.len),
                })?;
            check(chunk, &self.limits)?;
            if self.format == LayerFormat::ZstdChunked && next_start != chunk.start {
                chunk.end = next_start;
            }
        }
        if expected != current.size {
            return Err(Refusal::ChunkCover {
                size: current.size,
                found: expected,
            });
        }
        Ok(Some(Complete {
            node,
            // As many chunks as entries at most, which have a limit of 32 bits.
            chunks: (current.first as u32, chunks.len() as u32),
            content: current.digest,
        }))
    }

    /// Sorts the places at which bytes start; nothing is added afterwards.
    pub(super) fn sort(&mut self) {
        self.starts.sort_unstable();
        self.starts.dedup();
    }

    /// Where the compressed bytes of a chunk lie: up to where its file's next chunk or its end is said to be, else up to
    /// the next place at which bytes start, else up to the TOC.
    pub(super) fn place(&self, chunk: &RawChunk) -> Result<std::ops::Range<u64>, Refusal> {
        if chunk.zeros {
            return Ok(0..0);
        }
        let end = if chunk.end != 0 {
            chunk.end
        } else {
            let next = self.starts.partition_point(|&start| start <= chunk.start);
            self.starts
                .get(next)
                .map_or(self.toc, |&start| start.min(self.toc))
        };
        if chunk.start >= end || end > self.toc {
            return Err(Refusal::SpanOutside {
                start: chunk.start,
                end,
                limit: self.toc,
            });
        }
        // Compressed bytes are never much longer than what they hold, but tar headers of empty files may follow.
        let limit = self.limits.max_chunk_bytes.saturating_mul(2);
        if end - chunk.start > limit {
            return Err(Refusal::ChunkLimit {
                what: "compressed chunk",
                len: end - chunk.start,
                limit,
            });
        }
        Ok(chunk.start..end)
    }
}

fn check(chunk: &RawChunk, limits: &Limits) -> Result<(), Refusal> {
    if chunk.zeros {
        return Ok(());
    }
    if !chunk.has_digest {
        return Err(Refusal::ChunkDigest(chunk.file_offset));
    }
    if chunk.start == 0 && chunk.skip == 0 {
        return Err(Refusal::ChunkPlace(chunk.file_offset));
    }
    let limit = limits.max_chunk_bytes;
    for (what, len) in [("chunk", chunk.len), ("innerOffset", chunk.skip)] {
        if len > limit {
            return Err(Refusal::ChunkLimit { what, len, limit });
        }
    }
    Ok(())
}

/// A number that may be missing (0) and must fit what the kernel counts file offsets in.
pub(super) fn small(field: &'static str, value: Option<u64>) -> Result<u64, Refusal> {
    let value = value.unwrap_or(0);
    if value > i64::MAX.unsigned_abs() {
        return Err(Refusal::Number { field, value });
    }
    Ok(value)
}

fn digest(field: &'static str, text: &str) -> Result<Option<Digest>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .map_err(|why| Refusal::Digest { field, why })
}
