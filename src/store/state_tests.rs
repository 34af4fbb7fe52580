//! Tests of the state: commits, exports under commits, and a kill at any time.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use raft::eraftpb::ConfState;

use super::{AppliedPoint, Pace, State};
use crate::fs::{Batch, Digest, Overlay, Pair, View, ViewMut, keys};
use crate::types::{Ino, LogIndex, Term};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn at(index: u64) -> AppliedPoint<'static> {
    AppliedPoint { index: LogIndex(index), term: Term(1), conf_state: None }
}

fn commit(state: &State, index: u64, changes: &[(u64, Option<u64>)]) {
    let mut overlay = Overlay::new(state);
    for &(ino, value) in changes {
        match value {
            Some(value) => overlay.put(keys::inode(Ino(ino)), value.to_le_bytes().to_vec()),
            None => overlay.delete(keys::inode(Ino(ino))),
        }
    }
    state.commit(overlay.finish().unwrap(), at(index)).unwrap();
}

fn everything(state: &State) -> Model {
    state.export().map(Result::unwrap).collect()
}

fn digest_of(pairs: &Model) -> Digest {
    let mut digest = Digest::default();
    for (key, value) in pairs {
        digest.add(key, value);
    }
    digest
}

/// A small generator, so that a failing run can be had again.
fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

#[test]
fn a_commit_is_whole_and_survives_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let members = ConfState::from((vec![1, 2, 3], vec![4]));
    {
        let state = State::open(dir.path()).unwrap();
        assert_eq!((state.applied(), state.digest()), (LogIndex(0), Digest::default()));
        let batch = Batch {
            writes: [(vec![b'i', 1], Some(vec![7])), (vec![b'i', 2], None)].into(),
            digest: Digest(5),
        };
        let point = AppliedPoint { conf_state: Some(&members), ..at(9) };
        state.commit(batch, point).unwrap();
        state.commit(Batch::default(), at(10)).unwrap();
        state.flush().unwrap();
    }
    let state = State::open(dir.path()).unwrap();
    assert_eq!((state.applied(), state.term(), state.digest()), (LogIndex(10), Term(1), Digest(5)));
    assert_eq!(state.conf_state(), members);
    let read = state.read();
    assert_eq!(read.get(&[b'i', 1]).unwrap(), Some(vec![7]));
    assert_eq!(read.scan(b"i", b"j", 10).unwrap(), [(vec![b'i', 1], vec![7])]);
    assert_eq!(read.scan(b"j", b"i", 10).unwrap(), []);
}

#[test]
fn what_is_remembered_is_what_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(dir.path()).unwrap();
    let mut seed = 1;
    let mut model = BTreeMap::new();
    for index in 1..500 {
        let changes: Vec<_> = (0..4)
            .map(|_| {
                (random(&mut seed) % 20, (!random(&mut seed).is_multiple_of(3)).then_some(index))
            })
            .collect();
        commit(&state, index, &changes);
        model.extend(changes);
        for ino in 0..20 {
            let expected = model.get(&ino).copied().flatten().map(|v| v.to_le_bytes().to_vec());
            let key = keys::inode(Ino(ino));
            assert_eq!(state.get(&key).unwrap(), expected);
            let stored = state.scan(&key, &keys::inode(Ino(ino + 1)), 1).unwrap();
            assert_eq!(stored.into_iter().next().map(|(_, value)| value), expected);
        }
    }
    assert_eq!(digest_of(&everything(&state)), state.digest());
}

#[test]
fn an_export_is_the_state_at_its_start() {
    const INODES: u64 = 5000;
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(dir.path()).unwrap();
    // Every other one, so that commits create between as well as change and remove.
    let first: Vec<_> = (0..INODES).map(|n| (2 * n, Some(n))).collect();
    commit(&state, 1, &first);
    let before: Vec<Pair> = everything(&state).into_iter().collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let committer = scope.spawn(|| {
            let (mut seed, mut index) = (7, 1);
            while !stop.load(Ordering::Relaxed) {
                index += 1;
                let changes: Vec<_> = (0..20)
                    .map(|_| {
                        let ino = random(&mut seed) % (2 * INODES + 100);
                        (ino, (random(&mut seed).is_multiple_of(2)).then_some(index))
                    })
                    .collect();
                commit(&state, index, &changes);
            }
            index
        });
        while state.applied() == LogIndex(1) {
            std::thread::yield_now();
        }
        for _ in 0..20 {
            let export = state.export();
            let (digest, index) = (export.digest(), export.index());
            let pairs: Vec<Pair> = export.map(Result::unwrap).collect();
            assert!(pairs.is_sorted_by(|a, b| a.0 < b.0));
            assert_eq!(digest_of(&pairs.into_iter().collect()), digest, "at index {index}");
        }
        stop.store(true, Ordering::Relaxed);
        assert!(committer.join().unwrap() > 1, "nothing was committed meanwhile");
    });
    assert_eq!(before.len() as u64, INODES);
}

#[test]
fn an_export_does_not_see_commits_between_its_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(dir.path()).unwrap();
    let first: Vec<_> = (0..3000).map(|ino| (2 * ino, Some(ino))).collect();
    commit(&state, 1, &first);
    let before = everything(&state);
    let mut export = state.export();
    let mut pairs = vec![export.next().unwrap().unwrap()];
    // Remove everything, add others, and change one twice.
    let gone: Vec<_> = (0..3000).map(|ino| (2 * ino, None)).collect();
    commit(&state, 2, &gone);
    let new: Vec<_> = (0..3000).map(|ino| (2 * ino + 1, Some(ino))).collect();
    commit(&state, 3, &new);
    commit(&state, 4, &[(5000, Some(1)), (5001, Some(2))]);
    pairs.extend(export.map(Result::unwrap));
    assert_eq!(pairs.into_iter().collect::<Model>(), before);
    assert_eq!(everything(&state).len(), 3001);
}

#[test]
fn a_state_is_built_from_an_export() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let state = State::open(old.path()).unwrap();
    let changes: Vec<_> = (0..2500).map(|ino| (ino, Some(ino))).collect();
    commit(&state, 3, &changes);
    let members = ConfState::from((vec![1], vec![]));
    let point = AppliedPoint { conf_state: Some(&members), ..at(3) };
    let copy = State::create_from(new.path(), state.export(), point, state.digest()).unwrap();
    assert_eq!(everything(&copy), everything(&state));
    drop(copy);
    let copy = State::open(new.path()).unwrap();
    assert_eq!((copy.applied(), copy.digest()), (LogIndex(3), state.digest()));
    assert_eq!((copy.conf_state(), everything(&copy)), (members, everything(&state)));
    let third = tempfile::tempdir().unwrap();
    let wrong = State::create_from(third.path(), state.export(), at(3), Digest(1)).unwrap_err();
    assert!(wrong.to_string().contains("add up"), "{wrong}");
}

/// Section 6 of the design: exporting never stops applies for more than 50 ms. The longest commit is measured while
/// exports run, one after the other; a machine that does something else may add to one of them.
#[test]
#[ignore = "long"]
fn exports_of_a_large_state_do_not_stop_commits() {
    const INODES: u64 = 300_000;
    const ROUND: u64 = 16;
    const EXPORTS: usize = 5;
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(dir.path()).unwrap();
    let change = |index: u64, inos: &mut dyn Iterator<Item = u64>| {
        let mut overlay = Overlay::new(&state);
        for ino in inos {
            // As long as records are.
            overlay.put(keys::inode(Ino(ino)), [index.to_le_bytes(); 15].concat());
            let name = format!("file-{ino:08}.bin");
            overlay
                .put(keys::dentry(Ino(ino % 1000), name.as_bytes()), index.to_le_bytes().to_vec());
        }
        state.commit(overlay.finish().unwrap(), at(index)).unwrap();
    };
    for index in 1..=INODES / 1000 {
        change(index, &mut ((index - 1) * 1000..index * 1000));
    }
    state.flush().unwrap();
    let longest = parking_lot::Mutex::new(Duration::ZERO);
    let (stop, commits) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut found = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut seed, mut index) = (7, INODES);
            while !stop.load(Ordering::Relaxed) {
                index += 1;
                let first = random(&mut seed) % (INODES - ROUND);
                let began = Instant::now();
                change(index, &mut (first..first + ROUND));
                let mut longest = longest.lock();
                *longest = began.elapsed().max(*longest);
                commits.fetch_add(1, Ordering::Relaxed);
                // Some 15,000 names a second, at most.
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        // The first time is without an export, to compare.
        for number in 0..=EXPORTS {
            let (began, before) = (Instant::now(), commits.load(Ordering::Relaxed));
            *longest.lock() = Duration::ZERO;
            if number == 0 {
                std::thread::sleep(Duration::from_secs(2));
            } else {
                assert_eq!(state.export().map(Result::unwrap).count() as u64, 2 * INODES);
            }
            let (longest, took) = (*longest.lock(), began.elapsed());
            let commits = commits.load(Ordering::Relaxed) - before;
            println!("{number}: {took:?}, {commits} commits, the longest {longest:?}");
            found.push(longest);
        }
        stop.store(true, Ordering::Relaxed);
    });
    let without = found.remove(0);
    found.sort();
    println!("longest commit: {without:?} without, {found:?} with exports");
    assert!(found[EXPORTS / 2] <= Duration::from_millis(50), "{found:?}");
}

/// Not a test of its own: the process that [`a_killed_process_leaves_a_state_that_was`] kills.
#[test]
fn child_that_commits_until_it_is_killed() {
    let Some(dir) = std::env::var_os("QUORUMFS_TEST_STATE") else { return };
    let state = State::open(dir.as_ref()).unwrap();
    let mut seed = std::process::id().into();
    for index in state.applied().0 + 1.. {
        let changes: Vec<_> =
            (0..5).map(|_| (random(&mut seed) % 1000, Some(random(&mut seed)))).collect();
        // The last one says which index the state is at: it must agree with the stored one.
        commit(&state, index, &[&changes[..], &[(u64::MAX, Some(index))]].concat());
        if index % 50 == 0 {
            // What the thread of the state does once a second.
            state.records.load().drain(Pace::AtOnce).unwrap();
        }
        println!("committed {index}");
    }
}

#[test]
fn a_killed_process_leaves_a_state_that_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut reached = 0;
    for round in 0..6_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_that_commits_until_it_is_killed", "--nocapture"])
            .env("QUORUMFS_TEST_STATE", dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let committed = lines.filter(|line| line.contains("committed"));
        let wanted = usize::try_from(100 + 331 * round).unwrap();
        let last = committed.take(wanted).last().expect("it commits until it is killed");
        child.kill().unwrap();
        child.wait().unwrap();
        let last: u64 = last.rsplit(' ').next().unwrap().parse().unwrap();
        let state = State::open(dir.path()).unwrap();
        let applied = state.applied().0;
        assert!(applied >= reached, "what was opened before is never lost again");
        reached = applied;
        let pairs = everything(&state);
        assert_eq!(digest_of(&pairs), state.digest(), "round {round}, {applied} of {last}");
        let marker = pairs.get(&keys::inode(Ino(u64::MAX)));
        assert_eq!(marker.cloned(), (applied > 0).then(|| applied.to_le_bytes().to_vec()));
        state.flush().unwrap();
    }
    assert!(reached > 0, "something must have reached the disk over six rounds");
}
