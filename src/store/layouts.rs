//! Which bytes of which files are not in their backing files, and how far effects have been carried out.
//!
//! Both belong to the files: they live and die with them. While nothing but the process dies, the kernel keeps
//! every write, so what is noted here is exact, and effects up to the one that was under way need not be carried
//! out again. After anything else, what counts is the *image*: what was known when the file system was last
//! synced whole; effects after that are carried out again.
//!
//! - `stages/carried` is the index of the entry whose effects were begun last, written before they are; and of the
//!   last one that wrote a stage, written afterwards.
//! - `stages/notes.<n>` has each change of a layout since image `n` was begun. Never synced.
//! - `stages/image` is the newest image, replaced atomically: its number, the index up to which all effects are
//!   durable, and all layouts.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};

use super::durable::{self, Syncs};
use super::files::Key;
use super::layout::{Away, Layout, Part};
use super::layout_notes::{
    ByKey, Note, encode, first_image, image_of, notes_path, open_notes, read_image, remove_notes,
    take_notes_of,
};
use super::marks::{MARK, checked, mark, marked};
use super::unfinished::Unfinished;
use crate::store::StoreError;
use crate::types::{ByteRange, Ino, LogIndex};

/// Locks that layouts are spread over.
const SHARDS: usize = 16;
/// All files' layouts; see the module's documentation.
#[derive(Debug)]
pub(super) struct Layouts {
    dir: PathBuf,
    /// Held by whoever changes layouts, also while bytes go to the disk.
    turns: [Mutex<()>; SHARDS],
    /// What they are. Changed by who has the turn; locked by anybody, and never across anything that waits for a disk.
    known: [Mutex<ByKey>; SHARDS],
    /// Files that are not wholly in place.
    away: AtomicUsize,
    /// Follows the layouts; locked last.
    unfinished: Mutex<Unfinished>,
    notes: Mutex<Notes>,
    carried: File,
    /// Effects below are carried out.
    resume: LogIndex,
    /// The last entry whose effects an earlier process is known to have begun.
    begun: LogIndex,
    /// All effects up to here are carried out.
    done: AtomicU64,
    /// All bytes up to here are here, and durable.
    held: AtomicU64,
    /// The index of the newest image that counts.
    synced: AtomicU64,
    /// Nothing was known of the files at the start, and no image counts yet.
    is_lost: AtomicBool,
}

#[derive(Debug)]
struct Notes {
    file: File,
    number: u64,
    /// The index of the newest image, which may not count yet.
    imaged: u64,
    /// Files whose bytes were missing, and came, where neither that image nor a replay from there will say so; each
    /// with the number of the notes that do.
    regained: HashMap<Key, u64>,
    /// Stages that nothing needs, but a replay from the last image may; whose they were, where that is known.
    retired: Vec<(LogIndex, Option<Key>)>,
}

/// What is believed of what an earlier process has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Believed {
    /// All: nothing but the process has died.
    Notes,
    /// What was synced.
    Image,
    /// Nothing: the image is damaged.
    Nothing,
}

/// What becomes durable when the file system is synced next.
#[derive(Debug)]
pub(super) struct Image {
    number: u64,
    synced: u64,
    held: u64,
    bytes: Vec<u8>,
    /// Stages that can go then.
    pub(super) retired: Vec<LogIndex>,
}

impl Layouts {
    /// What an earlier process knew, or where more than it has died, what it had synced.
    pub(super) fn open(dir: &Path, believed: Believed) -> Result<Self, StoreError> {
        let mut files = ByKey::new();
        let path = dir.join("image");
        let found = match believed {
            Believed::Nothing => None,
            Believed::Notes | Believed::Image => read_image(&path, &mut files)?,
        };
        let is_new = found.is_none() && believed != Believed::Nothing;
        let (number, synced) = found.unwrap_or_default();
        let same_boot = believed == Believed::Notes;
        let held = held(files.values(), synced.0);
        let mut last = number;
        let mut regained = HashSet::new();
        if same_boot {
            while take_notes_of(&notes_path(dir, last), &mut files, &mut regained)? {
                last += 1;
            }
        } else {
            remove_notes(dir, u64::MAX)?;
        }
        let marks = dir.join("carried");
        let carried =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&marks);
        let carried = carried.map_err(StoreError::io("open", &marks))?;
        let found = |at: usize| {
            let mut bytes = [0; MARK];
            // An empty one says 0, too; what is no mark has been found before this (`marks.rs`).
            let known = carried.read_exact_at(&mut bytes, at as u64).is_ok();
            marked(&bytes).filter(|_| known).unwrap_or_default()
        };
        let (begun, ended) = (found(0), found(MARK));
        let resume = match same_boot {
            true if begun == ended && begun > LogIndex(0) => begun.next(),
            true => begun,
            false => synced.next(),
        };
        if !same_boot {
            // What an earlier process has carried out may be gone: were this one to die before it carries anything
            // out, the next one must not believe that.
            let both = [mark(resume), mark(LogIndex(0))].concat();
            carried.write_all_at(&both, 0).map_err(StoreError::io("write", &marks))?;
        }
        let file = open_notes(dir, last)?;
        if is_new {
            // From now on there always is one: a replica without has lost it.
            durable::replace(&path, &first_image())?;
            durable::sync_parent(dir)?;
        }
        let (imaged, number) = (synced.0, last);
        let regained = regained.into_iter().map(|key| (key, number)).collect();
        let layouts = Self {
            dir: dir.to_owned(),
            turns: std::array::from_fn(|_| Mutex::default()),
            known: std::array::from_fn(|_| Mutex::default()),
            away: AtomicUsize::new(0),
            unfinished: Mutex::default(),
            notes: Mutex::new(Notes { file, number, imaged, regained, retired: Vec::new() }),
            carried,
            resume,
            begun: begun.max(synced),
            // Also where nothing had effects since: what a snapshot covers was in the image before.
            done: AtomicU64::new(resume.0.saturating_sub(1).max(imaged)),
            held: AtomicU64::new(held),
            synced: AtomicU64::new(imaged),
            is_lost: AtomicBool::new(believed == Believed::Nothing),
        };
        for (key, layout) in files {
            if !layout.is_in_place() {
                layouts.index(key, &layout);
                layouts.known[shard(key.0)].lock().insert(key, layout);
                layouts.away.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(layouts)
    }

    /// Whether the effects of the entry at `index` are to be carried out: they are not where an earlier process
    /// has. To be called before they are, and [`Self::end`] afterwards.
    pub(super) fn begin(&self, index: LogIndex) -> Result<bool, StoreError> {
        if index < self.resume {
            return Ok(false);
        }
        let written = self.carried.write_all_at(&mark(index), 0);
        written.map_err(StoreError::io("write", &self.dir.join("carried")))?;
        Ok(true)
    }

    /// The effects of the entry at `index` are carried out. Where one wrote a stage they must not be once more:
    /// the stage may be gone then.
    pub(super) fn end(&self, index: LogIndex, wrote_stage: bool) -> Result<(), StoreError> {
        if wrote_stage {
            let written = self.carried.write_all_at(&mark(index), MARK as u64);
            written.map_err(StoreError::io("write", &self.dir.join("carried")))?;
        }
        self.pass(index);
        Ok(())
    }

    /// All effects up to that entry are carried out: it has none, or an earlier process has seen to it.
    pub(super) fn pass(&self, index: LogIndex) {
        self.done.fetch_max(index.0, Ordering::AcqRel);
    }

    /// What the entries up to `index` did needs not be carried out any more: the files are as if it were.
    pub(super) fn skip_to(&self, index: LogIndex) -> Result<(), StoreError> {
        let marks = [mark(index); 2].concat();
        let written = self.carried.write_all_at(&marks, 0);
        written.map_err(StoreError::io("write", &self.dir.join("carried")))?;
        self.pass(index);
        Ok(())
    }

    /// The layouts of `ino` and some others: nobody else changes them, or bytes of these files, meanwhile. Waits for
    /// whoever does, and so perhaps for a disk.
    pub(super) fn lock(&self, ino: Ino) -> Locked<'_> {
        let shard = shard(ino);
        Locked { layouts: self, known: &self.known[shard], _turn: self.turns[shard].lock() }
    }

    /// The same where nobody has to be waited for.
    pub(super) fn try_lock(&self, ino: Ino) -> Option<Locked<'_>> {
        let shard = shard(ino);
        let turn = self.turns[shard].try_lock()?;
        Some(Locked { layouts: self, known: &self.known[shard], _turn: turn })
    }

    /// The layout of a file as it is at this moment; none where it is wholly in place. Waits for no disk: for one
    /// expression.
    pub(super) fn get(&self, key: Key) -> Option<MappedMutexGuard<'_, Layout>> {
        get(&self.known[shard(key.0)], key)
    }

    /// The parts of a range, as they are at this moment.
    pub(super) fn parts(&self, key: Key, range: ByteRange) -> Vec<Part> {
        parts(&self.known[shard(key.0)], key, range)
    }

    /// Whether nothing is known of the files but what was found out since the start. Once an image says so much, they are as
    /// any others.
    pub(super) fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Acquire)
    }

    /// Some file of this file system.
    pub(super) fn sample(&self) -> Result<File, StoreError> {
        self.carried.try_clone().map_err(StoreError::io("open", &self.dir.join("carried")))
    }

    /// Whether all bytes of all files are in place.
    pub(super) fn are_in_place(&self) -> bool {
        self.away.load(Ordering::Acquire) == 0
    }

    /// Stages that some file needs.
    pub(super) fn stages(&self) -> Vec<LogIndex> {
        let of = |known: &Mutex<ByKey>| {
            known.lock().values().flat_map(Layout::stages).collect::<Vec<_>>()
        };
        self.known.iter().flat_map(of).collect()
    }

    /// Up to `limit` files that lack bytes, in order, beginning behind `after`.
    pub(super) fn missing_after(&self, after: Option<Key>, limit: usize) -> Vec<Key> {
        self.unfinished.lock().missing_after(after, limit)
    }

    /// How many files lack bytes, and how many bytes those are.
    pub(super) fn missing_in_all(&self) -> (u64, u64) {
        self.unfinished.lock().missing_in_all()
    }

    /// How many bytes of a file are not in place.
    pub(super) fn away_len(&self, key: Key) -> u64 {
        if self.are_in_place() {
            return 0;
        }
        self.get(key).map_or(0, |layout| layout.away().map(|(range, _)| range.len()).sum())
    }

    /// The first file behind `after` that has staged bytes.
    pub(super) fn staged_after(&self, after: Option<Key>) -> Option<Key> {
        self.unfinished.lock().staged_after(after)
    }

    /// How many files have staged bytes.
    pub(super) fn staged_files(&self) -> usize {
        self.unfinished.lock().staged_files()
    }

    fn index(&self, key: Key, layout: &Layout) {
        let (missing, is_staged) = (layout.missing_len(), !layout.stages().is_empty());
        self.unfinished.lock().set(key, missing, is_staged);
    }

    /// The files that are not wholly in place.
    pub(super) fn keys(&self) -> Vec<Key> {
        let of = |known: &Mutex<ByKey>| known.lock().keys().copied().collect::<Vec<_>>();
        self.known.iter().flat_map(of).collect()
    }

    /// Nothing needs that stage any more, but a replay from the last image.
    pub(super) fn retire(&self, index: LogIndex, of: Option<Key>) {
        self.notes.lock().retired.push((index, of));
    }

    /// The stages that a replay may need for a file.
    pub(super) fn stages_of(&self, key: Key) -> Vec<LogIndex> {
        // One that is retired meanwhile is in either.
        let layouts = self.lock(key.0);
        let mut stages = layouts.get(key).map(|layout| layout.stages()).unwrap_or_default();
        drop(layouts);
        let notes = self.notes.lock();
        let its = |of: &Option<Key>| of.is_none_or(|of| of == key);
        stages.extend(notes.retired.iter().filter(|(_, of)| its(of)).map(|(index, _)| *index));
        stages
    }

    /// All bytes up to here are here, and durable.
    pub(super) fn held(&self) -> LogIndex {
        LogIndex(self.held.load(Ordering::Acquire))
    }

    /// More may be missing than was known when the last image was made.
    pub(super) fn lower_held(&self) {
        let _turns: Vec<_> = self.turns.iter().map(Mutex::lock).collect();
        let known: Vec<_> = self.known.iter().map(Mutex::lock).collect();
        let held = held(known.iter().flat_map(|known| known.values()), self.synced().0);
        self.held.fetch_min(held, Ordering::AcqRel);
    }

    /// All effects up to here, and what came of what was missing then, are durable.
    pub(super) fn synced(&self) -> LogIndex {
        LogIndex(self.synced.load(Ordering::Acquire))
    }

    /// Whether bytes of a file that were missing have come, and would be missing again after a power loss, whether they
    /// are on the disk or not.
    pub(super) fn has_regained(&self, key: Key) -> bool {
        self.notes.lock().regained.contains_key(&key)
    }

    /// The same of any file.
    pub(super) fn have_regained(&self) -> bool {
        !self.notes.lock().regained.is_empty()
    }

    /// The last entry whose effects an earlier process is known to have begun: it was committed.
    pub(super) fn begun(&self) -> LogIndex {
        self.begun
    }

    /// All effects up to here are carried out.
    pub(super) fn done(&self) -> LogIndex {
        LogIndex(self.done.load(Ordering::Acquire))
    }

    /// What is going to be durable once the file system has been synced whole after this call; then
    /// [`Self::keep`] it. Stages that bytes may still come for are not done with, whatever needs them now.
    pub(super) fn image(
        &self,
        is_arriving: impl Fn(LogIndex) -> bool,
    ) -> Result<Image, StoreError> {
        let _turns: Vec<_> = self.turns.iter().map(Mutex::lock).collect();
        // Nothing is noted without one of these.
        let mut notes = self.notes.lock();
        let number = notes.number + 1;
        notes.file = open_notes(&self.dir, number)?;
        notes.number = number;
        let synced = self.done.load(Ordering::Acquire);
        notes.imaged = synced;
        let known: Vec<_> = self.known.iter().map(Mutex::lock).collect();
        let all = known.iter().flat_map(|known| known.iter());
        let away = |(key, layout): (&Key, &Layout)| {
            let key = *key;
            layout.away().map(move |(range, away)| (key, range, away)).collect::<Vec<_>>()
        };
        let bytes = image_of(number, synced, all.flat_map(away));
        let held = held(known.iter().flat_map(|known| known.values()), synced);
        // What a replay may set aside again, or has, stays.
        let needed: Vec<_> =
            known.iter().flat_map(|known| known.values()).flat_map(Layout::stages).collect();
        let unneeded =
            std::mem::take(&mut notes.retired).into_iter().filter(|(i, _)| !needed.contains(i));
        let is_done = |index: LogIndex| index.0 <= synced && !is_arriving(index);
        let (retired, later): (Vec<_>, _) = unneeded.partition(|(index, _)| is_done(*index));
        notes.retired = later;
        let retired = retired.into_iter().map(|(index, _)| index).collect();
        Ok(Image { number, synced, held, bytes, retired })
    }

    /// The file system has been synced: the image counts from now on, unless something else could not be.
    pub(super) fn keep(&self, image: &Image, syncs: &Syncs) -> Result<(), StoreError> {
        syncs.replace(&self.dir.join("image"), &image.bytes)?;
        self.is_lost.store(false, Ordering::Release);
        self.held.store(image.held, Ordering::Release);
        self.synced.store(image.synced, Ordering::Release);
        self.notes.lock().regained.retain(|_, number| *number >= image.number);
        remove_notes(&self.dir, image.number)
    }

    fn note(&self, key: Key, range: ByteRange, note: Note) -> Result<(), StoreError> {
        let mut notes = self.notes.lock();
        let written = notes.file.write_all(&checked(&encode(key, range, note)));
        written.map_err(StoreError::io("write", &notes_path(&self.dir, notes.number)))
    }
}

/// See [`Layouts::lock`].
#[derive(Debug)]
pub(super) struct Locked<'a> {
    layouts: &'a Layouts,
    known: &'a Mutex<ByKey>,
    _turn: MutexGuard<'a, ()>,
}

impl Locked<'_> {
    /// The layout of a file; none where it is wholly in place. For one expression.
    pub(super) fn get(&self, key: Key) -> Option<MappedMutexGuard<'_, Layout>> {
        get(self.known, key)
    }

    /// The parts of a range.
    pub(super) fn parts(&self, key: Key, range: ByteRange) -> Vec<Part> {
        parts(self.known, key, range)
    }

    /// Bytes of a file are somewhere else from now on.
    pub(super) fn set(&mut self, key: Key, range: ByteRange, away: Away) -> Result<(), StoreError> {
        if range.is_empty() {
            return Ok(());
        }
        self.layouts.note(key, range, Note::Away(away))?;
        if matches!(away, Away::Staged { .. }) {
            // A replay finds the stages that were written after the image.
            let imaged = self.layouts.notes.lock().imaged;
            self.note_regained(key, range, |version| version.0 <= imaged);
        }
        self.change(key, |layout| layout.set(range, away));
        Ok(())
    }

    /// Bytes of a file are in place from now on.
    pub(super) fn clear(&mut self, key: Key, range: ByteRange) -> Result<(), StoreError> {
        if self.parts(key, range).iter().all(|(_, away)| away.is_none()) {
            return Ok(());
        }
        self.layouts.note(key, range, Note::InPlace)?;
        self.note_regained(key, range, |_| true);
        self.change(key, |layout| layout.clear(range));
        Ok(())
    }

    /// What is missing of a range, of such versions, has come.
    fn note_regained(&self, key: Key, range: ByteRange, is_it: impl Fn(LogIndex) -> bool) {
        let is_any = |layout: MappedMutexGuard<'_, Layout>| {
            layout.missing(range).any(|(_, version)| is_it(version))
        };
        if self.get(key).is_some_and(is_any) {
            let mut notes = self.layouts.notes.lock();
            let number = notes.number;
            notes.regained.insert(key, number);
        }
    }

    /// The file is gone.
    pub(super) fn forget(&mut self, key: Key) -> Result<(), StoreError> {
        let is_known = self.get(key).is_some();
        if is_known {
            self.layouts.note(key, ByteRange::at(0, 0), Note::Gone)?;
            self.change(key, |layout| *layout = Layout::default());
        }
        Ok(())
    }

    fn change(&mut self, key: Key, change: impl FnOnce(&mut Layout)) {
        let mut known = self.known.lock();
        let is_new = !known.contains_key(&key);
        let layout = known.entry(key).or_default();
        let before = layout.stages();
        change(layout);
        let after = layout.stages();
        self.layouts.index(key, layout);
        match (is_new, layout.is_in_place()) {
            (true, false) => drop(self.layouts.away.fetch_add(1, Ordering::AcqRel)),
            (false, true) => drop(self.layouts.away.fetch_sub(1, Ordering::AcqRel)),
            (true, true) | (false, false) => {}
        }
        if layout.is_in_place() {
            known.remove(&key);
        }
        drop(known);
        // Whoever notes something waits for the disk.
        for index in before.into_iter().filter(|index| !after.contains(index)) {
            self.layouts.retire(index, Some(key));
        }
    }
}

fn shard(ino: Ino) -> usize {
    usize::from(ino.0.to_le_bytes()[0]) % SHARDS
}

fn get(known: &Mutex<ByKey>, key: Key) -> Option<MappedMutexGuard<'_, Layout>> {
    MutexGuard::try_map(known.lock(), |known| known.get_mut(&key)).ok()
}

fn parts(known: &Mutex<ByKey>, key: Key, range: ByteRange) -> Vec<Part> {
    match get(known, key) {
        Some(layout) => layout.parts(range),
        None if range.is_empty() => Vec::new(),
        None => vec![(range, None)],
    }
}

/// Up to where all bytes are here, of the effects up to `synced`.
fn held<'a>(layouts: impl Iterator<Item = &'a Layout>, synced: u64) -> u64 {
    let versions = layouts.flat_map(Layout::away).filter_map(|(_, away)| away.missing());
    let missing = versions.map(|version| version.0.saturating_sub(1));
    missing.min().map_or(synced, |lowest| lowest.min(synced))
}
