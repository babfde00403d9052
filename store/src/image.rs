//! Reference -> manifest -> layers; the layer as a unit: blob, index, cache, and the references that use it.
//!
//! Invariants: a layer is accepted only when its index is on disk and bound to what the engine asked for (invariant 2
//! of docs/design.md); metadata of an accepted layer never needs the network again; slots are never reused; failures
//! are not remembered longer than `lookup.retry_delay`.

pub mod info;
pub mod manifest;
mod metadata;
pub mod records;

mod error;
mod flights;
mod images;
mod layer;
mod registrar;
mod resolve;
mod staged;

pub use error::LookupError;
pub use images::{Image, Images, OnLookup, OnSearch, Record};
pub use layer::{DataMount, Layer};
pub use metadata::{BlobRange, Metadata};
