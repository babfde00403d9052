//! Reference -> manifest -> TOCs -> index files: the part of a lookup that needs the network.
//!
//! Everything of one image is asked for at the same time: the manifest first, then its config and the TOCs of all
//! lazy layers together. Nothing here remembers anything.

mod room;
mod toc;

use std::sync::Arc;

use futures_util::{FutureExt as _, StreamExt as _, future::join_all, stream};

pub(super) use room::Room;

use super::{
    LookupError,
    manifest::{self, Descriptor, Document, Manifest},
    records::RecordedLayer,
    staged::Staged,
};
use crate::{
    cache::Cache,
    config,
    digest::Digest,
    format::{self, Annotated, index::BlobFacts, limits::Limits},
    registry::{self, Reference, Repository},
};

/// No image's config comes near.
const MAX_CONFIG_BYTES: u64 = 8 << 20;
/// Children of an index asked for at once: each may have as many bytes as a manifest may have.
const CHILDREN_AT_ONCE: usize = 8;
/// The annotation in which eStargz writers leave the size of the uncompressed layer.
const UNCOMPRESSED_SIZE: &str = "io.containers.estargz.uncompressed-size";

/// What became of one layer of the image.
#[derive(Debug, Clone)]
pub(super) enum Verdict {
    /// It can be served: its index is on disk.
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
    /// Digest and bytes of the image's config, where it was read.
    pub(super) config: Option<(Digest, u64)>,
    pub(super) layers: Vec<Resolved>,
}

impl Resolution {
    /// What can be served of the image, bottom first.
    pub(super) fn accepted(&self) -> Vec<RecordedLayer> {
        let accepted = self.layers.iter().filter_map(|layer| match layer.verdict {
            Verdict::Accepted(recorded) => Some(recorded),
            Verdict::Ordinary | Verdict::Not(_) => None,
        });
        accepted.collect()
    }

    /// Takes back what was said of a layer.
    pub(super) fn refuse(&mut self, blob: &Digest, error: &LookupError) {
        for layer in self.layers.iter_mut().filter(|layer| layer.blob == *blob) {
            layer.verdict = Verdict::Not(error.clone());
        }
    }

    /// TOCs that were found only by looking show only now that one stands for two layers.
    fn refuse_repeated(&mut self, text: &str) {
        let accepted = self.accepted().into_iter();
        let accepted = accepted.map(|layer| (layer.blob, Some(layer.toc)));
        for blob in manifest::repeated(accepted) {
            let error = LookupError::Repeated {
                reference: text.to_owned(),
                blob,
            };
            self.refuse(&blob, &error);
        }
    }
}

/// What is served already of a blob.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) facts: BlobFacts,
    /// Bytes of content.
    pub(super) content: u64,
    pub(super) sources: Vec<Repository>,
}

/// Answers what is served already of a blob.
pub(super) type Known = Box<dyn Fn(&Digest) -> Option<Served> + Send + Sync>;

/// A layer that can be served.
#[derive(Debug)]
struct Usable {
    toc: Digest,
    /// Bytes of content.
    content: u64,
    /// Its index; `None` where the layer is served already.
    staged: Option<Staged>,
    /// Bytes of the blob that were read for its TOC.
    toc_bytes: Option<(u64, u64)>,
}

/// What resolving needs.
pub(super) struct Resolver {
    pub(super) client: registry::Client,
    pub(super) lookup: config::Lookup,
    pub(super) limits: Limits,
    pub(super) cache: Arc<Cache>,
    pub(super) known: Known,
    pub(super) room: Room,
}

impl Resolver {
    /// Resolves the image; `key` picks the platform of a multi-arch image, without it this machine's is taken. The
    /// second half of the answer are the indexes of layers that are not served yet, for the registrar to put in place.
    pub(super) async fn resolve(
        &self,
        text: &str,
        key: Option<&Digest>,
    ) -> Result<(Resolution, Vec<Staged>), LookupError> {
        let reference = parse(text)?;
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
            let resolution = self.without_network(repository, &manifest, lazy);
            return Ok((resolution, Vec::new()));
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
        let mut staged = Vec::new();
        let layers = layers.into_iter().zip(&manifest.layers).zip(diff_ids).map(
            |(((annotated, outcome), layer), diff_id)| {
                let verdict = match outcome {
                    Ok(Some(usable)) => {
                        staged.extend(usable.staged);
                        let size = layer
                            .annotations
                            .get(UNCOMPRESSED_SIZE)
                            .and_then(|text| text.parse().ok())
                            .unwrap_or(usable.content);
                        Verdict::Accepted(RecordedLayer {
                            blob: layer.digest,
                            toc: usable.toc,
                            diff_id,
                            size,
                            toc_bytes: usable.toc_bytes,
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
        let mut resolution = Resolution {
            layers: layers.collect(),
            config: Some((manifest.config.digest, manifest.config.size)),
            repository,
        };
        resolution.refuse_repeated(text);
        Ok((resolution, staged))
    }

    /// One layer, with what its annotations announce.
    async fn one(
        &self,
        text: &str,
        repository: &Repository,
        layer: &Descriptor,
        lazy: Result<Option<Annotated>, String>,
        repeated: bool,
    ) -> (Option<Annotated>, Result<Option<Usable>, LookupError>) {
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
        let (first, others) = digests.split_at(digests.len().min(1));
        let mut failure = None;
        for group in [first, others] {
            // Made and boxed one by one: the compiler cannot prove the stream Send otherwise.
            let mut asking = Vec::with_capacity(group.len());
            for digest in group {
                asking.push(self.child(&reference.repository, text, digest, key).boxed());
            }
            let mut children = stream::iter(asking).buffered(CHILDREN_AT_ONCE);
            while let Some(child) = children.next().await {
                match child {
                    Ok(Some(manifest)) => return Ok(manifest),
                    Ok(None) => {}
                    Err(error) => failure = Some(error),
                }
            }
        }
        if let Some(failure) = failure {
            return Err(failure);
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

    /// A child of an index; `None` if it is not the image that is meant, so that nothing of it stays in memory.
    async fn child(
        &self,
        repository: &Repository,
        text: &str,
        digest: &Digest,
        key: Option<&Digest>,
    ) -> Result<Option<Manifest>, LookupError> {
        let child = self
            .client
            .manifest_by_digest(repository, digest)
            .await
            .map_err(|error| LookupError::registry(text, &error))?;
        Ok(match manifest::parse(&child.media_type, &child.bytes) {
            Ok(Document::Manifest(manifest)) if key.is_none_or(|key| has(&manifest, key)) => {
                Some(manifest)
            }
            // A child of another kind (an artifact, a nested index) holds no layer an engine asks for.
            Ok(_) | Err(_) => None,
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
            config: None,
            repository,
        }
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

/// The reference that a text is.
pub(super) fn parse(text: &str) -> Result<Reference, LookupError> {
    text.parse()
        .map_err(|error: registry::ReferenceError| LookupError::Reference {
            reference: text.to_owned(),
            why: error.to_string(),
        })
}
