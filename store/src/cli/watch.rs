//! `forelayer watch`.

use std::{collections::VecDeque, process::ExitCode, time::Duration};

use anyhow::Context as _;
use forelayer::{
    config::{Config, WitnessLevel},
    control::{Client, ClientError},
};
use forelayer_profiler::{
    protocol::Trace,
    recorder::{Driver, Output},
};
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{client, recording};

/// The exit status when the kernel does not let the witness see (EX_NOPERM of sysexits.h): starting it again would not
/// help.
const REFUSED: u8 = 77;
/// Traces that wait for a store that is away; the oldest are given up.
const WAITING: usize = 64;
/// How often to try again to hand a trace in.
const RETRY: Duration = Duration::from_secs(2);
/// How long a stop waits for traces to be handed in.
const STOP: Duration = Duration::from_secs(4);

/// Watch containers start: what each start touches goes to the store, which fetches it ahead the next time.
///
/// Needs CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH, or root, in the host's own pid and mount
/// namespaces. It costs nothing until a container starts. Without it, or killed, the store works on and learns
/// nothing.
///
/// Exit status: 0 after SIGTERM or SIGINT; 77 when the kernel refuses (missing rights, no tracefs, nothing to watch
/// with; the reason is logged once), 78 when the configuration cannot be used (for a unit:
/// RestartPreventExitStatus=77 78); 1 on any other error.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) async fn run(_args: &Args, config: &Config) -> anyhow::Result<ExitCode> {
    let stop = stop_signal()?;
    if config.witness.level == WitnessLevel::Off {
        tracing::info!("witness.level is \"off\": nothing is watched and nothing will be learned");
        ready("idle: witness.level is off");
        stop.cancelled().await;
        return Ok(ExitCode::SUCCESS);
    }
    let mut witness = match recording::load(config) {
        Ok(witness) => witness,
        Err(error) if error.is_final() => {
            tracing::warn!(%error, "the kernel does not let the witness see; the store works on without learning");
            return Ok(ExitCode::from(REFUSED));
        }
        Err(error) => return Err(error).context("cannot watch containers start"),
    };
    let level = witness.level();
    let seen = witness.events().context("the witness gave no events")?;
    let mut driver = Driver::new(witness, seen, level, recording::bounds(config))?;
    let client = client(config)?;
    tracing::info!(witness_level = ?level, "watching containers start");
    ready("watching");

    let (events, mut store) = mpsc::channel(recording::UNREAD);
    let (connected, _) = watch::channel(false);
    let listener = {
        let client = client.clone();
        tokio::spawn(async move { recording::listen(&client, &events, &connected).await })
    };
    let (out, outputs) = mpsc::channel(recording::UNREAD);
    let speaker = tokio::spawn(speak(client, outputs));
    let end = driver.run(&mut store, &out, &stop).await;
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    listener.abort();
    drop(out);
    if timeout(STOP, speaker).await.is_err() {
        tracing::warn!("the store did not take what was recorded last; it is not learned");
    }
    end?;
    Ok(ExitCode::SUCCESS)
}

/// Cancelled by SIGTERM and SIGINT.
fn stop_signal() -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopping.cancel();
    });
    Ok(stop)
}

fn ready(status: &str) {
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Says to the store what the recorder has to say, until that ends and everything is handed in.
async fn speak(client: Client, mut outputs: mpsc::Receiver<Output>) {
    let mut waiting: VecDeque<Box<Trace>> = VecDeque::new();
    let mut under_way: Option<JoinHandle<Result<(), Box<Trace>>>> = None;
    let mut open = true;
    while open || under_way.is_some() || !waiting.is_empty() {
        if under_way.is_none()
            && let Some(trace) = waiting.pop_front()
        {
            under_way = Some(tokio::spawn(hand_in(client.clone(), trace)));
        }
        tokio::select! {
            output = outputs.recv(), if open => match output {
                Some(Output::Attached(window)) => recording::answer(&client, window),
                Some(Output::Known(container)) => {
                    recording::started(&client, &container);
                    tracing::info!(
                        image = container.image,
                        id = container.id,
                        command = container.command.join(" "),
                        "recording a start"
                    );
                }
                Some(Output::Trace(trace)) => {
                    if waiting.len() >= WAITING {
                        waiting.pop_front();
                        tracing::warn!("the store has been away for too long: the oldest start is not learned");
                    }
                    waiting.push_back(trace);
                }
                None => open = false,
            },
            done = async {
                match &mut under_way {
                    Some(task) => task.await,
                    None => std::future::pending().await,
                }
            } => {
                under_way = None;
                if let Ok(Err(trace)) = done {
                    waiting.push_front(trace);
                }
            }
        }
    }
}

/// Hands one trace in; gives it back, after a pause, when the store is away.
async fn hand_in(client: Client, trace: Box<Trace>) -> Result<(), Box<Trace>> {
    match client.hand_in(&trace).await {
        Ok(run) => {
            tracing::info!(
                run = run.run,
                image = run.image,
                workload = run.workload,
                files = run.files,
                touched_bytes = run.touched_bytes,
                touched_chunks = run.touched_chunks,
                touched_chunk_bytes = run.touched_chunk_bytes,
                demanded_chunks = run.demanded_chunks,
                used_chunks = run.used_chunks,
                late_chunks = run.late_chunks,
                waste_chunks = run.waste_chunks,
                predicted_bytes = run.predicted_bytes,
                waste_bytes = run.waste_bytes,
                lost = run.lost,
                "learned a start"
            );
            Ok(())
        }
        Err(ClientError::Refused(reason)) => {
            tracing::warn!(run = trace.run, image = trace.container.image, %reason, "the store does not take a start");
            Ok(())
        }
        Err(error) => {
            tracing::debug!(run = trace.run, %error, "cannot hand a start in yet");
            tokio::time::sleep(RETRY).await;
            Err(trace)
        }
    }
}
