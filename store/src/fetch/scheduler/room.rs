//! How much is asked for at once: how long a request may be, which gaps it may have, and whether another is due.
//!
//! Places are a registry's own: one that answers nothing for minutes has taken them all, and nobody else's.

use super::{LayerKey, Priority, Scheduler, start::BACKGROUND_REQUESTS};
use crate::fetch::{origin::Blob, ranges::Bounds};

/// A request of a plan is at most this part of what plans have on their way, so that the first ones are short; it need
/// not be shorter than this.
const SHARE: u64 = 2;
const SHORTEST: u64 = 64 << 10;

/// Requests to a registry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) all: usize,
    /// Those that nobody waited for when they began.
    pub(super) ahead: usize,
    /// Of these, the background's.
    pub(super) background: usize,
}

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
        if priority == Priority::Background && self.limits.background_rate > 0 {
            // Requests of half a second keep the pace even.
            max_bytes = max_bytes.min((self.limits.background_rate / 2).max(1));
        }
        Bounds { max_bytes, max_gap }
    }

    /// Whether the registry that has a layer has a place for another request.
    pub(super) fn has_place(&self, layer: LayerKey, priority: Priority) -> bool {
        (self.hosts.get(&self.host(layer))).is_none_or(|places| self.is_free(*places, priority))
    }

    fn is_free(&self, places: Places, priority: Priority) -> bool {
        places.all < self.limits.max_requests
            && (priority == Priority::Demand || places.ahead < self.limits.max_ahead_requests)
            && (priority != Priority::Background || places.background < BACKGROUND_REQUESTS)
    }

    /// Whether any registry has a place: looking for what could take it costs time.
    pub(super) fn any_place(&self, priority: Priority) -> bool {
        let mut places = self.hosts.values();
        places.any(|places| self.is_free(*places, priority))
    }

    /// Remembers which registries have a layer.
    pub(super) fn note_hosts(&mut self, layer: LayerKey) {
        let mut hosts = self.layers[layer].blob.hosts();
        hosts.push(self.host(layer));
        for host in hosts {
            self.hosts.entry(host).or_default();
        }
    }

    /// A request to a host begins.
    pub(super) fn takes_place(&mut self, host: &str, priority: Priority) {
        let places = self.hosts.entry(host.to_owned()).or_default();
        places.all += 1;
        places.ahead += usize::from(priority != Priority::Demand);
        places.background += usize::from(priority == Priority::Background);
    }

    /// A request to a host is over.
    pub(super) fn leaves_place(&mut self, host: &str, priority: Priority) {
        if let Some(places) = self.hosts.get_mut(host) {
            places.all -= 1;
            places.ahead -= usize::from(priority != Priority::Demand);
            places.background -= usize::from(priority == Priority::Background);
        }
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
        state.blob.host(state.source)
    }
}
