//! A disk that cannot write some blocks for a while, and a kernel that keeps, readable, what was to be in them.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FallocateFlags, fallocate};

use super::daemon::{data, ends, files_like, pid_of, until_gone};
use super::pattern;
use super::support::disk::SmallDisk;
use super::support::{Cluster, PATIENCE, succeed, text, wait_until, write_and_sync};

const BLOCK: u64 = 4096;
const DISK: u64 = 256 << 20;
/// What the node may still write behind the end of its log before the fault begins.
const MARGIN: u64 = 64 << 10;

/// Memory that a disk is in, until this is dropped.
pub(super) struct Memory(PathBuf);

impl Memory {
    pub(super) fn mount(at: &Path, options: &str) -> Self {
        fs::create_dir_all(at).expect("a directory");
        succeed(Command::new("mount").args(["-t", "tmpfs", "-o", options, "none"]).arg(at));
        Self(at.to_owned())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        let unmounted = unmounted.is_ok_and(|status| status.success());
        assert!(unmounted || std::thread::panicking(), "{} stays mounted", self.0.display());
    }
}

/// A loop device takes a write that is cut short for a whole one: no write is to be longer than what fails.
fn write_single_blocks(mounted: &Path) {
    let source = succeed(Command::new("findmnt").args(["-no", "SOURCE"]).arg(mounted)).stdout;
    let device = text(&source).trim().replace("/dev/", "");
    let kilobytes = (BLOCK / 1024).to_string();
    fs::write(format!("/sys/block/{device}/queue/max_sectors_kb"), kilobytes).expect("root");
}

/// Where blocks of a file are on its disk: the first of a run in the file, the first on the disk, how many.
fn extents(path: &Path) -> Vec<(u64, u64, u64)> {
    let listed = succeed(Command::new("filefrag").args(["-v", "-b4096"]).arg(path));
    let numbers = |line: &str| -> Vec<u64> {
        let parts = line.split(|byte: char| !byte.is_ascii_digit());
        parts.filter_map(|part| part.parse().ok()).collect()
    };
    let text = text(&listed.stdout);
    let is_extent = |line: &&str| line.contains("..") && line.matches(':').count() >= 4;
    let all = text.lines().filter(is_extent).map(numbers);
    all.map(|fields| (fields[1], fields[3], fields[5])).collect()
}

/// As the disk has it.
fn on_disk(path: &Path) -> Vec<u8> {
    let source = format!("if={}", path.display());
    succeed(Command::new("dd").args(["iflag=direct", "bs=1M", "status=none", &source])).stdout
}

/// The last file of a log.
fn last_log_file(log: &Path) -> PathBuf {
    files_like(log, ".raftlog").pop().expect("a log")
}

/// The fsync of an entry fails, and the next daemon would find it in the kernel's cache all the same: acknowledged then, it
/// would be gone after a power loss. What a start reads is on the disk.
#[test]
#[ignore = "long"]
fn a_start_believes_only_what_is_on_the_disk() {
    let mut disk = None;
    let cluster = Cluster::up_in(3, |dir| {
        let memory = Memory::mount(&dir.join("memory"), &format!("size={}", DISK + (1 << 20)));
        let small = SmallDisk::mount(&dir.join("memory/disk"), DISK);
        fs::create_dir_all(dir.join("n3")).expect("a directory");
        symlink(small.path(), dir.join("n3/data")).expect("a link");
        disk = Some((memory, small));
    });
    // The second one is in the first, and goes before it.
    let (memory, small) = disk.expect("mounted");
    // Every block of it can be written, but those that are taken away below.
    let image = File::options().write(true).open(small.path().with_extension("image"));
    let image = image.expect("open");
    fallocate(&image, FallocateFlags::empty(), 0, DISK).expect("there is room");
    write_single_blocks(small.path());
    write_and_sync(&cluster.mount(3).join("before"), b"before").expect("write");
    cluster.leader_beside(3);
    cluster.settle();
    let (pid, log) = (pid_of(&cluster, 3), data(&cluster, 3).join("log"));
    let file = last_log_file(&log);
    let bytes = fs::read(&file).expect("read");
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at as u64 + 1);
    let from = (end + MARGIN).div_ceil(BLOCK);
    for (first, place, count) in extents(&file) {
        let skipped = from.saturating_sub(first);
        if skipped < count {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let (at, len) = ((place + skipped) * BLOCK, (count - skipped) * BLOCK);
            fallocate(&image, flags, at, len).expect("they hold zeros");
        }
    }
    let stuffing = memory.0.join("stuffing");
    let mut filling = File::create(&stuffing).expect("a file");
    while filling.write_all(&[7; 4096]).is_ok() {}
    let mut names = Vec::new();
    wait_until(PATIENCE, "the log to fail", || {
        let name = format!("f{}", names.len());
        write_and_sync(&cluster.mount(1).join(&name), &pattern(names.len(), 3000))
            .expect("two are a quorum");
        names.push(name);
        (!Path::new(&format!("/proc/{pid}/exe")).exists()).then_some(())
    });
    until_gone(pid);
    drop(filling);
    fs::remove_file(&stuffing).expect("remove");
    let ends = ends(&cluster, 3);
    assert!(ends.contains("failed") && ends.contains("the Raft log"), "{ends}");
    let is_as_read = |path: &Path| fs::read(path).expect("read") == on_disk(path);
    assert!(!is_as_read(&file), "otherwise the kernel has kept nothing, and this tests nothing");
    cluster.start(3);
    cluster.settle();
    for file in files_like(&log, ".raftlog") {
        // The daemon may be writing. What was lost never comes to the disk.
        let what = format!("{} to be on the disk as it is read", file.display());
        wait_until(PATIENCE, &what, || is_as_read(&file).then_some(()));
    }
    for (number, name) in names.iter().enumerate() {
        let found = fs::read(cluster.mount(3).join(name)).expect("read");
        assert!(found == pattern(number, 3000), "{name}");
    }
    cluster.down();
    drop((image, small));
    drop(memory);
}
