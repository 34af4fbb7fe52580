//! An order-independent digest of the replicated tables, kept incrementally.

use std::fmt;

/// The sum, modulo 2^128, of a hash of each pair of the replicated tables. Equal states have equal
/// digests in whatever order they were reached; replicas compare theirs at equal applied indexes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Digest(pub u128);

impl Digest {
    /// Counts a pair in.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        self.0 = self.0.wrapping_add(hash(key, value));
    }

    /// Takes a pair out again.
    pub fn remove(&mut self, key: &[u8], value: &[u8]) {
        self.0 = self.0.wrapping_sub(hash(key, value));
    }

    /// As a message or a record has it.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }

    /// From what [`Self::to_bytes`] gave; nothing from anything else.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(u128::from_le_bytes).map(Self)
    }

    /// Adds a difference, as [`super::Batch::digest`] holds it.
    pub fn merge(&mut self, difference: Self) {
        self.0 = self.0.wrapping_add(difference.0);
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

fn hash(key: &[u8], value: &[u8]) -> u128 {
    if !super::keys::is_replicated(key) {
        return 0;
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    let mut first = [0; 16];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_le_bytes(first)
}
