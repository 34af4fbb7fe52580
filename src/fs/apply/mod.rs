//! `apply`: from a committed command to changes of the state. One file for each group of operations;
//! adding one is its function and an arm in [`execute`].
//!
//! Every operation checks everything first and changes the view only then: a refused command leaves
//! nothing behind but its outcome.

mod acl;
mod allocate;
mod attributes;
mod context;
mod copy;
mod link;
mod locks;
mod lost;
mod make;
mod members;
mod orphans;
mod rename;
mod sessions;
mod unlink;
mod window;
mod write;
mod xattr;

use bytes::Bytes;
use prost::Message;

use self::context::{Context, Step, Stop};
use self::window::Admission;
use super::Position;
use super::applied::Applied;
use super::errno::Errno;
use super::keys;
use super::proto::{self, command::Op};
use super::record::Records;
use super::view::ViewMut;
use crate::types::{Seq, SessionId};

/// A command from an entry of the log. Bytes to be written are not copied.
///
/// # Errors
/// When the entry is no command, or one of a newer version: whoever went on without it would differ from the others.
pub fn decode(entry: Bytes) -> Result<proto::Command, NoCommand> {
    let command = proto::Command::decode(entry)?;
    if command.op.is_some() { Ok(command) } else { Err(NoCommand::Unknown) }
}

/// Why an entry of the log is no command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoCommand {
    /// Its bytes are something else.
    #[error("cannot be decoded: {0}")]
    Undecodable(#[from] prost::DecodeError),
    /// An operation that a later version has added.
    #[error(
        "is of a kind that this version of quorumfs does not know: start the newer version that this node ran before, or \
         that the other nodes run"
    )]
    Unknown,
}

/// Applies the command at a position of the log. Applied again, it gives its first outcome and
/// changes nothing (see the exactly-once rule in the design). [`Errno::ESTALE`] as the outcome of a
/// whole command means that its session is gone, or that it was answered so long ago that its
/// outcome is forgotten; [`Errno::EAGAIN`], that it overtook more than a window of others. Both leave
/// no outcome, and nothing was changed.
///
/// # Errors
/// When this replica cannot read its own state. The view's changes are to be thrown away then.
pub fn apply<V: ViewMut + Records>(
    view: &mut V,
    at: Position,
    command: &proto::Command,
) -> Result<Applied, V::Error> {
    let session = SessionId(command.session);
    if session == SessionId::CLUSTER {
        return run(view, at, command, proto::Session::default());
    }
    match window::admit(view, command)? {
        Admission::Answered(outcome) => Ok(Applied { outcome: *outcome, ..Applied::default() }),
        Admission::Refused(errno) => Ok(Applied { outcome: refused(errno), ..Applied::default() }),
        Admission::New(record) => {
            let applied = run(view, at, command, record)?;
            let key = keys::outcome(session, Seq(command.seq));
            view.put(key, applied.outcome.encode_to_vec());
            Ok(applied)
        }
    }
}

fn run<V: ViewMut + Records>(
    view: &mut V,
    at: Position,
    command: &proto::Command,
    session: proto::Session,
) -> Result<Applied, V::Error> {
    let mut context = Context::new(view, at, command, session);
    let outcome = match execute(&mut context, command.op.as_ref()) {
        Ok(outcome) => outcome,
        Err(Stop::Refused(errno)) => {
            debug_assert!(context.is_unchanged(), "an operation checks before it changes");
            refused(errno)
        }
        Err(Stop::View(error)) => return Err(error),
    };
    Ok(context.into_applied(outcome))
}

fn execute<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    op: Option<&Op>,
) -> Step<proto::Outcome, V> {
    let op = op.ok_or(Errno::ENOSYS)?;
    if !may_propose(context.is_cluster(), op) {
        return Err(Errno::EINVAL.into());
    }
    match op {
        Op::Make(op) => make::make(context, op),
        Op::Link(op) => link::link(context, op),
        Op::Unlink(op) => unlink::unlink(context, op),
        Op::Rmdir(op) => unlink::rmdir(context, op),
        Op::Rename(op) => rename::rename(context, op),
        Op::SetAttr(op) => attributes::set_attr(context, op),
        Op::SetXattr(op) => xattr::set(context, op),
        Op::RemoveXattr(op) => xattr::remove(context, op),
        Op::Write(op) => write::write(context, op),
        Op::Allocate(op) => allocate::allocate(context, op),
        Op::CopyRange(op) => copy::copy(context, op),
        Op::AcceptLost(op) => lost::accept(context, op),
        Op::ReleaseOrphans(op) => orphans::release(context, op),
        Op::GrantInodes(op) => sessions::grant(context, op.count),
        Op::Touch(op) => attributes::touch(context, op),
        Op::RequestLock(op) => locks::request(context, op),
        Op::Unlock(op) => locks::unlock(context, op),
        Op::CancelLock(op) => locks::cancel(context, op),
        Op::ReturnLocks(op) => locks::take_back(context, op),
        Op::SessionOpen(op) => sessions::open(context, op),
        Op::SessionEnd(op) => sessions::end(context, op),
        Op::AddMember(op) => members::add(context, op),
        Op::RemoveMember(op) => members::remove(context, *op),
        Op::PromoteMember(op) => members::promote(context, *op),
        // Whoever applies it compares: the state stays as it is.
        Op::Attest(_) => Ok(proto::Outcome::default()),
    }
}

/// What is idempotent by its own keys comes from the cluster; everything else needs a session, whose
/// outcomes make it so. A session is ended by itself or by a leader.
fn may_propose(is_cluster: bool, op: &Op) -> bool {
    match op {
        Op::SessionOpen(_)
        | Op::AddMember(_)
        | Op::RemoveMember(_)
        | Op::PromoteMember(_)
        | Op::Attest(_) => is_cluster,
        Op::SessionEnd(_) => true,
        Op::Make(_)
        | Op::Link(_)
        | Op::Unlink(_)
        | Op::Rmdir(_)
        | Op::Rename(_)
        | Op::SetAttr(_)
        | Op::SetXattr(_)
        | Op::RemoveXattr(_)
        | Op::Write(_)
        | Op::Allocate(_)
        | Op::CopyRange(_)
        | Op::AcceptLost(_)
        | Op::ReleaseOrphans(_)
        | Op::GrantInodes(_)
        | Op::Touch(_)
        | Op::RequestLock(_)
        | Op::Unlock(_)
        | Op::CancelLock(_)
        | Op::ReturnLocks(_) => !is_cluster,
    }
}

fn refused(errno: Errno) -> proto::Outcome {
    proto::Outcome { errno: errno.number(), ..proto::Outcome::default() }
}
