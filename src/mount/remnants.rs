//! Files as they were before other mounts cut them, for reads that are under way.
//!
//! A READ is answered from the newest state, so it can find less of a file than the kernel believes in: it was on its way while
//! another mount cut the file. The kernel then takes the file for shorter, *unless* it was told anything
//! about the inode meanwhile, and of a change it is told: in that case it shows the program zeros, up to
//! the size that it believes in, which the file has never had. So for a while such a READ gets what was there before the cut,
//! as if it had come sooner. Not where the file was opened later; nor once the kernel was told a newer size, unless
//! it asks for pages that a file of that size does not have: it throws away what it is told while it is
//! made to forget.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::param::page_size;

use crate::types::{Ino, LogIndex};

/// A READ is seldom under way for longer, and who reads on without asking for the size sees the cut no later.
const KEPT: Duration = Duration::from_secs(1);
/// Of all files together; of others nothing is kept.
const MAX_BYTES: usize = 16 << 20;

/// Those of one mount.
#[derive(Debug, Default)]
pub(super) struct Remnants {
    /// Almost always false.
    any: AtomicBool,
    files: Mutex<HashMap<Ino, Remnant>>,
}

#[derive(Debug)]
struct Remnant {
    /// All of the file.
    bytes: Bytes,
    /// The last change of its bytes before the cut.
    version: LogIndex,
    until: Instant,
    /// The kernel was told a size since.
    told: bool,
}

impl Remnants {
    /// The file is about to be cut. What is kept of an earlier cut stays: the kernel was not told of that one yet.
    pub(super) fn keep(&self, (ino, version): (Ino, LogIndex), now: Instant, bytes: Bytes) {
        let mut files = self.files.lock();
        files.retain(|_, remnant| now < remnant.until);
        let kept: usize = files.values().map(|remnant| remnant.bytes.len()).sum();
        let stays = files.get(&ino).is_some_and(|remnant| !remnant.told);
        if !stays && kept + bytes.len() <= MAX_BYTES {
            files.insert(ino, Remnant { bytes, version, until: now + KEPT, told: false });
        }
        self.any.store(!files.is_empty(), Ordering::SeqCst);
    }

    /// The kernel is told the size.
    pub(super) fn told(&self, ino: Ino) {
        if self.any.load(Ordering::SeqCst)
            && let Some(remnant) = self.files.lock().get_mut(&ino)
        {
            remnant.told = true;
        }
    }

    /// The file changes here, or somebody must see its newest bytes.
    pub(super) fn forget(&self, ino: Ino) {
        if self.any.load(Ordering::SeqCst) {
            let mut files = self.files.lock();
            files.remove(&ino);
            self.any.store(!files.is_empty(), Ordering::SeqCst);
        }
    }

    /// What a READ would have got before the cut, through a descriptor whose `open` saw the bytes of that version. The file
    /// has `size` bytes now. Whoever has it forgotten comes after the call of `found`.
    pub(super) fn read(
        &self,
        (ino, opened): (Ino, LogIndex),
        (offset, wanted): (u64, u32),
        size: u64,
        now: Instant,
        found: impl FnOnce(),
    ) -> Option<Vec<u8>> {
        if !self.any.load(Ordering::SeqCst) {
            return None;
        }
        let files = self.files.lock();
        let Remnant { bytes, version, until, told } = files.get(&ino)?;
        // The kernel asks for whole pages, up to that which has the file's last byte.
        let pages = size.next_multiple_of(page_size() as u64);
        let believes_in_more = offset + u64::from(wanted) > pages;
        let is_cut = size < bytes.len() as u64;
        if !is_cut || opened > *version || now >= *until || *told && !believes_in_more {
            return None;
        }
        let start = usize::try_from(offset).ok().filter(|start| *start < bytes.len())?;
        let end = start.saturating_add(wanted as usize).min(bytes.len());
        found();
        Some(bytes[start..end].to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::{Bytes, Ino, Instant, KEPT, LogIndex, MAX_BYTES, Remnants, page_size};

    const FILE: Ino = Ino(7);
    const VERSION: LogIndex = LogIndex(3);

    fn read(
        remnants: &Remnants,
        opened: (Ino, LogIndex),
        range: (u64, u32),
        now: Instant,
    ) -> Option<Vec<u8>> {
        let mut is_found = false;
        let read = remnants.read(opened, range, 0, now, || is_found = true);
        assert_eq!(is_found, read.is_some());
        read
    }

    #[test]
    fn reads_under_way_get_what_was_there_before_the_first_cut() {
        let (remnants, now) = (Remnants::default(), Instant::now());
        assert_eq!(read(&remnants, (FILE, VERSION), (0, 4096), now), None);
        remnants.keep((FILE, VERSION), now, Bytes::from_static(b"before"));
        remnants.keep((FILE, VERSION), now, Bytes::from_static(b"between"));
        assert_eq!(read(&remnants, (FILE, VERSION), (0, 4096), now), Some(b"before".to_vec()));
        assert_eq!(read(&remnants, (FILE, VERSION), (2, 3), now), Some(b"for".to_vec()));
        assert_eq!(read(&remnants, (FILE, VERSION), (6, 4096), now), None, "beyond its end");
        assert_eq!(read(&remnants, (Ino(8), VERSION), (0, 4096), now), None);
    }

    #[test]
    fn neither_later_opens_nor_later_reads_get_it() {
        let (remnants, now) = (Remnants::default(), Instant::now());
        remnants.keep((FILE, VERSION), now, Bytes::from_static(b"before"));
        assert_eq!(read(&remnants, (FILE, LogIndex(4)), (0, 4096), now), None);
        assert_eq!(read(&remnants, (FILE, VERSION), (0, 4096), now + KEPT), None);
        remnants.keep((FILE, VERSION), now + KEPT, Bytes::from_static(b"later"));
        let later = read(&remnants, (FILE, VERSION), (0, 4096), now + KEPT);
        assert_eq!(later, Some(b"later".to_vec()));
        remnants.forget(FILE);
        assert_eq!(read(&remnants, (FILE, VERSION), (0, 4096), now + KEPT), None);
    }

    #[test]
    fn a_kernel_that_knows_the_size_gets_it_where_it_asks_for_more() {
        let (remnants, now, page) = (Remnants::default(), Instant::now(), page_size());
        let pages = u32::try_from(2 * page).unwrap();
        remnants.keep((FILE, VERSION), now, Bytes::from(vec![1; 2 * page]));
        let read =
            |range| remnants.read((FILE, VERSION), range, 1, now, || ()).map(|read| read.len());
        assert_eq!(read((0, pages / 2)), Some(page));
        remnants.told(FILE);
        assert_eq!(read((0, pages / 2)), None, "all that a file of one byte has");
        assert_eq!(read((0, pages)), Some(2 * page));
        remnants.keep((FILE, VERSION), now, Bytes::from_static(b"bc"));
        assert_eq!(read((0, pages)), Some(2), "of the second cut");
    }

    #[test]
    fn they_are_bounded() {
        let (remnants, now) = (Remnants::default(), Instant::now());
        let large = Bytes::from(vec![1; MAX_BYTES]);
        remnants.keep((FILE, VERSION), now, large);
        remnants.keep((Ino(8), VERSION), now, Bytes::from_static(b"more"));
        assert_eq!(read(&remnants, (Ino(8), VERSION), (0, 4096), now), None);
        remnants.keep((Ino(8), VERSION), now + KEPT, Bytes::from_static(b"more"));
        assert!(read(&remnants, (Ino(8), VERSION), (0, 4096), now + KEPT).is_some());
    }
}
