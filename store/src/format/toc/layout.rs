//! Numbers nodes and chunks, and writes the tables of the index file.
//!
//! Nodes are numbered directory by directory from the root, names sorted, so that a directory's nodes lie together and
//! parents come before their children. Chunks are numbered file by file in the order of the files' places in the blob,
//! so that neighbours in the index are neighbours in the blob.

use std::{io, path::Path};

use super::{
    TocError,
    chunks::Chunks,
    refusal::Refusal,
    tree::{Name, Shape, Tree},
};
use crate::{
    digest::Digest,
    format::{
        LayerFormat,
        index::{
            BlobFacts, Kind,
            record::{
                CHUNK_ZEROS, ChildRecord, ChunkRecord, DigestRecord, FLAG_BOUND, FLAG_PREFETCH,
                FLAG_XATTRS, FLAG_ZSTD, Header, MAGIC, NodeRecord, VERSION, XattrRecord,
            },
            write::Writer,
        },
        limits::Limits,
    },
};

/// Not (yet) numbered.
const UNSEEN: u32 = u32::MAX;

/// A numbered node.
#[derive(Debug, Clone)]
struct Placed {
    /// Its number in the tree.
    old: u32,
    /// Number of its directory.
    parent: u32,
    /// Its first name in the tree, [`UNSEEN`] for the root.
    name: u32,
    nlink: u32,
    /// Children, or chunks.
    first: u32,
    count: u32,
}

/// What an index file will hold.
pub(super) struct Layout {
    tree: Tree,
    chunks: Chunks,
    xattrs: Vec<XattrRecord>,
    opaque: Vec<XattrRecord>,
    digests: Vec<Digest>,
    prefetch_end: Option<u64>,
    placed: Vec<Placed>,
    /// New number of every node of the tree.
    numbers: Vec<u32>,
    /// Names of the tree, directory by directory, sorted.
    children: Vec<u32>,
    /// Files with chunks (new numbers), in the order of their places in the blob.
    files: Vec<u32>,
    chunk_count: u32,
    data_len: u64,
}

impl Layout {
    pub(super) fn new(
        tree: Tree,
        chunks: Chunks,
        xattrs: Vec<XattrRecord>,
        opaque: Vec<XattrRecord>,
        digests: Vec<Digest>,
        prefetch_end: Option<u64>,
        limits: &Limits,
    ) -> Result<Self, TocError> {
        let mut layout = Self {
            numbers: vec![UNSEEN; tree.nodes.len()],
            tree,
            chunks,
            xattrs,
            opaque,
            digests,
            prefetch_end,
            placed: Vec::new(),
            children: Vec::new(),
            files: Vec::new(),
            chunk_count: 0,
            data_len: 0,
        };
        layout.number_nodes();
        layout.number_chunks(limits)?;
        Ok(layout)
    }

    fn number_nodes(&mut self) {
        let by_dir = self.names_by_dir();
        self.children.reserve_exact(self.tree.names.len());
        self.place(0, 0, UNSEEN);
        let mut at = 0;
        while at < self.placed.len() {
            let dir = self.placed[at].old;
            if !self.is_dir(dir) {
                at += 1;
                continue;
            }
            let names = by_dir.of(dir);
            self.placed[at].first = self.children.len() as u32;
            self.placed[at].count = names.len() as u32;
            let mut sorted = names.to_vec();
            sorted.sort_unstable_by(|&a, &b| self.name_text(a).cmp(self.name_text(b)));
            for name in sorted {
                self.children.push(name);
                let node = self.tree.names[name as usize].node;
                match self.numbers[node as usize] {
                    UNSEEN => self.place(node, at as u32, name),
                    seen => self.placed[seen as usize].nlink += 1,
                }
                if self.is_dir(node) {
                    self.placed[at].nlink += 1;
                }
            }
            at += 1;
        }
    }

    fn place(&mut self, old: u32, parent: u32, name: u32) {
        self.numbers[old as usize] = self.placed.len() as u32;
        self.placed.push(Placed {
            old,
            parent,
            name,
            nlink: if self.is_dir(old) { 2 } else { 1 },
            first: 0,
            count: 0,
        });
    }

    fn is_dir(&self, old: u32) -> bool {
        matches!(
            self.tree.nodes[old as usize].shape,
            Shape::Known(Kind::Directory) | Shape::Implied
        )
    }

    fn name_text(&self, name: u32) -> &[u8] {
        self.tree.text(self.tree.names[name as usize].text)
    }

    /// Names sorted into their directories by counting, in one pass each.
    fn names_by_dir(&self) -> ByDir {
        let mut starts = vec![0_u32; self.tree.nodes.len() + 1];
        for Name { parent, .. } in &self.tree.names {
            starts[*parent as usize + 1] += 1;
        }
        for n in 1..starts.len() {
            starts[n] += starts[n - 1];
        }
        let mut names = vec![0; self.tree.names.len()];
        let mut next = starts.clone();
        for (n, name) in self.tree.names.iter().enumerate() {
            let slot = &mut next[name.parent as usize];
            names[*slot as usize] = n as u32;
            *slot += 1;
        }
        ByDir { starts, names }
    }

    fn number_chunks(&mut self, limits: &Limits) -> Result<(), TocError> {
        let mut files = Vec::new();
        for (number, placed) in self.placed.iter().enumerate() {
            let (first, count) = self.tree.nodes[placed.old as usize].chunks;
            if count > 0 {
                let chunks = &self.chunks.all[first as usize..][..count as usize];
                let start = chunks.iter().find(|c| !c.zeros).map_or(0, |c| c.start);
                files.push((start, placed.old, number as u32));
            }
        }
        // The TOC's own order where the places are equal.
        files.sort_unstable();
        for &(_, old, number) in &files {
            let placed = &mut self.placed[number as usize];
            let (first, count) = self.tree.nodes[old as usize].chunks;
            placed.first = self.chunk_count;
            placed.count = count;
            self.chunk_count += count;
            let size = self.tree.nodes[old as usize].size;
            let sum = self.data_len.checked_add(size);
            let refuse = |why| {
                let name = self.tree.path(placed.name);
                let number = self.tree.nodes[old as usize].entry;
                TocError::entry(number.into(), &String::from_utf8_lossy(&name), why)
            };
            self.data_len = sum
                .filter(|&sum| sum <= limits.max_data_bytes)
                .ok_or_else(|| refuse(Refusal::DataLimit(limits.max_data_bytes)))?;
            for chunk in &self.chunks.all[first as usize..][..count as usize] {
                self.chunks.place(chunk).map_err(refuse)?;
            }
        }
        self.files = files.into_iter().map(|(_, _, number)| number).collect();
        Ok(())
    }

    /// Writes the index file.
    pub(super) fn write(&self, facts: &BlobFacts, dest: &Path) -> io::Result<()> {
        let mut out = Writer::create(dest)?;
        let mut xattr_count = 0_u32;
        for placed in &self.placed {
            let own = self.xattr_len(placed);
            out.put(&self.node_record(placed, xattr_count, own))?;
            xattr_count += own;
        }
        for &name in &self.children {
            let name = &self.tree.names[name as usize];
            out.put(&ChildRecord {
                name_at: name.text.at,
                name_len: name.text.len as u16,
                reserved: 0,
                node: self.numbers[name.node as usize],
            })?;
        }
        self.write_chunks(&mut out)?;
        for placed in &self.placed {
            let node = &self.tree.nodes[placed.old as usize];
            let (first, count) = node.xattrs;
            for record in &self.xattrs[first as usize..][..count as usize] {
                out.put(record)?;
            }
            if node.opaque {
                for record in &self.opaque {
                    out.put(record)?;
                }
            }
        }
        for digest in &self.digests {
            out.put(&DigestRecord {
                digest: *digest.as_bytes(),
            })?;
        }
        out.strings(&self.tree.pool)?;
        out.finish(self.header(facts, xattr_count))
    }

    fn header(&self, facts: &BlobFacts, xattr_count: u32) -> Header {
        let mut flags = 0;
        if facts.format == LayerFormat::ZstdChunked {
            flags |= FLAG_ZSTD;
        }
        if facts.bound {
            flags |= FLAG_BOUND;
        }
        if xattr_count > 0 {
            flags |= FLAG_XATTRS;
        }
        if self.prefetch_end.is_some() {
            flags |= FLAG_PREFETCH;
        }
        Header {
            magic: MAGIC,
            version: VERSION,
            flags,
            blob: *facts.blob.as_bytes(),
            blob_size: facts.size,
            toc: *facts.toc.as_bytes(),
            data_len: self.data_len,
            prefetch_end: self.prefetch_end.unwrap_or(0),
            nodes: self.placed.len() as u32,
            children: self.children.len() as u32,
            chunks: self.chunk_count,
            xattrs: xattr_count,
            digests: self.digests.len() as u32,
            strings_len: self.tree.pool.len() as u64,
            ..Header::default()
        }
    }

    fn xattr_len(&self, placed: &Placed) -> u32 {
        let node = &self.tree.nodes[placed.old as usize];
        let opaque = if node.opaque { self.opaque.len() } else { 0 };
        node.xattrs.1 + opaque as u32
    }

    fn node_record(&self, placed: &Placed, xattr_first: u32, xattr_count: u32) -> NodeRecord {
        let node = &self.tree.nodes[placed.old as usize];
        let kind = match node.shape {
            Shape::Known(kind) => kind,
            Shape::Implied => Kind::Directory,
            Shape::Whiteout | Shape::Link(_) => Kind::CharDevice,
        };
        let text = match placed.name {
            UNSEEN => Default::default(),
            name => self.tree.names[name as usize].text,
        };
        NodeRecord {
            parent: placed.parent,
            name_at: text.at,
            name_len: text.len as u16,
            kind: kind.code(),
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            mtime: node.mtime,
            mtime_nsec: node.mtime_nsec,
            nlink: placed.nlink,
            size: node.size,
            first: placed.first,
            count: placed.count,
            a: node.a,
            b: node.b,
            xattr_first,
            xattr_count,
            content: node.content,
            ..NodeRecord::default()
        }
    }

    fn write_chunks(&self, out: &mut Writer) -> io::Result<()> {
        let mut data_offset = 0;
        for &number in &self.files {
            let (first, count) = self.tree.nodes[self.placed[number as usize].old as usize].chunks;
            for chunk in &self.chunks.all[first as usize..][..count as usize] {
                // Checked when the chunks were numbered.
                let span = self.chunks.place(chunk).map_err(io::Error::other)?;
                out.put(&ChunkRecord {
                    node: number,
                    flags: if chunk.zeros { CHUNK_ZEROS } else { 0 },
                    file_offset: chunk.file_offset,
                    len: chunk.len,
                    data_offset,
                    span_start: span.start,
                    span_end: span.end,
                    skip: if chunk.zeros { 0 } else { chunk.skip },
                    digest: chunk.digest,
                })?;
                data_offset += chunk.len;
            }
        }
        Ok(())
    }
}

/// Names by their directory.
struct ByDir {
    starts: Vec<u32>,
    names: Vec<u32>,
}

impl ByDir {
    fn of(&self, dir: u32) -> &[u32] {
        &self.names[self.starts[dir as usize] as usize..self.starts[dir as usize + 1] as usize]
    }
}
