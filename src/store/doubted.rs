//! Bytes of a time when this replica's state was wrong (`adopt.rs`): which there are, and taking them for right where somebody
//! says so.

use super::error::StoreError;
use super::files::{Files, Key};
use crate::types::ByteRange;

impl Files {
    /// The parts of a range that are missing, and of which the backing file has bytes that may be the right ones.
    #[must_use]
    pub fn doubted(&self, key: Key, range: ByteRange) -> Vec<ByteRange> {
        if self.layouts().are_in_place() {
            return Vec::new();
        }
        let layouts = self.layouts().lock(key.0);
        layouts.get(key).map(|layout| layout.doubted(range)).unwrap_or_default()
    }

    /// They are the right ones. Answers which.
    ///
    /// # Errors
    /// When the local file system refuses.
    pub fn take_doubted(&self, key: Key, range: ByteRange) -> Result<Vec<ByteRange>, StoreError> {
        let mut layouts = self.layouts().lock(key.0);
        let parts = layouts.get(key).map(|layout| layout.doubted(range)).unwrap_or_default();
        for part in &parts {
            layouts.clear(key, *part)?;
        }
        drop(layouts);
        self.tell_changed();
        Ok(parts)
    }
}
