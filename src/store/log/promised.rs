//! What is known to be in the log, kept outside of it: a log that has lost its end, or a vote, looks like one that never
//! had it.
//!
//! The file holds one record, replaced in place: the last entry with its term, the term of the hard state and its vote,
//! each in 8 bytes, and a check. It is brought up to date every few seconds. Before entries are replaced by others, what
//! it says of entries is taken back.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::RaftLog;
use crate::store::error::REJOIN;
use crate::store::marks::{checked, records};
use crate::store::{StoreError, durable};
use crate::types::LogIndex;

/// Bytes of the record without its check.
const RECORD: usize = 32;

/// What the log holds at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Promise {
    /// 0 where nothing is said of entries.
    last: u64,
    last_term: u64,
    term: u64,
    vote: u64,
}

/// The file, and what it says.
#[derive(Debug)]
pub(super) struct Promised {
    path: PathBuf,
    file: File,
    said: Option<Promise>,
}

impl Promised {
    fn say(&mut self, promise: Promise) -> Result<(), StoreError> {
        if self.said == Some(promise) {
            return Ok(());
        }
        // Where this fails, what the file says is not known.
        self.said = None;
        let written = self.file.write_all_at(&promise.encode(), 0);
        written.map_err(StoreError::io("write", &self.path))?;
        self.file.sync_data().map_err(StoreError::io("fsync", &self.path))?;
        self.said = Some(promise);
        Ok(())
    }

    /// Says nothing of entries any more: some are going to be replaced.
    pub(super) fn take_back(&mut self) -> Result<(), StoreError> {
        match self.said {
            Some(Promise { last: 0, .. }) => Ok(()),
            said => self.say(Promise { last: 0, last_term: 0, ..said.unwrap_or_default() }),
        }
    }
}

impl Promise {
    fn encode(self) -> Vec<u8> {
        let Self { last, last_term, term, vote } = self;
        checked(&[last, last_term, term, vote].map(u64::to_le_bytes).concat())
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let record = records(bytes, RECORD).next()??;
        let field = |at: usize| record[at..at + 8].try_into().expect("eight bytes");
        let [last, last_term, term, vote] = [0, 8, 16, 24].map(|at| u64::from_le_bytes(field(at)));
        Some(Self { last, last_term, term, vote })
    }

    /// What of it is not so.
    fn broken_by(self, log: &RaftLog) -> Option<String> {
        let hard_state = log.hard_state();
        let Self { last, last_term, term, vote } = self;
        if hard_state.term < term {
            return Some(format!("it knew of term {term}, but says {}", hard_state.term));
        }
        if hard_state.term == term && vote != 0 && hard_state.vote != vote {
            return Some(format!("in term {term} it voted for node {vote}, but does not say so"));
        }
        let is_there = last <= log.truncated().0.0
            || log.term(LogIndex(last)).is_some_and(|found| found.0 == last_term);
        let ends = log.last_index();
        (!is_there)
            .then(|| format!("it held entry {last} of term {last_term}, but ends with {ends}"))
    }
}

impl RaftLog {
    /// Checks that everything is there that the file at `path` says, and keeps it up to date from now on.
    ///
    /// # Errors
    /// When something is not there, or the disk refuses.
    pub(in crate::store) fn keep_promised(&self, path: &Path) -> Result<(), StoreError> {
        let said = match std::fs::read(path) {
            Ok(bytes) => {
                let said = Promise::decode(&bytes);
                if said.is_none() {
                    tracing::warn!("{} is damaged: it is written anew", path.display());
                }
                said
            }
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(source) => return Err(StoreError::io("read", path)(source)),
        };
        if let Some(what) = said.and_then(|said| said.broken_by(self)) {
            let path = self.0.dir.clone();
            return Err(StoreError::Corrupt { path, offset: None, what, advice: REJOIN });
        }
        let open = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let file = open.map_err(StoreError::io("open", path))?;
        durable::sync_parent(path)?;
        *self.0.promised.lock() = Some(Promised { path: path.to_owned(), file, said });
        Ok(())
    }

    /// Says what the log holds now. Durable on return; does nothing where it was said before, or is said nowhere.
    ///
    /// # Errors
    /// When the disk refuses: the log then takes nothing more.
    pub fn promise(&self) -> Result<(), StoreError> {
        let mut promised = self.0.promised.lock();
        let Some(promised) = promised.as_mut() else { return Ok(()) };
        self.unpoisoned()?;
        // Nobody replaces entries meanwhile.
        let promise = {
            let index = self.0.index.lock();
            let (last, hard_state) = (index.last(), &index.hard_state);
            let last_term = index.term(last).unwrap_or_default();
            Promise { last, last_term, term: hard_state.term, vote: hard_state.vote }
        };
        promised.say(promise).inspect_err(|_| self.poison())
    }
}
