//! The command line: arguments in, a call, a printed result. One file a subcommand.

mod bench;
mod log;
mod mount;
mod prefetch;
mod profile;
mod record;
mod recording;
mod serve;
mod status;
mod table;
mod warm;
mod watch;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use forelayer::config::{self, Config};

/// Additional layer store for Podman and CRI-O that reads ahead.
///
/// Containers start before their image is downloaded; what a start touches is recorded and fetched ahead at the next.
#[derive(Debug, Parser)]
#[command(
    name = "forelayer",
    version,
    about,
    long_about,
    propagate_version = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    /// Configuration file [default: /etc/forelayer/config.toml if it is there]
    #[arg(long, global = true, value_name = "FILE", env = "FORELAYER_CONFIG")]
    config: Option<PathBuf>,
    /// What is logged to standard error: error, warn, info, debug, trace, or directives such as
    /// info,forelayer::fetch=debug [default: info for services, warn for commands]
    #[arg(long, global = true, value_name = "LEVEL", env = "FORELAYER_LOG")]
    log: Option<String>,
    /// Form of the log: json or text [default: text on a terminal, json elsewhere]
    #[arg(long, global = true, value_enum, value_name = "FORMAT")]
    log_format: Option<log::Format>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    // Not doc comments: those would take the place of the commands' own, longer texts.
    #[command(about = "Hold the mounts (forelayer-mount.service)")]
    Mount(mount::Args),
    #[command(about = "Serve layers (forelayer.service)")]
    Serve(serve::Args),
    #[command(about = "Watch containers start (forelayer-profiler.service)")]
    Watch(watch::Args),
    #[command(about = "Record, list, show, compare, pass on, pin and delete profiles")]
    Profile(profile::Args),
    #[command(about = "Fetch an image ahead, now")]
    Prefetch(prefetch::Args),
    #[command(about = "Show what is served and how much of it is here")]
    Status(status::Args),
    #[command(about = "Start an image cold without the store, unlearned and learned, and compare")]
    Bench(bench::Args),
    #[command(about = "Look paths up in the mounts, for the store itself")]
    #[command(hide = true)]
    Warm(warm::Args),
}

impl Cli {
    /// Does what was asked for.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let service = matches!(
            self.command,
            Command::Mount(_) | Command::Serve(_) | Command::Watch(_)
        );
        log::init(self.log.as_deref(), self.log_format, service)?;
        if let Command::Warm(args) = &self.command {
            // Told all it needs; a file that is malformed by now must not keep starts cold.
            return warm::run(args);
        }
        let config = config::load(self.config.as_deref())?;
        match self.command {
            Command::Mount(args) => mount::run(&args, &config),
            Command::Warm(args) => warm::run(&args),
            Command::Serve(args) => serve::run(&args, config, self.config),
            Command::Watch(args) => wait(watch::run(&args, &config)),
            Command::Profile(args) => wait(profile::run(&args, &config)),
            Command::Prefetch(args) => wait(prefetch::run(&args, &config)),
            Command::Status(args) => wait(status::run(&args, &config)),
            Command::Bench(args) => wait(bench::run(&args, &config)),
        }
    }
}

/// Runs a command that mostly waits.
fn wait(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(command)
}

/// A client for the running store.
fn client(config: &Config) -> anyhow::Result<forelayer::control::Client> {
    Ok(forelayer::control::Client::new(&config.control_socket())?)
}

/// Bytes as people read them.
fn human(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

/// The signals that end a service.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    /// Listens for them from now on. Inside a runtime.
    fn new() -> anyhow::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?,
        })
    }

    /// Ends with the first of them.
    async fn first(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
