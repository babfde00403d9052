//! What a start is and what is known of it.

use serde::Serialize;

use super::cost::{Cost, Counts};

/// How an image is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mode {
    /// The ordinary image without a store.
    Full,
    /// The ordinary image, pulled before.
    Local,
    /// Through the store, nothing learned.
    Unlearned,
    /// Through the store, after one recorded start.
    Learned,
    /// Through the store, with a profile of the same workload that is all wrong; only when it is asked for.
    Misled,
    /// Through the store, everything local and warm: what T* is computed from.
    Warm,
    /// Through stargz-store.
    Peer,
}

impl Mode {
    /// In the order of a round. A learned start has the profile of the unlearned one before it, and a warm one the
    /// store of the learned one.
    pub(super) const ALL: [Self; 7] = [
        Self::Full,
        Self::Local,
        Self::Unlearned,
        Self::Learned,
        Self::Warm,
        Self::Misled,
        Self::Peer,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Local => "local",
            Self::Unlearned => "unlearned",
            Self::Learned => "learned",
            Self::Misled => "misled",
            Self::Warm => "warm",
            Self::Peer => "peer",
        }
    }
}

/// What a start took. Times in seconds from the start of the pull.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Start {
    pub(super) mode: Mode,
    /// When `podman pull` was over; 0 where there is none.
    pub(super) pulled: f64,
    /// When Podman began to make the container, and when it had started it.
    pub(super) created: f64,
    pub(super) started: f64,
    pub(super) ready: f64,
    /// Bytes of bodies and requests until ready.
    pub(super) bytes: u64,
    pub(super) requests: u64,
    /// The store's processes until ready, or the peer's.
    pub(super) costs: Vec<Cost>,
    /// What the store says of it; nothing without a store.
    pub(super) store: Option<Counts>,
    /// When each request was sent and over, which it was, and its bytes.
    pub(super) waterfall: Vec<Sent>,
}

impl Start {
    /// Processor seconds of the store.
    pub(super) fn cpu(&self) -> f64 {
        self.costs.iter().map(|cost| cost.cpu).sum()
    }

    /// Bytes of memory of the store at the most, all its processes.
    pub(super) fn peak(&self) -> u64 {
        self.costs.iter().map(|cost| cost.peak).sum()
    }
}

/// A request in the waterfall.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Sent {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) bytes: u64,
    /// First and last byte asked for; `None`: all.
    pub(super) range: Option<(u64, u64)>,
    /// `metadata`, or the end of a blob's digest.
    pub(super) what: String,
}
