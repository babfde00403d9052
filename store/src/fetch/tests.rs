//! The whole room against a layer in memory: real codecs, a registry that can misbehave, a cache that is a vector.

#![expect(clippy::unwrap_used, reason = "tests")]

mod batches;
mod codecs;
mod whole;

use std::{
    collections::VecDeque,
    io::Write as _,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::origin::{Blob, Body, Origin, Refusal};
use crate::{
    cache::{CacheError, ChunkState},
    digest::Digest,
    format::{Chunk, LayerFormat},
};

/// How the registry answers one request.
#[derive(Debug, Clone, Copy)]
enum Answer {
    Good,
    /// One byte in the middle is another.
    Flipped,
    /// Half of it, then the connection breaks.
    Half,
    /// A status that may pass.
    Busy,
    /// A status that will not.
    Gone,
    /// The first piece, and then nothing until the gate is opened.
    Stall,
    /// A byte every quarter of a minute.
    Drip,
    /// Whoever asks, or hashes, is no more.
    Panic,
}

/// A layer in memory.
#[derive(Debug)]
struct Memory {
    format: LayerFormat,
    blob: Vec<u8>,
    chunks: Vec<Chunk>,
    plain: Vec<Vec<u8>>,
    states: Mutex<Vec<ChunkState>>,
    stored: Mutex<Vec<Option<Vec<u8>>>>,
    /// How the next requests are answered; then all are good.
    answers: Mutex<VecDeque<Answer>>,
    ranges: Mutex<Vec<Range<u64>>>,
    gate: tokio::sync::Semaphore,
    /// Commits that fail.
    full: AtomicUsize,
    /// What was stored by one write each.
    commits: Mutex<Vec<Range<u32>>>,
    mark: Mutex<Option<u32>>,
    host: &'static str,
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

/// Bytes that do not compress to nothing.
fn content(seed: usize, len: usize) -> Vec<u8> {
    let mut state = seed as u64 + 1;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            // Six bits a byte: text-like.
            u8::try_from(state >> 58).unwrap() + b' '
        })
        .collect()
}

impl Memory {
    /// Chunks of these lengths, each with what a tar writer puts behind it in the same member or frame.
    fn new(format: LayerFormat, lengths: &[usize]) -> Arc<Self> {
        let mut blob = b"what comes before".to_vec();
        let mut chunks = Vec::new();
        let mut plain = Vec::new();
        let mut data_offset = 0;
        for (n, len) in lengths.iter().enumerate() {
            let bytes = content(n, *len);
            let start = blob.len() as u64;
            match format {
                LayerFormat::Estargz => {
                    let mut member = bytes.clone();
                    member.resize(len.next_multiple_of(512) + 512, 0);
                    blob.extend(gzip(&member));
                }
                LayerFormat::ZstdChunked => {
                    blob.extend(zstd::bulk::compress(&bytes, 3).unwrap());
                }
            }
            let span = start..blob.len() as u64;
            if format == LayerFormat::ZstdChunked {
                blob.extend(zstd::bulk::compress(&[0; 512], 3).unwrap());
            }
            chunks.push(Chunk {
                id: u32::try_from(n).unwrap(),
                node: 1,
                file_offset: 0,
                len: *len as u64,
                data_offset,
                span,
                skip: 0,
                digest: Digest::of(&bytes),
                zeros: false,
            });
            data_offset += *len as u64;
            plain.push(bytes);
        }
        Self::of(format, blob, chunks, plain)
    }

    fn of(
        format: LayerFormat,
        blob: Vec<u8>,
        chunks: Vec<Chunk>,
        plain: Vec<Vec<u8>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            format,
            blob,
            states: Mutex::new(vec![ChunkState::Missing; chunks.len()]),
            stored: Mutex::new(vec![None; chunks.len()]),
            chunks,
            plain,
            answers: Mutex::default(),
            ranges: Mutex::default(),
            gate: tokio::sync::Semaphore::new(0),
            full: AtomicUsize::new(0),
            commits: Mutex::default(),
            mark: Mutex::default(),
            host: "registry.test",
        })
    }

    fn answer(&self, answers: impl IntoIterator<Item = Answer>) {
        self.answers.lock().extend(answers);
    }

    /// What is in the cache is right, and it is exactly these chunks.
    fn assert_holds(&self, chunks: impl IntoIterator<Item = u32>) {
        let stored = self.stored.lock();
        let held: Vec<u32> = (0..)
            .zip(stored.iter())
            .filter_map(|(n, bytes)| bytes.as_ref().map(|_| n))
            .collect();
        assert_eq!(held, chunks.into_iter().collect::<Vec<_>>());
        for chunk in held {
            let n = chunk as usize;
            assert_eq!(stored[n].as_ref(), Some(&self.plain[n]), "chunk {chunk}");
        }
    }

    fn requests(&self) -> usize {
        self.ranges.lock().len()
    }
}

impl Blob for Memory {
    fn digest(&self) -> Digest {
        Digest::of(&self.blob)
    }
    fn chunk_count(&self) -> u32 {
        u32::try_from(self.chunks.len()).unwrap()
    }
    fn chunk(&self, chunk: u32) -> Result<Chunk, String> {
        let found = self.chunks.get(chunk as usize);
        found.cloned().ok_or_else(|| "past the end".to_owned())
    }
    fn state(&self, chunk: u32) -> ChunkState {
        let states = self.states.lock();
        let state = states.get(chunk as usize).copied();
        state.unwrap_or(ChunkState::Missing)
    }
    fn hosts(&self) -> Vec<String> {
        vec![self.host.to_owned()]
    }
    fn early(&self, _: usize, _: &Range<u64>) -> Option<Range<u64>> {
        None
    }
}

impl Origin for Memory {
    fn format(&self) -> LayerFormat {
        self.format
    }
    fn open(&self, _: usize, range: Range<u64>) -> BoxFuture<'_, Result<Box<dyn Body>, Refusal>> {
        self.ranges.lock().push(range.clone());
        let answer = self.answers.lock().pop_front().unwrap_or(Answer::Good);
        Box::pin(async move {
            let status = |why: &str, retry| {
                let why = why.to_owned();
                Err(Refusal { why, retry })
            };
            match answer {
                Answer::Busy => return status("503", Some(Duration::ZERO)),
                Answer::Gone => return status("404", None),
                Answer::Stall => {
                    self.gate.acquire().await.unwrap().forget();
                }
                Answer::Drip => return Ok(Box::new(Dripping) as Box<dyn Body>),
                Answer::Panic => panic!("as the test wants"),
                Answer::Good | Answer::Flipped | Answer::Half => {}
            }
            let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
            let mut bytes = self.blob[range].to_vec();
            let half = bytes.len() / 2;
            let mut broken = false;
            match answer {
                Answer::Flipped => bytes[half] ^= 0x10,
                Answer::Half => {
                    bytes.truncate(half);
                    broken = true;
                }
                _ => {}
            }
            // An odd length, so that pieces and chunks never agree.
            let pieces = bytes.chunks(777).map(Bytes::copy_from_slice).collect();
            Ok(Box::new(Pieces { pieces, broken }) as Box<dyn Body>)
        })
    }
    fn prove(&self, chunk: u32) -> Result<bool, CacheError> {
        let mut answers = self.answers.lock();
        if let Some(Answer::Panic) = answers.front() {
            answers.pop_front();
            drop(answers);
            panic!("as the test wants");
        }
        self.states.lock()[chunk as usize] = ChunkState::Missing;
        Ok(false)
    }
    fn commit(&self, chunks: Range<u32>, decoded: &[u8]) -> Result<(), CacheError> {
        let left = self
            .full
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        if left.is_ok() {
            return Err(CacheError::Io {
                what: "write",
                path: "data".into(),
                source: std::io::ErrorKind::StorageFull.into(),
            });
        }
        self.commits.lock().push(chunks.clone());
        let mut rest = decoded;
        for chunk in chunks {
            let len = usize::try_from(self.chunks[chunk as usize].len).unwrap();
            let (bytes, behind) = rest.split_at(len);
            rest = behind;
            self.stored.lock()[chunk as usize] = Some(bytes.to_vec());
            self.states.lock()[chunk as usize] = ChunkState::Present;
        }
        assert!(rest.is_empty());
        Ok(())
    }
    fn commit_zeros(&self, chunk: u32) -> Result<(), CacheError> {
        self.states.lock()[chunk as usize] = ChunkState::Present;
        Ok(())
    }
    fn mark(&self, chunk: u32) {
        *self.mark.lock() = Some(chunk);
    }
    fn file(&self, chunk: u32) -> String {
        format!("/file-{chunk}")
    }
}

struct Pieces {
    pieces: VecDeque<Bytes>,
    broken: bool,
}

impl Body for Pieces {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, Refusal>>> {
        let next = match self.pieces.pop_front() {
            Some(piece) => Some(Ok(piece)),
            None if self.broken => Some(Err(Refusal {
                why: "connection reset".to_owned(),
                retry: Some(Duration::ZERO),
            })),
            None => None,
        };
        Box::pin(std::future::ready(next))
    }
}

/// See [`Answer::Drip`].
#[derive(Debug)]
struct Dripping;

impl Body for Dripping {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, Refusal>>> {
        Box::pin(async {
            tokio::time::sleep(Duration::from_secs(15)).await;
            Some(Ok(Bytes::from_static(b"x")))
        })
    }
}
