//! A directory for one run: everything that starts, mounts or writes does so below it, and dropping it undoes all that.
//!
//! It is a shared mount point, so that mounts made below it on the host appear in the engines' namespaces (which are
//! its slaves) under the same path. What a killed run left is undone by the next one.

use std::{
    fs,
    io::Write as _,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rustix::{
    mount::{MountPropagationFlags, UnmountFlags},
    process::{Pid, Signal},
};

/// The directory of this run.
#[derive(Debug)]
pub struct WorkDir {
    path: PathBuf,
}

impl WorkDir {
    /// Makes `<cache>/run/<process id>` after undoing what dead runs left in `<cache>/run`.
    ///
    /// # Errors
    /// When a directory or a mount cannot be made.
    pub fn new(cache: &Path) -> Result<Self> {
        let runs = cache.join("run");
        fs::create_dir_all(&runs)?;
        for entry in fs::read_dir(&runs)? {
            let path = entry?.path();
            let alive = path
                .file_name()
                .and_then(|name| name.to_str()?.split('.').next()?.parse().ok())
                .and_then(Pid::from_raw)
                .is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok());
            if !alive {
                undo(&path);
            }
        }
        let path = (0..)
            .map(|number| runs.join(format!("{}.{number}", std::process::id())))
            .find(|path| !path.exists())
            .context("no free name for a directory")?;
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let work = Self { path };
        rustix::mount::mount_bind(&work.path, &work.path)
            .with_context(|| format!("cannot mount {} onto itself", work.path.display()))?;
        rustix::mount::mount_change(&work.path, MountPropagationFlags::PRIVATE)?;
        rustix::mount::mount_change(&work.path, MountPropagationFlags::SHARED)?;
        Ok(work)
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a directory below it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn directory(&self, name: impl AsRef<Path>) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Writes a process down, so that the next run can end it if this one is killed.
    ///
    /// # Errors
    /// When the list cannot be written.
    pub fn remember(&self, pid: u32) -> Result<()> {
        let mut list = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path.join("processes"))?;
        writeln!(list, "{pid} {}", started(pid).unwrap_or_default())?;
        Ok(())
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        undo(&self.path);
    }
}

/// Ends the processes on the list, unmounts and deletes. A failure is told and leaves the rest for the next run.
fn undo(path: &Path) {
    for line in fs::read_to_string(path.join("processes"))
        .unwrap_or_default()
        .lines()
    {
        if let Some((pid, start)) = line.split_once(' ')
            && let Ok(pid) = pid.parse::<u32>()
            // The number may belong to another process by now.
            && started(pid).is_some_and(|now| now == start)
            && let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
    unmount_below(path);
    if let Err(error) = fs::remove_dir_all(path) {
        eprintln!("cannot delete {}: {error}", path.display());
    }
}

/// Lazily unmounts everything mounted at or below a path in this namespace, the newest first.
pub fn unmount_below(path: &Path) {
    let points = mount_points(path);
    for point in points.iter().rev() {
        if let Err(error) = rustix::mount::unmount(point, UnmountFlags::DETACH) {
            // Unmounting a shared mount's parent takes copies with it: gone is what we want.
            if error != rustix::io::Errno::INVAL {
                eprintln!("cannot unmount {}: {error}", point.display());
            }
        }
    }
}

/// The mount points at or below a path in this namespace, in the order of mounting.
#[must_use]
pub fn mount_points(path: &Path) -> Vec<PathBuf> {
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .filter(|point| point.starts_with(path))
        .collect()
}

/// Mount points have blanks and backslashes as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|_| byte == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(octal) = octal {
            bytes.push(octal);
            rest = &after[3..];
        } else {
            bytes.push(byte);
            rest = after;
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

/// When a process was started, in the kernel's ticks: with the id it names a process for good.
fn started(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold blanks; the start is field 22, 20 fields behind it.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_named_by_id_and_start() {
        let own = started(std::process::id());
        assert!(own.is_some_and(|text| text.parse::<u64>().is_ok()));
        assert_eq!(started(u32::MAX), None);
    }

    #[test]
    fn escaped_mount_points_are_read() {
        assert_eq!(unescape(r"/a\040b\134c\x"), PathBuf::from(r"/a b\c\x"));
    }
}
