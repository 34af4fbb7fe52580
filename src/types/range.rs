//! Ranges of bytes in a file.

/// Bytes `[start, end)` of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte; not below `start`.
    pub end: u64,
}

impl ByteRange {
    /// `len` bytes from `start`.
    #[must_use]
    pub fn at(start: u64, len: u64) -> Self {
        Self { start, end: start.saturating_add(len) }
    }

    /// Everything from `start` on.
    #[must_use]
    pub fn from(start: u64) -> Self {
        Self { start, end: u64::MAX }
    }

    /// The same number of bytes, `by` further on (modulo 2^64).
    #[must_use]
    pub fn moved(self, by: u64) -> Self {
        Self { start: self.start.wrapping_add(by), end: self.end.wrapping_add(by) }
    }

    /// Number of bytes.
    #[must_use]
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether there is no byte in it.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
}
