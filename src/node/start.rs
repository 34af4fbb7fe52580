//! Puts a node together, and takes it apart again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};

use super::clock::HybridClock;
use super::divergence::Comparison;
use super::driver::Driver;
use super::durability::{self, Durability};
use super::encoding::Traffic;
use super::fatal::Fatal;
use super::fetch::{self, Fetching};
use super::locks::Locks;
use super::log_length::LogLength;
use super::member_table::MemberTable;
use super::mutations::Mutations;
use super::observers::Observers;
use super::shared::{Cuts, Gate, Received, Shared, ToDriver};
use super::snapshots::{Due, Lent, Unattested};
use super::space::{self, Space};
use super::staging::Staging;
use super::wall_clocks::WallClocks;
use super::{
    Handle, Transport, apply, checksums, locks, log_writer, merger, session, snapshots, sweep,
};
use crate::config::{Compression, OnQuorumLoss};
use crate::consensus::{Boot, Core, CoreConfig, CoreError, Input, Role, Sample, SessionInfo};
use crate::fs::{proto, query};
use crate::store::{DataDir, RaftLog, Recovered, State, StoreError};
use crate::types::{ClusterId, Ino, NodeId, Position, SessionId, Term};

/// How long a node that stops waits for another one to lead.
const HANDING_OVER: Duration = Duration::from_secs(1);

/// Settings of a node.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The cluster that the node belongs to.
    pub cluster: ClusterId,
    /// Where all of it is.
    pub directory: Arc<DataDir>,
    /// The core's.
    pub core: CoreConfig,
    /// How long a mutation or a strong read may wait.
    pub op_timeout: Duration,
    /// What they do while there is no quorum.
    pub on_quorum_loss: OnQuorumLoss,
    /// A snapshot is due when the log has grown by this many bytes, and by more than the last
    /// snapshot.
    pub snapshot_min_log: u64,
    /// However far a member lags, the log is cut when it has this many bytes.
    pub max_log: u64,
    /// Bytes of its disk that are kept for log and snapshots.
    pub reserve: u64,
    /// Bytes per second that are fetched in the background at most; 0: no limit.
    pub heal_rate: u64,
    /// What is done to bulk data that is sent.
    pub compression: Compression,
    /// Whether this node's mount reads strongly.
    pub strong: bool,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its state cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its log cannot be used.
    #[error(transparent)]
    Core(#[from] CoreError),
    /// The system gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    handle: Handle,
    driver: tokio::task::JoinHandle<()>,
    threads: Vec<JoinHandle<()>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Node {
    /// Starts a node over what was recovered from its data directory. Must be called within a tokio
    /// runtime; `streams` is the one that serves the peers, whose thread the driver shares.
    ///
    /// # Errors
    /// When the stores or the log cannot be used.
    pub fn start(
        config: NodeConfig,
        recovered: Recovered,
        transport: Arc<dyn Transport>,
        streams: &tokio::runtime::Handle,
    ) -> Result<Self, StartError> {
        let comparison = Comparison::of(&recovered.state, &config.directory)?;
        let members = meet_members(&recovered.state, transport.as_ref())?;
        let core = core_over(&config, &recovered)?;
        // These queues park a thread at once: one that spins first would take the cores from the others.
        let (driver, inbox) = mpsc::unbounded_channel();
        let (log, log_inbox) = mpsc::unbounded_channel();
        let (to_apply, apply_inbox) = mpsc::unbounded_channel();
        let (due, snapshot_due) = mpsc::channel(1);
        let node = config.core.node;
        let (locks, recalled_locks) = Locks::new();
        let shared = Arc::new(Shared {
            node,
            driver,
            gate: Gate::new(config.op_timeout),
            mutations: Mutations::new(node),
            locks,
            observers: Observers::default(),
            transport,
            clock: HybridClock::default(),
            session: watch::channel(None).0,
            leader: watch::channel(NodeId(0)).0,
            released: Mutex::new(Vec::new()),
            touches: Mutex::default(),
            touched: Notify::new(),
            refill: Notify::new(),
            members,
            members_changed: watch::channel(()).0,
            fatal: watch::channel(None).0,
            removals: Mutex::default(),
            stopping: AtomicBool::new(false),
            state: recovered.state,
            durability: Durability::new(recovered.files.carried_out()),
            files: recovered.files,
            space: Space::new(node, config.reserve),
            wall_clocks: WallClocks::default(),
            staging: Staging::new(),
            fetching: Fetching::new(),
            traffic: Traffic::default(),
            replayed: AtomicBool::new(false),
            runtime: tokio::runtime::Handle::current(),
            cuts: Cuts::default(),
            received: Received::default(),
            late: Mutex::default(),
            log_length: LogLength::of(&config),
            wanted_snapshot: AtomicU64::new(0),
            lent: Lent::default(),
            unattested: Unattested::default(),
            reached: recovered.reached,
            comparison,
            log: recovered.log,
            config,
        });
        let driver = Driver {
            core,
            due: due.clone(),
            pausing: None,
            healing: 0,
            shared: shared.clone(),
            inbox,
            log,
            apply: to_apply,
            role: (Role::Follower, Term(0), NodeId(0)),
            lease_was_live: false,
        };
        shared.input(Input::Stands(shared.comparison.standing()));
        let driver = streams.spawn(driver.run());
        stop_where_needed(&shared);
        let threads = threads(&shared, log_inbox, apply_inbox, (due, snapshot_due))?;
        let handle = Handle(shared, None);
        let tasks = tasks(&handle, recalled_locks);
        Ok(Self { handle, driver, threads, tasks })
    }

    /// The node's face.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits until the node's session is open and its lease is live, so that a mount can serve.
    pub async fn until_serving(&self) {
        let mut session = self.handle.0.session.subscribe();
        let mut gate = self.handle.0.gate.changes();
        // Neither sender goes away while `self` lives.
        let _ = session.wait_for(Option::is_some).await;
        while self.handle.0.gate.lease_left().is_zero() {
            let _ = gate.changed().await;
        }
    }

    /// Has another node lead, where this one does: for a replica that cannot go on.
    pub async fn give_leadership_away(&self, patience: Duration) {
        // The driver may have ended, too.
        let _ = tokio::time::timeout(patience, hand_over(&self.handle, patience)).await;
    }

    /// Closes the session and hands leadership over: nobody waits for this node from then on, also where its disk does not
    /// let it [`Self::stop`]. The mount must be gone.
    pub async fn leave(&self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
        session::close(&self.handle).await;
        hand_over(&self.handle, HANDING_OVER).await;
    }

    /// Stops cleanly a node that has left: ends the threads, and makes the cache of the state durable. Waits for the disk.
    ///
    /// # Errors
    /// When something cannot be made durable: the next start believes only what is.
    ///
    /// # Panics
    /// Where the sync at the end has panicked.
    pub async fn stop(self) -> Result<(), StoreError> {
        let Self { handle, driver, threads, tasks: _ } = self;
        let _ = handle.0.driver.send(ToDriver::Stop);
        if driver.await.is_err() {
            tracing::error!("the driver panicked");
        }
        // The other threads end when the driver has dropped their channels.
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("a thread of the node panicked");
                }
            }
        });
        let _ = joined.await;
        // What is applied is then known to have been in the log, whatever becomes of that.
        let shared = handle.0.clone();
        let synced = tokio::task::spawn_blocking(move || {
            let all = || {
                shared.log.promise()?;
                shared.files.sync()?;
                shared.state.flush()
            };
            all().inspect_err(|error| shared.fail(error))
        });
        synced.await.expect("a panic ends the daemon, and nothing cancels this")
    }
}

/// Who is a member; known by their addresses from now on.
fn meet_members(state: &State, transport: &dyn Transport) -> Result<MemberTable, StoreError> {
    let members = MemberTable::of(state)?;
    for member in &members.get().list {
        transport.learn(NodeId(member.node), &member.address);
    }
    Ok(members)
}

/// The core over what was recovered.
fn core_over(config: &NodeConfig, recovered: &Recovered) -> Result<Core<RaftLog>, StartError> {
    let boot = boot(&recovered.state)?;
    let logger = crate::telemetry::raft_logger();
    Ok(Core::new(config.core.clone(), recovered.log.clone(), boot, &logger)?)
}

/// Where the core starts over a state.
pub(super) fn boot(whole: &State) -> Result<Boot, StoreError> {
    let (term, conf_state) = (whole.term(), whole.conf_state());
    let sample = whole.ledger()?.last_sample();
    let sample = sample.map(|(index, digest)| Sample { index, digest: digest.0 });
    let state = whole.read();
    let sessions = query::sessions(&state)?
        .into_iter()
        .map(|(session, record)| SessionInfo {
            session,
            node: NodeId(record.node),
            strong: record.strong,
        })
        .collect();
    let members = query::members(&state)?;
    let joined = |member: &proto::Member| Some((NodeId(member.node), query::suffrage(member)?));
    let members = members.iter().filter_map(joined).collect();
    let applied = Position { index: state.applied(), term };
    Ok(Boot { applied, conf_state, sessions, members, sample })
}

async fn hand_over(handle: &Handle, patience: Duration) {
    let mut leader = handle.leader();
    if *leader.borrow() != handle.node() {
        return;
    }
    let others = handle.raft_status().await.map_or(0, |status| {
        status.members.iter().filter(|(node, votes, _)| *votes && *node != handle.node()).count()
    });
    if others == 0 {
        return;
    }
    handle.transfer_leader(None);
    let own = handle.node();
    let handed = leader.wait_for(|leader| *leader != own && *leader != NodeId(0));
    if tokio::time::timeout(patience, handed).await.is_err() {
        tracing::warn!("nobody takes over leadership: the others will elect a leader");
    }
}

/// What runs for as long as the node does.
fn tasks(
    handle: &Handle,
    recalled_locks: mpsc::UnboundedReceiver<(SessionId, Ino)>,
) -> Vec<tokio::task::JoinHandle<()>> {
    vec![
        tokio::spawn(session::keep_open(handle.clone())),
        tokio::spawn(session::housekeep(handle.clone())),
        tokio::spawn(locks::give_back(handle.clone(), recalled_locks)),
        tokio::spawn(space::watch(handle.clone())),
        tokio::spawn(fetch::heal(handle.clone())),
        tokio::spawn(durability::write_back(handle.clone())),
        tokio::spawn(sweep::collect(handle.clone())),
    ]
}

/// Whoever waits for missing bytes is told when there may be some, and so is who merges them.
fn tell_readers(shared: &Arc<Shared>, staged: mpsc::WeakSender<()>) {
    // The files are part of what is shared.
    let weak = Arc::downgrade(shared);
    shared.files.on_change(move || {
        if let Some(shared) = weak.upgrade() {
            shared.fetching.changed.notify_waiters();
            // The thread may be at work already, or at its end.
            let _ = staged.upgrade().map(|staged| staged.try_send(()));
        }
    });
}

/// What cannot be read of the state is built anew at the next start. A state that is known to be wrong says nothing of who is
/// a member.
fn stop_where_needed(shared: &Arc<Shared>) {
    // The state is part of what is shared.
    let weak = Arc::downgrade(shared);
    shared.state.on_damage(move |error| {
        if let Some(shared) = weak.upgrade() {
            shared.fail(error);
        }
    });
    if !shared.comparison.is_diverged() && shared.members.get().is_removed(shared.node) {
        shared.fail(Fatal::removed(shared.node));
    }
}

/// Has the kernel prefer the calling thread, where it lets us: others wait for its answers, and their
/// programs' own work must not keep it from sending heartbeats.
pub fn run_promptly() {
    // Without the privilege everything still works, only later under load.
    let _ = rustix::process::setpriority_process(None, -10);
}

/// Starts the threads. They end once the driver has dropped what it gives the first two.
fn threads(
    shared: &Arc<Shared>,
    mut log_inbox: mpsc::UnboundedReceiver<log_writer::Work>,
    mut apply_inbox: mpsc::UnboundedReceiver<apply::Work>,
    (due, mut snapshot_due): (mpsc::Sender<Due>, mpsc::Receiver<Due>),
) -> Result<Vec<JoinHandle<()>>, StartError> {
    let (staged, mut merge_due) = mpsc::channel(1);
    tell_readers(shared, staged.downgrade());
    let (going_on, ended) = std::sync::mpsc::channel();
    let [of_log, of_apply, of_merge, of_snapshot] = std::array::from_fn(|_| shared.clone());
    let of_checksums = Handle(shared.clone(), None);
    Ok(vec![
        thread("log", move || log_writer::run(&of_log, &mut log_inbox))?,
        thread("apply", move || {
            apply::run(&of_apply, &mut apply_inbox, &due, &staged);
            drop(going_on);
        })?,
        thread("merge", move || merger::run(&of_merge, &mut merge_due))?,
        thread("snapshot", move || snapshots::run(&of_snapshot, &mut snapshot_due))?,
        thread("checksums", move || checksums::run(&of_checksums, &ended))?,
    ])
}

fn thread(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StartError> {
    let body = move || {
        run_promptly();
        #[cfg(debug_assertions)]
        panic_where_a_test_asks();
        body();
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(body).map_err(StartError::Thread)
}

/// A test names the thread that is to panic.
#[cfg(debug_assertions)]
fn panic_where_a_test_asks() {
    let asked = std::env::var("QUORUMFS_TEST_PANIC");
    let own = std::thread::current();
    assert!(asked.ok().as_deref() != own.name(), "a test has asked for it");
}
