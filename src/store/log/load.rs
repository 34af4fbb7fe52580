//! Opening the log: reading all of it, and believing only what is whole.

use raft_engine::Command;

use super::RaftLog;
use super::engine::{HARD_STATE, TRUNCATED, VOLUME, contained, damaged, decode_truncated};
use super::index::Index;
use crate::store::StoreError;

/// Entries read at a time when the log is opened.
const OPEN_CHUNK: u64 = 1024;

impl RaftLog {
    /// Fills the index from the engine, checking that nothing is missing.
    pub(super) fn load(&self) -> Result<(), StoreError> {
        let engine = &self.0.engine;
        let (at, term) = match engine.get(VOLUME, TRUNCATED) {
            Some(bytes) => decode_truncated(&bytes)
                .ok_or_else(|| self.damaged("where it begins cannot be decoded"))?,
            None => (0, 0),
        };
        let hard_state = contained("read", &self.0.dir, || engine.get_message(VOLUME, HARD_STATE))?;
        let mut index = Index::after(at, term, hard_state.unwrap_or_default());
        if let (Some(first), Some(last)) = (engine.first_index(VOLUME), engine.last_index(VOLUME)) {
            self.load_entries(&mut index, first, last)?;
        }
        if index.hard_state.commit > index.last() {
            let commit = index.hard_state.commit;
            return Err(self.damaged(&format!(
                "entry {commit} was committed, but the last one is {}",
                index.last()
            )));
        }
        *self.0.index.lock() = index;
        Ok(())
    }

    fn load_entries(&self, index: &mut Index, first: u64, last: u64) -> Result<(), StoreError> {
        if first > index.first() && last >= index.first() {
            return Err(self.damaged(&format!(
                "it should begin with entry {}, but begins with {first}",
                index.first()
            )));
        }
        let mut low = index.first();
        let mut term = index.cut_term;
        while low <= last {
            let high = (low + OPEN_CHUNK).min(last + 1);
            let entries = self.read(low, high)?;
            if low == index.first() && entries.first().is_some_and(|entry| entry.term < term) {
                // Left over from before a reset: raft-engine may forget a cut, never an append.
                return self.write("cut", true, |batch| {
                    batch.add_command(VOLUME, Command::Compact { index: last + 1 });
                    Ok(())
                });
            }
            for (entry, expected) in entries.iter().zip(low..) {
                if entry.index != expected || entry.term < term {
                    return Err(self.damaged(&format!(
                        "entry {} of term {} stands where entry {expected} should be",
                        entry.index, entry.term
                    )));
                }
                term = entry.term;
            }
            index.append(&entries);
            low = high;
        }
        Ok(())
    }

    fn damaged(&self, what: &str) -> StoreError {
        damaged(&self.0.dir, what.to_owned())
    }
}
