//! Tests of the start: which of the stores is believed, and that they agree afterwards.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;
use raft::eraftpb::{ConfState, Entry, HardState};

use super::{LogOptions, Rebuilt, Recovered, make_room, rebuild_state, recover};
use crate::fs::{FileEffect, Overlay, View, ViewMut, keys, proto};
use crate::store::snapshot::write_snapshot;
use crate::store::{AppliedPoint, BootIdentity, DataDir, Identity, RaftLog, State, StoreError};
use crate::types::{ByteRange, ClusterId, Generation, Ino, LogIndex, NodeId, Term};

const OPTIONS: LogOptions =
    LogOptions { file_bytes: 1 << 20, purge_bytes: 1 << 20, prefill: false };
const CLUSTER: ClusterId = ClusterId([1; 16]);

/// A data directory with a log of 1 to 30, of term 1.
fn replica() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let identity =
        Identity { cluster: CLUSTER, node: NodeId(1), nonce: 1, address: "a:1".to_owned() };
    drop(DataDir::create(dir.path(), identity).unwrap());
    let started = start(dir.path(), "boot").unwrap();
    assert_eq!(started.rebuilt, Some(Rebuilt::Absent));
    let state = HardState { term: 1, vote: 1, commit: 12, ..HardState::default() };
    started.log.append(&entries(1..31, 1), Some(&state), true).unwrap();
    dir
}

fn entries(range: std::ops::Range<u64>, term: u64) -> Vec<Entry> {
    range.map(|index| Entry { index, term, ..Entry::default() }).collect()
}

fn start(dir: &Path, boot: &str) -> Result<Recovered, StoreError> {
    recover(&DataDir::open_under(dir, BootIdentity::named(boot)).unwrap(), OPTIONS)
}

/// Applies entries up to `index`, each of which writes its own index.
fn apply_up_to(state: &State, index: u64) {
    for index in state.applied().0 + 1..=index {
        let mut overlay = Overlay::new(state);
        overlay.put(keys::inode(Ino(1)), record(index));
        let members = ConfState::from((vec![index], vec![]));
        let conf_state = Some(&members);
        let at = AppliedPoint { index: LogIndex(index), term: Term(1), conf_state };
        state.commit(overlay.finish().unwrap(), at).unwrap();
    }
    // What is tested is what comes back, not how much a kill costs.
    state.flush().unwrap();
}

/// What says up to where a state is.
fn record(index: u64) -> Vec<u8> {
    proto::Inode { size: index, ..proto::Inode::default() }.encode_to_vec()
}

fn snapshot(dir: &Path, state: &State) {
    let export = state.export();
    write_snapshot(&dir.join("snapshots"), &export.header(CLUSTER), export).unwrap();
}

/// What must hold of every start.
fn assert_at(recovered: &Recovered, index: u64) {
    let Recovered { log, state, .. } = recovered;
    assert_eq!(state.applied().0, index);
    let expected = (index > 0).then(|| record(index));
    assert_eq!(state.get(&keys::inode(Ino(1))).unwrap(), expected);
    assert!(log.hard_state().commit >= index);
    assert!(log.truncated().0.0 <= index && log.last_index().0 >= index);
    assert_eq!(log.term(LogIndex(index)), Some(state.term()));
}

#[test]
fn after_a_killed_process_the_state_is_believed() {
    let dir = replica();
    let started = start(dir.path(), "boot").unwrap();
    apply_up_to(&started.state, 20);
    drop(started);
    let started = start(dir.path(), "boot").unwrap();
    assert_eq!(started.rebuilt, None);
    assert_at(&started, 20);
    // The log said 12 when the process died.
    assert_eq!(started.log.hard_state().commit, 20);
}

#[test]
fn after_a_restart_of_the_machine_only_snapshot_and_log_are() {
    let dir = replica();
    let started = start(dir.path(), "boot").unwrap();
    apply_up_to(&started.state, 20);
    snapshot(dir.path(), &started.state);
    apply_up_to(&started.state, 25);
    drop(started);
    let started = start(dir.path(), "another boot").unwrap();
    assert_eq!(started.rebuilt, Some(Rebuilt::AnotherBoot));
    assert_at(&started, 20);
    assert_eq!(started.state.conf_state(), ConfState::from((vec![20], vec![])));
    assert_eq!(started.log.last_index(), LogIndex(30));
    // Then it is the state of that boot.
    drop(started);
    assert_eq!(start(dir.path(), "another boot").unwrap().rebuilt, None);
}

#[test]
fn without_a_snapshot_everything_is_replayed() {
    let dir = replica();
    apply_up_to(&start(dir.path(), "boot").unwrap().state, 20);
    let started = start(dir.path(), "another boot").unwrap();
    assert_at(&started, 0);
    assert_eq!(started.log.first_index(), LogIndex(1));
}

#[test]
fn a_state_that_sled_cannot_open_is_rebuilt() {
    let dir = replica();
    let started = start(dir.path(), "boot").unwrap();
    apply_up_to(&started.state, 20);
    snapshot(dir.path(), &started.state);
    let path = started.state.path();
    drop(started);
    std::fs::remove_file(path.join("db")).unwrap();
    std::fs::create_dir(path.join("db")).unwrap();
    let started = start(dir.path(), "boot").unwrap();
    assert_eq!(started.rebuilt, Some(Rebuilt::Unreadable));
    assert_at(&started, 20);
    assert!(!path.exists(), "the old state is gone");
}

#[test]
fn a_state_behind_the_snapshot_is_rebuilt() {
    let dir = replica();
    let started = start(dir.path(), "boot").unwrap();
    apply_up_to(&started.state, 20);
    // As if sled had lost what came after 20, and the log was cut at a later snapshot.
    let later = tempfile::tempdir().unwrap();
    let copy = State::open(later.path()).unwrap();
    apply_up_to(&copy, 25);
    snapshot(dir.path(), &copy);
    started.log.compact_to(LogIndex(25)).unwrap();
    drop(started);
    let started = start(dir.path(), "boot").unwrap();
    assert_eq!(started.rebuilt, Some(Rebuilt::BehindTheSnapshot));
    assert_at(&started, 25);
}

#[test]
fn a_snapshot_of_a_peer_resets_the_log() {
    // Beyond the log's end, and in the middle under another term.
    for (index, term) in [(100, 1), (15, 1), (15, 2)] {
        let dir = replica();
        let started = start(dir.path(), "boot").unwrap();
        apply_up_to(&started.state, 10);
        drop(started);
        let peer = tempfile::tempdir().unwrap();
        let copy = State::open(peer.path()).unwrap();
        apply_up_to(&copy, index);
        let at = AppliedPoint { index: LogIndex(index), term: Term(term), conf_state: None };
        copy.commit(crate::fs::Batch::default(), at).unwrap();
        snapshot(dir.path(), &copy);
        let started = start(dir.path(), "boot").unwrap();
        assert_at(&started, index);
        if (index, term) == (15, 1) {
            assert_eq!(started.rebuilt, Some(Rebuilt::BehindTheSnapshot));
            assert_eq!(started.log.last_index(), LogIndex(30));
        } else {
            assert_eq!(started.log.first_index(), LogIndex(index + 1));
        }
    }
}

#[test]
fn a_log_that_lost_its_end_is_not_passed_over() {
    let dir = replica();
    let started = start(dir.path(), "boot").unwrap();
    apply_up_to(&started.state, 20);
    drop(started);
    std::fs::remove_dir_all(dir.path().join("log")).unwrap();
    let log = RaftLog::open_with(&dir.path().join("log"), OPTIONS).unwrap();
    let state = HardState { term: 1, vote: 1, ..HardState::default() };
    log.append(&entries(1..15, 1), Some(&state), true).unwrap();
    drop(log);
    // After a power loss, too, when nobody believes what was applied.
    let error = start(dir.path(), "another boot").unwrap_err().to_string();
    assert!(error.contains("it held entry 30"), "{error}");
    std::fs::remove_file(dir.path().join("logged")).unwrap();
    let error = start(dir.path(), "boot").unwrap_err().to_string();
    assert!(error.contains("entry 20 was applied"), "{error}");
}

/// A replica that has run has voted. Whatever else is lost with its log, it does not come back without it.
#[test]
fn a_replica_that_has_run_never_begins_anew() {
    let dir = replica();
    let started = start(dir.path(), "boot").unwrap();
    apply_up_to(&started.state, 20);
    snapshot(dir.path(), &started.state);
    drop(started);
    for name in ["log", "current", "boot", "logged", "peers", "stages", "files"] {
        let path = dir.path().join(name);
        let removed = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        assert!(removed.is_ok() || !path.exists());
        if name != "log" {
            let error = start(dir.path(), "boot").unwrap_err().to_string();
            assert!(error.contains("it is empty, but this replica had one"), "{name}: {error}");
        }
    }
}

#[test]
fn a_hole_between_snapshot_and_log_is_an_error() {
    let dir = replica();
    let started = start(dir.path(), "boot").unwrap();
    started.log.compact_to(LogIndex(9)).unwrap();
    drop(started);
    let error = start(dir.path(), "boot").unwrap_err().to_string();
    assert!(error.contains("begins after 9"), "{error}");
}

#[test]
fn a_damaged_or_foreign_snapshot_is_an_error_and_stays() {
    let dir = replica();
    let started = start(dir.path(), "boot").unwrap();
    apply_up_to(&started.state, 20);
    snapshot(dir.path(), &started.state);
    drop(started);
    let path = dir.path().join("snapshots/snap-20");
    let whole = std::fs::read(&path).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() - 60] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    let error = start(dir.path(), "another boot").unwrap_err();
    assert!(matches!(error, StoreError::StateLost { .. }), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), damaged);
    std::fs::write(&path, &whole).unwrap();
    assert_at(&start(dir.path(), "another boot").unwrap(), 20);
    let mut data = DataDir::open(dir.path()).unwrap();
    let identity = Identity { cluster: ClusterId([2; 16]), ..data.identity().clone() };
    data.set_identity(identity).unwrap();
    drop(data);
    let error = start(dir.path(), "another boot").unwrap_err().to_string();
    assert!(error.contains("another data directory"), "{error}");
}

/// A process that is killed soon after it has taken a snapshot leaves a state that is older, and files that are not.
#[test]
fn a_snapshot_of_ones_own_leaves_no_file_behind() {
    let dir = replica();
    let older = tempfile::tempdir().unwrap();
    {
        let started = start(dir.path(), "boot").unwrap();
        let data = Bytes::from_static(b"acknowledged");
        let (ino, generation) = (Ino(7), Generation(3));
        let write = FileEffect::Write { ino, generation, offset: 0, data };
        started.files.carry_out_all(LogIndex(11), &[write]).unwrap();
        apply_up_to(&started.state, 11);
        copy_dir(&started.state.path(), older.path());
        let mut overlay = Overlay::new(&started.state);
        let inode = proto::Inode {
            kind: proto::Kind::Regular.into(),
            size: 12,
            generation: 3,
            data_version: 11,
            ..proto::Inode::default()
        };
        overlay.put(keys::inode(ino), inode.encode_to_vec());
        let at = AppliedPoint { index: LogIndex(12), term: Term(1), conf_state: None };
        started.state.commit(overlay.finish().unwrap(), at).unwrap();
        started.files.pass(LogIndex(12));
        started.files.sync().unwrap();
        snapshot(dir.path(), &started.state);
        started.state.flush().unwrap();
    }
    let current = DataDir::open_under(dir.path(), BootIdentity::named("boot")).unwrap();
    let path = current.current_state().unwrap().unwrap();
    drop(current);
    std::fs::remove_dir_all(&path).unwrap();
    copy_dir(older.path(), &path);
    let recovered = start(dir.path(), "boot").unwrap();
    assert_eq!(recovered.rebuilt, Some(Rebuilt::BehindTheSnapshot));
    let missing = recovered.files.missing((Ino(7), Generation(3)), ByteRange::from(0));
    assert_eq!(missing, []);
}

/// One that died before raft-engine had used a file again leaves it behind the others.
#[test]
fn a_file_that_the_log_ignores_is_removed() {
    let dir = replica();
    let options = LogOptions { file_bytes: 1 << 10, purge_bytes: 2 << 10, ..OPTIONS };
    let start =
        || recover(&DataDir::open_under(dir.path(), BootIdentity::named("boot")).unwrap(), options);
    let started = start().unwrap();
    for index in 31..300 {
        started.log.append(&entries(index..index + 1, 1), None, true).unwrap();
    }
    let first = started.log.dir().join(format!("{:016}.raftlog", 1));
    let used = std::fs::read(&first).unwrap();
    apply_up_to(&started.state, 250);
    snapshot(dir.path(), &started.state);
    started.log.compact_to(LogIndex(250)).unwrap();
    let last = started.log.last_index();
    drop(started);
    assert!(!first.exists(), "the log begins with a later file");
    std::fs::write(&first, used).unwrap();
    let started = start().unwrap();
    assert!(!first.exists());
    assert_eq!((started.log.truncated().0, started.log.last_index()), (LogIndex(250), last));
}

fn states(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let is_state =
        |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("state-");
    entries.filter(is_state).collect()
}

/// A replica with a state, a snapshot at 20, and a log.
fn with_snapshot() -> tempfile::TempDir {
    let dir = replica();
    let started = start(dir.path(), "boot").unwrap();
    apply_up_to(&started.state, 20);
    snapshot(dir.path(), &started.state);
    dir
}

/// Tries to build a state anew, and dies over it.
fn die_building(dir: &Path) {
    let path = dir.join("snapshots/snap-20");
    let whole = std::fs::read(&path).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() - 60] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    let data = DataDir::open_under(dir, BootIdentity::named("another boot")).unwrap();
    let log = RaftLog::open_with(&data.log_dir(), OPTIONS).unwrap();
    rebuild_state(&data, &log).unwrap_err();
    std::fs::write(&path, &whole).unwrap();
}

/// Where the disk has room for one state and not for two, a start has to do with that.
#[test]
fn a_state_that_is_built_anew_has_the_room_of_the_old_one() {
    let dir = with_snapshot();
    let old = states(dir.path());
    die_building(dir.path());
    assert!(
        old.iter().all(|state| !state.exists()),
        "{old:?} was there while another one was built"
    );
    assert_at(&start(dir.path(), "boot").unwrap(), 20);
    assert_eq!(states(dir.path()).len(), 1);
    // Nor does one that nobody will believe keep a start from beginning.
    let data = DataDir::open_under(dir.path(), BootIdentity::named("boot")).unwrap();
    make_room(&data).unwrap();
    assert_eq!(states(dir.path()).len(), 1);
    drop(data);
    let data = DataDir::open_under(dir.path(), BootIdentity::named("another boot")).unwrap();
    // Unless it is all that there is.
    let path = dir.path().join("snapshots/snap-20");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    make_room(&data).unwrap();
    assert_eq!(states(dir.path()).len(), 1);
    std::fs::write(&path, &whole).unwrap();
    make_room(&data).unwrap();
    assert_eq!(states(dir.path()), Vec::<PathBuf>::new());
    drop(data);
    assert_at(&start(dir.path(), "another boot").unwrap(), 20);
}

/// Wherever a start dies that removes a state and builds another, the next one finds what the log says; or, where that is gone,
/// that it is no new replica.
#[test]
fn a_start_may_die_while_it_replaces_a_state() {
    type Death = fn(&Path);
    let deaths: [Death; 5] = [
        |dir| std::fs::remove_file(dir.join("current")).unwrap(),
        |dir| {
            std::fs::remove_file(dir.join("current")).unwrap();
            std::fs::remove_file(states(dir)[0].join("db")).unwrap();
        },
        die_building,
        |dir| {
            die_building(dir);
            std::fs::remove_dir_all(&states(dir)[0]).unwrap();
        },
        // The next one is about to be the current one.
        |dir| {
            let data = DataDir::open_under(dir, BootIdentity::named("boot")).unwrap();
            let log = RaftLog::open_with(&data.log_dir(), OPTIONS).unwrap();
            drop(rebuild_state(&data, &log).unwrap());
            std::fs::remove_file(dir.join("current")).unwrap();
        },
    ];
    for (number, death) in deaths.iter().enumerate() {
        for boot in ["boot", "another boot"] {
            let dir = with_snapshot();
            death(dir.path());
            let started = start(dir.path(), boot).unwrap();
            assert_eq!(started.rebuilt, Some(Rebuilt::Absent), "{number}, {boot}");
            assert_at(&started, 20);
            assert_eq!(started.log.last_index(), LogIndex(30));
            drop(started);
            assert_eq!(states(dir.path()).len(), 1, "{number}, {boot}");

            let dir = with_snapshot();
            death(dir.path());
            std::fs::remove_dir_all(dir.path().join("log")).unwrap();
            let _ = std::fs::remove_file(dir.path().join("logged"));
            let error = start(dir.path(), boot).unwrap_err().to_string();
            assert!(error.contains("this replica had one"), "{number}, {boot}: {error}");
        }
    }
}

/// Of a replica that an early version has left, the state may be all that says that it has run.
#[test]
fn a_state_of_an_early_version_is_not_the_last_trace() {
    let dir = with_snapshot();
    let path = dir.path().join("identity");
    let text = std::fs::read_to_string(&path).unwrap().replace("format = 2", "format = 1");
    let is_old = |line: &&str| !line.starts_with("started") && !line.starts_with("checksum");
    let old: Vec<_> = text.lines().filter(is_old).collect();
    std::fs::write(&path, old.join("\n")).unwrap();
    assert!(!DataDir::open(dir.path()).unwrap().has_started());
    die_building(dir.path());
    for name in ["log", "logged", "boot", "peers", "stages", "files"] {
        let path = dir.path().join(name);
        let _ = std::fs::remove_file(&path);
        let _ = std::fs::remove_dir_all(&path);
        assert!(!path.exists());
    }
    let error = start(dir.path(), "another boot").unwrap_err().to_string();
    assert!(error.contains("this replica had one"), "{error}");
}

fn copy_dir(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-aT").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}
