//! A disk in memory that fails when told to and can be cut off from power, and a small layer to cache on it.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::HashMap,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;

use super::{
    Extent, Geometry,
    disk::{Disk, DiskFile},
};
use crate::digest::Digest;

/// What a disk has been told but may not have done yet.
#[derive(Debug, Clone)]
enum Pending {
    Write(usize, Vec<u8>),
    SetLen(usize),
    Punch(usize, usize),
    Replace(Vec<u8>),
}

#[derive(Debug, Clone, Default)]
struct File {
    /// What a reader sees.
    now: Vec<u8>,
    /// What is certainly on disk; `None`: the name is not.
    durable: Option<Vec<u8>>,
    pending: Vec<Pending>,
}

#[derive(Debug, Default)]
struct State {
    files: HashMap<PathBuf, File>,
    operations: usize,
    fail: Option<(usize, io::ErrorKind)>,
}

/// The disk; clones are the same disk.
#[derive(Debug, Clone, Default)]
pub(super) struct MemoryDisk(Arc<Mutex<State>>);

fn apply(bytes: &mut Vec<u8>, change: &Pending) {
    match change {
        Pending::Write(offset, new) => {
            let end = offset + new.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*offset..end].copy_from_slice(new);
        }
        Pending::SetLen(len) => bytes.resize(*len, 0),
        Pending::Punch(offset, len) => bytes[*offset..offset + len].fill(0),
        Pending::Replace(new) => bytes.clone_from(new),
    }
}

impl MemoryDisk {
    /// From the n-th operation that changes something on, all of them fail.
    pub(super) fn fail_from(&self, operation: Option<usize>, kind: io::ErrorKind) {
        let mut state = self.0.lock();
        state.fail = operation.map(|n| (state.operations + n, kind));
    }

    /// Power fails: of everything not synced, each 64 bytes of a write and every other change is on disk or not, as
    /// `survives` says.
    pub(super) fn lose_power(&self, mut survives: impl FnMut() -> bool) {
        let mut state = self.0.lock();
        state.fail = None;
        state.files.retain(|_, file| {
            let mut bytes = file.durable.clone();
            for change in std::mem::take(&mut file.pending) {
                match change {
                    Pending::Write(offset, new) => {
                        for (n, piece) in new.chunks(64).enumerate() {
                            if survives() {
                                apply(
                                    bytes.get_or_insert_default(),
                                    &Pending::Write(offset + n * 64, piece.to_vec()),
                                );
                            }
                        }
                    }
                    Pending::Punch(offset, len) => {
                        if survives()
                            && let Some(bytes) = &mut bytes
                            && bytes.len() >= offset + len
                        {
                            apply(bytes, &Pending::Punch(offset, len));
                        }
                    }
                    other => {
                        if survives() {
                            apply(bytes.get_or_insert_default(), &other);
                        }
                    }
                }
            }
            file.durable.clone_from(&bytes);
            file.now = bytes.clone().unwrap_or_default();
            bytes.is_some()
        });
    }

    /// Changes a file behind everybody's back.
    pub(super) fn meddle(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.0.lock();
        change(&mut state.files.get_mut(path).unwrap().now);
    }

    fn change(&self, path: &Path, change: Pending) -> io::Result<()> {
        let mut state = self.0.lock();
        state.operations += 1;
        let failed = state.fail.filter(|(from, _)| state.operations >= *from);
        let file = state.files.entry(path.to_owned()).or_default();
        let change = match (failed, change) {
            (None, change) => change,
            // A disk that fills up has taken a part.
            (Some(_), Pending::Write(offset, bytes)) => {
                Pending::Write(offset, bytes[..bytes.len() / 2].to_vec())
            }
            (Some((_, kind)), _) => return Err(kind.into()),
        };
        apply(&mut file.now, &change);
        file.pending.push(change);
        failed.map_or(Ok(()), |(_, kind)| Err(kind.into()))
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.operations += 1;
        if let Some((from, kind)) = state.fail
            && state.operations >= from
        {
            return Err(kind.into());
        }
        if let Some(file) = state.files.get_mut(path) {
            file.durable = Some(file.now.clone());
            file.pending.clear();
        }
        Ok(())
    }
}

impl Disk for MemoryDisk {
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.0.lock();
        let file = state.files.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(file.now.clone())
    }
    fn replace(&self, path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
        self.change(path, Pending::Replace(bytes.to_vec()))?;
        if durable { self.sync(path) } else { Ok(()) }
    }
    fn len(&self, path: &Path) -> io::Result<u64> {
        Ok(self.read(path)?.len() as u64)
    }
    fn sync_below(&self, path: &Path) -> io::Result<()> {
        let names: Vec<_> = self.0.lock().files.keys().cloned().collect();
        names
            .iter()
            .filter(|name| name.starts_with(path))
            .try_for_each(|name| self.sync(name))
    }
    fn open(&self, path: &Path, create: bool) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.0.lock();
        if !state.files.contains_key(path) {
            if !create {
                return Err(io::ErrorKind::NotFound.into());
            }
            state.files.insert(path.to_owned(), File::default());
        }
        Ok(Box::new(MemoryFile {
            disk: self.clone(),
            path: path.to_owned(),
        }))
    }
}

#[derive(Debug)]
struct MemoryFile {
    disk: MemoryDisk,
    path: PathBuf,
}

fn size(n: u64) -> usize {
    usize::try_from(n).unwrap()
}

impl DiskFile for MemoryFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.disk.0.lock();
        let file = state.files.get(&self.path).ok_or(io::ErrorKind::NotFound)?;
        let from = size(offset);
        let bytes = file.now.get(from..from + buf.len());
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.disk
            .change(&self.path, Pending::Write(size(offset), bytes.to_vec()))
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.change(&self.path, Pending::SetLen(size(len)))
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.disk
            .change(&self.path, Pending::Punch(size(offset), size(len)))
    }
    fn sync(&self) -> io::Result<()> {
        self.disk.sync(&self.path)
    }
}

/// A layer of `count` chunks; chunk n has `len(n)` bytes, every fifth is zeros.
#[derive(Clone)]
pub(super) struct Layer {
    pub(super) toc: Digest,
    extents: Vec<Extent>,
}

impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Layer({} chunks)", self.extents.len())
    }
}

impl Layer {
    pub(super) fn new(count: u32) -> Self {
        let mut offset = 0;
        let extents = (0..count)
            .map(|n| {
                let len = 1 + u64::from(n * 37 % 200);
                let extent = Extent {
                    offset,
                    len,
                    digest: Digest::of(&content(n, len)),
                    zeros: n % 5 == 4,
                };
                offset += len;
                extent
            })
            .collect();
        Self {
            toc: Digest::of(b"toc"),
            extents,
        }
    }
    pub(super) fn bytes(&self, chunk: u32) -> Vec<u8> {
        content(chunk, self.extents[chunk as usize].len)
    }
}

fn content(chunk: u32, len: u64) -> Vec<u8> {
    if chunk % 5 == 4 {
        return vec![0; size(len)];
    }
    // Never a zero, so that a lost write is seen.
    (0..len)
        .map(|n| u8::try_from((u64::from(chunk) * 31 + n) % 250 + 1).unwrap())
        .collect()
}

impl Geometry for Layer {
    fn blob(&self) -> Digest {
        Digest::of(b"blob")
    }
    fn toc(&self) -> Digest {
        self.toc
    }
    fn chunk_count(&self) -> u32 {
        u32::try_from(self.extents.len()).unwrap()
    }
    fn data_len(&self) -> u64 {
        self.extents.iter().map(|extent| extent.len).sum()
    }
    fn extent(&self, chunk: u32) -> Result<Extent, String> {
        let extent = self.extents.get(chunk as usize);
        extent.copied().ok_or_else(|| "past the end".to_owned())
    }
}
