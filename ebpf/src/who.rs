//! Who is running, what was lost, and when user space is woken.

use core::ffi::c_void;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_task, bpf_ktime_get_ns,
    bpf_probe_read_kernel,
};
use aya_ebpf::programs::TracePointContext;
use aya_log_ebpf::warn;
use forelayer_events::{Header, Losses};

use crate::maps::{EVENTS, LOST, MNT_NS_INUM, NSPROXY_MNT_NS, TASK_NSPROXY};

/// Unread bytes in the ring buffer at which user space is woken without waiting for its next look.
const WAKE_BYTES: u64 = 256 * 1024;

/// Reads a value at `base + offset` of kernel memory.
///
/// # Safety
/// The kernel checks the address itself: a wrong one gives `Err`, never a fault. The bytes must be a valid `T`.
#[inline(always)]
pub unsafe fn peek<T>(base: u64, offset: u32) -> Result<T, i32> {
    let address = base.wrapping_add(u64::from(offset)) as *const T;
    // SAFETY: the helper checks the address; the caller vouches for `T`.
    unsafe { bpf_probe_read_kernel(address) }
}

/// The inode number of the current mount namespace, 0 where it is not known.
#[inline(always)]
pub fn mount_namespace() -> u32 {
    let nsproxy = TASK_NSPROXY.load();
    if nsproxy == 0 {
        return 0;
    }
    // SAFETY: integers, any bit pattern is one; the helper checks the addresses.
    let found: Result<u32, i32> = unsafe {
        let task = bpf_get_current_task();
        peek::<u64>(task, nsproxy)
            .and_then(|proxy| peek::<u64>(proxy, NSPROXY_MNT_NS.load()))
            .and_then(|namespace| peek::<u32>(namespace, MNT_NS_INUM.load()))
    };
    found.unwrap_or(0)
}

/// The header of a record made now.
#[inline(always)]
pub fn header(kind: u16, flags: u16) -> Header {
    let pid_tgid = bpf_get_current_pid_tgid();
    // SAFETY: helpers without arguments.
    let (ktime_ns, cgroup) = unsafe { (bpf_ktime_get_ns(), bpf_get_current_cgroup_id()) };
    Header {
        kind,
        flags,
        mnt_ns: mount_namespace(),
        ktime_ns,
        cgroup,
        tgid: (pid_tgid >> 32) as u32,
        tid: pid_tgid as u32,
    }
}

/// How to submit a record that can wait: user space looks every few milliseconds while it records, and a wake-up per
/// record would take processor time from the very start that is watched.
#[inline(always)]
pub fn when_full() -> u64 {
    if EVENTS.query(u64::from(BPF_RB_AVAIL_DATA)) >= WAKE_BYTES {
        u64::from(BPF_RB_FORCE_WAKEUP)
    } else {
        u64::from(BPF_RB_NO_WAKEUP)
    }
}

/// How to submit a record that the recorder acts on.
pub const AT_ONCE: u64 = BPF_RB_FORCE_WAKEUP as u64;

/// Counts what is lost while a program runs, and says so at its end, once a processor.
///
/// Two steps, because the message is long code: inside a loop the verifier would walk through it in every round.
pub struct Counter(*mut Losses);

impl Counter {
    /// This processor's.
    #[inline(always)]
    pub fn new() -> Option<Self> {
        LOST.get_ptr_mut(0).map(Self)
    }

    /// The ring buffer had no room for a record.
    #[inline(always)]
    pub fn ring(&self) {
        // SAFETY: the pointer is to this processor's own value; a program that interrupts this one can at worst make
        // two losses count as one.
        unsafe { (*self.0).ring = (*self.0).ring.wrapping_add(1) };
    }

    /// The bitmap had no place for a word.
    #[inline(always)]
    pub fn bits(&self) {
        // SAFETY: as above.
        unsafe { (*self.0).bits = (*self.0).bits.wrapping_add(1) };
    }

    /// Says so in the log if anything was ever lost on this processor and it has not been said.
    #[inline(always)]
    pub fn say<C: EbpfContext>(&self, ctx: &C) {
        // SAFETY: as above.
        unsafe {
            let Losses { ring, bits, said } = *self.0;
            if ring | bits != 0 && said == 0 {
                (*self.0).said = 1;
                warn_lost(ctx.as_ptr(), bits);
            }
        }
    }
}

/// For the programs that make one record: it found no room.
#[inline(always)]
pub fn lost_record<C: EbpfContext>(ctx: &C) {
    if let Some(lost) = Counter::new() {
        lost.ring();
        lost.say(ctx);
    }
}

/// A function of its own, under its plain name: what the log macro expands to is large, and as a closure that is
/// inlined in one place only it brings no symbol of its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn warn_lost(ctx: *mut c_void, bits: u64) -> u32 {
    let ctx = TracePointContext::new(ctx);
    if bits != 0 {
        warn!(
            &ctx,
            "the first-touch bitmap is full: touches are lost until the next window"
        );
    } else {
        warn!(
            &ctx,
            "the ring buffer is full: events are lost until user space has read some"
        );
    }
    0
}
