//! A container of the demo's own making: an overlay over layers, namespaces, a cgroup; what an engine and its runtime do,
//! in the order in which they do it, without either.
//!
//! The parent starts `unshare`, which makes the namespaces and starts this program again inside ([`enter`]); that mounts
//! the overlay, makes it the root and becomes the image's program. No code of the demo runs in the image.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use serde::{Deserialize, Serialize};

use super::{
    app::READY,
    machine::{Cgroup, Running},
};

/// What the inner half is told.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    /// Lower directories, topmost first, as the engine's links to them.
    lower: Vec<PathBuf>,
    upper: PathBuf,
    work: PathBuf,
    merged: PathBuf,
    cgroup: Option<PathBuf>,
    command: Vec<String>,
}

/// A container's place in an engine's storage: `<graph root>/overlay/<id>` and `<graph root>/overlay-containers/<id>`.
#[derive(Debug)]
pub(crate) struct Storage {
    root: PathBuf,
}

impl Storage {
    /// An empty storage in a directory.
    pub(crate) fn make(root: &Path) -> Result<Self> {
        for dir in ["overlay/l", "overlay-containers"] {
            fs::create_dir_all(root.join(dir))
                .with_context(|| format!("cannot make {}", root.join(dir).display()))?;
        }
        Ok(Self {
            root: root.to_owned(),
        })
    }

    /// Records a layer as engines do: `overlay/<id>/diff` leads to it, `overlay/l/<short>` to that. Returns the latter.
    pub(crate) fn layer(&self, number: usize, tree: &Path) -> Result<PathBuf> {
        use std::os::unix::fs::symlink;
        let overlay = self.root.join("overlay");
        let id = format!("layer-{number}");
        fs::create_dir_all(overlay.join(&id))?;
        symlink(tree, overlay.join(&id).join("diff"))?;
        let short = overlay.join("l").join(format!("L{number}"));
        symlink(format!("../{id}/diff"), &short)?;
        Ok(short)
    }
}

/// Where and as what containers are started.
#[derive(Debug)]
pub(crate) struct Starter<'a> {
    pub(crate) running: &'static Running,
    pub(crate) storage: Storage,
    /// Where the cgroup v2 hierarchy is mounted; `None`: the container stays in the demo's own cgroup.
    pub(crate) cgroups: Option<&'a Path>,
    /// The image's name.
    pub(crate) image: &'a str,
}

impl Starter<'_> {
    /// Starts a program over these layers (topmost first) and waits for its ready line, then for its end.
    ///
    /// Returns how long after `since` it was ready; `at_ready` is called in that moment.
    pub(crate) fn run(
        &self,
        lower: Vec<PathBuf>,
        command: &[String],
        since: Instant,
        at_ready: impl FnOnce() -> Result<()>,
    ) -> Result<Duration> {
        let id = id();
        let name = format!("libpod-{id}.scope");
        let cgroup = self.cgroups.and_then(|root| Cgroup::make(root, &name));
        let home = self.storage.root.join("overlay").join(&id);
        let spec = Spec {
            lower,
            upper: home.join("diff"),
            work: home.join("work"),
            merged: home.join("merged"),
            cgroup: cgroup.as_ref().map(|cgroup| cgroup.path().to_owned()),
            command: command.to_vec(),
        };
        for dir in [&spec.upper, &spec.work, &spec.merged] {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        record(&self.storage, &id, self.image, &spec)?;
        let spec_file = home.join("spec.json");
        fs::write(&spec_file, serde_json::to_vec(&spec)?)?;

        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut start = Command::new("unshare");
        start
            .args([
                "--mount",
                "--uts",
                "--ipc",
                "--pid",
                "--fork",
                "--kill-child",
            ])
            .args(["--propagation", "private", "--"])
            .arg(program)
            .args(["demo", "--enter"])
            .arg(&spec_file);
        until_ready(self.running, &mut start, since, at_ready).context("the container")
    }
}

/// Runs a command to its end; how long after `since` it said that it is ready.
pub(crate) fn until_ready(
    running: &'static Running,
    command: &mut Command,
    since: Instant,
    at_ready: impl FnOnce() -> Result<()>,
) -> Result<Duration> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let mut process = running.spawn(command)?;
    let output = process.child.stdout.take().context("no output")?;
    let mut ready = None;
    let mut at_ready = Some(at_ready);
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read what it says")?;
        if line.starts_with(READY)
            && let Some(at_ready) = at_ready.take()
        {
            ready = Some(since.elapsed());
            at_ready()?;
        }
    }
    process.finish()?;
    let Some(ready) = ready else {
        bail!("it ended without saying that it is ready");
    };
    Ok(ready)
}

/// What engines write of a container before it starts; the witness reads the image's name and the command there.
fn record(storage: &Storage, id: &str, image: &str, spec: &Spec) -> Result<()> {
    let containers = storage.root.join("overlay-containers");
    let data = containers.join(id).join("userdata");
    fs::create_dir_all(&data)?;
    let metadata = serde_json::json!({"image-name": image}).to_string();
    let list = serde_json::json!([{"id": id, "metadata": metadata}]);
    fs::write(containers.join("containers.json"), list.to_string())?;
    let config = serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {"args": spec.command},
        "root": {"path": spec.merged},
    });
    fs::write(data.join("config.json"), config.to_string())?;
    Ok(())
}

/// 64 hexadecimal digits that no other container of this machine has.
fn id() -> String {
    use sha2::{Digest as _, Sha256};
    let mut hash = Sha256::new();
    hash.update(std::process::id().to_le_bytes());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    hash.update(now.unwrap_or_default().as_nanos().to_le_bytes());
    hex::encode(hash.finalize())
}

/// The inner half: joins the cgroup, mounts the root, becomes the program. Returns only an error.
pub(crate) fn enter(spec: &Path) -> Result<()> {
    let spec: Spec = serde_json::from_slice(&fs::read(spec)?)?;
    if let Some(cgroup) = &spec.cgroup {
        fs::write(cgroup.join("cgroup.procs"), "0")
            .with_context(|| format!("cannot join {}", cgroup.display()))?;
    }
    let lower: Vec<String> = spec
        .lower
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        spec.upper.display(),
        spec.work.display()
    );
    let options = std::ffi::CString::new(options)?;
    let merged = &spec.merged;
    rustix::mount::mount(
        "overlay",
        merged,
        "overlay",
        MountFlags::empty(),
        Some(options.as_c_str()),
    )
    .with_context(|| format!("cannot mount the overlay {}", merged.display()))?;
    let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("proc", merged.join("proc"), "proc", safe, None)
        .context("cannot mount proc")?;
    rustix::mount::mount(
        "tmpfs",
        merged.join("dev"),
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        None,
    )
    .context("cannot mount dev")?;
    for device in ["null", "zero", "full", "random", "urandom"] {
        let at = merged.join("dev").join(device);
        fs::write(&at, "")?;
        rustix::mount::mount_bind(format!("/dev/{device}"), &at)
            .with_context(|| format!("cannot bind /dev/{device}"))?;
    }
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    std::env::set_current_dir(merged)?;
    rustix::process::pivot_root(".", ".").context("cannot change the root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).context("cannot leave the old root")?;
    std::env::set_current_dir("/")?;
    rustix::system::sethostname(b"demo").context("cannot set the host name")?;
    let (program, arguments) = spec.command.split_first().context("an empty command")?;
    let error = Command::new(program)
        .args(arguments)
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", "/root")
        .env("LC_ALL", "C.UTF-8")
        .exec();
    Err(error).with_context(|| format!("cannot start {program} in the container"))
}
