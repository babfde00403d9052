//! Every reason for which an entry of a TOC is refused, as a sentence for the log and `image check`.

/// Why an entry was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A field is missing, has the wrong type, or a number is negative or too large.
    #[error("its fields cannot be read: {0}")]
    Fields(String),
    /// The type is none that a layer can hold.
    #[error("its type {0:?} is unknown")]
    Type(String),
    /// The name holds a NUL byte.
    #[error("its name holds a NUL byte")]
    NameNul,
    /// The name leads out of the layer.
    #[error("its name holds \"..\"")]
    NameDotDot,
    /// The name is empty or `/` and the entry is no directory.
    #[error("its name is empty, as only the root directory's may be")]
    NameEmpty,
    /// The path is longer than the limit.
    #[error("its path has {len} bytes, the limit is {limit}")]
    PathLength {
        /// Its length in bytes.
        len: usize,
        /// The limit.
        limit: u32,
    },
    /// One name of the path is longer than file systems allow.
    #[error("a name of its path has {0} bytes, file systems allow 255")]
    NameLength(usize),
    /// It lies too deep.
    #[error("it lies below more than {0} directories")]
    Depth(u32),
    /// More entries, or directories that they imply, than the limit.
    #[error(
        "with it the layer has more than {0} entries, counting the directories that its path implies"
    )]
    Count(u32),
    /// A directory above it is a file.
    #[error("{0:?} above it is not a directory")]
    ParentNotDirectory(String),
    /// A directory that already holds entries is replaced by something else.
    #[error("it replaces a directory that holds entries")]
    ReplacesDirectory,
    /// A whiteout of `.`, `..` or nothing.
    #[error("it is a whiteout of no name")]
    WhiteoutName,
    /// A whiteout is used as a directory.
    #[error("its path leads through the whiteout {0:?}")]
    WhiteoutParent(String),
    /// A link names no target.
    #[error("it is a link without a target")]
    LinkEmpty,
    /// A hard link's target is not in the layer.
    #[error("its hard link target {0:?} is not in the layer")]
    LinkMissing(String),
    /// A hard link's target is a directory, a link or a device.
    #[error("its hard link target {0:?} is not a regular file")]
    LinkNotFile(String),
    /// Hard links that name each other.
    #[error("its hard link target {0:?} leads back to itself")]
    LinkCycle(String),
    /// The target of a link is longer than the limit.
    #[error("its link target has {len} bytes, the limit is {limit}")]
    LinkLength {
        /// Its length in bytes.
        len: usize,
        /// The limit.
        limit: u32,
    },
    /// The target of a symbolic link holds a NUL byte.
    #[error("its link target holds a NUL byte")]
    LinkNul,
    /// A device number that Linux does not have.
    #[error("its device number {major}:{minor} does not exist on Linux")]
    Device {
        /// Major number.
        major: u64,
        /// Minor number.
        minor: u64,
    },
    /// A time that is not RFC 3339.
    #[error("its modification time {0:?} is not written as RFC 3339 says")]
    Time(String),
    /// An extended attribute that cannot be used.
    #[error("its extended attribute {name:?} {why}")]
    Xattr {
        /// The attribute.
        name: String,
        /// Why not.
        why: &'static str,
    },
    /// More bytes of extended attributes than the limit.
    #[error("its extended attributes have more than {0} bytes")]
    XattrLimit(u32),
    /// A digest that is no sha256 digest.
    #[error("its {field} cannot be used: {why}")]
    Digest {
        /// `digest` or `chunkDigest`.
        field: &'static str,
        /// Why not.
        why: crate::digest::DigestError,
    },
    /// A number above what files can have.
    #[error("its {field} {value} is too large")]
    Number {
        /// The JSON field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A chunk entry that follows no regular file.
    #[error("it is a chunk that follows no regular file")]
    ChunkAlone,
    /// A chunk entry that follows another file.
    #[error("it is a chunk of another file than {0:?}, which it follows")]
    ChunkElsewhere(String),
    /// A chunk that does not start where the one before it ended.
    #[error("its chunk at {found} overlaps or leaves a gap: {expected} is expected")]
    ChunkOrder {
        /// Where the chunk before it ended.
        expected: u64,
        /// Where it starts.
        found: u64,
    },
    /// Chunks that end before or behind the file's end.
    #[error("its chunks hold {found} bytes, the file has {size}")]
    ChunkCover {
        /// The file's size.
        size: u64,
        /// Where the chunks end.
        found: u64,
    },
    /// Content without a digest cannot be verified.
    #[error("its chunk at {0} has no digest")]
    ChunkDigest(u64),
    /// Content that lies nowhere.
    #[error("its chunk at {0} has no place in the blob")]
    ChunkPlace(u64),
    /// Content outside of the part of the blob that holds content.
    #[error("its bytes {start} to {end} do not lie before the TOC at {limit}")]
    SpanOutside {
        /// First byte.
        start: u64,
        /// Byte behind the last.
        end: u64,
        /// Where the TOC starts.
        limit: u64,
    },
    /// A chunk, or what lies in front of it in its stream, is larger than the limit.
    #[error("its {what} has {len} bytes, the limit for one chunk is {limit}")]
    ChunkLimit {
        /// What is too large.
        what: &'static str,
        /// Its length.
        len: u64,
        /// The limit.
        limit: u64,
    },
    /// The files of the layer together are larger than the limit.
    #[error("with it the files of the layer have more than {0} bytes")]
    DataLimit(u64),
}
