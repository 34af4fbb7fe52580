//! What making a new cluster of one replica would keep, end and lose.

use serde::Serialize;

use super::names::Names;
use super::stopped::Stopped;
use crate::store::{Leaving, StoreError};
use crate::types::{ByteRange, Timestamp};

/// Files that lack bytes, looked at together.
const PAGE: usize = 1000;

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
    let files = &stopped.recovered.files;
    let mut found = Vec::new();
    if files.missing_in_all() == (0, 0) {
        return Ok(found);
    }
    let names = Names::of(&stopped.recovered.state)?;
    let mut after = None;
    loop {
        let page = files.incomplete(after, PAGE);
        let Some(last) = page.last() else { return Ok(found) };
        after = Some(*last);
        for key in page {
            let ranges = files.missing(key, ByteRange::from(0)).into_iter();
            let ranges = ranges.map(|(range, _)| (range.start, range.end)).collect();
            found.push(Incomplete { path: names.path(key.0), ranges });
        }
    }
}
