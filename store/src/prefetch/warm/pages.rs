//! Pages: from the cache's data file into the kernel's page cache.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, mpsc},
    time::Duration,
};

use tokio::sync::oneshot;

use super::PageStore;
use crate::{
    als, cache::CacheError, format::index::IndexError, prefetch::plan::PlannedPages, sys::priority,
};

/// How often is looked for chunks that arrived.
const PACE: Duration = Duration::from_millis(10);
/// How many of those that wait are looked at each time: chunks come in about the order in which pages are wanted.
const LOOK: usize = 4096;
/// Bytes stored by one message, a multiple of a page.
const PIECE: usize = 128 << 10;

struct Waiting {
    pages: PlannedPages,
    chunks: Range<u32>,
    data_offset: u64,
}

/// Stores within the budget, in order; answers the bytes stored.
pub(super) async fn warm(
    store: &Arc<dyn PageStore>,
    pages: Vec<PlannedPages>,
    budget: u64,
    arriving: impl Future<Output = ()>,
) -> u64 {
    let Ok(waiting) = tokio::task::spawn_blocking(move || within(pages, budget)).await else {
        return 0;
    };
    let mut waiting = VecDeque::from(waiting);
    let Ok(filler) = Filler::start(Arc::clone(store)) else {
        return 0;
    };
    tokio::pin!(arriving);
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut stored, mut all_here) = (0, false);
    loop {
        let look = if all_here {
            waiting.len()
        } else {
            LOOK.min(waiting.len())
        };
        let here = |waiting: &Waiting| {
            let cache = &waiting.pages.layer.cache;
            cache.all_present(waiting.chunks.clone())
        };
        let (ready, not_yet): (Vec<_>, Vec<_>) = waiting.drain(..look).partition(here);
        for waits in not_yet.into_iter().rev() {
            waiting.push_front(waits);
        }
        let more = !ready.is_empty() && waiting.len() > LOOK;
        if !ready.is_empty() {
            stored += filler.put(ready).await;
        }
        if waiting.is_empty() || all_here {
            return stored;
        }
        if more {
            continue;
        }
        tokio::select! {
            () = &mut arriving => all_here = true,
            _ = pace.tick() => {}
        }
    }
}

/// A thread that stores pages: it has work to do on the processors that the start needs more, and gives way to it.
struct Filler(mpsc::Sender<(Vec<Waiting>, oneshot::Sender<u64>)>);

impl Filler {
    /// It ends when this is dropped.
    fn start(store: Arc<dyn PageStore>) -> std::io::Result<Self> {
        let (work, queue) = mpsc::channel::<(Vec<Waiting>, oneshot::Sender<u64>)>();
        std::thread::Builder::new()
            .name("pages".to_owned())
            .spawn(move || {
                priority::give_way();
                for (ready, reply) in queue {
                    // Whoever asked may be gone.
                    let _ = reply.send(put(store.as_ref(), &ready));
                }
            })?;
        Ok(Self(work))
    }

    async fn put(&self, ready: Vec<Waiting>) -> u64 {
        let (reply, stored) = oneshot::channel();
        if self.0.send((ready, reply)).is_err() {
            return 0;
        }
        stored.await.unwrap_or(0)
    }
}

/// The first pages that fit the budget, with the chunks they lie in.
fn within(pages: Vec<PlannedPages>, mut budget: u64) -> Vec<Waiting> {
    let mut waiting = Vec::with_capacity(pages.len());
    for pages in pages {
        let bytes = pages.bytes.end - pages.bytes.start;
        if bytes > budget {
            break;
        }
        budget -= bytes;
        match place(&pages) {
            Ok(Some((chunks, data_offset))) => waiting.push(Waiting {
                pages,
                chunks,
                data_offset,
            }),
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "pages cannot be warmed"),
        }
    }
    waiting
}

/// The chunks that hold the pages, and where in the data file they begin.
fn place(pages: &PlannedPages) -> Result<Option<(Range<u32>, u64)>, IndexError> {
    let index = &pages.layer.index;
    let chunks = index.chunks_covering(pages.node, pages.bytes.clone())?;
    if chunks.is_empty() {
        return Ok(None);
    }
    Ok(index.chunk(chunks.start)?.and_then(|first| {
        // A file's chunks lie together in the data file.
        let into = pages.bytes.start.checked_sub(first.file_offset)?;
        Some((chunks, first.data_offset.checked_add(into)?))
    }))
}

fn put(store: &dyn PageStore, ready: &[Waiting]) -> u64 {
    let mut buffer = vec![0; PIECE];
    let mut stored = 0;
    for waiting in ready {
        match put_one(store, waiting, &mut buffer) {
            Ok(bytes) => stored += bytes,
            Err(Stop::Cache(error)) => tracing::debug!(%error, "pages cannot be warmed"),
            Err(Stop::Kernel(error)) => {
                tracing::debug!(%error, "the kernel takes no pages");
                return stored;
            }
        }
    }
    stored
}

enum Stop {
    Cache(CacheError),
    Kernel(als::WarmError),
}

fn put_one(store: &dyn PageStore, waiting: &Waiting, buffer: &mut [u8]) -> Result<u64, Stop> {
    let PlannedPages {
        layer, node, bytes, ..
    } = &waiting.pages;
    let (mut at, mut stored) = (bytes.start, 0);
    while at < bytes.end {
        let length = usize::try_from(bytes.end - at).unwrap_or(PIECE).min(PIECE);
        let piece = &mut buffer[..length];
        layer
            .cache
            .read_at(waiting.data_offset + (at - bytes.start), piece)
            .map_err(Stop::Cache)?;
        stored += store.store(layer, *node, at, piece).map_err(Stop::Kernel)?;
        at += length as u64;
    }
    Ok(stored)
}
