//! What a mount and the services can ask of their node.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rand::Rng;
use tokio::sync::{oneshot, watch};

use super::clock;
use super::deadline::Deadline;
use super::durability::voters;
use super::fatal::Fatal;
use super::look::Look;
use super::mutations::{Answer, Number, Submission};
use super::observers::Observer;
use super::shared::{Shared, ToDriver};
use super::space::{OnDisk, SpaceReport};
use super::status::RaftStatus;
use super::transport::ToPeer;
use crate::consensus::{Input, Wait};
use crate::fs::proto;
use crate::store::{Files, StateRead, StoreError};
use crate::types::{Ino, LogIndex, MountId, NodeId, SessionId};

/// What is taken off the lease before the kernel may rely on it: replies take time to arrive.
const TTL_MARGIN: Duration = Duration::from_millis(100);

/// Why the node could not answer. None of these says that a mutation did not happen.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// No answer within `op_timeout`.
    #[error("no quorum answered within the deadline")]
    Deadline,
    /// Whoever waited is ending.
    #[error("the process that waited is ending")]
    Interrupted,
    /// The session ended while the operation waited.
    #[error("this mount's session ended while the operation waited")]
    SessionLost,
    /// The same, and it is known that nothing was done: it can be asked for again.
    #[error("this mount's session ended before the operation was carried out")]
    NotDone,
    /// This replica cannot read or write its own disk.
    #[error("this replica's own state cannot be used: {0}")]
    Store(#[from] StoreError),
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    Stopping,
}

/// A mutation on its way. Dropping it does not take the mutation back.
#[derive(Debug)]
pub struct Pending {
    answer: Answer,
    number: Number,
}

impl Pending {
    /// One that is not made.
    fn refused(error: NodeError) -> Self {
        let (refuse, answer) = oneshot::channel();
        // It is here still.
        let _ = refuse.send(Err(error));
        Self { answer, number: Number::default() }
    }

    /// Its number, once it has one.
    pub(super) fn number(&self) -> Number {
        self.number.clone()
    }
}

impl Future for Pending {
    type Output = Result<proto::Outcome, NodeError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // A sender that is gone was dropped with its session.
        Pin::new(&mut self.answer)
            .poll(context)
            .map(|answer| answer.unwrap_or(Err(NodeError::SessionLost)))
    }
}

/// The face of a running node, for one of its mounts or for the services. Cheap to clone.
#[derive(Clone)]
pub struct Handle(pub(super) Arc<Shared>, pub(super) Option<MountId>);

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("node", &self.0.node).finish_non_exhaustive()
    }
}

impl Handle {
    /// This node's id.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.0.node
    }

    /// The same for a new mount: what is proposed through it is that mount's own.
    #[must_use]
    pub fn for_mount(&self) -> Self {
        Self(self.0.clone(), Some(self.0.observers.new_mount()))
    }

    /// The mounts' present session; [`SessionId::CLUSTER`] before the first.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.0.mutations.session()
    }

    /// Has this mount told of changes. Called once, before it serves.
    ///
    /// # Panics
    /// Where this is not the handle of a mount.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        self.0.observers.add(self.1.expect("only a mount observes"), observer);
    }

    /// The mount serves nothing any more. It may still be told of changes that are under way.
    ///
    /// # Panics
    /// Where this is not the handle of a mount.
    pub fn ignore(&self) {
        self.0.observers.remove(self.1.expect("only a mount observes"));
    }

    /// Proposes a mutation that resolves once it may be acknowledged: committed, applied here, and
    /// applied by every node of the roster. Never blocks; order among mutations in flight at once is
    /// not kept.
    /// It fails where the mount's session is not `only_in` any more.
    pub fn mutate_in(&self, only_in: Option<SessionId>, op: proto::command::Op) -> Pending {
        self.submit_in(only_in, op, Wait::Roster, None)
    }

    /// The same, without waiting for the roster: resolves once committed and applied here. For bytes
    /// that nobody has been promised yet. `time` becomes the command's: bytes are committed later
    /// than they were written, and `mtime` must not move when that happens.
    /// With `only_in`, it fails where the mount's session is another by now.
    pub fn mutate_here(
        &self,
        only_in: Option<SessionId>,
        op: proto::command::Op,
        time: proto::Time,
    ) -> Pending {
        self.submit_in(only_in, op, Wait::Here, Some(time))
    }

    /// Waits until what was applied here at `index` may be acknowledged: until every node of the
    /// roster shows it. What [`Self::mutate_here`] left out.
    ///
    /// # Errors
    /// [`NodeError::Deadline`] where that takes too long.
    pub async fn until_acknowledged(&self, index: LogIndex) -> Result<(), NodeError> {
        self.until(self.0.gate.changes(), || self.stable_index() >= index).await
    }

    /// Waits for the gate to change until `condition` holds. `changes` are subscribed to before anything is
    /// looked at or asked for, so that none falls between that and waiting.
    async fn until(
        &self,
        mut changes: watch::Receiver<()>,
        condition: impl Fn() -> bool,
    ) -> Result<(), NodeError> {
        let deadline = Deadline::current();
        while !condition() {
            self.check(&deadline)?;
            changes.changed().await.map_err(|_| NodeError::Stopping)?;
        }
        Ok(())
    }

    pub(super) fn submit(
        &self,
        op: proto::command::Op,
        wait: Wait,
        time: Option<proto::Time>,
    ) -> Pending {
        self.submit_in(None, op, wait, time)
    }

    pub(super) fn submit_in(
        &self,
        only_in: Option<SessionId>,
        op: proto::command::Op,
        wait: Wait,
        time: Option<proto::Time>,
    ) -> Pending {
        let deadline = Deadline::current();
        if let Err(error) = self.check(&deadline) {
            return Pending::refused(error);
        }
        let submission = Submission { op, wait, time, proposer: self.1, deadline };
        let (answer, number, input) =
            self.0.mutations.submit(only_in, submission, self.0.clock.next());
        if let Some(input) = input {
            self.0.input(input);
        }
        Pending { answer, number }
    }

    /// Proposes a command of the cluster itself; what it says makes it idempotent.
    pub(super) fn mutate_cluster(&self, op: proto::command::Op) -> Pending {
        let name = rand::rng().random();
        let (answer, input) = self.0.mutations.submit_for_cluster(op, name, self.0.clock.next());
        self.0.input(input);
        Pending { answer, number: Number::default() }
    }

    /// A new inode number, from a range that the session was granted.
    ///
    /// # Errors
    /// When no quorum grants a new range in time.
    pub async fn new_ino(&self) -> Result<Ino, NodeError> {
        loop {
            let (ino, low) = self.0.mutations.take_ino();
            match ino {
                Some(ino) => {
                    if low {
                        self.0.refill.notify_one();
                    }
                    return Ok(ino);
                }
                // It comes with some.
                None if !self.0.mutations.is_open() => drop(self.until_session().await?),
                None => self.grant_inodes().await?,
            }
        }
    }

    /// Waits until this node has a session that is not known to have ended: without, nobody can change anything through it, and
    /// before the first one its state may be older than its files.
    ///
    /// # Errors
    /// [`NodeError::Deadline`] where no quorum opens one in time.
    pub async fn until_session(&self) -> Result<SessionId, NodeError> {
        let mut sessions = self.0.session.subscribe();
        while !self.0.mutations.is_open() {
            let opened = self.within(sessions.changed()).await?;
            opened.map_err(|_| NodeError::Stopping)?;
        }
        Ok(self.session())
    }

    pub(super) async fn grant_inodes(&self) -> Result<(), NodeError> {
        let session = self.session();
        let op = proto::command::Op::GrantInodes(proto::GrantInodes { count: 8192 });
        let outcome = self.submit(op, Wait::Here, None).await?;
        match outcome.granted {
            Some(range) if self.session() == session => {
                self.0.mutations.grant(range.first, range.end);
                Ok(())
            }
            _ => Err(NodeError::SessionLost),
        }
    }

    /// The whole state at one applied index. Hold it for one query only: applies wait for it.
    #[must_use]
    pub fn state(&self) -> StateRead<'_> {
        self.0.state.read()
    }

    /// The last entry that this node has received: what a strong read that begins now has to see, as far as
    /// it concerns it.
    #[must_use]
    pub fn received(&self) -> LogIndex {
        self.0.received.last()
    }

    /// What a strong read looks at that began when `since` was the last entry received. Hold it for one
    /// query only: applies wait for it.
    #[must_use]
    pub fn look(&self, since: LogIndex) -> Look<'_> {
        let state = self.state();
        Look { state, unapplied: self.0.received.unapplied.read(), since, reader: self.1 }
    }

    /// Whether what was last changed at `mod_index` may be served now: the lease is live and the
    /// index is stable. Costs two atomic loads and a look at the clock.
    #[must_use]
    pub fn may_serve(&self, mod_index: LogIndex) -> bool {
        self.0.gate.get().may_serve(clock::monotonic(), mod_index)
    }

    /// Waits until this replica has applied an entry; false where that takes too long.
    pub(super) async fn until_applied(&self, index: LogIndex) -> bool {
        let until = async {
            while self.state().applied() < index {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(self.op_timeout(), until).await.is_ok()
    }

    /// Waits until [`Self::may_serve`] holds, for the lease and for stability; or until entries were
    /// replaced, among which the one waited for may have been. The caller queries again afterwards.
    ///
    /// # Errors
    /// [`NodeError::Deadline`] where that takes too long.
    pub async fn until_servable(&self, mod_index: LogIndex) -> Result<(), NodeError> {
        let changes = self.0.gate.changes();
        if self.stable_index() < mod_index {
            self.0.input(Input::AwaitStable { index: mod_index });
        }
        let replaced = self.0.received.replaced();
        let is_over = || self.may_serve(mod_index) || self.0.received.replaced() != replaced;
        self.until(changes, is_over).await
    }

    /// For how long from now this node's state is at most `age` old.
    #[must_use]
    pub fn fresh_left(&self, age: Duration) -> Duration {
        self.0.gate.get().fresh_left(clock::monotonic(), self.0.config.core.session_ttl, age)
    }

    /// Waits until this node's state is at most `age` old.
    ///
    /// # Errors
    /// [`NodeError::Deadline`] where that takes too long.
    pub async fn until_fresh(&self, age: Duration) -> Result<(), NodeError> {
        self.until(self.0.gate.changes(), || !self.fresh_left(age).is_zero()).await
    }

    /// What is left of the lease, less a margin: the longest TTL to give to the kernel. Zero where
    /// nothing may be cached.
    #[must_use]
    pub fn lease_left(&self) -> Duration {
        self.0.gate.lease_left().saturating_sub(TTL_MARGIN)
    }

    /// The backing files.
    #[must_use]
    pub fn files(&self) -> &Files {
        &self.0.files
    }

    /// Takes room for so many bytes on the disks of a quorum; false where there is none: ENOSPC.
    #[must_use]
    pub fn take_space(&self, bytes: u64) -> bool {
        self.0.space.take(bytes)
    }

    /// What the disks of a quorum take in, all in all and still.
    #[must_use]
    pub fn space(&self) -> SpaceReport {
        self.0.space.of_quorum()
    }

    /// How often backing files were cut so far; none while they are. A read of bytes is whole only where
    /// this is the same before its query and after its last byte.
    #[must_use]
    pub fn cuts(&self) -> Option<u64> {
        self.0.cuts.count()
    }

    /// The mount no longer holds an inode whose last name is gone. Batched; nobody waits.
    pub fn release_orphan(&self, ino: Ino) {
        // Whoever holds it still is asked again here, and says so when it lets go.
        if !self.0.observers.hold(ino) {
            self.0.released.lock().push(ino.0);
        }
    }

    /// relatime's touch: replicated in batches that nobody waits for.
    pub fn touch(&self, ino: Ino, seen: Option<proto::Time>, atime: proto::Time) {
        self.0.touches.lock().touch(ino, seen, atime);
    }

    /// The access time that an inode has, or that a touch is going to give it.
    #[must_use]
    pub fn touched(&self, ino: Ino, recorded: Option<proto::Time>) -> Option<proto::Time> {
        self.0.touches.lock().of(ino, recorded)
    }

    /// An access time is going to be set: earlier touches of ours must not come after it.
    pub async fn forget_touch(&self, ino: Ino) {
        let forgotten = async {
            loop {
                let mut settled = std::pin::pin!(self.0.touched.notified());
                // From now on nothing is missed.
                settled.as_mut().enable();
                if self.0.touches.lock().forget(ino) {
                    return;
                }
                settled.await;
            }
        };
        // Where no quorum answers, neither is what is set.
        let _ = self.within(forgotten).await;
    }

    /// The daemon is about to end: from now on nobody waits for a quorum for longer than `op_timeout`, whatever is
    /// configured.
    pub fn stop_waiting(&self) {
        self.0.stopping.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Whether a quorum answers this node at present.
    #[must_use]
    pub fn has_quorum(&self) -> bool {
        !self.0.gate.lease_left().is_zero()
    }

    /// `op_timeout` of the configuration.
    #[must_use]
    pub fn op_timeout(&self) -> Duration {
        self.0.config.op_timeout
    }

    // ------------------------------------------------------------ for the services

    /// A peer said something.
    pub fn deliver(&self, from: NodeId, message: ToPeer) {
        match message {
            ToPeer::Core(message) => self.0.input(Input::Peer { from, message }),
            // What was removed, or is not known here yet, counts nowhere.
            ToPeer::Disk(..) if !self.members().is_known(from) => {}
            ToPeer::Disk(report, OnDisk { synced, holds }, wall) => {
                self.0.wall_clocks.heard(from, wall, clock::wall(), clock::monotonic());
                self.0.space.heard(from, report);
                self.0.durability.heard(from, synced, &voters(&self.0));
                self.0.input_later(Input::Holds { node: from, index: holds });
            }
        }
    }

    /// Nodes whose wall clocks differ from this one's, and by how many milliseconds each is ahead.
    #[must_use]
    pub fn clocks_apart(&self) -> Vec<(NodeId, i64)> {
        self.0.wall_clocks.apart(clock::monotonic())
    }

    /// A node's guardian says that its session serves nothing any more.
    pub fn fenced(&self, node: NodeId, session: SessionId) {
        self.0.input(Input::Fenced { node, session });
    }

    /// The mounts' session, and changes of it; nothing while there is none.
    #[must_use]
    pub fn sessions(&self) -> watch::Receiver<Option<SessionId>> {
        self.0.session.subscribe()
    }

    /// There is a new connection to a peer.
    pub fn connected(&self, node: NodeId) {
        self.0.input(Input::Connected { node });
    }

    /// Gives a daemon without an identity one: the same for the same nonce.
    ///
    /// # Errors
    /// When no quorum agrees in time.
    pub async fn add_member(
        &self,
        nonce: u64,
        address: String,
        learner: bool,
    ) -> Result<NodeId, NodeError> {
        let op = proto::command::Op::AddMember(proto::AddMember { nonce, address, learner });
        Ok(NodeId(self.mutate_cluster(op).await?.id))
    }

    /// Who leads, and changes of that; 0 while nobody is known to.
    #[must_use]
    pub fn leader(&self) -> watch::Receiver<NodeId> {
        self.0.leader.subscribe()
    }

    /// Hands leadership over, to the named voter or the one that holds most of the log.
    pub fn transfer_leader(&self, to: Option<NodeId>) {
        self.0.input(Input::TransferLeader { to });
    }

    /// The core's part of the status.
    ///
    /// # Errors
    /// When the daemon is stopping.
    pub async fn raft_status(&self) -> Result<RaftStatus, NodeError> {
        let (answer, status) = oneshot::channel();
        self.0.driver.send(ToDriver::Status(answer)).map_err(|_| NodeError::Stopping)?;
        status.await.map_err(|_| NodeError::Stopping)
    }

    /// The index up to which every mount of the roster is known to show everything.
    #[must_use]
    pub fn stable_index(&self) -> LogIndex {
        self.0.gate.get().stable
    }

    /// The first index that the log still holds.
    #[must_use]
    pub fn first_index(&self) -> LogIndex {
        self.0.log.first_index()
    }

    /// Bytes of the entries that the log holds.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        self.0.log.used_size()
    }

    /// What this replica cannot go on with, once there is such a thing.
    #[must_use]
    pub fn fatal(&self) -> watch::Receiver<Option<Fatal>> {
        self.0.fatal.subscribe()
    }

    /// Whether messages to a peer are getting through.
    #[must_use]
    pub fn is_connected(&self, node: NodeId) -> bool {
        self.0.transport.is_connected(node)
    }
}
