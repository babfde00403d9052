//! The directory's file operations.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::FlockOperation;

use super::ProfileError;
use crate::model::MAX_BYTES;

/// What tells that a file is another than last time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

/// Begin of the names of files being written.
const TEMPORARY: &str = ".writing-";
/// Name of the lock.
const LOCK: &str = ".lock";

fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ProfileError {
    move |source| ProfileError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

pub(super) fn make_dir(dir: &Path) -> Result<(), ProfileError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(io("make directory", dir))
}

/// Waits for the directory's lock; it is held until the file is dropped. Writers hold it for the length of a write.
pub(super) fn lock(dir: &Path) -> Result<File, ProfileError> {
    let path = dir.join(LOCK);
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(io("open", &path))?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)
        .map_err(|errno| io("lock", &path)(errno.into()))?;
    Ok(file)
}

/// Removes files that a writer left when it died. Call with the lock held: nobody is writing then.
pub(super) fn remove_leftovers(dir: &Path) -> Result<(), ProfileError> {
    for entry in fs::read_dir(dir).map_err(io("read directory", dir))? {
        let entry = entry.map_err(io("read directory", dir))?;
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Names and stamps of all files that end in `.json`. Names that are not UTF-8 are none of ours.
pub(super) fn scan(dir: &Path) -> Result<BTreeMap<String, Stamp>, ProfileError> {
    let mut stamps = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(io("read directory", dir))? {
        let entry = entry.map_err(io("read directory", dir))?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if name.starts_with('.') || !name.ends_with(".json") {
            continue;
        }
        match entry.metadata() {
            Ok(meta) if meta.is_file() => {
                let changed = (meta.ctime(), meta.ctime_nsec());
                stamps.insert(
                    name,
                    Stamp {
                        inode: meta.ino(),
                        size: meta.size(),
                        changed,
                    },
                );
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(io("look at", &entry.path())(error)),
        }
    }
    Ok(stamps)
}

/// Reads at most one byte more than a profile may have, so that a huge file costs no memory.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, ProfileError> {
    let file = File::open(path).map_err(io("open", path))?;
    let mut text = Vec::new();
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(io("read", path))?;
    Ok(text)
}

/// Replaces a file as a whole, durably.
pub(super) fn write(dir: &Path, file: &str, text: &[u8]) -> Result<(), ProfileError> {
    let path = dir.join(file);
    let mut temporary = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .tempfile_in(dir)
        .map_err(io("make a file in", dir))?;
    temporary.write_all(text).map_err(io("write", &path))?;
    temporary.as_file().sync_all().map_err(io("sync", &path))?;
    temporary
        .persist(&path)
        .map_err(|error| io("rename into place", &path)(error.error))?;
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(io("sync directory", dir))
}

pub(super) fn remove(path: &Path) -> Result<(), ProfileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Renames to `<name>.bad`. One that is there is replaced: the newest is enough to see what went wrong.
pub(super) fn move_aside(path: &Path) -> Result<PathBuf, ProfileError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".bad");
    let aside = path.with_file_name(name);
    fs::rename(path, &aside).map_err(io("move aside", path))?;
    Ok(aside)
}
