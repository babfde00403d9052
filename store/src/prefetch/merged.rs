//! The image's tree as overlayfs walks it: which names it looks up in which layers to resolve a path.
//!
//! The walk runs over the layers' indexes in memory; nothing is sent to the mounts. Symbolic links are followed within
//! the image, as a container sees them.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use crate::{
    format::{Kind, NodeId, index::IndexError},
    image::Layer,
};

/// Symbolic links followed in one path, as in Linux.
const MAX_LINKS: u32 = 40;

/// A name that overlayfs looks up in one layer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lookup {
    /// Number of the layer, 0 is the top.
    pub layer: usize,
    /// From the root of the layer; free of symbolic links but for the last name.
    pub path: Vec<u8>,
    /// The directory, in this layer.
    pub directory: NodeId,
    /// Whether the name is there.
    pub found: bool,
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum At {
    Missing,
    /// Directories of this path, top layer first.
    Directory(Vec<(usize, NodeId)>),
    Other(usize, NodeId),
}

/// A walk over the layers of an image; remembers what it looked up.
#[derive(Debug)]
pub struct Merged<'a> {
    layers: &'a [Arc<Layer>],
    known: HashMap<Vec<u8>, At>,
    lookups: Vec<Lookup>,
}

impl<'a> Merged<'a> {
    /// A walk over these layers, top first.
    #[must_use]
    pub fn new(layers: &'a [Arc<Layer>]) -> Self {
        let roots = (0..layers.len()).map(|layer| (layer, 0)).collect();
        Self {
            layers,
            known: HashMap::from([(Vec::new(), At::Directory(roots))]),
            lookups: Vec::new(),
        }
    }

    /// Resolves an absolute path; answers the layer and node of what is there, of directories the topmost. Links are
    /// followed, also a last one.
    ///
    /// # Errors
    /// If an index is damaged.
    pub fn resolve(&mut self, path: &[u8]) -> Result<Option<(usize, NodeId)>, IndexError> {
        let mut links = 0;
        let mut rest: VecDeque<Vec<u8>> = names(path).collect();
        let mut here: Vec<Vec<u8>> = Vec::new();
        while let Some(name) = rest.pop_front() {
            if name == b".." {
                here.pop();
                continue;
            }
            here.push(name);
            match self.step(&here)? {
                At::Missing => return Ok(None),
                At::Directory(_) => {}
                At::Other(layer, node) => {
                    let link = match self.layers[layer].index.entry(node)? {
                        Some(entry) if entry.kind == Kind::Symlink => entry.target.to_vec(),
                        _ if rest.is_empty() => return Ok(Some((layer, node))),
                        _ => return Ok(None),
                    };
                    links += 1;
                    if links > MAX_LINKS {
                        return Ok(None);
                    }
                    if link.starts_with(b"/") {
                        here.clear();
                    } else {
                        here.pop();
                    }
                    for name in names(&link).collect::<Vec<_>>().into_iter().rev() {
                        rest.push_front(name);
                    }
                }
            }
        }
        Ok(match self.known.get(&join(&here)) {
            Some(At::Directory(places)) => places.first().copied(),
            _ => None,
        })
    }

    /// All lookups of the paths resolved so far, each once, directories before what is in them.
    #[must_use]
    pub fn into_lookups(self) -> Vec<Lookup> {
        self.lookups
    }

    /// What is at a path whose directory was resolved.
    fn step(&mut self, here: &[Vec<u8>]) -> Result<At, IndexError> {
        let path = join(here);
        if let Some(known) = self.known.get(&path) {
            return Ok(known.clone());
        }
        let (name, parent) = match here.split_last() {
            Some((name, parent)) => (name, join(parent)),
            None => return Ok(At::Missing),
        };
        let Some(At::Directory(places)) = self.known.get(&parent).cloned() else {
            return Ok(At::Missing);
        };
        let mut directories = Vec::new();
        let mut at = At::Missing;
        for (layer, directory) in places {
            let index = &self.layers[layer].index;
            let node = index.lookup(directory, name)?;
            self.lookups.push(Lookup {
                layer,
                path: path.clone(),
                directory,
                found: node.is_some(),
            });
            let Some(node) = node else {
                continue;
            };
            let Some(entry) = index.entry(node)? else {
                continue;
            };
            match entry.kind {
                Kind::Directory => {
                    directories.push((layer, node));
                    if self.opaque(layer, node)? {
                        break;
                    }
                }
                // A whiteout, or a file under a directory: what lies below does not show.
                _ if !directories.is_empty() => break,
                Kind::CharDevice if (entry.major, entry.minor) == (0, 0) => break,
                _ => {
                    at = At::Other(layer, node);
                    break;
                }
            }
        }
        if !directories.is_empty() {
            at = At::Directory(directories);
        }
        self.known.insert(path, at.clone());
        Ok(at)
    }

    fn opaque(&self, layer: usize, node: NodeId) -> Result<bool, IndexError> {
        let index = &self.layers[layer].index;
        if !index.needs_xattrs() {
            return Ok(false);
        }
        Ok(index.xattrs(node)?.iter().any(|(name, value)| {
            matches!(*name, b"trusted.overlay.opaque" | b"user.overlay.opaque") && *value == b"y"
        }))
    }
}

fn names(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .map(<[u8]>::to_vec)
}

fn join(names: &[Vec<u8>]) -> Vec<u8> {
    names.join(&b'/')
}

#[cfg(test)]
mod tests;
