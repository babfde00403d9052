//! `forelayer profile record`.

use std::{
    process::{ExitCode, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use forelayer::{
    config::{Config, WitnessLevel},
    control::Client,
};
use forelayer_profiler::{
    recorder::{Bounds, Driver},
    witness::Witness,
};
use regex::Regex;
use tokio::{
    process::{Child, Command},
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{client, recording};

mod keep;
mod ready;
mod signals;

use keep::{Progress, keep};
use signals::Signals;

/// How long the store may take to answer before anything is started.
const CONNECT: Duration = Duration::from_secs(5);
/// How long after the command's end a container that it left running may take to be recognised.
const LINGER: Duration = Duration::from_secs(2);

/// Record what the containers touch that COMMAND starts, and learn it.
///
/// COMMAND runs on this host, with this terminal; its containers' starts are recorded until the condition is met, the
/// containers end, or, without a condition, COMMAND ends: one that leaves its container running (`podman run -d`)
/// wants a condition. The profile's path and a summary go to standard error. While it runs, it stands in for
/// `forelayer watch`.
///
/// Exit status: COMMAND's own (128 + n when signal n ended it), or 1 when nothing was recorded.
///
/// Examples:
///   forelayer profile record -- podman run --rm docker.io/library/python:3 python3 -c 'import ssl'
///   forelayer profile record --ready-line 'ready to accept connections' -- podman run --rm registry.example/db:16
///   forelayer profile record --ready-http http://127.0.0.1:8080/health -- podman run -d -p 8080:80 registry.example/web
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Args {
    /// Of the containers that start, wait for those of this image only; the others are learned as ever and not counted
    #[arg(long, value_name = "REF")]
    image: Option<String>,
    /// Record until COMMAND prints a line that matches this regular expression
    #[arg(long, value_name = "RE", conflicts_with_all = ["ready_http", "duration"])]
    ready_line: Option<Regex>,
    /// Record until this URL answers with success
    #[arg(long, value_name = "URL", conflicts_with = "duration")]
    ready_http: Option<url::Url>,
    /// Record for this long (such as 30s or 2min)
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(super) async fn run(args: &Args, config: &Config) -> anyhow::Result<ExitCode> {
    if config.witness.level == WitnessLevel::Off {
        bail!("witness.level is \"off\" in the configuration: nothing can be recorded");
    }
    let witness = recording::load(config).context("nothing can be recorded")?;
    let client = client(config)?;
    let (status, runs) = record(args, &client, witness).await?;
    if runs == 0 {
        eprintln!("forelayer: {}", nothing(args));
        return Ok(ExitCode::FAILURE);
    }
    Ok(exit_code(status))
}

/// Records; the command's status, and how many runs the store took in.
async fn record(
    args: &Args,
    client: &Client,
    mut witness: Witness,
) -> anyhow::Result<(ExitStatus, usize)> {
    let level = witness.level();
    let seen = witness.events().context("the witness gave no events")?;
    // Only the condition ends a recording here.
    let bounds = Bounds {
        quiet: Duration::MAX,
        max_window: Duration::MAX,
        ..Bounds::default()
    };
    let mut driver = Driver::new(witness, seen, level, bounds)?;
    let (events, mut store) = mpsc::channel(recording::UNREAD);
    let (connected, mut is_connected) = watch::channel(false);
    let listener = {
        let client = client.clone();
        tokio::spawn(async move { recording::listen(&client, &events, &connected).await })
    };
    let finish = CancellationToken::new();
    let (out, outputs) = mpsc::channel(recording::UNREAD);
    let recorder = {
        let finish = finish.clone();
        tokio::spawn(async move { driver.run(&mut store, &out, &finish).await })
    };
    if timeout(CONNECT, is_connected.wait_for(|there| *there))
        .await
        .is_err()
    {
        // Says why in one sentence, which the listener only logs.
        client.status().await.context("nothing can be recorded")?;
        bail!(
            "the store does not tell of container starts yet; nothing can be recorded: try again"
        );
    }
    let (progress, progressed) = watch::channel(Progress::default());
    let keeper = tokio::spawn(keep(client.clone(), outputs, args.image.clone(), progress));

    let mut child = start(args)?;
    let signals = Signals::listen(&child)?;
    let mut condition = ready::Condition::new(args, &mut child)?;
    let status = until_done(args, &mut child, &mut condition, progressed, &signals).await?;
    finish.cancel();
    // The command goes on whatever becomes of the recording.
    match recorder.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => eprintln!("forelayer: {error}"),
        Err(error) => eprintln!("forelayer: the recorder failed: {error}"),
    }
    // From here on `forelayer watch` is told again.
    listener.abort();
    let runs = keeper.await.context("handing in failed")?;
    let status = match status {
        Some(status) => status,
        None => child.wait().await.context("cannot wait for the command")?,
    };
    signals.command_ended();
    // A process that it left behind may keep its output open.
    let _ = timeout(LINGER, condition.passed_on()).await;
    if condition.is_line_missing() {
        eprintln!(
            "forelayer: warning: no line that COMMAND printed matches --ready-line; all of its run was recorded"
        );
    }
    Ok((status, runs))
}

fn start(args: &Args) -> anyhow::Result<Child> {
    let (program, arguments) = args.command.split_first().context("no command was given")?;
    let mut command = Command::new(program);
    command.args(arguments);
    if args.ready_line.is_some() {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    }
    command
        .spawn()
        .with_context(|| format!("cannot start {program:?}"))
}

/// Waits until the recording is to end; the command's status if that was its end.
async fn until_done(
    args: &Args,
    child: &mut Child,
    condition: &mut ready::Condition,
    mut progress: watch::Receiver<Progress>,
    signals: &Signals,
) -> anyhow::Result<Option<ExitStatus>> {
    let status = tokio::select! {
        () = condition.met() => return Ok(None),
        status = child.wait() => status.context("cannot wait for the command")?,
    };
    signals.command_ended();
    // A command that is over prints nothing more; one that failed left nothing to wait for.
    let lasting = args.ready_http.is_some() || args.duration.is_some();
    if !lasting || !status.success() {
        return Ok(Some(status));
    }
    // `podman run -d`: the container goes on.
    let running = async {
        let _ = timeout(LINGER, progress.wait_for(|p| p.known > 0)).await;
        // The sender lives as long as the recorder.
        let _ = progress.wait_for(|p| p.done >= p.known).await;
    };
    tokio::select! {
        () = condition.met() => {}
        () = running => eprintln!("forelayer: no container is left, and the condition was not met"),
        () = signals.stopped() => eprintln!("forelayer: stopped before the condition was met"),
    }
    Ok(Some(status))
}

fn nothing(args: &Args) -> String {
    let of = match &args.image {
        Some(image) => format!("no container of {image:?}"),
        None => "no container".to_owned(),
    };
    format!(
        "nothing was recorded: {of} with layers from the store started. Are its layers pulled through the store \
         (`forelayer status`), and did the command start it rather than find it running?"
    )
}

fn exit_code(status: ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Waits for a while; `Duration::MAX` and the like for ever.
async fn pause(duration: Duration) {
    sleep(duration.min(Duration::from_secs(365 * 24 * 3600))).await;
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use rustix::process::{Signal, getpid, kill_process};

    use super::*;

    #[tokio::test]
    async fn a_signal_ends_the_waiting_for_a_url_after_the_command_s_end() {
        let args = Args {
            image: None,
            ready_line: None,
            // Nobody listens there.
            ready_http: Some("http://127.0.0.1:1/".parse().unwrap()),
            duration: None,
            command: vec!["true".to_owned()],
        };
        let mut child = start(&args).unwrap();
        let signals = Signals::listen(&child).unwrap();
        let mut condition = ready::Condition::new(&args, &mut child).unwrap();
        // A container was left running.
        let (_progress, progressed) = watch::channel(Progress { known: 1, done: 0 });
        let until_done = until_done(&args, &mut child, &mut condition, progressed, &signals);
        tokio::pin!(until_done);
        let mut again = tokio::time::interval(Duration::from_millis(20));
        let wait = async {
            loop {
                tokio::select! {
                    status = &mut until_done => break status,
                    // Those before its end are the command's.
                    _ = again.tick() => kill_process(getpid(), Signal::INT).unwrap(),
                }
            }
        };
        let status = timeout(Duration::from_secs(60), wait).await.unwrap();
        assert!(status.unwrap().unwrap().success());
    }
}
