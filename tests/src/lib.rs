//! Image fixtures, a registry that can misbehave, and helpers of the tests that need a kernel or an engine.

pub mod engine;
pub mod fixtures;
pub mod registry;
