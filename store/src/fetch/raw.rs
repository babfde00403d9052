//! The raw bytes of a blob, for an engine that saves or pushes the image.

use std::sync::Arc;

use bytes::Bytes;

use super::FetchError;
use crate::{
    image::Layer,
    metrics::{ByLane, Lane, Metrics},
    registry::{self, RegistryError},
};

/// A blob from some offset to its end, not verified: whoever needs the whole checks the whole digest.
#[derive(Debug)]
pub struct RawBody {
    body: registry::RangeBody,
    metrics: Arc<Metrics>,
}

impl RawBody {
    pub(super) async fn open(
        client: &registry::Client,
        layer: &Layer,
        from: u64,
        metrics: Arc<Metrics>,
    ) -> Result<Self, FetchError> {
        let facts = layer.index.facts();
        let mut why = "no registry is known that has it; pull the image again".to_owned();
        for source in layer.sources() {
            let lane = ByLane { lane: Lane::Raw };
            metrics.requests.get_or_create(&lane).inc();
            let range = from.min(facts.size)..facts.size;
            match client.range(&source, &facts.blob, facts.size, range).await {
                Ok(body) => return Ok(Self { body, metrics }),
                Err(error) => why = error.to_string(),
            }
        }
        Err(FetchError::Raw {
            layer: facts.blob,
            why: why.into(),
        })
    }

    /// The next piece; `None` at the blob's end. A body that ends early is an error.
    pub async fn next(&mut self) -> Option<Result<Bytes, RegistryError>> {
        let piece = self.body.next().await;
        if let Some(Ok(bytes)) = &piece {
            let lane = ByLane { lane: Lane::Raw };
            let counter = self.metrics.fetched_bytes.get_or_create(&lane);
            counter.inc_by(bytes.len() as u64);
        }
        piece
    }
}
