//! The thread that applies committed entries: state, backing files, and the mount's caches.

use std::sync::Arc;

use tokio::sync::mpsc::{Sender, UnboundedReceiver};

use super::shared::Shared;
use crate::consensus::{Committed, Input, SessionChange, SessionInfo};
use crate::fs::{self, Applied, Change, FileEffect, Overlay};
use crate::store::{AppliedPoint, StoreError};
use crate::types::{LogIndex, NodeId, ProposalKey, Seq, SessionId};

/// At most this many entries go into one round.
const ROUND: usize = 512;

/// Why entries could not be applied. The replica must stop: it would differ from the others.
#[derive(Debug, thiserror::Error)]
enum ApplyError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("log entry {index} holds a command that cannot be decoded: {source}")]
    Undecodable { index: LogIndex, source: prost::DecodeError },
}

/// What one round did, for the core and the mount.
#[derive(Default)]
struct Round {
    /// Bytes were cut off that the state still counts.
    cutting: bool,
    commands: Vec<(ProposalKey, LogIndex)>,
    sessions: Vec<SessionChange>,
    members: Vec<(NodeId, String)>,
    /// Index, session that proposed it, changes.
    changes: Vec<(LogIndex, SessionId, Vec<Change>)>,
}

/// Runs until the driver is gone, or until this replica cannot go on.
pub(super) fn run(
    shared: &Arc<Shared>,
    inbox: &mut UnboundedReceiver<Vec<Committed>>,
    due: &Sender<()>,
) {
    while let Some(mut entries) = inbox.blocking_recv() {
        while entries.len() < ROUND
            && let Ok(more) = inbox.try_recv()
        {
            entries.extend(more);
        }
        if let Err(error) = apply_round(shared, &entries) {
            shared.fail(&error);
            return;
        }
        if shared.snapshot_is_due() {
            // The thread may be at work on one.
            let _ = due.try_send(());
        }
    }
}

fn apply_round(shared: &Shared, entries: &[Committed]) -> Result<(), ApplyError> {
    let Some(last) = entries.last() else { return Ok(()) };
    let mut round = Round::default();
    let mut overlay = Overlay::new(&shared.state);
    for entry in entries.iter().filter(|entry| !entry.data.is_empty()) {
        apply_entry(shared, &mut overlay, entry, &mut round)?;
    }
    let batch = overlay.finish()?;
    let conf_state = entries.iter().rev().find_map(|entry| entry.conf_state.as_ref());
    let point = AppliedPoint { index: last.position.index, term: last.position.term, conf_state };
    shared.state.commit(batch, point)?;
    if round.cutting {
        shared.cuts.end();
    }
    tell_mount(shared, &round);
    for (node, address) in &round.members {
        shared.transport.learn(*node, address);
    }
    shared.input(Input::Applied {
        index: last.position.index,
        term: last.position.term,
        commands: round.commands,
        sessions: round.sessions,
        members: round.members.into_iter().map(|(node, _)| node).collect(),
    });
    Ok(())
}

fn apply_entry(
    shared: &Shared,
    overlay: &mut Overlay<&crate::store::State>,
    entry: &Committed,
    round: &mut Round,
) -> Result<(), ApplyError> {
    let index = entry.position.index;
    let command = fs::decode(entry.data.clone())
        .map_err(|source| ApplyError::Undecodable { index, source })?;
    shared.clock.observe(command.clock);
    let Applied { outcome, changes, effects } = fs::apply(overlay, entry.position, &command)?;
    // Before the state says so: a crash in between replays both, and neither minds.
    for effect in &effects {
        let cuts = !matches!(effect, FileEffect::Write { .. });
        if cuts && !std::mem::replace(&mut round.cutting, true) {
            shared.cuts.begin();
        }
        shared.files.carry_out(effect)?;
    }
    let session = SessionId(command.session);
    let key = ProposalKey { session, seq: Seq(command.seq) };
    shared.mutations.applied(key, &outcome);
    round.commands.push((key, index));
    for change in &changes {
        round.note(change);
    }
    if !changes.is_empty() {
        round.changes.push((index, session, changes));
    }
    Ok(())
}

impl Round {
    fn note(&mut self, change: &Change) {
        match change {
            Change::SessionOpened { session, node, strong } => {
                let info = SessionInfo { session: *session, node: *node, strong: *strong };
                self.sessions.push(SessionChange::Opened(info));
            }
            Change::SessionEnded { session, .. } => {
                self.sessions.push(SessionChange::Ended(*session));
            }
            Change::MemberAdded { node, address } => self.members.push((*node, address.clone())),
            Change::Attributes { .. }
            | Change::Bytes { .. }
            | Change::Name { .. }
            | Change::Orphaned { .. }
            | Change::Removed { .. } => {}
        }
    }
}

/// Before others may hear that this node has applied the round, its kernel must serve nothing older.
fn tell_mount(shared: &Shared, round: &Round) {
    let own = shared.mutations.session();
    let observer = shared.observer.get();
    for (index, session, changes) in &round.changes {
        if let Some(observer) = observer {
            observer.applied(*index, *session == own, changes);
        }
        // Only sessions that were open at that index are asked whether they hold it.
        if own == SessionId::CLUSTER || index.0 <= own.0 {
            continue;
        }
        for change in changes {
            if let Change::Orphaned { ino } = change
                && !observer.is_some_and(|observer| observer.holds(*ino))
            {
                shared.released.lock().push(ino.0);
            }
        }
    }
    if own != SessionId::CLUSTER && round.sessions.contains(&SessionChange::Ended(own)) {
        shared.session_ended(own);
    }
}
