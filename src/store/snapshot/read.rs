//! Reading a snapshot file, believing nothing of it.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::format::{
    FORMAT, FRAME_HEADER, KIND_HEADER, KIND_LOCAL, KIND_PAIRS, KIND_TRAILER, MAGIC,
    MAX_FRAME_BYTES, PREFACE, SnapshotHeader, frame_checksum, index_of, take, take_pair,
};
use crate::fs::limits::FEATURE_LEVEL;
use crate::fs::{Digest, Pair};
use crate::store::StoreError;
use crate::store::error::TAKE_ANOTHER;

const READ_BYTES: usize = 256 << 10;

/// The newest snapshot file of `dir`, where there is one.
///
/// # Errors
/// When the directory cannot be listed.
pub fn latest_snapshot(dir: &Path) -> Result<Option<PathBuf>, StoreError> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(StoreError::io("list", dir))?,
    };
    let mut latest = None;
    for entry in entries {
        let path = entry.map_err(StoreError::io("list", dir))?.path();
        let index = path.file_name().and_then(|name| index_of(name.to_str()?));
        if let Some(index) = index {
            latest = latest.max(Some((index, path)));
        }
    }
    Ok(latest.map(|(_, path)| path))
}

/// Opens a snapshot file: its header, and its pairs in the order of keys.
///
/// # Errors
/// When it cannot be read, is damaged in its header, or came from a newer version.
pub fn read_snapshot(path: &Path) -> Result<(SnapshotHeader, SnapshotPairs), StoreError> {
    let file = File::open(path).map_err(StoreError::io("open", path))?;
    let mut frames = Frames {
        path: path.to_owned(),
        file: BufReader::with_capacity(READ_BYTES, file),
        hasher: blake3::Hasher::new(),
        offset: 0,
    };
    frames.preface()?;
    let (kind, payload) = frames.frame()?;
    let header = (kind == KIND_HEADER).then(|| SnapshotHeader::decode(&payload)).flatten();
    let header = header.ok_or_else(|| frames.damaged("its header cannot be decoded"))?;
    if header.feature_level > FEATURE_LEVEL {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            what: "feature level",
            found: header.feature_level.into(),
            supported: FEATURE_LEVEL.into(),
        });
    }
    let pairs = SnapshotPairs {
        frames,
        expected: header.digest,
        digest: Digest::default(),
        count: 0,
        last: None,
        frame: Vec::new().into_iter(),
        done: false,
    };
    Ok((header, pairs))
}

/// The pairs of a snapshot file. A pair is given only after its frame was verified; that they are
/// *all* pairs is verified at the end, so use none of them for good before the iterator has ended
/// without an error.
#[derive(Debug)]
pub struct SnapshotPairs {
    frames: Frames,
    expected: Digest,
    digest: Digest,
    count: u64,
    last: Option<Vec<u8>>,
    frame: std::vec::IntoIter<Pair>,
    done: bool,
}

impl Iterator for SnapshotPairs {
    type Item = Result<Pair, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(pair) = self.frame.next() {
                return Some(Ok(pair));
            }
            if self.done {
                return None;
            }
            if let Err(error) = self.next_frame() {
                self.done = true;
                return Some(Err(error));
            }
        }
    }
}

impl SnapshotPairs {
    fn next_frame(&mut self) -> Result<(), StoreError> {
        let before = self.frames.hasher.finalize();
        let (kind, payload) = self.frames.frame()?;
        match kind {
            KIND_PAIRS => self.take_pairs(&payload),
            KIND_LOCAL => Ok(()),
            KIND_TRAILER => {
                self.done = true;
                self.verify_end(&payload, before)
            }
            _ => Err(self.frames.damaged(&format!("there is no frame of kind {kind}"))),
        }
    }

    fn take_pairs(&mut self, mut payload: &[u8]) -> Result<(), StoreError> {
        let mut pairs = Vec::new();
        while !payload.is_empty() {
            let Some((key, value)) = take_pair(&mut payload) else {
                return Err(self.frames.damaged("a pair cannot be decoded"));
            };
            if self.last.as_ref().is_some_and(|last| *last >= key) {
                return Err(self.frames.damaged("its keys are out of order"));
            }
            self.digest.add(&key, &value);
            self.count += 1;
            self.last = Some(key.clone());
            pairs.push((key, value));
        }
        self.frame = pairs.into_iter();
        Ok(())
    }

    fn verify_end(&mut self, mut trailer: &[u8], hash: blake3::Hash) -> Result<(), StoreError> {
        let count = take(&mut trailer).map(u64::from_le_bytes);
        if count != Some(self.count) || trailer != hash.as_bytes() {
            return Err(self.frames.damaged("its trailer does not agree with what it holds"));
        }
        if self.digest != self.expected {
            let (digest, expected) = (self.digest, self.expected);
            let what = format!("its pairs add up to {digest} instead of {expected}");
            return Err(self.frames.damaged(&what));
        }
        self.frames.end()
    }
}

/// The file as verified frames.
#[derive(Debug)]
struct Frames {
    path: PathBuf,
    file: BufReader<File>,
    /// Over everything before `offset`.
    hasher: blake3::Hasher,
    offset: u64,
}

impl Frames {
    fn preface(&mut self) -> Result<(), StoreError> {
        let preface: [u8; PREFACE] = self.read()?;
        let mut rest = &preface[..];
        let magic = take::<8>(&mut rest);
        let format = take(&mut rest).map(u32::from_le_bytes);
        let checksum = take(&mut rest).map(u32::from_le_bytes);
        let (Some(magic), Some(format)) = (magic, format) else {
            unreachable!("the preface has 16 bytes")
        };
        if &magic != MAGIC || checksum != Some(crc32c::crc32c(&preface[..12])) {
            return Err(self.damaged("it does not begin like a snapshot file"));
        }
        if format != FORMAT {
            return Err(StoreError::Newer {
                path: self.path.clone(),
                what: "format",
                found: format.into(),
                supported: FORMAT.into(),
            });
        }
        self.advance(&preface);
        Ok(())
    }

    /// The kind and payload of the next frame. `offset` moves on only where it verifies.
    fn frame(&mut self) -> Result<(u8, Vec<u8>), StoreError> {
        let header: [u8; FRAME_HEADER] = self.read()?;
        let (kind_and_length, checksum) = header.split_at(5);
        let length = kind_and_length[1..].try_into().map(u32::from_le_bytes);
        let length = length.expect("four bytes") as usize;
        if length > MAX_FRAME_BYTES {
            return Err(self.damaged("a frame is too long"));
        }
        let mut payload = vec![0; length];
        self.fill(&mut payload)?;
        if frame_checksum(kind_and_length, &payload).to_le_bytes() != *checksum {
            return Err(self.damaged("a checksum does not match"));
        }
        self.advance(&header);
        self.advance(&payload);
        Ok((header[0], payload))
    }

    fn end(&mut self) -> Result<(), StoreError> {
        match self.file.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.damaged("something follows its trailer")),
            Err(source) => Err(StoreError::io("read", &self.path)(source)),
        }
    }

    fn read<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), StoreError> {
        self.file.read_exact(bytes).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => self.damaged("it ends too early"),
            _ => StoreError::io("read", &self.path)(error),
        })
    }

    fn advance(&mut self, verified: &[u8]) {
        self.hasher.update(verified);
        self.offset += verified.len() as u64;
    }

    fn damaged(&self, what: &str) -> StoreError {
        StoreError::Corrupt {
            path: self.path.clone(),
            offset: Some(self.offset),
            what: what.to_owned(),
            advice: TAKE_ANOTHER,
        }
    }
}
