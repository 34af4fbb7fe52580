//! What is believed after a power loss: bytes that had been missing, and what a copy had to read.

use std::os::unix::fs::MetadataExt;

use super::tests::{GENERATION, bytes, carry_out, id, key, merge_all, open, piece, stage, write};
use super::{ByteRange, LogIndex};
use crate::fs::FileEffect;
use crate::types::Ino;

/// What a program was told is on this disk is believed here after a power loss, however it came.
#[test]
fn what_was_missing_and_came_is_there_after_a_power_loss_once_it_is_synced() {
    let data = vec![7; 300 << 10];
    let write = |number| stage(5, 1, number, vec![piece(0, 0, &data)]);
    for is_imaged in [true, false] {
        for is_fetched in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let files = open(dir.path(), true);
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
            files.sync_file(key(1)).unwrap();
            drop(files);
            let files = open(dir.path(), false);
            carry_out(&files, 5, &write(1));
            let found = bytes(&files, 1, data.len()).is_some_and(|found| found == data);
            assert!(found, "imaged: {is_imaged}, fetched: {is_fetched}");
        }
    }
}

/// What was saved for the replay of a copy has no bytes that the source lacked then; the replay may have them.
#[test]
fn a_replayed_copy_has_no_zeros_for_what_its_source_lacked() {
    let dir = tempfile::tempdir().unwrap();
    let data = vec![7; 300 << 10];
    let effects = [
        stage(1, 1, 1, vec![piece(0, 0, &data)]),
        FileEffect::Copy {
            index: LogIndex(2),
            source: Ino(1),
            source_generation: GENERATION,
            range: ByteRange { start: 4096, end: 300 << 10 },
            ino: Ino(2),
            generation: GENERATION,
            offset: 0,
        },
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
