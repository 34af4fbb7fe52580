//! Locks: who has which, who waits, and whom they are delegated to.
//!
//! | the inode's locks are | a request is |
//! |---|---|
//! | nobody's, or of several sessions | decided here; queued where it has to wait |
//! | delegated | queued, and the delegate asked to return them |
//!
//! They are delegated when the only session that has any is granted one and nobody waits: a program that
//! has a file for itself then locks it as fast as a local file. The queue is served in the order of
//! arrival whenever a lock goes or the locks come back.

use std::collections::BTreeSet;

use prost::Message;

use super::context::{Context, Step, Stop};
use crate::fs::applied::Change;
use crate::fs::errno::Errno;
use crate::fs::keys::{self, Parsed};
use crate::fs::limits::LOCKS_MAX;
use crate::fs::locks::{Decision, LockTable};
use crate::fs::pages::Pages;
use crate::fs::proto::{self, LockAnswer, LockMode};
use crate::fs::record::{self, Records};
use crate::fs::view::ViewMut;
use crate::types::{Ino, LogIndex, Seq, SessionId};

const PAGE: usize = 64;

/// The locks of one inode on their way through an operation.
struct Locks {
    ino: Ino,
    table: LockTable,
    waiting: Vec<proto::WaitingLock>,
    delegate: Option<Delegate>,
}

/// Whom they are delegated to.
struct Delegate {
    session: SessionId,
    at: LogIndex,
    recalled: bool,
}

pub(super) fn request<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    op: &proto::RequestLock,
) -> Step<proto::Outcome, V> {
    let wanted = op.lock.filter(|lock| lock.start <= lock.end).ok_or(Errno::EINVAL)?;
    let wanted = proto::Lock { session: context.session.0, ..wanted };
    let mode = op.mode();
    if mode == LockMode::Unspecified {
        return Err(Errno::EINVAL.into());
    }
    let ino = context.inode(Ino(op.ino))?.ino;
    let mut locks = load(context, ino)?;
    if locks.waiting.len() >= LOCKS_MAX {
        return Ok(answered(LockAnswer::TooMany, None));
    }
    if let Some(delegate) = &mut locks.delegate {
        if !std::mem::replace(&mut delegate.recalled, true) {
            context.note(Change::LocksRecalled { ino, session: delegate.session });
        }
        enqueue(context, &mut locks, wanted, mode);
        save(context, &locks);
        return Ok(answered(LockAnswer::Queued, None));
    }
    let Decision { answer, conflict } = locks.table.request(&wanted, mode);
    match answer {
        LockAnswer::Queued if would_deadlock(context, &locks.table, &wanted)? => {
            return Ok(answered(LockAnswer::Deadlock, None));
        }
        LockAnswer::Queued => enqueue(context, &mut locks, wanted, mode),
        LockAnswer::Granted => delegate_where_alone(context, &mut locks),
        LockAnswer::Refused
        | LockAnswer::Free
        | LockAnswer::TooMany
        | LockAnswer::Deadlock
        | LockAnswer::Cancelled
        | LockAnswer::Unspecified => return Ok(answered(answer, conflict)),
    }
    save(context, &locks);
    Ok(answered(answer, conflict))
}

pub(super) fn unlock<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    op: &proto::Unlock,
) -> Step<proto::Outcome, V> {
    if op.start > op.end {
        return Err(Errno::EINVAL.into());
    }
    let mut locks = load(context, Ino(op.ino))?;
    if locks.delegate.is_none() {
        locks.table.release((context.session.0, op.owner), op.start, op.end);
        serve_queue(context, &mut locks);
        save(context, &locks);
        refuse_deadlocks(context, &mut locks)?;
    }
    Ok(proto::Outcome::default())
}

/// Leaves an outcome for a command that has none, so that a late copy of it does nothing.
pub(super) fn cancel<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    op: &proto::CancelLock,
) -> Step<proto::Outcome, V> {
    let mut locks = load(context, Ino(op.ino))?;
    let asked = |waiting: &proto::WaitingLock| {
        waiting.seq == op.seq && waiting.session() == context.session
    };
    if let Some(place) = locks.waiting.iter().position(asked) {
        let waiting = locks.waiting.remove(place);
        context.view.delete(waiting.key());
        save(context, &locks);
        return Ok(answered(LockAnswer::Cancelled, None));
    }
    let key = keys::outcome(context.session, Seq(op.seq));
    let known = context.view.record::<proto::Outcome>(&key).map_err(Stop::View)?;
    let never = answered(LockAnswer::Cancelled, None);
    // It was given up before it came.
    if known.as_ref().is_some_and(|outcome| outcome.errno == Errno::ESTALE.number()) {
        return Ok(never);
    }
    // What is below the window was answered, and will not be admitted again.
    if known.is_some() || op.seq < context.session_record.lowest || op.seq >= context.seq.0 {
        return Ok(answered(LockAnswer::Unspecified, None));
    }
    context.view.put(key, never.encode_to_vec());
    Ok(never)
}

/// The delegate returns what it has.
pub(super) fn take_back<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    op: &proto::ReturnLocks,
) -> Step<proto::Outcome, V> {
    let session = context.session;
    let mut locks = load(context, Ino(op.ino))?;
    let is_delegate = |delegate: &Delegate| {
        delegate.session == session && delegate.at == LogIndex(op.delegated_at)
    };
    if !locks.delegate.as_ref().is_some_and(is_delegate) {
        return Ok(proto::Outcome::default());
    }
    let held = op.held.iter().map(|lock| proto::Lock { session: session.0, ..*lock }).collect();
    locks.table = LockTable::new(held).ok_or(Errno::EINVAL)?;
    locks.delegate = None;
    context.note(Change::LocksReturned { ino: locks.ino, session });
    serve_queue(context, &mut locks);
    save(context, &locks);
    refuse_deadlocks(context, &mut locks)?;
    Ok(proto::Outcome::default())
}

/// Takes everything from a session that ends. Only then are the queues served: nobody is to wait for it.
pub(super) fn release_all<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    session: SessionId,
) -> Step<(), V> {
    let mut released = Vec::new();
    let mut pages = Pages::new(keys::all_locks(), PAGE);
    while let Some(page) = pages.next(context.view).map_err(Stop::View)? {
        for (key, _) in page {
            let Some(Parsed::Locks { ino }) = keys::parse(&key) else { continue };
            let mut locks = load(context, ino)?;
            if release_session(context, &mut locks, session) {
                save(context, &locks);
                released.push(ino);
            }
        }
    }
    for ino in released {
        let mut locks = load(context, ino)?;
        serve_queue(context, &mut locks);
        save(context, &locks);
        refuse_deadlocks(context, &mut locks)?;
    }
    Ok(())
}

/// Whether it had anything.
fn release_session<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    locks: &mut Locks,
    session: SessionId,
) -> bool {
    let queued = locks.waiting.len();
    for waiting in locks.waiting.extract_if(.., |one| one.session() == session) {
        context.view.delete(waiting.key());
    }
    let was_delegate = locks.delegate.as_ref().is_some_and(|one| one.session == session);
    if was_delegate {
        locks.delegate = None;
    }
    locks.table.release_session(session) || was_delegate || locks.waiting.len() < queued
}

/// The inode is gone, and with it whoever could have unlocked it.
pub(super) fn forget<V: ViewMut + Records>(context: &mut Context<'_, V>, ino: Ino) -> Step<(), V> {
    let key = keys::locks(ino);
    if context.view.get(&key).map_err(Stop::View)?.is_none() {
        return Ok(());
    }
    let locks = load(context, ino)?;
    for waiting in &locks.waiting {
        context.view.delete(waiting.key());
        tell(context, waiting, LockAnswer::Cancelled, None);
    }
    if let Some(delegate) = locks.delegate {
        context.note(Change::LocksReturned { ino, session: delegate.session });
    }
    context.view.delete(key);
    Ok(())
}

/// Answers, in their order, all who need not wait any more.
fn serve_queue<V: ViewMut + Records>(context: &mut Context<'_, V>, locks: &mut Locks) {
    if locks.delegate.is_some() {
        return;
    }
    let mut still = Vec::with_capacity(locks.waiting.len());
    for waiting in std::mem::take(&mut locks.waiting) {
        let wanted = waiting.lock.unwrap_or_default();
        match locks.table.request(&wanted, waiting.mode()) {
            Decision { answer: LockAnswer::Queued, .. } => still.push(waiting),
            Decision { answer, conflict } => {
                context.view.delete(waiting.key());
                tell(context, &waiting, answer, conflict);
            }
        }
    }
    locks.waiting = still;
}

/// While the locks were delegated nobody knew for whom the queue waits.
fn refuse_deadlocks<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    locks: &mut Locks,
) -> Step<(), V> {
    let mut place = 0;
    while let Some(waiting) = locks.waiting.get(place).copied() {
        if would_deadlock(context, &locks.table, &waiting.lock.unwrap_or_default())? {
            locks.waiting.remove(place);
            context.view.delete(waiting.key());
            tell(context, &waiting, LockAnswer::Deadlock, None);
            save(context, locks);
        } else {
            place += 1;
        }
    }
    Ok(())
}

/// Whether those who are in the way of a lock wait, one for the other, for its owner.
fn would_deadlock<V: ViewMut + Records>(
    context: &Context<'_, V>,
    table: &LockTable,
    wanted: &proto::Lock,
) -> Step<bool, V> {
    let mut in_the_way: Vec<_> = table.conflicts(wanted).map(proto::Lock::owner_key).collect();
    let mut seen = BTreeSet::new();
    while let Some((session, owner)) = in_the_way.pop() {
        if (session, owner) == wanted.owner_key() {
            return Ok(true);
        }
        if !seen.insert((session, owner)) {
            continue;
        }
        let mut pages = Pages::new(keys::lock_waits(SessionId(session), owner), PAGE);
        while let Some(page) = pages.next(context.view).map_err(Stop::View)? {
            for (key, value) in page {
                let wait: proto::LockWait =
                    record::decode(&key, &value).map_err(|corrupt| Stop::View(corrupt.into()))?;
                let locks = load(context, Ino(wait.ino))?;
                for waiting in locks.waiting.iter().filter(|waiting| waiting.key() == key) {
                    let wanted = waiting.lock.unwrap_or_default();
                    in_the_way.extend(locks.table.conflicts(&wanted).map(proto::Lock::owner_key));
                }
            }
        }
    }
    Ok(false)
}

fn delegate_where_alone<V: ViewMut + Records>(context: &mut Context<'_, V>, locks: &mut Locks) {
    let (ino, session, at) = (locks.ino, context.session, context.at.index);
    if locks.waiting.is_empty() && locks.table.is_only_of(session) {
        let held = std::mem::take(&mut locks.table).into_held();
        locks.delegate = Some(Delegate { session, at, recalled: false });
        context.note(Change::LocksDelegated { ino, session, at, held });
    }
}

fn enqueue<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    locks: &mut Locks,
    wanted: proto::Lock,
    mode: LockMode,
) {
    let seq = context.seq.0;
    let waiting = proto::WaitingLock { lock: Some(wanted), mode: mode.into(), seq };
    let wait = proto::LockWait { ino: locks.ino.0 };
    context.view.put(waiting.key(), wait.encode_to_vec());
    locks.waiting.push(waiting);
}

fn tell<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    waiting: &proto::WaitingLock,
    answer: LockAnswer,
    conflict: Option<proto::Lock>,
) {
    let (session, seq) = (waiting.session(), Seq(waiting.seq));
    context.note(Change::LockAnswered { session, seq, answer, conflict });
}

fn load<V: ViewMut + Records>(context: &Context<'_, V>, ino: Ino) -> Step<Locks, V> {
    let key = keys::locks(ino);
    let record: proto::Locks = context.view.record(&key).map_err(Stop::View)?.unwrap_or_default();
    let delegate = (record.delegate != 0).then_some(Delegate {
        session: SessionId(record.delegate),
        at: LogIndex(record.delegated_at),
        recalled: record.recalled,
    });
    let table = LockTable::stored(record.held);
    Ok(Locks { ino, table, waiting: record.waiting, delegate })
}

fn save<V: ViewMut + Records>(context: &mut Context<'_, V>, locks: &Locks) {
    let Locks { ino, table, waiting, delegate } = locks;
    let key = keys::locks(*ino);
    if table.is_empty() && waiting.is_empty() && delegate.is_none() {
        context.view.delete(key);
        return;
    }
    let record = proto::Locks {
        held: table.held().to_vec(),
        waiting: waiting.clone(),
        delegate: delegate.as_ref().map_or(0, |delegate| delegate.session.0),
        delegated_at: delegate.as_ref().map_or(0, |delegate| delegate.at.0),
        recalled: delegate.as_ref().is_some_and(|delegate| delegate.recalled),
    };
    context.view.put(key, record.encode_to_vec());
}

fn answered(answer: LockAnswer, conflict: Option<proto::Lock>) -> proto::Outcome {
    proto::Outcome { lock: answer.into(), conflict, ..proto::Outcome::default() }
}

impl proto::WaitingLock {
    /// Who asked.
    pub(crate) fn session(&self) -> SessionId {
        SessionId(self.lock.as_ref().map_or(0, |lock| lock.session))
    }

    /// Where its index entry is.
    pub(crate) fn key(&self) -> Vec<u8> {
        let owner = self.lock.as_ref().map_or(0, |lock| lock.owner);
        keys::lock_wait(self.session(), owner, Seq(self.seq))
    }
}
