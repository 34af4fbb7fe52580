//! Files that are either the old or the new one after a crash, never a mixture.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::store::StoreError;

/// Replaces the file at `path`: written beside, fsynced, renamed into place, directory fsynced.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let beside = path.with_extension("tmp");
    let mut file = File::create(&beside).map_err(StoreError::io("create", &beside))?;
    file.write_all(bytes).map_err(StoreError::io("write", &beside))?;
    file.sync_all().map_err(StoreError::io("fsync", &beside))?;
    put_in_place(&beside, path)
}

/// Renames an fsynced file to its final name, durably.
pub(super) fn put_in_place(from: &Path, to: &Path) -> Result<(), StoreError> {
    std::fs::rename(from, to).map_err(StoreError::io("rename into place", to))?;
    sync_parent(to)
}

/// Makes names created in, or removed from, the directory of `path` durable.
pub(super) fn sync_parent(path: &Path) -> Result<(), StoreError> {
    let parent = path.parent().expect("every path that the store writes is in its directory");
    sync_dir(parent)
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(StoreError::io("fsync", dir))
}
