//! Files asked for by name, found or not, by those that are watched. Kept between begin and end of the call, because
//! the path lies in the process's memory and is surely there only once the kernel has read it.

use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, generated::bpf_probe_read_user_str,
};
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use forelayer_events::{KIND_OPEN, OpenRecord, PATH_CUT, PATH_MAX, PendingOpen};

use crate::maps::{EVENTS, PENDING, WATCHED_CGROUPS, WATCHED_MOUNT_NS};
use crate::tracepoints::field;
use crate::who::{header, lost_record, mount_namespace, when_full};

/// A path without a directory of its own starts at the working directory.
const AT_FDCWD: i32 = -100;

/// `syscalls:sys_enter_openat` and `sys_enter_openat2`: directory, path.
#[tracepoint]
pub fn enter_openat(ctx: TracePointContext) -> u32 {
    // SAFETY: integers at offsets that the loader has checked.
    let (dirfd, path) = unsafe { (field::<16, u64>(&ctx) as i32, field::<24, u64>(&ctx)) };
    begin(dirfd, path)
}

/// `syscalls:sys_enter_open`: path.
#[tracepoint]
pub fn enter_open(ctx: TracePointContext) -> u32 {
    // SAFETY: an integer at an offset that the loader has checked.
    let path = unsafe { field::<16, u64>(&ctx) };
    begin(AT_FDCWD, path)
}

#[inline(always)]
fn begin(dirfd: i32, path: u64) -> u32 {
    // SAFETY: a helper without arguments.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    if WATCHED_CGROUPS.get_ptr(cgroup).is_none()
        && WATCHED_MOUNT_NS.get_ptr(mount_namespace()).is_none()
    {
        return 0;
    }
    let pending = PendingOpen {
        path,
        dirfd,
        reserved: 0,
    };
    // A failure costs one open in the profile's list of names, nothing that is served.
    let _ = PENDING.insert(bpf_get_current_pid_tgid(), &pending, 0);
    0
}

/// `syscalls:sys_exit_openat`, `sys_exit_openat2`, `sys_exit_open`: a descriptor or a negative errno.
#[tracepoint]
pub fn exit_open(ctx: TracePointContext) -> u32 {
    let thread = bpf_get_current_pid_tgid();
    let Some(pending) = PENDING.get_ptr(thread) else {
        return 0;
    };
    // SAFETY: the value lives on while the program runs.
    let PendingOpen { path, dirfd, .. } = unsafe { *pending };
    let _ = PENDING.remove(thread);
    // SAFETY: an integer at an offset that the loader has checked.
    let result = unsafe { field::<16, i64>(&ctx) } as i32;
    let Some(mut entry) = EVENTS.reserve::<OpenRecord>(0) else {
        lost_record(&ctx);
        return 0;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: `record` is the reserved memory of this record; the helper writes at most `PATH_MAX` bytes into `path`
    // and checks the process's address. What it leaves of `path` is not read: `path_len` says how much counts.
    let read = unsafe {
        let read = bpf_probe_read_user_str(
            (&raw mut (*record).path).cast(),
            PATH_MAX as u32,
            path as *const _,
        );
        let flags = if read == PATH_MAX as i64 { PATH_CUT } else { 0 };
        (&raw mut (*record).header).write(header(KIND_OPEN, flags));
        (&raw mut (*record).result).write(result);
        (&raw mut (*record).dirfd).write(dirfd);
        (&raw mut (*record).path_len).write(read.saturating_sub(1) as u32);
        (&raw mut (*record).reserved).write(0);
        read
    };
    if read > 1 {
        entry.submit(when_full());
    } else {
        // Nothing that could be named: an empty path, or an address that is none.
        entry.discard(0);
    }
    0
}
