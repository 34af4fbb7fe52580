//! Tests of the log: what is appended is there after reopening, and damage is never taken for less.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use raft::eraftpb::{Entry, HardState};
use raft::{Error, GetEntriesContext, Storage, StorageError};

use super::{LogOptions, RaftLog};
use crate::store::StoreError;
use crate::types::{LogIndex, Term};

/// Small files, so that the log spans several.
const SMALL: LogOptions = LogOptions { file_bytes: 8 << 10, purge_bytes: 16 << 10, prefill: false };

fn open(dir: &Path) -> RaftLog {
    RaftLog::open_with(dir, SMALL).unwrap()
}

fn entries(range: std::ops::Range<u64>, term: u64) -> Vec<Entry> {
    let entry = |index: u64| Entry {
        index,
        term,
        data: format!("entry {index} of term {term} {}", "x".repeat(200)).into_bytes().into(),
        ..Entry::default()
    };
    range.map(entry).collect()
}

fn hard_state(term: u64, vote: u64, commit: u64) -> HardState {
    HardState { term, vote, commit, ..HardState::default() }
}

fn all(log: &RaftLog) -> Vec<Entry> {
    log.entries(log.first_index(), log.last_index().next(), None).unwrap()
}

fn log_files(dir: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|e| e == "raftlog")).collect();
    files.sort();
    files
}

#[test]
fn what_was_appended_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    assert_eq!((log.first_index(), log.last_index()), (LogIndex(1), LogIndex(0)));
    assert_eq!(log.term(LogIndex(0)), Some(Term(0)));
    log.append(&entries(1..50, 1), Some(&hard_state(1, 2, 0)), true).unwrap();
    log.append(&entries(50..80, 2), Some(&hard_state(2, 3, 49)), true).unwrap();
    let before = all(&log);
    drop(log);
    let log = open(dir.path());
    assert_eq!(all(&log), before);
    assert_eq!((log.first_index(), log.last_index()), (LogIndex(1), LogIndex(79)));
    assert_eq!(log.hard_state(), hard_state(2, 3, 49));
    assert_eq!((log.term(LogIndex(49)), log.term(LogIndex(50))), (Some(Term(1)), Some(Term(2))));
    assert_eq!(log.term(LogIndex(80)), None);
}

#[test]
fn an_overlapping_append_replaces_the_tail() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    log.append(&entries(1..100, 1), None, true).unwrap();
    log.append(&entries(60..70, 2), None, true).unwrap();
    let expected = [entries(1..60, 1), entries(60..70, 2)].concat();
    assert_eq!(all(&log), expected);
    assert_eq!(log.term(LogIndex(70)), None);
    drop(log);
    assert_eq!(all(&open(dir.path())), expected);
}

#[test]
fn entries_that_do_not_follow_are_refused_and_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    log.append(&entries(1..10, 1), None, true).unwrap();
    log.compact_to(LogIndex(4)).unwrap();
    let twisted = [entries(10..11, 1), entries(12..13, 1)].concat();
    for wrong in [entries(11..12, 1), entries(4..6, 1), twisted] {
        let error = log.append(&wrong, None, true).unwrap_err();
        assert!(matches!(error, StoreError::LogGap { .. }), "{error}");
    }
    log.append(&entries(10..11, 1), None, true).unwrap();
    assert_eq!(all(&log), entries(5..11, 1));
}

#[test]
fn cutting_remembers_where_and_gives_files_back() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    for first in (1..1000).step_by(10) {
        log.append(&entries(first..first + 10, first), Some(&hard_state(first, 1, 0)), false)
            .unwrap();
    }
    let (files, bytes) = (log_files(dir.path()).len(), log.used_size());
    for cut in [100, 500, 900, 899] {
        log.compact_to(LogIndex(cut)).unwrap();
    }
    let check = |log: &RaftLog| {
        assert_eq!(log.truncated(), (LogIndex(900), Term(891)));
        assert_eq!(log.term(LogIndex(900)), Some(Term(891)));
        assert_eq!(log.term(LogIndex(899)), None);
        assert_eq!((log.first_index(), log.last_index()), (LogIndex(901), LogIndex(1000)));
        assert_eq!(all(log).len(), 100);
        assert_eq!(log.hard_state(), hard_state(991, 1, 900));
        assert!(log.used_size() < bytes / 8);
        let of = |after, to| log.used_size_of(LogIndex(after), LogIndex(to));
        let to = |index| of(0, index);
        assert_eq!([to(0), to(900), to(1000), to(2000)], [0, 0, log.used_size(), log.used_size()]);
        // Those of one term, with numbers of three digits, are as long as each other.
        assert_eq!([to(902) * 2, to(905) * 2], [to(904), to(910)]);
        assert_eq!([of(902, 905), of(905, 902), of(950, 2000)], [to(903), 0, to(1000) - to(950)]);
    };
    check(&log);
    assert!(log_files(dir.path()).len() < files / 2);
    drop(log);
    check(&open(dir.path()));
    let log = open(dir.path());
    log.compact_to(LogIndex(1000)).unwrap();
    assert_eq!((log.first_index(), log.last_index()), (LogIndex(1001), LogIndex(1000)));
    assert!(log.compact_to(LogIndex(1001)).is_err());
    drop(log);
    let log = open(dir.path());
    assert_eq!((log.first_index(), log.last_index()), (LogIndex(1001), LogIndex(1000)));
    log.append(&entries(1001..1003, 2000), None, true).unwrap();
    assert_eq!(all(&log), entries(1001..1003, 2000));
}

#[test]
fn a_reset_log_starts_after_the_snapshot() {
    // Beyond the end, and in the middle: what was behind it must not come back.
    for at in [500, 150] {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path());
        log.append(&entries(1..200, 1), Some(&hard_state(1, 1, 20)), true).unwrap();
        log.reset_to(LogIndex(at), Term(3)).unwrap();
        let check = |log: &RaftLog| {
            assert_eq!(log.truncated(), (LogIndex(at), Term(3)));
            assert_eq!((log.first_index().0, log.last_index().0), (at + 1, at));
            assert_eq!(log.hard_state(), hard_state(3, 0, at));
            assert_eq!(log.used_size(), 0);
        };
        check(&log);
        drop(log);
        let log = open(dir.path());
        check(&log);
        log.append(&entries(at + 1..at + 100, 3), None, true).unwrap();
        drop(log);
        assert_eq!(all(&open(dir.path())), entries(at + 1..at + 100, 3));
    }
}

#[test]
fn resets_and_cuts_survive_reopening_at_every_step() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = Vec::new();
    let mut last = 0;
    for round in 1..40_u64 {
        let log = open(dir.path());
        let new = entries(last + 1..last + 30, round);
        log.append(&new, None, true).unwrap();
        expected.extend(new);
        last += 29;
        match round % 5 {
            1 | 3 => {
                log.compact_to(LogIndex(last - 10)).unwrap();
                expected.retain(|entry| entry.index > last - 10);
            }
            4 => {
                last = if round % 2 == 0 { last + 100 } else { last - 5 };
                log.reset_to(LogIndex(last), Term(round + 1)).unwrap();
                expected.clear();
            }
            _ => {}
        }
        assert_eq!(all(&log), expected);
        drop(log);
        assert_eq!(all(&open(dir.path())), expected, "round {round}");
    }
}

#[test]
fn raft_reads_bounds_as_it_expects() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    log.append(&entries(1..20, 1), Some(&hard_state(1, 1, 9)), true).unwrap();
    log.compact_to(LogIndex(5)).unwrap();
    let fetch = |low, high, max: Option<u64>| {
        Storage::entries(&log, low, high, max, GetEntriesContext::empty(false))
    };
    assert!(matches!(fetch(5, 7, None), Err(Error::Store(StorageError::Compacted))));
    assert!(matches!(fetch(7, 21, None), Err(Error::Store(StorageError::Unavailable))));
    assert!(matches!(Storage::term(&log, 4), Err(Error::Store(StorageError::Compacted))));
    assert!(matches!(Storage::term(&log, 20), Err(Error::Store(StorageError::Unavailable))));
    assert_eq!(fetch(6, 20, None).unwrap(), entries(6..20, 1));
    assert_eq!(fetch(6, 20, Some(0)).unwrap(), entries(6..7, 1));
    assert_eq!(fetch(6, 20, Some(500)).unwrap(), entries(6..8, 1));
    let unavailable = StorageError::SnapshotTemporarilyUnavailable;
    assert_eq!(log.snapshot(0, 0), Err(Error::Store(unavailable)));
    let initial = log.initial_state().unwrap();
    assert!(!initial.initialized());
    assert_eq!(initial.hard_state, hard_state(1, 1, 9));
}

#[test]
fn two_logs_in_one_thread_read_their_own() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let logs = [(open(one.path()), 1), (open(two.path()), 2)];
    for (log, term) in &logs {
        log.append(&entries(1..5, *term), None, true).unwrap();
    }
    for (log, term) in &logs {
        assert_eq!(log.read(1, 5).unwrap(), entries(1..5, *term));
    }
}

#[test]
fn a_torn_tail_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    log.append(&entries(1..4, 1), None, true).unwrap();
    let path = log_files(dir.path()).pop().unwrap();
    drop(log);
    let whole = std::fs::metadata(&path).unwrap().len();
    let log = open(dir.path());
    log.append(&entries(4..5, 1), None, true).unwrap();
    drop(log);
    let bytes = std::fs::read(&path).unwrap();
    for length in whole..bytes.len() as u64 {
        let mut torn = bytes[..usize::try_from(length).unwrap()].to_vec();
        // Files are allocated ahead: what was not written is zeros.
        torn.resize(bytes.len() + 100, 0);
        std::fs::write(&path, torn).unwrap();
        assert_eq!(all(&open(dir.path())), entries(1..4, 1), "cut at {length}");
    }
}

#[test]
fn damage_before_the_end_is_an_error_wherever_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    for index in 1..60 {
        log.append(&entries(index..index + 1, 1), None, true).unwrap();
    }
    let expected = all(&log);
    drop(log);
    let files = log_files(dir.path());
    assert!(files.len() > 1);
    for path in [&files[0], files.last().unwrap()] {
        let bytes = std::fs::read(path).unwrap();
        // The last file is allocated ahead; damage to its last record looks like a torn write.
        let written = bytes.iter().rposition(|byte| *byte != 0).unwrap();
        let last_record = if path == &files[0] { bytes.len() } else { written - 300 };
        // Every byte of the file's header and of two records, some of the others.
        let dense = if path == &files[0] { 0 } else { 700 };
        for at in (0..dense).chain((dense..last_record).step_by(61)) {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.write_all_at(&[bytes[at] ^ 0x10], at as u64).unwrap();
            match RaftLog::open_with(dir.path(), SMALL) {
                Err(StoreError::Corrupt { .. }) => {}
                // The few bytes that no checksum covers and that mean nothing.
                Ok(log) => assert!(all(&log) == expected, "byte {at} of {}", path.display()),
                Err(other) => panic!("byte {at}: {other}"),
            }
            std::fs::write(path, &bytes).unwrap();
        }
    }
    assert_eq!(all(&open(dir.path())), expected);
}

#[test]
fn a_log_that_lost_what_was_committed_does_not_open() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    log.append(&entries(1..4, 1), Some(&hard_state(1, 1, 9)), true).unwrap();
    drop(log);
    let error = RaftLog::open_with(dir.path(), SMALL).unwrap_err();
    assert!(error.to_string().contains("committed"), "{error}");
}

/// A file that others follow was closed, and synced, with all that was in it.
#[test]
fn a_file_that_is_empty_is_a_hole() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    log.append(&entries(1..60, 1), None, true).unwrap();
    log.append(&entries(60..61, 1), None, true).unwrap();
    drop(log);
    let files = log_files(dir.path());
    assert!(files.len() > 1);
    std::fs::write(&files[0], b"").unwrap();
    let error = RaftLog::open_with(dir.path(), SMALL).unwrap_err();
    assert!(error.to_string().contains(&*files[0].to_string_lossy()), "{error}");
}

/// Files that the engine keeps to use them again are no more for it once the process has died, if others are gone between.
#[test]
fn processes_that_die_leave_no_files_behind() {
    let options = LogOptions { file_bytes: 4 << 10, purge_bytes: 8 << 10, prefill: true };
    let mut dir = tempfile::tempdir().unwrap();
    let mut last = 0;
    for life in 0..20 {
        let log = RaftLog::open_with(dir.path(), options).unwrap();
        log.remove_ignored_files().unwrap();
        assert_eq!(log.last_index(), LogIndex(last));
        let files = log_files(dir.path());
        let number = |path: &PathBuf| path.file_stem().unwrap().to_str().unwrap().parse::<u64>();
        let follow = |pair: &[PathBuf]| number(&pair[0]).unwrap() + 1 == number(&pair[1]).unwrap();
        assert!(files.windows(2).all(follow), "{files:?}");
        for round in 1..=5 + life {
            log.append(&entries(last + 1..last + 8, 1), None, true).unwrap();
            last += 7;
            // Several files at once are not wanted any more.
            if round % 5 == 0 {
                log.compact_to(LogIndex(last - 3)).unwrap();
            }
        }
        // What is there when it is killed.
        let left = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, left.path().join(path.file_name().unwrap())).unwrap();
        }
        drop(log);
        dir = left;
    }
}

/// What a log is known to hold is said outside of it, so that it cannot lose its end or a vote unseen.
#[test]
fn a_log_keeps_what_it_promised() {
    type Change = fn(&RaftLog);
    // What happens to the log behind the back of the promise.
    let lost: [(&str, Change); 3] = [
        ("held entry 9 of term 2, but ends with 8", |log| {
            log.append(&entries(1..9, 1), Some(&hard_state(2, 3, 0)), true).unwrap();
        }),
        ("voted for node 3", |log| {
            log.append(&entries(1..9, 1), Some(&hard_state(2, 0, 0)), true).unwrap();
            log.append(&entries(9..10, 2), None, true).unwrap();
        }),
        ("knew of term 2, but says 1", |log| {
            log.append(&entries(1..9, 1), Some(&hard_state(1, 3, 0)), true).unwrap();
            log.append(&entries(9..10, 2), None, true).unwrap();
        }),
    ];
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("logged");
    let log = open(&base.path().join("log"));
    log.keep_promised(&path).unwrap();
    log.append(&entries(1..9, 1), Some(&hard_state(1, 1, 0)), true).unwrap();
    log.promise().unwrap();
    log.append(&entries(9..10, 2), Some(&hard_state(2, 3, 0)), true).unwrap();
    log.promise().unwrap();
    drop(log);
    for (what, change) in lost {
        let other = tempfile::tempdir().unwrap();
        let log = open(other.path());
        change(&log);
        let error = log.keep_promised(&path).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    }
    // Later terms, replaced entries, cuts and resets break nothing, wherever the process dies.
    let log = open(&base.path().join("log"));
    log.keep_promised(&path).unwrap();
    log.append(&entries(5..7, 3), Some(&hard_state(3, 0, 0)), true).unwrap();
    log.keep_promised(&path).unwrap();
    log.promise().unwrap();
    log.append(&[], Some(&hard_state(3, 2, 5)), true).unwrap();
    log.compact_to(LogIndex(6)).unwrap();
    log.keep_promised(&path).unwrap();
    log.promise().unwrap();
    log.reset_to(LogIndex(4), Term(4)).unwrap();
    log.keep_promised(&path).unwrap();
    // A damaged one says nothing.
    log.promise().unwrap();
    std::fs::write(&path, [7; 40]).unwrap();
    open(&base.path().join("other")).keep_promised(&path).unwrap();
}
