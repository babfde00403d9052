//! Which container a process belongs to, and what the engine says of it.
//!
//! A container is known by the overlay mount at its processes' root: the lower directories are followed through the
//! engine's links to the layers of the store, never by the image that happened to be pulled last. Its id comes from
//! its cgroup; image name, command and labels from the engine's own files for that id.
//!
//! Invariant: nothing here looks into a data mount, and nothing that could wait for the store is done while an event
//! is handled: [`Processes`] reads procfs and cgroupfs only, [`identify`] follows links (one of them on the control
//! mount) and runs on a thread of its own. Every file that is missing or malformed leaves a field empty.

mod cgroup;
mod engine;
mod links;
mod mountinfo;
mod overlay;
mod process;

pub use cgroup::{CgroupFs, Cgroups};
pub use links::LayersDir;
pub use mountinfo::{Mount, parse as parse_mountinfo};
pub use overlay::Overlay;
pub use process::{Inside, ProcFs, Processes, View};

use std::path::{Path, PathBuf};

use crate::protocol::Container;

/// A process that may be a container's first, as far as procfs alone told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The number to answer with.
    pub id: u64,
    /// What procfs said of the process; nothing when it had ended before it could be asked.
    pub view: Option<View>,
    /// What procfs said of an earlier process in the same mount namespace.
    pub cgroups: Cgroups,
}

/// What [`identify`] found out about a candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Who it is; `command` is empty where the engine's files do not tell.
    pub container: Container,
    /// Path of its cgroup in the v2 hierarchy, where it has one of its own.
    pub own_cgroup: Option<String>,
    /// Device of the overlay at its root, as in mountinfo.
    pub overlay: u32,
}

/// Finds out who a candidate is: the slots of its layers below `layers` and what the engine's files tell.
///
/// `None` when none of its lower directories is a layer of the store. Follows links on the engine's storage and on the
/// control mount, so it may wait for the store: call it where waiting is allowed.
#[must_use]
pub fn identify(candidate: &Candidate, layers: &LayersDir, proc: &ProcFs) -> Option<Identity> {
    match &candidate.view {
        Some(view) => identify_living(view, layers, proc),
        None => identify_ended(&candidate.cgroups, layers, proc),
    }
}

fn identify_living(view: &View, layers: &LayersDir, proc: &ProcFs) -> Option<Identity> {
    let root = view.root.as_ref()?;
    // The engine may live in a mount namespace of its own; its monitor is the container's parent.
    let prefixes = prefixes(view.parent);
    let base = root
        .storage_dir()
        .or_else(|| proc.storage_dir_of(root.device, &[view.parent, std::process::id()]));
    let slots = slots(root, base.as_deref(), &prefixes, layers)?;
    let graph_root = base
        .as_deref()
        .and_then(Path::parent)
        .map(Path::to_path_buf);
    let mut container = match (&view.cgroups.container, graph_root) {
        (Some(id), Some(graph_root)) => engine::describe(&graph_root, id, &prefixes),
        _ => Container::default(),
    };
    container.id = view.cgroups.container.clone().unwrap_or_default();
    container.slots = slots;
    Some(Identity {
        container,
        own_cgroup: view.cgroups.own.clone(),
        overlay: root.device,
    })
}

/// A container that lived shorter than an event takes to arrive: its monitor, which was started with the container's id
/// and bundle, lives longer.
fn identify_ended(cgroups: &Cgroups, layers: &LayersDir, proc: &ProcFs) -> Option<Identity> {
    let id = cgroups.container.clone()?;
    let monitor = proc.monitor_of(&id)?;
    let prefixes = prefixes(monitor.pid);
    // <graph root>/overlay-containers/<id>/userdata
    let graph_root = monitor.bundle.ancestors().nth(3)?.to_path_buf();
    let merged = engine::root_path(&graph_root, &id, &prefixes)?;
    let overlay = proc.overlay_at(&merged, &[monitor.pid, std::process::id()])?;
    let slots = slots(
        &overlay,
        Some(&graph_root.join("overlay")),
        &prefixes,
        layers,
    )?;
    let mut container = engine::describe(&graph_root, &id, &prefixes);
    container.id = id;
    container.slots = slots;
    Some(Identity {
        container,
        own_cgroup: cgroups.own.clone(),
        overlay: overlay.device,
    })
}

/// Where the engine's files may be seen from: here, or through the root of a process in the engine's namespace.
fn prefixes(engine_process: u32) -> Vec<PathBuf> {
    let mut prefixes = vec![PathBuf::from("/")];
    if engine_process > 1 {
        prefixes.push(PathBuf::from(format!("/proc/{engine_process}/root")));
    }
    prefixes
}

fn slots(
    overlay: &Overlay,
    base: Option<&Path>,
    prefixes: &[PathBuf],
    layers: &LayersDir,
) -> Option<Vec<u32>> {
    let slots: Vec<u32> = overlay
        .lower
        .iter()
        .filter_map(|lower| links::slot(lower, base, prefixes, layers))
        .collect();
    (!slots.is_empty()).then_some(slots)
}
