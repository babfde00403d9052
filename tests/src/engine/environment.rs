//! Everything together: packages, the newer Debian, the images.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::{images, packages};

/// What a run of the engine tests starts from.
#[derive(Debug)]
pub struct Environment {
    /// Tree of Debian 13 with Podman 5.4.2.
    pub debian13: PathBuf,
    /// A registry's storage directory with the test images; not to be written to.
    pub images: PathBuf,
}

/// Why the engine tests cannot run on this machine, if so.
#[must_use]
pub fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root");
    }
    if !std::path::Path::new("/dev/fuse").exists() {
        return Some("needs /dev/fuse");
    }
    if !std::path::Path::new("/usr/bin/dpkg").exists() {
        return Some("needs Debian");
    }
    None
}

/// Makes what is missing. The first time this takes about ten minutes, later a second.
///
/// # Errors
/// When something cannot be made, with the reason.
pub fn prepare() -> Result<Environment> {
    if let Some(reason) = missing() {
        bail!("the environment of the engine tests {reason}");
    }
    packages::install(packages::NEEDED)?;
    let debian13 = packages::tree(
        "debian-trixie-1",
        "trixie",
        &["ca-certificates", "podman", "runc"],
    )?;
    let images = images::storage(&debian13)?;
    Ok(Environment { debian13, images })
}
