//! Whose an event is, and what is kept of processes that are nobody's yet.

use std::collections::HashMap;

use super::{Group, Recorder};
use crate::{
    attribution::Processes,
    recorder::{
        Action,
        recording::{RawTouch, Recording},
    },
    witness::{Origin, Watched},
};

/// Mount namespaces that are not known to be a container's and whose opens are reported, at most.
const MAX_WATCHED: usize = 64;
/// How many processes of a mount namespace are asked who they are before one calls exec.
const MAX_LOOKS: u8 = 4;
/// Groups of processes of which something is remembered within a window.
const MAX_GROUPS: usize = 4096;

impl<P: Processes> Recorder<P> {
    /// Whether processes of this mount namespace can be told from the host's by it.
    pub(super) fn has_own_ns(&self, mnt_ns: u32) -> bool {
        mnt_ns != 0 && mnt_ns != self.host_ns
    }

    /// The container that a process belongs to.
    pub(super) fn owner(&mut self, origin: &Origin) -> Option<u64> {
        if self.recordings.is_empty() {
            return None;
        }
        if let Some(&id) = self
            .by_ns
            .get(&origin.mnt_ns)
            .or_else(|| self.by_cgroup.get(&origin.cgroup))
            .or_else(|| self.by_process.get(&origin.pid))
        {
            return Some(id);
        }
        self.below_own_cgroup(origin)
            .or_else(|| self.by_root(origin))
    }

    /// A container may make cgroups below its own (an init system does).
    pub(super) fn below_own_cgroup(&mut self, origin: &Origin) -> Option<u64> {
        let own = |recording: &Recording| {
            let identity = recording.identity.as_ref();
            identity.is_some_and(|identity| identity.own_cgroup.is_some())
        };
        if !self.recordings.values().any(own) {
            return None;
        }
        let group = group(&mut self.groups, origin)?;
        if std::mem::replace(&mut group.asked, true) {
            return None;
        }
        let path = self.processes.cgroup(origin.pid)?;
        let id = self.recordings.values().find_map(|recording| {
            let own = recording.identity.as_ref()?.own_cgroup.as_ref()?;
            let below = path.strip_prefix(own.as_str())?;
            (below.is_empty() || below.starts_with('/')).then_some(recording.id)
        })?;
        self.by_cgroup.insert(origin.cgroup, id);
        Some(id)
    }

    /// A container that shares namespace and cgroup with its engine is known by its processes' root only.
    pub(super) fn by_root(&mut self, origin: &Origin) -> Option<u64> {
        let bare = |recording: &&Recording| {
            !self.has_own_ns(recording.origin.mnt_ns)
                && recording.origin.mnt_ns == origin.mnt_ns
                && recording.origin.cgroup == origin.cgroup
        };
        if self.strangers.contains(&origin.pid) || !self.recordings.values().any(|r| bare(&r)) {
            return None;
        }
        let device = self.processes.root_device(origin.pid).flatten();
        let id = self
            .recordings
            .values()
            .filter(bare)
            .find(|recording| device.is_some() && recording.overlay == device)
            .map(|recording| recording.id);
        match id {
            Some(id) => {
                self.by_process.insert(origin.pid, id);
            }
            None if self.strangers.len() < MAX_GROUPS => {
                self.strangers.insert(origin.pid);
            }
            None => {}
        }
        id
    }

    /// A process that is no known container's: when it has a mount namespace of its own it may become one's first, so
    /// that its opens are reported before it does, and what can only be asked while it lives is asked now.
    pub(super) fn meet(&mut self, origin: &Origin, actions: &mut Vec<Action>) {
        if !self.has_own_ns(origin.mnt_ns)
            || self.mounts.is_empty()
            || self.is_of_done(origin)
            || self.watched.len() >= MAX_WATCHED
        {
            return;
        }
        let Some(group) = group(&mut self.groups, origin) else {
            return;
        };
        if group.early.is_none() && group.looks < MAX_LOOKS {
            group.looks += 1;
            group.early = self.processes.view(origin.pid);
        }
        self.watch(Watched::MountNamespace(origin.mnt_ns), actions);
    }

    /// Whether a process is of a container that started already. Namespaces' numbers are used again at once, so it is
    /// looked whether that runs; not at each event, though.
    fn is_of_done(&mut self, origin: &Origin) -> bool {
        if !self.done.iter().any(|done| done.mnt_ns == origin.mnt_ns) {
            return false;
        }
        if group(&mut self.groups, origin).is_some_and(|group| group.done) {
            return true;
        }
        let done = self.is_done_ns(origin.mnt_ns);
        if let Some(group) = group(&mut self.groups, origin) {
            group.done = done;
        }
        done
    }

    pub(super) fn watch(&mut self, who: Watched, actions: &mut Vec<Action>) {
        if !self.watched.contains(&who) {
            self.watched.push(who);
            actions.push(Action::Watch(who));
        }
    }

    /// Keeps a touch that may turn out to be a container's.
    pub(super) fn keep(&mut self, origin: &Origin, touch: RawTouch) {
        let starting = !self.mounts.is_empty();
        let room = self.pending < self.bounds.pending;
        let mut group = group(&mut self.groups, origin);
        if let Some(group) = &mut group {
            // What a container touches later is not what another's runtime touched for its start.
            if group.done {
                return;
            }
            group.touched = true;
        }
        if !starting {
            return;
        }
        self.last_pending_ns = self.last_pending_ns.max(touch.at_ns);
        match group {
            Some(group) if room => {
                group.touches.push(touch);
                self.pending += 1;
            }
            _ => self.dropped += 1,
        }
    }

    pub(super) fn touch(&mut self, id: u64, touch: RawTouch) {
        if let Some(recording) = self.recordings.get_mut(&id) {
            recording.touch(touch, &self.bounds);
        }
    }

    /// The runtime may touch what it touched for the last container: that is to be reported once more. What a
    /// container touches that started already is no runtime's.
    pub(super) fn report_again(&mut self, actions: &mut Vec<Action>) {
        let mut touched: Vec<(u64, u32)> = Vec::new();
        for (&key, group) in &mut self.groups {
            group.done = false;
            if std::mem::take(&mut group.touched) {
                touched.push(key);
            }
        }
        touched.retain(|&(_, mnt_ns)| !self.has_own_ns(mnt_ns) || !self.is_done_ns(mnt_ns));
        if touched.is_empty() {
            return;
        }
        actions.push(Action::Forget(touched.clone()));
        for (_, mnt_ns) in touched {
            // Which also ended the reports of its opens.
            let who = Watched::MountNamespace(mnt_ns);
            if self.watched.contains(&who) {
                actions.push(Action::Watch(who));
            }
        }
    }

    pub(super) fn clear_pending(&mut self) {
        for group in self.groups.values_mut() {
            group.touches.clear();
        }
        self.pending = 0;
    }
}

/// What is remembered of the group of processes that `origin` is of; nothing when there are too many.
fn group<'a>(groups: &'a mut HashMap<(u64, u32), Group>, origin: &Origin) -> Option<&'a mut Group> {
    let key = (origin.cgroup, origin.mnt_ns);
    if groups.len() >= MAX_GROUPS && !groups.contains_key(&key) {
        return None;
    }
    Some(groups.entry(key).or_default())
}
