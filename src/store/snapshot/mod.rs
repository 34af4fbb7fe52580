//! The snapshot file: the truth of a replica at one index, to which the log adds what came later.
//!
//! Format 1, all numbers little-endian:
//!
//! ```text
//! preface   magic "quorumfs" · format u32 = 1 · crc32c u32 of the 12 bytes before
//! frame*    kind u8 · length u32 · crc32c u32 of kind, length and payload · payload
//!   1 header   cluster 16 · volume u64 · index u64 · term u64 · digest u128 · feature level u32 ·
//!              length u32 and bytes of the membership (an encoded eraftpb.ConfState). The first frame.
//!   2 pairs    (key length u32 · value length u32 · key · value)*, in the order of keys
//!   3 local    what is this replica's own and is never exported: ranges that are missing. Not
//!              written yet; skipped by this version.
//!   4 trailer  number of pairs u64 · blake3 (32 bytes) of the file before this frame. The last one.
//! ```
//!
//! A file is written beside and renamed into place after an fsync, so one with its final name is
//! whole; each byte of it is covered by a checksum all the same, and the pairs by the state's digest.
//! The preface never changes, so that every version can say that a newer one is needed.

mod format;
mod read;
mod write;

pub use format::SnapshotHeader;
pub use read::{SnapshotPairs, latest_snapshot, read_snapshot};
pub use write::{prepare_snapshot, put_snapshot, remove_snapshots_but, write_snapshot};

#[cfg(test)]
mod tests;
