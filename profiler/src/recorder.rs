//! Events to traces, one for each container.
//!
//! [`Recorder::apply`] is a state machine without clock, kernel or files: it takes what happened and says what to do.
//! [`Driver`] feeds it from a [`Kernel`] (the witness) and the store's event stream and carries out what it says.
//!
//! A window opens when a container's mount is announced and closes when every container in it is done: nothing new
//! touched for a while, ended, or recorded for long enough. While no window is open the programs are detached.
//!
//! Invariants: a touch belongs to the container whose mount namespace or cgroup it came from, and only what came before
//! the first exec, from elsewhere, goes by its layers; two containers of one image that start together give two
//! complete traces; nothing grows without a bound, and what was left out is counted as lost.

mod driver;
mod kernel;
mod machine;
mod mounts;
mod ranges;
mod recording;
#[cfg(test)]
mod tests;

pub use driver::{Driver, DriverError, Output};
pub use kernel::Kernel;
pub use machine::Recorder;

use std::time::Duration;

use crate::{
    attribution::{Candidate, Identity},
    protocol::{Container, Trace},
    witness::{Event, Watched},
};

/// How long and how much is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// A container is done when nothing new was touched for this long.
    pub quiet: Duration,
    /// A container is done after this long in any case.
    pub max_window: Duration,
    /// Runs of pages kept for one container (32 bytes each).
    pub touches: usize,
    /// Paths kept for one container.
    pub opens: usize,
    /// Programs kept for one container.
    pub execs: usize,
    /// Touches kept that may turn out to be a container's, all together.
    pub pending: usize,
}

impl Default for Bounds {
    /// 15 s and 10 minutes; room for a start five times as large as the largest seen (84,000 paths, about 100,000
    /// runs of pages).
    fn default() -> Self {
        Self {
            quiet: Duration::from_secs(15),
            max_window: Duration::from_secs(600),
            touches: 500_000,
            opens: 400_000,
            execs: 10_000,
            pending: 200_000,
        }
    }
}

/// The time of a call of [`Recorder::apply`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// `CLOCK_MONOTONIC` in nanoseconds, the clock of the kernel's events.
    pub mono_ns: u64,
    /// Unix time in milliseconds.
    pub unix_ms: u64,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The store tells of mounts from now on; what runs by now started unseen.
    Connected,
    /// The store says that a container's mount asked for this layer's state.
    Mounted {
        /// The number to answer with.
        window: u64,
        /// The layer's slot.
        slot: u32,
        /// When it asked, in [`Now::mono_ns`]' clock, where the store says.
        at_ns: Option<u64>,
    },
    /// The programs saw something.
    Seen(Event),
    /// The answer to [`Action::Identify`].
    Identified {
        /// Whose.
        candidate: u64,
        /// Nothing when it is no container of ours.
        identity: Option<Identity>,
    },
    /// Time has passed.
    Tick {
        /// Events that the kernel could not hand over, in all.
        lost: u64,
    },
    /// Everything that is recorded is to be finished now; what was not over is marked as cut.
    Finish,
}

/// What to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Attach the programs.
    Attach,
    /// Tell the store that they are attached, so that the mount goes on.
    Reply {
        /// The number of its event.
        window: u64,
    },
    /// Report these processes' opens.
    Watch(Watched),
    /// No longer report them.
    Unwatch(Watched),
    /// Report first touches of these processes again: by cgroup and mount namespace.
    Forget(Vec<(u64, u32)>),
    /// Find out who this is, without holding up the events.
    Identify(Candidate),
    /// It became known who is being recorded, its command included: once a container, before its trace.
    Known(Container),
    /// A container is done.
    Finished(Trace),
    /// Detach the programs.
    Detach,
}
