//! Whose profile it is: an image's name and a workload, which is a label made from the command line.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::Digest;

/// The key of a profile.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Identity {
    /// The image as the engine was asked for it; `layers:<digits>` where no engine told its name.
    pub image: String,
    /// Name of the program and a hash of the whole command line. The command line itself is not kept: people put
    /// passwords there, and profiles travel.
    pub workload: String,
}

impl Identity {
    /// The identity of a container of `image` that runs `command`; `layers` (top first) name it where `image` is empty.
    #[must_use]
    pub fn new(image: &str, command: &[String], layers: &[Digest]) -> Self {
        let image = if image.is_empty() {
            let mut hash = Sha256::new();
            for layer in layers {
                hash.update(layer.as_bytes());
            }
            format!("layers:{}", &hex::encode(hash.finalize())[..12])
        } else {
            // A name this long is no engine's; it must not make a file that cannot be read back.
            image.chars().take(super::MAX_PATH / 4).collect()
        };
        Self {
            image,
            workload: workload(command),
        }
    }

    /// Name of the profile's file: the image's name with everything but letters, digits, `.`, `_` and `-` replaced,
    /// and 12 digits of the hash of image and workload.
    #[must_use]
    pub fn file_name(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.image.as_bytes());
        hash.update([0]);
        hash.update(self.workload.as_bytes());
        let name = plain(&self.image, 100);
        format!("{name}-{}.json", &hex::encode(hash.finalize())[..12])
    }

    /// The image's name without tag and digest.
    #[must_use]
    pub fn repository(&self) -> &str {
        repository(&self.image)
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.image, self.workload)
    }
}

/// `host:5000/name:tag@digest` -> `host:5000/name`.
pub(crate) fn repository(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or(image);
    match name.rfind(':') {
        // A colon before the last slash belongs to a port.
        Some(colon) if !name[colon..].contains('/') => &name[..colon],
        _ => name,
    }
}

/// The label of a command line: the program's name and 8 digits of the hash of all of it; `unknown` without one.
#[must_use]
pub fn workload(command: &[String]) -> String {
    let Some(program) = command.first() else {
        return "unknown".to_owned();
    };
    let mut hash = Sha256::new();
    for argument in command {
        hash.update(argument.as_bytes());
        hash.update([0]);
    }
    let base = program.rsplit('/').next().unwrap_or(program);
    format!("{}-{}", plain(base, 40), &hex::encode(hash.finalize())[..8])
}

/// At most `limit` characters; others than letters, digits, `.`, `_` and `-` become `_`; never a hidden name.
fn plain(text: &str, limit: usize) -> String {
    text.chars()
        .take(limit)
        .enumerate()
        .map(|(at, c)| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '-' => c,
            '.' if at > 0 => c,
            _ => '_',
        })
        .collect()
}
