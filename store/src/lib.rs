//! Forelayer, the layer store that reads ahead.
//!
//! Podman and CRI-O mount image layers from it over FUSE without downloading them. Dependencies between the rooms
//! point one way: `cli -> daemon -> {als, prefetch, control, mount} -> {image, fetch} -> {format, registry, cache}
//! -> sys`. docs/design.md is the plan of the house.

pub mod als;
pub mod cache;
pub mod config;
pub mod control;
pub mod daemon;
pub mod digest;
pub mod fetch;
pub mod format;
pub mod image;
pub mod metrics;
pub mod mount;
pub mod prefetch;
pub mod registry;
pub mod sys;
