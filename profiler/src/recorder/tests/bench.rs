//! What the tests use: containers as they make them, what procfs would say of them, and a recorder that is fed by hand.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use crate::{
    attribution::{Candidate, Cgroups, Identity, Inside, Overlay, Processes, View},
    protocol::{Access, Container, Level, Trace},
    recorder::{Action, Bounds, Input, Now, Recorder},
    witness::{Event, Origin},
};

pub(super) const MS: u64 = 1_000_000;
pub(super) const HOST_NS: u32 = 1;
pub(super) const HOST_CGROUP: u64 = 1;

/// What procfs would say.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) views: HashMap<u32, View>,
    pub(super) cgroups: HashMap<u32, String>,
    pub(super) ended: HashSet<u32>,
    pub(super) empty: HashSet<String>,
    /// Who runs in an overlay.
    pub(super) inside: Vec<Inside>,
    /// Cgroups that were made again; the others' numbers follow from the container's.
    pub(super) made_again: HashMap<String, u64>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Fake(pub(super) Arc<Mutex<World>>);

impl Processes for Fake {
    fn view(&self, pid: u32) -> Option<View> {
        self.0.lock().unwrap().views.get(&pid).cloned()
    }
    fn cgroup(&self, pid: u32) -> Option<String> {
        self.0.lock().unwrap().cgroups.get(&pid).cloned()
    }
    fn root_device(&self, pid: u32) -> Option<Option<u32>> {
        let world = self.0.lock().unwrap();
        Some(world.views.get(&pid)?.root.as_ref().map(|root| root.device))
    }
    fn directory(&self, pid: u32, fd: Option<i32>) -> Option<PathBuf> {
        match (pid, fd) {
            (10.., None) => Some("/srv".into()),
            (10.., Some(7)) => Some("/seven".into()),
            _ => None,
        }
    }
    fn running(&self, pid: u32) -> bool {
        !self.0.lock().unwrap().ended.contains(&pid)
    }
    fn populated(&self, cgroup: &str) -> bool {
        !self.0.lock().unwrap().empty.contains(cgroup)
    }
    fn inside(&self) -> Vec<Inside> {
        self.0.lock().unwrap().inside.clone()
    }
    fn cgroup_id(&self, cgroup: &str) -> Option<u64> {
        let again = self.0.lock().unwrap().made_again.get(cgroup).copied();
        let made = cgroup.strip_prefix("/c")?.parse::<u64>().ok();
        again.or(made.map(|number| number + 1000))
    }
}

/// A container as the tests make them: everything follows from its number and its layers.
#[derive(Debug, Clone)]
pub(super) struct Made {
    pub(super) number: u32,
    pub(super) slots: Vec<u32>,
    /// Whether it has a mount namespace of its own, and a cgroup.
    pub(super) own_ns: bool,
    pub(super) own_cgroup: bool,
}

impl Made {
    pub(super) fn new(number: u32, slots: &[u32]) -> Self {
        Self {
            number,
            slots: slots.to_vec(),
            own_ns: true,
            own_cgroup: true,
        }
    }
    pub(super) fn bare(number: u32, slots: &[u32]) -> Self {
        Self {
            own_ns: false,
            own_cgroup: false,
            ..Self::new(number, slots)
        }
    }
    pub(super) fn pid(&self) -> u32 {
        self.number * 100
    }
    pub(super) fn origin(&self, pid: u32, at_ms: u64) -> Origin {
        Origin {
            ktime_ns: at_ms * MS,
            cgroup: if self.own_cgroup {
                u64::from(self.number) + 1000
            } else {
                HOST_CGROUP
            },
            mnt_ns: if self.own_ns {
                self.number + 500
            } else {
                HOST_NS
            },
            pid,
            tid: pid,
        }
    }
    pub(super) fn path(&self) -> Option<String> {
        self.own_cgroup.then(|| format!("/c{}", self.number))
    }
    pub(super) fn view(&self) -> View {
        View {
            parent: 2,
            first: self.own_ns,
            cgroups: Cgroups {
                own: self.path(),
                container: Some(format!("{:064x}", self.number)),
            },
            root: Some(Overlay {
                device: self.number,
                point: "/".into(),
                lower: vec!["/l".into()],
                upper: None,
            }),
        }
    }
    pub(super) fn inside(&self, pid: u32, first: bool) -> Inside {
        Inside {
            pid,
            mnt_ns: self.origin(pid, 0).mnt_ns,
            overlay: self.number,
            first,
            own_cgroup: self.path().filter(|_| first),
        }
    }
    pub(super) fn identity(&self) -> Identity {
        Identity {
            container: Container {
                id: format!("{:064x}", self.number),
                image: format!("image{}", self.number),
                slots: self.slots.clone(),
                ..Container::default()
            },
            own_cgroup: self.path(),
            overlay: self.number,
        }
    }
}

pub(super) struct Bench {
    pub(super) recorder: Recorder<Fake>,
    pub(super) world: Fake,
    pub(super) now_ms: u64,
    pub(super) candidates: Vec<Candidate>,
    pub(super) actions: Vec<Action>,
    pub(super) traces: Vec<Trace>,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with(Bounds::default())
    }

    pub(super) fn with(bounds: Bounds) -> Self {
        let world = Fake::default();
        let mut run = 0;
        let new_run = Box::new(move || {
            run += 1;
            format!("{run:032x}")
        });
        Self {
            recorder: Recorder::new(world.clone(), bounds, Level::Tracepoints, HOST_NS, new_run),
            world,
            now_ms: 1000,
            candidates: Vec::new(),
            actions: Vec::new(),
            traces: Vec::new(),
        }
    }

    pub(super) fn apply(&mut self, input: Input) {
        let now = Now {
            mono_ns: self.now_ms * MS,
            unix_ms: 1_000_000 + self.now_ms,
        };
        for action in self.recorder.apply(input, now) {
            match action.clone() {
                Action::Identify(candidate) => self.candidates.push(candidate),
                Action::Finished(trace) => self.traces.push(trace),
                _ => {}
            }
            self.actions.push(action);
        }
    }

    pub(super) fn mount(&mut self, slots: &[u32]) {
        self.mount_at(slots, None);
    }

    /// A mount of which the recorder hears now and that was at another time.
    pub(super) fn mount_at(&mut self, slots: &[u32], at_ms: Option<u64>) {
        for &slot in slots {
            self.apply(Input::Mounted {
                window: u64::from(slot),
                slot,
                at_ns: at_ms.map(|at_ms| at_ms * MS),
            });
        }
    }

    pub(super) fn touch(&mut self, origin: Origin, slot: u32, page: u64, pages: u32) {
        self.now_ms = self.now_ms.max(origin.ktime_ns / MS);
        self.apply(Input::Seen(Event::Touch {
            origin,
            dev: 40,
            ino: u64::from(slot) << 32 | 5,
            page,
            pages,
            access: Access::Read,
        }));
    }

    pub(super) fn exec(&mut self, origin: Origin, path: &str) {
        self.now_ms = self.now_ms.max(origin.ktime_ns / MS);
        self.apply(Input::Seen(Event::Exec {
            origin,
            path: path.into(),
        }));
    }

    pub(super) fn open(&mut self, origin: Origin, path: &str, dirfd: i32, result: i32) {
        self.apply(Input::Seen(Event::Open {
            origin,
            path: path.into(),
            cut: false,
            dirfd,
            result,
        }));
    }

    pub(super) fn exit(&mut self, origin: Origin) {
        self.world.0.lock().unwrap().ended.insert(origin.pid);
        self.apply(Input::Seen(Event::Exit { origin }));
    }

    pub(super) fn show(&mut self, pid: u32, view: View) {
        self.world.0.lock().unwrap().views.insert(pid, view);
    }

    /// First exec and identification of a container.
    pub(super) fn start(&mut self, made: &Made, at_ms: u64) {
        self.show(made.pid(), made.view());
        self.exec(made.origin(made.pid(), at_ms), "/bin/app");
        self.identify(made);
    }

    pub(super) fn identify(&mut self, made: &Made) {
        let candidate = self.candidates.pop().expect("a candidate");
        self.apply(Input::Identified {
            candidate: candidate.id,
            identity: Some(made.identity()),
        });
    }

    pub(super) fn tick(&mut self, at_ms: u64) {
        self.now_ms = at_ms;
        self.apply(Input::Tick { lost: 0 });
    }

    pub(super) fn attached(&self) -> bool {
        let mut attached = false;
        for action in &self.actions {
            match action {
                Action::Attach => {
                    assert!(!attached, "attached twice");
                    attached = true;
                }
                Action::Detach => {
                    assert!(attached, "detached twice");
                    attached = false;
                }
                _ => {}
            }
        }
        attached
    }
}

pub(super) fn host(pid: u32, at_ms: u64) -> Origin {
    Origin {
        ktime_ns: at_ms * MS,
        cgroup: HOST_CGROUP,
        mnt_ns: HOST_NS,
        pid,
        tid: pid,
    }
}

pub(super) fn pages(trace: &Trace) -> BTreeSet<(u64, u64)> {
    trace
        .touches
        .iter()
        .flat_map(|t| (t.page..t.page + u64::from(t.pages)).map(|page| (t.ino >> 32, page)))
        .collect()
}
