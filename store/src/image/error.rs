//! Why a lookup brought nothing. Whatever it is, the engine sees ENOENT and pulls normally.

use std::time::Duration;

use crate::{
    digest::Digest,
    metrics::LookupResult,
    registry::{RegistryError, Repository},
};

/// See the variants. Cloned to everybody who waits for the same image.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LookupError {
    /// The reference is none.
    #[error("{reference:?} is no image reference: {why}")]
    Reference {
        /// The text.
        reference: String,
        /// Why.
        why: String,
    },
    /// No layer of the image has that digest.
    #[error("image {reference} has no layer {key}")]
    NotInImage {
        /// The reference.
        reference: String,
        /// The digest.
        key: Digest,
    },
    /// The layer is in no lazy format (or does not say so in the manifest).
    #[error("layer {key} of image {reference} is not annotated as eStargz or zstd:chunked")]
    Ordinary {
        /// The reference.
        reference: String,
        /// The digest.
        key: Digest,
    },
    /// Two lowers of one overlay cannot be the same directory.
    #[error(
        "layer {blob} occurs more than once in image {reference}, or its TOC does; overlayfs cannot mount that from one tree"
    )]
    Repeated {
        /// The reference.
        reference: String,
        /// The blob.
        blob: Digest,
    },
    /// The manifest or the config is malformed.
    #[error("image {reference} cannot be read: {why}")]
    Manifest {
        /// The reference.
        reference: String,
        /// What is wrong.
        why: String,
    },
    /// The layer is lazy, and refused.
    #[error("layer {blob} is refused: {why}")]
    Refused {
        /// The blob.
        blob: Digest,
        /// Why, with the entry.
        why: String,
    },
    /// The registry could not be read.
    #[error("{what}: {why}")]
    Registry {
        /// The image or repository.
        what: String,
        /// Why, with host and status.
        why: String,
    },
    /// It took too long; the resolution goes on, so that the next lookup may succeed.
    #[error("image {reference} was not resolved within {} s (lookup.timeout)", after.as_secs_f64())]
    Timeout {
        /// The reference.
        reference: String,
        /// The bound.
        after: Duration,
    },
    /// The disk refused.
    #[error("{0}")]
    Disk(String),
}

impl LookupError {
    pub(super) fn registry(what: &str, error: &RegistryError) -> Self {
        Self::Registry {
            what: what.to_owned(),
            why: error.to_string(),
        }
    }

    pub(super) fn of_layer(blob: &Digest, repository: &Repository, error: &RegistryError) -> Self {
        Self::registry(&format!("the TOC of layer {blob} in {repository}"), error)
    }

    /// Under which result the metric counts it.
    #[must_use]
    pub const fn result(&self) -> LookupResult {
        match self {
            Self::Reference { .. } | Self::NotInImage { .. } | Self::Ordinary { .. } => {
                LookupResult::No
            }
            Self::Repeated { .. } | Self::Manifest { .. } | Self::Refused { .. } => {
                LookupResult::Refused
            }
            Self::Registry { .. } | Self::Timeout { .. } | Self::Disk(_) => LookupResult::Failed,
        }
    }
}
