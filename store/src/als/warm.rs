//! Filling the kernel's page cache before anybody reads.

use std::io;

use fuser::{INodeNo, Notifier};

use super::inode::Inode;
use crate::{
    format::NodeId,
    image::{DataMount, Layer},
};

/// Puts bytes into the kernel's page cache before anybody asks for them.
#[derive(Debug, Clone)]
pub struct Warm {
    plain: Notifier,
    xattr: Notifier,
}

/// A page as FUSE counts them.
const PAGE: u64 = 4096;

/// Bytes given to the kernel in one notification at most.
const STORE_PIECE: usize = 1 << 20;

impl Warm {
    pub(crate) const fn new(plain: Notifier, xattr: Notifier) -> Self {
        Self { plain, xattr }
    }

    /// Stores verified bytes of a file into its pages. `offset` must be the start of a page; a page that `bytes` do
    /// not fill is left out, except the one at the file's end. Returns how many bytes were given to the kernel. An
    /// inode the kernel has not looked up yet silently takes nothing.
    ///
    /// Blocks where a READ of one of the pages is under way: call it on a thread for blocking work, holding no lock.
    ///
    /// # Errors
    /// The node is not in the layer, `offset` is not the start of a page, or the kernel refuses.
    pub fn store(
        &self,
        layer: &Layer,
        node: NodeId,
        offset: u64,
        bytes: &[u8],
    ) -> Result<u64, WarmError> {
        let failed = |source| WarmError::Kernel {
            slot: layer.slot,
            node,
            source,
        };
        let ino = Inode::Node(layer.slot, node).number();
        let size = layer
            .index
            .entry(node)
            .ok()
            .flatten()
            .map(|entry| entry.size);
        let (Some(ino), Some(size)) = (ino, size) else {
            return Err(WarmError::NoNode {
                slot: layer.slot,
                node,
            });
        };
        if !offset.is_multiple_of(PAGE) {
            return Err(WarmError::Unaligned { offset });
        }
        // Past the end the kernel would make the file longer; a part of a page it would keep for the whole.
        let len = (bytes.len() as u64).min(size.saturating_sub(offset));
        let len = if offset + len == size {
            len
        } else {
            len - len % PAGE
        };
        let notifier = match layer.mount() {
            DataMount::Plain => &self.plain,
            DataMount::Xattr => &self.xattr,
        };
        let mut at = offset;
        for piece in bytes[..usize::try_from(len).unwrap_or(0)].chunks(STORE_PIECE) {
            notifier.store(INodeNo(ino), at, piece).map_err(failed)?;
            at += piece.len() as u64;
        }
        Ok(at - offset)
    }
}

/// Why pages could not be filled.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    /// The layer has no such node.
    #[error("layer {slot} has no node {node}")]
    NoNode {
        /// The layer's slot.
        slot: u32,
        /// The node.
        node: NodeId,
    },
    /// The bytes do not start at a page.
    #[error("{offset} is not the start of a page of {PAGE} bytes")]
    Unaligned {
        /// Where they start.
        offset: u64,
    },
    /// The kernel refused.
    #[error("the kernel takes no pages of node {node} of layer {slot}: {source}")]
    Kernel {
        /// The layer's slot.
        slot: u32,
        /// The node.
        node: NodeId,
        /// Why.
        #[source]
        source: io::Error,
    },
}
