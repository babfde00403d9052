//! What Forelayer expects of a kernel: a small file system over FUSE, programs with known touches, and the machinery to
//! compare what the witness saw with what they did.
//!
//! * [`tree`]: the file system. Its files are made up on the spot, so that every test has files nobody has read yet.
//! * [`program`]: an executable whose touches are known page by page.
//! * [`workload`]: what a child process does, in a cgroup of its own.
//! * [`trace`]: what the witness saw of it.
//! * [`machine`]: the duties of a virtual machine's only program.
//! * [`sys`]: mapping a file where the kernel's windows are known.

pub mod machine;
pub mod program;
pub mod sys;
pub mod trace;
pub mod tree;
pub mod workload;
