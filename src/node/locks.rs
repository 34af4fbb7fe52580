//! Locks, as a mount asks for them: decided here while the inode's locks are delegated to this node's
//! session, by a command of the log otherwise. What has to wait waits in the replicated state.
//!
//! Commands about the locks of one inode go out one at a time, so that none of them crosses a
//! delegation. One without an answer is cancelled before anything else about these locks is said: a
//! late copy of it must not give anybody a lock, nor take one away.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::deadline::Deadline;
use super::handle::{Handle, NodeError};
use crate::consensus::Wait;
use crate::fs::proto::{self, LockAnswer, LockMode, command::Op};
use crate::fs::{Change, Delegations, Local, WHOLE_FILE};
use crate::types::{Ino, LogIndex, Seq, SessionId};

/// Inodes share as many turns.
const TURNS: u64 = 64;
/// How often somebody who waits for a lock looks whether it is to be interrupted.
const LOOK: Duration = Duration::from_millis(50);

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locked {
    /// Never `Queued`; `Cancelled` where it was interrupted, `Unspecified` where the inode is gone.
    pub answer: LockAnswer,
    /// Who has it, where it was refused.
    pub conflict: Option<proto::Lock>,
    /// The session that has the lock, where it was granted: it ends with that.
    pub session: SessionId,
}

/// What this node knows of locks.
#[derive(Debug)]
pub(super) struct Locks {
    inner: Mutex<Inner>,
    changed: watch::Sender<()>,
    turns: Vec<Arc<Semaphore>>,
    to_return: UnboundedSender<(SessionId, Ino)>,
}

#[derive(Debug, Default)]
struct Inner {
    session: SessionId,
    delegations: Delegations,
    /// Answers to queued requests that nobody has picked up yet.
    answers: HashMap<Seq, (LockAnswer, Option<proto::Lock>)>,
}

impl Locks {
    /// The second value is for [`give_back`].
    pub(super) fn new() -> (Self, UnboundedReceiver<(SessionId, Ino)>) {
        let (to_return, returning) = tokio::sync::mpsc::unbounded_channel();
        let turns = (0..TURNS).map(|_| Arc::new(Semaphore::new(1))).collect();
        let (changed, _) = watch::channel(());
        (Self { inner: Mutex::default(), changed, turns, to_return }, returning)
    }

    /// Another session, or none: all locks of the last one are gone.
    pub(super) fn begin(&self, session: SessionId) {
        *self.inner.lock() = Inner { session, ..Inner::default() };
        self.changed.send_replace(());
    }

    /// Follows what was applied, in its order.
    pub(super) fn applied(&self, change: &Change) {
        let mut inner = self.inner.lock();
        let own = inner.session;
        match change {
            Change::LocksDelegated { ino, session, at, held } if *session == own => {
                inner.delegations.delegate(*ino, *at, held.clone());
            }
            Change::LocksRecalled { ino, session } if *session == own => {
                self.recall(&mut inner, *ino);
            }
            Change::LocksReturned { ino, session } if *session == own => {
                inner.delegations.returned(*ino);
            }
            Change::LockAnswered { session, seq, answer, conflict } if *session == own => {
                inner.answers.insert(*seq, (*answer, *conflict));
            }
            _ => return,
        }
        drop(inner);
        self.changed.send_replace(());
    }

    /// Returns what nobody has used for a while.
    pub(super) fn return_unused(&self) {
        let mut inner = self.inner.lock();
        for ino in inner.delegations.grown_idle() {
            self.recall(&mut inner, ino);
        }
    }

    /// Has an operation done here, if it can be; none while there is no such session.
    fn decide(
        &self,
        session: SessionId,
        ino: Ino,
        decide: impl Fn(SessionId, &mut Delegations) -> Local,
    ) -> Option<Local> {
        let mut inner = self.inner.lock();
        if inner.session != session {
            return None;
        }
        let local = decide(session, &mut inner.delegations);
        if local == Local::HasToWait {
            self.recall(&mut inner, ino);
        }
        Some(local)
    }

    fn recall(&self, inner: &mut Inner, ino: Ino) {
        if inner.delegations.recall(ino) {
            // Its receiver is gone only when the node stops.
            let _ = self.to_return.send((inner.session, ino));
        }
    }

    fn turn_of(&self, ino: Ino) -> Arc<Semaphore> {
        self.turns[usize::try_from(ino.0 % TURNS).expect("few")].clone()
    }

    fn take_answer(
        &self,
        session: SessionId,
        seq: Seq,
    ) -> Option<(LockAnswer, Option<proto::Lock>)> {
        let mut inner = self.inner.lock();
        if inner.session == session { inner.answers.remove(&seq) } else { None }
    }
}

/// Where an operation on locks is done.
enum Place {
    Here(SessionId, LockAnswer, Option<proto::Lock>),
    /// By a command of this session. Whoever holds the turn is the only one about this inode.
    InTheLog(SessionId, OwnedSemaphorePermit),
}

impl Handle {
    /// Asks for a lock of the owner that `lock` names (its session is this node's). In mode `Wait` it
    /// waits for as long as others have it, unless `interrupted` says that it is not to.
    ///
    /// # Errors
    /// [`NodeError::Deadline`] where no quorum answers. All that the owner has of this inode is released
    /// then, as soon as that can be done: nobody knows whether the lock was granted.
    pub async fn request_lock(
        &self,
        ino: Ino,
        lock: proto::Lock,
        mode: LockMode,
        interrupted: impl Fn() -> bool,
    ) -> Result<Locked, NodeError> {
        loop {
            let place = self.place(ino, |session, here| {
                let lock = proto::Lock { session: session.0, ..lock };
                here.request(ino, &lock, mode)
            });
            let (session, answered) = match place.await? {
                Place::Here(session, answer, conflict) => {
                    if answer == LockAnswer::Granted {
                        self.flush_other_mounts(ino).await;
                    }
                    (session, Ok((answer, conflict)))
                }
                Place::InTheLog(session, turn) => {
                    let asked =
                        self.request_in_the_log(turn, session, (ino, lock), mode, &interrupted);
                    (session, asked.await)
                }
            };
            let (answer, conflict) = answered.or_else(|error| match error {
                // What the session asked for is void, so it can be asked for again.
                NodeError::SessionLost => Ok((LockAnswer::Queued, None)),
                error => Err(error),
            })?;
            if answer == LockAnswer::Granted {
                // Without the lease the session may have ended since, and others have the lock.
                while !self.may_serve(LogIndex(0)) {
                    self.until_servable(LogIndex(0)).await?;
                }
            }
            let is_lost = answer == LockAnswer::Granted && self.session() != session;
            if answer != LockAnswer::Queued && !is_lost {
                return Ok(Locked { answer, conflict, session });
            }
            if interrupted() {
                return Ok(Locked { answer: LockAnswer::Cancelled, conflict, session });
            }
            self.until_session_after(session).await?;
        }
    }

    async fn request_in_the_log(
        &self,
        turn: OwnedSemaphorePermit,
        session: SessionId,
        (ino, lock): (Ino, proto::Lock),
        mode: LockMode,
        interrupted: &impl Fn() -> bool,
    ) -> Result<(LockAnswer, Option<proto::Lock>), NodeError> {
        let request = proto::RequestLock { ino: ino.0, lock: Some(lock), mode: mode.into() };
        let asked = self.lock_command(turn, session, (ino, lock.owner), Op::RequestLock(request));
        let (outcome, seq) = asked.await?;
        if outcome.lock() == LockAnswer::Queued {
            return self.until_answered(session, (ino, lock.owner), seq, mode, interrupted).await;
        }
        Ok((outcome.lock(), outcome.conflict))
    }

    /// Releases all that an owner has of an inode as soon as that can be done; nobody waits.
    pub fn unlock_later(&self, ino: Ino, owner: u64) {
        tokio::spawn(undo(self.clone(), None, self.session(), (ino, owner), None));
    }

    /// Releases bytes of an owner, from `start` to `end`, both included. Answers the session in which they were, or
    /// nothing where that has taken them along.
    ///
    /// # Errors
    /// As [`Self::request_lock`].
    pub async fn unlock(
        &self,
        ino: Ino,
        owner: u64,
        start: u64,
        end: u64,
    ) -> Result<Option<SessionId>, NodeError> {
        let place =
            self.place(ino, |session, here| here.release(ino, (session.0, owner), start, end));
        match place.await? {
            Place::Here(session, ..) => Ok(Some(session)),
            Place::InTheLog(session, turn) => {
                let unlock = Op::Unlock(proto::Unlock { ino: ino.0, owner, start, end });
                match self.lock_command(turn, session, (ino, owner), unlock).await {
                    Ok(_) => Ok(Some(session)),
                    Err(NodeError::SessionLost) => Ok(None),
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// Whether the locks of an inode are decided here now: nobody else has any.
    #[must_use]
    pub fn decides_locks(&self, ino: Ino) -> bool {
        self.0.locks.inner.lock().delegations.decides(ino)
    }

    /// While locks are decided here, unlocking commits nothing: what other mounts of this node wrote under
    /// them has to be seen now.
    async fn flush_other_mounts(&self, ino: Ino) {
        let observers = self.0.observers.all();
        for (_, observer) in observers.iter().filter(|(mount, _)| Some(*mount) != self.1) {
            observer.clone().flush(ino).await;
        }
    }

    /// Finds out where an operation is to be done, and does it if that is here.
    async fn place(
        &self,
        ino: Ino,
        decide: impl Fn(SessionId, &mut Delegations) -> Local,
    ) -> Result<Place, NodeError> {
        let locks = &self.0.locks;
        let mut changed = locks.changed.subscribe();
        let deadline = Deadline::current();
        let mut turn = None;
        loop {
            let session = self.session();
            // Without the lease others may have these locks by now.
            if !self.may_serve(LogIndex(0)) {
                self.until_servable(LogIndex(0)).await?;
                continue;
            }
            match (locks.decide(session, ino, &decide), turn.take()) {
                (Some(Local::Done(answer, conflict)), _) => {
                    return Ok(Place::Here(session, answer, conflict));
                }
                (Some(Local::NotHere), Some(turn)) => return Ok(Place::InTheLog(session, turn)),
                // Then it is looked at once more: they may have been delegated meanwhile.
                (Some(Local::NotHere), None) => turn = Some(self.lock_turn(ino, &deadline).await?),
                (Some(Local::Returning | Local::HasToWait) | None, _) => {
                    let waited = self.within_deadline(&deadline, changed.changed()).await?;
                    waited.map_err(|_| NodeError::Stopping)?;
                }
            }
        }
    }

    async fn lock_turn(
        &self,
        ino: Ino,
        deadline: &Deadline,
    ) -> Result<OwnedSemaphorePermit, NodeError> {
        let turn = self.0.locks.turn_of(ino);
        let acquired = self.within_deadline(deadline, turn.acquire_owned()).await?;
        Ok(acquired.expect("a turn is never closed"))
    }

    /// Has a command about an owner's locks applied; answers its number too.
    async fn lock_command(
        &self,
        turn: OwnedSemaphorePermit,
        session: SessionId,
        (ino, owner): (Ino, u64),
        op: Op,
    ) -> Result<(proto::Outcome, Seq), NodeError> {
        let pending = self.submit_in(Some(session), op, Wait::Here, None);
        let number = pending.number();
        let answer = pending.await;
        match (answer, number.get()) {
            (Ok(outcome), Some(seq)) => Ok((outcome, seq)),
            (Err(error @ (NodeError::Deadline | NodeError::Interrupted)), Some(seq)) => {
                tracing::warn!(%ino, owner, "a command about locks was not answered: cancelling it");
                tokio::spawn(undo(self.clone(), Some(turn), session, (ino, owner), Some(seq)));
                Err(error)
            }
            (answer, _) => answer.and(Err(NodeError::Deadline)),
        }
    }

    /// Waits for the answer to a queued request: without a deadline only where that was asked for.
    async fn until_answered(
        &self,
        session: SessionId,
        (ino, owner): (Ino, u64),
        seq: Seq,
        mode: LockMode,
        interrupted: &impl Fn() -> bool,
    ) -> Result<(LockAnswer, Option<proto::Lock>), NodeError> {
        let deadline = Deadline::current();
        let locks = &self.0.locks;
        let mut changed = locks.changed.subscribe();
        loop {
            if let Some(answer) = locks.take_answer(session, seq) {
                return Ok(answer);
            }
            if self.session() != session {
                return Err(NodeError::SessionLost);
            }
            if interrupted() {
                // Whoever was interrupted may be gone, and its request must go all the same.
                let cancelling = self.cancel_waiting(session, ino, owner, seq);
                return Deadline::of_node().covers(cancelling).await;
            }
            if mode != LockMode::Wait
                && let Err(error) = self.check(&deadline)
            {
                tokio::spawn(undo(self.clone(), None, session, (ino, owner), Some(seq)));
                return Err(error);
            }
            // Woken by whatever changes; an interruption is nothing that anybody says.
            let _ = tokio::time::timeout(LOOK, changed.changed()).await;
        }
    }

    /// Takes a request out of the queue, or its answer, which came first.
    async fn cancel_waiting(
        &self,
        session: SessionId,
        ino: Ino,
        owner: u64,
        seq: Seq,
    ) -> Result<(LockAnswer, Option<proto::Lock>), NodeError> {
        let Ok(turn) = self.lock_turn(ino, &Deadline::current()).await else {
            tokio::spawn(undo(self.clone(), None, session, (ino, owner), Some(seq)));
            return Err(NodeError::Deadline);
        };
        let cancel = Op::CancelLock(proto::CancelLock { ino: ino.0, seq: seq.0 });
        match self.submit_in(Some(session), cancel, Wait::Here, None).await {
            Ok(outcome) if outcome.lock() == LockAnswer::Cancelled => {
                Ok((LockAnswer::Cancelled, None))
            }
            Ok(_) => self.0.locks.take_answer(session, seq).ok_or(NodeError::SessionLost),
            Err(NodeError::Deadline) => {
                tokio::spawn(undo(self.clone(), Some(turn), session, (ino, owner), Some(seq)));
                Err(NodeError::Deadline)
            }
            Err(error) => Err(error),
        }
    }

    /// Waits for the session that comes after this one.
    async fn until_session_after(&self, session: SessionId) -> Result<(), NodeError> {
        let mut sessions = self.0.session.subscribe();
        let another = async {
            // What it shows holds a lock, which must not be kept.
            sessions.wait_for(|now| now.is_some_and(|now| now != session)).await.map(drop)
        };
        self.within(another).await?.map_err(|_| NodeError::Stopping)
    }
}

/// Makes sure that a command (if it is about one) never has an effect any more, then that its owner has
/// nothing of the inode.
/// Goes on until that is said, or the session has ended, which says it too.
async fn undo(
    handle: Handle,
    turn: Option<OwnedSemaphorePermit>,
    session: SessionId,
    (ino, owner): (Ino, u64),
    seq: Option<Seq>,
) {
    let semaphore = handle.0.locks.turn_of(ino);
    let turn = match turn {
        Some(turn) => turn,
        None => semaphore.acquire_owned().await.expect("a turn is never closed"),
    };
    let mut unanswered: Vec<Seq> = seq.into_iter().collect();
    let submit = |op| handle.submit_in(Some(session), op, Wait::Here, None);
    while handle.session() == session {
        while let Some(seq) = unanswered.last() {
            let cancel = Op::CancelLock(proto::CancelLock { ino: ino.0, seq: seq.0 });
            match submit(cancel).await {
                Ok(_) => {
                    handle.0.locks.take_answer(session, *seq);
                    unanswered.pop();
                }
                Err(NodeError::Deadline) => {}
                Err(_) => return,
            }
        }
        let mut changed = handle.0.locks.changed.subscribe();
        let local = {
            let delegations = &mut handle.0.locks.inner.lock().delegations;
            delegations.release(ino, (session.0, owner), 0, WHOLE_FILE)
        };
        match local {
            Local::Done(..) | Local::HasToWait => break,
            Local::Returning => drop(changed.changed().await),
            Local::NotHere => {
                let all = proto::Unlock { ino: ino.0, owner, start: 0, end: WHOLE_FILE };
                let pending = submit(Op::Unlock(all));
                let number = pending.number();
                match (pending.await, number.get()) {
                    (Err(NodeError::Deadline), Some(seq)) => unanswered.push(seq),
                    (Err(NodeError::Deadline), None) => {}
                    (Ok(_) | Err(_), _) => break,
                }
            }
        }
    }
    drop(turn);
}

/// Returns what is recalled, after the mount has committed what was written under these locks. Runs for
/// ever.
pub(super) async fn give_back(handle: Handle, mut recalled: UnboundedReceiver<(SessionId, Ino)>) {
    while let Some((session, ino)) = recalled.recv().await {
        tokio::spawn(return_locks(handle.clone(), session, ino));
    }
}

async fn return_locks(handle: Handle, session: SessionId, ino: Ino) {
    for (_, observer) in handle.0.observers.all().iter() {
        observer.clone().flush(ino).await;
    }
    let mut delegated_at = None;
    loop {
        let command = {
            let inner = handle.0.locks.inner.lock();
            if inner.session == session { inner.delegations.to_return(ino) } else { None }
        };
        // Returned, or the session's end has returned them.
        let Some(command) = command else { return };
        if *delegated_at.get_or_insert(command.delegated_at) != command.delegated_at {
            // They were delegated again, and are another's to return.
            return;
        }
        // A copy that comes late is known by its index to be about an earlier delegation.
        let returned = handle.submit_in(Some(session), Op::ReturnLocks(command), Wait::Here, None);
        match returned.await {
            Ok(_) | Err(NodeError::Deadline) => {}
            Err(_) => return,
        }
    }
}
