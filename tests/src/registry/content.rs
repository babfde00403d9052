//! What the registry serves: blobs in memory or in files, manifests, tags. Shared and changeable while it runs.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::RwLock;
use sha2::{Digest as _, Sha256};

use crate::fixtures::Image;

/// Images; cheap to clone, all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Content {
    inner: Arc<RwLock<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    blobs: HashMap<String, Blob>,
    manifests: HashMap<String, (String, Bytes)>,
    /// (repository, tag) -> manifest digest.
    tags: HashMap<(String, String), String>,
}

/// A blob's bytes.
#[derive(Debug, Clone)]
pub(super) enum Blob {
    Memory(Bytes),
    File { file: Arc<File>, size: u64 },
}

/// The digest of some bytes, as text.
#[must_use]
pub fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

impl Content {
    /// Adds a blob and returns its digest.
    pub fn add_blob(&self, bytes: impl Into<Bytes>) -> String {
        let bytes = bytes.into();
        let digest = digest_of(&bytes);
        self.add_blob_as(&digest, bytes);
        digest
    }

    /// Adds bytes under a digest that need not be theirs.
    pub fn add_blob_as(&self, digest: &str, bytes: impl Into<Bytes>) {
        let blob = Blob::Memory(bytes.into());
        self.inner.write().blobs.insert(digest.to_owned(), blob);
    }

    /// Adds a file as a blob and returns its digest. The file is read when it is asked for.
    pub fn add_blob_file(&self, path: &Path) -> io::Result<String> {
        let name = |e: io::Error| {
            io::Error::new(e.kind(), format!("{}: {e}", PathBuf::from(path).display()))
        };
        let mut file = File::open(path).map_err(name)?;
        let mut hash = Sha256::new();
        let size = io::copy(&mut file, &mut HashWriter(&mut hash)).map_err(name)?;
        let digest = format!("sha256:{}", hex::encode(hash.finalize()));
        let blob = Blob::File {
            file: Arc::new(file),
            size,
        };
        self.inner.write().blobs.insert(digest.clone(), blob);
        Ok(digest)
    }

    /// Adds a file under a digest that need not be its own. Nothing of it is read before it is asked for: it may be as
    /// long as a sparse file can be.
    ///
    /// # Errors
    /// When it cannot be opened; with its path.
    pub fn add_blob_file_as(&self, digest: &str, path: &Path) -> io::Result<()> {
        let name = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        let file = File::open(path).map_err(name)?;
        let size = file.metadata().map_err(name)?.len();
        let file = Arc::new(file);
        let blob = Blob::File { file, size };
        self.inner.write().blobs.insert(digest.to_owned(), blob);
        Ok(())
    }

    /// Adds a manifest or index and returns its digest.
    pub fn add_manifest(&self, media_type: &str, bytes: impl Into<Bytes>) -> String {
        let bytes = bytes.into();
        let digest = digest_of(&bytes);
        self.inner
            .write()
            .manifests
            .insert(digest.clone(), (media_type.to_owned(), bytes));
        digest
    }

    /// Makes `repository:tag` name a manifest.
    pub fn tag(&self, repository: &str, tag: &str, digest: &str) {
        let key = (repository.to_owned(), tag.to_owned());
        self.inner.write().tags.insert(key, digest.to_owned());
    }

    /// Adds all blobs and manifests of an image and makes `repository:tag` name it. Returns its digest.
    pub fn add_image(&self, repository: &str, tag: &str, image: &Image) -> String {
        for (digest, bytes) in &image.blobs {
            self.add_blob_as(digest, bytes.clone());
        }
        for manifest in &image.manifests {
            self.add_manifest(&manifest.media_type, manifest.bytes.clone());
        }
        let digest = image.root().digest.clone();
        self.tag(repository, tag, &digest);
        digest
    }

    /// Whether a blob is there.
    #[must_use]
    pub fn has_blob(&self, digest: &str) -> bool {
        self.blob(digest).is_some()
    }

    /// Takes a blob away.
    pub fn remove_blob(&self, digest: &str) {
        self.inner.write().blobs.remove(digest);
    }

    pub(super) fn blob(&self, digest: &str) -> Option<Blob> {
        self.inner.read().blobs.get(digest).cloned()
    }

    /// A manifest by tag or digest: digest, media type, document.
    pub(super) fn manifest(&self, repository: &str, name: &str) -> Option<(String, String, Bytes)> {
        let inner = self.inner.read();
        let tag = (repository.to_owned(), name.to_owned());
        let digest = inner.tags.get(&tag).map_or(name, String::as_str);
        let (media_type, bytes) = inner.manifests.get(digest)?;
        Some((digest.to_owned(), media_type.clone(), bytes.clone()))
    }

    /// Tags of a repository.
    pub(super) fn tags(&self, repository: &str) -> Vec<String> {
        let inner = self.inner.read();
        let mut tags: Vec<_> = inner
            .tags
            .keys()
            .filter(|(name, _)| name == repository)
            .map(|(_, tag)| tag.clone())
            .collect();
        tags.sort();
        tags
    }
}

impl Blob {
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { size, .. } => *size,
        }
    }

    /// At most `len` bytes from `offset`; none at the end.
    pub(super) fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let left = self.size().saturating_sub(offset);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(len);
        match self {
            Self::Memory(bytes) => {
                let start = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                Ok(bytes.slice(start..start + len))
            }
            Self::File { file, .. } => {
                let mut bytes = vec![0; len];
                file.read_exact_at(&mut bytes, offset)?;
                Ok(bytes.into())
            }
        }
    }
}

struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
