//! Containers that started already: a program that one of them starts later is no start.

use super::Recorder;
use crate::{attribution::Processes, recorder::recording::Recording};

/// Containers that are remembered.
const MAX_DONE: usize = 4096;

/// A container that was recorded, or that ran before anything was.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) mnt_ns: u32,
    overlay: u32,
    init: u32,
    /// Whether `init` has a pid namespace of its own, which ends with it.
    first: bool,
    own_cgroup: Option<String>,
    /// The number of its own cgroup: the path comes again with a restart, the number does not. 0: not known.
    cgroup: u64,
}

impl<P: Processes> Recorder<P> {
    /// Takes note of the containers that run. What starts in them later (a health check) has its parent on the host,
    /// as a container's first process has, and would be taken for one that is expected.
    pub(super) fn note_running(&mut self) {
        // One that a mount waits for may be among them.
        if !self.mounts.is_empty() {
            return;
        }
        let mut inside = self.processes.inside();
        // The first process tells best when its container has ended, one with the engine's own parent next.
        inside.sort_by_key(|one| (!one.first, one.own_cgroup.is_none(), one.pid));
        for one in inside {
            let recorded = self
                .recordings
                .values()
                .any(|recording| recording.overlay == Some(one.overlay));
            if recorded || self.is_done(one.mnt_ns, one.overlay) {
                continue;
            }
            let cgroup = one
                .own_cgroup
                .as_ref()
                .and_then(|path| self.processes.cgroup_id(path));
            self.remember(Done {
                mnt_ns: one.mnt_ns,
                overlay: one.overlay,
                init: one.pid,
                first: one.first,
                own_cgroup: one.own_cgroup,
                cgroup: cgroup.unwrap_or_default(),
            });
        }
    }

    /// Takes note of a container that was recorded.
    pub(super) fn note_recorded(&mut self, recording: &Recording) {
        let Some(identity) = &recording.identity else {
            return;
        };
        self.remember(Done {
            mnt_ns: recording.origin.mnt_ns,
            overlay: identity.overlay,
            init: recording.origin.pid,
            first: recording.first,
            own_cgroup: identity.own_cgroup.clone(),
            cgroup: recording.origin.cgroup,
        });
    }

    fn remember(&mut self, done: Done) {
        if self.done.len() >= MAX_DONE {
            self.done.remove(0);
        }
        self.done.push(done);
    }

    /// Whether the container with this namespace and overlay started already and still runs.
    pub(super) fn is_done(&mut self, mnt_ns: u32, overlay: u32) -> bool {
        let own_ns = self.has_own_ns(mnt_ns);
        self.any_runs(|done| done.overlay == overlay && (!own_ns || done.mnt_ns == mnt_ns))
    }

    /// Whether a container with this namespace of its own started already and still runs.
    pub(super) fn is_done_ns(&mut self, mnt_ns: u32) -> bool {
        self.any_runs(|done| done.mnt_ns == mnt_ns)
    }

    fn any_runs(&mut self, which: impl Fn(&Done) -> bool) -> bool {
        while let Some(at) = self.done.iter().position(&which) {
            if self.runs(&self.done[at]) {
                return true;
            }
            // The numbers of one that has ended are in use again.
            self.done.swap_remove(at);
        }
        false
    }

    /// Whether a container that was recorded still runs. One that was started again has the same cgroup path and often
    /// the same namespace and overlay numbers, but neither its cgroup's number nor its first process.
    fn runs(&self, done: &Done) -> bool {
        let same = |path: &str| {
            let now = self.processes.cgroup_id(path);
            now.is_none_or(|now| done.cgroup == 0 || now == done.cgroup)
        };
        let init = || self.processes.running(done.init);
        match &done.own_cgroup {
            Some(path) => same(path) && (!done.first || init()) && self.processes.populated(path),
            None => init(),
        }
    }
}
