//! Deliberate mistakes, which the simulation must find: so it is known that it looks.
//!
//! Without the feature `mutants` there are none, and asking costs nothing. A simulated world is given one when it is
//! made, and has it for the whole of its thread.

/// One mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// What is on its way to the disk counts as there.
    AcknowledgeBeforeFsync,
    /// A read asks no lease.
    ReadWithoutLease,
    /// A lease runs from when its renewal came.
    LeaseFromReceipt,
    /// A leader renews sessions without asking whether it still leads.
    LeaseWithoutQuorum,
    /// A new leader expires sessions at once.
    ExpireAtOnce,
    /// A leader waits for half the time that a lease runs.
    ExpireEarly,
    /// One mount need not show what is stable.
    StableWithoutOne,
    /// What was said of an earlier leader's log counts in this term, too.
    ClaimOfAnotherTerm,
    /// A command that comes again is executed again.
    SkipDedup,
    /// A command is executed whose session has ended.
    OutliveSession,
    /// A command is executed although it was given up, and later ones have been executed.
    OutliveProposer,
    /// Names may be served that an entry is about to change.
    ServeReceivedNames,
    /// Bytes of an older version fill what is missing.
    FillWithOlder,
    /// Bytes that came for one entry fill what is missing by another.
    FillAnother,
    /// A lock is granted whatever is in its way.
    GrantAnyLock,
    /// A replica does not compare its digests with those of the others.
    IgnoreDigests,
    /// A replica that has healed believes all of its files that are not newer than the snapshot.
    BelieveAllFiles,
    /// A replica that heals takes a state that is older than what its files have come to.
    HealFromAny,
    /// Whoever cannot say now whether it has bytes is taken for one that lacks them.
    TakeNotNowForLacking,
    /// In doubt a replica says that it holds nothing.
    HoldNothingInDoubt,
}

#[cfg(feature = "mutants")]
mod chosen {
    use std::cell::Cell;

    use super::Mutant;

    thread_local! {
        static CHOSEN: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// From now on, this thread makes that mistake.
    pub fn choose(mutant: Option<Mutant>) {
        CHOSEN.set(mutant);
    }

    pub(crate) fn is(mutant: Mutant) -> bool {
        CHOSEN.get() == Some(mutant)
    }
}

#[cfg(feature = "mutants")]
pub use chosen::choose;
#[cfg(feature = "mutants")]
pub(crate) use chosen::is;

/// Nobody makes mistakes.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn is(_mutant: Mutant) -> bool {
    false
}
