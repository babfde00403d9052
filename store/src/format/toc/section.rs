//! The compressed TOC as it lies in the blob: where its JSON is, and which bytes its digest is about.
//!
//! Invariant: entries of a TOC with a wrong digest never decide anything: the digest is compared before any other
//! error is answered.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use super::{TocError, entry::RawEntry, json, name::TOC_FILE, piped::piped};
use crate::{
    digest::Digest,
    format::{LayerFormat, footer::TocPlace, limits::Limits},
};

/// Reads the entries of a TOC and answers its digest by the format's rule: eStargz hashes the JSON, zstd:chunked the
/// compressed bytes.
pub(super) fn read(
    section: &[u8],
    place: &TocPlace,
    expected: Option<Digest>,
    limits: &Limits,
    on_entry: impl FnMut(RawEntry<'_>) -> Result<(), TocError>,
) -> Result<Digest, TocError> {
    // The longest entry: its path, its link and its attributes, all of them escaped.
    let max_entry =
        (1 << 20) + 12 * limits.max_path_bytes as usize + 8 * limits.max_xattr_bytes as usize;
    let compare = |found: Digest| match expected {
        Some(expected) if expected != found => Err(TocError::Digest { expected, found }),
        _ => Ok(found),
    };
    match place.format {
        LayerFormat::ZstdChunked => {
            let found = compare(Digest::of(section))?;
            let len = place.raw_len.unwrap_or(limits.max_toc_bytes);
            if len > limits.max_toc_bytes {
                return Err(TocError::Size {
                    len,
                    limit: limits.max_toc_bytes,
                });
            }
            let decoder =
                zstd::stream::read::Decoder::with_buffer(section).map_err(TocError::Unpack)?;
            // One byte more than it may have shows that it has more.
            let unpacked = decoder.take(len + 1);
            let (read, count) = piped(unpacked, |pipe| {
                let mut reader = Counted {
                    reader: pipe,
                    hasher: None,
                    count: 0,
                };
                let read = json::read_entries(&mut reader, max_entry, on_entry);
                (read, reader.count)
            })
            .map_err(TocError::Unpack)?;
            if count > len {
                return Err(TocError::Size {
                    len: count,
                    limit: len,
                });
            }
            read?;
            if place.raw_len.is_some_and(|raw_len| raw_len != count) {
                return Err(TocError::Place(format!(
                    "it decompresses to {count} bytes, not to {len}"
                )));
            }
            Ok(found)
        }
        LayerFormat::Estargz => {
            let mut unpacked = flate2::bufread::GzDecoder::new(section);
            let len = json_len(&mut unpacked)?;
            if len > limits.max_toc_bytes {
                return Err(TocError::Size {
                    len,
                    limit: limits.max_toc_bytes,
                });
            }
            piped(unpacked.take(len), |pipe| {
                let mut reader = Counted {
                    reader: pipe,
                    hasher: Some(Sha256::new()),
                    count: 0,
                };
                let read = json::read_entries(&mut reader, max_entry, on_entry);
                // All of it belongs to the digest, also what comes behind an error.
                let drained = io::copy(&mut reader, &mut io::sink());
                let hash = reader.hasher.take().unwrap_or_default();
                if drained.is_ok() && reader.count == len {
                    compare(Digest::from_bytes(hash.finalize().into()))
                        .and_then(|found| read.map(|()| found))
                } else {
                    read.and_then(|()| {
                        Err(TocError::Archive(format!(
                            "{TOC_FILE} ends after {} of {len} bytes",
                            reader.count
                        )))
                    })
                }
            })
            .map_err(TocError::Unpack)?
        }
    }
}

/// Reads the header of the archive in an eStargz section and answers the length of the JSON that follows it.
fn json_len(unpacked: &mut impl Read) -> Result<u64, TocError> {
    let mut block = [0; 512];
    unpacked.read_exact(&mut block).map_err(TocError::Unpack)?;
    let header = tar::Header::from_byte_slice(&block);
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(n, &byte)| u32::from(if (148..156).contains(&n) { b' ' } else { byte }))
        .sum();
    if !header.cksum().is_ok_and(|found| found == sum) {
        return Err(TocError::Archive(
            "it does not start with a tar header".to_owned(),
        ));
    }
    let name = header.path_bytes();
    if *name != *TOC_FILE.as_bytes() || !header.entry_type().is_file() {
        return Err(TocError::Archive(format!(
            "it holds {:?}, {TOC_FILE} is expected",
            String::from_utf8_lossy(&name)
        )));
    }
    header
        .entry_size()
        .map_err(|error| TocError::Archive(format!("the size of {TOC_FILE} is malformed: {error}")))
}

/// Counts, and hashes if it is to, what is read.
struct Counted<R> {
    reader: R,
    hasher: Option<Sha256>,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buf)?;
        self.count += read as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buf[..read]);
        }
        Ok(read)
    }
}
