//! When this mount's kernel is made to drop a directory from its old place: see [`super::kernel_directories`].

use super::core::Core;
use super::errors::OpError;
use super::kernel_cache::LATE_REPLY;
use super::name_drops::Name;
use super::names::Place;
use crate::fs::proto::Kind;
use crate::fs::{Change, query};
use crate::types::Ino;

/// So many names in a directory are dropped so that the kernel can drop the directory itself.
const BELOW_MAX: usize = 128;

impl Core {
    /// The kernel is about to be told that it finds a directory here.
    pub(super) fn give_directory(&self, ino: Ino, place: &Place) {
        if let Some(before) = self.directories.give(ino, place) {
            // Whoever asks may hold the lock that this takes.
            self.kernel().drop_directories(vec![before]);
        }
    }

    /// The names among these by which the kernel has directories that others remove or rename.
    pub(super) fn take_directories(&self, changes: &[Change]) -> Vec<Name> {
        let taken = changes.iter().filter_map(|change| match change {
            Change::Name { parent, name, existed: true } => {
                self.directories.changed((*parent, name)).then(|| (*parent, name.clone()))
            }
            _ => None,
        });
        taken.collect()
    }

    /// Has the kernel drop these from where it has them, but for those that it has dropped already. Waits for it where no
    /// operation can hold it up.
    pub(super) fn drop_directories(&self, mut moved: Vec<Name>, dropped: &[Name], may_wait: bool) {
        moved.retain(|name| !dropped.contains(name));
        if moved.is_empty() {
            return;
        }
        let waits =
            may_wait && !moved.iter().any(|(parent, _)| self.directories.is_locked(*parent));
        if let Some(dropping) = self.kernel().drop_directories(moved)
            && waits
        {
            dropping.wait(|| self.locks_may_be_held());
        }
    }

    /// Has the kernel drop what is below a stranded directory, and with it the directory.
    pub(super) async fn free_directory(&self, ino: Ino) -> Result<(), OpError> {
        let mut below: Vec<Name> = Vec::new();
        // Those below are stranded, too, where they were in use the last time.
        let mut stranded = vec![ino];
        while let Some(directory) = stranded.pop()
            && below.len() < BELOW_MAX
        {
            let limit = BELOW_MAX - below.len();
            let entries = self.query(|state| Ok(query::readdir(state, directory, 0, limit)?))?;
            for entry in entries {
                if entry.kind == Kind::Directory
                    && !self.directories.changed((directory, &entry.name))
                    && self.directories.is_stranded(entry.ino)
                {
                    stranded.push(entry.ino);
                }
                below.push((directory, entry.name));
            }
        }
        if let Some(dropping) = self.kernel().drop_directories(below)
            && !self.directories.is_locked(ino)
        {
            dropping.wait_within(LATE_REPLY).await;
        }
        Ok(())
    }
}
