//! The delegate's side: the locks that a session keeps by itself, being the only one that has any of
//! an inode. It grants and releases them without asking anybody, for as long as its lease is live; all
//! of them end with the session, as they would in the replicated state.
//!
//! Whatever has to wait is not decided here: the locks go back first, and the replicated state, which
//! sees everybody, queues it. Follows the entries of the log in their order.

use std::collections::BTreeMap;

use super::locks::{Decision, LockTable};
use super::proto::{Lock, LockAnswer, LockMode, ReturnLocks};
use crate::types::{Ino, LogIndex};

/// After so many looks without use, locks that nobody has are returned.
const IDLE: u32 = 5;

/// The inodes whose locks are delegated to one session.
#[derive(Clone, Debug, Default)]
pub struct Delegations {
    inodes: BTreeMap<Ino, Delegation>,
}

#[derive(Clone, Debug)]
struct Delegation {
    at: LogIndex,
    table: LockTable,
    returning: bool,
    /// So often [`Delegations::grown_idle`] was called since somebody used it.
    idle: u32,
}

/// What becomes of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Local {
    /// It is for the replicated state to say.
    NotHere,
    /// The locks are on their way back: ask again when they are.
    Returning,
    /// It would have to wait: the locks have to go back, then it is for the replicated state.
    HasToWait,
    /// It is done, or refused (and because of whom).
    Done(LockAnswer, Option<Lock>),
}

impl Delegations {
    /// The locks of an inode are delegated to this session from the entry at `at` on.
    ///
    /// # Panics
    /// Where `held` is no table: `apply` made it.
    pub fn delegate(&mut self, ino: Ino, at: LogIndex, held: Vec<Lock>) {
        let table = LockTable::new(held).expect("made by apply");
        self.inodes.insert(ino, Delegation { at, table, returning: false, idle: 0 });
    }

    /// They are to go back: nothing is decided here any more. False where they are not here, or on their
    /// way already.
    pub fn recall(&mut self, ino: Ino) -> bool {
        let delegation = self.inodes.get_mut(&ino);
        delegation.is_some_and(|delegation| !std::mem::replace(&mut delegation.returning, true))
    }

    /// The command that takes recalled locks back; `None` where they are not here, or not recalled.
    #[must_use]
    pub fn to_return(&self, ino: Ino) -> Option<ReturnLocks> {
        let Delegation { at, table, returning, .. } = self.inodes.get(&ino)?;
        let held = table.held().to_vec();
        returning.then_some(ReturnLocks { ino: ino.0, delegated_at: at.0, held })
    }

    /// They are back.
    pub fn returned(&mut self, ino: Ino) {
        self.inodes.remove(&ino);
    }

    /// Another session: what the last one had is nobody's.
    pub fn clear(&mut self) {
        self.inodes.clear();
    }

    /// Asks for a lock.
    pub fn request(&mut self, ino: Ino, wanted: &Lock, mode: LockMode) -> Local {
        self.with(ino, |table| {
            let Decision { answer, conflict } = table.request(wanted, mode);
            match answer {
                LockAnswer::Queued => Local::HasToWait,
                answer => Local::Done(answer, conflict),
            }
        })
    }

    /// Releases bytes.
    pub fn release(&mut self, ino: Ino, owner: (u64, u64), start: u64, end: u64) -> Local {
        self.with(ino, |table| {
            table.release(owner, start, end);
            Local::Done(LockAnswer::Granted, None)
        })
    }

    /// Inodes whose locks are here although nobody has any or wanted any in the last few calls.
    pub fn grown_idle(&mut self) -> Vec<Ino> {
        let mut idle = Vec::new();
        for (ino, delegation) in &mut self.inodes {
            delegation.idle += 1;
            if delegation.table.is_empty() && !delegation.returning && delegation.idle > IDLE {
                idle.push(*ino);
            }
        }
        idle
    }

    /// Whether an inode's locks are decided here.
    #[must_use]
    pub fn decides(&self, ino: Ino) -> bool {
        self.inodes.get(&ino).is_some_and(|delegation| !delegation.returning)
    }

    fn with(&mut self, ino: Ino, decide: impl FnOnce(&mut LockTable) -> Local) -> Local {
        match self.inodes.get_mut(&ino) {
            None => Local::NotHere,
            Some(Delegation { returning: true, .. }) => Local::Returning,
            Some(delegation) => {
                delegation.idle = 0;
                decide(&mut delegation.table)
            }
        }
    }
}
