//! What must hold: at every applied entry, and once a run is over.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorumfs::consensus::Committed;
use quorumfs::fs::{self, Digest, query};
use quorumfs::types::{
    ByteRange, Generation, Ino, LogIndex, Position, ProposalKey, Seq, SessionId, Term,
};

use crate::calls::look;
use crate::coverage::Coverage;
use crate::drive::Key;
use crate::history::{Answer, Call, NAMES, Record, Subject};
use crate::linearizability::is_linearizable;
use crate::state::Effect;
use crate::world::World;

/// Bytes of an appended tag.
const TAG: u64 = 8;

/// The one log that all replicas must have applied, and the states that it must have led to.
#[derive(Debug)]
pub struct Truth {
    base: LogIndex,
    /// Without a digest where only replicas came there that are wrong.
    entries: Vec<(Position, Bytes, Option<Digest>)>,
    keys: BTreeSet<ProposalKey>,
    /// Commands that were given up, and the last number that their session had used by then.
    given_up: BTreeMap<ProposalKey, Seq>,
    /// The highest number that each session has had carried out.
    newest: BTreeMap<SessionId, Seq>,
}

impl Truth {
    pub fn new(base: LogIndex) -> Self {
        let (given_up, newest) = (BTreeMap::new(), BTreeMap::new());
        Self { base, entries: Vec::new(), keys: BTreeSet::new(), given_up, newest }
    }

    /// Its proposer has been told that it failed, when the last number of its session was `last`.
    pub fn given_up(&mut self, key: ProposalKey, last: Seq) {
        self.given_up.insert(key, last);
    }

    /// Commands that were committed, whatever they came to.
    pub fn commands(&self) -> usize {
        self.entries.iter().filter(|(_, data, _)| !data.is_empty()).count()
    }

    /// The term of the committed entry at an index, where there is one already.
    pub fn term_at(&self, index: LogIndex) -> Option<Term> {
        let place = usize::try_from(index.0.checked_sub(self.base.0 + 1)?).expect("a run is short");
        self.entries.get(place).map(|(position, ..)| position.term)
    }

    /// What all must have come to at an index, where that is known.
    pub fn digest_at(&self, index: LogIndex) -> Option<Digest> {
        let place = usize::try_from(index.0.checked_sub(self.base.0 + 1)?).expect("a run is short");
        self.entries.get(place).and_then(|(_, _, digest)| *digest)
    }

    /// A replica applied an entry, and is right where it has a digest. Who of these was first at an index says what the
    /// others must have; answers whether this one was.
    pub fn applied(
        &mut self,
        entry: &Committed,
        digest: Option<Digest>,
        effect: &Effect,
        coverage: &mut Coverage,
    ) -> bool {
        let place = entry.position.index.0 - self.base.0 - 1;
        let place = usize::try_from(place).expect("a run is short");
        if let Some((position, data, expected)) = self.entries.get_mut(place) {
            assert_eq!(*position, entry.position, "two entries were committed at one index");
            assert_eq!(*data, entry.data, "two commands were committed at {position:?}");
            let Some(digest) = digest else { return false };
            if let Some(expected) = expected {
                assert_eq!(*expected, digest, "replicas differ after {position:?}");
                return false;
            }
            *expected = Some(digest);
        } else {
            assert_eq!(place, self.entries.len(), "an index was skipped");
            self.entries.push((entry.position, entry.data.clone(), digest));
            if digest.is_none() {
                return false;
            }
        }
        let Some(key) = effect.key else { return true };
        coverage.count("commands");
        if !self.keys.insert(key) {
            coverage.count("repeated commands");
            assert!(effect.applied.changes.is_empty(), "{key:?} took effect twice");
        } else if key.session != SessionId::CLUSTER {
            let is_refused = effect.applied.outcome.errno == fs::Errno::ESTALE.number();
            let newest = self.newest.entry(key.session).or_default();
            match self.given_up.get(&key) {
                Some(_) if is_refused => {
                    coverage.count("commands refused after they were given up");
                }
                None if is_refused => {
                    coverage.count("commands refused because their session had ended");
                }
                last => {
                    let is_late = last.is_some_and(|last| *newest > *last);
                    let is_done = !effect.applied.changes.is_empty();
                    assert!(
                        !(is_late && is_done),
                        "{key:?} was given up, and carried out after {newest:?}"
                    );
                    *newest = key.seq.max(*newest);
                }
            }
        }
        true
    }
}

/// Judges a run that is over: all nodes run, have applied everything, and nothing is under way.
pub fn judge(world: &mut World) {
    let first = &world.member().state;
    for node in world.members() {
        let problems = fs::check(&node.state.view).expect("nothing rots here");
        assert!(problems.is_empty(), "node {}: {problems:?}", node.id);
        assert_eq!(node.state.digest, first.digest, "node {} differs", node.id);
        assert_eq!(node.state.view, first.view, "node {} differs", node.id);
    }
    judge_bytes(world);
    read_everything(world);
    let mut subjects: BTreeMap<Subject, Vec<&Record>> = BTreeMap::new();
    for record in &world.history.records {
        subjects.entry(record.subject).or_default().push(record);
    }
    for (subject, records) in subjects {
        if let Subject::Log { file } = subject {
            judge_log(world, file, &records);
        } else {
            assert!(is_linearizable(&records), "{subject:?} is not linearizable: {records:#?}");
        }
    }
}

/// All replicas have all bytes, and no stages that nobody will write.
fn judge_bytes(world: &World) {
    let first = world.member();
    for key in fs_files(world) {
        let inode = query::inode(&first.state.view, key.0).expect("nothing rots here");
        let range = ByteRange::at(0, inode.expect("it was just listed").size);
        let bytes = first.files.read(key, range).expect("nothing is missing");
        for node in world.members() {
            let other = node.files.read(key, range).expect("nothing is missing");
            assert_eq!(other, bytes, "node {} has other bytes of {key:?}", node.id);
        }
    }
    for node in (0..world.nodes.len()).filter(|node| !world.nodes[*node].is_retired) {
        let leftover = world.leftover_stages(node);
        assert!(leftover.is_empty(), "node {} has stages of ended sessions {leftover:?}", node + 1);
    }
}

/// Every regular file that clients may have written.
fn fs_files(world: &World) -> Vec<Key> {
    let subjects: BTreeSet<Ino> =
        world.history.records.iter().map(|record| record.subject.file()).collect();
    let view = &world.member().state.view;
    let inode = |ino| query::inode(view, ino).expect("nothing rots here").expect("it exists");
    let key = |ino| (ino, Generation(inode(ino).generation));
    subjects.into_iter().map(key).collect()
}

/// One more read of everything, so that what was acknowledged last cannot be lost unnoticed.
fn read_everything(world: &mut World) {
    let subjects: BTreeSet<Subject> =
        world.history.records.iter().map(|record| record.subject).collect();
    for subject in subjects {
        let calls: Vec<Call> = match subject {
            Subject::Register { .. } => vec![Call::Get],
            Subject::Names { .. } => (0..NAMES).map(Call::Lookup).collect(),
            Subject::Log { .. } => vec![Call::Size],
            Subject::Slots { .. } => vec![Call::Peek],
        };
        for call in calls {
            let node = world.member();
            let (answer, _) = look(&node.state.view, &node.files, subject, call);
            let answer = answer.expect("nothing is missing");
            let operation = world.history.invoke(usize::MAX, subject, call);
            world.history.answer(operation, answer);
        }
    }
}

/// A log holds every acknowledged tag once, at the offset that its client was told, and all others at
/// most once; offsets and sizes agree with the order in which operations were invoked and answered.
fn judge_log(world: &World, file: Ino, records: &[&Record]) {
    let tags = tags_of(world, file);
    let mut places = BTreeMap::new();
    for (tag, offset) in tags.iter().zip((0..).step_by(8)) {
        assert!(places.insert(*tag, offset).is_none(), "tag {tag} was appended twice to {file}");
    }
    let mut appended = Vec::new();
    for record in records.iter().copied() {
        let Call::Append { tag, wait_for_roster, .. } = record.call else { continue };
        let place = places.remove(&tag);
        match record.answer {
            Some((_, answer)) => {
                let told = place.map(Answer::Offset);
                assert_eq!(
                    Some(answer),
                    told,
                    "an acknowledged append to {file} is not there: {record:?}"
                );
            }
            None => assert!(place.is_none() || !record.void, "{record:?} was never proposed"),
        }
        if let Some(offset) = place {
            appended.push((offset, record, wait_for_roster));
        }
    }
    assert!(places.is_empty(), "{file} holds tags that nobody appended: {places:?}");
    appended.sort_by_key(|(offset, _, _)| *offset);
    let mut first_answer = u64::MAX;
    for (offset, record, _) in appended.iter().rev() {
        assert!(
            record.invoked < first_answer,
            "order of appends at {offset} of {file}: {record:?}"
        );
        first_answer = first_answer.min(answered(record));
    }
    judge_sizes(file, records, &appended);
}

fn judge_sizes(file: Ino, records: &[&Record], appended: &[(u64, &Record, bool)]) {
    let mut sizes: Vec<(u64, u64, &Record)> = Vec::new();
    for record in records {
        let (Call::Size, Some((answered_at, Answer::Offset(size)))) = (record.call, record.answer)
        else {
            continue;
        };
        for (offset, append, wait_for_roster) in appended {
            let seen = offset + TAG <= size;
            let must = *wait_for_roster && answered(append) < record.invoked;
            let may = append.invoked < answered_at;
            assert!(seen || !must, "size {size} of {file} misses {append:?}: {record:?}");
            assert!(may || !seen, "size {size} of {file} foresees {append:?}: {record:?}");
        }
        sizes.push((answered_at, size, record));
    }
    for (_, size, record) in &sizes {
        let before = sizes.iter().filter(|(answered_at, _, _)| *answered_at < record.invoked);
        let largest = before.max_by_key(|(_, size, _)| *size);
        assert!(
            largest.is_none_or(|(_, largest, _)| largest <= size),
            "{file} was seen with more bytes: {largest:?}, than it was later: {record:?}"
        );
    }
}

fn answered(record: &Record) -> u64 {
    record.answer.map_or(u64::MAX, |(stamp, _)| stamp)
}

fn tags_of(world: &World, file: Ino) -> Vec<u64> {
    let state = &world.member().state;
    let inode = query::inode(&state.view, file).expect("nothing rots here").expect("it exists");
    let key = (file, Generation(inode.generation));
    let bytes = world.member().files.read(key, ByteRange::at(0, inode.size));
    let bytes = bytes.expect("nothing is missing");
    bytes
        .chunks(8)
        .map(|tag| u64::from_be_bytes(tag.try_into().expect("tags have eight bytes")))
        .collect()
}
