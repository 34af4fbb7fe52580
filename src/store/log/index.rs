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
    /// Encoded size of each entry, from `first()`.
    sizes: VecDeque<u32>,
    /// Their sum.
    bytes: u64,
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
        self.cut_at + self.sizes.len() as u64
    }

    /// Bytes of all entries.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of the entries behind `after` up to `to`, of those that there are; looks at the size of each.
    pub(super) fn bytes_of(&self, after: u64, to: u64) -> u64 {
        let place = |index: u64| {
            let count = usize::try_from(index.saturating_sub(self.cut_at)).unwrap_or(usize::MAX);
            count.min(self.sizes.len())
        };
        let (from, to) = (place(after), place(to));
        self.sizes.range(from.min(to)..to).map(|&size| u64::from(size)).sum()
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
            self.sizes.push_back(size);
            self.bytes += u64::from(size);
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
        self.bytes -= self.sizes.drain(..count).map(u64::from).sum::<u64>();
        (self.cut_at, self.cut_term) = (index, term);
        while self.terms.get(1).is_some_and(|&(first, _)| first <= index + 1) {
            self.terms.pop_front();
        }
        if self.sizes.is_empty() {
            self.terms.clear();
        }
        while self.tail.front().is_some_and(|entry| entry.index <= index) {
            self.forget_oldest_of_tail();
        }
    }

    /// The end (exclusive) of what may be returned of `low..high` when at most `max_bytes` are wanted,
    /// but at least one entry.
    pub(super) fn limit(&self, low: u64, high: u64, max_bytes: u64) -> u64 {
        let skipped = usize::try_from(low - self.first()).expect("entries fit in memory");
        let mut end = low;
        let mut total = 0;
        for &size in self.sizes.iter().skip(skipped) {
            total += u64::from(size);
            if end >= high || (total > max_bytes && end > low) {
                break;
            }
            end += 1;
        }
        end
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
            let size = self.sizes.pop_back().expect("last() counts the sizes");
            self.bytes -= u64::from(size);
            if self.tail.pop_back().is_some() {
                self.tail_bytes -= size as usize;
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
