//! One range request from its start to its end: bytes in, chunks handed to the pool as soon as they are complete.
//!
//! Permits bound what is in memory: one is taken before a chunk's bytes are read and given back when it is stored. Nobody
//! waits for one, or for bytes, with chunks in hand that the pool could already work on.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc::UnboundedSender, watch};

use super::{
    batch::{Batch, Report},
    origin::{Body, Origin, Refusal},
    pool::Pool,
    scheduler::{ChunkFailure, Event, Request, RequestId},
};
use crate::{
    format::Chunk,
    metrics::{ByLane, Lane, Metrics},
};

/// What all requests use.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) pool: Pool,
    pub(super) metrics: Arc<Metrics>,
    /// Bytes in memory for demands, and for everything else: a demand never waits for what was read ahead of it.
    pub(super) demand_budget: Budget,
    pub(super) ahead_budget: Budget,
}

/// A bound on bytes in memory. One registry gets three quarters of it: were it all of it, one that sends a chunk byte by
/// byte would keep the readers of every other registry waiting as well.
#[derive(Debug)]
pub(super) struct Budget {
    /// In units of a KiB: a semaphore counts in 32 bits.
    all: Arc<Semaphore>,
    /// What each registry may still take.
    shares: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// Units of a share.
    share: u32,
}

/// Room in memory; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    _all: OwnedSemaphorePermit,
    _share: OwnedSemaphorePermit,
}

impl Budget {
    pub(super) fn new(bytes: u64) -> Self {
        let units = u32::try_from(bytes >> 10).unwrap_or(u32::MAX).max(1);
        Self {
            all: Arc::new(Semaphore::new(units as usize)),
            shares: Mutex::default(),
            share: units - units / 4,
        }
    }

    fn share(&self, host: &str) -> Arc<Semaphore> {
        let mut shares = self.shares.lock();
        if let Some(share) = shares.get(host) {
            return Arc::clone(share);
        }
        let share = Arc::new(Semaphore::new(self.share as usize));
        shares.insert(host.to_owned(), Arc::clone(&share));
        share
    }

    /// Room, if there is some.
    fn try_take(&self, host: &str, bytes: u64) -> Option<Permit> {
        let units = self.units_of(bytes);
        let share = self.share(host).try_acquire_many_owned(units).ok()?;
        let all = Arc::clone(&self.all).try_acquire_many_owned(units).ok()?;
        Some(Permit {
            _all: all,
            _share: share,
        })
    }

    /// Waits for room. What is larger than a whole share gets all of it.
    async fn take(&self, host: &str, bytes: u64) -> Option<Permit> {
        let units = self.units_of(bytes);
        // Nobody closes the semaphores. Who waits in the second has its share: what it waits for is other registries'.
        let share = self.share(host).acquire_many_owned(units).await.ok()?;
        let all = Arc::clone(&self.all).acquire_many_owned(units).await.ok()?;
        Some(Permit {
            _all: all,
            _share: share,
        })
    }

    fn units_of(&self, bytes: u64) -> u32 {
        let units = u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX);
        units.min(self.share)
    }
}

/// Chunks whose spans overlap: their bytes are read once and decoded together.
#[derive(Debug)]
struct Group {
    span: Range<u64>,
    chunks: Vec<Chunk>,
}

impl Group {
    /// Bytes that it holds in memory from its first byte to its commit.
    fn cost(&self) -> u64 {
        let decoded = (self.chunks.iter()).map(|chunk| chunk.skip.saturating_add(chunk.len));
        (self.span.end - self.span.start).saturating_add(decoded.max().unwrap_or(0))
    }
}

/// What a request is told while it is under way.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Orders {
    /// Its body is not to be read.
    pub(super) hold: bool,
    /// A reader waits for something in it, which was asked for ahead of need.
    pub(super) hurry: bool,
}

/// Carries out a request and tells `events` what became of each of its chunks and of itself.
pub(super) async fn run(
    request: Request<dyn Origin>,
    shared: Arc<Shared>,
    mut orders: watch::Receiver<Orders>,
    events: UnboundedSender<Event>,
) {
    let id = request.id;
    // Whatever becomes of the task, the scheduler hears of its end: its places and its readers depend on it.
    let unfinished = Unfinished {
        request: id,
        chunks: request.chunks.iter().map(|(chunk, _)| *chunk).collect(),
        ended: false,
        events: &events,
    };
    let (mut groups, lost) = groups(&request);
    let report = Report::of(&request, &events, &shared.metrics);
    for (chunk, why) in lost {
        report.tell(chunk, Err(ChunkFailure::Store(why)));
    }
    let result = read(&request, &shared, &mut orders, &events, &mut groups).await;
    let missing = groups
        .iter()
        .flat_map(|group| group.chunks.iter().map(|chunk| chunk.id))
        .collect();
    unfinished.end(result, missing);
}

/// A request that has not ended.
struct Unfinished<'a> {
    request: RequestId,
    chunks: Vec<u32>,
    ended: bool,
    events: &'a UnboundedSender<Event>,
}

impl Unfinished<'_> {
    fn end(mut self, result: Result<(), Refusal>, missing: Vec<u32>) {
        self.ended = true;
        self.tell(result, missing);
    }

    fn tell(&self, result: Result<(), Refusal>, missing: Vec<u32>) {
        // A scheduler that is gone needs no news.
        let _ = self.events.send(Event::Ended {
            request: self.request,
            result,
            missing,
        });
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let refusal = Refusal {
            why: "reading the answer broke off".to_owned(),
            retry: Some(Duration::ZERO),
        };
        let missing = std::mem::take(&mut self.chunks);
        self.tell(Err(refusal), missing);
    }
}

/// The chunks of a request, in stream order, and those whose place cannot be read from the index any more.
fn groups(request: &Request<dyn Origin>) -> (VecDeque<Group>, Vec<(u32, String)>) {
    let mut chunks = Vec::with_capacity(request.chunks.len());
    let mut lost = Vec::new();
    for (chunk, _) in &request.chunks {
        match request.blob.chunk(*chunk) {
            Ok(chunk) => chunks.push(chunk),
            Err(why) => lost.push((*chunk, why)),
        }
    }
    chunks.sort_by_key(|chunk| (chunk.span.start, chunk.span.end));
    let mut groups: VecDeque<Group> = VecDeque::new();
    for chunk in chunks {
        match groups.back_mut() {
            Some(group) if chunk.span.start < group.span.end => {
                group.span.end = group.span.end.max(chunk.span.end);
                group.chunks.push(chunk);
            }
            _ => groups.push_back(Group {
                span: chunk.span.clone(),
                chunks: vec![chunk],
            }),
        }
    }
    (groups, lost)
}

/// A group's bytes may take this long whatever their number: what a registry needs to find them.
const SLOW_START: Duration = Duration::from_secs(20);
/// And a second for each so many. Who sends more slowly, byte by byte, would keep readers and memory for as long as it
/// likes.
const SLOWEST: u64 = 16 << 10;

/// Reads the body; groups that were complete are taken out of `groups` and handed to the pool.
async fn read(
    request: &Request<dyn Origin>,
    shared: &Arc<Shared>,
    orders: &mut watch::Receiver<Orders>,
    events: &UnboundedSender<Event>,
    groups: &mut VecDeque<Group>,
) -> Result<(), Refusal> {
    let mut stream = Stream {
        request,
        events,
        meter: Meter::new(request, Arc::clone(&shared.metrics)),
        body: None,
        position: request.range.start,
        rest: Bytes::new(),
    };
    let mut batch = Batch::new(
        request,
        &shared.pool,
        events,
        &shared.metrics,
        orders.clone(),
    );
    while let Some(group) = groups.front() {
        // Only where no permit is held: a body that stands still must not keep others from moving.
        if orders.borrow().hold {
            batch.send();
            let _ = orders.wait_for(|orders| !orders.hold).await;
        }
        let (permit, urgent) = loop {
            let urgent = batch.is_urgent();
            let budget = match urgent {
                true => &shared.demand_budget,
                false => &shared.ahead_budget,
            };
            if let Some(permit) = budget.try_take(&request.host, group.cost()) {
                break (Some(permit), urgent);
            }
            batch.send();
            let room = budget.take(&request.host, group.cost());
            tokio::select! {
                permit = room => break (permit, urgent),
                // A reader does not wait behind what is read ahead, nor behind what was hurried for one that has gone.
                Ok(_) = orders.wait_for(|orders| orders.hurry != urgent), if request.lane != Lane::Demand => {}
            }
        };
        let bytes = group.span.end.saturating_sub(stream.position);
        let allowed = SLOW_START + Duration::from_secs(bytes / SLOWEST);
        let came = {
            let coming = tokio::time::timeout(allowed, stream.group(group));
            tokio::pin!(coming);
            match futures_util::poll!(coming.as_mut()) {
                Poll::Ready(came) => came,
                // What is here does not wait for what is not.
                Poll::Pending => {
                    batch.send();
                    coming.await
                }
            }
        };
        let span = came.map_err(|_| Refusal {
            why: format!(
                "{bytes} bytes of the layer did not come within {} s",
                allowed.as_secs()
            ),
            retry: Some(Duration::ZERO),
        })??;
        if let Some(group) = groups.pop_front() {
            batch.add(group.span.start, span, group.chunks, permit, urgent);
        }
    }
    batch.send();
    stream.drain().await;
    Ok(())
}

/// A request's body and how far it was read.
struct Stream<'a> {
    request: &'a Request<dyn Origin>,
    events: &'a UnboundedSender<Event>,
    meter: Meter,
    body: Option<Box<dyn Body>>,
    position: u64,
    /// Read and not used.
    rest: Bytes,
}

impl Stream<'_> {
    /// The bytes of the next group; what lies before it is thrown away.
    async fn group(&mut self, group: &Group) -> Result<Vec<u8>, Refusal> {
        let body = match &mut self.body {
            Some(body) => body,
            None => {
                let range = self.request.range.clone();
                let opened = self.request.blob.open(self.request.source, range).await;
                if !opened.as_ref().is_ok_and(|body| body.is_early()) {
                    let lane = ByLane {
                        lane: self.request.lane,
                    };
                    self.meter.metrics.requests.get_or_create(&lane).inc();
                }
                let opened = opened?;
                // What was asked for before says nothing of the link.
                if !opened.is_early() {
                    let request = self.request.id;
                    let _ = self.events.send(Event::Flowing { request });
                }
                self.body.insert(opened)
            }
        };
        let mut span = Vec::new();
        while self.position < group.span.end {
            if self.rest.is_empty() {
                self.rest = next_piece(body.as_mut(), self.position, &self.request.range).await?;
                self.meter.count(self.rest.len() as u64);
            }
            let before = group.span.start.saturating_sub(self.position);
            let dropped = self.rest.split_to(at_most(self.rest.len(), before));
            self.position += dropped.len() as u64;
            let wanted = (group.span.end - self.position).min(group.span.end - group.span.start);
            if self.position >= group.span.start {
                let taken = self.rest.split_to(at_most(self.rest.len(), wanted));
                self.position += taken.len() as u64;
                if span.is_empty() && taken.len() as u64 == group.span.end - group.span.start {
                    // Usual for small chunks: it came in one piece.
                    span = Vec::from(taken);
                } else {
                    span.extend_from_slice(&taken);
                }
            }
        }
        Ok(span)
    }

    /// Takes the body to its end, so that the connection can be used again; all that was wanted is here.
    async fn drain(&mut self) {
        let Some(body) = &mut self.body else { return };
        let rest = async {
            while let Some(Ok(piece)) = body.next().await {
                self.meter.count(piece.len() as u64);
            }
        };
        // A connection that does not end soon is not worth the wait.
        let _ = tokio::time::timeout(Duration::from_secs(1), rest).await;
    }
}

async fn next_piece(
    body: &mut dyn Body,
    position: u64,
    range: &Range<u64>,
) -> Result<Bytes, Refusal> {
    loop {
        match body.next().await {
            Some(Ok(piece)) if piece.is_empty() => {}
            Some(piece) => return piece,
            None => {
                return Err(Refusal {
                    why: format!(
                        "the answer ended at byte {position} instead of {}",
                        range.end
                    ),
                    retry: Some(Duration::ZERO),
                });
            }
        }
    }
}

fn at_most(len: usize, limit: u64) -> usize {
    usize::try_from(limit).map_or(len, |limit| limit.min(len))
}

/// Counts the bytes of a body in the lanes of the chunks they belong to.
struct Meter {
    /// Ends of stretches, in order, with their lanes.
    stretches: VecDeque<(u64, Lane)>,
    position: u64,
    metrics: Arc<Metrics>,
}

impl Meter {
    fn new(request: &Request<dyn Origin>, metrics: Arc<Metrics>) -> Self {
        let mut spans: Vec<_> = request
            .chunks
            .iter()
            .filter_map(|(chunk, lane)| Some((request.blob.chunk(*chunk).ok()?.span, *lane)))
            .collect();
        spans.sort_by_key(|(span, _)| span.start);
        let mut stretches = VecDeque::new();
        let mut position = request.range.start;
        for (span, lane) in spans {
            if span.start > position {
                stretches.push_back((span.start, Lane::Gap));
            }
            if span.end > position {
                position = span.end;
                stretches.push_back((position, lane));
            }
        }
        stretches.push_back((u64::MAX, Lane::Gap));
        Self {
            stretches,
            position: request.range.start,
            metrics,
        }
    }

    fn count(&mut self, bytes: u64) {
        let end = self.position + bytes;
        while self.position < end {
            let Some((stretch, lane)) = self.stretches.front().copied() else {
                return;
            };
            let step = stretch.min(end) - self.position;
            let lane = ByLane { lane };
            self.metrics.fetched_bytes.get_or_create(&lane).inc_by(step);
            self.position += step;
            if self.position == stretch {
                self.stretches.pop_front();
            }
        }
    }
}
