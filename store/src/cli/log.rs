//! Where log lines go and what they look like.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Sends tracing's events, and those of crates that use `log`, to standard error.
pub(super) fn init(
    level: Option<&str>,
    format: Option<Format>,
    service: bool,
) -> anyhow::Result<()> {
    let level = level.unwrap_or(if service { "info" } else { "warn" });
    let filter = EnvFilter::try_new(level)
        .with_context(|| format!("--log {level:?} is no level and no directive"))?;
    let terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(terminal);
    let format = format.unwrap_or(if terminal || !service {
        Format::Text
    } else {
        Format::Json
    });
    let done = match format {
        Format::Json => builder.json().flatten_event(true).try_init(),
        Format::Text => builder.with_target(false).try_init(),
    };
    done.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}
