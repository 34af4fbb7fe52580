//! What counts only as long as nothing but the process dies: the marks in `stages/` that an earlier process has left.
//! Each carries a check. Where one does not agree, the start is as after a power loss: from the last image and the log.
//!
//! - `carried`: two marks of 16 bytes, an index and its complement (see `layouts.rs`).
//! - `notes.<n>`, `pins`: records, each followed by a CRC-32C of it in 8 bytes.

use std::io::ErrorKind;
use std::path::Path;

use crate::store::StoreError;
use crate::types::LogIndex;

/// Bytes of a mark.
pub(super) const MARK: usize = 16;
/// Bytes behind a record.
pub(super) const CHECK: usize = 8;

pub(super) fn mark(index: LogIndex) -> [u8; MARK] {
    let mut mark = [0; MARK];
    mark[..8].copy_from_slice(&index.0.to_le_bytes());
    mark[8..].copy_from_slice(&(!index.0).to_le_bytes());
    mark
}

/// Nothing where it is not a mark.
pub(super) fn marked(bytes: &[u8]) -> Option<LogIndex> {
    let (index, check) = bytes.split_first_chunk()?;
    let (index, check) = (u64::from_le_bytes(*index), u64::from_le_bytes(check.try_into().ok()?));
    (index == !check).then_some(LogIndex(index))
}

/// A record with its check.
pub(super) fn checked(record: &[u8]) -> Vec<u8> {
    let check = u64::from(crc32c::crc32c(record)).to_le_bytes();
    [record, &check[..]].concat()
}

/// The records of a file that agree with their checks; `len` is that of a record. What is no whole record at the end is
/// what a process was writing when it died.
pub(super) fn records(bytes: &[u8], len: usize) -> impl Iterator<Item = Option<&[u8]>> {
    bytes.chunks_exact(len + CHECK).map(|record| {
        let (record, check) = record.split_last_chunk::<CHECK>()?;
        let is_whole = u64::from(crc32c::crc32c(record)) == u64::from_le_bytes(*check);
        is_whole.then_some(record)
    })
}

/// What is wrong with the marks in `stages`, where something is.
pub(super) fn damage(stages: &Path) -> Result<Option<StoreError>, StoreError> {
    let path = stages.join("carried");
    if let Some(bytes) = read(&path)? {
        let is_mark = |bytes: &[u8]| marked(bytes).is_some();
        // A start has always written both.
        if bytes.len() != 2 * MARK || !bytes.chunks(MARK).all(is_mark) {
            return Ok(Some(damaged(&path, "a mark does not agree with its check")));
        }
    } else if stages.join("pins").exists() && super::layout_notes::has_notes(stages)? {
        // It was there before they were.
        return Ok(Some(damaged(&path, "it is gone")));
    }
    let lens = [("notes.", super::layout_notes::RECORD), ("pins", super::pins::RECORD)];
    let entries = match std::fs::read_dir(stages) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        entries => entries.map_err(StoreError::io("list", stages))?,
    };
    for entry in entries {
        let path = entry.map_err(StoreError::io("list", stages))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_of = |(prefix, _): &&(&str, usize)| name.starts_with(*prefix) && name != "pins.tmp";
        let Some((_, len)) = lens.iter().find(is_of) else { continue };
        let bytes = read(&path)?.unwrap_or_default();
        if records(&bytes, *len).any(|record| record.is_none()) {
            return Ok(Some(damaged(&path, "a record does not agree with its check")));
        }
    }
    Ok(None)
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreError::io("read", path)(source)),
    }
}

fn damaged(path: &Path, what: &str) -> StoreError {
    StoreError::Corrupt {
        path: path.to_owned(),
        offset: None,
        what: what.to_owned(),
        advice: "what it says is found out again from the snapshot file and the log",
    }
}

#[cfg(test)]
mod tests {
    use super::{LogIndex, MARK, checked, damage, mark, marked, records};

    #[test]
    fn a_mark_with_another_bit_is_none() {
        let whole = mark(LogIndex(0x1234));
        assert_eq!(marked(&whole), Some(LogIndex(0x1234)));
        for bit in 0..MARK * 8 {
            let mut other = whole;
            other[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(marked(&other), None);
        }
        assert_eq!(marked(&whole[..8]), None);
        assert_eq!(marked(&[0; MARK]), None);
    }

    #[test]
    fn any_other_bit_of_a_record_is_found_and_a_torn_end_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let whole = [checked(&[1; 40]), checked(&[2; 40])].concat();
        let path = dir.path().join("pins");
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bytes).unwrap();
            assert!(damage(dir.path()).unwrap().is_some(), "bit {bit}");
        }
        for len in 0..=whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            assert!(damage(dir.path()).unwrap().is_none(), "{len} bytes");
            assert!(records(&whole[..len], 40).all(|record| record.is_some()));
        }
    }
}
