//! HTTP over a unix socket: what the other commands and the witness ask of the running store
//! (docs/formats.md, "Control socket").
//!
//! Invariant: the socket is 0600 and belongs to root; nothing here serves a byte of a layer.

pub mod client;
pub mod hub;
pub mod server;
pub mod types;

pub use client::{Client, ClientError};
pub use hub::WitnessHub;
pub use types::{ImageStatus, LayerStatus, PrefetchProgress, PrefetchRequest, RunSummary, Status};
