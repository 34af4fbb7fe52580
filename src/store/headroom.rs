//! Whether the disk of a data directory takes in what a start writes.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::datadir::DataDir;
use super::room::is_full;
use crate::store::StoreError;

/// What is taken to find out, for a moment.
pub(super) const TRIAL: &str = "room.tmp";
/// Files that a start makes, and some more.
const FILES: usize = 32;

impl DataDir {
    /// Bytes that its disk still takes in, from this process.
    ///
    /// # Errors
    /// When the local file system cannot say.
    pub fn available(&self) -> Result<u64, StoreError> {
        let path = self.path();
        let asked = rustix::fs::statvfs(path);
        let space =
            asked.map_err(|errno| StoreError::io("ask the space of", path)(errno.into()))?;
        // The reserve of the file system is root's.
        let blocks =
            if rustix::process::geteuid().is_root() { space.f_bfree } else { space.f_bavail };
        Ok(blocks * space.f_frsize)
    }

    /// Whether it takes in so many bytes, and the files of a start. It is tried: what is left shows neither a quota nor a lack of
    /// inodes. Where there are fewer bytes left, nobody else is deprived of them.
    ///
    /// # Errors
    /// When the local file system refuses for another reason.
    pub fn takes_in(&self, bytes: u64) -> Result<bool, StoreError> {
        if self.available()? < bytes {
            return Ok(false);
        }
        let trial = self.path().join(TRIAL);
        let tried = take(&trial, bytes);
        let removed = std::fs::remove_dir_all(&trial);
        match tried {
            Err(error) if is_full(&error) => Ok(false),
            tried => tried
                .and(removed)
                .map(|()| true)
                .map_err(StoreError::io("find out whether there is room in", &trial)),
        }
    }
}

fn take(trial: &Path, bytes: u64) -> io::Result<()> {
    std::fs::create_dir_all(trial)?;
    for number in 0..FILES {
        File::create(trial.join(number.to_string()))?;
    }
    let file = File::create(trial.join("bytes"))?;
    match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        // What is left is all that is known.
        Err(Errno::OPNOTSUPP) => Ok(()),
        taken => Ok(taken?),
    }
}

#[cfg(test)]
mod tests {
    use super::{TRIAL, take};
    use crate::store::test_replica::Author;

    #[test]
    fn room_is_tried_and_given_back() {
        let author = Author::new();
        let data = author.open("boot");
        assert!(data.takes_in(1 << 20).unwrap());
        assert!(!data.takes_in(u64::MAX / 2).unwrap(), "nobody has so much");
        let trial = author.data().join(TRIAL);
        assert!(!trial.exists());
        // One that was killed meanwhile.
        take(&trial, 1 << 16).unwrap();
        data.remove_leftovers().unwrap();
        assert!(!trial.exists());
    }
}
