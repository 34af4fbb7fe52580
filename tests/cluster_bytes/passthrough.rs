//! Large files that the kernel reads by itself, and programs that write to them meanwhile.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::staged::assert_backing;
use super::support::python::Python;
use super::support::{
    Cluster, PATIENCE, quorumfs, succeed, temporary_dir, wait_until, write_and_sync,
};
use super::{assert_bytes, content, open, pattern};

const MIB: usize = 1 << 20;

/// Whether the kernel reads it by itself: the daemon of the mount is stopped meanwhile.
fn is_read_without_daemon(cluster: &Cluster, node: u64, file: &File) -> bool {
    // Not from the pages that it may have.
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).expect("fadvise");
    cluster.kill(node, "STOP");
    let (sent, answered) = std::sync::mpsc::channel();
    let duplicate = file.try_clone().expect("dup");
    std::thread::spawn(move || {
        // Nobody listens where it took too long.
        let _ = sent.send(duplicate.read_at(&mut [0; 4096], 8192));
    });
    let answer = answered.recv_timeout(Duration::from_millis(500));
    cluster.kill(node, "CONT");
    answer.is_ok_and(|read| read.expect("read") == 4096)
}

fn open_with(path: &Path, flags: i32) -> File {
    let mut options = File::options();
    options.write(true).read(flags & libc::O_ACCMODE == libc::O_RDWR);
    options.custom_flags(flags & !libc::O_ACCMODE).open(path).expect("open to write")
}

/// All ways to open a file for writing that others read in passthrough and have mapped: they see what is written
/// before write(2) returns, what another mount writes soon, and whoever opens the file anew sees it at once.
#[test]
fn writers_come_while_others_read() {
    let cluster = Cluster::up(3);
    let paths = [1, 2, 3].map(|node| cluster.mount(node).join("f"));
    let mut wanted = pattern(1, 3 * MIB);
    fs::write(&paths[0], &wanted).expect("write");
    // Nobody has fsynced it: it is put in place when the disk has it.
    let reader = wait_until(PATIENCE, "the kernel to read it by itself", || {
        let reader = File::open(&paths[1]).expect("open");
        is_read_without_daemon(&cluster, 2, &reader).then_some(reader)
    });
    let mut watcher = Python::start("python3", &cluster.mount(2));
    watcher.does("import mmap, os; f = os.open('f', os.O_RDONLY); m = mmap.mmap(f, 1 << 20, prot=mmap.PROT_READ)");
    let number = fs::metadata(&paths[1]).expect("stat").ino();
    let modes = [
        libc::O_RDWR,
        libc::O_WRONLY,
        libc::O_RDWR | libc::O_CREAT,
        libc::O_WRONLY | libc::O_DSYNC,
        libc::O_RDWR | libc::O_DIRECT,
        libc::O_WRONLY | libc::O_APPEND,
    ];
    for (round, flags) in modes.into_iter().enumerate() {
        for (len, at) in [(4096, 40_960), (2 * MIB, MIB / 2)] {
            let bytes = pattern(round * 7 + len, len);
            let writer = open_with(&paths[1], flags);
            if flags & libc::O_APPEND != 0 {
                (&writer).write_all(&bytes).expect("append");
                wanted.extend(&bytes);
            } else {
                writer.write_all_at(&bytes, at as u64).expect("write");
                wanted[at..at + len].copy_from_slice(&bytes);
            }
            let when = format!("round {round}, {len} bytes");
            assert_bytes(&content(&reader), &wanted, &when);
            let sum = watcher.says("import zlib; print(zlib.crc32(m[:]))");
            assert_eq!(sum, crc32(&wanted[..MIB]), "{when}, mapped");
            for file in [&reader, &writer] {
                let metadata = file.metadata().expect("fstat");
                assert_eq!((metadata.ino(), metadata.len()), (number, wanted.len() as u64));
            }
            assert_eq!(fs::metadata(&paths[1]).expect("stat").ino(), number);
            drop(writer);
            for path in &paths {
                assert_bytes(&fs::read(path).expect("read"), &wanted, &when);
            }
        }
    }
    // From another mount.
    for len in [4096, 2 * MIB] {
        let bytes = pattern(len + 3, len);
        open(&paths[2], 0).write_all_at(&bytes, 12_288).expect("write");
        wanted[12_288..12_288 + len].copy_from_slice(&bytes);
        assert_bytes(&fs::read(&paths[1]).expect("read"), &wanted, "opened anew");
        wait_until(PATIENCE, "the reader to see it", || (content(&reader) == wanted).then_some(()));
    }
    cut_while_others_read(&paths, &reader, &mut watcher);
}

/// Whoever has the file open sees it empty, and then what comes.
fn cut_while_others_read(paths: &[PathBuf; 3], reader: &File, watcher: &mut Python) {
    for (round, path) in [&paths[1], &paths[2]].into_iter().enumerate() {
        watcher.does("m.close(); m = None");
        let mut writer = File::create(path).expect("truncate");
        wait_until(PATIENCE, "the reader to see it cut", || {
            content(reader).is_empty().then_some(())
        });
        assert_eq!(reader.metadata().expect("fstat").len(), 0);
        let wanted = pattern(round + 50, 2 * MIB + 5);
        writer.write_all(&wanted).expect("write");
        drop(writer);
        wait_until(PATIENCE, "the reader to see what came", || {
            (content(reader) == wanted).then_some(())
        });
        for path in paths {
            assert_bytes(&fs::read(path).expect("read"), &wanted, "after it was cut");
        }
        watcher.does("m = mmap.mmap(f, 1 << 20, prot=mmap.PROT_READ)");
        assert_eq!(watcher.says("print(zlib.crc32(m[:]))"), crc32(&wanted[..MIB]));
    }
}

/// Truncation by a name that the kernel knows the file by: whoever writes it by the alias has pages of what is cut.
#[test]
fn a_truncation_by_name_is_seen_by_writers_beside_readers() {
    let cluster = Cluster::up(1);
    let path = cluster.mount(1).join("f");
    let bytes = pattern(1, 2 * MIB);
    write_and_sync(&path, &bytes).expect("write");
    let reader = wait_until(PATIENCE, "the kernel to read it by itself", || {
        let reader = File::open(&path).expect("open");
        is_read_without_daemon(&cluster, 1, &reader).then_some(reader)
    });
    let by_number = format!("/proc/{}/fd/{}", std::process::id(), reader.as_raw_fd());
    let by_name = path.to_str().expect("UTF-8");
    for (name, size) in [(by_name, MIB + 5), (by_number.as_str(), MIB / 2 + 5)] {
        let writer = open(&path, 0);
        let before = content(&writer);
        assert_bytes(&before, &bytes[..before.len()], "before");
        let truncate = "import os, sys; os.truncate(sys.argv[1], int(sys.argv[2]))";
        succeed(Command::new("python3").args(["-c", truncate, name, &size.to_string()]));
        let mut after = vec![0xee; 4096];
        let read = writer.read_at(&mut after, size as u64 - 5).expect("read");
        assert_eq!((read, &after[..5]), (5, &bytes[size - 5..size]), "{name}");
        assert_eq!(content(&reader).len(), size, "{name}");
    }
}

fn crc32(bytes: &[u8]) -> String {
    let mut python = std::process::Command::new("python3");
    python.args(["-c", "import sys, zlib; print(zlib.crc32(sys.stdin.buffer.read()))"]);
    python.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = python.spawn().expect("python3");
    child.stdin.take().expect("piped").write_all(bytes).expect("write");
    let output = child.wait_with_output().expect("python3");
    String::from_utf8(output.stdout).expect("a number").trim().to_owned()
}

/// A lock orders bytes for whoever reads in passthrough, too.
#[test]
fn locks_order_what_is_read_in_passthrough() {
    let cluster = Cluster::up(3);
    let (here, there) = (cluster.mount(1).join("f"), cluster.mount(2).join("f"));
    fs::write(&here, pattern(0, 3 * MIB)).expect("write");
    let (reader, writer) = (File::open(&there).expect("open"), open(&here, 0));
    for round in 1..20 {
        writer.lock().expect("lock");
        let bytes = pattern(round, if round % 2 == 0 { MIB } else { 5000 });
        writer.write_all_at(&bytes, 1000).expect("write");
        writer.unlock().expect("unlock");
        reader.lock_shared().expect("lock");
        let mut seen = vec![0; bytes.len()];
        reader.read_exact_at(&mut seen, 1000).expect("read");
        reader.unlock().expect("unlock");
        assert_bytes(&seen, &bytes, &format!("round {round}"));
    }
}

/// Readers and writers come and go on all mounts: no open fails, nothing else does, nobody sees zeros where there
/// never were any, and in the end all replicas are equal.
#[test]
fn everybody_opens_at_once() {
    let cluster = Cluster::up(3);
    fs::write(cluster.mount(1).join("f"), pattern(0, LEN)).expect("write");
    let overwrite = |path: &Path, round| {
        open(path, 0).write_all_at(&pattern(round, LEN), 0).expect("write");
    };
    let rounds = everybody(&cluster, &overwrite, &|bytes| {
        assert!(bytes.len() == LEN && !bytes.contains(&0), "{} bytes", bytes.len());
    });
    assert!(rounds > 50, "{rounds} rounds");
}

/// The same with some that cut.
#[test]
fn everybody_opens_and_cuts_at_once() {
    let cluster = Cluster::up(3);
    fs::write(cluster.mount(1).join("f"), pattern(0, LEN)).expect("write");
    let change = |path: &Path, round| {
        let bytes = pattern(round, LEN);
        match round % 3 {
            0 => fs::write(path, &bytes).expect("create and write"),
            1 => open(path, 0).write_all_at(&bytes, 0).expect("write"),
            _ => {
                let file = File::options().append(true).open(path).expect("open");
                file.set_len(0).expect("cut");
                (&file).write_all(&bytes[..5000]).expect("append");
            }
        }
    };
    let rounds = everybody(&cluster, &change, &|_| {});
    assert!(rounds > 50, "{rounds} rounds");
}

const LEN: usize = 2 * MIB;

/// Two readers and a writer on each mount for some time; answers how often they did it.
fn everybody(
    cluster: &Cluster,
    change: &(dyn Fn(&Path, usize) + Sync),
    check: &(dyn Fn(&[u8]) + Sync),
) -> usize {
    let until = Instant::now() + Duration::from_secs(6);
    let path = |node: u64| cluster.mount(node).join("f");
    let repeat = |work: &dyn Fn(usize)| {
        let mut rounds = 0;
        while Instant::now() < until {
            work(rounds);
            rounds += 1;
        }
        rounds
    };
    let rounds = std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for node in 1..=3 {
            for _ in 0..2 {
                let path = path(node);
                threads.push(scope.spawn(move || {
                    repeat(&|_| {
                        let mut bytes = Vec::new();
                        let mut file = File::open(&path).expect("open to read");
                        file.read_to_end(&mut bytes).expect("read");
                        check(&bytes);
                    })
                }));
            }
            let path = path(node);
            threads.push(scope.spawn(move || repeat(&|round| change(&path, round))));
        }
        threads.into_iter().map(|thread| thread.join().expect("no thread fails")).sum()
    });
    let found = fs::read(path(1)).expect("read");
    for node in 2..=3 {
        assert_bytes(&fs::read(path(node)).expect("read"), &found, "in the end");
    }
    assert_backing(cluster, &path(1), &found);
    rounds
}

/// Where the kernel takes no backing files everything works without, and status says why.
#[test]
fn without_passthrough() {
    let dir = temporary_dir("stacked");
    let below = |name: &str| dir.path().join(name);
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(below(name)).expect("mkdir");
    }
    let mounted = Overlay::mount(dir.path());
    let cluster = Cluster::up_in(1, |cluster| {
        let data = cluster.join("n1/data");
        fs::create_dir_all(data.parent().expect("a parent")).expect("mkdir");
        std::os::unix::fs::symlink(below("merged"), data).expect("symlink");
    });
    let output = succeed(quorumfs().args(["status", "--json", "--addr", &cluster.address(1)]));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mount = &status["mounts"][0];
    assert_eq!(mount["passthrough"], false, "{mount}");
    assert!(mount["no_passthrough"].as_str().expect("text").contains("stacked"), "{mount}");
    let path = cluster.mount(1).join("f");
    let wanted = pattern(3, 3 * MIB);
    fs::write(&path, &wanted).expect("write");
    let reader = File::open(&path).expect("open");
    assert_bytes(&content(&reader), &wanted, "read");
    open(&path, 0).write_all_at(b"over", 5).expect("write");
    assert_eq!(&content(&reader)[5..9], b"over");
    drop(reader);
    cluster.down();
    drop(mounted);
}

/// An overlay file system, unmounted when dropped.
struct Overlay<'a>(&'a Path);

impl<'a> Overlay<'a> {
    fn mount(dir: &'a Path) -> Self {
        let options =
            format!("lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work", dir.display());
        let mut mount = std::process::Command::new("mount");
        succeed(mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(dir.join("merged")));
        Self(dir)
    }
}

impl Drop for Overlay<'_> {
    fn drop(&mut self) {
        let mut umount = std::process::Command::new("umount");
        // Where the test failed a daemon may still use it.
        let _ = umount.arg("--lazy").arg(self.0.join("merged")).status();
    }
}
