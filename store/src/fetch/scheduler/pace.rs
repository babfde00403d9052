//! What the link to a host carries and how long the host takes to answer: from these follows how much is asked for at
//! once, how long a request is, and which gap costs less than a request.
//!
//! Bytes on their way beyond what the link carries in one answer's time bring nothing sooner: they only share the link
//! with what is needed before them. Fewer leave it empty. Learned from what comes, forgotten as more comes; until
//! something is known, guesses hold for which both a fast and a slow link pay little.

use std::{collections::HashMap, time::Duration};

/// Bytes ahead before anything is known of a link: more than a fast one carries in a usual round trip (1 Gbit/s, 50 ms),
/// and a second of 64 Mbit/s.
const FIRST_AHEAD: u64 = 8 << 20;
/// Never fewer bytes ahead: below this a link is mostly latency.
const LEAST_AHEAD: u64 = 256 << 10;
/// What is on its way, in what the link carries between a request and its first byte: once in the pipe, once more for
/// what is waited for meanwhile; a link that was thought slower than it is then shows it.
const AHEAD: f64 = 2.0;
/// What a request costs both its ends besides waiting.
const REQUEST: f64 = 50e-6;
/// The headers of a request and its answer: a gap of this many bytes is always cheaper.
const HEADERS: u64 = 1 << 10;
/// The gap while nothing is known.
const FIRST_GAP: u64 = 8 << 10;
/// Bytes a second, times two, that a link is taken for when only its latency is known.
const GUESS: f64 = 100e6;
/// A rate is known from so many bytes on; what came weighs half as much after so many more.
const KNOWN: f64 = 128e3;
const FORGET: f64 = 2e6;
/// No link is taken for a faster one, in bytes a second.
const FASTEST: f64 = 2.5e9;
/// A link has shown what it carries when the rate did not grow by a quarter for so many answers' time: connections start
/// slowly, and what they have carried so far says little.
const STEADY: u32 = 4;

/// All hosts.
#[derive(Debug, Default)]
pub(super) struct Pace(HashMap<String, Line>);

#[derive(Debug, Default)]
struct Line {
    /// From a request to its first byte, connections not counted as far as they are kept.
    latency: Option<Duration>,
    /// Bytes that came, and seconds in which bodies flowed.
    bytes: f64,
    busy: f64,
    /// The greatest rate so far, and since when.
    peak: f64,
    peak_at: Duration,
    flowing: u32,
    since: Duration,
}

impl Line {
    fn pass(&mut self, now: Duration) {
        if self.flowing > 0 {
            self.busy += now.saturating_sub(self.since).as_secs_f64();
        }
        self.since = now;
        if self.bytes > FORGET {
            self.bytes /= 2.0;
            self.busy /= 2.0;
        }
        if let Some(rate) = self.rate()
            && rate > self.peak * 1.25
        {
            self.peak = rate;
            self.peak_at = now;
        }
    }

    fn rate(&self) -> Option<f64> {
        (self.bytes >= KNOWN).then(|| (self.bytes / self.busy.max(1e-6)).min(FASTEST))
    }

    fn is_steady(&self) -> bool {
        self.since.saturating_sub(self.peak_at) > self.latency.unwrap_or_default() * STEADY
    }

    /// Bytes that the link carries until an answer begins.
    fn pipe(&self) -> Option<f64> {
        Some(self.rate()? * self.latency?.as_secs_f64())
    }
}

impl Pace {
    /// An answer began to come.
    pub(super) fn answered(&mut self, host: &str, now: Duration, after: Duration) {
        let line = self.line(host);
        line.latency = Some(match line.latency {
            // A queue in front of the link or the host lengthens it; what the link itself takes is the least of it.
            Some(latency) if latency < after => latency + (after - latency) / 16,
            _ => after,
        });
        self.flows(host, now);
    }

    /// A body flows (again).
    pub(super) fn flows(&mut self, host: &str, now: Duration) {
        let line = self.line(host);
        line.pass(now);
        line.flowing += 1;
    }

    /// A body is over or not read any more.
    pub(super) fn stops(&mut self, host: &str, now: Duration) {
        let line = self.line(host);
        line.pass(now);
        line.flowing = line.flowing.saturating_sub(1);
    }

    /// Bytes came.
    #[expect(clippy::cast_precision_loss, reason = "bytes of one request")]
    pub(super) fn came(&mut self, host: &str, now: Duration, bytes: u64) {
        let line = self.line(host);
        line.pass(now);
        line.bytes += bytes as f64;
    }

    /// Bytes that may be on their way ahead of need.
    pub(super) fn ahead(&self, host: &str) -> u64 {
        let Some((line, pipe)) = self.pipe(host) else {
            let latency = self.0.get(host).and_then(|line| line.latency);
            return latency.map_or(FIRST_AHEAD, |latency| {
                whole(GUESS * latency.as_secs_f64()).clamp(LEAST_AHEAD, FIRST_AHEAD)
            });
        };
        let pipes = if line.is_steady() { AHEAD } else { 4.0 * AHEAD };
        whole(pipes * pipe).max(LEAST_AHEAD)
    }

    /// Bytes that the link carries while an answer is waited for, once that is known.
    pub(super) fn carried(&self, host: &str) -> Option<u64> {
        self.pipe(host).map(|(_, pipe)| whole(pipe))
    }

    /// The longest gap that costs less than another request, where so many are on their way at once.
    #[expect(clippy::cast_precision_loss, reason = "a few dozen requests")]
    pub(super) fn gap(&self, host: &str, at_once: usize) -> u64 {
        let Some((line, pipe)) = self.pipe(host) else {
            return FIRST_GAP;
        };
        let least = if line.is_steady() { HEADERS } else { FIRST_GAP };
        let rate = line.rate().unwrap_or_default();
        whole(AHEAD * pipe / at_once.max(1) as f64 + rate * REQUEST).max(least)
    }

    /// Bodies of a host that flow.
    #[cfg(test)]
    pub(super) fn flowing(&self, host: &str) -> u32 {
        self.0.get(host).map_or(0, |line| line.flowing)
    }

    fn pipe(&self, host: &str) -> Option<(&Line, f64)> {
        let line = self.0.get(host)?;
        Some((line, line.pipe()?))
    }

    fn line(&mut self, host: &str) -> &mut Line {
        self.0.entry(host.to_owned()).or_default()
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a product of positive numbers; what is too large saturates"
)]
fn whole(bytes: f64) -> u64 {
    bytes as u64
}
