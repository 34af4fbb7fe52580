//! A state that is built a second time from snapshot file and log, and takes the place of one that is wrong.

use prost::Message;
use raft::eraftpb::{ConfChangeType, ConfState, Entry};

use super::{LogIndex, Retraced};
use crate::fs::proto;
use crate::fs::{Batch, Digest, Verdict, keys};
use crate::store::test_replica::{Author, append, last, snapshot, tree};
use crate::store::{AppliedPoint, DataDir, Received, Recovered, StoreError};
use crate::types::Ino;

fn attest(author: &mut Author, index: u64, digest: Option<Digest>) -> Entry {
    author.cluster(Verdict { index: LogIndex(index), digest }.to_op())
}

/// The membership changes to that of two voters with every entry that is one of Raft's own.
#[expect(clippy::unnecessary_wraps, reason = "others may fail")]
fn following(_: &ConfState, entry: &Entry) -> Result<Option<ConfState>, String> {
    let is_own = entry.get_entry_type() != raft::eraftpb::EntryType::EntryNormal;
    Ok(is_own.then(|| ConfState::from((vec![1, 2], vec![]))))
}

fn build(dir: &DataDir, recovered: &Recovered, last: LogIndex) -> Result<Retraced, StoreError> {
    Retraced::build(dir, &recovered.log, last, &following)
}

/// A replica with two files, whose log asks for a digest in between, and the entries that did so.
fn replica(author: &mut Author, voters: u64) -> (DataDir, Recovered, Ino, [u64; 2]) {
    let dir = author.open("boot");
    let recovered = crate::store::recover(&dir, crate::store::test_replica::OPTIONS).unwrap();
    let mut entries = Vec::new();
    if voters > 1 {
        entries.push(author.membership(ConfChangeType::AddNode, 2));
    }
    entries.push(author.session());
    let (ino, make) = author.make("a");
    entries.extend([make, author.write(ino, 0, b"first")]);
    entries.push(attest(author, 0, None));
    let first = last(&entries).0;
    entries.push(author.write(ino, 5, b" second"));
    entries.push(attest(author, 0, None));
    let second = last(&entries).0;
    append(&recovered, &entries, second);
    recovered.replay(LogIndex(second)).unwrap();
    (dir, recovered, ino, [first, second])
}

/// The record of a file changes behind everybody's back.
fn lengthen(recovered: &Recovered, ino: Ino) {
    let mut inode = crate::fs::query::inode(&recovered.state.read(), ino).unwrap().unwrap();
    inode.size += 4;
    let mut batch = Batch::default();
    batch.writes.insert(keys::inode(ino), Some(proto::Inode::encode_to_vec(&inode)));
    let state = &recovered.state;
    let at = AppliedPoint { index: state.applied(), term: state.term(), conf_state: None };
    state.commit(batch, at).unwrap();
    state.flush().unwrap();
}

#[test]
fn snapshot_and_log_lead_to_the_same_state_again() {
    let mut author = Author::new();
    let (dir, recovered, _, [first, second]) = replica(&mut author, 2);
    let right = recovered.state.digest();
    let own = build(&dir, &recovered, LogIndex(second)).unwrap();
    assert_eq!(own.state.digest(), right);
    assert_eq!(own.state.applied(), LogIndex(second));
    assert_eq!(own.state.conf_state().voters, [1, 2], "what the log says of the members");
    assert_eq!(own.differs(), None);
    assert!(own.sample_at(LogIndex(first)).is_some_and(|sample| sample != right));
    assert_eq!(own.sample_at(LogIndex(second)), Some(right));
    assert!(build(&dir, &recovered, LogIndex(second + 1)).is_err(), "it is not in the log");
}

/// A majority counts; what a lone voter has said of itself does not.
#[test]
fn verdicts_in_the_log_judge_what_it_leads_to() {
    for voters in [1, 2] {
        let mut author = Author::new();
        let (dir, recovered, ino, [first, second]) = replica(&mut author, voters);
        let right = build(&dir, &recovered, LogIndex(second)).unwrap().sample_at(LogIndex(first));
        let entries = [
            attest(&mut author, first, right),
            attest(&mut author, second, Some(Digest(7))),
            author.write(ino, 0, b"later"),
        ];
        append(&recovered, &entries, last(&entries).0);
        let own = build(&dir, &recovered, last(&entries)).unwrap();
        let (differs, parted) = (own.differs(), own.parted());
        let (expected, until) = (LogIndex(second), LogIndex(first));
        let is_alone = voters == 1;
        assert_eq!(differs, (!is_alone).then_some(expected), "{voters} voters");
        assert_eq!(parted, is_alone.then_some(until), "{voters} voters");
    }
}

/// What was done to files under a wrong record is kept, and not believed; the rest is.
#[test]
fn it_takes_the_place_of_a_wrong_one() {
    let mut author = Author::new();
    let (dir, recovered, ino, [first, second]) = replica(&mut author, 2);
    let (other, make) = author.make("b");
    let entries = [make, author.write(other, 0, b"other")];
    append(&recovered, &entries, last(&entries).0);
    recovered.replay(last(&entries)).unwrap();
    lengthen(&recovered, ino);
    dir.set_diverged(LogIndex(first)).unwrap();
    let own = build(&dir, &recovered, last(&entries)).unwrap();
    let Recovered { log, files, state, .. } = &recovered;
    Received::from(own).install(&dir, log, files, state).unwrap();
    assert_eq!(dir.diverged().unwrap(), None);
    assert!(state.ledger().unwrap().sample_at(LogIndex(second)).is_some());
    assert!(tree(&recovered).is_empty(), "both were changed after {first}");
    let inode = |ino| crate::fs::query::inode(&state.read(), ino).unwrap().unwrap();
    let key = |ino: Ino| (ino, inode(ino).generation.into());
    assert_eq!(std::fs::read(files.path_of(ino, key(ino).1)).unwrap(), b"first second");
    let all = crate::types::ByteRange::from(0);
    assert!(!files.believe_at_last(key(ino), all).unwrap(), "the states differ");
    assert!(files.believe_at_last(key(other), all).unwrap(), "they agree, and nobody has more");
    assert_eq!(tree(&recovered).into_keys().collect::<Vec<_>>(), ["b"]);
}

/// Nobody else could give what it lacks.
#[test]
fn a_lone_replica_believes_what_both_states_say() {
    let mut author = Author::new();
    let (dir, recovered, ino, [first, second]) = replica(&mut author, 1);
    let (other, make) = author.make("b");
    let entries = [make, author.write(other, 0, b"other")];
    append(&recovered, &entries, last(&entries).0);
    recovered.replay(last(&entries)).unwrap();
    lengthen(&recovered, ino);
    dir.set_diverged(LogIndex(first)).unwrap();
    let own = build(&dir, &recovered, last(&entries)).unwrap();
    assert!(own.parted().is_none() && second > first);
    let Recovered { log, files, state, .. } = &recovered;
    Received::from(own).install(&dir, log, files, state).unwrap();
    assert_eq!(tree(&recovered).into_keys().collect::<Vec<_>>(), ["b"]);
}

/// A state that is gone says nothing of what was done to files under it, unless nobody else could tell.
#[test]
fn after_a_restart_of_the_machine_no_file_is_believed() {
    for voters in [1, 2] {
        let mut author = Author::new();
        let (dir, recovered, _, [first, second]) = replica(&mut author, voters);
        dir.set_diverged(LogIndex(first)).unwrap();
        recovered.files.sync().unwrap();
        drop((dir, recovered));
        // A snapshot says how many members there are.
        let started = author.start("another boot");
        let dir_says = || author.data().join("diverged").exists();
        assert_eq!(dir_says(), voters > 1);
        assert_eq!(started.reached, LogIndex(second), "as far as the log goes");
        drop(started);
        if voters > 1 {
            assert_eq!(author.open("another boot").diverged().unwrap(), Some(LogIndex(0)));
        }
    }
}

/// A process that was killed leaves a state that is a second older than its files.
#[test]
fn a_state_that_is_behind_the_files_is_not_what_they_were_changed_under() {
    let mut author = Author::new();
    let (dir, recovered, _, [first, _]) = replica(&mut author, 2);
    recovered.state.flush().unwrap();
    dir.set_diverged(LogIndex(first)).unwrap();
    drop((dir, recovered));
    let started = author.start("boot");
    assert_eq!(started.rebuilt, None, "it is what they were changed under");
    let (ino, make) = author.make("c");
    let effects = [make, author.write(ino, 0, b"more")];
    append(&started, &effects, last(&effects).0);
    // Carried out, but the state says nothing of it.
    let write = crate::fs::FileEffect::Write {
        ino,
        generation: last(&effects).0.into(),
        offset: 0,
        data: b"more".to_vec().into(),
    };
    started.files.carry_out_all(last(&effects), &[write]).unwrap();
    drop(started);
    let started = author.start("boot");
    assert_eq!(started.rebuilt, Some(crate::store::Rebuilt::Differed));
    assert_eq!(started.reached, last(&effects));
    drop(started);
    assert_eq!(author.open("boot").diverged().unwrap(), Some(LogIndex(0)));
}

/// A peer's snapshot was put in force, and the process died before the files followed it: the state that is built of it
/// agrees with itself about all of them.
#[test]
fn a_state_that_the_files_were_not_changed_under_says_nothing_of_them() {
    let mut author = Author::new();
    let (dir, recovered, _, [first, _]) = replica(&mut author, 2);
    recovered.state.flush().unwrap();
    dir.set_diverged(LogIndex(first)).unwrap();
    drop((dir, recovered));
    // The peer has gone on: other bytes, and as many.
    let mut peer = Author::new();
    let (_dir, went_on, ino, _) = replica(&mut peer, 2);
    let entries = [peer.write(ino, 0, b"FIRST")];
    append(&went_on, &entries, last(&entries).0);
    went_on.replay(last(&entries)).unwrap();
    snapshot(&peer.data(), &went_on);
    let name = format!("snapshots/snap-{}", last(&entries));
    std::fs::copy(peer.data().join(&name), author.data().join(&name)).unwrap();
    let dir = author.open("boot");
    let started = crate::store::recover(&dir, crate::store::test_replica::OPTIONS).unwrap();
    assert_eq!(started.rebuilt, Some(crate::store::Rebuilt::BehindTheSnapshot));
    let own = build(&dir, &started, started.state.applied()).unwrap();
    assert_eq!(own.differs(), None);
    let Recovered { log, files, state, .. } = &started;
    Received::from(own).install(&dir, log, files, state).unwrap();
    let inode = crate::fs::query::inode(&state.read(), ino).unwrap().unwrap();
    let key = (ino, inode.generation.into());
    assert_eq!(std::fs::read(files.path_of(ino, key.1)).unwrap(), b"first second");
    assert!(!files.believe_at_last(key, crate::types::ByteRange::from(0)).unwrap());
    assert!(tree(&started).is_empty(), "they are of an older version");
}

/// A snapshot that counts although nobody has compared it may be what is wrong.
#[test]
fn what_nobody_has_compared_proves_nothing() {
    for voters in [1, 2] {
        let mut author = Author::new();
        let (dir, recovered, _, [first, second]) = replica(&mut author, voters);
        let own = build(&dir, &recovered, LogIndex(second)).unwrap();
        assert!(!own.is_unproven(&dir).unwrap(), "it was compared before it counted");
        let right = own.sample_at(LogIndex(first));
        dir.set_unattested(own.from).unwrap();
        assert_eq!(own.is_unproven(&dir).unwrap(), voters > 1);
        let entries = [attest(&mut author, first, right)];
        append(&recovered, &entries, last(&entries).0);
        let own = build(&dir, &recovered, last(&entries)).unwrap();
        assert!(!own.is_unproven(&dir).unwrap(), "what comes after it was");
        dir.set_unattested(LogIndex(second)).unwrap();
        assert!(!own.is_unproven(&dir).unwrap(), "another one");
    }
}
