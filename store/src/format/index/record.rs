//! The fixed-size records of an index file and how they lie in bytes (docs/formats.md, "LayerIndex").

/// First bytes of every index file.
pub(crate) const MAGIC: [u8; 8] = *b"FORELAYR";
/// Version of the layout; a file with another one is built again.
pub(crate) const VERSION: u32 = 1;
/// Bytes of the header; the sections follow it without gaps.
pub(crate) const HEADER_LEN: usize = 256;
/// Where the header's own checksum lies; it counts as zero while the header is hashed.
pub(crate) const HEADER_CRC: usize = 12;

/// [`Header::flags`]: the blob is zstd:chunked, otherwise eStargz.
pub(crate) const FLAG_ZSTD: u32 = 1;
/// [`Header::flags`]: the TOC is bound to the blob.
pub(crate) const FLAG_BOUND: u32 = 2;
/// [`Header::flags`]: some node has extended attributes.
pub(crate) const FLAG_XATTRS: u32 = 4;
/// [`Header::flags`]: `prefetch_end` is meant.
pub(crate) const FLAG_PREFETCH: u32 = 8;

/// [`ChunkRecord::flags`]: a run of zeros.
pub(crate) const CHUNK_ZEROS: u32 = 1;

/// [`NodeRecord::content`]: the TOC does not give the digest of the whole content.
pub(crate) const CONTENT_NONE: u32 = u32::MAX;
/// [`NodeRecord::content`]: the file is one chunk, whose digest it is.
pub(crate) const CONTENT_CHUNK: u32 = u32::MAX - 1;

/// A fixed-size record.
pub(crate) trait Record: Sized {
    /// Its length in bytes.
    const LEN: usize;
    /// Appends its bytes.
    fn write(&self, out: &mut Vec<u8>);
    /// Reads it back; `None` if `bytes` is not [`Record::LEN`] long.
    fn read(bytes: &[u8]) -> Option<Self>;
}

/// Declares a record as its fields in the order in which they lie in the file, little-endian.
macro_rules! record {
    ($(#[$meta:meta])* $name:ident, $len:expr, { $($(#[$doc:meta])* $field:ident: $kind:ty),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub(crate) struct $name { $($(#[$doc])* pub(crate) $field: $kind),+ }

        impl Record for $name {
            const LEN: usize = $len;

            fn write(&self, out: &mut Vec<u8>) {
                let before = out.len();
                $(out.extend_from_slice(&Field::bytes(&self.$field));)+
                debug_assert_eq!(out.len() - before, Self::LEN);
            }

            fn read(bytes: &[u8]) -> Option<Self> {
                if bytes.len() != Self::LEN {
                    return None;
                }
                let mut rest = bytes;
                Some(Self { $($field: take(&mut rest)?),+ })
            }
        }
    };
}

/// A field of a record.
trait Field: Sized {
    type Bytes: AsRef<[u8]> + Default + AsMut<[u8]> + IntoIterator<Item = u8>;
    fn bytes(&self) -> Self::Bytes;
    fn of(bytes: Self::Bytes) -> Self;
}

macro_rules! number {
    ($($kind:ty),+) => { $(impl Field for $kind {
        type Bytes = [u8; size_of::<$kind>()];
        fn bytes(&self) -> Self::Bytes { self.to_le_bytes() }
        fn of(bytes: Self::Bytes) -> Self { Self::from_le_bytes(bytes) }
    })+ };
}
number!(u8, u16, u32, u64, i64);

impl Field for [u8; 32] {
    type Bytes = Self;
    fn bytes(&self) -> Self {
        *self
    }
    fn of(bytes: Self) -> Self {
        bytes
    }
}

impl Field for [u8; 8] {
    type Bytes = Self;
    fn bytes(&self) -> Self {
        *self
    }
    fn of(bytes: Self) -> Self {
        bytes
    }
}

fn take<F: Field>(rest: &mut &[u8]) -> Option<F> {
    let mut bytes = F::Bytes::default();
    let (head, tail) = rest.split_at_checked(bytes.as_ref().len())?;
    bytes.as_mut().copy_from_slice(head);
    *rest = tail;
    Some(F::of(bytes))
}

record!(
    /// What the file says of itself; the rest of the 256 bytes is zero.
    Header, 152, {
        magic: [u8; 8],
        version: u32,
        /// CRC-32C of the header with this field zero.
        header_crc: u32,
        /// CRC-32C of everything behind the header.
        body_crc: u32,
        flags: u32,
        file_len: u64,
        blob: [u8; 32],
        blob_size: u64,
        toc: [u8; 32],
        /// Decoded bytes of all chunks.
        data_len: u64,
        /// Where in the blob the files that its builder put first end (eStargz landmark).
        prefetch_end: u64,
        nodes: u32,
        children: u32,
        chunks: u32,
        xattrs: u32,
        digests: u32,
        reserved: u32,
        strings_len: u64,
    }
);

record!(
    /// A node: a file, directory or other object.
    NodeRecord, 80, {
        parent: u32,
        name_at: u32,
        name_len: u16,
        /// The [`super::Kind`] by its number.
        kind: u8,
        reserved: u8,
        mode: u16,
        reserved2: u16,
        uid: u32,
        gid: u32,
        mtime: i64,
        mtime_nsec: u32,
        nlink: u32,
        size: u64,
        /// First child of a directory, first chunk of a file.
        first: u32,
        /// How many.
        count: u32,
        /// Major number of a device; where the target of a symbolic link lies in the strings.
        a: u32,
        /// Minor number of a device; length of the target.
        b: u32,
        xattr_first: u32,
        xattr_count: u32,
        /// Number of the digest of the whole content, or one of the `CONTENT_` values.
        content: u32,
        reserved3: u32,
    }
);

record!(
    /// A name in a directory.
    ChildRecord, 12, {
        name_at: u32,
        name_len: u16,
        reserved: u16,
        node: u32,
    }
);

record!(
    /// A piece of a file's content.
    ChunkRecord, 88, {
        node: u32,
        flags: u32,
        file_offset: u64,
        len: u64,
        data_offset: u64,
        span_start: u64,
        span_end: u64,
        skip: u64,
        digest: [u8; 32],
    }
);

record!(
    /// An extended attribute.
    XattrRecord, 16, {
        name_at: u32,
        name_len: u32,
        value_at: u32,
        value_len: u32,
    }
);

record!(
    /// The digest of a file's whole content.
    DigestRecord, 32, {
        digest: [u8; 32],
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_as_long_as_it_says_and_reads_back() {
        fn check<R: Record + PartialEq + std::fmt::Debug>(record: &R) {
            let mut bytes = Vec::new();
            record.write(&mut bytes);
            assert_eq!(bytes.len(), R::LEN);
            assert_eq!(R::read(&bytes).as_ref(), Some(record));
            assert_eq!(R::read(&bytes[1..]), None);
        }
        check(&Header {
            magic: MAGIC,
            strings_len: 77,
            ..Header::default()
        });
        check(&NodeRecord {
            mtime: -5,
            content: CONTENT_NONE,
            ..NodeRecord::default()
        });
        check(&ChildRecord {
            node: 3,
            ..ChildRecord::default()
        });
        check(&ChunkRecord {
            digest: [9; 32],
            skip: u64::MAX,
            ..ChunkRecord::default()
        });
        check(&XattrRecord {
            value_len: 4,
            ..XattrRecord::default()
        });
        check(&DigestRecord { digest: [1; 32] });
    }
}
