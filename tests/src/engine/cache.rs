//! Where things are kept between runs, and how they get there: whole or not at all.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rustix::fs::FlockOperation;

/// `$FORELAYER_TEST_CACHE`, or `/var/cache/forelayer-tests`; without root `$HOME/.cache/forelayer-tests`.
#[must_use]
pub fn directory() -> PathBuf {
    if let Some(directory) = std::env::var_os("FORELAYER_TEST_CACHE") {
        return directory.into();
    }
    match std::env::var_os("HOME") {
        Some(home) if !rustix::process::geteuid().is_root() => {
            PathBuf::from(home).join(".cache/forelayer-tests")
        }
        _ => "/var/cache/forelayer-tests".into(),
    }
}

/// The directory `name` of the cache, filled by `make` unless it is there. `make` gets an empty directory that becomes
/// the cached one only when it succeeds; a second caller waits for the first.
///
/// # Errors
/// What `make` returns, or that the cache cannot be written.
pub fn once(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = directory();
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let lock = fs::File::create(cache.join(format!("{name}.lock")))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    let path = cache.join(name);
    if path.exists() {
        return Ok(path);
    }
    let partial = cache.join(format!("{name}.partial"));
    if partial.exists() {
        super::work::unmount_below(&partial);
        fs::remove_dir_all(&partial)?;
    }
    fs::create_dir(&partial)?;
    make(&partial)?;
    fs::rename(&partial, &path)?;
    Ok(path)
}
