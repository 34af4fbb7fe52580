//! The locks of one inode: which owner has which bytes, by the rules of fcntl(2).
//!
//! Used by `apply` over what is replicated, and by the delegate of an inode's locks over its own copy.

use super::limits::LOCKS_MAX;
use super::proto::{Lock, LockAnswer, LockMode};
use crate::mutants::{self, Mutant};
use crate::types::SessionId;

/// The last byte that a lock to the end of the file covers.
pub const WHOLE_FILE: u64 = u64::MAX;

/// Locks by session, owner and start. Those of one owner neither overlap nor could be one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockTable {
    held: Vec<Lock>,
}

/// What a request comes to over a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    /// `Queued` where it has to wait.
    pub(super) answer: LockAnswer,
    /// The first lock that is in its way.
    pub(super) conflict: Option<Lock>,
}

impl LockTable {
    /// A table of these locks; `None` where they are no table.
    #[must_use]
    pub fn new(held: Vec<Lock>) -> Option<Self> {
        let table = Self { held };
        table.is_valid().then_some(table)
    }

    /// What [`Self::into_held`] gave.
    pub(super) fn stored(held: Vec<Lock>) -> Self {
        let table = Self { held };
        debug_assert!(table.is_valid(), "{table:?}");
        table
    }

    /// The locks, in order.
    #[must_use]
    pub fn held(&self) -> &[Lock] {
        &self.held
    }

    /// The locks, in order.
    #[must_use]
    pub fn into_held(self) -> Vec<Lock> {
        self.held
    }

    /// Whether nobody has a lock.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Whether all locks are of one session.
    pub(super) fn is_only_of(&self, session: SessionId) -> bool {
        self.held.iter().all(|lock| lock.session == session.0)
    }

    /// The locks of others that are in the way of this one.
    pub(super) fn conflicts(&self, wanted: &Lock) -> impl Iterator<Item = &Lock> {
        self.held.iter().filter(move |held| held.conflicts_with(wanted))
    }

    /// Does what is asked for, if it can be done at once.
    pub(super) fn request(&mut self, wanted: &Lock, mode: LockMode) -> Decision {
        let conflict = self.conflicts(wanted).next().copied();
        let conflict = conflict.filter(|_| !mutants::is(Mutant::GrantAnyLock));
        let answer = match (mode, conflict.is_some()) {
            (LockMode::Test, false) => LockAnswer::Free,
            (LockMode::Test | LockMode::Try | LockMode::Unspecified, true) => LockAnswer::Refused,
            (LockMode::Wait, true) => LockAnswer::Queued,
            (LockMode::Try | LockMode::Wait | LockMode::Unspecified, false) => self.take(wanted),
        };
        Decision { answer, conflict }
    }

    /// Gives an owner a lock that nobody's is in the way of, in place of what it had of these bytes.
    fn take(&mut self, wanted: &Lock) -> LockAnswer {
        // It may cut a lock in two, and is one itself.
        if self.held.len() + 2 > LOCKS_MAX {
            return LockAnswer::TooMany;
        }
        self.release(wanted.owner_key(), wanted.start, wanted.end);
        let mut lock = *wanted;
        self.held.retain(|held| {
            let joins = held.owner_key() == lock.owner_key()
                && held.exclusive == lock.exclusive
                && held.touches(&lock);
            if joins {
                lock.start = lock.start.min(held.start);
                lock.end = lock.end.max(held.end);
            }
            !joins
        });
        let place = self.held.partition_point(|held| held.place() < lock.place());
        self.held.insert(place, lock);
        debug_assert!(self.is_valid(), "{self:?}");
        LockAnswer::Granted
    }

    /// Takes bytes from an owner.
    pub fn release(&mut self, owner: (u64, u64), start: u64, end: u64) {
        let mut kept = Vec::with_capacity(self.held.len() + 1);
        for held in self.held.drain(..) {
            if held.owner_key() != owner || held.end < start || end < held.start {
                kept.push(held);
                continue;
            }
            if held.start < start {
                kept.push(Lock { end: start - 1, ..held });
            }
            if end < held.end {
                kept.push(Lock { start: end + 1, ..held });
            }
        }
        self.held = kept;
    }

    /// Takes all that a session has; answers whether it had any.
    pub(super) fn release_session(&mut self, session: SessionId) -> bool {
        let before = self.held.len();
        self.held.retain(|lock| lock.session != session.0);
        self.held.len() < before
    }

    fn is_valid(&self) -> bool {
        let in_order = self.held.is_sorted_by(|one, next| {
            let same = one.owner_key() == next.owner_key();
            one.place() < next.place() && !(same && next.start <= one.end)
        });
        let compatible = self
            .held
            .iter()
            .enumerate()
            .all(|(i, one)| self.held[i + 1..].iter().all(|other| !one.conflicts_with(other)));
        in_order && compatible && self.held.iter().all(|lock| lock.start <= lock.end)
    }
}

impl Lock {
    /// Whose it is: session, owner.
    #[must_use]
    pub fn owner_key(&self) -> (u64, u64) {
        (self.session, self.owner)
    }

    fn place(&self) -> (u64, u64, u64) {
        (self.session, self.owner, self.start)
    }

    fn conflicts_with(&self, other: &Self) -> bool {
        self.owner_key() != other.owner_key()
            && (self.exclusive || other.exclusive)
            && self.start <= other.end
            && other.start <= self.end
    }

    /// Whether both could be one.
    fn touches(&self, other: &Self) -> bool {
        self.start <= other.end.saturating_add(1) && other.start <= self.end.saturating_add(1)
    }
}

#[cfg(test)]
mod tests {
    use super::{Lock, LockAnswer, LockMode, LockTable, WHOLE_FILE};

    fn lock(owner: u64, start: u64, end: u64, exclusive: bool) -> Lock {
        Lock { session: 1, owner, start, end, exclusive, pid: 7 }
    }

    fn of(table: &LockTable, owner: u64) -> Vec<(u64, u64, bool)> {
        let held = table.held().iter().filter(|lock| lock.owner == owner);
        held.map(|lock| (lock.start, lock.end, lock.exclusive)).collect()
    }

    /// An owner's locks replace, cut and join each other as fcntl(2) says.
    #[test]
    fn one_owner() {
        let mut table = LockTable::default();
        let mut take = |start, end, exclusive| {
            let answer = table.request(&lock(1, start, end, exclusive), LockMode::Try).answer;
            assert_eq!(answer, LockAnswer::Granted);
            of(&table, 1)
        };
        assert_eq!(take(10, 19, false), [(10, 19, false)]);
        assert_eq!(take(20, 29, false), [(10, 29, false)], "neighbours are one");
        assert_eq!(
            take(15, 17, true),
            [(10, 14, false), (15, 17, true), (18, 29, false)],
            "upgraded in part"
        );
        assert_eq!(take(0, WHOLE_FILE, false), [(0, WHOLE_FILE, false)], "all at once");
        table.release((1, 1), 5, 9);
        assert_eq!(of(&table, 1), [(0, 4, false), (10, WHOLE_FILE, false)]);
        table.release((1, 1), 0, WHOLE_FILE);
        assert!(table.is_empty());
    }

    /// Readers share, writers don't, and neighbours are nobody's business.
    #[test]
    fn two_owners() {
        let mut table = LockTable::default();
        let mut ask = |lock, mode| table.request(&lock, mode).answer;
        assert_eq!(ask(lock(1, 0, 9, false), LockMode::Try), LockAnswer::Granted);
        assert_eq!(ask(lock(2, 5, 14, false), LockMode::Wait), LockAnswer::Granted);
        assert_eq!(ask(lock(2, 0, 0, true), LockMode::Try), LockAnswer::Refused);
        assert_eq!(ask(lock(2, 0, 0, true), LockMode::Wait), LockAnswer::Queued);
        assert_eq!(ask(lock(2, 0, 0, true), LockMode::Test), LockAnswer::Refused);
        assert_eq!(ask(lock(2, 10, 20, true), LockMode::Test), LockAnswer::Free);
        assert_eq!(ask(lock(2, 10, 20, true), LockMode::Try), LockAnswer::Granted);
        assert_eq!(of(&table, 2), [(5, 9, false), (10, 20, true)]);
        let conflict = table.request(&lock(1, 12, 30, false), LockMode::Test).conflict;
        assert_eq!(conflict, Some(lock(2, 10, 20, true)));
    }

    /// Against one flag for each byte and owner, which is what the rules say.
    #[test]
    fn agrees_with_bytes() {
        const BYTES: u64 = 12;
        let mut table = LockTable::default();
        let mut bytes = [[None; 12]; 3];
        let mut number = 1_u64;
        for _ in 0..20_000 {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let pick = |shift: u32, below: u64| (number >> shift) % below;
            let (owner, start) = (pick(33, 3), pick(37, BYTES));
            let end = start + pick(43, BYTES - start);
            let range = usize::try_from(start).unwrap()..=usize::try_from(end).unwrap();
            let who = usize::try_from(owner).unwrap();
            match pick(51, 3) {
                0 => {
                    table.release((1, owner), start, end);
                    bytes[who][range].fill(None);
                }
                kind => {
                    let exclusive = kind == 1;
                    let free = (0..3).filter(|other| *other != who).all(|other| {
                        bytes[other][range.clone()]
                            .iter()
                            .all(|byte: &Option<bool>| !byte.is_some_and(|held| held || exclusive))
                    });
                    let answer = table.request(&lock(owner, start, end, exclusive), LockMode::Try);
                    assert_eq!(answer.answer == LockAnswer::Granted, free);
                    if free {
                        bytes[who][range].fill(Some(exclusive));
                    }
                }
            }
            for (who, bytes) in bytes.iter().enumerate() {
                for (at, byte) in bytes.iter().enumerate() {
                    let found = of(&table, who as u64)
                        .into_iter()
                        .find(|&(start, end, _)| (start..=end).contains(&(at as u64)));
                    assert_eq!(found.map(|(_, _, exclusive)| exclusive), *byte);
                }
            }
        }
    }
}
