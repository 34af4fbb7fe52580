//! Disks of which all can be cloned at one moment: what is in the clone is what was there when the power went.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::copy_file_range;

use super::support::{PATIENCE, succeed, wait_until};

/// Of one disk. It takes no room before it is used.
const DISK: u64 = 1 << 30;

/// One file on an XFS, which holds the disks of all nodes one behind the other, each with an ext4 of its own.
///
/// They are in *one* file, because the kernel clones a file at one moment (`ioctl_ficlonerange(2)`): were each cloned at a
/// moment of its own, then a node could have told others, between its own clone and theirs, of what its clone has forgotten. That
/// is no power loss; it is a disk that lies.
#[derive(Debug)]
pub struct Disks {
    xfs: PathBuf,
    image: PathBuf,
    clones: usize,
    mounted: Vec<PathBuf>,
}

/// A clone of all disks: what they were at one moment.
#[derive(Debug)]
pub struct Moment(PathBuf);

impl Disks {
    /// In a directory: an XFS, on it the disks, which are mounted at the places given.
    pub fn make(dir: &Path, places: &[PathBuf]) -> Self {
        let (xfs, below) = (dir.join("xfs"), dir.join("xfs.image"));
        fs::create_dir(&xfs).expect("mkdir");
        let disks = places.len() as u64;
        sparse(&below, 3 * disks * DISK);
        succeed(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&below));
        succeed(Command::new("mount").args(["-o", "loop,discard"]).arg(&below).arg(&xfs));
        let image = xfs.join("0");
        let mut made = Self { xfs, image, clones: 0, mounted: Vec::new() };
        sparse(&made.image, disks * DISK);
        // All before the first one is mounted: then the image is in use.
        (0..places.len()).for_each(|number| make_ext4(&made.image, number));
        for (number, place) in places.iter().enumerate() {
            fs::create_dir_all(place).expect("mkdir");
            mount_disk(&made.image, number, place);
            fs::remove_dir(place.join("lost+found")).expect("a fresh file system");
            made.mounted.push(place.clone());
        }
        made
    }

    /// Clones all disks, which are in use.
    pub fn clone_all(&mut self) -> Moment {
        self.clones += 1;
        let clone = self.xfs.join(self.clones.to_string());
        succeed(Command::new("cp").arg("--reflink=always").arg(&self.image).arg(&clone));
        Moment(clone)
    }

    /// From now on all places show the clone, which is what the disks are. Nobody uses them.
    pub fn become_clone(&mut self, clone: Moment) {
        for (number, place) in self.mounted.iter().enumerate() {
            unmount(place);
            mount_disk(&clone.0, number, place);
        }
        fs::remove_file(&self.image).expect("unlink");
        self.image = clone.0;
    }

    /// From now on one disk is as it is in the clone, and the others are as they are. Nobody uses it.
    pub fn one_becomes_clone(&mut self, number: usize, clone: &Moment) {
        let place = &self.mounted[number];
        unmount(place);
        let from = File::open(&clone.0).expect("open");
        let to = File::options().write(true).open(&self.image).expect("open");
        copy(&from, &to, number as u64 * DISK);
        fs::remove_file(&clone.0).expect("unlink");
        mount_disk(&self.image, number, place);
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for place in self.mounted.iter().chain([&self.xfs]) {
            let unmounted = Command::new("umount").arg("--lazy").arg(place).status();
            let unmounted = unmounted.is_ok_and(|status| status.success());
            assert!(unmounted || std::thread::panicking(), "{} stays mounted", place.display());
        }
    }
}

fn sparse(path: &Path, bytes: u64) {
    File::create(path).and_then(|file| file.set_len(bytes)).expect("an image");
}

fn make_ext4(image: &Path, number: usize) {
    let offset = format!("offset={}", number as u64 * DISK);
    let mut make = Command::new("mkfs.ext4");
    make.args(["-q", "-F", "-b", "4096", "-m", "0", "-E", &offset]).arg(image);
    succeed(make.arg((DISK / 4096).to_string()));
}

fn mount_disk(image: &Path, number: usize, place: &Path) {
    let options = format!("loop,offset={},sizelimit={DISK}", number as u64 * DISK);
    succeed(Command::new("mount").args(["-t", "ext4", "-o", &options]).arg(image).arg(place));
}

/// What a killed daemon had open may be a moment in closing.
fn unmount(place: &Path) {
    wait_until(PATIENCE, "a disk to be free", || {
        Command::new("umount").arg(place).output().expect("it runs").status.success().then_some(())
    });
}

/// Copies a disk to the same place of another image, which shares its blocks then.
fn copy(from: &File, to: &File, start: u64) {
    let (mut source, mut target) = (start, start);
    while source < start + DISK {
        let left = usize::try_from(start + DISK - source).expect("it fits into memory");
        let copied = copy_file_range(from, Some(&mut source), to, Some(&mut target), left);
        assert!(copied.expect("copy") > 0, "the image ends at {source}");
    }
}
