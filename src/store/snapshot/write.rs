//! Writing a snapshot file.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::format::{
    FRAME_BYTES, KIND_HEADER, KIND_PAIRS, KIND_TRAILER, SnapshotHeader, file_name, frame_header,
    index_of, preface, put_pair,
};
use crate::fs::{Digest, Pair};
use crate::store::{StoreError, durable};
use crate::types::LogIndex;

/// Bytes after which what is written is brought to the disk: one long fsync at the end would hold up
/// those of the log.
const WRITE_BACK_BYTES: usize = 8 << 20;

/// Writes the snapshot of `header` into `dir` (created where it is absent), beside and then renamed
/// into place; only then are older ones removed. Gives the path.
///
/// Before it counts, what its index says about files must be durable: call [`crate::store::Files::sync`]
/// after starting the export and before this.
///
/// # Errors
/// When `pairs` fails or the disk refuses; when the pairs are out of order, or do not add up to the
/// header's digest. The snapshot that was there before stays.
pub fn write_snapshot(
    dir: &Path,
    header: &SnapshotHeader,
    pairs: impl Iterator<Item = Result<Pair, StoreError>>,
) -> Result<PathBuf, StoreError> {
    let beside = prepare_snapshot(dir, header, pairs)?;
    put_snapshot(&beside, dir, header.index)?;
    Ok(dir.join(file_name(header.index)))
}

/// The same, but for putting it in place: gives the file for [`put_snapshot`]. It goes when another one is written.
///
/// # Errors
/// As [`write_snapshot`].
pub fn prepare_snapshot(
    dir: &Path,
    header: &SnapshotHeader,
    pairs: impl Iterator<Item = Result<Pair, StoreError>>,
) -> Result<PathBuf, StoreError> {
    std::fs::create_dir_all(dir).map_err(StoreError::io("create", dir))?;
    remove_unless(dir, |index| index.is_some())?;
    let beside = dir.join(format!("{}.tmp", file_name(header.index)));
    let mut writer = Writer::create(&beside)?;
    writer.frame(KIND_HEADER, &header.encode())?;
    writer.pairs(header, pairs)?;
    writer.finish()?;
    Ok(beside)
}

/// Makes a whole and durable file the snapshot at `index` of `dir`; only then are older ones removed.
///
/// # Errors
/// When the disk refuses: the snapshot that was there before stays, or this one is there.
pub fn put_snapshot(file: &Path, dir: &Path, index: LogIndex) -> Result<(), StoreError> {
    durable::put_in_place(file, &dir.join(file_name(index)))?;
    remove_unless(dir, |other| other.is_none_or(|other| other >= index))
}

/// Removes all snapshot files but that at `index`: later ones, too.
///
/// # Errors
/// When the disk refuses.
pub fn remove_snapshots_but(dir: &Path, index: LogIndex) -> Result<(), StoreError> {
    remove_unless(dir, |other| other == Some(index))
}

/// Removes snapshot files that `keep` does not want; it is given nothing for an unfinished one.
fn remove_unless(dir: &Path, keep: impl Fn(Option<LogIndex>) -> bool) -> Result<(), StoreError> {
    for entry in std::fs::read_dir(dir).map_err(StoreError::io("list", dir))? {
        let path = entry.map_err(StoreError::io("list", dir))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("snap-") && !keep(index_of(name)) {
            std::fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
        }
    }
    Ok(())
}

struct Writer<'a> {
    path: &'a Path,
    file: BufWriter<File>,
    hasher: blake3::Hasher,
    count: u64,
    unsynced: usize,
}

impl<'a> Writer<'a> {
    fn create(path: &'a Path) -> Result<Self, StoreError> {
        let file = BufWriter::new(File::create(path).map_err(StoreError::io("create", path))?);
        let mut writer = Self { path, file, hasher: blake3::Hasher::new(), count: 0, unsynced: 0 };
        writer.bytes(&preface())?;
        Ok(writer)
    }

    fn pairs(
        &mut self,
        header: &SnapshotHeader,
        pairs: impl Iterator<Item = Result<Pair, StoreError>>,
    ) -> Result<(), StoreError> {
        let mut digest = Digest::default();
        let mut frame = Vec::with_capacity(FRAME_BYTES);
        let mut last: Option<Vec<u8>> = None;
        for pair in pairs {
            let (key, value) = pair?;
            if last.as_ref().is_some_and(|last| *last >= key) {
                return Err(self.refused("its keys are out of order".to_owned()));
            }
            digest.add(&key, &value);
            put_pair(&mut frame, &key, &value);
            self.count += 1;
            last = Some(key);
            if frame.len() >= FRAME_BYTES {
                self.frame(KIND_PAIRS, &frame)?;
                frame.clear();
            }
        }
        if !frame.is_empty() {
            self.frame(KIND_PAIRS, &frame)?;
        }
        if digest != header.digest {
            return Err(StoreError::Rotten { found: digest, expected: header.digest });
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), StoreError> {
        let hash = self.hasher.finalize();
        let trailer = [&self.count.to_le_bytes()[..], hash.as_bytes()].concat();
        self.frame(KIND_TRAILER, &trailer)?;
        self.file.flush().map_err(StoreError::io("write", self.path))?;
        self.file.get_ref().sync_all().map_err(StoreError::io("fsync", self.path))
    }

    fn frame(&mut self, kind: u8, payload: &[u8]) -> Result<(), StoreError> {
        self.bytes(&frame_header(kind, payload))?;
        self.bytes(payload)?;
        if self.unsynced >= WRITE_BACK_BYTES {
            self.unsynced = 0;
            self.file.flush().map_err(StoreError::io("write", self.path))?;
            self.file.get_ref().sync_data().map_err(StoreError::io("fsync", self.path))?;
        }
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.hasher.update(bytes);
        self.unsynced += bytes.len();
        self.file.write_all(bytes).map_err(StoreError::io("write", self.path))
    }

    /// The state that was to be written is not what it should be: its fault, not the file's.
    fn refused(&self, what: String) -> StoreError {
        StoreError::Corrupt {
            path: self.path.to_owned(),
            offset: None,
            what,
            advice: "it was not put in place, and the snapshot before it still counts; restart the \
                     daemon after removing the file `boot` of its data directory, so that its state \
                     is built anew",
        }
    }
}
