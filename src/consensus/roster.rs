//! Open sessions, and the index that all strong ones show: the stable index.

use std::collections::BTreeMap;

use super::SessionChange;
use crate::types::{LogIndex, NodeId, SessionId};

/// An open session, as the state machine knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Its id, which is also the index at which it was opened.
    pub session: SessionId,
    /// Its node.
    pub node: NodeId,
    /// Whether it is in the roster.
    pub strong: bool,
}

/// Sessions as of the applied index, and what each is known to show.
#[derive(Debug, Default)]
pub(super) struct Roster {
    sessions: BTreeMap<SessionId, (SessionInfo, LogIndex)>,
}

impl Roster {
    pub(super) fn new(sessions: impl IntoIterator<Item = SessionInfo>) -> Self {
        let mut roster = Self::default();
        sessions.into_iter().for_each(|info| roster.apply(&SessionChange::Opened(info)));
        roster
    }

    pub(super) fn apply(&mut self, change: &SessionChange) {
        match change {
            // Whoever opens a session has applied its opening before it serves anything.
            SessionChange::Opened(info) => {
                let shown = LogIndex(info.session.0);
                self.sessions.insert(info.session, (*info, shown));
            }
            SessionChange::Ended(session) => {
                self.sessions.remove(session);
            }
        }
    }

    /// A session's own word for what it shows. Words of unknown sessions are ignored: they are said
    /// again.
    pub(super) fn shows(&mut self, session: SessionId, index: LogIndex) {
        if let Some((_, shown)) = self.sessions.get_mut(&session) {
            *shown = (*shown).max(index);
        }
    }

    /// What every strong session shows, and this node (which shows `own`) too.
    pub(super) fn stable(&self, own: LogIndex) -> LogIndex {
        self.sessions
            .values()
            .filter(|(info, _)| info.strong)
            .map(|(_, shown)| *shown)
            .fold(own, LogIndex::min)
    }

    pub(super) fn node_of(&self, session: SessionId) -> Option<NodeId> {
        self.sessions.get(&session).map(|(info, _)| info.node)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (SessionInfo, LogIndex)> + '_ {
        self.sessions.values().copied()
    }
}
