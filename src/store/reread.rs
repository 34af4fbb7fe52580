//! Reading what the disk has, and not what the kernel remembers of it.
//!
//! Where the kernel could not write a page it keeps it, readable and clean, and says so once. Whoever believed such bytes
//! would acknowledge what a power loss takes away. So before anything is believed that others count on, it is synced,
//! which brings to the disk what can be, and forgotten, which takes away what only the kernel has.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use rustix::fs::{Advice, fadvise};

use crate::store::StoreError;

/// Has every file below `dir` read from the disk from now on.
///
/// # Errors
/// When one cannot be synced: what was lost is forgotten all the same.
pub(super) fn from_disk(dir: &Path) -> Result<(), StoreError> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(StoreError::io("list", dir))?,
    };
    let mut all = Ok(());
    for entry in entries {
        let entry = entry.map_err(StoreError::io("list", dir))?;
        let kind = entry.file_type().map_err(StoreError::io("stat", &entry.path()))?;
        let one = match kind {
            kind if kind.is_dir() => from_disk(&entry.path()),
            kind if kind.is_file() => reread(&entry.path()),
            // A link, in the copy of a directory that must stay as it is.
            _ => Ok(()),
        };
        all = all.and(one);
    }
    all
}

fn reread(path: &Path) -> Result<(), StoreError> {
    // One that cannot be opened is a matter of who reads it.
    let Ok(file) = File::open(path) else { return Ok(()) };
    let synced = file.sync_data();
    // Where it cannot be forgotten, it is in no cache.
    let _ = fadvise(&file, 0, None, Advice::DontNeed);
    synced.map_err(StoreError::io("sync", path))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsFd;

    use rustix::fs::statfs;

    use super::from_disk;
    use crate::store::sys;

    const TMPFS: i64 = 0x0102_1994;

    #[test]
    fn nothing_is_read_from_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        if statfs(dir.path()).unwrap().f_type == TMPFS {
            // It is nothing but a cache.
            return;
        }
        std::fs::create_dir(dir.path().join("below")).unwrap();
        let path = dir.path().join("below/file");
        let mut file = File::create(&path).unwrap();
        file.write_all(&[7; 10_000]).unwrap();
        let file = File::open(&path).unwrap();
        let is_cached = || {
            let mut bytes = [0; 10_000];
            sys::read_nowait(&file, 0, &mut bytes).is_ok_and(|len| len == bytes.len())
        };
        assert!(is_cached(), "{:?}", file.as_fd());
        from_disk(dir.path()).unwrap();
        assert!(!is_cached());
        assert_eq!(std::fs::read(&path).unwrap(), [7; 10_000]);
    }
}
