//! Files that are either the old or the new one after a crash, never a mixture; and syncs of which none comes after one
//! that has failed.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::datadir::distrust_state;
use crate::store::StoreError;

/// Locks that descriptors are spread over.
const DESCRIPTORS: usize = 64;

/// All syncs of what replicas hold for each other. One that fails does not say what is lost, and the next one succeeds: it
/// is refused, and the state is not to be believed, whatever ends the process next. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Syncs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The data directory.
    data: PathBuf,
    have_failed: AtomicBool,
    /// Of two syncs of a descriptor that overlap the kernel tells only one that bytes are lost.
    of_descriptors: [Mutex<()>; DESCRIPTORS],
    /// The next one fails.
    #[cfg(test)]
    is_to_fail: AtomicBool,
}

impl Syncs {
    /// Of a data directory.
    pub(super) fn of(data: &Path) -> Self {
        Self(Arc::new(Inner {
            data: data.to_owned(),
            have_failed: AtomicBool::new(false),
            of_descriptors: std::array::from_fn(|_| Mutex::default()),
            #[cfg(test)]
            is_to_fail: AtomicBool::new(false),
        }))
    }

    /// Syncs what is behind a descriptor, by `sync`.
    pub(super) fn sync(
        &self,
        file: &File,
        path: &Path,
        sync: impl FnOnce(&File) -> io::Result<()>,
    ) -> Result<(), StoreError> {
        let descriptor = usize::try_from(file.as_raw_fd()).expect("it is open");
        let _alone = self.0.of_descriptors[descriptor % DESCRIPTORS].lock();
        self.sync_alone(file, path, sync)
    }

    /// The same, where the caller sees to it that there is one at a time of this descriptor. It may take long.
    pub(super) fn sync_alone(
        &self,
        file: &File,
        path: &Path,
        sync: impl FnOnce(&File) -> io::Result<()>,
    ) -> Result<(), StoreError> {
        self.refuse_after_failure(path)?;
        #[cfg(test)]
        let sync = |file: &File| {
            let is_to_fail = self.0.is_to_fail.swap(false, Ordering::SeqCst);
            if is_to_fail { Err(rustix::io::Errno::IO.into()) } else { sync(file) }
        };
        sync(file).inspect_err(|_| self.fail()).map_err(StoreError::io("sync", path))
    }

    fn fail(&self) {
        self.0.have_failed.store(true, Ordering::SeqCst);
        if let Err(error) = distrust_state(&self.0.data) {
            // It is tried again when the replica stops.
            tracing::error!("{error}");
        }
    }

    /// Makes the names in a directory durable. Where it cannot be opened nothing is lost.
    fn sync_dir(&self, dir: &Path) -> Result<(), StoreError> {
        let opened = File::open(dir).map_err(StoreError::io("open", dir))?;
        self.sync_alone(&opened, dir, File::sync_all)
    }

    /// As [`replace`]. Where there is no room for the new file nothing is lost.
    pub(super) fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let beside = path.with_extension("tmp");
        let written =
            write(&beside, bytes).and_then(|file| self.sync_alone(&file, &beside, File::sync_all));
        written.inspect_err(|_| drop(std::fs::remove_file(&beside)))?;
        self.put_in_place(&beside, path)
    }

    /// Renames an fsynced file to its final name, durably.
    pub(super) fn put_in_place(&self, from: &Path, to: &Path) -> Result<(), StoreError> {
        self.refuse_after_failure(to)?;
        std::fs::rename(from, to).map_err(StoreError::io("rename into place", to))?;
        self.sync_parent(to)
    }

    /// Makes names created in, or removed from, the directory of `path` durable.
    pub(super) fn sync_parent(&self, path: &Path) -> Result<(), StoreError> {
        self.sync_dir(parent_of(path))
    }

    fn refuse_after_failure(&self, path: &Path) -> Result<(), StoreError> {
        if self.0.have_failed.load(Ordering::SeqCst) {
            let failed =
                io::Error::other("an earlier sync has failed, and what it lost is not known");
            return Err(StoreError::io("sync", path)(failed));
        }
        Ok(())
    }

    /// For tests: the next one fails, as where the disk could not write.
    #[cfg(test)]
    pub(super) fn fail_next(&self) {
        self.0.is_to_fail.store(true, Ordering::SeqCst);
    }
}

/// Replaces the file at `path`: written beside, fsynced, renamed into place, directory fsynced.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let beside = path.with_extension("tmp");
    write_synced(&beside, bytes).inspect_err(|_| drop(std::fs::remove_file(&beside)))?;
    put_in_place(&beside, path)
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    write(path, bytes)?.sync_all().map_err(StoreError::io("fsync", path))
}

fn write(path: &Path, bytes: &[u8]) -> Result<File, StoreError> {
    let mut file = File::create(path).map_err(StoreError::io("create", path))?;
    file.write_all(bytes).map_err(StoreError::io("write", path))?;
    Ok(file)
}

/// Renames an fsynced file to its final name, durably.
pub(super) fn put_in_place(from: &Path, to: &Path) -> Result<(), StoreError> {
    std::fs::rename(from, to).map_err(StoreError::io("rename into place", to))?;
    sync_parent(to)
}

/// Makes names created in, or removed from, the directory of `path` durable.
pub(super) fn sync_parent(path: &Path) -> Result<(), StoreError> {
    sync_dir(parent_of(path))
}

fn parent_of(path: &Path) -> &Path {
    path.parent().expect("every path that the store writes is in its directory")
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(StoreError::io("fsync", dir))
}

#[cfg(test)]
mod tests {
    use super::Syncs;

    /// A passing lack of descriptors, or of room for another file, is no reason to believe no disk any more.
    #[test]
    fn only_a_failed_sync_is_the_last_one() {
        let dir = tempfile::tempdir().unwrap();
        let (syncs, image) = (Syncs::of(dir.path()), dir.path().join("image"));
        let boot = dir.path().join("boot");
        std::fs::write(&boot, b"this one").unwrap();
        syncs.sync_dir(&dir.path().join("absent")).unwrap_err();
        std::fs::create_dir(dir.path().join("image.tmp")).unwrap();
        syncs.replace(&image, b"no room").unwrap_err();
        std::fs::remove_dir(dir.path().join("image.tmp")).unwrap();
        syncs.put_in_place(&dir.path().join("absent"), &image).unwrap_err();
        syncs.replace(&image, b"first").unwrap();
        syncs.sync_dir(dir.path()).unwrap();
        assert!(boot.exists());

        syncs.fail_next();
        syncs.replace(&image, b"lost").unwrap_err();
        assert!(!boot.exists(), "a kill in the next moment leaves no state that is believed");
        assert!(!dir.path().join("image.tmp").exists());
        for refused in [
            syncs.replace(&image, b"second"),
            syncs.sync_dir(dir.path()),
            syncs.put_in_place(&image, &dir.path().join("moved")),
        ] {
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains("an earlier sync has failed"), "{refused}");
        }
    }
}
