//! `forelayer profile diff`: what two profiles predict, compared.

use std::{fmt::Write as _, path::Path, process::ExitCode};

use forelayer::config::Config;
use forelayer_profiler::model::{self, Diff, PAGE, Prediction, Profile};
use serde_json::json;

use super::{all_named, open, pass};
use crate::cli::{human, table::table};

/// Compare what two profiles predict: files and bytes of one only, in common, and in another order.
///
/// Exit status: 0 whether they differ or not.
///
/// Examples:
///   forelayer profile diff registry.example/app:1 registry.example/app:2
///   forelayer profile diff registry.example/app:1 ./from-another-node.json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Args {
    /// A file of `forelayer profile list`, its beginning, an image's name (all its workloads), or the path of a file
    /// with profiles
    #[arg(value_name = "A")]
    a: String,
    /// The same, to compare with A
    #[arg(value_name = "B")]
    b: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Files that are printed at most of each kind; 0: all
    #[arg(long, value_name = "N", default_value_t = 20)]
    files: usize,
}

pub(super) fn run(args: &Args, config: &Config) -> anyhow::Result<ExitCode> {
    let (a, b) = (side(&args.a, config)?, side(&args.b, config)?);
    let diff = model::diff(&a.prediction, &b.prediction);
    if args.json {
        let document = json!({"a": a.names, "b": b.names, "pages": diff.pages(), "files": diff});
        println!("{}", serde_json::to_string_pretty(&document)?);
    } else {
        let most = if args.files == 0 {
            usize::MAX
        } else {
            args.files
        };
        print!("{}", text(&a, &b, &diff, most));
    }
    Ok(ExitCode::SUCCESS)
}

/// What is compared.
struct Side {
    names: Vec<String>,
    prediction: Prediction,
}

/// A file that is there goes before a profile of that name; names of images are no paths from here.
fn side(name: &str, config: &Config) -> anyhow::Result<Side> {
    let profiles: Vec<Profile> = if Path::new(name).is_file() {
        pass::read_file(Path::new(name))?
    } else {
        let dir = open(config)?;
        let files = all_named(&dir, &[name.to_owned()])?;
        let load = |file: &String| dir.load(file);
        files.iter().map(load).collect::<Result<_, _>>()?
    };
    Ok(Side {
        names: (profiles.iter())
            .map(|profile| profile.identity.to_string())
            .collect(),
        prediction: model::predict_known(&profiles),
    })
}

fn text(a: &Side, b: &Side, diff: &Diff, most: usize) -> String {
    let bytes = |pages: u64| human(pages.saturating_mul(PAGE));
    let sums = diff.pages();
    let mut text = String::new();
    for (letter, side) in [("A", a), ("B", b)] {
        let _ = writeln!(text, "{letter}  {}", side.names.join(", "));
    }
    let count = |is: fn(&model::Common) -> bool| diff.common.iter().filter(|c| is(c)).count();
    let _ = writeln!(
        text,
        "\nonly A    {} files, {} (with what common files have more)\nonly B    {} files, {}\ncommon    {} files, {}; \
         {} moved, {} with another content, {} in another order\n",
        diff.only_a.len(),
        bytes(sums.only_a),
        diff.only_b.len(),
        bytes(sums.only_b),
        diff.common.len(),
        bytes(sums.common),
        count(|c| c.moved.is_some()),
        count(|c| c.changed),
        count(|c| c.reordered),
    );
    let mut rows = vec![["IN", "FIRST", "ONLY A", "ONLY B", "PATH"].map(str::to_owned)];
    let mut left = 0;
    for (letter, files) in [("A", &diff.only_a), ("B", &diff.only_b)] {
        left += files.len().saturating_sub(most);
        rows.extend(files.iter().take(most).map(|file| {
            let pages = |of: &str| {
                if of == letter {
                    bytes(file.pages)
                } else {
                    String::new()
                }
            };
            let path = format!("/{}", file.path);
            [
                letter.to_owned(),
                ms(file.at_us),
                pages("A"),
                pages("B"),
                path,
            ]
        }));
    }
    let differs = |c: &&model::Common| {
        c.pages_a + c.pages_b > 0 || c.moved.is_some() || c.changed || c.reordered
    };
    left += diff
        .common
        .iter()
        .filter(differs)
        .count()
        .saturating_sub(most);
    rows.extend(diff.common.iter().filter(differs).take(most).map(|c| {
        let mut path = format!("/{}", c.path);
        if let Some(moved) = &c.moved {
            let _ = write!(path, " -> /{moved}");
        }
        if c.changed {
            path += " (another content)";
        }
        let first = match c.reordered {
            true => format!("{} -> {}", ms(c.at_us_a), ms(c.at_us_b)),
            false => ms(c.at_us_a),
        };
        [
            "both".to_owned(),
            first,
            bytes(c.pages_a),
            bytes(c.pages_b),
            path,
        ]
    }));
    if rows.len() > 1 {
        table(&mut text, &rows);
    }
    if left > 0 {
        let _ = writeln!(text, "and {left} more (--files 0 shows all)");
    }
    text
}

/// Microseconds as people read them.
fn ms(us: i64) -> String {
    format!("{:+.2} ms", us as f64 / 1000.0)
}
