//! The `blob` file of a layer: its raw bytes from the registry, for an engine that saves or pushes.
//!
//! Invariant 1's second half: the bytes are passed on as they come, and the read that reaches the end succeeds only if
//! the whole digest matched. They are kept in an unlinked file while the blob is open, so that any order of reading
//! works; never in the kernel's page cache, where wrong bytes would outlive the failure.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use fuser::ReplyData;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::{
    Parts,
    errno::{AlsError, chain},
};
use crate::{
    digest::Digest,
    fetch::{FetchError, RawBody},
    image::Layer,
    registry::RegistryError,
};

/// Failures in a row, without a byte between them, after which a read gets an error.
const ATTEMPTS: u32 = 3;

/// Wait before another attempt where the host does not say how long.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// Why a raw blob cannot be passed on.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The file that keeps the bytes cannot be used.
    #[error("cannot keep the bytes of blob {blob}: {source}")]
    Spool {
        /// The blob.
        blob: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The request cannot be made.
    #[error("blob {blob} cannot be read from byte {at}: {source}")]
    Fetch {
        /// The blob.
        blob: Digest,
        /// From where.
        at: u64,
        /// Why.
        #[source]
        source: FetchError,
    },
    /// The registry broke off.
    #[error("blob {blob} cannot be read from byte {at}: {source}")]
    Registry {
        /// The blob.
        blob: Digest,
        /// From where.
        at: u64,
        /// Why.
        #[source]
        source: RegistryError,
    },
    /// The registry sent fewer bytes than the manifest says, without an error.
    #[error("blob {blob} ended at byte {at} of {size}")]
    Short {
        /// The blob.
        blob: Digest,
        /// Where.
        at: u64,
        /// Its size by the manifest.
        size: u64,
    },
    /// The bytes are not those of the blob.
    #[error("blob {blob} is not what the registry sent: its bytes have the digest {got}")]
    Mismatch {
        /// The blob.
        blob: Digest,
        /// The digest of what came.
        got: Digest,
    },
}

/// A read of an open blob.
#[derive(Debug)]
pub(crate) struct BlobRead {
    pub(crate) offset: u64,
    pub(crate) len: u32,
    pub(crate) reply: ReplyData,
}

/// Opens a blob: a task that answers reads in order and ends when the sender is dropped. Nothing is asked for before
/// the first read.
pub(crate) fn open(parts: &Arc<Parts>, layer: Arc<Layer>) -> mpsc::UnboundedSender<BlobRead> {
    // Unbounded here, bounded by the kernel: every message is one of its requests under way.
    let (reads, mut queue) = mpsc::unbounded_channel::<BlobRead>();
    let task_parts = Arc::clone(parts);
    parts.runtime.spawn(async move {
        let parts = task_parts;
        let mut spool = None;
        while let Some(read) = queue.recv().await {
            match answer(&parts, &layer, &mut spool, read.offset, read.len).await {
                Ok(bytes) => read.reply.data(&bytes),
                Err(error) => {
                    if matches!(error, BlobError::Spool { .. }) {
                        // What was hashed is not what was kept: from the beginning.
                        spool = None;
                    }
                    parts.metrics.read_errors.inc();
                    tracing::error!(
                        blob = %layer.blob(),
                        offset = read.offset,
                        error = chain(&error),
                        "a read of a raw blob fails"
                    );
                    read.reply.error(AlsError::Blob(error).errno());
                }
            }
        }
    });
    reads
}

async fn answer(
    parts: &Parts,
    layer: &Arc<Layer>,
    spool: &mut Option<Spool>,
    offset: u64,
    len: u32,
) -> Result<Vec<u8>, BlobError> {
    let spool = match spool {
        Some(spool) => spool,
        None => spool.insert(Spool::new(&parts.state_dir, layer)?),
    };
    let end = offset.saturating_add(len.into()).min(spool.size);
    if offset >= end {
        return Ok(Vec::new());
    }
    spool.fill(parts, layer, end).await?;
    if end == spool.size {
        spool.verify(parts)?;
    }
    let mut buffer = vec![0; usize::try_from(end - offset).unwrap_or(0)];
    spool
        .file
        .read_exact_at(&mut buffer, offset)
        .map_err(|source| spool.failed(source))?;
    Ok(buffer)
}

/// What of a blob has come so far.
struct Spool {
    blob: Digest,
    size: u64,
    file: Arc<File>,
    have: u64,
    hash: Sha256,
    body: Option<RawBody>,
    verdict: Option<Digest>,
}

impl Spool {
    fn new(dir: &Path, layer: &Layer) -> Result<Self, BlobError> {
        let facts = layer.index.facts();
        let file = tempfile::tempfile_in(dir).map_err(|source| BlobError::Spool {
            blob: facts.blob,
            source,
        })?;
        Ok(Self {
            blob: facts.blob,
            size: facts.size,
            file: Arc::new(file),
            have: 0,
            hash: Sha256::new(),
            body: None,
            verdict: None,
        })
    }

    fn failed(&self, source: io::Error) -> BlobError {
        BlobError::Spool {
            blob: self.blob,
            source,
        }
    }

    /// Reads on until the first `end` bytes are here.
    async fn fill(&mut self, parts: &Parts, layer: &Arc<Layer>, end: u64) -> Result<(), BlobError> {
        let mut failures = 0;
        while self.have < end {
            match self.piece(parts, layer).await {
                Ok(bytes) => {
                    failures = 0;
                    self.keep(bytes).await?;
                }
                Err(error) => {
                    self.body = None;
                    failures += 1;
                    let wait = match &error {
                        BlobError::Registry { source, .. } => source.retry(),
                        BlobError::Short { .. } => Some(RETRY_DELAY),
                        BlobError::Fetch { source, .. }
                            if !matches!(source, FetchError::Stopping) =>
                        {
                            Some(RETRY_DELAY)
                        }
                        _ => None,
                    };
                    let Some(wait) = wait.filter(|_| failures < ATTEMPTS) else {
                        return Err(error);
                    };
                    tracing::warn!(error = chain(&error), "asking again");
                    tokio::time::sleep(wait.max(RETRY_DELAY)).await;
                }
            }
        }
        Ok(())
    }

    /// The next bytes of the body; a new request where there is none.
    async fn piece(&mut self, parts: &Parts, layer: &Arc<Layer>) -> Result<Bytes, BlobError> {
        let (blob, at, size) = (self.blob, self.have, self.size);
        let body = match &mut self.body {
            Some(body) => body,
            None => {
                let body = parts.fetcher.raw(layer, at).await;
                self.body
                    .insert(body.map_err(|source| BlobError::Fetch { blob, at, source })?)
            }
        };
        match body.next().await {
            Some(Ok(bytes)) => Ok(bytes),
            Some(Err(source)) => Err(BlobError::Registry { blob, at, source }),
            None => Err(BlobError::Short { blob, at, size }),
        }
    }

    async fn keep(&mut self, mut bytes: Bytes) -> Result<(), BlobError> {
        // What is past the end is not the blob's; the digest decides on the rest.
        bytes.truncate(usize::try_from(self.size - self.have).unwrap_or(usize::MAX));
        let (at, len) = (self.have, bytes.len() as u64);
        let file = Arc::clone(&self.file);
        let mut hash = std::mem::take(&mut self.hash);
        let written = tokio::task::spawn_blocking(move || {
            hash.update(&bytes);
            file.write_all_at(&bytes, at).map(|()| hash)
        })
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)));
        self.hash = written.map_err(|source| self.failed(source))?;
        self.have += len;
        Ok(())
    }

    /// Whether all bytes together are the blob. They are all here.
    fn verify(&mut self, parts: &Parts) -> Result<(), BlobError> {
        let got = *self.verdict.get_or_insert_with(|| {
            let hash = std::mem::take(&mut self.hash);
            let got = Digest::from_bytes(hash.finalize().into());
            if got != self.blob {
                parts.metrics.verify_failures.inc();
            }
            got
        });
        if got == self.blob {
            Ok(())
        } else {
            Err(BlobError::Mismatch {
                blob: self.blob,
                got,
            })
        }
    }
}
