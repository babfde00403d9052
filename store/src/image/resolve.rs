//! Reference -> manifest -> TOCs -> index files: the part of a lookup that needs the network.
//!
//! Everything of one image is asked for at the same time: the manifest first, then its config and the TOCs of all
//! lazy layers together. Nothing here remembers anything.

use std::{path::PathBuf, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt as _, future::join_all};

use super::{
    LookupError,
    manifest::{self, Descriptor, Document, Manifest},
    records::RecordedLayer,
};
use crate::{
    cache::Cache,
    config,
    digest::Digest,
    format::{self, Annotated, footer, footer::TocPlace, limits::Limits, toc},
    metrics::{ByLane, Lane, Metrics},
    registry::{self, Reference, Repository},
};

/// No image's config comes near.
const MAX_CONFIG_BYTES: u64 = 8 << 20;
/// The annotation in which eStargz writers leave the size of the uncompressed layer.
const UNCOMPRESSED_SIZE: &str = "io.containers.estargz.uncompressed-size";

/// What became of one layer of the image.
#[derive(Debug, Clone)]
pub(super) enum Verdict {
    /// Its index is on disk.
    Accepted(RecordedLayer),
    /// It announces no lazy format.
    Ordinary,
    /// It was looked at and refused, or could not be read.
    Not(LookupError),
}

/// One layer with every digest an engine may ask for it by.
#[derive(Debug, Clone)]
pub(super) struct Resolved {
    pub(super) blob: Digest,
    /// The TOC digest its annotations announce.
    pub(super) toc: Option<Digest>,
    pub(super) verdict: Verdict,
}

/// All layers of the manifest that lists the digest that was asked for, bottom first.
#[derive(Debug, Clone)]
pub(super) struct Resolution {
    pub(super) repository: Repository,
    pub(super) layers: Vec<Resolved>,
}

/// What is served already of a blob: its TOC's digest and its bytes of content.
pub(super) type Known = Box<dyn Fn(&Digest) -> Option<(Digest, u64)> + Send + Sync>;

/// What resolving needs.
pub(super) struct Resolver {
    pub(super) client: registry::Client,
    pub(super) metrics: Arc<Metrics>,
    pub(super) lookup: config::Lookup,
    pub(super) limits: Limits,
    pub(super) cache: Arc<Cache>,
    /// Answers whether a blob is known already, with its TOC's digest.
    pub(super) known: Known,
}

impl Resolver {
    /// Resolves the image; `key` picks the platform of a multi-arch image, without it this machine's is taken.
    pub(super) async fn resolve(
        &self,
        text: &str,
        key: Option<&Digest>,
    ) -> Result<Resolution, LookupError> {
        let reference: Reference =
            text.parse()
                .map_err(
                    |error: registry::reference::ReferenceError| LookupError::Reference {
                        reference: text.to_owned(),
                        why: error.to_string(),
                    },
                )?;
        let manifest = self.manifest(&reference, text, key).await?;
        let repository = reference.repository;
        let lazy: Vec<Result<Option<Annotated>, String>> = manifest
            .layers
            .iter()
            .map(|layer| {
                format::annotated(&layer.annotations, layer.size).map_err(|error| error.to_string())
            })
            .collect();
        let wanted = |layer: &Result<Option<Annotated>, String>| {
            matches!(layer, Ok(Some(_)))
                || (matches!(layer, Ok(None)) && self.may_probe(&repository))
        };
        if !lazy.iter().any(wanted) {
            return Ok(self.without_network(repository, &manifest, lazy));
        }
        let config = self
            .client
            .blob(&repository, &manifest.config.digest, MAX_CONFIG_BYTES);
        let repeated = manifest.repeated();
        // Boxed: the compiler cannot prove the joined future Send otherwise.
        let mut each = Vec::with_capacity(manifest.layers.len());
        for (layer, lazy) in manifest.layers.iter().zip(lazy) {
            let repeated = repeated.contains(&layer.digest);
            each.push(self.one(text, &repository, layer, lazy, repeated).boxed());
        }
        let layers = join_all(each);
        let (config, layers) = tokio::join!(config, layers);
        let malformed = |error: manifest::ManifestError| LookupError::Manifest {
            reference: text.to_owned(),
            why: error.to_string(),
        };
        let diff_ids =
            manifest::diff_ids(&config.map_err(|error| LookupError::registry(text, &error))?)
                .map_err(malformed)?;
        if diff_ids.len() != manifest.layers.len() {
            return Err(LookupError::Manifest {
                reference: text.to_owned(),
                why: format!(
                    "its config names {} layers, its manifest {}",
                    diff_ids.len(),
                    manifest.layers.len()
                ),
            });
        }
        let layers = layers.into_iter().zip(&manifest.layers).zip(diff_ids).map(
            |(((annotated, outcome), layer), diff_id)| {
                let verdict = match outcome {
                    Ok(Some((toc, content))) => {
                        let size = layer
                            .annotations
                            .get(UNCOMPRESSED_SIZE)
                            .and_then(|text| text.parse().ok())
                            .unwrap_or(content);
                        Verdict::Accepted(RecordedLayer {
                            blob: layer.digest,
                            toc,
                            diff_id,
                            size,
                        })
                    }
                    Ok(None) => Verdict::Ordinary,
                    Err(error) => Verdict::Not(error),
                };
                Resolved {
                    blob: layer.digest,
                    toc: annotated.map(|annotated| annotated.toc),
                    verdict,
                }
            },
        );
        Ok(Resolution {
            layers: layers.collect(),
            repository,
        })
    }

    /// One layer, with what its annotations announce.
    async fn one(
        &self,
        text: &str,
        repository: &Repository,
        layer: &Descriptor,
        lazy: Result<Option<Annotated>, String>,
        repeated: bool,
    ) -> (
        Option<Annotated>,
        Result<Option<(Digest, u64)>, LookupError>,
    ) {
        let announced = lazy.as_ref().ok().cloned().flatten();
        // Only a layer that would be served is a case for refusing.
        if repeated && announced.is_some() {
            let error = LookupError::Repeated {
                reference: text.to_owned(),
                blob: layer.digest,
            };
            return (announced, Err(error));
        }
        let outcome = self.layer(repository, layer, lazy).await;
        (announced, outcome)
    }

    /// The manifest of the platform whose layers include `key`.
    async fn manifest(
        &self,
        reference: &Reference,
        text: &str,
        key: Option<&Digest>,
    ) -> Result<Manifest, LookupError> {
        let failed = |error: registry::RegistryError| LookupError::registry(text, &error);
        let malformed = |error: manifest::ManifestError| LookupError::Manifest {
            reference: text.to_owned(),
            why: error.to_string(),
        };
        let raw = self.client.manifest(reference).await.map_err(failed)?;
        let digests = match manifest::parse(&raw.media_type, &raw.bytes).map_err(malformed)? {
            Document::Manifest(manifest) => return Ok(manifest),
            Document::Index(digests) => digests,
        };
        // The platform of this machine is nearly always the one; the others are asked for only if it is not.
        let mut rest = digests.as_slice();
        while let Some((first, others)) = rest.split_first() {
            let (now, later) = if rest.len() == digests.len() {
                (std::slice::from_ref(first), others)
            } else {
                (rest, &[][..])
            };
            let mut children = Vec::with_capacity(now.len());
            for digest in now {
                children.push(
                    self.client
                        .manifest_by_digest(&reference.repository, digest)
                        .boxed(),
                );
            }
            let children = join_all(children);
            let mut failure = None;
            for child in children.await {
                let child = match child {
                    Ok(child) => child,
                    Err(error) => {
                        failure = Some(failed(error));
                        continue;
                    }
                };
                match manifest::parse(&child.media_type, &child.bytes) {
                    Ok(Document::Manifest(manifest))
                        if key.is_none_or(|key| has(&manifest, key)) =>
                    {
                        return Ok(manifest);
                    }
                    // A child of another kind (an artifact, a nested index) holds no layer an engine asks for.
                    Ok(_) | Err(_) => {}
                }
            }
            if let (Some(failure), true) = (failure, later.is_empty()) {
                return Err(failure);
            }
            rest = later;
        }
        Err(match key {
            Some(key) => LookupError::NotInImage {
                reference: text.to_owned(),
                key: *key,
            },
            None => LookupError::Manifest {
                reference: text.to_owned(),
                why: "its index lists no image".to_owned(),
            },
        })
    }

    /// Verdicts for an image without a lazy layer.
    fn without_network(
        &self,
        repository: Repository,
        manifest: &Manifest,
        lazy: Vec<Result<Option<Annotated>, String>>,
    ) -> Resolution {
        let layers = manifest
            .layers
            .iter()
            .zip(lazy)
            .map(|(layer, lazy)| Resolved {
                blob: layer.digest,
                toc: None,
                verdict: match lazy {
                    Ok(_) => Verdict::Ordinary,
                    Err(why) => Verdict::Not(LookupError::Refused {
                        blob: layer.digest,
                        why,
                    }),
                },
            });
        Resolution {
            layers: layers.collect(),
            repository,
        }
    }

    /// Whether unannotated layers are looked into: only where configured, and only over a connection that proves who
    /// answers, since nothing else binds the TOC to the layer (invariant 2).
    fn may_probe(&self, repository: &Repository) -> bool {
        self.lookup.probe_unannotated && self.client.is_verified(repository)
    }

    /// Brings one layer's index onto the disk. `Ok(None)`: an ordinary layer. Otherwise the TOC's digest and the bytes
    /// of content.
    async fn layer(
        &self,
        repository: &Repository,
        layer: &Descriptor,
        lazy: Result<Option<Annotated>, String>,
    ) -> Result<Option<(Digest, u64)>, LookupError> {
        let refused = |why: String| LookupError::Refused {
            blob: layer.digest,
            why,
        };
        let annotated = lazy.map_err(refused)?;
        if annotated.is_none() && !self.may_probe(repository) {
            return Ok(None);
        }
        if let Some((toc, content)) = (self.known)(&layer.digest) {
            return match &annotated {
                Some(annotated) if annotated.toc != toc => Err(refused(format!(
                    "this manifest announces TOC {}, but the layer is already served with TOC {toc}",
                    annotated.toc
                ))),
                _ => Ok(Some((toc, content))),
            };
        }
        let (place, section) = match self.section(repository, layer, annotated.as_ref()).await? {
            Ok(found) => found,
            // Looked at because probing is on, and an ordinary layer after all.
            Err(_) if annotated.is_none() => return Ok(None),
            Err(why) => return Err(refused(why)),
        };
        if let Some(annotated) = &annotated
            && annotated.format != place.format
        {
            return Err(refused(format!(
                "it is announced as {:?}, but its footer says {:?}",
                annotated.format, place.format
            )));
        }
        let expected = annotated.map(|annotated| annotated.toc);
        let dest = self
            .cache
            .blob_dir(&layer.digest)
            .map_err(|error| refused(error.to_string()))?
            .join("index");
        self.build(section, place, layer, expected, dest)
            .await
            .map(Some)
    }

    /// The compressed TOC. The inner error: the layer does not have one that can be read.
    async fn section(
        &self,
        repository: &Repository,
        layer: &Descriptor,
        annotated: Option<&Annotated>,
    ) -> Result<Result<(TocPlace, Bytes), String>, LookupError> {
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
            let bytes = self
                .range(repository, layer, place.offset..place.offset + place.len)
                .await?;
            return Ok(Ok((place, bytes)));
        }
        let failed = |error: registry::RegistryError| {
            LookupError::of_layer(&layer.digest, repository, &error)
        };
        let wanted = self
            .lookup
            .tail_bytes
            .max(footer::MAX_FOOTER_LEN)
            .min(layer.size);
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
        let end = place.offset + place.len;
        let have = tail.offset.max(place.offset);
        let mut section = BytesMut::new();
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
        Ok(Ok((place, section.freeze())))
    }

    /// Some bytes of a blob, whole.
    async fn range(
        &self,
        repository: &Repository,
        layer: &Descriptor,
        range: std::ops::Range<u64>,
    ) -> Result<Bytes, LookupError> {
        let failed = |error: registry::RegistryError| {
            LookupError::of_layer(&layer.digest, repository, &error)
        };
        let lane = ByLane {
            lane: Lane::Metadata,
        };
        self.metrics.requests.get_or_create(&lane).inc();
        let mut bytes = BytesMut::new();
        let mut body = self
            .client
            .range(repository, &layer.digest, layer.size, range)
            .await
            .map_err(failed)?;
        while let Some(piece) = body.next().await {
            bytes.extend_from_slice(&piece.map_err(failed)?);
        }
        let received = bytes.len() as u64;
        self.metrics
            .fetched_bytes
            .get_or_create(&lane)
            .inc_by(received);
        Ok(bytes.freeze())
    }

    /// Parses and writes off the async threads.
    async fn build(
        &self,
        section: Bytes,
        place: TocPlace,
        layer: &Descriptor,
        expected: Option<Digest>,
        dest: PathBuf,
    ) -> Result<(Digest, u64), LookupError> {
        let (blob, size, limits) = (layer.digest, layer.size, self.limits.clone());
        let refused = move |why: String| LookupError::Refused { blob, why };
        let built = tokio::task::spawn_blocking(move || {
            let facts = toc::build_index(&section, &place, blob, size, expected, &limits, &dest)
                .map_err(|error| refused(error.to_string()))?;
            let index = format::LayerIndex::open(&dest, false)
                .map_err(|error| refused(error.to_string()))?;
            Ok((facts.toc, index.data_len()))
        });
        built
            .await
            .unwrap_or_else(|error| Err(refused(format!("building its index failed: {error}"))))
    }
}

/// Whether an engine that asks for `key` means a layer of this image.
fn has(manifest: &Manifest, key: &Digest) -> bool {
    manifest.layers.iter().any(|layer| {
        layer.digest == *key
            || format::annotated(&layer.annotations, layer.size)
                .is_ok_and(|a| a.is_some_and(|a| a.toc == *key))
    })
}

/// Positions in a buffer that is in memory.
fn to_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
