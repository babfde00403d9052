//! The parts of manifests, indexes and configs that the store needs (OCI image specification 1.1, Docker schema 2).

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::{digest::Digest, format};

/// Layers of an image at most: overlayfs mounts no more lowers (`OVL_MAX_STACK`).
pub const MAX_LAYERS: usize = 500;
/// Manifests of an index at most: several times as many as there are platforms, attestations included.
pub const MAX_CHILDREN: usize = 256;

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
    /// It lists more than anybody could use; what each entry costs must not be for an image to choose.
    #[error("the {what}, more than {limit}")]
    TooMany {
        /// What it lists, and how many.
        what: String,
        /// The limit.
        limit: usize,
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
        let manifest: Manifest = json("manifest", bytes)?;
        at_most(
            "manifest lists",
            manifest.layers.len(),
            "layers",
            MAX_LAYERS,
        )?;
        return Ok(Document::Manifest(manifest));
    }
    let index: IndexDocument = json("index", bytes)?;
    at_most(
        "index lists",
        index.manifests.len(),
        "manifests",
        MAX_CHILDREN,
    )?;
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
    /// Digests of the layers that cannot be served beside another one of this image, see [`repeated`].
    #[must_use]
    pub fn repeated(&self) -> BTreeSet<Digest> {
        repeated(self.layers.iter().map(|layer| {
            let annotated = format::annotated(&layer.annotations, layer.size);
            // What is announced so that it cannot be read is refused for that.
            let toc = annotated.ok().flatten().map(|annotated| annotated.toc);
            (layer.digest, toc)
        }))
    }
}

/// Of layers with the digests of blob and TOC: the blobs of those that share a digest with another one. An engine asks
/// by either digest and would get one tree for both, and overlayfs refuses one directory as two lowers
/// (docs/design.md, "One tree a blob").
#[must_use]
pub fn repeated(layers: impl Iterator<Item = (Digest, Option<Digest>)>) -> BTreeSet<Digest> {
    let mut users: BTreeMap<Digest, Vec<Digest>> = BTreeMap::new();
    for (blob, toc) in layers {
        users.entry(blob).or_default().push(blob);
        if let Some(toc) = toc.filter(|toc| *toc != blob) {
            users.entry(toc).or_default().push(blob);
        }
    }
    users
        .into_values()
        .filter(|blobs| blobs.len() > 1)
        .flatten()
        .collect()
}

fn at_most(
    lists: &'static str,
    count: usize,
    what: &'static str,
    limit: usize,
) -> Result<(), ManifestError> {
    if count <= limit {
        return Ok(());
    }
    Err(ManifestError::TooMany {
        what: format!("{lists} {count} {what}"),
        limit,
    })
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

    #[test]
    fn a_toc_of_two_layers_is_found_as_a_digest_of_two_layers_is() {
        let digest = |n: u8| hex(n).parse::<Digest>().unwrap();
        let find = |layers: &[(u8, Option<u8>)]| -> Vec<Digest> {
            let layers = layers.iter();
            repeated(layers.map(|&(blob, toc)| (digest(blob), toc.map(digest))))
                .into_iter()
                .collect()
        };
        let both = [digest(1), digest(2)];
        assert_eq!(find(&[(1, Some(9)), (2, Some(9)), (3, Some(8))]), both);
        assert_eq!(find(&[(1, Some(2)), (2, None), (3, None)]), both);
        assert_eq!(find(&[(1, Some(1)), (2, Some(3))]), []);
        let layer = |n| {
            format!(
                r#"{{"digest":"{}","size":1,"annotations":{{"containerd.io/snapshot/stargz/toc.digest":"{}"}}}}"#,
                hex(n),
                hex(9)
            )
        };
        let text = format!(
            r#"{{"config":{},"layers":[{},{}]}}"#,
            layer(7),
            layer(1),
            layer(2)
        );
        let Document::Manifest(manifest) = parse("", text.as_bytes()).unwrap() else {
            panic!("a manifest was expected");
        };
        assert_eq!(manifest.repeated(), BTreeSet::from(both));
    }

    #[test]
    fn what_lists_too_much_is_refused() {
        let layer = format!(r#"{{"digest":"{}","size":1}}"#, hex(1));
        let manifest = |count| {
            let layers = vec![layer.as_str(); count].join(",");
            parse(
                "",
                format!(r#"{{"config":{layer},"layers":[{layers}]}}"#).as_bytes(),
            )
        };
        assert!(manifest(MAX_LAYERS).is_ok());
        let why = manifest(MAX_LAYERS + 1).unwrap_err().to_string();
        assert_eq!(why, "the manifest lists 501 layers, more than 500");
        let index = |count| {
            let children = vec![layer.as_str(); count].join(",");
            parse("", format!(r#"{{"manifests":[{children}]}}"#).as_bytes())
        };
        assert!(index(MAX_CHILDREN).is_ok());
        let why = index(MAX_CHILDREN + 1).unwrap_err().to_string();
        assert_eq!(why, "the index lists 257 manifests, more than 256");
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
