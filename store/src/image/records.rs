//! What is known of images, on disk (docs/formats.md, "Records"): so that a restart needs no network and a moved tag
//! takes nothing away from an image that is in use.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{digest::Digest, registry::Repository};

/// Version of all three documents.
const SCHEMA: u32 = 1;
/// No record of ours comes near; protects memory from a damaged or hostile file.
const MAX_BYTES: u64 = 16 << 20;

/// `<state>/images/<sha256 of the reference>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    schema: u32,
    /// The reference as engines write it.
    pub reference: String,
    /// Blob digests of the layers that were accepted at the last resolution, bottom first.
    pub current: Vec<Digest>,
    /// Every layer that was ever accepted under this reference.
    pub layers: Vec<RecordedLayer>,
    /// The config of the last resolution: digest and bytes. Missing in records of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<(Digest, u64)>,
}

/// A layer of an image, as far as the image decides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedLayer {
    /// Digest of the compressed blob.
    pub blob: Digest,
    /// Digest of its TOC.
    pub toc: Digest,
    /// Digest of the uncompressed layer according to the image's config.
    pub diff_id: Digest,
    /// Uncompressed bytes (see [`super::info::Facts::size`]).
    pub size: u64,
    /// Where the blob's TOC was read: the first byte and the byte behind the last. Missing in records of earlier
    /// versions, and where the layer was served already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toc_bytes: Option<(u64, u64)>,
}

/// `blobs/sha256/<hex>/meta.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobMeta {
    schema: u32,
    /// Slot on the data mounts.
    pub slot: u32,
    /// Digest of the TOC it is served with. The slot's inode numbers mean nodes of this one and no other. Missing in
    /// metas of earlier versions.
    #[serde(default)]
    pub toc: Option<Digest>,
    /// Repositories that hold the blob, in the order in which they came.
    pub sources: Vec<Repository>,
}

/// `<state>/slots.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Slots {
    schema: u32,
    next: u32,
}

/// Why a record cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file cannot be read or written.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not a record of this version.
    #[error("record {path} cannot be used: {why}; remove the file to let the store learn it anew")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// All numbers are given away.
    #[error("all {0} layer slots of {1} were used; start with an empty state directory")]
    SlotsUsedUp(u32, PathBuf),
}

impl ImageRecord {
    /// An image nothing is known of yet.
    #[must_use]
    pub fn new(reference: &str) -> Self {
        Self {
            schema: SCHEMA,
            reference: reference.to_owned(),
            current: Vec::new(),
            layers: Vec::new(),
            config: None,
        }
    }

    /// Takes in what a resolution accepted, bottom first.
    pub fn accept(&mut self, layers: &[RecordedLayer]) {
        self.current = layers.iter().map(|layer| layer.blob).collect();
        for layer in layers {
            match self
                .layers
                .iter_mut()
                .find(|known| known.blob == layer.blob)
            {
                Some(known) => {
                    let toc_bytes = layer.toc_bytes.or(known.toc_bytes);
                    *known = RecordedLayer {
                        toc_bytes,
                        ..*layer
                    };
                }
                None => self.layers.push(*layer),
            }
        }
    }
}

impl BlobMeta {
    /// What is kept of a layer.
    #[must_use]
    pub const fn new(slot: u32, toc: Digest, sources: Vec<Repository>) -> Self {
        Self {
            schema: SCHEMA,
            slot,
            toc: Some(toc),
            sources,
        }
    }
}

/// Reads and writes the three documents. Every write is atomic and durable.
#[derive(Debug, Clone)]
pub struct Records {
    state: PathBuf,
}

impl Records {
    /// Records below a state directory; makes the folder of images.
    pub fn open(state: &Path) -> Result<Self, RecordError> {
        let images = state.join("images");
        fs::create_dir_all(&images).map_err(|source| RecordError::Io {
            what: "make",
            path: images,
            source,
        })?;
        Ok(Self {
            state: state.to_owned(),
        })
    }

    /// All images, and the files that could not be read.
    pub fn images(&self) -> Result<(Vec<ImageRecord>, Vec<RecordError>), RecordError> {
        let dir = self.state.join("images");
        let (mut records, mut errors) = (Vec::new(), Vec::new());
        for path in list(&dir)? {
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read::<ImageRecord>(&path)
                .and_then(|record| check(record.schema, &path).map(|()| record))
            {
                Ok(record) => records.push(record),
                Err(error) => errors.push(error),
            }
        }
        Ok((records, errors))
    }

    /// Keeps an image.
    pub fn put_image(&self, record: &ImageRecord) -> Result<(), RecordError> {
        let name = format!("{}.json", Digest::of(record.reference.as_bytes()).hex());
        write(&self.state.join("images").join(name), record)
    }

    /// What is kept beside a blob; `None` if there is nothing.
    pub fn meta(&self, blob_dir: &Path) -> Result<Option<BlobMeta>, RecordError> {
        let path = blob_dir.join("meta.json");
        match read::<BlobMeta>(&path) {
            Ok(meta) => check(meta.schema, &path).map(|()| Some(meta)),
            Err(RecordError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Keeps it.
    pub fn put_meta(&self, blob_dir: &Path, meta: &BlobMeta) -> Result<(), RecordError> {
        write(&blob_dir.join("meta.json"), meta)
    }

    /// Makes way for a new meta where the one that is there cannot be read; answers where the old one is now.
    pub fn set_meta_aside(&self, blob_dir: &Path) -> Result<PathBuf, RecordError> {
        let (path, aside) = (blob_dir.join("meta.json"), blob_dir.join("meta.json.bad"));
        fs::rename(&path, &aside).map_err(|source| RecordError::Io {
            what: "rename",
            path,
            source,
        })?;
        Ok(aside)
    }

    /// Directories of all blobs.
    pub fn blob_dirs(&self) -> Result<Vec<PathBuf>, RecordError> {
        let dir = self.state.join("blobs/sha256");
        match list(&dir) {
            Err(RecordError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(Vec::new())
            }
            other => other,
        }
    }

    /// A slot that was never given away before, also not in an earlier life. `used` is the highest one that metas may
    /// name: a `slots.json` that is lost or damaged must not bring an old number back.
    pub fn take_slot(&self, used: u32) -> Result<u32, RecordError> {
        let path = self.state.join("slots.json");
        let slots =
            read::<Slots>(&path).and_then(|slots| check(slots.schema, &path).map(|()| slots.next));
        let next = match slots {
            Ok(next) => next,
            Err(RecordError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => 1,
            Err(error @ RecordError::Malformed { .. }) => {
                tracing::warn!(
                    %error,
                    file = %path.display(),
                    above = used,
                    "it is written anew, with the next slot above those of all layers"
                );
                1
            }
            Err(error) => return Err(error),
        };
        let slot = next.max(used.saturating_add(1)).max(1);
        // The kernel has 32 bits for it in an inode number, and the last one is kept free.
        if slot == u32::MAX {
            return Err(RecordError::SlotsUsedUp(u32::MAX - 1, self.state.clone()));
        }
        write(
            &path,
            &Slots {
                schema: SCHEMA,
                next: slot + 1,
            },
        )?;
        Ok(slot)
    }
}

fn check(schema: u32, path: &Path) -> Result<(), RecordError> {
    if schema == SCHEMA {
        return Ok(());
    }
    Err(RecordError::Malformed {
        path: path.to_owned(),
        why: format!("schema {schema}, this version knows {SCHEMA}"),
    })
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, RecordError> {
    let failed = |source| RecordError::Io {
        what: "list",
        path: dir.to_owned(),
        source,
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    Ok(paths)
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, RecordError> {
    let failed = |source| RecordError::Io {
        what: "read",
        path: path.to_owned(),
        source,
    };
    let bytes = fs::metadata(path).map_err(failed)?.len();
    if bytes > MAX_BYTES {
        return Err(RecordError::Malformed {
            path: path.to_owned(),
            why: format!("{bytes} bytes, more than {MAX_BYTES}"),
        });
    }
    let bytes = fs::read(path).map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(|error| RecordError::Malformed {
        path: path.to_owned(),
        why: error.to_string(),
    })
}

fn write<T: Serialize>(path: &Path, document: &T) -> Result<(), RecordError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        serde_json::to_writer_pretty(&mut file, document)?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        fs::File::open(dir)?.sync_all()
    };
    write().map_err(|source| RecordError::Io {
        what: "write",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn layer(name: &str) -> RecordedLayer {
        let digest = Digest::of(name.as_bytes());
        RecordedLayer {
            blob: digest,
            toc: digest,
            diff_id: digest,
            size: 7,
            toc_bytes: None,
        }
    }

    #[test]
    fn a_moved_tag_keeps_the_layers_of_the_old_image() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let mut image = ImageRecord::new("localhost:5000/a:latest");
        image.accept(&[layer("base"), layer("old")]);
        image.accept(&[layer("base"), layer("new")]);
        records.put_image(&image).unwrap();
        let (images, errors) = Records::open(dir.path()).unwrap().images().unwrap();
        assert!(errors.is_empty());
        assert_eq!(images, [image.clone()]);
        assert_eq!(image.current, [layer("base").blob, layer("new").blob]);
        assert_eq!(image.layers.len(), 3);
    }

    #[test]
    fn slots_are_never_given_twice() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        assert_eq!(records.take_slot(0).unwrap(), 1);
        assert_eq!(records.take_slot(0).unwrap(), 2);
        fs::remove_file(dir.path().join("slots.json")).unwrap();
        assert_eq!(records.take_slot(2).unwrap(), 3);
        for damaged in ["{", "", r#"{"schema":9,"next":1}"#] {
            fs::write(dir.path().join("slots.json"), damaged).unwrap();
            assert_eq!(records.take_slot(7).unwrap(), 8);
            assert_eq!(records.take_slot(0).unwrap(), 9, "it is whole again");
        }
    }

    #[test]
    fn a_damaged_record_is_reported_and_the_others_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        records.put_image(&ImageRecord::new("a/b:c")).unwrap();
        fs::write(
            dir.path().join("images/zz.json"),
            r#"{"schema":9,"reference":"x","current":[],"layers":[]}"#,
        )
        .unwrap();
        fs::write(dir.path().join("images/yy.json"), "not json").unwrap();
        let (images, errors) = records.images().unwrap();
        assert_eq!((images.len(), errors.len()), (1, 2));
        assert!(
            errors
                .iter()
                .any(|error| error.to_string().contains("schema 9")),
            "{errors:?}"
        );
    }
}
