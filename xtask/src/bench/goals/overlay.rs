//! Trees as containers see them: the kernel's overlay over a layer of the store, or over a directory.

use std::{
    ffi::CString,
    fs::{self, File},
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, UnmountFlags};

/// A mounted overlay; dropping it unmounts.
pub(super) struct Overlay {
    merged: PathBuf,
}

impl Overlay {
    /// Mounts one over `lower` (which has no `,` and `:` in its path) with its own directories in `directory`.
    pub(super) fn mount(lower: &Path, directory: &Path) -> Result<Self> {
        for name in ["merged", "upper", "work"] {
            fs::create_dir_all(directory.join(name))?;
        }
        let shown = directory.display();
        let options = format!(
            "lowerdir={},upperdir={shown}/upper,workdir={shown}/work",
            lower.display()
        );
        let options = CString::new(options)?;
        let merged = directory.join("merged");
        rustix::mount::mount(
            "overlay",
            &merged,
            "overlay",
            MountFlags::empty(),
            options.as_c_str(),
        )
        .with_context(|| format!("cannot mount an overlay over {}", lower.display()))?;
        Ok(Self { merged })
    }

    pub(super) fn path(&self) -> &Path {
        &self.merged
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        if let Err(error) = rustix::mount::unmount(&self.merged, UnmountFlags::DETACH) {
            eprintln!("cannot unmount {}: {error}", self.merged.display());
        }
    }
}

/// Lists every directory and asks for the attributes of every name; answers how many there are and the seconds.
pub(super) fn walk(root: &Path) -> Result<(usize, f64)> {
    let begin = Instant::now();
    let mut names = 0;
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory)
            .with_context(|| format!("cannot list {}", directory.display()))?
        {
            let entry = entry?;
            names += 1;
            if entry.metadata()?.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    Ok((names, begin.elapsed().as_secs_f64()))
}

/// Reads a file from its start to its end; answers its bytes and the seconds.
pub(super) fn read(path: &Path) -> Result<(u64, f64)> {
    let mut buffer = vec![0; 128 << 10];
    let begin = Instant::now();
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let bytes = drain(&mut file, &mut buffer)?;
    Ok((bytes, begin.elapsed().as_secs_f64()))
}

/// Opens, stats, reads and closes each of the files; answers their bytes and the seconds.
pub(super) fn read_all(paths: &[PathBuf]) -> Result<(u64, f64)> {
    let mut buffer = vec![0; 128 << 10];
    let begin = Instant::now();
    let mut bytes = 0;
    for path in paths {
        let mut file =
            File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let size = file.metadata()?.size();
        let read = drain(&mut file, &mut buffer)?;
        anyhow::ensure!(
            read == size,
            "{} has {read} of {size} bytes",
            path.display()
        );
        bytes += read;
    }
    Ok((bytes, begin.elapsed().as_secs_f64()))
}

fn drain(file: &mut File, buffer: &mut [u8]) -> Result<u64> {
    let mut bytes = 0;
    loop {
        match file.read(buffer)? {
            0 => return Ok(bytes),
            read => bytes += read as u64,
        }
    }
}
