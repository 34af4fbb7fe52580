//! What programs on all mounts did and saw, on one clock, and whether it can be.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::linearizability::{self, NEVER, Operation};

/// What a register is read as whose bytes were never written together. Nobody writes this value.
pub const TORN: u64 = u64::MAX - 1;

/// A file that operations are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A register that is replaced by a rename, from any mount.
    Renamed(u64),
    /// A register that is overwritten in place from the mount of this node, and read on all others: bytes are seen
    /// where they are written before they are promised to anybody else.
    InPlace(u64),
    /// Tags are appended from all mounts, and read in the end.
    Log(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Of a value that is written once.
    Write(u64),
    Read,
    /// Of a tag that is appended once.
    Append(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Value(u64),
    /// An error, of a call that may have changed something: it happens at any time from its begin, or never.
    Unknown,
    /// An error before anything was changed, or of a read.
    Void,
}

/// Times are nanoseconds from the start of the workload, never 0.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// Whose mount.
    pub node: u64,
    pub subject: Subject,
    pub call: Call,
    pub invoked: u64,
    pub answered: u64,
    pub outcome: Outcome,
}

impl Record {
    pub fn took(&self) -> Duration {
        Duration::from_nanos(self.answered - self.invoked)
    }

    /// When it had happened for certain.
    fn done_at(&self) -> u64 {
        if self.outcome == Outcome::Unknown { NEVER } else { self.answered }
    }
}

/// All violations, in words. `logs` is what the logs hold in the end.
pub fn violations(records: &[Record], logs: &BTreeMap<Subject, Vec<u64>>) -> Vec<String> {
    let mut by_subject: BTreeMap<Subject, Vec<Record>> = BTreeMap::new();
    for record in records.iter().filter(|record| record.outcome != Outcome::Void) {
        by_subject.entry(record.subject).or_default().push(*record);
    }
    let mut found = Vec::new();
    for (subject, records) in by_subject {
        if matches!(subject, Subject::Log(_)) {
            let log = logs.get(&subject).expect("every log is read in the end");
            found.extend(
                of_log(&records, log).into_iter().map(|what| format!("{subject:?}: {what}")),
            );
        } else if let Err(violation) = linearizability::check(&operations(&records)) {
            let concerned = |record: &&Record| violation.values().any(|value| record.is_of(value));
            let records: Vec<_> = records.iter().filter(concerned).collect();
            found.push(format!("{subject:?}: {violation:?}: {records:#?}"));
        }
    }
    found
}

fn operations(records: &[Record]) -> Vec<Operation> {
    let operation = |record: &Record| {
        let call = match (record.call, record.outcome) {
            (Call::Write(value), _) => linearizability::Call::Write(value),
            (Call::Read, Outcome::Value(value)) => linearizability::Call::Read(value),
            _ => unreachable!("not of a register: {record:?}"),
        };
        Operation { call, invoked: record.invoked, answered: record.done_at() }
    };
    records.iter().map(operation).collect()
}

impl Record {
    fn is_of(&self, value: u64) -> bool {
        self.call == Call::Write(value) || self.outcome == Outcome::Value(value)
    }
}

/// Every acknowledged tag is there once, every other one at most once, and none before one that had been
/// acknowledged when it was asked for.
fn of_log(records: &[Record], log: &[u64]) -> Vec<String> {
    let mut found = Vec::new();
    let tag = |record: &Record| match record.call {
        Call::Append(tag) => tag,
        _ => unreachable!("not of a log: {record:?}"),
    };
    let asked: BTreeMap<_, _> = records.iter().map(|record| (tag(record), record)).collect();
    let mut seen = BTreeSet::new();
    let mut last_invoked = 0;
    for tag in log {
        let Some(record) = asked.get(tag) else {
            found.push(format!("{tag:#x} was never appended"));
            continue;
        };
        if !seen.insert(tag) {
            found.push(format!("twice: {record:?}"));
        }
        if record.done_at() < last_invoked {
            found.push(format!("behind one that began after it had returned: {record:?}"));
        }
        last_invoked = last_invoked.max(record.invoked);
    }
    let lost = |record: &&Record| record.outcome == Outcome::Done && !seen.contains(&tag(record));
    found.extend(records.iter().filter(lost).map(|record| format!("lost: {record:?}")));
    found
}

#[cfg(test)]
mod tests {
    use super::{Call, Outcome, Record, Subject, of_log};

    fn append(tag: u64, invoked: u64, outcome: Outcome) -> Record {
        let (subject, call) = (Subject::Log(0), Call::Append(tag));
        Record { node: 1, subject, call, invoked, answered: invoked + 2, outcome }
    }

    #[test]
    fn logs_lose_double_and_reorder_nothing() {
        let (one, two) = (append(1, 1, Outcome::Done), append(2, 4, Outcome::Done));
        let maybe = append(3, 1, Outcome::Unknown);
        let all = [one, two, maybe];
        for right in [&[1, 2][..], &[1, 2, 3], &[3, 1, 2], &[1, 3, 2]] {
            assert_eq!(of_log(&all, right), Vec::<String>::new(), "{right:?}");
        }
        for wrong in [&[1][..], &[2, 1], &[1, 2, 2], &[3, 1, 3, 2], &[1, 2, 9], &[]] {
            assert!(!of_log(&all, wrong).is_empty(), "{wrong:?}");
        }
    }

    #[test]
    fn appends_at_the_same_time_come_in_any_order() {
        let both = [append(1, 1, Outcome::Done), append(2, 2, Outcome::Done)];
        for right in [&[1, 2], &[2, 1]] {
            assert_eq!(of_log(&both, right), Vec::<String>::new(), "{right:?}");
        }
    }
}
