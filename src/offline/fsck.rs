//! Checks a stopped node's stores against each other.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::files::{self, Compared, each_file};
use super::names::Names;
use super::stopped::{Entries, Stopped};
use crate::fs::{self, Digest, proto};
use crate::store::{DataDir, Files, State, StoreError};
use crate::types::Ino;

const REBUILD: &str = "start the daemon: it finds that when it writes its next snapshot, and builds the state anew from the \
     snapshot file and the log";
const HEAL: &str = "start the daemon: it builds its state anew from the snapshot file and the log (which is what is checked \
     here) or takes that of another node, and asks the others for what changed since";
const REJOIN: &str = "move this data directory away and join the cluster as a new node";
const SCRUB: &str =
    "start the daemon and run `quorumfs scrub`, which has it fetched from the other nodes";
const REPAIR: &str =
    "`quorumfs fsck --repair` removes it, and so does the next start of the daemon";

/// What is to be done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Checks<'a> {
    /// Bytes are compared with their checksums, where there are some.
    pub bytes: bool,
    /// What nothing names is removed.
    pub repair: bool,
    /// Where copies are made meanwhile; beside the data directory where nothing is named.
    pub scratch: Option<&'a Path>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A sentence.
    pub what: String,
    /// What the person can do, where `what` does not say it.
    pub advice: Option<&'static str>,
    /// Whether it is so no more.
    pub repaired: bool,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The last entry of the log that was applied for it; the last one that the node knew to be committed.
    pub index: u64,
    /// The last entry of the log.
    pub last_index: u64,
    /// Regular files, and their bytes.
    pub files: u64,
    /// Bytes of these, holes as well.
    pub bytes: u64,
    /// Files that lack bytes here, which is no fault: they are fetched from the other nodes.
    pub missing_files: u64,
    /// How many bytes those are.
    pub missing_bytes: u64,
    /// Files with bytes that wait in stages.
    pub staged_files: u64,
    /// Blocks that were compared with their checksums.
    pub verified_blocks: u64,
    /// What is wrong; empty where nothing is.
    pub findings: Vec<Finding>,
}

/// Checks the replica in `data`. Changes nothing but what it repairs.
///
/// # Errors
/// When it cannot be checked: the local file system refuses, or a newer version has written it. Damage is a finding.
pub fn fsck(data: &DataDir, checks: Checks<'_>) -> Result<Report, StoreError> {
    let stopped = match Stopped::open(data, checks.scratch, Entries::Committed) {
        Ok(stopped) => stopped,
        Err(error) if error.is_damage() => {
            let what = format!("{error} (nothing else could be checked)");
            let findings = vec![Finding { what, advice: None, repaired: false }];
            return Ok(Report { findings, ..Report::default() });
        }
        Err(error) => return Err(error),
    };
    let mut check = Check::of(&stopped)?;
    if let Some(since) = data.diverged()? {
        let what = format!(
            "the state was found to differ from that of the other nodes; it was equal last at entry {since}"
        );
        check.find(what, HEAL);
    }
    check.state()?;
    check.files(checks.bytes)?;
    check.unneeded(&stopped, checks.repair)?;
    Ok(check.report)
}

struct Check<'a> {
    state: &'a State,
    files: &'a Files,
    names: Names,
    report: Report,
}

impl<'a> Check<'a> {
    fn of(stopped: &'a Stopped<'_>) -> Result<Self, StoreError> {
        let (state, files) = (&stopped.recovered.state, &stopped.recovered.files);
        let (missing_files, missing_bytes) = files.missing_in_all();
        let report = Report {
            index: state.applied().0,
            last_index: stopped.recovered.log.last_index().0,
            missing_files,
            missing_bytes,
            staged_files: files.staged_files() as u64,
            ..Report::default()
        };
        Ok(Self { state, files, names: Names::of(state)?, report })
    }

    fn find(&mut self, what: String, advice: &'static str) {
        self.report.findings.push(Finding { what, advice: Some(advice), repaired: false });
    }

    /// Whether the records add up to their digest, and are a tree.
    fn state(&mut self) -> Result<(), StoreError> {
        let mut digest = Digest::default();
        for pair in self.state.export() {
            let (key, value) = pair?;
            digest.add(&key, &value);
        }
        let expected = self.state.digest();
        if digest != expected {
            self.find(
                format!("the records of the state add up to {digest} instead of {expected}"),
                REBUILD,
            );
        }
        for problem in fs::check(&self.state.read())? {
            self.find(format!("the state contradicts itself: {problem}"), REJOIN);
        }
        Ok(())
    }

    /// Every regular file against its backing file.
    fn files(&mut self, bytes: bool) -> Result<(), StoreError> {
        let state = self.state;
        each_file(state, |ino, inode| {
            self.file(ino, inode)?;
            if bytes { self.bytes(ino, inode) } else { Ok(()) }
        })
    }

    fn file(&mut self, ino: Ino, inode: &proto::Inode) -> Result<(), StoreError> {
        self.report.files += 1;
        self.report.bytes += inode.size;
        let key = files::key(ino, inode);
        match self.files.backing_len(key)? {
            Some(len) if len > inode.size => {
                let (path, size) = (self.names.path(ino), inode.size);
                let backing = self.files.path_in_data(key);
                self.find(
                    format!("{path} has {size} bytes, but its backing file {} has {len}", backing.display()),
                    "cut the backing file to that size with truncate(1) while the daemon is stopped",
                );
            }
            None if inode.size > 0 && self.files.is_gone(key)? => {
                let (path, size) = (self.names.path(ino), inode.size);
                let backing = self.files.path_in_data(key);
                let what = format!(
                    "{path} has {size} bytes, but its backing file {} is gone",
                    backing.display()
                );
                self.find(what, SCRUB);
            }
            Some(_) | None => {}
        }
        Ok(())
    }

    fn bytes(&mut self, ino: Ino, inode: &proto::Inode) -> Result<(), StoreError> {
        let compared = Compared::of(self.files, self.state.applied(), (ino, inode))?;
        self.report.verified_blocks += compared.blocks;
        if let Some(problem) = compared.problem() {
            self.find(format!("{}: {problem}", self.names.path(ino)), SCRUB);
        }
        Ok(())
    }

    /// Backing files, checksums and stages that nothing needs.
    fn unneeded(&mut self, stopped: &Stopped<'_>, repair: bool) -> Result<(), StoreError> {
        for found in self.files.unreferenced(self.state)? {
            let (ino, generation) = found.key;
            for (path, bytes) in found.paths {
                let what = format!(
                    "nothing names {} (inode {ino}, generation {generation}, {bytes} bytes on the disk)",
                    path.display()
                );
                self.remove(path, what, repair)?;
            }
        }
        for path in stopped.scratch.unneeded_stages()? {
            let what = format!("no session and no replay needs the stage {}", path.display());
            self.remove(path, what, repair)?;
        }
        Ok(())
    }

    fn remove(&mut self, path: PathBuf, what: String, repair: bool) -> Result<(), StoreError> {
        self.find(what, REPAIR);
        if repair {
            std::fs::remove_file(&path).map_err(|source| StoreError::Io {
                action: "remove",
                path,
                source,
            })?;
            let last = self.report.findings.last_mut().expect("it was added above");
            (last.repaired, last.advice) = (true, None);
        }
        Ok(())
    }
}
