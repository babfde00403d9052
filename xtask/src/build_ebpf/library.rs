//! The sources of the compiler's own library, of exactly the pinned version: `core` for the eBPF target is built from
//! them. Rustup's component where it is installed, otherwise Debian's package, unpacked below `target/`.
//!
//! Invariant kept here: nothing outside `target/` is written; apt works on lists of its own.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::apt::{self, Apt, Unavailable};

/// The compiler of rust-toolchain.toml.
const RUST: &str = "1.95.0";
/// Debian's package of its library.
const PACKAGE: &str = "rust-src=1.95.0+dfsg1-2~bpo13+1";
/// The package's file: a source that changed would change the object.
const PACKAGE_SHA256: &str = "7b76db5b880a77f9e52975d2baa6209d2f76d2c9c2789515c3088cb960e2c83b";
/// The suite of the package.
const SUITE: &str = "trixie-backports";

/// Where cargo finds the library.
pub(super) enum Library {
    /// In the toolchain, where it looks by itself.
    InToolchain,
    /// In this directory.
    At(PathBuf),
}

/// Finds or fetches the library; the inner error says why it cannot be had here.
pub(super) fn find(tools: &Path) -> Result<Result<Library, String>> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let version = output(Command::new("rustc").arg("--version"))?;
    if version.split_whitespace().nth(1) != Some(RUST) {
        bail!("rustc {RUST} is wanted (rust-toolchain.toml), this is {version}");
    }
    if Path::new(&sysroot)
        .join("lib/rustlib/src/rust/library/core/Cargo.toml")
        .is_file()
    {
        return Ok(Ok(Library::InToolchain));
    }
    let place = tools.join("rust-src");
    let library = place.join("library");
    let complete = place.join("complete");
    if fs::read_to_string(&complete).is_ok_and(|text| text == PACKAGE_SHA256) {
        return Ok(Ok(Library::At(library)));
    }
    let package = match download(&place)? {
        Ok(package) => package,
        Err(reason) => return Ok(Err(reason)),
    };
    if library.exists() {
        fs::remove_dir_all(&library)
            .with_context(|| format!("cannot remove {}", library.display()))?;
    }
    let pattern = format!("./usr/src/rustc-{RUST}/library/*");
    apt::unpack(&package, &place, &pattern, 4)?;
    fs::write(&complete, PACKAGE_SHA256)
        .with_context(|| format!("cannot write {}", complete.display()))?;
    Ok(Ok(Library::At(library)))
}

/// Fetches the package; the inner error says why it cannot be had.
fn download(place: &Path) -> Result<Result<PathBuf, String>> {
    fs::create_dir_all(place).with_context(|| format!("cannot make {}", place.display()))?;
    let package = match Apt::new(place, SUITE).and_then(|apt| apt.download(PACKAGE)) {
        Ok(package) => package,
        Err(error) => match error.downcast::<Unavailable>() {
            Ok(Unavailable(reason)) => {
                return Ok(Err(format!(
                    "the library sources of rustc {RUST} (rustup's component `rust-src`, or Debian's package of it) \
                     cannot be had: {reason}"
                )));
            }
            Err(error) => return Err(error),
        },
    };
    let digest = sha256(&package)?;
    if digest != PACKAGE_SHA256 {
        bail!(
            "{} has sha256 {digest}, not {PACKAGE_SHA256}: not unpacked",
            package.display()
        );
    }
    Ok(Ok(package))
}

fn sha256(path: &Path) -> Result<String> {
    let mut file =
        fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file
            .read(&mut buffer)
            .with_context(|| format!("cannot read {}", path.display()))?;
        if read == 0 {
            return Ok(hex::encode(hash.finalize()));
        }
        hash.update(&buffer[..read]);
    }
}

/// A command's output, without the last line's end.
fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command
        .output()
        .with_context(|| format!("cannot run {shown}"))?;
    if !output.status.success() {
        bail!("{shown}: {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned())
}
