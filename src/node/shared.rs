//! What the node's threads and its [`super::Handle`]s share.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use super::clock::{self, HybridClock};
use super::divergence::Comparison;
use super::durability::Durability;
use super::encoding::Traffic;
use super::fatal::Fatal;
use super::fetch::Fetching;
use super::install::Paused;
use super::live_time::LiveTime;
use super::locks::Locks;
use super::log_length::LogLength;
use super::member_table::{MemberTable, Members};
use super::mutations::Mutations;
use super::observers::Observers;
use super::removals::Removals;
use super::snapshots::{Lent, Unattested};
use super::space::Space;
use super::staging::Staging;
use super::status::RaftStatus;
use super::touches::Touches;
use super::wall_clocks::WallClocks;
use super::{NodeConfig, Transport};
use crate::consensus::{Input, ReadGate};
use crate::fs::{Unapplied, query};
use crate::store::{Files, RaftLog, State, StoreError};
use crate::types::{LogIndex, Monotonic, NodeId, SessionId};

/// How long whoever has failed waits for the disk to take in that the state is not to be believed.
const DISTRUSTING: Duration = Duration::from_secs(1);

/// A message to the driver.
pub(super) enum ToDriver {
    /// For the core.
    Input(Input),
    /// What has come in through [`Shared::input_later`].
    Late,
    /// What `status` shows of the core.
    Status(tokio::sync::oneshot::Sender<RaftStatus>),
    /// Finish what is under way, and wait to be told how to go on.
    Pause(tokio::sync::oneshot::Sender<Paused>),
    /// End.
    Stop,
}

/// Everything that outlives a single thread.
pub(super) struct Shared {
    pub(super) config: NodeConfig,
    pub(super) node: NodeId,
    pub(super) driver: UnboundedSender<ToDriver>,
    pub(super) gate: Gate,
    pub(super) mutations: Mutations,
    pub(super) locks: Locks,
    pub(super) observers: Observers,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) state: State,
    pub(super) files: Files,
    pub(super) space: Space,
    pub(super) wall_clocks: WallClocks,
    pub(super) durability: Durability,
    pub(super) staging: Staging,
    pub(super) fetching: Fetching,
    pub(super) traffic: Traffic,
    /// Whether the state has come to what the files were when the last process died.
    pub(super) replayed: AtomicBool,
    /// Where what takes long is done: not on the thread of the core.
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) cuts: Cuts,
    pub(super) received: Received,
    /// Inputs that nobody waits for.
    pub(super) late: Mutex<Vec<Input>>,
    pub(super) log_length: LogLength,
    /// A peer wants one that covers this entry; 0: nobody does.
    pub(super) wanted_snapshot: AtomicU64,
    pub(super) lent: Lent,
    pub(super) unattested: Unattested,
    /// What earlier processes may have done to the files goes no further than this entry.
    pub(super) reached: LogIndex,
    pub(super) comparison: Comparison,
    pub(super) log: RaftLog,
    pub(super) clock: HybridClock,
    /// The open session of this node.
    pub(super) session: watch::Sender<Option<SessionId>>,
    /// Who leads; 0 while nobody is known to.
    pub(super) leader: watch::Sender<NodeId>,
    /// Inodes without a name that the mount has said it does not hold, to be told to the others.
    pub(super) released: Mutex<Vec<u64>>,
    pub(super) touches: Mutex<Touches>,
    /// Told when those that were proposed are settled.
    pub(super) touched: tokio::sync::Notify,
    /// Asks for more inode numbers.
    pub(super) refill: tokio::sync::Notify,
    pub(super) members: MemberTable,
    /// Told when the table of members has changed.
    pub(super) members_changed: watch::Sender<()>,
    /// Set once, by what this replica cannot go on with.
    pub(super) fatal: watch::Sender<Option<Fatal>>,
    pub(super) removals: Mutex<Removals>,
    /// The daemon is about to end: nobody is to wait for a quorum that may never be back.
    pub(super) stopping: AtomicBool,
}

impl Shared {
    pub(super) fn input(&self, input: Input) {
        // The driver has ended: the daemon is stopping, and nobody waits for this any more.
        let _ = self.driver.send(ToDriver::Input(input));
    }

    /// The core takes it in with the next input, or at the next tick: nobody waits for it.
    pub(super) fn input_later(&self, input: Input) {
        self.late.lock().push(input);
    }

    /// The core is to take in what was to come later.
    pub(super) fn look_at_late(&self) {
        let _ = self.driver.send(ToDriver::Late);
    }

    /// What has come in through [`Self::input_later`]; older than any input that is received after this.
    pub(super) fn take_late(&self) -> Vec<Input> {
        std::mem::take(&mut *self.late.lock())
    }

    /// Where commands up to `applied` are.
    pub(super) fn snapshot_is_due(&self, applied: LogIndex) -> bool {
        let applied = self.log.used_size_of(self.log_length.snapshot(), applied);
        self.comparison.is_sound()
            && (self.log_length.is_snapshot_due(applied)
                || self.files.held() >= self.config.snapshot_min_log
                || self.wanted_snapshot.load(Ordering::Relaxed) > 0)
    }

    /// Whether the log is longer than others may make it.
    pub(super) fn cut_is_due(&self) -> bool {
        self.comparison.is_sound() && self.log_length.is_cut_due(self.log.used_size())
    }

    /// This node's own session was ended by the others: another is opened in its place.
    pub(super) fn session_ended(&self, session: SessionId) {
        tracing::warn!(session = session.0, "this node's session has ended");
        self.mutations.end(session);
        self.input(Input::OwnSession { session: None });
        self.locks.begin(SessionId::CLUSTER);
        self.session.send_replace(None);
    }

    /// The other nodes that may have bytes: members that have joined, and those that are removed and still have a place.
    pub(super) fn others(&self) -> BTreeSet<NodeId> {
        let members = self.members.get();
        let joined = members.list.iter().filter(|member| query::suffrage(member).is_some());
        let mut others = members.with_a_place();
        others.extend(joined.map(|member| NodeId(member.node)));
        others.remove(&self.node);
        others
    }

    /// Those who have joined are known by their addresses, those who are removed no more; and this node, where it is
    /// itself, ends.
    pub(super) fn meet_members(&self) -> Result<(), StoreError> {
        let members = self.members.read_again(&self.state)?;
        for member in &members.list {
            self.transport.learn(NodeId(member.node), &member.address);
        }
        for node in self.transport.peers() {
            if members.is_removed(node) {
                self.transport.forget(node);
            }
        }
        if members.is_removed(self.node) {
            self.fail(Fatal::removed(self.node));
        }
        self.forget_strangers(&members);
        self.members_changed.send_replace(());
        Ok(())
    }

    fn forget_strangers(&self, members: &Members) {
        let is_known = |node| node == self.node || members.is_known(node);
        self.wall_clocks.retain(is_known);
        self.space.retain(is_known);
        self.durability.retain(is_known);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Waits no longer than [`DISTRUSTING`]: the disk may not answer.
    fn distrust_state(&self) {
        let directory = self.config.directory.clone();
        let (done, distrusted) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            if let Err(error) = directory.distrust_state() {
                tracing::error!("{error}");
            }
            // Nobody may wait any more.
            let _ = done.send(());
        });
        let _ = distrusted.recv_timeout(DISTRUSTING);
    }

    /// This replica cannot go on: it stops acknowledging, and the daemon ends. What could not be written is lost, and no
    /// later sync would say so: the next start is to believe only what is durable, whatever ends this process.
    pub(super) fn fail(&self, why: impl Into<Fatal>) {
        let why = why.into();
        self.distrust_state();
        tracing::error!(node = self.node.0, "this replica stops: {}", why.reason);
        self.fatal.send_if_modified(|fatal| {
            let first = fatal.is_none();
            fatal.get_or_insert(why);
            first
        });
    }
}

/// Backing files are cut before the state says so, because replay relies on that order. In between a
/// reader would find zeros where the state still promises bytes: it looks here before and after.
#[derive(Debug, Default)]
pub(super) struct Cuts(AtomicU64);

impl Cuts {
    pub(super) fn begin(&self) {
        let before = self.0.fetch_add(1, Ordering::SeqCst);
        debug_assert!(before.is_multiple_of(2), "one round at a time");
    }

    pub(super) fn end(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// How many rounds have cut files; none while one does.
    pub(super) fn count(&self) -> Option<u64> {
        let count = self.0.load(Ordering::SeqCst);
        count.is_multiple_of(2).then_some(count)
    }
}

/// What the entries that were received and are not applied may change.
#[derive(Debug, Default)]
pub(super) struct Received {
    pub(super) unapplied: RwLock<Unapplied>,
    /// The last of them.
    last: AtomicU64,
    /// How often some were replaced by others.
    replaced: AtomicU64,
    /// How many batches the applier has yet to mark.
    left_to_applier: AtomicUsize,
}

impl Received {
    /// To be called once it is marked what they may change.
    pub(super) fn up_to(&self, last: LogIndex) {
        self.last.store(last.0, Ordering::SeqCst);
    }

    pub(super) fn last(&self) -> LogIndex {
        LogIndex(self.last.load(Ordering::SeqCst))
    }

    /// Later entries must not be marked before the applier has marked these.
    pub(super) fn leave_to_applier(&self) {
        self.left_to_applier.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn applier_has_invalidated(&self) {
        self.left_to_applier.fetch_sub(1, Ordering::SeqCst);
    }

    pub(super) fn applier_is_to_invalidate(&self) -> bool {
        self.left_to_applier.load(Ordering::SeqCst) > 0
    }

    /// Entries from `first` on are replaced.
    pub(super) fn replace(&self, first: LogIndex) {
        self.unapplied.write().replace(first);
        self.replaced.fetch_add(1, Ordering::SeqCst);
    }

    /// How often entries were replaced: a read that waits for one then looks again.
    pub(super) fn replaced(&self) -> u64 {
        self.replaced.load(Ordering::SeqCst)
    }
}

/// The core's [`ReadGate`], readable without asking the driver.
#[derive(Debug)]
pub(super) struct Gate {
    lease_until: AtomicU64,
    stable: AtomicU64,
    /// When the lease was live.
    pub(super) live: LiveTime,
    changed: watch::Sender<()>,
}

impl Gate {
    /// Closed. Of the time in which the lease was live at most so much is asked for.
    pub(super) fn new(kept: Duration) -> Self {
        let (changed, _) = watch::channel(());
        let [lease_until, stable] = std::array::from_fn(|_| AtomicU64::new(0));
        Self { lease_until, stable, live: LiveTime::new(kept), changed }
    }

    pub(super) fn set(&self, gate: ReadGate) {
        self.live.lease(clock::monotonic(), gate.lease_until);
        self.lease_until.store(gate.lease_until.0, Ordering::Release);
        self.stable.fetch_max(gate.stable.0, Ordering::AcqRel);
        self.changed.send_replace(());
    }

    /// What the core will say as soon as it hears that this was applied.
    pub(super) fn raise_stable(&self, stable: LogIndex) {
        self.stable.fetch_max(stable.0, Ordering::AcqRel);
        self.changed.send_replace(());
    }

    /// Wakes whoever waits, where anybody does.
    pub(super) fn look_again(&self) {
        if self.is_watched() {
            self.changed.send_replace(());
        }
    }

    pub(super) fn get(&self) -> ReadGate {
        ReadGate {
            lease_until: Monotonic(self.lease_until.load(Ordering::Acquire)),
            stable: LogIndex(self.stable.load(Ordering::Acquire)),
        }
    }

    /// Whether a read or an acknowledgement waits.
    pub(super) fn is_watched(&self) -> bool {
        self.changed.receiver_count() > 0
    }

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(super) fn lease_left(&self) -> Duration {
        self.get().lease_until.since(clock::monotonic())
    }
}
