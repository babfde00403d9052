//! The state machine: what comes in, and when a window closes.

mod belong;
mod done;
mod start;

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{
    Action, Bounds, Input, Now,
    mounts::Mounts,
    recording::{RawTouch, Recording},
};
use crate::{
    attribution::{Processes, View},
    protocol::Level,
    witness::{Event, Origin, Watched},
};

use done::Done;

/// After a container's first process has ended, how often to look whether all of it has.
const LOOK_NS: u64 = 50_000_000;
/// How long to look for that.
const LOOK_FOR_NS: u64 = 5_000_000_000;
/// Finding out who a container is takes milliseconds; one that takes this long is given up.
const IDENTIFY_NS: u64 = 30_000_000_000;

/// Events in, traces out; see the module's text.
pub struct Recorder<P> {
    processes: P,
    bounds: Bounds,
    level: Level,
    /// The mount namespace that engines and everything else on the host share.
    host_ns: u32,
    new_run: Box<dyn FnMut() -> String + Send>,
    /// Whether the programs are attached.
    open: bool,
    mounts: Mounts,
    /// Monotonic time of the last touch that is nobody's yet.
    last_pending_ns: u64,
    recordings: BTreeMap<u64, Recording>,
    next: u64,
    by_ns: HashMap<u32, u64>,
    by_cgroup: HashMap<u64, u64>,
    by_process: HashMap<u32, u64>,
    /// Processes that were asked and are no container's.
    strangers: HashSet<u32>,
    groups: HashMap<(u64, u32), Group>,
    pending: usize,
    /// Devices of overlays that were looked at and are nobody's start.
    ignored: HashSet<u32>,
    done: Vec<Done>,
    watched: Vec<Watched>,
    /// Lost by the kernel, and left out here.
    lost: u64,
    dropped: u64,
    finishing: bool,
}

/// Processes of one cgroup and mount namespace that are no known container's.
#[derive(Debug, Default)]
struct Group {
    touches: Vec<RawTouch>,
    /// Whether its first touches have been seen, so that the kernel no longer reports them.
    touched: bool,
    /// Whether it was found, since the last mount, to be of a container that started already.
    done: bool,
    /// Whether its cgroup was looked up.
    asked: bool,
    /// What one of its first processes looked like, and how often it was tried to look.
    early: Option<View>,
    looks: u8,
}

impl<P: std::fmt::Debug> std::fmt::Debug for Recorder<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder")
            .field("processes", &self.processes)
            .field("open", &self.open)
            .field("recordings", &self.recordings.len())
            .finish_non_exhaustive()
    }
}

impl<P: Processes> Recorder<P> {
    /// A recorder with nothing recorded. `host_ns` is the inode number of the mount namespace in which programs are no
    /// container's (`/proc/self/ns/mnt`); `new_run` makes ids of runs.
    #[must_use]
    pub fn new(
        processes: P,
        bounds: Bounds,
        level: Level,
        host_ns: u32,
        new_run: Box<dyn FnMut() -> String + Send>,
    ) -> Self {
        Self {
            processes,
            bounds,
            level,
            host_ns,
            new_run,
            open: false,
            mounts: Mounts::default(),
            last_pending_ns: 0,
            recordings: BTreeMap::new(),
            next: 0,
            by_ns: HashMap::new(),
            by_cgroup: HashMap::new(),
            by_process: HashMap::new(),
            strangers: HashSet::new(),
            groups: HashMap::new(),
            pending: 0,
            ignored: HashSet::new(),
            done: Vec::new(),
            watched: Vec::new(),
            lost: 0,
            dropped: 0,
            finishing: false,
        }
    }

    /// Takes what happened, says what to do.
    pub fn apply(&mut self, input: Input, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Connected => self.note_running(),
            Input::Mounted {
                window,
                slot,
                at_ns,
            } => {
                // This may come late, even after the container's first exec.
                let at_ns = at_ns.map_or(now.mono_ns, |at_ns| at_ns.min(now.mono_ns));
                self.mounted(window, slot, at_ns, &mut actions);
            }
            // What is still in the ring buffer when the programs are detached is nobody's.
            Input::Seen(event) if self.open => self.seen(event, now, &mut actions),
            Input::Seen(_) => {}
            Input::Identified {
                candidate,
                identity,
            } => {
                self.identified(candidate, identity, &mut actions);
                self.settle(now, &mut actions);
            }
            Input::Tick { lost } => {
                self.lost = lost;
                self.settle(now, &mut actions);
            }
            Input::Finish => {
                self.finishing = true;
                self.settle(now, &mut actions);
                self.finishing = self.open;
            }
        }
        actions
    }

    /// Whether a window is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Containers that are being recorded, those included of which it is not yet known who they are.
    #[must_use]
    pub fn recording(&self) -> usize {
        self.recordings.len()
    }

    fn total_lost(&self) -> u64 {
        self.lost + self.dropped
    }

    fn mounted(&mut self, window: u64, slot: u32, at_ns: u64, actions: &mut Vec<Action>) {
        if !self.open {
            self.open = true;
            self.finishing = false;
            actions.push(Action::Attach);
        }
        actions.push(Action::Reply { window });
        if self.mounts.add(slot, at_ns, self.total_lost()) {
            // A device's number may be in use again.
            self.ignored.clear();
            self.report_again(actions);
        }
    }

    fn seen(&mut self, event: Event, now: Now, actions: &mut Vec<Action>) {
        match event {
            Event::Touch {
                origin,
                ino,
                page,
                pages,
                access,
                ..
            } => {
                let touch = RawTouch {
                    at_ns: origin.ktime_ns,
                    pid: origin.pid,
                    ino,
                    page,
                    pages,
                    access,
                };
                match self.owner(&origin) {
                    Some(id) => self.touch(id, touch),
                    None => {
                        self.meet(&origin, actions);
                        self.keep(&origin, touch);
                    }
                }
            }
            Event::Fork { origin, child } => {
                if let Some(&id) = self.by_process.get(&origin.pid) {
                    self.by_process.insert(child, id);
                } else {
                    self.meet(&origin, actions);
                }
            }
            Event::Exec { origin, path } => {
                // A runtime's process becomes a container's by an exec.
                self.strangers.remove(&origin.pid);
                let id = self
                    .owner(&origin)
                    .or_else(|| self.candidate(&origin, now, actions));
                if let Some(recording) = id.and_then(|id| self.recordings.get_mut(&id)) {
                    recording.exec(origin.ktime_ns, origin.pid, &path, &self.bounds);
                }
            }
            Event::Open {
                origin,
                path,
                cut,
                dirfd,
                result,
            } => {
                let Some(found) = found(result).filter(|_| !cut) else {
                    return;
                };
                let Some(id) = self.owner(&origin) else {
                    return;
                };
                let path = if path.is_absolute() {
                    path
                } else if path.as_os_str().is_empty() {
                    return;
                } else {
                    let dirfd = (dirfd >= 0).then_some(dirfd);
                    match self.processes.directory(origin.pid, dirfd) {
                        Some(directory) => directory.join(path),
                        None => path,
                    }
                };
                if let Some(recording) = self.recordings.get_mut(&id) {
                    // Without the "." components that programs write.
                    let path: std::path::PathBuf = path.components().collect();
                    recording.open(origin.ktime_ns, &path, found, &self.bounds);
                }
            }
            Event::Exit { origin } => {
                self.strangers.remove(&origin.pid);
                let id = self.owner(&origin);
                self.by_process.remove(&origin.pid);
                if let Some(recording) = id.and_then(|id| self.recordings.get_mut(&id))
                    // Its first process takes a pid namespace with it; without one any may be the last.
                    && (recording.origin.pid == origin.pid || !recording.first)
                {
                    recording.look_ns = Some(now.mono_ns);
                    recording.look_until_ns = now.mono_ns + LOOK_FOR_NS;
                    self.settle(now, actions);
                }
            }
        }
    }

    /// Takes a container out of every list.
    fn forget(&mut self, id: u64) -> Option<Recording> {
        self.by_ns.retain(|_, other| *other != id);
        self.by_cgroup.retain(|_, other| *other != id);
        self.by_process.retain(|_, other| *other != id);
        self.recordings.remove(&id)
    }

    /// Finishes what is done, and closes the window when nothing is left.
    fn settle(&mut self, now: Now, actions: &mut Vec<Action>) {
        let over: Vec<u64> = self
            .recordings
            .keys()
            .copied()
            .collect::<Vec<_>>()
            .into_iter()
            .filter(|id| self.is_over(*id, now))
            .collect();
        for id in over {
            self.finish(id, actions);
        }
        let quiet = nanos(self.bounds.quiet);
        let max = nanos(self.bounds.max_window);
        let touched = self.last_pending_ns;
        let finishing = self.finishing && self.recordings.is_empty();
        self.mounts.expire(|mount| {
            let last = mount.at_ns.max(touched);
            finishing
                || now.mono_ns >= last.saturating_add(quiet)
                || now.mono_ns >= mount.at_ns.saturating_add(max)
        });
        if self.open && self.recordings.is_empty() && self.mounts.is_empty() {
            self.close(actions);
        }
    }

    fn is_over(&mut self, id: u64, now: Now) -> bool {
        let Some(recording) = self.recordings.get_mut(&id) else {
            return false;
        };
        let started = recording.origin.ktime_ns;
        let Some(identity) = &recording.identity else {
            return now.mono_ns >= started.saturating_add(IDENTIFY_NS);
        };
        if recording.look_ns.is_some_and(|at| now.mono_ns >= at) {
            let runs = || self.processes.running(recording.origin.pid);
            let ended = (recording.first && !runs())
                || match &identity.own_cgroup {
                    Some(path) => !self.processes.populated(path),
                    None => !runs(),
                };
            if ended {
                return true;
            }
            recording.look_ns =
                (now.mono_ns < recording.look_until_ns).then_some(now.mono_ns + LOOK_NS);
        }
        let quiet = nanos(self.bounds.quiet);
        let over = now.mono_ns >= recording.last_ns.max(started).saturating_add(quiet)
            || now.mono_ns >= started.saturating_add(nanos(self.bounds.max_window));
        recording.cut = !over && self.finishing;
        over || self.finishing
    }

    fn finish(&mut self, id: u64, actions: &mut Vec<Action>) {
        let lost = self.total_lost();
        let Some(recording) = self.forget(id) else {
            return;
        };
        let Origin { cgroup, mnt_ns, .. } = recording.origin;
        self.note_recorded(&recording);
        let who = if self.has_own_ns(mnt_ns) {
            Watched::MountNamespace(mnt_ns)
        } else {
            Watched::Cgroup(cgroup)
        };
        let shared = self.recordings.values().any(|other| {
            other.origin.mnt_ns == mnt_ns
                && (self.has_own_ns(mnt_ns) || other.origin.cgroup == cgroup)
        });
        if !shared && self.watched.contains(&who) {
            self.watched.retain(|other| *other != who);
            actions.push(Action::Unwatch(who));
        }
        actions.push(Action::Forget(vec![(cgroup, mnt_ns)]));
        let run = (self.new_run)();
        if let Some(trace) = recording.finish(run, self.level, lost) {
            actions.push(Action::Finished(trace));
        }
    }

    fn close(&mut self, actions: &mut Vec<Action>) {
        self.open = false;
        self.groups.clear();
        self.pending = 0;
        self.ignored.clear();
        self.strangers.clear();
        self.by_process.clear();
        actions.extend(self.watched.drain(..).map(Action::Unwatch));
        actions.push(Action::Detach);
    }
}

/// Whether an open's result says that the name is there; nothing where it does not tell.
fn found(result: i32) -> Option<bool> {
    match -result {
        ..=0 => Some(true),
        libc::ENOENT | libc::ENOTDIR => Some(false),
        libc::EACCES
        | libc::EPERM
        | libc::EISDIR
        | libc::EROFS
        | libc::ETXTBSY
        | libc::EEXIST
        | libc::ENXIO => Some(true),
        _ => None,
    }
}

fn nanos(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
