//! Why a message from the kernel gets an error, and the one place that says which.

use fuser::Errno;

use crate::{cache::CacheError, fetch::FetchError, format::index::IndexError};

/// Why something cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum AlsError {
    /// There is nothing of this name.
    #[error("no such name")]
    NoEntry,
    /// The kernel names an inode that this mount does not have (or, on the control mount, not any more).
    #[error("inode {0} is not known")]
    Stale(u64),
    /// The operation needs a directory.
    #[error("not a directory")]
    NotDirectory,
    /// The operation needs a regular file.
    #[error("not a regular file")]
    NotFile,
    /// The operation needs a symbolic link.
    #[error("not a symbolic link")]
    NotLink,
    /// The inode does not have this extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// The caller's room is smaller than the answer.
    #[error("the answer is longer than the caller's buffer")]
    TooLong,
    /// The mount does not do this.
    #[error("not permitted")]
    NotPermitted,
    /// The index does not say where the bytes are.
    #[error("{0}")]
    Inconsistent(String),
    /// The index is damaged.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The cache cannot be read.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The bytes cannot be had.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The raw blob cannot be passed on.
    #[error(transparent)]
    Blob(#[from] super::blob::BlobError),
}

impl AlsError {
    /// What the caller is told.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::NoEntry => Errno::ENOENT,
            // Makes the kernel look the path up again.
            Self::Stale(_) => Errno::ESTALE,
            Self::NotDirectory => Errno::ENOTDIR,
            Self::NotFile | Self::NotLink => Errno::EINVAL,
            Self::NoAttribute => Errno::ENODATA,
            Self::TooLong => Errno::ERANGE,
            Self::NotPermitted => Errno::EPERM,
            Self::Inconsistent(_)
            | Self::Index(_)
            | Self::Cache(_)
            | Self::Fetch(_)
            | Self::Blob(_) => Errno::EIO,
        }
    }

    /// Whether it is a failure that somebody should read of, and not an ordinary "no".
    #[must_use]
    pub const fn is_failure(&self) -> bool {
        matches!(
            self,
            Self::Inconsistent(_)
                | Self::Index(_)
                | Self::Cache(_)
                | Self::Fetch(_)
                | Self::Blob(_)
        )
    }

    /// Whether the store is stopping: such a message is left unanswered, so that the kernel gives it to the next
    /// process instead of handing an error to the reader.
    #[must_use]
    pub const fn is_stopping(&self) -> bool {
        matches!(self, Self::Fetch(FetchError::Stopping))
    }
}

/// An error and everything under it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        // A transparent error says the same as what it holds.
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_no_is_not_a_failure() {
        for (error, code) in [
            (AlsError::NoEntry, libc::ENOENT),
            (AlsError::Stale(3), libc::ESTALE),
            (AlsError::NotDirectory, libc::ENOTDIR),
            (AlsError::NotFile, libc::EINVAL),
            (AlsError::NoAttribute, libc::ENODATA),
            (AlsError::TooLong, libc::ERANGE),
        ] {
            assert_eq!(error.errno().code(), code, "{error}");
            assert!(!error.is_failure());
        }
    }

    #[test]
    fn lost_bytes_are_an_input_output_error_and_a_stop_is_none() {
        let lost = AlsError::Inconsistent("chunk 3 is not there".to_owned());
        assert_eq!(lost.errno().code(), libc::EIO);
        assert!(lost.is_failure() && !lost.is_stopping());
        assert!(AlsError::Fetch(FetchError::Stopping).is_stopping());
    }

    #[test]
    fn the_chain_names_every_cause_once() {
        let error = AlsError::Cache(CacheError::Io {
            what: "read",
            path: "data".into(),
            source: std::io::Error::from_raw_os_error(libc::ENOSPC),
        });
        let text = chain(&error);
        assert!(text.starts_with("cannot read data: "), "{text}");
        assert_eq!(text.matches("cannot read").count(), 1, "{text}");
    }
}
