//! What can go wrong between a question to a registry and its whole answer.
//!
//! Every message names the repository, what was asked of it, the host that answered (a redirect leads to others), and
//! where it is known what to do.

use std::{fmt, ops::Range, sync::Arc, time::Duration};

use super::Repository;
use crate::digest::Digest;

/// What was asked of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// A manifest, by tag or digest.
    Manifest(String),
    /// A blob, whole.
    Blob(Digest),
    /// Bytes of a blob.
    Range(Digest, Range<u64>),
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifest(name) => write!(f, "manifest {name}"),
            Self::Blob(digest) => write!(f, "blob {digest}"),
            Self::Range(digest, range) => {
                write!(f, "bytes {}..{} of blob {digest}", range.start, range.end)
            }
        }
    }
}

/// A question to a registry, as messages name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Of which repository.
    pub repository: Repository,
    /// What.
    pub asked: Asked,
}

impl Question {
    pub(super) fn fails(self: &Arc<Self>, failure: Failure) -> RegistryError {
        RegistryError {
            question: Arc::clone(self),
            failure: Arc::new(failure),
        }
    }
}

/// Why a registry could not be read. Every message names host, repository and what was asked for.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot read {} of {}: {failure}", question.asked, question.repository)]
pub struct RegistryError {
    /// What was asked.
    pub question: Arc<Question>,
    /// What happened.
    pub failure: Arc<Failure>,
}

/// What happened instead of an answer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No HTTP client could be set up (no certificate authorities, for example).
    #[error("cannot set up a TLS client: {0}")]
    Setup(String),
    /// No connection, or it broke, or nothing arrived for too long.
    #[error("{host}: {cause}")]
    Connection {
        /// The host that was to answer.
        host: String,
        /// The chain of causes.
        cause: String,
    },
    /// A status that is no answer.
    #[error(
        "{host} answered with status {status}{}{}",
        Excerpt(excerpt),
        Hint(hint)
    )]
    Status {
        /// The host that answered.
        host: String,
        /// The HTTP status.
        status: u16,
        /// The beginning of what it said.
        excerpt: String,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
        /// What can be done.
        hint: &'static str,
    },
    /// The registry wants to know who asks, and that cannot be settled.
    #[error("{host} wants authorization: {cause}{}", Hint(hint))]
    Authorization {
        /// The host that asked.
        host: String,
        /// What is in the way.
        cause: String,
        /// What can be done.
        hint: &'static str,
    },
    /// A host that is neither this machine nor configured for plain HTTP would have been asked without TLS.
    #[error(
        "{from} leads to {host} without TLS; add that host to registry.plain_http if it is to be trusted"
    )]
    PlainHttp {
        /// Who led there.
        from: String,
        /// Where to.
        host: String,
    },
    /// A redirect that cannot be followed.
    #[error("{host} redirects to {location:?}: {cause}")]
    Redirect {
        /// Who redirects.
        host: String,
        /// Where to, as the header says.
        location: String,
        /// What is wrong with it.
        cause: &'static str,
    },
    /// A web page where data should be (a login page, a proxy's error).
    #[error(
        "{host} answered with a web page (status {status}, {content_type}){}",
        Excerpt(excerpt)
    )]
    Html {
        /// The host that answered.
        host: String,
        /// The HTTP status.
        status: u16,
        /// Its Content-Type.
        content_type: String,
        /// The beginning of the page.
        excerpt: String,
    },
    /// The body is in an encoding that was not asked for, so offsets mean nothing.
    #[error("{host} answered in content encoding {encoding:?}, which was not asked for")]
    Encoding {
        /// The host that answered.
        host: String,
        /// The encoding.
        encoding: String,
    },
    /// The document is larger than such documents may be.
    #[error("it is larger than the limit of {limit} bytes{}", Size(*size))]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
        /// The size if the registry announced it.
        size: Option<u64>,
    },
    /// The bytes are not those that were asked for.
    #[error("{host} sent other bytes: their digest is {got}")]
    Digest {
        /// The host that answered.
        host: String,
        /// What they hash to.
        got: Digest,
    },
    /// The whole blob was sent instead of a range far inside it.
    #[error(
        "{host} ignores Range and would send {waste} bytes before those; a registry or proxy without Range cannot serve lazy layers"
    )]
    RangeIgnored {
        /// The host that answered.
        host: String,
        /// Bytes before the first wanted one.
        waste: u64,
    },
    /// Another range than the one asked for.
    #[error("{host} sent another range: Content-Range is {got:?}, the blob has {size} bytes")]
    ContentRange {
        /// The host that answered.
        host: String,
        /// The header.
        got: String,
        /// The blob's size by its manifest.
        size: u64,
    },
    /// The announced length is not that of the bytes asked for.
    #[error("{host} announces {announced} bytes instead of {wanted}")]
    Length {
        /// The host that answered.
        host: String,
        /// Its Content-Length.
        announced: u64,
        /// What it should be.
        wanted: u64,
    },
    /// The body ended early.
    #[error("{host} sent only {got} of {wanted} bytes{}", Excerpt(cause))]
    EarlyEnd {
        /// The host that answered.
        host: String,
        /// Bytes that arrived.
        got: u64,
        /// Bytes that should have.
        wanted: u64,
        /// What the connection said, if anything.
        cause: String,
    },
    /// The body went on behind the bytes asked for.
    #[error("{host} sent more than the {wanted} bytes asked for")]
    TooLong {
        /// The host that answered.
        host: String,
        /// Bytes that should have come.
        wanted: u64,
    },
    /// Bytes behind the end of the blob were asked for.
    #[error("the blob has only {size} bytes")]
    Bounds {
        /// The blob's size by its manifest.
        size: u64,
    },
}

impl RegistryError {
    /// Whether the registry sent the whole blob instead of a range too far from its start.
    pub(super) fn ignores_ranges(&self) -> bool {
        matches!(*self.failure, Failure::RangeIgnored { .. })
    }

    /// Whether asking again soon can help (connection, 5xx, 429, early end), and after how long if the host said so
    /// (zero if it did not).
    #[must_use]
    pub fn retry(&self) -> Option<Duration> {
        match &*self.failure {
            Failure::Status {
                status: 408 | 425 | 429 | 500..=599,
                retry_after,
                ..
            } => Some(retry_after.unwrap_or_default()),
            Failure::Connection { .. }
            | Failure::EarlyEnd { .. }
            | Failure::TooLong { .. }
            | Failure::Html { .. }
            | Failure::Length { .. }
            | Failure::Digest { .. }
            | Failure::ContentRange { .. } => Some(Duration::ZERO),
            Failure::Status { .. }
            | Failure::Setup(_)
            | Failure::Authorization { .. }
            | Failure::PlainHttp { .. }
            | Failure::Redirect { .. }
            | Failure::Encoding { .. }
            | Failure::TooLarge { .. }
            | Failure::RangeIgnored { .. }
            | Failure::Bounds { .. } => None,
        }
    }

    /// Whether the registry said that the thing does not exist (404).
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(&*self.failure, Failure::Status { status: 404, .. })
    }
}

/// What a user can do about a status.
pub(super) const fn hint(status: u16) -> &'static str {
    match status {
        401 | 403 => {
            "log in (podman login) or put credentials into registry.credentials, and check that they may pull this repository"
        }
        404 => "check the reference; private repositories also look like this without credentials",
        416 => "the blob is shorter than its manifest says",
        429 => "the registry limits how often it may be asked: credentials often raise the limit",
        _ => "",
    }
}

struct Hint<'a>(&'a str);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        write!(f, " ({})", self.0)
    }
}

struct Excerpt<'a>(&'a str);

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        write!(f, ": {}", self.0)
    }
}

struct Size(Option<u64>);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(size) => write!(f, " ({size} announced)"),
            None => Ok(()),
        }
    }
}
