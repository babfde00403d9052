//! The project's own commands: one module each, arguments in, an exit code out.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod apt;
mod bench;
mod build_ebpf;
mod demo;
mod test;
mod vm;

/// The project's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start real images cold in every way, against the limit (docs/benchmarks.md)
    Bench(bench::Args),
    /// Build the eBPF object, or check that the committed one is what the sources build
    BuildEbpf(build_ebpf::Args),
    /// Show on this machine what the store is good for: an image started cold in three ways
    Demo(demo::Args),
    /// Run the tests: all of them, or the named suites
    Test(test::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Bench(args) => bench::run(&args),
        Command::BuildEbpf(args) => build_ebpf::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => test::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
