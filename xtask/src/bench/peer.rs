//! stargz-store with its defaults, measured beside.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use forelayer_tests::engine::{
    process::{self, Process},
    work::{self, WorkDir},
};

/// How long it may take to mount.
const PATIENCE: Duration = Duration::from_secs(30);

/// The program that was asked for, or the one on the `PATH`.
pub(super) fn program(asked: Option<&Path>) -> Result<Option<PathBuf>> {
    if let Some(path) = asked {
        ensure!(path.is_file(), "there is no program {}", path.display());
        return Ok(Some(path.canonicalize()?));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|directory| directory.join("stargz-store"))
        .find(|path| path.is_file());
    Ok(found)
}

/// A running one, with nothing cached. Dropping it ends it and deletes what it has kept.
#[derive(Debug)]
pub(super) struct Peer {
    directory: PathBuf,
    process: Option<Process>,
}

impl Peer {
    /// Starts it in `<run>/<name>` and waits until it serves.
    pub(super) fn start(work: &WorkDir, program: &Path, name: &str) -> Result<Self> {
        let directory = work.directory(name)?;
        let mount = directory.join("mount");
        fs::create_dir(&mount)?;
        let mut command = Command::new(program);
        command
            .arg("--root")
            .arg(directory.join("root"))
            .arg("--addr")
            .arg(directory.join("socket"))
            .args(["--log-level", "info"])
            .arg(&mount);
        let log = directory.join("log");
        let process = Process::start(work, "stargz-store", &mut command, &log)?;
        let mut peer = Self {
            directory,
            process: Some(process),
        };
        let pool = mount.join("pool");
        process::until("the mount of stargz-store", PATIENCE, || {
            let runs = peer.process.as_mut().is_some_and(Process::is_running);
            let log = || fs::read_to_string(&log).unwrap_or_default();
            ensure!(runs, "stargz-store ended at its start:\n{}", log());
            Ok(pool.symlink_metadata().is_ok().then_some(()))
        })?;
        Ok(peer)
    }

    /// The mount, for storage.conf.
    pub(super) fn mount(&self) -> PathBuf {
        self.directory.join("mount")
    }

    /// Its process id.
    pub(super) fn id(&self) -> Result<u32> {
        let process = self.process.as_ref().context("it does not run")?;
        Ok(process.id())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.process = None;
        // It does not unmount when it is asked to end.
        work::unmount_below(&self.directory);
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            eprintln!("cannot delete {}: {error}", self.directory.display());
        }
    }
}
