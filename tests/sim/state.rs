//! One replica's state machine: the real `fs` over a map in memory.

use std::collections::BTreeMap;

use prost::Message;
use quorumfs::consensus::{Committed, SessionChange, SessionInfo};
use quorumfs::fs::proto::command::Op;
use quorumfs::fs::{self, Applied, Change, Digest, Ledger, Overlay, Verdict, proto, query};
use quorumfs::types::{LogIndex, NodeId, Position, ProposalKey, Seq, SessionId, Suffrage, Term};
use raft::eraftpb::ConfState;

use crate::divergence::Wrong;

pub type View = BTreeMap<Vec<u8>, Vec<u8>>;

/// All that applying changes but bytes. Its clone is a snapshot.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub view: View,
    pub digest: Digest,
    pub applied: Position,
    pub membership: ConfState,
    pub ledger: Ledger,
    /// It is wrong, which its replica is to find out.
    pub wrong: Option<Wrong>,
}

/// What applying an entry did.
#[derive(Debug, Default)]
pub struct Effect {
    /// The command's key; none for Raft's own entries.
    pub key: Option<ProposalKey>,
    pub applied: Applied,
    pub sessions: Vec<SessionChange>,
    pub members: Vec<(NodeId, Option<Suffrage>)>,
    /// What it says of the replicas' states.
    pub verdict: Option<Verdict>,
}

impl State {
    /// What every node starts from: a state with some files in it, as of the last of the commands that
    /// made them.
    pub fn genesis(voters: Vec<u64>, commands: Vec<proto::Command>) -> Self {
        let mut state = Self::default();
        let mut overlay = Overlay::new(&state.view);
        fs::genesis(&mut overlay, Position::default(), &proto::Time::default(), "node1", 1);
        let batch = overlay.finish().expect("a map can be read");
        state.take_in(batch);
        let joined = voters.iter().skip(1).map(|node| proto::Command {
            volume: 1,
            op: Some(Op::AddMember(add_member(*node, false))),
            ..proto::Command::default()
        });
        let commands: Vec<_> = commands.into_iter().chain(joined).collect();
        state.membership.set_voters(voters);
        for (command, index) in commands.into_iter().zip(1..) {
            let position = Position { index: LogIndex(index), term: Term(1) };
            let data = command.encode_to_vec().into();
            let effect = state.apply(&Committed { position, data, conf_state: None });
            assert_eq!(effect.applied.outcome.errno, 0, "{command:?}");
        }
        state
    }

    pub fn apply(&mut self, entry: &Committed) -> Effect {
        self.applied = entry.position;
        if let Some(conf_state) = &entry.conf_state {
            self.membership = conf_state.clone();
        }
        if entry.data.is_empty() {
            return Effect::default();
        }
        let command = fs::decode(entry.data.clone()).expect("only commands are proposed");
        let mut overlay = Overlay::new(&self.view);
        let applied = fs::apply(&mut overlay, entry.position, &command).expect("nothing rots here");
        let batch = overlay.finish().expect("a map can be read");
        self.take_in(batch);
        let (sessions, members) = consequences(&applied.changes);
        let key = ProposalKey { session: SessionId(command.session), seq: Seq(command.seq) };
        let verdict = Verdict::of(&command);
        Effect { key: Some(key), applied, sessions, members, verdict }
    }

    /// The open sessions, as the core wants them at its start.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        let sessions = query::sessions(&self.view).expect("nothing rots here");
        sessions
            .into_iter()
            .map(|(session, record)| SessionInfo {
                session,
                node: NodeId(record.node),
                strong: record.strong,
            })
            .collect()
    }

    pub fn members(&self) -> Vec<(NodeId, Suffrage)> {
        let members = query::members(&self.view).expect("nothing rots here");
        let joined = |member: &proto::Member| Some((NodeId(member.node), query::suffrage(member)?));
        members.iter().filter_map(joined).collect()
    }

    /// Whether all members vote that are to, and nobody else has a place but the learners.
    pub fn is_membership_settled(&self) -> bool {
        let sorted = |nodes: &[u64]| {
            let mut nodes = nodes.to_vec();
            nodes.sort_unstable();
            nodes
        };
        let members = self.members();
        let all = |wanted| {
            let are_it = members.iter().filter(move |(_, suffrage)| *suffrage == wanted);
            are_it.map(|(node, _)| node.0).collect::<Vec<_>>()
        };
        sorted(self.membership.get_voters()) == all(Suffrage::Voter)
            && sorted(self.membership.get_learners()) == all(Suffrage::Learner)
            && self.membership.get_voters_outgoing().is_empty()
    }

    pub fn has_session(&self, session: SessionId) -> bool {
        query::session(&self.view, session).expect("nothing rots here").is_some()
    }

    fn take_in(&mut self, batch: fs::Batch) {
        self.digest.merge(batch.digest);
        for (key, value) in batch.writes {
            match value {
                Some(value) => self.view.insert(key, value),
                None => self.view.remove(&key),
            };
        }
    }
}

/// What a node's members are to be from now on.
type Members = Vec<(NodeId, Option<Suffrage>)>;

/// What is proposed when a node joins: its nonce is its id.
pub fn add_member(nonce: u64, learner: bool) -> proto::AddMember {
    proto::AddMember { nonce, address: format!("node{nonce}"), learner }
}

fn consequences(changes: &[Change]) -> (Vec<SessionChange>, Members) {
    let mut sessions = Vec::new();
    let mut members = Vec::new();
    for change in changes {
        match change {
            Change::SessionOpened { session, node, strong } => {
                let info = SessionInfo { session: *session, node: *node, strong: *strong };
                sessions.push(SessionChange::Opened(info));
            }
            Change::SessionEnded { session, .. } => sessions.push(SessionChange::Ended(*session)),
            Change::MemberChanged { node, suffrage, .. } => members.push((*node, *suffrage)),
            Change::MemberRemoved { node } => members.push((*node, None)),
            Change::Attributes { .. }
            | Change::SomeAttributes
            | Change::Bytes { .. }
            | Change::Name { .. }
            | Change::Orphaned { .. }
            | Change::Removed { .. }
            | Change::LocksDelegated { .. }
            | Change::LocksRecalled { .. }
            | Change::LocksReturned { .. }
            | Change::LockAnswered { .. } => {}
        }
    }
    (sessions, members)
}
