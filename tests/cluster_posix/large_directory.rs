//! A directory of a million names: complete for whoever lists it, also while others create and remove
//! names, and without a daemon that grows with it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use super::support::{Cluster, names, succeed, text};

const NAMES: usize = 1_000_000;
/// Names that are left for one program to remove while it lists them.
const LEFT: usize = 10_000;
/// Workers on each mount.
const WORKERS: usize = 2;

const MIB: usize = 1 << 20;
/// What a daemon may have taken at its highest.
const DAEMON_MAX: usize = 1536 * MIB;
/// What a Python that lists the directory may take, of which 10 MiB are Python.
const LISTER_MAX: usize = 32 * MIB;

const LIST: &str = "
import os, resource, sys
count = sum(1 for _ in os.scandir(sys.argv[1]))
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
";

struct Directory {
    mounts: Vec<PathBuf>,
}

impl Directory {
    /// Does something with each number of `0..to`, on all mounts at once; `first` is the mount of number 0.
    fn on_all_mounts(&self, first: usize, to: usize, work: impl Fn(&Path, usize) + Sync) {
        let workers = WORKERS * self.mounts.len();
        thread::scope(|scope| {
            for worker in 0..workers {
                let mount = &self.mounts[(first + worker) % self.mounts.len()];
                let work = &work;
                scope.spawn(move || {
                    for number in (worker..to).step_by(workers) {
                        work(mount, number);
                    }
                });
            }
        });
    }

    fn create(&self) {
        self.on_all_mounts(0, NAMES, |mount, number| {
            File::create_new(mount.join(name(number))).expect("create");
        });
    }

    /// By other mounts than those that have made them.
    fn remove_most(&self) {
        self.on_all_mounts(1, NAMES, |mount, number| {
            if number % (NAMES / LEFT) != 0 {
                fs::remove_file(mount.join(name(number))).expect("unlink");
            }
        });
    }
}

fn name(number: usize) -> String {
    format!("file-{number:07}")
}

/// Lists a directory name by name: each one that was there throughout comes exactly once, and no other one
/// more often.
fn list(mount: &Path) {
    let mut seen = vec![false; NAMES];
    let mut others = HashSet::new();
    for entry in fs::read_dir(mount).expect("opendir") {
        let name = entry.expect("readdir").file_name().into_string().expect("UTF-8");
        match name.strip_prefix("file-").map(|number| number.parse::<usize>().expect("a number")) {
            Some(number) => assert!(!std::mem::replace(&mut seen[number], true), "{name} twice"),
            None => assert!(others.insert(name.clone()), "{name} twice"),
        }
    }
    let missing = seen.iter().filter(|seen| !**seen).count();
    assert_eq!(missing, 0, "the first is {:?}", seen.iter().position(|seen| !seen));
}

/// Creates, renames and removes names that are never used again, until it is told to stop.
fn churn(mount: &Path, worker: usize, stop: &AtomicBool, rounds: &AtomicUsize) {
    for number in 0.. {
        let [made, renamed] =
            ["made", "renamed"].map(|what| mount.join(format!("{what}-{worker}-{number}")));
        File::create_new(&made).expect("create");
        fs::rename(&made, &renamed).expect("rename");
        fs::remove_file(&renamed).expect("unlink");
        rounds.fetch_add(1, Ordering::Relaxed);
        if stop.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// Lists on all mounts at once while names come and go on all of them. Answers how many did.
fn list_while_others_change(directory: &Directory) -> usize {
    let (stop, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for (worker, mount) in directory.mounts.iter().enumerate() {
            let (stop, rounds) = (&stop, &rounds);
            scope.spawn(move || churn(mount, worker, stop, rounds));
        }
        let listers: Vec<_> =
            directory.mounts.iter().map(|mount| scope.spawn(move || list(mount))).collect();
        let listed: Vec<_> = listers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        stop.store(true, Ordering::Relaxed);
        assert!(listed.iter().all(Result::is_ok), "a listing was wrong");
    });
    rounds.into_inner()
}

/// The most memory that each daemon has ever had, in bytes.
fn peaks(cluster: &Cluster) -> Vec<usize> {
    let peak = |pid: i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
        let kib = line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number");
        kib * 1024
    };
    cluster.status().nodes.iter().map(|node| peak(node.pid)).collect()
}

/// Says how long a step took, and the memory of the daemons since they were started.
fn report(cluster: &Cluster, step: &str, since: Instant) {
    let mebibytes: Vec<_> = peaks(cluster).iter().map(|bytes| bytes / MIB).collect();
    println!("{step}: {:.1} s; VmHWM {mebibytes:?} MiB", since.elapsed().as_secs_f64());
}

#[test]
#[ignore = "long: a million names, many minutes; QUORUMFS_TEST_BINARY names a release build"]
fn a_directory_of_a_million_names_is_listed_completely() {
    let cluster = Cluster::up(3);
    fs::create_dir(cluster.mount(1).join("large")).expect("mkdir");
    let mounts = (1..=3).map(|node| cluster.mount(node).join("large")).collect();
    let directory = Directory { mounts };
    let since = Instant::now();
    directory.create();
    report(&cluster, "created", since);

    let since = Instant::now();
    let rounds = list_while_others_change(&directory);
    report(&cluster, &format!("listed on three mounts beside {rounds} other names"), since);
    assert!(rounds > 100, "hardly anything changed meanwhile");
    let since = Instant::now();
    for mount in &directory.mounts {
        let listed = succeed(Command::new("python3").args(["-c", LIST]).arg(mount));
        let listed = text(&listed.stdout);
        let (count, kib) = listed.trim().split_once(' ').expect("two numbers");
        assert_eq!(count, NAMES.to_string(), "on {}", mount.display());
        let bytes = kib.parse::<usize>().expect("a number") * 1024;
        assert!(bytes < LISTER_MAX, "a program that lists took {bytes} bytes");
    }
    report(&cluster, "listed once more, one mount after the other", since);
    for mount in &directory.mounts {
        assert_eq!(fs::metadata(mount).expect("stat").nlink(), 2);
        let last = mount.join(name(NAMES - 1));
        assert_eq!(fs::metadata(&last).expect("stat").len(), 0);
        let error = File::create_new(&last).expect_err("it exists");
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    }

    let since = Instant::now();
    directory.remove_most();
    report(&cluster, "removed but for some", since);
    for mount in &directory.mounts {
        assert_eq!(names(mount).len(), LEFT);
    }
    succeed(Command::new("rm").arg("-r").arg(&directory.mounts[1]));
    for node in 1..=3 {
        assert_eq!(names(&cluster.mount(node)), [""; 0]);
    }
    cluster.settle();
    for (node, peak) in (1..).zip(peaks(&cluster)) {
        assert!(peak < DAEMON_MAX, "the daemon of node {node} took {peak} bytes");
    }
}
