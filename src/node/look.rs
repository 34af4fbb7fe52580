//! What a strong read looks at.

use parking_lot::RwLockReadGuard;

use crate::fs::Unapplied;
use crate::store::StateRead;
use crate::types::{Ino, LogIndex, MountId};

/// The whole state at one applied index, and what entries that were received before the read began may
/// change of it. Short: applies wait while it lives.
#[derive(Debug)]
pub struct Look<'a> {
    /// The state.
    pub state: StateRead<'a>,
    // Taken after the state: as long as that is older than an entry, the entry is in here.
    pub(super) unapplied: RwLockReadGuard<'a, Unapplied>,
    pub(super) since: LogIndex,
    /// Who looks.
    pub(super) reader: Option<MountId>,
}

impl Look<'_> {
    /// When an inode was last changed, or will have been: a read of it that begins now must not be served
    /// before that is applied and stable.
    #[must_use]
    pub fn inode_changed(&self, ino: Ino, mod_index: u64) -> LogIndex {
        self.unapplied.of_inode(ino, self.since, self.reader).max(LogIndex(mod_index))
    }

    /// The same, where the mount that looks has given up bytes of the inode: they are not shown any more, but
    /// may come yet.
    #[must_use]
    pub fn doubtful_inode_changed(&self, ino: Ino, mod_index: u64) -> LogIndex {
        self.unapplied.of_inode(ino, self.since, None).max(LogIndex(mod_index))
    }

    /// As [`Self::inode_changed`], for what a name means, or that it means nothing, in a directory that was
    /// last changed at `mod_index`.
    #[must_use]
    pub fn name_changed(&self, parent: Ino, name: &[u8], mod_index: u64) -> LogIndex {
        self.unapplied.of_name(parent, name, self.since).max(LogIndex(mod_index))
    }
}
