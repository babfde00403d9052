//! The `info` document: what an engine believes of a layer (docs/formats.md, "info").
//!
//! The field names are those of containers/storage's `Layer` record; engines copy them verbatim into layers.json.

use serde::Serialize;

use crate::{
    digest::Digest,
    format::{LayerFormat, index::BlobFacts},
};

/// Everything the document is made of.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// The digest the engine asked with.
    pub key: Digest,
    /// The blob.
    pub blob: &'a BlobFacts,
    /// What the image's config calls the layer's uncompressed digest.
    pub diff_id: Digest,
    /// Bytes of the uncompressed layer: of its tar where the manifest says it, otherwise of its files' content.
    pub size: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Document {
    #[serde(skip_serializing_if = "Option::is_none")]
    diff_digest: Option<Digest>,
    diff_size: i64,
    compression: u8,
    compressed_diff_digest: Digest,
    compressed_size: u64,
    toc_digest: Digest,
    flags: Flags,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Flags {
    expected_layer_diffid: Digest,
}

/// Writes the document.
///
/// The DiffID is not proven before the whole layer was read, so `diff-digest`, which engines trust for other images
/// too, is left out, unless the engine asked by blob digest: that generation (Podman up to 5.0, CRI-O up to 1.30)
/// panics without it and takes it from the manifest's config in an ordinary pull as well.
#[must_use]
pub fn document(facts: &Facts<'_>) -> Vec<u8> {
    let by_blob = facts.key == facts.blob.blob;
    let document = Document {
        diff_digest: by_blob.then_some(facts.diff_id),
        diff_size: if by_blob {
            i64::try_from(facts.size).unwrap_or(-1)
        } else {
            -1
        },
        // containers/storage, pkg/archive: Compression.
        compression: match facts.blob.format {
            LayerFormat::Estargz => 2,
            LayerFormat::ZstdChunked => 4,
        },
        compressed_diff_digest: facts.blob.blob,
        compressed_size: facts.blob.size,
        toc_digest: facts.blob.toc,
        flags: Flags {
            expected_layer_diffid: facts.diff_id,
        },
    };
    serde_json::to_vec(&document).expect("a struct of strings and numbers is always JSON")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn blob() -> BlobFacts {
        BlobFacts {
            blob: Digest::of(b"blob"),
            size: 1234,
            format: LayerFormat::ZstdChunked,
            toc: Digest::of(b"toc"),
            bound: true,
        }
    }

    #[test]
    fn the_document_for_each_engine_generation_is_pinned() {
        let blob = blob();
        let diff_id = Digest::of(b"diff");
        let old = document(&Facts {
            key: blob.blob,
            blob: &blob,
            diff_id,
            size: 77,
        });
        let new = document(&Facts {
            key: blob.toc,
            blob: &blob,
            diff_id,
            size: 77,
        });
        let rest = format!(
            r#""compression":4,"compressed-diff-digest":"{}","compressed-size":1234,"toc-digest":"{}","flags":{{"expected-layer-diffid":"{diff_id}"}}}}"#,
            blob.blob, blob.toc
        );
        assert_eq!(
            String::from_utf8(old).unwrap(),
            format!(r#"{{"diff-digest":"{diff_id}","diff-size":77,{rest}"#)
        );
        assert_eq!(
            String::from_utf8(new).unwrap(),
            format!(r#"{{"diff-size":-1,{rest}"#)
        );
    }
}
