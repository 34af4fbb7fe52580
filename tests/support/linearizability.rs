//! Whether what clients saw of a register could have happened one operation at a time, each between its
//! invocation and its answer (Herlihy and Wing, 1990).
//!
//! Every value is written at most once, so who wrote what a read saw is known, and no search is needed: Gibbons
//! and Korach, "Testing shared memories" (1997), section 4.1. The operations on one value form a *zone* from
//! the first answer to the last invocation among them. Where the answer comes first, the register holds the
//! value throughout (*forward*); otherwise all of them fit into any one moment in between (*backward*). It works
//! out where no two forward zones overlap, no backward zone lies within a forward one, and nothing is read before
//! it was written.

use std::collections::BTreeMap;

/// What a register holds before anything is written to it.
pub const INITIAL: u64 = 0;

/// The answer to a write of which nobody knows whether, and when, it happens.
pub const NEVER: u64 = u64::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Of a value that no other write has.
    Write(u64),
    /// What it saw. One that got no answer says nothing, and is left out.
    Read(u64),
}

/// One operation. Times are those of one clock for all clients, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    pub call: Call,
    pub invoked: u64,
    pub answered: u64,
}

/// Why a history is not linearizable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Read, although no write of it had begun.
    FromNowhere { value: u64 },
    /// One of them is read or acknowledged before and after the other was.
    Reordered { value: u64, other: u64 },
}

impl Violation {
    /// Those that it is about.
    pub fn values(self) -> impl Iterator<Item = u64> {
        let (one, other) = match self {
            Self::FromNowhere { value } => (value, None),
            Self::Reordered { value, other } => (value, Some(other)),
        };
        std::iter::once(one).chain(other)
    }
}

#[derive(Clone, Copy, Debug)]
struct Zone {
    value: u64,
    first_answer: u64,
    last_invocation: u64,
    /// Of its write.
    written: Option<u64>,
}

impl Zone {
    fn is_forward(&self) -> bool {
        self.first_answer < self.last_invocation
    }

    fn start(&self) -> u64 {
        self.first_answer.min(self.last_invocation)
    }

    fn end(&self) -> u64 {
        self.first_answer.max(self.last_invocation)
    }
}

/// Judges the operations on one register.
///
/// # Errors
/// The first violation found.
pub fn check(operations: &[Operation]) -> Result<(), Violation> {
    let zones = zones(operations)?;
    let (mut forward, backward): (Vec<_>, Vec<_>) = zones.into_iter().partition(Zone::is_forward);
    forward.sort_by_key(Zone::start);
    for pair in forward.windows(2) {
        if pair[1].start() < pair[0].end() {
            return Err(Violation::Reordered { value: pair[0].value, other: pair[1].value });
        }
    }
    for inner in backward {
        let after = forward.partition_point(|outer| outer.start() < inner.start());
        let outer = after.checked_sub(1).map(|before| forward[before]);
        if let Some(outer) = outer.filter(|outer| inner.end() < outer.end()) {
            return Err(Violation::Reordered { value: outer.value, other: inner.value });
        }
    }
    Ok(())
}

/// One for each value, but for what was perhaps written and never read.
fn zones(operations: &[Operation]) -> Result<Vec<Zone>, Violation> {
    let mut zones = BTreeMap::new();
    let initial = Operation { call: Call::Write(INITIAL), invoked: 0, answered: 0 };
    for operation in std::iter::once(&initial).chain(operations) {
        let (Call::Write(value) | Call::Read(value)) = operation.call;
        let nothing = Zone { value, first_answer: NEVER, last_invocation: 0, written: None };
        let zone = zones.entry(value).or_insert(nothing);
        zone.first_answer = zone.first_answer.min(operation.answered);
        zone.last_invocation = zone.last_invocation.max(operation.invoked);
        if matches!(operation.call, Call::Write(_)) {
            assert!(zone.written.is_none(), "{value} is written twice");
            zone.written = Some(operation.invoked);
        }
    }
    let known = zones.into_values().filter(|zone| zone.first_answer != NEVER);
    known
        .map(|zone| match zone.written {
            Some(written) if written <= zone.first_answer => Ok(zone),
            _ => Err(Violation::FromNowhere { value: zone.value }),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Call, INITIAL, NEVER, Operation, Violation, check};
    use proptest::prelude::*;

    fn op(call: Call, invoked: u64, answered: u64) -> Operation {
        Operation { call, invoked, answered }
    }

    #[test]
    fn a_stale_read_is_refused() {
        let write = op(Call::Write(7), 1, 2);
        let stale = op(Call::Read(INITIAL), 3, 4);
        assert_eq!(check(&[write, op(Call::Read(7), 3, 4)]), Ok(()));
        assert!(matches!(check(&[write, stale]), Err(Violation::Reordered { .. })));
        assert_eq!(check(&[op(Call::Write(7), 1, 5), stale]), Ok(()));
    }

    #[test]
    fn an_inversion_between_readers_is_refused() {
        let write = op(Call::Write(7), 1, 9);
        let new = op(Call::Read(7), 2, 3);
        let old = |invoked| op(Call::Read(INITIAL), invoked, invoked + 2);
        assert!(check(&[write, new, old(4)]).is_err());
        assert_eq!(check(&[write, new, old(1)]), Ok(()));
    }

    #[test]
    fn what_is_unknown_happens_late_or_never_but_not_early() {
        let lost = op(Call::Write(7), 5, NEVER);
        let other = op(Call::Write(8), 6, 7);
        let read = |value, invoked| op(Call::Read(value), invoked, invoked + 1);
        assert_eq!(check(&[lost, other, read(8, 8), read(8, 20)]), Ok(()));
        assert_eq!(check(&[lost, other, read(8, 8), read(7, 20)]), Ok(()));
        assert!(check(&[lost, other, read(7, 8), read(8, 20), read(7, 30)]).is_err());
        assert_eq!(check(&[read(7, 1), lost]), Err(Violation::FromNowhere { value: 7 }));
    }

    #[test]
    fn a_value_that_nobody_wrote_is_refused() {
        assert_eq!(check(&[op(Call::Read(9), 1, 2)]), Err(Violation::FromNowhere { value: 9 }));
    }

    #[test]
    fn what_was_acknowledged_and_overwritten_unseen_is_gone() {
        let writes = [op(Call::Write(1), 1, 2), op(Call::Write(2), 3, 4)];
        let resurrected = op(Call::Read(1), 5, 6);
        assert!(check(&[writes[0], writes[1], resurrected]).is_err());
    }

    /// By trying all orders: slow, and plainly what is meant.
    fn can_be_ordered(rest: &[Operation], value: u64) -> bool {
        let first_answer = rest.iter().map(|op| op.answered).min().unwrap_or(NEVER);
        if first_answer == NEVER {
            return true;
        }
        (0..rest.len()).filter(|next| rest[*next].invoked <= first_answer).any(|next| {
            let mut others = rest.to_vec();
            match others.remove(next).call {
                Call::Write(written) => can_be_ordered(&others, written),
                Call::Read(seen) => seen == value && can_be_ordered(&others, value),
            }
        })
    }

    /// Up to seven operations at times that differ, some of them writes without an answer.
    fn histories() -> impl Strategy<Value = Vec<Operation>> {
        let operation = (any::<bool>(), 0..4_u64, 0.0..20.0_f64, 0.0..8.0_f64, 0..5_u8);
        prop::collection::vec(operation, 1..8).prop_map(|drawn| {
            let mut times: Vec<_> = drawn.iter().flat_map(|d| [d.2, d.2 + d.3]).collect();
            times.sort_by(f64::total_cmp);
            let rank = |time: f64| times.partition_point(|known| *known < time) as u64 + 1;
            let mut written = 0;
            let operations = drawn.into_iter().map(|(writes, seen, at, long, fate)| {
                let (invoked, answered) = (rank(at), rank(at + long));
                if writes {
                    written += 1;
                    let answered = if fate == 0 { NEVER } else { answered };
                    op(Call::Write(written), invoked, answered)
                } else {
                    op(Call::Read(seen), invoked, answered)
                }
            });
            operations.collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_judges_as_trying_all_orders_does(history in histories()) {
            prop_assert_eq!(check(&history).is_ok(), can_be_ordered(&history, INITIAL));
        }
    }
}
