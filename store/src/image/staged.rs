//! An index that was built for a lookup and is not the layer's yet.
//!
//! Invariant: lookups build beside each other and never over a layer's own index; only the registrar, who knows what is
//! served, puts one in place.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::format::index::BlobFacts;

/// What the names of such files begin with.
const PREFIX: &str = "index.new-";

/// A name in a blob's directory for one build; the file goes with it unless it was put in place.
#[derive(Debug)]
pub(super) struct Place(PathBuf);

/// An index at such a place.
#[derive(Debug)]
pub(super) struct Staged {
    /// What it says of the blob.
    pub(super) facts: BlobFacts,
    place: Place,
}

impl Place {
    /// A place that nobody else builds at.
    pub(super) fn new(blob_dir: &Path) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(blob_dir.join(format!("{PREFIX}{number}")))
    }

    /// Where to write.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The index that was written there.
    pub(super) const fn holds(self, facts: BlobFacts) -> Staged {
        Staged { facts, place: self }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Not there: it was put in place, or its build failed. What else stays is removed at the next start.
        let _ = fs::remove_file(&self.0);
    }
}

impl Staged {
    /// Where it is now.
    pub(super) fn path(&self) -> &Path {
        self.place.path()
    }

    /// Makes it the index of its layer; durable when this returns.
    pub(super) fn put(&self, dest: &Path) -> io::Result<()> {
        fs::rename(self.path(), dest)?;
        fs::File::open(dest.parent().unwrap_or(Path::new(".")))?.sync_all()
    }
}

/// Removes what lookups of an earlier life left in a blob's directory.
pub(super) fn sweep(blob_dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(blob_dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
