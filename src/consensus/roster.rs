//! Open sessions, and the index that no strong one serves anything older than: the stable index.

use std::collections::BTreeMap;

use super::{Claim, SessionChange};
use crate::mutants::{self, Mutant};
use crate::types::{LogIndex, NodeId, SessionId, Term};

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
    sessions: BTreeMap<SessionId, Known>,
}

/// What is known of a session.
#[derive(Clone, Copy, Debug)]
struct Known {
    info: SessionInfo,
    /// It shows everything up to here.
    shown: LogIndex,
    /// It serves nothing older than this.
    claim: Claim,
}

impl Known {
    /// What it serves nothing older than, in the log of a term's leader.
    fn covers(&self, term: Term) -> LogIndex {
        let is_of_it = self.claim.term == term || mutants::is(Mutant::ClaimOfAnotherTerm);
        if is_of_it { self.shown.max(self.claim.index) } else { self.shown }
    }
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
                let known = Known { info: *info, shown, claim: Claim::default() };
                self.sessions.insert(info.session, known);
            }
            SessionChange::Ended(session) => {
                self.sessions.remove(session);
            }
        }
    }

    /// A session's own word for what it shows. Words of unknown sessions are ignored: they are said
    /// again.
    pub(super) fn shows(&mut self, session: SessionId, index: LogIndex) {
        if let Some(known) = self.sessions.get_mut(&session) {
            known.shown = known.shown.max(index);
        }
    }

    /// The same for entries that it has received. Those of an older term say nothing any more.
    pub(super) fn claims(&mut self, session: SessionId, claim: Claim) {
        if let Some(known) = self.sessions.get_mut(&session) {
            known.claim = known.claim.max(claim);
        }
    }

    /// What no strong session serves anything older than, in the log of `term`'s leader; at most `own`.
    pub(super) fn stable(&self, own: LogIndex, term: Term) -> LogIndex {
        let counted = self.strong().skip(usize::from(mutants::is(Mutant::StableWithoutOne)));
        counted.map(|known| known.covers(term)).fold(own, LogIndex::min)
    }

    /// Nodes of strong sessions, and what each serves nothing older than.
    pub(super) fn covered(&self, term: Term) -> impl Iterator<Item = (NodeId, LogIndex)> + '_ {
        self.strong().map(move |known| (known.info.node, known.covers(term)))
    }

    pub(super) fn node_of(&self, session: SessionId) -> Option<NodeId> {
        self.sessions.get(&session).map(|known| known.info.node)
    }

    /// The sessions, and what each shows.
    pub(super) fn iter(&self) -> impl Iterator<Item = (SessionInfo, LogIndex)> + '_ {
        self.sessions.values().map(|known| (known.info, known.shown))
    }

    fn strong(&self) -> impl Iterator<Item = &Known> + '_ {
        self.sessions.values().filter(|known| known.info.strong)
    }
}
