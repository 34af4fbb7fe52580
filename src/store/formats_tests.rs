//! Every file of a data directory that a newer version has written is refused, or has no value; a test for each row of
//! `docs/formats.md`.

use std::fs;

use prost::Message;

use super::checksums::Checksums;
use super::datadir::DataDir;
use super::durable::Syncs;
use super::identity::Identity;
use super::layouts::{Believed, Layouts};
use super::mount_list::{record_mounts, recorded_mounts};
use super::snapshot::{SnapshotHeader, read_snapshot, write_snapshot};
use super::test_replica::{Author, append};
use super::{BootIdentity, StoreError};
use crate::fs::limits::FEATURE_LEVEL;
use crate::fs::{Digest, proto};
use crate::types::{ClusterId, Generation, Ino, LogIndex, NodeId, Term, VolumeId};

#[track_caller]
fn assert_newer<T: std::fmt::Debug>(found: Result<T, StoreError>, what: &str) {
    let said = found.expect_err("it is newer").to_string();
    assert!(said.contains("was written by a newer version of quorumfs"), "{said}");
    assert!(said.contains(what) && said.contains("start that version"), "{said}");
}

/// Before anything else is looked at: it speaks for all files of the directory that say nothing themselves.
#[test]
fn a_newer_identity() {
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity {
        cluster: ClusterId([1; 16]),
        node: NodeId(1),
        nonce: 2,
        address: "n:1".to_owned(),
    };
    drop(DataDir::create(dir.path(), identity).unwrap());
    let path = dir.path().join("identity");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("format = 2\n"), "{text}");
    fs::write(&path, text.replace("format = 2\n", "format = 3\n")).unwrap();
    fs::write(dir.path().join("boot"), "not looked at").unwrap();
    assert_newer(DataDir::open(dir.path()), "format 3");
    assert_newer(DataDir::open_under(dir.path(), BootIdentity::named("b")), "format 3");
    assert_newer(DataDir::open_to_refound(dir.path()), "format 3");
}

/// Snapshot files travel: their own format, and the level of what is in them. `genesis` is one, too.
#[test]
fn a_newer_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let header = |feature_level| SnapshotHeader {
        cluster: ClusterId([1; 16]),
        volume: VolumeId::FIRST,
        index: LogIndex(u64::from(feature_level)),
        term: Term(1),
        conf_state: raft::eraftpb::ConfState::default(),
        digest: Digest::default(),
        feature_level,
    };
    let write = |level| write_snapshot(dir.path(), &header(level), std::iter::empty()).unwrap();
    read_snapshot(&write(FEATURE_LEVEL)).unwrap();
    let path = write(FEATURE_LEVEL + 1);
    assert_newer(read_snapshot(&path), &format!("feature level {}", FEATURE_LEVEL + 1));
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 2;
    let checksum = crc32c::crc32c(&bytes[..12]);
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    assert_newer(read_snapshot(&path), "format 2");
}

#[test]
fn a_newer_image_of_layouts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let layouts = Layouts::open(dir.path(), Believed::Image).unwrap();
    layouts.keep(&layouts.image(|_| false).unwrap(), &Syncs::of(dir.path())).unwrap();
    drop(layouts);
    Layouts::open(dir.path(), Believed::Image).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    assert_eq!(&bytes[..8], b"qfslayt1");
    bytes[7] = b'2';
    let end = bytes.len() - 8;
    let checksum = u64::from(crc32c::crc32c(&bytes[..end]));
    bytes[end..].copy_from_slice(&checksum.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    assert_newer(Layouts::open(dir.path(), Believed::Image), "format 2");
    bytes[7] = b'x';
    fs::write(&path, bytes).unwrap();
    let damaged = Layouts::open(dir.path(), Believed::Image).unwrap_err();
    assert!(matches!(damaged, StoreError::Corrupt { .. }), "{damaged}");
}

/// They can be made again.
#[test]
fn newer_checksums_have_no_value() {
    let dir = tempfile::tempdir().unwrap();
    let (key, version) = ((Ino(0x1234), Generation(7)), LogIndex(9));
    let checksums = Checksums::open(dir.path().join("checksums")).unwrap();
    checksums.keep(key, version, 0, &[1, 2]).unwrap();
    assert_eq!(checksums.load(key, version, 0), Some(vec![1, 2]));
    let path = dir.path().join("checksums/12/4660.7");
    let mut bytes = fs::read(&path).unwrap();
    assert_eq!(&bytes[..8], b"qfssums1");
    bytes[7] = b'2';
    let end = 48 + 2 * 4;
    let checksum = crc32c::crc32c(&bytes[..end]);
    bytes[end..end + 4].copy_from_slice(&checksum.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    assert_eq!(checksums.load(key, version, 0), None);
    checksums.keep(key, version, 0, &[3, 4]).unwrap();
    assert_eq!(checksums.load(key, version, 0), Some(vec![3, 4]));
}

/// `quorumfs cleanup` reads it without looking at anything else.
#[test]
fn a_newer_list_of_mounts() {
    let dir = tempfile::tempdir().unwrap();
    record_mounts(dir.path(), &["/mnt".into()]).unwrap();
    let path = dir.path().join("mounts");
    assert_eq!(fs::read(&path).unwrap(), b"1\0/mnt\0");
    fs::write(&path, b"2\0/mnt\0").unwrap();
    assert_newer(recorded_mounts(dir.path()), "format 2");
}

/// Read offline: what the newer version has written is no damage, and nothing to be thrown away.
#[test]
fn a_newer_command() {
    let mut author = Author::new();
    let mut entry = author.session();
    let command = proto::Command { volume: 1, ..proto::Command::default() };
    let mut bytes = command.encode_to_vec();
    // Field 999, two bytes long.
    bytes.extend([0xba, 0x3e, 2, 8, 1]);
    entry.data = bytes.into();
    let recovered = author.start("a");
    append(&recovered, &[entry], 2);
    for error in [recovered.replay(LogIndex(2)).unwrap_err(), recovered.last_time().unwrap_err()] {
        let said = error.to_string();
        assert!(said.contains("start the newer version") && !said.contains("move this"), "{said}");
        assert!(!error.is_damage(), "{error:?}");
    }
}
