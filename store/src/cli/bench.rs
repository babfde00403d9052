//! `forelayer bench`: an image of the user's started cold in every way, with the Podman that is installed
//! (docs/benchmarks.md, "Your own image").

mod counts;
mod limit;
mod link;
mod place;
mod podman;
mod ready;
mod report;
mod start;
mod store;
mod tool;
mod users;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, ensure};
use forelayer::{
    config::{Config, WitnessLevel},
    registry::Reference,
};

use self::{
    place::Place,
    report::Report,
    start::{Bench, Mode},
};
use super::Signals;

/// The exit status after a signal, as shells have it for SIGINT.
const STOPPED: u8 = 130;

/// Start an image cold without the store, unlearned and learned, and compare.
///
/// Needs root, Podman, and a registry with IMAGE in eStargz or zstd:chunked. Works in a directory of its own, with a
/// store and an engine storage of its own, and deletes it at the end; a store that runs is not touched. The page cache
/// of the machine is dropped before each start. All starts but the local ones ask the registry again.
///
/// Exit status: 0, or 1 when something failed or could not be removed, or 130 after SIGINT or SIGTERM.
///
/// Examples:
///   forelayer bench --ready 'listening on' registry.example/app:1
///   forelayer bench --json app.json registry.example/python:3 -- python3 -c 'import ssl; print("ready")'
///   forelayer bench --ready 'ready' --run-arg=--env=PASSWORD=x registry.example/db:15
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Args {
    /// How often each mode is started; the modes take turns
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How the line on standard output begins that says that the start is over [default: the first line, or the end]
    #[arg(long, value_name = "TEXT")]
    ready: Option<String>,
    /// How long a start may take until it is ready (such as 90s or 10min)
    #[arg(long, value_name = "DURATION", default_value = "10min", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Where the directory is made in which everything happens; on a disk with room for three copies of the image
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    dir: PathBuf,
    /// A further argument of `podman run`; may be given several times
    #[arg(long = "run-arg", value_name = "ARG", allow_hyphen_values = true)]
    run_args: Vec<String>,
    /// Do not estimate T*, which fetches the image completely once more
    #[arg(long)]
    no_estimate: bool,
    /// Write all figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The image, with its registry's name
    #[arg(value_name = "IMAGE")]
    image: String,
    /// What to run in it [default: what the image says]
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(super) async fn run(args: &Args, config: &Config) -> anyhow::Result<ExitCode> {
    let reference: Reference = args.image.parse()?;
    ensure!(
        rustix::process::geteuid().is_root(),
        "the bench needs root: it mounts, and drops the page cache before each start"
    );
    ensure!(
        config.witness.level != WitnessLevel::Off,
        "witness.level is \"off\" in the configuration: nothing can be learned"
    );
    let link = link::Link::to(&reference.repository, config);
    let version = podman::version().await?;
    // From here on a signal ends the bench, not this program: what was made is taken away first.
    let signals = Signals::new()?;
    let place = Place::new(&args.dir)?;
    let mut bench = Bench::new(args, place.path(), config)?;
    let measured = tokio::select! {
        measured = measure(args, &mut bench, &link, version) => measured.map(Some),
        () = signals.first() => Ok(None),
    };
    let left = [bench.end().await, place.remove()];
    // Before anything else can fail: it took minutes.
    let written = match &measured {
        Ok(Some(report)) => write(args, report),
        _ => Ok(()),
    };
    let mut code = ExitCode::SUCCESS;
    for error in left.into_iter().filter_map(Result::err) {
        eprintln!("forelayer: {error:#}");
        code = ExitCode::FAILURE;
    }
    written?;
    if measured?.is_none() {
        eprintln!("forelayer: stopped before the end");
        return Ok(ExitCode::from(STOPPED));
    }
    Ok(code)
}

fn write(args: &Args, report: &Report) -> anyhow::Result<()> {
    print!("{}", report.text());
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(report)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

async fn measure(
    args: &Args,
    bench: &mut Bench<'_>,
    link: &link::Link,
    podman: String,
) -> anyhow::Result<Report> {
    let mut report = Report::new(args, podman);
    for round in 1..=args.rounds {
        for mode in Mode::ALL {
            let start = bench
                .start(mode)
                .await
                .with_context(|| format!("{}, round {round}", mode.name()))?;
            eprintln!("{round}  {:<9}  {:>7.2} s", mode.name(), start.ready);
            report.starts.push(start);
        }
    }
    if !args.no_estimate {
        let rate = report.rate();
        report.limit = Some(
            bench
                .limit(link, rate)
                .await
                .context("the estimate of T*")?,
        );
    }
    Ok(report)
}
