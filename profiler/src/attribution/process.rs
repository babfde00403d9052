//! What procfs and cgroupfs say of processes, while they live.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use super::{
    cgroup::{self, CgroupFs, Cgroups},
    mountinfo,
    overlay::Overlay,
};

/// What a process's files in procfs say at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Its parent's process id; 0 where that is in another pid namespace.
    pub parent: u32,
    /// Whether it is the first of a pid namespace of its own.
    pub first: bool,
    /// Its cgroups.
    pub cgroups: Cgroups,
    /// The overlay that is its root directory, if that is one.
    pub root: Option<Overlay>,
}

/// A process whose root directory is an overlay: most likely a container's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inside {
    /// Its process id.
    pub pid: u32,
    /// Number of its mount namespace.
    pub mnt_ns: u32,
    /// The overlay's device.
    pub overlay: u32,
    /// Whether it is the first of a pid namespace of its own.
    pub first: bool,
    /// Path of its cgroup in the v2 hierarchy, where its parent is in another.
    pub own_cgroup: Option<String>,
}

/// Answers about processes, at once and without asking anybody but the kernel.
pub trait Processes {
    /// What there is to know about a process; `None` when it has ended.
    fn view(&self, pid: u32) -> Option<View>;

    /// Path of the process's cgroup in the v2 hierarchy.
    fn cgroup(&self, pid: u32) -> Option<String>;

    /// The device of the overlay that is the process's root directory; `Some(None)` where that is something else,
    /// `None` when it has ended.
    fn root_device(&self, pid: u32) -> Option<Option<u32>>;

    /// The directory that a relative path of the process starts from: an open one (`openat`) or its working directory.
    fn directory(&self, pid: u32, fd: Option<i32>) -> Option<PathBuf>;

    /// Whether the process still runs.
    fn running(&self, pid: u32) -> bool;

    /// Whether anybody is left in the cgroup at this path.
    fn populated(&self, cgroup: &str) -> bool;

    /// All processes that have an overlay as their root directory now.
    fn inside(&self) -> Vec<Inside>;

    /// The kernel's number of the cgroup at this path; `None` when it is gone or cannot be seen.
    fn cgroup_id(&self, cgroup: &str) -> Option<u64>;
}

/// The real thing.
#[derive(Debug, Clone)]
pub struct ProcFs {
    cgroups: CgroupFs,
    /// This process's mount namespace: whoever shares it and our root is no container.
    namespace: Option<PathBuf>,
}

/// The process that an engine leaves with a container (conmon).
#[derive(Debug)]
pub(super) struct Monitor {
    pub(super) pid: u32,
    /// Directory of the container's OCI bundle.
    pub(super) bundle: PathBuf,
}

impl ProcFs {
    /// Looks where cgroups are mounted.
    #[must_use]
    pub fn new() -> Self {
        Self {
            cgroups: CgroupFs::find(),
            namespace: fs::read_link("/proc/self/ns/mnt").ok(),
        }
    }

    fn root(&self, pid: u32) -> Option<Option<Overlay>> {
        // The list of mounts is long on a busy node, and most programs that start are the host's.
        let root = fs::read_link(format!("/proc/{pid}/root")).ok()?;
        let namespace = fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        if root == Path::new("/") && namespace.is_some() && namespace == self.namespace {
            return Some(None);
        }
        let text = fs::read(format!("/proc/{pid}/mountinfo")).ok()?;
        Some(mountinfo::root_mount(&text).and_then(|mount| Overlay::of(&mount)))
    }

    /// Where the engine mounted the overlay with this device, as one of `pids` sees it: `<graph root>/overlay`.
    pub(super) fn storage_dir_of(&self, device: u32, pids: &[u32]) -> Option<PathBuf> {
        overlays_of(pids)
            .filter(|overlay| overlay.device == device)
            .find_map(|overlay| overlay.storage_dir_of_point())
    }

    /// The overlay mounted at `point`, as one of `pids` sees it.
    pub(super) fn overlay_at(&self, point: &Path, pids: &[u32]) -> Option<Overlay> {
        overlays_of(pids)
            .filter(|overlay| overlay.point == point)
            .last()
    }

    /// The monitor of the container `id`: started as `conmon -c <id> -b <bundle> ...`.
    pub(super) fn monitor_of(&self, id: &str) -> Option<Monitor> {
        pids().find_map(|pid| {
            let text = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let arguments: Vec<&[u8]> = text.split(|&b| b == 0).collect();
            let after = |names: [&[u8]; 2]| {
                let at = arguments.iter().position(|a| names.contains(a))?;
                arguments.get(at + 1).copied()
            };
            if after([b"-c", b"--cid"]) != Some(id.as_bytes()) {
                return None;
            }
            let bundle = PathBuf::from(OsStr::from_bytes(after([b"-b", b"--bundle"])?));
            Some(Monitor { pid, bundle })
        })
    }
}

impl Default for ProcFs {
    fn default() -> Self {
        Self::new()
    }
}

/// All processes there are.
fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn overlays_of(pids: &[u32]) -> impl Iterator<Item = Overlay> {
    pids.iter()
        .filter_map(|pid| fs::read(format!("/proc/{pid}/mountinfo")).ok())
        .flat_map(|text| {
            mountinfo::parse(&text)
                .filter_map(|mount| Overlay::of(&mount))
                .collect::<Vec<_>>()
        })
}

/// The value of a line `name:\tvalue` of `/proc/<pid>/status`.
fn status<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

impl Processes for ProcFs {
    fn view(&self, pid: u32) -> Option<View> {
        let root = self.root(pid)?;
        let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let parent = status(&text, "PPid")?.parse().ok()?;
        // One number a nested pid namespace, innermost last.
        let mut ids = status(&text, "NSpid")
            .unwrap_or_default()
            .split_whitespace();
        let first = ids.clone().count() > 1 && ids.next_back() == Some("1");
        let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let parents = fs::read_to_string(format!("/proc/{parent}/cgroup")).ok();
        Some(View {
            parent,
            first,
            cgroups: Cgroups::new(&own, parents.as_deref()),
            root,
        })
    }

    fn cgroup(&self, pid: u32) -> Option<String> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        cgroup::unified(&text).map(str::to_owned)
    }

    fn root_device(&self, pid: u32) -> Option<Option<u32>> {
        Some(self.root(pid)?.map(|overlay| overlay.device))
    }

    fn directory(&self, pid: u32, fd: Option<i32>) -> Option<PathBuf> {
        let link = match fd {
            Some(fd) => format!("/proc/{pid}/fd/{fd}"),
            None => format!("/proc/{pid}/cwd"),
        };
        let path = fs::read_link(link).ok().filter(|path| path.is_absolute())?;
        // As the process sees it, where only its root was changed.
        let root = fs::read_link(format!("/proc/{pid}/root")).ok()?;
        match path.strip_prefix(&root) {
            Ok(below) => Some(Path::new("/").join(below)),
            Err(_) => Some(path),
        }
    }

    fn running(&self, pid: u32) -> bool {
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/status")) else {
            return false;
        };
        // A main thread that has ended before the others shows as a zombie too.
        let ended = status(&text, "State").is_some_and(|state| state.starts_with(['Z', 'X']));
        let threads = status(&text, "Threads").and_then(|n| n.parse::<u32>().ok());
        !ended || threads.is_some_and(|threads| threads > 1)
    }

    fn populated(&self, cgroup: &str) -> bool {
        self.cgroups.populated(cgroup)
    }

    fn inside(&self) -> Vec<Inside> {
        let look = |pid: u32| {
            // Most processes are the host's: their other files are not read.
            let overlay = self.root_device(pid)??;
            let view = self.view(pid)?;
            let namespace = fs::metadata(format!("/proc/{pid}/ns/mnt")).ok()?;
            Some(Inside {
                pid,
                // The kernel's own type is an unsigned int.
                mnt_ns: u32::try_from(namespace.ino()).ok()?,
                overlay,
                first: view.first,
                own_cgroup: view.cgroups.own,
            })
        };
        pids().filter_map(look).collect()
    }

    fn cgroup_id(&self, cgroup: &str) -> Option<u64> {
        self.cgroups.id(cgroup)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn this_process_is_no_container_and_runs() {
        let proc = ProcFs::new();
        let view = proc.view(std::process::id()).unwrap();
        assert_eq!(view.root, None);
        assert!(pids().any(|pid| pid == std::process::id()));
        let inside = proc.inside();
        assert!(inside.iter().all(|inside| inside.pid != std::process::id()));
        assert_eq!(view.parent, std::os::unix::process::parent_id());
        assert!(proc.running(std::process::id()));
        assert_eq!(
            proc.directory(std::process::id(), None),
            Some(std::env::current_dir().unwrap())
        );
    }

    #[test]
    fn a_process_that_has_ended_is_not_running_and_has_no_view() {
        let proc = ProcFs::new();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        assert!(!proc.running(pid));
        assert_eq!(proc.view(pid), None);
    }

    #[test]
    fn a_zombie_is_not_running() {
        let proc = ProcFs::new();
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        assert!(proc.running(child.id()));
        drop(child.stdin.take());
        // Its output ends when its descriptors close, shortly before it is a zombie.
        std::io::copy(&mut child.stdout.take().unwrap(), &mut std::io::sink()).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while proc.running(child.id()) {
            assert!(std::time::Instant::now() < deadline, "still running");
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }

    #[test]
    fn a_cgroup_that_is_gone_has_nobody_left() {
        let proc = ProcFs::new();
        assert!(proc.populated("/"));
        let seen = CgroupFs::find() != CgroupFs::default();
        // Where no hierarchy can be seen nothing is ever known to have ended.
        assert_eq!(proc.populated("/no/such/cgroup"), !seen);
        assert_eq!(proc.cgroup_id("/no/such/cgroup"), None);
        assert_eq!(proc.cgroup_id("/").is_some(), seen);
    }
}
