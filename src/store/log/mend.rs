//! A log of which only what a snapshot covers is damaged.
//!
//! What follows the damage is a log by itself: each record says all about its entries. It is all that Raft needs where it
//! begins no later than behind the snapshot, so that no entry that is wanted can have been in the damage, and where it
//! says the hard state, which is then newer than any that can have been.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use raft::eraftpb::{Entry, HardState};
use raft_engine::{Command, LogBatch};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::check::{FILE_HEADER, check_files, files, next_record};
use super::engine::{
    EntryCodec, HARD_STATE, LogOptions, OpenEngine, TRUNCATED, VOLUME, contained, encode_truncated,
    put_hard_state,
};
use crate::store::{StoreError, durable};
use crate::types::{LogIndex, Term};

/// Damages that are looked behind, at most.
const ATTEMPTS: usize = 16;

/// Where the log in `dir` cannot be used, and what follows its damage is all that is needed behind a snapshot at `at`, that
/// becomes the log; false where it is not. Durable on return.
///
/// # Errors
/// When the disk refuses.
pub(crate) fn mend_log(
    dir: &Path,
    options: LogOptions,
    at: LogIndex,
    term: Term,
) -> Result<bool, StoreError> {
    let building = dir.with_extension("mending");
    remove(&building)?;
    let is_built = build(dir, &building)?
        && begin_behind(&building, LogOptions { prefill: false, ..options }, at, term)?;
    if is_built {
        durable::sync_dir(&building)?;
        renameat_with(CWD, &building, CWD, dir, RenameFlags::EXCHANGE)
            .map_err(|errno| StoreError::io("rename into place", dir)(errno.into()))?;
        durable::sync_parent(dir)?;
    }
    remove(&building)?;
    Ok(is_built)
}

/// Copies what follows the last damage; false where nothing does. Where every record is whole, something else is wrong:
/// an older file is gone, or a cut was forgotten.
fn build(dir: &Path, building: &Path) -> Result<bool, StoreError> {
    let mut from = dir.to_owned();
    for attempt in 0..ATTEMPTS {
        let (path, offset) = match check_files(&from) {
            Ok(()) if attempt > 0 => return Ok(true),
            Ok(()) => {
                fs::create_dir(building).map_err(StoreError::io("create", building))?;
                // What was rewritten is older than what is gone may be.
                for (_, path) in files(dir, ".raftlog")? {
                    copy_file(&path, &building.join(path.file_name().unwrap_or_default()))?;
                }
                return Ok(true);
            }
            Err(StoreError::Corrupt { path, offset: Some(offset), .. }) => (path, offset),
            Err(error) => return Err(error),
        };
        let next = building.with_extension(format!("mending-{attempt}"));
        remove(&next)?;
        fs::create_dir(&next).map_err(StoreError::io("create", &next))?;
        let is_copied = copy_behind(&from, &next, &path, offset)?;
        // Of the attempts, only the last one stays.
        remove(building)?;
        fs::rename(&next, building).map_err(StoreError::io("rename into place", building))?;
        if !is_copied {
            return Ok(false);
        }
        building.clone_into(&mut from);
    }
    Ok(false)
}

/// Copies the files behind a damage, and the rest of the one that it is in. Everything that was rewritten is older than what
/// is appended.
fn copy_behind(from: &Path, to: &Path, damaged: &Path, offset: u64) -> Result<bool, StoreError> {
    let target = |path: &PathBuf| to.join(path.file_name().unwrap_or_default());
    let mut copied = false;
    let is_rewritten = damaged.extension().is_some_and(|extension| extension == "rewrite");
    for (number, path) in files(from, ".raftlog")? {
        if is_rewritten || path.as_path() > damaged {
            copy_file(&path, &target(&path))?;
            copied = true;
        } else if path == damaged {
            let bytes = fs::read(&path).map_err(StoreError::io("read", &path))?;
            let offset = usize::try_from(offset).unwrap_or(usize::MAX);
            if let Some(next) = next_record(&bytes, number, offset) {
                let rest = [FILE_HEADER, &bytes[next..]].concat();
                durable::replace(&target(&path), &rest)?;
                copied = true;
            }
        }
    }
    Ok(copied)
}

/// Durable on return, but for its name: the file that it is a copy of will be gone.
fn copy_file(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::copy(from, to).map_err(StoreError::io("copy", from))?;
    File::open(to).and_then(|file| file.sync_all()).map_err(StoreError::io("fsync", to))
}

/// Makes what was copied begin behind the snapshot; false where it does not say all that it should.
fn begin_behind(
    dir: &Path,
    options: LogOptions,
    at: LogIndex,
    term: Term,
) -> Result<bool, StoreError> {
    let engine = match OpenEngine::open(dir, options) {
        // What raft-engine cannot make sense of is not all.
        Err(StoreError::Corrupt { .. }) => return Ok(false),
        engine => engine?,
    };
    let found = contained("read", dir, || engine.get_message::<HardState>(VOLUME, HARD_STATE));
    let (Ok(Some(mut hard_state)), Some(first), Some(last)) =
        (found, engine.first_index(VOLUME), engine.last_index(VOLUME))
    else {
        return Ok(false);
    };
    if first > at.0 + 1 || last < at.0 {
        return Ok(false);
    }
    if first <= at.0 {
        let mut entries: Vec<Entry> = Vec::new();
        let read = contained("read", dir, || {
            engine.fetch_entries_to::<EntryCodec>(VOLUME, at.0, at.0 + 1, None, &mut entries)
        });
        if read.is_err() || entries.first().map(|entry| entry.term) != Some(term.0) {
            return Ok(false);
        }
    }
    hard_state.commit = hard_state.commit.max(at.0);
    contained("cut", dir, || {
        let mut batch = LogBatch::default();
        batch.put(VOLUME, TRUNCATED.to_vec(), encode_truncated(at, term))?;
        put_hard_state(&mut batch, &hard_state)?;
        batch.add_command(VOLUME, Command::Compact { index: at.0 + 1 });
        engine.write(&mut batch, true)
    })?;
    Ok(true)
}

fn remove(dir: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(dir) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", dir)(source))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytes::Bytes;

    use super::{Entry, HardState, LogIndex, LogOptions, Term, mend_log};
    use crate::store::{RaftLog, StoreError};

    const OPTIONS: LogOptions =
        LogOptions { file_bytes: 1 << 20, purge_bytes: 1 << 20, prefill: false };
    const AT: LogIndex = LogIndex(10);
    const LAST: u64 = 20;

    fn hard_state(commit: u64) -> HardState {
        HardState { term: 3, vote: 2, commit, ..HardState::default() }
    }

    fn entries() -> Vec<Entry> {
        let entry = |index: u64| {
            let mut entry = Entry { index, term: 3, ..Entry::default() };
            entry.data = Bytes::from(vec![index.to_le_bytes()[0]; 40]);
            entry
        };
        (1..=LAST).map(entry).collect()
    }

    /// One record each; the first one is of another vote.
    fn write(dir: &Path) {
        let log = RaftLog::open_with(dir, OPTIONS).unwrap();
        let other = HardState { term: 2, vote: 1, ..HardState::default() };
        log.append(&[], Some(&other), true).unwrap();
        for entry in entries() {
            log.append(std::slice::from_ref(&entry), Some(&hard_state(entry.index - 1)), true)
                .unwrap();
        }
    }

    fn only_file(dir: &Path) -> std::path::PathBuf {
        super::files(dir, ".raftlog").unwrap().pop().unwrap().1
    }

    /// Whatever byte is another one: what comes back is all that there was behind the snapshot, or nothing does.
    #[test]
    fn only_what_a_snapshot_covers_is_mended() {
        let whole = tempfile::tempdir().unwrap();
        write(whole.path());
        let bytes = std::fs::read(only_file(whole.path())).unwrap();
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
        let (mut mended, mut refused) = (Vec::new(), Vec::new());
        for at in (64..used).step_by(23) {
            let dir = tempfile::tempdir().unwrap();
            let log = dir.path().join("log");
            write(&log);
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            std::fs::write(only_file(&log), damaged).unwrap();
            match RaftLog::open_with(&log, OPTIONS) {
                Err(StoreError::Corrupt { .. }) => {}
                opened => {
                    // The last record looks torn: nobody mends it.
                    assert!(opened.unwrap().last_index() >= LogIndex(LAST - 1), "byte {at}");
                    refused.push(at);
                    continue;
                }
            }
            if mend_log(&log, OPTIONS, AT, Term(3)).unwrap() {
                let log = RaftLog::open_with(&log, OPTIONS).unwrap();
                let found = log.entries(AT.next(), LogIndex(LAST + 1), None).unwrap();
                assert_eq!(found, entries()[10..], "byte {at}");
                assert_eq!(log.hard_state(), hard_state(LAST - 1), "byte {at}");
                assert_eq!(log.truncated(), (AT, Term(3)));
                mended.push(at);
            } else {
                refused.push(at);
            }
        }
        assert!(mended.len() > 20 && refused.len() > 20, "{mended:?} {refused:?}");
        assert!(mended.last() < refused.first(), "{mended:?} {refused:?}");
    }

    /// Every record of it is whole, and an older file is gone; or a cut was forgotten, and files were removed after it.
    #[test]
    fn a_log_that_begins_too_late_is_mended_where_the_snapshot_covers_the_rest() {
        let small = LogOptions { file_bytes: 600, ..OPTIONS };
        for at in [AT, LogIndex(2)] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("log");
            let log = RaftLog::open_with(&path, small).unwrap();
            for entry in entries() {
                let state = hard_state(entry.index - 1);
                log.append(std::slice::from_ref(&entry), Some(&state), true).unwrap();
            }
            drop(log);
            let (_, first) = super::files(&path, ".raftlog").unwrap().swap_remove(0);
            std::fs::remove_file(first).unwrap();
            let error = RaftLog::open_with(&path, small).unwrap_err();
            assert!(error.to_string().contains("should begin with"), "{error}");
            let is_mended = mend_log(&path, small, at, Term(3)).unwrap();
            assert_eq!(is_mended, at == AT);
            if is_mended {
                let log = RaftLog::open_with(&path, small).unwrap();
                let found = log.entries(AT.next(), LogIndex(LAST + 1), None).unwrap();
                assert_eq!(
                    (found, log.hard_state()),
                    (entries()[10..].to_vec(), hard_state(LAST - 1))
                );
            }
        }
    }

    /// Every record is whole, but entries are not there between two others: the engine panics over that.
    #[test]
    fn a_log_that_its_engine_gives_up_on_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path());
        let path = only_file(dir.path());
        let bytes = std::fs::read(&path).unwrap();
        let number = super::files(dir.path(), ".raftlog").unwrap()[0].0;
        // The first record is of a vote, and has no entry.
        let mut starts = vec![super::FILE_HEADER.len()];
        while let Some(next) = super::next_record(&bytes, number, starts[starts.len() - 1]) {
            starts.push(next);
        }
        for lost in [3, 15] {
            let without = [&bytes[..starts[lost]], &bytes[starts[lost + 1]..]].concat();
            std::fs::write(&path, without).unwrap();
            super::check_files(dir.path()).unwrap();
            let error = RaftLog::open_with(dir.path(), OPTIONS).unwrap_err();
            assert!(error.to_string().contains("its engine gave up on it"), "{error}");
            assert!(error.needs_a_person(), "trying again gives the same");
            assert!(!mend_log(dir.path(), OPTIONS, AT, Term(3)).unwrap(), "nothing tells where");
        }
    }

    /// It is another history.
    #[test]
    fn a_log_that_contradicts_the_snapshot_is_not_mended() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path());
        let path = only_file(dir.path());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[150] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(!mend_log(dir.path(), OPTIONS, AT, Term(2)).unwrap());
        assert!(mend_log(dir.path(), OPTIONS, AT, Term(3)).unwrap());
    }
}
