//! A profile's files in an image's layers: by content and path, by content alone (moved), by path alone (rebuilt); of
//! another image's profile only those that are certainly the same.

use std::{cell::OnceCell, collections::HashMap, sync::Arc};

use crate::{
    digest::Digest,
    format::{Kind, NodeId, index::IndexError},
    image::Layer,
};

/// A file of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Number of the layer in the list that was searched.
    pub layer: usize,
    /// The file in it.
    pub node: NodeId,
    /// Its size in bytes.
    pub size: u64,
}

/// Finds files in the layers of one image, top layer first.
#[derive(Debug)]
pub struct Locator<'a> {
    layers: &'a [Arc<Layer>],
    // Walking all entries takes milliseconds: only for a file that is not at its path.
    contents: OnceCell<HashMap<Digest, Place>>,
}

impl<'a> Locator<'a> {
    /// A locator over these layers, top first.
    #[must_use]
    pub const fn new(layers: &'a [Arc<Layer>]) -> Self {
        Self {
            layers,
            contents: OnceCell::new(),
        }
    }

    /// The layers, top first.
    #[must_use]
    pub const fn layers(&self) -> &'a [Arc<Layer>] {
        self.layers
    }

    /// Whether some file has this content. An index that is damaged holds nothing.
    #[must_use]
    pub fn holds(&self, content: &Digest) -> bool {
        self.contents()
            .is_ok_and(|contents| contents.contains_key(content))
    }

    /// The very file that a profile of another image means: at its path in the same layer, or with its content
    /// anywhere.
    ///
    /// # Errors
    /// If an index is damaged.
    pub fn same(
        &self,
        path: &str,
        content: Option<&Digest>,
        blob: Option<&Digest>,
    ) -> Result<Option<Place>, IndexError> {
        let layer = (self.layers.iter()).position(|layer| Some(layer.blob()) == blob);
        if let Some(at) = layer
            && let Some((place, found)) = self.at_path(at, path)?
            && (content.is_none() || found.is_none() || content == found.as_ref())
        {
            return Ok(Some(place));
        }
        match content {
            Some(content) => Ok(self.contents()?.get(content).copied()),
            None => Ok(None),
        }
    }

    /// The file with this content: at its path, preferably in the layer of `blob`, or anywhere. Without a content
    /// digest on either side, the file at the path with this size.
    ///
    /// # Errors
    /// If an index is damaged.
    pub fn exact(
        &self,
        path: &str,
        content: Option<&Digest>,
        size: u64,
        blob: Option<&Digest>,
    ) -> Result<Option<Place>, IndexError> {
        let mut order: Vec<usize> = (0..self.layers.len()).collect();
        order.sort_by_key(|at| Some(self.layers[*at].blob()) != blob);
        for at in order {
            let Some((place, found)) = self.at_path(at, path)? else {
                continue;
            };
            let same = match (content, found) {
                (Some(wanted), Some(found)) => *wanted == found,
                _ => place.size == size,
            };
            if same {
                return Ok(Some(place));
            }
        }
        match content {
            Some(content) => Ok(self.contents()?.get(content).copied()),
            None => Ok(None),
        }
    }

    /// The file that the container sees at this path, whatever is in it.
    ///
    /// # Errors
    /// If an index is damaged.
    pub fn by_path(&self, path: &str) -> Result<Option<Place>, IndexError> {
        for at in 0..self.layers.len() {
            if let Some((place, _)) = self.at_path(at, path)? {
                return Ok(Some(place));
            }
        }
        Ok(None)
    }

    fn at_path(
        &self,
        at: usize,
        path: &str,
    ) -> Result<Option<(Place, Option<Digest>)>, IndexError> {
        let index = &self.layers[at].index;
        let Some(node) = index.find(path.as_bytes())? else {
            return Ok(None);
        };
        Ok(index
            .entry(node)?
            .filter(|entry| entry.kind == Kind::File)
            .map(|entry| {
                (
                    Place {
                        layer: at,
                        node,
                        size: entry.size,
                    },
                    entry.content,
                )
            }))
    }

    fn contents(&self) -> Result<&HashMap<Digest, Place>, IndexError> {
        if let Some(contents) = self.contents.get() {
            return Ok(contents);
        }
        let mut contents = HashMap::new();
        for (at, layer) in self.layers.iter().enumerate() {
            for node in 0..layer.index.node_count() {
                let Some(entry) = layer.index.entry(node)? else {
                    break;
                };
                if entry.kind == Kind::File
                    && let Some(content) = entry.content
                {
                    contents.entry(content).or_insert(Place {
                        layer: at,
                        node,
                        size: entry.size,
                    });
                }
            }
        }
        Ok(self.contents.get_or_init(|| contents))
    }
}
