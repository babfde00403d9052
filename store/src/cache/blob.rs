//! The cached chunks of one blob.
//!
//! Keeps invariant 1 for its two files: data first, then memory, then the map on disk. Readers never take a lock.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use super::{
    CacheError, ChunkState, Extent, Geometry,
    disk::{Disk, DiskFile},
    gate::Gate,
    presence::{Header, Presence},
};
use crate::digest::Digest;

/// Bytes hashed at a time when a chunk is proved.
const PROVE_STEP: u64 = 1 << 20;

/// The cached chunks of one blob.
#[derive(Debug)]
pub struct BlobCache {
    disk: Arc<dyn Disk>,
    data_path: PathBuf,
    present_path: PathBuf,
    geometry: Arc<dyn Geometry>,
    header: Header,
    presence: Presence,
    gate: Arc<Gate>,
    /// Opened at the first use: a node with thousands of idle layers must not hold thousands of descriptors.
    data: OnceLock<Box<dyn DiskFile>>,
    present: OnceLock<Box<dyn DiskFile>>,
    /// What is on disk is of no use; the first commit starts anew. Only writers, on the decode pool, take this lock;
    /// the first holds it while it makes the two files.
    stale: Mutex<bool>,
    dirty: AtomicBool,
}

impl BlobCache {
    /// Reads the presence map of a blob, if there is a usable one.
    pub(super) fn load(
        disk: Arc<dyn Disk>,
        dir: &Path,
        geometry: Arc<dyn Geometry>,
        epoch: u128,
        gate: Arc<Gate>,
    ) -> Result<Self, CacheError> {
        let header = Header {
            blob: geometry.blob(),
            toc: geometry.toc(),
            chunks: geometry.chunk_count(),
            epoch,
        };
        let data_path = dir.join("data");
        let present_path = dir.join("present");
        let found = match disk.read(&present_path) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(CacheError::io("read", &present_path)(error)),
        };
        let loaded = found.and_then(|bytes| {
            let usable = Presence::load(&bytes, &header).and_then(|loaded| {
                match disk.len(&data_path) {
                    Ok(len) if len == geometry.data_len() => Ok(loaded),
                    Ok(len) => Err(format!(
                        "the data file has {len} bytes instead of {}",
                        geometry.data_len()
                    )),
                    Err(error) => Err(format!("the data file cannot be used: {error}")),
                }
            });
            usable
                .inspect_err(|why| {
                    tracing::warn!(path = %present_path.display(), %why, "presence map not used; the layer's chunks are fetched again");
                })
                .ok()
        });
        let stale = loaded.is_none();
        let mut rewrite = false;
        let presence = match loaded {
            Some(loaded) => {
                if loaded.damaged_blocks > 0 {
                    tracing::warn!(
                        path = %present_path.display(),
                        blocks = loaded.damaged_blocks,
                        "presence map damaged in places; those chunks are fetched again, the others checked again"
                    );
                }
                rewrite = loaded.other_epoch || loaded.damaged_blocks > 0;
                loaded.presence
            }
            None => Presence::empty(header.chunks),
        };
        if rewrite {
            // In this epoch's file, so that what is proved from now on stays proved; and damage must not be seen as
            // harmless by the next start.
            if let Err(error) = disk.replace(&present_path, &presence.file(&header), false) {
                // A full disk, mostly. The layer is served all the same; what is proved is proved again next time.
                tracing::warn!(path = %present_path.display(), %error, "presence map not written anew");
            }
        }
        Ok(Self {
            disk,
            data_path,
            present_path,
            geometry,
            header,
            presence,
            gate,
            data: OnceLock::new(),
            present: OnceLock::new(),
            stale: Mutex::new(stale),
            dirty: AtomicBool::new(false),
        })
    }

    /// Digest of the TOC that numbers its chunks.
    pub(super) fn toc(&self) -> Digest {
        self.header.toc
    }

    /// State of a chunk; past the end it is missing. Lock-free.
    #[must_use]
    pub fn state(&self, chunk: u32) -> ChunkState {
        self.presence.get(chunk)
    }

    /// Whether every chunk of the range is [`ChunkState::Present`]. Lock-free.
    #[must_use]
    pub fn all_present(&self, chunks: Range<u32>) -> bool {
        self.presence.all_present(chunks)
    }

    /// Hashes an unproven chunk; true: it is `Present` now, false: it is `Missing` now.
    pub fn prove(&self, chunk: u32) -> Result<bool, CacheError> {
        let _pass = self.gate.enter()?;
        if self.state(chunk) != ChunkState::Unproven {
            return Ok(self.state(chunk) == ChunkState::Present);
        }
        let extent = self.extent(chunk)?;
        let to = if self.matches(&extent)? {
            ChunkState::Present
        } else {
            tracing::info!(layer = %self.header.blob, chunk, "lost at an unclean stop; it is fetched again");
            ChunkState::Missing
        };
        if self.presence.set(chunk, Some(ChunkState::Unproven), to) {
            self.write_map(chunk..chunk + 1);
        }
        Ok(self.state(chunk) == ChunkState::Present)
    }

    /// Writes verified chunks that follow each other, `decoded` being the bytes of all of them, and sets their bits. The
    /// caller has checked the digests. None is marked present if it fails.
    pub fn commit(&self, chunks: Range<u32>, decoded: &[u8]) -> Result<(), CacheError> {
        let Some(first) = chunks.clone().next() else {
            return Ok(());
        };
        let offset = self.extent(first)?.offset;
        let mut len = 0_u64;
        for chunk in chunks.clone() {
            let extent = self.extent(chunk)?;
            if Some(extent.offset) != offset.checked_add(len) {
                let what = format!("it does not follow chunk {} in the data file", chunk - 1);
                return Err(self.chunk_error(chunk, what));
            }
            len = len.saturating_add(extent.len);
        }
        if len != decoded.len() as u64 {
            return Err(
                self.chunk_error(first, format!("{} bytes instead of {len}", decoded.len()))
            );
        }
        self.write(chunks, |data| data.write_at(decoded, offset))
    }

    /// Marks a zeros chunk present: a hole in the data file.
    pub fn commit_zeros(&self, chunk: u32) -> Result<(), CacheError> {
        let extent = self.extent(chunk)?;
        if !extent.zeros {
            return Err(self.chunk_error(chunk, "it is no run of zeros".to_owned()));
        }
        // The place may hold what an unclean stop left behind.
        self.write(chunk..chunk + 1, |data| {
            data.punch(extent.offset, extent.len)
        })
    }

    /// Fills `buf` from the data file at `data_offset`. The caller has checked that its chunks are present.
    pub fn read_at(&self, data_offset: u64, buf: &mut [u8]) -> Result<(), CacheError> {
        self.data(false)?
            .read_at(buf, data_offset)
            .map_err(CacheError::io("read", &self.data_path))
    }

    /// Chunks present and their decoded bytes. Walks all chunks unless all or none are here.
    #[must_use]
    pub fn progress(&self) -> (u32, u64) {
        let present = self.presence.present();
        if present == 0 {
            return (0, 0);
        }
        if present == self.header.chunks {
            return (present, self.geometry.data_len());
        }
        (0..self.header.chunks)
            .filter(|chunk| self.state(*chunk) == ChunkState::Present)
            .fold((0, 0), |(count, bytes), chunk| {
                let len = self.geometry.extent(chunk).map_or(0, |extent| extent.len);
                (count + 1, bytes + len)
            })
    }

    /// Waits until data and map are on disk.
    pub(super) fn sync(&self) -> Result<(), CacheError> {
        if !self.dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        self.data(false)?
            .sync()
            .map_err(CacheError::io("sync", &self.data_path))?;
        self.present()?
            .sync()
            .map_err(CacheError::io("sync", &self.present_path))
    }

    fn write(
        &self,
        chunks: Range<u32>,
        put: impl FnOnce(&dyn DiskFile) -> std::io::Result<()>,
    ) -> Result<(), CacheError> {
        let _pass = self.gate.enter()?;
        if self.all_present(chunks.clone()) {
            return Ok(());
        }
        self.start_anew_if_stale()?;
        self.dirty.store(true, Ordering::Release);
        put(self.data(true)?).map_err(CacheError::io("write", &self.data_path))?;
        for chunk in chunks.clone() {
            self.presence.set(chunk, None, ChunkState::Present);
        }
        self.write_map(chunks);
        Ok(())
    }

    /// Brings the map's blocks of chunks to disk. Without a lock: whoever writes looks afterwards whether memory has
    /// changed meanwhile, so that the last one to write has written what memory says.
    ///
    /// A failure is only logged: memory says the truth, and on disk at worst the chunks are fetched or hashed again.
    fn write_map(&self, chunks: Range<u32>) {
        self.dirty.store(true, Ordering::Release);
        let Some(last) = chunks.clone().next_back() else {
            return;
        };
        for block in Presence::block_of(chunks.start)..=Presence::block_of(last) {
            let mut bytes = self.presence.block(block);
            loop {
                let written = self.present().and_then(|file| {
                    file.write_at(&bytes, Presence::block_offset(block))
                        .map_err(CacheError::io("write", &self.present_path))
                });
                if let Err(error) = written {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        layer = %self.header.blob,
                        ?chunks,
                        "after a restart these chunks are fetched or checked again"
                    );
                    return;
                }
                let now = self.presence.block(block);
                if now == bytes {
                    break;
                }
                bytes = now;
            }
        }
    }

    fn start_anew_if_stale(&self) -> Result<(), CacheError> {
        let mut stale = self.stale.lock();
        if *stale {
            let data = self.data(true)?;
            // Also when it has the right length: nothing of it may show through.
            data.set_len(0)
                .and_then(|()| data.set_len(self.geometry.data_len()))
                .map_err(CacheError::io("resize", &self.data_path))?;
            self.disk
                .replace(&self.present_path, &self.presence.file(&self.header), false)
                .map_err(CacheError::io("write", &self.present_path))?;
            *stale = false;
        }
        Ok(())
    }

    fn matches(&self, extent: &Extent) -> Result<bool, CacheError> {
        let mut hash = Sha256::new();
        let mut buf = vec![0; usize::try_from(extent.len.min(PROVE_STEP)).unwrap_or(0)];
        let mut done = 0;
        while done < extent.len {
            let step = (extent.len - done).min(PROVE_STEP);
            let piece = &mut buf[..usize::try_from(step).unwrap_or(0)];
            self.read_at(extent.offset + done, piece)?;
            if extent.zeros && piece.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            hash.update(&*piece);
            done += step;
        }
        Ok(extent.zeros || Digest::from_bytes(hash.finalize().into()) == extent.digest)
    }

    fn extent(&self, chunk: u32) -> Result<Extent, CacheError> {
        self.geometry
            .extent(chunk)
            .map_err(|what| self.chunk_error(chunk, what))
    }

    fn chunk_error(&self, chunk: u32, what: String) -> CacheError {
        CacheError::Chunk {
            blob: self.header.blob,
            chunk,
            what,
        }
    }

    fn data(&self, create: bool) -> Result<&dyn DiskFile, CacheError> {
        open_once(&self.data, self.disk.as_ref(), &self.data_path, create)
    }

    fn present(&self) -> Result<&dyn DiskFile, CacheError> {
        open_once(&self.present, self.disk.as_ref(), &self.present_path, false)
    }
}

fn open_once<'a>(
    cell: &'a OnceLock<Box<dyn DiskFile>>,
    disk: &dyn Disk,
    path: &Path,
    create: bool,
) -> Result<&'a dyn DiskFile, CacheError> {
    if let Some(file) = cell.get() {
        return Ok(file.as_ref());
    }
    let file = disk
        .open(path, create)
        .map_err(CacheError::io("open", path))?;
    // Two may open it at once; one descriptor is kept.
    Ok(cell.get_or_init(|| file).as_ref())
}
