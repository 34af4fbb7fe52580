//! Names go, here and elsewhere, that the kernel had cached: getcwd(2) answers all the time, and the second try that
//! the kernel is made to do is its own.

use std::fs;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::support::python::Python;
use super::support::{Cluster, names};

const DIRECTORIES: usize = 30;
/// Names of directories that have changed within a second are not cached.
const QUIET: Duration = Duration::from_millis(1_100);

const ASKS_AGAIN_AND_AGAIN: &str = "
import os, threading
failures, over, count = [], False, 0
def ask():
    global count
    while not over:
        count += 1
        try: os.getcwd()
        except OSError as error: failures.append((count, error))
asker = threading.Thread(target=ask)
asker.start()
";

/// Has the kernel cache the names of `dir`, and removes or renames them through `mount`.
fn take_names(dir: &Path, mount: &Path, number: usize) {
    let dir_there = mount.join("home/work").join(number.to_string());
    for name in ["file", "old", "empty", "target"] {
        fs::metadata(dir.join(name)).expect("cached");
    }
    fs::remove_file(dir_there.join("file")).expect("unlink");
    fs::rename(dir_there.join("old"), dir_there.join("target")).expect("rename");
    fs::remove_dir(dir_there.join("empty")).expect("rmdir");
    assert_eq!(names(dir), ["target"]);
    assert_eq!(fs::read(dir.join("target")).expect("read"), b"old");
}

#[test]
fn getcwd_answers_while_names_go() {
    let cluster = Cluster::up(3);
    let (here, there) = (cluster.mount(1), cluster.mount(2));
    let work = here.join("home/work");
    for number in 0..2 * DIRECTORIES {
        let dir = work.join(number.to_string());
        fs::create_dir_all(dir.join("empty")).expect("mkdir");
        for name in ["file", "old", "target"] {
            fs::write(dir.join(name), name).expect("write");
        }
    }
    thread::sleep(QUIET);
    let mut process = Python::start("python3", &work);
    process.does(&format!("exec({ASKS_AGAIN_AND_AGAIN:?})"));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        // What comes along the path looks its names up again, if the kernel was told to.
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                fs::metadata(work.join("0")).expect("stat");
            }
        });
        for number in 0..2 * DIRECTORIES {
            let mount = if number % 2 == 0 { &here } else { &there };
            take_names(&work.join(number.to_string()), mount, number);
        }
        over.store(true, Ordering::Relaxed);
    });
    process.does("over = True; asker.join()");
    assert_eq!(process.says("print(failures[:5])"), "[]");
    assert_eq!(process.says("print(count > 1000)"), "True");
}

/// One of eight removes, renames or looks at the names in `dir`, beside the others: the answer is one that a local file
/// system gives.
fn race(dir: &Path, racer: usize, begun: &Barrier) {
    let name = dir.join("name");
    begun.wait();
    let result = match racer % 4 {
        0 => fs::remove_dir(&name),
        1 => fs::rename(&name, dir.join("renamed")),
        2 => fs::rename(dir.join("renamed"), &name),
        _ => fs::metadata(&name).map(drop),
    };
    if let Err(error) = result {
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "racer {racer}: {error}");
    }
}

#[test]
fn races_for_cached_names_end_as_on_a_local_disk() {
    let cluster = Cluster::up(3);
    let mounts = [cluster.mount(1), cluster.mount(2)];
    for round in 0..40 {
        let dirs = [0, 1].map(|mount: usize| mounts[mount].join(round.to_string()));
        fs::create_dir_all(dirs[0].join("name")).expect("mkdir");
        fs::create_dir(dirs[0].join("renamed")).expect("mkdir");
        for dir in &dirs {
            fs::metadata(dir.join("name")).expect("cached");
        }
        let begun = Barrier::new(8);
        thread::scope(|scope| {
            for racer in 0..8 {
                // The first half races on one mount.
                let dir = if round < 20 { &dirs[0] } else { &dirs[racer / 4] };
                let begun = &begun;
                scope.spawn(move || race(dir, racer, begun));
            }
        });
        assert_eq!(names(&dirs[0]), names(&dirs[1]));
    }
}
