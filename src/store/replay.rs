//! Applies what the log holds beyond the state, where there is no node that would.

use raft::eraftpb::{Entry, EntryType};

use super::log::RaftLog;
use super::point::AppliedPoint;
use super::recover::Recovered;
use crate::fs::{self, NoCommand, Overlay, Position, Verdict, proto};
use crate::store::StoreError;
use crate::store::error::REJOIN;
use crate::types::{LogIndex, Term, Timestamp};

/// At most this many entries, and bytes, go into one round.
const ROUND: u64 = 512;
const ROUND_BYTES: u64 = 16 << 20;

impl Recovered {
    /// The last entry that this replica is known to have known to be committed: what its log says of that is written
    /// later than files are changed.
    #[must_use]
    pub fn committed(&self) -> LogIndex {
        let known = LogIndex(self.log.hard_state().commit).max(self.files.layouts().begun());
        known.min(self.log.last_index())
    }

    /// Applies entries up to `last`, as a node does with what is committed: to the state and to the files. The
    /// membership of the state stays what it is. Does nothing where they are applied already.
    ///
    /// # Errors
    /// When an entry holds no command, or the disk refuses or has no room.
    pub fn replay(&self, last: LogIndex) -> Result<(), StoreError> {
        while self.state.applied() < last {
            let first = self.state.applied().next();
            let end = LogIndex(last.0.min(first.0 + ROUND - 1)).next();
            let entries = self.log.entries(first, end, Some(ROUND_BYTES))?;
            self.apply(&entries)?;
            if self.files.is_full() {
                // What did not fit would count as missing.
                let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
                return Err(StoreError::io("apply the log below", self.files.path())(full));
            }
        }
        Ok(())
    }

    fn apply(&self, entries: &[Entry]) -> Result<(), StoreError> {
        let Some(last) = entries.last() else { return Ok(()) };
        let mut overlay = Overlay::new(&self.state);
        for entry in entries {
            let Some(command) = command(&self.log, entry)? else { continue };
            let at = Position { index: LogIndex(entry.index), term: Term(entry.term) };
            let applied = fs::apply(&mut overlay, at, &command)?;
            // Before the state says so, as everywhere.
            self.files.carry_out_all(at.index, &applied.effects)?;
        }
        let at =
            AppliedPoint { index: LogIndex(last.index), term: Term(last.term), conf_state: None };
        self.state.commit(overlay.finish()?, at)?;
        self.files.pass(at.index);
        Ok(())
    }

    /// The entry at which the voters were found to differ, where nothing that is applied says that a majority has agreed
    /// since.
    ///
    /// # Errors
    /// When the log or the state cannot be read.
    pub fn doubt(&self) -> Result<Option<LogIndex>, StoreError> {
        // A state that was built anew does not know.
        for index in (self.log.first_index().0..=self.state.applied().0).rev() {
            for entry in self.log.entries(LogIndex(index), LogIndex(index).next(), None)? {
                let verdict = command(&self.log, &entry)?.as_ref().and_then(Verdict::of);
                if let Some(verdict) = verdict.filter(|verdict| verdict.index > LogIndex(0)) {
                    return Ok(verdict.digest.is_none().then_some(verdict.index));
                }
            }
        }
        Ok(self.state.ledger()?.doubt())
    }

    /// When the last command of the log was proposed; nothing where the log holds none.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn last_time(&self) -> Result<Option<Timestamp>, StoreError> {
        for index in (self.log.first_index().0..=self.log.last_index().0).rev() {
            for entry in self.log.entries(LogIndex(index), LogIndex(index).next(), None)? {
                if let Some(time) = command(&self.log, &entry)?.and_then(|command| command.time) {
                    return Ok(Some(Timestamp { seconds: time.seconds, nanos: time.nanos }));
                }
            }
        }
        Ok(None)
    }
}

/// What an entry has to be applied; nothing in one that a new leader begins with, or that changes the membership.
pub(super) fn command(log: &RaftLog, entry: &Entry) -> Result<Option<proto::Command>, StoreError> {
    if entry.get_entry_type() != EntryType::EntryNormal || entry.data.is_empty() {
        return Ok(None);
    }
    let decoded = fs::decode(entry.data.clone());
    let path = log.dir().to_owned();
    decoded.map(Some).map_err(|source| match source {
        NoCommand::Unknown => StoreError::NewerCommand { path, index: LogIndex(entry.index) },
        NoCommand::Undecodable(_) => StoreError::Corrupt {
            path,
            offset: None,
            what: format!("the command in entry {} {source}", entry.index),
            advice: REJOIN,
        },
    })
}
