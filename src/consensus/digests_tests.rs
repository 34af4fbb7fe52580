//! When states are compared, and what follows for who gets a vote.

use std::collections::{BTreeMap, VecDeque};

use raft::Storage as _;
use raft::eraftpb::{ConfState, Message, MessageType};
use raft::storage::MemStorage;

use super::super::{Boot, Claim, Core, CoreConfig, Effect, Input, PeerMessage, Sample, Standing};
use super::{Digests, Duration, LogIndex, Monotonic, NodeId};
use crate::types::{ProposalKey, Seq, SessionId, Suffrage};

const OWN: NodeId = NodeId(1);
const PEER: NodeId = NodeId(2);
const PERIOD: Duration = Duration::from_secs(1);

fn sample(index: u64) -> Sample {
    Sample { index: LogIndex(index), digest: 7 }
}

/// A verdict that comes twice, or by two leaders, leaves what came between the two entries for the next one.
#[test]
fn what_no_verdict_was_about_is_still_to_be_judged() {
    let mut digests = Digests::new(Some(sample(10)));
    let now = Monotonic::default();
    digests.commands_applied(5);
    digests.sampled(sample(20), LogIndex(10), now);
    assert!(digests.changed);
    digests.commands_applied(1);
    digests.sampled(sample(21), LogIndex(10), now);
    assert!(digests.changed, "nobody has judged what came between 10 and 20");
    digests.commands_applied(1);
    digests.sampled(sample(30), LogIndex(21), now);
    assert!(!digests.changed);
}

/// Whoever begins to lead over an old sample has heard nobody yet.
#[test]
fn patience_begins_with_a_reign() {
    let mut digests = Digests::new(Some(sample(10)));
    let at = |seconds| Monotonic::default() + Duration::from_secs(seconds);
    digests.listen(at(100));
    assert_eq!(digests.listened(at(0), at(101)), Duration::from_secs(1));
    assert_eq!(digests.listened(at(100), at(103)), Duration::from_secs(3));
    assert_eq!(digests.listened(at(102), at(103)), Duration::from_secs(1));
}

/// A leader, and a peer that agrees to whatever Raft asks it, and says of its state what a test has it say.
struct Leader {
    core: Core<MemStorage>,
    log: MemStorage,
    now: Monotonic,
    /// The indexes of the verdicts that were proposed, with what they say.
    attested: Vec<(LogIndex, Option<u128>)>,
    /// This leader's digests.
    samples: BTreeMap<LogIndex, u128>,
}

impl Leader {
    fn new(voters: &[u64], learners: &[u64], members: &[NodeId]) -> Self {
        let log = MemStorage::new();
        let conf_state = ConfState::from((voters.to_vec(), learners.to_vec()));
        let members = members.iter().map(|node| (*node, Suffrage::Voter)).collect();
        let boot = Boot { conf_state, members, ..Boot::default() };
        let config = CoreConfig::new(OWN, Duration::from_secs(2));
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let core = Core::new(config, log.clone(), boot, &logger).unwrap();
        let (now, attested, samples) = (Monotonic::default(), Vec::new(), BTreeMap::new());
        let mut leader = Self { core, log, now, attested, samples };
        leader.run(2 * PERIOD);
        assert!(leader.core.is_leader());
        leader
    }

    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            self.now = self.now + Duration::from_millis(50);
            self.input(Input::Tick);
        }
    }

    fn input(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            self.core.handle(self.now, input).unwrap();
            while let Some(effect) = self.core.poll_effect().unwrap() {
                inputs.extend(self.carry_out(effect));
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) -> Vec<Input> {
        match effect {
            Effect::Persist { number, entries, hard_state } => {
                let mut log = self.log.wl();
                log.append(&entries).unwrap();
                if let Some(hard_state) = hard_state {
                    log.set_hardstate(hard_state);
                }
                drop(log);
                vec![Input::Persisted { number }]
            }
            Effect::Send { to, message: PeerMessage::Raft(message) } => {
                let answer = agree(&message);
                answer
                    .map(|message| peer(to, PeerMessage::Raft(Box::new(message))))
                    .into_iter()
                    .collect()
            }
            Effect::Apply { entries, .. } => {
                let mut inputs = Vec::new();
                for entry in entries {
                    let (index, term) = (entry.position.index, entry.position.term);
                    let (commands, sessions, members) = Default::default();
                    inputs.push(Input::Applied { index, term, commands, sessions, members });
                    if let Ok(judged) = <[u8; 8]>::try_from(&entry.data[..]) {
                        let digest = u128::from(index.0);
                        self.samples.insert(index, digest);
                        let judged = LogIndex(u64::from_be_bytes(judged));
                        inputs.push(Input::Sampled { sample: Sample { index, digest }, judged });
                    }
                }
                inputs
            }
            Effect::Attest { index, digest } => {
                self.attested.push((index, digest));
                let data = index.0.to_be_bytes().to_vec().into();
                vec![Input::ProposeVerdict { data }]
            }
            Effect::Send { .. }
            | Effect::Invalidate { .. }
            | Effect::Acknowledge { .. }
            | Effect::Gate(_)
            | Effect::Expire { .. }
            | Effect::Role { .. }
            | Effect::LogWasCut { .. } => Vec::new(),
        }
    }

    /// The entry at which it has noted its digest last, with that.
    fn newest(&self) -> Sample {
        let (index, digest) = self.samples.last_key_value().expect("it has asked for one");
        Sample { index: *index, digest: *digest }
    }

    /// The peer says that it has applied up to there.
    fn has_applied(&mut self, index: LogIndex) {
        let session = SessionId(77);
        let message = PeerMessage::Visible { session, index, invalidated: Claim::default() };
        self.input(peer(PEER, message));
    }

    fn says(&mut self, sample: Sample) {
        self.input(peer(PEER, PeerMessage::Digest(sample)));
    }

    /// A command has changed the state.
    fn changes(&mut self) {
        let key = ProposalKey { session: SessionId(77), seq: Seq(1) };
        let (index, term) = (self.core.applied(), self.core.term());
        let (sessions, members) = Default::default();
        let commands = vec![(key, index)];
        self.input(Input::Applied { index, term, commands, sessions, members });
    }

    fn voters(&self) -> Vec<NodeId> {
        self.core.membership().filter(|(_, votes)| *votes).map(|(node, _)| node).collect()
    }
}

fn peer(from: NodeId, message: PeerMessage) -> Input {
    Input::Peer { from, message }
}

fn agree(asked: &Message) -> Option<Message> {
    let mut answer = Message::default();
    let kind = match asked.get_msg_type() {
        MessageType::MsgRequestPreVote => MessageType::MsgRequestPreVoteResponse,
        MessageType::MsgRequestVote => MessageType::MsgRequestVoteResponse,
        MessageType::MsgAppend => {
            answer.index = asked.entries.last().map_or(asked.index, |last| last.index);
            MessageType::MsgAppendResponse
        }
        MessageType::MsgHeartbeat => {
            answer.context = asked.context.clone();
            MessageType::MsgHeartbeatResponse
        }
        _ => return None,
    };
    answer.set_msg_type(kind);
    (answer.from, answer.to, answer.term) = (asked.to, asked.from, asked.term);
    Some(answer)
}

/// A voter whose state came from another one does not know what its digest was, and never will.
#[test]
fn a_voter_that_cannot_say_is_asked_for_the_next_one() {
    let mut leader = Leader::new(&[1, 2], &[], &[OWN, PEER]);
    leader.run(10 * PERIOD);
    assert_eq!(leader.attested, [(LogIndex(0), None)], "it may be away, or lag");
    let first = leader.newest();
    leader.has_applied(LogIndex(first.index.0 - 1));
    leader.run(10 * PERIOD);
    assert_eq!(leader.attested.len(), 1, "it lags");
    leader.has_applied(first.index);
    leader.run(10 * PERIOD);
    assert_eq!(
        leader.attested,
        [(LogIndex(0), None); 2],
        "it has passed that entry, and says nothing"
    );
    assert!(leader.newest().index > first.index);
    // That one it knows, and then there is nothing to be said.
    leader.has_applied(leader.newest().index);
    leader.says(leader.newest());
    leader.run(10 * PERIOD);
    let second = (LogIndex(3), Some(3));
    assert_eq!(leader.attested.last(), Some(&second));
    assert_eq!(leader.attested.len(), 3);
}

/// A learner of another version would be half of a quorum, and nobody could say any more which half is right.
#[test]
fn who_is_to_vote_has_the_same_state_first() {
    let mut leader = Leader::new(&[1], &[2], &[OWN, PEER]);
    leader.input(Input::Holds { node: PEER, index: LogIndex(1000) });
    leader.run(5 * PERIOD);
    assert_eq!(leader.voters(), [OWN], "nothing is known of its state");
    // It came from a snapshot.
    let before = leader.newest();
    leader.has_applied(before.index);
    leader.run(5 * PERIOD);
    let asked = leader.newest();
    assert!(asked.index > before.index, "it is asked");
    leader.says(Sample { digest: 0, ..asked });
    leader.run(5 * PERIOD);
    assert_eq!(leader.voters(), [OWN], "it differs");
    leader.says(leader.newest());
    leader.input(Input::Stands(Standing::Doubtful));
    leader.run(PERIOD / 4);
    assert_eq!(leader.voters(), [OWN], "nobody gets a vote in doubt");
    leader.input(Input::Stands(Standing::Sound));
    leader.says(leader.newest());
    leader.run(PERIOD / 4);
    assert_eq!(leader.voters(), [OWN, PEER]);
}

/// A person has decided who is wrong: with the vote of that one the doubt goes.
#[test]
fn in_doubt_a_member_can_be_removed() {
    let mut leader = Leader::new(&[1, 2], &[], &[OWN]);
    let first = leader.newest();
    leader.changes();
    leader.says(Sample { digest: 0, ..first });
    leader.run(2 * PERIOD);
    assert_eq!(leader.attested.last(), Some(&(first.index, None)));
    leader.input(Input::Stands(Standing::Doubtful));
    leader.run(5 * PERIOD);
    assert_eq!(leader.voters(), [OWN, PEER], "nobody is known to hold what it holds");
    let held = Standing::Doubtful.holds(leader.core.commit_index());
    leader.input(Input::Holds { node: OWN, index: held });
    leader.run(PERIOD);
    assert_eq!(leader.voters(), [OWN]);
    leader.run(5 * PERIOD);
    let (judged, digest) = *leader.attested.last().expect("it goes on alone");
    assert_eq!(digest, leader.samples.get(&judged).copied());
    assert!(leader.log.last_index().is_ok_and(|last| last > judged.0));
}

#[test]
fn who_differs_holds_nothing() {
    let index = LogIndex(5);
    assert_eq!(Standing::Sound.holds(index), index);
    assert_eq!(Standing::Doubtful.holds(index), index);
    assert_eq!(Standing::Diverged.holds(index), LogIndex(0));
}
