//! `forelayer serve`: the store.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use forelayer::{config::Config, daemon, mount::client::HolderCommand};
use tokio_util::sync::CancellationToken;

/// Serve layers until SIGTERM or SIGINT.
///
/// Needs root. Takes the mounts from `forelayer mount`; where that does not run, starts one. Example:
/// forelayer serve --config /etc/forelayer/config.toml
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Fail instead of starting a holder where none runs
    #[arg(long)]
    no_holder: bool,
}

pub(super) fn run(args: &Args, config: Config, file: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let holder = if args.no_holder {
        None
    } else {
        let mut arguments = vec![OsString::from("mount"), OsString::from("--child")];
        if let Some(file) = file {
            let file = std::path::absolute(&file)
                .with_context(|| format!("cannot tell where {} lies", file.display()))?;
            arguments.extend([OsString::from("--config"), file.into()]);
        }
        Some(HolderCommand {
            program: program.clone(),
            args: arguments,
        })
    };
    let environment = daemon::Environment {
        program,
        holder,
        auth_files: forelayer::registry::default_auth_files(|name| std::env::var_os(name)),
    };
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(async {
            let stop = CancellationToken::new();
            let signals = super::Signals::new()?;
            let stopping = stop.clone();
            tokio::spawn(async move {
                signals.first().await;
                stopping.cancel();
            });
            daemon::run(config, environment, stop).await?;
            // At once: taking the runtime down would answer reads that came in meanwhile with EIO, and wait for threads
            // that write what nobody needs any more.
            std::process::exit(0)
        })
}
