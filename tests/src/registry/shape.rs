//! How slow the registry is: latency by request and by connection, bandwidth over all connections.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

/// A timer is not finer than this: shorter debts are carried on.
const TICK: Duration = Duration::from_millis(1);

/// The settings, and the bucket that all bodies are poured through.
#[derive(Debug, Default)]
pub(super) struct Shape {
    latency_us: AtomicU64,
    connection_latency_us: AtomicU64,
    /// Bytes per second; 0: unlimited.
    bandwidth: AtomicU64,
    /// When the last byte that was let through has passed.
    busy_until: Mutex<Option<Instant>>,
}

impl Shape {
    pub(super) fn set_latency(&self, latency: Duration) {
        self.latency_us.store(micros(latency), Ordering::Relaxed);
    }

    pub(super) fn set_connection_latency(&self, latency: Duration) {
        self.connection_latency_us
            .store(micros(latency), Ordering::Relaxed);
    }

    pub(super) fn set_bandwidth(&self, bytes_per_second: Option<u64>) {
        self.bandwidth
            .store(bytes_per_second.unwrap_or(0), Ordering::Relaxed);
        *self.busy_until.lock() = None;
    }

    pub(super) async fn request(&self) {
        wait(&self.latency_us).await;
    }

    pub(super) async fn connection(&self) {
        wait(&self.connection_latency_us).await;
    }

    /// Waits until `bytes` may pass.
    pub(super) async fn pass(&self, bytes: usize) {
        let bandwidth = self.bandwidth.load(Ordering::Relaxed);
        if bandwidth == 0 {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate, and far below 2^52")]
        let cost = Duration::from_secs_f64(bytes as f64 / bandwidth as f64);
        let now = Instant::now();
        let until = {
            let mut busy = self.busy_until.lock();
            let start = busy.map_or(now, |until| until.max(now));
            *busy = Some(start + cost);
            start + cost
        };
        if until > now + TICK {
            tokio::time::sleep_until(until).await;
        }
    }
}

async fn wait(micros: &AtomicU64) {
    let micros = micros.load(Ordering::Relaxed);
    if micros > 0 {
        tokio::time::sleep(Duration::from_micros(micros)).await;
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
