//! What every file holds at every index: each byte is written at once, and nothing is ever lost.

use std::collections::BTreeMap;

use quorumfs::fs::FileEffect;
use quorumfs::types::{ByteRange, LogIndex, NodeId, StageId};

use crate::drive::Key;
use crate::files::Files;

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Reference {
    /// Bytes of stages, by their offsets.
    stages: BTreeMap<StageId, Vec<(u64, Vec<u8>)>>,
    /// What each file holds from an index on.
    files: BTreeMap<Key, Vec<(LogIndex, Vec<u8>)>>,
}

impl Reference {
    pub fn begin_stage(&mut self, id: StageId, pieces: Vec<(u64, Vec<u8>)>) {
        self.stages.insert(id, pieces);
    }

    /// The effects of an entry, in the order of entries.
    pub fn carry_out_all(&mut self, index: LogIndex, effects: &[FileEffect]) {
        for effect in effects {
            match effect {
                FileEffect::Write { ino, generation, offset, data } => {
                    self.write(index, (*ino, *generation), *offset, data);
                }
                FileEffect::Stage { ino, generation, stage, pieces, .. } => {
                    for piece in pieces {
                        let data = self.staged(*stage, piece.staged);
                        self.write(index, (*ino, *generation), piece.at, &data);
                    }
                    // None is written twice.
                    self.stages.remove(stage);
                }
                FileEffect::Truncate { ino, generation, size } => {
                    self.change(index, (*ino, *generation)).resize(place(*size), 0);
                }
                FileEffect::Zero { ino, generation, range, .. } => {
                    let bytes = self.change(index, (*ino, *generation));
                    let end = bytes.len().min(place(range.end));
                    bytes[end.min(place(range.start))..end].fill(0);
                }
                FileEffect::Remove { ino, generation }
                | FileEffect::Renew { ino, generation, .. } => {
                    self.files.remove(&(*ino, *generation));
                }
                FileEffect::Allocate { .. } | FileEffect::EndStages { .. } => {}
                FileEffect::Copy { .. } => unreachable!("nobody copies here"),
            }
        }
    }

    fn write(&mut self, index: LogIndex, key: Key, at: u64, data: &[u8]) {
        let bytes = self.change(index, key);
        let end = place(at) + data.len();
        bytes.resize(bytes.len().max(end), 0);
        bytes[place(at)..end].copy_from_slice(data);
    }

    fn change(&mut self, index: LogIndex, key: Key) -> &mut Vec<u8> {
        let versions = self.files.entry(key).or_insert_with(|| vec![(LogIndex(0), Vec::new())]);
        let (last, bytes) = versions.last().expect("there is always one");
        if *last < index {
            versions.push((index, bytes.clone()));
        }
        &mut versions.last_mut().expect("as above").1
    }

    fn staged(&self, id: StageId, range: ByteRange) -> Vec<u8> {
        let pieces = self.stages[&id].iter();
        let mut pieces = pieces.filter(|(at, _)| *at == range.start);
        let (_, data) = pieces.next().expect("only what was sent is written");
        assert_eq!(data.len() as u64, range.len(), "pieces are written whole");
        data.clone()
    }

    /// That each byte that a node has is of the version at `applied`, or of a later one.
    pub fn check(&self, node: NodeId, files: &Files, key: Key, applied: LogIndex) {
        let Some(versions) = self.files.get(&key) else { return };
        let first = versions.partition_point(|(index, _)| *index <= applied) - 1;
        let longest = versions[first..].iter().map(|(_, bytes)| bytes.len()).max().unwrap_or(0);
        for (range, bytes) in files.present(key, ByteRange::at(0, longest as u64)) {
            for (at, byte) in (place(range.start)..).zip(&bytes) {
                let is_of = |(_, version): &(LogIndex, Vec<u8>)| {
                    version.get(at).copied().unwrap_or(0) == *byte
                };
                assert!(
                    versions[first..].iter().any(is_of),
                    "node {node} has {byte} at {at} of {key:?} at {applied}, which is none of {:?}",
                    versions[first..].iter().map(|(i, v)| (i, v.get(at))).collect::<Vec<_>>()
                );
            }
        }
    }
}

fn place(at: u64) -> usize {
    usize::try_from(at).expect("files are small here")
}
