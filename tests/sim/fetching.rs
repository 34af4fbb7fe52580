//! Bytes that a node lacks come from a peer that has them; and stages are merged, in steps that a crash may cut.

use std::collections::BTreeSet;

use quorumfs::fs::query;
use quorumfs::store::says_it_lacks;
use quorumfs::types::{ByteRange, LogIndex};

use crate::clock::{MICRO, MILLI, SECOND};
use crate::drive::Key;
use crate::files::Sync;
use crate::node::NodeEvent;
use crate::state::State;
use crate::world::{Event, World};

/// Bytes that are asked for at once.
const PIECE: u64 = 40;
/// Pieces that are under way at once.
const AT_ONCE: usize = 8;
/// How often it is looked whether this node has applied what a peer's bytes are of.
const LOOKS: u64 = 400;

/// What a node asks for, and another gives.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub key: Key,
    pub range: ByteRange,
    /// The data_version that is needed, or a later one.
    pub version: LogIndex,
}

#[derive(Clone, Debug)]
pub enum Fetch {
    Ask(Wanted),
    /// Bytes, and the version that they are of.
    Given {
        wanted: Wanted,
        version: LogIndex,
        data: Vec<u8>,
        looks: u64,
    },
}

/// What is under way.
pub type UnderWay = BTreeSet<(Key, u64)>;

impl World {
    /// Something that was missing may be here, or will not come by itself.
    pub fn bytes_changed(&mut self, node: usize) {
        self.merge_later(node);
        if self.nodes[node].daemon.is_some() {
            self.retry_waiting(node);
        }
    }

    pub fn fetch_later(&mut self, node: usize) {
        let delay = self.random.skewed(MILLI, 200 * MILLI);
        self.after(delay, node, NodeEvent::FetchRound);
    }

    /// Asks for some of what is missing.
    pub fn fetch_round(&mut self, node: usize) {
        for (key, part, version) in self.nodes[node].files.to_fetch() {
            let daemon = self.nodes[node].daemon.as_mut().expect("it runs");
            if daemon.fetching.len() >= AT_ONCE {
                break;
            }
            if !daemon.fetching.insert((key, part.start)) {
                continue;
            }
            let range = ByteRange { end: part.end.min(part.start + PIECE), ..part };
            let Some(peer) = self.some_peer(node) else { break };
            let wanted = Wanted { key, range, version };
            if self.nobody_has(node, wanted) && self.nodes[node].files.believe_at_last(key, range) {
                self.coverage.count("bytes: believed at last");
                self.check_that_nobody_has(node, wanted);
                let daemon = self.nodes[node].daemon.as_mut().expect("it runs");
                daemon.fetching.remove(&(key, part.start));
                self.check_bytes(node, key);
                self.bytes_changed(node);
                continue;
            }
            self.coverage.count("bytes: asked for");
            self.send_fetch(node, peer, &Fetch::Ask(wanted));
            self.after(SECOND / 2, node, NodeEvent::FetchOver { key, start: part.start });
        }
        self.fetch_later(node);
    }

    /// Some other member, or one that is removed and still has a place, as far as this node knows.
    pub fn some_peer(&mut self, node: usize) -> Option<usize> {
        let state = &self.nodes[node].state;
        let members = state.members().into_iter().map(|(id, _)| id.0);
        let placed = &state.membership;
        let voters = placed.get_voters().iter().chain(placed.get_voters_outgoing()).copied();
        // One that differs applies nothing, but its core knows who has a place.
        let daemon = self.nodes[node].daemon.as_ref().expect("it runs");
        let placed_since = daemon.core.membership().map(|(id, _)| id.0);
        let peers: BTreeSet<u64> = members.chain(voters).chain(placed_since).collect();
        let places = peers.into_iter().map(|id| usize::try_from(id).expect("few nodes") - 1);
        let others: Vec<_> = places.filter(|place| *place != node).collect();
        (!others.is_empty()).then(|| self.random.pick(&others))
    }

    /// Whether all others would say at once that they lack it, and this one may believe that.
    fn nobody_has(&self, node: usize, wanted: Wanted) -> bool {
        let others = (0..self.nodes.len()).filter(|other| *other != node);
        self.is_ready(node)
            && others.filter(|other| !self.nodes[*other].is_retired).all(|other| {
                let is_reached = self.network.is_open(node, other)
                    && self.network.is_open(other, node)
                    && self.nodes[other].backlog.is_none();
                is_reached && self.nodes[other].daemon.is_some() && self.lacks(other, wanted)
            })
    }

    /// What a node says to whom it does not give what is wanted.
    fn lacks(&self, node: usize, wanted: Wanted) -> bool {
        let target = &self.nodes[node];
        let has = self.version_of(node, wanted).is_some()
            && target.files.read(wanted.key, wanted.range).is_some();
        let applied = target.state.applied.index;
        !has && says_it_lacks(self.is_ready(node), applied, wanted.version)
    }

    /// Its state is the right one, as far as it knows, and has come to what its files were when the last process died.
    fn is_ready(&self, node: usize) -> bool {
        let target = &self.nodes[node];
        target.daemon.as_ref().is_some_and(|daemon| daemon.has_replayed)
            && !target.is_off()
            && target.is_sound()
    }

    /// Who believes a copy that was in doubt may give it to others.
    fn check_that_nobody_has(&self, node: usize, wanted: Wanted) {
        for (place, other) in self.nodes.iter().enumerate() {
            let inode = query::inode(&other.state.view, wanted.key.0).expect("nothing rots here");
            let knows = inode.is_some_and(|inode| {
                inode.generation == wanted.key.1.0 && LogIndex(inode.data_version) >= wanted.version
            });
            let is_whole = other.files.read(wanted.key, wanted.range).is_some();
            let has = place != node && !other.is_retired && other.state.wrong.is_none();
            assert!(
                !(has && knows && is_whole),
                "node {} believes bytes of {:?} that node {} has",
                self.nodes[node].id,
                wanted,
                other.id
            );
        }
    }

    fn send_fetch(&mut self, from: usize, to: usize, message: &Fetch) {
        for delay in self.network.carry(&mut self.random, from, to) {
            self.schedule(delay, Event::Fetch { from, to, message: message.clone() });
        }
    }

    pub fn fetch(&mut self, node: usize, from: usize, message: Fetch) {
        match message {
            Fetch::Ask(wanted) => {
                let before = self.version_of(node, wanted);
                let half = wanted.range.start + wanted.range.len() / 2;
                let range = ByteRange { end: half, ..wanted.range };
                let first = self.nodes[node].files.read(wanted.key, range);
                if let (Some(before), Some(first)) = (before, first) {
                    let delay = self.random.skewed(MICRO, 5 * MILLI);
                    self.after(delay, node, NodeEvent::Give { to: from, wanted, before, first });
                }
            }
            Fetch::Given { wanted, version, data, looks } => {
                self.given(node, from, wanted, version, data, looks);
            }
        }
    }

    /// The data_version of what is wanted, where this node has it.
    fn version_of(&self, node: usize, wanted: Wanted) -> Option<LogIndex> {
        // Until the state has come to what the files were when the last process died, they may be newer.
        // Who differs and does not know it yet might give anything: that is not looked at here.
        if !self.is_ready(node) {
            return None;
        }
        let inode = query::inode(&self.nodes[node].state.view, wanted.key.0);
        let inode = inode.expect("nothing rots here")?;
        let version = LogIndex(inode.data_version);
        (inode.generation == wanted.key.1.0 && version >= wanted.version).then_some(version)
    }

    /// The second half of what is given. What was read while it changed may be of either version.
    pub fn give(
        &mut self,
        node: usize,
        to: usize,
        wanted: Wanted,
        before: LogIndex,
        first: Vec<u8>,
    ) {
        let mut data = first;
        let rest = ByteRange { start: wanted.range.start + data.len() as u64, ..wanted.range };
        let Some(second) = self.nodes[node].files.read(wanted.key, rest) else { return };
        data.extend(second);
        if self.version_of(node, wanted) == Some(before) {
            let given = Fetch::Given { wanted, version: before, data, looks: LOOKS };
            self.send_fetch(node, to, &given);
        } else {
            self.coverage.count("bytes: changed while they were read for a peer");
        }
    }

    fn given(
        &mut self,
        node: usize,
        from: usize,
        wanted: Wanted,
        version: LogIndex,
        data: Vec<u8>,
        looks: u64,
    ) {
        let target = &mut self.nodes[node];
        if target.state.applied.index < version {
            self.coverage.count("bytes: fetched before their version was applied");
            if looks > 0 {
                let message = Fetch::Given { wanted, version, data, looks: looks - 1 };
                self.after(5 * MILLI, node, NodeEvent::Fetch { from, message });
            }
            return;
        }
        let filled = target.files.install(wanted.key, wanted.range.start, &data, version);
        self.coverage.add("bytes: fetched", filled as u64);
        let daemon = self.nodes[node].daemon.as_mut().expect("it runs");
        daemon.fetching.remove(&(wanted.key, wanted.range.start));
        self.check_bytes(node, wanted.key);
        self.bytes_changed(node);
    }

    // ------------------------------------------------------------ merging and syncing

    pub fn merge_later(&mut self, node: usize) {
        let target = &mut self.nodes[node];
        let Some(daemon) = target.daemon.as_mut() else { return };
        if daemon.merging || target.files.is_in_place() {
            return;
        }
        daemon.merging = true;
        let delay = self.random.skewed(MILLI, 300 * MILLI);
        self.after(delay, node, NodeEvent::Merge);
    }

    /// One step of the merger, which may be the last of the process.
    pub fn merge(&mut self, node: usize) {
        self.nodes[node].daemon.as_mut().expect("it runs").merging = false;
        if self.stormy && self.random.chance(2) {
            let steps = self.random.within(1, 2);
            self.nodes[node].files.die_after(steps);
        }
        let merged = self.nodes[node].files.merge_some();
        if merged {
            self.coverage.count("stages: merge steps");
        }
        if self.nodes[node].files.died() {
            self.coverage.count("stages: merges cut by a crash");
            let power_lost = self.random.chance(500);
            self.crash(node, power_lost);
            return;
        }
        self.nodes[node].files.die_never();
        if merged {
            self.merge_later(node);
        }
    }

    /// Bytes and state go to the disk: a snapshot begins, or only a sync.
    pub fn snapshot(&mut self, node: usize) {
        let is_right = self.records_add_up(node) && self.nodes[node].is_sound();
        let writes_one = self.random.chance(700) && is_right;
        let state = writes_one.then(|| Box::new(self.nodes[node].state.clone()));
        if let Some(state) = &state {
            self.nodes[node].files.pass(state.applied.index);
        }
        let sync = self.nodes[node].files.begin_sync();
        let took = self.nodes[node].sync_time(&mut self.random, self.now);
        self.after(took, node, NodeEvent::Synced { sync, state });
    }

    /// It is there, and counts once it is attested.
    pub fn synced(&mut self, node: usize, sync: Sync, state: Option<Box<State>>) {
        // Between the sync and what says so.
        let dies = self.stormy && self.random.chance(20);
        self.nodes[node].files.end_sync(sync, !dies);
        if dies {
            self.coverage.count("syncs cut by a crash");
            self.crash(node, true);
            return;
        }
        let newest = self.nodes[node].snapshot.applied;
        if let Some(state) = state.filter(|state| state.applied >= newest) {
            let daemon = self.nodes[node].daemon.as_mut().expect("it writes them");
            daemon.candidate = Some(*state);
            self.count_candidate(node);
        }
        self.snapshot_later(node);
    }

    /// That no byte of a file that a node has is older than its state, or was never written.
    pub fn check_bytes(&mut self, node: usize, key: Key) {
        let Self { nodes, reference, .. } = self;
        let applied = nodes[node].state.applied.index;
        if !nodes[node].is_off() && nodes[node].files.are_of(applied) {
            reference.check(nodes[node].id, &nodes[node].files, key, applied);
        }
    }
}
