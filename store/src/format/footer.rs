//! The end of a blob says where its TOC lies (docs/formats.md, "Footers").
//!
//! Invariant: a [`TocPlace`] handed out lies inside the blob and holds at least one byte.

use super::LayerFormat;

/// Where the TOC's compressed bytes lie in the blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TocPlace {
    /// First byte.
    pub offset: u64,
    /// Compressed length in bytes; for eStargz everything up to the footer.
    pub len: u64,
    /// Uncompressed length in bytes, where the format says it (zstd:chunked).
    pub raw_len: Option<u64>,
    /// Which format the blob is written in.
    pub format: LayerFormat,
}

impl TocPlace {
    /// The place itself, if it lies inside a blob of `blob_size` bytes and is not empty; else why not.
    pub(crate) fn within(self, blob_size: u64) -> Result<Self, String> {
        if self.len == 0 {
            return Err("the TOC has no bytes".to_owned());
        }
        match self.offset.checked_add(self.len) {
            Some(end) if end <= blob_size => Ok(self),
            _ => Err(format!(
                "the TOC ({} bytes at offset {}) lies outside of the blob of {blob_size} bytes",
                self.len, self.offset
            )),
        }
    }
}

/// Bytes from the blob's end that [`parse`] looks at: the longest footer (64 bytes) and its frame's header.
pub const MAX_FOOTER_LEN: u64 = (ZSTD_LEN + SKIPPABLE_HEADER) as u64;

const ESTARGZ_LEN: usize = 51;
const LEGACY_LEN: usize = 47;
const EXTERNAL_LEN: usize = 46;
const ZSTD_OLD_LEN: usize = 40;
const ZSTD_LEN: usize = 64;
/// Magic number and length in front of a skippable frame's content.
const SKIPPABLE_HEADER: usize = 8;
/// The skippable frame type that both writers of zstd:chunked use.
const SKIPPABLE_MAGIC: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];

/// Why the end of a blob gives no TOC.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FooterError {
    /// No footer of a lazy format is there: an ordinary layer.
    #[error("the blob does not end with the footer of eStargz or zstd:chunked")]
    None,
    /// The TOC is in another image, which this store does not read.
    #[error(
        "the blob is eStargz with an external TOC (in an image of its own, \"<reference>-esgztoc\"), which is not \
         supported: convert the image with the TOC inside"
    )]
    ExternalToc,
    /// A footer is there and says something impossible.
    #[error("the {format:?} footer cannot be used: {why}")]
    Malformed {
        /// Whose footer.
        format: LayerFormat,
        /// What is wrong.
        why: String,
    },
}

/// Finds the TOC from the last bytes of a blob. `tail` should hold at least [`MAX_FOOTER_LEN`] bytes or the whole blob;
/// more does no harm.
///
/// # Errors
/// [`FooterError::None`] for every blob that is not in a lazy format.
pub fn parse(tail: &[u8], blob_size: u64) -> Result<TocPlace, FooterError> {
    if let Some(found) = zstd(tail, blob_size) {
        return found;
    }
    if last(tail, EXTERNAL_LEN)
        .and_then(gzip_extra)
        .and_then(|extra| subfield(extra, 17))
        == Some(b"STARGZEXTERNALTOC")
    {
        return Err(FooterError::ExternalToc);
    }
    let estargz = last(tail, ESTARGZ_LEN)
        .and_then(gzip_extra)
        .and_then(|extra| subfield(extra, 22))
        .map(|text| (text, ESTARGZ_LEN));
    let legacy = last(tail, LEGACY_LEN)
        .and_then(gzip_extra)
        .filter(|extra| extra.len() == 22)
        .map(|text| (text, LEGACY_LEN));
    for (text, footer_len) in [estargz, legacy].into_iter().flatten() {
        let Some((digits, b"STARGZ")) = text.split_at_checked(16) else {
            continue;
        };
        return gzip(digits, footer_len, blob_size).map_err(|why| FooterError::Malformed {
            format: LayerFormat::Estargz,
            why,
        });
    }
    Err(FooterError::None)
}

fn last(tail: &[u8], len: usize) -> Option<&[u8]> {
    tail.get(tail.len().checked_sub(len)?..)
}

/// The `Extra` field of the gzip member that `bytes` are, if they are one that holds no data.
fn gzip_extra(bytes: &[u8]) -> Option<&[u8]> {
    // Magic, deflate, FEXTRA and nothing else; time, compression flags and system are of no matter.
    if bytes.get(..4)? != [0x1f, 0x8b, 8, 4] {
        return None;
    }
    let len = usize::from(u16::from_le_bytes([*bytes.get(10)?, *bytes.get(11)?]));
    // What follows is one empty stored block (5 bytes) and the trailer (8).
    if bytes.len() != 12 + len + 13 {
        return None;
    }
    bytes.get(12..12 + len)
}

/// The content of the `SG` subfield of this length, if the extra field is exactly that.
fn subfield(extra: &[u8], len: usize) -> Option<&[u8]> {
    let (head, content) = extra.split_at_checked(4)?;
    let said = usize::from(u16::from_le_bytes([head[2], head[3]]));
    (&head[..2] == b"SG" && said == len && content.len() == len).then_some(content)
}

fn gzip(digits: &[u8], footer_len: usize, blob_size: u64) -> Result<TocPlace, String> {
    let text = std::str::from_utf8(digits).unwrap_or("");
    let hexadecimal = text.bytes().all(|b| b.is_ascii_hexdigit());
    let offset = u64::from_str_radix(text, 16)
        .ok()
        .filter(|_| hexadecimal)
        .ok_or_else(|| format!("{:?} is no offset", String::from_utf8_lossy(digits)))?;
    let toc_end = blob_size.saturating_sub(footer_len as u64);
    TocPlace {
        offset,
        len: toc_end.saturating_sub(offset),
        raw_len: None,
        format: LayerFormat::Estargz,
    }
    .within(toc_end)
}

fn zstd(tail: &[u8], blob_size: u64) -> Option<Result<TocPlace, FooterError>> {
    let footer = if tail.ends_with(b"GNUlInUx") {
        last(tail, ZSTD_LEN)?
    } else if tail.ends_with(b"GnUlInUx") {
        last(tail, ZSTD_OLD_LEN)?
    } else {
        return None;
    };
    let header = last(tail, footer.len() + SKIPPABLE_HEADER)?.get(..SKIPPABLE_HEADER)?;
    let said = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    if header[..4] != SKIPPABLE_MAGIC || said as usize != footer.len() {
        return None;
    }
    let number = |n: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&footer[n * 8..n * 8 + 8]);
        u64::from_le_bytes(bytes)
    };
    let place = TocPlace {
        offset: number(0),
        len: number(1),
        raw_len: Some(number(2)),
        format: LayerFormat::ZstdChunked,
    };
    let found = match number(3) {
        1 => place.within(blob_size.saturating_sub((footer.len() + SKIPPABLE_HEADER) as u64)),
        kind => Err(format!("manifest type {kind} is unknown, 1 is expected")),
    };
    Some(found.map_err(|why| FooterError::Malformed {
        format: LayerFormat::ZstdChunked,
        why,
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gzip_footer(extra: &[u8]) -> Vec<u8> {
        let mut footer = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff];
        footer.extend(u16::try_from(extra.len()).unwrap_or(0).to_le_bytes());
        footer.extend(extra);
        footer.extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
        footer
    }

    fn sg(content: &[u8]) -> Vec<u8> {
        let mut extra = b"SG".to_vec();
        extra.extend(u16::try_from(content.len()).unwrap_or(0).to_le_bytes());
        extra.extend(content);
        extra
    }

    fn zstd_footer(numbers: &[u64], magic: &[u8]) -> Vec<u8> {
        let mut footer = SKIPPABLE_MAGIC.to_vec();
        let len = u32::try_from(numbers.len() * 8 + 8).unwrap_or(0);
        footer.extend(len.to_le_bytes());
        for number in numbers {
            footer.extend(number.to_le_bytes());
        }
        footer.extend(magic);
        footer
    }

    fn place(offset: u64, len: u64, raw_len: Option<u64>, format: LayerFormat) -> TocPlace {
        TocPlace {
            offset,
            len,
            raw_len,
            format,
        }
    }

    #[test]
    fn every_known_footer_is_read() {
        let mut blob = vec![7; 1000];
        let estargz = gzip_footer(&sg(b"0000000000000100STARGZ"));
        assert_eq!(estargz.len(), ESTARGZ_LEN);
        blob.extend(&estargz);
        assert_eq!(
            parse(&blob, 1051),
            Ok(place(256, 744, None, LayerFormat::Estargz))
        );
        // The tail alone says the same.
        assert_eq!(parse(&estargz, 1051), parse(&blob, 1051));

        let legacy = gzip_footer(b"0000000000000100STARGZ");
        assert_eq!(legacy.len(), LEGACY_LEN);
        assert_eq!(
            parse(&legacy, 1047),
            Ok(place(256, 744, None, LayerFormat::Estargz))
        );

        let old = zstd_footer(&[100, 20, 300, 1], b"GnUlInUx");
        assert_eq!(old.len(), ZSTD_OLD_LEN + SKIPPABLE_HEADER);
        let expected = Ok(place(100, 20, Some(300), LayerFormat::ZstdChunked));
        assert_eq!(parse(&old, 1000), expected);

        let new = zstd_footer(&[100, 20, 300, 1, 128, 10, 30], b"GNUlInUx");
        assert_eq!(new.len() as u64, MAX_FOOTER_LEN);
        assert_eq!(parse(&new, 1000), expected);
    }

    #[test]
    fn an_external_toc_is_recognised_and_refused() {
        let footer = gzip_footer(&sg(b"STARGZEXTERNALTOC"));
        assert_eq!(footer.len(), EXTERNAL_LEN);
        assert_eq!(parse(&footer, 1000), Err(FooterError::ExternalToc));
    }

    #[test]
    fn other_blobs_have_none() {
        for tail in [
            &b""[..],
            &[0; 100],
            &gzip_footer(b"")[..],
            &gzip_footer(&sg(b"0000000000000100STARGX"))[..],
            b"GNUlInUx",
            &[&[0_u8; 64][..], b"GnUlInUx"].concat(),
        ] {
            assert_eq!(parse(tail, 1000), Err(FooterError::None), "{tail:?}");
        }
    }

    #[test]
    fn impossible_places_are_refused() {
        for footer in [
            gzip_footer(&sg(b"00000000000003e8STARGZ")),
            gzip_footer(&sg(b"ffffffffffffffffSTARGZ")),
            gzip_footer(&sg(b"+000000000000100STARGZ")),
            gzip_footer(&sg(b"000000000000010gSTARGZ")),
            zstd_footer(&[u64::MAX, 20, 300, 1], b"GnUlInUx"),
            zstd_footer(&[900, 100, 300, 1], b"GnUlInUx"),
            zstd_footer(&[100, 0, 300, 1], b"GnUlInUx"),
            zstd_footer(&[100, 20, 300, 2], b"GnUlInUx"),
        ] {
            let found = parse(&footer, 1000);
            assert!(
                matches!(found, Err(FooterError::Malformed { .. })),
                "{found:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(tail: Vec<u8>, size: u64) {
            let _ = parse(&tail, size);
        }

        #[test]
        fn a_place_lies_inside_the_blob(offset: u64, len: u64, raw: u64, size: u64) {
            if let Ok(found) = parse(&zstd_footer(&[offset, len, raw, 1], b"GnUlInUx"), size) {
                prop_assert!(found.len > 0 && found.offset + found.len <= size);
            }
        }
    }
}
