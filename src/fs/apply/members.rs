//! Members of the cluster: their ids and addresses.

use prost::Message;

use super::context::{Context, Step, Stop};
use crate::fs::applied::Change;
use crate::fs::errno::Errno;
use crate::fs::keys::{self, Counter};
use crate::fs::proto;
use crate::fs::query;
use crate::fs::record::Records;
use crate::fs::view::ViewMut;
use crate::types::NodeId;

pub(super) fn add<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    op: &proto::AddMember,
) -> Step<proto::Outcome, V> {
    if op.address.is_empty() {
        return Err(Errno::EINVAL.into());
    }
    let members = query::members(context.view).map_err(Stop::View)?;
    let known = members.into_iter().find(|member| member.nonce == op.nonce);
    let id = match &known {
        Some(member) => member.node,
        None => allocate(context)?,
    };
    if known.is_none_or(|member| member.address != op.address) {
        let node = NodeId(id);
        let member = proto::Member { node: id, address: op.address.clone(), nonce: op.nonce };
        context.view.put(keys::member(node), member.encode_to_vec());
        context.note(Change::MemberAdded { node, address: member.address });
    }
    Ok(proto::Outcome { id, ..proto::Outcome::default() })
}

/// One more than the highest id ever: that of a removed member is not used again.
fn allocate<V: ViewMut + Records>(context: &mut Context<'_, V>) -> Step<u64, V> {
    let id = context.counter(Counter::NextNode, 1)?;
    context.set_counter(Counter::NextNode, id + 1);
    Ok(id)
}
