//! Bytes of a request that are here, on their way through the pool: decoded, verified and stored together.
//!
//! Invariants: whatever happens to a batch, each of its chunks is reported exactly once, in order; what was not
//! verified is not stored; no more than [`RUN`] decoded bytes and a chunk wait in a thread to be stored.

use std::{collections::VecDeque, sync::Arc};

use tokio::sync::{mpsc::UnboundedSender, watch};

use super::{
    decode::{DecodeError, Decoders},
    origin::Origin,
    pool::{Job, Pool},
    request::{Orders, Permit},
    scheduler::{Arrival, ChunkFailure, Event, LayerKey, Request, RequestId},
};
use crate::{
    cache::ChunkState,
    format::{Chunk, LayerFormat},
    metrics::{Lane, Metrics},
};

/// Decoded bytes that are collected for one job, and stored by one write. Where each chunk was stored and told of by itself,
/// writing took 26 % and telling 7 % of the decoding threads' time in a start of many small chunks; so 20 and 5 % (samples
/// of `cargo xtask bench --image science`).
const RUN: usize = 256 << 10;

/// The bytes of chunks whose spans overlap.
#[derive(Debug)]
struct Piece {
    /// Where in the blob `bytes` starts.
    base: u64,
    bytes: Vec<u8>,
    chunks: Vec<Chunk>,
}

/// What has come of a request and is not handed to the pool yet.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    request: &'a Request<dyn Origin>,
    pool: &'a Pool,
    events: &'a UnboundedSender<Event>,
    metrics: &'a Arc<Metrics>,
    pieces: Vec<Piece>,
    decoded: u64,
    permits: Vec<Permit>,
    /// One of them is of the readers' room, which must not wait behind what is decoded ahead.
    readers_room: bool,
    /// Tells whether a reader waits for something in it.
    orders: watch::Receiver<Orders>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(
        request: &'a Request<dyn Origin>,
        pool: &'a Pool,
        events: &'a UnboundedSender<Event>,
        metrics: &'a Arc<Metrics>,
        orders: watch::Receiver<Orders>,
    ) -> Self {
        Self {
            request,
            pool,
            events,
            metrics,
            pieces: Vec::new(),
            decoded: 0,
            permits: Vec::new(),
            readers_room: false,
            orders,
        }
    }

    /// Whether a reader waits for something that the request brings.
    pub(super) fn is_urgent(&self) -> bool {
        self.request.lane == Lane::Demand || self.orders.borrow().hurry
    }

    /// Takes in the bytes from `base` on, and the permit for what they need of memory, which is of the readers' room or
    /// not. What was asked for because a reader waits goes on at once.
    pub(super) fn add(
        &mut self,
        base: u64,
        bytes: Vec<u8>,
        chunks: Vec<Chunk>,
        permit: Option<Permit>,
        readers_room: bool,
    ) {
        self.readers_room |= readers_room;
        self.decoded += chunks.iter().map(|chunk| chunk.len).sum::<u64>();
        self.pieces.push(Piece {
            base,
            bytes,
            chunks,
        });
        self.permits.extend(permit);
        if self.decoded >= RUN as u64 || self.request.lane == Lane::Demand {
            self.send();
        }
    }

    /// Hands all there is to the pool.
    pub(super) fn send(&mut self) {
        if self.pieces.is_empty() {
            return;
        }
        self.decoded = 0;
        let pieces = std::mem::take(&mut self.pieces);
        let left = pieces.iter().flat_map(|piece| &piece.chunks);
        let job = DecodeJob {
            left: left.map(|chunk| chunk.id).collect(),
            report: Report::of(self.request, self.events, self.metrics),
            _permits: std::mem::take(&mut self.permits),
        };
        let job: Job = Box::new(move |decoders| job.run(pieces, decoders));
        if std::mem::take(&mut self.readers_room) || self.is_urgent() {
            self.pool.submit_urgent(job);
            return;
        }
        self.pool.submit(Some(self.request.id), job);
        if self.is_urgent() {
            // A reader came between the two, and found no job to hurry.
            self.pool.hurry(self.request.id);
        }
    }
}

impl Drop for Batch<'_> {
    /// Also when the request fails: what has come of it is good.
    fn drop(&mut self) {
        self.send();
    }
}

/// Who is told of chunks, and what they belong to.
pub(super) struct Report {
    blob: Arc<dyn Origin>,
    request: RequestId,
    source: usize,
    layer: LayerKey,
    host: String,
    events: UnboundedSender<Event>,
    metrics: Arc<Metrics>,
}

/// A batch in the pool.
struct DecodeJob {
    /// Chunks not reported yet.
    left: VecDeque<u32>,
    report: Report,
    _permits: Vec<Permit>,
}

impl DecodeJob {
    fn run(mut self, pieces: Vec<Piece>, decoders: &mut Decoders) {
        let format = self.report.blob.format();
        let mut run = Run::of(std::mem::take(&mut decoders.run));
        for piece in pieces {
            self.piece(&piece, format, &mut run, decoders);
        }
        self.store(&mut run);
        decoders.run = run.bytes;
    }

    fn piece(
        &mut self,
        piece: &Piece,
        format: LayerFormat,
        run: &mut Run,
        decoders: &mut Decoders,
    ) {
        // Chunks that share a span were sorted next to each other.
        for chunks in piece.chunks.chunk_by(|a, b| a.span == b.span) {
            let blob = Arc::clone(&self.report.blob);
            // A demand may have overtaken us.
            if chunks
                .iter()
                .all(|chunk| blob.state(chunk.id) == ChunkState::Present)
            {
                self.store(run);
                for _ in chunks {
                    self.tell(Ok(()));
                }
                continue;
            }
            let span = &chunks[0].span;
            let from = usize::try_from(span.start - piece.base).unwrap_or(usize::MAX);
            let len = usize::try_from(span.end - span.start).unwrap_or(usize::MAX);
            let bytes = piece.bytes.get(from..from.saturating_add(len));
            decoders.chunks(format, bytes.unwrap_or(&[]), chunks, |chunk, decoded| {
                let decoded = decoded.map_err(|error| self.report.wrong(chunk, &error));
                match decoded {
                    Ok(decoded) => self.verified(chunk, decoded, run),
                    Err(failure) => {
                        self.store(run);
                        self.tell(Err(failure));
                    }
                }
            });
        }
    }

    /// Keeps a verified chunk for the next write, and writes first if it does not follow what is kept.
    fn verified(&mut self, chunk: &Chunk, decoded: &[u8], run: &mut Run) {
        if run.next != Some(chunk.id) || run.bytes.len() + decoded.len() > RUN {
            self.store(run);
        }
        if decoded.len() >= RUN {
            let result = self.report.commit(chunk.id..chunk.id + 1, decoded);
            self.tell(result);
            return;
        }
        run.bytes.extend_from_slice(decoded);
        run.chunks += 1;
        run.next = Some(chunk.id + 1);
    }

    /// Writes what is kept, and tells of it.
    fn store(&mut self, run: &mut Run) {
        if let Some(next) = run.next.take() {
            let result = self.report.commit(next - run.chunks..next, &run.bytes);
            for _ in 0..run.chunks {
                self.tell(result.clone());
            }
        }
        run.bytes.clear();
        run.chunks = 0;
    }

    /// Tells of the next chunk.
    fn tell(&mut self, result: Result<(), ChunkFailure>) {
        if let Some(chunk) = self.left.pop_front() {
            self.report.tell(chunk, result);
        }
    }
}

impl Drop for DecodeJob {
    fn drop(&mut self) {
        for chunk in std::mem::take(&mut self.left) {
            let why = "decoding it broke off".to_owned();
            self.report.tell(chunk, Err(ChunkFailure::Store(why)));
        }
    }
}

/// Verified chunks that follow each other, not stored yet.
struct Run {
    bytes: Vec<u8>,
    chunks: u32,
    /// The chunk that would follow; `None`: there is none.
    next: Option<u32>,
}

impl Run {
    /// With a buffer to use.
    fn of(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            chunks: 0,
            next: None,
        }
    }
}

impl Report {
    /// For the chunks of a request.
    pub(super) fn of(
        request: &Request<dyn Origin>,
        events: &UnboundedSender<Event>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        Self {
            blob: Arc::clone(&request.blob),
            request: request.id,
            source: request.source,
            layer: request.layer,
            host: request.host.clone(),
            events: events.clone(),
            metrics: Arc::clone(metrics),
        }
    }

    fn wrong(&self, chunk: &Chunk, error: &DecodeError) -> ChunkFailure {
        self.metrics.verify_failures.inc();
        let why = format!("its bytes are wrong: {error}");
        tracing::error!(
            layer = %self.blob.digest(),
            file = self.blob.file(chunk.id),
            offset = chunk.file_offset,
            chunk = chunk.id,
            host = self.host,
            "refused a chunk: {why}"
        );
        ChunkFailure::Wrong(why)
    }

    fn commit(&self, chunks: std::ops::Range<u32>, decoded: &[u8]) -> Result<(), ChunkFailure> {
        self.blob.commit(chunks, decoded).map_err(|error| {
            let mut why = error.to_string();
            if let Some(cause) = std::error::Error::source(&error) {
                why = format!("{why}: {cause}");
            }
            ChunkFailure::Store(why)
        })
    }

    /// What became of a chunk.
    pub(super) fn tell(&self, chunk: u32, result: Result<(), ChunkFailure>) {
        // A scheduler that is gone needs no news.
        let _ = self.events.send(Event::Arrived(Arrival {
            request: self.request,
            source: self.source,
            layer: self.layer,
            chunk,
            result,
        }));
    }
}
