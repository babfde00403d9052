//! The records that the eBPF programs write and the recorder reads.
//!
//! Both sides are built from this file, so every layout is `repr(C)`, without pointers and without implicit padding
//! (asserted below). Every record starts with a [`Header`], whose `kind` says which record it is; all integers are in
//! the machine's byte order, since a record never leaves the machine.
//!
//! Invariant kept here: a page is 4096 bytes, whatever the machine's page size is called elsewhere.
#![no_std]

/// Bytes in a page of a [`TouchRecord`].
pub const PAGE_SIZE: u64 = 4096;
/// Bytes of a path that a record keeps; longer paths are cut and marked by [`PATH_CUT`].
pub const PATH_MAX: usize = 256;
/// Pages that one [`PageBits`] covers: 4 MiB of a file.
pub const BLOCK_PAGES: u64 = 1024;
/// Words in a [`PageBits`].
pub const BLOCK_WORDS: usize = 16;
/// Pages of a `read` that one program call looks at: 16 MiB. The kernel announces the whole of what is left of a call
/// but comes back for every batch of it, and a batch is at most 31 folios of at most the readahead's size (128 KiB on
/// our mounts), so the rest of a longer range is seen by the next call.
pub const WALK_PAGES: u64 = 4096;

/// `Header::kind` of a [`TouchRecord`].
pub const KIND_TOUCH: u16 = 1;
/// `Header::kind` of an [`OpenRecord`].
pub const KIND_OPEN: u16 = 2;
/// `Header::kind` of an [`ExecRecord`].
pub const KIND_EXEC: u16 = 3;
/// `Header::kind` of a [`ForkRecord`].
pub const KIND_FORK: u16 = 4;
/// `Header::kind` of an [`ExitRecord`].
pub const KIND_EXIT: u16 = 5;

/// `Header::flags` of a touch: by `read` and its kin.
pub const ACCESS_READ: u16 = 0;
/// `Header::flags` of a touch: through a mapping.
pub const ACCESS_MAP: u16 = 1;
/// `Header::flags` of a touch: the page entered the page cache; whether anybody wanted it is not known.
pub const ACCESS_ADD: u16 = 2;
/// `Header::flags` of an open or an exec: the path was longer than the record.
pub const PATH_CUT: u16 = 1;

/// What every record begins with: who did it and when.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Which record this is: one of the `KIND_` numbers.
    pub kind: u16,
    /// One of the `ACCESS_` numbers, or [`PATH_CUT`] or 0.
    pub flags: u16,
    /// Inode number of the mount namespace (`readlink /proc/PID/ns/mnt`), 0 where the kernel has no BTF.
    pub mnt_ns: u32,
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub ktime_ns: u64,
    /// Inode number of the cgroup-v2 directory.
    pub cgroup: u64,
    /// Process id in the initial namespace.
    pub tgid: u32,
    /// Thread id in the initial namespace.
    pub tid: u32,
}

/// Pages of one file that this container touched for the first time.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TouchRecord {
    /// Kind [`KIND_TOUCH`]; `flags` tells the access.
    pub header: Header,
    /// Inode number.
    pub ino: u64,
    /// First page. A multiple of 64, unless `bits` is 0. May lie past the end of the file.
    pub page: u64,
    /// Bit `n` stands for page `page + n`. 0: the run was too long to walk, and `pages` says its length.
    pub bits: u64,
    /// Number of pages where `bits` is 0 (they may have been reported before); otherwise 0.
    pub pages: u32,
    /// The superblock's device, `major << 20 | minor`.
    pub dev: u32,
}

/// A file was asked for by name, and whether it was there.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenRecord {
    /// Kind [`KIND_OPEN`].
    pub header: Header,
    /// What the call returned: a descriptor, or a negative errno.
    pub result: i32,
    /// The directory a relative path starts at: a descriptor, or `AT_FDCWD`.
    pub dirfd: i32,
    /// Bytes of `path` that count, without the terminating zero.
    pub path_len: u32,
    /// Explicit padding, 0.
    pub reserved: u32,
    /// The path as the process gave it.
    pub path: [u8; PATH_MAX],
}

/// A program was started.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExecRecord {
    /// Kind [`KIND_EXEC`].
    pub header: Header,
    /// Bytes of `path` that count, without the terminating zero.
    pub path_len: u32,
    /// Explicit padding, 0.
    pub reserved: u32,
    /// The file as the process named it.
    pub path: [u8; PATH_MAX],
}

/// A process or thread was made.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForkRecord {
    /// Kind [`KIND_FORK`]: the parent.
    pub header: Header,
    /// Thread id of the child; its process id too, unless the child is a thread of the parent's process.
    pub child: u32,
    /// Explicit padding, 0.
    pub reserved: u32,
}

/// The first thread of a process ended.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitRecord {
    /// Kind [`KIND_EXIT`].
    pub header: Header,
}

/// Key of the first-touch bitmap: one block of one file as one container sees it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockKey {
    /// As in [`Header`].
    pub cgroup: u64,
    /// Inode number.
    pub ino: u64,
    /// Page number divided by [`BLOCK_PAGES`].
    pub block: u64,
    /// As in [`Header`].
    pub mnt_ns: u32,
    /// As in [`TouchRecord`].
    pub dev: u32,
    /// The recording window: user space counts it up to forget every touch at once.
    pub generation: u32,
    /// Explicit padding, 0.
    pub reserved: u32,
}

/// Value of the first-touch bitmap: bit `p % 64` of word `p / 64` stands for page `p` of the block.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageBits {
    /// One bit a page.
    pub words: [u64; BLOCK_WORDS],
}

/// What was lost on one processor.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Losses {
    /// Records the ring buffer had no room for.
    pub ring: u64,
    /// Touches without a place in the first-touch bitmap, one for each word of it.
    pub bits: u64,
    /// Not 0 once it has been said in the log.
    pub said: u64,
}

/// An open that has begun: what its end needs to know.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PendingOpen {
    /// Where the process keeps the path.
    pub path: u64,
    /// As in [`OpenRecord`].
    pub dirfd: i32,
    /// Explicit padding, 0.
    pub reserved: u32,
}

// No implicit padding: the kernel side copies whole records, and padding would be uninitialised memory.
const _: () = assert!(size_of::<Header>() == 32);
const _: () = assert!(size_of::<TouchRecord>() == 32 + 32);
const _: () = assert!(size_of::<OpenRecord>() == 32 + 16 + PATH_MAX);
const _: () = assert!(size_of::<ExecRecord>() == 32 + 8 + PATH_MAX);
const _: () = assert!(size_of::<ForkRecord>() == 32 + 8);
const _: () = assert!(size_of::<ExitRecord>() == 32);
const _: () = assert!(size_of::<BlockKey>() == 40);
const _: () = assert!(size_of::<PageBits>() * 8 == BLOCK_PAGES as usize);
const _: () = assert!(size_of::<PendingOpen>() == 16);
const _: () = assert!(size_of::<Losses>() == 24);

#[cfg(feature = "user")]
mod user {
    //! Aya reads maps into values of these types.
    use super::{BlockKey, Losses, PageBits, PendingOpen};

    // SAFETY: `repr(C)`, integers only, no padding (asserted above): every bit pattern is a value.
    unsafe impl aya::Pod for BlockKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PageBits {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PendingOpen {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Losses {}
}
