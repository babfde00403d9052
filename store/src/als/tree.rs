//! What a data mount holds: `<slot>/diff` for every layer that belongs to it. No FUSE types but the attributes; no I/O
//! but the mapped index and the cache's data file.

use std::{ops::Range, sync::Arc, time::UNIX_EPOCH};

use fuser::{FileAttr, FileType};

use super::{attr, errno::AlsError, inode::Inode};
use crate::{
    format::{Entry, Kind, NodeId},
    image::{DataMount, Images, Layer},
};

/// Name of the empty file in a mount's root with which a connection is primed.
pub(crate) const PRIME: &str = ".prime";

/// Name of a layer's tree in its slot directory.
const DIFF: &[u8] = b"diff";

/// Attribute by which overlayfs mounted with `userxattr` knows an opaque directory.
const USER_OPAQUE: &[u8] = b"user.overlay.opaque";

/// One data mount's view of the store.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) images: Arc<Images>,
    pub(crate) mount: DataMount,
}

/// What an inode is.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    Root,
    Prime,
    Slot(Arc<Layer>),
    Node(Arc<Layer>, NodeId),
}

/// What a name leads to.
pub(crate) enum Found {
    Attr(FileAttr),
    /// Nothing, now and for ever: the name is in (or would be in) a layer, which never changes.
    Never,
    /// Nothing yet.
    NotNow,
}

/// A part of a file: where its bytes lie in the cache and which chunks hold them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Where in the data file.
    pub(crate) data_offset: u64,
    /// How many bytes: what was asked for, cut at the end of the file.
    pub(crate) len: usize,
    /// The chunks that hold them; empty if there are no bytes.
    pub(crate) chunks: Range<u32>,
}

impl Tree {
    fn layer(&self, slot: u32) -> Option<Arc<Layer>> {
        self.images
            .layer(slot)
            .filter(|layer| layer.mount() == self.mount)
    }

    /// What an inode number is.
    pub(crate) fn place(&self, ino: u64) -> Result<Place, AlsError> {
        let stale = || AlsError::Stale(ino);
        Ok(match Inode::of(ino).ok_or_else(stale)? {
            Inode::Root => Place::Root,
            Inode::Prime => Place::Prime,
            Inode::Slot(slot) => Place::Slot(self.layer(slot).ok_or_else(stale)?),
            Inode::Node(slot, node) => Place::Node(self.layer(slot).ok_or_else(stale)?, node),
        })
    }

    /// The inode behind a name.
    pub(crate) fn lookup(&self, parent: &Place, name: &[u8]) -> Result<Found, AlsError> {
        match parent {
            Place::Root if name == PRIME.as_bytes() => Ok(Found::Attr(prime_attr())),
            Place::Root => {
                // Only the decimal form without zeros in front, or a layer would have two paths.
                let slot = std::str::from_utf8(name)
                    .ok()
                    .and_then(|text| text.parse::<u32>().ok().filter(|n| n.to_string() == text));
                match slot.and_then(|slot| self.layer(slot)) {
                    Some(layer) => Ok(Found::Attr(slot_attr(layer.slot)?)),
                    None => Ok(Found::NotNow),
                }
            }
            Place::Prime => Err(AlsError::NotDirectory),
            Place::Slot(layer) if name == DIFF => {
                Ok(Found::Attr(node_attr(layer, 0, &entry(layer, 0)?)?))
            }
            Place::Slot(_) => Ok(Found::Never),
            Place::Node(layer, dir) => {
                let Some(node) = layer.index.lookup(*dir, name)? else {
                    return Ok(Found::Never);
                };
                Ok(Found::Attr(node_attr(layer, node, &entry(layer, node)?)?))
            }
        }
    }

    /// Attributes of an inode.
    pub(crate) fn attr(&self, place: &Place) -> Result<FileAttr, AlsError> {
        match place {
            Place::Root => Ok(attr::own(1, FileType::Directory, 0o700, 0, UNIX_EPOCH)),
            Place::Prime => Ok(prime_attr()),
            Place::Slot(layer) => slot_attr(layer.slot),
            Place::Node(layer, node) => node_attr(layer, *node, &entry(layer, *node)?),
        }
    }

    /// Where a symbolic link leads.
    pub(crate) fn link(place: &Place) -> Result<Vec<u8>, AlsError> {
        let Place::Node(layer, node) = place else {
            return Err(AlsError::NotLink);
        };
        let entry = entry(layer, *node)?;
        if entry.kind != Kind::Symlink {
            return Err(AlsError::NotLink);
        }
        Ok(entry.target.to_vec())
    }

    /// Names of a directory from a position on: 0 is `.`, 1 is `..`, 2 the first name. `take` gets the position of
    /// what follows, the name and the attributes, and answers whether it is full.
    ///
    /// A mount's root lists no layers: the kernel keeps a listing for ever, and layers are added.
    pub(crate) fn list(
        &self,
        place: &Place,
        from: u64,
        mut take: impl FnMut(u64, &[u8], &FileAttr) -> bool,
    ) -> Result<(), AlsError> {
        if !matches!(self.attr(place)?.kind, FileType::Directory) {
            return Err(AlsError::NotDirectory);
        }
        for position in from.. {
            let full = match (position, place) {
                (0, _) => take(1, b".", &self.attr(place)?),
                (1, _) => take(2, b"..", &self.attr(&parent(place)?)?),
                (2, Place::Slot(layer)) => take(3, DIFF, &node_attr(layer, 0, &entry(layer, 0)?)?),
                (_, Place::Node(layer, dir)) => {
                    let Ok(n) = u32::try_from(position - 2) else {
                        return Ok(());
                    };
                    let Some(child) = layer.index.child(*dir, n)? else {
                        return Ok(());
                    };
                    let attr = node_attr(layer, child.node, &entry(layer, child.node)?)?;
                    take(position + 1, child.name, &attr)
                }
                _ => return Ok(()),
            };
            if full {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The value of an extended attribute.
    pub(crate) fn attribute(place: &Place, name: &[u8]) -> Result<Vec<u8>, AlsError> {
        let Place::Node(layer, node) = place else {
            return Err(AlsError::NoAttribute);
        };
        let all = layer.index.xattrs(*node)?;
        all.iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.to_vec())
            .ok_or(AlsError::NoAttribute)
    }

    /// Names of an inode's extended attributes, each ended by a zero byte.
    ///
    /// `user.overlay.opaque` is answered but not listed: a container's overlay would show it, where an ordinary pull
    /// has none. (`trusted.overlay.opaque` it hides itself.)
    pub(crate) fn attributes(place: &Place) -> Result<Vec<u8>, AlsError> {
        let Place::Node(layer, node) = place else {
            return Ok(Vec::new());
        };
        let mut list = Vec::new();
        for (name, _) in layer.index.xattrs(*node)? {
            if name != USER_OPAQUE {
                list.extend_from_slice(name);
                list.push(0);
            }
        }
        Ok(list)
    }

    /// Where `len` bytes of a file lie, cut at its end. Everything that invariant 4 needs is checked: the chunks are
    /// in one piece, in the data file as in the file, and hold every byte.
    pub(crate) fn extent(
        layer: &Layer,
        node: NodeId,
        offset: u64,
        len: u32,
    ) -> Result<Extent, AlsError> {
        let entry = entry(layer, node)?;
        if entry.kind != Kind::File {
            return Err(AlsError::NotFile);
        }
        let len = u64::from(len).min(entry.size.saturating_sub(offset));
        if len == 0 {
            return Ok(Extent {
                data_offset: 0,
                len: 0,
                chunks: 0..0,
            });
        }
        let bytes = offset..offset + len;
        let chunks = layer.index.chunks_covering(node, bytes.clone())?;
        let lost = || {
            AlsError::Inconsistent(format!(
                "chunks {chunks:?} do not hold bytes {bytes:?} of node {node}"
            ))
        };
        if chunks.is_empty() {
            return Err(lost());
        }
        let first = layer.index.chunk(chunks.start)?.ok_or_else(lost)?;
        let last = layer.index.chunk(chunks.end - 1)?.ok_or_else(lost)?;
        let whole = first.node == node
            && last.node == node
            && first.file_offset <= bytes.start
            && last.file_offset.saturating_add(last.len) >= bytes.end
            && last.file_offset.checked_sub(first.file_offset)
                == last.data_offset.checked_sub(first.data_offset);
        let data_offset = first
            .data_offset
            .checked_add(bytes.start - first.file_offset.min(bytes.start));
        match (whole, data_offset, usize::try_from(len)) {
            (true, Some(data_offset), Ok(len)) => Ok(Extent {
                data_offset,
                len,
                chunks,
            }),
            _ => Err(lost()),
        }
    }
}

/// The directory above.
fn parent(place: &Place) -> Result<Place, AlsError> {
    Ok(match place {
        Place::Root | Place::Prime | Place::Slot(_) => Place::Root,
        Place::Node(layer, 0) => Place::Slot(Arc::clone(layer)),
        Place::Node(layer, node) => Place::Node(Arc::clone(layer), entry(layer, *node)?.parent),
    })
}

fn entry(layer: &Layer, node: NodeId) -> Result<Entry<'_>, AlsError> {
    layer
        .index
        .entry(node)?
        .ok_or_else(|| AlsError::Stale(Inode::Node(layer.slot, node).number().unwrap_or_default()))
}

fn number(inode: Inode) -> Result<u64, AlsError> {
    inode
        .number()
        .ok_or_else(|| AlsError::Inconsistent(format!("{inode:?} has no number")))
}

fn prime_attr() -> FileAttr {
    attr::own(2, FileType::RegularFile, 0o400, 0, UNIX_EPOCH)
}

fn slot_attr(slot: u32) -> Result<FileAttr, AlsError> {
    let ino = number(Inode::Slot(slot))?;
    Ok(attr::own(ino, FileType::Directory, 0o755, 0, UNIX_EPOCH))
}

fn node_attr(layer: &Layer, node: NodeId, entry: &Entry<'_>) -> Result<FileAttr, AlsError> {
    Ok(attr::of_entry(
        number(Inode::Node(layer.slot, node))?,
        entry,
    ))
}
