//! Why profiles cannot be used, in sentences that say what to do.

use std::path::PathBuf;

use crate::model::ModelError;

/// Why the directory or a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The file system said no.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// The operation.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file that is no profile.
    #[error("profile {} cannot be read: {source}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ModelError,
    },
    /// A start that no reader would take.
    #[error(
        "a start of {image} does not fit into a profile: {bytes} bytes, and at most {limit} are read; the profile is \
         as it was"
    )]
    TooLarge {
        /// The image.
        image: String,
        /// Size of a profile with this start alone.
        bytes: u64,
        /// What may be read.
        limit: u64,
    },
    /// They are not this user's to see.
    #[error("no permission to read the profiles in {}: they are root's; run this as root", dir.display())]
    NotAllowed {
        /// The directory.
        dir: PathBuf,
    },
    /// Several files begin with that name.
    #[error("{name:?} may mean any of {} profiles: {}", files.len(), some(files))]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// What begins so.
        files: Vec<String>,
    },
    /// Nothing goes by that name.
    #[error("no profile is named {name:?} in {}; `forelayer profile list` shows them", dir.display())]
    NotFound {
        /// What was asked for.
        name: String,
        /// Where.
        dir: PathBuf,
    },
}

/// Names for a message, not more of them than people read.
fn some(files: &[String]) -> String {
    let shown = files.len().min(10);
    let mut text = files[..shown].join(", ");
    if shown < files.len() {
        text += &format!(" and {} more", files.len() - shown);
    }
    text
}

/// The cause without the file's name, for lists that show the name beside it.
pub(super) fn reason(error: &ProfileError) -> String {
    match error {
        ProfileError::Malformed { source, .. } => source.to_string(),
        ProfileError::Io { source, .. } => source.to_string(),
        ProfileError::NotFound { .. }
        | ProfileError::NotAllowed { .. }
        | ProfileError::Ambiguous { .. }
        | ProfileError::TooLarge { .. } => error.to_string(),
    }
}
