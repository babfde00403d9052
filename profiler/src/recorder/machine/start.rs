//! When a program's start is a container's, and who that is.

use super::Recorder;
use crate::{
    attribution::{Candidate, Identity, Processes},
    protocol::slot_of,
    recorder::{
        Action, Now,
        recording::{RawTouch, Recording},
    },
    witness::{Origin, Watched},
};

impl<P: Processes> Recorder<P> {
    /// A program was started by a process that is no known container's: is it a container's first?
    pub(super) fn candidate(
        &mut self,
        origin: &Origin,
        now: Now,
        actions: &mut Vec<Action>,
    ) -> Option<u64> {
        if self.mounts.is_empty() {
            return None;
        }
        let view = self.processes.view(origin.pid);
        let early = self
            .groups
            .get(&(origin.cgroup, origin.mnt_ns))
            .and_then(|group| group.early.clone());
        match &view {
            Some(view) => {
                let root = view.root.as_ref()?.device;
                // A program that a container starts later: its parent is in the container already.
                let later =
                    !view.first && self.processes.root_device(view.parent).flatten() == Some(root);
                if self.ignored.contains(&root) || later || self.is_done(origin.mnt_ns, root) {
                    return None;
                }
            }
            // It has ended already: what it was is known only if its namespace was met before.
            None => {
                early.as_ref()?.cgroups.container.as_ref()?;
            }
        }
        self.next += 1;
        let id = self.next;
        let since_ns = now.mono_ns.saturating_sub(origin.ktime_ns);
        let started_ms = now.unix_ms.saturating_sub(since_ns / 1_000_000);
        let mut recording = Recording::new(id, *origin, started_ms, self.total_lost());
        let known = view.as_ref().or(early.as_ref());
        recording.first = known.is_some_and(|view| view.first);
        recording.overlay = view
            .as_ref()
            .and_then(|view| Some(view.root.as_ref()?.device));
        let own_cgroup = known.is_some_and(|view| view.cgroups.own.is_some());
        if self.has_own_ns(origin.mnt_ns) {
            self.by_ns.insert(origin.mnt_ns, id);
            self.watch(Watched::MountNamespace(origin.mnt_ns), actions);
        }
        if own_cgroup {
            self.by_cgroup.insert(origin.cgroup, id);
        }
        if !self.has_own_ns(origin.mnt_ns) {
            self.by_process.insert(origin.pid, id);
            self.watch(Watched::Cgroup(origin.cgroup), actions);
        }
        self.recordings.insert(id, recording);
        self.adopt(id, origin, own_cgroup);
        actions.push(Action::Identify(Candidate {
            id,
            view,
            cgroups: early.map(|early| early.cgroups).unwrap_or_default(),
        }));
        Some(id)
    }

    /// Gives a container what its own processes touched before its first exec.
    pub(super) fn adopt(&mut self, id: u64, origin: &Origin, own_cgroup: bool) {
        let own_ns = self.has_own_ns(origin.mnt_ns);
        let mut touches = Vec::new();
        for (&(cgroup, mnt_ns), group) in &mut self.groups {
            if (own_ns && mnt_ns == origin.mnt_ns) || (own_cgroup && cgroup == origin.cgroup) {
                touches.append(&mut group.touches);
                group.touched = false;
            } else if !own_ns && mnt_ns == origin.mnt_ns && cgroup == origin.cgroup {
                touches.extend(group.touches.extract_if(.., |t| t.pid == origin.pid));
            }
        }
        self.pending -= touches.len();
        for touch in touches {
            self.touch(id, touch);
        }
    }

    pub(super) fn identified(
        &mut self,
        id: u64,
        identity: Option<Identity>,
        actions: &mut Vec<Action>,
    ) {
        let Some(recording) = self.recordings.get_mut(&id) else {
            return;
        };
        let origin = recording.origin;
        let matched = identity.and_then(|identity| {
            let slots = identity.container.slots.iter().copied().collect();
            let mount = self.mounts.take(&slots, recording.origin.ktime_ns)?;
            Some((identity, mount))
        });
        let Some((identity, mount)) = matched else {
            self.ignored.extend(recording.overlay);
            if let Some(recording) = self.forget(id) {
                // They may still be what another container's runtime touched.
                for touch in recording.into_touches() {
                    self.keep(&origin, touch);
                }
            }
            return;
        };
        if identity.own_cgroup.is_some() {
            self.by_cgroup.insert(recording.origin.cgroup, id);
        }
        let own_cgroup = identity.own_cgroup.is_some();
        recording.identify(identity, mount.lost);
        if let Some(identity) = &recording.identity {
            actions.push(Action::Known(identity.container.clone()));
        }
        self.adopt(id, &origin, own_cgroup);
        // What the engine touched of its layers since it mounted them; of two that start together it is both's.
        let Some(recording) = self.recordings.get_mut(&id) else {
            return;
        };
        let mut before: Vec<RawTouch> = self
            .groups
            .values()
            .flat_map(|group| &group.touches)
            .filter(|touch| {
                (mount.at_ns..=origin.ktime_ns).contains(&touch.at_ns)
                    && recording.slots().contains(&slot_of(touch.ino))
            })
            .copied()
            .collect();
        before.sort_by_key(|touch| touch.at_ns);
        for touch in before {
            recording.touch(touch, &self.bounds);
        }
        if self.mounts.is_empty() {
            self.clear_pending();
        }
    }
}
