//! Stages: bytes that a session has sent to all replicas before it writes them (DESIGN, section 5).
//!
//! A stage is a file with the written file's own offsets. It is *fresh*, `stages/new/<session>.<number>`, until
//! the entry that writes it is applied; then it becomes the backing file itself, or waits as
//! `stages/written/<index>` until it is merged into that.

use std::collections::{BTreeSet, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rangemap::RangeSet;

use super::durable::Syncs;
use super::merge::Target;
use super::recent::Recent;
use super::refused::is_lost;
use super::sys;
use crate::fs::StagedPiece;
use crate::fs::limits::CHECKSUM_BLOCK;
use crate::store::StoreError;
use crate::types::{ByteRange, LogIndex, SessionId, StageId};

/// Descriptors of written stages that are kept open at most.
const DESCRIPTORS: usize = 64;
/// The same of fresh ones: a node that is behind has all that the others have staged since.
const FRESH_DESCRIPTORS: usize = 256;

#[derive(Debug)]
pub(super) struct Stages {
    fresh: PathBuf,
    /// The same, open.
    dir: File,
    written: PathBuf,
    /// The same, open.
    written_dir: File,
    /// For syncs of the whole file system, which take long.
    disk: File,
    arriving: Mutex<HashMap<StageId, Arc<Stage>>>,
    /// Numbers of stages that are written, of sessions that go on: what is sent once more is of no use.
    done: Mutex<HashMap<SessionId, RangeSet<u64>>>,
    open: Mutex<Recent<LogIndex, Arc<File>>>,
    syncs: Syncs,
    /// Who holds it moves fresh stages, or opens them.
    open_fresh: Mutex<Recent<StageId, Arc<File>>>,
}

/// What this replica has of a stage that is to be written.
#[derive(Debug)]
pub(super) enum Found {
    /// It has not been written.
    Fresh(Arc<Stage>),
    /// An earlier process had begun to write it.
    Written(Arc<Stage>),
    Nothing,
}

/// A stage that bytes may still come for.
#[derive(Debug, Default)]
pub(super) struct Stage {
    /// Its file, from when it is not where fresh ones are.
    moved: OnceLock<Arc<File>>,
    /// It was not open all the time since its first byte came: nothing tells a descriptor what could not be written before it.
    was_closed: AtomicBool,
    /// Whatever still comes is not taken: the stage may be gone. Set while `state` is locked.
    is_closed: AtomicBool,
    pub(super) state: Mutex<Arrived>,
}

/// What has come of a stage.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    pub(super) received: RangeSet<u64>,
    /// What of that is on disk.
    pub(super) synced: RangeSet<u64>,
    /// Bytes that came since the disk was told to write.
    pub(super) unwritten: u64,
    /// Where it goes, once that is known.
    pub(super) target: Option<Arc<Target>>,
    /// The connection by which it came is lost: unless it is sent again, nothing more comes.
    pub(super) is_over: bool,
}

impl Stage {
    /// Whether whatever still comes is not taken: the stage may be gone.
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::SeqCst)
    }

    /// Whoever has its state locked meanwhile takes what comes.
    fn close(&self) {
        let _state = self.state.lock();
        self.is_closed.store(true, Ordering::SeqCst);
    }
}

impl Stages {
    pub(super) fn open(dir: &Path, syncs: Syncs) -> Result<Self, StoreError> {
        let (fresh, written) = (dir.join("new"), dir.join("written"));
        for dir in [&fresh, &written] {
            std::fs::create_dir_all(dir).map_err(StoreError::io("create", dir))?;
        }
        let opened = |dir: &PathBuf| File::open(dir).map_err(StoreError::io("open", dir));
        let (dir, written_dir, disk) = (opened(&fresh)?, opened(&written)?, opened(&fresh)?);
        let open = Mutex::new(Recent::new(DESCRIPTORS));
        let open_fresh = Mutex::new(Recent::new(FRESH_DESCRIPTORS));
        let (arriving, done) = (Mutex::default(), Mutex::default());
        Ok(Self { fresh, dir, written, written_dir, disk, arriving, done, open, syncs, open_fresh })
    }

    /// Reads bytes that have come, and zeros where none have; false where the stage is not fresh.
    pub(super) fn read(
        &self,
        id: StageId,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<bool, StoreError> {
        let Some(stage) = self.arriving.lock().get(&id).cloned() else { return Ok(false) };
        let Some(file) = self.unless_closed(id, &stage)? else { return Ok(false) };
        let read = sys::read_up_to(&file, buffer, offset);
        read.map_err(StoreError::io("read", &self.fresh_path(id)))?;
        // It may have been written, and become a file that others have changed, while this read.
        let is_fresh = stage.state.lock().target.is_none();
        Ok(is_fresh)
    }

    /// Makes everything that has come of a stage durable; false where it is not here (any more).
    pub(super) fn sync(&self, id: StageId) -> Result<bool, StoreError> {
        let Some(stage) = self.arriving.lock().get(&id).cloned() else { return Ok(false) };
        let received = stage.state.lock().received.clone();
        let Some(file) = self.unless_closed(id, &stage)? else { return Ok(false) };
        self.syncs.sync(&file, &self.fresh_path(id), File::sync_data)?;
        if stage.was_closed.load(Ordering::Relaxed) {
            // The file system knows.
            self.syncs.sync(&self.disk, &self.fresh, sys::syncfs)?;
        }
        self.syncs.sync(&self.dir, &self.fresh, File::sync_all)?;
        stage.state.lock().synced = received;
        Ok(true)
    }

    /// A stage is written from now on.
    pub(super) fn is_being_written(&self, id: StageId) {
        self.done.lock().entry(id.session).or_default().insert(id.number..id.number + 1);
    }

    /// A stage whose bytes are arriving; nothing where it is written and no more were expected, or its session has
    /// ended.
    pub(super) fn unless_written(&self, id: StageId) -> Result<Option<Arc<Stage>>, StoreError> {
        if let Some(stage) = self.arriving.lock().get(&id) {
            return Ok(Some(stage.clone()));
        }
        let done = self.done.lock();
        if is_among(&done, id) {
            return Ok(None);
        }
        self.arriving(id).map(Some)
    }

    /// Whether it is written, or its session has ended.
    pub(super) fn is_done(&self, id: StageId) -> bool {
        is_among(&self.done.lock(), id)
    }

    /// A stage whose bytes are arriving, here from now on.
    pub(super) fn arriving(&self, id: StageId) -> Result<Arc<Stage>, StoreError> {
        let mut arriving = self.arriving.lock();
        if let Some(stage) = arriving.get(&id) {
            return Ok(stage.clone());
        }
        let path = self.fresh_path(id);
        // One that an earlier process had began is filled anew.
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(StoreError::io("create", &path))?;
        self.open_fresh.lock().insert(id, Arc::new(file));
        let stage = Arc::<Stage>::default();
        arriving.insert(id, stage.clone());
        Ok(stage)
    }

    /// A stage that is to be written, with what has come of it, or where an earlier process
    /// received it, with what its checksums prove of these pieces.
    pub(super) fn find(&self, id: StageId, pieces: &[StagedPiece]) -> Result<Found, StoreError> {
        if let Some(stage) = self.arriving.lock().get(&id) {
            return Ok(Found::Fresh(stage.clone()));
        }
        let stage = prove(&self.fresh_path(id), pieces)?;
        Ok(stage.map_or(Found::Nothing, Found::Fresh))
    }

    /// The stage that an earlier process has begun to write, by the entry at `index`.
    pub(super) fn find_written(
        &self,
        index: LogIndex,
        pieces: &[StagedPiece],
    ) -> Result<Found, StoreError> {
        let stage = prove(&self.written_path(index), pieces)?;
        Ok(stage.map_or(Found::Nothing, Found::Written))
    }

    /// The file of a stage, wherever it is.
    pub(super) fn file_of(&self, id: StageId, stage: &Stage) -> Result<Arc<File>, StoreError> {
        match stage.moved.get() {
            Some(file) => Ok(file.clone()),
            None => self.open_fresh(id, stage, &mut self.open_fresh.lock()),
        }
    }

    /// Nothing where it has gone meanwhile.
    fn unless_closed(&self, id: StageId, stage: &Stage) -> Result<Option<Arc<File>>, StoreError> {
        match self.file_of(id, stage) {
            Err(_) if stage.is_closed() => Ok(None),
            file => file.map(Some),
        }
    }

    fn open_fresh(
        &self,
        id: StageId,
        stage: &Stage,
        open: &mut Recent<StageId, Arc<File>>,
    ) -> Result<Arc<File>, StoreError> {
        if let Some(file) = stage.moved.get().or_else(|| open.get(&id)) {
            return Ok(file.clone());
        }
        let path = self.fresh_path(id);
        // Whoever closes a stage takes it out of here afterwards, and then its file away: nobody would close that.
        let file = if stage.is_closed() {
            Err(ErrorKind::NotFound.into())
        } else {
            OpenOptions::new().read(true).write(true).open(&path)
        };
        let file = Arc::new(file.map_err(StoreError::io("open", &path))?);
        stage.was_closed.store(true, Ordering::Relaxed);
        open.insert(id, file.clone());
        Ok(file)
    }

    /// A fresh stage is written by the entry at `index`. Bytes that still come for it go to where it is then: it stays
    /// open.
    pub(super) fn move_to_written(
        &self,
        id: StageId,
        stage: &Stage,
        index: LogIndex,
    ) -> Result<(), StoreError> {
        let mut open = self.open_fresh.lock();
        let file = self.open_fresh(id, stage, &mut open)?;
        let (from, to) = (self.fresh_path(id), self.written_path(index));
        std::fs::rename(&from, &to).map_err(StoreError::io("rename into place", &to))?;
        open.remove(&id);
        // One that an earlier process has left was opened as that.
        let _ = stage.moved.set(file);
        Ok(())
    }

    /// A written stage is somewhere else now.
    pub(super) fn close(&self, index: LogIndex) {
        self.open.lock().remove(&index);
    }

    /// No more bytes are expected of a stage; whether it is written, and so not waited for from now on.
    pub(super) fn finish(&self, id: StageId) -> bool {
        let mut arriving = self.arriving.lock();
        let Some(stage) = arriving.get(&id) else { return false };
        let is_written = {
            let mut state = stage.state.lock();
            state.is_over = true;
            if state.target.is_some() {
                stage.is_closed.store(true, Ordering::SeqCst);
            }
            stage.is_closed()
        };
        if is_written {
            arriving.remove(&id);
        }
        is_written
    }

    /// No more bytes are expected of any stage that is written.
    pub(super) fn finish_written(&self) {
        let is_written = |stage: &Arc<Stage>| stage.state.lock().target.is_some();
        let arriving = self.arriving.lock();
        let written = arriving.iter().filter(|(_, stage)| is_written(stage));
        let written: Vec<_> = written.map(|(id, _)| *id).collect();
        drop(arriving);
        for id in written {
            self.finish(id);
        }
    }

    /// Whether there is a written stage like this, of which bytes may still come.
    pub(super) fn any_written(&self, like: impl Fn(&Target) -> bool) -> bool {
        let arriving = self.arriving.lock();
        arriving.values().any(|stage| stage.state.lock().target.as_deref().is_some_and(&like))
    }

    /// A written stage.
    pub(super) fn file(&self, index: LogIndex) -> Result<Option<Arc<File>>, StoreError> {
        let mut open = self.open.lock();
        if let Some(file) = open.get(&index) {
            return Ok(Some(file.clone()));
        }
        let path = self.written_path(index);
        match File::open(&path) {
            Ok(file) => {
                let file = Arc::new(file);
                open.insert(index, file.clone());
                Ok(Some(file))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::io("open", &path)(source)),
        }
    }

    /// Makes written stages durable, those that are still there.
    pub(super) fn sync_written(&self, stages: &[LogIndex]) -> Result<(), StoreError> {
        for index in stages {
            if let Some(file) = self.file(*index)? {
                self.sync_one(*index, &file)?;
            }
        }
        if stages.is_empty() {
            return Ok(());
        }
        self.syncs.sync(&self.written_dir, &self.written, File::sync_all)
    }

    /// Makes the bytes of a written stage durable.
    pub(super) fn sync_one(&self, index: LogIndex, file: &File) -> Result<(), StoreError> {
        self.syncs.sync(file, &self.written_path(index), File::sync_data)
    }

    /// Deletes written stages that nothing needs.
    pub(super) fn remove_written(&self, retired: &[LogIndex]) -> Result<(), StoreError> {
        for index in retired {
            self.open.lock().remove(index);
            remove(&self.written_path(*index))?;
        }
        Ok(())
    }

    /// Deletes what a session has staged and not written.
    pub(super) fn end(&self, session: SessionId) -> Result<(), StoreError> {
        // Whatever still comes of it is not taken.
        self.done.lock().entry(session).or_default().insert(0..u64::MAX);
        self.arriving.lock().retain(|id, stage| {
            let stays = id.session != session;
            if !stays {
                stage.close();
                self.open_fresh.lock().remove(id);
            }
            stays
        });
        for (id, path) in self.all_fresh()? {
            if id.session == session {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Deletes what sessions have staged that are not to be kept.
    pub(super) fn keep(&self, is_kept: impl Fn(SessionId) -> bool) -> Result<(), StoreError> {
        let fresh = self.all_fresh()?.into_iter().map(|(id, _)| id.session);
        let over: BTreeSet<_> = fresh.filter(|session| !is_kept(*session)).collect();
        over.into_iter().try_for_each(|session| self.end(session))
    }

    /// Deletes a stage that its session will not write.
    pub(super) fn abandon(&self, id: StageId) -> Result<(), StoreError> {
        if let Some(stage) = self.arriving.lock().remove(&id) {
            stage.close();
        }
        self.open_fresh.lock().remove(&id);
        remove(&self.fresh_path(id))
    }

    /// Whether bytes of a stage may still come.
    pub(super) fn is_open(&self, id: StageId) -> bool {
        self.arriving.lock().contains_key(&id)
    }

    /// All written stages.
    pub(super) fn all_written(&self) -> Result<Vec<LogIndex>, StoreError> {
        let index = |name: &str| name.parse().ok().map(LogIndex);
        Ok(list(&self.written, index)?.into_iter().map(|(index, _)| index).collect())
    }

    fn all_fresh(&self) -> Result<Vec<(StageId, PathBuf)>, StoreError> {
        list(&self.fresh, |name| {
            let (session, number) = name.split_once('.')?;
            let (session, number) = (SessionId(session.parse().ok()?), number.parse().ok()?);
            Some(StageId { session, number })
        })
    }

    pub(super) fn fresh_path(&self, id: StageId) -> PathBuf {
        self.fresh.join(id.to_string())
    }

    pub(super) fn written_path(&self, index: LogIndex) -> PathBuf {
        self.written.join(index.to_string())
    }
}

fn is_among(done: &HashMap<SessionId, RangeSet<u64>>, id: StageId) -> bool {
    done.get(&id.session).is_some_and(|numbers| numbers.contains(&id.number))
}

/// A stage that an earlier process has left, with what its checksums prove of these pieces; nothing where there
/// is none.
fn prove(path: &Path, pieces: &[StagedPiece]) -> Result<Option<Arc<Stage>>, StoreError> {
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StoreError::io("open", path)(source)),
    };
    let mut received = RangeSet::new();
    for piece in pieces {
        let proven = proven(&file, piece).map_err(StoreError::io("read", path))?;
        received.extend(proven.into_iter().map(|range| range.start..range.end));
    }
    let state = Mutex::new(Arrived { received, ..Arrived::default() });
    Ok(Some(Arc::new(Stage { moved: Arc::new(file).into(), state, ..Stage::default() })))
}

/// What of a piece the file has for certain: whole blocks whose checksums agree.
fn proven(file: &File, piece: &StagedPiece) -> io::Result<Vec<ByteRange>> {
    let mut buffer = vec![0; usize::try_from(CHECKSUM_BLOCK).expect("a block is small")];
    let mut found = Vec::new();
    for (block, checksum) in checksum_blocks(piece.staged).zip(&piece.checksums) {
        let part = &mut buffer[..usize::try_from(block.len()).expect("at most a block")];
        match file.read_exact_at(part, block.start) {
            Ok(()) if crc32c::crc32c(part) == *checksum => found.push(block),
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
            // A bad sector.
            Err(error) if is_lost(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The parts of a range of a stage that have a checksum each.
pub fn checksum_blocks(range: ByteRange) -> impl Iterator<Item = ByteRange> {
    let first = range.start / CHECKSUM_BLOCK * CHECKSUM_BLOCK;
    let starts = std::iter::successors(Some(first), |start| Some(start + CHECKSUM_BLOCK));
    starts.take_while(move |start| *start < range.end).map(move |start| ByteRange {
        start: start.max(range.start),
        end: (start + CHECKSUM_BLOCK).min(range.end),
    })
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != ErrorKind::NotFound => {
            Err(StoreError::io("remove", path)(source))
        }
        _ => Ok(()),
    }
}

/// The files of a directory whose names mean something.
fn list<T>(
    dir: &Path,
    meaning: impl Fn(&str) -> Option<T>,
) -> Result<Vec<(T, PathBuf)>, StoreError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(StoreError::io("list", dir))? {
        let path = entry.map_err(StoreError::io("list", dir))?.path();
        let name = path.file_name().and_then(std::ffi::OsStr::to_str);
        if let Some(meaning) = name.and_then(&meaning) {
            found.push((meaning, path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::{SessionId, StageId, Stages, Syncs};

    const ID: StageId = StageId { session: SessionId(5), number: 1 };

    /// Somebody who reads or syncs it has found it before: its descriptor would stay, and with it the space of what is removed.
    #[test]
    fn a_stage_that_is_abandoned_is_not_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let stages = Stages::open(dir.path(), Syncs::of(dir.path())).unwrap();
        let found = stages.arriving(ID).unwrap();
        // As `abandon` does, before the file is gone.
        stages.arriving.lock().remove(&ID).unwrap().close();
        stages.open_fresh.lock().remove(&ID);
        assert!(stages.fresh_path(ID).exists());
        assert!(stages.unless_closed(ID, &found).unwrap().is_none());
        assert!(stages.open_fresh.lock().get(&ID).is_none());
        stages.abandon(ID).unwrap();
        assert!(!stages.fresh_path(ID).exists());
        // The next one of that name is another.
        stages.arriving(ID).unwrap();
        assert!(stages.sync(ID).unwrap());
    }
}
