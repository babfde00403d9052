//! `forelayer profile`: record, list, show, diff, export, import, pin, unpin, delete.
//!
//! All but `record` work on the files themselves, whether a store runs or not: it looks at the directory anew before
//! each prediction, and all writers take the directory's lock.

mod compare;
mod html;
mod pass;
mod text;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use forelayer::{config::Config, prefetch::early::EarlyRequests};
use forelayer_profiler::profiles::{Listed, ProfileDir};
use serde_json::{Value, json};

use super::record;

/// Record, list, show, compare, pass on, pin and delete profiles: what starts of containers touched, and so what is fetched ahead.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Record(record::Args),
    List(List),
    Show(Show),
    Diff(compare::Args),
    Export(pass::Export),
    Import(pass::Import),
    Pin(Pin),
    Unpin(Unpin),
    Delete(Delete),
}

/// List all profiles.
#[derive(Debug, clap::Args)]
struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Show what a profile holds and what it predicts.
///
/// Examples:
///   forelayer profile show --json registry.example/python:3 | jq '.runs[0].files[].path'
///   forelayer profile show --html -o start.html registry.example/python:3
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
struct Show {
    /// A file of `forelayer profile list`, its beginning, or an image's name
    #[arg(value_name = "NAME")]
    name: String,
    /// Print the profile as it is kept; of several, an array
    #[arg(long)]
    json: bool,
    /// Files of the prediction that are printed at most; 0: all
    #[arg(long, value_name = "N", default_value_t = 20)]
    files: usize,
    /// Draw the newest recorded start as an HTML page: bytes needed by time, programs, files
    #[arg(long, conflicts_with = "json")]
    html: bool,
    /// Draw this start instead: a run of `forelayer profile show`, or its beginning
    #[arg(long, value_name = "ID", requires = "html")]
    run: Option<String>,
    /// Where to write the page [default: standard output]
    #[arg(short, long, value_name = "FILE", requires = "html")]
    output: Option<PathBuf>,
}

/// Pin profiles: the runs that they hold stay, however many newer starts there are, and count fully.
///
/// Later starts are still recorded, beside them. The pin is kept in the profile's file (`pinned` of each run).
///
/// Example: forelayer profile pin registry.example/python:3
#[derive(Debug, clap::Args)]
struct Pin {
    #[command(flatten)]
    which: Which,
}

/// Unpin profiles: their runs age like all others.
#[derive(Debug, clap::Args)]
struct Unpin {
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, clap::Args)]
struct Which {
    /// Files of `forelayer profile list`, their beginnings, or images' names
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Delete profiles: the next start is not predicted, and learned anew.
#[derive(Debug, clap::Args)]
struct Delete {
    /// Files of `forelayer profile list`, their beginnings, or images' names
    #[arg(value_name = "NAME", required_unless_present = "all")]
    names: Vec<String>,
    /// All profiles, also those that cannot be read
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &Args, config: &Config) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Record(args) => record::run(args, config).await,
        Command::List(args) => list(args, config),
        Command::Show(args) => show(args, config),
        Command::Diff(args) => compare::run(args, config),
        Command::Export(args) => pass::export(args, config),
        Command::Import(args) => pass::import(args, config),
        Command::Pin(args) => pin(&args.which, true, config),
        Command::Unpin(args) => pin(&args.which, false, config),
        Command::Delete(args) => delete(args, config),
    }
}

fn open(config: &Config) -> anyhow::Result<ProfileDir> {
    ProfileDir::open_read_only(&config.profiles_dir()).context("the profiles cannot be read")
}

fn list(args: &List, config: &Config) -> anyhow::Result<ExitCode> {
    let profiles = open(config)?;
    let listed = profiles.list();
    if args.json {
        let all: Vec<Value> = listed.iter().map(entry).collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        print!("{}", text::list(&listed, profiles.dir()));
    }
    Ok(ExitCode::SUCCESS)
}

/// A file of the list as JSON: its summary, or `file` and `error`.
fn entry(listed: &Listed) -> Value {
    match &listed.summary {
        Ok(summary) => json!(summary),
        Err(error) => json!({"file": listed.file, "error": error}),
    }
}

/// A name as `profile list` shows it also where it was given as a path, as `profile record` prints it.
fn within<'a>(name: &'a str, dir: &Path) -> &'a str {
    let file = Path::new(name).strip_prefix(dir).ok();
    file.and_then(Path::to_str).unwrap_or(name)
}

fn show(args: &Show, config: &Config) -> anyhow::Result<ExitCode> {
    let dir = open(config)?;
    let mut profiles = Vec::new();
    for file in dir.named(within(&args.name, dir.dir()))? {
        profiles.push((dir.dir().join(&file), dir.load(&file)?));
    }
    if args.html {
        let profiles: Vec<_> = profiles.into_iter().map(|(_, profile)| profile).collect();
        html::write(&profiles, args.run.as_deref(), args.output.as_deref())?;
        return Ok(ExitCode::SUCCESS);
    }
    match profiles.as_slice() {
        [(_, profile)] if args.json => print!("{}", profile.to_json()),
        several if args.json => {
            let several: Vec<_> = several.iter().map(|(_, profile)| profile).collect();
            println!("{}", serde_json::to_string(&several)?);
        }
        several => {
            for (path, profile) in several {
                print!("{}", text::profile(path, profile, args.files));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn pin(args: &Which, pinned: bool, config: &Config) -> anyhow::Result<ExitCode> {
    let mut dir = open(config)?;
    let files = all_named(&dir, &args.names)?;
    let done = if pinned { "pinned" } else { "unpinned" };
    let mut changed: Vec<Value> = Vec::new();
    for file in files {
        let runs = match dir.pin(&file, pinned) {
            Ok(runs) => runs,
            Err(error) => {
                let before: Vec<_> = changed.iter().map(|entry| &entry["file"]).collect();
                bail!("{error}; {done} before: {before:?}");
            }
        };
        if !args.json {
            println!("{done} {file} ({runs} runs)");
        }
        changed.push(json!({"file": file, "runs": runs}));
    }
    if args.json {
        println!("{}", json!({done: changed}));
    }
    Ok(ExitCode::SUCCESS)
}

/// The files that the names mean, each once, in order; all names are looked at before anything is done.
fn all_named(dir: &ProfileDir, names: &[String]) -> anyhow::Result<Vec<String>> {
    let mut files = Vec::new();
    for name in names {
        files.extend(dir.named(within(name, dir.dir()))?);
    }
    files.sort();
    files.dedup();
    Ok(files)
}

/// The images that there are profiles of.
fn images(dir: &ProfileDir) -> BTreeSet<String> {
    (dir.list().into_iter())
        .filter_map(|listed| Some(listed.summary.ok()?.identity.image))
        .collect()
}

fn delete(args: &Delete, config: &Config) -> anyhow::Result<ExitCode> {
    let mut dir = open(config)?;
    let files = if args.all {
        dir.list().into_iter().map(|listed| listed.file).collect()
    } else {
        all_named(&dir, &args.names)?
    };
    let before = images(&dir);
    let mut deleted = Vec::new();
    for file in files {
        if let Err(error) = dir.delete(&file) {
            bail!("{error}; deleted before: {deleted:?}");
        }
        deleted.push(file);
    }
    // What was derived from them goes with the last of an image.
    for image in before.difference(&images(&dir)) {
        EarlyRequests::forget(&config.early_dir(), image)?;
    }
    if args.json {
        println!("{}", json!({"deleted": deleted}));
    } else if deleted.is_empty() {
        println!("no profiles in {}", dir.dir().display());
    } else {
        deleted.iter().for_each(|file| println!("deleted {file}"));
    }
    Ok(ExitCode::SUCCESS)
}
