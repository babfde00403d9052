//! Filling the kernel's page cache before anybody reads.

use std::{io, sync::Arc, time::Duration};

use fuser::{INodeNo, Notifier};

use super::{inode::Inode, reading::Reading};
use crate::{
    format::NodeId,
    image::{DataMount, Layer},
};

/// Puts bytes into the kernel's page cache before anybody asks for them.
#[derive(Debug, Clone)]
pub struct Warm {
    plain: Notifier,
    xattr: Notifier,
    reading: Arc<Reading>,
}

/// A page as FUSE counts them.
const PAGE: u64 = 4096;

/// Bytes given to the kernel in one notification at most.
const STORE_PIECE: usize = 1 << 20;

impl Warm {
    pub(crate) const fn new(plain: Notifier, xattr: Notifier, reading: Arc<Reading>) -> Self {
        Self {
            plain,
            xattr,
            reading,
        }
    }

    /// No pages are stored any more. Waits until those under way are, for at most `patience`; then READs that hold them
    /// up are answered with EIO when the fetcher stops. For a store that stops, before its fetcher does.
    pub async fn close(&self, patience: Duration) {
        self.reading.close(patience).await;
    }

    /// Stores verified bytes of a file into its pages. `offset` must be the start of a page; a page that `bytes` do
    /// not fill is left out, except the one at the file's end. Returns how many bytes were given to the kernel:
    /// none while a READ of the file waits for its chunks. An inode the kernel has not looked up yet silently takes
    /// nothing.
    ///
    /// Blocks where a READ of one of the pages is under way: call it on a thread for blocking work, holding no lock.
    ///
    /// # Errors
    /// The node is not in the layer, `offset` is not the start of a page, the kernel refuses, or the store is stopping.
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
            let stored = self
                .reading
                .store(ino, || notifier.store(INodeNo(ino), at, piece));
            match stored {
                None => return Err(WarmError::Stopping),
                Some(None) => break,
                Some(Some(stored)) => stored.map_err(failed)?,
            }
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
    /// No pages are stored any more.
    #[error("the store is stopping")]
    Stopping,
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
