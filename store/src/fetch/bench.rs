//! For store/benches/fetch.rs only: decoding and scheduling by themselves, without a registry, a cache or a thread.
//! Nothing in the program uses it, and it offers nothing else of this room.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{
    decode::Decoders,
    origin::Blob,
    scheduler::{Action, Arrival, Event, LayerKey, Limits, Request, Scheduler},
};
use crate::{
    cache::ChunkState,
    config,
    digest::Digest,
    format::{Chunk, LayerFormat},
    metrics::Lane,
};

/// What a thread of the pool does with the bytes of a chunk.
pub struct Decoding(Decoders);

impl Decoding {
    /// With codecs of its own.
    ///
    /// # Errors
    /// If zstd cannot get memory for its context.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self(Decoders::new()?))
    }

    /// Decodes and verifies a chunk that has its span for itself; whether it is what its digest says.
    pub fn decode(&mut self, format: LayerFormat, span: &[u8], chunk: &Chunk) -> bool {
        let mut verified = false;
        let chunks = std::slice::from_ref(chunk);
        (self.0).chunks(format, span, chunks, |_, result| verified = result.is_ok());
        verified
    }
}

impl std::fmt::Debug for Decoding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoding").finish_non_exhaustive()
    }
}

/// Layers of a [`Following`].
const LAYERS: u32 = 4;
/// Chunks that lie next to each other and are needed one after the other: a file.
const FILE: u32 = 5;
/// Compressed bytes of a chunk, and of the headers behind it.
const SPAN: u64 = 10_000;
const HEADERS: u64 = 600;

/// A layer of which only the places of its chunks are known.
#[derive(Debug)]
struct Places {
    digest: Digest,
    hosts: Vec<String>,
    present: Vec<AtomicBool>,
}

impl Blob for Places {
    fn digest(&self) -> Digest {
        self.digest
    }
    fn chunk_count(&self) -> u32 {
        u32::try_from(self.present.len()).unwrap_or(u32::MAX)
    }
    fn chunk(&self, chunk: u32) -> Result<Chunk, String> {
        let start = u64::from(chunk) * (SPAN + HEADERS);
        Ok(Chunk {
            id: chunk,
            node: 1 + chunk / FILE,
            file_offset: 0,
            len: 3 * SPAN,
            data_offset: u64::from(chunk) * 3 * SPAN,
            span: start..start + SPAN,
            skip: 0,
            digest: self.digest,
            zeros: false,
        })
    }
    fn state(&self, chunk: u32) -> ChunkState {
        let bit = self.present.get(chunk as usize);
        if bit.is_some_and(|bit| bit.load(Ordering::Relaxed)) {
            ChunkState::Present
        } else {
            ChunkState::Missing
        }
    }
    fn hosts(&self) -> Vec<String> {
        self.hosts.clone()
    }
    fn early(&self, _: usize, _: &Range<u64>) -> Option<Range<u64>> {
        None
    }
}

/// A plan that is followed to its end by the scheduler, where every request is answered at once. Each chunk is a step
/// of the scheduler's own, as when nothing else happens at the same time: the most it can cost.
#[derive(Debug)]
pub struct Following {
    scheduler: Scheduler<Places>,
    steps: Vec<(LayerKey, u32)>,
    requests: VecDeque<Request<Places>>,
    /// Chunks that were brought by any lane.
    brought: u32,
    /// Demands that were met.
    met: u32,
    finished: bool,
}

impl Following {
    /// A plan of (about) `chunks` chunks, file by file, over four layers by turns; within a layer the files are needed
    /// in another order than they lie in. The limits are the default ones.
    #[must_use]
    pub fn new(chunks: u32) -> Self {
        let mut scheduler = Scheduler::new(Limits::from(&config::Fetch::default()), 1);
        let files = chunks / FILE / LAYERS;
        let keys: Vec<_> = (0..LAYERS)
            .map(|layer| {
                let digest = Digest::of(&layer.to_le_bytes());
                let present = (0..files * FILE).map(|_| AtomicBool::new(false));
                let blob = Arc::new(Places {
                    digest,
                    hosts: vec!["registry".to_owned()],
                    present: present.collect(),
                });
                scheduler.layer(&digest, || blob)
            })
            .collect();
        // A prime that divides no such number of files: each file once.
        let place = |n: u32| (u64::from(n) * 7919 % u64::from(files)) as u32;
        let steps = (0..files)
            .flat_map(|n| keys.iter().map(move |key| (*key, place(n) * FILE)))
            .flat_map(|(key, first)| (first..first + FILE).map(move |chunk| (key, chunk)))
            .collect();
        Self {
            scheduler,
            steps,
            requests: VecDeque::new(),
            brought: 0,
            met: 0,
            finished: false,
        }
    }

    /// Follows the plan; `demands` times meanwhile a reader wants the last chunk of it that is not there yet. Answers
    /// chunks brought and demands met, or `None` if the scheduler stopped before the end of the plan.
    #[must_use]
    pub fn to_the_end(mut self, demands: u32) -> Option<(u32, u32)> {
        let steps = std::mem::take(&mut self.steps);
        let every = u32::try_from(steps.len()).ok()? / (demands + 1);
        let mut left = steps.clone();
        let mut asked = 0;
        self.apply(Event::Predict {
            id: 0,
            name: "plan".to_owned(),
            steps,
            lasts: Duration::ZERO,
        });
        while let Some(request) = self.requests.pop_front() {
            for (chunk, _) in &request.chunks {
                self.arrive(&request, *chunk);
                if asked < demands && self.brought >= every * (asked + 1) {
                    asked += 1;
                    self.demand(asked, &mut left);
                }
            }
            self.apply(Event::Ended {
                request: request.id,
                result: Ok(()),
                missing: Vec::new(),
            });
        }
        self.finished.then_some((self.brought, self.met))
    }

    fn arrive(&mut self, request: &Request<Places>, chunk: u32) {
        if let Some(bit) = request.blob.present.get(chunk as usize) {
            bit.store(true, Ordering::Relaxed);
        }
        self.apply(Event::Arrived(Arrival {
            request: request.id,
            source: request.source,
            layer: request.layer,
            chunk,
            result: Ok(()),
        }));
    }

    fn demand(&mut self, id: u32, left: &mut Vec<(LayerKey, u32)>) {
        while let Some((layer, chunk)) = left.pop() {
            if self.scheduler.blob(layer).state(chunk) == ChunkState::Missing {
                self.apply(Event::Demand {
                    id: u64::from(id),
                    layer,
                    chunks: chunk..chunk + 1,
                });
                return;
            }
        }
    }

    fn apply(&mut self, event: Event) {
        for action in self.scheduler.apply(Duration::ZERO, [event]) {
            match action {
                // A registry answers the reader first.
                Action::Request(request) if request.lane == Lane::Demand => {
                    self.requests.push_front(request);
                }
                Action::Request(request) => self.requests.push_back(request),
                Action::Brought { .. } => self.brought += 1,
                Action::Reply { result, .. } => self.met += u32::from(result.is_ok()),
                Action::Finished { failed, .. } => self.finished = failed == 0,
                // No chunk is in the cache unproven or only zeros, no body stands still, and nothing waits to be decoded.
                Action::Prove { .. }
                | Action::Zeros { .. }
                | Action::Hold { .. }
                | Action::Hurry { .. }
                | Action::Mark { .. } => {}
            }
        }
    }
}
