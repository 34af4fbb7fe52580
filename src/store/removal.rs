//! The file `removed` of a data directory: its node is no member of the cluster any more, and never will be.
//!
//! A later start says so before it mounts anything, whether or not anybody else is in reach. Offline commands go on
//! working on the directory. What is in the file is for people.

use std::path::Path;

use super::datadir::DataDir;
use super::durable;
use crate::store::StoreError;

const FILE: &str = "removed";

/// Has no daemon start on a data directory any more: its node was removed. Durable on return.
///
/// # Errors
/// When the disk refuses.
pub fn record_removed(data: &Path, why: &str) -> Result<(), StoreError> {
    durable::replace(&data.join(FILE), format!("{why}\n").as_bytes())
}

impl DataDir {
    /// Whether its node is known to have been removed.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn is_removed(&self) -> Result<bool, StoreError> {
        let path = self.path().join(FILE);
        path.try_exists().map_err(StoreError::io("look for", &path))
    }

    /// It is the first node of another cluster now.
    pub(super) fn end_removed(&self) -> Result<(), StoreError> {
        let path = self.path().join(FILE);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(StoreError::io("remove", &path)(source)),
            Ok(()) => durable::sync_dir(self.path()),
        }
    }
}
