//! Bundles: profiles in one file, to be passed on to other machines (docs/formats.md, "Bundle").
//!
//! What is read comes from anybody: it is taken as a whole or not at all, every profile within the limits of a file of
//! its own, and no run may be so new that no later one could ever displace it.

use serde::Deserialize;

use crate::model::{Identity, ModelError, Profile, SCHEMA};

/// Version of bundles that this program writes; it refuses others.
pub const BUNDLE: u32 = 1;
/// Bytes of a bundle that is read.
pub const MAX_BUNDLE_BYTES: u64 = 256 << 20;
/// Profiles of a bundle that is read.
pub const MAX_BUNDLE_PROFILES: usize = 1024;
/// How far other machines' clocks may be ahead, in milliseconds.
const AHEAD_MS: u64 = 24 * 3600 * 1000;

/// Why nothing of a bundle is taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Bigger than [`MAX_BUNDLE_BYTES`].
    #[error("more than {MAX_BUNDLE_BYTES} bytes; `forelayer profile export` some profiles only")]
    TooLarge,
    /// Not JSON, or not that of a bundle.
    #[error("neither a bundle of profiles nor a profile: {0}")]
    Json(String),
    /// Written by another version.
    #[error("bundle version {0}; this program reads version {BUNDLE}")]
    Version(u32),
    /// More than [`MAX_BUNDLE_PROFILES`].
    #[error("{0} profiles; at most {MAX_BUNDLE_PROFILES} are read")]
    Many(usize),
    /// One of its profiles cannot be used.
    #[error("profile {number} of the bundle: {source}")]
    Profile {
        /// Its place, from 1.
        number: usize,
        /// Why.
        #[source]
        source: ModelError,
    },
    /// A run from the future would outlive all that are recorded until then.
    #[error(
        "run {run} of {identity} started in the future; was the clock wrong there, or is it here?"
    )]
    Future {
        /// Whose.
        identity: Box<Identity>,
        /// The run's id.
        run: String,
    },
}

/// The text of a bundle.
#[must_use]
pub fn write(profiles: &[Profile]) -> String {
    let texts: Vec<String> = profiles.iter().map(Profile::to_json).collect();
    let texts: Vec<&str> = texts.iter().map(|text| text.trim_end()).collect();
    format!(
        "{{\"bundle\": {BUNDLE}, \"profiles\": [\n{}\n]}}\n",
        texts.join(",\n")
    )
}

/// Reads a bundle, or a single profile as it lies in the directory; without its pins, which are each machine's own.
/// `now_ms` is the Unix time in milliseconds.
///
/// # Errors
/// What is wrong, and where.
pub fn read(text: &[u8], now_ms: u64) -> Result<Vec<Profile>, BundleError> {
    #[derive(Deserialize)]
    struct Kind {
        bundle: Option<u32>,
        schema: Option<u32>,
    }
    if text.len() as u64 > MAX_BUNDLE_BYTES {
        return Err(BundleError::TooLarge);
    }
    let json = |error: serde_json::Error| BundleError::Json(error.to_string());
    let kind: Kind = serde_json::from_slice(text).map_err(json)?;
    let in_place = |number| move |source| BundleError::Profile { number, source };
    let mut profiles = match (kind.bundle, kind.schema) {
        (Some(BUNDLE), _) => several(text)?,
        (Some(other), _) => return Err(BundleError::Version(other)),
        (None, Some(_)) => vec![Profile::from_json(text).map_err(in_place(1))?],
        (None, None) => {
            let why = "it has neither `bundle` nor `schema`";
            return Err(BundleError::Json(why.to_owned()));
        }
    };
    for profile in &mut profiles {
        profile.set_pinned(false);
        let latest = now_ms.saturating_add(AHEAD_MS);
        if let Some(run) = profile.runs.iter().find(|run| run.started_ms > latest) {
            return Err(BundleError::Future {
                identity: Box::new(profile.identity.clone()),
                run: run.id.clone(),
            });
        }
    }
    Ok(profiles)
}

fn several(text: &[u8]) -> Result<Vec<Profile>, BundleError> {
    // The versions first: a later one may mean other things by the same names.
    #[derive(Deserialize)]
    struct Head {
        schema: u32,
    }
    #[derive(Deserialize)]
    struct Bundle<T> {
        profiles: Vec<T>,
    }
    let json = |error: serde_json::Error| BundleError::Json(error.to_string());
    let heads: Bundle<Head> = serde_json::from_slice(text).map_err(json)?;
    if heads.profiles.len() > MAX_BUNDLE_PROFILES {
        return Err(BundleError::Many(heads.profiles.len()));
    }
    let other = (heads.profiles.iter()).position(|head| head.schema != SCHEMA);
    if let Some(at) = other {
        return Err(BundleError::Profile {
            number: at + 1,
            source: ModelError::Schema(heads.profiles[at].schema),
        });
    }
    let bundle: Bundle<Profile> = serde_json::from_slice(text).map_err(json)?;
    (bundle.profiles.into_iter().zip(1..))
        .map(|(profile, number)| {
            let checked = profile.checked();
            checked.map_err(|source| BundleError::Profile { number, source })
        })
        .collect()
}
