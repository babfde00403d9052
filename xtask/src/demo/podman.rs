//! The same starts by Podman: its own storage below the demo's directory, so that nothing of the machine's is touched.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    container,
    machine::{Running, command_path, quietly},
};

/// A Podman with a storage of its own.
#[derive(Debug)]
pub(crate) struct Podman {
    running: &'static Running,
    program: PathBuf,
    root: PathBuf,
    /// Version 5 and later spell "no limit" differently.
    unlimited: &'static str,
    /// Whether the unified cgroup hierarchy has to be mounted over an old one: the witness wants a cgroup a container.
    old_cgroups: bool,
}

impl Podman {
    /// What is missing, in a sentence, where there is no Podman.
    pub(crate) fn missing() -> Option<String> {
        command_path("podman")
            .is_none()
            .then(|| "there is no podman: install it, or leave --engine out".to_owned())
    }

    /// An empty storage at `root`; with `store`, layers are looked for there first.
    pub(crate) fn new(
        running: &'static Running,
        root: &Path,
        host: &str,
        store: Option<&Path>,
    ) -> Result<Self> {
        let program = command_path("podman").context("there is no podman")?;
        let version = quietly(Command::new(&program).arg("--version"))?;
        let major = version
            .split_whitespace()
            .find_map(|word| word.split_once('.')?.0.parse::<u32>().ok());
        for dir in ["graph", "run", "tmp"] {
            fs::create_dir_all(root.join(dir))?;
        }
        let layers = store
            .map(|store| format!("additionallayerstores = [\"{}:ref\"]\n", store.display()))
            .unwrap_or_default();
        let write = |name: &str, text: String| {
            fs::write(root.join(name), text).with_context(|| format!("cannot write {name}"))
        };
        write(
            "storage.conf",
            format!(
                "[storage]\ndriver = \"overlay\"\ngraphroot = \"{0}/graph\"\nrunroot = \"{0}/run\"\n[storage.options]\n{layers}",
                root.display()
            ),
        )?;
        write(
            "registries.conf",
            format!("[[registry]]\nlocation = \"{host}\"\ninsecure = true\n"),
        )?;
        write(
            "policy.json",
            "{\"default\": [{\"type\": \"insecureAcceptAnything\"}]}".to_owned(),
        )?;
        // CGROUP2_SUPER_MAGIC
        let unified = rustix::fs::statfs("/sys/fs/cgroup").is_ok_and(|fs| fs.f_type == 0x6367_7270);
        let podman = Self {
            running,
            program,
            root: root.to_owned(),
            unlimited: if major.unwrap_or(0) >= 5 { "0" } else { "-1" },
            old_cgroups: !unified,
        };
        // Makes the storage and loads the program: neither belongs to a start.
        quietly(podman.command().arg("images"))?;
        Ok(podman)
    }

    fn command(&self) -> Command {
        let mut command = if self.old_cgroups {
            let mut command = Command::new("unshare");
            command.args(["--mount", "--propagation", "slave", "sh", "-c"]);
            command.arg("mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec \"$0\" \"$@\"");
            command.arg(&self.program);
            command
        } else {
            Command::new(&self.program)
        };
        command
            .env("CONTAINERS_STORAGE_CONF", self.root.join("storage.conf"))
            .env(
                "CONTAINERS_REGISTRIES_CONF",
                self.root.join("registries.conf"),
            )
            .arg("--tmpdir")
            .arg(self.root.join("tmp"))
            .args(["--cgroup-manager", "cgroupfs", "--events-backend", "none"]);
        command
    }

    /// Pulls and starts an image; how long after `since` it was ready.
    pub(crate) fn run(
        &self,
        reference: &str,
        since: Instant,
        at_ready: impl FnOnce() -> Result<()>,
    ) -> Result<Duration> {
        let mut command = self.command();
        command
            .args([
                "run",
                "--rm",
                "--quiet",
                "--network",
                "none",
                "--log-driver",
                "none",
            ])
            .args([
                "--ulimit",
                "nofile=1024:1024",
                "--ulimit",
                "nproc=1000:1000",
            ])
            .args(["--pids-limit", self.unlimited, "--signature-policy"])
            .arg(self.root.join("policy.json"))
            .arg(reference);
        container::until_ready(self.running, &mut command, since, at_ready).context("podman run")
    }
}
