//! What the demo needs of the machine, what it leaves behind (nothing), and how it stops when it is told to.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    mount::UnmountFlags,
    process::{Pid, Signal, kill_process},
};

/// Why the demo cannot run on this machine, in a sentence for its user.
pub(crate) fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some(
            "the demo mounts file systems and starts containers: run it as root (sudo)".into(),
        );
    }
    if !Path::new("/dev/fuse").exists() {
        return Some(
            "there is no /dev/fuse: load the module (modprobe fuse), or give the container or virtual machine this runs in the device".into(),
        );
    }
    if let Err(error) = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
    {
        return Some(format!("/dev/fuse cannot be opened: {error}"));
    }
    if command_path("unshare").is_none() {
        return Some("there is no unshare(1): install util-linux".into());
    }
    None
}

/// Where a command of this machine lies.
pub(crate) fn command_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

/// Makes the kernel forget what it has read: a start after this is cold.
pub(crate) fn drop_caches() -> Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3")
        .context("cannot drop the page cache (/proc/sys/vm/drop_caches): a start would not be cold")
}

/// Children that must not outlive the demo, and whether it has been told to stop.
#[derive(Debug, Default)]
pub(crate) struct Running {
    stopped: AtomicBool,
    children: Mutex<Vec<Pid>>,
}

impl Running {
    /// Ends everything that runs when SIGINT, SIGTERM or SIGHUP arrives, so that every wait ends and guards clean up.
    pub(crate) fn watch_signals(&'static self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start a runtime for signals")?;
        let mut signals = Vec::new();
        {
            use tokio::signal::unix::{SignalKind, signal};
            let _entered = runtime.enter();
            for kind in [
                SignalKind::interrupt(),
                SignalKind::terminate(),
                SignalKind::hangup(),
            ] {
                signals.push(signal(kind).context("cannot wait for signals")?);
            }
        }
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                runtime.block_on(async {
                    let [a, b, c] = &mut signals[..] else { return };
                    loop {
                        tokio::select! { _ = a.recv() => {} _ = b.recv() => {} _ = c.recv() => {} }
                        self.stop();
                    }
                });
            })
            .context("cannot start a thread for signals")?;
        Ok(())
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        let children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        for &pid in children.iter() {
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// An error once the demo was told to stop.
    pub(crate) fn check(&self) -> Result<()> {
        if self.stopped.load(Ordering::SeqCst) {
            bail!("stopped by a signal; everything is cleaned up");
        }
        Ok(())
    }

    /// Starts a child that ends with the demo.
    pub(crate) fn spawn(&'static self, command: &mut Command) -> Result<Process> {
        self.check()?;
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.context("a process without a number")?;
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        children.push(pid);
        drop(children);
        Ok(Process {
            running: self,
            child,
            pid,
            program,
        })
    }

    /// Waits until `done` says so; an error after `bound` or when told to stop.
    pub(crate) fn wait_for(
        &self,
        what: &str,
        bound: Duration,
        mut done: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let end = Instant::now() + bound;
        while !done()? {
            self.check()?;
            if Instant::now() > end {
                bail!("{what} did not happen within {} s", bound.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// A child process; ended when it is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    running: &'static Running,
    pub(crate) child: Child,
    pid: Pid,
    program: String,
}

impl Process {
    /// Asks it to end and waits; kills it if it does not.
    pub(crate) fn end(&mut self, bound: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        let _ = kill_process(self.pid, Signal::TERM);
        let end = Instant::now() + bound;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = kill_process(self.pid, Signal::KILL);
        let status = self.child.wait()?;
        bail!("{} did not end within {bound:?} ({status})", self.program);
    }

    /// Waits for its end and takes everything but success as an error.
    pub(crate) fn finish(mut self) -> Result<()> {
        let status = self.child.wait()?;
        self.running.check()?;
        if !status.success() {
            bail!("{} ended with {}", self.program, told(status));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.end(Duration::from_secs(6)).is_err() {
            eprintln!("warning: {} had to be killed", self.program);
        }
        let mut children = self
            .running
            .children
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        children.retain(|pid| *pid != self.pid);
    }
}

fn told(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".into(),
    }
}

/// A command whose output nobody wants unless it fails.
pub(crate) fn quietly(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {shown}"))?;
    if !output.status.success() {
        bail!(
            "{shown} ended with {}: {}",
            told(output.status),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The demo's directory: everything it makes lies in it, and goes with it.
#[derive(Debug)]
pub(crate) struct WorkDir {
    path: PathBuf,
    keep: bool,
}

impl WorkDir {
    pub(crate) fn make(below: &Path, keep: bool) -> Result<Self> {
        let path = below.join(format!("forelayer-demo-{}", std::process::id()));
        fs::create_dir_all(below).with_context(|| format!("cannot make {}", below.display()))?;
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let path = path.canonicalize()?;
        let work = Self { path, keep };
        let kind = rustix::fs::statfs(&work.path)?.f_type;
        // TMPFS_MAGIC and RAMFS_MAGIC: what lies there is never cold.
        if kind == 0x0102_1994 || kind == 0x8584_58f6 {
            bail!(
                "{} lies in memory, where nothing is ever cold: name a directory on a disk with --dir",
                work.path.display()
            );
        }
        Ok(work)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// An empty directory below it.
    pub(crate) fn fresh(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        self.wipe(name)?;
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Takes a directory below it away, with whatever is mounted in it.
    pub(crate) fn wipe(&self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        unmount_below(&path)?;
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        let done = unmount_below(&self.path).and_then(|()| {
            if self.keep {
                println!("kept: {}", self.path.display());
                return Ok(());
            }
            fs::remove_dir_all(&self.path)
                .with_context(|| format!("cannot remove {}", self.path.display()))
        });
        if let Err(error) = done {
            eprintln!("warning: not everything is cleaned up: {error:#}");
        }
    }
}

/// Takes every mount at or below a directory away, the last one first.
fn unmount_below(dir: &Path) -> Result<()> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    let mut points: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .filter(|point| point.starts_with(dir))
        .collect();
    points.reverse();
    for point in points {
        rustix::mount::unmount(&point, UnmountFlags::DETACH)
            .with_context(|| format!("cannot unmount {}", point.display()))?;
    }
    Ok(())
}

/// Undoes the octal escapes of mountinfo.
fn unescape(text: &str) -> PathBuf {
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4);
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => {
                plain.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            None => {
                plain.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    plain.push_str(rest);
    plain.into()
}

/// A cgroup v2 directory for one container; gone when it is dropped.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes one in the hierarchy mounted at `root`. `None` where the machine does not allow it: the container then
    /// stays in the demo's own.
    pub(crate) fn make(root: &Path, name: &str) -> Option<Self> {
        let path = root.join(name);
        fs::create_dir(&path).ok()?;
        Some(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // What is left in it was in the container's pid namespace and ended with it; the kernel needs a moment.
        for _ in 0..100 {
            match fs::remove_dir(&self.path) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                _ => return,
            }
        }
        eprintln!(
            "warning: the cgroup {} is still in use",
            self.path.display()
        );
    }
}

/// Mounts the cgroup v2 hierarchy at a directory of the demo's own. `None` where that is not allowed.
pub(crate) fn mount_cgroups(at: &Path) -> Option<PathBuf> {
    fs::create_dir_all(at).ok()?;
    rustix::mount::mount(
        "cgroup2",
        at,
        "cgroup2",
        rustix::mount::MountFlags::empty(),
        None,
    )
    .ok()?;
    Some(at.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_as_the_kernel_writes_them() {
        assert_eq!(unescape(r"/a\040b/c\134d"), PathBuf::from(r"/a b/c\d"));
        assert_eq!(unescape(r"/a\x"), PathBuf::from(r"/a\x"));
    }
}
