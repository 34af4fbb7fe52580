//! How a node that is no member any more is told so.

use prost::Message;
use tonic::{Code, Status};

use super::peer::{MemberAddress, Removed};
use crate::node::{Handle, Removal};
use crate::types::NodeId;

/// Refuses a node that was removed, and says who else must know. Who is in doubt about its own state does not say so: nobody
/// is to believe it.
pub(super) fn refuse(handle: &Handle, node: NodeId) -> Status {
    if !handle.is_sound() {
        return Status::unavailable(format!(
            "node {node} is not known here, but the state of this node may be wrong: ask another one"
        ));
    }
    let address = |(node, address): (NodeId, String)| MemberAddress { node: node.0, address };
    let removed =
        Removed { by: handle.node().0, voters: handle.voters().into_iter().map(address).collect() };
    Status::with_details(
        Code::PermissionDenied,
        format!("node {node} was removed from this cluster"),
        removed.encode_to_vec().into(),
    )
}

/// What a refusal says, where it is that of `refuse`.
#[must_use]
pub fn removal(refusal: &Status) -> Option<Removal> {
    if refusal.code() != Code::PermissionDenied {
        return None;
    }
    let Removed { by, voters } = Removed::decode(refusal.details()).ok()?;
    let voters = voters.into_iter().map(|voter| (NodeId(voter.node), voter.address));
    Some(Removal { by: NodeId(by), voters: voters.collect() })
}
