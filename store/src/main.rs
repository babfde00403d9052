//! The one binary: parse, dispatch, exit code.

mod cli;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match cli.run() {
        Ok(code) => code,
        Err(error) => {
            // Causes on one line: it ends in journals and in bug reports.
            eprintln!("forelayer: {error:#}");
            ExitCode::FAILURE
        }
    }
}
