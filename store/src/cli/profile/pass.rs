//! `forelayer profile export` and `import`: profiles from machine to machine.

use std::{
    fs::File,
    io::{Read, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail};
use forelayer::config::Config;
use forelayer_profiler::{
    model::Profile,
    profiles::{
        ProfileDir, Taken,
        bundle::{self, MAX_BUNDLE_BYTES},
    },
};
use serde_json::json;

use super::{all_named, open};

/// Write profiles into one file, for `forelayer profile import` on other machines.
///
/// The file is JSON with one line a touched file (docs/formats.md, "Bundle"). It holds paths and digests of the image's
/// files and the names of programs, no command lines and no content.
///
/// Example: forelayer profile export registry.example/python:3 | ssh node forelayer profile import -
#[derive(Debug, clap::Args)]
pub(super) struct Export {
    /// Files of `forelayer profile list`, their beginnings, or images' names
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    /// Where to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Take profiles in that were exported elsewhere.
///
/// Their runs are merged with those that are here, each once, and the newest are kept. Nothing is taken of a file that
/// is not valid throughout. A running store uses them from its next prediction on.
#[derive(Debug, clap::Args)]
pub(super) struct Import {
    /// What `forelayer profile export` wrote, or a single profile's file; -: standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn export(args: &Export, config: &Config) -> anyhow::Result<ExitCode> {
    let dir = open(config)?;
    let mut profiles = Vec::new();
    for file in all_named(&dir, &args.names)? {
        profiles.push(dir.load(&file)?);
    }
    let text = bundle::write(&profiles);
    match &args.output {
        Some(path) => std::fs::write(path, text)
            .with_context(|| format!("cannot write {}", path.display()))?,
        None => std::io::stdout()
            .write_all(text.as_bytes())
            .context("cannot write to standard output")?,
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn import(args: &Import, config: &Config) -> anyhow::Result<ExitCode> {
    let profiles = if args.file == Path::new("-") {
        read("standard input", std::io::stdin().lock())?
    } else {
        read_file(&args.file)?
    };
    let mut dir =
        ProfileDir::open(&config.profiles_dir()).context("the profiles cannot be written")?;
    let mut taken: Vec<Taken> = Vec::new();
    for profile in profiles {
        match dir.import(profile, config.prefetch.keep_runs) {
            Ok(one) => taken.push(one),
            Err(error) => {
                let before: Vec<_> = taken.iter().map(|taken| &taken.file).collect();
                bail!("{error}; taken before: {before:?}");
            }
        }
    }
    if args.json {
        println!("{}", json!({"profiles": taken}));
    } else if taken.is_empty() {
        println!("no profiles in {}", args.file.display());
    }
    for one in taken.iter().filter(|_| !args.json) {
        println!(
            "{}: {} runs taken, {} known, {} older than those kept: {}",
            one.identity, one.taken, one.known, one.left_out, one.file
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// The profiles in a file that was exported, or that is one.
pub(super) fn read_file(path: &Path) -> anyhow::Result<Vec<Profile>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    read(&path.display().to_string(), file)
}

fn read(name: &str, from: impl Read) -> anyhow::Result<Vec<Profile>> {
    let mut text = Vec::new();
    // One byte more than is taken: a huge file costs no memory.
    from.take(MAX_BUNDLE_BYTES + 1)
        .read_to_end(&mut text)
        .with_context(|| format!("cannot read {name}"))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_ms = now.map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
    bundle::read(&text, now_ms).with_context(|| format!("nothing is taken from {name}"))
}
