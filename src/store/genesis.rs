//! The record that every member of a cluster starts from: a snapshot file of the empty tree at index 1.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use prost::Message;
use raft::eraftpb::ConfState;

use super::datadir::DataDir;
use super::identity::Identity;
use super::snapshot::{SnapshotHeader, read_snapshot, write_snapshot};
use super::{StoreError, durable};
use crate::fs::limits::FEATURE_LEVEL;
use crate::fs::{self, Digest, Overlay, Position, keys, proto};
use crate::types::{LogIndex, Term, Timestamp, VolumeId};

/// The entry that the record stands for; logs begin after it.
const AT: Position = Position { index: LogIndex(1), term: Term(1) };

/// Makes the first data directory of a new cluster; `path` must be empty or absent.
///
/// # Errors
/// When the directory holds anything, or the disk refuses.
pub fn found_cluster(
    path: &Path,
    identity: Identity,
    created: Timestamp,
) -> Result<DataDir, StoreError> {
    refuse_replica(path)?;
    let snapshots = path.join("snapshots");
    let time = proto::Time { seconds: created.seconds, nanos: created.nanos };
    let mut overlay = Overlay::new(BTreeMap::new());
    fs::genesis(&mut overlay, AT, &time, &identity.address, identity.nonce);
    let batch = overlay.finish().map_err(StoreError::from)?;
    let header = SnapshotHeader {
        cluster: identity.cluster,
        volume: VolumeId::FIRST,
        index: AT.index,
        term: AT.term,
        conf_state: ConfState::from((vec![identity.node.0], vec![])),
        digest: batch.digest,
        feature_level: FEATURE_LEVEL,
    };
    let pairs = batch.writes.into_iter().filter_map(|(key, value)| Some((key, value?)));
    let file = write_snapshot(&snapshots, &header, pairs.map(Ok))?;
    let bytes = std::fs::read(&file).map_err(StoreError::io("read", &file))?;
    durable::replace(&genesis_path(path), &bytes)?;
    DataDir::create(path, identity)
}

/// Makes the data directory of a member that was let in; `path` must be empty or absent.
///
/// # Errors
/// When the directory holds anything, the record is damaged, or the disk refuses.
pub fn join_cluster(
    path: &Path,
    identity: Identity,
    genesis: &[u8],
) -> Result<DataDir, StoreError> {
    refuse_replica(path)?;
    std::fs::create_dir_all(path).map_err(StoreError::io("create", path))?;
    let record = genesis_path(path);
    durable::replace(&record, genesis)?;
    let (header, pairs) = read_snapshot(&record)?;
    write_snapshot(&path.join("snapshots"), &header, pairs)?;
    DataDir::create(path, identity)
}

/// The record becomes that of another cluster, which begins with one member: newcomers must know whom to answer. What
/// else is in it they have from a snapshot.
pub(super) fn change_genesis(path: &Path, identity: &Identity) -> Result<(), StoreError> {
    let record = genesis_path(path);
    let (header, pairs) = read_snapshot(&record)?;
    let mut pairs: BTreeMap<_, _> = pairs.collect::<Result<_, _>>()?;
    let members = keys::members();
    pairs.retain(|key, _| *key < members.from || *key >= members.to);
    let (node, address) = (identity.node, identity.address.clone());
    let nonce = identity.nonce;
    let member = proto::Member { node: node.0, address, nonce, learner: false };
    pairs.insert(keys::member(node), member.encode_to_vec());
    let next = (node.0 + 1).encode_to_vec();
    pairs.insert(keys::counter(keys::Counter::NextNode), next);
    let mut digest = Digest::default();
    for (key, value) in &pairs {
        digest.add(key, value);
    }
    let conf_state = ConfState::from((vec![node.0], vec![]));
    let header = SnapshotHeader { cluster: identity.cluster, conf_state, digest, ..header };
    let beside = path.join("genesis.new");
    let file = write_snapshot(&beside, &header, pairs.into_iter().map(Ok))?;
    let bytes = std::fs::read(&file).map_err(StoreError::io("read", &file))?;
    durable::replace(&record, &bytes)?;
    std::fs::remove_dir_all(&beside).map_err(StoreError::io("remove", &beside))
}

impl DataDir {
    /// The cluster's genesis record, for newcomers.
    ///
    /// # Errors
    /// When it is damaged or not there, or cannot be read.
    pub fn genesis(&self) -> Result<Vec<u8>, StoreError> {
        let path = genesis_path(self.path());
        let damaged = |what: String| StoreError::Corrupt {
            path: path.clone(),
            offset: None,
            what,
            advice: "newcomers cannot join through this node: copy the file from another one, all are alike",
        };
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(damaged("it is not there".to_owned()));
            }
            bytes => bytes.map_err(StoreError::io("read", &path))?,
        };
        let (header, mut pairs) = match read_snapshot(&path) {
            Err(StoreError::Corrupt { what, .. }) => return Err(damaged(what)),
            read => read?,
        };
        if let Some(Err(StoreError::Corrupt { what, .. })) = pairs.find(Result::is_err) {
            return Err(damaged(what));
        }
        if header.cluster != self.identity().cluster {
            return Err(damaged(format!("it is of cluster {}", header.cluster)));
        }
        Ok(bytes)
    }
}

/// The number by which a daemon asks to join: the same one until it has joined, so that asking again
/// after a crash gives the same node id.
///
/// # Errors
/// When the disk refuses.
pub fn joining_nonce(path: &Path, fresh: u64) -> Result<u64, StoreError> {
    let file = path.join("joining");
    match std::fs::read_to_string(&file) {
        Ok(text) => {
            if let Ok(nonce) = u64::from_str_radix(text.trim(), 16) {
                return Ok(nonce);
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(source) => return Err(StoreError::io("read", &file)(source)),
    }
    std::fs::create_dir_all(path).map_err(StoreError::io("create", path))?;
    durable::replace(&file, format!("{fresh:016x}\n").as_bytes())?;
    Ok(fresh)
}

fn refuse_replica(path: &Path) -> Result<(), StoreError> {
    if DataDir::holds_replica(path) {
        return Err(StoreError::NotEmpty { path: path.to_owned(), found: "identity".to_owned() });
    }
    Ok(())
}

fn genesis_path(path: &Path) -> PathBuf {
    path.join("genesis")
}
