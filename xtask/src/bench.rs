//! `cargo xtask bench`: real images started cold through Podman in every way there is, against the limit T*
//! (docs/benchmarks.md). Nothing here is asserted: figures are read by people.

mod lab;
mod limit;
mod page;
mod report;
mod start;

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use forelayer_tests::engine::{environment, images};

use self::{
    lab::Lab,
    report::{Case, Report},
    start::Mode,
};

/// Arguments of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The images
    #[arg(long = "image", value_enum, default_values_t = [Image::Python, Image::Postgres])]
    images: Vec<Image>,
    /// The formats of their layers
    #[arg(long = "format", value_enum, default_values_t = [Format::Zstd, Format::Estargz])]
    formats: Vec<Format>,
    /// Milliseconds that the registry adds to each request and each connection
    #[arg(long, default_value_t = 50, value_name = "MS")]
    latency: u64,
    /// Megabits a second of the registry, over all connections; 0: as fast as it goes
    #[arg(long, default_value_t = 1000, value_name = "MBIT")]
    bandwidth: u64,
    /// How often each mode is started; the modes take turns
    #[arg(long, default_value_t = 3, value_name = "N")]
    rounds: u32,
    /// Where bench.json and bench.html go
    #[arg(long, default_value = "target/bench", value_name = "DIR")]
    out: PathBuf,
}

/// What is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Image {
    /// Debian with Python: imports the standard library, NumPy and more
    Python,
    /// Debian with PostgreSQL: to its first answered query
    Postgres,
}

impl Image {
    fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Postgres => "postgres",
        }
    }

    /// How the line begins that says that the program is ready.
    fn ready(self) -> &'static str {
        match self {
            Self::Python => "ready ",
            Self::Postgres => "42",
        }
    }
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
    fn tests(self) -> images::Format {
        match self {
            Self::Zstd => images::Format::Zstd5,
            Self::Estargz => images::Format::Estargz,
        }
    }
}

/// The registry's link.
#[derive(Debug, Clone, Copy)]
struct Link {
    latency: Duration,
    /// Bytes a second; `None`: as fast as it goes.
    bandwidth: Option<u64>,
}

/// Runs the bench.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if let Some(reason) = environment::missing() {
        eprintln!("the bench cannot run here: it {reason}");
        return Ok(ExitCode::from(69));
    }
    // As users have it: the optimised build.
    let program = crate::demo::binary(true)?;
    let link = Link {
        latency: Duration::from_millis(args.latency),
        bandwidth: (args.bandwidth > 0).then_some(args.bandwidth * 1_000_000 / 8),
    };
    let lab = Lab::new(link, program)?;
    let mut report = Report::new(args.latency, args.bandwidth);
    for &image in &args.images {
        for &format in &args.formats {
            let case = case(&lab, image, format, args.rounds)
                .with_context(|| format!("{} as {format:?}", image.name()))?;
            println!("{}", report::line(&case));
            report.cases.push(case);
        }
    }
    println!("\n{}", report.table());
    fs::create_dir_all(&args.out)?;
    let json = args.out.join("bench.json");
    fs::write(&json, serde_json::to_string_pretty(&report)?)?;
    let html = args.out.join("bench.html");
    fs::write(&html, page::html(&report))?;
    println!("{}\n{}", json.display(), html.display());
    Ok(ExitCode::SUCCESS)
}

fn case(lab: &Lab, image: Image, format: Format, rounds: u32) -> Result<Case> {
    println!("{} as {}:", image.name(), format.tests().name());
    let mut bench = start::Bench::new(lab, image.name(), image.ready(), format.tests())?;
    let mut case = Case::new(image.name(), format.tests().name());
    for round in 1..=rounds {
        for mode in Mode::ALL {
            let start = bench
                .start(mode)
                .with_context(|| format!("{}, round {round}", mode.name()))?;
            println!("  {:<9} {:>7.2} s", mode.name(), start.ready);
            case.starts.push(start);
        }
    }
    case.limit = Some(bench.limit(&case)?);
    Ok(case)
}
