//! The file `identity` of a data directory, in TOML.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::durable;
use crate::store::StoreError;
use crate::types::{ClusterId, NodeId};

/// 2: marks and notes have checks, `logged` and `started` are there. 1 is read.
const FORMAT: u64 = 2;

/// Whose replica a data directory holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node, which is the Raft id too.
    pub node: NodeId,
    /// Random, drawn when the directory was made: tells it from another one under the same id.
    pub nonce: u64,
    /// Where peers find this node, `HOST:PORT`.
    pub address: String,
}

/// `identity` as it is in the file. Numbers that may exceed TOML's are in hexadecimal.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentityFile {
    format: u64,
    cluster: String,
    node: u64,
    nonce: String,
    address: String,
    /// Whether the replica has ever run, so that it has a log. Absent where an early version has written the file.
    started: Option<bool>,
    /// CRC-32C of the others, in hexadecimal: a node that takes itself for another one would vote twice. Absent where an
    /// early version has written the file.
    checksum: Option<String>,
}

impl IdentityFile {
    fn sum(&self) -> String {
        let Self { format, cluster, node, nonce, address, started, checksum: _ } = self;
        let started = started.map(|started| format!(" {started}")).unwrap_or_default();
        let all = format!("{format} {cluster} {node} {nonce} {address}{started}");
        format!("{:08x}", crc32c::crc32c(all.as_bytes()))
    }
}

/// What every format has.
#[derive(Deserialize)]
struct AnyFormat {
    format: u64,
}

pub(super) fn write_identity(
    dir: &Path,
    identity: &Identity,
    has_started: bool,
) -> Result<(), StoreError> {
    let mut file = IdentityFile {
        format: FORMAT,
        cluster: identity.cluster.to_string(),
        node: identity.node.0,
        nonce: format!("{:016x}", identity.nonce),
        address: identity.address.clone(),
        started: Some(has_started),
        checksum: None,
    };
    file.checksum = Some(file.sum());
    let text = toml::to_string(&file).expect("strings and small numbers are valid TOML");
    durable::replace(&dir.join("identity"), text.as_bytes())
}

/// With whether the replica has ever run, as far as the file says.
pub(super) fn read_identity(dir: &Path) -> Result<(Identity, bool), StoreError> {
    let path = dir.join("identity");
    let bytes = std::fs::read(&path).map_err(StoreError::io("read", &path))?;
    let text = String::from_utf8_lossy(&bytes);
    let damaged = |what: String| StoreError::Corrupt {
        path: path.clone(),
        offset: None,
        what,
        advice: "put back what it held, or move this data directory away and join as a new node",
    };
    let any: AnyFormat = toml::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    if any.format > FORMAT {
        return Err(StoreError::Newer {
            path,
            what: "format",
            found: any.format,
            supported: FORMAT,
        });
    }
    let file: IdentityFile = toml::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    if file.checksum.as_ref().is_some_and(|sum| *sum != file.sum()) {
        return Err(damaged("its checksum does not agree with what it says".to_owned()));
    }
    let identity = Identity {
        cluster: file.cluster.parse().map_err(|error: &str| damaged(error.to_owned()))?,
        node: NodeId(file.node),
        nonce: u64::from_str_radix(&file.nonce, 16).map_err(|error| damaged(error.to_string()))?,
        address: file.address,
    };
    Ok((identity, file.started.unwrap_or(false)))
}
