//! Compressed bytes -> chunks whose digests match. Nothing else may be committed.

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
    /// They decode to fewer bytes than the TOC says.
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
    /// For who stores what comes out of here: empty, with room for the next.
    pub(super) run: Vec<u8>,
}

impl Decoders {
    /// Fails if zstd cannot get memory for its context.
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            gzip: libdeflater::Decompressor::new(),
            zstd: zstd::bulk::Decompressor::new()?,
            scratch: Vec::new(),
            run: Vec::new(),
        })
    }

    /// Decodes chunks that share one span, once, and hands each, verified or not, to `done` in the given order.
    pub(super) fn chunks(
        &mut self,
        format: LayerFormat,
        span: &[u8],
        chunks: &[Chunk],
        mut done: impl FnMut(&Chunk, Result<&[u8], DecodeError>),
    ) {
        let mut scratch = std::mem::take(&mut self.scratch);
        // A chunk that reaches further than any stream may is refused alone: the others do not need so much.
        let reach = |chunk: &Chunk| {
            let end = chunk.skip.checked_add(chunk.len)?;
            usize::try_from(end).ok().filter(|_| end <= MAX_DECODED)
        };
        let want = chunks.iter().filter_map(reach).max().unwrap_or(0);
        let (filled, error) = self.fill(format, span, want, &mut scratch);
        for chunk in chunks {
            let verified = match reach(chunk) {
                None => Err(DecodeError::TooLarge(chunk.len)),
                Some(end) if end <= filled => verify(&scratch, chunk),
                Some(end) => Err(match &error {
                    Some(error) => DecodeError::Codec(error.clone()),
                    None => DecodeError::Length {
                        expected: end,
                        found: filled,
                    },
                }),
            };
            done(chunk, verified);
        }
        if scratch.len() > KEEP {
            scratch = Vec::new();
        }
        self.scratch = scratch;
    }

    /// Fills the beginning of `out` with `want` decoded bytes, or as many as there are; with what stopped it, if the
    /// bytes are damaged there.
    fn fill(
        &mut self,
        format: LayerFormat,
        span: &[u8],
        want: usize,
        out: &mut Vec<u8>,
    ) -> (usize, Option<String>) {
        // At once where the span is what most writers leave: one stream with little behind the chunk.
        match format {
            LayerFormat::Estargz => {
                grow(out, want + SLACK);
                let found = self.gzip.gzip_decompress(span, &mut out[..want + SLACK]);
                if found.is_ok_and(|found| found >= want) {
                    return (want, None);
                }
                // More members follow, or the member holds more than the slack, or it is damaged.
                stream(flate2::read::MultiGzDecoder::new(span), &mut out[..want])
            }
            LayerFormat::ZstdChunked => {
                grow(out, want);
                let found = self.zstd.decompress_to_buffer(span, &mut out[..want]);
                if found.is_ok_and(|found| found == want) {
                    return (want, None);
                }
                // The frame goes on behind the chunk: stargz-snapshotter's writer ends a frame only where the next
                // file's content begins, with the headers between them inside.
                match zstd::stream::read::Decoder::with_buffer(span) {
                    Ok(decoder) => stream(decoder, &mut out[..want]),
                    Err(error) => (0, Some(error.to_string())),
                }
            }
        }
    }
}

/// Reads until `out` is full, the stream ends or is damaged; the bytes read, and the damage.
fn stream(mut stream: impl std::io::Read, out: &mut [u8]) -> (usize, Option<String>) {
    let mut filled = 0;
    while filled < out.len() {
        match stream.read(&mut out[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) => return (filled, Some(error.to_string())),
        }
    }
    (filled, None)
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
