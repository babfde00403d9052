//! Every unsafe block of the crate, each with its reason, and the system calls the other rooms share.
//!
//! Invariant: nothing outside this room is `unsafe`; what is here is small, and safe to call with any arguments.

pub mod allocator;
pub mod device;
pub mod mmap;
pub mod primer;
pub mod priority;
pub mod seqpacket;
