//! Resolves a reference once, however many lookups ask for it at the same time.

use std::{collections::HashMap, future::Future, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

/// What is under way, and what ended a moment ago.
#[derive(Debug)]
pub(super) struct Flights<T> {
    state: Arc<Mutex<HashMap<String, Flight<T>>>>,
}

#[derive(Debug)]
enum Flight<T> {
    Running {
        outcome: watch::Receiver<Option<T>>,
        since: Instant,
    },
    Ended {
        outcome: T,
        until: Instant,
    },
}

/// What somebody who waits for a flight gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Landed<T> {
    /// Its outcome.
    Outcome(T),
    /// It ended without one.
    Lost,
    /// It is on its way for longer than anybody waits.
    Late,
}

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    pub(super) fn new() -> Self {
        Self {
            state: Arc::default(),
        }
    }

    /// The outcome of the flight for `key` that runs, or ended and is still remembered; `None` if there is none. It is
    /// waited for as in [`Flights::join`].
    pub(super) async fn existing(&self, key: &str, patience: Duration) -> Option<Landed<T>> {
        let (receiver, since) = match self.state.lock().get(key) {
            Some(Flight::Ended { outcome, until }) if *until > Instant::now() => {
                return Some(Landed::Outcome(outcome.clone()));
            }
            Some(Flight::Running { outcome, since }) => (outcome.clone(), *since),
            _ => return None,
        };
        Some(landing(receiver, patience.saturating_sub(since.elapsed())).await)
    }

    /// The outcome of the flight for `key`: of the one that runs, of one that ended and is still remembered, or of a
    /// new one made by `start`. The flight goes on when the caller stops waiting. `patience`: how long a flight may
    /// take; who joins later waits only for what is left of that, so that an image of many layers whose registry does
    /// not answer is waited for once and not once a layer. `remember`: how long an outcome is kept.
    pub(super) async fn join<F>(
        &self,
        key: &str,
        patience: Duration,
        remember: impl Fn(&T) -> Duration + Send + 'static,
        start: impl FnOnce() -> F,
    ) -> Landed<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let (receiver, since) = {
            let mut state = self.state.lock();
            let now = Instant::now();
            // Ended flights leave with the next one that starts, so the table does not grow with time.
            state.retain(
                |_, flight| !matches!(flight, Flight::Ended { until, .. } if *until <= now),
            );
            match state.get(key) {
                Some(Flight::Ended { outcome, .. }) => return Landed::Outcome(outcome.clone()),
                Some(Flight::Running { outcome, since }) => (outcome.clone(), *since),
                None => {
                    let (sender, receiver) = watch::channel(None);
                    let outcome = receiver.clone();
                    let flight = Flight::Running {
                        outcome,
                        since: now,
                    };
                    state.insert(key.to_owned(), flight);
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
                    (receiver, now)
                }
            }
        };
        landing(receiver, patience.saturating_sub(since.elapsed())).await
    }
}

/// What comes of a flight within a time.
async fn landing<T: Clone>(mut receiver: watch::Receiver<Option<T>>, left: Duration) -> Landed<T> {
    // The sender goes away only after it sent, or with a panic inside the flight: then there is no outcome.
    match tokio::time::timeout(left, receiver.wait_for(Option::is_some)).await {
        Ok(outcome) => outcome
            .ok()
            .and_then(|outcome| outcome.clone())
            .map_or(Landed::Lost, Landed::Outcome),
        Err(_) => Landed::Late,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn many_who_ask_at_once_share_one_flight_and_a_panic_frees_the_key() {
        let flights = Flights::<u32>::new();
        let started = Arc::new(AtomicU32::new(0));
        let ask = || {
            flights.join(
                "a",
                PATIENCE,
                |_| Duration::from_secs(3600),
                || {
                    started.fetch_add(1, Ordering::Relaxed);
                    async { 7 }
                },
            )
        };
        let seven = Landed::Outcome(7);
        assert_eq!(tokio::join!(ask(), ask(), ask()), (seven, seven, seven));
        assert_eq!(ask().await, seven);
        assert_eq!(started.load(Ordering::Relaxed), 1);
        let no_memory = |_: &u32| Duration::ZERO;
        assert_eq!(
            flights
                .join("b", PATIENCE, no_memory, || async { panic!("on purpose") })
                .await,
            Landed::Lost
        );
        for outcome in [1, 2] {
            let join = flights.join("b", PATIENCE, no_memory, move || async move { outcome });
            assert_eq!(join.await, Landed::Outcome(outcome));
        }
    }

    #[tokio::test]
    async fn a_flight_is_joined_only_where_there_is_one() {
        let flights = Flights::<u32>::new();
        assert_eq!(flights.existing("a", PATIENCE).await, None);
        let (land, landed) = tokio::sync::oneshot::channel();
        let remember = |outcome: &u32| Duration::from_secs(u64::from(*outcome));
        let first = flights.join("a", PATIENCE, remember, || async {
            landed.await.expect("it is sent below")
        });
        let joined = async {
            tokio::task::yield_now().await;
            let joined = flights.existing("a", PATIENCE);
            land.send(3600).expect("the flight waits for it");
            joined.await
        };
        let there = Landed::Outcome(3600);
        assert_eq!(tokio::join!(first, joined), (there, Some(there)));
        assert_eq!(
            flights.existing("a", PATIENCE).await,
            Some(there),
            "it is remembered"
        );
        flights.join("b", PATIENCE, remember, || async { 0 }).await;
        assert_eq!(
            flights.existing("b", PATIENCE).await,
            None,
            "and this is not"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_flight_is_waited_for_once_however_many_ask_one_after_the_other() {
        let flights = Flights::<u32>::new();
        let start = Instant::now();
        let ask = || {
            flights.join(
                "a",
                PATIENCE,
                |_| Duration::ZERO,
                || async {
                    tokio::time::sleep(Duration::from_secs(8)).await;
                    7
                },
            )
        };
        let early = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            ask().await
        };
        assert_eq!(tokio::join!(ask(), early), (Landed::Late, Landed::Late));
        // Timers are exact to a millisecond.
        let waited = |seconds| {
            start.elapsed().abs_diff(Duration::from_secs(seconds)) < Duration::from_millis(10)
        };
        assert!(waited(5), "{:?}", start.elapsed());
        for _ in 0..10 {
            assert_eq!(ask().await, Landed::Late);
        }
        assert!(waited(5), "{:?}", start.elapsed());
        tokio::time::sleep(Duration::from_secs(4)).await;
        let join = flights.join("a", PATIENCE, |_| Duration::ZERO, || async { 8 });
        assert_eq!(
            join.await,
            Landed::Outcome(8),
            "a new flight is a new chance"
        );
    }
}
