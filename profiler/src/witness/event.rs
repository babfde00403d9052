//! What the programs saw, as the recorder gets it.

use std::path::PathBuf;

use crate::protocol::Access;

/// Who did something, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub ktime_ns: u64,
    /// Inode number of the cgroup-v2 directory. Before a container's first exec it can be the runtime's.
    pub cgroup: u64,
    /// Inode number of the mount namespace (`/proc/PID/ns/mnt`); 0 where the kernel has no BTF.
    pub mnt_ns: u32,
    /// Process id in the initial namespace.
    pub pid: u32,
    /// Thread id in the initial namespace.
    pub tid: u32,
}

/// What the programs saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A run of pages of one file, touched for the first time by this (cgroup, mount namespace) since the last
    /// [`super::Witness::reset`]. A page can be reported twice, when two processors touch it at the same moment.
    Touch {
        /// Who and when.
        origin: Origin,
        /// The superblock's device, `major << 20 | minor`.
        dev: u32,
        /// Inode number.
        ino: u64,
        /// First page, in pages of 4096 bytes; can lie past the end of the file.
        page: u64,
        /// Number of pages, at least 1.
        pages: u32,
        /// How.
        access: Access,
    },
    /// A file was asked for by name, inside a window, by one that is watched: asked for by [`super::Witness::watch`],
    /// or in a mount namespace, other than the host's and our own, that has touched a watched device.
    Open {
        /// Who and when (the end of the call).
        origin: Origin,
        /// The path as the process gave it; at most 255 bytes.
        path: PathBuf,
        /// The path may be longer than that and is cut.
        cut: bool,
        /// The directory a relative path starts at: a descriptor, or `AT_FDCWD` (-100).
        dirfd: i32,
        /// A descriptor, or a negative errno.
        result: i32,
    },
    /// A program was started.
    Exec {
        /// Who (after the exec) and when.
        origin: Origin,
        /// The file as the process named it; at most 255 bytes.
        path: PathBuf,
    },
    /// A process or thread was made.
    Fork {
        /// The parent.
        origin: Origin,
        /// Thread id of the child: its process id too, unless it is a thread.
        child: u32,
    },
    /// The first thread of a process ended.
    Exit {
        /// Who and when.
        origin: Origin,
    },
}

/// Whose opens are reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Watched {
    /// Processes of this cgroup (v2 id).
    Cgroup(u64),
    /// Processes of this mount namespace.
    MountNamespace(u32),
}
