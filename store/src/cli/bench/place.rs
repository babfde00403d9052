//! The directory in which everything happens, and how nothing of it stays.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use forelayer::mount::mountinfo;
use rustix::mount::{UnmountFlags, unmount};

use super::users;

/// A new directory, which goes when this does.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    there: bool,
}

impl Place {
    /// Makes one below `dir`.
    pub(super) fn new(dir: &Path) -> anyhow::Result<Self> {
        let made = tempfile::Builder::new()
            .prefix("forelayer-bench-")
            .tempdir_in(dir)
            .with_context(|| format!("cannot make a directory below {}", dir.display()))?;
        // As the list of mounts will have it. Not removed by tempfile, which knows of no mounts.
        let path = made.keep().canonicalize()?;
        Ok(Self { path, there: true })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Deletes it with everything in it.
    pub(super) fn remove(mut self) -> anyhow::Result<()> {
        self.there = false;
        clear(&self.path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.there
            && let Err(error) = clear(&self.path)
        {
            eprintln!("forelayer: {error:#}");
        }
    }
}

/// Waits until nobody uses a directory any more, unmounts what is mounted below it, and deletes it. While anything is
/// still mounted, nothing is deleted: it could be somebody else's.
pub(super) fn clear(dir: &Path) -> anyhow::Result<()> {
    users::wait(dir)?;
    let mounted = || -> anyhow::Result<Vec<PathBuf>> {
        let lines = mountinfo::read().context("cannot read the list of mounts")?;
        let targets = lines.into_iter().map(|line| line.target);
        Ok(targets.filter(|target| target.starts_with(dir)).collect())
    };
    for target in mounted()?.iter().rev() {
        // Reported below if it had no effect: with the mount above it, it may be gone already.
        let _ = unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    }
    if let Some(target) = mounted()?.first() {
        bail!(
            "{} is still mounted and cannot be unmounted: {} stays",
            target.display(),
            dir.display()
        );
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot delete {}", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn the_directory_goes_whether_asked_or_dropped() {
        let below = tempfile::tempdir().unwrap();
        for ask in [true, false] {
            let place = Place::new(below.path()).unwrap();
            let path = place.path().to_owned();
            fs::create_dir_all(path.join("a/b")).unwrap();
            if ask {
                place.remove().unwrap();
            } else {
                drop(place);
            }
            assert!(!path.exists());
        }
        assert!(Place::new(&below.path().join("none")).is_err());
    }
}
