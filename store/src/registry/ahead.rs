//! Bytes that are asked for before anybody can know that they will be needed: what an earlier pull of an image asked
//! for, asked for again while its manifest is on its way. Whoever asks for such bytes later gets them from here.
//!
//! Invariants: nothing here is believed, since whoever takes the bytes compares them with the digest that the manifest
//! leads to; bytes are handed out once, since whoever asks again found them wrong or lost them, and only under the
//! repository and blob that they were asked of; what is held is bounded by what the caller asked for and gone when its
//! [`Ahead`] is dropped; a failure here is nobody's failure, and nobody waits for what will not come.

mod headway;

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use self::headway::Headway;
use super::{Client, Repository};
use crate::{
    digest::Digest,
    metrics::{ByLane, Lane, Metrics},
};

/// One range to ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Early {
    /// The blob.
    pub blob: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Which bytes.
    pub range: Range<u64>,
    /// In which lane the request is counted.
    pub lane: Lane,
    /// Not before the [`Lane::Metadata`] ranges have nearly come: it would take the link from them.
    pub later: bool,
}

/// What all clones of a client hold.
#[derive(Debug, Default)]
pub(super) struct Shelf(Mutex<HashMap<Digest, Vec<Arc<Piece>>>>);

/// A range on its way or here.
#[derive(Debug)]
pub(super) struct Piece {
    repository: Repository,
    size: u64,
    pub(super) range: Range<u64>,
    parts: Mutex<Vec<Bytes>>,
    /// What was handed out.
    taken: Mutex<Vec<Range<u64>>>,
    progress: watch::Sender<Progress>,
    /// Told of all progress.
    told: Option<Arc<Notify>>,
    used: AtomicU64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Progress {
    received: u64,
    /// Nothing more will come; what is missing must be asked for again.
    over: bool,
}

/// Requests made ahead; dropping it lets go of what was not used.
#[derive(Debug)]
pub struct Ahead {
    close: CancellationToken,
    gone: CancellationToken,
}

impl Ahead {
    /// Starts nothing more; what is on its way still comes.
    pub fn close(&self) {
        self.close.cancel();
    }

    /// Cancelled when it is dropped; cancelling it lets go of everything sooner.
    #[must_use]
    pub fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.close.cancel();
        self.gone.cancel();
    }
}

impl Client {
    /// Asks a repository for these ranges, in this order, `at_once` at a time. Nobody waits for it.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn ahead(&self, repository: &Repository, wanted: Vec<Early>, at_once: usize) -> Ahead {
        let (close, gone) = (CancellationToken::new(), CancellationToken::new());
        let run = run(
            self.clone(),
            repository.clone(),
            wanted,
            at_once.max(1),
            close.clone(),
            gone.clone(),
        );
        tokio::spawn(run);
        Ahead { close, gone }
    }

    /// Whether there is anything of a blob.
    #[must_use]
    pub fn has_early(&self, blob: &Digest) -> bool {
        self.inner.shelf.0.lock().contains_key(blob)
    }

    /// The range around `span` that is here or on its way, if `span` lies in one and was not handed out.
    #[must_use]
    pub fn early(
        &self,
        repository: &Repository,
        blob: &Digest,
        span: &Range<u64>,
    ) -> Option<Range<u64>> {
        let piece = self.inner.shelf.piece(repository, blob, span)?;
        Some(piece.range.clone())
    }
}

async fn run(
    client: Client,
    repository: Repository,
    wanted: Vec<Early>,
    at_once: usize,
    close: CancellationToken,
    gone: CancellationToken,
) {
    let (first, later): (VecDeque<_>, VecDeque<_>) =
        wanted.into_iter().partition(|early| !early.later);
    let (mut queue, mut later) = (first, Some(later));
    let mut pieces = Vec::new();
    let mut metadata = Headway::default();
    let mut tasks = JoinSet::new();
    loop {
        let asked = || !queue.iter().any(|early| early.lane == Lane::Metadata);
        if later.is_some() && asked() && metadata.is_nearly_over(Instant::now()) {
            queue.extend(later.take().unwrap_or_default());
        }
        while tasks.len() < at_once
            && !close.is_cancelled()
            && let Some(early) = queue.pop_front()
        {
            let told = (early.lane == Lane::Metadata).then(|| Arc::clone(&metadata.told));
            if let Some(piece) = client.inner.shelf.put(&repository, &early, told) {
                pieces.push((early.blob, Arc::clone(&piece)));
                if early.lane == Lane::Metadata {
                    metadata.asked(Instant::now(), &piece);
                }
                let client = client.clone();
                tasks.spawn(async move { fill(&client, &early, &piece).await });
            }
        }
        tokio::select! {
            () = gone.cancelled() => break,
            Some(came) = tasks.join_next() => {
                // Whoever refuses one is asked no more of what nobody waits for.
                if !came.unwrap_or(false) {
                    queue.clear();
                    later = None;
                }
            }
            () = metadata.news(), if later.is_some() => {}
            () = close.cancelled(), if !queue.is_empty() || later.is_some() => {
                queue.clear();
                later = None;
            }
            else => {
                gone.cancelled().await;
                break;
            }
        }
    }
    drop_all(&client, &pieces);
}

fn drop_all(client: &Client, pieces: &[(Digest, Arc<Piece>)]) {
    for (blob, piece) in pieces {
        client.inner.shelf.take(blob, piece);
        piece.end(&client.inner.metrics);
    }
}

/// Asks for a range and keeps what comes; whether that was all of it.
async fn fill(client: &Client, early: &Early, piece: &Arc<Piece>) -> bool {
    // However this ends, also when it is aborted: who waits for more asks for it then.
    let _over = Over(piece);
    let lane = ByLane { lane: early.lane };
    let metrics = &client.inner.metrics;
    metrics.requests.get_or_create(&lane).inc();
    let body = client.open_network(
        &piece.repository,
        &early.blob,
        early.size,
        &early.range,
        true,
    );
    let result = async {
        let mut body = body.await?;
        while let Some(part) = body.next().await {
            piece.add(part?);
        }
        Ok::<_, super::RegistryError>(())
    };
    if let Err(error) = result.await {
        tracing::debug!(%error, "bytes asked for ahead did not come");
    }
    let all = piece.received() >= piece.len();
    if !all {
        client.inner.shelf.take(&early.blob, piece);
    }
    all
}

/// Tells those who wait that nothing more comes.
struct Over<'a>(&'a Piece);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.tell(|progress| progress.over = true);
    }
}

impl Shelf {
    /// A place for a range, unless some of it is there.
    fn put(
        &self,
        repository: &Repository,
        early: &Early,
        told: Option<Arc<Notify>>,
    ) -> Option<Arc<Piece>> {
        let mut blobs = self.0.lock();
        let pieces = blobs.entry(early.blob).or_default();
        let overlaps = |piece: &Arc<Piece>| {
            piece.range.start < early.range.end && early.range.start < piece.range.end
        };
        if early.range.is_empty() || early.range.end > early.size || pieces.iter().any(overlaps) {
            return None;
        }
        let piece = Arc::new(Piece {
            repository: repository.clone(),
            size: early.size,
            range: early.range.clone(),
            parts: Mutex::default(),
            taken: Mutex::default(),
            progress: watch::channel(Progress::default()).0,
            told,
            used: AtomicU64::new(0),
        });
        let place = pieces.partition_point(|other| other.range.start < early.range.start);
        pieces.insert(place, Arc::clone(&piece));
        Some(piece)
    }

    fn take(&self, blob: &Digest, piece: &Arc<Piece>) {
        let mut blobs = self.0.lock();
        if let Some(pieces) = blobs.get_mut(blob) {
            pieces.retain(|other| !Arc::ptr_eq(other, piece));
            if pieces.is_empty() {
                blobs.remove(blob);
            }
        }
    }

    /// The range that holds a span of which nothing was handed out.
    fn piece(
        &self,
        repository: &Repository,
        blob: &Digest,
        span: &Range<u64>,
    ) -> Option<Arc<Piece>> {
        let blobs = self.0.lock();
        let pieces = blobs.get(blob)?;
        let before = pieces.partition_point(|piece| piece.range.start <= span.start);
        let piece = pieces.get(before.checked_sub(1)?)?;
        (span.end <= piece.range.end && piece.repository == *repository && piece.is_free(span))
            .then(|| Arc::clone(piece))
    }

    /// Hands a span out, from as many ranges as it lies in without a gap: nobody else gets it from here.
    pub(super) fn hand_out(
        &self,
        repository: &Repository,
        blob: &Digest,
        span: &Range<u64>,
    ) -> Option<VecDeque<Arc<Piece>>> {
        let blobs = self.0.lock();
        let pieces = blobs.get(blob)?;
        let before = pieces.partition_point(|piece| piece.range.start <= span.start);
        let (mut parts, mut end) = (VecDeque::new(), span.start);
        for piece in pieces.get(before.checked_sub(1)?..)? {
            if end >= span.end {
                break;
            }
            if piece.range.start > end || piece.range.end <= end || piece.repository != *repository
            {
                return None;
            }
            let part = end..piece.range.end.min(span.end);
            if !piece.is_free(&part) {
                return None;
            }
            end = part.end;
            parts.push_back((Arc::clone(piece), part));
        }
        if end < span.end {
            return None;
        }
        // All of it or nothing: whoever hands out holds the lock.
        let taken = parts.into_iter().map(|(piece, part)| {
            piece.taken.lock().push(part);
            piece
        });
        Some(taken.collect())
    }

    /// Hands out a whole blob of whatever size.
    pub(super) fn hand_out_whole(
        &self,
        repository: &Repository,
        blob: &Digest,
    ) -> Option<Arc<Piece>> {
        let size = self.0.lock().get(blob)?.first()?.size;
        let mut pieces = self.hand_out(repository, blob, &(0..size))?;
        pieces.pop_front().filter(|piece| piece.range == (0..size))
    }
}

impl Piece {
    /// Whether nothing of a span was handed out.
    fn is_free(&self, span: &Range<u64>) -> bool {
        let taken = self.taken.lock();
        let overlaps = |taken: &Range<u64>| taken.start < span.end && span.start < taken.end;
        !taken.iter().any(overlaps)
    }

    fn add(&self, part: Bytes) {
        let received = part.len() as u64;
        self.parts.lock().push(part);
        self.tell(|progress| progress.received += received);
    }

    fn tell(&self, change: impl FnOnce(&mut Progress)) {
        self.progress.send_modify(change);
        if let Some(told) = &self.told {
            told.notify_one();
        }
    }

    const fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn received(&self) -> u64 {
        self.progress.borrow().received
    }

    /// The next bytes from `position` (an offset in the blob) on, at most up to `end`; waits for them. `None`: they will
    /// not come from here.
    pub(super) async fn read(&self, position: u64, end: u64) -> Option<Bytes> {
        if !self.range.contains(&position) {
            return None;
        }
        let from = position.checked_sub(self.range.start)?;
        let mut progress = self.progress.subscribe();
        // The sender lives as long as the piece.
        let _ = progress
            .wait_for(|progress| progress.received > from || progress.over)
            .await;
        let mut start = 0;
        for part in self.parts.lock().iter() {
            let next = start + part.len() as u64;
            if from < next {
                let into = usize::try_from(from - start).ok()?;
                let left = usize::try_from(end - position).unwrap_or(usize::MAX);
                let bytes = part.slice(into..part.len().min(into.saturating_add(left)));
                self.used.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                return Some(bytes);
            }
            start = next;
        }
        None
    }

    /// Whether the byte before this place is its last.
    pub(super) const fn ends_at(&self, position: u64) -> bool {
        self.range.end == position
    }

    /// All of a range in it.
    pub(super) async fn collect(&self, range: Range<u64>) -> Option<Bytes> {
        let mut all = BytesMut::new();
        let mut position = range.start;
        while position < range.end {
            let bytes = self.read(position, range.end).await?;
            position += bytes.len() as u64;
            all.extend_from_slice(&bytes);
        }
        Some(all.freeze())
    }

    /// Bytes that came and were not asked for.
    fn end(&self, metrics: &Metrics) {
        let unused = self
            .received()
            .saturating_sub(self.used.load(Ordering::Relaxed));
        let lane = ByLane { lane: Lane::Gap };
        metrics.fetched_bytes.get_or_create(&lane).inc_by(unused);
    }
}
