//! Processes that still use a directory: those that an engine leaves behind to tidy up after a container.

use std::{
    fs,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::bail;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

/// How long they may take to end by themselves, and once more after their containers were killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until no process names the directory in its arguments. `conmon` outlives the container for a moment, and runs
/// Podman once more, which mounts. Where a `conmon` stays its children are killed: a container that its engine forgot.
pub(super) fn wait(dir: &Path) -> anyhow::Result<()> {
    if gone(dir, PATIENCE) {
        return Ok(());
    }
    for (id, _) in of(dir) {
        // Somebody may be reading a log there.
        let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
        if name.trim() != "conmon" {
            continue;
        }
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        let children = children.unwrap_or_default();
        let children = children.split(' ').filter_map(|id| id.trim().parse().ok());
        for child in children.filter_map(open) {
            let _ = pidfd_send_signal(&child, Signal::KILL);
        }
    }
    if gone(dir, PATIENCE) {
        return Ok(());
    }
    let ids: Vec<_> = of(dir).into_iter().map(|(id, _)| id).collect();
    bail!("processes {ids:?} still use {}", dir.display())
}

/// Whether none is left in time. New ones that come meanwhile are waited for too.
fn gone(dir: &Path, patience: Duration) -> bool {
    let end = Instant::now() + patience;
    loop {
        let users = of(dir);
        let left = end.saturating_duration_since(Instant::now());
        let (Some((_, first)), false) = (users.first(), left.is_zero()) else {
            return users.is_empty();
        };
        let left = Timespec::try_from(left).ok();
        let _ = poll(&mut [PollFd::new(first, PollFlags::IN)], left.as_ref());
    }
}

/// The processes, this one excepted.
fn of(dir: &Path) -> Vec<(i32, OwnedFd)> {
    let mut needle = dir.as_os_str().as_bytes().to_vec();
    needle.push(b'/');
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let names = fs::read_dir("/proc").into_iter().flatten().flatten();
    names
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|id| *id != own)
        .filter_map(|id| Some((id, open(id)?)))
        // Read after it was opened: it is this process's, or empty.
        .filter(|(id, _)| {
            let words = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            words.windows(needle.len()).any(|part| part == needle)
        })
        .collect()
}

fn open(id: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(id)?, PidfdFlags::empty()).ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::{
        io::Read as _,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn those_who_name_the_directory_are_waited_for_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let one = dir.path().join("1");
        let named = |name: &str| {
            let argument = dir.path().join(name);
            let mut shell = Command::new("sh");
            shell.args(["-c", "echo; read line", "sh"]).arg(argument);
            shell.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut shell = shell.spawn().unwrap();
            // Only then has it its arguments for sure: what started it goes on a moment before.
            let mut line = [0];
            shell
                .stdout
                .as_mut()
                .unwrap()
                .read_exact(&mut line)
                .unwrap();
            shell
        };
        let (mut other, mut user) = (named("10/graph"), named("1/graph"));
        let ids: Vec<_> = of(&one).into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids, [user.id().cast_signed()]);
        assert!(!gone(&one, Duration::from_millis(50)));
        // Ends with its input.
        drop(user.stdin.take());
        let waiting = std::thread::spawn(move || wait(&one));
        user.wait().unwrap();
        waiting.join().unwrap().unwrap();
        drop(other.stdin.take());
        other.wait().unwrap();
    }
}
