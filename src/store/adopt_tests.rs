//! Files under a peer's snapshot: what did not change since stays, everything else is missing or gone.

use std::path::Path;

use bytes::Bytes;
use prost::Message;

use super::{Adopted, Belief, Files, Trust};
use crate::fs::{FileEffect, Overlay, StagedPiece, ViewMut, keys, proto};
use crate::store::{AppliedPoint, State};
use crate::types::{ByteRange, Generation, Ino, LogIndex, SessionId, StageId, Term};

fn open(dir: &Path, same_boot: bool) -> Files {
    Files::open(&dir.join("files"), &dir.join("stages"), same_boot).unwrap()
}

fn write(files: &Files, at: u64, ino: u64, generation: u64, data: &'static [u8]) {
    let (ino, generation) = (Ino(ino), Generation(generation));
    let data = Bytes::from_static(data);
    let effect = FileEffect::Write { ino, generation, offset: 0, data };
    files.carry_out_all(LogIndex(at), &[effect]).unwrap();
}

/// A state at an index with these files: number, generation, size, `data_version`.
fn state(dir: &Path, index: u64, inodes: &[(u64, u64, u64, u64)]) -> State {
    let state = State::open(dir).unwrap();
    let mut overlay = Overlay::new(&state);
    for (ino, generation, size, data_version) in inodes.iter().copied() {
        let kind = proto::Kind::Regular.into();
        let inode =
            proto::Inode { kind, size, generation, data_version, ..proto::Inode::default() };
        overlay.put(keys::inode(Ino(ino)), inode.encode_to_vec());
    }
    let at = AppliedPoint { index: LogIndex(index), term: Term(1), conf_state: None };
    let batch = overlay.finish().unwrap();
    state.commit(batch, at).unwrap();
    state
}

/// What was carried out is believed.
fn carried_out() -> Trust<'static> {
    Trust { until: LogIndex(10), under: None, is_alone: false }
}

fn missing(files: &Files, ino: u64, generation: u64) -> Vec<(u64, u64, u64)> {
    let missing = files.missing((Ino(ino), Generation(generation)), ByteRange::from(0));
    missing.into_iter().map(|(range, version)| (range.start, range.end, version.0)).collect()
}

fn bytes(files: &Files, ino: u64, generation: u64, len: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0xee; len];
    files.read(Ino(ino), Generation(generation), 0, &mut bytes).unwrap().then_some(bytes)
}

/// What a replica has that has carried out entries up to 10.
fn replica(dir: &Path) -> Files {
    let files = open(dir, true);
    write(&files, 5, 10, 1, b"stays!");
    write(&files, 6, 11, 1, b"changed since");
    write(&files, 7, 12, 1, b"gone since");
    write(&files, 8, 14, 2, b"another life since");
    files.pass(LogIndex(10));
    files
}

const SNAPSHOT: [(u64, u64, u64, u64); 5] =
    [(10, 1, 6, 5), (11, 1, 3, 20), (13, 15, 4, 15), (14, 18, 7, 19), (15, 16, 0, 16)];

fn assert_adopted(files: &Files) {
    assert_eq!(bytes(files, 10, 1, 6).unwrap(), b"stays!");
    assert_eq!(missing(files, 10, 1), []);
    assert_eq!(missing(files, 11, 1), [(0, 3, 20)]);
    assert_eq!(missing(files, 13, 15), [(0, 4, 15)]);
    assert_eq!(missing(files, 14, 18), [(0, 7, 19)]);
    assert_eq!(missing(files, 15, 16), []);
    for (ino, generation) in [(12, 1), (14, 2)] {
        let path = files.path_of(Ino(ino), Generation(generation));
        assert!(!path.exists(), "{} is of nobody", path.display());
    }
    let cut = std::fs::metadata(files.path_of(Ino(11), Generation(1))).unwrap();
    assert_eq!(cut.len(), 3, "nothing old is to come back");
    assert_eq!(files.durable(), LogIndex(14), "before the first that is missing");
}

#[test]
fn what_changed_since_is_missing_and_what_is_gone_goes() {
    let dir = tempfile::tempdir().unwrap();
    let files = replica(dir.path());
    let state = state(&dir.path().join("state"), 30, &SNAPSHOT);
    assert!(files.are_behind(&state));
    assert_eq!(files.adopt(&state, carried_out()).unwrap(), Adopted { missing: 3, removed: 2 });
    assert!(!files.are_behind(&state));
    assert_adopted(&files);
    // What comes from peers fills it; an older version does not.
    let install = |version, data: &[u8]| {
        files.install((Ino(11), Generation(1)), 0, data, LogIndex(version)).unwrap()
    };
    install(19, b"old");
    assert_eq!(bytes(&files, 11, 1, 3), None);
    install(20, b"new");
    assert_eq!(bytes(&files, 11, 1, 3).unwrap(), b"new");
}

/// Effects up to the snapshot are not carried out again, whatever died.
#[test]
fn a_restart_finds_it_done() {
    for same_boot in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let state = state(&dir.path().join("state"), 30, &SNAPSHOT);
        replica(dir.path()).adopt(&state, carried_out()).unwrap();
        let files = open(dir.path(), same_boot);
        assert!(!files.are_behind(&state), "same boot: {same_boot}");
        assert_adopted(&files);
        write(&files, 30, 10, 1, b"never!");
        assert_eq!(bytes(&files, 10, 1, 6).unwrap(), b"stays!");
        write(&files, 31, 10, 1, b"later!");
        assert_eq!(bytes(&files, 10, 1, 6).unwrap(), b"later!");
    }
}

/// A process that dies before the end leaves files that are behind still: all of it is done again.
#[test]
fn what_was_cut_short_is_done_again() {
    let dir = tempfile::tempdir().unwrap();
    let state = state(&dir.path().join("state"), 30, &SNAPSHOT);
    let files = replica(dir.path());
    let key = (Ino(11), Generation(1));
    files
        .doubt_bytes(
            LogIndex(30),
            key.0,
            &proto::Inode { generation: 1, data_version: 20, size: 3, ..proto::Inode::default() },
            Belief::Doubted,
        )
        .unwrap();
    files.discard((Ino(12), Generation(1))).unwrap();
    drop(files);
    let files = open(dir.path(), true);
    assert!(files.are_behind(&state));
    files.adopt(&state, carried_out()).unwrap();
    assert_adopted(&files);
}

/// A snapshot of this node's own may be older than some files, which come again with the log: not one is removed.
#[test]
fn files_that_began_after_the_snapshot_stay() {
    let dir = tempfile::tempdir().unwrap();
    let files = replica(dir.path());
    write(&files, 25, 20, 25, b"younger");
    let state = state(&dir.path().join("state"), 24, &[(20, 1, 0, 1)]);
    let trust = Trust { until: files.carried_out(), under: None, is_alone: false };
    files.adopt(&state, trust).unwrap();
    assert_eq!(bytes(&files, 20, 25, 7).unwrap(), b"younger");
}

/// A replica that differed has done things to other files than it should have: its own state says which.
#[test]
fn what_a_wrong_state_has_done_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let files = replica(dir.path());
    // The last one was written at 9 by mistake, instead of another one.
    let wrong = [(10, 1, 6, 5), (11, 1, 13, 6), (12, 1, 10, 9)];
    let under = state(&dir.path().join("wrong"), 10, &wrong);
    let right =
        state(&dir.path().join("right"), 12, &[(10, 1, 6, 5), (11, 1, 13, 8), (12, 1, 10, 7)]);
    let trust = Trust { until: LogIndex(7), under: Some(&under), is_alone: false };
    files.adopt(&right, trust).unwrap();
    assert_eq!(bytes(&files, 10, 1, 6).unwrap(), b"stays!");
    assert_eq!(missing(&files, 11, 1), [(0, 13, 8)], "it changed after the last comparison");
    assert_eq!(missing(&files, 12, 1), [(0, 10, 7)], "it did not, but something was done to it");
}

/// They may be the only ones that there are: they go when others come in their place.
#[test]
fn bytes_in_doubt_stay_until_others_come() {
    let dir = tempfile::tempdir().unwrap();
    let files = replica(dir.path());
    write(&files, 25, 10, 1, b"longer than before");
    let under = state(&dir.path().join("wrong"), 25, &[(10, 1, 18, 25), (11, 1, 13, 6)]);
    let right = state(&dir.path().join("right"), 30, &[(10, 1, 18, 25), (11, 1, 10, 6)]);
    let trust = Trust { until: LogIndex(20), under: Some(&under), is_alone: false };
    files.adopt(&right, trust).unwrap();
    let (one, other) = ((Ino(10), Generation(1)), (Ino(11), Generation(1)));
    assert_eq!(missing(&files, 10, 1), [(0, 18, 25)]);
    assert_eq!(std::fs::read(files.path_of(one.0, one.1)).unwrap(), b"longer than before");
    assert_eq!(std::fs::metadata(files.path_of(other.0, other.1)).unwrap().len(), 10, "no more");
    assert!(files.durable() < LogIndex(25), "they count for nobody");
    // Some come from a peer.
    files.install(one, 0, b"LONGER", LogIndex(25)).unwrap();
    assert_eq!(missing(&files, 10, 1), [(6, 18, 25)]);
    for same_boot in [true, false] {
        files.sync().unwrap();
        let files = open(dir.path(), same_boot);
        assert_eq!(missing(&files, 10, 1), [(6, 18, 25)], "same boot: {same_boot}");
    }
    // Nobody has the rest.
    assert!(!files.believe_at_last(other, ByteRange::from(0)).unwrap(), "the states differ");
    assert!(files.believe_at_last(one, ByteRange::from(0)).unwrap());
    assert_eq!(bytes(&files, 10, 1, 18).unwrap(), b"LONGER than before");
    assert_eq!(missing(&files, 11, 1), [(0, 10, 6)]);
    // Somebody says that some of them are right.
    let some = ByteRange { start: 4, end: 100 };
    let taken = [ByteRange { start: 4, end: 10 }];
    assert_eq!(files.doubted(other, some), taken);
    assert_eq!(files.take_doubted(other, some).unwrap(), taken);
    assert_eq!(files.doubted(other, some), []);
    files.sync().unwrap();
    assert_eq!(missing(&open(dir.path(), false), 11, 1), [(0, 4, 6)]);
}

/// What is staged when a replica is found wrong may be the only copy that there is, as well as what is in place.
#[test]
fn staged_bytes_in_doubt_stay_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let files = replica(dir.path());
    let (stage, data) = (StageId { session: SessionId(3), number: 1 }, b"STAGED");
    files.stage(stage, 0, data).unwrap();
    let staged = ByteRange::at(0, data.len() as u64);
    let pieces = vec![StagedPiece { at: 3, staged, checksums: vec![crc32c::crc32c(data)] }];
    let (index, ino, generation) = (LogIndex(25), Ino(11), Generation(1));
    let effect = FileEffect::Stage { index, ino, generation, stage, pieces };
    files.carry_out_all(index, &[effect]).unwrap();
    let path = files.path_of(ino, generation);
    assert_eq!(std::fs::read(&path).unwrap(), b"changed since", "it is not merged yet");
    let inodes = [(10, 1, 6, 5), (11, 1, 13, 25)];
    let under = state(&dir.path().join("wrong"), 25, &inodes);
    let right = state(&dir.path().join("right"), 30, &inodes);
    let trust = Trust { until: LogIndex(20), under: Some(&under), is_alone: false };
    files.adopt(&right, trust).unwrap();
    assert_eq!(missing(&files, 11, 1), [(0, 13, 25)]);
    assert_eq!(std::fs::read(&path).unwrap(), b"chaSTAGEDince");
    assert!(files.believe_at_last((ino, generation), ByteRange::from(0)).unwrap());
    assert_eq!(bytes(&files, 11, 1, 13).unwrap(), b"chaSTAGEDince");
}
