//! What a state stands at: written with every batch, in the same atomic step.

use std::path::Path;

use protobuf::Message;
use raft::eraftpb::ConfState;

use super::records::Records;
use super::state::damaged;
use crate::fs::{Digest, keys};
use crate::store::StoreError;
use crate::types::{LogIndex, Term};

/// Applied index and term (8 bytes each) and digest (16), little-endian.
const POINT: &str = "applied";
/// The membership, an encoded `eraftpb.ConfState`.
const CONF_STATE: &str = "conf_state";

/// How far a batch brings the state.
#[derive(Clone, Copy, Debug)]
pub struct AppliedPoint<'a> {
    /// The last entry of the log that is in it.
    pub index: LogIndex,
    /// That entry's term.
    pub term: Term,
    /// The membership from there on, where it changed.
    pub conf_state: Option<&'a ConfState>,
}

/// What the whole state stands at.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Point {
    pub(super) index: LogIndex,
    pub(super) term: Term,
    pub(super) digest: Digest,
    pub(super) conf_state: ConfState,
}

impl Point {
    /// As it was written last; at index 0 in an empty state.
    pub(super) fn read_from(records: &Records, dir: &Path) -> Result<Self, StoreError> {
        let Some(bytes) = records.get(&keys::meta(POINT))? else { return Ok(Self::default()) };
        let (index, term, digest) = decode_point(&bytes)
            .ok_or_else(|| damaged(dir, "its applied index cannot be decoded".to_owned()))?;
        let conf_state = match records.get(&keys::meta(CONF_STATE))? {
            Some(bytes) => ConfState::parse_from_bytes(&bytes).map_err(|error| {
                damaged(dir, format!("its membership cannot be decoded: {error}"))
            })?,
            None => ConfState::default(),
        };
        Ok(Self { index, term, digest, conf_state })
    }

    /// This point after changes that add `difference` to the digest.
    pub(super) fn advanced(mut self, difference: Digest, at: AppliedPoint<'_>) -> Self {
        self.index = at.index;
        self.term = at.term;
        self.digest.merge(difference);
        if let Some(conf_state) = at.conf_state {
            self.conf_state = conf_state.clone();
        }
        self
    }

    /// The records that say so.
    pub(super) fn writes(
        &self,
        conf_state: Option<&ConfState>,
    ) -> impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)> + use<> {
        let mut point = Vec::with_capacity(32);
        point.extend_from_slice(&self.index.0.to_le_bytes());
        point.extend_from_slice(&self.term.0.to_le_bytes());
        point.extend_from_slice(&self.digest.0.to_le_bytes());
        let members = conf_state.map(|conf_state| {
            let bytes = conf_state.write_to_bytes().expect("encoding into memory cannot fail");
            (keys::meta(CONF_STATE), Some(bytes))
        });
        std::iter::once((keys::meta(POINT), Some(point))).chain(members)
    }
}

fn decode_point(bytes: &[u8]) -> Option<(LogIndex, Term, Digest)> {
    let (index, rest) = bytes.split_first_chunk()?;
    let (term, rest) = rest.split_first_chunk()?;
    let digest = u128::from_le_bytes(rest.try_into().ok()?);
    Some((LogIndex(u64::from_le_bytes(*index)), Term(u64::from_le_bytes(*term)), Digest(digest)))
}
