//! The presence map: two bits a chunk in memory, and the `present` file (docs/formats.md, "Cache").
//!
//! Memory is the truth while the store runs; the file follows it block by block. A block that does not match its
//! checksum holds nothing.

use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::digest::Digest;

/// What the cache knows of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkState {
    /// Not here.
    Missing,
    /// Written before an unclean stop: must be hashed before it is served ([`super::BlobCache::prove`]).
    Unproven,
    /// Here and verified.
    Present,
}

impl ChunkState {
    const fn bits(self) -> u64 {
        match self {
            Self::Missing => 0b00,
            Self::Unproven => 0b01,
            Self::Present => 0b11,
        }
    }
    const fn of(bits: u64) -> Self {
        match bits & 0b11 {
            0b11 => Self::Present,
            0b01 => Self::Unproven,
            // 0b10 is never written.
            _ => Self::Missing,
        }
    }
}

const CHUNKS_PER_WORD: u32 = 32;
const WORDS_PER_BLOCK: usize = 7;
pub(super) const HEADER_LEN: usize = 128;
pub(super) const BLOCK_LEN: usize = 64;
const MAGIC: &[u8; 8] = b"FLPRESNT";
const VERSION: u32 = 1;
/// Every low bit of the pairs in a word: all chunks unproven.
const LOW: u64 = 0x5555_5555_5555_5555;

/// The map of one blob.
#[derive(Debug)]
pub(super) struct Presence {
    chunks: u32,
    words: Box<[AtomicU64]>,
}

/// What a `present` file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) blob: Digest,
    pub(super) toc: Digest,
    pub(super) chunks: u32,
    pub(super) epoch: u128,
}

/// What was read from a `present` file.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) presence: Presence,
    /// Blocks that did not match their checksum.
    pub(super) damaged_blocks: u32,
    /// The file was written in another epoch: what it said counts as unproven.
    pub(super) other_epoch: bool,
}

impl Presence {
    /// Nothing is there.
    pub(super) fn empty(chunks: u32) -> Self {
        let words = chunks.div_ceil(CHUNKS_PER_WORD);
        Self {
            chunks,
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// State of a chunk; past the end nothing is there.
    pub(super) fn get(&self, chunk: u32) -> ChunkState {
        if chunk >= self.chunks {
            return ChunkState::Missing;
        }
        let (word, shift) = place(chunk);
        ChunkState::of(self.words[word].load(Ordering::Acquire) >> shift)
    }

    /// Sets a chunk if it is in state `from` (in any, for `None`); false if it was not.
    pub(super) fn set(&self, chunk: u32, from: Option<ChunkState>, to: ChunkState) -> bool {
        if chunk >= self.chunks {
            return false;
        }
        let (word, shift) = place(chunk);
        self.words[word]
            .try_update(Ordering::AcqRel, Ordering::Acquire, |old| {
                (from.is_none_or(|from| ChunkState::of(old >> shift) == from))
                    .then_some(old & !(0b11 << shift) | to.bits() << shift)
            })
            .is_ok()
    }

    /// Whether all of these are present; an empty range is, one past the end is not.
    pub(super) fn all_present(&self, chunks: Range<u32>) -> bool {
        if chunks.is_empty() {
            return true;
        }
        if chunks.end > self.chunks {
            return false;
        }
        let (first, _) = place(chunks.start);
        let (last, _) = place(chunks.end - 1);
        (first..=last).all(|word| {
            let mut wanted = u64::MAX;
            if word == first {
                wanted &= u64::MAX << (2 * (chunks.start % CHUNKS_PER_WORD));
            }
            if word == last {
                let used = 2 * ((chunks.end - 1) % CHUNKS_PER_WORD + 1);
                wanted &= u64::MAX >> (64 - used);
            }
            self.words[word].load(Ordering::Acquire) & wanted == wanted
        })
    }

    /// Number of chunks present.
    pub(super) fn present(&self) -> u32 {
        // The high bit of a pair is set for present chunks only.
        self.words
            .iter()
            .map(|word| (word.load(Ordering::Acquire) & !LOW).count_ones())
            .sum()
    }

    /// The block of the file that holds a chunk.
    pub(super) fn block_of(chunk: u32) -> usize {
        place(chunk).0 / WORDS_PER_BLOCK
    }

    /// Where a block lies in the file.
    pub(super) fn block_offset(block: usize) -> u64 {
        (HEADER_LEN + block * BLOCK_LEN) as u64
    }

    /// A block as the file holds it, from memory as it is now.
    pub(super) fn block(&self, block: usize) -> [u8; BLOCK_LEN] {
        let mut bytes = [0; BLOCK_LEN];
        let words = self.words.iter().skip(block * WORDS_PER_BLOCK);
        for (slot, word) in bytes[..WORDS_PER_BLOCK * 8].chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.load(Ordering::Acquire).to_le_bytes());
        }
        bytes[56..60].copy_from_slice(&u32::try_from(block).unwrap_or(u32::MAX).to_le_bytes());
        let sum = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// The whole file.
    pub(super) fn file(&self, header: &Header) -> Vec<u8> {
        let mut bytes = header.bytes().to_vec();
        for block in 0..self.words.len().div_ceil(WORDS_PER_BLOCK) {
            bytes.extend_from_slice(&self.block(block));
        }
        bytes
    }

    /// Reads a whole file. `Err` says why nothing of it can be used.
    pub(super) fn load(bytes: &[u8], expected: &Header) -> Result<Loaded, String> {
        let found = Header::parse(bytes)?;
        if (found.blob, found.toc, found.chunks) != (expected.blob, expected.toc, expected.chunks) {
            return Err(format!(
                "it is of blob {} with TOC {} and {} chunks",
                found.blob, found.toc, found.chunks
            ));
        }
        let presence = Self::empty(expected.chunks);
        let blocks = presence.words.len().div_ceil(WORDS_PER_BLOCK);
        let len = HEADER_LEN + blocks * BLOCK_LEN;
        if bytes.len() != len {
            return Err(format!("it has {} bytes instead of {len}", bytes.len()));
        }
        let mut damaged_blocks = 0;
        for (block, found) in bytes[HEADER_LEN..].chunks_exact(BLOCK_LEN).enumerate() {
            if !block_is_sound(block, found) {
                damaged_blocks += 1;
                continue;
            }
            let words = presence.words.iter().skip(block * WORDS_PER_BLOCK);
            for (word, bytes) in words.zip(found[..WORDS_PER_BLOCK * 8].chunks_exact(8)) {
                word.store(u64::from_le_bytes(array(bytes)), Ordering::Release);
            }
        }
        presence.clear_past_the_end();
        let other_epoch = found.epoch != expected.epoch;
        // A damaged block means that something else than us wrote to the file: believe none of it unseen.
        if other_epoch || damaged_blocks > 0 {
            for word in &presence.words {
                word.fetch_and(LOW, Ordering::AcqRel);
            }
        }
        Ok(Loaded {
            presence,
            damaged_blocks,
            other_epoch,
        })
    }

    fn clear_past_the_end(&self) {
        let used = self.chunks % CHUNKS_PER_WORD;
        if used > 0
            && let Some(word) = self.words.last()
        {
            word.fetch_and(u64::MAX >> (64 - 2 * used), Ordering::AcqRel);
        }
    }
}

impl Header {
    /// As the file holds it.
    pub(super) fn bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.chunks.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[32..64].copy_from_slice(self.blob.as_bytes());
        bytes[64..96].copy_from_slice(self.toc.as_bytes());
        let sum = crc32c::crc32c(&bytes[..124]);
        bytes[124..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let Some(header) = bytes.get(..HEADER_LEN) else {
            return Err(format!("it has only {} bytes", bytes.len()));
        };
        if header[..8] != *MAGIC {
            return Err("it is no presence map".to_owned());
        }
        let version = u32::from_le_bytes(array(&header[8..12]));
        if version != VERSION {
            return Err(format!("it has version {version}, this is {VERSION}"));
        }
        if crc32c::crc32c(&header[..124]) != u32::from_le_bytes(array(&header[124..])) {
            return Err("its header does not match its checksum".to_owned());
        }
        Ok(Self {
            chunks: u32::from_le_bytes(array(&header[12..16])),
            epoch: u128::from_le_bytes(array(&header[16..32])),
            blob: Digest::from_bytes(array(&header[32..64])),
            toc: Digest::from_bytes(array(&header[64..96])),
        })
    }
}

/// A block that was never written is a hole: all zeros, nothing present.
fn block_is_sound(block: usize, bytes: &[u8]) -> bool {
    let written = u32::try_from(block).is_ok_and(|n| bytes[56..60] == n.to_le_bytes())
        && crc32c::crc32c(&bytes[..60]).to_le_bytes() == bytes[60..64];
    written || bytes.iter().all(|byte| *byte == 0)
}

fn place(chunk: u32) -> (usize, u32) {
    (
        (chunk / CHUNKS_PER_WORD) as usize,
        2 * (chunk % CHUNKS_PER_WORD),
    )
}

/// The callers cut slices of exactly `N` bytes.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}
