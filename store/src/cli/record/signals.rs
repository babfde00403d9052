//! Signals that were meant for the command.

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::Child,
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
};

/// Passes SIGTERM on to the command, and survives SIGINT, which a terminal sends to both: what was recorded is handed
/// in after the command's end.
pub(super) fn forward(child: &Child) -> anyhow::Result<JoinHandle<()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let pid = child
        .id()
        .and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    Ok(tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {
                    if let Some(pid) = pid {
                        // It may have ended.
                        let _ = kill_process(pid, Signal::TERM);
                    }
                }
            }
        }
    }))
}
