//! The thread that applies committed entries: state, backing files, and the mount's caches.

use std::cell::Cell;
use std::sync::Arc;

use tokio::sync::mpsc::{Sender, UnboundedReceiver};
use tokio::sync::oneshot;

use super::divergence::compare;
use super::fatal::Fatal;
use super::invalidate::invalidate;
use super::shared::Shared;
use super::snapshots::Due;
use crate::consensus::{Committed, Input, Received, SessionChange, SessionInfo};
use crate::fs::proto;
use crate::fs::{self, Applied, Change, FileEffect, Overlay, Verdict};
use crate::store::{AppliedPoint, StoreError};
use crate::types::{LogIndex, MountId, NodeId, ProposalKey, Seq, SessionId, Suffrage};

/// At most this many entries go into one round.
const ROUND: usize = 512;
/// No more entries once so many bytes of records were put: sled takes a round whole.
const ROUND_BYTES: usize = 64 << 10;

/// Why entries could not be applied. The replica must stop: it would differ from the others.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApplyError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "the disk under the data directory is full ({0}): free some space and start the daemon again; \
         it goes on where it stopped"
    )]
    Full(#[source] StoreError),
    #[error("the command in log entry {index} {source}")]
    NoCommand { index: LogIndex, source: fs::NoCommand },
}

impl ApplyError {
    fn of_effect(error: StoreError) -> Self {
        if error.is_full() { Self::Full(error) } else { Self::Store(error) }
    }
}

impl From<&ApplyError> for Fatal {
    fn from(error: &ApplyError) -> Self {
        let is_full = match error {
            ApplyError::Store(error) => error.is_full(),
            ApplyError::Full(_) => true,
            ApplyError::NoCommand { .. } => false,
        };
        Self::failed(error.to_string(), is_full)
    }
}

/// What the thread is given, in the order in which it happens.
pub(super) enum Work {
    Invalidate(Vec<Received>),
    Apply {
        entries: Vec<Committed>,
        shown_by_others: bool,
    },
    /// To be told once everything before it is done.
    Barrier(oneshot::Sender<()>),
}

/// What can be done at once.
#[derive(Default)]
struct Inbox {
    received: Vec<Vec<Received>>,
    committed: Vec<Committed>,
    /// Of all that is committed.
    shown_by_others: bool,
    barriers: Vec<oneshot::Sender<()>>,
}

thread_local! {
    static ANSWERS: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread is one that answers mutations at this moment: whoever is woken on it may go
/// on right here, which saves the way to another thread. It must not wait.
pub fn answers_here() -> bool {
    ANSWERS.get()
}

/// Runs `work` as if on a thread that answers nothing.
pub fn without_answering(work: impl FnOnce()) {
    let before = ANSWERS.replace(false);
    work();
    ANSWERS.set(before);
}

/// What one round did, for the core and the mount.
#[derive(Default)]
struct Round {
    /// Bytes were cut off that the state still counts.
    cutting: bool,
    commands: Vec<(ProposalKey, LogIndex)>,
    sessions: Vec<SessionChange>,
    members: Vec<(NodeId, Option<Suffrage>)>,
    /// What its last command says of the replicas' states.
    verdict: Option<Verdict>,
    /// Index, mount that proposed it, changes.
    changes: Vec<(LogIndex, Option<MountId>, Vec<Change>)>,
}

/// Runs until the driver is gone, or until this replica cannot go on.
pub(super) fn run(
    shared: &Arc<Shared>,
    inbox: &mut UnboundedReceiver<Work>,
    due: &Sender<Due>,
    staged: &Sender<()>,
) {
    while let Some(first) = inbox.blocking_recv() {
        let mut work = Inbox { shown_by_others: true, ..Inbox::default() };
        work.add(first);
        while work.committed.len() < ROUND
            && let Ok(more) = inbox.try_recv()
        {
            work.add(more);
        }
        if let Err(error) = work.carry_out(shared) {
            shared.fail(&error);
            return;
        }
        if !shared.files.are_in_place() {
            let _ = staged.try_send(());
        }
        // One that waits to be compared is looked at by the clock.
        if shared.snapshot_is_due(shared.state.applied()) && !shared.unattested.is_there() {
            // The thread may be at work on one.
            let _ = due.try_send(Due::Own);
        }
    }
}

impl Inbox {
    fn add(&mut self, work: Work) {
        match work {
            Work::Invalidate(entries) => self.received.push(entries),
            Work::Apply { entries, shown_by_others } => {
                self.committed.extend(entries);
                self.shown_by_others &= shown_by_others;
            }
            Work::Barrier(waiting) => self.barriers.push(waiting),
        }
    }

    /// What was received comes first: some of it may be committed already.
    fn carry_out(self, shared: &Shared) -> Result<(), ApplyError> {
        for entries in &self.received {
            let input = invalidate(shared, entries)?;
            shared.received.applier_has_invalidated();
            shared.input(input);
        }
        let mut rest = &self.committed[..];
        // What is known of the others is known of all that is handed out together, and of nobody who opens a session in it.
        let mut shown = self.shown_by_others;
        while let Some(last) = rest.last() {
            if shared.comparison.is_diverged() {
                // The state of a peer takes the place of this one, and the core hands out again what comes after it.
                shared.received.unapplied.write().applied(last.position.index);
                break;
            }
            (rest, shown) = apply_round(shared, rest, shown)?;
        }
        for waiting in self.barriers {
            // Whoever waited may have gone.
            let _ = waiting.send(());
        }
        Ok(())
    }
}

/// Applies entries, up to one at which states are compared or as many as make a round; answers what is left of them, and
/// whether nobody else serves anything older than that.
fn apply_round<'a>(
    shared: &Shared,
    entries: &'a [Committed],
    shown_by_others: bool,
) -> Result<(&'a [Committed], bool), ApplyError> {
    let mut round = Round::default();
    let mut overlay = Overlay::new(&shared.state);
    let mut count = 0;
    for entry in entries {
        count += 1;
        if !entry.data.is_empty() {
            apply_entry(shared, &mut overlay, entry, &mut round)?;
        }
        if round.verdict.is_some() || overlay.bytes() >= ROUND_BYTES {
            break;
        }
    }
    let (entries, rest) = entries.split_at(count);
    let Some(last) = entries.last() else { return Ok((rest, shown_by_others)) };
    let mut batch = overlay.finish()?;
    let index = last.position.index;
    let sampled =
        round.verdict.map(|verdict| compare(shared, verdict, index, &mut batch)).transpose()?;
    let conf_state = entries.iter().rev().find_map(|entry| entry.conf_state.as_ref());
    let point = AppliedPoint { index, term: last.position.term, conf_state };
    shared.state.commit(batch, point)?;
    if shared.comparison.is_diverged() {
        // It says what the files were changed under, after a restart, too.
        shared.state.flush()?;
    }
    shared.files.pass(index);
    shared.received.unapplied.write().applied(index);
    if round.cutting {
        shared.cuts.end();
    }
    tell_mounts(shared, &round);
    if !round.members.is_empty() || conf_state.is_some() {
        shared.meet_members()?;
    }
    let answered = shown_by_others && round.sessions.is_empty();
    if answered {
        answer(shared, index, &round.commands);
    }
    let own = shared.mutations.session();
    let waits = |session| !answered && (session == own || session == SessionId::CLUSTER);
    let somebody_waits = round.commands.iter().any(|(key, _)| waits(key.session))
        || !round.sessions.is_empty()
        || !round.members.is_empty();
    shared.input_later(Input::Applied {
        index,
        term: last.position.term,
        commands: round.commands,
        sessions: round.sessions,
        members: round.members,
    });
    let is_sampled = sampled.is_some();
    if let Some(sampled) = sampled {
        shared.input_later(sampled);
    }
    // Who comes to wait after this is looked at has the driver look by what it asks for.
    if somebody_waits || is_sampled || shared.gate.is_watched() {
        shared.look_at_late();
    }
    Ok((rest, answered))
}

/// Answers those who wait for these commands: the core has said that it would, in its turn.
fn answer(shared: &Shared, stable: LogIndex, commands: &[(ProposalKey, LogIndex)]) {
    shared.gate.raise_stable(stable);
    ANSWERS.set(true);
    for (key, _) in commands {
        for input in shared.mutations.acknowledge(*key, || shared.clock.next()) {
            shared.input(input);
        }
    }
    ANSWERS.set(false);
}

pub(super) fn key_of(command: &proto::Command) -> ProposalKey {
    ProposalKey { session: SessionId(command.session), seq: Seq(command.seq) }
}

pub(super) fn decode(index: LogIndex, data: &bytes::Bytes) -> Result<proto::Command, ApplyError> {
    fs::decode(data.clone()).map_err(|source| ApplyError::NoCommand { index, source })
}

fn apply_entry(
    shared: &Shared,
    overlay: &mut Overlay<&crate::store::State>,
    entry: &Committed,
    round: &mut Round,
) -> Result<(), ApplyError> {
    let index = entry.position.index;
    let command = decode(index, &entry.data)?;
    shared.clock.observe(command.clock);
    let Applied { outcome, changes, effects } = fs::apply(overlay, entry.position, &command)?;
    // Before the state says so: a crash in between replays both, and neither minds.
    if effects.iter().any(FileEffect::cuts) && !std::mem::replace(&mut round.cutting, true) {
        shared.cuts.begin();
    }
    shared.files.carry_out_all(index, &effects).map_err(ApplyError::of_effect)?;
    debug_assert!(
        changes.iter().all(|c| shared.received.unapplied.read().covers(index, c)),
        "{command:?} changed what was not marked: {changes:?}"
    );
    if let Some(proto::command::Op::AcceptLost(lost)) = &command.op
        && !effects.is_empty()
    {
        super::lost::note(index, &command, lost);
    }
    if outcome.errno == 0 {
        shared.durability.applied(index, &command);
    }
    round.verdict = Verdict::of(&command);
    let key = key_of(&command);
    let proposer = shared.mutations.applied(key, &outcome);
    round.commands.push((key, index));
    for change in &changes {
        round.note(change);
    }
    if !changes.is_empty() {
        round.changes.push((index, proposer, changes));
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
            Change::MemberChanged { node, suffrage, .. } => self.members.push((*node, *suffrage)),
            Change::MemberRemoved { node } => self.members.push((*node, None)),
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
}

/// Before others may hear that this node has applied the round, its kernel must serve nothing older.
fn tell_mounts(shared: &Shared, round: &Round) {
    let own = shared.mutations.session();
    let observers = shared.observers.all();
    for (index, proposer, changes) in &round.changes {
        for (mount, observer) in observers.iter() {
            observer.applied(*index, *proposer == Some(*mount), changes);
        }
        for change in changes {
            shared.locks.applied(change);
        }
        // Only sessions that were open at that index are asked whether they hold it.
        if own == SessionId::CLUSTER || index.0 <= own.0 {
            continue;
        }
        for change in changes {
            if let Change::Orphaned { ino } = change
                && !shared.observers.hold(*ino)
            {
                shared.released.lock().push(ino.0);
            }
        }
    }
    if own != SessionId::CLUSTER && round.sessions.contains(&SessionChange::Ended(own)) {
        shared.session_ended(own);
    }
}
