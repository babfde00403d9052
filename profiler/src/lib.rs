//! What a container touches while it starts: the kernel's events become traces, traces become profiles, profiles
//! become predictions.
//!
//! * [`digest`]: content digests, the key of everything that is kept.
//! * [`protocol`]: what the store tells the witness and the witness tells the store.
//! * [`model`]: profiles and predictions; pure, knows nothing of the store, of files or of clocks.
//! * [`profiles`]: profiles on disk.
//! * [`witness`]: loads the eBPF object, attaches it while a container starts, reads its events.
//! * [`recorder`]: events to traces, one for each container.
//! * [`attribution`]: which container a process belongs to, and what the engine says of it.

pub mod attribution;
pub mod digest;
pub mod model;
pub mod profiles;
pub mod protocol;
pub mod recorder;
pub mod witness;

pub use digest::Digest;
