//! The proposer's side of mutations: numbers, the window of unanswered ones, and who waits.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::oneshot;

use super::deadline::Deadline;
use super::{NodeError, clock};
use crate::consensus::{Input, Wait};
use crate::fs::limits::PRUNE_BATCH;
use crate::fs::proto::{Command, Outcome, Time, command::Op};
use crate::types::{Ino, MountId, NodeId, ProposalKey, Seq, SessionId, VolumeId};

/// Unanswered numbers span at most this much, so that the replicas' window (1,024) is never left.
const WINDOW: u64 = 1000;

/// The errno of a command that was refused because its session is gone: no command has it as its
/// own outcome.
const REFUSED: u32 = libc::ESTALE.unsigned_abs();

/// What comes back to whoever waits for a mutation.
pub(super) type Answer = oneshot::Receiver<Result<Outcome, NodeError>>;

/// The number of a mutation, from when it is proposed on.
#[derive(Clone, Debug, Default)]
pub(super) struct Number(Arc<AtomicU64>);

impl Number {
    /// None where it was not proposed, and will not be once it is answered.
    pub(super) fn get(&self) -> Option<Seq> {
        let seq = self.0.load(Ordering::Acquire);
        (seq > 0).then_some(Seq(seq))
    }
}

type Answering = oneshot::Sender<Result<Outcome, NodeError>>;

/// Mutations of this node on their way.
#[derive(Debug)]
pub(super) struct Mutations {
    node: NodeId,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    session: SessionId,
    /// It is known to have ended: nothing is proposed in it any more.
    is_over: bool,
    last_seq: u64,
    unanswered: BTreeSet<u64>,
    /// Given up, and not known to be refused by all: each with the first command that said so.
    given_up: BTreeMap<u64, Option<u64>>,
    waiting: HashMap<ProposalKey, Waiting>,
    /// Beyond the window, in order.
    queue: VecDeque<Queued>,
    /// Inode numbers that the session was granted: next, end.
    inos: BTreeMap<u64, u64>,
}

/// A mutation that somebody wants.
#[derive(Clone, Debug)]
pub(super) struct Submission {
    pub(super) op: Op,
    pub(super) wait: Wait,
    /// The command's time; the moment of proposing where it is absent.
    pub(super) time: Option<Time>,
    /// The mount whose change it is.
    pub(super) proposer: Option<MountId>,
    /// Until when its outcome is waited for.
    pub(super) deadline: Deadline,
}

#[derive(Debug)]
struct Queued {
    submission: Submission,
    ended: Ended,
    number: Number,
    answer: Answering,
}

#[derive(Debug)]
struct Waiting {
    deadline: Deadline,
    outcome: Option<Outcome>,
    /// The mount whose change it is.
    proposer: Option<MountId>,
    refused: Refused,
    answer: Answering,
}

/// What becomes of a mutation that was not carried out before its session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// It is proposed in the next one.
    GoesOn,
    /// What it is made of was the session's, and can be had again in the next one.
    NotDone,
    /// It depends on what went with the session.
    Lost,
}

impl Ended {
    /// What depends on locks is `only_in` a session. Bytes of a stage go with it, and so does what was granted to it.
    fn of(op: &Op, only_in: Option<SessionId>) -> Self {
        match op {
            _ if only_in.is_some() => Self::Lost,
            Op::Make(_) => Self::NotDone,
            Op::Link(_)
            | Op::Unlink(_)
            | Op::Rmdir(_)
            | Op::Rename(_)
            | Op::SetAttr(_)
            | Op::SetXattr(_)
            | Op::RemoveXattr(_)
            | Op::Allocate(_) => Self::GoesOn,
            Op::Write(write) if write.stage == 0 => Self::GoesOn,
            _ => Self::Lost,
        }
    }

    fn error(self) -> NodeError {
        match self {
            Self::GoesOn | Self::NotDone => NodeError::NotDone,
            Self::Lost => NodeError::SessionLost,
        }
    }
}

/// What is done where the log says that a command was refused.
#[derive(Debug)]
enum Refused {
    Again(Box<(Submission, Number)>),
    Tell(NodeError),
}

impl Mutations {
    pub(super) fn new(node: NodeId) -> Self {
        Self { node, inner: Mutex::new(Inner::default()) }
    }

    pub(super) fn session(&self) -> SessionId {
        self.inner.lock().session
    }

    /// Whether there is a session in which something can be proposed.
    pub(super) fn is_open(&self) -> bool {
        self.inner.lock().is_open()
    }

    /// A new session: numbers start again, and what was granted to the last one is gone. Answers what has waited for
    /// it, to be given to the core.
    pub(super) fn begin(
        &self,
        session: SessionId,
        granted: Option<(u64, u64)>,
        hlc: impl Fn() -> u64,
    ) -> Vec<Input> {
        let mut inner = self.inner.lock();
        if inner.is_open() {
            inner.queue.clear();
        }
        inner.session = session;
        inner.is_over = false;
        inner.last_seq = 0;
        inner.unanswered.clear();
        inner.given_up.clear();
        inner.inos = granted.into_iter().collect();
        inner.propose_queued(self.node, hlc)
    }

    /// A session is known to have ended. What is proposed is refused, and so is what depends on it and waits for room in its
    /// window; all else waits for the next one.
    pub(super) fn end(&self, session: SessionId) {
        let mut inner = self.inner.lock();
        if inner.session != session || inner.is_over {
            return;
        }
        inner.is_over = true;
        inner.inos.clear();
        let (stay, queue): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut inner.queue)
            .into_iter()
            .partition(|queued| queued.ended == Ended::GoesOn);
        inner.queue = stay;
        // Whoever is answered may go on at once, on this thread, and submit more.
        drop(inner);
        for Queued { ended, answer, .. } in queue {
            let _ = answer.send(Err(ended.error()));
        }
    }

    /// Entries are skipped: of what waits it is not known any more whether it was carried out before it is refused.
    pub(super) fn skip(&self) {
        for waiting in self.inner.lock().waiting.values_mut() {
            waiting.refused = Refused::Tell(NodeError::SessionLost);
        }
    }

    /// The session is given up: whoever waits under it is told that it is lost, and what comes from now on waits for
    /// another one. The core is to be told of each.
    pub(super) fn leave(&self) -> Vec<ProposalKey> {
        let mut inner = self.inner.lock();
        let given_up: Vec<_> =
            inner.waiting.extract_if(|key, _| key.session != SessionId::CLUSTER).collect();
        let queue = std::mem::take(&mut inner.queue);
        inner.session = SessionId::CLUSTER;
        inner.is_over = false;
        inner.unanswered.clear();
        inner.inos.clear();
        // Whoever is answered may go on at once, on this thread, and submit more.
        drop(inner);
        drop(queue);
        given_up.into_iter().map(|(key, _)| key).collect()
    }

    pub(super) fn grant(&self, first: u64, end: u64) {
        let mut inner = self.inner.lock();
        if inner.is_open() {
            inner.inos.insert(first, end);
        }
    }

    /// A granted number, and whether it is time to ask for more.
    pub(super) fn take_ino(&self) -> (Option<Ino>, bool) {
        let mut inner = self.inner.lock();
        let Some((first, end)) = inner.inos.pop_first() else { return (None, true) };
        if first + 1 < end {
            inner.inos.insert(first + 1, end);
        }
        let left: u64 = inner.inos.iter().map(|(first, end)| end - first).sum();
        (Some(Ino(first)), left < 1024)
    }

    /// Numbers a mutation of the session, to be proposed now or once the window has room. The second
    /// value is to be given to the core. It is answered that the session is lost where that is no longer
    /// the one `only_in` names. Where there is none, or it is known to have ended, it waits for the next one.
    pub(super) fn submit(
        &self,
        only_in: Option<SessionId>,
        submission: Submission,
        hlc: u64,
    ) -> (Answer, Number, Option<Input>) {
        let (answer, receiver) = oneshot::channel();
        let number = Number::default();
        let mut inner = self.inner.lock();
        let is_another = |session| session != inner.session || !inner.is_open();
        // The number of what is made was granted to the session that has ended.
        let ended = Ended::of(&submission.op, only_in);
        let is_of_ended = inner.is_over && ended == Ended::NotDone;
        if only_in.is_some_and(is_another) || is_of_ended {
            let _ = answer.send(Err(ended.error()));
            return (receiver, number, None);
        }
        let queued = Queued { submission, ended, number: number.clone(), answer };
        if inner.has_room() {
            (receiver, number, Some(inner.propose(self.node, queued, hlc)))
        } else {
            inner.queue.push_back(queued);
            (receiver, number, None)
        }
    }

    /// A command of the cluster itself, under a random name.
    pub(super) fn submit_for_cluster(&self, op: Op, name: u64, hlc: u64) -> (Answer, Input) {
        let (answer, receiver) = oneshot::channel();
        let key = ProposalKey { session: SessionId::CLUSTER, seq: Seq(name) };
        let data = encode(self.node, key, 0, Vec::new(), op, None, hlc);
        let deadline = Deadline::of_node();
        let refused = Refused::Tell(NodeError::SessionLost);
        let waiting = Waiting { deadline, outcome: None, proposer: None, refused, answer };
        self.inner.lock().waiting.insert(key, waiting);
        (receiver, Input::Propose { key, data, wait: Wait::Here })
    }

    /// The mount that proposed a command and waits for it still: to all others it is foreign, and to that
    /// one too once it has given up.
    pub(super) fn proposer(&self, key: ProposalKey) -> Option<MountId> {
        self.inner.lock().waiting.get(&key)?.proposer
    }

    /// A command was applied here; its proposer is told once the core says so. Answers who that is.
    pub(super) fn applied(&self, key: ProposalKey, outcome: &Outcome) -> Option<MountId> {
        let mut inner = self.inner.lock();
        let waiting = inner.waiting.get_mut(&key)?;
        waiting.outcome.get_or_insert_with(|| outcome.clone());
        waiting.proposer
    }

    /// The proposer may be told. Returns what the window has room for now.
    pub(super) fn acknowledge(&self, key: ProposalKey, hlc: impl Fn() -> u64) -> Vec<Input> {
        let mut inner = self.inner.lock();
        let waiting = inner.waiting.remove(&key);
        inner.answered(key);
        inner.told(key);
        let mut told = None;
        if let Some(Waiting { outcome: Some(outcome), answer, refused, .. }) = waiting {
            match refused {
                _ if outcome.errno != REFUSED => told = Some((answer, Ok(outcome))),
                // Whoever waits has seen all that became of it: it was never carried out.
                Refused::Again(again) => {
                    let (submission, number) = *again;
                    let ended = Ended::GoesOn;
                    inner.queue.push_back(Queued { submission, ended, number, answer });
                }
                Refused::Tell(error) => told = Some((answer, Err(error))),
            }
        }
        let inputs = inner.propose_queued(self.node, hlc);
        // Whoever is answered may go on at once, on this thread, and submit more.
        drop(inner);
        if let Some((answer, answered)) = told {
            // Whoever waited may have given up.
            let _ = answer.send(answered);
        }
        inputs
    }

    /// Answers whoever's deadline is over, as `check` says, and forgets whoever no longer waits. The core is to be
    /// told of each, so that it stops proposing what the window may pass by.
    pub(super) fn give_up(
        &self,
        check: impl Fn(&Deadline) -> Result<(), NodeError>,
    ) -> Vec<ProposalKey> {
        let is_over = |deadline: &Deadline, answer: &Answering| {
            answer.is_closed() || check(deadline).is_err()
        };
        let mut inner = self.inner.lock();
        let (late, queue): (VecDeque<_>, _) = std::mem::take(&mut inner.queue)
            .into_iter()
            .partition(|queued| is_over(&queued.submission.deadline, &queued.answer));
        inner.queue = queue;
        let given_up: Vec<_> = inner
            .waiting
            .extract_if(|_, waiting| is_over(&waiting.deadline, &waiting.answer))
            .collect();
        for (key, _) in &given_up {
            inner.answered(*key);
            inner.gave_up(*key);
        }
        // Whoever is answered may go on at once, on this thread, and submit more.
        drop(inner);
        let queued = late.into_iter().map(|queued| (queued.submission.deadline, queued.answer));
        let mut keys = Vec::with_capacity(given_up.len());
        let waiting = given_up.into_iter().map(|(key, waiting)| {
            keys.push(key);
            (waiting.deadline, waiting.answer)
        });
        for (deadline, answer) in queued.chain(waiting) {
            // Nobody listens where it has been forgotten.
            let _ = answer.send(Err(check(&deadline).err().unwrap_or(NodeError::Deadline)));
        }
        keys
    }
}

impl Inner {
    fn is_open(&self) -> bool {
        self.session != SessionId::CLUSTER && !self.is_over
    }

    fn has_room(&self) -> bool {
        self.is_open()
            && self.unanswered.first().is_none_or(|lowest| self.last_seq + 1 - lowest < WINDOW)
    }

    /// Proposes what the window has room for.
    fn propose_queued(&mut self, node: NodeId, hlc: impl Fn() -> u64) -> Vec<Input> {
        let mut inputs = Vec::new();
        while self.has_room() {
            let Some(queued) = self.queue.pop_front() else { break };
            inputs.push(self.propose(node, queued, hlc()));
        }
        inputs
    }

    fn propose(&mut self, node: NodeId, queued: Queued, hlc: u64) -> Input {
        let Queued { submission, ended, number, answer } = queued;
        let refused = match ended {
            Ended::GoesOn => Refused::Again(Box::new((submission.clone(), number.clone()))),
            Ended::NotDone | Ended::Lost => Refused::Tell(ended.error()),
        };
        let Submission { op, wait, time, proposer, deadline } = submission;
        self.last_seq += 1;
        number.0.store(self.last_seq, Ordering::Release);
        self.unanswered.insert(self.last_seq);
        let lowest = *self.unanswered.first().expect("one was just inserted");
        // Whoever applies this, or a later one, refuses what is so far below.
        self.given_up.retain(|seq, _| seq + PRUNE_BATCH > lowest);
        for by in self.given_up.values_mut() {
            by.get_or_insert(self.last_seq);
        }
        let given_up = self.given_up.keys().copied().collect();
        let key = ProposalKey { session: self.session, seq: Seq(self.last_seq) };
        self.waiting.insert(key, Waiting { deadline, outcome: None, proposer, refused, answer });
        Input::Propose { key, data: encode(node, key, lowest, given_up, op, time, hlc), wait }
    }

    fn answered(&mut self, key: ProposalKey) {
        if key.session == self.session {
            self.unanswered.remove(&key.seq.0);
        }
    }

    /// Nobody waits for it any more, and whoever did goes on. Every command says so until one that did is known to be
    /// applied; and where that is given up as well, the next one begins again.
    fn gave_up(&mut self, key: ProposalKey) {
        if key.session == self.session {
            let again = |by: &mut Option<u64>| *by = by.filter(|by| *by != key.seq.0);
            self.given_up.values_mut().for_each(again);
            self.given_up.insert(key.seq.0, None);
        }
    }

    /// A command is applied: what it said of those that were given up is known everywhere.
    fn told(&mut self, key: ProposalKey) {
        if key.session == self.session {
            self.given_up.retain(|_, by| by.is_none_or(|by| by > key.seq.0));
        }
    }
}

fn encode(
    node: NodeId,
    key: ProposalKey,
    lowest: u64,
    given_up: Vec<u64>,
    op: Op,
    time: Option<Time>,
    hlc: u64,
) -> Bytes {
    let time = time.unwrap_or_else(now);
    let command = Command {
        volume: VolumeId::FIRST.0,
        session: key.session.0,
        seq: key.seq.0,
        lowest_unanswered: lowest,
        time: Some(time),
        clock: hlc,
        node: node.0,
        given_up,
        op: Some(op),
    };
    command.encode_to_vec().into()
}

fn now() -> Time {
    let now = clock::wall();
    Time { seconds: now.seconds, nanos: now.nanos }
}

#[cfg(test)]
#[path = "mutations_tests.rs"]
mod tests;
