//! Room for files' bytes: what the disk takes in before only the reserve is left, which is for log and snapshots.
//!
//! Bytes for which there is no room are missing here until there is: the others have them.

use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicU64, Ordering};

use super::files::{Files, Key};
use super::layout::Away;
use super::layouts::Locked;
use crate::store::StoreError;
use crate::types::{ByteRange, LogIndex};

/// Bytes; more than anybody has where nobody has looked yet.
#[derive(Debug)]
pub(super) struct Room(AtomicU64);

impl Default for Room {
    fn default() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }
}

impl Room {
    /// Takes room; false where there is not so much.
    pub(super) fn take(&self, bytes: u64) -> bool {
        let taken = |left: u64| left.checked_sub(bytes);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok()
    }

    /// The disk has said that there is none.
    pub(super) fn is_gone(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

impl Files {
    /// There is room for so many bytes, as of now.
    pub fn set_room(&self, bytes: u64) {
        let before = self.room().0.swap(bytes, Ordering::Relaxed);
        if before == 0 && bytes > 0 {
            self.tell_changed();
        }
    }

    /// Whether nothing new is kept here at present.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.room().0.load(Ordering::Relaxed) == 0
    }

    /// Whether bytes can be written to a range: there is room, or they lie on what is there already.
    pub(super) fn has_room(&self, key: Key, range: ByteRange) -> Result<bool, StoreError> {
        Ok(self.room().take(range.len()) || self.mapped(key, range)? >= range.len())
    }

    /// After an attempt to write to a range: where the disk was full, its bytes are missing from here on.
    pub(super) fn or_missing(
        &self,
        written: Result<(), StoreError>,
        layouts: &mut Locked<'_>,
        (key, range): (Key, ByteRange),
        version: LogIndex,
    ) -> Result<(), StoreError> {
        match written {
            Ok(()) => layouts.clear(key, range),
            Err(error) if error.is_full() => {
                self.room().is_gone();
                layouts.set(key, range, Away::Missing { version })
            }
            Err(error) => Err(error),
        }
    }
}

/// Whether an error says that there is no room.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}
