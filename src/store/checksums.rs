//! Checksums of the blocks of quiet files, in files of their own: `checksums/<hh>/<ino>.<gen>`, named as the
//! backing files are.
//!
//! They are this replica's own, and never the only copy of anything, so nothing of them is ever synced. A file of
//! them consists of *pages*, each of which says what it is of and carries a checksum of itself: one that is torn,
//! or of another version of the file, has no value, and is the same as none.
//!
//! Here is remembered, too, which files have changed lately: the thread that makes checksums need not look at all
//! of them, and whoever reads bytes finds out whether they changed meanwhile.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::files::Key;
use crate::store::StoreError;
use crate::types::{Generation, Ino, LogIndex};

/// Blocks whose checksums are in one page.
pub const PAGE_BLOCKS: u64 = 960;
/// Where a page begins is a multiple of this.
const PAGE: u64 = 4096;
/// Magic, inode, generation, version, number of the page, number of checksums. Then these, and one of everything before.
const HEADER: usize = 48;
const MAGIC: u64 = u64::from_le_bytes(*b"qfssums1");
/// Inodes share what is known of their last change: a power of two.
const SLOTS: usize = 4096;
/// Files of which it is known that they changed, at most.
const CHANGED: usize = 16 << 10;

#[derive(Debug)]
pub(super) struct Checksums {
    dir: PathBuf,
    /// The last entry that began to change a file, or another one that shares its place.
    changes: Box<[AtomicU64]>,
    /// When files changed that have no checksums since.
    changed: Mutex<HashMap<Ino, Instant>>,
}

impl Checksums {
    pub(super) fn open(dir: PathBuf) -> Result<Self, StoreError> {
        std::fs::create_dir_all(&dir).map_err(StoreError::io("create", &dir))?;
        let changes = (0..SLOTS).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { dir, changes, changed: Mutex::default() })
    }

    /// Those of a data directory that stays as it is: only to be loaded.
    pub(super) fn beneath(dir: PathBuf) -> Self {
        Self { dir, changes: Box::default(), changed: Mutex::default() }
    }

    /// Where they are.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// To be called before the entry at `index` changes a file of `ino`.
    pub(super) fn changing(&self, ino: Ino, index: LogIndex) {
        self.slot(ino).fetch_max(index.0, Ordering::SeqCst);
        let mut changed = self.changed.lock();
        if changed.len() < CHANGED || changed.contains_key(&ino) {
            changed.insert(ino, Instant::now());
        }
    }

    /// No later entry has begun to change a file of `ino`.
    pub(super) fn last_change(&self, ino: Ino) -> LogIndex {
        LogIndex(self.slot(ino).load(Ordering::SeqCst))
    }

    /// Some of the files that have not changed for so long; each is named once after each change.
    pub(super) fn take_quiet(&self, quiet: Duration, limit: usize) -> Vec<Ino> {
        let now = Instant::now();
        let mut changed = self.changed.lock();
        let is_quiet = |at: &Instant| now.saturating_duration_since(*at) >= quiet;
        let found = changed.iter().filter(|(_, at)| is_quiet(at)).map(|(ino, _)| *ino);
        let found: Vec<_> = found.take(limit).collect();
        for ino in &found {
            changed.remove(ino);
        }
        found
    }

    /// Whether a file is known to have changed, and was not named by [`Self::take_quiet`] since.
    pub(super) fn has_changed(&self, ino: Ino) -> bool {
        self.changed.lock().contains_key(&ino)
    }

    /// The checksums of a page of a file's blocks, from [`PAGE_BLOCKS`] times `page` on; nothing where there are
    /// none of that version.
    pub(super) fn load(&self, key: Key, version: LogIndex, page: u64) -> Option<Vec<u32>> {
        let file = File::open(self.path_of(key)).ok()?;
        let mut bytes = vec![0; usize::try_from(PAGE).expect("a page is small")];
        let mut len = 0;
        while let Ok(more @ 1..) = file.read_at(&mut bytes[len..], page * PAGE + len as u64) {
            len += more;
        }
        decode(&bytes[..len], key, version, page)
    }

    /// Keeps the checksums of a page of blocks: all of it, or up to the end of the file.
    pub(super) fn keep(
        &self,
        key: Key,
        version: LogIndex,
        page: u64,
        sums: &[u32],
    ) -> Result<(), StoreError> {
        let path = self.path_of(key);
        let open = || OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let file = match open() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let dir = path.parent().expect("it is in a directory");
                std::fs::create_dir_all(dir).map_err(StoreError::io("create", dir))?;
                open()
            }
            other => other,
        };
        let file = file.map_err(StoreError::io("create", &path))?;
        let written = file.write_all_at(&encode(key, version, page, sums), page * PAGE);
        written.map_err(StoreError::io("write", &path))
    }

    /// A file is gone, or what is known of its blocks was wrong.
    pub(super) fn forget(&self, key: Key) -> Result<(), StoreError> {
        let path = self.path_of(key);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                Err(StoreError::io("remove", &path)(source))
            }
            _ => Ok(()),
        }
    }

    /// Deletes the checksums of files that are not there any more: a process died in between.
    pub(super) fn forget_gone(&self, exists: impl Fn(Key) -> bool) -> Result<(), StoreError> {
        for dir in list(&self.dir)? {
            for path in list(&dir)? {
                if let Some(key) = key_of(&path).filter(|key| !exists(*key)) {
                    self.forget(key)?;
                }
            }
        }
        Ok(())
    }

    fn path_of(&self, (ino, generation): Key) -> PathBuf {
        self.dir.join(format!("{:02x}/{ino}.{generation}", ino.0 >> 8 & 0xff))
    }

    fn slot(&self, ino: Ino) -> &AtomicU64 {
        let mixed = ino.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        &self.changes[usize::try_from(mixed).expect("32 bits") % SLOTS]
    }
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = std::fs::read_dir(dir).map_err(StoreError::io("list", dir))?;
    entries.map(|entry| Ok(entry.map_err(StoreError::io("list", dir))?.path())).collect()
}

/// What a file is named after.
pub(super) fn key_of(path: &Path) -> Option<Key> {
    let (ino, generation) = path.file_name()?.to_str()?.split_once('.')?;
    Some((Ino(ino.parse().ok()?), Generation(generation.parse().ok()?)))
}

fn encode((ino, generation): Key, version: LogIndex, page: u64, sums: &[u32]) -> Vec<u8> {
    let fields = [MAGIC, ino.0, generation.0, version.0, page, sums.len() as u64];
    let mut bytes: Vec<_> = fields.into_iter().flat_map(u64::to_le_bytes).collect();
    bytes.extend(sums.iter().flat_map(|sum| sum.to_le_bytes()));
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

/// Behind a page there may be the rest of a longer one of an earlier version.
fn decode(bytes: &[u8], (ino, generation): Key, version: LogIndex, page: u64) -> Option<Vec<u32>> {
    let (header, sums) = bytes.split_at_checked(HEADER)?;
    let fields = header.chunks_exact(8).map(|field| u64::from_le_bytes(array(field)));
    let fields: Vec<_> = fields.collect();
    let (count, named) = fields.split_last()?;
    let count = usize::try_from(*count).ok().filter(|count| *count as u64 <= PAGE_BLOCKS)?;
    let (sums, rest) = sums.split_at_checked(4 * count)?;
    let own = rest.first_chunk().copied().map(u32::from_le_bytes)?;
    let is_whole = own == crc32c::crc32c(&bytes[..HEADER + 4 * count]);
    let is_this = named == [MAGIC, ino.0, generation.0, version.0, page];
    let sums = sums.chunks_exact(4).map(|sum| u32::from_le_bytes(array(sum)));
    (is_whole && is_this).then(|| sums.collect())
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("chunks of that length")
}

#[cfg(test)]
mod tests {
    use super::{
        Checksums, Duration, FileExt, Generation, Ino, Key, LogIndex, OpenOptions, PAGE,
        PAGE_BLOCKS,
    };

    const KEY: Key = (Ino(0x1234), Generation(7));
    const VERSION: LogIndex = LogIndex(9);

    fn open() -> (tempfile::TempDir, Checksums) {
        let dir = tempfile::tempdir().unwrap();
        let checksums = Checksums::open(dir.path().join("checksums")).unwrap();
        (dir, checksums)
    }

    fn sums(count: u64) -> Vec<u32> {
        (0..count).map(|block| crc32c::crc32c(&block.to_le_bytes())).collect()
    }

    #[test]
    fn pages_come_back_for_their_version_only() {
        let (_dir, checksums) = open();
        let (whole, last) = (sums(PAGE_BLOCKS), sums(3));
        checksums.keep(KEY, VERSION, 0, &whole).unwrap();
        checksums.keep(KEY, VERSION, 1, &last).unwrap();
        assert_eq!(checksums.load(KEY, VERSION, 0), Some(whole));
        assert_eq!(checksums.load(KEY, VERSION, 1), Some(last));
        assert_eq!(checksums.load(KEY, VERSION, 2), None, "there is no such page");
        assert_eq!(checksums.load(KEY, LogIndex(8), 0), None, "another version");
        assert_eq!(checksums.load((KEY.0, Generation(8)), VERSION, 0), None, "another file");
    }

    /// A file that became shorter, page by page: what is left of the longer version is of no value.
    #[test]
    fn a_stale_page_is_none() {
        let (_dir, checksums) = open();
        checksums.keep(KEY, VERSION, 0, &sums(PAGE_BLOCKS)).unwrap();
        checksums.keep(KEY, VERSION, 1, &sums(9)).unwrap();
        let later = LogIndex(10);
        checksums.keep(KEY, later, 0, &sums(5)).unwrap();
        assert_eq!(checksums.load(KEY, later, 0), Some(sums(5)));
        assert_eq!(checksums.load(KEY, VERSION, 0), None);
        assert_eq!(checksums.load(KEY, later, 1), None);
        assert_eq!(checksums.load(KEY, VERSION, 1), Some(sums(9)), "it is what it says");
    }

    /// Whatever byte of a page is another, and wherever the file ends: there are no checksums then.
    #[test]
    fn a_torn_page_is_none() {
        let (_dir, checksums) = open();
        checksums.keep(KEY, VERSION, 0, &sums(20)).unwrap();
        let path = checksums.path_of(KEY);
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            file.write_all_at(&[bytes[at] ^ 0x10], at as u64).unwrap();
            assert_eq!(checksums.load(KEY, VERSION, 0), None, "byte {at}");
            file.write_all_at(&bytes[at..=at], at as u64).unwrap();
        }
        assert_eq!(checksums.load(KEY, VERSION, 0), Some(sums(20)));
        for len in 0..bytes.len() {
            file.set_len(len as u64).unwrap();
            assert_eq!(checksums.load(KEY, VERSION, 0), None, "{len} bytes");
            file.set_len(0).unwrap();
            file.write_all_at(&bytes, 0).unwrap();
        }
        // Zeros where the disk has lost what was not synced.
        file.write_all_at(&[0; 64], PAGE - 64).unwrap();
        assert_eq!(checksums.load(KEY, VERSION, 0), Some(sums(20)));
        file.write_all_at(&[0; 64], 40).unwrap();
        assert_eq!(checksums.load(KEY, VERSION, 0), None);
    }

    #[test]
    fn they_go_with_the_file() {
        let (_dir, checksums) = open();
        let other = (Ino(5), Generation(1));
        for key in [KEY, other] {
            checksums.keep(key, VERSION, 0, &sums(1)).unwrap();
        }
        checksums.forget_gone(|key| key == KEY).unwrap();
        assert_eq!(checksums.load(other, VERSION, 0), None);
        assert_eq!(checksums.load(KEY, VERSION, 0), Some(sums(1)));
        checksums.forget(KEY).unwrap();
        checksums.forget(KEY).unwrap();
        assert_eq!(checksums.load(KEY, VERSION, 0), None);
    }

    #[test]
    fn files_that_changed_are_named_once_they_are_quiet() {
        let (_dir, checksums) = open();
        assert_eq!(checksums.last_change(Ino(5)), LogIndex(0));
        checksums.changing(Ino(5), LogIndex(3));
        checksums.changing(Ino(6), LogIndex(4));
        checksums.changing(Ino(5), LogIndex(5));
        assert_eq!(checksums.last_change(Ino(5)), LogIndex(5));
        assert_eq!(checksums.take_quiet(Duration::from_secs(3600), 10), []);
        assert!(checksums.has_changed(Ino(6)));
        let mut quiet = checksums.take_quiet(Duration::ZERO, 10);
        quiet.sort_unstable();
        assert_eq!(quiet, [Ino(5), Ino(6)]);
        assert_eq!(checksums.take_quiet(Duration::ZERO, 10), []);
        assert!(!checksums.has_changed(Ino(6)));
    }
}
