//! Every daemon is killed at once in the middle of writing: what was synced is there afterwards.
#![allow(clippy::disallowed_methods, reason = "writers are threads")]

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use parking_lot::Mutex;
use support::{Cluster, PATIENCE, wait_until, write_and_sync};

#[test]
fn what_was_synced_survives_the_death_of_all() {
    kill_everybody(3);
}

#[test]
#[ignore = "long"]
fn what_was_synced_survives_the_death_of_all_long() {
    kill_everybody(50);
}

/// What a writer was promised.
#[derive(Debug)]
enum Promise {
    /// A file that was written, then fsynced.
    Written { name: String, bytes: Vec<u8> },
    /// A file that was fsynced under another name, then renamed; the directory was fsynced.
    Renamed { from: String, to: String, bytes: Vec<u8> },
    /// A directory, with an empty file in it, both fsynced.
    Made { dir: String, file: String },
    /// Records appended to a file, each fsynced. One more may have been on its way.
    Appended { name: String, records: usize },
}

impl Promise {
    fn check(&self, mount: &Path) {
        let read = |name: &str| {
            fs::read(mount.join(name)).unwrap_or_else(|error| panic!("{self:?}: {error}"))
        };
        match self {
            Self::Written { name, bytes } => assert!(read(name) == *bytes, "{name} differs"),
            Self::Renamed { from, to, bytes } => {
                assert!(read(to) == *bytes, "{to} differs");
                let gone = fs::symlink_metadata(mount.join(from)).expect_err(from);
                assert_eq!(gone.kind(), io::ErrorKind::NotFound, "{from}");
            }
            Self::Made { dir, file } => {
                assert_eq!(support::names(&mount.join(dir)), [file.as_str()]);
            }
            Self::Appended { name, records } => {
                let all: Vec<_> = (0..=*records).flat_map(|number| record(name, number)).collect();
                let promised = all.len() - record(name, *records).len();
                let bytes = read(name);
                assert!(
                    bytes == all || bytes == all[..promised],
                    "{name} holds {} bytes, of which {promised} were promised",
                    bytes.len()
                );
            }
        }
    }
}

fn record(name: &str, number: usize) -> Vec<u8> {
    format!("{name}, record {number}{}\n", ".".repeat(number * 37 % 700)).into_bytes()
}

/// Everything is in here: where a mount was, when its daemon is dead, there is no such directory.
const ALL: &str = "all";

fn kill_everybody(rounds: usize) {
    let cluster = Cluster::up(3);
    fs::create_dir(cluster.mount(1).join(ALL)).expect("mkdir");
    let mut promises = Vec::new();
    for round in 0..rounds {
        let (made, killing) = (Mutex::new(Vec::new()), AtomicBool::new(false));
        thread::scope(|scope| {
            for node in 1..=3 {
                let (mount, made, killing) = (cluster.mount(node), &made, &killing);
                let of = format!("{ALL}/r{round}-n{node}");
                let appends = (mount.clone(), format!("{of}-log"));
                scope
                    .spawn(move || until_killed(killing, |number| make(&mount, &of, number, made)));
                scope.spawn(move || append_until_killed(killing, &appends.0, appends.1, made));
            }
            wait_until(PATIENCE, "some writes", || (made.lock().len() >= 60).then_some(()));
            killing.store(true, Ordering::Release);
            thread::scope(|killers| {
                for node in 1..=3 {
                    let cluster = &cluster;
                    killers.spawn(move || cluster.kill(node, "KILL"));
                }
            });
        });
        promises.extend(made.into_inner());
        cluster.up_again();
        for node in 1..=3 {
            let mount = cluster.mount(node);
            for promise in &promises {
                promise.check(&mount);
            }
        }
        cluster.settle();
    }
    println!("{} promises over {rounds} rounds were kept", promises.len());
}

/// Calls `step` until its daemon is dead: nothing may fail before. EIO is what the kernel answers to a
/// request that the daemon was just reading when it was killed (`fuse_dev_do_read`), ENOENT what is said where the guardian has
/// taken the mount away.
fn until_killed(killing: &AtomicBool, mut step: impl FnMut(usize) -> io::Result<()>) {
    let error = (0..).find_map(|number| step(number).err());
    let error = error.expect("the loop ends with an error");
    assert!(killing.load(Ordering::Acquire), "before anybody was killed: {error}");
    let dead = [libc::ENOTCONN, libc::ECONNABORTED, libc::EIO, libc::ENOENT];
    assert!(error.raw_os_error().is_some_and(|code| dead.contains(&code)), "{error}");
}

/// One file or directory after another, each in one of three ways.
fn make(mount: &Path, of: &str, number: usize, made: &Mutex<Vec<Promise>>) -> io::Result<()> {
    let name = format!("{of}-{number}");
    let bytes = name.repeat(1 + number * 131 % 9_000).into_bytes();
    let promise = match number % 3 {
        0 => {
            write_and_sync(&mount.join(&name), &bytes)?;
            Promise::Written { name, bytes }
        }
        1 => {
            let from = format!("{name}.tmp");
            write_and_sync(&mount.join(&from), &bytes)?;
            fs::rename(mount.join(&from), mount.join(&name))?;
            File::open(mount.join(ALL))?.sync_all()?;
            Promise::Renamed { from, to: name, bytes }
        }
        _ => {
            fs::create_dir(mount.join(&name))?;
            File::create(mount.join(&name).join("empty"))?.sync_all()?;
            File::open(mount.join(&name))?.sync_all()?;
            File::open(mount.join(ALL))?.sync_all()?;
            Promise::Made { dir: name, file: "empty".to_owned() }
        }
    };
    made.lock().push(promise);
    Ok(())
}

fn append_until_killed(
    killing: &AtomicBool,
    mount: &Path,
    name: String,
    made: &Mutex<Vec<Promise>>,
) {
    let mut records = 0;
    until_killed(killing, |number| {
        let mut file = OpenOptions::new().append(true).create(true).open(mount.join(&name))?;
        file.write_all(&record(&name, number))?;
        file.sync_data()?;
        records = number + 1;
        Ok(())
    });
    if records > 0 {
        made.lock().push(Promise::Appended { name, records });
    }
}
