//! Programs that write through mounts until their daemons die, and what they were promised: whether it was kept is seen
//! by reading it again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use parking_lot::Mutex;

use super::{PATIENCE, names, wait_until, write_and_close, write_and_sync};

/// Overwritten files are made of cells, each of which says by which write it was filled.
const CELL: usize = 4096;
/// Of an overwritten file.
const REGION: usize = 256 << 10;
const REGIONS: usize = 4;

/// What a writer was promised.
#[derive(Clone, Debug)]
pub enum Promise {
    /// A file that was written, then fsynced.
    Written { name: String, bytes: Vec<u8> },
    /// A file that was fsynced under another name, then renamed; the directory was fsynced.
    Renamed { from: String, to: String, bytes: Vec<u8> },
    /// A directory, with an empty file in it, both fsynced.
    Made { dir: String, file: String },
    /// Records appended to a file, each fsynced.
    Appended { name: String, records: usize },
    /// A file over which others were renamed that nobody fsynced. It is this version of it or a later one, whole.
    Replaced { name: String, version: usize },
    /// A file that is overwritten in place, each write fsynced: by which write each cell was filled last. Cells may be of a
    /// later one.
    Overwritten { name: String, cells: Vec<usize> },
}

/// What all writers together were promised so far.
#[derive(Debug, Default)]
struct Promises(Mutex<Vec<Promise>>);

/// Programs that write through several mounts, four through each.
#[derive(Debug)]
pub struct Writers {
    mounts: Vec<PathBuf>,
    dying: Vec<AtomicBool>,
    over: AtomicBool,
    promises: Promises,
}

/// One of them.
#[derive(Clone, Copy, Debug)]
struct Writer<'a> {
    all: &'a Writers,
    mount: usize,
}

/// Has the writers stop, also where the test fails.
struct Over<'a>(&'a AtomicBool);

impl Writers {
    /// Has them write into an existing directory, given relative to the mounts, until `meanwhile` has returned; answers
    /// everything that they were promised.
    pub fn run(mounts: &[PathBuf], dir: &str, meanwhile: impl FnOnce(&Self)) -> Vec<Promise> {
        let dying = mounts.iter().map(|_| AtomicBool::new(false)).collect();
        let (over, promises) = (AtomicBool::new(false), Promises::default());
        let writers = Self { mounts: mounts.to_vec(), dying, over, promises };
        thread::scope(|scope| {
            let _over = Over(&writers.over);
            for mount in 0..mounts.len() {
                let writer = Writer { all: &writers, mount };
                let name = format!("{dir}/n{}", mount + 1);
                scope.spawn({
                    let name = name.clone();
                    move || {
                        writer.goes_on(|number| writer.make(&format!("{name}-{number}"), number));
                    }
                });
                scope.spawn({
                    let name = format!("{name}-log");
                    move || writer.appends(&name)
                });
                scope.spawn({
                    let name = format!("{name}-slot");
                    move || writer.replaces(&name)
                });
                scope.spawn(move || writer.overwrites(&format!("{name}-cells")));
            }
            meanwhile(&writers);
        });
        writers.promises.0.into_inner()
    }

    /// What they were promised before this is called.
    pub fn so_far(&self) -> Vec<Promise> {
        self.promises.0.lock().clone()
    }

    /// Waits until they were promised that much.
    pub fn until_promised(&self, promises: usize) {
        wait_until(PATIENCE, "some writes", || {
            (self.promises.0.lock().len() >= promises).then_some(())
        });
    }

    /// From now on those of this mount, counted from 0, may find that its daemon is dead.
    pub fn dies(&self, mount: usize) {
        self.dying[mount].store(true, Ordering::Release);
    }
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Promises {
    fn add(&self, promise: Promise) {
        self.0.lock().push(promise);
    }

    /// One that is renewed from time to time: its place.
    fn begin(&self, promise: Promise) -> usize {
        let mut promises = self.0.lock();
        promises.push(promise);
        promises.len() - 1
    }

    fn renew(&self, at: usize, how: impl FnOnce(&mut Promise)) {
        how(&mut self.0.lock()[at]);
    }
}

impl Writer<'_> {
    /// Calls `step` until it is over or the daemon is dead: nothing may fail before. EIO is what the kernel answers to a
    /// request that the daemon was just reading when it was killed (`fuse_dev_do_read`), and ENOENT comes where nothing
    /// is mounted any more.
    fn goes_on(self, mut step: impl FnMut(usize) -> io::Result<()>) {
        const DEAD: [i32; 4] = [libc::ENOTCONN, libc::ECONNABORTED, libc::EIO, libc::ENOENT];
        for number in 0.. {
            if self.all.over.load(Ordering::Acquire) {
                return;
            }
            let Err(error) = step(number) else { continue };
            let dying = self.all.dying[self.mount].load(Ordering::Acquire);
            assert!(dying, "mount {}, before its daemon was killed: {error}", self.mount + 1);
            assert!(error.raw_os_error().is_some_and(|code| DEAD.contains(&code)), "{error}");
            return;
        }
    }

    fn path(self, name: &str) -> PathBuf {
        self.all.mounts[self.mount].join(name)
    }

    /// A file or directory, in one of three ways.
    fn make(self, name: &str, number: usize) -> io::Result<()> {
        let bytes = name.repeat(1 + number * 131 % 9_000).into_bytes();
        let promise = match number % 3 {
            0 => {
                write_and_sync(&self.path(name), &bytes)?;
                Promise::Written { name: name.to_owned(), bytes }
            }
            1 => {
                let from = format!("{name}.tmp");
                write_and_sync(&self.path(&from), &bytes)?;
                fs::rename(self.path(&from), self.path(name))?;
                self.sync_parent(name)?;
                Promise::Renamed { from, to: name.to_owned(), bytes }
            }
            _ => {
                fs::create_dir(self.path(name))?;
                File::create(self.path(name).join("empty"))?.sync_all()?;
                File::open(self.path(name))?.sync_all()?;
                self.sync_parent(name)?;
                Promise::Made { dir: name.to_owned(), file: "empty".to_owned() }
            }
        };
        self.all.promises.add(promise);
        Ok(())
    }

    fn sync_parent(self, name: &str) -> io::Result<()> {
        let path = self.path(name);
        File::open(path.parent().expect("below the mount"))?.sync_all()
    }

    fn appends(self, name: &str) {
        let mut place = None;
        self.goes_on(|number| {
            let mut file = OpenOptions::new().append(true).create(true).open(self.path(name))?;
            file.write_all(&record(name, number))?;
            file.sync_data()?;
            let promise = Promise::Appended { name: name.to_owned(), records: number + 1 };
            self.promise(&mut place, promise);
            Ok(())
        });
    }

    /// The first version is fsynced, and no other one.
    fn replaces(self, name: &str) {
        let mut place = None;
        self.goes_on(|version| {
            let bytes = replacement(name, version);
            if version == 0 {
                write_and_sync(&self.path(name), &bytes)?;
            } else {
                let new = self.path(&format!("{name}.new"));
                write_and_close(&new, &bytes)?;
                fs::rename(new, self.path(name))?;
            }
            self.promise(&mut place, Promise::Replaced { name: name.to_owned(), version });
            Ok(())
        });
    }

    /// Cells and whole regions by turns, of which the second are staged.
    fn overwrites(self, name: &str) {
        let mut place = None;
        self.goes_on(|number| {
            let (start, len) = match number {
                0 => (0, REGIONS * REGION),
                _ if number % 4 == 0 => (number / 4 % REGIONS * REGION, REGION),
                _ => (number * 7 % (REGIONS * REGION / CELL) * CELL, CELL),
            };
            let mut options = OpenOptions::new();
            let file = options.write(true).create(true).truncate(false).open(self.path(name))?;
            let filled = start / CELL..(start + len) / CELL;
            let bytes: Vec<u8> = filled.clone().flat_map(|at| cell(number, at)).collect();
            file.write_all_at(&bytes, start as u64)?;
            if number == 0 {
                file.sync_all()?;
            } else {
                file.sync_data()?;
            }
            match place {
                None => {
                    let cells = vec![0; REGIONS * REGION / CELL];
                    let promise = Promise::Overwritten { name: name.to_owned(), cells };
                    place = Some(self.all.promises.begin(promise));
                }
                Some(at) => self.all.promises.renew(at, |promise| {
                    let Promise::Overwritten { cells, .. } = promise else {
                        unreachable!("its place is its own")
                    };
                    cells[filled].fill(number);
                }),
            }
            Ok(())
        });
    }

    fn promise(self, place: &mut Option<usize>, promise: Promise) {
        match *place {
            None => *place = Some(self.all.promises.begin(promise)),
            Some(at) => self.all.promises.renew(at, |old| *old = promise),
        }
    }
}

impl Promise {
    /// Panics where it was not kept.
    pub fn check(&self, mount: &Path) {
        let read = |name: &str| {
            fs::read(mount.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        match self {
            Self::Written { name, bytes } => assert!(read(name) == *bytes, "{name} differs"),
            Self::Renamed { from, to, bytes } => {
                assert!(read(to) == *bytes, "{to} differs");
                let gone = fs::symlink_metadata(mount.join(from)).expect_err(from);
                assert_eq!(gone.kind(), io::ErrorKind::NotFound, "{from}");
            }
            Self::Made { dir, file } => assert_eq!(names(&mount.join(dir)), [file.as_str()]),
            Self::Appended { name, records } => {
                check_records(name, &read(name), *records);
            }
            Self::Replaced { name, version } => check_replacement(name, &read(name), *version),
            Self::Overwritten { name, cells } => check_cells(name, &read(name), cells),
        }
    }
}

fn record(name: &str, number: usize) -> Vec<u8> {
    format!("{name}, record {number}{}\n", ".".repeat(number * 37 % 700)).into_bytes()
}

/// Each record is whole, and none of those that were promised is missing. Later ones may be there.
fn check_records(name: &str, mut bytes: &[u8], promised: usize) {
    let mut found = 0;
    while !bytes.is_empty() {
        let next = record(name, found);
        let is_next = bytes.starts_with(&next);
        assert!(
            is_next,
            "{name}: {} bytes behind record {found} are not the next one",
            bytes.len()
        );
        bytes = &bytes[next.len()..];
        found += 1;
    }
    assert!(found >= promised, "{name} holds {found} records, of which {promised} were promised");
}

/// Some are short enough to travel in the log, some are of several pieces.
fn replacement(name: &str, version: usize) -> Vec<u8> {
    let len = [5_000, 300_000, 3_000_000][version % 3] + version % 1_000;
    let line = format!("{version} is the version of {name}\n");
    line.bytes().cycle().take(len).collect()
}

fn check_replacement(name: &str, bytes: &[u8], promised: usize) {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit());
    let digits = String::from_utf8(digits.copied().collect()).expect("digits");
    let version = digits.parse::<usize>();
    let version = version.unwrap_or_else(|_| panic!("{name}: {} bytes of nothing", bytes.len()));
    assert!(version >= promised, "{name} is version {version}, and {promised} was promised");
    let wanted = replacement(name, version);
    let same = wanted.iter().zip(bytes).take_while(|(one, other)| one == other).count();
    assert!(
        bytes == wanted,
        "{name}, version {version}: {} bytes instead of {}, and they differ from {same} on",
        bytes.len(),
        wanted.len()
    );
}

fn cell(number: usize, at: usize) -> [u8; CELL] {
    let mut cell = [0; CELL];
    for part in cell.chunks_exact_mut(16) {
        part[..8].copy_from_slice(&(number as u64 + 1).to_le_bytes());
        part[8..].copy_from_slice(&(at as u64).to_le_bytes());
    }
    cell
}

fn check_cells(name: &str, bytes: &[u8], promised: &[usize]) {
    assert_eq!(bytes.len(), promised.len() * CELL, "{name}");
    for (at, (bytes, promised)) in bytes.chunks_exact(CELL).zip(promised).enumerate() {
        let number = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
        let number = usize::try_from(number).expect("small").checked_sub(1);
        let number = number.unwrap_or_else(|| panic!("{name}: cell {at} is empty"));
        assert!(number >= *promised, "{name}: cell {at} is of write {number}, not {promised}");
        assert!(bytes == cell(number, at), "{name}: cell {at} is not all of write {number}");
    }
}
