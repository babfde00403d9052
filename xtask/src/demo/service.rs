//! One `forelayer` process that says when it is ready (sd_notify), with its log in a file.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::machine::{Process, Running};

/// How long a service may take to start.
const START: Duration = Duration::from_secs(30);
/// Lines of its log that are shown when it fails.
const SHOWN: usize = 12;

/// A service that may still be starting.
#[derive(Debug)]
pub(crate) struct Service {
    name: &'static str,
    process: Process,
    notify: UnixDatagram,
    log: PathBuf,
    running: &'static Running,
}

impl Service {
    /// Starts `program <name>`; socket and log lie in `dir`.
    pub(crate) fn start(
        running: &'static Running,
        program: &Path,
        name: &'static str,
        config: &Path,
        dir: &Path,
    ) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let socket = dir.join(format!("{name}.notify"));
        let _ = fs::remove_file(&socket);
        let notify = UnixDatagram::bind(&socket)
            .with_context(|| format!("cannot listen on {}", socket.display()))?;
        notify.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut command = Command::new(program);
        command
            .args(["--log-format", "text", "--config"])
            .arg(config)
            .arg(name)
            .env("NOTIFY_SOCKET", &socket)
            .stdin(Stdio::null())
            .stdout(Stdio::from(file.try_clone()?))
            .stderr(Stdio::from(file));
        Ok(Self {
            name,
            process: running.spawn(&mut command)?,
            notify,
            log,
            running,
        })
    }

    /// Waits until it says that it is ready. `false`: it ended instead.
    pub(crate) fn ready(&mut self) -> Result<bool> {
        let end = Instant::now() + START;
        let mut message = [0; 4096];
        loop {
            self.running.check()?;
            if let Ok(length) = self.notify.recv(&mut message)
                && String::from_utf8_lossy(&message[..length])
                    .lines()
                    .any(|line| line == "READY=1")
            {
                return Ok(true);
            }
            if self.process.child.try_wait()?.is_some() {
                return Ok(false);
            }
            if Instant::now() > end {
                bail!(
                    "forelayer {} is not ready after {} s:\n{}",
                    self.name,
                    START.as_secs(),
                    self.last_words()
                );
            }
        }
    }

    /// The end of its log.
    pub(crate) fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(SHOWN)..].join("\n")
    }

    /// Asks it to stop and waits.
    pub(crate) fn stop(mut self, bound: Duration) -> Result<()> {
        let status = self.process.end(bound)?;
        if !status.success() {
            bail!(
                "forelayer {} ended with {status}:\n{}",
                self.name,
                self.last_words()
            );
        }
        Ok(())
    }
}
