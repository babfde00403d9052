//! What the registry does wrong, by rule: which requests, which fault, how often.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::log::Record;

/// One thing a registry, or something on the way to it, can do wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The lowest bit of the byte at this offset of the blob is flipped, where the answer holds it.
    FlipBit {
        /// Offset in the blob.
        offset: u64,
    },
    /// The connection is closed after this many bytes of the body.
    Truncate {
        /// Bytes that are sent.
        after: u64,
    },
    /// The connection is reset after this many bytes of the body.
    Reset {
        /// Bytes that are sent.
        after: u64,
    },
    /// Nothing follows this many bytes of the body, and the connection stays open.
    Stall {
        /// Bytes that are sent.
        after: u64,
    },
    /// A blob comes byte by byte, each after this time.
    Drip {
        /// Before each byte.
        every: Duration,
    },
    /// No answer, and the connection stays open.
    Silence,
    /// No answer until [`Faults::release`]; then the right one.
    Hold,
    /// The bytes of this blob, under the headers that it would have.
    OtherBlob {
        /// Its digest.
        digest: String,
    },
    /// A web page with status 200.
    Html,
    /// A status.
    Status {
        /// Its number.
        status: u16,
        /// Seconds in a Retry-After header.
        retry_after: Option<u64>,
    },
    /// The whole blob with status 200, whatever range was asked for.
    IgnoreRange,
    /// A Content-Range header that names the bytes one further on.
    WrongContentRange,
    /// Status 416.
    RangeNotSatisfiable,
    /// A body (and Content-Length) that is shorter than the range; Content-Range says what was asked for.
    ShortBody {
        /// Bytes that are missing.
        missing: u64,
    },
    /// A body without Content-Length that goes on behind the range.
    LongBody {
        /// Bytes that are too many.
        extra: u64,
    },
}

/// Which requests are hit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What happens to them.
    pub fault: Fault,
    /// Only this method; empty: any but HEAD.
    pub method: String,
    /// Only paths that contain this; empty: any.
    pub path: String,
    /// Only ranges that hold this byte.
    pub covers: Option<u64>,
    /// This many matching requests pass unharmed first.
    pub skip: u64,
    /// Then so many are hit; `None`: all.
    pub times: Option<u64>,
}

impl Rule {
    /// Hits all GET requests for blobs.
    #[must_use]
    pub fn blobs(fault: Fault) -> Self {
        Self {
            fault,
            method: "GET".to_owned(),
            path: "/blobs/".to_owned(),
            covers: None,
            skip: 0,
            times: None,
        }
    }

    /// Hits all GET requests for one blob.
    #[must_use]
    pub fn blob(digest: &str, fault: Fault) -> Self {
        Self {
            path: format!("/blobs/{digest}"),
            ..Self::blobs(fault)
        }
    }

    /// Hits all GET requests for manifests.
    #[must_use]
    pub fn manifests(fault: Fault) -> Self {
        Self {
            path: "/manifests/".to_owned(),
            ..Self::blobs(fault)
        }
    }

    /// Only the first so many.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    /// Not the first so many.
    #[must_use]
    pub fn after(mut self, skip: u64) -> Self {
        self.skip = skip;
        self
    }

    /// Only requests whose range holds this byte.
    #[must_use]
    pub fn covering(mut self, offset: u64) -> Self {
        self.covers = Some(offset);
        self
    }

    fn matches(&self, record: &Record) -> bool {
        let method = if self.method.is_empty() {
            record.method != "HEAD"
        } else {
            record.method == self.method
        };
        let covers = self.covers.is_none_or(|offset| {
            record
                .range
                .is_none_or(|(first, last)| (first..=last).contains(&offset))
        });
        method && covers && record.path.contains(&self.path)
    }
}

/// The rules in force.
#[derive(Debug, Default)]
pub struct Faults {
    rules: Mutex<Vec<Armed>>,
    /// How many requests were held so far.
    held: watch::Sender<u64>,
    /// How often held requests were released.
    releases: watch::Sender<u64>,
}

#[derive(Debug)]
struct Armed {
    rule: Rule,
    seen: u64,
    hits: u64,
}

impl Faults {
    /// Puts a rule into force; the first that matches a request counts.
    pub fn add(&self, rule: Rule) {
        self.rules.lock().push(Armed {
            rule,
            seen: 0,
            hits: 0,
        });
    }

    /// Makes the registry sane. What stalls goes on stalling until its connection ends.
    pub fn clear(&self) {
        self.rules.lock().clear();
    }

    /// Requests hit by the rules in force.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.rules.lock().iter().map(|armed| armed.hits).sum()
    }

    /// Waits until so many requests, counted from the beginning, were [held](Fault::Hold).
    pub async fn held(&self, count: u64) {
        // The sender lives in this object, so this ends only when it is so.
        let _ = self.held.subscribe().wait_for(|held| *held >= count).await;
    }

    /// Answers all requests that are held. Rules that are in force go on holding later ones.
    pub fn release(&self) {
        self.releases.send_modify(|releases| *releases += 1);
    }

    /// Holds a request.
    pub(super) async fn hold(&self) {
        let mut releases = self.releases.subscribe();
        self.held.send_modify(|held| *held += 1);
        let _ = releases.changed().await;
    }

    pub(super) fn strike(&self, record: &Record) -> Option<Fault> {
        let mut rules = self.rules.lock();
        for armed in rules.iter_mut() {
            if !armed.rule.matches(record) {
                continue;
            }
            armed.seen += 1;
            if armed.seen <= armed.rule.skip
                || armed.rule.times.is_some_and(|times| armed.hits >= times)
            {
                continue;
            }
            armed.hits += 1;
            return Some(armed.rule.fault.clone());
        }
        None
    }
}
