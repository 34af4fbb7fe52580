//! Empty backing files for files to come: removed ones, and some that are made ahead.
//!
//! ext4 does not give out the inode of a removed file again for minutes, and looks at each such inode of a
//! directory's block group whenever it makes a file in that: behind some thousand removals, whoever did them,
//! making one costs 0.2 to 0.7 ms instead of 0.03. Programs remove and create all the time (lock files, journals, temporary
//! names), on every replica. Giving a removed file a new name leaves the allocator alone. What has to be made, a
//! thread makes before a program waits for it, in directories that ext4 is asked to keep far from others and each other.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use rustix::fs::{CWD, IFlags, RenameFlags, ioctl_getflags, ioctl_setflags, renameat_with};

use crate::store::StoreError;

/// Files that are kept at most, each with its descriptor.
pub(super) const SPARES: usize = 256;
/// So many are made ahead, once there are fewer than half of that.
const AHEAD: usize = 64;
/// Directories that they are in.
const DIRECTORIES: u64 = 16;

/// Empty files without a generation, `spare/<d>/<n>`.
#[derive(Debug)]
pub(super) struct Spares {
    kept: Arc<Kept>,
    /// What is asked of the maker, which ends when this does.
    wanted: Option<Sender<()>>,
    maker: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Kept {
    path: PathBuf,
    last: AtomicU64,
    spares: Mutex<Vec<Spare>>,
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
        spread(&path);
        for number in 0..DIRECTORIES {
            let dir = path.join(number.to_string());
            std::fs::create_dir(&dir).map_err(StoreError::io("create", &dir))?;
        }
        let kept = Arc::new(Kept { path, last: AtomicU64::new(0), spares: Mutex::default() });
        let (wanted, requests) = bounded(1);
        let of_maker = kept.clone();
        let maker = move || of_maker.make_ahead(&requests);
        let started = thread::Builder::new().name("spares".to_owned()).spawn(maker);
        let maker = started.map_err(StoreError::io("start a thread for", &kept.path))?;
        Ok(Self { kept, wanted: Some(wanted), maker: Some(maker) })
    }

    /// Takes the file at `path` away from there and keeps it; false where that is not to be had, and the file is
    /// where it was. `file` must be the only descriptor of it: whoever had another would see a
    /// stranger's bytes.
    pub(super) fn keep(&self, path: &Path, file: File) -> bool {
        let mut spares = self.kept.spares.lock();
        let spare = self.kept.new_path();
        if spares.len() >= SPARES
            || renameat_with(CWD, path, CWD, &spare, RenameFlags::NOREPLACE).is_err()
        {
            return false;
        }
        match file.set_len(0) {
            Ok(()) => spares.push(Spare { path: spare, file }),
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
        let mut spares = self.kept.spares.lock();
        if spares.len() < AHEAD / 2
            && let Some(wanted) = &self.wanted
        {
            // It may have been asked already.
            let _ = wanted.try_send(());
        }
        let Some(spare) = spares.last() else { return Ok(None) };
        renameat_with(CWD, &spare.path, CWD, path, RenameFlags::NOREPLACE)?;
        Ok(spares.pop().map(|spare| spare.file))
    }
}

impl Drop for Spares {
    /// Whoever opens the directory next finds nobody at work in it.
    fn drop(&mut self) {
        self.wanted = None;
        if let Some(maker) = self.maker.take() {
            let _ = maker.join();
        }
    }
}

impl Kept {
    fn new_path(&self) -> PathBuf {
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        self.path.join(format!("{}/{number}", number % DIRECTORIES))
    }

    fn make_ahead(&self, requests: &Receiver<()>) {
        for () in requests {
            while self.spares.lock().len() < AHEAD {
                let path = self.new_path();
                let made = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
                // Where none can be made, whoever needs one finds out why.
                let Ok(file) = made else { break };
                self.spares.lock().push(Spare { path, file });
            }
        }
    }
}

/// Asks for the directories that are going to be made in `path` to be spread over the disk, where the local file
/// system knows that.
fn spread(path: &Path) {
    let Ok(dir) = File::open(path) else { return };
    if let Ok(flags) = ioctl_getflags(&dir) {
        let _ = ioctl_setflags(&dir, flags | IFlags::TOPDIR);
    }
}
