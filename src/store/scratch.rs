//! What a start would make of a data directory, found out without changing it.
//!
//! What a start writes to is copied: the log, the state, and what says where bytes of files are. The snapshot file and
//! the stages are linked to, since they are only read. Backing files are read where they are (`beneath.rs`).

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::beneath::Beneath;
use super::datadir::DataDir;
use super::log::LogOptions;
use super::recover::{Recovered, recover_over};
use crate::store::StoreError;

/// So often, with such pauses, the copies are removed.
const CLOSING: u32 = 100;
const PAUSE: Duration = Duration::from_millis(20);
/// Files of the log that have records; the others are prepared for later ones.
const LOG_FILES: [&str; 2] = ["raftlog", "rewrite"];

/// A copy of what of a data directory a start would change. Gone when it is dropped.
#[derive(Debug)]
pub struct Scratch {
    copy: DataDir,
    /// Where the data directory is, without links.
    original: PathBuf,
    /// The same as people call it.
    given: PathBuf,
    _dir: TempDir,
}

impl Scratch {
    /// The stores of `data` as a start would make them agree, and what keeps the copies that they are in, below
    /// `parent`, which needs room for the log, the state and every file that the rest of the log changes. Nobody works on
    /// `data` meanwhile.
    ///
    /// # Errors
    /// When what must be true of `data` is damaged or missing, as for [`super::recover()`]; when the disk refuses.
    pub fn recover(data: &DataDir, parent: &Path) -> Result<(Recovered, Self), StoreError> {
        let dir = tempfile::Builder::new().prefix("quorumfs-scratch.").tempdir_in(parent);
        let dir = dir.map_err(StoreError::io("make a directory for copies in", parent))?;
        let path = data.path();
        let from = path.canonicalize().map_err(StoreError::io("resolve", path))?;
        for name in ["identity", "boot", "current", "logged"] {
            copy_if_there(&from.join(name), &dir.path().join(name))?;
        }
        link(&from.join("snapshots"), &dir.path().join("snapshots"))?;
        copy_log(&data.log_dir(), &dir.path().join("log"))?;
        copy_stages(&from.join("stages"), &dir.path().join("stages"))?;
        // Otherwise nobody believes it.
        if data.same_boot()
            && data.diverged()?.is_none()
            && let Some(state) = data.current_state()?
        {
            copy_tree(&state, &dir.path().join(state.file_name().unwrap_or_default()))?;
        }
        let copy = data.copied_to(dir.path())?;
        let options = LogOptions { prefill: false, ..LogOptions::default() };
        let scratch = Self { copy, original: from, given: path.to_owned(), _dir: dir };
        match recover_over(&scratch.copy, options, Some(Beneath::new(data))) {
            Ok(recovered) => Ok((recovered, scratch)),
            Err(error) => Err(scratch.name(error)),
        }
    }

    /// What an error says of damage, said of the data directory and not of the copy, to who may have no other node.
    #[must_use]
    pub fn name(&self, error: StoreError) -> StoreError {
        error.of_a_copy(self.copy.path(), &self.given)
    }

    /// The stages of the data directory that neither a session nor a replay needs: a start has removed its links to
    /// them.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn unneeded_stages(&self) -> Result<Vec<PathBuf>, StoreError> {
        let needed: HashSet<_> = stages_in(&self.copy.stages_dir())?
            .into_iter()
            .filter_map(|link| fs::read_link(link).ok())
            .collect();
        let all = stages_in(&self.original.join("stages"))?;
        Ok(all.into_iter().filter(|stage| !needed.contains(stage)).collect())
    }
}

impl Drop for Scratch {
    /// Whoever had the state open may still be closing it: what he writes meanwhile is removed as well.
    fn drop(&mut self) {
        for _ in 0..CLOSING {
            match fs::remove_dir_all(self.copy.path()) {
                Err(error) if error.kind() != ErrorKind::NotFound => std::thread::sleep(PAUSE),
                _ => return,
            }
        }
    }
}

/// Stages, or links to them: what has a number for a name, or is in a directory.
fn stages_in(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut stages = Vec::new();
    for path in list(dir)? {
        if path.is_dir() {
            stages.extend(list(&path)?);
        } else if is_stage(&path) {
            stages.push(path);
        }
    }
    Ok(stages)
}

fn is_stage(path: &Path) -> bool {
    let name = path.file_name().and_then(std::ffi::OsStr::to_str);
    name.is_some_and(|name| name.parse::<u64>().is_ok())
}

fn copy_log(from: &Path, to: &Path) -> Result<(), StoreError> {
    make_dir(to)?;
    for path in list(from)? {
        let extension = path.extension().and_then(std::ffi::OsStr::to_str);
        if extension.is_some_and(|extension| LOG_FILES.contains(&extension)) {
            copy_if_there(&path, &to.join(path.file_name().unwrap_or_default()))?;
        }
    }
    Ok(())
}

/// Whatever has a number for a name, or is in a directory, is a stage: it may be long, and nobody writes to it. One that
/// was never finished is left out.
fn copy_stages(from: &Path, to: &Path) -> Result<(), StoreError> {
    make_dir(to)?;
    for path in list(from)? {
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            make_dir(&target)?;
            for stage in list(&path)? {
                link(&stage, &target.join(stage.file_name().unwrap_or_default()))?;
            }
        } else if is_stage(&path) {
            link(&path, &target)?;
        } else if path.extension().is_none_or(|extension| extension != "tmp") {
            copy_if_there(&path, &target)?;
        }
    }
    Ok(())
}

fn copy_tree(from: &Path, to: &Path) -> Result<(), StoreError> {
    make_dir(to)?;
    for path in list(from)? {
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy_tree(&path, &target)?;
        } else {
            copy_if_there(&path, &target)?;
        }
    }
    Ok(())
}

fn make_dir(path: &Path) -> Result<(), StoreError> {
    fs::create_dir(path).map_err(StoreError::io("create", path))
}

fn link(from: &Path, to: &Path) -> Result<(), StoreError> {
    symlink(from, to).map_err(StoreError::io("create", to))
}

fn copy_if_there(from: &Path, to: &Path) -> Result<(), StoreError> {
    match fs::copy(from, to) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        copied => copied.map(drop).map_err(StoreError::io("copy to", to)),
    }
}

/// Empty where there is no such directory.
fn list(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(StoreError::io("list", dir))?,
    };
    entries.map(|entry| Ok(entry.map_err(StoreError::io("list", dir))?.path())).collect()
}

#[cfg(test)]
#[path = "scratch_tests.rs"]
mod tests;
