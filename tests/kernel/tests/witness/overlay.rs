//! Overlays of a tree, and what a known file costs.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use forelayer_kernel_tests::tree::{Kind, PLAIN_SIZE, Tree};

/// A file that is known costs no message: not to open, not to read, not to close; through an overlay neither.
pub(crate) fn zero_message_open() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let tree = Tree::mount(directory.path())?;
    let overlay = Overlay::mount(tree.place())?;
    for root in [tree.place(), overlay.place()] {
        let path = Tree::path_in(root, tree.fresh(Kind::Plain));
        let first = std::fs::read(&path)?;
        let before = tree.messages();
        ensure!(before > 0, "the file came from nowhere");
        let again = std::fs::read(&path)?;
        std::fs::metadata(&path)?;
        ensure!(
            tree.messages() == before,
            "{} messages for a known file",
            tree.messages() - before
        );
        ensure!(
            first == again && first.len() as u64 == PLAIN_SIZE,
            "wrong bytes"
        );
    }
    Ok(())
}

/// A read-only overlay of a tree.
pub(crate) struct Overlay {
    place: tempfile::TempDir,
    _empty: tempfile::TempDir,
}

impl Overlay {
    pub(crate) fn mount(lower: &Path) -> Result<Self> {
        let (place, empty) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let options = std::ffi::CString::new(format!(
            "lowerdir={}:{}",
            lower.display(),
            empty.path().display()
        ))?;
        let flags = rustix::mount::MountFlags::RDONLY;
        rustix::mount::mount(
            "overlay",
            place.path(),
            "overlay",
            flags,
            options.as_c_str(),
        )
        .context("cannot mount an overlay on the tree")?;
        Ok(Self {
            place,
            _empty: empty,
        })
    }

    pub(crate) fn place(&self) -> &Path {
        self.place.path()
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.place.path(), rustix::mount::UnmountFlags::DETACH);
    }
}
