//! Cgroups: which one a process is in, whose it is, and whether anybody is left in it.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::mountinfo;

/// What `/proc/<pid>/cgroup` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cgroups {
    /// Path in the cgroup v2 hierarchy, where the process has one that it does not share with the engine.
    pub own: Option<String>,
    /// The engine's id of the container, 64 hexadecimal digits, from whichever hierarchy has it in a name.
    pub container: Option<String>,
}

impl Cgroups {
    /// From the texts of `/proc/<pid>/cgroup` of a process and of its parent, which in a container's first process is
    /// the engine's monitor.
    #[must_use]
    pub fn new(text: &str, parent: Option<&str>) -> Self {
        let container = text
            .lines()
            .filter_map(|line| line.splitn(3, ':').nth(2))
            .find_map(container_id);
        let own = unified(text)
            .filter(|path| *path != "/")
            .filter(|path| match parent.and_then(unified) {
                Some(parent) => *path != parent,
                None => container_id(path).is_some(),
            })
            .map(str::to_owned);
        Self { own, container }
    }
}

/// The path in the cgroup v2 hierarchy (`0::/path`).
pub(super) fn unified(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The container id in a cgroup's path: `libpod-<id>.scope`, `libpod-<id>/container`, `crio-<id>.scope`,
/// `cri-containerd-<id>.scope`, `docker-<id>.scope` or `<id>`; the innermost where several are. A monitor's own cgroup
/// (`libpod-conmon-<id>.scope`, `crio-conmon-<id>.scope`) is none.
pub(super) fn container_id(path: &str) -> Option<String> {
    path.rsplit('/').find_map(|name| {
        let name = name.strip_suffix(".scope").unwrap_or(name);
        let (kind, id) = name.rsplit_once('-').unwrap_or(("", name));
        let hex = id.len() == 64 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        (hex && !kind.ends_with("conmon")).then(|| id.to_owned())
    })
}

/// The cgroup v2 hierarchy as a file system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CgroupFs {
    root: Option<PathBuf>,
}

impl CgroupFs {
    /// Where this process sees the hierarchy's root; nowhere is a valid answer (cgroup v1 only).
    #[must_use]
    pub fn find() -> Self {
        let text = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
        let root = mountinfo::parse(&text)
            .find(|mount| mount.fs_type == "cgroup2" && mount.root == Path::new("/"))
            .map(|mount| mount.point);
        Self { root }
    }

    fn dir(&self, path: &str) -> Option<PathBuf> {
        Some(self.root.as_ref()?.join(path.trim_start_matches('/')))
    }

    /// Whether a process is left in the cgroup at `path` or below it. A cgroup that is gone has none; where the
    /// hierarchy cannot be seen the answer is yes, and the window closes by its other bounds.
    #[must_use]
    pub fn populated(&self, path: &str) -> bool {
        let Some(dir) = self.dir(path) else {
            return true;
        };
        match std::fs::read_to_string(dir.join("cgroup.events")) {
            Ok(text) => !text.lines().any(|line| line == "populated 0"),
            Err(_) => dir.exists(),
        }
    }

    /// The kernel's number of the cgroup at `path`, as in its events: one that is made again has another. Nothing when
    /// it is gone or cannot be seen.
    #[must_use]
    pub fn id(&self, path: &str) -> Option<u64> {
        let meta = std::fs::metadata(self.dir(path)?).ok()?;
        Some(meta.ino())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn ids_are_found_in_every_engine_s_spelling() {
        let id = "0123456789abcdef".repeat(4);
        for path in [
            format!("/machine.slice/libpod-{id}.scope"),
            format!("/machine.slice/libpod-{id}.scope/container"),
            format!("/libpod_parent/libpod-{id}"),
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/crio-{id}.scope"
            ),
            format!("/system.slice/docker-{id}.scope/init.scope"),
            format!("/kubepods/besteffort/pod12/{id}"),
        ] {
            assert_eq!(container_id(&path), Some(id.clone()), "{path}");
        }
        for path in [
            format!("/machine.slice/libpod-conmon-{id}.scope"),
            format!("/x/crio-conmon-{id}.scope"),
            "/".to_owned(),
            "/user.slice/user-0.slice/session-1.scope".to_owned(),
            format!("/x/{}", "g".repeat(64)),
        ] {
            assert_eq!(container_id(&path), None, "{path}");
        }
    }

    #[test]
    fn an_own_cgroup_is_one_that_the_parent_is_not_in() {
        let id = "ab".repeat(32);
        let ours = format!("0::/machine.slice/libpod-{id}.scope\n");
        let parent = format!("0::/machine.slice/libpod-conmon-{id}.scope\n");
        let found = Cgroups::new(&ours, Some(&parent));
        assert_eq!(
            found.own.unwrap(),
            format!("/machine.slice/libpod-{id}.scope")
        );
        assert_eq!(found.container.unwrap(), id);
        // --cgroups=disabled, or one that the whole session is in.
        assert_eq!(Cgroups::new("0::/a\n", Some("0::/a\n")).own, None);
        assert_eq!(Cgroups::new("0::/\n", Some("0::/a\n")).own, None);
        // The parent has ended: only a name can tell.
        assert_eq!(Cgroups::new("0::/a\n", None).own, None);
        assert!(Cgroups::new(&ours, None).own.is_some());
    }

    #[test]
    fn with_old_hierarchies_only_the_id_is_known() {
        let id = "cd".repeat(32);
        let text = format!("5:memory:/libpod_parent/libpod-{id}\n0::/\n");
        let found = Cgroups::new(&text, Some("0::/\n"));
        assert_eq!(found.own, None);
        assert_eq!(found.container.unwrap(), id);
    }
}
