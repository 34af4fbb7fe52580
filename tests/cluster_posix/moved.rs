//! Directories that others move, and files that others remove while they are opened: what programs get is what a local
//! file system gives, and never ESTALE.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::support::python::Python;
use super::support::{Cluster, names, quorumfs, succeed};

const RACE: Duration = Duration::from_secs(3);

fn move_directory(mount: &Path, from: &str, to: &str) {
    let moved = fs::rename(mount.join(from), mount.join(to));
    moved.unwrap_or_else(|error| panic!("{from} to {to} in {}: {error}", mount.display()));
}

fn make(mount: &Path, directories: &[&str]) {
    for directory in directories {
        fs::create_dir_all(mount.join(directory)).expect("mkdir");
    }
}

/// Another mount of the first node's daemon.
fn second_mount(cluster: &Cluster) -> PathBuf {
    let point = cluster.dir().join("second");
    fs::create_dir(&point).expect("mkdir");
    succeed(quorumfs().arg("mount").arg(format!("{}:/", cluster.address(1))).arg(&point));
    point
}

/// The kernel of the one who renames has the directory where it was before others moved it, with no TTL left: it was
/// renamed there by itself, or looked up in a directory that has just lost a name.
#[test]
fn directories_that_others_have_moved_are_renamed() {
    let cluster = Cluster::up(3);
    let (here, there) = (cluster.mount(1), cluster.mount(2));
    for (other, top) in [(there.clone(), "a"), (second_mount(&cluster), "b")] {
        let at = |name: &str| format!("{top}/{name}");
        make(&here, &[&at("p/empty"), &at("p/d/e"), &at("q")]);
        fs::write(here.join(at("p/d/e/f")), "").expect("write");
        for name in ["empty", "d"] {
            let (old, new) = (at(&format!("p/{name}")), at(&format!("q/{name}")));
            for _ in 0..3 {
                move_directory(&here, &old, &new);
                move_directory(&other, &new, &old);
            }
            move_directory(&here, &old, &new);
        }
        assert_eq!(names(&other.join(at("q"))), ["d", "empty"]);
    }
    // It was in use when it was moved, and is not any more.
    make(&here, &["used/d/e", "free"]);
    fs::write(here.join("used/d/e/f"), "").expect("write");
    let used = File::open(here.join("used/d/e/f")).expect("open");
    move_directory(&there, "used/d", "free/d");
    drop(used);
    move_directory(&here, "free/d", "used/d");
    make(&here, &["run", "done"]);
    for number in 0..10 {
        let [run, done, kept] =
            ["run", "done", "a/q"].map(|directory| format!("{directory}/{number}"));
        fs::create_dir(there.join(&run)).expect("mkdir");
        fs::write(here.join("run/x"), "").expect("write");
        fs::remove_file(here.join("run/x")).expect("unlink");
        fs::metadata(here.join(&run)).expect("stat");
        move_directory(&there, &run, &done);
        move_directory(&here, &done, &kept);
    }
}

/// Jobs of a queue that others put back: whoever takes them looks at nothing but the list.
#[test]
fn jobs_that_others_put_back_are_taken_again() {
    let cluster = Cluster::up(3);
    let [boss, worker, other] = [2, 1, 3].map(|node| cluster.mount(node));
    make(&boss, &["todo", "run"]);
    for number in 0..20 {
        let job = number.to_string();
        let [todo, run] = ["todo", "run"].map(|directory| format!("{directory}/{job}"));
        fs::create_dir(boss.join(&todo)).expect("mkdir");
        fs::write(boss.join(&todo).join("spec"), &job).expect("write");
        assert_eq!(names(&worker.join("todo")), [job.as_str()]);
        move_directory(&worker, &todo, &run);
        assert_eq!(fs::read_to_string(worker.join(&run).join("spec")).expect("read"), job);
        move_directory(&other, &run, &todo);
        assert_eq!(names(&worker.join("todo")), [job.as_str()]);
        move_directory(&worker, &todo, &run);
    }
}

/// A program that works in a directory is where the directory is, as soon as somebody on its mount has seen it there.
#[test]
fn a_working_directory_that_others_move_is_found_again() {
    let cluster = Cluster::up(3);
    let (here, there) = (cluster.mount(1), cluster.mount(2));
    make(&here, &["p/d/e", "q"]);
    let mut process = Python::start("python3", &here.join("p/d/e"));
    process.does("import os");
    for (from, to) in [("p/d", "q/d"), ("q/d", "p/d")] {
        move_directory(&there, from, to);
        fs::metadata(here.join(to).join("e")).expect("stat");
        let place = here.join(to).join("e");
        assert_eq!(process.says("print(os.getcwd())"), place.to_str().expect("UTF-8"));
    }
}

/// Opens a file that is made where it is missing, again and again. Answers how often.
fn open_or_create(path: &Path, truncates: bool, until: Instant) -> usize {
    let mut opened = 0;
    while Instant::now() < until {
        let file = File::options().write(true).create(true).truncate(truncates).open(path);
        file.unwrap_or_else(|error| panic!("open {} after {opened}: {error}", path.display()));
        opened += 1;
    }
    opened
}

#[test]
fn files_that_others_remove_are_opened_or_created() {
    let cluster = Cluster::up(3);
    let path = |node| cluster.mount(node).join("file");
    let until = Instant::now() + RACE;
    thread::scope(|scope| {
        let creators: Vec<_> = [(1, false), (3, true)]
            .map(|(node, truncates)| {
                let path = path(node);
                scope.spawn(move || open_or_create(&path, truncates, until))
            })
            .into();
        let mut removed = 0;
        while Instant::now() < until {
            match fs::remove_file(path(2)) {
                Ok(()) => removed += 1,
                Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
            }
        }
        let opened = creators.into_iter().map(|creator| creator.join().expect("no error"));
        assert!(opened.min() > Some(100) && removed > 100, "they met: {removed}");
    });
}

/// As one user, in the directory with somebody else's file: opens it or makes it for so many seconds, and says how often
/// it was refused and how often it made its own. ESTALE is what docs/posix.md says of a file that is replaced twice.
const STRANGER: &str = r"
import errno, os, sys, time
os.setgroups([])
os.setgid(1)
os.setuid(1)
refused = made = 0
until = time.monotonic() + float(sys.argv[1])
while time.monotonic() < until:
    try:
        file = os.open('file', os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        assert error.errno in (errno.EACCES, errno.ESTALE), error
        refused += error.errno == errno.EACCES
        continue
    assert os.fstat(file).st_uid == os.getuid(), 'opened what is not its own'
    made += 1
    os.close(file)
print(refused, made)
";

/// Whoever may not open a file does not come to it by making it, at whatever moment others put theirs there.
#[test]
fn files_of_others_are_not_opened_by_making_them() {
    let cluster = Cluster::up(3);
    let (here, there) = (cluster.mount(1), cluster.mount(2));
    fs::set_permissions(&here, fs::Permissions::from_mode(0o777)).expect("chmod");
    let mut stranger = Command::new("python3");
    stranger.args(["-c", STRANGER]).arg(RACE.as_secs().to_string());
    stranger.current_dir(&here).stdout(Stdio::piped());
    let mut stranger = stranger.spawn().expect("python3");
    let file = there.join("file");
    while stranger.try_wait().expect("wait").is_none() {
        // Some of these find the stranger's own.
        let theirs = File::options().write(true).create_new(true).mode(0o600).open(&file);
        drop(theirs);
        fs::remove_file(&file).expect("unlink");
    }
    let output = stranger.wait_with_output().expect("wait");
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success(), "{said}");
    let counts: Vec<usize> =
        said.split_whitespace().map(|count| count.parse().expect("a number")).collect();
    assert!(counts.len() == 2 && counts.iter().all(|count| *count > 20), "they met: {said}");
}
