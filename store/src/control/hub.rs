//! Tells connected witnesses that a container is about to start, and lets its mount wait until they are attached.
//!
//! The newest witness is told (`profile record` stands in for `watch` while it runs). A witness that does not read is
//! dropped; none of them can hold a mount for longer than the configured wait.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use forelayer_profiler::protocol::StoreEvent;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::metrics::Metrics;

/// Events that a witness may leave unread before it counts as gone.
const UNREAD: usize = 1024;

/// See the module's text.
#[derive(Debug)]
pub struct WitnessHub {
    state: Mutex<State>,
    hello: OnceLock<StoreEvent>,
    attach_wait: Duration,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct State {
    listeners: Vec<(u64, mpsc::Sender<StoreEvent>)>,
    waiting: HashMap<u64, oneshot::Sender<()>>,
    next: u64,
    /// The last mount waited in vain: until the witness answers again, none waits.
    slow: bool,
}

/// A witness's end of the stream; dropping it disconnects.
#[derive(Debug)]
pub struct Listener {
    hub: Arc<WitnessHub>,
    id: u64,
    events: mpsc::Receiver<StoreEvent>,
}

impl WitnessHub {
    /// A hub without witnesses. `attach_wait`: how long a container's mount waits at most.
    #[must_use]
    pub fn new(attach_wait: Duration, metrics: Arc<Metrics>) -> Self {
        Self {
            state: Mutex::default(),
            hello: OnceLock::new(),
            attach_wait,
            metrics,
        }
    }

    /// Sets what every witness is told first; once, when the mounts are there.
    pub fn set_hello(&self, hello: StoreEvent) {
        let _ = self.hello.set(hello);
    }

    /// Connects a witness; `None` before the mounts are there.
    pub fn connect(self: &Arc<Self>) -> Option<Listener> {
        let hello = self.hello.get()?.clone();
        let (sender, events) = mpsc::channel(UNREAD);
        // The channel is empty and has room for more than one.
        let _ = sender.try_send(hello);
        let mut state = self.state.lock();
        state.next += 1;
        let id = state.next;
        state.listeners.push((id, sender));
        self.count(&state);
        Some(Listener {
            hub: Arc::clone(self),
            id,
            events,
        })
    }

    /// Whether a witness is connected.
    #[must_use]
    pub fn connected(&self) -> bool {
        !self.state.lock().listeners.is_empty()
    }

    /// A container's mount asked for the state of a layer. `None`: nobody watches. Otherwise a future that ends when
    /// the witness is attached, is gone, or took too long; also `None` after the last one took too long, until the witness
    /// answers again: each lower of an image would wait anew.
    pub fn mounted(self: &Arc<Self>, slot: u32) -> Option<impl Future<Output = ()> + Send + use<>> {
        let (window, attached) = {
            let mut state = self.state.lock();
            state.next += 1;
            let window = state.next;
            // Under the lock: the events' order is the times' order.
            let at_ns = Some(monotonic_ns());
            loop {
                let (_, newest) = state.listeners.last()?;
                let event = StoreEvent::Mounted {
                    window,
                    slot,
                    at_ns,
                };
                match newest.try_send(event) {
                    Ok(()) => break,
                    Err(error) => {
                        tracing::warn!(%error, "a witness does not read its events and is dropped");
                        state.listeners.pop();
                        self.count(&state);
                    }
                }
            }
            if state.slow {
                return None;
            }
            let (sender, attached) = oneshot::channel();
            state.waiting.insert(window, sender);
            (window, attached)
        };
        let hub = Arc::clone(self);
        Some(async move {
            if tokio::time::timeout(hub.attach_wait, attached)
                .await
                .is_err()
            {
                tracing::debug!(
                    window,
                    "the witness was not attached in time; the first touches may be missing"
                );
            }
            let mut state = hub.state.lock();
            // Still there: neither answered nor given up with the witness.
            state.slow |= state.waiting.remove(&window).is_some();
        })
    }

    /// The witness answers: its programs are attached.
    pub fn attached(&self, window: u64) {
        let mut state = self.state.lock();
        state.slow = false;
        if let Some(waiting) = state.waiting.remove(&window) {
            // The mount may have stopped waiting.
            let _ = waiting.send(());
        }
    }

    fn disconnect(&self, id: u64) {
        let mut state = self.state.lock();
        state.listeners.retain(|(other, _)| *other != id);
        if state.listeners.is_empty() {
            // Nobody will answer any more.
            state.waiting.clear();
            state.slow = false;
        }
        self.count(&state);
    }

    fn count(&self, state: &State) {
        self.metrics
            .witness_connected
            .set(i64::from(!state.listeners.is_empty()));
    }
}

impl Listener {
    /// The next event; `None` when the hub dropped this witness.
    pub async fn next(&mut self) -> Option<StoreEvent> {
        self.events.recv().await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.hub.disconnect(self.id);
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds, the clock of the kernel's events.
fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // Since the machine started: neither is negative.
    let (seconds, nanos) = (
        u64::try_from(now.tv_sec).unwrap_or_default(),
        u64::try_from(now.tv_nsec).unwrap_or_default(),
    );
    seconds * 1_000_000_000 + nanos
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn hub(wait: Duration) -> Arc<WitnessHub> {
        let hub = WitnessHub::new(wait, Arc::new(Metrics::new()));
        hub.set_hello(StoreEvent::Hello {
            devices: vec![40, 41],
            layers_dir: "/l".into(),
        });
        Arc::new(hub)
    }

    #[tokio::test]
    async fn a_mount_waits_until_the_newest_witness_is_attached() {
        let hub = hub(Duration::from_secs(3600));
        assert!(hub.mounted(1).is_none(), "nobody watches");
        let mut old = hub.connect().unwrap();
        let mut new = hub.connect().unwrap();
        assert!(matches!(new.next().await, Some(StoreEvent::Hello { .. })));
        let before = monotonic_ns();
        let wait = tokio::spawn(hub.mounted(3).unwrap());
        let Some(StoreEvent::Mounted {
            window,
            slot: 3,
            at_ns: Some(at_ns),
        }) = new.next().await
        else {
            panic!("no event")
        };
        assert!((before..=monotonic_ns()).contains(&at_ns));
        assert!(!wait.is_finished());
        hub.attached(window);
        wait.await.unwrap();
        drop(new);
        let wait = hub.mounted(4).unwrap();
        assert!(matches!(old.next().await, Some(StoreEvent::Hello { .. })));
        assert!(matches!(
            old.next().await,
            Some(StoreEvent::Mounted { slot: 4, .. })
        ));
        drop(old);
        wait.await;
        assert!(!hub.connected());
        assert!(hub.state.lock().waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_witness_that_does_not_answer_holds_a_mount_no_longer_than_configured() {
        let hub = hub(Duration::from_millis(20));
        let _witness = hub.connect().unwrap();
        hub.mounted(1).unwrap().await;
        assert!(hub.state.lock().waiting.is_empty());
        // Nor does each further lower of the image wait, until the witness is back.
        assert!(hub.mounted(2).is_none());
        hub.attached(2);
        assert!(hub.mounted(3).is_some());
    }

    #[tokio::test]
    async fn a_witness_that_does_not_read_is_dropped() {
        let hub = hub(Duration::from_secs(3600));
        let _stuck = hub.connect().unwrap();
        let mut told = 0;
        while hub.mounted(1).is_some() {
            told += 1;
        }
        assert_eq!(told, UNREAD - 1);
        assert!(!hub.connected());
    }
}
