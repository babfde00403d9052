//! The one binary: parse, dispatch, exit code.

mod cli;

use std::process::ExitCode;

use clap::Parser as _;
use forelayer::config::ConfigError;

/// The exit status where the configuration cannot be used (EX_CONFIG of sysexits.h): starting again would not help.
const MISCONFIGURED: u8 = 78;

fn main() -> ExitCode {
    forelayer::sys::allocator::give_large_buffers_back();
    let cli = cli::Cli::parse();
    match cli.run() {
        Ok(code) => code,
        Err(error) => {
            // Causes on one line: it ends in journals and in bug reports.
            eprintln!("forelayer: {error:#}");
            if error.is::<ConfigError>() {
                ExitCode::from(MISCONFIGURED)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}
