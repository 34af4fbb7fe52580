//! Which points have been tried, and what came of it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use super::points::Point;
use super::support::commit_of_the_daemon;

/// What came of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The replica was killed there, and recovered.
    Recovered,
    /// This run had fewer calls.
    NotReached,
}

/// What was tried, of one daemon.
#[derive(Debug, Default)]
pub struct Record {
    file: Option<PathBuf>,
    commit: String,
    outcomes: BTreeMap<String, Outcome>,
}

impl Record {
    /// Goes on with what the file says that `QUORUMFS_CRASH_STATE` names, if it does.
    pub fn resume() -> Self {
        let commit = commit_of_the_daemon();
        let file = std::env::var_os("QUORUMFS_CRASH_STATE").map(PathBuf::from);
        let known = file.as_ref().and_then(|file| fs::read_to_string(file).ok());
        let mut outcomes = BTreeMap::new();
        for line in known.unwrap_or_default().lines() {
            let [of, outcome, point] = line.splitn(3, '\t').collect::<Vec<_>>()[..] else {
                continue;
            };
            let known = [Outcome::Recovered, Outcome::NotReached];
            let outcome = known.into_iter().find(|known| known.to_string() == outcome);
            if let Some(outcome) = outcome.filter(|_| of == commit) {
                outcomes.insert(point.to_owned(), outcome);
            }
        }
        Self { file, commit, outcomes }
    }

    pub fn has(&self, point: &Point) -> bool {
        self.outcomes.contains_key(&point.to_string())
    }

    pub fn add(&mut self, point: &Point, outcome: Outcome) {
        if let Some(path) = &self.file {
            let file = File::options().create(true).append(true).open(path);
            let line = format!("{}\t{outcome}\t{point}\n", self.commit);
            file.expect("the record").write_all(line.as_bytes()).expect("write");
        }
        self.outcomes.insert(point.to_string(), outcome);
    }

    pub fn count(&self, outcome: Outcome) -> usize {
        self.outcomes.values().filter(|of_one| **of_one == outcome).count()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Recovered => "recovered",
            Self::NotReached => "not reached",
        })
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [Outcome::Recovered, Outcome::NotReached].map(|outcome| self.count(outcome));
        let [recovered, not_reached] = counts;
        write!(f, "killed and recovered: {recovered} times; not reached: {not_reached}")?;
        if self.commit.is_empty() { Ok(()) } else { write!(f, "; commit {}", self.commit) }
    }
}
