//! Small disks for tests that fill them, or have them hang.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::succeed;

/// A small file system in a file, mounted until it is dropped. `scripts/test` unmounts what a test that
/// was killed leaves behind, and the kernel then gives the loop device back.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Over the directory `at`, which is made.
    pub fn mount(at: &Path, bytes: u64) -> Self {
        fs::create_dir_all(at).expect("a directory");
        let image = at.with_extension("image");
        File::create(&image).and_then(|image| image.set_len(bytes)).expect("an image");
        // With blocks of 4 KiB, as any larger one has: files can be as large as files may be.
        succeed(Command::new("mkfs.ext4").args(["-q", "-b", "4096", "-m", "0"]).arg(&image));
        succeed(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(at));
        fs::remove_dir(at.join("lost+found")).expect("a fresh file system");
        Self(at.to_owned())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        let unmounted = unmounted.is_ok_and(|status| status.success());
        assert!(unmounted || std::thread::panicking(), "{} stays mounted", self.0.display());
    }
}

/// A file system that takes in nothing until this is dropped: whoever writes to it hangs. Another process has it go on,
/// also where the test cannot, because it was killed or hangs itself.
#[derive(Debug)]
pub struct Frozen<'a> {
    disk: &'a SmallDisk,
    thawing: Child,
}

impl<'a> Frozen<'a> {
    pub fn freeze(disk: &'a SmallDisk) -> Self {
        // It reads until this process closes the pipe, or ends. Who ends the test with its process group does not end it.
        let script = "timeout 60 cat; exec fsfreeze --unfreeze \"$1\"";
        let mut thawing = Command::new("sh");
        thawing.args(["-c", script, "sh"]).arg(disk.path()).stdin(Stdio::piped()).process_group(0);
        let frozen = Self { disk, thawing: thawing.spawn().expect("a shell") };
        succeed(Command::new("fsfreeze").arg("--freeze").arg(disk.path()));
        frozen
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // It closes the pipe first.
        let thawed = self.thawing.wait().is_ok_and(|status| status.success());
        assert!(thawed || std::thread::panicking(), "{} stays frozen", self.disk.path().display());
    }
}
