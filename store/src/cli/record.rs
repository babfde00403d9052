//! `forelayer profile record`.

use std::{
    process::{ExitCode, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use forelayer::{
    config::{Config, WitnessLevel},
    control::{Client, RunSummary},
};
use forelayer_profiler::{
    protocol::{Container, Trace},
    recorder::{Bounds, Driver, Output},
    witness::Witness,
};
use regex::Regex;
use tokio::{
    process::{Child, Command},
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{client, human, recording};

mod ready;
mod signals;

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
    /// Of the containers that start, record only those of this image
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
        until_finish: true,
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

/// How far the containers are.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    known: usize,
    done: usize,
}

/// Takes what the recorder says, hands in what is meant and prints what came of it; how many runs were taken in.
async fn keep(
    client: Client,
    mut outputs: mpsc::Receiver<Output>,
    image: Option<String>,
    progress: watch::Sender<Progress>,
) -> usize {
    let mut runs = 0;
    let meant = |container: &Container| {
        image
            .as_ref()
            .is_none_or(|image| same_image(image, &container.image))
    };
    while let Some(output) = outputs.recv().await {
        match output {
            Output::Attached(window) => recording::answer(&client, window),
            Output::Known(container) if meant(&container) => {
                progress.send_modify(|p| p.known += 1);
            }
            Output::Known(container) => {
                eprintln!(
                    "forelayer: not recorded: a container of {:?}",
                    container.image
                );
            }
            Output::Trace(trace) if meant(&trace.container) => {
                match hand_in(&client, &trace).await {
                    Ok(run) => {
                        runs += 1;
                        eprint!("{}", summary(&run));
                    }
                    Err(error) => eprintln!("forelayer: {error:#}"),
                }
                progress.send_modify(|p| p.done += 1);
            }
            Output::Trace(_) => {}
        }
    }
    runs
}

async fn hand_in(client: &Client, trace: &Trace) -> anyhow::Result<RunSummary> {
    client.hand_in(trace).await.with_context(|| {
        format!(
            "a start of {:?} was recorded and could not be handed in",
            trace.container.image
        )
    })
}

/// Whether a name as people write it means the image that the engine calls `name`.
fn same_image(wanted: &str, name: &str) -> bool {
    let tagged = |text: &str| {
        let last = text.rsplit('/').next().unwrap_or(text);
        if last.contains([':', '@']) {
            text.to_owned()
        } else {
            format!("{text}:latest")
        }
    };
    let (wanted, name) = (tagged(wanted), tagged(name));
    name == wanted || name.ends_with(&format!("/{wanted}"))
}

fn summary(run: &RunSummary) -> String {
    let mut text = format!(
        "{}\n  image {}, workload {}, run {} of {}\n  {} files, {} touched; chunks: {} touched ({}), {} on demand, {} predicted and used, {} late, {} waste ({})\n",
        run.profile.display(),
        run.image,
        run.workload,
        run.run,
        run.runs,
        run.files,
        human(run.touched_bytes),
        run.touched_chunks,
        human(run.touched_chunk_bytes),
        run.demanded_chunks,
        run.used_chunks,
        run.late_chunks,
        run.waste_chunks,
        human(run.waste_bytes),
    );
    if run.lost > 0 {
        text += &format!(
            "  {} events were lost: nothing is learned from what was not seen\n",
            run.lost
        );
    }
    text
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

    #[test]
    fn names_are_matched_as_people_write_them() {
        for (wanted, name) in [
            ("python", "docker.io/library/python:latest"),
            ("python:3", "docker.io/library/python:3"),
            ("library/python:3", "docker.io/library/python:3"),
            ("127.0.0.1:5000/app", "127.0.0.1:5000/app:latest"),
            ("127.0.0.1:5000/app:latest", "127.0.0.1:5000/app"),
        ] {
            assert!(same_image(wanted, name), "{wanted} {name}");
        }
        for (wanted, name) in [
            ("python:3", "docker.io/library/python:latest"),
            ("thon:3", "docker.io/library/python:3"),
            ("python", ""),
        ] {
            assert!(!same_image(wanted, name), "{wanted} {name}");
        }
    }
}
