//! What a manifest says of a lazy layer in its descriptor's annotations, old names and new.
//!
//! Invariant: an answer other than `None` always carries the TOC's digest, so that a TOC found with it is bound to the
//! layer by the manifest.

use std::collections::BTreeMap;

use super::{LayerFormat, footer::TocPlace};
use crate::digest::Digest;

/// eStargz: digest of the uncompressed TOC JSON.
pub const ESTARGZ_TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
/// Prefix of the zstd:chunked annotations of containers/storage since 1.44.
pub const ZSTD_CHUNKED: &str = "io.github.containers.zstd-chunked.";
/// Prefix that containers/storage up to 1.43 (Podman 4.3) and the stargz tools use.
pub const ZSTD_CHUNKED_OLD: &str = "io.containers.zstd-chunked.";
/// Behind either prefix: digest of the compressed TOC.
pub const MANIFEST_CHECKSUM: &str = "manifest-checksum";
/// Behind either prefix: `offset:length:uncompressed length:type` of the TOC.
pub const MANIFEST_POSITION: &str = "manifest-position";

/// A layer that its manifest declares lazy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotated {
    /// The format.
    pub format: LayerFormat,
    /// The TOC's digest by that format's rule.
    pub toc: Digest,
    /// Where the TOC lies, where the annotations say it (zstd:chunked).
    pub place: Option<TocPlace>,
}

/// Reads a descriptor's annotations. `Ok(None)`: an ordinary layer.
///
/// The stargz tools put [`ESTARGZ_TOC_DIGEST`] beside the old zstd:chunked names on one layer; that is a zstd:chunked
/// layer. Beside the new names it is [`AnnotationError::Both`], as for the engines.
///
/// # Errors
/// When an annotation that makes the layer lazy has a value that cannot be used. `blob_size` is the descriptor's size;
/// a position outside of it is such a value.
pub fn annotated(
    annotations: &BTreeMap<String, String>,
    blob_size: u64,
) -> Result<Option<Annotated>, AnnotationError> {
    let estargz = annotations.get(ESTARGZ_TOC_DIGEST);
    for prefix in [ZSTD_CHUNKED, ZSTD_CHUNKED_OLD] {
        let name = format!("{prefix}{MANIFEST_CHECKSUM}");
        let Some(checksum) = annotations.get(&name) else {
            continue;
        };
        if estargz.is_some() && prefix == ZSTD_CHUNKED {
            return Err(AnnotationError::Both);
        }
        let toc = digest(&name, checksum)?;
        let name = format!("{prefix}{MANIFEST_POSITION}");
        let place = match annotations.get(&name) {
            Some(value) => {
                Some(
                    position(value, blob_size).map_err(|why| AnnotationError::Malformed {
                        name,
                        value: shorten(value),
                        why,
                    })?,
                )
            }
            None => None,
        };
        return Ok(Some(Annotated {
            format: LayerFormat::ZstdChunked,
            toc,
            place,
        }));
    }
    let Some(value) = estargz else {
        return Ok(None);
    };
    Ok(Some(Annotated {
        format: LayerFormat::Estargz,
        toc: digest(ESTARGZ_TOC_DIGEST, value)?,
        place: None,
    }))
}

fn digest(name: &str, value: &str) -> Result<Digest, AnnotationError> {
    value.parse().map_err(
        |error: crate::digest::DigestError| AnnotationError::Malformed {
            name: name.to_owned(),
            value: shorten(value),
            why: error.to_string(),
        },
    )
}

/// `offset:length:uncompressed length:type`.
fn position(value: &str, blob_size: u64) -> Result<TocPlace, String> {
    let mut numbers = [0_u64; 4];
    let mut parts = value.split(':');
    for number in &mut numbers {
        let part = parts.next().ok_or("it has fewer than four numbers")?;
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return Err(format!("{part:?} is not a number"));
        }
        *number = part
            .parse()
            .map_err(|_| format!("{part} does not fit 64 bits"))?;
    }
    if parts.next().is_some() {
        return Err("it has more than four numbers".to_owned());
    }
    let [offset, len, raw_len, kind] = numbers;
    if kind != 1 {
        return Err(format!("manifest type {kind} is unknown, 1 is expected"));
    }
    TocPlace {
        offset,
        len,
        raw_len: Some(raw_len),
        format: LayerFormat::ZstdChunked,
    }
    .within(blob_size)
}

/// Keeps a hostile text from filling a log line.
fn shorten(text: &str) -> String {
    text.chars().take(100).collect()
}

/// Why the annotations of a layer cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    /// The value of an annotation is malformed.
    #[error("annotation {name} has a value that cannot be used: {value:?}: {why}")]
    Malformed {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
        /// Why.
        why: String,
    },
    /// Both formats are announced; no engine accepts that either.
    #[error("the layer is annotated as eStargz and as zstd:chunked at once")]
    Both,
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn map(pairs: &[(String, String)]) -> BTreeMap<String, String> {
        pairs.iter().cloned().collect()
    }

    fn zstd(prefix: &str, position: &str) -> BTreeMap<String, String> {
        map(&[
            (
                format!("{prefix}{MANIFEST_CHECKSUM}"),
                Digest::of(b"toc").to_string(),
            ),
            (format!("{prefix}{MANIFEST_POSITION}"), position.to_owned()),
        ])
    }

    #[test]
    fn old_and_new_names_of_zstd_chunked_give_digest_and_place() {
        for prefix in [ZSTD_CHUNKED, ZSTD_CHUNKED_OLD] {
            let found = annotated(&zstd(prefix, "100:20:300:1"), 200)
                .unwrap()
                .unwrap();
            assert_eq!(found.format, LayerFormat::ZstdChunked);
            assert_eq!(found.toc, Digest::of(b"toc"));
            let place = found.place.unwrap();
            assert_eq!(
                (place.offset, place.len, place.raw_len),
                (100, 20, Some(300))
            );
        }
    }

    #[test]
    fn estargz_gives_the_digest_only() {
        let toc = Digest::of(b"toc");
        let found = annotated(
            &map(&[(ESTARGZ_TOC_DIGEST.to_owned(), toc.to_string())]),
            200,
        );
        assert_eq!(
            found,
            Ok(Some(Annotated {
                format: LayerFormat::Estargz,
                toc,
                place: None
            }))
        );
    }

    #[test]
    fn other_annotations_are_an_ordinary_layer() {
        let other = map(&[("org.example.title".to_owned(), "x".to_owned())]);
        assert_eq!(annotated(&other, 200), Ok(None));
        assert_eq!(annotated(&BTreeMap::new(), 0), Ok(None));
    }

    #[test]
    fn positions_that_cannot_be_are_refused() {
        for bad in [
            "",
            "1:2:3",
            "1:2:3:1:5",
            "100:20:300:2",
            "-1:20:300:1",
            "+1:20:300:1",
            "100:101:300:1",
            "18446744073709551615:2:3:1",
            "99999999999999999999:2:3:1",
            "100:0:300:1",
            "a:b:c:d",
        ] {
            let error = annotated(&zstd(ZSTD_CHUNKED, bad), 200).unwrap_err();
            assert!(
                matches!(error, AnnotationError::Malformed { .. }),
                "{bad:?}: {error}"
            );
        }
    }

    #[test]
    fn digests_that_are_none_are_refused() {
        let bad = map(&[(ESTARGZ_TOC_DIGEST.to_owned(), "sha256:xyz".to_owned())]);
        assert!(matches!(
            annotated(&bad, 200),
            Err(AnnotationError::Malformed { .. })
        ));
    }

    #[test]
    fn both_formats_at_once_are_refused_unless_the_stargz_tools_wrote_them() {
        let toc = Digest::of(b"json").to_string();
        let mut both = zstd(ZSTD_CHUNKED, "100:20:300:1");
        both.insert(ESTARGZ_TOC_DIGEST.to_owned(), toc.clone());
        assert_eq!(annotated(&both, 200), Err(AnnotationError::Both));
        let mut tools = zstd(ZSTD_CHUNKED_OLD, "100:20:300:1");
        tools.insert(ESTARGZ_TOC_DIGEST.to_owned(), toc);
        assert_eq!(
            annotated(&tools, 200).unwrap().unwrap().format,
            LayerFormat::ZstdChunked
        );
    }
}
