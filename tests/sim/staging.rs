//! What a mount writes by stages: it sends the bytes to all replicas beside the log, waits until a quorum has them
//! on disk, and proposes one small command.

use std::collections::{BTreeMap, BTreeSet};

use quorumfs::fs::proto::{self, command::Op};
use quorumfs::types::{ByteRange, SessionId, StageId};

use crate::clock::MILLI;
use crate::history::{Call, SLOT};
use crate::lanes::ToStage;
use crate::node::{Node, NodeEvent};
use crate::world::World;

/// A stage to which nothing is added any more, on its way to a quorum.
#[derive(Debug)]
pub struct OpenStage {
    id: StageId,
    /// The connections by which peers have been sent all of it.
    lanes: BTreeMap<usize, u64>,
    pieces: Vec<(u64, Vec<u8>)>,
    /// Marks of this attempt that are not answered.
    marks: BTreeSet<(usize, u64)>,
    /// Voters that are known to hold it.
    holders: BTreeSet<usize>,
    /// Whether it is on this node's own disk.
    is_synced: bool,
}

/// The bytes of a write, at their offsets in the stage.
fn pieces(call: Call) -> Vec<(u64, Vec<u8>)> {
    match call {
        Call::Fill { slots, value, .. } => {
            slots.iter().map(|slot| (slot as u64 * SLOT, slot_bytes(value))).collect()
        }
        Call::Append { tag, .. } => {
            let tag = tag.to_be_bytes();
            // Where the kernel believes that the file ends.
            let at = 8 * (u64::from(tag[7]) % 5);
            vec![(at, tag[..4].to_vec()), (at + 4 + u64::from(tag[7]) % 3, tag[4..].to_vec())]
        }
        _ => unreachable!("no such write: {call:?}"),
    }
}

/// What a slot holds that was filled with a value.
pub fn slot_bytes(value: u64) -> Vec<u8> {
    value.to_be_bytes().repeat(usize::try_from(SLOT / 8).expect("small"))
}

impl World {
    /// A client's bytes go into a stage.
    pub fn begin_stage(&mut self, node: usize, client: usize) {
        let call = self.clients[client].current.expect("the caller has seen it").call;
        let daemon = self.nodes[node].daemon.as_mut().expect("it runs");
        let session = daemon.mount.session.expect("the caller has seen it");
        daemon.mount.stages_begun += 1;
        let id = StageId { session, number: daemon.mount.stages_begun };
        let pieces = pieces(call);
        for (offset, data) in &pieces {
            self.nodes[node].files.stage(id, *offset, data);
        }
        self.reference.begin_stage(id, pieces.clone());
        let stage = OpenStage {
            id,
            lanes: BTreeMap::new(),
            pieces,
            marks: BTreeSet::new(),
            holders: BTreeSet::new(),
            is_synced: false,
        };
        self.mount(node).stages.insert(client, stage);
        self.send_stage(node, client);
        let begun = self.random.chance(900);
        if begun {
            self.ask_for_quorum(node, client);
        } else {
            // A program that never closes what it wrote.
            self.coverage.count("stages: abandoned");
            self.finish(client, None);
            self.abandon_stage(node, client);
        }
    }

    fn mount(&mut self, node: usize) -> &mut crate::mount::Mount {
        &mut self.nodes[node].daemon.as_mut().expect("it runs").mount
    }

    /// Sends everything to whoever has a connection by which it was not sent.
    fn send_stage(&mut self, node: usize, client: usize) {
        for peer in (0..self.nodes.len()).filter(|peer| *peer != node) {
            let Some(lane) = self.lanes.number(node, peer) else { continue };
            let Some(stage) = self.mount(node).stages.get_mut(&client) else { return };
            match stage.lanes.insert(peer, lane) {
                Some(before) if before == lane => continue,
                Some(_) => self.coverage.count("stages: sent again"),
                None => {}
            }
            let stage = &self.mount(node).stages[&client];
            let (id, pieces) = (stage.id, stage.pieces.clone());
            for (offset, data) in pieces {
                let (one, other) = data.split_at(data.len() / 2);
                let rest = offset + one.len() as u64;
                for (offset, part) in [(offset, one), (rest, other)] {
                    let data = part.to_vec();
                    self.send_staged(node, peer, lane, ToStage::Data { id, offset, data });
                }
            }
        }
    }

    /// Asks everybody who was sent all of it whether it is on disk there.
    fn ask_for_quorum(&mut self, node: usize, client: usize) {
        let voters = self.nodes[node].state.membership.get_voters().to_vec();
        let stage = self.mount(node).stages.get_mut(&client).expect("the caller has seen it");
        stage.holders.clear();
        stage.is_synced = false;
        let (id, lanes) = (stage.id, stage.lanes.clone());
        for (peer, lane) in lanes {
            let is_voter = voters.contains(&self.nodes[peer].id.0);
            if !is_voter || self.lanes.number(node, peer) != Some(lane) {
                continue;
            }
            let mount = self.mount(node);
            mount.marks_sent += 1;
            let mark = mount.marks_sent;
            mount.stages.get_mut(&client).expect("as above").marks.insert((peer, mark));
            self.send_staged(node, peer, lane, ToStage::Mark { id, mark });
        }
        let took = self.nodes[node].sync_time(&mut self.random, self.now);
        self.after(took, node, NodeEvent::OwnStageSynced { client, id });
    }

    /// This node's own part of a stage is on disk.
    pub fn own_stage_synced(&mut self, node: usize, client: usize, id: StageId) {
        if self.mount(node).stages.get(&client).is_none_or(|stage| stage.id != id) {
            return;
        }
        if !self.nodes[node].files.sync_stage(id) {
            return self.lose_stage(node, client);
        }
        let stage = self.mount(node).stages.get_mut(&client).expect("just seen");
        stage.is_synced = true;
        stage.holders.insert(node);
        self.follow_stage(node, client);
    }

    /// A peer has answered.
    pub fn stage_marked(&mut self, node: usize, peer: usize, mark: u64, holds: bool) {
        let mut stages = self.mount(node).stages.iter_mut();
        let found = stages.find(|(_, stage)| stage.marks.contains(&(peer, mark)));
        let Some((client, stage)) = found else { return };
        stage.marks.remove(&(peer, mark));
        if holds {
            stage.holders.insert(peer);
        }
        let client = *client;
        self.follow_stage(node, client);
    }

    /// What a peer has not answered it never will.
    pub fn lane_lost(&mut self, node: usize, peer: usize) {
        for stage in self.mount(node).stages.values_mut() {
            stage.marks.retain(|(asked, _)| *asked != peer);
        }
        for client in self.mount(node).stages.keys().copied().collect::<Vec<_>>() {
            self.follow_stage(node, client);
        }
    }

    fn follow_stage(&mut self, node: usize, client: usize) {
        let voters = self.nodes[node].state.membership.get_voters().to_vec();
        let stage = &self.mount(node).stages[&client];
        if !stage.is_synced {
            return;
        }
        let votes = |holder: &&usize| voters.contains(&(**holder as u64 + 1));
        if stage.holders.iter().filter(votes).count() > voters.len() / 2 {
            self.write_stage(node, client);
        } else if stage.marks.is_empty() {
            let id = stage.id;
            self.after(50 * MILLI, node, NodeEvent::StageAgain { client, id });
        }
    }

    /// No quorum has it yet.
    pub fn stage_again(&mut self, node: usize, client: usize, id: StageId) {
        let stage = self.mount(node).stages.get(&client);
        if stage.is_some_and(|stage| stage.id == id && stage.is_synced && stage.marks.is_empty()) {
            self.coverage.count("stages: no quorum at first");
            self.send_stage(node, client);
            self.ask_for_quorum(node, client);
        }
    }

    /// A quorum has it: one command makes its bytes the file's.
    fn write_stage(&mut self, node: usize, client: usize) {
        let current = self.clients[client].current.expect("it waits for this");
        let OpenStage { id, ref pieces, .. } = self.mount(node).stages[&client];
        let pieces = pieces.clone();
        let files = &self.nodes[node].files;
        let piece = |(offset, data): &(u64, Vec<u8>)| {
            let length = data.len() as u64;
            let staged = files.read_stage(id, ByteRange::at(*offset, length))?;
            let checksums = vec![crc32c::crc32c(&staged)];
            Some(proto::Piece { offset: *offset, length, checksums, ..proto::Piece::default() })
        };
        let Some(pieces) = pieces.iter().map(piece).collect() else {
            return self.lose_stage(node, client);
        };
        let stage = self.mount(node).stages.remove(&client).expect("just seen");
        self.check_quorum(node, &stage);
        let write = proto::Write {
            ino: current.subject.file().0,
            pieces,
            append: matches!(current.call, Call::Append { .. }),
            stage: id.number,
            ..proto::Write::default()
        };
        self.coverage.count("stages: proposed");
        self.submit(node, client, current.call, Op::Write(write));
    }

    /// That a quorum has on disk what is proposed, whatever is lost now; if its session is not over there.
    fn check_quorum(&self, node: usize, stage: &OpenStage) {
        let voters = self.nodes[node].state.membership.get_voters();
        let holds = |other: &&Node| {
            voters.contains(&other.id.0)
                && (other.files.has_durably(stage.id, &stage.pieces)
                    || !other.state.has_session(stage.id.session))
        };
        let holders = self.nodes.iter().filter(holds).count();
        assert!(holders > voters.len() / 2, "{} is proposed, but only {holders} hold it", stage.id);
    }

    /// Nobody will write this stage.
    pub fn abandon_stage(&mut self, node: usize, client: usize) {
        let Some(stage) = self.mount(node).stages.remove(&client) else { return };
        let id = stage.id;
        for (peer, lane) in stage.lanes {
            self.send_staged(node, peer, lane, ToStage::Abandon { id });
        }
        self.nodes[node].files.abandon_stage(id);
    }

    /// The session is over, although this mount does not know it yet.
    fn lose_stage(&mut self, node: usize, client: usize) {
        self.coverage.count("stages: gone before they were written");
        self.abandon_stage(node, client);
        self.finish(client, None);
    }

    /// The session is over: so are its stages. The clients that waited for them have no answer.
    pub fn stages_ended(&mut self, node: usize) {
        for client in self.mount(node).stages.keys().copied().collect::<Vec<_>>() {
            self.abandon_stage(node, client);
            self.finish(client, None);
        }
    }

    // ------------------------------------------------------------ at the other end

    pub fn staged(&mut self, node: usize, from: usize, lane: u64, message: ToStage) {
        let applied = self.nodes[node].state.applied.index;
        match message {
            ToStage::Data { id, offset, data } => {
                // One that was opened just now may not be applied here yet.
                let is_known =
                    id.session.0 > applied.0 || self.nodes[node].state.has_session(id.session);
                let target = &mut self.nodes[node];
                let daemon = target.daemon.as_mut().expect("it runs");
                let incoming = daemon.incoming.entry((from, lane)).or_default();
                incoming.stages.insert(id);
                if !is_known {
                    incoming.failed.insert(id);
                    self.coverage.count("stages: refused because their session had ended");
                } else if !incoming.failed.contains(&id) {
                    target.files.stage(id, offset, &data);
                    self.bytes_changed(node);
                }
            }
            ToStage::Mark { id, mark } => {
                let took = self.nodes[node].sync_time(&mut self.random, self.now);
                self.after(took, node, NodeEvent::MarkDue { from, lane, id, mark });
            }
            ToStage::Abandon { id } => self.nodes[node].files.abandon_stage(id),
        }
    }

    /// Everything that came before a mark is on disk, if it is here.
    pub fn mark_due(&mut self, node: usize, from: usize, lane: u64, id: StageId, mark: u64) {
        let target = &mut self.nodes[node];
        let daemon = target.daemon.as_mut().expect("it runs");
        let failed = daemon.incoming.entry((from, lane)).or_default().failed.contains(&id);
        let holds = !failed && target.files.sync_stage(id);
        self.answer_mark(node, from, lane, mark, holds);
    }

    /// A connection on which stages came is over.
    pub fn lane_ended(&mut self, node: usize, from: usize, lane: u64) {
        let target = &mut self.nodes[node];
        let daemon = target.daemon.as_mut().expect("it runs");
        for id in daemon.incoming.remove(&(from, lane)).unwrap_or_default().stages {
            target.files.give_up_stage(id);
        }
    }

    /// Whose stages a node has that nobody will write.
    pub fn leftover_stages(&self, node: usize) -> Vec<SessionId> {
        let node = &self.nodes[node];
        let sessions = node.files.fresh_stages().map(|id| id.session);
        sessions.filter(|session| !node.state.has_session(*session)).collect()
    }
}
