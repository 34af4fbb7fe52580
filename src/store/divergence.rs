//! What is durable of a comparison with the other replicas: the ledger, beside the state that it is about, and a file
//! of its own where this replica was found to differ, which a lost state does not take with it.
//!
//! That file, `diverged`, holds the last entry up to which this replica's files are to be believed. It is written before
//! anything else is done about it, and goes when a peer's state has taken the place of this one. Another one, `unattested`,
//! names a snapshot that counts although nobody has compared it.

use std::path::{Path, PathBuf};

use prost::Message;

use super::datadir::{DataDir, read_optional};
use super::durable;
use super::state::State;
use crate::fs::{Batch, Ledger, Records, keys, proto};
use crate::store::StoreError;
use crate::types::LogIndex;

/// An encoded `Ledger`.
const LEDGER: &str = "ledger";
const DIVERGED: &str = "diverged";
const UNATTESTED: &str = "unattested";

impl State {
    /// What this replica knows of its digests; nothing where the state was built anew.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn ledger(&self) -> Result<Ledger, StoreError> {
        let record = self.read().record::<proto::Ledger>(&keys::meta(LEDGER))?;
        Ok(record.as_ref().map(Ledger::from_record).unwrap_or_default())
    }
}

/// Has a batch write the ledger, in the same step as what it is about.
pub fn put_ledger(batch: &mut Batch, ledger: &Ledger) {
    let record = ledger.to_record().encode_to_vec();
    batch.writes.insert(keys::meta(LEDGER), Some(record));
}

impl DataDir {
    /// Up to where the files are to be believed, where this replica was found to differ from the others.
    ///
    /// # Errors
    /// When the disk refuses, or the file holds something else.
    pub fn diverged(&self) -> Result<Option<LogIndex>, StoreError> {
        let advice =
            "write 0 into it: all bytes of files are then compared with those of the other nodes";
        read_index(self.path().join(DIVERGED), advice)
    }

    /// This replica differs from the others, perhaps since that entry. Durable on return.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn set_diverged(&self, since: LogIndex) -> Result<(), StoreError> {
        write_index(&self.path().join(DIVERGED), since)
    }

    /// It does not any more.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn end_diverged(&self) -> Result<(), StoreError> {
        let path = self.path().join(DIVERGED);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(StoreError::io("remove", &path)(source)),
            Ok(()) => durable::sync_dir(self.path()),
        }
    }

    /// The index of the last snapshot that counted although nobody had compared it. It says something of the newest one only
    /// where that has the same.
    ///
    /// # Errors
    /// When the disk refuses, or the file holds something else.
    pub fn unattested(&self) -> Result<Option<LogIndex>, StoreError> {
        read_index(
            self.path().join(UNATTESTED),
            "write the number of the newest `snap-` file into it",
        )
    }

    /// The snapshot at that index is going to count although nobody has compared it. Durable on return.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn set_unattested(&self, index: LogIndex) -> Result<(), StoreError> {
        write_index(&self.path().join(UNATTESTED), index)
    }
}

fn read_index(path: PathBuf, advice: &'static str) -> Result<Option<LogIndex>, StoreError> {
    let Some(text) = read_optional(&path)? else { return Ok(None) };
    let index = text.trim().parse().map(LogIndex);
    index.map(Some).map_err(|error| {
        let what = format!("it holds no index: {error}");
        StoreError::Corrupt { path, offset: None, what, advice }
    })
}

fn write_index(path: &Path, index: LogIndex) -> Result<(), StoreError> {
    durable::replace(path, format!("{index}\n").as_bytes())
}
