//! Reading the test images out of the registry's storage directory: what the tests compare the store's answers with.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::images::Format;

/// The images in a storage directory.
#[derive(Debug, Clone)]
pub struct Stored {
    root: PathBuf,
}

/// An image of one platform.
#[derive(Debug, Clone)]
pub struct StoredImage {
    /// Digest of the manifest.
    pub digest: String,
    /// The manifest.
    pub manifest: Value,
    /// The layers, bottom first.
    pub layers: Vec<StoredLayer>,
    /// Digest of the configuration.
    pub config: String,
}

/// A layer of it.
#[derive(Debug, Clone)]
pub struct StoredLayer {
    /// Digest of the compressed blob.
    pub blob: String,
    /// Its size.
    pub size: u64,
    /// Digest of its uncompressed tar.
    pub diff_id: String,
    /// Digest of its TOC; `None` for ordinary layers.
    pub toc: Option<String>,
    /// Its annotations.
    pub annotations: serde_json::Map<String, Value>,
}

impl Stored {
    /// The images below `root`.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.join("docker/registry/v2"),
        }
    }

    /// The file of a blob.
    ///
    /// # Errors
    /// When the digest is not one of SHA-256.
    pub fn blob(&self, digest: &str) -> Result<PathBuf> {
        let hex = digest
            .strip_prefix("sha256:")
            .with_context(|| format!("{digest} is not a SHA-256 digest"))?;
        let first = hex.get(..2).context("a digest without digits")?;
        Ok(self.root.join(format!("blobs/sha256/{first}/{hex}/data")))
    }

    fn json(&self, digest: &str) -> Result<Value> {
        let path = self.blob(digest)?;
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// An image; of an index, the entry for `platform` (an architecture as manifests write it).
    ///
    /// # Errors
    /// When it is not there.
    pub fn image(&self, format: Format, name: &str, platform: &str) -> Result<StoredImage> {
        let link = self.root.join(format!(
            "repositories/{}/{name}/_manifests/tags/1/current/link",
            format.name()
        ));
        let mut digest = fs::read_to_string(&link)
            .with_context(|| format!("no image {}/{name}", format.name()))?
            .trim()
            .to_owned();
        let mut manifest = self.json(&digest)?;
        if let Some(children) = manifest["manifests"].as_array() {
            digest = children
                .iter()
                .find(|child| child["platform"]["architecture"] == platform)
                .and_then(|child| child["digest"].as_str())
                .with_context(|| format!("{name} is not there for {platform}"))?
                .to_owned();
            manifest = self.json(&digest)?;
        }
        let config = text(&manifest["config"]["digest"])?;
        let diff_ids = self.json(&config)?["rootfs"]["diff_ids"].clone();
        let layers = manifest["layers"]
            .as_array()
            .context("a manifest without layers")?
            .iter()
            .enumerate()
            .map(|(number, layer)| {
                let annotations = layer["annotations"]
                    .as_object()
                    .cloned()
                    .unwrap_or_default();
                let toc = [
                    "containerd.io/snapshot/stargz/toc.digest",
                    "io.github.containers.zstd-chunked.manifest-checksum",
                    "io.containers.zstd-chunked.manifest-checksum",
                ]
                .iter()
                .find_map(|name| annotations.get(*name)?.as_str())
                .map(str::to_owned);
                Ok(StoredLayer {
                    blob: text(&layer["digest"])?,
                    size: layer["size"].as_u64().context("a layer without a size")?,
                    diff_id: text(&diff_ids[number])?,
                    toc,
                    annotations,
                })
            })
            .collect::<Result<_>>()?;
        Ok(StoredImage {
            digest,
            manifest,
            layers,
            config,
        })
    }

    /// The TOC of a layer as JSON.
    ///
    /// # Errors
    /// When the blob has none where the format says.
    pub fn toc(&self, layer: &StoredLayer) -> Result<Value> {
        let file = fs::File::open(self.blob(&layer.blob)?)?;
        let position = [
            "io.github.containers.zstd-chunked.manifest-position",
            "io.containers.zstd-chunked.manifest-position",
        ]
        .iter()
        .find_map(|name| layer.annotations.get(*name)?.as_str());
        if let Some(position) = position {
            let mut numbers = position.split(':').map(str::parse::<u64>);
            let (Some(Ok(offset)), Some(Ok(length))) = (numbers.next(), numbers.next()) else {
                bail!("the position {position} cannot be read");
            };
            let mut bytes = vec![0; usize::try_from(length)?];
            file.read_exact_at(&mut bytes, offset)?;
            return Ok(serde_json::from_reader(zstd::Decoder::new(&bytes[..])?)?);
        }
        let mut footer = [0; 51];
        file.read_exact_at(&mut footer, layer.size - 51)?;
        let offset = u64::from_str_radix(std::str::from_utf8(&footer[16..32])?, 16)?;
        let mut bytes = vec![0; usize::try_from(layer.size - 51 - offset)?];
        file.read_exact_at(&mut bytes, offset)?;
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&bytes[..]));
        let mut text = String::new();
        archive
            .entries()?
            .next()
            .context("an empty TOC archive")??
            .read_to_string(&mut text)?;
        Ok(serde_json::from_str(&text)?)
    }
}

fn text(value: &Value) -> Result<String> {
    value
        .as_str()
        .map(str::to_owned)
        .with_context(|| format!("{value} is not a string"))
}
