//! Programs that create, write, rename, remove, lock and read, through three mounts, and never have more files than
//! when they began.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Scope;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};

use super::support::{write_and_close, write_and_sync};

/// Small files of each mount.
const SLOTS: usize = 300;
const CHECKPOINTS: usize = 2;
const CHECKPOINT_LEN: usize = 8 << 20;
const LOG_LEN: u64 = 256 << 10;
/// Between two operations: the machine is not to be measured, but what is left behind.
const PAUSE: Duration = Duration::from_millis(2);

/// The programs of all mounts, the last of which may lose its daemon.
#[derive(Debug)]
pub struct Churn {
    mounts: [PathBuf; 3],
    over: AtomicBool,
    away: AtomicBool,
    operations: AtomicU64,
    /// What failed although the daemon was not killed.
    failures: AtomicU64,
    /// What was read and had never been written.
    wrong: Mutex<Vec<String>>,
}

/// Ends them.
#[derive(Debug)]
pub struct Over<'a>(&'a AtomicBool);

impl Churn {
    /// Makes all files that there will be.
    pub fn prepare(mounts: [PathBuf; 3]) -> Self {
        for number in 0..mounts.len() {
            let dir = mounts[0].join(format!("m{number}"));
            fs::create_dir(&dir).expect("mkdir");
            let written = (0..SLOTS)
                .try_for_each(|slot| write_and_close(&small(&dir, slot), &bytes_of(slot)));
            written.expect("write");
            for checkpoint in 0..CHECKPOINTS {
                let path = dir.join(format!("checkpoint{checkpoint}"));
                write_and_sync(&path, &weights(checkpoint)).expect("write");
            }
            write_and_close(&dir.join("log"), &vec![b'.'; 100_000]).expect("write");
        }
        write_and_close(&mounts[0].join("lock"), b"").expect("write");
        let (over, away) = (AtomicBool::new(false), AtomicBool::new(false));
        let (operations, failures) = (AtomicU64::new(0), AtomicU64::new(0));
        let wrong = Mutex::default();
        Self { mounts, over, away, operations, failures, wrong }
    }

    /// From now on the daemon of the last mount may be gone, or not any more.
    pub fn is_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    /// How many there were, and how many of them failed although no daemon had been killed.
    pub fn operations(&self) -> (u64, u64) {
        (self.operations.load(Ordering::Relaxed), self.failures.load(Ordering::Relaxed))
    }

    /// The programs go on where they have read something wrong, so that there is a report.
    pub fn assert_right(&self) {
        assert_eq!(*self.wrong.lock(), Vec::<String>::new());
    }

    pub fn until_dropped(&self) -> Over<'_> {
        Over(&self.over)
    }

    pub fn spawn_in<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        for mount in 0..self.mounts.len() {
            scope.spawn(move || self.goes_on(mount, |number| self.small(mount, number)));
            scope.spawn(move || self.goes_on(mount, |number| self.large(mount, number)));
        }
    }

    fn goes_on(&self, mount: usize, step: impl Fn(usize) -> io::Result<()>) {
        for number in 0.. {
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            let was_away = self.away.load(Ordering::SeqCst);
            if let Err(error) = step(number) {
                let was_killed = mount == 2 && (was_away || self.away.load(Ordering::SeqCst));
                if !was_killed {
                    // A session that is not heard of for its TTL ends, as on a machine that does too much besides;
                    // who has bytes under way is told.
                    assert_eq!(
                        error.raw_os_error(),
                        Some(libc::EIO),
                        "mount {}: {error}",
                        mount + 1
                    );
                    self.failures.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(200));
            }
            self.operations.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(PAUSE);
        }
    }

    fn dir(&self, mount: usize, of: usize) -> PathBuf {
        self.mounts[mount].join(format!("m{of}"))
    }

    fn small(&self, mount: usize, number: usize) -> io::Result<()> {
        let dir = self.dir(mount, mount);
        let slot = number * 7 % SLOTS;
        let (path, bytes) = (small(&dir, slot), bytes_of(slot));
        match number % 9 {
            0..=2 => write_and_close(&path, &bytes),
            3 => {
                let new = dir.join("new");
                write_and_sync(&new, &bytes)?;
                fs::rename(new, path)
            }
            4 => {
                // It is not there where this mount's daemon died in between.
                fs::remove_file(&path).or_else(|error| ignore(error, ErrorKind::NotFound))?;
                write_and_close(&path, &bytes)
            }
            5 => {
                let others = self.dir(mount, (mount + 1) % self.mounts.len());
                let found = match fs::read(small(&others, slot)) {
                    Err(error) => return ignore(error, ErrorKind::NotFound),
                    Ok(found) => found,
                };
                if !bytes.starts_with(&found) {
                    let there = String::from_utf8_lossy(&found[..found.len().min(60)]);
                    let text = format!("{slot} of another mount: {} bytes, {there:?}", found.len());
                    self.wrong.lock().push(text);
                }
                Ok(())
            }
            6 => {
                let made = dir.join("dir");
                fs::create_dir(&made).or_else(|error| ignore(error, ErrorKind::AlreadyExists))?;
                fs::set_permissions(&path, fs::metadata(&path)?.permissions())?;
                fs::remove_dir(made)
            }
            7 => append(&dir.join("log")),
            _ => {
                let file = File::open(self.mounts[mount].join("lock"))?;
                flock(&file, FlockOperation::LockExclusive)?;
                flock(&file, FlockOperation::Unlock)?;
                Ok(())
            }
        }
    }

    fn large(&self, mount: usize, number: usize) -> io::Result<()> {
        let checkpoint = number % CHECKPOINTS;
        let name = format!("checkpoint{checkpoint}");
        let dir = self.dir(mount, mount);
        let new = dir.join("checkpoint.new");
        write_and_sync(&new, &weights(checkpoint))?;
        fs::rename(new, dir.join(&name))?;
        let others = self.dir(mount, (mount + 1) % self.mounts.len());
        let path = others.join(&name);
        let found = fs::read(&path)?;
        self.wrong.lock().extend(difference(&path, &found, checkpoint));
        std::thread::sleep(Duration::from_secs(1));
        Ok(())
    }
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn small(dir: &Path, slot: usize) -> PathBuf {
    dir.join(format!("small{slot}"))
}

/// The same each time, so that there are always as many.
fn bytes_of(slot: usize) -> Vec<u8> {
    let line = format!("small file {slot}\n");
    line.bytes().cycle().take(500 + slot * 67).collect()
}

fn weights(checkpoint: usize) -> Vec<u8> {
    let line = format!("weights of checkpoint {checkpoint}\n");
    line.bytes().cycle().take(CHECKPOINT_LEN).collect()
}

/// How a checkpoint differs from what it must be, if it does.
fn difference(path: &Path, found: &[u8], checkpoint: usize) -> Option<String> {
    let wanted = weights(checkpoint);
    let same = wanted.iter().zip(found).take_while(|(one, other)| one == other).count();
    let there = String::from_utf8_lossy(&found[same..found.len().min(same + 60)]);
    let lengths = (found.len(), wanted.len());
    (found != wanted).then(|| {
        format!("{}: {lengths:?} bytes, differs from {same} on: {there:?}", path.display())
    })
}

/// Begins anew when it is long.
fn append(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(path)?;
    if file.metadata()?.len() > LOG_LEN {
        file.set_len(100_000)?;
    }
    file.write_all(&[b'.'; 300])
}

fn ignore(error: io::Error, kind: ErrorKind) -> io::Result<()> {
    if error.kind() == kind { Ok(()) } else { Err(error) }
}
