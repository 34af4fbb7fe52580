//! What making a new cluster of one replica would keep, end and lose.

use serde::Serialize;

use super::files::{self, each_file};
use super::names::Names;
use super::stopped::Stopped;
use crate::store::{Leaving, Recovered, StoreError};
use crate::types::{ByteRange, Timestamp};

/// What would become of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlook {
    /// Whose it is.
    pub node: u64,
    /// The last entry that it knew to be committed.
    pub committed: u64,
    /// The last entry that it holds.
    pub last_index: u64,
    /// When the last change that it holds was proposed.
    pub last_time: Option<Timestamp>,
    /// Sessions that would end.
    pub sessions: u64,
    /// Members that would be removed.
    pub members: Vec<Member>,
    /// Files of which bytes are not here, and would be nowhere.
    pub missing: Vec<Incomplete>,
}

/// A member of the old cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Its id.
    pub node: u64,
    /// Where it was.
    pub address: String,
}

/// A file that lacks bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Incomplete {
    /// Which.
    pub path: String,
    /// From which byte to which (exclusive).
    pub ranges: Vec<(u64, u64)>,
}

/// Looks at a replica to which everything that its log holds was applied.
///
/// # Errors
/// When its stores cannot be read.
pub fn outlook(stopped: &Stopped<'_>) -> Result<Outlook, StoreError> {
    let recovered = &stopped.recovered;
    let own = stopped.data.identity().node;
    let leaving = Leaving::of(&recovered.state, own)?;
    let members = leaving.members.into_iter();
    Ok(Outlook {
        node: own.0,
        committed: recovered.committed().0,
        last_index: recovered.log.last_index().0,
        last_time: recovered.last_time()?,
        sessions: leaving.sessions.len() as u64,
        members: members.map(|(node, address)| Member { node: node.0, address }).collect(),
        missing: missing(stopped)?,
    })
}

fn missing(stopped: &Stopped<'_>) -> Result<Vec<Incomplete>, StoreError> {
    let Recovered { files: here, state, .. } = &stopped.recovered;
    let mut lacking = Vec::new();
    each_file(state, |ino, inode| {
        let ranges = here.lacks(files::key(ino, inode), inode.size)?;
        if !ranges.is_empty() {
            lacking.push((ino, ranges));
        }
        Ok::<_, StoreError>(())
    })?;
    if lacking.is_empty() {
        return Ok(Vec::new());
    }
    let names = Names::of(state)?;
    let incomplete = |(ino, ranges): (_, Vec<ByteRange>)| Incomplete {
        path: names.path(ino),
        ranges: ranges.into_iter().map(|range| (range.start, range.end)).collect(),
    };
    Ok(lacking.into_iter().map(incomplete).collect())
}
