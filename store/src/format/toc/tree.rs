//! The tree that the entries of a TOC make: names in directories, and the nodes they name.
//!
//! Invariants: every name's directory is a directory; after [`Tree::resolve`] every name names a node that exists.

use std::{
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState},
};

use super::{TocError, name, refusal::Refusal};
use crate::format::{index::Kind, limits::Limits};

/// Bytes of a text for which there is room at first.
const TEXT: usize = 24;

/// A text in the pool.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Str {
    pub at: u32,
    pub len: u32,
}

/// What a node is while the tree grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// As in the index.
    Known(Kind),
    /// A directory that no entry describes (yet).
    Implied,
    /// A character device 0:0; anything else of that name takes its place.
    Whiteout,
    /// A hard link whose target has not come yet: number of the pending link.
    Link(u32),
}

/// A node while the tree grows.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub shape: Shape,
    pub opaque: bool,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub mtime_nsec: u32,
    pub size: u64,
    /// Target, or device number.
    pub a: u32,
    pub b: u32,
    /// Its attributes: first and how many.
    pub xattrs: (u32, u32),
    /// Its chunks: first and how many.
    pub chunks: (u32, u32),
    /// As in the index.
    pub content: u32,
    /// Names in a directory.
    pub children: u32,
    /// The name it was first known under.
    pub name: u32,
    /// The entry that describes it, counted from 1.
    pub entry: u32,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name {
    pub parent: u32,
    pub text: Str,
    pub node: u32,
    /// The next name with the same hash, plus one.
    next: u32,
}

struct Pending {
    name: u32,
    target: Str,
    number: u64,
}

/// The numbers that a map is keyed by are hashes already.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {}
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// The tree.
pub(super) struct Tree {
    /// Names, targets and attributes.
    pub pool: Vec<u8>,
    pub nodes: Vec<Node>,
    pub names: Vec<Name>,
    heads: HashMap<u64, u32, BuildHasherDefault<Hashed>>,
    /// Keyed by a secret, so that no TOC can make all names collide.
    hasher: RandomState,
    pending: Vec<Pending>,
    max_nodes: u32,
    /// The directory of the entry before: mostly that of the next one too.
    last_dir: (String, u32),
}

impl Tree {
    /// Only the root. No more than `max_nodes` others are taken in; there is room for `room` of them at first.
    pub(super) fn new(max_nodes: u32, room: usize) -> Self {
        let mut nodes = Vec::with_capacity(room + 1);
        // What an ordinary pull gives a root that the layer does not describe.
        nodes.push(Node {
            mode: 0o555,
            ..Node::empty(Shape::Implied)
        });
        Self {
            pool: Vec::with_capacity(room * TEXT),
            nodes,
            names: Vec::with_capacity(room),
            // A table of hashes is used all over: room for fewer.
            heads: HashMap::with_capacity_and_hasher(room / 2, BuildHasherDefault::default()),
            hasher: RandomState::new(),
            pending: Vec::new(),
            max_nodes,
            last_dir: (String::new(), 0),
        }
    }

    /// Puts a text into the pool.
    pub(super) fn intern(&mut self, text: &[u8]) -> Result<Str, Refusal> {
        let at = self.pool.len();
        let fits = |n: usize| u32::try_from(n).ok();
        let (Some(at), Some(len), Some(_)) = (
            fits(at),
            fits(text.len()),
            fits(at.saturating_add(text.len())),
        ) else {
            return Err(Refusal::Number {
                field: "place among the layer's texts",
                value: at as u64,
            });
        };
        self.pool.extend_from_slice(text);
        Ok(Str { at, len })
    }

    pub(super) fn text(&self, text: Str) -> &[u8] {
        &self.pool[text.at as usize..text.at as usize + text.len as usize]
    }

    fn hash(&self, parent: u32, text: &[u8]) -> u64 {
        self.hasher.hash_one((parent, text))
    }

    /// The number of a name in a directory.
    fn find(&self, parent: u32, text: &[u8]) -> Option<u32> {
        let mut at = *self.heads.get(&self.hash(parent, text))?;
        while let Some(n) = at.checked_sub(1) {
            let name = &self.names[n as usize];
            if name.parent == parent && self.text(name.text) == text {
                return Some(n);
            }
            at = name.next;
        }
        None
    }

    fn insert(&mut self, parent: u32, text: &[u8], node: u32) -> Result<u32, Refusal> {
        let hash = self.hash(parent, text);
        let text = self.intern(text)?;
        let number = self.names.len() as u32;
        let next = self.heads.insert(hash, number + 1).unwrap_or(0);
        self.names.push(Name {
            parent,
            text,
            node,
            next,
        });
        self.nodes[parent as usize].children += 1;
        self.nodes[node as usize].name = number;
        Ok(number)
    }

    /// Adds a node. Directories that no entry describes count too: a few long paths could make very many of them.
    fn add(&mut self, node: Node) -> Result<u32, Refusal> {
        if self.nodes.len() > self.max_nodes as usize {
            return Err(Refusal::Count(self.max_nodes));
        }
        self.nodes.push(node);
        Ok((self.nodes.len() - 1) as u32)
    }

    /// The directory at a path; those that are missing are made, as an ordinary pull makes them.
    pub(super) fn dir(&mut self, path: &str) -> Result<u32, Refusal> {
        if self.last_dir.0 == path {
            return Ok(self.last_dir.1);
        }
        let mut at = 0;
        for component in name::components(path) {
            at = match self.find(at, component.as_bytes()) {
                Some(n) => {
                    let node = self.names[n as usize].node;
                    match self.nodes[node as usize].shape {
                        Shape::Known(Kind::Directory) | Shape::Implied => node,
                        Shape::Whiteout => {
                            let dir = self.add(Node::empty(Shape::Implied))?;
                            self.name(n, dir);
                            dir
                        }
                        Shape::Known(_) | Shape::Link(_) => {
                            return Err(Refusal::ParentNotDirectory(component.to_owned()));
                        }
                    }
                }
                None => {
                    let dir = self.add(Node::empty(Shape::Implied))?;
                    self.insert(at, component.as_bytes(), dir)?;
                    dir
                }
            };
        }
        self.last_dir.0.clear();
        self.last_dir.0.push_str(path);
        self.last_dir.1 = at;
        Ok(at)
    }

    /// Lets a name name another node.
    fn name(&mut self, n: u32, node: u32) {
        self.names[n as usize].node = node;
        self.nodes[node as usize].name = n;
    }

    /// Puts a node under a name; the last one of a name wins. Answers the node's number (a directory that was there
    /// keeps its own, and what is in it).
    pub(super) fn put(&mut self, parent: u32, text: &str, node: Node) -> Result<u32, Refusal> {
        let Some(n) = self.find(parent, text.as_bytes()) else {
            let number = self.add(node)?;
            self.insert(parent, text.as_bytes(), number)?;
            return Ok(number);
        };
        let old = self.names[n as usize].node;
        if node.shape == Shape::Known(Kind::Directory) && self.is_dir(old) {
            self.replace_dir(old, node);
            return Ok(old);
        }
        self.check_replace(old)?;
        let number = self.add(node)?;
        self.name(n, number);
        Ok(number)
    }

    /// Gives a directory what its entry says.
    pub(super) fn replace_dir(&mut self, dir: u32, mut node: Node) {
        let old = &self.nodes[dir as usize];
        node.opaque |= old.opaque;
        node.children = old.children;
        node.name = old.name;
        self.nodes[dir as usize] = node;
    }

    fn is_dir(&self, node: u32) -> bool {
        matches!(
            self.nodes[node as usize].shape,
            Shape::Known(Kind::Directory) | Shape::Implied
        )
    }

    fn check_replace(&mut self, old: u32) -> Result<(), Refusal> {
        if self.is_dir(old) {
            if self.nodes[old as usize].children > 0 {
                return Err(Refusal::ReplacesDirectory);
            }
            // The directory is gone; it must not be found again.
            self.last_dir = (String::new(), 0);
        }
        Ok(())
    }

    /// Hides a name of the layers below, unless this layer has something of that name.
    pub(super) fn whiteout(&mut self, parent: u32, text: &str, node: Node) -> Result<(), Refusal> {
        if self.find(parent, text.as_bytes()).is_none() {
            let number = self.add(node)?;
            self.insert(parent, text.as_bytes(), number)?;
        }
        Ok(())
    }

    /// Adds a name to the file at `target`, now or, if that has not come yet, in [`Tree::resolve`].
    pub(super) fn link(
        &mut self,
        parent: u32,
        text: &str,
        target: &str,
        number: u64,
        limits: &Limits,
    ) -> Result<(), Refusal> {
        if name::split(target, limits)?.is_none() {
            return Err(Refusal::LinkNotFile(target.to_owned()));
        }
        let found = self.walk(target);
        let own = self.find(parent, text.as_bytes());
        if found.is_some() && found == own {
            return Err(Refusal::LinkCycle(target.to_owned()));
        }
        let shape = found.map(|n| {
            let node = self.names[n as usize].node;
            (node, self.nodes[node as usize].shape)
        });
        let node = match shape {
            Some((node, Shape::Known(Kind::File))) => node,
            Some((_, Shape::Known(_) | Shape::Implied)) => {
                return Err(Refusal::LinkNotFile(target.to_owned()));
            }
            Some((_, Shape::Whiteout | Shape::Link(_))) | None => {
                let target = self.intern(target.as_bytes())?;
                self.pending.push(Pending {
                    name: 0,
                    target,
                    number,
                });
                self.add(Node::empty(Shape::Link(self.pending.len() as u32 - 1)))?
            }
        };
        let n = match own {
            Some(n) => {
                self.check_replace(self.names[n as usize].node)?;
                self.names[n as usize].node = node;
                n
            }
            None => {
                let first = self.nodes[node as usize].name;
                let n = self.insert(parent, text.as_bytes(), node)?;
                if !matches!(self.nodes[node as usize].shape, Shape::Link(_)) {
                    self.nodes[node as usize].name = first;
                }
                n
            }
        };
        if let Shape::Link(link) = self.nodes[node as usize].shape {
            self.pending[link as usize].name = n;
        }
        Ok(())
    }

    /// The number of the name at a path.
    fn walk(&self, path: &str) -> Option<u32> {
        let mut at = 0;
        let mut found = None;
        for component in name::components(path) {
            let n = self.find(at, component.as_bytes())?;
            at = self.names[n as usize].node;
            found = Some(n);
        }
        found
    }

    /// Lets every hard link that came before its target name the target's node.
    pub(super) fn resolve(&mut self) -> Result<(), TocError> {
        let pending = std::mem::take(&mut self.pending);
        // The walk in which a link was met last, counted from 1.
        let mut met = vec![0_u32; pending.len()];
        for (walk, first) in pending.iter().enumerate() {
            let refuse = |tree: &Self, why: fn(String) -> Refusal| {
                let target = String::from_utf8_lossy(tree.text(first.target)).into_owned();
                let name = String::from_utf8_lossy(&tree.path(first.name)).into_owned();
                TocError::entry(first.number, &name, why(target))
            };
            // The name may have been taken by something else since.
            if !matches!(self.shape_of(first.name), Shape::Link(n) if n as usize == walk) {
                continue;
            }
            let mut chain = Vec::new();
            let mut at = walk;
            let node = loop {
                if met[at] == walk as u32 + 1 {
                    return Err(refuse(self, Refusal::LinkCycle));
                }
                met[at] = walk as u32 + 1;
                chain.push(pending[at].name);
                // What `intern` took from a text is one.
                let target = String::from_utf8_lossy(self.text(pending[at].target)).into_owned();
                let Some(n) = self.walk(&target) else {
                    return Err(refuse(self, Refusal::LinkMissing));
                };
                match self.shape_of(n) {
                    Shape::Known(Kind::File) => break self.names[n as usize].node,
                    Shape::Link(next) => at = next as usize,
                    Shape::Whiteout => return Err(refuse(self, Refusal::LinkMissing)),
                    Shape::Known(_) | Shape::Implied => {
                        return Err(refuse(self, Refusal::LinkNotFile));
                    }
                }
            };
            for name in chain {
                self.names[name as usize].node = node;
            }
        }
        Ok(())
    }

    fn shape_of(&self, name: u32) -> Shape {
        self.nodes[self.names[name as usize].node as usize].shape
    }

    /// Path of a name, for messages.
    pub(super) fn path(&self, name: u32) -> Vec<u8> {
        let mut parts = Vec::new();
        let mut at = self.names.get(name as usize);
        while let Some(name) = at {
            parts.push(self.text(name.text));
            at = match name.parent {
                0 => None,
                dir => self.names.get(self.nodes[dir as usize].name as usize),
            };
        }
        parts.reverse();
        parts.join(&b'/')
    }
}

impl Node {
    /// A node with what an ordinary pull gives directories that no entry describes.
    pub(super) fn empty(shape: Shape) -> Self {
        Self {
            shape,
            opaque: false,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: 0,
            mtime_nsec: 0,
            size: 0,
            a: 0,
            b: 0,
            xattrs: (0, 0),
            chunks: (0, 0),
            content: crate::format::index::record::CONTENT_NONE,
            children: 0,
            name: u32::MAX,
            entry: 0,
        }
    }
}
