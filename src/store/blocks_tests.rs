//! Blocks that rot, on a replica by itself.

use std::fs::OpenOptions;

use bytes::Bytes;

use super::{CHECKSUM_BLOCK, FileExt, Files, Ino, Key, LogIndex, Steady};
use crate::fs::FileEffect;
use crate::types::{ByteRange, Generation};

const KEY: Key = (Ino(1), Generation(2));
const VERSION: LogIndex = LogIndex(3);

fn open(dir: &std::path::Path) -> Files {
    Files::open(&dir.join("files"), &dir.join("stages"), true).unwrap()
}

/// A file of some blocks and a bit, written by the entry at its version.
fn with_file(dir: &std::path::Path) -> (Files, Steady, Vec<u8>) {
    let files = open(dir);
    let len = usize::try_from(3 * CHECKSUM_BLOCK + 777).unwrap();
    let bytes: Vec<_> = (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect();
    write(&files, VERSION, 0, &bytes);
    let file = files.steady(KEY, VERSION, len as u64, VERSION).unwrap();
    (files, file, bytes)
}

fn write(files: &Files, index: LogIndex, offset: u64, data: &[u8]) {
    let data = Bytes::copy_from_slice(data);
    let effect = FileEffect::Write { ino: KEY.0, generation: KEY.1, offset, data };
    files.carry_out_all(index, &[effect]).unwrap();
}

fn sums(files: &Files, file: &Steady) -> Vec<u32> {
    let mut reader = files.read_blocks(file);
    (0..file.blocks()).map(|block| reader.sum(block).unwrap().unwrap()).collect()
}

fn flip(files: &Files, at: u64) {
    let path = files.path_of(KEY.0, KEY.1);
    let backing = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    backing.read_exact_at(&mut byte, at).unwrap();
    backing.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

#[test]
fn a_flipped_bit_is_found_and_missing() {
    let dir = tempfile::tempdir().unwrap();
    let (files, file, bytes) = with_file(dir.path());
    let before = sums(&files, &file);
    let block = usize::try_from(CHECKSUM_BLOCK).unwrap();
    let wanted: Vec<_> = bytes.chunks(block).map(crc32c::crc32c).collect();
    assert_eq!(before, wanted);
    assert!(files.rotten(&file, 0, &bytes).is_empty(), "nothing is known yet");
    files.keep_checksums(&file, 0, &before).unwrap();
    assert_eq!(files.checksums_of(&file, 0), Some(before.clone()));
    flip(&files, 3 * CHECKSUM_BLOCK + 5);
    let after = sums(&files, &file);
    assert_eq!(after[..3], before[..3]);
    assert_ne!(after[3], before[3]);
    let mut read = vec![0; bytes.len()];
    assert!(files.read(KEY.0, KEY.1, 0, &mut read).unwrap());
    assert_eq!(files.rotten(&file, 0, &read), [3]);
    assert_eq!(files.rotten(&file, 1, &read[1..]), [3]);
    assert!(files.rotten(&file, 0, &read[..read.len() - 1]).is_empty(), "no whole block");
    assert!(files.is_whole(KEY, ByteRange::from(0)));
    assert!(files.condemn(&file, &[3]).unwrap());
    assert_eq!(files.missing(KEY, ByteRange::from(0)), [(file.block(3), VERSION)]);
    files.install(KEY, 0, &bytes, VERSION).unwrap();
    assert!(files.is_whole(KEY, ByteRange::from(0)));
    assert_eq!(sums(&files, &file), before);
}

/// A file that was changed since it was looked at is not judged by that, and keeps no checksums of it.
#[test]
fn what_changed_meanwhile_is_not_judged() {
    let dir = tempfile::tempdir().unwrap();
    let (files, file, _) = with_file(dir.path());
    let known = sums(&files, &file);
    let later = LogIndex(4);
    write(&files, later, 10, b"other bytes");
    assert!(!files.is_still(&file));
    assert!(!files.condemn(&file, &[0]).unwrap());
    assert!(files.is_whole(KEY, ByteRange::from(0)));
    files.keep_checksums(&file, 0, &known).unwrap();
    assert_eq!(files.checksums_of(&file, 0), None);
    assert_eq!(
        files.steady(KEY, VERSION, file.size, VERSION),
        None,
        "its entry is not in the state"
    );
    assert!(files.steady(KEY, later, file.size, later).is_some());
}

/// Where there is no file, or a hole in it, there are zeros.
#[test]
fn holes_are_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path());
    let zeros = crc32c::crc32c(&vec![0; usize::try_from(CHECKSUM_BLOCK).unwrap()]);
    let size = 5 * CHECKSUM_BLOCK;
    let file = files.steady(KEY, VERSION, size, VERSION).unwrap();
    assert_eq!(sums(&files, &file), [zeros; 5]);
    write(&files, VERSION, 2 * CHECKSUM_BLOCK, b"x");
    let file = files.steady(KEY, VERSION, size, VERSION).unwrap();
    let found = sums(&files, &file);
    assert_eq!([found[0], found[1], found[3], found[4]], [zeros; 4]);
    assert_ne!(found[2], zeros);
}

/// A file that comes to be after somebody began to read it is not taken for zeros.
#[test]
fn a_file_may_come_while_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path());
    let file = files.steady(KEY, VERSION, 10, VERSION).unwrap();
    let mut reader = files.read_blocks(&file);
    assert_eq!(reader.sum(0).unwrap(), Some(crc32c::crc32c(&[0; 10])));
    assert!(files.condemn(&file, &[0]).unwrap());
    files.install(KEY, 0, b"ten bytes.", VERSION).unwrap();
    assert_eq!(reader.sum(0).unwrap(), Some(crc32c::crc32c(b"ten bytes.")));
}

/// What the disk cannot read is no error, but missing. The memory of a process is a file like that.
#[test]
fn what_cannot_be_read_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (files, file, bytes) = with_file(dir.path());
    drop(files);
    let files = open(dir.path());
    let path = files.path_of(KEY.0, KEY.1);
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/proc/self/mem", &path).unwrap();
    let mut read = vec![0; bytes.len()];
    assert!(!files.read_cached(KEY.0, KEY.1, 0, &mut read).unwrap(), "`read` says why");
    assert!(files.read(KEY.0, KEY.1, 0, &mut read).is_err());
    let file = files.steady(KEY, VERSION, file.size, VERSION).unwrap();
    assert_eq!(files.read_blocks(&file).sum(1).unwrap(), None);
    assert!(files.condemn(&file, &[1]).unwrap());
    assert!(!files.read(KEY.0, KEY.1, CHECKSUM_BLOCK, &mut read[..10]).unwrap(), "missing");
}

/// Checksums go with the generation that they are of.
#[test]
fn a_removed_file_has_no_checksums() {
    let dir = tempfile::tempdir().unwrap();
    let (files, file, _) = with_file(dir.path());
    files.keep_checksums(&file, 0, &sums(&files, &file)).unwrap();
    let remove = FileEffect::Remove { ino: KEY.0, generation: KEY.1 };
    files.carry_out_all(LogIndex(4), &[remove]).unwrap();
    let kept = std::fs::read_dir(dir.path().join("checksums/00")).unwrap();
    assert_eq!(kept.count(), 0);
}

/// Bytes that peers have between them are believed where they make up the block that is known, and not otherwise.
#[test]
fn what_is_put_together_is_judged_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (files, file, bytes) = with_file(dir.path());
    let at = |range: ByteRange| {
        &bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
    };
    let range = |start, end| ByteRange { start: CHECKSUM_BLOCK + start, end: CHECKSUM_BLOCK + end };
    let [one, other] = [range(0, 50_000), range(50_000, CHECKSUM_BLOCK)];
    let misfits = |range: ByteRange, data: &[u8]| files.misfits(&file, range.start, data).unwrap();
    assert!(files.condemn(&file, &[1]).unwrap());
    assert_eq!(misfits(one, b"whatever"), [0_u64; 0], "nothing is known");
    files.install(KEY, CHECKSUM_BLOCK, at(file.block(1)), VERSION).unwrap();
    files.keep_checksums(&file, 0, &sums(&files, &file)).unwrap();

    assert!(files.condemn(&file, &[1]).unwrap());
    assert_eq!(misfits(one, &vec![0; 50_000]), [0_u64; 0], "the rest of it is not here");
    let mut rotten = at(one).to_vec();
    rotten[77] ^= 1;
    files.install(KEY, one.start, &rotten, VERSION).unwrap();
    assert_eq!(misfits(other, at(other)), [1], "the part that came before is wrong");
    assert_eq!(misfits(range(50_000, 60_000), at(range(50_000, 60_000))), [0_u64; 0]);
    let behind = range(50_000, CHECKSUM_BLOCK + 9);
    assert_eq!(misfits(behind, at(behind)), [1], "also with more behind it");

    assert!(files.condemn(&file, &[1]).unwrap());
    files.install(KEY, other.start, at(other), VERSION).unwrap();
    assert_eq!(misfits(one, at(one)), [0_u64; 0]);
    assert_eq!(misfits(one, &rotten), [1]);
    let before = ByteRange { start: 5, ..one };
    assert_eq!(misfits(before, at(before)), [0_u64; 0], "what is here already is left alone");
    files.install(KEY, one.start, at(one), VERSION).unwrap();
    assert_eq!(misfits(one, &rotten), [0_u64; 0], "it takes the place of nothing");

    // The last block ends with the file; what lies behind it comes as zeros.
    assert!(files.condemn(&file, &[3]).unwrap());
    let tail = ByteRange { start: file.block(3).start + 700, end: file.size + 1000 };
    let head = ByteRange { end: tail.start, ..file.block(3) };
    files.install(KEY, head.start, at(head), VERSION).unwrap();
    let mut data = at(ByteRange { end: file.size, ..tail }).to_vec();
    data.resize(1077, 0);
    assert_eq!(misfits(tail, &data), [0_u64; 0]);
    data[3] ^= 1;
    assert_eq!(misfits(tail, &data), [3]);
}
