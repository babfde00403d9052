//! When a chunk or a host is asked again.

use std::{collections::HashMap, time::Duration};

/// First pause after a failure; each further one is three times as long: 0.2, 0.6, 1.8, 5.4 s. Five attempts, the
/// default for demands, outlast a registry's restart and end before a reader's patience.
const FIRST: Duration = Duration::from_millis(200);
/// No pause of our own is longer.
const LONGEST: Duration = Duration::from_secs(30);
/// A host that wants to be left alone for longer is asked again after this all the same.
const LONGEST_ASKED: Duration = Duration::from_secs(120);
/// Requests in a row that must fail before a host is left alone.
const BREAK_AFTER: u32 = 3;

/// Spreads retries: a small generator (splitmix64), seeded once.
#[derive(Debug)]
pub(super) struct Jitter(pub(super) u64);

impl Jitter {
    /// A number from 0 to below 1.
    pub(super) fn draw(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit exactly")]
        let fraction = (z >> 11) as f64 / (1_u64 << 53) as f64;
        fraction
    }
}

/// A pause after the n-th failure (from 1): as `draw` says between half of it and all of it, never shorter than
/// `asked`.
pub(super) fn pause(failures: u32, asked: Duration, draw: f64) -> Duration {
    let whole = FIRST
        .saturating_mul(3_u32.saturating_pow(failures.saturating_sub(1).min(10)))
        .min(LONGEST);
    whole
        .mul_f64(0.5 + draw.clamp(0.0, 1.0) / 2.0)
        .max(asked.min(LONGEST_ASKED))
}

/// One breaker a host: after several failures in a row nothing is read ahead from it for a while, then by one
/// request at a time until one succeeds. Demands have their own budget and always try.
#[derive(Debug, Default)]
pub(super) struct Breakers(HashMap<String, Breaker>);

#[derive(Debug)]
struct Breaker {
    failures: u32,
    /// The end of our own pause: what succeeds ends it.
    until: Duration,
    /// Until then the host itself wants to be left alone, whatever it still brings.
    asked: Duration,
}

/// What may be asked of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leave {
    /// Anything.
    Free,
    /// One request, to see whether it is well again.
    Probe,
    /// Nothing before this time.
    Closed(Duration),
}

impl Breakers {
    /// Whether reading ahead from a host is allowed.
    pub(super) fn leave(&self, host: &str, now: Duration) -> Leave {
        match self.0.get(host) {
            Some(breaker) if breaker.until.max(breaker.asked) > now => {
                Leave::Closed(breaker.until.max(breaker.asked))
            }
            Some(breaker) if breaker.failures >= BREAK_AFTER => Leave::Probe,
            _ => Leave::Free,
        }
    }

    /// A request failed in a way that another could too.
    pub(super) fn failed(&mut self, host: &str, now: Duration, asked: Duration, draw: f64) {
        let breaker = self.0.entry(host.to_owned()).or_insert(Breaker {
            failures: 0,
            until: Duration::ZERO,
            asked: Duration::ZERO,
        });
        breaker.failures = breaker.failures.saturating_add(1);
        if breaker.failures >= BREAK_AFTER {
            breaker.until = now + pause(breaker.failures, Duration::ZERO, draw);
        }
        if !asked.is_zero() {
            breaker.asked = breaker.asked.max(now + asked.min(LONGEST_ASKED));
        }
    }

    /// A request brought what it was to bring. It may have been asked for before the host wanted to be left alone.
    pub(super) fn succeeded(&mut self, host: &str, now: Duration) {
        match self.0.get_mut(host) {
            Some(breaker) if breaker.asked > now => {
                (breaker.failures, breaker.until) = (0, Duration::ZERO);
            }
            _ => drop(self.0.remove(host)),
        }
    }
}
