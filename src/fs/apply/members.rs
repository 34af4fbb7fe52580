//! Members of the cluster: their ids, their addresses, and who is to vote.

use prost::Message;

use super::context::{Context, Step, Stop};
use crate::fs::applied::Change;
use crate::fs::errno::Errno;
use crate::fs::keys::{self, Counter};
use crate::fs::proto;
use crate::fs::query;
use crate::fs::record::Records;
use crate::fs::view::ViewMut;
use crate::types::{NodeId, Suffrage};

pub(super) fn add<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    op: &proto::AddMember,
) -> Step<proto::Outcome, V> {
    let proto::AddMember { nonce, ref address, learner } = *op;
    if address.is_empty() {
        return Err(Errno::EINVAL.into());
    }
    let members = query::members(context.view).map_err(Stop::View)?;
    let joined = members.iter().find(|member| nonce != 0 && member.nonce == nonce);
    let announced = || members.iter().find(|m| m.nonce == 0 && m.address == *address);
    let known = joined.or_else(announced).cloned();
    let member = match known.clone() {
        Some(member) => proto::Member { nonce, address: address.clone(), ..member },
        None => {
            proto::Member { node: allocate(context)?, address: address.clone(), nonce, learner }
        }
    };
    let id = member.node;
    if known.as_ref() != Some(&member) {
        put(context, member);
    }
    Ok(proto::Outcome { id, ..proto::Outcome::default() })
}

/// Its sessions are left alone: they may hold a lease, and end when it has lapsed.
pub(super) fn remove<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    op: proto::RemoveMember,
) -> Step<proto::Outcome, V> {
    let node = NodeId(op.node);
    let members = query::members(context.view).map_err(Stop::View)?;
    if !members.iter().any(|member| member.node == node.0) {
        return Err(Errno::ENOENT.into());
    }
    let votes = |member: &proto::Member| query::suffrage(member) == Some(Suffrage::Voter);
    if !members.iter().any(|member| member.node != node.0 && votes(member)) {
        return Err(Errno::EBUSY.into());
    }
    context.view.delete(keys::member(node));
    context.note(Change::MemberRemoved { node });
    Ok(proto::Outcome::default())
}

pub(super) fn promote<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    op: proto::PromoteMember,
) -> Step<proto::Outcome, V> {
    let member = context.view.record::<proto::Member>(&keys::member(NodeId(op.node)));
    let member = member.map_err(Stop::View)?.ok_or(Errno::ENOENT)?;
    if member.learner {
        put(context, proto::Member { learner: false, ..member });
    }
    Ok(proto::Outcome::default())
}

fn put<V: ViewMut + Records>(context: &mut Context<'_, V>, member: proto::Member) {
    let node = NodeId(member.node);
    context.view.put(keys::member(node), member.encode_to_vec());
    let suffrage = query::suffrage(&member);
    context.note(Change::MemberChanged { node, address: member.address, suffrage });
}

/// One more than the highest id ever: that of a removed member is not used again.
fn allocate<V: ViewMut + Records>(context: &mut Context<'_, V>) -> Step<u64, V> {
    let id = context.counter(Counter::NextNode, 1)?;
    context.set_counter(Counter::NextNode, id + 1);
    Ok(id)
}
