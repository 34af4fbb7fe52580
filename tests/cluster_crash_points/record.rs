//! Which points have been tried, and what came of it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use super::points::Point;
use super::support::text;

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

/// The last commit that changed what the daemon is made of: later ones, of documents or tests, are no reason to begin anew.
fn commit_of_the_daemon() -> String {
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        let output = git.args(arguments).args(["--", "src", "proto", "Cargo.toml", "Cargo.lock"]);
        text(&output.output().expect("git runs").stdout).trim().to_owned()
    };
    let commit = git(&["log", "-1", "--format=%h"]);
    let is_dirty = !git(&["status", "--porcelain"]).is_empty();
    if is_dirty { format!("{commit}-dirty") } else { commit }
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
