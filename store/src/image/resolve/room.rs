//! How much memory the TOCs of images that are being resolved take together, however many images and layers there are.
//!
//! Invariant: room is taken in the order tail, section, build, each after the one before, and whoever has a later one
//! asks for no earlier one: so somebody can always go on.

use std::{num::NonZero, sync::Arc, thread};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// KiB of the ends of blobs that are looked at for a footer.
const TAILS: u32 = 256 << 10;
/// KiB of compressed TOCs: one of the largest that `limits.max_toc_bytes` allows by default, and many others.
const SECTIONS: u32 = 1 << 20;

/// Room for TOCs.
#[derive(Debug)]
pub(in crate::image) struct Room {
    tails: Semaphore,
    sections: Semaphore,
    builds: Arc<Semaphore>,
}

impl Room {
    pub(in crate::image) fn new() -> Self {
        let builds = thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            tails: Semaphore::new(TAILS as usize),
            sections: Semaphore::new(SECTIONS as usize),
            builds: Arc::new(Semaphore::new(builds)),
        }
    }

    /// Waits until so many bytes of a blob's end may be held.
    pub(super) async fn tail(&self, bytes: u64) -> Option<SemaphorePermit<'_>> {
        // Closing is nobody's habit here, so a permit always comes.
        self.tails.acquire_many(kib(bytes, TAILS)).await.ok()
    }

    /// Waits until a compressed TOC of so many bytes may be held.
    pub(super) async fn section(&self, bytes: u64) -> Option<SemaphorePermit<'_>> {
        self.sections.acquire_many(kib(bytes, SECTIONS)).await.ok()
    }

    /// Waits for a processor: more builds at once would only hold more memory.
    pub(super) async fn build(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.builds).acquire_owned().await.ok()
    }
}

/// What is larger than all there is gets all: it waits until it is alone.
fn kib(bytes: u64, all: u32) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).map_or(all, |kib| kib.min(all))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn tocs_wait_for_each_other_when_they_would_not_fit() {
        let room = Room::new();
        let half = u64::from(SECTIONS) * 512;
        let first = room.section(half).now_or_never().unwrap().unwrap();
        let second = room.section(half).now_or_never().unwrap().unwrap();
        assert!(room.section(1).now_or_never().is_none());
        assert!(
            room.tail(u64::MAX).now_or_never().is_some(),
            "a room of its own"
        );
        drop(first);
        assert!(room.section(half).now_or_never().is_some());
        assert!(room.section(u64::MAX).now_or_never().is_none());
        drop(second);
        assert!(room.section(u64::MAX).now_or_never().is_some());
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        let builds: Vec<_> = (0..processors)
            .map(|_| room.build().now_or_never().unwrap())
            .collect();
        assert!(room.build().now_or_never().is_none());
        drop(builds);
    }
}
