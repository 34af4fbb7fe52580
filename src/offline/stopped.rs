//! A stopped replica as its next start would find it.

use std::path::Path;

use crate::store::{DataDir, Recovered, Scratch, StoreError};

/// How much of the log counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entries {
    /// What this node knew to be committed.
    Committed,
    /// What it holds: an acknowledged change is on a quorum, and may be on this node without its knowing.
    All,
}

/// A stopped replica, with the entries of its log applied. Its directory is locked, and stays as it is.
#[derive(Debug)]
pub struct Stopped<'a> {
    /// Its data directory.
    pub data: &'a DataDir,
    /// Its stores, in copies where they change.
    pub recovered: Recovered,
    /// Where these copies are. Dropped last.
    pub scratch: Scratch,
}

impl<'a> Stopped<'a> {
    /// Copies are made below `scratch`; beside the data directory where nothing is named.
    ///
    /// # Errors
    /// When something that must be true of the replica is damaged or missing, or the disk refuses.
    pub fn open(
        data: &'a DataDir,
        scratch: Option<&Path>,
        entries: Entries,
    ) -> Result<Self, StoreError> {
        let beside = data.path().join("..");
        let (recovered, scratch) = Scratch::recover(data, scratch.unwrap_or(&beside))?;
        let last = match entries {
            Entries::Committed => recovered.committed(),
            Entries::All => recovered.log.last_index(),
        };
        recovered.replay(last).map_err(|error| scratch.name(error))?;
        Ok(Self { data, recovered, scratch })
    }
}
