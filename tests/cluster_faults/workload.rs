//! Programs that read and write the same few files through all mounts at once, and note what they saw.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::fs::{Mode, OFlags, openat};

use super::descriptors;
use super::history::{Call, Outcome, Record, Subject, TORN};
use super::linearizability::INITIAL;
use super::machines::Machines;

/// Files of each kind that is not one for each node.
const FILES: u64 = 4;
/// Between two operations of one client.
const PAUSE: Duration = Duration::from_millis(3);
/// After one that failed.
const LONG_PAUSE: Duration = Duration::from_millis(100);

/// What clients share.
pub struct Workload {
    nodes: u64,
    start: Instant,
    last_value: AtomicU64,
    done: AtomicBool,
}

/// Ends the clients when dropped; where a test fails, by killing what they may be waiting for.
pub struct Running<'a> {
    workload: &'a Workload,
    machines: &'a Machines,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.workload.done.store(true, Ordering::Relaxed);
        if thread::panicking() {
            self.machines.kill_all();
        }
    }
}

impl Workload {
    /// Makes the files that have to exist.
    pub fn new(machines: &Machines) -> Self {
        let nodes = *machines.all().end();
        let dir = dir(&machines.mount(1));
        fs::create_dir(&dir).expect("mkdir");
        for node in machines.all() {
            let mut file = File::create(dir.join(name(Subject::InPlace(node)))).expect("create");
            file.write_all(&INITIAL.to_be_bytes()).and_then(|()| file.sync_all()).expect("write");
        }
        for log in 0..FILES {
            File::create(dir.join(name(Subject::Log(log)))).expect("create");
        }
        let (last_value, done) = (AtomicU64::new(INITIAL), AtomicBool::new(false));
        Self { nodes, start: Instant::now(), last_value, done }
    }

    /// Two clients on each mount work while `disturb` runs. Answers what they did.
    pub fn run<T>(&self, machines: &Machines, disturb: impl FnOnce() -> T) -> (Vec<Record>, T) {
        let ready = Barrier::new(2 * machines.all().count() + 1);
        thread::scope(|scope| {
            let running = Running { workload: self, machines };
            let clients: Vec<_> = machines
                .all()
                .flat_map(|node| [node, node])
                .enumerate()
                .map(|(seed, node)| {
                    let (mount, ready) = (machines.mount(node), &ready);
                    scope.spawn(move || {
                        descriptors::keep_to_this_thread(ready);
                        self.client(node, &mount, seed as u64)
                    })
                })
                .collect();
            ready.wait();
            let result = disturb();
            drop(running);
            let join = |client: thread::ScopedJoinHandle<'_, Vec<Record>>| client.join();
            let records = clients.into_iter().flat_map(|c| join(c).expect("clients do not panic"));
            (records.collect(), result)
        })
    }

    pub fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).expect("some centuries") + 1
    }

    fn client(&self, node: u64, mount: &Path, seed: u64) -> Vec<Record> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut records = Vec::new();
        while !self.done.load(Ordering::Relaxed) {
            let file = random.random_range(0..FILES);
            let new = || self.last_value.fetch_add(1, Ordering::Relaxed) + 1;
            let (subject, call) = match random.random_range(0..10) {
                0..3 => (Subject::Renamed(file), Call::Write(new())),
                3..6 => (Subject::Renamed(file), Call::Read),
                6 => (Subject::InPlace(node), Call::Write(new())),
                7..9 => {
                    let other = 1 + (node + random.random_range(0..self.nodes - 1)) % self.nodes;
                    (Subject::InPlace(other), Call::Read)
                }
                _ => (Subject::Log(file), Call::Append(new())),
            };
            let record = self.execute(node, mount, subject, call);
            records.push(record);
            let failed = matches!(record.outcome, Outcome::Unknown | Outcome::Void);
            thread::sleep(if failed { LONG_PAUSE } else { PAUSE });
        }
        records
    }

    fn execute(&self, node: u64, mount: &Path, subject: Subject, call: Call) -> Record {
        let dir = dir(mount);
        let path = dir.join(name(subject));
        let invoked = self.now();
        let outcome = match (subject, call) {
            (_, Call::Read) => read(&dir, subject).map_or(Outcome::Void, Outcome::Value),
            (Subject::InPlace(_), Call::Write(value)) => overwrite(&path, value),
            (_, Call::Write(value)) => replace(&dir, &path, value),
            (_, Call::Append(tag)) => append(&path, tag),
        };
        Record { node, subject, call, invoked, answered: self.now(), outcome }
    }

    /// Reads everything on every mount, all of which serve. Answers the logs, which must be the same everywhere.
    pub fn read_all(
        &self,
        machines: &Machines,
        records: &mut Vec<Record>,
    ) -> BTreeMap<Subject, Vec<u64>> {
        let mut logs = BTreeMap::new();
        for node in machines.all() {
            let mount = machines.mount(node);
            let registers =
                (0..FILES).map(Subject::Renamed).chain(machines.all().map(Subject::InPlace));
            for subject in registers {
                let record = self.execute(node, &mount, subject, Call::Read);
                assert_ne!(record.outcome, Outcome::Void, "{record:?}");
                records.push(record);
            }
            for log in (0..FILES).map(Subject::Log) {
                let bytes = fs::read(dir(&mount).join(name(log))).expect("read");
                let tags = words(&bytes);
                let known = logs.entry(log).or_insert_with(|| tags.clone());
                assert!(*known == tags, "{log:?} differs on mount {node}");
            }
        }
        logs
    }
}

/// Where all of it lies: not in the root of a mount, which is an empty directory of the host while nobody is mounted
/// there.
fn dir(mount: &Path) -> PathBuf {
    mount.join("w")
}

fn name(subject: Subject) -> String {
    match subject {
        Subject::Renamed(file) => format!("renamed{file}"),
        Subject::InPlace(node) => format!("in-place{node}"),
        Subject::Log(file) => format!("log{file}"),
    }
}

/// Some are larger than what travels in the log.
fn content(value: u64) -> Vec<u8> {
    let words = if value.is_multiple_of(16) { 12_000 } else { 1 + value % 600 };
    value.to_be_bytes().repeat(usize::try_from(words).expect("few"))
}

fn words(bytes: &[u8]) -> Vec<u64> {
    let (words, rest) = bytes.as_chunks();
    assert!(rest.is_empty(), "{} bytes are not whole tags", bytes.len());
    words.iter().map(|word| u64::from_be_bytes(*word)).collect()
}

/// A name that is not there is a register that was never written.
fn read(dir: &Path, subject: Subject) -> io::Result<u64> {
    let dir = File::open(dir)?;
    let file = match openat(&dir, name(subject), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(INITIAL),
        file => file?,
    };
    let mut bytes = Vec::new();
    File::from(file).read_to_end(&mut bytes)?;
    let Some((first, _)) = bytes.split_first_chunk() else { return Ok(TORN) };
    let value = u64::from_be_bytes(*first);
    let whole = match subject {
        Subject::Renamed(_) => content(value),
        Subject::InPlace(_) | Subject::Log(_) => first.to_vec(),
    };
    Ok(if bytes == whole { value } else { TORN })
}

fn replace(dir: &Path, path: &Path, value: u64) -> Outcome {
    let new = dir.join(format!("new{value}"));
    let written = File::create(&new)
        .and_then(|mut file| file.write_all(&content(value)).and_then(|()| file.sync_all()));
    if written.is_err() {
        return Outcome::Void;
    }
    known(fs::rename(&new, path))
}

fn overwrite(path: &Path, value: u64) -> Outcome {
    let Ok(file) = OpenOptions::new().write(true).open(path) else { return Outcome::Void };
    known(file.write_all_at(&value.to_be_bytes(), 0).and_then(|()| file.sync_all()))
}

fn append(path: &Path, tag: u64) -> Outcome {
    let Ok(mut file) = OpenOptions::new().append(true).open(path) else { return Outcome::Void };
    known(file.write_all(&tag.to_be_bytes()).and_then(|()| file.sync_all()))
}

fn known(result: io::Result<()>) -> Outcome {
    result.map_or(Outcome::Unknown, |()| Outcome::Done)
}
