//! `cargo xtask bench --goals`: what the bench of whole starts does not show, each through the real store and beside
//! something of the same run (docs/benchmarks.md, "Goals by row"). Nothing is asserted.

mod content;
mod figure;
mod files;
mod idle;
mod images;
mod index;
mod lab;
mod many;
mod memory;
mod node;
mod open;
mod overlay;
mod pull;
mod sequential;
mod toc;
mod warm;
mod witness;

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use self::figure::{Figure, Table};

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Row {
    /// From the first lookup of an image of two layers to both answered
    Open,
    /// Many small files, adjacent and strided, nothing learned
    Files,
    /// One large file from its start to its end, nothing learned
    Sequential,
    /// A layer of 100,000 entries: its index made, opened again, walked; and memory
    Index,
    /// `podman images` of 50 lazy images of 10 GB beside 50 ordinary ones; and memory
    Images,
    /// Warm reads through an overlay beside ordinary storage
    Warm,
    /// Wake-ups and memory of a store with nothing to do; processor seconds for a GB
    Idle,
    /// The whole image in the background: share of the link
    Pull,
    /// What the witness costs a start, and its memory
    Witness,
    /// Twenty starts at once, of one image and of twenty, against their joint limit
    Many,
}

impl Row {
    fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Files => "files",
            Self::Sequential => "sequential",
            Self::Index => "index",
            Self::Images => "images",
            Self::Warm => "warm",
            Self::Idle => "idle",
            Self::Pull => "pull",
            Self::Witness => "witness",
            Self::Many => "many",
        }
    }

    fn measure(self, program: &Path) -> Result<Vec<Figure>> {
        match self {
            Self::Open => open::measure(program),
            Self::Files => files::measure(program),
            Self::Sequential => sequential::measure(program),
            Self::Index => index::measure(program),
            Self::Images => images::measure(program),
            Self::Warm => warm::measure(program),
            Self::Idle => idle::measure(program),
            Self::Pull => pull::measure(program),
            Self::Witness => witness::measure(program),
            Self::Many => many::measure(program),
        }
    }
}

/// Measures the rows, all if none is named, and writes `goals.json` to `out` after each.
pub(super) fn run(rows: &[Row], program: &Path, out: &Path) -> Result<()> {
    let rows = match rows {
        [] => Row::value_variants(),
        rows => rows,
    };
    let mut table = Table::default();
    for row in rows {
        println!("{} ...", row.name());
        let figures = (row.measure(program))
            .with_context(|| format!("the row {} cannot be measured", row.name()))?;
        for figure in figures {
            println!("  {figure}");
            table.add(row.name(), figure);
        }
        // What was measured stays, however the rest goes.
        fs::write(
            out.join("goals.json"),
            serde_json::to_string_pretty(&table)?,
        )?;
    }
    println!("\n{}\n{}/goals.json", table.markdown(), out.display());
    Ok(())
}
