//! Replicas whose state becomes another one behind their backs: how that is done, and what their drivers do once it is
//! found.

use prost::Message;
use quorumfs::consensus::{Committed, Input, Sample, Standing, membership_after};
use quorumfs::fs::keys::{self, Parsed};
use quorumfs::fs::{Digest, Finding, Ledger, Verdict, proto};
use quorumfs::store::first_state_of_files;
use quorumfs::types::{Ino, LogIndex, Position, Term};
use raft::Storage;

use crate::clock::{MILLI, SECOND};
use crate::node::{Daemon, Node, NodeEvent};
use crate::random::Random;
use crate::state::{Effect, State};
use crate::world::World;

/// One alone is right by itself.
const VOTERS_MIN: usize = 2;
/// How often a replica that differs looks for another state.
const ASKS: u64 = SECOND / 2;
/// A peer waits so long for a snapshot that nobody can compare.
const WAITS: u64 = 3 * SECOND;
/// How often what was written of the cache is brought to where it is.
const KEEPS: u64 = SECOND;

/// What is known of the state that a replica's own snapshot and log lead to.
#[derive(Debug, Default)]
pub struct Retracing {
    /// It has taken the place of another one, and nobody has found it equal since.
    pub is_untried: bool,
    fails: bool,
    examined: LogIndex,
}

/// How a state becomes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// A record changes on the disk: the digest knows nothing of it.
    Rotten,
    /// A command does something else than elsewhere: the digest is that of the wrong state.
    Misapplied,
}

impl Node {
    /// Nothing that it shows or does to files is to be compared with what it should be.
    pub fn is_off(&self) -> bool {
        self.state.wrong.is_some() || self.diverged.is_some()
    }

    /// It may lack what others have in memory only.
    pub fn is_healing(&self) -> bool {
        self.healed_at.is_some_and(|at| self.files.held() < at) && !self.is_retired
    }

    /// What its core is told.
    pub fn standing(&self) -> Standing {
        match (self.diverged, self.state.ledger.doubt()) {
            (Some(_), _) => Standing::Diverged,
            (None, Some(_)) => Standing::Doubtful,
            (None, None) => Standing::Sound,
        }
    }

    pub fn is_sound(&self) -> bool {
        self.standing() == Standing::Sound
    }

    /// The first state that all of the files have come to.
    fn at_least(&self) -> LogIndex {
        let (applied, carried_out) = (self.state.applied.index, self.files.carried_out());
        first_state_of_files(applied, carried_out, self.reached, self.disk.end())
    }

    /// The state that its own snapshot and log lead to, and what each entry did; nothing where a majority has another one.
    fn retrace(&self, last: LogIndex) -> Option<(State, Vec<Step>)> {
        let mut state = State { ledger: Ledger::default(), ..self.snapshot.clone() };
        let mut steps = Vec::new();
        let first = state.applied.index.0 + 1;
        if first > last.0 {
            return Some((state, steps));
        }
        let context = raft::GetEntriesContext::empty(false);
        let entries = self.disk.entries(first, last.0 + 1, None, context);
        for entry in entries.expect("what follows the snapshot is there") {
            let position = Position { index: LogIndex(entry.index), term: Term(entry.term) };
            let conf_state = membership_after(&state.membership, &entry).expect("it was applied");
            let data = if conf_state.is_some() { bytes::Bytes::new() } else { entry.data };
            let entry = Committed { position, data, conf_state };
            let effect = state.apply(&entry);
            if let Some(verdict) = effect.verdict
                && matches!(state.judge(verdict).0, Finding::Differs { .. })
            {
                return None;
            }
            steps.push((entry, state.digest, effect));
        }
        Some((state, steps))
    }
}

/// An entry, what the state came to with it, and what it did.
type Step = (Committed, Digest, Effect);

impl State {
    /// Takes in what the log says of an earlier entry, at the last one that was applied.
    pub fn judge(&mut self, verdict: Verdict) -> (Finding, Sample) {
        let finding = self.ledger.judge(verdict);
        let index = self.applied.index;
        self.ledger.sample(index, self.digest);
        (finding, Sample { index, digest: self.digest.0 })
    }

    /// What its records add up to.
    fn sum(&self) -> Digest {
        let mut sum = Digest::default();
        self.view.iter().for_each(|(key, value)| sum.add(key, value));
        sum
    }

    /// Changes some record that can be wrong without stopping anybody.
    fn spoil(&mut self, how: Wrong, random: &mut Random) {
        let may_be_wrong = |key: &[u8], value: &[u8]| match keys::parse(key) {
            Some(Parsed::Inode { .. }) => {
                let inode = proto::Inode::decode(value).expect("nothing rots here");
                inode.kind() == proto::Kind::Regular
            }
            Some(Parsed::Xattr { .. }) => true,
            // Only those that come and go.
            Some(Parsed::Dentry { parent, .. }) => parent != Ino::ROOT,
            _ => false,
        };
        let pairs = self.view.iter().filter(|(key, value)| may_be_wrong(key, value));
        let candidates: Vec<Vec<u8>> = pairs.map(|(key, _)| key.clone()).collect();
        let key = candidates[random.index(candidates.len())].clone();
        let before = self.view.remove(&key).expect("it was just found");
        let after = spoilt(&key, before.clone(), random);
        if how == Wrong::Misapplied {
            self.digest.remove(&key, &before);
            if let Some(after) = &after {
                self.digest.add(&key, after);
            }
        }
        if let Some(after) = after {
            self.view.insert(key, after);
        }
    }
}

fn spoilt(key: &[u8], mut value: Vec<u8>, random: &mut Random) -> Option<Vec<u8>> {
    match keys::parse(key) {
        Some(Parsed::Inode { .. }) => {
            let mut inode = proto::Inode::decode(&value[..]).expect("nothing rots here");
            if random.chance(700) {
                inode.size += 8;
            } else {
                inode.mode ^= 0o111;
            }
            Some(inode.encode_to_vec())
        }
        Some(Parsed::Xattr { .. }) => {
            *value.last_mut().expect("a register has bytes") ^= 1;
            Some(value)
        }
        _ => None,
    }
}

impl World {
    /// A replica's state becomes another one, where enough others are right.
    pub fn spoil(&mut self, node: usize, how: Wrong) -> &'static str {
        let voters = self.nodes[node].state.membership.get_voters().len();
        // It is not to be the last one that has some bytes.
        let all_right = self.are_all_sound() && self.members().all(|n| n.files.lacks_nothing());
        let target = &mut self.nodes[node];
        // Where it comes again at once, the next state is to be another's.
        let may_come = |daemon: &Daemon| voters > VOTERS_MIN || !daemon.retracing.is_untried;
        let runs = target.daemon.as_ref().is_some_and(may_come)
            && !target.is_retired
            && target.state.wrong.is_none();
        if runs && all_right && voters >= VOTERS_MIN && self.is_membership_settled() {
            let target = &mut self.nodes[node];
            target.state.spoil(how, &mut self.random);
            target.state.wrong = Some(how);
            self.coverage.count("divergence: states that were spoilt");
        }
        match how {
            Wrong::Rotten => "fault: record rotten",
            Wrong::Misapplied => "fault: command misapplied",
        }
    }

    /// What the log says of this replica's state, which it has just come to.
    pub fn judged(&mut self, node: usize, finding: Finding) {
        match finding {
            Finding::Equal => {
                let daemon = self.nodes[node].daemon.as_mut().expect("its applier runs");
                daemon.retracing = Retracing::default();
                self.note_right(node);
                self.stand(node);
                self.count_candidate(node);
            }
            Finding::Differs { .. } => {
                self.coverage.count("divergence: found by digests");
                self.diverge(node);
            }
            Finding::Doubt => {
                self.coverage.count("divergence: no majority");
                self.stand(node);
                self.after(ASKS, node, NodeEvent::Heal);
            }
            Finding::Nothing => {}
        }
    }

    fn diverge(&mut self, node: usize) {
        let target = &mut self.nodes[node];
        assert!(target.state.wrong.is_some(), "node {} is as all others", target.id);
        target.diverged = Some(target.state.ledger.equal());
        self.trace.note(self.now, target.id.0, "diverged", &[]);
        self.stand(node);
        self.after(ASKS, node, NodeEvent::Heal);
        // Before the cache says so.
        if self.stormy && self.random.chance(200) {
            self.coverage.count("divergence: killed before the state says so");
            self.after(0, node, NodeEvent::Die);
        } else {
            self.nodes[node].kept = self.nodes[node].state.clone();
        }
    }

    /// What was spoilt may have been written anew since: then it is right again, and nobody will find anything.
    fn note_right(&mut self, node: usize) {
        let state = &self.nodes[node].state;
        let is_right = |(index, digest)| self.truth.digest_at(index) == Some(digest);
        // Nobody will judge those again that came before the last verdict.
        let judged = state.ledger.equal();
        let are_right = is_right((state.applied.index, state.digest))
            && state.ledger.samples().filter(|(index, _)| *index > judged).all(is_right);
        if state.wrong == Some(Wrong::Misapplied) && are_right {
            self.nodes[node].state.wrong = None;
        }
    }

    /// What was written of the cache is all that is left of it where its daemon dies; whether its machine really may lose
    /// power.
    pub fn lose_state(&mut self, node: usize, power_lost: bool) -> bool {
        let target = &mut self.nodes[node];
        let is_found = target.diverged.is_some();
        if target.state.wrong.is_some() && !is_found {
            // What a wrong state has done to files that goes before it is found, no digest knows.
            target.kept = target.state.clone();
            return false;
        }
        target.state = target.kept.clone();
        power_lost
    }

    pub fn keep_later(&mut self, node: usize) {
        let delay = self.random.within(KEEPS / 2, KEEPS);
        self.after(delay, node, NodeEvent::Keep);
    }

    pub fn keep(&mut self, node: usize) {
        // Whoever is killed often writes no snapshots. What clients are answered meanwhile nobody can judge.
        let is_rotten = self.nodes[node].state.wrong == Some(Wrong::Rotten);
        let is_right = !is_rotten || self.random.chance(700) || self.records_add_up(node);
        if is_right {
            self.nodes[node].kept = self.nodes[node].state.clone();
        }
        self.keep_later(node);
    }

    /// Tells the core, where that is new; the session goes, or one may come.
    pub fn stand(&mut self, node: usize) {
        let standing = self.nodes[node].standing();
        let Some(daemon) = self.nodes[node].daemon.as_mut() else { return };
        if std::mem::replace(&mut daemon.standing, standing) == standing {
            return;
        }
        daemon.inbox.push_back(Input::Stands(standing));
        match (standing, daemon.mount.session) {
            (Standing::Sound, _) => self.open_session(node),
            (Standing::Doubtful | Standing::Diverged, Some(session)) => {
                self.session_ended(node, session);
            }
            (Standing::Doubtful | Standing::Diverged, None) => {}
        }
    }

    /// Applies nothing: the state of a peer takes the place of this one, and what comes after it is handed out again.
    pub fn is_frozen(&mut self, node: usize) -> bool {
        let is_frozen = self.nodes[node].diverged.is_some();
        if is_frozen && let Some(daemon) = self.nodes[node].daemon.as_mut() {
            let entries = daemon.to_apply.drain(..).flat_map(|(entries, _)| entries);
            if let Some(last) = entries.last() {
                daemon.unapplied.applied(last.position.index);
            }
        }
        is_frozen
    }

    /// Looks for another state: its own log leads to one, or some member has one.
    pub fn heal(&mut self, node: usize) {
        let standing = self.nodes[node].standing();
        if standing == Standing::Sound {
            return;
        }
        self.after(ASKS, node, NodeEvent::Heal);
        if standing == Standing::Doubtful {
            return self.examine(node);
        }
        let at_least = self.nodes[node].at_least();
        let voters = self.nodes[node].state.membership.get_voters().len();
        let id = self.nodes[node].id.0;
        let daemon = self.nodes[node].daemon.as_mut().expect("it runs");
        let (committed, fails) = (daemon.core.commit_index(), daemon.retracing.fails);
        self.trace.remark(self.now, id, || {
            format!("heals: at {committed} of at least {at_least}, own log of no use: {fails}")
        });
        let daemon = self.nodes[node].daemon.as_mut().expect("as above");
        if daemon.is_installing {
            return;
        }
        let retracing = &mut daemon.retracing;
        retracing.fails |= retracing.is_untried;
        if !retracing.fails {
            if at_least > daemon.core.commit_index() {
                return;
            }
            // As where what was wrong comes again. Of two voters the other may be in doubt then, and gives no state.
            let fails = voters > 2 && self.random.chance(300);
            match self.nodes[node].retrace(at_least).filter(|_| !fails) {
                None => {
                    let daemon = self.nodes[node].daemon.as_mut().expect("it runs");
                    daemon.retracing.fails = true;
                    self.coverage.count("divergence: own log of no use");
                }
                Some((state, steps)) => {
                    self.truth_is_known(&steps);
                    let daemon = self.nodes[node].daemon.as_mut().expect("it runs");
                    daemon.is_installing = true;
                    let delay = self.random.skewed(MILLI, SECOND);
                    let state = Box::new(state);
                    self.after(delay, node, NodeEvent::SnapshotCame { state, own: true });
                }
            }
            return;
        }
        self.ask_for_state(node, at_least);
    }

    /// Perhaps nobody who is right has come so far.
    fn truth_is_known(&mut self, steps: &[Step]) {
        for (entry, digest, effect) in steps {
            if self.truth.applied(entry, Some(*digest), effect, &mut self.coverage) {
                self.reference.carry_out_all(entry.position.index, &effect.applied.effects);
            }
        }
    }

    /// Where the voters differ: whether its own log says something else than its state.
    fn examine(&mut self, node: usize) {
        let target = &mut self.nodes[node];
        let Some(index) = target.state.ledger.doubt() else { return };
        let found = target.state.ledger.sample_at(index);
        let daemon = target.daemon.as_mut().expect("it runs");
        let is_new = std::mem::replace(&mut daemon.retracing.examined, index) < index;
        if !is_new || found.is_none() {
            return;
        }
        let voters = target.state.membership.get_voters().len();
        let is_wrong = target.state.wrong.is_some();
        if voters == 2 && is_wrong && self.may_replace() && self.random.chance(300) {
            // The same comes out again.
            let delay = self.random.within(SECOND, 3 * SECOND);
            return self.after(delay, node, NodeEvent::FoundWrong);
        }
        let target = &mut self.nodes[node];
        let own = target.retrace(index);
        let expected = own.and_then(|(own, _)| own.ledger.sample_at(index));
        if expected.is_some() && expected != found {
            self.coverage.count("divergence: found by itself");
            self.diverge(node);
        }
    }

    /// In doubt only a person can help.
    pub fn found_wrong(&mut self, node: usize) {
        let is_wrong = self.nodes[node].state.wrong.is_some();
        let is_doubtful = self.nodes[node].standing() == Standing::Doubtful;
        if is_wrong && is_doubtful && self.may_replace() {
            self.replace_wrong(node);
        }
    }

    /// Asks some member for its state, which is to cover all that the files have come to.
    fn ask_for_state(&mut self, node: usize, at_least: LogIndex) {
        let Some(peer) = self.some_peer(node) else { return };
        let is_reached = self.network.is_open(node, peer) && self.network.is_open(peer, node);
        if !is_reached || self.nodes[peer].daemon.is_none() {
            return;
        }
        if self.nodes[peer].snapshot.applied.index < at_least {
            if self.nodes[peer].state.applied.index >= at_least
                && self.nodes[peer].backlog.is_none()
            {
                self.take_candidate(peer, at_least);
            }
            return;
        }
        self.nodes[node].daemon.as_mut().expect("it runs").is_installing = true;
        let state = Box::new(self.nodes[peer].snapshot.clone());
        let delay = self.random.skewed(MILLI, SECOND);
        self.after(delay, node, NodeEvent::SnapshotCame { state, own: false });
    }

    /// A peer wants a snapshot that covers an entry: it is taken, and counts once it is attested.
    fn take_candidate(&mut self, node: usize, at_least: LogIndex) {
        let target = &mut self.nodes[node];
        let known = target.daemon.as_ref().expect("it runs").candidate.as_ref();
        let has_one = known.is_some_and(|candidate| candidate.applied.index >= at_least);
        if !has_one && target.is_sound() && self.records_add_up(node) {
            let target = &mut self.nodes[node];
            target.files.pass(target.state.applied.index);
            let sync = target.files.begin_sync();
            target.files.end_sync(sync, true);
            let candidate = target.state.clone();
            let daemon = target.daemon.as_mut().expect("as above");
            daemon.candidate = Some(candidate);
            daemon.wanted_since = Some(self.now);
        }
        self.count_candidate(node);
    }

    /// Looks at all records, as whoever writes them to a snapshot does.
    pub fn records_add_up(&mut self, node: usize) -> bool {
        let add_up = self.nodes[node].state.sum() == self.nodes[node].state.digest;
        if !add_up && self.nodes[node].diverged.is_none() {
            self.coverage.count("divergence: found by the records");
            self.diverge(node);
        }
        add_up
    }

    /// The snapshot that was written last counts, if that may be. The log is cut of what no node needs any more.
    pub fn count_candidate(&mut self, node: usize) {
        let target = &mut self.nodes[node];
        let daemon = target.daemon.as_mut().expect("it writes them");
        let waits = daemon.wanted_since.is_some_and(|since| self.now - since >= WAITS);
        let is_overdue = waits && daemon.standing == Standing::Sound;
        let ledger = &target.state.ledger;
        let attests = |state: &State| ledger.attests(state.applied.index, state.digest);
        let is_newer = |state: &State| state.applied >= target.snapshot.applied;
        let candidate = daemon.candidate.as_ref().filter(|state| is_newer(state));
        let Some(is_attested) = candidate.map(attests).filter(|is| *is || is_overdue) else {
            return;
        };
        if !is_attested {
            self.coverage.count("divergence: a snapshot counts that nobody has compared");
        }
        daemon.wanted_since = None;
        target.snapshot = daemon.candidate.take().expect("just seen");
        let (needed, applied) = (daemon.core.needed_by_peers(), daemon.core.applied());
        let covered = target.snapshot.applied.index;
        // Now and then the log is too large, whoever needs it.
        let needed = if self.stormy && self.random.chance(150) { applied } else { needed };
        target.disk.cut(needed.min(covered));
        self.coverage.count("snapshots");
    }

    /// Whether every replica's state is known to be right, and is.
    pub fn are_all_sound(&self) -> bool {
        self.members().all(|node| !node.is_off() && node.is_sound())
    }
}
