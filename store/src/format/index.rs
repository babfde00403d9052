//! The LayerIndex file: what a layer holds, as fixed-size records mapped read-only (docs/formats.md, "LayerIndex").
//!
//! Invariant: every number read from the file is checked against the file's own size and counts before it is used, so
//! that a damaged file gives errors and never a crash.

use std::{
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
};

use super::LayerFormat;
use crate::{digest::Digest, sys::mmap::Mapping};

pub(crate) mod record;
pub(crate) mod write;

use record::{
    CHUNK_ZEROS, CONTENT_CHUNK, CONTENT_NONE, ChildRecord, ChunkRecord, DigestRecord, FLAG_BOUND,
    FLAG_PREFETCH, FLAG_XATTRS, FLAG_ZSTD, HEADER_LEN, Header, MAGIC, NodeRecord, Record, VERSION,
    XattrRecord,
};

/// A file, directory or other object of a layer. 0 is the layer's root directory. Hard links share one number.
pub type NodeId = u32;

/// What a node is. Whiteouts are character devices 0:0, as overlayfs wants them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
}

impl Kind {
    /// Its number in the file.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Directory => 1,
            Self::File => 2,
            Self::Symlink => 3,
            Self::CharDevice => 4,
            Self::BlockDevice => 5,
            Self::Fifo => 6,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Directory,
            2 => Self::File,
            3 => Self::Symlink,
            4 => Self::CharDevice,
            5 => Self::BlockDevice,
            6 => Self::Fifo,
            _ => return None,
        })
    }
}

/// Everything `stat` says of a node, and where its content is.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    /// Its number.
    pub id: NodeId,
    /// The directory that holds it (its first name, for hard links); the root's is itself.
    pub parent: NodeId,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky (0o7777).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970.
    pub mtime: i64,
    /// And nanoseconds.
    pub mtime_nsec: u32,
    /// Bytes of content; the length of the target for symbolic links; 0 otherwise.
    pub size: u64,
    /// Number of names (1 + number of subdirectories + 1 for directories as other file systems count).
    pub nlink: u32,
    /// Device number of devices.
    pub major: u32,
    /// Device number of devices.
    pub minor: u32,
    /// Its first name (empty for the root).
    pub name: &'a [u8],
    /// Target of a symbolic link.
    pub target: &'a [u8],
    /// Chunk numbers of its content, in file order.
    pub chunks: Range<u32>,
    /// Digest of the whole content, where the TOC gives it.
    pub content: Option<Digest>,
}

/// An extended attribute: name and value.
pub type Xattr<'a> = (&'a [u8], &'a [u8]);

/// A name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Child<'a> {
    /// The name, without slashes.
    pub name: &'a [u8],
    /// What it names.
    pub node: NodeId,
}

/// A piece of a file's content: the unit of fetching, verifying and presence.
///
/// Chunk k's decoded bytes lie in the cache's data file at `data_offset`, which is the sum of the lengths before it,
/// so that a file's chunks are contiguous there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Its number.
    pub id: u32,
    /// The file it belongs to.
    pub node: NodeId,
    /// Where in the file it starts, in bytes.
    pub file_offset: u64,
    /// Decoded length in bytes, never 0.
    pub len: u64,
    /// Where its decoded bytes lie in the data file.
    pub data_offset: u64,
    /// Compressed bytes in the blob that must be decoded to get it. Empty for zeros. For eStargz the end may include
    /// the tar header that follows (the next member's start bounds it).
    pub span: Range<u64>,
    /// Decoded bytes to skip at the start of the span's stream (eStargz `innerOffset`).
    pub skip: u64,
    /// Digest of the decoded bytes; all-zero chunks (`zeros == true`) need none.
    pub digest: Digest,
    /// A run of zeros that is not stored in the blob.
    pub zeros: bool,
}

/// Facts about the blob that an index describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobFacts {
    /// Digest of the compressed blob, as the manifest names it.
    pub blob: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Its format.
    pub format: LayerFormat,
    /// Digest of the TOC by the format's own rule.
    pub toc: Digest,
    /// Whether the TOC was bound to the blob by the engine's key or the manifest's annotation (invariant 2).
    pub bound: bool,
}

/// Why an index cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The file is not what its header says.
    #[error("index {path} is damaged: {what}")]
    Damaged {
        /// The file.
        path: String,
        /// Where and how.
        what: String,
    },
    /// The file was written by another version of this program: build it again.
    #[error("index {path} has version {found}, this program reads {VERSION}")]
    Version {
        /// The file.
        path: String,
        /// Its version.
        found: u32,
    },
    /// The file cannot be opened or mapped.
    #[error("cannot open index {path}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A layer's index, mapped from disk. Every accessor checks bounds and answers an error for a damaged file.
#[derive(Debug)]
pub struct LayerIndex {
    map: Mapping,
    path: PathBuf,
    facts: BlobFacts,
    header: Header,
    sections: Sections,
}

/// Where each section starts.
#[derive(Debug, Clone, Copy)]
struct Sections {
    nodes: usize,
    children: usize,
    chunks: usize,
    xattrs: usize,
    digests: usize,
    strings: usize,
    end: usize,
}

impl Sections {
    /// `None` if they would not fit any file.
    fn of(header: &Header) -> Option<Self> {
        let after = |start: usize, count: u32, len: usize| {
            start.checked_add(usize::try_from(count).ok()?.checked_mul(len)?)
        };
        let nodes = HEADER_LEN;
        let children = after(nodes, header.nodes, NodeRecord::LEN)?;
        let chunks = after(children, header.children, ChildRecord::LEN)?;
        let xattrs = after(chunks, header.chunks, ChunkRecord::LEN)?;
        let digests = after(xattrs, header.xattrs, XattrRecord::LEN)?;
        let strings = after(digests, header.digests, DigestRecord::LEN)?;
        let end = strings.checked_add(usize::try_from(header.strings_len).ok()?)?;
        Some(Self {
            nodes,
            children,
            chunks,
            xattrs,
            digests,
            strings,
            end,
        })
    }
}

impl LayerIndex {
    /// Maps an index file; `check` re-computes the checksum of the whole file (after an unclean stop).
    ///
    /// # Errors
    /// [`IndexError::Version`] for files of another version; [`IndexError::Damaged`] when the header, the length or
    /// (with `check`) the content is not what was written.
    pub fn open(path: &Path, check: bool) -> Result<Self, IndexError> {
        let text = || path.display().to_string();
        let damaged = |what: String| IndexError::Damaged { path: text(), what };
        let map = File::open(path)
            .and_then(|file| Mapping::open(&file))
            .map_err(|source| match source.kind() {
                std::io::ErrorKind::UnexpectedEof => damaged("it is empty".to_owned()),
                _ => IndexError::Io {
                    path: text(),
                    source,
                },
            })?;
        let (Some(head), Some(header)) = (
            map.get(..HEADER_LEN),
            map.get(..Header::LEN).and_then(Header::read),
        ) else {
            return Err(damaged(format!("it has only {} bytes", map.len())));
        };
        if header.magic != MAGIC {
            return Err(damaged("it does not start as an index does".to_owned()));
        }
        if header.version != VERSION {
            return Err(IndexError::Version {
                path: text(),
                found: header.version,
            });
        }
        if write::header_crc(head) != header.header_crc {
            return Err(damaged("its header has a wrong checksum".to_owned()));
        }
        let sections = Sections::of(&header)
            .filter(|sections| sections.end == map.len() && header.file_len == map.len() as u64)
            .ok_or_else(|| {
                damaged(format!(
                    "it has {} bytes, its header says {}",
                    map.len(),
                    header.file_len
                ))
            })?;
        if header.nodes == 0 {
            return Err(damaged("it has no root directory".to_owned()));
        }
        if check && crc32c::crc32c(&map[HEADER_LEN..]) != header.body_crc {
            return Err(damaged("its content has a wrong checksum".to_owned()));
        }
        let facts = BlobFacts {
            blob: Digest::from_bytes(header.blob),
            size: header.blob_size,
            format: if header.flags & FLAG_ZSTD == 0 {
                LayerFormat::Estargz
            } else {
                LayerFormat::ZstdChunked
            },
            toc: Digest::from_bytes(header.toc),
            bound: header.flags & FLAG_BOUND != 0,
        };
        Ok(Self {
            map,
            path: path.to_owned(),
            facts,
            header,
            sections,
        })
    }

    /// What blob this describes.
    #[must_use]
    pub fn facts(&self) -> &BlobFacts {
        &self.facts
    }

    /// Number of nodes; at least 1.
    #[must_use]
    pub fn node_count(&self) -> u32 {
        self.header.nodes
    }

    /// Number of chunks.
    #[must_use]
    pub fn chunk_count(&self) -> u32 {
        self.header.chunks
    }

    /// Decoded bytes of all chunks together: the size of the data file.
    #[must_use]
    pub fn data_len(&self) -> u64 {
        self.header.data_len
    }

    /// Whether any node has extended attributes or is an opaque directory, so that the layer must be served by the
    /// mount that answers xattr calls.
    #[must_use]
    pub fn needs_xattrs(&self) -> bool {
        self.header.flags & FLAG_XATTRS != 0
    }

    /// Up to which byte of the blob its builder put the files that are needed first (the offset of eStargz'
    /// `.prefetch.landmark`); `None` where it did not say so.
    #[must_use]
    pub fn prefetch_end(&self) -> Option<u64> {
        (self.header.flags & FLAG_PREFETCH != 0).then_some(self.header.prefetch_end)
    }

    /// A node; `None` past the end.
    ///
    /// # Errors
    /// [`IndexError::Damaged`].
    pub fn entry(&self, id: NodeId) -> Result<Option<Entry<'_>>, IndexError> {
        let Some(node) = self.node(id)? else {
            return Ok(None);
        };
        let kind = self.kind(id, &node)?;
        let device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
        let target = if kind == Kind::Symlink {
            self.string(node.a, node.b)?
        } else {
            b""
        };
        let chunks = if kind == Kind::File {
            self.checked(node.first, node.count, self.header.chunks, "chunks", id)?
        } else {
            0..0
        };
        let content = match node.content {
            CONTENT_NONE => None,
            CONTENT_CHUNK => self.chunk(chunks.start)?.map(|chunk| chunk.digest),
            n => {
                let record: DigestRecord = self
                    .record(self.sections.digests, self.header.digests, n)?
                    .ok_or_else(|| {
                        self.damaged(format!("the content digest of node {id} is missing"))
                    })?;
                Some(Digest::from_bytes(record.digest))
            }
        };
        Ok(Some(Entry {
            id,
            parent: node.parent,
            kind,
            mode: node.mode & 0o7777,
            uid: node.uid,
            gid: node.gid,
            mtime: node.mtime,
            mtime_nsec: node.mtime_nsec.min(999_999_999),
            size: node.size,
            nlink: node.nlink,
            major: if device { node.a } else { 0 },
            minor: if device { node.b } else { 0 },
            name: self.string(node.name_at, node.name_len.into())?,
            target,
            chunks,
            content,
        }))
    }

    /// The node of this name in a directory (binary search).
    ///
    /// # Errors
    /// [`IndexError::Damaged`].
    pub fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>, IndexError> {
        let children = self.children(dir)?;
        let (mut low, mut high) = (children.start, children.end);
        while low < high {
            let middle = low + (high - low) / 2;
            let child = self.child_at(middle)?;
            match child.name.cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Ok(Some(child.node)),
            }
        }
        Ok(None)
    }

    /// Number of names in a directory, 0 for other nodes.
    ///
    /// # Errors
    /// [`IndexError::Damaged`].
    pub fn child_count(&self, dir: NodeId) -> Result<u32, IndexError> {
        let children = self.children(dir)?;
        Ok(children.end - children.start)
    }

    /// The n-th name of a directory in sorted order: a stable position for readdir.
    ///
    /// # Errors
    /// [`IndexError::Damaged`].
    pub fn child(&self, dir: NodeId, n: u32) -> Result<Option<Child<'_>>, IndexError> {
        let children = self.children(dir)?;
        match children.start.checked_add(n) {
            Some(at) if at < children.end => self.child_at(at).map(Some),
            _ => Ok(None),
        }
    }

    /// All extended attributes of a node (name, value), `trusted.overlay.opaque` and `user.overlay.opaque` included;
    /// none for a node that is not there.
    ///
    /// # Errors
    /// [`IndexError::Damaged`].
    pub fn xattrs(&self, id: NodeId) -> Result<Vec<Xattr<'_>>, IndexError> {
        let Some(node) = self.node(id)? else {
            return Ok(Vec::new());
        };
        self.checked(
            node.xattr_first,
            node.xattr_count,
            self.header.xattrs,
            "attributes",
            id,
        )?
        .map(|n| {
            let record: XattrRecord = self
                .record(self.sections.xattrs, self.header.xattrs, n)?
                .ok_or_else(|| self.damaged(format!("attribute {n} is missing")))?;
            Ok((
                self.string(record.name_at, record.name_len)?,
                self.string(record.value_at, record.value_len)?,
            ))
        })
        .collect()
    }

    /// A chunk; `None` past the end.
    ///
    /// # Errors
    /// [`IndexError::Damaged`].
    pub fn chunk(&self, id: u32) -> Result<Option<Chunk>, IndexError> {
        let Some(record) =
            self.record::<ChunkRecord>(self.sections.chunks, self.header.chunks, id)?
        else {
            return Ok(None);
        };
        let zeros = record.flags & CHUNK_ZEROS != 0;
        let inside = |start: u64, len: u64, end: u64| {
            start.checked_add(len).is_some_and(|reached| reached <= end)
        };
        let sound = record.len > 0
            && inside(record.data_offset, record.len, self.header.data_len)
            && inside(record.file_offset, record.len, i64::MAX.unsigned_abs())
            && record.span_start <= record.span_end
            && record.span_end <= self.header.blob_size
            && (zeros || record.span_start < record.span_end)
            && record.node < self.header.nodes;
        if !sound {
            return Err(self.damaged(format!("chunk {id} is impossible: {record:?}")));
        }
        Ok(Some(Chunk {
            id,
            node: record.node,
            file_offset: record.file_offset,
            len: record.len,
            data_offset: record.data_offset,
            span: record.span_start..record.span_end,
            skip: record.skip,
            digest: Digest::from_bytes(record.digest),
            zeros,
        }))
    }

    /// The chunks of a file that hold any of these bytes (clamped to the file); empty for other nodes.
    ///
    /// # Errors
    /// [`IndexError::Damaged`].
    pub fn chunks_covering(&self, id: NodeId, bytes: Range<u64>) -> Result<Range<u32>, IndexError> {
        let Some(entry) = self.entry(id)? else {
            return Ok(0..0);
        };
        let bytes = bytes.start..bytes.end.min(entry.size);
        if bytes.is_empty() || entry.chunks.is_empty() {
            return Ok(entry.chunks.start..entry.chunks.start);
        }
        // First chunk that starts behind `at`.
        let behind = |at: u64| -> Result<u32, IndexError> {
            let (mut low, mut high) = (entry.chunks.start, entry.chunks.end);
            while low < high {
                let middle = low + (high - low) / 2;
                let chunk = self
                    .chunk(middle)?
                    .ok_or_else(|| self.damaged(format!("chunk {middle} is missing")))?;
                if chunk.file_offset <= at {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            Ok(low)
        };
        let start = behind(bytes.start)?
            .checked_sub(1)
            .filter(|&first| first >= entry.chunks.start)
            .ok_or_else(|| self.damaged(format!("node {id} has no chunk for its first byte")))?;
        Ok(start..behind(bytes.end - 1)?)
    }

    /// Path of a node from the layer's root, without a leading slash (its first name for hard links); empty for the
    /// root and for a node that is not there.
    ///
    /// # Errors
    /// [`IndexError::Damaged`].
    pub fn path(&self, id: NodeId) -> Result<Vec<u8>, IndexError> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut at = id;
        while at != 0 {
            let Some(node) = self.node(at)? else {
                return Ok(Vec::new());
            };
            // Parents have smaller numbers than their children, so a walk upwards ends.
            if node.parent >= at {
                return Err(self.damaged(format!("node {at} is not below its parent")));
            }
            names.push(self.string(node.name_at, node.name_len.into())?);
            at = node.parent;
        }
        names.reverse();
        Ok(names.join(&b'/'))
    }

    /// The node at a path from the layer's root; follows no links.
    ///
    /// # Errors
    /// [`IndexError::Damaged`].
    pub fn find(&self, path: &[u8]) -> Result<Option<NodeId>, IndexError> {
        let mut at = 0;
        for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
            match self.lookup(at, name)? {
                Some(node) => at = node,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    fn node(&self, id: NodeId) -> Result<Option<NodeRecord>, IndexError> {
        self.record(self.sections.nodes, self.header.nodes, id)
    }

    fn kind(&self, id: NodeId, node: &NodeRecord) -> Result<Kind, IndexError> {
        Kind::from_code(node.kind)
            .ok_or_else(|| self.damaged(format!("node {id} has the unknown kind {}", node.kind)))
    }

    /// The numbers of a directory's names; an empty range for other nodes.
    fn children(&self, dir: NodeId) -> Result<Range<u32>, IndexError> {
        match self.node(dir)? {
            Some(node) if self.kind(dir, &node)? == Kind::Directory => {
                self.checked(node.first, node.count, self.header.children, "names", dir)
            }
            _ => Ok(0..0),
        }
    }

    fn child_at(&self, n: u32) -> Result<Child<'_>, IndexError> {
        let record = self
            .record::<ChildRecord>(self.sections.children, self.header.children, n)?
            .filter(|record| record.node < self.header.nodes)
            .ok_or_else(|| self.damaged(format!("name {n} names no node")))?;
        Ok(Child {
            name: self.string(record.name_at, record.name_len.into())?,
            node: record.node,
        })
    }

    fn record<R: Record>(
        &self,
        section: usize,
        count: u32,
        n: u32,
    ) -> Result<Option<R>, IndexError> {
        if n >= count {
            return Ok(None);
        }
        let start = section + n as usize * R::LEN;
        self.map
            .get(start..start + R::LEN)
            .and_then(R::read)
            .map(Some)
            .ok_or_else(|| self.damaged(format!("a record at byte {start} lies outside of it")))
    }

    fn string(&self, at: u32, len: u32) -> Result<&[u8], IndexError> {
        let strings = &self.map[self.sections.strings..];
        (at as usize)
            .checked_add(len as usize)
            .and_then(|end| strings.get(at as usize..end))
            .ok_or_else(|| {
                self.damaged(format!("a text of {len} bytes at {at} lies outside of it"))
            })
    }

    fn checked(
        &self,
        first: u32,
        count: u32,
        limit: u32,
        what: &str,
        node: NodeId,
    ) -> Result<Range<u32>, IndexError> {
        match first.checked_add(count) {
            Some(end) if end <= limit => Ok(first..end),
            _ => Err(self.damaged(format!("the {what} of node {node} lie outside of it"))),
        }
    }

    fn damaged(&self, what: String) -> IndexError {
        IndexError::Damaged {
            path: self.path.display().to_string(),
            what,
        }
    }
}
