//! Whether the disk of a data directory answers at all.

use std::fs::File;
use std::io::{self, Write};

use rustix::fs::{Mode, OFlags};

use super::datadir::DataDir;

impl DataDir {
    /// Writes to the disk, and leaves nothing behind: returns when it has answered. Where it never does, neither does this.
    ///
    /// # Errors
    /// What it has answered, where that is no.
    pub fn ask_disk(&self) -> io::Result<()> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(self.path(), flags, Mode::RUSR | Mode::WUSR)?;
        let mut file = File::from(file);
        file.write_all(b"?")?;
        file.sync_data()
    }
}
