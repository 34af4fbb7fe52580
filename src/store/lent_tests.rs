//! What the kernel reads by itself stays the same file, and never shows what was not written.

use std::os::unix::fs::{FileExt, MetadataExt};

use bytes::Bytes;

use super::{ByteRange, Files, Generation, Ino, LogIndex};
use crate::fs::{FileEffect, StagedPiece};
use crate::types::{SessionId, StageId};

const INO: Ino = Ino(1);
const FIRST: Generation = Generation(7);
const SECOND: Generation = Generation(20);

fn open(dir: &std::path::Path) -> Files {
    Files::open(&dir.join("files"), &dir.join("stages"), true).unwrap()
}

fn carry_out(files: &Files, index: u64, effect: FileEffect) {
    files.carry_out_all(LogIndex(index), &[effect]).unwrap();
}

fn write(generation: Generation, offset: u64, data: &'static [u8]) -> FileEffect {
    FileEffect::Write { ino: INO, generation, offset, data: Bytes::from_static(data) }
}

/// A write of a stage that never comes.
fn missing(index: u64, offset: u64, len: u64) -> FileEffect {
    let staged = ByteRange::at(offset, len);
    let checksums = vec![0; 1];
    FileEffect::Stage {
        index: LogIndex(index),
        ino: INO,
        generation: FIRST,
        stage: StageId { session: SessionId(3), number: 1 },
        pieces: vec![StagedPiece { at: offset, staged, checksums }],
    }
}

fn bytes(files: &Files, generation: Generation, len: usize) -> Option<Vec<u8>> {
    let mut buffer = vec![0xee; len];
    files.read(INO, generation, 0, &mut buffer).unwrap().then_some(buffer)
}

#[test]
fn only_what_is_whole_is_lent() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path());
    let key = (INO, FIRST);
    assert!(files.lend(key, 0).unwrap().is_none(), "there is no file");
    carry_out(&files, 8, write(FIRST, 0, b"abc"));
    assert!(files.lend(key, 4).unwrap().is_none(), "it is shorter");
    assert!(files.lend(key, 2).unwrap().is_none(), "it is longer");
    assert!(files.lend(key, 3).unwrap().is_some());
    files.take_back(INO);
    carry_out(&files, 9, missing(9, 1, 1));
    assert!(files.lend(key, 3).unwrap().is_none(), "a byte is missing");
}

#[test]
fn a_lent_file_stays_the_same_when_its_bytes_go() {
    for is_lent in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let files = open(dir.path());
        carry_out(&files, 8, write(FIRST, 0, b"first"));
        let reader = std::fs::File::open(files.path_of(INO, FIRST)).unwrap();
        if is_lent {
            files.lend((INO, FIRST), 5).unwrap().unwrap();
        }
        carry_out(&files, 20, FileEffect::Renew { ino: INO, generation: FIRST, next: SECOND });
        assert!(!files.path_of(INO, FIRST).exists());
        assert_eq!(files.path_of(INO, SECOND).exists(), is_lent);
        carry_out(&files, 21, write(SECOND, 0, b"2nd"));
        assert_eq!(bytes(&files, SECOND, 3).unwrap(), b"2nd");
        let of = |file: std::io::Result<std::fs::Metadata>| file.unwrap().ino();
        let is_same = of(reader.metadata()) == of(std::fs::metadata(files.path_of(INO, SECOND)));
        // Where it is not lent it may have become a spare, and then any other file.
        assert!(is_same || !is_lent);
        if is_lent {
            let mut seen = [0; 3];
            reader.read_exact_at(&mut seen, 0).unwrap();
            assert_eq!(&seen, b"2nd", "the reader follows");
            files.take_back(INO);
        }
    }
}

/// Whoever reads the file itself never sees zeros where bytes are missing: it stays short until they have come.
#[test]
fn a_lent_file_is_not_extended_past_missing_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path());
    let key = (INO, FIRST);
    carry_out(&files, 8, write(FIRST, 0, b"abc"));
    let lent = files.lend(key, 3).unwrap().unwrap();
    let len = || lent.metadata().unwrap().len();
    carry_out(&files, 9, missing(9, 3, 2));
    carry_out(&files, 10, write(FIRST, 5, b"f"));
    carry_out(&files, 11, FileEffect::Truncate { ino: INO, generation: FIRST, size: 8 });
    let source = ByteRange::at(0, 2);
    carry_out(
        &files,
        12,
        FileEffect::Copy {
            index: LogIndex(12),
            source: INO,
            source_generation: FIRST,
            range: source,
            ino: INO,
            generation: FIRST,
            offset: 8,
        },
    );
    while files.merge_some().unwrap() {}
    assert_eq!(len(), 3, "nothing came behind what is missing");
    assert_eq!(bytes(&files, FIRST, 10), None);
    carry_out(&files, 13, write(FIRST, 1, b"B"));
    files.install(key, 4, b"e", LogIndex(9)).unwrap();
    assert_eq!(len(), 3, "nor does what is fetched");
    files.install(key, 3, b"de", LogIndex(9)).unwrap();
    while files.merge_some().unwrap() {}
    assert_eq!(len(), 10);
    assert_eq!(bytes(&files, FIRST, 10).unwrap(), b"aBcdef\0\0ab");
    let mut seen = [0; 10];
    lent.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(&seen, b"aBcdef\0\0ab");
}

/// A mapping outlives the descriptor, and with it the loan.
#[test]
fn a_file_that_was_lent_is_never_another_one() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path());
    carry_out(&files, 8, write(FIRST, 0, b"mapped"));
    let mapped = std::fs::File::open(files.path_of(INO, FIRST)).unwrap();
    files.lend((INO, FIRST), 6).unwrap().unwrap();
    files.take_back(INO);
    carry_out(&files, 9, FileEffect::Remove { ino: INO, generation: FIRST });
    let other = FileEffect::Write {
        ino: Ino(2),
        generation: FIRST,
        offset: 0,
        data: Bytes::from_static(b"others"),
    };
    carry_out(&files, 10, other);
    let mut seen = [0; 6];
    mapped.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(&seen, b"mapped");
}

/// The kernel has a descriptor of its own: the file must not become another one's.
#[test]
fn a_lent_file_that_is_removed_is_nobody_elses() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path());
    carry_out(&files, 8, write(FIRST, 0, b"mine"));
    let reader = std::fs::File::open(files.path_of(INO, FIRST)).unwrap();
    drop(files.lend((INO, FIRST), 4).unwrap().unwrap());
    carry_out(&files, 9, FileEffect::Remove { ino: INO, generation: FIRST });
    let other = FileEffect::Write {
        ino: Ino(2),
        generation: FIRST,
        offset: 0,
        data: Bytes::from_static(b"theirs"),
    };
    carry_out(&files, 10, other);
    let mut seen = [0; 4];
    reader.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(&seen, b"mine");
    files.take_back(INO);
}

/// Bytes that are given up at the end of a file (`AcceptLost`): it is as long as its inode says, and can be lent.
#[test]
fn a_lost_end_becomes_a_part_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path());
    let key = (INO, FIRST);
    carry_out(&files, 8, write(FIRST, 0, b"abc"));
    carry_out(&files, 9, missing(9, 3, 7));
    assert!(files.lend(key, 10).unwrap().is_none(), "its end is missing");
    let range = ByteRange::at(3, 7);
    let zero = FileEffect::Zero { ino: INO, generation: FIRST, range, reserved: false };
    let whole = FileEffect::Truncate { ino: INO, generation: FIRST, size: 10 };
    files.carry_out_all(LogIndex(10), &[zero, whole]).unwrap();
    assert_eq!(bytes(&files, FIRST, 10).unwrap(), b"abc\0\0\0\0\0\0\0");
    let lent = files.lend(key, 10).unwrap().expect("it is whole");
    assert_eq!(lent.metadata().unwrap().len(), 10);
}
