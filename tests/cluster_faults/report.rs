//! What was done and what it cost, as a table for people.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::io;
use std::time::Duration;

use super::faults::Fault;
use super::history::{Outcome, Record};

/// From when to when some faults were in force, until all nodes had recovered.
#[derive(Clone, Debug)]
pub struct Episode {
    pub kinds: Vec<Fault>,
    pub victims: Vec<u64>,
    pub from: u64,
    pub to: u64,
}

impl Episode {
    fn overlap(&self, record: &Record) -> u64 {
        self.to.min(record.answered).saturating_sub(self.from.max(record.invoked))
    }
}

/// What happened to those who were not hit, in each of the episodes, the longest first. An operation belongs to the
/// episode that it had most of, and to none if one of those that it saw hit its mount.
pub fn longest<'a>(records: &'a [Record], episodes: &[Episode]) -> Vec<Vec<&'a Record>> {
    let mut longest = vec![Vec::new(); episodes.len()];
    for record in records {
        let seen = || episodes.iter().enumerate().filter(|(_, e)| e.overlap(record) > 0);
        if seen().any(|(_, episode)| episode.victims.contains(&record.node)) {
            continue;
        }
        if let Some((number, _)) = seen().max_by_key(|(_, episode)| episode.overlap(record)) {
            longest[number].push(record);
        }
    }
    for records in &mut longest {
        records.sort_by_key(|record| std::cmp::Reverse(record.took()));
    }
    longest
}

/// One row of the table.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    times: u64,
    stall: Duration,
}

/// The whole run, in Markdown.
pub fn table(records: &[Record], episodes: &[Episode], violations: usize) -> String {
    let count =
        |outcome: fn(Outcome) -> bool| records.iter().filter(|r| outcome(r.outcome)).count();
    let mut text = format!(
        "{} operations: {} succeeded, {} had an unknown outcome, {} failed without effect; {violations} violations\n\n\
         | fault | times | longest stall of an operation on a mount that was not hit |\n|---|---:|---:|\n",
        records.len(),
        count(|outcome| matches!(outcome, Outcome::Done | Outcome::Value(_))),
        count(|outcome| outcome == Outcome::Unknown),
        count(|outcome| outcome == Outcome::Void),
    );
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    for (episode, longest) in episodes.iter().zip(longest(records, episodes)) {
        let name = match episode.kinds[..] {
            [kind] => format!("{kind:?}"),
            _ => "several at once".to_owned(),
        };
        let row = rows.entry(name).or_default();
        row.times += 1;
        row.stall = row.stall.max(longest.first().map_or(Duration::ZERO, |record| record.took()));
    }
    for (name, row) in rows {
        let stall = row.stall.as_secs_f64() * 1e3;
        writeln!(text, "| {name} | {} | {stall:.0} ms |", row.times).expect("memory");
    }
    text
}

/// Prints it, and appends it to the file that `QUORUMFS_FAULTS_MD` names.
pub fn publish(title: &str, text: &str) {
    println!("{title}\n\n{text}");
    if let Some(path) = std::env::var_os("QUORUMFS_FAULTS_MD") {
        let file = fs::File::options().create(true).append(true).open(path);
        let section = format!("### {title}\n\n{text}\n");
        io::Write::write_all(&mut file.expect("the report"), section.as_bytes()).expect("write");
    }
}
