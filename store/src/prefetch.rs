//! Profile -> ordered plan; warming dentries and page cache; traces into profiles, and what became of predictions.
//!
//! Invariants: whatever a profile says, it only chooses what is fetched and warmed earlier, never what is served
//! (invariant 8); nothing here is waited for by an engine or a reader; one thread owns profiles and open plans
//! ([`engine`]), so that runs are merged one after the other.
//!
//! * [`window`]: the READs that the kernel sends around touched pages.
//! * [`locate`]: a profile's files in an image's layers.
//! * [`plan`]: prediction -> chunks in the order of need.
//! * [`trace`]: a witness's trace -> a run, and the chunks that it touched.
//! * [`early`]: what the next pull asks for before its manifest is there.
//! * [`commands`]: the images that engines are about to pull.
//! * [`accounting`]: what became of predicted chunks.
//! * [`merged`]: the image's tree as overlayfs walks it.
//! * [`names`]: the names asked for during a start.
//! * [`warm`]: dentries and pages, ahead.
//! * [`engine`]: the owner.

pub mod accounting;
mod commands;
pub mod early;
pub mod engine;
mod landmark;
pub mod locate;
pub mod merged;
pub mod names;
pub mod plan;
mod progress;
pub mod trace;
pub mod warm;
pub mod window;

#[cfg(test)]
mod testing;

pub use engine::{Lanes, Library, Parts, Prefetcher};
pub use names::NameLog;
pub use warm::PageStore;
