//! One replica's state machine: the real `fs` over a map in memory, and backing files in another.

use std::collections::BTreeMap;

use prost::Message;
use quorumfs::consensus::{Committed, SessionChange, SessionInfo};
use quorumfs::fs::{self, Applied, Change, Digest, FileEffect, Overlay, proto, query};
use quorumfs::types::{LogIndex, NodeId, Position, ProposalKey, Seq, SessionId, Term};
use raft::eraftpb::ConfState;

use crate::random::Random;

pub type View = BTreeMap<Vec<u8>, Vec<u8>>;
/// Backing files by inode and generation.
pub type Files = BTreeMap<(u64, u64), Vec<u8>>;

/// All that applying changes. Its clone is a snapshot.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub view: View,
    pub files: Files,
    pub digest: Digest,
    pub applied: Position,
    pub membership: ConfState,
}

/// What applying an entry did.
#[derive(Debug, Default)]
pub struct Effect {
    /// The command's key; none for Raft's own entries.
    pub key: Option<ProposalKey>,
    pub applied: Applied,
    pub sessions: Vec<SessionChange>,
    pub members: Vec<NodeId>,
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
        applied.effects.iter().for_each(|effect| carry_out(&mut self.files, effect));
        let (sessions, members) = consequences(&applied.changes);
        let key = ProposalKey { session: SessionId(command.session), seq: Seq(command.seq) };
        Effect { key: Some(key), applied, sessions, members }
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

    pub fn members(&self) -> Vec<NodeId> {
        let members = query::members(&self.view).expect("nothing rots here");
        members.into_iter().map(|member| NodeId(member.node)).collect()
    }

    pub fn has_session(&self, session: SessionId) -> bool {
        query::session(&self.view, session).expect("nothing rots here").is_some()
    }

    /// After a power loss: the state as of the snapshot. Backing files are written in place, so each
    /// is then as old as the snapshot, as new as the crash, or cut short somewhere.
    pub fn lose_power(&mut self, snapshot: &Self, random: &mut Random) {
        let current = std::mem::take(&mut self.files);
        *self = snapshot.clone();
        for (name, mut bytes) in current {
            match random.below(3) {
                0 => {}
                1 => {
                    self.files.insert(name, bytes);
                }
                _ => {
                    bytes.truncate(random.index(bytes.len() + 1));
                    if let Some(old) = self.files.get_mut(&name) {
                        let kept = bytes.len().min(old.len());
                        old[..kept].copy_from_slice(&bytes[..kept]);
                    }
                }
            }
        }
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

fn carry_out(files: &mut Files, effect: &FileEffect) {
    match effect {
        FileEffect::Write { ino, generation, offset, data } => {
            let file = files.entry((ino.0, generation.0)).or_default();
            let start = usize::try_from(*offset).expect("files are small here");
            let end = start + data.len();
            file.resize(file.len().max(end), 0);
            file[start..end].copy_from_slice(data);
        }
        FileEffect::Stage { .. } => unreachable!("nobody stages bytes here"),
        FileEffect::Truncate { ino, generation, size } => {
            let size = usize::try_from(*size).expect("files are small here");
            files.entry((ino.0, generation.0)).or_default().resize(size, 0);
        }
        FileEffect::Allocate { .. } | FileEffect::EndStages { .. } => {}
        FileEffect::Zero { ino, generation, range, .. } => {
            if let Some(file) = files.get_mut(&(ino.0, generation.0)) {
                let end = file.len().min(usize::try_from(range.end).expect("files are small here"));
                let start = end.min(usize::try_from(range.start).expect("files are small here"));
                file[start..end].fill(0);
            }
        }
        FileEffect::Copy { source, source_generation, range, ino, generation, offset, .. } => {
            let mut source =
                files.get(&(source.0, source_generation.0)).cloned().unwrap_or_default();
            let [start, end, offset] =
                [range.start, range.end, *offset].map(|at| usize::try_from(at).expect("small"));
            source.resize(source.len().max(end), 0);
            let file = files.entry((ino.0, generation.0)).or_default();
            file.resize(file.len().max(offset + end - start), 0);
            file[offset..offset + end - start].copy_from_slice(&source[start..end]);
        }
        FileEffect::Remove { ino, generation } => {
            files.remove(&(ino.0, generation.0));
        }
    }
}

fn consequences(changes: &[Change]) -> (Vec<SessionChange>, Vec<NodeId>) {
    let mut sessions = Vec::new();
    let mut members = Vec::new();
    for change in changes {
        match change {
            Change::SessionOpened { session, node, strong } => {
                let info = SessionInfo { session: *session, node: *node, strong: *strong };
                sessions.push(SessionChange::Opened(info));
            }
            Change::SessionEnded { session, .. } => sessions.push(SessionChange::Ended(*session)),
            Change::MemberAdded { node, .. } => members.push(*node),
            Change::Attributes { .. }
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
