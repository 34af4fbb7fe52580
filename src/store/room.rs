//! Room for files' bytes: what the disk takes in before only the reserve is left, which is for log and snapshots.
//!
//! Bytes for which there is no room are missing here until there is: the others have them.

use std::collections::HashSet;
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::files::{Files, Key};
use crate::store::StoreError;
use crate::types::ByteRange;

/// Bytes; more than anybody has where nobody has looked yet.
#[derive(Debug)]
pub(super) struct Room {
    free: AtomicU64,
    /// Of the reserve, for what is acknowledged already.
    acknowledged: AtomicU64,
    /// Files that the disk could not write to since anybody has looked: the rest of it may be well.
    broken: Mutex<HashSet<Key>>,
}

impl Default for Room {
    fn default() -> Self {
        let (free, acknowledged) = (AtomicU64::new(u64::MAX), AtomicU64::new(0));
        Self { free, acknowledged, broken: Mutex::default() }
    }
}

impl Room {
    /// Takes room; false where there is not so much.
    pub(super) fn take(&self, bytes: u64) -> bool {
        take(&self.free, bytes)
    }

    /// The same for bytes that are acknowledged and that nobody has who did not write them now: they may use some of
    /// the reserve.
    fn take_acknowledged(&self, bytes: u64) -> bool {
        self.take(bytes) || take(&self.acknowledged, bytes)
    }

    /// The disk could not write to a file: until the next look nobody is to bring bytes of it again and again.
    pub(super) fn broke(&self, key: Key) {
        self.broken.lock().insert(key);
    }

    /// The disk has said that there is none.
    pub(super) fn is_gone(&self) {
        self.free.store(0, Ordering::Relaxed);
    }
}

impl Files {
    /// There is room for `free` bytes as of now, and for `acknowledged` more that programs believe to be written: what
    /// several mounts let in between two looks at the disks.
    pub fn set_room(&self, free: u64, acknowledged: u64) {
        self.room().acknowledged.store(acknowledged, Ordering::Relaxed);
        let before = self.room().free.swap(free, Ordering::Relaxed);
        let is_any_broken = !std::mem::take(&mut *self.room().broken.lock()).is_empty();
        if (before == 0 && free > 0) || is_any_broken {
            self.tell_changed();
        }
    }

    /// Whether nothing new of a file is kept here at present.
    #[must_use]
    pub fn takes_nothing(&self, key: Key) -> bool {
        self.is_full() || self.is_broken(key)
    }

    /// Whether the disk could not write to a file lately.
    pub(super) fn is_broken(&self, key: Key) -> bool {
        self.room().broken.lock().contains(&key)
    }

    /// Whether nothing new is kept here at present.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.room().free.load(Ordering::Relaxed) == 0
    }

    /// Whether bytes can be written to a range: there is room, or they lie on what is there already.
    pub(super) fn has_room(&self, key: Key, range: ByteRange) -> Result<bool, StoreError> {
        Ok(self.room().take(range.len()) || self.mapped(key, range)? >= range.len())
    }

    /// The same for what an entry of the log writes by itself, or copies: what no replica keeps nobody can bring.
    pub(super) fn has_room_for_acknowledged(
        &self,
        key: Key,
        range: ByteRange,
    ) -> Result<bool, StoreError> {
        let has = self.room().take_acknowledged(range.len());
        Ok(has || self.mapped(key, range)? >= range.len())
    }
}

fn take(room: &AtomicU64, bytes: u64) -> bool {
    let taken = |left: u64| left.checked_sub(bytes);
    room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok()
}

/// Whether an error says that there is no room.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::{ByteRange, Files, Key};
    use crate::fs::FileEffect;
    use crate::types::{Generation, Ino, LogIndex};

    const KEY: Key = (Ino(9), Generation(1));

    fn open() -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(&dir.path().join("files"), &dir.path().join("stages"), true);
        (dir, files.unwrap())
    }

    fn write(files: &Files, index: u64, offset: u64, len: usize) {
        let data = vec![7; len].into();
        let write = FileEffect::Write { ino: KEY.0, generation: KEY.1, offset, data };
        files.carry_out_all(LogIndex(index), &[write]).unwrap();
    }

    fn missing(files: &Files) -> Vec<(u64, u64)> {
        let all = files.missing(KEY, ByteRange::from(0));
        all.into_iter().map(|(range, _)| (range.start, range.end)).collect()
    }

    /// Several mounts have let in more than there was room for. All replicas are alike: what none of them keeps is lost.
    #[test]
    fn what_is_acknowledged_may_use_some_of_the_reserve() {
        let (_dir, files) = open();
        files.set_room(5000, 8000);
        write(&files, 1, 0, 4096);
        write(&files, 2, 4096, 4096);
        assert_eq!(missing(&files), []);
        // Of the reserve there is no more than that: the log needs the rest.
        write(&files, 3, 8192, 4096);
        assert_eq!(missing(&files), [(8192, 12288)]);
        files.set_room(0, 8000);
        assert!(files.is_full());
        // What comes from a peer is there already, and waits.
        assert!(!files.install(KEY, 8192, &[7; 4096], LogIndex(3)).unwrap());
        assert_eq!(missing(&files), [(8192, 12288)]);
        files.set_room(4096, 8000);
        assert!(files.install(KEY, 8192, &[7; 4096], LogIndex(3)).unwrap());
        assert_eq!(missing(&files), []);
        let mut bytes = vec![0; 12288];
        assert!(files.read(KEY.0, KEY.1, 0, &mut bytes).unwrap());
        assert!(bytes.iter().all(|byte| *byte == 7));
    }

    /// The source may change next, and then nobody has what was copied.
    #[test]
    fn a_copy_may_use_some_of_the_reserve() {
        let (_dir, files) = open();
        write(&files, 1, 0, 4096);
        files.set_room(0, 5000);
        let copy = |index, offset| FileEffect::Copy {
            index: LogIndex(index),
            source: KEY.0,
            source_generation: KEY.1,
            range: ByteRange { start: 0, end: 4096 },
            ino: KEY.0,
            generation: KEY.1,
            offset,
        };
        files.carry_out_all(LogIndex(2), &[copy(2, 4096)]).unwrap();
        assert_eq!(missing(&files), []);
        files.carry_out_all(LogIndex(3), &[copy(3, 8192)]).unwrap();
        assert_eq!(missing(&files), [(8192, 12288)]);
        let mut bytes = vec![0; 8192];
        assert!(files.read(KEY.0, KEY.1, 0, &mut bytes).unwrap());
        assert!(bytes.iter().all(|byte| *byte == 7));
    }

    /// What is set aside beside what is missing takes room, too: no more of the reserve than anything else.
    #[test]
    fn what_would_be_set_aside_without_room_is_missing() {
        let (dir, files) = open();
        write(&files, 1, 0, 4096);
        assert!(files.lend(KEY, 4096).unwrap().is_some());
        files.set_room(0, 0);
        write(&files, 2, 4096, 4096);
        write(&files, 3, 8192, 4096);
        assert_eq!(missing(&files), [(4096, 8192), (8192, 12288)]);
        files.set_room(0, 4096);
        write(&files, 4, 8192, 4096);
        assert_eq!(missing(&files), [(4096, 8192)]);
        assert!(dir.path().join("stages/written/4").exists());
        write(&files, 5, 12288, 4096);
        assert_eq!(missing(&files), [(4096, 8192), (12288, 16384)]);
    }

    /// Little room is none to whoever brings more than that: it is not to come again and again until there is more.
    #[test]
    fn what_does_not_fit_is_refused_until_the_next_look() {
        let (_dir, files) = open();
        files.set_room(0, 0);
        write(&files, 1, 0, 4096);
        files.set_room(1000, 0);
        assert!(!files.is_full());
        assert!(!files.install(KEY, 0, &[7; 4096], LogIndex(1)).unwrap());
        assert!(files.is_full());
    }
}
