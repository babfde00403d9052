//! The parts of manifests, indexes and configs that the store needs (OCI image specification 1.1, Docker schema 2).

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::digest::Digest;

/// A document that a reference can name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// One image a platform; digests of the manifests, the running platform's first.
    Index(Vec<Digest>),
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Manifest {
    /// The config blob.
    pub config: Descriptor,
    /// The layers, bottom first.
    pub layers: Vec<Descriptor>,
}

/// A blob as a manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// Digest of its bytes.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// What else is said of it.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct IndexDocument {
    manifests: Vec<IndexEntry>,
}

#[derive(Deserialize)]
struct IndexEntry {
    digest: Digest,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

#[derive(Deserialize)]
struct ConfigDocument {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

/// Why a document cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is no JSON, or not of the form the specification gives.
    #[error("{what} is malformed: {why}")]
    Malformed {
        /// Which document.
        what: &'static str,
        /// Where and how.
        why: String,
    },
    /// Schema 1 images have no layers that could be lazy.
    #[error("media type {0:?} is not supported")]
    MediaType(String),
}

/// Reads what a registry sent for a reference. The media type decides; where it is missing, the document's form.
pub fn parse(media_type: &str, bytes: &[u8]) -> Result<Document, ManifestError> {
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    let is_index = match essence {
        "application/vnd.oci.image.index.v1+json"
        | "application/vnd.docker.distribution.manifest.list.v2+json" => true,
        "application/vnd.oci.image.manifest.v1+json"
        | "application/vnd.docker.distribution.manifest.v2+json" => false,
        "" | "application/json" => serde_json::from_slice::<serde_json::Value>(bytes)
            .is_ok_and(|document| document.get("manifests").is_some()),
        other => return Err(ManifestError::MediaType(other.chars().take(100).collect())),
    };
    if !is_index {
        return json("manifest", bytes).map(Document::Manifest);
    }
    let index: IndexDocument = json("index", bytes)?;
    let (mut host, mut others) = (Vec::new(), Vec::new());
    for entry in index.manifests {
        match entry.platform {
            // Attestations are no images.
            Some(p) if p.os == "unknown" => {}
            Some(p) if p.os == "linux" && p.architecture == host_architecture() => {
                host.push(entry.digest);
            }
            _ => others.push(entry.digest),
        }
    }
    host.extend(others);
    Ok(Document::Index(host))
}

/// The uncompressed digests of an image's layers, bottom first, from its config.
pub fn diff_ids(bytes: &[u8]) -> Result<Vec<Digest>, ManifestError> {
    json::<ConfigDocument>("config", bytes).map(|config| config.rootfs.diff_ids)
}

impl Manifest {
    /// Digests that stand for more than one layer of this image. Overlayfs refuses one directory as two lowers, so
    /// such layers cannot be served (docs/design.md, "One tree a blob").
    #[must_use]
    pub fn repeated(&self) -> BTreeSet<Digest> {
        let mut seen = BTreeSet::new();
        self.layers
            .iter()
            .filter(|layer| !seen.insert(layer.digest))
            .map(|layer| layer.digest)
            .collect()
    }
}

fn json<T: serde::de::DeserializeOwned>(
    what: &'static str,
    bytes: &[u8],
) -> Result<T, ManifestError> {
    serde_json::from_slice(bytes).map_err(|error| ManifestError::Malformed {
        what,
        why: error.to_string(),
    })
}

/// Some writers put `null` where the specification wants nothing.
fn null_is_empty<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The architecture as images name it.
const fn host_architecture() -> &'static str {
    if cfg!(target_arch = "x86_64") {
        "amd64"
    } else if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "unknown"
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    fn hex(n: u8) -> String {
        format!("sha256:{}", format!("{n:02x}").repeat(32))
    }

    #[test]
    fn an_index_lists_the_running_platform_first_and_no_attestations() {
        let text = format!(
            r#"{{"manifests":[
                {{"digest":"{}","platform":{{"os":"linux","architecture":"riscv64"}}}},
                {{"digest":"{}","platform":{{"os":"unknown","architecture":"unknown"}}}},
                {{"digest":"{}","platform":{{"os":"linux","architecture":"{}"}}}}]}}"#,
            hex(1),
            hex(2),
            hex(3),
            host_architecture()
        );
        let expected = Document::Index(vec![hex(3).parse().unwrap(), hex(1).parse().unwrap()]);
        assert_eq!(
            parse("application/vnd.oci.image.index.v1+json", text.as_bytes()).unwrap(),
            expected
        );
        assert_eq!(parse("", text.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn a_digest_that_occurs_twice_is_found() {
        let layer = |n| format!(r#"{{"digest":"{}","size":1,"annotations":null}}"#, hex(n));
        let text = format!(
            r#"{{"config":{},"layers":[{},{},{}]}}"#,
            layer(9),
            layer(1),
            layer(2),
            layer(1)
        );
        let Document::Manifest(manifest) = parse(
            "application/vnd.oci.image.manifest.v1+json; x=y",
            text.as_bytes(),
        )
        .unwrap() else {
            panic!("a manifest was expected");
        };
        assert_eq!(
            manifest.repeated(),
            BTreeSet::from([hex(1).parse().unwrap()])
        );
    }

    proptest! {
        #[test]
        fn nothing_panics(media_type in ".{0,40}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&media_type, &bytes);
            let _ = parse("", &bytes);
            let _ = diff_ids(&bytes);
        }
    }
}
