//! What the registry was asked and what it sent: the ground of every statement about laziness.

use std::{sync::Arc, time::Instant};

use parking_lot::Mutex;

/// All requests since the start or the last [`Log::clear`].
#[derive(Debug, Default)]
pub struct Log {
    entries: Mutex<Vec<Arc<Mutex<Record>>>>,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Record {
    /// GET, HEAD, ...
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The address that was asked.
    pub host: String,
    /// Number of the TCP connection, from 1.
    pub connection: u64,
    /// First and last byte asked for, both inclusive.
    pub range: Option<(u64, u64)>,
    /// The scheme of the Authorization header (`Basic`, `Bearer`).
    pub authorization: Option<String>,
    /// Status of the answer; 0 while there is none, or if there was none.
    pub status: u16,
    /// Bytes of the body that were handed to the connection.
    pub bytes: u64,
    /// When the request had arrived.
    pub start: Instant,
    /// When the body was over (sent, cut off, or given up by the peer).
    pub end: Option<Instant>,
}

impl Record {
    /// The blob it asked for.
    #[must_use]
    pub fn blob(&self) -> Option<&str> {
        let path = self.path.split('?').next()?;
        path.split_once("/blobs/")
            .map(|(_, digest)| digest)
            .filter(|digest| digest.starts_with("sha256:"))
    }

    /// Whether it asked for a manifest.
    #[must_use]
    pub fn is_manifest(&self) -> bool {
        self.path.contains("/manifests/")
    }
}

/// A request that is being answered.
#[derive(Debug, Clone)]
pub(super) struct Open(Arc<Mutex<Record>>);

impl Open {
    pub(super) fn status(&self, status: u16) {
        self.0.lock().status = status;
    }
    pub(super) fn sent(&self, bytes: usize) {
        self.0.lock().bytes += bytes as u64;
    }
    pub(super) fn end(&self) {
        self.0.lock().end = Some(Instant::now());
    }
}

impl Log {
    pub(super) fn open(&self, record: Record) -> Open {
        let record = Arc::new(Mutex::new(record));
        self.entries.lock().push(Arc::clone(&record));
        Open(record)
    }

    /// Everything, in the order of arrival.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        self.entries
            .lock()
            .iter()
            .map(|record| record.lock().clone())
            .collect()
    }

    /// Forgets everything so far.
    pub fn clear(&self) {
        self.entries.lock().clear();
    }

    /// Number of requests, all kinds.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.entries.lock().len()
    }

    /// Requests for one blob.
    #[must_use]
    pub fn blob_requests(&self, digest: &str) -> Vec<Record> {
        let mut records = self.records();
        records.retain(|record| record.blob() == Some(digest));
        records
    }

    /// Requests for manifests.
    #[must_use]
    pub fn manifest_requests(&self) -> Vec<Record> {
        let mut records = self.records();
        records.retain(Record::is_manifest);
        records
    }

    /// Bytes of all bodies.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.records().iter().map(|record| record.bytes).sum()
    }

    /// Bytes of bodies of blob requests.
    #[must_use]
    pub fn blob_bytes(&self) -> u64 {
        let records = self.records();
        let blobs = records.iter().filter(|record| record.blob().is_some());
        blobs.map(|record| record.bytes).sum()
    }
}
