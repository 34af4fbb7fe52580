//! An image of the replicated tables at one applied index, taken while commits go on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use raft::eraftpb::ConfState;

use super::point::Point;
use super::state::State;
use crate::fs::limits::FEATURE_LEVEL;
use crate::fs::{Digest, Pair, keys};
use crate::store::{SnapshotHeader, StoreError};
use crate::types::{ClusterId, LogIndex, Term, VolumeId};

/// Pairs that are read under one hold of the lock: a few milliseconds.
const CHUNK: usize = 1000;

/// All pairs of the replicated tables as they were when it began, in the order of keys. Commits go on
/// meanwhile: they keep the old value of a key aside until the export has passed it. What is kept
/// stays in memory until then, so an export should be drained without pause.
#[derive(Debug)]
pub struct Export<'a> {
    state: &'a State,
    point: Point,
    cursor: Arc<Mutex<Cursor>>,
    ready: VecDeque<Pair>,
    failed: bool,
}

/// How far an export is, and what changed ahead of it.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    /// The least key that has not been read.
    next: Vec<u8>,
    done: bool,
    /// What keys from `next` on were when the export began, where they are different now.
    aside: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl<'a> Export<'a> {
    /// Of `state` as it is now: the caller holds its lock for reading.
    pub(super) fn new(state: &'a State, point: Point) -> Self {
        let cursor = Arc::default();
        Self { state, point, cursor, ready: VecDeque::new(), failed: false }
    }

    pub(super) fn cursor(&self) -> Weak<Mutex<Cursor>> {
        Arc::downgrade(&self.cursor)
    }

    /// The applied index of the image.
    #[must_use]
    pub fn index(&self) -> LogIndex {
        self.point.index
    }

    /// The term of the entry at that index.
    #[must_use]
    pub fn term(&self) -> Term {
        self.point.term
    }

    /// The membership as of that index.
    #[must_use]
    pub fn conf_state(&self) -> &ConfState {
        &self.point.conf_state
    }

    /// The digest of the image.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.point.digest
    }

    /// What its snapshot file says of it.
    #[must_use]
    pub fn header(&self, cluster: ClusterId) -> SnapshotHeader {
        SnapshotHeader {
            cluster,
            volume: VolumeId::FIRST,
            index: self.point.index,
            term: self.point.term,
            conf_state: self.point.conf_state.clone(),
            digest: self.point.digest,
            feature_level: FEATURE_LEVEL,
        }
    }

    /// Reads on until there is something, or nothing is left.
    fn fill(&mut self) -> Result<(), StoreError> {
        while self.ready.is_empty() {
            let read = self.state.read();
            let mut cursor = self.cursor.lock();
            if cursor.done {
                return Ok(());
            }
            let pairs = read.scan_from(&cursor.next, CHUNK)?;
            self.ready.extend(cursor.pass(pairs));
        }
        Ok(())
    }
}

impl Iterator for Export<'_> {
    type Item = Result<Pair, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        if let Err(error) = self.fill() {
            self.failed = true;
            return Some(Err(error));
        }
        self.ready.pop_front().map(Ok)
    }
}

impl Cursor {
    /// Keeps the old value of a key that is about to change, where the export still needs it.
    pub(super) fn keep(
        &mut self,
        key: &[u8],
        old: impl FnOnce() -> Result<Option<Vec<u8>>, StoreError>,
    ) -> Result<(), StoreError> {
        let wanted = !self.done && key >= self.next.as_slice() && keys::is_replicated(key);
        if wanted && !self.aside.contains_key(key) {
            self.aside.insert(key.to_vec(), old()?);
        }
        Ok(())
    }

    /// Moves on over `pairs`, which were read from `next`; gives what they were when the export began.
    fn pass(&mut self, pairs: Vec<Pair>) -> impl Iterator<Item = Pair> {
        let ahead = if pairs.len() < CHUNK {
            self.done = true;
            BTreeMap::new()
        } else {
            let (last, _) = pairs.last().expect("a chunk is not empty");
            self.next = [last.as_slice(), &[0]].concat();
            self.aside.split_off(&self.next)
        };
        let passed = std::mem::replace(&mut self.aside, ahead);
        let mut image: BTreeMap<_, _> =
            pairs.into_iter().map(|(key, value)| (key, Some(value))).collect();
        image.extend(passed);
        let image = image.into_iter().filter(|(key, _)| keys::is_replicated(key));
        image.filter_map(|(key, value)| value.map(|value| (key, value)))
    }
}
