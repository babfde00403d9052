//! The digest type of profiles and layers alike; defined at the bottom of the house, in the profiler crate.

pub use forelayer_profiler::digest::{Digest, DigestError};
