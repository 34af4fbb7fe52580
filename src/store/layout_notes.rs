//! How notes and images of layouts are kept on disk; `layouts.rs` says what they mean.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::durable;
use super::files::Key;
use super::layout::{Away, Layout};
use super::marks::records;
use crate::store::StoreError;
use crate::types::{ByteRange, Generation, Ino, LogIndex};

/// Eight-byte integers, little-endian: kind, inode, generation, start and end of the range, two more.
pub(super) const RECORD: usize = 56;
/// Its last digit is the format. Whoever changes the image raises the format of the data directory, too: where the
/// checksum of another format is, this one does not know.
const MAGIC: u64 = u64::from_le_bytes(*b"qfslayt1");
const FORMAT: u64 = 1;
/// Magic, number, index, and behind the records a CRC-32C of everything before it.
const IMAGE_HEADER: usize = 24;
const IMAGE_ADVICE: &str = "only two other voters can replace it: start the daemon where there are so many, or move this data directory away \
     and join the cluster as a new node";

/// What a note says; its number is its kind on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Note {
    InPlace,
    Away(Away),
    /// The file is gone.
    Gone,
}

pub(super) type ByKey = HashMap<Key, Layout>;

pub(super) fn notes_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("notes.{number}"))
}

fn notes_number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix("notes.")?.parse().ok()
}

/// Whether there are notes of any number.
pub(super) fn has_notes(dir: &Path) -> Result<bool, StoreError> {
    let entries = std::fs::read_dir(dir).map_err(StoreError::io("list", dir))?;
    Ok(entries.flatten().any(|entry| notes_number(&entry.path()).is_some()))
}

/// An image that is gone, where backing files are, becomes a damaged one: every start finds it so until there is another.
/// Durable on return.
pub(super) fn note_lost(dir: &Path) -> Result<(), StoreError> {
    let image = dir.join("image");
    std::fs::create_dir_all(dir).map_err(StoreError::io("create", dir))?;
    if image.exists() { Ok(()) } else { durable::replace(&image, &[]) }
}

/// Fails where nothing says which bytes are in backing files, and there are some.
pub(super) fn check_image_is_there(dir: &Path, has_files: bool) -> Result<(), StoreError> {
    let image = dir.join("image");
    if !has_files || image.exists() || (dir.exists() && has_notes(dir)?) {
        return Ok(());
    }
    Err(damaged(&image, "it is gone"))
}

/// The image of a replica that has no files yet.
pub(super) fn first_image() -> Vec<u8> {
    image_of(0, 0, std::iter::empty())
}

/// An image: its number, its index, and what is not in place.
pub(super) fn image_of(
    number: u64,
    index: u64,
    away: impl Iterator<Item = (Key, ByteRange, Away)>,
) -> Vec<u8> {
    let mut bytes = [MAGIC, number, index].map(u64::to_le_bytes).concat();
    for (key, range, away) in away {
        bytes.extend(encode(key, range, Note::Away(away)));
    }
    bytes.extend(u64::from(crc32c::crc32c(&bytes)).to_le_bytes());
    bytes
}

fn damaged(path: &Path, what: &str) -> StoreError {
    StoreError::Corrupt {
        path: path.to_owned(),
        offset: None,
        what: what.to_owned(),
        advice: IMAGE_ADVICE,
    }
}

/// Removes the notes of older images than that. The first ones last: see [`read_image`].
pub(super) fn remove_notes(dir: &Path, number: u64) -> Result<(), StoreError> {
    let mut older = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(StoreError::io("list", dir))? {
        let path = entry.map_err(StoreError::io("list", dir))?.path();
        older
            .extend(notes_number(&path).filter(|other| *other < number).map(|other| (other, path)));
    }
    older.sort_unstable_by(|one, other| other.cmp(one));
    for (_, path) in older {
        std::fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
    }
    Ok(())
}

/// Empty: whatever an earlier process left under that name counts no more.
pub(super) fn open_notes(dir: &Path, number: u64) -> Result<File, StoreError> {
    let path = notes_path(dir, number);
    File::create(&path).map_err(StoreError::io("create", &path))
}

/// Number and index of an image, whose layouts go to `files`; nothing where there is none.
pub(super) fn read_image(
    path: &Path,
    files: &mut ByKey,
) -> Result<Option<(u64, LogIndex)>, StoreError> {
    let damaged = |what: &str| damaged(path, what);
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let dir = path.parent().expect("it is in a directory");
            // The first notes go only when an image is there.
            let is_gone = has_notes(dir)? && !notes_path(dir, 0).exists();
            return if is_gone { Err(damaged("it is gone")) } else { Ok(None) };
        }
        Err(source) => return Err(StoreError::io("read", path)(source)),
    };
    let torn = || damaged("its checksum does not agree with what it holds");
    let (content, checksum) = bytes.split_last_chunk::<8>().ok_or_else(torn)?;
    let header: [u64; 3] = std::array::from_fn(|field| integer(content, field).unwrap_or(0));
    let is_whole = u64::from(crc32c::crc32c(content)) == u64::from_le_bytes(*checksum);
    if is_whole && let Some(found) = newer_format(header[0]) {
        let (path, supported) = (path.to_owned(), FORMAT);
        return Err(StoreError::Newer { path, what: "format", found, supported });
    }
    let records = content.get(IMAGE_HEADER..).filter(|_| is_whole && header[0] == MAGIC);
    let records = records.ok_or_else(torn)?.chunks_exact(RECORD);
    take_notes(records, files, &mut HashSet::new());
    Ok(Some((header[1], LogIndex(header[2]))))
}

/// The last byte of the magic is the format, as a digit.
fn newer_format(magic: u64) -> Option<u64> {
    let found = (magic >> 56).wrapping_sub(u64::from(b'0'));
    (magic << 8 == MAGIC << 8 && (FORMAT + 1..10).contains(&found)).then_some(found)
}

/// False where there are no such notes. Files of which something was missing, and came, are `regained`.
pub(super) fn take_notes_of(
    path: &Path,
    files: &mut ByKey,
    regained: &mut HashSet<Key>,
) -> Result<bool, StoreError> {
    match std::fs::read(path) {
        Ok(bytes) => take_notes(records(&bytes, RECORD).flatten(), files, regained),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(StoreError::io("read", path)(source)),
    }
    Ok(true)
}

/// A record that is not whole is what a process was writing when it died: its change had not begun.
fn take_notes<'a>(
    records: impl Iterator<Item = &'a [u8]>,
    files: &mut ByKey,
    regained: &mut HashSet<Key>,
) {
    for (key, range, note) in records.filter_map(decode) {
        let came = matches!(note, Note::InPlace | Note::Away(Away::Staged { .. }));
        if came && files.get(&key).is_some_and(|layout| layout.missing(range).next().is_some()) {
            regained.insert(key);
        }
        match note {
            Note::InPlace => files.entry(key).or_default().clear(range),
            Note::Away(away) => files.entry(key).or_default().set(range, away),
            Note::Gone => drop(files.remove(&key)),
        }
    }
}

pub(super) fn encode((ino, generation): Key, range: ByteRange, note: Note) -> [u8; RECORD] {
    let [kind, one, two] = match note {
        Note::InPlace => [0, 0, 0],
        Note::Away(Away::Staged { index, shift }) => [1, index.0, shift],
        Note::Away(Away::Missing { version }) => [2, version.0, 0],
        Note::Gone => [3, 0, 0],
        Note::Away(Away::Doubted { version, is_agreed }) => [4, version.0, u64::from(is_agreed)],
    };
    let fields = [kind, ino.0, generation.0, range.start, range.end, one, two];
    let mut record = [0; RECORD];
    for (bytes, field) in record.chunks_exact_mut(8).zip(fields) {
        bytes.copy_from_slice(&field.to_le_bytes());
    }
    record
}

fn decode(record: &[u8]) -> Option<(Key, ByteRange, Note)> {
    let field = |number| integer(record, number);
    let index = LogIndex(field(5)?);
    let note = match field(0)? {
        0 => Note::InPlace,
        1 => Note::Away(Away::Staged { index, shift: field(6)? }),
        2 => Note::Away(Away::Missing { version: index }),
        3 => Note::Gone,
        4 => Note::Away(Away::Doubted { version: index, is_agreed: field(6)? == 1 }),
        _ => return None,
    };
    let range = ByteRange { start: field(3)?, end: field(4)? };
    Some(((Ino(field(1)?), Generation(field(2)?)), range, note))
}

fn integer(bytes: &[u8], number: usize) -> Option<u64> {
    let bytes = bytes.get(8 * number..8 * number + 8)?;
    Some(u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
}
