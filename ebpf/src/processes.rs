//! Programs started, processes made and ended.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, generated::bpf_probe_read_kernel_str};
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use forelayer_events::{
    ExecRecord, ExitRecord, ForkRecord, KIND_EXEC, KIND_EXIT, KIND_FORK, PATH_CUT, PATH_MAX,
};

use crate::maps::{EVENTS, FORK_CHILD};
use crate::tracepoints::field;
use crate::who::{AT_ONCE, header, lost_record, when_full};

/// `sched:sched_process_exec`: the new program is in place.
#[tracepoint]
pub fn exec(ctx: TracePointContext) -> u32 {
    let Some(mut entry) = EVENTS.reserve::<ExecRecord>(0) else {
        lost_record(&ctx);
        return 0;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: an integer at an offset that the loader has checked: the low half is the path's place in the record.
    let place = unsafe { field::<8, u32>(&ctx) } & 0xffff;
    // SAFETY: `record` is the reserved memory of this record; the helper writes at most `PATH_MAX` bytes into `path`
    // and checks the address.
    unsafe {
        let path = (ctx.as_ptr() as u64).wrapping_add(u64::from(place));
        let read = bpf_probe_read_kernel_str(
            (&raw mut (*record).path).cast(),
            PATH_MAX as u32,
            path as *const _,
        );
        let flags = if read == PATH_MAX as i64 { PATH_CUT } else { 0 };
        (&raw mut (*record).header).write(header(KIND_EXEC, flags));
        (&raw mut (*record).path_len).write(read.max(1).saturating_sub(1) as u32);
        (&raw mut (*record).reserved).write(0);
    }
    entry.submit(AT_ONCE);
    0
}

/// `sched:sched_process_fork`, in the parent.
#[tracepoint]
pub fn fork(ctx: TracePointContext) -> u32 {
    // SAFETY: an integer; the helper behind `read_at` checks the address.
    let Ok(child) = (unsafe { ctx.read_at::<u32>(FORK_CHILD.load() as usize) }) else {
        return 0;
    };
    match EVENTS.reserve::<ForkRecord>(0) {
        Some(mut entry) => {
            entry.write(ForkRecord {
                header: header(KIND_FORK, 0),
                child,
                reserved: 0,
            });
            entry.submit(when_full());
        }
        None => lost_record(&ctx),
    }
    0
}

/// `sched:sched_process_exit`, of a process's first thread.
#[tracepoint]
pub fn exit(ctx: TracePointContext) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    if (pid_tgid >> 32) as u32 != pid_tgid as u32 {
        return 0;
    }
    match EVENTS.reserve::<ExitRecord>(0) {
        Some(mut entry) => {
            entry.write(ExitRecord {
                header: header(KIND_EXIT, 0),
            });
            entry.submit(when_full());
        }
        None => lost_record(&ctx),
    }
    0
}
