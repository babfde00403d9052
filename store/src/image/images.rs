//! All images and layers the store knows, and the lookups of engines.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use super::{
    LookupError,
    flights::{Flights, Landed},
    layer::Layer,
    records::{ImageRecord, Records},
    registrar::{Registrar, Tables},
    resolve::{self, Resolution, Resolver, Room, Served, Verdict},
};
use crate::{
    cache::Cache,
    config,
    digest::Digest,
    format::limits::Limits,
    metrics::{ByLookup, LookupResult, Metrics},
    registry,
};

/// How long "an ordinary layer" is known without asking the registry again. It is keyed by digest, so it stays true;
/// the bound is for memory.
const ORDINARY_REMEMBERED: Duration = Duration::from_secs(600);

/// How long an image that is expected may take: nobody waits for it.
const EXPECTED: Duration = Duration::from_secs(3600);

/// Why a reference is resolved; flights of one kind and reference are shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flight {
    /// An engine looks a layer of it up.
    Image,
    /// An engine looks up this layer, which the image's flight does not list.
    Layer(Digest),
    /// An engine is about to.
    Expected,
    /// Somebody wants to know what it means at this moment: not what a tag meant before.
    Now,
}

impl Flight {
    fn name(self, reference: &str) -> String {
        match self {
            Self::Image => reference.to_owned(),
            Self::Layer(key) => format!("{reference} {key}"),
            Self::Expected => format!("expected {reference}"),
            Self::Now => format!("now {reference}"),
        }
    }
}

/// What an engine gets for (reference, digest): everything `info` says, and the tree.
#[derive(Debug, Clone)]
pub struct Record {
    /// The reference as the engine wrote it (decoded).
    pub reference: String,
    /// The digest it asked with: of the blob, or of the TOC.
    pub key: Digest,
    /// The layer.
    pub layer: Arc<Layer>,
    /// The `info` document, ready to be read.
    pub info: bytes::Bytes,
}

/// An image of which at least one layer is served.
#[derive(Debug)]
pub struct Image {
    /// The layers of its newest resolution, bottom first; ordinary layers are not among them.
    pub layers: Vec<Arc<Layer>>,
    pub(super) keys: HashMap<Digest, Arc<Record>>,
    pub(super) record: ImageRecord,
}

impl Image {
    /// What engines call it.
    #[must_use]
    pub fn reference(&self) -> &str {
        &self.record.reference
    }
}

/// Told of every lookup that is served, with the image and whether an engine asked: its pull has begun, or is expected.
pub type OnLookup = Box<dyn Fn(&Arc<Image>, bool) + Send + Sync>;

/// Told of every lookup that must ask the registry, with the reference and the digest that is looked up.
pub type OnSearch = Box<dyn Fn(&str, &Digest) + Send + Sync>;

/// All images and layers the store knows.
pub struct Images {
    pub(super) tables: Arc<Tables>,
    registrar: Registrar,
    resolver: Arc<Resolver>,
    flights: Flights<Result<Arc<Resolution>, LookupError>>,
    on_lookup: OnceLock<OnLookup>,
    on_search: OnceLock<OnSearch>,
    config: config::Lookup,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Images({} layers)", self.tables.by_slot.len())
    }
}

impl Images {
    /// Loads all records from disk; needs no network.
    ///
    /// # Errors
    /// [`LookupError::Disk`] when the state directory cannot be read. Single records that are damaged are reported
    /// and left out.
    pub fn open(
        state: &Path,
        config: &config::Lookup,
        limits: &Limits,
        cache: Arc<Cache>,
        client: registry::Client,
        metrics: Arc<Metrics>,
    ) -> Result<Self, LookupError> {
        let records = Records::open(state).map_err(|error| LookupError::Disk(error.to_string()))?;
        let tables = Arc::new(Tables::default());
        let registrar = Registrar::start(
            records,
            Arc::clone(&cache),
            Arc::clone(&tables),
            Arc::clone(&metrics),
        )?;
        let known = {
            let tables = Arc::clone(&tables);
            move |blob: &Digest| {
                tables.by_blob.get(blob).map(|layer| Served {
                    facts: layer.index.facts().clone(),
                    content: layer.index.data_len(),
                    sources: layer.sources(),
                })
            }
        };
        let resolver = Resolver {
            client,
            lookup: config.clone(),
            limits: limits.clone(),
            cache,
            known: Box::new(known),
            room: Room::new(),
        };
        Ok(Self {
            tables,
            registrar,
            resolver: Arc::new(resolver),
            flights: Flights::new(),
            on_lookup: OnceLock::new(),
            on_search: OnceLock::new(),
            config: config.clone(),
            metrics,
        })
    }

    /// Sets who is told of lookups; once.
    pub fn on_lookup(&self, told: OnLookup) {
        let _ = self.on_lookup.set(told);
    }

    /// Sets who is told that a registry is asked; once.
    pub fn on_search(&self, told: OnSearch) {
        let _ = self.on_search.set(told);
    }

    /// What is already known of (reference, digest): memory only, never waits.
    #[must_use]
    pub fn recorded(&self, reference: &str, key: &Digest) -> Option<Arc<Record>> {
        self.tables
            .by_reference
            .get(reference)?
            .keys
            .get(key)
            .map(Arc::clone)
    }

    /// The only lookup that may wait (at most `lookup.timeout`): resolves the whole image once, however many layers
    /// are asked for at the same time.
    ///
    /// # Errors
    /// Whatever it is, the engine is to pull normally.
    pub async fn lookup(&self, reference: &str, key: &Digest) -> Result<Arc<Record>, LookupError> {
        let outcome = self.find(reference, key).await;
        let result = outcome
            .as_ref()
            .map_or_else(LookupError::result, |_| LookupResult::Served);
        self.metrics
            .lookups
            .get_or_create(&ByLookup { result })
            .inc();
        match &outcome {
            Ok(_) => self.tell(reference, true),
            Err(error) if result == LookupResult::No => {
                tracing::debug!(%error, "the engine is to pull normally");
            }
            Err(error) => tracing::warn!(reference, %key, %error, "the engine is to pull normally"),
        }
        outcome
    }

    /// An engine is about to look this image up, by this digest or another of its layers: its lookups then find it
    /// resolved, or on its way. Answers whether it is there; what went wrong is nobody's failure, and not remembered.
    pub async fn expect(&self, reference: &str, key: &Digest) -> bool {
        let expected = self.fly(Flight::Expected, reference, Some(key)).await;
        match expected {
            Ok(_) => self.tell(reference, false),
            Err(error) => tracing::debug!(reference, %key, %error, "an image that was expected"),
        }
        self.image(reference).is_some()
    }

    fn tell(&self, reference: &str, asked: bool) {
        if let (Some(told), Some(image)) = (self.on_lookup.get(), self.image(reference)) {
            told(&image, asked);
        }
    }

    async fn find(&self, reference: &str, key: &Digest) -> Result<Arc<Record>, LookupError> {
        if let Some(record) = self.recorded(reference, key) {
            return Ok(record);
        }
        if let Some(told) = self.on_search.get() {
            told(reference, key);
        }
        let after = self.config.timeout;
        let found = tokio::time::timeout(after, self.search(reference, key)).await;
        found.unwrap_or_else(|_| {
            Err(LookupError::Timeout {
                reference: reference.to_owned(),
                after,
            })
        })
    }

    async fn search(&self, reference: &str, key: &Digest) -> Result<Arc<Record>, LookupError> {
        let not_in_image = || LookupError::NotInImage {
            reference: reference.to_owned(),
            key: *key,
        };
        let found = |resolution: &Resolution| {
            let verdict = verdict(resolution, reference, key)?;
            Some(verdict.and_then(|()| self.recorded(reference, key).ok_or_else(not_in_image)))
        };
        // What came of expecting the image counts where it says what the layer is; its failures, and what it took, are
        // its own.
        let (expected, after) = (Flight::Expected.name(reference), self.config.timeout);
        match self.flights.existing(&expected, after).await {
            Some(Landed::Outcome(Ok(resolution))) => match found(&resolution) {
                Some(Ok(record)) => return Ok(record),
                Some(Err(error)) if error.result() == LookupResult::No => return Err(error),
                Some(Err(_)) | None => {}
            },
            Some(Landed::Outcome(Err(_)) | Landed::Lost | Landed::Late) | None => {}
        }
        // A flight for another platform's layer of the same index does not list this one: then one of its own follows.
        for flight in [Flight::Image, Flight::Layer(*key)] {
            let resolution = match self.fly(flight, reference, Some(key)).await {
                Ok(resolution) => resolution,
                Err(LookupError::NotInImage { key: other, .. }) if other != *key => continue,
                Err(error) => return Err(error),
            };
            if let Some(found) = found(&resolution) {
                return found;
            }
        }
        Err(not_in_image())
    }

    async fn fly(
        &self,
        flight: Flight,
        reference: &str,
        key: Option<&Digest>,
    ) -> Result<Arc<Resolution>, LookupError> {
        let (mut after, retry_delay) = (self.config.timeout, self.config.retry_delay);
        if flight == Flight::Expected {
            after = EXPECTED;
        }
        let remember = move |outcome: &Result<Arc<Resolution>, LookupError>| match (outcome, flight)
        {
            // Asked for now: it says what a tag means at this moment and nothing else.
            (_, Flight::Now) => Duration::ZERO,
            (Ok(resolution), _)
                if resolution
                    .layers
                    .iter()
                    .all(|layer| !matches!(layer.verdict, Verdict::Not(_))) =>
            {
                ORDINARY_REMEMBERED
            }
            (_, Flight::Expected) => Duration::ZERO,
            _ => retry_delay,
        };
        let (resolver, registrar) = (Arc::clone(&self.resolver), self.registrar.clone());
        let (text, key) = (reference.to_owned(), key.copied());
        let name = flight.name(reference);
        let flying = self
            .flights
            .join(&name, after, remember, move || async move {
                let (mut resolution, staged) = resolver.resolve(&text, key.as_ref()).await?;
                // Not an outcome to remember: the tag may be pushed to the next moment.
                if let Some(key) = key
                    && verdict(&resolution, &text, &key).is_none()
                {
                    return Err(LookupError::NotInImage {
                        reference: text,
                        key,
                    });
                }
                if !resolution.accepted().is_empty() {
                    let refused = registrar.register(&text, &resolution, staged).await?;
                    for (blob, error) in &refused {
                        resolution.refuse(blob, error);
                    }
                }
                Ok(Arc::new(resolution))
            });
        match flying.await {
            Landed::Outcome(outcome) => outcome,
            Landed::Lost => Err(LookupError::Disk(
                "the resolution ended without an outcome".to_owned(),
            )),
            Landed::Late => Err(LookupError::Timeout {
                reference: reference.to_owned(),
                after,
            }),
        }
    }

    /// The newest image of this name, asked for now: what `forelayer prefetch` needs of an image that no engine has
    /// pulled yet. Short names mean what they mean to engines, and are recorded under the full one as engines write it.
    ///
    /// # Errors
    /// Also when none of its layers can be served.
    pub async fn resolve(&self, reference: &str) -> Result<Arc<Image>, LookupError> {
        let reference = resolve::parse(reference)?.to_string();
        let reference = reference.as_str();
        let resolution = self.fly(Flight::Now, reference, None).await?;
        if let Some(image) = self.image(reference) {
            return Ok(image);
        }
        let refused = resolution
            .layers
            .iter()
            .find_map(|layer| match &layer.verdict {
                Verdict::Not(error) => Some(error.clone()),
                Verdict::Accepted(_) | Verdict::Ordinary => None,
            });
        Err(refused.unwrap_or_else(|| LookupError::Manifest {
            reference: reference.to_owned(),
            why: "none of its layers is annotated as eStargz or zstd:chunked".to_owned(),
        }))
    }

    /// The image of this name, if any of its layers is served.
    #[must_use]
    pub fn image(&self, reference: &str) -> Option<Arc<Image>> {
        self.tables
            .by_reference
            .get(reference)
            .map(|image| Arc::clone(&image))
    }

    /// All images, by name.
    #[must_use]
    pub fn images(&self) -> Vec<Arc<Image>> {
        let mut images: Vec<_> = self
            .tables
            .by_reference
            .iter()
            .map(|image| Arc::clone(&image))
            .collect();
        images.sort_by(|a, b| a.reference().cmp(b.reference()));
        images
    }

    /// The layer in a slot.
    #[must_use]
    pub fn layer(&self, slot: u32) -> Option<Arc<Layer>> {
        self.tables
            .by_slot
            .get(&slot)
            .map(|layer| Arc::clone(&layer))
    }

    /// All layers, in slot order.
    #[must_use]
    pub fn layers(&self) -> Vec<Arc<Layer>> {
        let mut layers: Vec<_> = self
            .tables
            .by_slot
            .iter()
            .map(|layer| Arc::clone(&layer))
            .collect();
        layers.sort_by_key(|layer| layer.slot);
        layers
    }
}

/// What a resolution says of a digest; `None`: it does not list it.
fn verdict(
    resolution: &Resolution,
    reference: &str,
    key: &Digest,
) -> Option<Result<(), LookupError>> {
    let layer = resolution
        .layers
        .iter()
        .find(|layer| layer.blob == *key || layer.toc == Some(*key))?;
    Some(match &layer.verdict {
        Verdict::Accepted(_) => Ok(()),
        Verdict::Ordinary => Err(LookupError::Ordinary {
            reference: reference.to_owned(),
            key: *key,
        }),
        Verdict::Not(error) => Err(error.clone()),
    })
}
