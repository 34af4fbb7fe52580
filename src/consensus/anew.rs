//! A replica that lacks what the leader's log no longer has begins anew, over a snapshot.

use raft::Storage;
use raft::eraftpb::{Message, MessageType};

use super::Effect;
use super::core::{Boot, Core, CoreError};
use crate::types::{LogIndex, NodeId};

impl<S: Storage> Core<S> {
    /// A snapshot has brought the state machine to `boot`, and `log` begins there: everything begins anew, as after a
    /// restart. What was proposed is proposed again; the session is gone, and its lease.
    ///
    /// # Errors
    /// As [`Self::new`]; the core must not be used any more then.
    pub fn install(&mut self, log: S, boot: Boot, logger: &slog::Logger) -> Result<(), CoreError> {
        debug_assert!(boot.applied.index >= self.applied.index, "applying never goes back");
        debug_assert!(self.effects.is_empty(), "what is to be done is done before");
        let anew = Self::new(self.config.clone(), log, boot, logger)?;
        let before = std::mem::replace(self, anew);
        self.now = before.now;
        self.ticks = before.ticks;
        self.numbers_before = before.numbers_before + before.last_ready;
        self.heard = before.heard;
        self.suspicions = before.suspicions;
        self.stable = before.stable;
        self.gate = before.gate;
        self.proposals = before.proposals;
        self.proposals.retry(self.now);
        self.role = before.role;
        Ok(())
    }

    /// The leader does not have what it thinks that this node needs.
    pub(super) fn log_was_cut(&mut self, leader: NodeId, first_index: LogIndex) {
        let commit = self.commit_index();
        if commit.next() < first_index {
            self.effects.push_back(Effect::LogWasCut { leader, first_index });
            return;
        }
        // What is committed the leader has as well: it may go on from there.
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgAppendResponse);
        (message.from, message.to) = (self.config.node.0, leader.0);
        (message.term, message.index) = (self.term().0, commit.0);
        self.send_all(vec![message]);
    }
}
