//! Inode numbers of the data mounts: a function of (slot, node), equal in every life of the store (invariant 4).
//!
//! 1 is the mount's root, 2 the file for priming; `slot << 32` is a layer's directory and `(slot << 32) + 1 + node` a
//! node of its tree, so that node 0 (the tree's root) is `diff`.

use crate::format::NodeId;

/// What an inode number of a data mount names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Inode {
    /// The root of the mount.
    Root,
    /// The empty file that a connection is primed with.
    Prime,
    /// The directory of a layer, which holds `diff`.
    Slot(u32),
    /// A node of a layer's tree.
    Node(u32, NodeId),
}

impl Inode {
    /// The number; `None` for slot 0 and for the one node that would fall on the next slot (no index is that long).
    #[must_use]
    pub const fn number(self) -> Option<u64> {
        match self {
            Self::Root => Some(1),
            Self::Prime => Some(2),
            Self::Slot(0) | Self::Node(0, _) | Self::Node(_, NodeId::MAX) => None,
            Self::Slot(slot) => Some((slot as u64) << 32),
            Self::Node(slot, node) => Some(((slot as u64) << 32) + 1 + node as u64),
        }
    }

    /// What a number names; `None` if it names nothing.
    #[must_use]
    pub const fn of(number: u64) -> Option<Self> {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the two halves of the number"
        )]
        let (slot, low) = ((number >> 32) as u32, number as u32);
        match (slot, low) {
            (0, 1) => Some(Self::Root),
            (0, 2) => Some(Self::Prime),
            (0, _) => None,
            (slot, 0) => Some(Self::Slot(slot)),
            (slot, low) => Some(Self::Node(slot, low - 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_documented_numbers() {
        assert_eq!(Inode::Root.number(), Some(1));
        assert_eq!(Inode::Slot(1).number(), Some(1 << 32));
        assert_eq!(Inode::Node(1, 0).number(), Some((1 << 32) + 1));
        assert_eq!(Inode::Node(3, 7).number(), Some((3 << 32) + 8));
        assert_eq!(Inode::Slot(0).number(), None);
        assert_eq!(Inode::Node(1, NodeId::MAX).number(), None);
        assert_eq!(Inode::of(0), None);
        assert_eq!(Inode::of(3), None);
    }

    proptest! {
        #[test]
        fn every_number_is_of_one_inode(number in any::<u64>()) {
            if let Some(inode) = Inode::of(number) {
                prop_assert_eq!(inode.number(), Some(number));
            }
        }

        #[test]
        fn every_node_has_its_own_number(slot in 1..=u32::MAX, node in 0..NodeId::MAX) {
            let inode = Inode::Node(slot, node);
            prop_assert_eq!(inode.number().and_then(Inode::of), Some(inode));
            let directory = Inode::Slot(slot);
            prop_assert_eq!(directory.number().and_then(Inode::of), Some(directory));
        }
    }
}
