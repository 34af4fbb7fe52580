//! What a replica keeps: the state, its digest, and the backing files that effects left behind.

use std::collections::BTreeMap;

use quorumfs::fs::{Applied, Digest, FileEffect, Overlay, Position, apply, check, genesis, proto};
use quorumfs::types::{ByteRange, LogIndex, Term};

/// Backing files, by inode and generation.
pub type Files = BTreeMap<(u64, u64), Vec<u8>>;

/// What copies read when they were first carried out, by index: a replay reads the same.
type Stages = BTreeMap<LogIndex, Vec<u8>>;

pub struct Replica {
    pub state: BTreeMap<Vec<u8>, Vec<u8>>,
    pub files: Files,
    stages: Stages,
    /// What its nodes would propose next.
    pub proposers: [Proposer; 2],
    /// Commands that were answered, and can come again.
    pub history: Vec<(proto::Command, proto::Outcome)>,
    effects: Vec<FileEffect>,
    digest: Digest,
}

/// What a node remembers; its session may have ended.
#[derive(Default)]
pub struct Proposer {
    pub session: Option<u64>,
    pub seq: u64,
    pub next_ino: u64,
}

impl Replica {
    pub fn new() -> Self {
        let mut state = BTreeMap::new();
        genesis(&mut state, at(0), &proto::Time::default(), "a:1", 1);
        let digest = digest_of(&state);
        Self {
            state,
            files: Files::new(),
            stages: Stages::new(),
            effects: Vec::new(),
            proposers: Default::default(),
            history: Vec::new(),
            digest,
        }
    }

    /// Applies as the apply loop does, and carries the effects out.
    pub fn apply(&mut self, index: u64, command: &proto::Command) -> Applied {
        let mut overlay = Overlay::new(&self.state);
        let applied = apply(&mut overlay, at(index), command).expect("sound records");
        let batch = overlay.finish().expect("a map can be read");
        self.digest.merge(batch.digest);
        batch.write_to(&mut self.state);
        for effect in &applied.effects {
            carry_out(&mut self.files, &mut self.stages, effect);
        }
        self.effects.extend(applied.effects.iter().cloned());
        applied
    }

    pub fn check(&self) {
        assert_eq!(check(&self.state), Ok(vec![]));
    }

    /// That the digest that was kept is that of the state, and that effects can be carried out again
    /// from any one on, as they are after a crash.
    pub fn check_history(&self) {
        assert_eq!(self.digest, digest_of(&self.state));
        for first in 0..self.effects.len() {
            let (mut files, mut stages) = (self.files.clone(), self.stages.clone());
            for effect in &self.effects[first..] {
                carry_out(&mut files, &mut stages, effect);
            }
            assert_eq!(files, self.files, "carried out again from effect {first}");
        }
    }

    /// A file's bytes, as a read finds them: what the backing file lacks is zeros.
    pub fn read(&self, ino: u64, inode: &proto::Inode) -> Vec<u8> {
        let mut bytes = self.files.get(&(ino, inode.generation)).cloned().unwrap_or_default();
        let size = usize::try_from(inode.size).expect("small files");
        assert!(bytes.len() <= size, "a backing file never has more than its inode says");
        bytes.resize(size, 0);
        bytes
    }
}

/// What a stage holds in these tests.
pub fn staged_bytes(number: u64, range: ByteRange) -> Vec<u8> {
    (range.start..range.end).map(|at| (at * 7 + number).to_le_bytes()[0]).collect()
}

fn carry_out(files: &mut Files, stages: &mut Stages, effect: &FileEffect) {
    match effect {
        FileEffect::Write { ino, generation, offset, data } => {
            let file = files.entry((ino.0, generation.0)).or_default();
            let offset = usize::try_from(*offset).expect("small files");
            file.resize(file.len().max(offset + data.len()), 0);
            file[offset..offset + data.len()].copy_from_slice(data);
        }
        FileEffect::Stage { ino, generation, stage, pieces, .. } => {
            let file = files.entry((ino.0, generation.0)).or_default();
            for piece in pieces {
                let bytes = staged_bytes(stage.number, piece.staged);
                let at = usize::try_from(piece.at).expect("small files");
                file.resize(file.len().max(at + bytes.len()), 0);
                file[at..at + bytes.len()].copy_from_slice(&bytes);
            }
        }
        FileEffect::Truncate { ino, generation, size } => {
            let size = usize::try_from(*size).expect("small files");
            files.entry((ino.0, generation.0)).or_default().resize(size, 0);
        }
        FileEffect::Allocate { .. } | FileEffect::EndStages { .. } => {}
        FileEffect::Zero { ino, generation, range, .. } => {
            if let Some(file) = files.get_mut(&(ino.0, generation.0)) {
                let end = file.len().min(usize::try_from(range.end).expect("small files"));
                let start = end.min(usize::try_from(range.start).expect("small files"));
                file[start..end].fill(0);
            }
        }
        FileEffect::Copy { index, source, source_generation, range, ino, generation, offset } => {
            let [start, end, offset] =
                [range.start, range.end, *offset].map(|at| usize::try_from(at).expect("small"));
            let copied = stages.entry(*index).or_insert_with(|| {
                let mut source =
                    files.get(&(source.0, source_generation.0)).cloned().unwrap_or_default();
                source.resize(source.len().max(end), 0);
                source[start..end].to_vec()
            });
            let file = files.entry((ino.0, generation.0)).or_default();
            file.resize(file.len().max(offset + copied.len()), 0);
            file[offset..offset + copied.len()].copy_from_slice(copied);
        }
        FileEffect::Remove { ino, generation } => {
            files.remove(&(ino.0, generation.0));
        }
    }
}

fn at(index: u64) -> Position {
    Position { index: LogIndex(index), term: Term(1) }
}

fn digest_of(state: &BTreeMap<Vec<u8>, Vec<u8>>) -> Digest {
    let mut digest = Digest::default();
    for (key, value) in state {
        digest.add(key, value);
    }
    digest
}
