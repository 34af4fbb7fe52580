//! Tells a torn tail from damage, before raft-engine opens its files.
//!
//! raft-engine has two useful recovery modes. `AbsoluteConsistency` refuses every record that does
//! not verify; but a killed process always leaves some (files are allocated ahead, and the last write
//! may be torn), so it would refuse to start after every crash. `TolerateTailCorruption` cuts the
//! last file at the first record that does not verify, *whatever follows it*: one flipped bit there,
//! and acknowledged entries are gone without a word, from a replica that goes on voting. So the
//! latter is used, and this check first: what does not verify is a torn tail only at the end of the
//! last file, with nothing after it that does.
//!
//! Two cases remain. Damage to the very last record looks like a torn write; the applied index of the
//! state shows it when that record was applied. And after a power loss, an unsynced record may be lost
//! while a later unsynced one is not: that is refused too, though nothing acknowledged is gone.
//!
//! Format: raft-engine 0.4, `src/file_pipe_log/format.rs` and `src/log_batch.rs`. A record is
//! `{ u56 length, u8 compression, u64 footer offset } entries crc32 footer crc32`, big-endian but for
//! the checksums; the last one is xored with the file's number.

use std::path::{Path, PathBuf};

use crate::store::StoreError;
use crate::store::error::REJOIN;

/// Magic, version 2, no alignment.
pub(super) const FILE_HEADER: &[u8] =
    b"RAFT-LOG-FILE-HEADER-9986AB3E47F320B394C8E84916EB0ED5\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0";
const RECORD_HEADER: usize = 16;
const CHECKSUM: usize = 4;
/// Digits of a file's number in its name.
const NUMBER: usize = 16;

/// Checks every file of both queues of the log in `dir`.
pub(super) fn check_files(dir: &Path) -> Result<(), StoreError> {
    for suffix in [".raftlog", ".rewrite"] {
        let files = files(dir, suffix)?;
        for (at, (number, path)) in files.iter().enumerate() {
            let bytes = std::fs::read(path).map_err(StoreError::io("read", path))?;
            let may_be_torn = at + 1 == files.len();
            if let Some(offset) = damage(&bytes, *number, may_be_torn) {
                return Err(StoreError::Corrupt {
                    path: path.clone(),
                    offset: Some(offset as u64),
                    what: "a record of the Raft log does not verify, but later ones do".to_owned(),
                    advice: REJOIN,
                });
            }
        }
    }
    Ok(())
}

/// The files of a queue, ascending.
pub(super) fn files(dir: &Path, suffix: &str) -> Result<Vec<(u64, PathBuf)>, StoreError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(StoreError::io("list", dir))? {
        let path = entry.map_err(StoreError::io("list", dir))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_suffix(suffix).filter(|number| number.len() == NUMBER);
        if let Some(number) = number.and_then(|number| number.parse().ok()) {
            files.push((number, path));
        }
    }
    files.sort();
    Ok(files)
}

/// Where the first record is that does not verify, unless it is a torn tail.
fn damage(bytes: &[u8], number: u64, may_be_torn: bool) -> Option<usize> {
    let signature = signature(number);
    let mut offset = 0;
    if bytes.starts_with(FILE_HEADER) {
        offset = FILE_HEADER.len();
        while let Some(length) = bytes.get(offset..).and_then(|rest| record(rest, signature)) {
            offset += length;
        }
    }
    if !may_be_torn {
        // One that is empty is cut as well.
        return (offset != bytes.len() || offset == 0).then_some(offset);
    }
    next_record(bytes, number, offset).map(|_| offset)
}

/// Where the first record begins that verifies behind `offset`, in a file of that number.
pub(super) fn next_record(bytes: &[u8], number: u64, offset: usize) -> Option<usize> {
    let mut later = offset + 1..bytes.len().saturating_sub(RECORD_HEADER);
    later.find(|later| record(&bytes[*later..], signature(number)).is_some())
}

fn signature(number: u64) -> u32 {
    let signature = number.to_le_bytes()[..CHECKSUM].try_into().map(u32::from_le_bytes);
    signature.expect("four bytes")
}

/// The length of the record at the start of `bytes`, where it verifies.
fn record(bytes: &[u8], signature: u32) -> Option<usize> {
    // The compression is in no checksum; ours is always "none".
    if bytes.get(7) != Some(&0) {
        return None;
    }
    let word = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let length = usize::try_from(word(0)? >> 8).ok()?;
    let footer = usize::try_from(word(8)?).ok()?;
    if footer < RECORD_HEADER || footer >= length {
        return None;
    }
    let entries = bytes.get(RECORD_HEADER..footer)?;
    let footer = bytes.get(footer..length)?;
    let verified = (entries.is_empty() || verifies(entries, 0)) && verifies(footer, signature);
    verified.then_some(length)
}

fn verifies(block: &[u8], signature: u32) -> bool {
    let Some((content, checksum)) = block.split_last_chunk::<CHECKSUM>() else { return false };
    !content.is_empty() && crc32fast::hash(content) == u32::from_le_bytes(*checksum) ^ signature
}
