//! What the engine tests need from the machine, as code: packages, trees, namespaces, registries, images.
//!
//! Everything that takes long is made once and kept in [`cache::directory`], outside the checkout, under a name that
//! changes when its recipe does. Everything that runs is ended by its own process id, also after a failure.

pub mod cache;
pub mod containerd;
pub mod distribution;
pub mod environment;
pub mod images;
pub mod namespace;
pub mod packages;
pub mod podman;
pub mod process;
pub mod store;
pub mod stored;
pub mod tree;
pub mod work;
