//! Inodes of the control mount: a table that grows by lookups and shrinks by forgets.
//!
//! A number is computed from what it names, so that the next life of the store gives the same name the same number and
//! never the same number to another name; a number the kernel kept from the last life is unknown until it is looked up
//! again (ESTALE makes the kernel do that).

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use super::names::Item;
use crate::digest::Digest;

/// What an inode of the control mount is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Node {
    Root,
    Prime,
    Reference(Arc<str>),
    Digest(Arc<str>, Digest),
    Item(Arc<str>, Digest, Item),
}

/// The mount's root.
pub(crate) const ROOT: u64 = 1;
/// The file for priming.
pub(crate) const PRIME: u64 = 2;

/// All inodes the kernel knows.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    known: Mutex<HashMap<u64, (Node, u64)>>,
}

impl Nodes {
    /// What a number names.
    pub(crate) fn get(&self, ino: u64) -> Option<Node> {
        match ino {
            ROOT => Some(Node::Root),
            PRIME => Some(Node::Prime),
            _ => self.known.lock().get(&ino).map(|(node, _)| node.clone()),
        }
    }

    /// The number of what a lookup found, counted once more.
    pub(crate) fn looked_up(&self, node: Node) -> u64 {
        let mut ino = match node {
            Node::Root => return ROOT,
            Node::Prime => return PRIME,
            _ => number(&node),
        };
        let mut known = self.known.lock();
        loop {
            match known.get_mut(&ino) {
                None => {
                    known.insert(ino, (node, 1));
                    return ino;
                }
                Some((same, count)) if *same == node => {
                    *count += 1;
                    return ino;
                }
                // Two names with one hash: the second moves on.
                Some(_) => ino = ino.wrapping_add(1).max(PRIME + 1),
            }
        }
    }

    /// The kernel gave back that many lookups of an inode.
    pub(crate) fn forget(&self, ino: u64, lookups: u64) {
        let mut known = self.known.lock();
        if let Some((_, count)) = known.get_mut(&ino) {
            *count = count.saturating_sub(lookups);
            if *count == 0 {
                known.remove(&ino);
            }
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.known.lock().len()
    }
}

/// The number a name would have (lookups may move it on): 64 bits of a sha256, above the fixed ones.
pub(crate) fn number(node: &Node) -> u64 {
    let text = match node {
        Node::Root => return ROOT,
        Node::Prime => return PRIME,
        Node::Reference(reference) => reference.to_string(),
        Node::Digest(reference, digest) => format!("{reference}\0{digest}"),
        Node::Item(reference, digest, item) => format!("{reference}\0{digest}\0{}", item.name()),
    };
    let hash = Digest::of(text.as_bytes());
    let bytes: [u8; 8] = std::array::from_fn(|n| hash.as_bytes()[n]);
    u64::from_le_bytes(bytes).max(PRIME + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_number_and_is_forgotten_when_the_kernel_forgets_it() {
        let nodes = Nodes::default();
        let node = Node::Item("h/a:1".into(), Digest::of(b"x"), Item::Info);
        let ino = nodes.looked_up(node.clone());
        assert_eq!(nodes.looked_up(node.clone()), ino);
        assert_eq!(nodes.get(ino), Some(node.clone()));
        nodes.forget(ino, 1);
        assert!(nodes.get(ino).is_some());
        nodes.forget(ino, 1);
        assert_eq!(nodes.get(ino), None);
        assert_eq!(nodes.len(), 0, "nothing stays behind");
        nodes.forget(ino, 7);
        assert_eq!(Nodes::default().looked_up(node), ino, "another life");
    }

    #[test]
    fn different_names_have_different_numbers() {
        let nodes = Nodes::default();
        let reference: Arc<str> = "h/a:1".into();
        let digest = Digest::of(b"x");
        let mut numbers: Vec<u64> = [
            Node::Root,
            Node::Prime,
            Node::Reference(Arc::clone(&reference)),
            Node::Reference("h/b:1".into()),
            Node::Digest(Arc::clone(&reference), digest),
            Node::Item(Arc::clone(&reference), digest, Item::Diff),
            Node::Item(reference, digest, Item::Blob),
        ]
        .into_iter()
        .map(|node| nodes.looked_up(node))
        .collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 7);
    }

    #[test]
    fn two_names_with_one_hash_do_not_share_it() {
        let nodes = Nodes::default();
        let node = Node::Reference("h/a".into());
        let ino = number(&node);
        nodes
            .known
            .lock()
            .insert(ino, (Node::Reference("h/other".into()), 1));
        assert_eq!(nodes.looked_up(node.clone()), ino + 1);
        assert_eq!(nodes.get(ino + 1), Some(node));
    }
}
