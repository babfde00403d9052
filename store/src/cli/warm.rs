//! `forelayer warm`: the store's own child, see `forelayer::prefetch::warm`.

use std::{path::PathBuf, process::ExitCode};

use forelayer::prefetch::warm;

/// Look paths up in the mounts, for the store itself.
///
/// Reads paths relative to the directory of the data mounts, each ended by a zero byte, and looks each up.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory of the data mounts
    #[arg(long, value_name = "DIR")]
    layers: PathBuf,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    warm::look_up(&args.layers, std::io::stdin().lock())?;
    Ok(ExitCode::SUCCESS)
}
