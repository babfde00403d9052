//! One layer's TOC: from the registry into an index beside the layer's own.

use bytes::{Bytes, BytesMut};

use tokio::sync::SemaphorePermit;

use super::{Resolver, Usable};
use crate::{
    digest::Digest,
    format::{self, Annotated, footer, footer::TocPlace, toc},
    image::{LookupError, manifest::Descriptor, staged::Place},
    registry::{self, Repository},
};

/// A compressed TOC, with the room that it takes.
struct Section<'a> {
    place: TocPlace,
    bytes: Bytes,
    /// Bytes of the blob that were read for it.
    read: (u64, u64),
    room: Option<SemaphorePermit<'a>>,
}

impl Resolver {
    /// Whether unannotated layers are looked into: only where configured, and only over a connection that proves who
    /// answers, since nothing else binds the TOC to the layer (invariant 2).
    pub(super) fn may_probe(&self, repository: &Repository) -> bool {
        self.lookup.probe_unannotated && self.client.is_verified(repository)
    }

    /// Builds one layer's index, unless it is served already. `Ok(None)`: an ordinary layer.
    pub(super) async fn layer(
        &self,
        repository: &Repository,
        layer: &Descriptor,
        lazy: Result<Option<Annotated>, String>,
    ) -> Result<Option<Usable>, LookupError> {
        let refused = |why: String| LookupError::Refused {
            blob: layer.digest,
            why,
        };
        let annotated = lazy.map_err(refused)?;
        if annotated.is_none() && !self.may_probe(repository) {
            return Ok(None);
        }
        if let Some(served) = self.served(repository, layer, annotated.as_ref())? {
            return Ok(served);
        }
        let section = match self.section(repository, layer, annotated.as_ref()).await? {
            Ok(found) => found,
            // Looked at because probing is on, and an ordinary layer after all.
            Err(_) if annotated.is_none() => return Ok(None),
            Err(why) => return Err(refused(why)),
        };
        if let Some(annotated) = &annotated
            && annotated.format != section.place.format
        {
            return Err(refused(format!(
                "it is announced as {:?}, but its footer says {:?}",
                annotated.format, section.place.format
            )));
        }
        let expected = annotated.map(|annotated| annotated.toc);
        self.build(section, layer, expected).await.map(Some)
    }

    /// The answer for a layer that is served already, by whatever image it came; `None` if it is not.
    ///
    /// One image must not decide for another: what this manifest says of the blob has to be what is served.
    fn served(
        &self,
        repository: &Repository,
        layer: &Descriptor,
        annotated: Option<&Annotated>,
    ) -> Result<Option<Option<Usable>>, LookupError> {
        let Some(served) = (self.known)(&layer.digest) else {
            return Ok(None);
        };
        let refused = |why: String| LookupError::Refused {
            blob: layer.digest,
            why,
        };
        let (facts, sources) = (&served.facts, &served.sources);
        let usable = Usable {
            toc: facts.toc,
            content: served.content,
            staged: None,
            toc_bytes: None,
        };
        if annotated.is_none() && !sources.contains(repository) {
            // Nothing in this manifest binds a TOC, so only what this very repository supplied counts as found here.
            return Ok(Some(None));
        }
        if layer.size != facts.size {
            return Err(refused(format!(
                "the manifest in {repository} says that the blob has {} bytes, but it is already served with {}; one \
                 of the two manifests is wrong",
                layer.size, facts.size
            )));
        }
        if let Some(annotated) = annotated
            && (annotated.toc, annotated.format) != (facts.toc, facts.format)
        {
            return Err(refused(format!(
                "the manifest in {repository} announces TOC {} ({:?}), but the layer is already served with TOC {} ({:?})",
                annotated.toc, annotated.format, facts.toc, facts.format
            )));
        }
        Ok(Some(Some(usable)))
    }

    /// The compressed TOC. The inner error: the layer does not have one that can be read.
    async fn section(
        &self,
        repository: &Repository,
        layer: &Descriptor,
        annotated: Option<&Annotated>,
    ) -> Result<Result<Section<'_>, String>, LookupError> {
        let too_long = |place: &TocPlace| {
            format!(
                "its TOC has {} bytes compressed, more than limits.max_toc_bytes = {}",
                place.len, self.limits.max_toc_bytes
            )
        };
        if let Some(place) = annotated.and_then(|annotated| annotated.place) {
            if place.len > self.limits.max_toc_bytes {
                return Ok(Err(too_long(&place)));
            }
            let room = self.room.section(place.len).await;
            let bytes = self
                .range(repository, layer, place.offset..place.offset + place.len)
                .await?;
            let read = (place.offset, place.offset + place.len);
            return Ok(Ok(Section {
                place,
                bytes,
                read,
                room,
            }));
        }
        let failed = |error: registry::RegistryError| {
            LookupError::of_layer(&layer.digest, repository, &error)
        };
        let wanted = self
            .lookup
            .tail_bytes
            .max(footer::MAX_FOOTER_LEN)
            .min(layer.size);
        let _room = self.room.tail(wanted).await;
        let tail = self
            .client
            .tail(repository, &layer.digest, layer.size, wanted)
            .await
            .map_err(failed)?;
        let place = match footer::parse(&tail.bytes, layer.size) {
            Ok(place) => place,
            Err(error) => return Ok(Err(error.to_string())),
        };
        if place.len > self.limits.max_toc_bytes {
            return Ok(Err(too_long(&place)));
        }
        let room = self.room.section(place.len).await;
        let end = place.offset + place.len;
        let have = tail.offset.max(place.offset);
        let mut section = BytesMut::with_capacity(to_usize(place.len));
        if place.offset < tail.offset {
            section.extend_from_slice(
                &self
                    .range(repository, layer, place.offset..tail.offset.min(end))
                    .await?,
            );
        }
        if have < end {
            let (from, to) = (to_usize(have - tail.offset), to_usize(end - tail.offset));
            section.extend_from_slice(tail.bytes.get(from..to).unwrap_or_default());
        }
        let bytes = section.freeze();
        let read = (place.offset.min(tail.offset), layer.size);
        Ok(Ok(Section {
            place,
            bytes,
            read,
            room,
        }))
    }

    /// Some bytes of a blob, whole.
    async fn range(
        &self,
        repository: &Repository,
        layer: &Descriptor,
        range: std::ops::Range<u64>,
    ) -> Result<Bytes, LookupError> {
        self.client
            .part(repository, &layer.digest, layer.size, range)
            .await
            .map_err(|error| LookupError::of_layer(&layer.digest, repository, &error))
    }

    /// Parses and writes off the async threads.
    async fn build(
        &self,
        section: Section<'_>,
        layer: &Descriptor,
        expected: Option<Digest>,
    ) -> Result<Usable, LookupError> {
        let (blob, size, limits) = (layer.digest, layer.size, self.limits.clone());
        let refused = move |why: String| LookupError::Refused { blob, why };
        let dir = self
            .cache
            .blob_dir(&blob)
            .map_err(|error| refused(error.to_string()))?;
        let Section {
            place,
            bytes,
            read,
            room,
        } = section;
        let processor = self.room.build().await;
        let built = tokio::task::spawn_blocking(move || {
            let _processor = processor;
            let dest = Place::new(&dir);
            let facts =
                toc::build_index(&bytes, &place, blob, size, expected, &limits, dest.path())
                    .map_err(|error| refused(error.to_string()))?;
            let index = format::LayerIndex::open(dest.path(), false)
                .map_err(|error| refused(error.to_string()))?;
            Ok(Usable {
                toc: facts.toc,
                content: index.data_len(),
                staged: Some(dest.holds(facts)),
                toc_bytes: Some(read),
            })
        });
        let built = built.await;
        drop(room);
        built.unwrap_or_else(|error| Err(refused(format!("building its index failed: {error}"))))
    }
}

/// Positions in a buffer that is in memory.
fn to_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
