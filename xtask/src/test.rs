//! `cargo xtask test`: sets up what the tests need, runs them suite by suite, and says at the end what failed.
//!
//! A suite that cannot run here is reported as skipped with its reason; only a failure ends non-zero.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use forelayer_tests::engine::{cache, environment, packages};

use crate::{apt::Unavailable, build_ebpf, vm};

mod demo;
mod deny;

/// Arguments of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The suites to run, in this order; none: all of them
    suites: Vec<Suite>,
    /// Run only the tests whose name contains this (suites `unit` and `engine`)
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

/// One part of the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Formatting of every file
    Format,
    /// Compiler warnings and Clippy, as errors
    Lint,
    /// Licences, bans and sources of the dependencies
    Deny,
    /// Unit and property tests of every crate
    Unit,
    /// Make what the engine tests need: packages, a Debian 13 tree, images
    Environment,
    /// The store under Podman 4.3.1 and 5.4.2
    Engine,
    /// The demo: its table, and what it says where it cannot run
    Demo,
    /// Whether the committed eBPF object is what the sources build
    Ebpf,
    /// The witness and FUSE on Linux 6.1 and 6.12, in virtual machines
    Vm,
}

impl Suite {
    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// How a suite that did not fail ended.
enum Outcome {
    Passed,
    /// With the part that could not run and why.
    Skipped(String),
}

/// Where the tests run.
struct Context {
    /// Root of the checkout.
    root: PathBuf,
    /// Kept between runs, outside the checkout.
    cache: PathBuf,
    /// Only tests with this in their name.
    only: Option<String>,
}

impl Context {
    /// Cargo, in the checkout, with nothing to read from.
    fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command
            .args(arguments)
            .current_dir(&self.root)
            .stdin(Stdio::null());
        command
    }
}

/// Runs the suites; the exit code says whether all that ran passed.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let context = Context {
        root: checkout()?,
        cache: cache::directory(),
        only: args.only.clone(),
    };
    let suites = if args.suites.is_empty() {
        Suite::value_variants()
    } else {
        &args.suites
    };
    let mut failed = false;
    let mut summary = Vec::new();
    for &suite in suites {
        let name = suite.name();
        println!("==> {name}");
        let start = Instant::now();
        let result = run_suite(suite, &context);
        let seconds = start.elapsed().as_secs_f32();
        let text = match result {
            Ok(Outcome::Passed) => "passed".to_owned(),
            Ok(Outcome::Skipped(reason)) => format!("skipped: {reason}"),
            Err(error) => {
                failed = true;
                eprintln!("error: {name}: {error:#}");
                format!("FAILED: {error:#}")
            }
        };
        summary.push(format!("{name:<11} {seconds:>7.1} s  {text}"));
    }
    println!("\n==> summary");
    for line in &summary {
        println!("{line}");
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Installs the emulator where that can be done, and runs the kernel tests in it.
fn machines() -> Result<String> {
    if environment::missing().is_none() {
        packages::install(&["qemu-system-x86"])?;
    }
    vm::run()
}

fn run_suite(suite: Suite, context: &Context) -> Result<Outcome> {
    match suite {
        Suite::Ebpf => Ok(match build_ebpf::check()? {
            build_ebpf::Checked::Same => Outcome::Passed,
            build_ebpf::Checked::Ignored(reason) => Outcome::Skipped(reason),
        }),
        Suite::Demo => demo::run(),
        Suite::Vm => match machines() {
            Ok(missing) if !missing.is_empty() => Ok(Outcome::Skipped(missing)),
            Ok(_) => Ok(Outcome::Passed),
            Err(error) => match error.downcast::<Unavailable>() {
                Ok(Unavailable(reason)) => Ok(Outcome::Skipped(reason)),
                Err(error) => Err(error),
            },
        },
        Suite::Format => {
            check(&mut context.cargo(&["fmt", "--all", "--check"]))?;
            // Workspaces of their own.
            for manifest in ["ebpf/Cargo.toml", "fuzz/Cargo.toml"] {
                let arguments = ["fmt", "--manifest-path", manifest, "--check"];
                check(&mut context.cargo(&arguments))?;
            }
            Ok(Outcome::Passed)
        }
        Suite::Lint => check(&mut context.cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ])),
        Suite::Deny => deny::run(context),
        Suite::Unit => {
            let mut cargo = context.cargo(&["test", "--workspace", "--locked"]);
            if let Some(only) = &context.only {
                cargo.args(["--", only]);
            }
            check(&mut cargo)
        }
        Suite::Environment => {
            if let Some(reason) = environment::missing() {
                return Ok(Outcome::Skipped(reason.to_owned()));
            }
            environment::prepare()?;
            Ok(Outcome::Passed)
        }
        Suite::Engine => {
            if let Some(reason) = environment::missing() {
                return Ok(Outcome::Skipped(reason.to_owned()));
            }
            check(&mut context.cargo(&["build", "--locked", "-p", "forelayer"]))?;
            let mut cargo = context.cargo(&[
                "test",
                "--locked",
                "-p",
                "forelayer-tests",
                "--test",
                "engine",
            ]);
            cargo.env("FORELAYER_ENGINE_TESTS", "1");
            if let Some(only) = &context.only {
                cargo.args(["--", only]);
            }
            check(&mut cargo)
        }
    }
}

/// Runs a command to its end; anything but success is an error that names it.
fn check(command: &mut Command) -> Result<Outcome> {
    let shown = show(command);
    let status = command
        .status()
        .with_context(|| format!("cannot run {shown}"))?;
    if !status.success() {
        bail!("{shown}: {status}");
    }
    Ok(Outcome::Passed)
}

/// A command as one would type it, its program without directories.
fn show(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut text = program
        .file_name()
        .unwrap_or(program.as_os_str())
        .to_string_lossy()
        .into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

/// Root of the checkout this program was built from.
fn checkout() -> Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = manifest
        .parent()
        .context("the crate `xtask` has no parent directory")?;
    Ok(root.to_path_buf())
}
