//! Signals that come while the command runs, and after it.

use anyhow::Context as _;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::{
    process::Child,
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// Passes SIGTERM on to the command, and survives SIGINT, which a terminal sends to both: what was recorded is handed
/// in after the command's end. Once the command was waited for, either of them ends the waiting for a condition.
#[derive(Debug)]
pub(super) struct Signals {
    ended: CancellationToken,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Signals {
    /// Listens from now on. Before the command is waited for the first time.
    pub(super) fn listen(child: &Child) -> anyhow::Result<Self> {
        let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
        let pid = child
            .id()
            .and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
            .context("the command has no process id")?;
        // A number may be another process's by the time a signal comes; a descriptor never is.
        let command = pidfd_open(pid, PidfdFlags::empty()).context("cannot open the command")?;
        let (ended, stop) = (CancellationToken::new(), CancellationToken::new());
        let (is_ended, stopping) = (ended.clone(), stop.clone());
        let task = tokio::spawn(async move {
            loop {
                let terminated = tokio::select! {
                    _ = interrupt.recv() => false,
                    _ = terminate.recv() => true,
                };
                if is_ended.is_cancelled() {
                    stopping.cancel();
                } else if terminated {
                    // It may have ended.
                    let _ = pidfd_send_signal(&command, Signal::TERM);
                }
            }
        });
        Ok(Self { ended, stop, task })
    }

    /// The command was waited for: signals are for us from now on.
    pub(super) fn command_ended(&self) {
        self.ended.cancel();
    }

    /// Ends with the first signal after the command's end.
    pub(super) async fn stopped(&self) {
        self.stop.cancelled().await;
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::{os::unix::process::ExitStatusExt as _, process::Stdio, time::Duration};

    use rustix::process::{getpid, kill_process};

    use super::*;

    /// Nothing here takes as long.
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn signals_are_the_command_s_while_it_runs_and_ours_afterwards() {
        let mut child = tokio::process::Command::new("cat")
            .stdin(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        // Waiting closes it, and the command would end by itself.
        let _open = child.stdin.take();
        let signals = Signals::listen(&child).unwrap();
        kill_process(getpid(), Signal::INT).unwrap();
        kill_process(getpid(), Signal::TERM).unwrap();
        let status = tokio::time::timeout(LONG, child.wait()).await.unwrap();
        assert_eq!(status.unwrap().signal(), Some(15));
        assert!(!signals.stop.is_cancelled());
        signals.command_ended();
        kill_process(getpid(), Signal::INT).unwrap();
        tokio::time::timeout(LONG, signals.stopped()).await.unwrap();
    }
}
