//! What is believed after a power loss: bytes that had been missing, and what a copy had to read.

use std::os::unix::fs::MetadataExt;

use super::tests::{
    GENERATION, bytes, carry_out, id, key, merge_all, open, piece, remove, stage, write,
};
use super::{ByteRange, LogIndex};
use crate::store::space::tests::copy;
use crate::types::Ino;

/// What a program was told is on this disk is believed here after a power loss, however it came.
#[test]
fn what_was_missing_and_came_is_there_after_a_power_loss_once_it_is_synced() {
    let data = vec![7; 300 << 10];
    let write = |number| stage(5, 1, number, vec![piece(0, 0, &data)]);
    let cases = [false, true].into_iter().flat_map(|imaged| {
        let of = move |fetched| [false, true].map(|restarted| (imaged, fetched, restarted));
        [false, true].into_iter().flat_map(of)
    });
    for (is_imaged, is_fetched, is_restarted) in cases {
        let dir = tempfile::tempdir().unwrap();
        let mut files = open(dir.path(), true);
        files.stage(id(1), 0, &data[..100_000]).unwrap();
        carry_out(&files, 5, &write(1));
        assert_eq!(bytes(&files, 1, data.len()), None);
        if is_imaged {
            files.sync().unwrap();
            assert!(!files.needs_sync(LogIndex(5)));
        }
        if is_fetched {
            files.give_up_stage(id(1));
            files.install(key(1), 0, &data, LogIndex(5)).unwrap();
        } else {
            files.stage(id(1), 100_000, &data[100_000..]).unwrap();
        }
        assert!(files.needs_sync(LogIndex(5)));
        if is_restarted {
            drop(files);
            files = open(dir.path(), true);
            assert!(files.needs_sync(LogIndex(0)));
        }
        files.sync_file(key(1)).unwrap();
        drop(files);
        let files = open(dir.path(), false);
        carry_out(&files, 5, &write(1));
        let found = bytes(&files, 1, data.len()).is_some_and(|found| found == data);
        assert!(found, "{:?}", (is_imaged, is_fetched, is_restarted));
    }
}

/// What is known to be on this disk is known after a restart, too: nobody is to sync it again.
#[test]
fn what_was_synced_is_durable_after_a_restart() {
    for same_boot in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let files = open(dir.path(), true);
        carry_out(&files, 5, &write(1, 0, b"bytes"));
        files.sync().unwrap();
        drop(files);
        let files = open(dir.path(), same_boot);
        assert_eq!(files.durable(), LogIndex(5));
        assert!(!files.needs_sync(LogIndex(5)) && files.needs_sync(LogIndex(6)));
        // What is missing is not, until it has come or nobody needs it any more.
        carry_out(&files, 6, &stage(6, 1, 1, vec![piece(0, 0, b"lost")]));
        files.sync().unwrap();
        assert_eq!(files.durable(), LogIndex(5));
        assert!(!files.needs_sync(LogIndex(6)));
        carry_out(&files, 7, &remove(1));
        assert!(files.needs_sync(LogIndex(6)));
        files.sync().unwrap();
        assert_eq!(files.durable(), LogIndex(7));
    }
}

/// Whoever applies holds the file's layout while its pins are looked at.
#[test]
fn the_source_of_a_copy_goes_while_others_are_incomplete() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), true);
    carry_out(&files, 1, &write(1, 0, b"source"));
    carry_out(&files, 2, &stage(2, 17, 1, vec![piece(0, 0, b"missing")]));
    carry_out(&files, 3, &copy(3, 1, ByteRange { start: 0, end: 6 }, 2, 0));
    carry_out(&files, 4, &remove(1));
    assert!(files.held() > 0, "a replay may need it");
    files.forget(LogIndex(4)).unwrap();
    assert_eq!(files.held(), 0);
    assert_eq!(bytes(&files, 2, 6).as_deref(), Some(&b"source"[..]));
}

/// What was saved for the replay of a copy has no bytes that the source lacked then; the replay may have them.
#[test]
fn a_replayed_copy_has_no_zeros_for_what_its_source_lacked() {
    let dir = tempfile::tempdir().unwrap();
    let data = vec![7; 300 << 10];
    let effects = [
        stage(1, 1, 1, vec![piece(0, 0, &data)]),
        copy(2, 1, ByteRange { start: 4096, end: 300 << 10 }, 2, 0),
        write(1, 5000, b"changed"),
    ];
    let files = open(dir.path(), true);
    files.stage(id(1), 0, &data[..100_000]).unwrap();
    for (index, effect) in (1..).zip(&effects) {
        carry_out(&files, index, effect);
    }
    files.stage(id(1), 100_000, &data[100_000..]).unwrap();
    merge_all(&files);
    drop(files);
    let files = open(dir.path(), false);
    for (index, effect) in (1..).zip(&effects) {
        carry_out(&files, index, effect);
    }
    let copied = data.len() - 4096;
    // Whole blocks came in time.
    let mut there = vec![0; (64 << 10) - 4096];
    assert!(files.read(Ino(2), GENERATION, 0, &mut there).unwrap());
    assert!(there.iter().all(|byte| *byte == 7));
    let missing = files.missing(key(2), ByteRange::from(0));
    assert_eq!(missing.last().map(|(range, _)| range.end), Some(copied as u64));
    let (range, version) = missing[0];
    assert!(files.install(key(2), range.start, &data[4096..], version).unwrap());
    assert!(bytes(&files, 2, copied).is_some_and(|found| found == data[4096..]));
}

/// What came as it should costs no more than its own bytes: a replay finds it.
#[test]
fn what_was_never_missing_needs_no_image() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), true);
    carry_out(&files, 4, &write(1, 0, b"below"));
    files.sync().unwrap();
    files.stage(id(1), 0, b"over").unwrap();
    carry_out(&files, 5, &stage(5, 1, 1, vec![piece(0, 0, b"over")]));
    merge_all(&files);
    let image = || std::fs::metadata(dir.path().join("stages/image")).unwrap().ino();
    let before = image();
    files.sync_file(key(1)).unwrap();
    assert_eq!(image(), before);
}
