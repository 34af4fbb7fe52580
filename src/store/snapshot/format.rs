//! The parts of a snapshot file as bytes.

use protobuf::Message;
use raft::eraftpb::ConfState;

use crate::fs::Digest;
use crate::types::{ClusterId, LogIndex, Term, VolumeId};

pub(super) const MAGIC: &[u8; 8] = b"quorumfs";
pub(super) const FORMAT: u32 = 1;
pub(super) const PREFACE: usize = 16;
/// Kind, length, checksum.
pub(super) const FRAME_HEADER: usize = 9;
/// A frame of pairs is closed when it is this long: it may be longer by one pair.
pub(super) const FRAME_BYTES: usize = 128 << 10;
/// No frame is longer: a record is far below.
pub(super) const MAX_FRAME_BYTES: usize = 64 << 20;

pub(super) const KIND_HEADER: u8 = 1;
pub(super) const KIND_PAIRS: u8 = 2;
pub(super) const KIND_LOCAL: u8 = 3;
pub(super) const KIND_TRAILER: u8 = 4;

/// What a snapshot is of.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotHeader {
    /// Whose state.
    pub cluster: ClusterId,
    /// Which of its Raft groups.
    pub volume: VolumeId,
    /// The last entry of the log that is in it.
    pub index: LogIndex,
    /// That entry's term.
    pub term: Term,
    /// The membership as of that index.
    pub conf_state: ConfState,
    /// The digest of its pairs.
    pub digest: Digest,
    /// The feature level of the state: how its records are encoded.
    pub feature_level: u32,
}

impl SnapshotHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        let conf_state =
            self.conf_state.write_to_bytes().expect("encoding into memory cannot fail");
        let mut bytes = Vec::with_capacity(64 + conf_state.len());
        bytes.extend_from_slice(&self.cluster.0);
        bytes.extend_from_slice(&self.volume.0.to_le_bytes());
        bytes.extend_from_slice(&self.index.0.to_le_bytes());
        bytes.extend_from_slice(&self.term.0.to_le_bytes());
        bytes.extend_from_slice(&self.digest.0.to_le_bytes());
        bytes.extend_from_slice(&self.feature_level.to_le_bytes());
        bytes.extend_from_slice(&length(conf_state.len()));
        bytes.extend_from_slice(&conf_state);
        bytes
    }

    pub(super) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let header = Self {
            cluster: ClusterId(take(&mut bytes)?),
            volume: VolumeId(u64::from_le_bytes(take(&mut bytes)?)),
            index: LogIndex(u64::from_le_bytes(take(&mut bytes)?)),
            term: Term(u64::from_le_bytes(take(&mut bytes)?)),
            digest: Digest(u128::from_le_bytes(take(&mut bytes)?)),
            feature_level: u32::from_le_bytes(take(&mut bytes)?),
            conf_state: ConfState::default(),
        };
        let length = u32::from_le_bytes(take(&mut bytes)?) as usize;
        let conf_state = (bytes.len() == length).then(|| ConfState::parse_from_bytes(bytes).ok());
        Some(Self { conf_state: conf_state??, ..header })
    }
}

pub(super) fn preface() -> [u8; PREFACE] {
    let mut preface = [0; PREFACE];
    preface[..8].copy_from_slice(MAGIC);
    preface[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    let checksum = crc32c::crc32c(&preface[..12]);
    preface[12..].copy_from_slice(&checksum.to_le_bytes());
    preface
}

/// Kind, length and checksum of a frame.
pub(super) fn frame_header(kind: u8, payload: &[u8]) -> [u8; FRAME_HEADER] {
    let mut header = [0; FRAME_HEADER];
    header[0] = kind;
    header[1..5].copy_from_slice(&length(payload.len()));
    let checksum = frame_checksum(&header[..5], payload);
    header[5..].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// The checksum of a frame, given its kind and length as they are in the file.
pub(super) fn frame_checksum(kind_and_length: &[u8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(kind_and_length), payload)
}

/// The name of the file of an index.
pub(super) fn file_name(index: LogIndex) -> String {
    format!("snap-{index}")
}

/// The index of a file, by its name; nothing for other files and unfinished ones.
pub(super) fn index_of(name: &str) -> Option<LogIndex> {
    let digits = name.strip_prefix("snap-")?;
    digits.parse().ok().map(LogIndex).filter(|&index| file_name(index) == name)
}

pub(super) fn put_pair(frame: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    frame.extend_from_slice(&length(key.len()));
    frame.extend_from_slice(&length(value.len()));
    frame.extend_from_slice(key);
    frame.extend_from_slice(value);
}

/// Takes a pair off the front of a frame's payload.
pub(super) fn take_pair(frame: &mut &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let key_length = u32::from_le_bytes(take(frame)?) as usize;
    let value_length = u32::from_le_bytes(take(frame)?) as usize;
    let (key, rest) = frame.split_at_checked(key_length)?;
    let (value, rest) = rest.split_at_checked(value_length)?;
    *frame = rest;
    Some((key.to_vec(), value.to_vec()))
}

/// Takes a fixed number of bytes off the front.
pub(super) fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*taken)
}

fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).expect("records are far shorter than 4 GiB").to_le_bytes()
}
