//! The regular files of a stopped replica, one by one, and their blocks against their checksums.

use crate::fs::{proto, query};
use crate::store::{Files, PAGE_BLOCKS, State, StoreError};
use crate::types::{Generation, Ino, LogIndex};

/// Inodes that are looked at together.
const PAGE: usize = 256;

/// Calls `look` with every regular file, in the order of their inodes.
///
/// # Errors
/// When the state cannot be read, or `look` fails.
pub(super) fn each_file<E: From<StoreError>>(
    state: &State,
    mut look: impl FnMut(Ino, &proto::Inode) -> Result<(), E>,
) -> Result<(), E> {
    let mut after = Ino(0);
    loop {
        let page = query::inodes(&state.read(), after, PAGE)?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        after = *last;
        for (ino, inode) in page {
            if inode.kind() == proto::Kind::Regular {
                look(ino, &inode)?;
            }
        }
    }
}

/// What names a file's bytes on this node.
pub(super) fn key(ino: Ino, inode: &proto::Inode) -> (Ino, Generation) {
    (ino, Generation(inode.generation))
}

/// A file's blocks against their checksums.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Compared {
    /// How many have a checksum, and are all here.
    pub(super) blocks: u64,
    /// Where those begin that are something else.
    rotten: Vec<u64>,
}

impl Compared {
    /// Reads all blocks of a file that have a checksum and are in place.
    ///
    /// # Errors
    /// When the local file system has trouble, but what it cannot read.
    pub(super) fn of(
        files: &Files,
        applied: LogIndex,
        (ino, inode): (Ino, &proto::Inode),
    ) -> Result<Self, StoreError> {
        let (key, version) = (key(ino, inode), LogIndex(inode.data_version));
        let mut compared = Self::default();
        let steady = files.steady(key, version, inode.size, applied);
        let Some(file) = steady.filter(|_| inode.size > 0) else { return Ok(compared) };
        // Nothing of it is here.
        if files.is_gone(key)? {
            return Ok(compared);
        }
        let mut reader = files.read_blocks(&file);
        for page in 0..file.blocks().div_ceil(PAGE_BLOCKS) {
            let Some(sums) = files.checksums_of(&file, page) else { continue };
            for (block, sum) in file.page(page).zip(sums) {
                if !files.is_whole(key, file.block(block)) {
                    continue;
                }
                compared.blocks += 1;
                if reader.sum(block)? != Some(sum) {
                    compared.rotten.push(file.block(block).start);
                }
            }
        }
        Ok(compared)
    }

    /// What is wrong, where something is.
    pub(super) fn problem(&self) -> Option<String> {
        let first = self.rotten.first()?;
        let count = self.rotten.len();
        Some(format!("{count} blocks are not what their checksums say, the first at byte {first}"))
    }
}
