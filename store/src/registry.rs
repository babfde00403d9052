//! Talks to registries: manifests, small blobs, and ranges of large ones.
//!
//! Invariants: `Authorization` is never sent to another host than the one it is for; only the scheduler
//! (crate::fetch) asks for ranges of layer blobs, except the TOC reads of crate::image and what [`ahead`] is told to ask
//! for before the layer is known.

mod ahead;
mod auth;
mod challenge;
mod credentials;
mod errand;
mod error;
mod range;
mod redirects;
pub mod reference;
mod transport;

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::future::try_join_all;
use tokio::sync::SemaphorePermit;

use self::{
    ahead::Shelf,
    auth::Auth,
    credentials::Credentials,
    errand::{Errand, Inner},
    redirects::Redirects,
    transport::{Transport, authority, content_type},
};
use crate::{config, digest::Digest, metrics::Metrics};
pub use ahead::{Ahead, Early};
pub use credentials::default_auth_files;
pub use error::{Asked, Failure, Question, RegistryError};
pub use range::RangeBody;
pub(crate) use range::{in_pieces, pieces};
pub use reference::{Reference, ReferenceError, Repository};

/// Largest manifest that is read: the limit that engines have.
pub const MAX_MANIFEST: u64 = 4 << 20;
/// Media types of manifests, the most wanted first.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";
/// Requests for manifests, configs and TOCs under way at once.
const METADATA_REQUESTS: usize = 32;
/// How often metadata is asked for again when that can help, after how long.
const METADATA_RETRIES: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(500)];
/// A registry that wants to be left alone for longer than this is not waited for: somebody waits for the lookup.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// A client for all registries; cheap to clone, shares connections, tokens and redirects.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

/// A manifest or index as the registry sent it, its digest verified where it was asked for by digest.
#[derive(Debug, Clone)]
pub struct RawManifest {
    /// Its media type (header, or the field of the document).
    pub media_type: String,
    /// sha256 of `bytes`.
    pub digest: Digest,
    /// The document.
    pub bytes: Bytes,
}

/// What a request for the end of a blob brought.
#[derive(Debug, Clone)]
pub struct Tail {
    /// Offset of the first byte in the blob.
    pub offset: u64,
    /// The bytes up to the blob's end.
    pub bytes: Bytes,
}

impl Client {
    /// A client with these settings. Reads no file and makes no connection yet.
    pub fn new(config: &config::Registry, metrics: Arc<Metrics>) -> Result<Self, RegistryError> {
        let transport = Transport::new(config).map_err(|failure| {
            let nowhere = Repository {
                host: "registries".to_owned(),
                name: "any".to_owned(),
            };
            Arc::new(Question {
                repository: nowhere,
                asked: Asked::Manifest("any".to_owned()),
            })
            .fails(failure)
        })?;
        let transport = Arc::new(transport);
        let credentials = Credentials::new(config);
        Ok(Self {
            inner: Arc::new(Inner {
                auth: Arc::new(Auth::new(
                    credentials,
                    Arc::clone(&transport),
                    Arc::clone(&metrics),
                )),
                transport,
                redirects: Redirects::default(),
                metrics,
                shelf: Shelf::default(),
                metadata: tokio::sync::Semaphore::new(METADATA_REQUESTS),
            }),
        })
    }

    /// Whether answers for this repository come over a connection that proves who speaks (TLS), or from this machine.
    #[must_use]
    pub fn is_verified(&self, repository: &Repository) -> bool {
        reference::is_loopback(repository.api_host())
            || self
                .inner
                .transport
                .base(repository)
                .is_ok_and(|base| base.scheme() == "https")
    }

    /// The manifest (or index) that a reference names. Anonymous first; one request where no token is needed.
    pub async fn manifest(&self, reference: &Reference) -> Result<RawManifest, RegistryError> {
        let name = reference.manifest_name();
        self.read_manifest(&reference.repository, name, reference.digest.as_ref())
            .await
    }

    /// A manifest of the same repository by digest (a child of an index).
    pub async fn manifest_by_digest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<RawManifest, RegistryError> {
        self.read_manifest(repository, digest.to_string(), Some(digest))
            .await
    }

    async fn read_manifest(
        &self,
        repository: &Repository,
        name: String,
        expected: Option<&Digest>,
    ) -> Result<RawManifest, RegistryError> {
        let path = format!("manifests/{name}");
        let question = ask(repository, Asked::Manifest(name));
        let mut again = Again::default();
        loop {
            let attempt = self.manifest_once(&question, repository, &path, expected);
            match self.permitted(attempt).await {
                Ok(manifest) => return Ok(manifest),
                Err(error) => again.pause(error).await?,
            }
        }
    }

    async fn manifest_once(
        &self,
        question: &Arc<Question>,
        repository: &Repository,
        path: &str,
        expected: Option<&Digest>,
    ) -> Result<RawManifest, RegistryError> {
        let errand = Errand::metadata(question, repository, path.to_owned(), Some(MANIFEST_TYPES));
        let (url, response) = self.inner.run(&errand).await?;
        let (url, response) = self.inner.data(question, url, response).await?;
        let announced = content_type(response.headers());
        let bytes = self
            .inner
            .body(question, &url, response, MAX_MANIFEST)
            .await?;
        let digest = Digest::of(&bytes);
        if expected.is_some_and(|expected| *expected != digest) {
            self.inner.metrics.verify_failures.inc();
            return Err(question.fails(Failure::Digest {
                host: authority(&url),
                got: digest,
            }));
        }
        Ok(RawManifest {
            media_type: media_type(announced, &bytes),
            digest,
            bytes,
        })
    }

    /// A small blob (an image's config) whole, verified; refuses more than `max` bytes.
    pub async fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        max: u64,
    ) -> Result<Bytes, RegistryError> {
        if let Some(bytes) = self.early_blob(repository, digest, max).await {
            return Ok(bytes);
        }
        let question = ask(repository, Asked::Blob(*digest));
        let mut again = Again::default();
        loop {
            let attempt = self.blob_once(&question, repository, digest, max);
            match self.permitted(attempt).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => again.pause(error).await?,
            }
        }
    }

    /// A blob that was asked for ahead, if it came and is what it should be.
    async fn early_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        max: u64,
    ) -> Option<Bytes> {
        let piece = self.inner.shelf.hand_out_whole(repository, digest)?;
        if piece.range.end > max {
            return None;
        }
        let bytes = piece.collect(piece.range.clone()).await?;
        self.inner.count_bytes(bytes.len());
        (Digest::of(&bytes) == *digest).then_some(bytes)
    }

    async fn blob_once(
        &self,
        question: &Arc<Question>,
        repository: &Repository,
        digest: &Digest,
        max: u64,
    ) -> Result<Bytes, RegistryError> {
        let mut errand = Errand::metadata(question, repository, format!("blobs/{digest}"), None);
        errand.blob = Some(*digest);
        let (url, response) = self.inner.run(&errand).await?;
        let (url, response) = self.inner.data(question, url, response).await?;
        let bytes = self.inner.body(question, &url, response, max).await?;
        let got = Digest::of(&bytes);
        if got != *digest {
            self.inner.metrics.verify_failures.inc();
            return Err(question.fails(Failure::Digest {
                host: authority(&url),
                got,
            }));
        }
        Ok(bytes)
    }

    /// Starts a range request of a blob of `size` bytes and answers when the status line is there.
    ///
    /// The caller counts the request and the bytes of its lane. What else it takes (a redirect, a token) is counted in
    /// lane `metadata`. Nothing is asked for an empty range.
    pub async fn range(
        &self,
        repository: &Repository,
        blob: &Digest,
        size: u64,
        range: Range<u64>,
    ) -> Result<RangeBody, RegistryError> {
        self.open_range(repository, blob, size, &range, true).await
    }

    /// From what was asked for ahead, or from the network.
    async fn open_range(
        &self,
        repository: &Repository,
        blob: &Digest,
        size: u64,
        range: &Range<u64>,
        caller_counts: bool,
    ) -> Result<RangeBody, RegistryError> {
        if let Some(pieces) = self.inner.shelf.hand_out(repository, blob, range) {
            return Ok(RangeBody::of_early(
                self,
                repository,
                (*blob, size),
                range,
                pieces,
            ));
        }
        self.open_network(repository, blob, size, range, caller_counts)
            .await
    }

    async fn open_network(
        &self,
        repository: &Repository,
        blob: &Digest,
        size: u64,
        range: &Range<u64>,
        caller_counts: bool,
    ) -> Result<RangeBody, RegistryError> {
        let inner = &self.inner;
        let question = ask(repository, Asked::Range(*blob, range.clone()));
        let (transport, metrics) = (Arc::clone(&inner.transport), Arc::clone(&inner.metrics));
        if range.end > size {
            return Err(question.fails(Failure::Bounds { size }));
        }
        if range.start >= range.end {
            return Ok(RangeBody::empty(question, transport, metrics));
        }
        let errand = Errand {
            range: Some(range),
            blob: Some(*blob),
            caller_counts: caller_counts.into(),
            ..Errand::metadata(&question, repository, format!("blobs/{blob}"), None)
        };
        let (url, response) = inner.run(&errand).await?;
        RangeBody::take(
            Arc::clone(&question),
            transport,
            metrics,
            &url,
            response,
            size,
            range,
        )
        .await
    }

    /// The last `len` bytes of a blob of known size; the whole blob if it has fewer.
    pub async fn tail(
        &self,
        repository: &Repository,
        blob: &Digest,
        size: u64,
        len: u64,
    ) -> Result<Tail, RegistryError> {
        let offset = size.saturating_sub(len);
        let place = BytesMut::new();
        let bytes = self.piece(repository, blob, size, offset..size, place);
        let bytes = self.permitted(bytes).await?.freeze();
        Ok(Tail { offset, bytes })
    }

    /// A part of a blob of known size, whole and in memory: for TOCs. It is metadata: counted so, under the bound on
    /// requests at once, and asked for again where that can help. A long one is asked for in up to eight pieces at once,
    /// as far as that leaves half of the places to others.
    pub async fn part(
        &self,
        repository: &Repository,
        blob: &Digest,
        size: u64,
        range: Range<u64>,
    ) -> Result<Bytes, RegistryError> {
        let places = &self.inner.metadata;
        // Closing is nobody's habit here, so a permit always comes.
        let _place = places.acquire().await;
        let len = |range: &Range<u64>| range.end.saturating_sub(range.start);
        let spare = places
            .available_permits()
            .saturating_sub(METADATA_REQUESTS / 2);
        let more = pieces(len(&range), range::PIECE).min(spare.saturating_add(1)) - 1;
        let more = places.try_acquire_many(u32::try_from(more).unwrap_or(0));
        let count = 1 + more.as_ref().map_or(0, SemaphorePermit::num_permits);
        let mut rest = BytesMut::with_capacity(usize::try_from(len(&range)).unwrap_or(0));
        let pieces = in_pieces(&range, count).map(|piece| {
            // Each has its place in what becomes the whole again: nothing is copied once more.
            let behind = rest.split_off(usize::try_from(len(&piece)).unwrap_or(0));
            let place = std::mem::replace(&mut rest, behind);
            self.piece(repository, blob, size, piece, place)
        });
        let pieces: Vec<_> = pieces.collect();
        match try_join_all(pieces).await {
            Ok(pieces) => {
                let whole = pieces.into_iter().reduce(|mut whole, piece| {
                    whole.unsplit(piece);
                    whole
                });
                Ok(whole.unwrap_or_default().freeze())
            }
            // Each piece brings all that is before it; the first alone may be near enough.
            Err(error) if count > 1 && error.ignores_ranges() => {
                let place = BytesMut::new();
                let whole = self.piece(repository, blob, size, range, place);
                whole.await.map(BytesMut::freeze)
            }
            Err(error) => Err(error),
        }
    }

    /// One request's worth, put into `place`.
    async fn piece(
        &self,
        repository: &Repository,
        blob: &Digest,
        size: u64,
        range: Range<u64>,
        mut place: BytesMut,
    ) -> Result<BytesMut, RegistryError> {
        let mut again = Again::default();
        loop {
            let once = self.piece_once(repository, blob, size, &range, &mut place);
            match once.await {
                Ok(()) => return Ok(place),
                Err(error) => again.pause(error).await?,
            }
        }
    }

    async fn piece_once(
        &self,
        repository: &Repository,
        blob: &Digest,
        size: u64,
        range: &Range<u64>,
        place: &mut BytesMut,
    ) -> Result<(), RegistryError> {
        let body = self
            .open_range(repository, blob, size, range, false)
            .await?;
        body.collect(place).await?;
        self.inner.count_bytes(place.len());
        Ok(())
    }

    /// Runs a request for metadata when there is room for one.
    async fn permitted<T>(&self, attempt: impl Future<Output = T> + Send) -> T {
        // Closing is nobody's habit here, so a permit always comes.
        let _permit = self.inner.metadata.acquire().await;
        attempt.await
    }
}

/// Asking for metadata again where that can help; bounded in number, so that a lookup ends.
#[derive(Debug, Default)]
struct Again {
    attempts: usize,
}

impl Again {
    /// Waits until the next attempt; gives the error back where none is left or none can help.
    async fn pause(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        let (Some(asked), Some(pause)) = (error.retry(), METADATA_RETRIES.get(self.attempts))
        else {
            return Err(error);
        };
        if asked > LONGEST_WAIT {
            return Err(error);
        }
        self.attempts += 1;
        tracing::debug!(%error, "asking the registry again");
        tokio::time::sleep(asked.max(*pause)).await;
        Ok(())
    }
}

fn ask(repository: &Repository, asked: Asked) -> Arc<Question> {
    Arc::new(Question {
        repository: repository.clone(),
        asked,
    })
}

/// The header's media type where it says something, else the document's own field.
fn media_type(announced: Option<String>, bytes: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Document {
        #[serde(rename = "mediaType")]
        media_type: Option<String>,
    }
    let says_nothing = |media: &str| {
        !media.contains("manifest") && !media.contains("image.index") || !media.ends_with("json")
    };
    match announced {
        Some(media) if !says_nothing(&media) => media,
        announced => serde_json::from_slice::<Document>(bytes)
            .ok()
            .and_then(|document| document.media_type)
            .or(announced)
            .unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_come_from_the_header_or_the_document() {
        let oci = "application/vnd.oci.image.manifest.v1+json";
        let document = format!("{{\"mediaType\":\"{oci}\"}}");
        let read =
            |header: Option<&str>, body: &str| media_type(header.map(Into::into), body.as_bytes());
        assert_eq!(read(Some(oci), "{}"), oci);
        assert_eq!(read(None, &document), oci);
        assert_eq!(read(Some("application/json"), &document), oci);
        assert_eq!(read(Some("application/json"), "{}"), "application/json");
        assert_eq!(read(None, "not json"), "");
        let schema1 = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        assert_eq!(read(Some(schema1), "{}"), schema1);
    }
}
