//! Which directory a mount shows as its root. The kernel calls it inode 1, whatever its number is, and may know
//! a file by an alias: numbers are translated here, on their way in and out, and nowhere else.

use fuser::INodeNo;

use crate::types::Ino;

/// The directory that is the root of a mount. Nothing inside of it ever leads back to it: directories
/// have one name, and `..` is the kernel's own affair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Root(pub(super) Ino);

impl Root {
    /// Marks the number of an alias (see [`super::passthrough`]). Inode numbers stay below.
    const ALIAS: u64 = 1 << 63;

    /// The root of the whole file system.
    pub(super) const WHOLE: Self = Self(Ino::ROOT);

    /// What the kernel means.
    pub(super) fn ino(self, node: INodeNo) -> Ino {
        if node == INodeNo::ROOT { self.0 } else { Ino(node.0 & !Self::ALIAS) }
    }

    /// Whether the kernel means a file by its alias.
    pub(super) fn is_alias(node: INodeNo) -> bool {
        node.0 & Self::ALIAS != 0
    }

    /// The alias of a file.
    pub(super) fn alias(ino: Ino) -> INodeNo {
        debug_assert!(ino.0 < Self::ALIAS, "numbers are granted in order");
        INodeNo(ino.0 | Self::ALIAS)
    }

    /// How the kernel knows an inode.
    pub(super) fn node(self, ino: Ino) -> INodeNo {
        if ino == self.0 { INodeNo::ROOT } else { INodeNo(ino.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::{INodeNo, Ino, Root};

    #[test]
    fn only_the_root_has_another_number() {
        let root = Root(Ino(77));
        assert_eq!(root.ino(INodeNo(1)), Ino(77));
        assert_eq!(root.node(Ino(77)), INodeNo(1));
        assert_eq!((root.ino(INodeNo(5)), root.node(Ino(5))), (Ino(5), INodeNo(5)));
        assert_eq!(root.ino(Root::alias(Ino(5))), Ino(5));
        assert!(Root::is_alias(Root::alias(Ino(5))) && !Root::is_alias(INodeNo(5)));
        assert_eq!(Root::WHOLE.ino(INodeNo(1)), Ino::ROOT);
        assert_eq!(Root::WHOLE.node(Ino::ROOT), INodeNo(1));
    }
}
