//! When to ask for what is to come behind the metadata: so that its first bytes come when the metadata's last do.
//!
//! Asked for sooner it would take the link from what an engine waits for; asked for when all is there, the link stands
//! idle for a round trip.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Notify, time::Instant};

use super::Piece;

/// Less than this tells nothing of a link.
const SHORTEST: Duration = Duration::from_millis(2);
const FEWEST: u64 = 64 << 10;

/// How far the metadata has come.
#[derive(Debug, Default)]
pub(super) struct Headway {
    asked: Vec<Asked>,
    pub(super) told: Arc<Notify>,
}

#[derive(Debug)]
struct Asked {
    at: Instant,
    first: Option<Instant>,
    piece: Arc<Piece>,
}

impl Headway {
    /// A range was asked for; it tells [`Headway::told`] of everything that comes.
    pub(super) fn asked(&mut self, at: Instant, piece: &Arc<Piece>) {
        self.asked.push(Asked {
            at,
            first: None,
            piece: Arc::clone(piece),
        });
    }

    /// Something came, or will not come.
    pub(super) async fn news(&self) {
        self.told.notified().await;
    }

    /// Whether what is asked for now comes when this is over, or later.
    pub(super) fn is_nearly_over(&mut self, now: Instant) -> bool {
        let (mut received, mut remaining) = (0, 0);
        let (mut began, mut round_trip) = (now, Duration::MAX);
        for asked in &mut self.asked {
            let progress = *asked.piece.progress.borrow();
            if progress.received > 0 {
                let first = *asked.first.get_or_insert(now);
                began = began.min(first);
                // A connection was made first: the requests behind it find one.
                round_trip = round_trip.min((first - asked.at) / 2);
            } else if !progress.over {
                return false;
            }
            received += progress.received;
            if !progress.over {
                remaining += asked.piece.len() - progress.received;
            }
        }
        remaining == 0 || comes_within(round_trip, received, now - began, remaining)
    }
}

/// Whether the rest comes within this time if it goes on as it went so far.
fn comes_within(time: Duration, received: u64, within: Duration, remaining: u64) -> bool {
    let known = within >= SHORTEST && received >= FEWEST;
    known
        && u128::from(remaining) * within.as_nanos()
            <= u128::from(received).saturating_mul(time.as_nanos())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use bytes::Bytes;

    use super::*;
    use crate::{
        digest::Digest,
        metrics::Lane,
        registry::{Early, Reference, ahead::Shelf},
    };

    #[test]
    fn what_follows_waits_for_every_beginning_and_not_for_every_end() {
        const LEN: u64 = 1_000_000;
        let reference: Reference = "h/i:1".parse().unwrap();
        let (shelf, mut headway) = (Shelf::default(), Headway::default());
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let [one, other] = [0, LEN].map(|start| {
            let early = Early {
                blob: Digest::of(b"blob"),
                size: 2 * LEN,
                range: start..start + LEN,
                lane: Lane::Metadata,
                later: false,
            };
            let piece = shelf.put(&reference.repository, &early, None).unwrap();
            headway.asked(begin, &piece);
            piece
        });
        assert!(!headway.is_nearly_over(at(90)), "nothing has come");
        one.add(Bytes::from(vec![0; 900_000]));
        assert!(!headway.is_nearly_over(at(100)), "nothing of the other");
        other.add(Bytes::from(vec![0; 100_000]));
        // A megabyte in 10 ms; the other megabyte comes within a round trip, half of the time to the first byte.
        assert!(!headway.is_nearly_over(at(101)), "too early to tell");
        assert!(headway.is_nearly_over(at(110)));
        assert!(!headway.is_nearly_over(at(200)), "it has become slow");
        one.tell(|progress| progress.over = true);
        other.tell(|progress| progress.over = true);
        assert!(headway.is_nearly_over(at(200)), "nothing more will come");
    }

    #[test]
    fn the_rest_is_compared_with_what_came() {
        const fn ms(n: u64) -> Duration {
            Duration::from_millis(n)
        }
        // A megabyte in 10 ms: five more take 50 ms.
        assert!(comes_within(ms(50), 1_000_000, ms(10), 5_000_000));
        assert!(!comes_within(ms(49), 1_000_000, ms(10), 5_000_000));
        // Too little is known.
        assert!(!comes_within(ms(50), 1_000_000, ms(1), 10));
        assert!(!comes_within(ms(50), 60_000, ms(10), 10));
        assert!(!comes_within(ms(50), 0, Duration::ZERO, 1));
        assert!(comes_within(Duration::MAX, u64::MAX, ms(10), u64::MAX));
    }
}
