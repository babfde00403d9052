//! READs that wait for chunks, and pages being put into the page cache: who must not meet whom.
//!
//! A READ that is out keeps its pages locked, and the kernel lets a store of such a page wait, uninterruptibly, until the
//! READ is answered. Invariant: when the store stops, no thread is left in such a wait, or every READ gets an answer:
//! else the process could not end and the next store would never get the mounts.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

/// How often is looked whether the last store of pages has returned.
const PACE: Duration = Duration::from_millis(5);

/// Shared by the data mounts and [`super::Warm`].
#[derive(Debug, Default)]
pub(crate) struct Reading {
    /// READs that wait, by inode.
    waiting: Mutex<HashMap<u64, u32>>,
    /// Threads that put pages into the page cache.
    storing: AtomicUsize,
    /// No more pages are stored.
    closed: AtomicBool,
    /// A READ that cannot be answered any more gets EIO instead of being left to the next store.
    answer_all: AtomicBool,
}

/// A READ that waits; until it is dropped.
pub(super) struct Waits(Arc<Reading>, u64);

impl Drop for Waits {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting.lock();
        if let Some(count) = waiting.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.1);
            }
        }
    }
}

impl Reading {
    /// A READ of this inode waits from now on.
    pub(super) fn waits(self: &Arc<Self>, ino: u64) -> Waits {
        *self.waiting.lock().entry(ino).or_default() += 1;
        Waits(Arc::clone(self), ino)
    }

    /// Stores pages of this inode, unless a READ of it waits (which brings them anyway); `None` after the end.
    pub(super) fn store<T>(&self, ino: u64, store: impl FnOnce() -> T) -> Option<Option<T>> {
        // Counted before it is looked whether it may: whoever closes sees one or the other.
        self.storing.fetch_add(1, Ordering::SeqCst);
        let stored = (!self.closed.load(Ordering::SeqCst)).then(|| {
            let free = !self.waiting.lock().contains_key(&ino);
            free.then(store)
        });
        self.storing.fetch_sub(1, Ordering::SeqCst);
        stored
    }

    /// No pages are stored any more; waits until those under way are. If that takes longer than `patience`, READs that
    /// are not answered in time are answered with EIO, which frees the pages.
    pub(super) async fn close(&self, patience: Duration) {
        self.closed.store(true, Ordering::SeqCst);
        let idle = async {
            let mut pace = tokio::time::interval(PACE);
            while self.storing.load(Ordering::SeqCst) > 0 {
                pace.tick().await;
            }
        };
        if tokio::time::timeout(patience, idle).await.is_err() {
            tracing::warn!("pages wait for a read that waits for the registry: it gets an error");
            self.answer_all.store(true, Ordering::SeqCst);
        }
    }

    /// Whether READs must be answered although the store is stopping.
    pub(super) fn answers_all(&self) -> bool {
        self.answer_all.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::sync::mpsc;

    use super::*;

    #[test]
    fn pages_of_a_file_whose_read_waits_are_not_stored() {
        let reading = Arc::<Reading>::default();
        let (first, second) = (reading.waits(7), reading.waits(7));
        assert_eq!(reading.store(7, || 1), Some(None));
        assert_eq!(reading.store(8, || 1), Some(Some(1)));
        drop(first);
        assert_eq!(reading.store(7, || 1), Some(None));
        drop(second);
        assert_eq!(reading.store(7, || 1), Some(Some(1)));
        assert!(reading.waiting.lock().is_empty());
    }

    #[tokio::test]
    async fn after_the_end_nothing_is_stored_and_who_hangs_frees_the_reads() {
        let reading = Arc::<Reading>::default();
        let (go, wait) = mpsc::channel::<()>();
        let (began, begun) = mpsc::channel();
        let other = Arc::clone(&reading);
        let thread = std::thread::spawn(move || {
            other.store(7, || {
                began.send(()).ok();
                wait.recv().ok();
            })
        });
        begun.recv().unwrap();
        reading.close(Duration::from_millis(20)).await;
        assert!(reading.answers_all());
        assert_eq!(reading.store(9, || 1), None);
        drop(go);
        assert_eq!(thread.join().unwrap(), Some(Some(())));

        let quiet = Arc::<Reading>::default();
        quiet.close(Duration::from_secs(60)).await;
        assert!(!quiet.answers_all());
    }
}
