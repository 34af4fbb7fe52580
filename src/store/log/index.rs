//! What is known about the log without reading it: bounds, terms, sizes, and the latest entries.

use std::collections::VecDeque;

use protobuf::Message;
use raft::eraftpb::{Entry, HardState};

/// Bytes of the latest entries that are kept in memory: raft-rs reads each entry again when it is
/// committed and when it is sent, nearly always soon.
const TAIL_BYTES: usize = 16 << 20;

/// The log as it is in the engine, in memory.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Everything up to this index is cut off.
    pub(super) cut_at: u64,
    /// The term of the entry there.
    pub(super) cut_term: u64,
    /// The last hard state that was written.
    pub(super) hard_state: HardState,
    /// `(first index, term)` of each run of entries of one term, ascending.
    terms: VecDeque<(u64, u64)>,
    /// Where each entry ends, from `first()`: in bytes of encoded entries, counted from where the log began in this process.
    ends: VecDeque<u64>,
    /// Where the last entry ended that was cut off.
    cut_end: u64,
    /// The latest entries; the last of them is the last of the log.
    tail: VecDeque<Entry>,
    /// Sum of their sizes.
    tail_bytes: usize,
}

impl Index {
    /// No entries, after one that was cut off.
    pub(super) fn after(index: u64, term: u64, hard_state: HardState) -> Self {
        Self { cut_at: index, cut_term: term, hard_state, ..Self::default() }
    }

    pub(super) fn first(&self) -> u64 {
        self.cut_at + 1
    }

    pub(super) fn last(&self) -> u64 {
        self.cut_at + self.ends.len() as u64
    }

    /// Bytes of all entries.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes_of(self.cut_at, self.last())
    }

    /// Bytes of the entries behind `after` up to `to`, of those that there are.
    pub(super) fn bytes_of(&self, after: u64, to: u64) -> u64 {
        self.end_of(to).saturating_sub(self.end_of(after))
    }

    /// Where an entry ends, or the nearest that there is.
    fn end_of(&self, index: u64) -> u64 {
        let index = index.clamp(self.cut_at, self.last());
        let count = usize::try_from(index - self.cut_at).expect("entries fit in memory");
        count.checked_sub(1).map_or(self.cut_end, |last| self.ends[last])
    }

    /// The term of an entry, or of the last one that was cut off.
    pub(super) fn term(&self, index: u64) -> Option<u64> {
        if index == self.cut_at {
            return Some(self.cut_term);
        }
        if index < self.first() || index > self.last() {
            return None;
        }
        let run = self.terms.partition_point(|&(first, _)| first <= index);
        Some(self.terms[run - 1].1)
    }

    /// Takes in entries that follow each other and start at or before `last() + 1`.
    pub(super) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        self.keep_below(first.index);
        for entry in entries {
            if self.terms.back().is_none_or(|&(_, term)| term != entry.term) {
                self.terms.push_back((entry.index, entry.term));
            }
            let size = entry.compute_size();
            self.ends.push_back(self.end_of(self.last()) + u64::from(size));
            self.tail_bytes += size as usize;
            self.tail.push_back(entry.clone());
            while self.tail_bytes > TAIL_BYTES {
                self.forget_oldest_of_tail();
            }
        }
    }

    /// Forgets entries up to `index`, which is in the log.
    pub(super) fn cut(&mut self, index: u64) {
        let term = self.term(index).expect("the caller has checked that the entry is there");
        let count = usize::try_from(index - self.cut_at).expect("entries fit in memory");
        self.cut_end = self.end_of(index);
        self.ends.drain(..count);
        (self.cut_at, self.cut_term) = (index, term);
        while self.terms.get(1).is_some_and(|&(first, _)| first <= index + 1) {
            self.terms.pop_front();
        }
        if self.ends.is_empty() {
            self.terms.clear();
        }
        while self.tail.front().is_some_and(|entry| entry.index <= index) {
            self.forget_oldest_of_tail();
        }
    }

    /// The end (exclusive) of what may be returned of `low..high` when at most `max_bytes` are wanted,
    /// but at least one entry.
    pub(super) fn limit(&self, low: u64, high: u64, max_bytes: u64) -> u64 {
        let most = self.end_of(low - 1).saturating_add(max_bytes);
        let fit = self.ends.partition_point(|&end| end <= most) as u64;
        (self.first() + fit).max(low + 1).min(high)
    }

    /// The first index from which entries are in memory.
    pub(super) fn tail_first(&self) -> u64 {
        self.last() + 1 - self.tail.len() as u64
    }

    /// Entries of the tail.
    pub(super) fn tail(&self, low: u64, high: u64) -> impl Iterator<Item = Entry> + '_ {
        let from = low.max(self.tail_first());
        let skipped = usize::try_from(from - self.tail_first()).expect("entries fit in memory");
        let count = usize::try_from(high.saturating_sub(from)).expect("entries fit in memory");
        self.tail.iter().skip(skipped).take(count).cloned()
    }

    /// Forgets entries from `index` on.
    fn keep_below(&mut self, index: u64) {
        while self.last() >= index {
            self.ends.pop_back();
            if let Some(entry) = self.tail.pop_back() {
                self.tail_bytes -= entry.compute_size() as usize;
            }
        }
        while self.terms.back().is_some_and(|&(first, _)| first >= index) {
            self.terms.pop_back();
        }
    }

    fn forget_oldest_of_tail(&mut self) {
        if let Some(entry) = self.tail.pop_front() {
            self.tail_bytes -= entry.compute_size() as usize;
        }
    }
}
