//! What happens when entries are received: reads of what they may change wait from then on, and the mounts'
//! kernels forget it.
//!
//! It is for the applier, which may wait for the state's disk and for the kernel. But where there is nothing
//! to wait for, the driver does it at once, which saves two wake-ups for each entry.

use std::collections::BTreeSet;

use super::apply::{ApplyError, decode, key_of};
use super::shared::Shared;
use crate::consensus::{Input, Received};
use crate::fs::proto::{Command, command::Op};
use crate::fs::{Change, Records, Unapplied};
use crate::types::{LogIndex, MountId, SessionId};

/// More entries than these are left to the applier: the driver has other things to do.
const FEW: usize = 8;

/// What one entry may change.
struct Marked {
    session: SessionId,
    /// The mount of this node that proposed it and waits for it still.
    proposer: Option<MountId>,
    /// It only writes bytes, which the mount that proposed it shows.
    writes: bool,
    /// It only renews access times.
    touches: bool,
    changes: Vec<Change>,
}

impl Marked {
    fn is_own_of(&self, mount: MountId) -> bool {
        self.proposer == Some(mount)
    }

    /// Whether a mount expects it. Reading renews access times, which comes from everywhere and surprises
    /// nobody.
    fn is_expected_by(&self, mount: MountId) -> bool {
        self.is_own_of(mount) || self.touches
    }
}

/// Before others may hear that this node serves nothing older than these entries, reads of what they change
/// must wait, and its kernel must have forgotten it: in this order. Answers what the core is told then. By
/// the applier.
pub(super) fn invalidate(shared: &Shared, entries: &[Received]) -> Result<Input, ApplyError> {
    let first = entries.first().expect("there are some").position.index;
    if first <= shared.received.last() {
        shared.received.replace(first);
        shared.gate.look_again();
    }
    let mut marked = Vec::with_capacity(entries.len());
    for Received { position, data } in commands(entries) {
        let command = decode(position.index, data)?;
        let mut unapplied = shared.received.unapplied.write();
        marked.push(mark(shared, &mut unapplied, &shared.state, position.index, &command)?);
    }
    Ok(tell_mounts(shared, entries, &marked, true))
}

/// The same by the driver, where it has to wait for nothing; else the applier has to do it, and may mark a
/// second time what is marked already.
pub(super) fn try_invalidate(shared: &Shared, entries: &[Received]) -> Option<Input> {
    let received = &shared.received;
    let follows = entries.first()?.position.index > received.last();
    if !follows || entries.len() > FEW || received.applier_is_to_invalidate() {
        return None;
    }
    let mut unapplied = received.unapplied.try_write()?;
    let in_memory = shared.state.in_memory();
    let mut marked = Vec::with_capacity(entries.len());
    for Received { position, data } in commands(entries) {
        let command = decode(position.index, data).ok()?;
        marked.push(mark(shared, &mut unapplied, &in_memory, position.index, &command).ok()?);
    }
    drop(unapplied);
    let waits = shared
        .observers
        .all()
        .iter()
        .any(|(_, observer)| marked.iter().any(|entry| observer.would_wait(&entry.changes)));
    (!waits).then(|| tell_mounts(shared, entries, &marked, false))
}

fn commands(entries: &[Received]) -> impl Iterator<Item = &Received> {
    entries.iter().filter(|entry| !entry.data.is_empty())
}

fn mark<V: Records>(
    shared: &Shared,
    unapplied: &mut Unapplied,
    state: &V,
    index: LogIndex,
    command: &Command,
) -> Result<Marked, V::Error> {
    let proposer = shared.mutations.proposer(key_of(command));
    let changes = unapplied.receive(state, index, command, proposer)?;
    let writes = matches!(command.op, Some(Op::Write(_)));
    let touches = matches!(command.op, Some(Op::Touch(_)));
    Ok(Marked { session: SessionId(command.session), proposer, writes, touches, changes })
}

fn tell_mounts(shared: &Shared, entries: &[Received], marked: &[Marked], may_wait: bool) -> Input {
    let last = entries.last().expect("there are some").position;
    shared.received.up_to(last.index);
    // Whoever begins to observe after this finds the marks.
    for (mount, observer) in shared.observers.all().iter() {
        for entry in marked {
            if !(entry.is_own_of(*mount) && entry.writes) {
                observer.received(entry.is_expected_by(*mount), &entry.changes, may_wait);
            }
        }
    }
    let sessions: BTreeSet<_> = marked.iter().map(|entry| entry.session).collect();
    Input::Invalidated { last, sessions }
}
