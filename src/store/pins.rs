//! Bytes that a replay of the log will copy again.
//!
//! After a crash the log is replayed over backing files that may be newer. For an effect that only writes
//! that is harmless, but one that copies must read what its source had *at its index*. So:
//!
//! - From the copy on, its source range is *pinned*: until a snapshot at its index or behind is durable,
//!   since no replay begins before the newest snapshot (`recover.rs`).
//! - Before a later effect changes pinned bytes, they are saved in a *stage*, `stages/<index>`, which is
//!   fsynced before it has that name, and has it durably before the change begins. So at every moment,
//!   also after a power loss, either the stage is there or the source still has the bytes.
//! - A pinned file that is removed goes only when its last pin does. Nothing names it any more, but a
//!   replay writes to it once more what came before the copy.
//!
//! A copy reads its stage where there is one. What its source lacked when that was written, a replay may find in the
//! source, but never in the stage: behind the bytes it says where that is. Pins are noted in `stages/pins`, so that a process that dies
//! does not forget them. That file is never synced: after a power loss the replay begins at the snapshot,
//! and meets every pinned copy and every removal again.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::durable::Syncs;
use super::files::Key;
use super::marks::{checked, records};
use super::refused::is_lost;
use super::space::copy_bytes;
use super::stages::checksum_blocks;
use super::sys;
use crate::store::StoreError;
use crate::types::{ByteRange, Generation, Ino, LogIndex};

/// Five integers: index, inode, generation, start and end of the range.
pub(super) const RECORD: usize = 40;
/// In place of an index: the file was removed.
const REMOVED: LogIndex = LogIndex(0);

#[derive(Debug)]
pub(super) struct Pins {
    dir: PathBuf,
    inner: Mutex<Inner>,
    /// Held while stages are written or swept away: before `inner`.
    saving: Mutex<()>,
    /// Bytes of stages and removed files that have gathered since the last snapshot.
    held: AtomicU64,
    syncs: Syncs,
}

/// What a copy had to read.
#[derive(Debug)]
pub(super) struct Saved {
    pub(super) bytes: File,
    /// Where bytes may not be among these, from their beginning.
    pub(super) lacking: Option<ByteRange>,
}

#[derive(Debug)]
struct Inner {
    notes: File,
    files: BTreeMap<Key, Pinned>,
}

/// The pins of one file that have no stage.
#[derive(Debug, Default)]
struct Pinned {
    ranges: BTreeMap<LogIndex, ByteRange>,
    removed: bool,
}

impl Pins {
    /// Those noted by an earlier process; none where more than the process has died since.
    pub(super) fn open(dir: &Path, same_boot: bool, syncs: Syncs) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir).map_err(StoreError::io("create", dir))?;
        let path = dir.join("pins");
        let noted = match std::fs::read(&path) {
            Ok(bytes) if same_boot => bytes,
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(StoreError::io("read", &path)(error));
            }
            Ok(_) | Err(_) => Vec::new(),
        };
        let mut files: BTreeMap<Key, Pinned> = BTreeMap::new();
        for (index, key, range) in records(&noted, RECORD).flatten().map(decode) {
            if index == REMOVED {
                files.entry(key).or_default().removed = true;
            } else if !stage_path(dir, index).exists() {
                files.entry(key).or_default().ranges.insert(index, range);
            }
        }
        let notes = write_notes(dir, &files)?;
        let inner = Mutex::new(Inner { notes, files });
        let (saving, held) = (Mutex::default(), AtomicU64::new(0));
        Ok(Self { dir: dir.to_owned(), inner, saving, held, syncs })
    }

    /// The `len` bytes that a copy had to read, where its source no longer has them.
    pub(super) fn stage(&self, index: LogIndex, len: u64) -> Result<Option<Saved>, StoreError> {
        let path = stage_path(&self.dir, index);
        let bytes = match File::open(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::io("open", &path)(source)),
        };
        let mut lacking = [0; 16];
        let lacking = match bytes.read_exact_at(&mut lacking, len) {
            Ok(()) => {
                let field = |at: usize| lacking[at..at + 8].try_into().expect("eight bytes");
                let [start, end] = [0, 8].map(|at| u64::from_le_bytes(field(at)));
                Some(ByteRange { start, end })
            }
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => None,
            Err(source) => return Err(StoreError::io("read", &path)(source)),
        };
        Ok(Some(Saved { bytes, lacking }))
    }

    /// To be called before the copy at `index` changes anything.
    pub(super) fn pin(
        &self,
        index: LogIndex,
        key: Key,
        range: ByteRange,
    ) -> Result<(), StoreError> {
        let mut inner = self.inner.lock();
        if inner.files.entry(key).or_default().ranges.insert(index, range).is_none() {
            self.note(&mut inner, index, key, range)?;
        }
        Ok(())
    }

    /// To be called before `range` of a file, which `file` opens, changes; `lacking` says where bytes of a range are
    /// that it lacks.
    pub(super) fn save(
        &self,
        key: Key,
        range: ByteRange,
        file: impl Fn() -> Result<Option<std::sync::Arc<File>>, StoreError>,
        lacking: impl Fn(ByteRange) -> Option<ByteRange>,
    ) -> Result<(), StoreError> {
        let overlaps = |pin: &ByteRange| pin.start < range.end && range.start < pin.end;
        let touched: Vec<_> = match self.inner.lock().files.get(&key) {
            Some(pinned) => pinned.ranges.iter().map(|(index, pin)| (*index, *pin)).collect(),
            None => return Ok(()),
        };
        let _nobody_sweeps = self.saving.lock();
        // Where a snapshot has made one needless by now, the next takes away what is saved.
        let mut saved = Vec::new();
        for (index, pin) in touched.into_iter().filter(|(_, pin)| overlaps(pin)) {
            // What comes while it is copied may be in it or not.
            self.write_stage(index, pin, file()?.as_deref(), lacking(pin))?;
            saved.push(index);
        }
        let mut inner = self.inner.lock();
        let Some(pinned) = inner.files.get_mut(&key) else { return Ok(()) };
        pinned.ranges.retain(|index, _| !saved.contains(index));
        if pinned.ranges.is_empty() && !pinned.removed {
            inner.files.remove(&key);
        }
        Ok(())
    }

    /// Whether a file of so many bytes that is to be removed has to stay for a while.
    pub(super) fn defers_removal(
        &self,
        key: Key,
        bytes: impl FnOnce() -> u64,
    ) -> Result<bool, StoreError> {
        let mut inner = self.inner.lock();
        let Some(pinned) = inner.files.get_mut(&key) else { return Ok(false) };
        if !std::mem::replace(&mut pinned.removed, true) {
            self.held.fetch_add(bytes(), Ordering::Relaxed);
            self.note(&mut inner, REMOVED, key, ByteRange { start: 0, end: 0 })?;
        }
        Ok(true)
    }

    /// Whether a replay may need a file, named or not.
    pub(super) fn has(&self, key: Key) -> bool {
        self.inner.lock().files.contains_key(&key)
    }

    /// A snapshot at `index` is durable. Answers which files can go now.
    pub(super) fn forget(&self, index: LogIndex) -> Result<Vec<Key>, StoreError> {
        let _nobody_saves = self.saving.lock();
        let mut inner = self.inner.lock();
        self.held.store(0, Ordering::Relaxed);
        let mut removable = Vec::new();
        inner.files.retain(|key, pinned| {
            pinned.ranges.retain(|pin, _| *pin > index);
            if pinned.ranges.is_empty() && pinned.removed {
                removable.push(*key);
            }
            !pinned.ranges.is_empty()
        });
        inner.notes = write_notes(&self.dir, &inner.files)?;
        let entries = std::fs::read_dir(&self.dir).map_err(StoreError::io("list", &self.dir))?;
        for entry in entries {
            let entry = entry.map_err(StoreError::io("list", &self.dir))?;
            // One that was never finished, too.
            let path = entry.path();
            let name = path.file_stem().and_then(std::ffi::OsStr::to_str);
            let stage = name.and_then(|name| name.parse::<u64>().ok());
            if stage.is_some_and(|stage| stage <= index.0) {
                std::fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
            }
        }
        Ok(removable)
    }

    /// Bytes that the next snapshot gives back.
    pub(super) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    fn note(
        &self,
        inner: &mut Inner,
        index: LogIndex,
        key: Key,
        range: ByteRange,
    ) -> Result<(), StoreError> {
        let path = self.dir.join("pins");
        inner
            .notes
            .write_all(&checked(&encode(index, key, range)))
            .map_err(StoreError::io("write", &path))
    }

    fn write_stage(
        &self,
        index: LogIndex,
        pin: ByteRange,
        from: Option<&File>,
        lacking: Option<ByteRange>,
    ) -> Result<(), StoreError> {
        let path = stage_path(&self.dir, index);
        let beside = path.with_extension("tmp");
        let stage = File::create(&beside).map_err(StoreError::io("create", &beside))?;
        let unreadable = match from {
            Some(from) => copy_readable(from, pin, &stage),
            None => Ok(None),
        };
        let unreadable = unreadable.map_err(StoreError::io("write", &beside))?;
        let both = [lacking, unreadable].into_iter().flatten();
        let lacking = both.reduce(|one, other| ByteRange {
            start: one.start.min(other.start),
            end: one.end.max(other.end),
        });
        if let Some(lacking) = lacking {
            let fields = [lacking.start - pin.start, lacking.end - pin.start];
            let written = stage.write_all_at(&fields.map(u64::to_le_bytes).concat(), pin.len());
            written.map_err(StoreError::io("write", &beside))?;
        }
        self.syncs.sync(&stage, &beside, File::sync_all)?;
        self.held.fetch_add(pin.len(), Ordering::Relaxed);
        self.syncs.put_in_place(&beside, &path)
    }
}

/// Copies bytes to the beginning of a stage. Answers between where the disk could not read some: the rest is there.
fn copy_readable(from: &File, range: ByteRange, to: &File) -> io::Result<Option<ByteRange>> {
    match copy_bytes(from, range, to, 0) {
        Err(error) if is_lost(&error) => {}
        copied => return copied.map(|()| None),
    }
    let mut unreadable: Option<ByteRange> = None;
    for block in checksum_blocks(range) {
        let mut bytes = vec![0; usize::try_from(block.len()).expect("a block is small")];
        match sys::read_up_to(from, &mut bytes, block.start) {
            Ok(()) => to.write_all_at(&bytes, block.start - range.start)?,
            Err(error) if is_lost(&error) => {
                let start = unreadable.map_or(block.start, |first| first.start);
                unreadable = Some(ByteRange { start, end: block.end });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(unreadable)
}

fn stage_path(dir: &Path, index: LogIndex) -> PathBuf {
    dir.join(index.to_string())
}

/// Writes all notes anew, and opens them for more.
fn write_notes(dir: &Path, files: &BTreeMap<Key, Pinned>) -> Result<File, StoreError> {
    let mut bytes = Vec::new();
    for (key, pinned) in files {
        for (index, range) in &pinned.ranges {
            bytes.extend(checked(&encode(*index, *key, *range)));
        }
        if pinned.removed {
            bytes.extend(checked(&encode(REMOVED, *key, ByteRange { start: 0, end: 0 })));
        }
    }
    let (path, beside) = (dir.join("pins"), dir.join("pins.tmp"));
    std::fs::write(&beside, bytes).map_err(StoreError::io("write", &beside))?;
    std::fs::rename(&beside, &path).map_err(StoreError::io("rename into place", &path))?;
    OpenOptions::new().append(true).open(&path).map_err(StoreError::io("open", &path))
}

fn encode(index: LogIndex, key: Key, range: ByteRange) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    let fields = [index.0, key.0.0, key.1.0, range.start, range.end];
    for (bytes, field) in record.chunks_exact_mut(8).zip(fields) {
        bytes.copy_from_slice(&field.to_le_bytes());
    }
    record
}

fn decode(record: &[u8]) -> (LogIndex, Key, ByteRange) {
    let field = |number: usize| {
        let bytes = &record[8 * number..8 * number + 8];
        u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
    };
    let range = ByteRange { start: field(3), end: field(4) };
    (LogIndex(field(0)), (Ino(field(1)), Generation(field(2))), range)
}
