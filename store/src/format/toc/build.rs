//! Turns entries into the tree and its chunks, one entry at a time.

use std::collections::HashMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{
    TocError,
    chunks::{Chunks, Complete, small},
    entry::{RawEntry, rfc3339},
    layout::Layout,
    name::{self, Meaning},
    refusal::Refusal,
    tree::{Node, Shape, Str, Tree},
};
use crate::{
    digest::Digest,
    format::{
        footer::TocPlace,
        index::{
            Kind,
            record::{CONTENT_CHUNK, XattrRecord},
        },
        limits::Limits,
    },
};

/// Attributes that make a directory opaque, for root and for user namespaces.
pub(super) const OPAQUE: [&[u8]; 2] = [b"trusted.overlay.opaque", b"user.overlay.opaque"];
/// Attributes with which overlayfs itself is told what a layer is.
const OVERLAY: [&str; 2] = ["trusted.overlay.", "user.overlay."];
/// Engines never take it from an image: the label is the host's to give.
const SELINUX: &str = "security.selinux";
/// Tables have room for so many entries as the JSON would hold of this length, in bytes; usual are 300 to 450. Room that
/// is not used costs no memory, and tables that grow leave holes behind: 71 MB at the most
/// for 100,000 entries where it is 57 with room (`cargo xtask bench --goals index`).
const SHORT_ENTRY: u64 = 256;
/// How many times as long as the compressed TOC its JSON is taken to be at the most.
const RATIO: u64 = 8;
/// Entries for which there is room before they come at the most: what anybody can claim is bounded so.
const MAX_ROOM: usize = 1 << 18;
/// Longest name of an extended attribute on Linux, in bytes (XATTR_NAME_MAX).
const XATTR_NAME_MAX: usize = 255;

/// What is known of the layer so far.
pub(super) struct Builder {
    limits: Limits,
    tree: Tree,
    chunks: Chunks,
    xattrs: Vec<XattrRecord>,
    /// The texts of attribute names, which are few.
    xattr_names: HashMap<Vec<u8>, Str>,
    digests: Vec<Digest>,
    number: u64,
    prefetch_end: Option<u64>,
}

impl Builder {
    pub(super) fn new(place: &TocPlace, limits: &Limits) -> Self {
        let json = place.raw_len.unwrap_or(u64::MAX);
        let json = json.min(place.len.saturating_mul(RATIO));
        let entries = usize::try_from(json / SHORT_ENTRY).unwrap_or(0);
        let entries = entries.min(limits.max_entries as usize).min(MAX_ROOM);
        Self {
            limits: limits.clone(),
            tree: Tree::new(limits.max_entries, entries),
            chunks: Chunks::new(place.format, place.offset, limits, entries),
            xattrs: Vec::new(),
            xattr_names: HashMap::new(),
            digests: Vec::new(),
            number: 0,
            prefetch_end: None,
        }
    }

    /// Takes the next entry in.
    pub(super) fn entry(&mut self, entry: &RawEntry<'_>) -> Result<(), TocError> {
        self.number += 1;
        if self.number > u64::from(self.limits.max_entries) {
            return Err(TocError::Entries(self.limits.max_entries));
        }
        let number = self.number;
        if &*entry.kind == "chunk" {
            return self
                .chunks
                .chunk(entry)
                .map_err(|why| TocError::entry(number, &entry.name, why));
        }
        self.complete()?;
        self.node(entry)
            .map_err(|why| TocError::entry(number, &entry.name, why))
    }

    /// All chunks of the file before are there.
    fn complete(&mut self) -> Result<(), TocError> {
        let number = self.chunks.current_number();
        let complete = self.chunks.complete();
        let name = |why| TocError::entry(number, &self.chunks.current_name, why);
        let Some(Complete {
            node,
            chunks,
            content,
        }) = complete.map_err(name)?
        else {
            return Ok(());
        };
        let node = &mut self.tree.nodes[node as usize];
        node.chunks = chunks;
        if let Some(digest) = content {
            let only = &self.chunks.all[chunks.0 as usize..];
            node.content =
                if chunks.1 == 1 && only[0].has_digest && only[0].digest == *digest.as_bytes() {
                    CONTENT_CHUNK
                } else {
                    self.digests.push(digest);
                    self.digests.len() as u32 - 1
                };
        }
        Ok(())
    }

    fn node(&mut self, entry: &RawEntry<'_>) -> Result<(), Refusal> {
        let kind = match &*entry.kind {
            "dir" => Some(Kind::Directory),
            "reg" => Some(Kind::File),
            "symlink" => Some(Kind::Symlink),
            "char" => Some(Kind::CharDevice),
            "block" => Some(Kind::BlockDevice),
            "fifo" => Some(Kind::Fifo),
            "hardlink" => None,
            other => return Err(Refusal::Type(other.chars().take(100).collect())),
        };
        match name::meaning(&entry.name, &self.limits)? {
            Meaning::Root => {
                if kind != Some(Kind::Directory) {
                    return Err(Refusal::NameEmpty);
                }
                let node = self.describe(entry, Kind::Directory)?;
                self.tree.replace_dir(0, node);
            }
            Meaning::Node { dir, name } => {
                let dir = self.tree.dir(dir)?;
                let Some(kind) = kind else {
                    if entry.link_name.is_empty() {
                        return Err(Refusal::LinkEmpty);
                    }
                    return self
                        .tree
                        .link(dir, name, &entry.link_name, self.number, &self.limits);
                };
                let node = self.describe(entry, kind)?;
                let node = self.tree.put(dir, name, node)?;
                if kind == Kind::File {
                    self.chunks.file(entry, self.number, Some(node))?;
                }
                return Ok(());
            }
            Meaning::Whiteout { dir, name } => {
                let dir = self.tree.dir(dir)?;
                let node = Node {
                    mode: 0,
                    uid: entry.uid.unwrap_or(0),
                    gid: entry.gid.unwrap_or(0),
                    ..Node::empty(Shape::Whiteout)
                };
                self.tree.whiteout(dir, name, node)?;
            }
            Meaning::Opaque { dir } => {
                let dir = self.tree.dir(dir)?;
                self.tree.nodes[dir as usize].opaque = true;
            }
            Meaning::Landmark => {
                self.prefetch_end = Some(small("offset", entry.offset)?).filter(|&end| end > 0);
            }
            Meaning::Hidden => {}
        }
        // Chunk entries may follow also what is not shown.
        if kind == Some(Kind::File) {
            self.chunks.file(entry, self.number, None)?;
        }
        Ok(())
    }

    /// Everything an entry says of a node but its place.
    fn describe(&mut self, entry: &RawEntry<'_>, kind: Kind) -> Result<Node, Refusal> {
        let (mtime, mtime_nsec) = match &*entry.modtime {
            "" => (0, 0),
            text => rfc3339(text).ok_or_else(|| Refusal::Time(text.chars().take(100).collect()))?,
        };
        // Old tars keep the file type in the mode as well.
        let mode = (entry.mode.unwrap_or(0) & 0o7777) as u16;
        let mut node = Node {
            mode,
            uid: entry.uid.unwrap_or(0),
            gid: entry.gid.unwrap_or(0),
            mtime,
            mtime_nsec,
            entry: self.number as u32,
            ..Node::empty(Shape::Known(kind))
        };
        match kind {
            Kind::File => node.size = small("size", entry.size)?,
            Kind::Symlink => {
                let target = entry.link_name.as_bytes();
                if target.is_empty() {
                    return Err(Refusal::LinkEmpty);
                }
                if target.contains(&0) {
                    return Err(Refusal::LinkNul);
                }
                // The kernel's own bound includes the closing NUL.
                if target.len() >= self.limits.max_path_bytes as usize {
                    return Err(Refusal::LinkLength {
                        len: target.len(),
                        limit: self.limits.max_path_bytes,
                    });
                }
                let text = self.tree.intern(target)?;
                (node.a, node.b) = (text.at, text.len);
                node.size = target.len() as u64;
            }
            Kind::CharDevice | Kind::BlockDevice => {
                let (major, minor) = (entry.dev_major.unwrap_or(0), entry.dev_minor.unwrap_or(0));
                // 12 and 20 bits (Linux' MINORBITS).
                if major >= 1 << 12 || minor >= 1 << 20 {
                    return Err(Refusal::Device { major, minor });
                }
                (node.a, node.b) = (major as u32, minor as u32);
            }
            Kind::Directory | Kind::Fifo => {}
        }
        self.attributes(entry, kind, &mut node)?;
        Ok(node)
    }

    fn attributes(
        &mut self,
        entry: &RawEntry<'_>,
        kind: Kind,
        node: &mut Node,
    ) -> Result<(), Refusal> {
        let first = self.xattrs.len() as u32;
        let mut bytes = 0_usize;
        for (name, value) in entry.xattrs.iter().flatten() {
            let refuse = |why| Refusal::Xattr {
                name: name.chars().take(300).collect(),
                why,
            };
            if name.is_empty() || name.len() > XATTR_NAME_MAX || name.as_bytes().contains(&0) {
                return Err(refuse("has an impossible name"));
            }
            let value = STANDARD
                .decode(value.as_bytes())
                .map_err(|_| refuse("is not base64"))?;
            bytes += name.len() + value.len();
            if bytes > self.limits.max_xattr_bytes as usize {
                return Err(Refusal::XattrLimit(self.limits.max_xattr_bytes));
            }
            if &**name == SELINUX {
                continue;
            }
            if OPAQUE.contains(&name.as_bytes()) && kind == Kind::Directory && value == b"y" {
                node.opaque = true;
                continue;
            }
            if OVERLAY.iter().any(|prefix| name.starts_with(prefix)) {
                return Err(refuse("would change what overlayfs makes of the layer"));
            }
            let name = self.xattr_name(name.as_bytes())?;
            let value = self.tree.intern(&value)?;
            self.xattrs.push(XattrRecord {
                name_at: name.at,
                name_len: name.len,
                value_at: value.at,
                value_len: value.len,
            });
        }
        node.xattrs = (first, self.xattrs.len() as u32 - first);
        Ok(())
    }

    fn xattr_name(&mut self, name: &[u8]) -> Result<Str, Refusal> {
        if let Some(&text) = self.xattr_names.get(name) {
            return Ok(text);
        }
        let text = self.tree.intern(name)?;
        // Bounded, so that a TOC full of different names costs no second copy of them.
        if self.xattr_names.len() < 256 {
            self.xattr_names.insert(name.to_owned(), text);
        }
        Ok(text)
    }

    /// No entries follow.
    pub(super) fn finish(mut self) -> Result<Layout, TocError> {
        self.complete()?;
        self.tree.resolve()?;
        self.chunks.sort();
        let mut opaque = Vec::new();
        if self.tree.nodes.iter().any(|node| node.opaque) {
            let value = self.tree.intern(b"y").map_err(TocError::Layer)?;
            for name in OPAQUE {
                let name = self.xattr_name(name).map_err(TocError::Layer)?;
                opaque.push(XattrRecord {
                    name_at: name.at,
                    name_len: name.len,
                    value_at: value.at,
                    value_len: value.len,
                });
            }
        }
        Layout::new(
            self.tree,
            self.chunks,
            self.xattrs,
            opaque,
            self.digests,
            self.prefetch_end,
            &self.limits,
        )
    }
}
