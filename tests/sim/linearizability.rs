//! Whether a history could have happened one operation at a time, each between its invocation and its
//! answer (Herlihy and Wing, 1990). The search is that of Wing and Gong (1993) with the memory of Lowe
//! (2017): a set of operations done and the state that they led to are never tried twice.

use std::collections::BTreeSet;

use crate::history::{Answer, Call, NAMES, Record, RenameMode, SLOTS};

const ENOENT: u32 = 2;
const EEXIST: u32 = 17;
const ENOTDIR: u32 = 20;
const EISDIR: u32 = 21;

/// Operations of one subject that can be judged together: a bit each.
pub const MOST: usize = 128;

/// What a subject is, seen one operation at a time: a register, a few names, or a few slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Sequential {
    value: u64,
    names: [Option<(u64, bool)>; NAMES],
    slots: [u64; SLOTS],
}

impl Sequential {
    fn step(&mut self, call: Call) -> Answer {
        match call {
            Call::Set(value) => {
                self.value = value;
                Answer::Done
            }
            Call::Get => Answer::Value(self.value),
            Call::Lookup(name) => Answer::Entry(self.names[name]),
            Call::Make { name, ino, directory } => {
                if self.names[name].is_some() {
                    return Answer::Errno(EEXIST);
                }
                self.names[name] = Some((ino, directory));
                Answer::Done
            }
            Call::Remove { name, directory } => match self.names[name] {
                None => Answer::Errno(ENOENT),
                Some((_, true)) if !directory => Answer::Errno(EISDIR),
                Some((_, false)) if directory => Answer::Errno(ENOTDIR),
                Some(_) => {
                    self.names[name] = None;
                    Answer::Done
                }
            },
            Call::Rename { from, to, mode } => self.rename(from, to, mode),
            Call::Fill { slots, value, .. } => {
                slots.iter().for_each(|slot| self.slots[slot] = value);
                Answer::Done
            }
            Call::Punch(slot) => {
                self.slots[slot] = 0;
                Answer::Done
            }
            Call::Cut => {
                self.slots = [0; SLOTS];
                Answer::Done
            }
            Call::Peek => Answer::Filled(self.slots),
            Call::Append { .. } | Call::Size => unreachable!("logs are judged by their offsets"),
        }
    }

    fn rename(&mut self, from: usize, to: usize, mode: RenameMode) -> Answer {
        let Some(source) = self.names[from] else { return Answer::Errno(ENOENT) };
        match (mode, self.names[to]) {
            (RenameMode::NoReplace, Some(_)) => return Answer::Errno(EEXIST),
            (RenameMode::Exchange, None) => return Answer::Errno(ENOENT),
            (_, Some(target)) if target == source => return Answer::Done,
            (RenameMode::Replace, Some((_, is_directory))) if is_directory != source.1 => {
                return Answer::Errno(if is_directory { EISDIR } else { ENOTDIR });
            }
            (RenameMode::Exchange, target @ Some(_)) => self.names[from] = target,
            (RenameMode::Replace | RenameMode::NoReplace, _) => self.names[from] = None,
        }
        self.names[to] = Some(source);
        Answer::Done
    }
}

struct Operation {
    call: Call,
    invoked: u64,
    /// Never, where nobody knows whether it happened.
    answered: u64,
    answer: Option<Answer>,
}

/// Whether the operations of one subject, which starts out empty, are linearizable.
pub fn is_linearizable(records: &[&Record]) -> bool {
    let operations: Vec<Operation> = records
        .iter()
        .filter(|record| !record.void && (record.answer.is_some() || !record.call.is_read()))
        .map(|record| Operation {
            call: record.call,
            invoked: record.invoked,
            answered: record.answer.map_or(u64::MAX, |(stamp, _)| stamp),
            answer: record.answer.map(|(_, answer)| answer),
        })
        .collect();
    assert!(operations.len() <= MOST, "{} operations on one subject", operations.len());
    let mut tried = BTreeSet::new();
    let mut open = vec![(0_u128, Sequential::default())];
    while let Some((done, state)) = open.pop() {
        // Only what was invoked before the first answer that is still owed can come next.
        let rest = || (0..operations.len()).filter(|i| done & (1 << i) == 0);
        let first_answer = rest().map(|i| operations[i].answered).min().unwrap_or(u64::MAX);
        if first_answer == u64::MAX {
            return true;
        }
        for i in rest().filter(|i| operations[*i].invoked < first_answer) {
            let mut after = state;
            let answer = after.step(operations[i].call);
            let next = (done | 1 << i, after);
            if operations[i].answer.is_none_or(|seen| seen == answer) && tried.insert(next) {
                open.push(next);
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::is_linearizable;
    use crate::history::{Answer, Call, Record, Subject};
    use quorumfs::types::Ino;

    fn record(call: Call, invoked: u64, answer: Option<(u64, Answer)>) -> Record {
        let subject = Subject::Register { file: Ino(1), round: 0 };
        Record { client: 0, subject, call, invoked, answer, void: false }
    }

    fn judge(records: &[Record]) -> bool {
        is_linearizable(&records.iter().collect::<Vec<_>>())
    }

    /// The checker itself must be able to say no.
    #[test]
    fn a_stale_read_is_refused() {
        let write = record(Call::Set(7), 1, Some((2, Answer::Done)));
        let stale = record(Call::Get, 3, Some((4, Answer::Value(0))));
        let fresh = record(Call::Get, 3, Some((4, Answer::Value(7))));
        assert!(!judge(&[write.clone(), stale.clone()]));
        assert!(judge(&[write, fresh]));
        assert!(judge(&[record(Call::Set(7), 1, None), stale]));
    }

    #[test]
    fn an_inversion_between_readers_is_refused() {
        let write = record(Call::Set(7), 1, None);
        let new = record(Call::Get, 2, Some((3, Answer::Value(7))));
        let old = record(Call::Get, 4, Some((5, Answer::Value(0))));
        assert!(!judge(&[write, new, old]));
    }

    #[test]
    fn a_name_made_twice_is_refused() {
        let make = |ino, invoked| {
            let call = Call::Make { name: 0, ino, directory: false };
            record(call, invoked, Some((invoked + 2, Answer::Done)))
        };
        assert!(!judge(&[make(5, 1), make(6, 2)]));
    }
}
