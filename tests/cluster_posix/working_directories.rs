//! getcwd(2) answers while names go, here and elsewhere, that the kernel had cached.

use std::fs;
use std::path::Path;
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
