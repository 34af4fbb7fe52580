//! One node: what its disk and its memory hold, and what can happen to it.

use std::collections::{BTreeMap, VecDeque};

use quorumfs::consensus::{
    Committed, Core, CoreConfig, Input, PeerMessage, Received, Role, Sample, Standing,
};
use quorumfs::fs::{Change, Unapplied};
use quorumfs::types::{Ino, LogIndex, NodeId, ProposalKey, SessionId, StageId, Term};

use crate::clock::{Clock, Nanos, SECOND};
use crate::disk::Disk;
use crate::divergence::Retracing;
use crate::drive::Key;
use crate::fetching::{Fetch, UnderWay, Wanted};
use crate::files::{Files, Sync};
use crate::lanes::{Incoming, ToStage};
use crate::mount::Mount;
use crate::random::Random;
use crate::state::State;

pub const SESSION_TTL: std::time::Duration = std::time::Duration::from_secs(2);

/// A machine with a data directory.
pub struct Node {
    pub id: NodeId,
    pub clock: Clock,
    pub disk: Disk,
    /// The last snapshot file; durable.
    pub snapshot: State,
    /// The cache: what was kept of it survives the daemon, but not a power loss.
    pub state: State,
    /// What was written of it: it is behind.
    pub kept: State,
    /// It is to be built from the snapshot: power was lost, or there has never been one.
    pub is_state_lost: bool,
    /// Backing files and stages; a power loss tears them.
    pub files: Files,
    pub daemon: Option<Daemon>,
    /// How often it was started; events of earlier lives are void.
    pub boots: u64,
    /// What has come in while the daemon is stopped (SIGSTOP); none while it runs.
    pub backlog: Option<Vec<NodeEvent>>,
    pub slow_disk_until: Nanos,
    pub applier_stuck_until: Nanos,
    /// It is stuck between changing the state and making sure that the kernel shows it.
    pub kernel_is_stuck: bool,
    /// It is never to vote.
    pub is_learner: bool,
    /// It was removed from the cluster, and its daemon knows it.
    pub is_retired: bool,
    /// It was found to differ: up to where its files are to be believed. Durable.
    pub diverged: Option<LogIndex>,
    /// It has healed: at which entry. What it lacked then, it has again once its disk holds all up to there.
    pub healed_at: Option<LogIndex>,
    /// Up to where its state was right that is being replaced.
    pub trusted: LogIndex,
    /// What earlier lives may have done to files goes no further than this entry.
    pub reached: LogIndex,
    /// The daemon dies in the middle of what it is doing, after so many effects.
    pub dies_after_effects: Option<u64>,
}

/// A running daemon.
pub struct Daemon {
    pub core: Core<Disk>,
    /// Inputs that follow from effects; handed in once there are no more effects.
    pub inbox: VecDeque<Input>,
    pub to_invalidate: VecDeque<Vec<Received>>,
    /// What is committed, and whether nobody else serves anything older.
    pub to_apply: VecDeque<(Vec<Committed>, bool)>,
    pub applying: bool,
    /// What the core is told with its next input: nobody waits for it.
    pub late: Vec<Input>,
    /// What was received and is not applied: reads of it wait.
    pub unapplied: Unapplied,
    /// The entries that nothing older is served than, by their index.
    pub invalidated: BTreeMap<LogIndex, Term>,
    /// Applied, but the kernel may still serve what was before.
    pub round: Option<Round>,
    /// What this node has made sure that it shows.
    pub shown: LogIndex,
    pub disk_busy_until: Nanos,
    pub role: Role,
    pub term: Term,
    pub mount: Mount,
    /// Connections on which peers send stages.
    pub incoming: BTreeMap<(usize, u64), Incoming>,
    /// What peers are asked for.
    pub fetching: UnderWay,
    /// The merger is about to look.
    pub merging: bool,
    /// The state has come to what the files were when the last process died.
    pub has_replayed: bool,
    /// A snapshot of the leader is on its way.
    pub is_installing: bool,
    /// What its core was told of its state.
    pub standing: Standing,
    /// A snapshot that is written and does not count yet.
    pub candidate: Option<State>,
    /// Since when a peer waits for it.
    pub wanted_since: Option<Nanos>,
    pub retracing: Retracing,
}

/// Entries that were applied together.
#[derive(Debug)]
pub struct Round {
    pub report: Input,
    pub last: LogIndex,
    pub changes: Vec<Change>,
    /// Those of which the kernel is told when they are applied.
    pub forgets: Vec<Change>,
    /// Commands that may be answered as soon as this is shown.
    pub answers: Vec<ProposalKey>,
    /// What the state came to, where the last one asks for it, and which entry that judges.
    pub sample: Option<(Sample, LogIndex)>,
}

/// What happens to a daemon.
#[derive(Debug)]
pub enum NodeEvent {
    Tick,
    Peer {
        from: NodeId,
        message: PeerMessage,
    },
    Connected {
        node: NodeId,
    },
    /// A guardian says that the daemon of that node is dead.
    Fenced {
        from: NodeId,
        session: SessionId,
    },
    Persisted {
        number: u64,
    },
    /// The applier has the kernel forget what was received.
    Invalidate,
    /// The applier takes its next entries.
    Apply,
    /// The kernel has forgotten what the last round changed.
    Show,
    /// A client's operation reaches the daemon.
    Attempt {
        client: usize,
        operation: usize,
    },
    /// A client's operation has waited for too long.
    Deadline {
        client: usize,
        operation: usize,
    },
    /// One of the programs that lock files goes on.
    Locker {
        locker: usize,
        step: u64,
    },
    /// A command about locks has waited for too long.
    LockDeadline {
        key: ProposalKey,
    },
    /// What was written under locks that are to go back is committed.
    ReturnLocks {
        ino: Ino,
    },
    Snapshot,
    /// It differs, or may, and looks for another state.
    Heal,
    /// A person has found out that it is wrong.
    FoundWrong,
    /// The cache is written as far as it has come.
    Keep,
    /// The process dies.
    Die,
    /// A sync of the whole file system is done; with the state as of its beginning, it is for a snapshot.
    Synced {
        sync: Sync,
        state: Option<Box<State>>,
    },
    Merge,
    /// It looks whether it has everything on its disk, and says so.
    Hold,
    Holds {
        from: NodeId,
        index: LogIndex,
    },
    /// A snapshot of a peer; or what its own snapshot and log lead to.
    SnapshotCame {
        state: Box<State>,
        own: bool,
    },
    ConnectLane {
        peer: usize,
    },
    LaneLost {
        peer: usize,
    },
    LaneEnded {
        from: usize,
        lane: u64,
    },
    Staged {
        from: usize,
        lane: u64,
        message: ToStage,
    },
    /// A stage of a peer is synced as far as it had come before its mark.
    MarkDue {
        from: usize,
        lane: u64,
        id: StageId,
        mark: u64,
    },
    Marked {
        from: usize,
        mark: u64,
        holds: bool,
    },
    OwnStageSynced {
        client: usize,
        id: StageId,
    },
    StageAgain {
        client: usize,
        id: StageId,
    },
    FetchRound,
    Fetch {
        from: usize,
        message: Fetch,
    },
    /// The rest of what a peer wants is read.
    Give {
        to: usize,
        wanted: Wanted,
        before: LogIndex,
        first: Vec<u8>,
    },
    /// Nobody has answered.
    FetchOver {
        key: Key,
        start: u64,
    },
}

impl Node {
    pub fn new(id: NodeId, genesis: &State, random: &mut Random) -> Self {
        Self {
            id,
            clock: Clock::new(random, 0),
            disk: Disk::new(genesis.applied),
            snapshot: genesis.clone(),
            state: genesis.clone(),
            kept: genesis.clone(),
            is_state_lost: true,
            files: Files::default(),
            daemon: None,
            boots: 0,
            backlog: None,
            slow_disk_until: 0,
            applier_stuck_until: 0,
            kernel_is_stuck: false,
            is_learner: false,
            is_retired: false,
            diverged: None,
            healed_at: None,
            trusted: LogIndex(0),
            reached: LogIndex(0),
            dies_after_effects: None,
        }
    }

    /// Starts the daemon on what the machine holds.
    pub fn boot(&mut self, random: &mut Random) {
        assert!(self.daemon.is_none(), "one daemon at a time");
        self.boots += 1;
        self.recover();
        let ticks = usize::try_from(random.within(12, 19)).expect("small");
        let config = CoreConfig {
            election_ticks: (ticks, ticks + 1),
            // Little, so that peers that lag are sent what is on the disk.
            kept_log_bytes: usize::try_from(random.pick(&[0, 2000, 1 << 20])).expect("small"),
            ..CoreConfig::new(self.id, SESSION_TTL)
        };
        let boot = self.boot_point();
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let core = Core::new(config, self.disk.clone(), boot, &logger).expect("the log is usable");
        self.daemon = Some(Daemon {
            core,
            inbox: VecDeque::new(),
            to_invalidate: VecDeque::new(),
            to_apply: VecDeque::new(),
            applying: false,
            late: Vec::new(),
            unapplied: Unapplied::default(),
            invalidated: BTreeMap::new(),
            round: None,
            shown: self.state.applied.index,
            disk_busy_until: 0,
            role: Role::Follower,
            term: Term(0),
            mount: Mount::default(),
            incoming: BTreeMap::new(),
            fetching: UnderWay::new(),
            merging: false,
            has_replayed: false,
            is_installing: false,
            standing: Standing::Sound,
            candidate: None,
            wanted_since: None,
            retracing: Retracing::default(),
        });
    }

    /// How long the disk takes for one sync now.
    pub fn sync_time(&self, random: &mut Random, now: Nanos) -> Nanos {
        if now < self.slow_disk_until {
            random.skewed(SECOND / 10, 3 * SECOND)
        } else {
            random.skewed(SECOND / 5000, SECOND / 100)
        }
    }

    /// Whether this node's session may serve reads at `now`.
    pub fn has_lease(&self, now: Nanos) -> bool {
        self.daemon.as_ref().is_some_and(|daemon| {
            daemon.mount.session.is_some() && self.clock.local(now) < daemon.core.gate().lease_until
        })
    }

    pub fn leads(&self) -> bool {
        self.daemon.as_ref().is_some_and(|daemon| daemon.role == Role::Leader)
    }
}
