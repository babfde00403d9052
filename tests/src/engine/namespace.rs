//! A mount namespace for an engine: a plain cgroup2 hierarchy, private /run, /tmp and /var/lib/containers, and, for an
//! engine of another Debian, that Debian's tree as the root.
//!
//! A sleeping process holds the namespace; commands enter it with `nsenter`. It ends by that process's id.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};

use super::{
    process::{self, Process},
    work::WorkDir,
};

/// Prepares the namespace it runs in, then says so and sleeps. `$1`: root tree or nothing; `$2`: the run's directory;
/// `$3`: directory for what engines keep outside their storage.
///
/// A plain chroot breaks containers/storage, which runs itself again; hence `pivot_root`. The cgroup2 mount gives every
/// container a v2 cgroup of its own, which is what the witness reads.
const PREPARE: &str = r#"set -eu
root=$1 work=$2 private=$3
# The parent, so that the tree, which is kept, gets no directory for each run.
runs=$(dirname "$work")
if [ -n "$root" ]; then
    mount --rbind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --rbind /dev "$root/dev"
    mkdir -p "$root$runs"
    mount --rbind "$runs" "$root$runs"
fi
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mkdir -p "$root/var/lib/containers" "$private/tmp" "$private/var-tmp" "$private/containers"
chmod 1777 "$private/tmp" "$private/var-tmp"
mount --bind "$private/tmp" "$root/tmp"
mount --bind "$private/var-tmp" "$root/var/tmp"
mount --bind "$private/containers" "$root/var/lib/containers"
if [ -n "$root" ]; then
    mkdir -p "$root/mnt/old"
    pivot_root "$root" "$root/mnt/old"
    cd /
    umount -l /mnt/old
fi
echo forelayer-tests: ready
exec sleep infinity
"#;

/// A prepared namespace.
#[derive(Debug)]
pub struct Namespace {
    holder: Process,
}

impl Namespace {
    /// Prepares one, with the host's own tree or with `root`. `name` is for logs and private files.
    ///
    /// # Errors
    /// When a mount cannot be made.
    pub fn new(work: &WorkDir, name: &str, root: Option<&Path>) -> Result<Self> {
        let private = work.directory(format!("private-{name}"))?;
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "--propagation",
                "slave",
                "sh",
                "-c",
                PREPARE,
                "sh",
            ])
            .arg(root.unwrap_or_else(|| Path::new("")))
            .arg(work.path())
            .arg(&private);
        let log = work.path().join(format!("namespace-{name}.log"));
        let holder = Process::start(work, &format!("namespace {name}"), &mut command, &log)?;
        holder
            .wait_for("that its namespace is ready", |line| {
                (line == "forelayer-tests: ready").then_some(())
            })
            .with_context(|| format!("cannot prepare the namespace of {name}"))?;
        Ok(Self { holder })
    }

    /// A command inside, with the root as its directory.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = process::command("nsenter");
        command
            .args(["--mount", "--root", "--wdns=/", "--target"])
            .arg(self.holder.id().to_string())
            .arg("--")
            .arg(program);
        command
    }

    /// The namespace's root as seen from outside.
    #[must_use]
    pub fn root(&self) -> std::path::PathBuf {
        format!("/proc/{}/root", self.holder.id()).into()
    }

    /// Lazily unmounts everything at or below a path inside, the newest first.
    ///
    /// # Errors
    /// When the list of mounts cannot be read.
    pub fn unmount_below(&self, path: &Path) -> Result<()> {
        let list = fs::read_to_string(format!("/proc/{}/mountinfo", self.holder.id()))?;
        let points: Vec<&str> = list
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|point| Path::new(point).starts_with(path))
            .collect();
        for point in points.iter().rev() {
            process::output(self.command("umount").arg("--lazy").arg(point))?;
        }
        Ok(())
    }
}
