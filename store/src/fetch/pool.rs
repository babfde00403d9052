//! The decode and verify pool: threads of its own, so that hashing never delays the network or a FUSE reply.
//!
//! What waits here is bounded by the permits that jobs carry. Idle threads sleep without waking up.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use parking_lot::{Condvar, Mutex};

use super::decode::Decoders;

/// What a thread does.
pub(super) type Job = Box<dyn FnOnce(&mut Decoders) + Send>;

/// A handle to the threads; they end when the last one is dropped.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queues: Mutex<Queues>,
    more: Condvar,
}

#[derive(Default)]
struct Queues {
    /// A reader waits for these.
    urgent: VecDeque<Job>,
    other: VecDeque<Job>,
    closed: bool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let queues = self.queues.lock();
        write!(f, "Pool({}, {})", queues.urgent.len(), queues.other.len())
    }
}

impl Pool {
    /// Starts `threads` threads; 0: one a processor.
    pub(super) fn start(threads: usize) -> std::io::Result<Self> {
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let pool = Self {
            shared: Arc::default(),
        };
        for n in 0..threads {
            let shared = Arc::clone(&pool.shared);
            let mut decoders = Decoders::new()?;
            std::thread::Builder::new()
                .name(format!("decode-{n}"))
                .spawn(move || work(&shared, &mut decoders))?;
        }
        Ok(pool)
    }

    /// Puts a job behind the others of its kind.
    pub(super) fn submit(&self, urgent: bool, job: Job) {
        let mut queues = self.shared.queues.lock();
        if urgent {
            queues.urgent.push_back(job);
        } else {
            queues.other.push_back(job);
        }
        drop(queues);
        self.shared.more.notify_one();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut queues = self.shared.queues.lock();
        queues.closed = true;
        // Jobs hold senders and permits of a scheduler that is gone.
        let left = (
            std::mem::take(&mut queues.urgent),
            std::mem::take(&mut queues.other),
        );
        drop(queues);
        drop(left);
        self.shared.more.notify_all();
    }
}

fn work(shared: &Shared, decoders: &mut Decoders) {
    loop {
        let mut queues = shared.queues.lock();
        let job = loop {
            if queues.closed {
                return;
            }
            let next = queues.urgent.pop_front();
            if let Some(job) = next.or_else(|| queues.other.pop_front()) {
                break job;
            }
            shared.more.wait(&mut queues);
        };
        drop(queues);
        // A thread less would be felt for the rest of the store's life; the job's own guard tells who waits.
        if catch_unwind(AssertUnwindSafe(|| job(decoders))).is_err() {
            tracing::error!("a decode job panicked; its chunks count as not brought");
        }
    }
}
