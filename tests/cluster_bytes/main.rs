//! Bytes of files as programs on several mounts see them: mappings, direct and synchronous I/O, appends,
//! truncation, execution, and files without a name.
#![allow(clippy::disallowed_methods, reason = "writers and readers are threads and programs")]

mod apart;
mod appends;
mod direct;
mod execution;
mod healing;
mod loose;
mod lost;
mod mappings;
mod overlapping;
mod passthrough;
mod scrub;
mod staged;
#[path = "../support/mod.rs"]
mod support;
mod synchronous;
mod truncation;
mod unlinked;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Opens for reading and writing, with flags of open(2); creates where there is none.
fn open(path: &Path, flags: i32) -> File {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).custom_flags(flags);
    options.open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Everything that a descriptor shows.
fn content(mut file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).expect("seek");
    file.read_to_end(&mut bytes).expect("read");
    bytes
}

/// Bytes none of which is zero, different for each seed.
fn pattern(seed: usize, len: usize) -> Vec<u8> {
    let byte =
        |at: usize| u8::try_from((at / 512 * 31 + at + seed * 101) % 255).expect("small") + 1;
    (0..len).map(byte).collect()
}

/// Where two files differ first, for messages.
#[track_caller]
fn assert_bytes(found: &[u8], wanted: &[u8], when: &str) {
    let differs = found.iter().zip(wanted).position(|(one, other)| one != other);
    let (found_len, wanted_len) = (found.len(), wanted.len());
    assert!(
        found == wanted,
        "{when}: {found_len} bytes where {wanted_len} were wanted, first other one at {differs:?}"
    );
}
