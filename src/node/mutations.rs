//! The proposer's side of mutations: numbers, the window of unanswered ones, and who waits.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::oneshot;

use super::{NodeError, clock};
use crate::consensus::{Input, Wait};
use crate::fs::proto::{Command, Outcome, Time, command::Op};
use crate::types::{Ino, Monotonic, MountId, NodeId, ProposalKey, Seq, SessionId, VolumeId};

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
    last_seq: u64,
    unanswered: BTreeSet<u64>,
    waiting: HashMap<ProposalKey, Waiting>,
    /// Beyond the window, in order.
    queue: VecDeque<Queued>,
    /// Inode numbers that the session was granted: next, end.
    inos: BTreeMap<u64, u64>,
}

#[derive(Debug)]
struct Queued {
    since: Monotonic,
    op: Op,
    wait: Wait,
    /// The command's time; the moment of proposing where it is absent.
    time: Option<Time>,
    number: Number,
    proposer: Option<MountId>,
    answer: Answering,
}

#[derive(Debug)]
struct Waiting {
    since: Monotonic,
    outcome: Option<Outcome>,
    /// The mount whose change it is.
    proposer: Option<MountId>,
    answer: Answering,
}

impl Mutations {
    pub(super) fn new(node: NodeId) -> Self {
        Self { node, inner: Mutex::new(Inner::default()) }
    }

    pub(super) fn session(&self) -> SessionId {
        self.inner.lock().session
    }

    /// A new session: numbers start again, and what was granted to the last one is gone.
    pub(super) fn begin(&self, session: SessionId, granted: Option<(u64, u64)>) {
        let mut inner = self.inner.lock();
        inner.session = session;
        inner.last_seq = 0;
        inner.unanswered.clear();
        inner.queue.clear();
        inner.inos = granted.into_iter().collect();
    }

    pub(super) fn grant(&self, first: u64, end: u64) {
        self.inner.lock().inos.insert(first, end);
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
    /// the one `only_in` names.
    pub(super) fn submit(
        &self,
        only_in: Option<SessionId>,
        op: Op,
        wait: Wait,
        time: Option<Time>,
        hlc: u64,
        proposer: Option<MountId>,
    ) -> (Answer, Number, Option<Input>) {
        let (answer, receiver) = oneshot::channel();
        let number = Number::default();
        let mut inner = self.inner.lock();
        if only_in.is_some_and(|session| session != inner.session) {
            // Dropped, which says it.
            return (receiver, number, None);
        }
        let (since, of) = (clock::monotonic(), number.clone());
        let queued = Queued { since, op, wait, time, number: of, proposer, answer };
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
        let data = encode(self.node, key, 0, op, None, hlc);
        let since = clock::monotonic();
        let waiting = Waiting { since, outcome: None, proposer: None, answer };
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
        let mut inputs = Vec::new();
        while inner.has_room() {
            let Some(queued) = inner.queue.pop_front() else { break };
            inputs.push(inner.propose(self.node, queued, hlc()));
        }
        // Whoever is answered may go on at once, on this thread, and submit more.
        drop(inner);
        if let Some(Waiting { outcome: Some(outcome), answer, .. }) = waiting {
            let refused = outcome.errno == REFUSED;
            let answered = if refused { Err(NodeError::SessionLost) } else { Ok(outcome) };
            // Whoever waited may have given up.
            let _ = answer.send(answered);
        }
        inputs
    }

    /// Answers whoever has waited for `patience` and forgets whoever no longer waits. The core is to be
    /// told of each, so that it stops proposing what the window may pass by.
    pub(super) fn give_up(&self, patience: Duration) -> Vec<ProposalKey> {
        let now = clock::monotonic();
        let late = |since: Monotonic, answer: &Answering| {
            answer.is_closed() || now.since(since) >= patience
        };
        let mut inner = self.inner.lock();
        // In order, so those that are late come first.
        while let Some(queued) =
            inner.queue.pop_front_if(|queued| late(queued.since, &queued.answer))
        {
            let _ = queued.answer.send(Err(NodeError::Deadline));
        }
        let given_up: Vec<_> =
            inner.waiting.extract_if(|_, waiting| late(waiting.since, &waiting.answer)).collect();
        let mut keys = Vec::with_capacity(given_up.len());
        for (key, waiting) in given_up {
            let _ = waiting.answer.send(Err(NodeError::Deadline));
            inner.answered(key);
            keys.push(key);
        }
        keys
    }
}

impl Inner {
    fn has_room(&self) -> bool {
        self.unanswered.first().is_none_or(|lowest| self.last_seq + 1 - lowest < WINDOW)
    }

    fn propose(&mut self, node: NodeId, queued: Queued, hlc: u64) -> Input {
        let Queued { since, op, wait, time, number, proposer, answer } = queued;
        self.last_seq += 1;
        number.0.store(self.last_seq, Ordering::Release);
        self.unanswered.insert(self.last_seq);
        let lowest = *self.unanswered.first().expect("one was just inserted");
        let key = ProposalKey { session: self.session, seq: Seq(self.last_seq) };
        self.waiting.insert(key, Waiting { since, outcome: None, proposer, answer });
        Input::Propose { key, data: encode(node, key, lowest, op, time, hlc), wait }
    }

    fn answered(&mut self, key: ProposalKey) {
        if key.session == self.session {
            self.unanswered.remove(&key.seq.0);
        }
    }
}

fn encode(
    node: NodeId,
    key: ProposalKey,
    lowest: u64,
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
        op: Some(op),
    };
    command.encode_to_vec().into()
}

fn now() -> Time {
    let now = clock::wall();
    Time { seconds: now.seconds, nanos: now.nanos }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Wake, Waker};

    use super::{MountId, Mutations, NodeId, Op, Outcome, ProposalKey, Seq, SessionId, Wait};
    use crate::fs::proto::Touch;

    struct SubmitsMore(Arc<Mutations>);

    impl Wake for SubmitsMore {
        fn wake(self: Arc<Self>) {
            let (_, _, input) = self.0.submit(None, touch(), Wait::Here, None, 0, None);
            assert!(input.is_some(), "there is room");
        }
    }

    fn touch() -> Op {
        Op::Touch(Touch::default())
    }

    /// Operations go on where they are answered.
    #[test]
    fn whoever_is_answered_may_submit_at_once() {
        let mutations = Arc::new(Mutations::new(NodeId(1)));
        mutations.begin(SessionId(7), None);
        let mount = Some(MountId(3));
        let (answer, _, _) = mutations.submit(None, touch(), Wait::Here, None, 0, mount);
        let mut answer = pin!(answer);
        let waker = Waker::from(Arc::new(SubmitsMore(mutations.clone())));
        let mut context = Context::from_waker(&waker);
        assert!(answer.as_mut().poll(&mut context).is_pending());
        let key = ProposalKey { session: SessionId(7), seq: Seq(1) };
        assert_eq!(mutations.proposer(key), mount);
        assert_eq!(mutations.applied(key, &Outcome::default()), mount);
        assert!(mutations.acknowledge(key, || 0).is_empty());
        assert!(matches!(answer.poll(&mut context), Poll::Ready(Ok(Ok(_)))));
        assert_eq!(mutations.inner.lock().last_seq, 2);
        assert_eq!(mutations.proposer(key), None, "nobody waits for it any more");
    }
}
