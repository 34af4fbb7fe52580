//! Removed backing files, kept empty for files to come.
//!
//! ext4 does not give out the inode of a removed file again for a minute, and looks at each such inode whenever
//! it makes a file: behind a thousand removals, making one costs 0.3 ms instead of 0.03. Programs remove and create
//! all the time (lock files, journals, temporary names), on every replica. Giving a removed file a new name costs two
//! renames and leaves the allocator alone.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::store::StoreError;

/// Files that are kept at most, each with its descriptor.
const SPARES: usize = 256;

/// Empty files without a generation, `spare/<n>`.
#[derive(Debug)]
pub(super) struct Spares {
    path: PathBuf,
    kept: Mutex<Vec<Spare>>,
}

#[derive(Debug)]
struct Spare {
    path: PathBuf,
    file: File,
}

impl Spares {
    /// None yet: those of an earlier process are removed.
    pub(super) fn open(path: PathBuf) -> Result<Self, StoreError> {
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(StoreError::io("remove", &path)(error));
            }
            _ => std::fs::create_dir_all(&path).map_err(StoreError::io("create", &path))?,
        }
        Ok(Self { path, kept: Mutex::new(Vec::new()) })
    }

    /// Takes the file at `path` away from there and keeps it; false where that is not to be had, and the file is
    /// where it was. `file` must be the only descriptor of it: whoever had another would see a
    /// stranger's bytes.
    pub(super) fn keep(&self, path: &Path, file: File) -> bool {
        let mut kept = self.kept.lock();
        // Spares are given out last in, first out: the number of those that are there is a free name.
        let spare = self.path.join(kept.len().to_string());
        if kept.len() == SPARES
            || renameat_with(CWD, path, CWD, &spare, RenameFlags::NOREPLACE).is_err()
        {
            return false;
        }
        match file.set_len(0) {
            Ok(()) => kept.push(Spare { path: spare, file }),
            // It has lost its name, which is what removal is about; it goes with its descriptor.
            Err(_) => drop(std::fs::remove_file(spare)),
        }
        true
    }

    /// An empty file that is now at `path`; nothing where no spare is left.
    ///
    /// # Errors
    /// `AlreadyExists` where there is a file, `NotFound` where its directory is not there, what else the local file system says.
    pub(super) fn take(&self, path: &Path) -> io::Result<Option<File>> {
        let mut kept = self.kept.lock();
        let Some(spare) = kept.last() else { return Ok(None) };
        renameat_with(CWD, &spare.path, CWD, path, RenameFlags::NOREPLACE)?;
        Ok(kept.pop().map(|spare| spare.file))
    }
}
