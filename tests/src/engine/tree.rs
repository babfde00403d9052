//! A tree's every fact, and what differs between two of them.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs,
    io::Read as _,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

/// Files of the format itself, in the root of a layer: seen by a reader that unpacks the tar, not by one of the TOC.
const INDEX_FILES: [&str; 3] = [
    "stargz.index.json",
    ".prefetch.landmark",
    ".no.prefetch.landmark",
];

/// What is known of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    /// Owner.
    pub owner: (u32, u32),
    /// Size; 0 for directories, whose size is the file system's own affair.
    pub size: u64,
    /// Modification time in whole seconds.
    pub mtime: i64,
    /// Link count; 1 for directories.
    pub links: u64,
    /// Device number of a device.
    pub device: u64,
    /// Target of a symbolic link.
    pub target: Option<PathBuf>,
    /// Extended attributes.
    pub attributes: BTreeMap<OsString, Vec<u8>>,
    /// SHA-256 of a regular file.
    pub content: Option<[u8; 32]>,
    /// For a file with several names, the first of them in this tree.
    pub first_name: Option<PathBuf>,
}

/// All names below a directory, itself included as the empty path.
pub type Tree = BTreeMap<PathBuf, Entry>;

/// Reads a tree.
///
/// # Errors
/// When anything in it cannot be read; with its path.
pub fn read(root: &Path) -> Result<Tree> {
    let mut tree = Tree::new();
    let mut names: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(path) = waiting.pop() {
        let full = root.join(&path);
        let metadata =
            fs::symlink_metadata(&full).with_context(|| format!("stat of {}", path.display()))?;
        if metadata.is_dir() {
            let mut children = Vec::new();
            for entry in
                fs::read_dir(&full).with_context(|| format!("listing of {}", path.display()))?
            {
                let name = entry
                    .with_context(|| format!("listing of {}", path.display()))?
                    .file_name();
                if path.as_os_str().is_empty()
                    && INDEX_FILES.iter().any(|index| name == OsStr::new(index))
                {
                    continue;
                }
                children.push(path.join(name));
            }
            // In order, so that the first name of a file is the same in every tree.
            children.sort_unstable_by(|a, b| b.cmp(a));
            waiting.extend(children);
        }
        let entry = entry(&full, &metadata, &path, &mut names)
            .with_context(|| format!("reading {}", path.display()))?;
        tree.insert(path, entry);
    }
    Ok(tree)
}

fn entry(
    full: &Path,
    metadata: &fs::Metadata,
    path: &Path,
    names: &mut BTreeMap<(u64, u64), PathBuf>,
) -> Result<Entry> {
    let kind = metadata.file_type();
    let first_name = (!kind.is_dir() && metadata.nlink() > 1).then(|| {
        names
            .entry((metadata.dev(), metadata.ino()))
            .or_insert_with(|| path.to_path_buf())
            .clone()
    });
    Ok(Entry {
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        size: if kind.is_dir() { 0 } else { metadata.len() },
        mtime: metadata.mtime(),
        links: if kind.is_dir() { 1 } else { metadata.nlink() },
        device: if kind.is_block_device() || kind.is_char_device() {
            metadata.rdev()
        } else {
            0
        },
        target: kind.is_symlink().then(|| fs::read_link(full)).transpose()?,
        attributes: attributes(full)?,
        content: kind.is_file().then(|| hash(full)).transpose()?,
        first_name,
    })
}

/// SHA-256 of a file.
///
/// # Errors
/// When it cannot be read.
pub fn hash(path: &Path) -> Result<[u8; 32]> {
    let mut file = fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            return Ok(hasher.finalize().into());
        }
        hasher.update(&buffer[..length]);
    }
}

/// The extended attributes of a name, without following it. "Not supported" counts as none.
fn attributes(path: &Path) -> Result<BTreeMap<OsString, Vec<u8>>> {
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::llistxattr(path, &mut names) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut found = BTreeMap::new();
    for name in names[..length]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
    {
        let name = OsStr::from_bytes(name);
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(path, name, &mut value)?;
        value.truncate(length);
        found.insert(name.to_owned(), value);
    }
    Ok(found)
}

/// What differs, one line a name, at most 40 of them.
#[must_use]
pub fn differences(expected: &Tree, found: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, entry) in expected {
        match found.get(path) {
            None => lines.push(format!("{}: missing", path.display())),
            Some(other) if other != entry => lines.push(format!(
                "{}: expected {entry:?}, found {other:?}",
                path.display()
            )),
            Some(_) => {}
        }
    }
    lines.extend(
        found
            .keys()
            .filter(|path| !expected.contains_key(*path))
            .map(|path| format!("{}: should not be there", path.display())),
    );
    if lines.len() > 40 {
        let more = lines.len() - 40;
        lines.truncate(40);
        lines.push(format!("... and {more} more"));
    }
    lines
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn every_kind_of_difference_is_seen() {
        let one = tempfile::tempdir().unwrap();
        fs::write(one.path().join("a"), "same").unwrap();
        fs::hard_link(one.path().join("a"), one.path().join("b")).unwrap();
        fs::create_dir(one.path().join("d")).unwrap();
        let before = read(one.path()).unwrap();
        assert_eq!(before.len(), 4);
        assert_eq!(
            before[Path::new("b")].first_name.as_deref(),
            Some(Path::new("a"))
        );
        assert!(differences(&before, &before).is_empty());

        let mut changed = before.clone();
        changed.get_mut(Path::new("a")).unwrap().owner.1 = 7;
        assert_eq!(differences(&before, &changed).len(), 1);
        changed.remove(Path::new("d"));
        assert_eq!(differences(&before, &changed).len(), 2);
        assert_eq!(differences(&changed, &before).len(), 2);
    }
}
