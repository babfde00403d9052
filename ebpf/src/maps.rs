//! Everything both sides see: maps, and the numbers that the loader sets before the object is loaded.

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use forelayer_events::{BlockKey, Losses, PageBits, PendingOpen};

/// What is handed to user space.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 21, 0);

/// Devices whose files count: `major << 20 | minor`.
#[map]
pub static DEVICES: HashMap<u32, u8> = HashMap::with_max_entries(64, 0);

/// One element: the recording window's number, part of every [`BlockKey`].
#[map]
pub static GENERATION: Array<u32> = Array::with_max_entries(1, 0);

/// First touches, one bit a page. 65,536 blocks of 4 MiB: a start that opened 20,000 files three times over fits.
#[map]
pub static TOUCHED: HashMap<BlockKey, PageBits> =
    HashMap::with_max_entries(1 << 16, BPF_F_NO_PREALLOC);

/// Cgroups whose opens are reported.
#[map]
pub static WATCHED_CGROUPS: LruHashMap<u64, u8> = LruHashMap::with_max_entries(1024, 0);

/// Mount namespaces whose opens are reported: those asked for, and those that touched our devices.
#[map]
pub static WATCHED_MOUNT_NS: LruHashMap<u32, u8> = LruHashMap::with_max_entries(1024, 0);

/// Opens that have begun, by thread. Least recently used ones go first: a thread killed inside `open` leaves one.
#[map]
pub static PENDING: LruHashMap<u64, PendingOpen> = LruHashMap::with_max_entries(4096, 0);

/// One element: what was lost.
#[map]
pub static LOST: PerCpuArray<Losses> = PerCpuArray::with_max_entries(1, 0);

// Offsets in bytes, from the kernel's BTF and format files.

/// `task_struct.nsproxy`; 0 where the kernel has no BTF: then no record names its mount namespace.
#[unsafe(no_mangle)]
pub static TASK_NSPROXY: Global<u32> = Global::new(0);
/// `nsproxy.mnt_ns`.
#[unsafe(no_mangle)]
pub static NSPROXY_MNT_NS: Global<u32> = Global::new(0);
/// `mnt_namespace.ns.inum`.
#[unsafe(no_mangle)]
pub static MNT_NS_INUM: Global<u32> = Global::new(0);
/// The witness's own mount namespace, whose opens nobody asked for.
#[unsafe(no_mangle)]
pub static OWN_MNT_NS: Global<u32> = Global::new(0);
/// The host's (that of process 1), where engines run; they too look into a container's tree.
#[unsafe(no_mangle)]
pub static HOST_MNT_NS: Global<u32> = Global::new(0);

/// `kiocb.ki_filp`.
#[unsafe(no_mangle)]
pub static KIOCB_FILP: Global<u32> = Global::new(0);
/// `kiocb.ki_pos`.
#[unsafe(no_mangle)]
pub static KIOCB_POS: Global<u32> = Global::new(0);
/// `iov_iter.count`.
#[unsafe(no_mangle)]
pub static ITER_COUNT: Global<u32> = Global::new(0);
/// Whether the second argument of `filemap_get_pages` is an `iov_iter` (otherwise it is the length itself).
#[unsafe(no_mangle)]
pub static GET_PAGES_HAS_ITER: Global<u32> = Global::new(0);
/// `file.f_inode`.
#[unsafe(no_mangle)]
pub static FILE_INODE: Global<u32> = Global::new(0);
/// `inode.i_ino`.
#[unsafe(no_mangle)]
pub static INODE_INO: Global<u32> = Global::new(0);
/// `inode.i_sb`.
#[unsafe(no_mangle)]
pub static INODE_SB: Global<u32> = Global::new(0);
/// `super_block.s_dev`.
#[unsafe(no_mangle)]
pub static SB_DEV: Global<u32> = Global::new(0);
/// `vm_fault.vma`.
#[unsafe(no_mangle)]
pub static VMF_VMA: Global<u32> = Global::new(0);
/// `vm_fault.pgoff`.
#[unsafe(no_mangle)]
pub static VMF_PGOFF: Global<u32> = Global::new(0);
/// `vm_area_struct.vm_file`.
#[unsafe(no_mangle)]
pub static VMA_FILE: Global<u32> = Global::new(0);

/// `child_pid` in the record of `sched_process_fork`.
#[unsafe(no_mangle)]
pub static FORK_CHILD: Global<u32> = Global::new(0);
