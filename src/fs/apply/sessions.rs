//! Sessions begin, end, and get inode numbers.
//!
//! An ended session leaves a tombstone: its outcomes can be asked for until its node opens the next
//! one. The tombstone itself stays a while longer, so that a late copy of the command that opened the
//! session is refused instead of ending the node's present one. One that comes for the first time, although its daemon is
//! dead and the next one has opened a session, is known by what that daemon had applied.

use prost::Message;

use super::context::{Context, Step, Stop};
use super::{locks, orphans};
use crate::fs::applied::{Change, FileEffect};
use crate::fs::errno::Errno;
use crate::fs::keys::{self, Counter};
use crate::fs::limits::{FIRST_GRANT, GRANT_MAX, GRANTS_KEPT, INO_END, TOMBSTONES_KEPT};
use crate::fs::proto;
use crate::fs::query;
use crate::fs::record::Records;
use crate::fs::view::ViewMut;
use crate::types::{Ino, NodeId, SessionId};

pub(super) fn open<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    op: &proto::SessionOpen,
) -> Step<proto::Outcome, V> {
    let node = NodeId(op.node);
    if node == NodeId(0) {
        return Err(Errno::EINVAL.into());
    }
    let mut live = query::sessions(context.view).map_err(Stop::View)?;
    live.retain(|(_, session)| session.node == op.node);
    if let Some((id, session)) = live.iter().find(|(_, session)| session.nonce == op.nonce) {
        return Ok(opened(*id, session.granted.first().copied()));
    }
    let ended = query::tombstones(context.view, node).map_err(Stop::View)?;
    if ended.iter().any(|(_, session)| session.nonce == op.nonce) {
        return Err(Errno::ESTALE.into());
    }
    let newest = live.iter().chain(&ended).map(|(id, _)| id.0).max();
    if op.applied.is_some_and(|applied| newest > Some(applied)) {
        return Err(Errno::ESTALE.into());
    }
    let range = allocate(context, FIRST_GRANT)?;

    let mut past: Vec<SessionId> = ended.iter().map(|(id, _)| *id).collect();
    for (id, session) in live {
        past.push(id);
        bury(context, id, session)?;
    }
    forget(context, node, &past)?;

    let id = SessionId(context.at.index.0);
    let session = proto::Session {
        node: op.node,
        nonce: op.nonce,
        principal: op.principal.clone(),
        granted: vec![range],
        lowest: 1,
        strong: op.strong,
    };
    context.view.put(keys::session(id), session.encode_to_vec());
    context.note(Change::SessionOpened { session: id, node, strong: op.strong });
    Ok(opened(id, Some(range)))
}

/// Ending what is not live changes nothing: so a retry is harmless.
pub(super) fn end<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    op: &proto::SessionEnd,
) -> Step<proto::Outcome, V> {
    let id = SessionId(op.session);
    if let Some(session) = query::session(context.view, id).map_err(Stop::View)? {
        bury(context, id, session)?;
    }
    Ok(proto::Outcome::default())
}

pub(super) fn grant<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    count: u64,
) -> Step<proto::Outcome, V> {
    if !(1..=GRANT_MAX).contains(&count) {
        return Err(Errno::EINVAL.into());
    }
    let range = allocate(context, count)?;
    let granted = &mut context.session_record.granted;
    if granted.len() >= GRANTS_KEPT {
        granted.remove(0);
    }
    granted.push(range);
    context.view.put(keys::session(context.session), context.session_record.encode_to_vec());
    Ok(proto::Outcome { granted: Some(range), ..proto::Outcome::default() })
}

/// Inode numbers that nobody was ever granted.
fn allocate<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    count: u64,
) -> Step<proto::InoRange, V> {
    let first = context.counter(Counter::NextIno, Ino::ROOT.0 + 1)?;
    let end = first.checked_add(count).filter(|&end| end <= INO_END).ok_or(Errno::ENOSPC)?;
    context.set_counter(Counter::NextIno, end);
    Ok(proto::InoRange { first, end })
}

/// Turns a live session into a tombstone.
fn bury<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    id: SessionId,
    mut session: proto::Session,
) -> Step<(), V> {
    let node = NodeId(session.node);
    session.granted.clear();
    context.view.delete(keys::session(id));
    context.view.put(keys::tombstone(node, id), session.encode_to_vec());
    locks::release_all(context, id)?;
    orphans::release_all(context, id)?;
    context.order(FileEffect::EndStages { session: id });
    context.note(Change::SessionEnded { session: id, node });
    Ok(())
}

/// Drops the outcomes of a node's ended sessions (ascending), and the oldest tombstones.
fn forget<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    node: NodeId,
    past: &[SessionId],
) -> Step<(), V> {
    for &id in past {
        context.delete_range(keys::outcomes(id))?;
    }
    for &id in &past[..past.len().saturating_sub(TOMBSTONES_KEPT)] {
        context.view.delete(keys::tombstone(node, id));
    }
    Ok(())
}

fn opened(id: SessionId, granted: Option<proto::InoRange>) -> proto::Outcome {
    proto::Outcome { id: id.0, granted, ..proto::Outcome::default() }
}
