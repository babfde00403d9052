//! `cargo xtask build-ebpf`: builds the eBPF object, or checks that the committed one is what the sources build.
//!
//! Invariant kept here: the object depends on the sources, the lock file, the compiler and the linker, and on nothing
//! of the machine: docs/design.md, "The witness", says what could change its bytes, and what does is refused here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSymbol as _};
use sha2::{Digest as _, Sha256};

mod library;

/// Links through rustc's own LLVM, so it must be built for this version of it.
const LINKER: &str = "0.10.0";

/// Arguments of `cargo xtask build-ebpf`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Compare the committed object with a fresh one instead of writing it
    #[arg(long)]
    check: bool,
}

/// What came of the check.
pub(crate) enum Checked {
    /// The committed object is what the sources build.
    Same,
    /// The compiler's library sources cannot be had here; why.
    Ignored(String),
}

/// Builds the object and writes or compares it.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if args.check {
        match check()? {
            Checked::Same => println!("ebpf/forelayer.bpf.o is what the sources build"),
            Checked::Ignored(reason) => println!("ignored: {reason}"),
        }
        return Ok(ExitCode::SUCCESS);
    }
    match build()? {
        Ok(object) => {
            let place = committed()?;
            fs::write(&place, &object)
                .with_context(|| format!("cannot write {}", place.display()))?;
            println!(
                "{}: {} bytes, sha256 {}",
                place.display(),
                object.len(),
                hex::encode(Sha256::digest(&object))
            );
            Ok(ExitCode::SUCCESS)
        }
        Err(reason) => bail!("cannot build the eBPF object: {reason}"),
    }
}

/// Compares the committed object with a fresh one.
///
/// # Errors
/// They differ, or the build failed.
pub(crate) fn check() -> Result<Checked> {
    let place = committed()?;
    let there = fs::read(&place).with_context(|| format!("cannot read {}", place.display()))?;
    let object = match build()? {
        Ok(object) => object,
        Err(reason) => return Ok(Checked::Ignored(reason)),
    };
    if object != there {
        bail!(
            "{} (sha256 {}) is not what the sources build (sha256 {}): run `cargo xtask build-ebpf` and commit it",
            place.display(),
            hex::encode(Sha256::digest(&there)),
            hex::encode(Sha256::digest(&object))
        );
    }
    Ok(Checked::Same)
}

/// The object's bytes; or why the compiler's library sources cannot be had.
fn build() -> Result<Result<Vec<u8>, String>> {
    let root = checkout()?;
    let tools = root.join("target").join("ebpf-tools");
    let library = match library::find(&tools)? {
        Ok(library) => library,
        Err(reason) => return Ok(Err(reason)),
    };
    let linker = linker(&tools)?;
    let crate_dir = root.join("ebpf");
    let target = root.join("target").join("ebpf");
    let mut cargo = Command::new("cargo");
    cargo
        .args(["build", "--release", "--locked", "--quiet", "--target-dir"])
        .arg(&target)
        .current_dir(&crate_dir)
        // Of the caller's they would replace those of the crate's own configuration.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        // `core` for a target without a built one is unstable, on the same compiler.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("PATH", path_with(&linker)?);
    if let library::Library::At(place) = &library {
        cargo.env("__CARGO_TESTS_ONLY_SRC_ROOT", place);
    }
    let status = cargo.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo build of the eBPF programs: {status}");
    }
    let built = target
        .join("bpfel-unknown-none")
        .join("release")
        .join("forelayer");
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    refuse_mangled(&bytes)?;
    Ok(Ok(bytes))
}

/// A mangled name holds a hash of the path where the compiler's library lies: the bytes would differ by machine. One
/// that comes from a panic would also be refused by the kernel.
fn refuse_mangled(bytes: &[u8]) -> Result<()> {
    let file = object::File::parse(bytes).context("the built object is no ELF file")?;
    let mangled: Vec<_> = file
        .symbols()
        .filter_map(|symbol| symbol.name().ok())
        .filter(|name| name.starts_with("_R") || name.starts_with("_ZN"))
        .map(str::to_owned)
        .collect();
    if !mangled.is_empty() {
        bail!(
            "the object has symbols whose names depend on the machine: {}; make each static a map or `no_mangle`, \
             inline each function, and leave nothing that can panic",
            mangled.join(", ")
        );
    }
    Ok(())
}

/// The directory of `bpf-linker`: of the search path where the version is right, otherwise built below `tools`.
fn linker(tools: &Path) -> Result<PathBuf> {
    let found = std::env::var_os("PATH")
        .into_iter()
        .flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
        .chain([tools.join("bin")])
        .find(|directory| version_is(&directory.join("bpf-linker"), LINKER));
    if let Some(directory) = found {
        return Ok(directory);
    }
    println!(
        "building bpf-linker {LINKER} below {} (a minute or two)",
        tools.display()
    );
    let status = Command::new("cargo")
        .args([
            "install",
            "--quiet",
            "--locked",
            "--version",
            LINKER,
            "--root",
        ])
        .arg(tools)
        .arg("bpf-linker")
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo install bpf-linker {LINKER}: {status}");
    }
    Ok(tools.join("bin"))
}

fn version_is(program: &Path, version: &str) -> bool {
    let output = Command::new(program).arg("--version").output();
    output.is_ok_and(|output| {
        output.status.success()
            && String::from_utf8_lossy(&output.stdout)
                .split_whitespace()
                .any(|word| word == version)
    })
}

fn path_with(directory: &Path) -> Result<std::ffi::OsString> {
    let rest = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(directory.to_owned()).chain(std::env::split_paths(&rest));
    std::env::join_paths(all).context("a directory of PATH has a colon in its name")
}

/// Where the committed object lies.
fn committed() -> Result<PathBuf> {
    Ok(checkout()?.join("ebpf").join("forelayer.bpf.o"))
}

/// Root of the checkout this program was built from.
fn checkout() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the crate `xtask` has no parent directory")?;
    Ok(root.to_path_buf())
}
