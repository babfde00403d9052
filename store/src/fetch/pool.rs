//! The decode and verify pool: threads of its own, so that hashing never delays the network or a FUSE reply.
//!
//! What waits here is bounded by the permits that jobs carry. Idle threads sleep without waking up. What is decoded
//! ahead of need gives way to everything else on the machine, first of all to the start that it is for: before the
//! container runs, an engine and its runtime need the processors, and until then most of the bytes have come.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use parking_lot::{Condvar, Mutex};

use super::{decode::Decoders, scheduler::RequestId};
use crate::sys::priority;

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
    urgent: Condvar,
    other: Condvar,
}

#[derive(Default)]
struct Queues {
    /// A reader waits for these.
    urgent: VecDeque<Job>,
    /// The rest, with the requests that they are of.
    other: VecDeque<(Option<RequestId>, Job)>,
    /// Threads for urgent jobs that have none.
    idle_urgent: usize,
    closed: bool,
}

impl Queues {
    /// Whether more is urgent than the threads that have nothing else to do can take.
    fn needs_help(&self) -> bool {
        self.urgent.len() > self.idle_urgent
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let queues = self.queues.lock();
        write!(f, "Pool({}, {})", queues.urgent.len(), queues.other.len())
    }
}

impl Pool {
    /// Starts `threads` threads for what is ahead of need, 0: one a processor but one; and half as many for what a
    /// reader waits for.
    pub(super) fn start(threads: usize) -> std::io::Result<Self> {
        let threads = match threads {
            // What an engine starts meanwhile has a processor to itself: one decodes more than most links carry.
            0 => std::thread::available_parallelism().map_or(1, |n| (n.get() - 1).max(1)),
            n => n,
        };
        let pool = Self {
            shared: Arc::default(),
        };
        let urgent = threads.div_ceil(2);
        for n in 0..threads + urgent {
            let shared = Arc::clone(&pool.shared);
            let mut decoders = Decoders::new()?;
            let ahead = n < threads;
            let name = if ahead {
                format!("decode-{n}")
            } else {
                format!("urgent-{}", n - threads)
            };
            std::thread::Builder::new().name(name).spawn(move || {
                if ahead {
                    priority::give_way();
                }
                work(&shared, &mut decoders, ahead);
            })?;
        }
        Ok(pool)
    }

    /// Puts a job that a reader waits for behind the others of its kind.
    pub(super) fn submit_urgent(&self, job: Job) {
        let mut queues = self.shared.queues.lock();
        queues.urgent.push_back(job);
        let help = queues.needs_help();
        drop(queues);
        self.shared.urgent.notify_one();
        if help {
            self.shared.other.notify_one();
        }
    }

    /// Puts a job that nobody waits for behind the others of its kind; [`Pool::hurry`] finds it by its request.
    pub(super) fn submit(&self, request: Option<RequestId>, job: Job) {
        self.shared.queues.lock().other.push_back((request, job));
        self.shared.other.notify_one();
    }

    /// A reader came for what a request brings: its jobs that wait are urgent now.
    pub(super) fn hurry(&self, request: RequestId) {
        let mut queues = self.shared.queues.lock();
        if queues.other.iter().all(|(of, _)| *of != Some(request)) {
            return;
        }
        for (of, job) in std::mem::take(&mut queues.other) {
            if of == Some(request) {
                queues.urgent.push_back(job);
            } else {
                queues.other.push_back((of, job));
            }
        }
        let help = queues.needs_help();
        drop(queues);
        self.shared.urgent.notify_all();
        if help {
            self.shared.other.notify_all();
        }
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
        self.shared.urgent.notify_all();
        self.shared.other.notify_all();
    }
}

/// `ahead`: also what nobody waits for yet, and what is urgent only if nobody else is free for it.
fn work(shared: &Shared, decoders: &mut Decoders, ahead: bool) {
    loop {
        let mut queues = shared.queues.lock();
        let job = loop {
            if queues.closed {
                return;
            }
            if (!ahead || queues.needs_help())
                && let Some(job) = queues.urgent.pop_front()
            {
                break job;
            }
            if !ahead {
                queues.idle_urgent += 1;
                shared.urgent.wait(&mut queues);
                queues.idle_urgent -= 1;
            } else if let Some((_, job)) = queues.other.pop_front() {
                break job;
            } else {
                shared.other.wait(&mut queues);
            }
        };
        drop(queues);
        // A thread less would be felt for the rest of the store's life; the job's own guard tells who waits.
        if catch_unwind(AssertUnwindSafe(|| job(decoders))).is_err() {
            tracing::error!("a decode job panicked; its chunks count as not brought");
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::{sync::mpsc, time::Duration};

    use super::*;

    /// A bound against hanging.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// A job that says so and then waits until it may end.
    fn held(begun: &mpsc::Sender<String>) -> (Job, mpsc::Sender<()>) {
        let (end, ended) = mpsc::channel();
        let begun = begun.clone();
        let job = move |_: &mut Decoders| {
            let thread = std::thread::current();
            begun.send(thread.name().unwrap().to_owned()).unwrap();
            // It ends with its sender too.
            let _ = ended.recv();
        };
        (Box::new(job), end)
    }

    #[test]
    fn what_a_reader_waits_for_has_its_own_threads_and_help_where_it_is_more() {
        // Two that work ahead and one for readers.
        let pool = Pool::start(2).unwrap();
        let (begun, names) = mpsc::channel();
        let next = || names.recv_timeout(PATIENCE).unwrap();
        let mut ends = Vec::new();
        let mut submit = |urgent| {
            let (job, end) = held(&begun);
            match urgent {
                true => pool.submit_urgent(job),
                false => pool.submit(None, job),
            }
            ends.push(end);
        };
        submit(false);
        submit(false);
        let mut ahead = [next(), next()];
        ahead.sort();
        assert_eq!(ahead, ["decode-0", "decode-1"]);
        submit(false);
        submit(true);
        assert_eq!(next(), "urgent-0", "all others are busy");
        assert!(
            names.try_recv().is_err(),
            "nobody else takes what is ahead of need"
        );
        drop(ends);

        let pool = Pool::start(2).unwrap();
        let (begun, names) = mpsc::channel();
        let mut ends = Vec::new();
        for _ in 0..3 {
            let (job, end) = held(&begun);
            pool.submit_urgent(job);
            ends.push(end);
        }
        let mut all: Vec<_> = (0..3)
            .map(|_| names.recv_timeout(PATIENCE).unwrap())
            .collect();
        all.sort();
        assert_eq!(all, ["decode-0", "decode-1", "urgent-0"]);
    }

    #[test]
    fn what_a_reader_comes_for_is_taken_from_among_the_others() {
        // One that works ahead and one for readers.
        let pool = Pool::start(1).unwrap();
        let (begun, names) = mpsc::channel();
        let next = || names.recv_timeout(PATIENCE).unwrap();
        let mut ends = Vec::new();
        for request in [1, 2, 3, 2] {
            let (job, end) = held(&begun);
            pool.submit(Some(request), job);
            ends.push(end);
        }
        assert_eq!(next(), "decode-0");
        pool.hurry(2);
        assert_eq!(next(), "urgent-0");
        // The other of the same request follows it, before what came earlier.
        drop(ends.remove(1));
        assert_eq!(next(), "urgent-0");
        assert!(names.try_recv().is_err(), "nobody waits for the rest");
        pool.hurry(7);
        drop(ends);
        assert_eq!(next(), "decode-0");
    }
}
