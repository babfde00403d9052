//! `forelayer mount`: the holder.

use std::{
    io::Write as _,
    os::{fd::AsFd as _, unix::net::UnixStream},
    process::ExitCode,
    thread,
};

use anyhow::Context as _;
use forelayer::{
    config::Config,
    mount::{
        Paths,
        client::READY,
        holder::{self, Mode},
    },
};

/// Hold the mounts: opens /dev/fuse, mounts the three connections and hands them to the store.
///
/// Needs root. Ends, and unmounts, on SIGTERM and SIGINT. Example: forelayer mount &
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Leave the mounts in place when this process ends: for a service manager that keeps the descriptors
    #[arg(long, conflicts_with = "release")]
    keep: bool,
    /// Unmount what a holder that is gone left behind, and end
    #[arg(long)]
    release: bool,
    /// A store started this holder
    #[arg(long, hide = true, conflicts_with_all = ["keep", "release"])]
    child: bool,
}

pub(super) fn run(args: &Args, config: &Config) -> anyhow::Result<ExitCode> {
    let paths = Paths::new(config);
    if args.release {
        holder::release(&paths)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mode = if args.child {
        Mode::Child
    } else {
        Mode::Service {
            unmount_on_stop: !args.keep,
        }
    };
    let stop = on_signal()?;
    let child = args.child;
    holder::run(&paths, mode, stop.as_fd(), || {
        if child {
            // Closed behind the word: the store reads to the end of the line only.
            let mut out = std::io::stdout();
            writeln!(out, "{READY}")?;
            out.flush()
        } else {
            tracing::info!(store = %paths.mounts.display(), "mounted");
            sd_notify::notify(&[sd_notify::NotifyState::Ready])
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A descriptor that becomes readable with SIGTERM or SIGINT.
fn on_signal() -> anyhow::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("cannot start the runtime")?;
    let signals = {
        let _inside = runtime.enter();
        super::Signals::new()?
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(signals.first());
            drop(theirs);
        })
        .context("cannot start a thread")?;
    Ok(ours)
}
