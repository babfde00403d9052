//! Compressed bytes -> chunks whose digests match. Nothing else may be committed.

use std::io::Read as _;

use crate::{
    digest::Digest,
    format::{Chunk, LayerFormat},
};

/// Decoded bytes beyond a chunk that its gzip member may hold before the slow way is taken: the end of the file's
/// last tar block and the headers that follow it (512 bytes each, more for long names and xattrs).
const SLACK: usize = 32 << 10;

/// No stream is decoded further than this to get a chunk: TOCs with larger chunks are refused, and none has so many
/// small files in one stream.
const MAX_DECODED: u64 = 1 << 30;

/// A scratch buffer larger than this is given back after use.
const KEEP: usize = 8 << 20;

/// Why compressed bytes are not the chunk they should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DecodeError {
    /// The codec refuses them.
    #[error("they cannot be decoded: {0}")]
    Codec(String),
    /// They decode to fewer or more bytes than the TOC says.
    #[error("they decode to {found} bytes instead of {expected}")]
    Length {
        /// What the TOC says.
        expected: usize,
        /// What came out.
        found: usize,
    },
    /// They are something else.
    #[error("they hash to {found} instead of {expected}")]
    Digest {
        /// What the TOC says.
        expected: Digest,
        /// What they are.
        found: Digest,
    },
    /// The chunk does not fit into this machine's memory.
    #[error("{0} bytes are too many")]
    TooLarge(u64),
}

/// A thread's codecs, made once: their contexts cost more than a small chunk.
pub(super) struct Decoders {
    gzip: libdeflater::Decompressor,
    zstd: zstd::bulk::Decompressor<'static>,
    scratch: Vec<u8>,
}

impl Decoders {
    /// Fails if zstd cannot get memory for its context.
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            gzip: libdeflater::Decompressor::new(),
            zstd: zstd::bulk::Decompressor::new()?,
            scratch: Vec::new(),
        })
    }

    /// Decodes chunks that share one span and hands each, verified or not, to `done` in the given order.
    pub(super) fn chunks(
        &mut self,
        format: LayerFormat,
        span: &[u8],
        chunks: &[Chunk],
        mut done: impl FnMut(&Chunk, Result<&[u8], DecodeError>),
    ) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let last = chunks
            .iter()
            .max_by_key(|chunk| chunk.skip.saturating_add(chunk.len));
        if let Some(last) = last {
            let decoded = self.decode(format, span, last, &mut scratch);
            for chunk in chunks {
                let verified = match &decoded {
                    Ok(()) => verify(&scratch, chunk),
                    // One that reaches less far may be good: one bad chunk must not take the others with it.
                    Err(_) => self
                        .decode(format, span, chunk, &mut scratch)
                        .and_then(|()| verify(&scratch, chunk)),
                };
                done(chunk, verified);
            }
        }
        if scratch.len() > KEEP {
            scratch = Vec::new();
        }
        self.scratch = scratch;
    }

    /// Fills the beginning of `out` with at least `chunk.skip + chunk.len` decoded bytes.
    fn decode(
        &mut self,
        format: LayerFormat,
        span: &[u8],
        chunk: &Chunk,
        out: &mut Vec<u8>,
    ) -> Result<(), DecodeError> {
        let too_large = DecodeError::TooLarge(chunk.len);
        let end = chunk.skip.checked_add(chunk.len);
        let end = end.filter(|end| *end <= MAX_DECODED);
        let Some(want) = end.and_then(|end| usize::try_from(end).ok()) else {
            return Err(too_large);
        };
        match format {
            LayerFormat::Estargz => self.gzip(span, want, out),
            LayerFormat::ZstdChunked => {
                grow(out, want);
                let found = self
                    .zstd
                    .decompress_to_buffer(span, &mut out[..want])
                    .map_err(|error| DecodeError::Codec(error.to_string()))?;
                exactly(want, found)
            }
        }
    }

    fn gzip(&mut self, span: &[u8], want: usize, out: &mut Vec<u8>) -> Result<(), DecodeError> {
        use libdeflater::DecompressionError::{BadData, InsufficientSpace};
        grow(out, want + SLACK);
        match self.gzip.gzip_decompress(span, &mut out[..want + SLACK]) {
            Ok(found) if found >= want => Ok(()),
            // More members follow, or the member holds more than the slack: both are rare.
            Ok(_) | Err(InsufficientSpace) => {
                let mut filled = 0;
                let mut stream = flate2::read::MultiGzDecoder::new(span);
                while filled < want {
                    match stream.read(&mut out[filled..want]) {
                        Ok(0) => break,
                        Ok(n) => filled += n,
                        Err(error) => return Err(DecodeError::Codec(error.to_string())),
                    }
                }
                exactly(want, filled)
            }
            Err(BadData) => Err(DecodeError::Codec("damaged gzip data".to_owned())),
        }
    }
}

fn exactly(expected: usize, found: usize) -> Result<(), DecodeError> {
    if found == expected {
        Ok(())
    } else {
        Err(DecodeError::Length { expected, found })
    }
}

fn grow(buffer: &mut Vec<u8>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
}

fn verify<'a>(decoded: &'a [u8], chunk: &Chunk) -> Result<&'a [u8], DecodeError> {
    let from = usize::try_from(chunk.skip).ok();
    let len = usize::try_from(chunk.len).ok();
    let bytes = from
        .zip(len)
        .and_then(|(from, len)| decoded.get(from..from.checked_add(len)?))
        .ok_or(DecodeError::TooLarge(chunk.len))?;
    let found = Digest::of(bytes);
    if found == chunk.digest {
        Ok(bytes)
    } else {
        Err(DecodeError::Digest {
            expected: chunk.digest,
            found,
        })
    }
}
