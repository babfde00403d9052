//! `forelayer prefetch`.

use std::process::ExitCode;

use anyhow::bail;
use forelayer::{
    config::Config,
    control::{PrefetchProgress, PrefetchRequest},
};
use indicatif::{ProgressBar, ProgressStyle};

use super::{client, human};

/// Fetch an image ahead, now.
///
/// Without --all: what its profiles say that a start touches. The image need not have been pulled: its manifest and
/// the tables of contents of its layers are asked for. Bytes land in the store's cache; a later pull and start find
/// them there.
///
/// Exit status: 0 when everything asked for is here, 1 otherwise.
///
/// Examples:
///   forelayer prefetch registry.example/python:3
///   forelayer prefetch --all registry.example/python:3
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Args {
    /// The image as engines write it
    #[arg(value_name = "REF")]
    reference: String,
    /// Everything, not only what its profiles predict
    #[arg(long)]
    all: bool,
}

pub(super) async fn run(args: &Args, config: &Config) -> anyhow::Result<ExitCode> {
    let request = PrefetchRequest {
        reference: args.reference.clone(),
        all: args.all,
    };
    let mut lines = client(config)?.prefetch(&request).await?;
    // Drawn on standard error, and only on a terminal.
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(
        "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
    )?);
    let mut last = None;
    while let Some(line) = lines.next().await? {
        bar.set_length(line.bytes);
        bar.set_position(line.done_bytes);
        last = Some(line);
    }
    bar.finish_and_clear();
    match last {
        Some(PrefetchProgress {
            finished: true,
            error: Some(error),
            ..
        }) => bail!("{error}"),
        Some(progress) if progress.finished => {
            println!("{}", text(&args.reference, &progress));
            Ok(ExitCode::SUCCESS)
        }
        _ => bail!("the store stopped before {} was fetched", args.reference),
    }
}

fn text(reference: &str, progress: &PrefetchProgress) -> String {
    if progress.chunks == 0 {
        return format!("{reference}: everything was here already");
    }
    format!(
        "{reference}: {} chunk{} fetched, {}",
        progress.done_chunks,
        if progress.done_chunks == 1 { "" } else { "s" },
        human(progress.done_bytes),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_says_what_was_fetched() {
        let mut progress = PrefetchProgress {
            finished: true,
            ..PrefetchProgress::default()
        };
        assert_eq!(text("a:1", &progress), "a:1: everything was here already");
        (progress.chunks, progress.done_chunks, progress.done_bytes) = (1, 1, 2048);
        assert_eq!(text("a:1", &progress), "a:1: 1 chunk fetched, 2.00 KiB");
    }
}
