//! How large a TOC may be before it is refused: protects memory and disk from a hostile image.

/// Upper bounds; the defaults fit images of 20 GB.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Entries of a TOC, chunk entries included.
    pub max_entries: u32,
    /// Bytes of a TOC's JSON, uncompressed.
    pub max_toc_bytes: u64,
    /// Bytes of a path, and of the target of a link.
    pub max_path_bytes: u32,
    /// Directories above an entry.
    pub max_depth: u32,
    /// Bytes of all extended attributes of one entry, names and values.
    pub max_xattr_bytes: u32,
    /// Decoded bytes of one chunk: it is held in memory while it is verified. Also bounds what lies in front of a
    /// chunk in its stream. Runs of zeros are not chunks in this sense.
    pub max_chunk_bytes: u64,
    /// Decoded bytes of a layer's files together, runs of zeros included: the length of the cache's data file.
    pub max_data_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_entries: 2_000_000,
            max_toc_bytes: 512 << 20,
            max_path_bytes: 4096,
            max_depth: 512,
            max_xattr_bytes: 64 << 10,
            max_chunk_bytes: 256 << 20,
            // Well below the 16 TiB that a file may have on ext4.
            max_data_bytes: 8 << 40,
        }
    }
}
