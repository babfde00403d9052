//! Resolves a reference once, however many lookups ask for it at the same time.

use std::{
    collections::HashMap,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::watch;

/// What is under way, and what ended a moment ago.
#[derive(Debug)]
pub(super) struct Flights<T> {
    state: Arc<Mutex<HashMap<String, Flight<T>>>>,
}

#[derive(Debug)]
enum Flight<T> {
    Running(watch::Receiver<Option<T>>),
    Ended { outcome: T, until: Instant },
}

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    pub(super) fn new() -> Self {
        Self {
            state: Arc::default(),
        }
    }

    /// The outcome of the flight for `key`: of the one that runs, of one that ended and is still remembered, or of a
    /// new one made by `start`. The flight goes on when the caller stops waiting. `remember`: how long an outcome is
    /// kept.
    pub(super) async fn join<F>(
        &self,
        key: &str,
        remember: impl Fn(&T) -> Duration + Send + 'static,
        start: impl FnOnce() -> F,
    ) -> Option<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut receiver = {
            let mut state = self.state.lock();
            let now = Instant::now();
            // Ended flights leave with the next one that starts, so the table does not grow with time.
            state.retain(
                |_, flight| !matches!(flight, Flight::Ended { until, .. } if *until <= now),
            );
            match state.get(key) {
                Some(Flight::Ended { outcome, .. }) => return Some(outcome.clone()),
                Some(Flight::Running(receiver)) => receiver.clone(),
                None => {
                    let (sender, receiver) = watch::channel(None);
                    state.insert(key.to_owned(), Flight::Running(receiver.clone()));
                    let (future, state, key) = (start(), Arc::clone(&self.state), key.to_owned());
                    tokio::spawn(async move {
                        // Should the future panic, the entry must not stay: everybody else would wait for ever.
                        let outcome = tokio::spawn(future).await.ok();
                        {
                            let mut state = state.lock();
                            match &outcome {
                                Some(outcome) => {
                                    let until = Instant::now() + remember(outcome);
                                    state.insert(
                                        key,
                                        Flight::Ended {
                                            outcome: outcome.clone(),
                                            until,
                                        },
                                    );
                                }
                                None => {
                                    state.remove(&key);
                                }
                            }
                        }
                        sender.send_replace(outcome);
                    });
                    receiver
                }
            }
        };
        // The sender goes away only after it sent, or with a panic inside the flight: then there is no outcome.
        receiver
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|outcome| outcome.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn many_who_ask_at_once_share_one_flight_and_a_panic_frees_the_key() {
        let flights = Flights::<u32>::new();
        let started = Arc::new(AtomicU32::new(0));
        let ask = || {
            flights.join(
                "a",
                |_| Duration::from_secs(3600),
                || {
                    started.fetch_add(1, Ordering::Relaxed);
                    async { 7 }
                },
            )
        };
        assert_eq!(
            tokio::join!(ask(), ask(), ask()),
            (Some(7), Some(7), Some(7))
        );
        assert_eq!(ask().await, Some(7));
        assert_eq!(started.load(Ordering::Relaxed), 1);
        let no_memory = |_: &u32| Duration::ZERO;
        assert_eq!(
            flights
                .join("b", no_memory, || async { panic!("on purpose") })
                .await,
            None
        );
        assert_eq!(flights.join("b", no_memory, || async { 1 }).await, Some(1));
        assert_eq!(flights.join("b", no_memory, || async { 2 }).await, Some(2));
    }
}
