//! `cargo xtask bench`: real images started cold through Podman in every way there is, against the limit T*
//! (docs/benchmarks.md). Nothing here is asserted: figures are read by people.

mod cost;
mod goals;
mod images;
mod lab;
mod limit;
mod link;
mod misled;
mod page;
mod peer;
mod report;
mod runner;
mod start;
mod stats;
mod summary;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use forelayer_tests::engine::{environment, images as formats};

use self::{
    images::Image,
    lab::Lab,
    link::Link,
    report::{Case, Report},
    runner::Bench,
    start::Mode,
};

/// Arguments of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The images
    #[arg(long = "image", value_enum, default_values_t = Image::DEFAULT)]
    images: Vec<Image>,
    /// vllm as well: 40 GB of disk while it is made
    #[arg(long)]
    heavy: bool,
    /// The formats of their layers
    #[arg(long = "format", value_enum, default_values_t = [Format::Zstd, Format::Estargz])]
    formats: Vec<Format>,
    /// The registry's links: milliseconds that it adds to each request and each connection, and megabits a second over
    /// all connections (0: as fast as it goes)
    #[arg(long = "link", default_value = "50:1000", value_name = "MS:MBIT")]
    links: Vec<Link>,
    /// How often each mode is started; the modes take turns
    #[arg(long, default_value_t = 3, value_name = "N")]
    rounds: u32,
    /// Only these; a first unlearned start is always made where a learned one is
    #[arg(long = "mode", value_enum, value_name = "MODE")]
    modes: Vec<Mode>,
    /// The program stargz-store, to be measured beside; unless given, the one on the PATH if there is one
    #[arg(long, value_name = "PATH")]
    peer: Option<PathBuf>,
    /// Instead of starts: the other goals, all of them or the named ones
    #[arg(long, value_enum, num_args = 0.., value_name = "ROW")]
    goals: Option<Vec<goals::Row>>,
    /// Where bench.json and bench.html go, or goals.json
    #[arg(long, default_value = "target/bench", value_name = "DIR")]
    out: PathBuf,
}

/// In which format the lazy modes get it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// zstd:chunked, by Podman 5.4.2
    Zstd,
    /// eStargz, by ctr-remote
    Estargz,
}

impl Format {
    fn tests(self) -> formats::Format {
        match self {
            Self::Zstd => formats::Format::Zstd5,
            Self::Estargz => formats::Format::Estargz,
        }
    }
}

/// Runs the bench.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if let Some(reason) = environment::missing() {
        eprintln!("the bench cannot run here: it {reason}");
        return Ok(ExitCode::from(69));
    }
    // As users have it: the optimised build.
    let program = crate::demo::binary(true)?;
    fs::create_dir_all(&args.out)?;
    if let Some(rows) = &args.goals {
        goals::run(rows, &program, &args.out)?;
        return Ok(ExitCode::SUCCESS);
    }
    let peer = peer::program(args.peer.as_deref())?;
    let environment = environment::prepare()?;
    let mut images = args.images.clone();
    if args.heavy && !images.contains(&Image::Vllm) {
        images.push(Image::Vllm);
    }
    let mut report = Report::new(peer.is_some());
    for image in images {
        let storage = image.storage(&environment)?;
        let lab = Lab::new(&environment.debian13, &storage, &program, peer.as_deref())?;
        let mut bench = Bench::new(&lab, image)?;
        for &link in &args.links {
            lab.set_link(link);
            let formats = args.formats.iter().map(|format| format.tests());
            for format in formats {
                let case = case(&mut bench, image, link, format, args)
                    .with_context(|| format!("{} as {}", image.name(), format.name()))?;
                report.add(case);
                // What was measured stays, however the rest goes.
                write(&report, &args.out)?;
            }
        }
    }
    println!("\n{}", report.tables());
    println!("{0}/bench.json\n{0}/bench.html", args.out.display());
    Ok(ExitCode::SUCCESS)
}

fn write(report: &Report, out: &Path) -> Result<()> {
    let json = serde_json::to_string(report)?;
    fs::write(out.join("bench.json"), json)?;
    fs::write(out.join("bench.html"), page::html(report))?;
    Ok(())
}

fn case(
    bench: &mut Bench<'_>,
    image: Image,
    link: Link,
    format: formats::Format,
    args: &Args,
) -> Result<Case> {
    println!("{} as {}, {link}:", image.name(), format.name());
    let mut case = Case::new(image.name(), format.name(), link);
    let modes: Vec<Mode> = (Mode::ALL.into_iter())
        .filter(|&mode| bench.can(mode, format))
        .collect();
    let wanted = |mode, round| {
        let all = args.modes.is_empty() && mode != Mode::Misled || args.modes.contains(&mode);
        all || round == 1 && mode == Mode::Unlearned
    };
    for round in 1..=args.rounds {
        for &mode in modes.iter().filter(|&&mode| wanted(mode, round)) {
            let start = bench
                .start(mode, format)
                .with_context(|| format!("{}, round {round}", mode.name()))?;
            println!("  {:<9} {:>7.2} s", mode.name(), start.ready);
            case.starts.push(start);
        }
    }
    case.limit = Some(bench.limit(&mut case.starts, format)?);
    println!("{}", report::line(&case));
    Ok(case)
}
