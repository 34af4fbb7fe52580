//! A file that was fsynced, and then written over in place and closed: after the power of all has gone it has these bytes
//! or those, and no error.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::support::write_and_sync;

const NAME: &str = "rewritten";
const BLOCK: usize = 64 << 10;
const BLOCKS: usize = 24;
/// Those that are written over, by one call.
const OVER: std::ops::Range<usize> = 5..17;

/// Long before the power goes.
pub fn write(mount: &Path) {
    write_and_sync(&mount.join(NAME), &(0..BLOCKS).flat_map(old).collect::<Vec<_>>())
        .expect("write");
}

/// Just before.
pub fn write_over(mount: &Path) {
    let file = OpenOptions::new().write(true).open(mount.join(NAME)).expect("open");
    let bytes: Vec<u8> = OVER.flat_map(new).collect();
    file.write_all_at(&bytes, (OVER.start * BLOCK) as u64).expect("write");
}

/// On all mounts; then it goes.
pub fn check(mounts: &[PathBuf]) {
    for mount in mounts {
        let bytes = fs::read(mount.join(NAME)).expect("read");
        assert_eq!(bytes.len(), BLOCKS * BLOCK);
        for (number, found) in bytes.chunks_exact(BLOCK).enumerate() {
            let may_be_new = OVER.contains(&number) && found == new(number);
            assert!(
                may_be_new || found == old(number),
                "block {number} is neither the old nor the new one"
            );
        }
    }
    fs::remove_file(mounts[0].join(NAME)).expect("removal");
}

fn old(number: usize) -> Vec<u8> {
    block("old", number)
}

fn new(number: usize) -> Vec<u8> {
    block("new", number)
}

fn block(which: &str, number: usize) -> Vec<u8> {
    format!("block {number}, the {which} one\n")
        .into_bytes()
        .into_iter()
        .cycle()
        .take(BLOCK)
        .collect()
}
