//! What fetching must know of a layer: where its chunks lie in the blob, what is in the cache, who has the blob.
//!
//! The seam of this room: [`LayerOrigin`] in the program, a few lines of memory in tests.

use std::{fmt, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::{
    cache::{CacheError, ChunkState},
    digest::Digest,
    format::{Chunk, LayerFormat},
    image::Layer,
    registry,
};

/// Compressed bytes that a chunk's span may have beyond its decoded length: the tar headers behind it (an eStargz
/// member goes on until the next file with content) and what a bad compression ratio adds. A guard for memory.
const MAX_SPAN_EXCESS: u64 = 64 << 20;

/// What planning needs.
pub(super) trait Blob: Send + Sync + fmt::Debug {
    /// Digest of the blob.
    fn digest(&self) -> Digest;
    /// Number of chunks.
    fn chunk_count(&self) -> u32;
    /// A chunk. The error is a sentence for people.
    fn chunk(&self, chunk: u32) -> Result<Chunk, String>;
    /// What the cache knows of it. Never waits.
    fn state(&self, chunk: u32) -> ChunkState;
    /// Hosts that have the blob, best first.
    fn hosts(&self) -> Vec<String>;
    /// The n-th of them, counted round; empty if there is none.
    fn host(&self, n: usize) -> String {
        let hosts = self.hosts();
        let n = n % hosts.len().max(1);
        hosts.into_iter().nth(n).unwrap_or_default()
    }
    /// The part of the blob around `span` that was asked for before the layer was known ([`registry::Client::ahead`]):
    /// it needs no request, but a range must not reach beyond it.
    fn early(&self, source: usize, span: &Range<u64>) -> Option<Range<u64>>;
}

/// What fetching needs besides.
pub(super) trait Origin: Blob {
    /// How its chunks are compressed.
    fn format(&self) -> LayerFormat;
    /// Asks the n-th of [`Blob::hosts`] for a part of the blob.
    fn open(&self, host: usize, range: Range<u64>)
    -> BoxFuture<'_, Result<Box<dyn Body>, Refusal>>;
    /// [`crate::cache::BlobCache::prove`].
    fn prove(&self, chunk: u32) -> Result<bool, CacheError>;
    /// [`crate::cache::BlobCache::commit`].
    fn commit(&self, chunks: Range<u32>, decoded: &[u8]) -> Result<(), CacheError>;
    /// [`crate::cache::BlobCache::commit_zeros`].
    fn commit_zeros(&self, chunk: u32) -> Result<(), CacheError>;
    /// [`Layer::set_mark`].
    fn mark(&self, chunk: u32);
    /// Path of the file that a chunk belongs to, for messages.
    fn file(&self, chunk: u32) -> String;
}

/// The bytes of a range, piece by piece.
pub(super) trait Body: Send {
    /// The next piece; `None` at the end.
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, Refusal>>>;
    /// Whether it needed no request.
    fn is_early(&self) -> bool {
        false
    }
}

/// Why a host did not give what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// A sentence for people.
    pub(super) why: String,
    /// Whether asking again can help, and not before how long.
    pub(super) retry: Option<Duration>,
}

impl From<registry::RegistryError> for Refusal {
    fn from(error: registry::RegistryError) -> Self {
        Self {
            why: error.to_string(),
            retry: error.retry(),
        }
    }
}

/// A layer and the client that can ask for its blob.
#[derive(Debug)]
pub(super) struct LayerOrigin {
    pub(super) layer: Arc<Layer>,
    pub(super) client: registry::Client,
}

impl Blob for LayerOrigin {
    fn digest(&self) -> Digest {
        *self.layer.blob()
    }
    fn chunk_count(&self) -> u32 {
        self.layer.index.chunk_count()
    }
    fn chunk(&self, chunk: u32) -> Result<Chunk, String> {
        let index = &self.layer.index;
        let found = index
            .chunk(chunk)
            .map_err(|error| error.to_string())?
            .ok_or_else(|| format!("the layer has only {} chunks", index.chunk_count()))?;
        check(&found, index.facts().size)?;
        Ok(found)
    }
    fn state(&self, chunk: u32) -> ChunkState {
        self.layer.cache.state(chunk)
    }
    fn hosts(&self) -> Vec<String> {
        let sources = self.layer.sources();
        sources.into_iter().map(|source| source.host).collect()
    }
    fn host(&self, n: usize) -> String {
        self.layer.source_host(n)
    }
    fn early(&self, source: usize, span: &Range<u64>) -> Option<Range<u64>> {
        if !self.client.has_early(self.layer.blob()) {
            return None;
        }
        let source = self.layer.sources().into_iter().nth(source)?;
        self.client.early(&source, self.layer.blob(), span)
    }
}

/// Refuses what would take too much memory or could never be had.
fn check(chunk: &Chunk, blob_size: u64) -> Result<(), String> {
    if chunk.zeros {
        return Ok(());
    }
    let span = &chunk.span;
    if span.start >= span.end || span.end > blob_size {
        return Err(format!(
            "its bytes {}..{} do not lie in the blob of {blob_size} bytes",
            span.start, span.end
        ));
    }
    let decoded = chunk.skip.saturating_add(chunk.len);
    if span.end - span.start > decoded.saturating_add(MAX_SPAN_EXCESS) {
        return Err(format!(
            "{} compressed bytes for {decoded} are refused",
            span.end - span.start
        ));
    }
    Ok(())
}

impl Origin for LayerOrigin {
    fn format(&self) -> LayerFormat {
        self.layer.index.facts().format
    }
    fn open(
        &self,
        host: usize,
        range: Range<u64>,
    ) -> BoxFuture<'_, Result<Box<dyn Body>, Refusal>> {
        Box::pin(async move {
            let Some(source) = self.layer.sources().into_iter().nth(host) else {
                return Err(Refusal {
                    why: "no registry is known that has the blob; pull the image again".to_owned(),
                    retry: None,
                });
            };
            let facts = self.layer.index.facts();
            let body = self
                .client
                .range(&source, &facts.blob, facts.size, range)
                .await?;
            Ok(Box::new(RangeBody(body)) as Box<dyn Body>)
        })
    }
    fn prove(&self, chunk: u32) -> Result<bool, CacheError> {
        self.layer.cache.prove(chunk)
    }
    fn commit(&self, chunks: Range<u32>, decoded: &[u8]) -> Result<(), CacheError> {
        self.layer.cache.commit(chunks, decoded)
    }
    fn commit_zeros(&self, chunk: u32) -> Result<(), CacheError> {
        self.layer.cache.commit_zeros(chunk)
    }
    fn mark(&self, chunk: u32) {
        self.layer.set_mark(chunk);
    }
    fn file(&self, chunk: u32) -> String {
        let index = &self.layer.index;
        let path = index
            .chunk(chunk)
            .ok()
            .flatten()
            .and_then(|chunk| index.path(chunk.node).ok());
        path.map_or_else(
            || "an unknown file".to_owned(),
            |path| format!("/{}", String::from_utf8_lossy(&path)),
        )
    }
}

struct RangeBody(registry::RangeBody);

impl Body for RangeBody {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, Refusal>>> {
        Box::pin(async {
            self.0
                .next()
                .await
                .map(|piece| piece.map_err(Refusal::from))
        })
    }
    fn is_early(&self) -> bool {
        self.0.is_early()
    }
}
