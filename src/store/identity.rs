//! The file `identity` of a data directory, in TOML.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::durable;
use crate::store::StoreError;
use crate::types::{ClusterId, NodeId};

const FORMAT: u64 = 1;

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
}

/// What every format has.
#[derive(Deserialize)]
struct AnyFormat {
    format: u64,
}

pub(super) fn write_identity(dir: &Path, identity: &Identity) -> Result<(), StoreError> {
    let file = IdentityFile {
        format: FORMAT,
        cluster: identity.cluster.to_string(),
        node: identity.node.0,
        nonce: format!("{:016x}", identity.nonce),
        address: identity.address.clone(),
    };
    let text = toml::to_string(&file).expect("strings and small numbers are valid TOML");
    durable::replace(&dir.join("identity"), text.as_bytes())
}

pub(super) fn read_identity(dir: &Path) -> Result<Identity, StoreError> {
    let path = dir.join("identity");
    let text = std::fs::read_to_string(&path).map_err(StoreError::io("read", &path))?;
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
    Ok(Identity {
        cluster: file.cluster.parse().map_err(|error: &str| damaged(error.to_owned()))?,
        node: NodeId(file.node),
        nonce: u64::from_str_radix(&file.nonce, 16).map_err(|error| damaged(error.to_string()))?,
        address: file.address,
    })
}
