//! Reads the ring buffer and hands the events on.
//!
//! Invariant kept here: a slow recorder never costs the kernel anything but ring-buffer space. Events wait in the
//! bounded channel, then in the ring; what finds no room there is counted by the programs themselves.

use std::os::fd::AsRawFd;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tracing_log::LogTracer;

use super::decode::decode;
use super::event::Event;

/// Events between the reader and the recorder.
pub(super) const CHANNEL: usize = 4096;

/// The programs wake the reader for an exec and for a quarter of a megabyte; everything else waits for this.
const LOOK: Duration = Duration::from_millis(20);

/// Records taken from the ring before they are handed on.
const BATCH: usize = 256;

/// Makes a ring buffer something a task can wait for. Must be called inside a tokio runtime.
#[expect(
    deprecated,
    reason = "the replacement is unsafe for types whose descriptor can change; aya's rings own theirs"
)]
pub(super) fn readable<T: AsRawFd>(ring: T) -> std::io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(ring, Interest::READABLE)
}

/// Reads until the receiver is gone.
pub(super) async fn read(
    mut ring: AsyncFd<RingBuf<MapData>>,
    events: mpsc::Sender<Event>,
    mut live: watch::Receiver<bool>,
) {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let attached = *live.borrow_and_update();
        tokio::select! {
            () = events.closed() => return,
            ready = ring.readable_mut() => match ready {
                Ok(mut guard) => guard.clear_ready(),
                Err(error) => {
                    tracing::warn!(%error, "the eBPF ring buffer cannot be waited for: nothing is recorded any more");
                    return;
                }
            },
            changed = live.changed() => if changed.is_err() { return },
            _ = look.tick(), if attached => {}
        }
        let mut batch = Vec::new();
        loop {
            let mut taken = 0;
            while taken < BATCH
                && let Some(record) = ring.get_mut().next()
            {
                decode(&record, &mut batch);
                taken += 1;
            }
            for event in batch.drain(..) {
                if events.send(event).await.is_err() {
                    return;
                }
            }
            if taken < BATCH {
                break;
            }
        }
    }
}

/// Brings the programs' own messages to `tracing`.
pub(super) async fn log(mut logger: AsyncFd<EbpfLogger<LogTracer>>) {
    loop {
        match logger.readable_mut().await {
            Ok(mut guard) => {
                guard.get_inner_mut().flush();
                guard.clear_ready();
            }
            Err(error) => {
                tracing::warn!(%error, "the messages of the eBPF programs cannot be waited for");
                return;
            }
        }
    }
}
