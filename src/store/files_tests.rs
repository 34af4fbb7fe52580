//! Backing files hold what was written to them, and nothing of others.

use std::os::unix::fs::FileExt;

use bytes::Bytes;

use super::{DESCRIPTORS, FileEffect, Files, Generation, Ino, LogIndex};
use crate::store::spares::SPARES;

const GENERATION: Generation = Generation(7);

fn open(dir: &std::path::Path) -> Files {
    Files::open(&dir.join("files"), &dir.join("stages"), true).unwrap()
}

fn write(ino: u64, offset: u64, data: &'static [u8]) -> FileEffect {
    let data = Bytes::from_static(data);
    FileEffect::Write { ino: Ino(ino), generation: GENERATION, offset, data }
}

fn truncate(ino: u64, size: u64) -> FileEffect {
    FileEffect::Truncate { ino: Ino(ino), generation: GENERATION, size }
}

fn remove(ino: u64) -> FileEffect {
    FileEffect::Remove { ino: Ino(ino), generation: GENERATION }
}

fn bytes(files: &Files, ino: u64, len: usize) -> Vec<u8> {
    let mut buffer = vec![0xee; len];
    files.read(Ino(ino), GENERATION, 0, &mut buffer).unwrap();
    let mut cached = vec![0xee; len];
    if files.read_cached(Ino(ino), GENERATION, 0, &mut cached).unwrap() {
        assert_eq!(buffer, cached);
    }
    buffer
}

#[test]
fn holes_absent_files_and_what_lies_beyond_the_end_are_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path());
    assert_eq!(bytes(&files, 1, 4), [0; 4]);
    assert_eq!(files.blocks(Ino(1), GENERATION).unwrap(), 0);
    files.carry_out(LogIndex(1), &write(1, 3, b"abc")).unwrap();
    assert_eq!(bytes(&files, 1, 8), b"\0\0\0abc\0\0");
    files.carry_out(LogIndex(1), &write(2, 1 << 20, b"far")).unwrap();
    assert_eq!(bytes(&files, 2, 4), [0; 4]);
    files.sync().unwrap();
    assert!(files.blocks(Ino(2), GENERATION).unwrap() < 64, "a hole takes no space");
    assert!(files.statvfs().unwrap().f_blocks > 0);
}

#[test]
fn what_truncation_cut_off_never_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path());
    files.carry_out(LogIndex(1), &write(1, 0, b"abcdef")).unwrap();
    files.carry_out(LogIndex(1), &truncate(1, 2)).unwrap();
    files.carry_out(LogIndex(1), &truncate(1, 6)).unwrap();
    assert_eq!(bytes(&files, 1, 6), b"ab\0\0\0\0");
}

#[test]
fn replaying_leaves_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path());
    let effects =
        [write(1, 0, b"first"), truncate(1, 3), write(1, 5, b"x"), write(2, 0, b"y"), remove(2)];
    for replayed_from in 0..effects.len() {
        for effect in effects.iter().chain(&effects[replayed_from..]) {
            files.carry_out(LogIndex(1), effect).unwrap();
        }
        assert_eq!(bytes(&files, 1, 7), b"fir\0\0x\0");
        assert_eq!(bytes(&files, 2, 1), [0]);
        assert!(!files.path_of(Ino(2), GENERATION).exists());
    }
    files.carry_out(LogIndex(1), &remove(1)).unwrap();
    files.carry_out(LogIndex(1), &remove(1)).unwrap();
}

#[test]
fn a_removed_file_leaves_nothing_in_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path());
    files.carry_out(LogIndex(1), &write(1, 0, b"secret")).unwrap();
    let reading = files.file(Ino(1), GENERATION).unwrap().unwrap();
    files.carry_out(LogIndex(1), &remove(1)).unwrap();
    files.carry_out(LogIndex(1), &write(2, 0, b"in another file")).unwrap();
    let mut seen = [0; 6];
    reading.read_at(&mut seen, 0).unwrap();
    assert_eq!(&seen, b"secret", "a read that is under way has the removed file still");

    files.carry_out(LogIndex(1), &remove(2)).unwrap();
    files.carry_out(LogIndex(1), &write(0x103, 12, b"next")).unwrap();
    assert_eq!(bytes(&files, 0x103, 16), b"\0\0\0\0\0\0\0\0\0\0\0\0next");
    assert!(!files.path_of(Ino(2), GENERATION).exists());
    drop(files);
    let files = open(dir.path());
    assert_eq!(bytes(&files, 0x103, 16)[12..], *b"next");
    for spares in std::fs::read_dir(dir.path().join("files/spare")).unwrap() {
        assert_eq!(std::fs::read_dir(spares.unwrap().path()).unwrap().count(), 0);
    }
}

#[test]
fn descriptors_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path());
    for ino in 0..3 * DESCRIPTORS as u64 {
        files.carry_out(LogIndex(1), &write(ino, 0, b"a")).unwrap();
    }
    // Only ours: other tests of this process have descriptors too.
    let ours = |fd: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_link(fd.unwrap().path())
            .is_ok_and(|to| to.starts_with(dir.path().join("files")))
    };
    let open = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| ours(fd).then_some(()));
    assert!(open.count() <= DESCRIPTORS + SPARES + 1);
    assert_eq!(bytes(&files, 0, 1), b"a");
}

#[test]
fn cached_reads_answer_what_is_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path());
    files.carry_out(LogIndex(1), &write(1, 0, b"abc")).unwrap();
    let mut buffer = [0xee; 5];
    assert!(files.read_cached(Ino(1), GENERATION, 0, &mut buffer).unwrap());
    assert_eq!(&buffer, b"abc\0\0");
}

/// The kernel says once that bytes are lost. Whoever asks again is not told that they are durable.
#[test]
fn what_a_sync_has_lost_is_never_durable() {
    type Sync = fn(&Files) -> Result<(), crate::store::StoreError>;
    let syncs: [Sync; 3] = [
        |files| files.sync(),
        |files| files.sync_file((Ino(1), GENERATION)),
        |files| files.sync_stage(stage()).map(drop),
    ];
    for (number, first) in syncs.iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let files = open(dir.path());
        files.carry_out_all(LogIndex(1), &[write(1, 0, b"synced")]).unwrap();
        files.sync().unwrap();
        files.stage(stage(), 0, b"staged").unwrap();
        files.carry_out_all(LogIndex(2), &[write(1, 0, b"lost")]).unwrap();
        let image = dir.path().join("stages/image");
        let before = std::fs::read(&image).unwrap();
        files.fail_next_sync();
        let lost = first(&files).unwrap_err();
        assert!(lost.to_string().contains("error"), "{lost}");
        for again in syncs {
            let refused = again(&files).unwrap_err().to_string();
            assert!(refused.contains("an earlier sync has failed"), "{number}: {refused}");
        }
        assert_eq!(files.imaged(), LogIndex(1));
        assert_eq!(std::fs::read(&image).unwrap(), before, "the next start must not believe more");
    }
}

fn stage() -> crate::types::StageId {
    crate::types::StageId { session: crate::types::SessionId(9), number: 1 }
}
