//! What the registrar does: compares what images say of a layer, opens layers, keeps records.

use std::{collections::HashMap, path::Path, sync::Arc};

use super::{Refused, Request, Tables};
use crate::{
    cache::Cache,
    format::LayerIndex,
    image::{
        LookupError,
        images::{Image, Record},
        info,
        layer::Layer,
        records::{BlobMeta, ImageRecord, RecordError, RecordedLayer, Records},
        staged::{self, Staged},
    },
    metrics::Metrics,
    registry::Repository,
};

/// The registrar's own state.
pub(super) struct Desk {
    pub(super) records: Records,
    pub(super) cache: Arc<Cache>,
    pub(super) tables: Arc<Tables>,
    pub(super) metrics: Arc<Metrics>,
    /// The highest slot that was given away, as far as that can be read.
    pub(super) highest_slot: u32,
}

impl Desk {
    /// Fills the tables from disk. What cannot be read is reported and left out.
    pub(super) fn load(&mut self) -> Result<(), RecordError> {
        let check = !self.cache.trusted();
        let mut unreadable = 0_u32;
        for dir in self.records.blob_dirs()? {
            if let Err(error) = staged::sweep(&dir) {
                tracing::warn!(dir = %dir.display(), %error, "an unfinished index stays on disk");
            }
            let meta = match self.records.meta(&dir) {
                Ok(Some(meta)) => meta,
                // An index whose registration never came: the next lookup registers it.
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(%error, "a layer is left out; pull its image again to repair it");
                    unreadable = unreadable.saturating_add(1);
                    continue;
                }
            };
            // Also of a layer that cannot be opened: containers may still hold inodes with this number.
            self.highest_slot = self.highest_slot.max(meta.slot);
            let opened = LayerIndex::open(&dir.join("index"), check)
                .map_err(|error| error.to_string())
                .and_then(|index| {
                    own(&index, &dir, &meta)?;
                    let index = Arc::new(index);
                    let cache = self.cache.blob(&index).map_err(|error| error.to_string())?;
                    Ok(Arc::new(Layer::new(meta.slot, index, cache, meta.sources)))
                });
            match opened {
                Ok(layer) => self.enter(layer),
                Err(why) => {
                    tracing::warn!(dir = %dir.display(), why, "a layer is left out; pull its image again to repair it");
                }
            }
        }
        // Slots are given out one by one, so those that cannot be read are at most so far above the others. This counts
        // only where slots.json is lost too.
        self.highest_slot = self.highest_slot.saturating_add(unreadable);
        let (images, errors) = self.records.images()?;
        for error in errors {
            tracing::warn!(%error, "an image's record is left out");
        }
        for record in images {
            let image = self.image(record);
            self.tables
                .by_reference
                .insert(image.record.reference.clone(), Arc::new(image));
        }
        Ok(())
    }

    /// See [`super::Registrar::register`].
    pub(super) fn register(&mut self, request: &Request) -> Result<Refused, LookupError> {
        let disk = |error: RecordError| LookupError::Disk(error.to_string());
        let (mut taken, mut refused) = (Vec::new(), Refused::new());
        for accepted in &request.accepted {
            let known = self
                .tables
                .by_blob
                .get(&accepted.blob)
                .map(|layer| Arc::clone(&layer));
            let staged = request
                .staged
                .iter()
                .find(|staged| staged.facts.blob == accepted.blob);
            let outcome = match known {
                Some(layer) => self.share(&layer, accepted, staged, &request.repository),
                None => self.open_new(accepted, staged, &request.repository),
            };
            match outcome {
                Ok(()) => taken.push(*accepted),
                Err(error @ LookupError::Refused { .. }) => refused.push((accepted.blob, error)),
                Err(error) => return Err(error),
            }
        }
        if taken.is_empty() {
            return Ok(refused);
        }
        let before = self
            .tables
            .by_reference
            .get(&request.reference)
            .map(|image| Arc::clone(&image));
        let mut record = before.as_ref().map_or_else(
            || ImageRecord::new(&request.reference),
            |image| image.record.clone(),
        );
        record.accept(&taken);
        record.config = request.config.or(record.config);
        if before.is_none_or(|before| before.record != record) {
            self.records.put_image(&record).map_err(disk)?;
            let image = self.image(record);
            self.tables
                .by_reference
                .insert(request.reference.clone(), Arc::new(image));
        }
        Ok(refused)
    }

    /// Another image with a layer that is served. It may have become one while this image's TOC was on its way, so
    /// what the two images say is compared here, where nobody else registers.
    fn share(
        &self,
        layer: &Layer,
        accepted: &RecordedLayer,
        staged: Option<&Staged>,
        repository: &Repository,
    ) -> Result<(), LookupError> {
        let facts = layer.index.facts();
        let other = staged.is_some_and(|staged| {
            (staged.facts.size, staged.facts.format) != (facts.size, facts.format)
        });
        if accepted.toc != facts.toc || other {
            return Err(LookupError::Refused {
                blob: accepted.blob,
                why: format!(
                    "the image in {repository} has it with TOC {} and {} bytes, but it is already served with TOC {} \
                     and {} bytes, which stay",
                    accepted.toc,
                    staged.map_or(facts.size, |staged| staged.facts.size),
                    facts.toc,
                    facts.size
                ),
            });
        }
        if layer.add_source(repository) {
            self.put_meta(layer)?;
        }
        Ok(())
    }

    fn open_new(
        &mut self,
        accepted: &RecordedLayer,
        staged: Option<&Staged>,
        repository: &Repository,
    ) -> Result<(), LookupError> {
        let disk = |error: RecordError| LookupError::Disk(error.to_string());
        let refused = |why: String| LookupError::Refused {
            blob: accepted.blob,
            why,
        };
        let Some(staged) = staged.filter(|staged| staged.facts.toc == accepted.toc) else {
            return Err(refused(format!(
                "no index with TOC {} was built for it",
                accepted.toc
            )));
        };
        let dir = self
            .cache
            .blob_dir(&accepted.blob)
            .map_err(|error| LookupError::Disk(error.to_string()))?;
        let path = dir.join("index");
        // A layer that was left out at the start keeps its slot: the kernel may know inodes with it. So it keeps its
        // TOC too, or those inodes would mean other files.
        let (slot, mut sources) = match self.meta(&dir)? {
            Some(meta) => {
                let toc = meta.toc.or_else(|| {
                    let index = LayerIndex::open(&path, false).ok()?;
                    Some(index.facts().toc)
                });
                if let Some(toc) = toc.filter(|toc| *toc != accepted.toc) {
                    return Err(refused(format!(
                        "the image in {repository} has it with TOC {}, but it was served with TOC {toc} before; if \
                         that was wrong, stop the store and remove {}",
                        accepted.toc,
                        dir.display()
                    )));
                }
                (meta.slot, meta.sources)
            }
            None => (
                self.records.take_slot(self.highest_slot).map_err(disk)?,
                Vec::new(),
            ),
        };
        self.highest_slot = self.highest_slot.max(slot);
        staged.put(&path).map_err(|error| {
            LookupError::Disk(format!(
                "cannot put index {} in place: {error}",
                path.display()
            ))
        })?;
        let index =
            Arc::new(LayerIndex::open(&path, false).map_err(|error| refused(error.to_string()))?);
        let cache = self
            .cache
            .blob(&index)
            .map_err(|error| LookupError::Disk(error.to_string()))?;
        if !sources.contains(repository) {
            sources.push(repository.clone());
        }
        let layer = Arc::new(Layer::new(slot, index, cache, sources));
        self.put_meta(&layer)?;
        self.enter(layer);
        Ok(())
    }

    /// What is kept of a blob. A meta that cannot be read is set aside: with its slot unknown the layer gets a new one,
    /// and nothing that the kernel may know of the old one comes to mean something else.
    fn meta(&self, dir: &Path) -> Result<Option<BlobMeta>, LookupError> {
        let disk = |error: RecordError| LookupError::Disk(error.to_string());
        match self.records.meta(dir) {
            Err(error @ RecordError::Malformed { .. }) => {
                let aside = self.records.set_meta_aside(dir).map_err(disk)?;
                tracing::warn!(%error, aside = %aside.display(), "the layer gets a new slot");
                Ok(None)
            }
            other => other.map_err(disk),
        }
    }

    fn put_meta(&self, layer: &Layer) -> Result<(), LookupError> {
        let dir = self
            .cache
            .blob_dir(layer.blob())
            .map_err(|error| LookupError::Disk(error.to_string()))?;
        let meta = BlobMeta::new(layer.slot, layer.index.facts().toc, layer.sources());
        self.records
            .put_meta(&dir, &meta)
            .map_err(|error| LookupError::Disk(error.to_string()))
    }

    fn enter(&self, layer: Arc<Layer>) {
        self.tables.by_slot.insert(layer.slot, Arc::clone(&layer));
        self.tables.by_blob.insert(*layer.blob(), layer);
        self.metrics
            .layers
            .set(i64::try_from(self.tables.by_slot.len()).unwrap_or(i64::MAX));
    }

    /// The image with everything an engine may ask of it, from what is in the tables.
    fn image(&self, record: ImageRecord) -> Image {
        let mut keys = HashMap::new();
        for recorded in &record.layers {
            let Some(layer) = self
                .tables
                .by_blob
                .get(&recorded.blob)
                .map(|layer| Arc::clone(&layer))
            else {
                continue;
            };
            if layer.index.facts().toc != recorded.toc {
                tracing::warn!(
                    image = record.reference,
                    layer = %recorded.blob,
                    recorded = %recorded.toc,
                    served = %layer.index.facts().toc,
                    "a layer is left out of an image that had it with another TOC; pull the image again"
                );
                continue;
            }
            for key in [recorded.blob, recorded.toc] {
                let facts = info::Facts {
                    key,
                    blob: layer.index.facts(),
                    diff_id: recorded.diff_id,
                    size: recorded.size,
                };
                let info = info::document(&facts).into();
                keys.insert(
                    key,
                    Arc::new(Record {
                        reference: record.reference.clone(),
                        key,
                        layer: Arc::clone(&layer),
                        info,
                    }),
                );
            }
        }
        let current = record.current.iter().filter_map(|blob| {
            // Only what was not left out above.
            keys.get(blob).map(|record| Arc::clone(&record.layer))
        });
        let layers = current.collect();
        Image {
            layers,
            keys,
            record,
        }
    }
}

/// Whether an index is that of the directory it lies in, and the one it was registered with.
fn own(index: &LayerIndex, dir: &Path, meta: &BlobMeta) -> Result<(), String> {
    let facts = index.facts();
    if dir
        .file_name()
        .is_none_or(|name| name.to_string_lossy() != facts.blob.hex())
    {
        return Err(format!("its index is that of layer {}", facts.blob));
    }
    match meta.toc {
        Some(toc) if toc != facts.toc => Err(format!(
            "it was registered with TOC {toc}, but its index has TOC {}",
            facts.toc
        )),
        _ => Ok(()),
    }
}
