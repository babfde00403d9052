//! How much is asked for at once: how long a request may be, which gaps it may have, and whether another is due.
//!
//! Places are a registry's own: one that answers nothing for minutes has taken them all, and nobody else's.

use super::{LayerKey, Priority, Scheduler, start::BACKGROUND_REQUESTS};
use crate::fetch::{origin::Blob, ranges::Bounds};

/// A request of a plan is at most this part of what plans have on their way, so that the first ones are short; it need
/// not be shorter than this.
const SHARE: u64 = 2;
const SHORTEST: u64 = 64 << 10;

impl<B: Blob + ?Sized> Scheduler<B> {
    /// Bounds of a request. Bodies share the link: a plan's first requests are short, so that they are here before the
    /// longer ones behind them, and grow with what is on its way.
    pub(super) fn bounds(&self, layer: LayerKey, priority: Priority) -> Bounds {
        let host = self.host(layer);
        let most = self.limits.max_ahead_requests;
        let max_gap = (self.limits.max_gap_bytes).min(self.pace.gap(&host, most));
        let mut max_bytes = self.limits.max_request_bytes;
        if priority == Priority::Predicted {
            max_bytes = max_bytes.min((self.ahead(&host) / SHARE).max(SHORTEST));
        }
        Bounds { max_bytes, max_gap }
    }

    /// Whether the registry that has a layer has a place for another request.
    pub(super) fn has_place(&self, layer: LayerKey, priority: Priority) -> bool {
        let host = self.host(layer);
        let (all, ahead, background) = self.places(&host);
        all < self.limits.max_requests
            && (priority == Priority::Demand || ahead < self.limits.max_ahead_requests)
            && (priority != Priority::Background || background < BACKGROUND_REQUESTS)
    }

    /// Whether any registry has a place for what nobody waits for: looking for what could take it costs time.
    pub(super) fn may_look_ahead(&self) -> bool {
        self.hosts.iter().any(|host| {
            let (all, ahead, _) = self.places(host);
            all < self.limits.max_requests && ahead < self.limits.max_ahead_requests
        })
    }

    /// Remembers which registries have a layer.
    pub(super) fn note_hosts(&mut self, layer: LayerKey) {
        self.hosts.extend(self.layers[layer].blob.hosts());
    }

    /// Requests to a host: all, those that nobody waited for when they began, and of these the background's.
    fn places(&self, host: &str) -> (usize, usize, usize) {
        let there = (self.running.values()).filter(|running| running.host == host);
        there.fold((0, 0, 0), |(all, ahead, background), running| {
            (
                all + 1,
                ahead + usize::from(running.priority != Priority::Demand),
                background + usize::from(running.priority == Priority::Background),
            )
        })
    }

    /// Whether more may be on its way ahead of need.
    pub(super) fn has_room(&self, layer: LayerKey) -> bool {
        let host = self.host(layer);
        self.ahead(&host) < self.pace.ahead(&host)
    }

    /// What plans have still to get of what was asked of a host.
    fn ahead(&self, host: &str) -> u64 {
        let ahead = self
            .running
            .values()
            .filter(|running| running.priority == Priority::Predicted && running.host == host);
        ahead
            .map(|running| running.end.saturating_sub(running.position))
            .sum()
    }

    pub(super) fn host(&self, layer: LayerKey) -> String {
        let state = &self.layers[layer];
        let hosts = state.blob.hosts();
        let source = state.source % hosts.len().max(1);
        hosts.into_iter().nth(source).unwrap_or_default()
    }
}
