//! Tests of the snapshot file: it comes back whole or not at all.

use std::path::Path;

use raft::eraftpb::ConfState;

use super::{SnapshotHeader, format, latest_snapshot, read_snapshot, write_snapshot};
use crate::fs::{Digest, Pair};
use crate::store::StoreError;
use crate::types::{ClusterId, LogIndex, Term, VolumeId};

fn pairs(count: u64, value: usize) -> Vec<Pair> {
    (0..count)
        .map(|n| ([&b"i"[..], &n.to_be_bytes()].concat(), vec![n.to_le_bytes()[0]; value]))
        .collect()
}

fn header(index: u64, pairs: &[Pair]) -> SnapshotHeader {
    let mut digest = Digest::default();
    for (key, value) in pairs {
        digest.add(key, value);
    }
    SnapshotHeader {
        cluster: ClusterId([7; 16]),
        volume: VolumeId::FIRST,
        index: LogIndex(index),
        term: Term(3),
        conf_state: ConfState::from((vec![1, 2, 3], vec![9])),
        digest,
        feature_level: 1,
    }
}

fn write(dir: &Path, index: u64, pairs: &[Pair]) -> std::path::PathBuf {
    write_snapshot(dir, &header(index, pairs), pairs.iter().cloned().map(Ok)).unwrap()
}

fn read(path: &Path) -> Result<(SnapshotHeader, Vec<Pair>), StoreError> {
    let (header, pairs) = read_snapshot(path)?;
    Ok((header, pairs.collect::<Result<_, _>>()?))
}

#[test]
fn what_was_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    for (count, value) in [(0, 0), (1, 0), (3, 10), (5000, 100), (3, 300_000)] {
        let pairs = pairs(count, value);
        let path = write(dir.path(), count, &pairs);
        assert_eq!(read(&path).unwrap(), (header(count, &pairs), pairs));
    }
}

#[test]
fn the_newest_counts_and_older_ones_go_when_it_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("absent");
    assert_eq!(latest_snapshot(&absent).unwrap(), None);
    write(dir.path(), 9, &pairs(3, 3));
    // A crash left one half written.
    std::fs::write(dir.path().join("snap-77.tmp"), b"half").unwrap();
    assert_eq!(latest_snapshot(dir.path()).unwrap(), Some(dir.path().join("snap-9")));
    let path = write(dir.path(), 10, &pairs(4, 3));
    assert_eq!(latest_snapshot(dir.path()).unwrap(), Some(path));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_flipped_bit_anywhere_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), 5, &pairs(20, 5));
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        for bit in [0x01, 0x80] {
            let mut damaged = whole.clone();
            damaged[at] ^= bit;
            std::fs::write(&path, damaged).unwrap();
            let error = read(&path).expect_err("damage");
            assert!(matches!(error, StoreError::Corrupt { .. }), "byte {at}: {error}");
            assert!(error.to_string().contains("snap-5"), "{error}");
        }
    }
}

#[test]
fn a_shorter_or_longer_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), 5, &pairs(20, 5));
    let whole = std::fs::read(&path).unwrap();
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(read(&path).is_err(), "cut at {length}");
    }
    std::fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
    assert!(read(&path).is_err());
}

#[test]
fn a_frame_that_is_lost_or_doubled_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let pairs = pairs(6000, 100);
    let path = write(dir.path(), 5, &pairs);
    let whole = std::fs::read(&path).unwrap();
    let frame = |at: usize| {
        let length = u32::from_le_bytes(whole[at + 1..at + 5].try_into().unwrap()) as usize;
        at..at + format::FRAME_HEADER + length
    };
    let first = frame(frame(format::PREFACE).end);
    assert_eq!(whole[first.start], format::KIND_PAIRS);
    let without = [&whole[..first.start], &whole[first.end..]].concat();
    let twice = [&whole[..first.end], &whole[first.start..]].concat();
    for damaged in [without, twice] {
        std::fs::write(&path, damaged).unwrap();
        assert!(read(&path).is_err());
    }
}

#[test]
fn a_newer_format_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), 5, &pairs(2, 2));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8] = 2;
    let checksum = crc32c::crc32c(&bytes[..12]);
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let error = read(&path).unwrap_err();
    assert!(matches!(error, StoreError::Newer { what: "format", found: 2, supported: 1, .. }));
    assert!(error.to_string().contains("written by a newer version"), "{error}");
}

#[test]
fn a_state_that_is_not_what_it_says_replaces_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let good = pairs(3, 3);
    write(dir.path(), 5, &good);
    let mut twisted = good.clone();
    twisted.swap(0, 1);
    for wrong in [&good[..2], &twisted] {
        let pairs = wrong.iter().cloned().map(Ok);
        assert!(write_snapshot(dir.path(), &header(6, &good), pairs).is_err());
    }
    let latest = latest_snapshot(dir.path()).unwrap().unwrap();
    assert_eq!(read(&latest).unwrap().1, good);
}
