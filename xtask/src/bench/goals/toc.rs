//! Layers of which there is nothing but the TOC: it names gigabytes of chunks in a blob that is a hole, whose bytes
//! nobody asks for.

use std::{fmt::Write as _, fs::File, io::Write as _, os::unix::fs::FileExt as _, path::Path};

use anyhow::Result;
use forelayer_tests::fixtures::digest;
use serde_json::{Map, Value, json};

use super::{
    content::Digests,
    lab::{Lab, Published},
};

/// Which tool it looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Indented JSON in a tar.gz, chunks of 4 MiB.
    Estargz,
    /// JSON in a line, chunks of 64 KiB.
    Zstd,
}

impl Format {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Estargz => "eStargz",
            Self::Zstd => "zstd:chunked",
        }
    }

    fn chunk(self) -> u64 {
        match self {
            Self::Estargz => 4 << 20,
            Self::Zstd => 64 << 10,
        }
    }
}

/// What a layer holds.
pub(super) enum Item {
    Dir(String),
    /// Name and target.
    Link(String, String),
    /// Name and bytes.
    File(String, u64),
}

/// A TOC that is being written.
struct Toc {
    format: Format,
    json: String,
    /// Where the next chunk begins in the blob.
    offset: u64,
    digests: Digests,
}

impl Toc {
    fn put(&mut self, fields: &[(&str, &dyn std::fmt::Display)]) {
        let (start, field) = match self.format {
            Format::Estargz => ("\n\t\t{", "\n\t\t\t"),
            Format::Zstd => ("{", ""),
        };
        if !self.json.ends_with('[') {
            self.json.push(',');
        }
        self.json.push_str(start);
        for (number, (key, value)) in fields.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            // Writing to a text cannot fail.
            let _ = write!(self.json, "{comma}{field}\"{key}\":{value}");
        }
        self.json.push('}');
    }

    fn item(&mut self, item: &Item) {
        let text = |text: &str| format!("\"{text}\"");
        let time = text("2024-05-06T07:08:09Z");
        let (kind, name) = match item {
            Item::Dir(name) => ("dir", format!("{name}/")),
            Item::Link(name, _) => ("symlink", name.clone()),
            Item::File(name, _) => ("reg", name.clone()),
        };
        let (kind, name) = (text(kind), text(&name));
        match item {
            Item::Dir(_) => {
                self.put(&[
                    ("type", &kind),
                    ("name", &name),
                    ("mode", &493),
                    ("modtime", &time),
                ]);
            }
            Item::Link(_, target) => {
                let target = text(target);
                self.put(&[
                    ("type", &kind),
                    ("name", &name),
                    ("linkName", &target),
                    ("mode", &511),
                    ("modtime", &time),
                ]);
            }
            Item::File(_, size) => self.file(&kind, &name, &time, *size),
        }
    }

    /// A file and its chunks: compressed, each has half its bytes.
    fn file(&mut self, kind: &str, name: &str, time: &str, size: u64) {
        let most = self.format.chunk();
        let whole = size <= most;
        let content = format!("\"{}\"", self.digests.next());
        let end = self.offset + size.div_ceil(most) + size / 2 + 1;
        let mut at = 0;
        while at < size {
            let len = most.min(size - at);
            let chunk = if whole {
                content.clone()
            } else {
                format!("\"{}\"", self.digests.next())
            };
            let (offset, chunk_size) = (self.offset, if whole { 0 } else { len });
            let rest: [(&str, &dyn std::fmt::Display); 3] = [
                ("offset", &offset),
                ("chunkSize", &chunk_size),
                ("chunkDigest", &chunk),
            ];
            if at == 0 {
                let mut fields: Vec<(&str, &dyn std::fmt::Display)> = vec![
                    ("type", &kind),
                    ("name", &name),
                    ("mode", &420),
                    ("size", &size),
                    ("modtime", &time),
                    ("digest", &content),
                ];
                if self.format == Format::Zstd {
                    fields.push(("endOffset", &end));
                }
                fields.extend(rest);
                self.put(&fields);
            } else {
                let kind = "\"chunk\"";
                let mut fields: Vec<(&str, &dyn std::fmt::Display)> =
                    vec![("type", &kind), ("name", &name), ("chunkOffset", &at)];
                fields.extend(rest);
                self.put(&fields);
            }
            self.offset += len / 2 + 1;
            at += len;
        }
        self.offset = self.offset.max(end);
    }
}

/// Publishes an image of one such layer; its blob is a sparse file in `directory`. Different seeds, different layers.
pub(super) fn publish(
    lab: &Lab,
    directory: &Path,
    repository: &str,
    items: &[Item],
    format: Format,
    seed: u64,
) -> Result<Published> {
    let mut toc = Toc {
        format,
        json: "{\"version\":1,\"entries\":[".to_owned(),
        offset: 1000,
        digests: Digests::new(seed),
    };
    for item in items {
        toc.item(item);
    }
    toc.json.push_str("]}");
    let (json, at) = (toc.json.into_bytes(), toc.offset);
    let mut annotations = Map::new();
    let (section, key, footer, media_type) = match format {
        Format::Estargz => {
            let mut header = tar::Header::new_ustar();
            header.set_path("stargz.index.json")?;
            header.set_size(json.len() as u64);
            header.set_cksum();
            let mut gzip =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            gzip.write_all(header.as_bytes())?;
            gzip.write_all(&json)?;
            gzip.write_all(&vec![
                0;
                json.len().next_multiple_of(512) - json.len() + 1024
            ])?;
            let key = digest(&json);
            annotations.insert(
                "containerd.io/snapshot/stargz/toc.digest".to_owned(),
                key.clone().into(),
            );
            (gzip.finish()?, key, estargz_footer(at), "tar+gzip")
        }
        Format::Zstd => {
            let section = zstd::encode_all(&json[..], 3)?;
            let key = digest(&section);
            let prefix = "io.github.containers.zstd-chunked";
            annotations.insert(format!("{prefix}.manifest-checksum"), key.clone().into());
            annotations.insert(
                format!("{prefix}.manifest-position"),
                format!("{at}:{}:{}:1", section.len(), json.len()).into(),
            );
            // The footer is not asked for where the manifest says where the TOC is.
            (section, key, vec![0; 72], "tar+zstd")
        }
    };
    let path = directory.join(repository.replace('/', "-"));
    let file = File::create(&path)?;
    file.write_all_at(&section, at)?;
    file.write_all_at(&footer, at + section.len() as u64)?;
    let size = at + (section.len() + footer.len()) as u64;
    // Nobody can tell: all that is ever asked for is the TOC.
    let blob = digest(format!("{repository} {seed} {key}").as_bytes());
    lab.server.content().add_blob_file_as(&blob, &path)?;
    let media_type = format!("application/vnd.oci.image.layer.v1.{media_type}");
    let layer =
        json!({"mediaType": media_type, "digest": blob, "size": size, "annotations": annotations});
    manifest(lab, repository, &layer, &key)?;
    Ok(Published {
        reference: format!("{}/{repository}:1", lab.server.host()),
        keys: vec![key],
    })
}

/// Puts configuration and manifest of a layer into the registry.
fn manifest(lab: &Lab, repository: &str, layer: &Value, key: &str) -> Result<()> {
    let content = lab.server.content();
    let architecture = forelayer_tests::engine::images::architecture();
    // Of a tar that is not there; the newer engines take it for a claim.
    let diff_id = digest(format!("tar of {key}").as_bytes());
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    let config = serde_json::to_vec(&config)?;
    let size = config.len();
    let config = content.add_blob(config);
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": size},
        "layers": [layer],
    });
    let manifest = content.add_manifest(media_type, serde_json::to_vec(&manifest)?);
    content.tag(repository, "1", &manifest);
    Ok(())
}

/// An empty gzip member that says where the TOC starts (docs/formats.md, "Footers").
fn estargz_footer(at: u64) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0];
    out.extend(b"SG\x16\0");
    out.extend(format!("{at:016x}STARGZ").as_bytes());
    out.extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    out
}
