//! Backing files, and checksums of them, that nothing names any more: what a crash can leave behind.
//!
//! Removing one that is needed would be the worst of all faults, so nothing here depends on what happens meanwhile:
//!
//! - A generation is the index of the entry that began it, and inode numbers are given out ascending. So a file of
//!   a generation up to the applied index, and of a number that was given out by then, has had its name: where the
//!   state at that index does not name it, no later state does. Whatever is younger is left alone.
//! - What a replay may read once more is pinned (`pins.rs`), and stays; bytes that a replay writes make the file anew.
//! - The file goes under its lock, and only where no later entry has begun to change a file of the inode since the
//!   state was asked.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::checksums::key_of;
use super::files::{Files, Key, path_below};
use super::state::State;
use crate::fs::{proto, query};
use crate::store::StoreError;
use crate::types::{Ino, LogIndex};

/// A backing file, or checksums alone, that nothing names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreferenced {
    /// Of which inode and generation.
    pub key: Key,
    /// What there is of it, with its bytes.
    pub paths: Vec<(PathBuf, u64)>,
}

/// What [`Files::collect_unreferenced`] has removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// How many backing files, or checksums without one.
    pub files: u64,
    /// Their bytes on the disk.
    pub bytes: u64,
}

/// How far a state is.
#[derive(Clone, Copy, Debug)]
struct Horizon {
    applied: LogIndex,
    /// The first number that was not given out.
    next: Ino,
}

impl Files {
    /// What nothing names in a state, and no replay needs. Files that are younger than the state are not among it.
    ///
    /// # Errors
    /// When the local file system or the state refuses.
    pub fn unreferenced(&self, state: &State) -> Result<Vec<Unreferenced>, StoreError> {
        let horizon = Horizon::of(state)?;
        let mut found = Vec::new();
        let dirs = self.swept_dirs();
        for shard in shards(&dirs)? {
            for key in keys_in(&dirs, &shard)? {
                if self.is_unreferenced(state, horizon, key)?.is_some() {
                    let paths = dirs.iter().map(|dir| path_below(dir, key)).filter_map(sized);
                    found.push(Unreferenced { key, paths: paths.collect() });
                }
            }
        }
        Ok(found)
    }

    /// Every file of which there are bytes or checksums here.
    pub(super) fn all_files(&self) -> Result<BTreeSet<Key>, StoreError> {
        let dirs = self.swept_dirs();
        let mut all = BTreeSet::new();
        for shard in shards(&dirs)? {
            all.extend(keys_in(&dirs, &shard)?);
        }
        Ok(all)
    }

    /// Removes what [`Self::unreferenced`] finds. Others may apply entries meanwhile.
    ///
    /// # Errors
    /// When the local file system or the state refuses.
    pub fn collect_unreferenced(&self, state: &State) -> Result<Swept, StoreError> {
        let horizon = Horizon::of(state)?;
        let mut swept = Swept::default();
        let dirs = self.swept_dirs();
        for shard in shards(&dirs)? {
            for key in keys_in(&dirs, &shard)? {
                let Some(asked_at) = self.is_unreferenced(state, horizon, key)? else { continue };
                let bytes = dirs.iter().map(|dir| path_below(dir, key)).filter_map(sized);
                let bytes: u64 = bytes.map(|(_, bytes)| bytes).sum();
                if self.discard_unchanged(key, asked_at)? {
                    tracing::info!(
                        ino = key.0.0,
                        generation = key.1.0,
                        bytes,
                        "removed: nothing names it"
                    );
                    swept.files += 1;
                    swept.bytes += bytes;
                }
            }
        }
        Ok(swept)
    }

    /// The index at which a state was found not to name a file, which no replay needs; nothing where it is to stay.
    fn is_unreferenced(
        &self,
        state: &State,
        horizon: Horizon,
        key: Key,
    ) -> Result<Option<LogIndex>, StoreError> {
        let (ino, generation) = key;
        let is_younger = generation.0 > horizon.applied.0 || ino >= horizon.next;
        let is_gone = || self.beneath().is_some_and(|beneath| beneath.has_hidden(key));
        if is_younger || self.pins().has(key) || is_gone() {
            return Ok(None);
        }
        // Asked for each file by itself, and never while its lock is held: whoever reads takes these two the other
        // way round.
        let read = state.read();
        let inode = query::inode(&read, ino)?;
        let is_named = inode.is_some_and(|inode| {
            inode.kind() == proto::Kind::Regular && inode.generation == generation.0
        });
        Ok((!is_named).then(|| read.applied()))
    }

    /// Removes a file unless an entry after that one has begun to change one of its inode, or a replay needs it.
    fn discard_unchanged(&self, key: Key, asked_at: LogIndex) -> Result<bool, StoreError> {
        let mut layouts = self.layouts().lock(key.0);
        // Whoever applies says so before he waits for this lock.
        if self.checksums().last_change(key.0) > asked_at || self.pins().has(key) {
            return Ok(false);
        }
        self.discard_locked(&mut layouts, key)?;
        Ok(true)
    }

    /// Backing files, and their checksums: of a data directory beneath where there is one.
    fn swept_dirs(&self) -> [PathBuf; 2] {
        match self.beneath() {
            Some(beneath) => [beneath.dir(), beneath.checksums_dir()],
            None => [self.path(), self.checksums().dir()],
        }
        .map(Path::to_owned)
    }
}

impl Horizon {
    fn of(state: &State) -> Result<Self, StoreError> {
        let read = state.read();
        Ok(Self { applied: read.applied(), next: query::next_ino(&read)? })
    }
}

/// The names of the directories that files are spread over.
fn shards(dirs: &[PathBuf]) -> Result<BTreeSet<PathBuf>, StoreError> {
    let mut shards = BTreeSet::new();
    for dir in dirs {
        for path in list(dir)? {
            // Beside them there are the spare files.
            let is_shard = path.file_name().is_some_and(|name| name.len() == 2) && path.is_dir();
            shards.extend(path.file_name().filter(|_| is_shard).map(PathBuf::from));
        }
    }
    Ok(shards)
}

/// Whether there is any backing file in a directory of them.
pub(super) fn has_files(dir: &Path) -> Result<bool, StoreError> {
    let dirs = [dir.to_owned()];
    for shard in shards(&dirs)? {
        if !keys_in(&dirs, &shard)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The files that have something in a shard of one of the directories, each once.
fn keys_in(dirs: &[PathBuf], shard: &Path) -> Result<BTreeSet<Key>, StoreError> {
    let mut keys = BTreeSet::new();
    for dir in dirs {
        let paths = list(&dir.join(shard))?;
        // A name that we would not give is none of ours.
        let keyed = paths.iter().filter_map(|path| Some((key_of(path)?, path)));
        keys.extend(
            keyed.filter(|(key, path)| path_below(dir, *key) == **path).map(|(key, _)| key),
        );
    }
    Ok(keys)
}

/// Empty where there is no such directory.
fn list(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(StoreError::io("list", dir)(source)),
    };
    entries.map(|entry| Ok(entry.map_err(StoreError::io("list", dir))?.path())).collect()
}

/// A file with the bytes that it takes on the disk; nothing where there is none.
fn sized(path: PathBuf) -> Option<(PathBuf, u64)> {
    let found = std::fs::symlink_metadata(&path).ok()?;
    Some((path, found.blocks() * 512))
}

#[cfg(test)]
#[path = "sweep_tests.rs"]
mod tests;
