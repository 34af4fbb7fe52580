//! Stages become bytes of files, whenever they come and whatever dies meanwhile.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_assert_eq, prop_oneof, proptest};

use super::{ByteRange, CHUNK, Files, Key, LogIndex, StageId, StagedPiece};
use crate::fs::FileEffect;
use crate::store::stages::checksum_blocks;
use crate::types::{Generation, Ino, SessionId};

pub(super) const GENERATION: Generation = Generation(1);
const SESSION: SessionId = SessionId(3);

pub(super) fn open(dir: &Path, same_boot: bool) -> Files {
    Files::open(&dir.join("files"), &dir.join("stages"), same_boot).unwrap()
}

pub(super) fn key(ino: u64) -> Key {
    (Ino(ino), GENERATION)
}

pub(super) fn id(number: u64) -> StageId {
    StageId { session: SESSION, number }
}

pub(super) fn write(ino: u64, offset: u64, data: &[u8]) -> FileEffect {
    let data = data.to_vec().into();
    FileEffect::Write { ino: Ino(ino), generation: GENERATION, offset, data }
}

fn truncate(ino: u64, size: u64) -> FileEffect {
    FileEffect::Truncate { ino: Ino(ino), generation: GENERATION, size }
}

pub(super) fn remove(ino: u64) -> FileEffect {
    FileEffect::Remove { ino: Ino(ino), generation: GENERATION }
}

/// One piece of a stage, of which `data` are the bytes from `from` on.
pub(super) fn piece(at: u64, from: u64, data: &[u8]) -> StagedPiece {
    let staged = ByteRange::at(from, data.len() as u64);
    let checksum = |block: ByteRange| {
        let at = |at: u64| usize::try_from(at - from).unwrap();
        crc32c::crc32c(&data[at(block.start)..at(block.end)])
    };
    StagedPiece { at, staged, checksums: checksum_blocks(staged).map(checksum).collect() }
}

pub(super) fn stage(index: u64, ino: u64, number: u64, pieces: Vec<StagedPiece>) -> FileEffect {
    let (index, ino) = (LogIndex(index), Ino(ino));
    FileEffect::Stage { index, ino, generation: GENERATION, stage: id(number), pieces }
}

pub(super) fn carry_out(files: &Files, index: u64, effect: &FileEffect) {
    files.carry_out_all(LogIndex(index), std::slice::from_ref(effect)).unwrap();
}

/// Nothing where some are missing.
pub(super) fn bytes(files: &Files, ino: u64, len: usize) -> Option<Vec<u8>> {
    let mut buffer = vec![0xee; len];
    let is_whole = files.read(Ino(ino), GENERATION, 0, &mut buffer).unwrap();
    let mut cached = vec![0xee; len];
    if files.read_cached(Ino(ino), GENERATION, 0, &mut cached).unwrap() {
        assert!(is_whole && buffer == cached);
    }
    is_whole.then_some(buffer)
}

fn count(dir: &Path, name: &str) -> usize {
    std::fs::read_dir(dir.join("stages").join(name)).unwrap().count()
}

pub(super) fn merge_all(files: &Files) {
    while files.merge_some().unwrap() {}
}

/// The bytes of a new file are written once: the stage becomes the file.
#[test]
fn a_stage_becomes_a_new_file() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), true);
    let data = vec![7; 300 << 10];
    files.stage(id(1), 0, &data[..100_000]).unwrap();
    files.stage(id(1), 100_000, &data[100_000..]).unwrap();
    files.sync_stage(id(1)).unwrap();
    let staged = std::fs::metadata(dir.path().join("stages/new/3.1")).unwrap();
    carry_out(&files, 5, &stage(5, 1, 1, vec![piece(0, 0, &data)]));
    let placed = std::fs::metadata(files.path_of(Ino(1), GENERATION)).unwrap();
    assert_eq!(placed.ino(), staged.ino());
    assert!(bytes(&files, 1, data.len()).unwrap() == data);
    assert_eq!((count(dir.path(), "new"), count(dir.path(), "written")), (0, 0));
    assert!(!files.merge_some().unwrap());
}

/// What has come is merged while the rest is under way; a sync in between leaves the stage to the rest.
#[test]
fn a_stage_stays_while_bytes_may_come() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), true);
    let data = vec![7; 100];
    carry_out(&files, 4, &write(1, 0, b"below"));
    files.stage(id(1), 0, &data[..50]).unwrap();
    carry_out(&files, 5, &stage(5, 1, 1, vec![piece(0, 0, &data)]));
    merge_all(&files);
    files.sync().unwrap();
    assert_eq!(count(dir.path(), "written"), 1);
    files.stage(id(1), 50, &data[50..]).unwrap();
    assert!(bytes(&files, 1, 100).unwrap() == data);
    merge_all(&files);
    files.sync().unwrap();
    assert_eq!(count(dir.path(), "written"), 0);
    assert!(bytes(&files, 1, 100).unwrap() == data);

    files.stage(id(2), 0, &data[..50]).unwrap();
    carry_out(&files, 6, &stage(6, 1, 2, vec![piece(0, 0, &data)]));
    let arriving = files.stages().arriving(id(2)).unwrap();
    merge_all(&files);
    files.give_up_stage(id(2));
    assert!(arriving.is_closed());
    files.sync().unwrap();
    assert_eq!(count(dir.path(), "written"), 0, "nothing comes for it any more");
    assert_eq!(files.missing(key(1), ByteRange::at(0, 100)).len(), 1);
}

/// Who is behind has all stages that the others have sent since, and not more descriptors for that.
#[test]
fn stages_that_arrive_share_some_descriptors() {
    const STAGES: u64 = 700;
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), true);
    let data = |number: u64| number.to_le_bytes().repeat(3);
    for number in 1..=STAGES {
        files.stage(id(number), 0, &data(number)[..12]).unwrap();
    }
    let fresh = dir.path().join("stages/new");
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let targets = descriptors.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let open = targets.filter(|target| target.starts_with(&fresh)).count();
    assert!((1..=256).contains(&open), "{open}");
    for number in 1..=STAGES {
        files.stage(id(number), 12, &data(number)[12..]).unwrap();
    }
    assert!(files.sync_stage(id(1)).unwrap() && files.sync_stage(id(STAGES)).unwrap());
    for number in 1..=STAGES {
        let mut found = [0; 24];
        assert!(files.read_stage(id(number), 0, &mut found).unwrap());
        assert_eq!(found[..], data(number));
        let pieces = vec![piece(0, 0, &data(number))];
        carry_out(&files, number + 3, &stage(number + 3, number, number, pieces));
        assert_eq!(bytes(&files, number, 24).unwrap(), data(number));
    }
}

/// Over bytes that are there it is read where it is, and merged in time.
#[test]
fn a_stage_is_merged_into_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), true);
    let len = usize::try_from(2 * CHUNK).unwrap();
    carry_out(&files, 4, &write(1, 0, b"below"));
    files.stage(id(1), 3, &vec![7; len]).unwrap();
    carry_out(&files, 5, &stage(5, 1, 1, vec![piece(3, 3, &vec![7; len])]));
    let mut wanted = vec![7; len + 3];
    wanted[..3].copy_from_slice(b"bel");
    assert!(bytes(&files, 1, len + 3).unwrap() == wanted);
    carry_out(&files, 6, &write(1, 10, b"over"));
    wanted[10..14].copy_from_slice(b"over");
    assert!(files.merge_some().unwrap());
    assert!(bytes(&files, 1, len + 3).unwrap() == wanted);
    merge_all(&files);
    assert!(bytes(&files, 1, len + 3).unwrap() == wanted);
    assert_eq!(count(dir.path(), "written"), 1, "a replay may need it");
    files.sync().unwrap();
    assert_eq!(count(dir.path(), "written"), 0);
    assert!(bytes(&files, 1, len + 3).unwrap() == wanted);
}

/// Appended bytes are wherever the log has put them.
#[test]
fn an_appended_stage_is_shifted() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), true);
    carry_out(&files, 4, &write(1, 0, b"head "));
    files.stage(id(1), 0, b"tail, in two pieces").unwrap();
    let pieces = vec![piece(5, 0, b"tail, in "), piece(14, 9, b"two pieces")];
    carry_out(&files, 5, &stage(5, 1, 1, pieces));
    assert_eq!(bytes(&files, 1, 24).unwrap(), b"head tail, in two pieces");
    merge_all(&files);
    assert_eq!(bytes(&files, 1, 24).unwrap(), b"head tail, in two pieces");
}

/// What has not come yet is missing until it does, unless something else is written there.
#[test]
fn late_bytes_are_missing_until_they_come() {
    for below in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let files = open(dir.path(), true);
        if below {
            carry_out(&files, 4, &write(1, 0, b"....................."));
        }
        files.stage(id(1), 0, b"come").unwrap();
        carry_out(&files, 5, &stage(5, 1, 1, vec![piece(0, 0, b"come, late, later")]));
        assert_eq!(bytes(&files, 1, 4).unwrap(), b"come");
        assert_eq!(bytes(&files, 1, 17), None);
        let missing = |range| files.missing(key(1), range);
        assert_eq!(missing(ByteRange::at(0, 17)), [(ByteRange::at(4, 13), LogIndex(5))]);
        carry_out(&files, 6, &write(1, 6, b"LATE"));
        files.stage(id(1), 4, b", late,").unwrap();
        assert_eq!(missing(ByteRange::at(0, 17)), [(ByteRange::at(11, 6), LogIndex(5))]);
        assert_eq!(bytes(&files, 1, 11).unwrap(), b"come, LATE,");
        files.stage(id(1), 11, b" later").unwrap();
        merge_all(&files);
        assert_eq!(bytes(&files, 1, 17).unwrap(), b"come, LATE, later");
        assert!(files.layouts().are_in_place());
    }
}

/// A replica that had nothing of a stage lacks all of it, also after it is started again.
#[test]
fn bytes_without_a_stage_are_missing() {
    for same_boot in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let files = open(dir.path(), true);
        carry_out(&files, 5, &stage(5, 1, 1, vec![piece(10, 10, b"never came")]));
        carry_out(&files, 6, &truncate(1, 15));
        let missing = [(ByteRange { start: 10, end: 15 }, LogIndex(5))];
        assert_eq!(files.missing(key(1), ByteRange::at(0, 99)), missing);
        assert_eq!(bytes(&files, 1, 10).unwrap(), [0; 10]);
        files.sync().unwrap();
        drop(files);
        let files = open(dir.path(), same_boot);
        assert_eq!(files.missing(key(1), ByteRange::at(0, 99)), missing);
        carry_out(&files, 7, &remove(1));
        assert!(files.layouts().are_in_place());
    }
}

/// The rest of a stage whose connection was lost before it was written does not come by itself.
#[test]
fn a_stage_whose_connection_is_lost_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), true);
    files.stage(id(1), 0, b"come").unwrap();
    files.give_up_stage(id(1));
    carry_out(&files, 5, &stage(5, 1, 1, vec![piece(0, 0, b"come, not come")]));
    assert!(!files.is_arriving(key(1), LogIndex(5)));
    // One that is sent again is.
    files.stage(id(2), 20, b"come").unwrap();
    files.give_up_stage(id(2));
    files.stage(id(2), 24, b", again").unwrap();
    carry_out(&files, 6, &stage(6, 1, 2, vec![piece(20, 20, b"come, again and again")]));
    assert!(files.is_arriving(key(1), LogIndex(6)));
}

/// A replay after a power loss changes no file that a stage has become since: what comes before it there made a file.
#[test]
fn a_replay_does_not_change_what_a_later_stage_has_become() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), true);
    let data = b"written after the hole";
    let range = ByteRange::at(4, 8);
    let zero = FileEffect::Zero { ino: Ino(1), generation: GENERATION, range, reserved: false };
    let effects = [(5, zero), (6, stage(6, 1, 1, vec![piece(0, 0, data)]))];
    files.stage(id(1), 0, data).unwrap();
    files.sync_stage(id(1)).unwrap();
    for (index, effect) in &effects {
        carry_out(&files, *index, effect);
    }
    merge_all(&files);
    drop(files);
    let files = open(dir.path(), false);
    for (index, effect) in &effects {
        carry_out(&files, *index, effect);
    }
    assert_eq!(bytes(&files, 1, data.len()).unwrap(), data);
}

/// The layout of before a power loss says that a part is in a stage, which has become the file since, or has gone
/// with it.
#[test]
fn a_stage_that_was_placed_after_the_last_sync_is_found() {
    for removed in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let files = open(dir.path(), true);
        files.stage(id(1), 0, b"one part").unwrap();
        carry_out(&files, 5, &stage(5, 1, 1, vec![piece(0, 0, b"one part, the other")]));
        files.sync().unwrap();
        files.stage(id(1), 8, b", the other").unwrap();
        assert!(files.merge_some().unwrap());
        assert_eq!(count(dir.path(), "written"), 0);
        if removed {
            carry_out(&files, 6, &remove(1));
        }
        drop(files);
        let files = open(dir.path(), false);
        let whole = (!removed).then(|| b"one part, the other".to_vec());
        assert_eq!(bytes(&files, 1, 19), whole);
        merge_all(&files);
        carry_out(&files, 6, &remove(1));
        assert!(files.layouts().are_in_place());
    }
}

/// A later stage covers one that is only partly here, and becomes the file: its bytes count, not those of before.
#[test]
fn a_placed_stage_hides_what_the_last_sync_knew() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), true);
    files.stage(id(1), 0, b"older").unwrap();
    carry_out(&files, 5, &stage(5, 1, 1, vec![piece(0, 0, b"older bytes")]));
    files.sync().unwrap();
    files.stage(id(2), 0, b"newer bytes").unwrap();
    files.sync_stage(id(2)).unwrap();
    let newer = stage(6, 1, 2, vec![piece(0, 0, b"newer bytes")]);
    carry_out(&files, 6, &newer);
    assert!(files.path_of(Ino(1), GENERATION).exists());
    drop(files);
    let files = open(dir.path(), false);
    carry_out(&files, 6, &newer);
    assert_eq!(bytes(&files, 1, 11).unwrap(), b"newer bytes");
}

/// A process that dies after a power loss, before it has carried anything out, hides nothing from the next one.
#[test]
fn what_was_lost_is_carried_out_again_however_often_the_process_dies() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), true);
    for index in 5..=6 {
        carry_out(&files, index, &write(1, 0, b"kept"));
    }
    let path = files.path_of(Ino(1), GENERATION);
    drop(files);
    drop(open(dir.path(), false));
    std::fs::remove_file(path).unwrap();
    let files = open(dir.path(), true);
    carry_out(&files, 5, &write(1, 0, b"kept"));
    assert_eq!(bytes(&files, 1, 4).unwrap(), b"kept");
}

/// What sessions have left that are over goes when a process starts.
#[test]
fn stages_of_sessions_that_are_over_go_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), true);
    files.stage(id(1), 0, b"left").unwrap();
    drop(files);
    let files = open(dir.path(), true);
    files.keep_stages(|session| session == SESSION).unwrap();
    assert_eq!(count(dir.path(), "new"), 1);
    files.keep_stages(|_| false).unwrap();
    assert!(!files.sync_stage(id(1)).unwrap());
    assert_eq!(count(dir.path(), "new"), 0, "a mark that comes late makes no stage");
}

/// What a session has not written goes with it.
#[test]
fn stages_end_with_their_session() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), true);
    files.stage(id(1), 0, b"forgotten").unwrap();
    files.stage(StageId { session: SessionId(4), number: 1 }, 0, b"of another").unwrap();
    drop(files);
    let files = open(dir.path(), true);
    files.stage(id(2), 0, b"forgotten, too").unwrap();
    carry_out(&files, 5, &FileEffect::EndStages { session: SESSION });
    assert_eq!(count(dir.path(), "new"), 1);
    files.abandon_stage(StageId { session: SessionId(4), number: 1 }).unwrap();
    assert_eq!(count(dir.path(), "new"), 0);
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64, u8, usize),
    /// How much of it comes before it is written, in percent; the rest comes later, if at all.
    Stage(u64, u64, u8, usize, u64),
    Truncate(u64, u64),
    Remove(u64),
    Merge(u8),
    Sync,
}

fn step() -> impl Strategy<Value = Step> {
    let ino = || 1..3_u64;
    prop_oneof![
        2 => (ino(), 0..40_u64, 1..=255_u8, 1..30_usize).prop_map(|(i, at, b, n)| Step::Write(i, at, b, n)),
        4 => (ino(), 0..40_u64, 1..=255_u8, 1..60_usize, 0..130_u64)
            .prop_map(|(i, at, b, n, part)| Step::Stage(i, at, b, n, part)),
        1 => (ino(), 1..40_u64).prop_map(|(ino, size)| Step::Truncate(ino, size)),
        1 => ino().prop_map(Step::Remove),
        2 => (0..4_u8).prop_map(Step::Merge),
        1 => proptest::strategy::Just(Step::Sync),
    ]
}

/// What files hold, 128 bytes of each.
type Contents = BTreeMap<u64, [u8; 128]>;

/// The files of a replica, and what they should hold.
struct World {
    dir: tempfile::TempDir,
    files: Files,
    wanted: Contents,
    /// Each removal is the end of a life.
    lives: BTreeMap<u64, u64>,
    effects: Vec<FileEffect>,
    /// How many of them a sync has made durable.
    synced: usize,
    /// Of each stage something came before it was written.
    all_came: bool,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files = open(dir.path(), true);
        Self {
            dir,
            files,
            wanted: Contents::new(),
            lives: BTreeMap::new(),
            effects: Vec::new(),
            synced: 0,
            all_came: true,
        }
    }

    fn ino(&self, ino: u64) -> u64 {
        ino + 10 * self.lives.get(&ino).copied().unwrap_or(0)
    }

    fn carry_out(&mut self, effect: FileEffect) {
        carry_out(&self.files, self.effects.len() as u64 + 1, &effect);
        self.effects.push(effect);
    }

    fn put(&mut self, ino: u64, at: u64, data: &[u8]) {
        let at = usize::try_from(at).unwrap();
        self.wanted.entry(ino).or_insert([0; 128])[at..at + data.len()].copy_from_slice(data);
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Write(ino, at, byte, len) => {
                let ino = self.ino(ino);
                self.carry_out(write(ino, at, &vec![byte; len]));
                self.put(ino, at, &vec![byte; len]);
            }
            Step::Stage(ino, at, byte, len, percent) => {
                let (ino, data) = (self.ino(ino), vec![byte; len]);
                let index = self.effects.len() as u64 + 1;
                let early = (len * usize::try_from(percent).unwrap() / 100).min(len);
                if early > 0 {
                    self.files.stage(id(index), at, &data[..early]).unwrap();
                }
                self.carry_out(stage(index, ino, index, vec![piece(at, at, &data)]));
                self.put(ino, at, &data);
                self.all_came &= early > 0;
                // The rest comes: at once here, at any time in the tests above. Of nothing there is no rest.
                if 0 < early && early < len {
                    self.files.stage(id(index), at + early as u64, &data[early..]).unwrap();
                }
            }
            Step::Truncate(ino, size) => {
                let ino = self.ino(ino);
                self.carry_out(truncate(ino, size));
                let at = usize::try_from(size).unwrap();
                self.wanted.entry(ino).or_insert([0; 128])[at..].fill(0);
            }
            Step::Remove(ino) => {
                let this = self.ino(ino);
                self.carry_out(remove(this));
                self.wanted.remove(&this);
                *self.lives.entry(ino).or_default() += 1;
            }
            Step::Merge(chunks) => {
                for _ in 0..chunks {
                    self.files.merge_some().unwrap();
                }
            }
            Step::Sync => {
                self.files.sync().unwrap();
                self.synced = self.effects.len();
            }
        }
    }

    /// The process dies, or the machine; everything since some state before is replayed: after more than the
    /// process has died, one of before the last sync.
    fn crash(&mut self, same_boot: bool, from: usize) {
        let newest = if same_boot { self.effects.len() } else { self.synced };
        let from = from % (newest + 1);
        self.files = {
            let nothing = tempfile::tempdir().unwrap();
            let elsewhere = open(nothing.path(), true);
            drop(std::mem::replace(&mut self.files, elsewhere));
            open(self.dir.path(), same_boot)
        };
        for (index, effect) in self.effects.iter().enumerate().skip(from) {
            carry_out(&self.files, index as u64 + 1, effect);
        }
    }

    /// Whatever is not missing is right.
    fn check(&self) {
        for (ino, wanted) in &self.wanted {
            let missing = self.files.missing(key(*ino), ByteRange::at(0, 128));
            let mut at = 0;
            for end in missing.iter().map(|(range, _)| range.start).chain([128]) {
                let len = usize::try_from(end - at).unwrap();
                let mut found = vec![0xee; len];
                assert!(self.files.read(Ino(*ino), GENERATION, at, &mut found).unwrap());
                let start = usize::try_from(at).unwrap();
                assert_eq!(found, wanted[start..start + len], "inode {ino} from {at}");
                let behind = missing.iter().find(|(range, _)| range.start == end);
                at = behind.map_or(128, |(range, _)| range.end);
            }
        }
    }
}

proptest! {
    /// Crashes anywhere, after which everything since some state before is replayed. Only bytes of which no
    /// stage ever came are missing.
    #[test]
    fn replaying_leaves_the_same_bytes(
        runs in vec((vec(step(), 0..15), any::<bool>(), 0..100_usize), 1..4),
    ) {
        let mut world = World::new();
        for (steps, same_boot, from) in &runs {
            for step in steps {
                world.step(step);
            }
            world.check();
            world.crash(*same_boot, *from);
            world.check();
        }
        merge_all(&world.files);
        world.check();
        // Whoever was not asked to carry out the last entry again does not know that it was carried out.
        world.step(&Step::Write(1, 0, 1, 1));
        world.files.sync().unwrap();
        prop_assert_eq!(count(world.dir.path(), "written"), 0);
        prop_assert_eq!(world.all_came && !world.files.layouts().are_in_place(), false);
    }
}

/// A peer may not know yet that the session is over.
#[test]
fn what_comes_of_a_session_that_has_ended_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), true);
    files.stage(id(1), 0, b"some").unwrap();
    assert!(files.is_stage_open(id(1)));
    carry_out(&files, 5, &FileEffect::EndStages { session: SESSION });
    files.stage(id(1), 4, b"more").unwrap();
    files.stage(id(2), 0, b"others").unwrap();
    assert!(!files.is_stage_open(id(1)) && !files.is_stage_open(id(2)));
    assert_eq!(count(dir.path(), "new"), 0);
    carry_out(&files, 6, &FileEffect::EndStages { session: SessionId(4) });
    drop(files);
    let files = open(dir.path(), true);
    files.stage(id(1), 0, b"late").unwrap();
    carry_out(&files, 5, &FileEffect::EndStages { session: SESSION });
    assert_eq!(count(dir.path(), "new"), 0, "it came before the end was replayed");
}

/// A backing file that takes nothing costs no bytes that can be read where they are. The memory of a process is a file
/// like that.
#[test]
fn what_cannot_be_merged_stays_staged() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), true);
    let data = vec![7; 300_000];
    carry_out(&files, 4, &write(1, 0, b"before"));
    files.stage(id(1), 0, &data).unwrap();
    carry_out(&files, 5, &stage(5, 1, 1, vec![piece(0, 0, &data)]));
    drop(files);
    let files = open(dir.path(), true);
    let path = files.path_of(Ino(1), GENERATION);
    let aside = dir.path().join("aside");
    std::fs::rename(&path, &aside).unwrap();
    std::os::unix::fs::symlink("/proc/self/mem", &path).unwrap();
    assert!(!files.merge_some().unwrap());
    assert_eq!(bytes(&files, 1, data.len()).as_deref(), Some(&data[..]));
    // The rest of the disk is well.
    assert!(files.takes_nothing(key(1)) && !files.takes_nothing(key(2)) && !files.is_full());
    files.set_room(u64::MAX, 0);
    assert!(!files.takes_nothing(key(1)), "it is tried again");
    assert_eq!(files.missing(key(1), ByteRange::from(0)), []);
    drop(files);
    // The disk is well again.
    std::fs::rename(&aside, &path).unwrap();
    let files = open(dir.path(), true);
    merge_all(&files);
    assert_eq!(std::fs::read(&path).unwrap(), data);
}
