//! Holes stay holes; and copies are replayed with the bytes that their sources had.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_assert_eq, prop_oneof, proptest};

use super::{ByteRange, Files, Key, LogIndex, Seek};
use crate::fs::FileEffect;
use crate::types::{Generation, Ino};

const GENERATION: Generation = Generation(1);
const KIB: u64 = 1024;

fn open(dir: &Path, same_boot: bool) -> Files {
    Files::open(&dir.join("files"), &dir.join("stages"), same_boot).unwrap()
}

fn key(ino: u64) -> Key {
    (Ino(ino), GENERATION)
}

fn write(ino: u64, offset: u64, data: Vec<u8>) -> FileEffect {
    FileEffect::Write { ino: Ino(ino), generation: GENERATION, offset, data: data.into() }
}

fn truncate(ino: u64, size: u64) -> FileEffect {
    FileEffect::Truncate { ino: Ino(ino), generation: GENERATION, size }
}

fn remove(ino: u64) -> FileEffect {
    FileEffect::Remove { ino: Ino(ino), generation: GENERATION }
}

fn reserve(ino: u64, range: ByteRange) -> FileEffect {
    FileEffect::Allocate { ino: Ino(ino), generation: GENERATION, range }
}

fn zero(ino: u64, range: ByteRange, reserved: bool) -> FileEffect {
    FileEffect::Zero { ino: Ino(ino), generation: GENERATION, range, reserved }
}

pub(in crate::store) fn copy(
    index: u64,
    source: u64,
    range: ByteRange,
    ino: u64,
    offset: u64,
) -> FileEffect {
    FileEffect::Copy {
        index: LogIndex(index),
        source: Ino(source),
        source_generation: GENERATION,
        range,
        ino: Ino(ino),
        generation: GENERATION,
        offset,
    }
}

fn bytes(files: &Files, ino: u64, len: usize) -> Vec<u8> {
    let mut buffer = vec![0xee; len];
    files.read(Ino(ino), GENERATION, 0, &mut buffer).unwrap();
    buffer
}

fn blocks(files: &Files, ino: u64) -> u64 {
    files.sync().unwrap();
    files.blocks(Ino(ino), GENERATION).unwrap()
}

/// How many copies have their bytes saved.
fn saved(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir.join("stages")).unwrap();
    let is_index = |name: std::ffi::OsString| name.to_str().unwrap().parse::<u64>().is_ok();
    entries.filter(|entry| is_index(entry.as_ref().unwrap().file_name())).count()
}

/// Where data begins and ends in a file of a size.
fn segments(files: &Files, ino: u64, size: u64) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < size
        && let Some(data) = files.seek(key(ino), Seek::Data, at, size).unwrap()
    {
        at = files.seek(key(ino), Seek::Hole, data, size).unwrap().expect("one at the end");
        found.push((data, at));
    }
    found
}

#[test]
fn data_and_holes_are_told_apart_up_to_the_size_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), true);
    assert_eq!(segments(&files, 1, 100), [], "a file that does not exist is a hole");
    assert_eq!(files.seek(key(1), Seek::Hole, 7, 100).unwrap(), Some(7));
    files.carry_out(crate::types::LogIndex(1), &write(1, 64 * KIB, vec![1; 64 << 10])).unwrap();
    files.carry_out(crate::types::LogIndex(1), &write(1, 256 * KIB, vec![0; 64 << 10])).unwrap();
    let (first, second) = ((64 * KIB, 128 * KIB), (256 * KIB, 320 * KIB));
    assert_eq!(segments(&files, 1, 320 * KIB), [first, second]);
    assert_eq!(segments(&files, 1, 1000 * KIB), [first, second], "the file ends with a hole");
    assert_eq!(segments(&files, 1, 300 * KIB), [first, (256 * KIB, 300 * KIB)]);
    assert_eq!(segments(&files, 1, 200 * KIB), [first]);
    assert_eq!(files.seek(key(1), Seek::Hole, 400 * KIB, 1000 * KIB).unwrap(), Some(400 * KIB));
    assert_eq!(files.seek(key(1), Seek::Data, 400 * KIB, 1000 * KIB).unwrap(), None);
}

#[test]
fn punching_gives_space_back_and_zeroing_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), true);
    let middle = ByteRange::at(64 * KIB, 128 * KIB);
    let mut wanted = vec![7; 256 << 10];
    wanted[64 << 10..192 << 10].fill(0);
    for (ino, reserved) in [(1, false), (2, true)] {
        files.carry_out(crate::types::LogIndex(1), &write(ino, 0, vec![7; 256 << 10])).unwrap();
        let before = blocks(&files, ino);
        files.carry_out(crate::types::LogIndex(1), &zero(ino, middle, reserved)).unwrap();
        assert!(bytes(&files, ino, wanted.len()) == wanted);
        let given_back = before - blocks(&files, ino);
        assert_eq!(given_back, if reserved { 0 } else { 256 });
    }
    files.carry_out(crate::types::LogIndex(1), &zero(3, middle, false)).unwrap();
    // It exists from then on, so that no later stage becomes it: a replay would make a hole in that.
    assert!(files.path_of(Ino(3), GENERATION).exists());
    assert_eq!(blocks(&files, 3), 0);
}

#[test]
fn reserved_space_is_taken_and_shows_no_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), true);
    files.carry_out(crate::types::LogIndex(1), &reserve(1, ByteRange::at(0, 1024 * KIB))).unwrap();
    assert!(blocks(&files, 1) >= 2048);
    assert_eq!(std::fs::metadata(files.path_of(Ino(1), GENERATION)).unwrap().len(), 0);
    assert!(bytes(&files, 1, 1 << 20) == vec![0; 1 << 20]);
    assert_eq!(files.mapped(key(1), ByteRange::at(512 * KIB, 1024 * KIB)).unwrap(), 512 * KIB);
    assert_eq!(files.mapped(key(2), ByteRange::at(0, KIB)).unwrap(), 0);
    // More than any disk has: the bytes are there all the same, and no space is taken in vain.
    files.carry_out(crate::types::LogIndex(1), &reserve(1, ByteRange::at(0, 1 << 43))).unwrap();
    assert!(blocks(&files, 1) < 4096);
}

#[test]
fn a_copy_has_the_holes_of_its_source() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), true);
    files.carry_out(crate::types::LogIndex(1), &write(1, 64 * KIB, vec![1; 64 << 10])).unwrap();
    files.carry_out(crate::types::LogIndex(1), &write(1, 1024 * KIB, vec![2; 64 << 10])).unwrap();
    files.carry_out(crate::types::LogIndex(1), &write(2, 0, vec![9; 1280 << 10])).unwrap();
    let size = 1200 * KIB;
    files.carry_out(crate::types::LogIndex(1), &copy(5, 1, ByteRange::at(0, size), 2, 0)).unwrap();
    files
        .carry_out(
            crate::types::LogIndex(1),
            &copy(6, 1, ByteRange::at(32 * KIB, 1000 * KIB), 3, 4096),
        )
        .unwrap();
    let first = (64 * KIB, 128 * KIB);
    let tail = (size, 1280 * KIB);
    assert_eq!(segments(&files, 2, 1280 * KIB), [first, (1024 * KIB, 1088 * KIB), tail]);
    assert!(bytes(&files, 2, 1200 << 10) == bytes(&files, 1, 1200 << 10));
    assert_eq!(segments(&files, 3, 1004 * KIB)[0], (36 * KIB, 100 * KIB));
    assert!(blocks(&files, 3) <= 2 * 80);
    // From a file that has no bytes.
    files.carry_out(crate::types::LogIndex(1), &copy(7, 8, ByteRange::at(0, size), 2, 0)).unwrap();
    assert_eq!(segments(&files, 2, 1280 * KIB), [tail]);
}

/// The process is killed behind the effects that changed the source of a copy.
#[test]
fn a_replayed_copy_has_the_bytes_of_then() {
    for same_boot in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let files = open(dir.path(), true);
        let before = [write(1, 0, b"source".to_vec()), copy(2, 1, ByteRange::at(0, 6), 2, 0)];
        let after = [write(1, 0, b"SOURCE".to_vec()), remove(1)];
        for effect in before.iter().chain(&after) {
            files.carry_out(crate::types::LogIndex(1), effect).unwrap();
        }
        drop(files);
        let files = open(dir.path(), same_boot);
        for effect in before.iter().chain(&after) {
            files.carry_out(crate::types::LogIndex(1), effect).unwrap();
        }
        assert_eq!(bytes(&files, 2, 6), b"source");
        assert_eq!(bytes(&files, 1, 6), [0; 6]);
        files.forget(LogIndex(2)).unwrap();
        assert_eq!(saved(dir.path()), 0);
    }
}

/// A file that is removed right behind its copy costs no second copy, and goes with the next snapshot.
#[test]
fn a_removed_source_stays_until_a_snapshot_is_behind_its_copy() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), true);
    files.carry_out(crate::types::LogIndex(1), &write(1, 0, b"source".to_vec())).unwrap();
    files.carry_out(crate::types::LogIndex(1), &copy(2, 1, ByteRange::at(0, 6), 2, 0)).unwrap();
    files.carry_out(crate::types::LogIndex(1), &remove(1)).unwrap();
    let path = files.path_of(Ino(1), GENERATION);
    assert!(path.exists() && files.held() > 0);
    assert_eq!(saved(dir.path()), 0);
    drop(files);
    let files = open(dir.path(), true);
    files.forget(LogIndex(1)).unwrap();
    assert!(path.exists(), "that snapshot is before the copy");
    files.forget(LogIndex(2)).unwrap();
    assert!(!path.exists());
    assert_eq!(files.held(), 0);
    files.carry_out(crate::types::LogIndex(1), &write(2, 0, b"x".to_vec())).unwrap();
    assert_eq!(bytes(&files, 2, 6), b"xource");
}

/// One effect; those of a run have the indexes from 1 on.
#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64, u8, usize),
    Truncate(u64, u64),
    Remove(u64),
    Zero(u64, ByteRange, bool),
    Copy(u64, ByteRange, u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let ino = || 1..4_u64;
    let range = || (0..40_u64, 1..30_u64).prop_map(|(start, len)| ByteRange::at(start, len));
    prop_oneof![
        4 => (ino(), 0..40_u64, 1..=255_u8, 1..30_usize).prop_map(|(i, at, b, n)| Step::Write(i, at, b, n)),
        1 => (ino(), 1..40_u64).prop_map(|(ino, size)| Step::Truncate(ino, size)),
        1 => ino().prop_map(Step::Remove),
        1 => (ino(), range(), any::<bool>()).prop_map(|(i, range, kept)| Step::Zero(i, range, kept)),
        4 => (ino(), range(), ino(), prop_oneof![Just(0), 0..40_u64])
            .prop_map(|(source, range, ino, offset)| Step::Copy(source, range, ino, offset)),
    ]
}

/// A removed inode never comes back: each removal is the end of a life, and the next has another number.
#[derive(Default)]
struct Lives(BTreeMap<u64, u64>);

impl Lives {
    fn ino(&self, ino: u64) -> u64 {
        ino + 10 * self.0.get(&ino).copied().unwrap_or(0)
    }
}

fn effects(steps: &[Step]) -> Vec<FileEffect> {
    let mut lives = Lives::default();
    let mut effects = Vec::new();
    for (index, step) in (1..).zip(steps) {
        effects.push(match step {
            Step::Write(ino, at, byte, len) => write(lives.ino(*ino), *at, vec![*byte; *len]),
            Step::Truncate(ino, size) => truncate(lives.ino(*ino), *size),
            Step::Remove(ino) => {
                let effect = remove(lives.ino(*ino));
                *lives.0.entry(*ino).or_default() += 1;
                effect
            }
            Step::Zero(ino, range, kept) => zero(lives.ino(*ino), *range, *kept),
            Step::Copy(source, range, ino, offset) => {
                let overlaps = *offset < range.end && range.start < offset + range.len();
                let offset = if source == ino && overlaps { range.end } else { *offset };
                copy(index, lives.ino(*source), *range, lives.ino(*ino), offset)
            }
        });
    }
    effects
}

/// What files hold, 128 bytes of each.
type Contents = BTreeMap<Ino, [u8; 128]>;

fn model(contents: &mut Contents, effect: &FileEffect) {
    let range = |range: ByteRange| {
        usize::try_from(range.start).unwrap()..usize::try_from(range.end.min(128)).unwrap()
    };
    match effect {
        FileEffect::Write { ino, offset, data, .. } => {
            let at = range(ByteRange::at(*offset, data.len() as u64));
            contents.entry(*ino).or_insert([0; 128])[at].copy_from_slice(data);
        }
        FileEffect::Truncate { ino, size, .. } => {
            contents.entry(*ino).or_insert([0; 128])[range(ByteRange::from(*size))].fill(0);
        }
        FileEffect::Zero { ino, range: zeros, .. } => {
            contents.entry(*ino).or_insert([0; 128])[range(*zeros)].fill(0);
        }
        FileEffect::Copy { source, range: from, ino, offset, .. } => {
            let source = contents.get(source).copied().unwrap_or([0; 128]);
            let at = range(ByteRange::at(*offset, from.len()));
            contents.entry(*ino).or_insert([0; 128])[at].copy_from_slice(&source[range(*from)]);
        }
        FileEffect::Remove { ino, .. } | FileEffect::Renew { ino, .. } => {
            contents.remove(ino);
        }
        FileEffect::Allocate { .. } | FileEffect::Stage { .. } | FileEffect::EndStages { .. } => {}
    }
}

proptest! {
    /// Crashes anywhere, after which everything since the snapshot, or since some later state, is replayed
    /// over files that have more already.
    #[test]
    fn replaying_leaves_the_same_bytes(
        steps in vec(step(), 2..40),
        crashes in vec((any::<bool>(), 0..100_usize, 0..100_usize, 0..100_usize), 1..4),
    ) {
        let effects = effects(&steps);
        let dir = tempfile::tempdir().unwrap();
        let mut snapshot = 0;
        let mut done = 0;
        let mut files = open(dir.path(), true);
        for (same_boot, more, from, taken) in crashes {
            let until = done + more % (effects.len() - done + 1);
            for effect in &effects[done..until] {
                files.carry_out(crate::types::LogIndex(1), effect).unwrap();
            }
            drop(files);
            files = open(dir.path(), same_boot);
            // Only a state that outlived nothing but the process may be newer than the snapshot.
            let from = if same_boot { snapshot + from % (until - snapshot + 1) } else { snapshot };
            for effect in &effects[from..until] {
                files.carry_out(crate::types::LogIndex(1), effect).unwrap();
            }
            done = until;
            snapshot += taken % (done - snapshot + 1);
            files.forget(LogIndex(snapshot as u64)).unwrap();
        }
        for effect in &effects[done..] {
            files.carry_out(crate::types::LogIndex(1), effect).unwrap();
        }
        let mut wanted = Contents::new();
        for effect in &effects {
            model(&mut wanted, effect);
        }
        for (ino, wanted) in &wanted {
            prop_assert_eq!(&Bytes::from(bytes(&files, ino.0, 128)), &wanted[..], "inode {}", ino);
        }
        files.forget(LogIndex(effects.len() as u64)).unwrap();
        for ino in (1..4).flat_map(|ino| (0..50).map(move |life| Ino(ino + 10 * life))) {
            let lives = wanted.contains_key(&ino);
            prop_assert_eq!(lives || !files.path_of(ino, GENERATION).exists(), true, "inode {}", ino);
        }
    }
}
