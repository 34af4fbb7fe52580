//! Strong reads: what one mount acknowledged, or one reader saw, every later read elsewhere sees.
#![allow(clippy::disallowed_methods, reason = "writers and readers are threads")]

mod support;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{Access, access};
use support::{Cluster, names, write_and_close};

#[test]
fn what_was_acknowledged_is_read_elsewhere() {
    coherence(3, 1, 200);
}

#[test]
#[ignore = "long"]
fn what_was_acknowledged_is_read_elsewhere_long() {
    coherence(3, 1, 2_000);
}

#[test]
fn what_four_writers_were_acknowledged_is_read_elsewhere() {
    coherence(5, 4, 200);
}

#[test]
#[ignore = "long"]
fn what_four_writers_were_acknowledged_is_read_elsewhere_long() {
    coherence(5, 4, 2_000);
}

/// `rounds` over all `writers`, which work at the same time on different mounts; over all ordered
/// pairs of mounts in turn.
fn coherence(nodes: u16, writers: usize, rounds: usize) {
    let cluster = Cluster::up(nodes);
    let mounts: Vec<_> = (1..=u64::from(nodes)).map(|node| cluster.mount(node)).collect();
    thread::scope(|scope| {
        for writer in 0..writers {
            let mounts = &mounts;
            scope.spawn(move || {
                for round in 0..rounds / writers {
                    let here = (writer + round) % mounts.len();
                    // Every distance comes with every mount.
                    let distance = 1 + round / mounts.len() % (mounts.len() - 1);
                    let there = (here + distance) % mounts.len();
                    change_and_look(&mounts[here], &mounts[there], writer, round);
                }
            });
        }
    });
    for mount in &mounts {
        assert_eq!(names(mount), Vec::<String>::new(), "every round removes what it made");
    }
}

/// Each change is looked at as soon as its call, or the close, has returned.
fn change_and_look(here: &Path, there: &Path, writer: usize, round: usize) {
    // Few names, used again and again: what a kernel remembers of them is from the other changes.
    let name = |what: &str| format!("{what}{writer}-{}", round % 7);
    let (old, new) = (name("old"), name("new"));
    let at = format!("writer {writer}, round {round}");

    let created = format!("created by {at}");
    write_and_close(&here.join(&old), created.as_bytes()).expect("create");
    assert_reads(&there.join(&old), &created, &at);

    let longer = format!("and overwritten by {at} with something longer");
    write_and_close(&here.join(&old), longer.as_bytes()).expect("overwrite");
    assert_reads(&there.join(&old), &longer, &at);

    // The size stays, and nothing is truncated.
    let in_place = longer.to_uppercase();
    let file = OpenOptions::new().write(true).open(here.join(&old)).expect("open");
    file.write_all_at(in_place.as_bytes(), 0).expect("overwrite in place");
    drop(file);
    assert_reads(&there.join(&old), &in_place, &at);

    fs::rename(here.join(&old), here.join(&new)).expect("rename");
    assert_absent(&there.join(&old), &at);
    assert_reads(&there.join(&new), &in_place, &at);

    write_and_close(&here.join(&old), created.as_bytes()).expect("create");
    fs::rename(here.join(&old), here.join(&new)).expect("rename over it");
    assert_absent(&there.join(&old), &at);
    assert_reads(&there.join(&new), &created, &at);

    fs::remove_file(here.join(&new)).expect("unlink");
    assert_absent(&there.join(&new), &at);
}

fn assert_reads(path: &Path, wanted: &str, at: &str) {
    let size = fs::metadata(path).unwrap_or_else(|error| panic!("{at}: stat: {error}"));
    assert_eq!(size.len(), wanted.len() as u64, "{at}: size");
    assert_eq!(fs::read_to_string(path).expect("read"), wanted, "{at}: bytes");
}

fn assert_absent(path: &Path, at: &str) {
    let error = fs::symlink_metadata(path).expect_err("the name is gone");
    assert_eq!(error.kind(), io::ErrorKind::NotFound, "{at}");
}

/// Nobody gets in by an old mode, nor is kept out by one: the kernel decides, and has to know.
#[test]
fn who_may_is_known_elsewhere_once_it_is_acknowledged() {
    let cluster = Cluster::up(3);
    let files = [1, 2, 3].map(|node| cluster.mount(node).join("file"));
    write_and_close(&files[0], b"").expect("create");
    for round in 0..600 {
        let (here, there) = (round % 3, (round + 1 + round / 3 % 2) % 3);
        change_mode_and_ask(&files[here], &files[there], round);
    }
}

/// Also while somebody else changes something else of the same inode all the time.
#[test]
fn who_may_is_known_beside_other_changes() {
    let cluster = Cluster::up(3);
    let files = [1, 2, 3].map(|node| cluster.mount(node).join("file"));
    write_and_close(&files[0], b"").expect("create");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let touched = File::options().write(true).open(&files[2]).expect("open");
        let done = &done;
        scope.spawn(move || {
            while !done.load(Ordering::Acquire) {
                touched.set_modified(SystemTime::now()).expect("utimens");
            }
        });
        let asked = scope.spawn(|| {
            for round in 0..400 {
                change_mode_and_ask(&files[1], &files[0], round);
            }
        });
        let asked = asked.join();
        done.store(true, Ordering::Release);
        asked.expect("everybody knows who may");
    });
}

fn change_mode_and_ask(here: &Path, there: &Path, round: usize) {
    let mode = if round.is_multiple_of(2) { 0o755 } else { 0o644 };
    fs::set_permissions(here, Permissions::from_mode(mode)).expect("chmod");
    // What asks first is all that its kernel knows.
    if (round / 6).is_multiple_of(2) {
        let may_execute = access(there, Access::EXEC_OK).is_ok();
        assert_eq!(may_execute, mode == 0o755, "round {round}: {mode:o}");
    }
    let seen = fs::metadata(there).expect("stat").permissions().mode();
    assert_eq!(seen & 0o7777, mode, "round {round}");
}

#[test]
fn files_written_anew_are_never_what_they_were_not() {
    written_anew(Duration::from_secs(8));
}

#[test]
#[ignore = "long"]
fn files_written_anew_are_never_what_they_were_not_long() {
    written_anew(Duration::from_mins(2));
}

/// Each mount writes files anew (O_TRUNC), another number in each of their lines and more or fewer lines than before, while
/// the others read them: what they find is what was written, or nothing yet, and never older than what was closed before.
/// A kernel that is told of a change while a READ is under way fills up what it does not get with zeros, unless it reads past its
/// pages (a kernel without `DIRECT_IO_ALLOW_MMAP` does not, and fails here).
fn written_anew(time: Duration) {
    let cluster = Cluster::up(3);
    let mounts = [1, 2, 3].map(|node| cluster.mount(node));
    // Less than a page, a page and more, and several.
    let files = [40, 200, 900].map(|lines| [1, 2, 3].map(|writer| (lines, writer)));
    let closed = files.map(|of_writers| of_writers.map(|_| AtomicU64::new(0)));
    let path =
        |mount: &Path, (lines, writer): (usize, usize)| mount.join(format!("{lines}_of_{writer}"));
    for file in files.as_flattened() {
        write_and_close(&path(&mounts[0], *file), &numbered(0, file.0)).expect("write");
    }
    let read = AtomicU64::new(0);
    let write = |mount: &Path, file: (usize, usize), closed: &AtomicU64| {
        let number = closed.load(Ordering::SeqCst) + 1;
        let lines = file.0 - usize::try_from(number % 7).expect("small") * file.0 / 10;
        write_and_close(&path(mount, file), &numbered(number, lines)).expect("write");
        closed.store(number, Ordering::SeqCst);
    };
    let look = |mount: &Path, file: (usize, usize), closed: &AtomicU64| {
        let least = closed.load(Ordering::SeqCst);
        let mut found = vec![0; 32 << 10];
        let path = path(mount, file);
        let len = File::open(&path).and_then(|file| file.read_at(&mut found, 0)).expect("read");
        found.truncate(len);
        assert!(found.len().is_multiple_of(LINE), "{} has {len} bytes", path.display());
        for line in found.chunks(LINE) {
            let number = str::from_utf8(line).ok().and_then(|line| line.trim().parse().ok());
            let number: u64 = number.unwrap_or_else(|| panic!("{line:?} in {}", path.display()));
            assert!(number >= least, "{number} in {} after {least}", path.display());
        }
        let is_of_one = found.chunks(LINE).all(|line| line == &found[..LINE]);
        assert!(is_of_one, "{} is of several writings: {found:?}", path.display());
        read.fetch_add(u64::from(!found.is_empty()), Ordering::Relaxed);
    };
    // Whoever opens a file before others have changed it here reads by pages.
    for (file, closed) in files.as_flattened().iter().zip(closed.as_flattened()) {
        for mount in &mounts {
            look(mount, *file, closed);
        }
        write(&mounts[file.1 - 1], *file, closed);
    }
    let until = Instant::now() + time;
    thread::scope(|scope| {
        for (here, writer) in (1..=3).flat_map(|here| (1..=3).map(move |writer| (here, writer))) {
            let (mount, files, closed) = (&mounts[here - 1], &files, &closed);
            let (write, look) = (&write, &look);
            scope.spawn(move || {
                for kind in (0..files.len()).cycle().take_while(|_| Instant::now() < until) {
                    let (file, closed) = (files[kind][writer - 1], &closed[kind][writer - 1]);
                    if here == writer {
                        write(mount, file, closed);
                    } else {
                        look(mount, file, closed);
                    }
                }
            });
        }
    });
    assert!(read.into_inner() > 100, "hardly anything was read");
}

/// In bytes.
const LINE: usize = 16;

fn numbered(number: u64, lines: usize) -> Vec<u8> {
    format!("{number:0>15}\n").repeat(lines).into_bytes()
}

#[test]
fn what_a_reader_saw_later_readers_see() {
    no_inversion(200);
}

#[test]
#[ignore = "long"]
fn what_a_reader_saw_later_readers_see_long() {
    no_inversion(2_000);
}

/// Something that goes through versions, which only ever rise.
#[derive(Clone, Copy, Debug)]
enum Subject {
    /// The bytes of a file that is renamed over the last one.
    Replaced,
    /// The bytes of a file that is overwritten in place.
    Overwritten,
    /// The size of a file, by truncation.
    Size,
    /// The name of the one entry of a directory.
    Name,
}

const SUBJECTS: [Subject; 4] =
    [Subject::Replaced, Subject::Overwritten, Subject::Size, Subject::Name];

impl Subject {
    fn set(self, mount: &Path, version: u64) -> io::Result<()> {
        let text = format!("{version:020}");
        match self {
            Self::Replaced => {
                write_and_close(&mount.join("replacement"), text.as_bytes())?;
                fs::rename(mount.join("replacement"), mount.join("replaced"))
            }
            Self::Overwritten => OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(mount.join("overwritten"))?
                .write_all_at(text.as_bytes(), 0),
            Self::Size => OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(mount.join("size"))?
                .set_len(version),
            Self::Name if version == 1 => fs::create_dir_all(mount.join("names").join(text)),
            Self::Name => {
                let old = format!("{:020}", version - 1);
                fs::rename(mount.join("names").join(old), mount.join("names").join(text))
            }
        }
    }

    fn see(self, mount: &Path) -> u64 {
        let parse = |text: &str| text.parse().unwrap_or_else(|_| panic!("{self:?} is {text:?}"));
        match self {
            Self::Replaced => parse(&fs::read_to_string(mount.join("replaced")).expect("read")),
            Self::Overwritten => {
                let mut bytes = [0; 20];
                let file = File::open(mount.join("overwritten")).expect("open");
                file.read_exact_at(&mut bytes, 0).expect("read");
                parse(&String::from_utf8_lossy(&bytes))
            }
            Self::Size => fs::metadata(mount.join("size")).expect("stat").len(),
            Self::Name => {
                // A listing may show what comes while it goes on (POSIX, readdir); a lookup that
                // starts after it finds nothing older.
                let listed = names(&mount.join("names"));
                let version = parse(listed.last().expect("there always is a name"));
                let older = format!("{:020}", version - 1);
                assert_absent(&mount.join("names").join(older), "after a newer name was listed");
                version
            }
        }
    }

    /// Bytes are seen on the mount that writes them before anybody else has them: close-to-open
    /// promises them to others only when close has returned.
    fn is_promised_to_others(self, seen_by_the_writer: bool) -> bool {
        match self {
            Self::Overwritten => !seen_by_the_writer,
            Self::Replaced | Self::Size | Self::Name => true,
        }
    }
}

/// Readers on all mounts tell each other what they saw; one that starts later sees no less.
fn no_inversion(versions: u64) {
    const WRITER: u64 = 1;
    let cluster = Cluster::up(3);
    let mount = cluster.mount(WRITER);
    for subject in SUBJECTS {
        subject.set(&mount, 1).expect("make it");
    }
    let seen = SUBJECTS.map(|_| AtomicU64::new(1));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for node in 1..=3 {
            let (mount, seen, done) = (cluster.mount(node), &seen, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Acquire) {
                    for (subject, seen) in SUBJECTS.into_iter().zip(seen) {
                        let before = seen.load(Ordering::Acquire);
                        let version = subject.see(&mount);
                        assert!(
                            version >= before,
                            "{subject:?}: {before} had been seen, then {version} on mount {node}"
                        );
                        if subject.is_promised_to_others(node == WRITER) {
                            seen.fetch_max(version, Ordering::AcqRel);
                        }
                    }
                }
            });
        }
        let writes = (2..=versions).try_for_each(|version| {
            SUBJECTS.into_iter().try_for_each(|subject| subject.set(&mount, version))
        });
        done.store(true, Ordering::Release);
        writes.expect("every change succeeds");
    });
    for subject in SUBJECTS {
        for node in 1..=3 {
            assert_eq!(subject.see(&cluster.mount(node)), versions, "{subject:?} on mount {node}");
        }
    }
}

/// Each mount's kernel holds the directory while it waits for the other: nobody may need that lock.
#[test]
fn two_mounts_create_in_one_directory_without_deadlock_or_loss() {
    create_together(1_000);
}

#[test]
#[ignore = "long"]
fn two_mounts_create_in_one_directory_without_deadlock_or_loss_long() {
    create_together(10_000);
}

fn create_together(files: usize) {
    let cluster = Cluster::up(3);
    fs::create_dir(cluster.mount(3).join("dir")).expect("mkdir");
    thread::scope(|scope| {
        for node in [1, 2] {
            let dir = cluster.mount(node).join("dir");
            scope.spawn(move || {
                for number in 0..files {
                    write_and_close(&dir.join(format!("n{node}-{number}")), b"").expect("create");
                }
            });
        }
    });
    let wanted: BTreeSet<_> =
        [1, 2].iter().flat_map(|node| (0..files).map(move |i| format!("n{node}-{i}"))).collect();
    for node in 1..=3 {
        let listed = names(&cluster.mount(node).join("dir"));
        assert_eq!(listed.len(), wanted.len(), "mount {node} lists as many names");
        assert!(listed.into_iter().collect::<BTreeSet<_>>() == wanted, "mount {node} lists these");
    }
}
