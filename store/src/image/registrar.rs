//! The one writer of records and of the tables in memory: gives out slots, keeps metas and images. A thread of its
//! own, so that nobody holds a lock while the disk works.

mod desk;

use std::{sync::Arc, thread};

use dashmap::DashMap;
use tokio::sync::{mpsc, oneshot};

use self::desk::Desk;
use super::{
    LookupError,
    images::Image,
    layer::Layer,
    records::{RecordError, RecordedLayer, Records},
    resolve::Resolution,
    staged::Staged,
};
use crate::{cache::Cache, digest::Digest, metrics::Metrics, registry::Repository};

/// What everybody reads; only the registrar writes.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) by_reference: DashMap<String, Arc<Image>>,
    pub(super) by_blob: DashMap<Digest, Arc<Layer>>,
    pub(super) by_slot: DashMap<u32, Arc<Layer>>,
}

/// The registrar's thread ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub(super) struct Registrar {
    requests: mpsc::UnboundedSender<Request>,
}

#[derive(Debug)]
struct Request {
    reference: String,
    repository: Repository,
    accepted: Vec<RecordedLayer>,
    config: Option<(Digest, u64)>,
    staged: Vec<Staged>,
    reply: oneshot::Sender<Result<Refused, LookupError>>,
}

/// Layers that cannot be what an image says they are.
pub(super) type Refused = Vec<(Digest, LookupError)>;

impl Registrar {
    /// Fills the tables from disk and starts the thread. What cannot be read is reported and left out.
    pub(super) fn start(
        records: Records,
        cache: Arc<Cache>,
        tables: Arc<Tables>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, LookupError> {
        let disk = |error: RecordError| LookupError::Disk(error.to_string());
        let mut desk = Desk {
            records,
            cache,
            tables,
            metrics,
            highest_slot: 0,
        };
        desk.load().map_err(disk)?;
        let (requests, mut receiver) = mpsc::unbounded_channel::<Request>();
        let run = move || {
            while let Some(request) = receiver.blocking_recv() {
                let outcome = desk.register(&request);
                let Request { staged, reply, .. } = request;
                // Who hears the answer finds nothing unfinished on disk.
                drop(staged);
                // A receiver that is gone belongs to a store that stops.
                let _ = reply.send(outcome);
            }
        };
        thread::Builder::new()
            .name("registrar".to_owned())
            .spawn(run)
            .map_err(|error| LookupError::Disk(format!("cannot start the registrar: {error}")))?;
        Ok(Self { requests })
    }

    /// Writes down that an image has these layers (bottom first) and opens those that are new, each with its index
    /// among `staged`. Everything is on disk and in the tables when this returns, but for the layers in the answer.
    pub(super) async fn register(
        &self,
        reference: &str,
        resolution: &Resolution,
        staged: Vec<Staged>,
    ) -> Result<Refused, LookupError> {
        let (reply, answer) = oneshot::channel();
        let gone = || LookupError::Disk("the store is stopping".to_owned());
        let request = Request {
            reference: reference.to_owned(),
            repository: resolution.repository.clone(),
            accepted: resolution.accepted(),
            config: resolution.config,
            staged,
            reply,
        };
        self.requests.send(request).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

#[cfg(test)]
mod tests;
