//! What is collected, and above all what is not.

use std::path::Path;

use prost::Message;

use super::{Files, Key, LogIndex, State, Swept};
use crate::fs::keys::{self, Counter};
use crate::fs::{FileEffect, Overlay, ViewMut, proto};
use crate::store::AppliedPoint;
use crate::types::{ByteRange, Generation, Ino, Term};

const NEXT_INO: u64 = 100;

fn open(dir: &Path, same_boot: bool) -> Files {
    Files::open(&dir.join("files"), &dir.join("stages"), same_boot).unwrap()
}

/// A state at an index that names these files, and has given out 100 inode numbers.
fn state(dir: &Path, applied: u64, named: &[Key]) -> State {
    let state = State::open(&dir.join("state")).unwrap();
    let mut overlay = Overlay::new(&state);
    for (ino, generation) in named {
        let kind = proto::Kind::Regular.into();
        let inode = proto::Inode { kind, generation: generation.0, ..proto::Inode::default() };
        overlay.put(keys::inode(*ino), inode.encode_to_vec());
    }
    overlay.put(keys::counter(Counter::NextIno), NEXT_INO.encode_to_vec());
    let at = AppliedPoint { index: LogIndex(applied), term: Term(1), conf_state: None };
    state.commit(overlay.finish().unwrap(), at).unwrap();
    state
}

fn key(ino: u64, generation: u64) -> Key {
    (Ino(ino), Generation(generation))
}

fn carry_out(files: &Files, index: u64, effect: FileEffect) {
    files.carry_out_all(LogIndex(index), &[effect]).unwrap();
}

fn write((ino, generation): Key) -> FileEffect {
    FileEffect::Write { ino, generation, offset: 0, data: b"bytes".to_vec().into() }
}

fn copy(index: u64, from: Key, to: Key) -> FileEffect {
    FileEffect::Copy {
        index: LogIndex(index),
        source: from.0,
        source_generation: from.1,
        range: ByteRange::at(0, 5),
        ino: to.0,
        generation: to.1,
        offset: 0,
    }
}

fn remove((ino, generation): Key) -> FileEffect {
    FileEffect::Remove { ino, generation }
}

fn exists(files: &Files, key: Key) -> bool {
    files.path_of(key.0, key.1).exists()
}

/// A file whose removal waited for a snapshot, because a copy was made of it: a power loss forgets that it waits.
#[test]
fn a_power_loss_leaves_a_file_behind_and_the_start_collects_it() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (key(5, 10), key(6, 11));
    let files = open(dir.path(), true);
    carry_out(&files, 10, write(source));
    carry_out(&files, 12, copy(12, source, target));
    carry_out(&files, 13, remove(source));
    let state = state(dir.path(), 13, &[target]);
    assert_eq!(files.collect_unreferenced(&state).unwrap(), Swept::default(), "a replay needs it");
    assert!(exists(&files, source));
    files.sync().unwrap();
    drop(files);

    let files = open(dir.path(), false);
    // What was synced is not replayed; and the snapshot that was waited for finds nothing to remove.
    carry_out(&files, 12, copy(12, source, target));
    carry_out(&files, 13, remove(source));
    files.forget(LogIndex(13)).unwrap();
    assert!(exists(&files, source), "so this is what a crash leaves behind");
    let found = files.unreferenced(&state).unwrap();
    assert_eq!(found.iter().map(|found| found.key).collect::<Vec<_>>(), [source]);
    assert_eq!(found[0].paths[0].0, files.path_of(source.0, source.1));
    let swept = files.collect_unreferenced(&state).unwrap();
    assert_eq!(swept.files, 1);
    assert!(swept.bytes > 0);
    assert!(!exists(&files, source) && exists(&files, target));
    assert_eq!(files.unreferenced(&state).unwrap(), []);
}

/// An earlier life of a file that goes on, a removed one, one that is no regular file any more.
#[test]
fn only_what_is_named_stays() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), true);
    let all = [key(5, 10), key(5, 12), key(8, 3), key(7, 9)];
    for key in all {
        files.carry_out(LogIndex(1), &write(key)).unwrap();
        files.checksums().keep(key, LogIndex(20), 0, &[1]).unwrap();
    }
    let state = state(dir.path(), 20, &[key(5, 12), key(7, 9)]);
    assert_eq!(files.unreferenced(&state).unwrap().len(), 2);
    assert_eq!(files.collect_unreferenced(&state).unwrap().files, 2);
    assert_eq!(all.map(|key| exists(&files, key)), [false, true, false, true]);
    let sums = all.map(|key| files.checksums().load(key, LogIndex(20), 0).is_some());
    assert_eq!(sums, [false, true, false, true], "they go with their file");
}

/// A file is made before the state says so.
#[test]
fn what_is_younger_than_the_state_stays() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), true);
    let younger = [key(5, 21), key(NEXT_INO, 3), key(NEXT_INO + 7, 21)];
    for key in younger {
        files.carry_out(LogIndex(21), &write(key)).unwrap();
    }
    let state = state(dir.path(), 20, &[]);
    assert_eq!(files.unreferenced(&state).unwrap(), []);
    assert_eq!(files.collect_unreferenced(&state).unwrap(), Swept::default());
    assert!(younger.into_iter().all(|key| exists(&files, key)));
}

/// Between the look at the state and the removal an entry may have begun to change a file of the inode.
#[test]
fn what_a_later_entry_has_begun_to_change_stays() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), true);
    carry_out(&files, 21, write(key(5, 10)));
    let state = state(dir.path(), 20, &[]);
    assert_eq!(files.collect_unreferenced(&state).unwrap(), Swept::default());
    assert!(exists(&files, key(5, 10)));
}

/// Names that we would not give are none of ours; checksums without a file go.
#[test]
fn foreign_names_stay_and_stray_checksums_go() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), true);
    let state = state(dir.path(), 20, &[]);
    let shard = dir.path().join("files/00");
    std::fs::create_dir_all(&shard).unwrap();
    let foreign = ["notes.txt", "5.3.old", "+5.3", "05.3"].map(|name| shard.join(name));
    for path in &foreign {
        std::fs::write(path, b"").unwrap();
    }
    files.checksums().keep(key(9, 3), LogIndex(4), 0, &[1]).unwrap();
    assert_eq!(files.collect_unreferenced(&state).unwrap().files, 1);
    assert!(foreign.iter().all(|path| path.exists()));
    assert_eq!(files.checksums().load(key(9, 3), LogIndex(4), 0), None);
}
