//! Attributes of files that are being written: bytes and attributes keep their order, travel together,
//! and what a close has committed is what the others see.

mod support;

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::XattrFlags;
use support::{Cluster, PATIENCE, wait_until};

/// Seconds and nanoseconds.
type Time = (i64, i64);

fn ctime(path: &Path) -> Time {
    let metadata = fs::metadata(path).expect("stat");
    (metadata.ctime(), metadata.ctime_nsec())
}

fn ctime_of(file: &File) -> Time {
    let metadata = file.metadata().expect("fstat");
    (metadata.ctime(), metadata.ctime_nsec())
}

fn set_mtime(file: &File, mtime: SystemTime) {
    file.set_times(fs::FileTimes::new().set_accessed(mtime).set_modified(mtime)).expect("futimens");
}

fn chmod(file: &File, mode: u32) {
    file.set_permissions(Permissions::from_mode(mode)).expect("fchmod");
}

fn create(path: &Path, mode: u32) -> File {
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path).expect("create")
}

/// What has been applied on a node.
fn applied(cluster: &Cluster, node: u64) -> u64 {
    let nodes = cluster.status().nodes;
    nodes.iter().find(|other| other.id == node).expect("it is a member").applied
}

/// A file as GNU tar extracts it as root.
fn extract(path: &Path, bytes: &[u8], mtime: SystemTime) {
    let mut file = create(path, 0o600);
    file.write_all(bytes).expect("write");
    set_mtime(&file, mtime);
    let before = ctime_of(&file);
    fchown(&file, Some(0), Some(0)).expect("fchown");
    assert!(ctime_of(&file) > before, "fstat shows the new ctime at once");
    chmod(&file, 0o644);
}

#[test]
fn what_tar_extracts_costs_two_entries_and_is_seen_elsewhere() {
    const FILES: u64 = 100;
    let cluster = Cluster::up(3);
    let (here, there) = (cluster.mount(1), cluster.mount(2));
    let mtime = UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
    let bytes = |number: u64| vec![u8::try_from(number % 251).expect("a byte"); 5_000];
    let before = applied(&cluster, 1);
    for number in 0..FILES {
        extract(&here.join(format!("f{number}")), &bytes(number), mtime);
    }
    let entries = applied(&cluster, 1) - before;
    for number in 0..FILES {
        let (here, there) = (here.join(format!("f{number}")), there.join(format!("f{number}")));
        assert!(fs::read(&there).expect("read") == bytes(number), "bytes of file {number}");
        let seen = fs::metadata(&there).expect("stat");
        assert_eq!(seen.modified().expect("a time"), mtime);
        assert_eq!((seen.mode() & 0o7777, seen.uid(), seen.gid()), (0o644, 0, 0));
        assert_eq!(ctime(&there), ctime(&here));
    }
    // Sessions keep house, too.
    assert!(entries * 10 <= FILES * 22, "{entries} entries for {FILES} files");
}

#[test]
fn a_change_of_nothing_but_ctime_is_seen_elsewhere_after_close_fsync_or_a_while() {
    let cluster = Cluster::up(3);
    let (here, there) = (cluster.mount(1).join("f"), cluster.mount(2).join("f"));
    let mut file = create(&here, 0o640);
    let change = |file: &File| {
        let before = ctime_of(file);
        fchown(file, Some(0), Some(0)).expect("fchown");
        chmod(file, 0o640);
        let after = ctime_of(file);
        assert!(after > before, "fstat shows it at once");
        after
    };
    let changed = change(&file);
    wait_until(PATIENCE, "the new ctime elsewhere", || (ctime(&there) == changed).then_some(()));

    let changed = change(&file);
    file.sync_all().expect("fsync");
    assert_eq!(ctime(&there), changed);

    file.write_all(b"bytes and ctime in one command").expect("write");
    let written = fs::metadata(&here).expect("stat").modified().expect("a time");
    let changed = change(&file);
    drop(file);
    assert_eq!(ctime(&there), changed);
    assert_eq!(fs::metadata(&there).expect("stat").modified().expect("a time"), written);
    assert_eq!(fs::read(&there).expect("read"), b"bytes and ctime in one command");

    // Without anybody who has it open for writing, the change is there when the call returns.
    let before = ctime(&here);
    fs::set_permissions(&here, Permissions::from_mode(0o640)).expect("chmod");
    assert!(ctime(&there) > before);
    let file = File::open(&here).expect("open");
    let changed = change(&file);
    assert_eq!(ctime(&there), changed);
}

#[test]
fn times_that_are_set_after_bytes_are_seen_elsewhere_with_them() {
    let cluster = Cluster::up(3);
    let (here, there) = (cluster.mount(1).join("f"), cluster.mount(2).join("f"));
    let past = |seconds| UNIX_EPOCH + Duration::new(seconds, 987_654_321);
    let times = |path: &Path| {
        let metadata = fs::metadata(path).expect("stat");
        (metadata.accessed().expect("a time"), metadata.modified().expect("a time"))
    };
    let mut file = create(&here, 0o640);
    file.write_all(b"one").expect("write");
    set_mtime(&file, past(1000));
    let changed = ctime_of(&file);
    assert_eq!(times(&here), (past(1000), past(1000)), "here at once");
    file.sync_all().expect("fsync");
    assert_eq!((times(&there), ctime(&there)), ((past(1000), past(1000)), changed));
    // Nobody reads the file before the end: that would renew its access time.
    assert_eq!(fs::metadata(&there).expect("stat").len(), 3);

    // What is written afterwards moves mtime again, and not atime.
    file.write_all(b"two").expect("write");
    set_mtime(&file, past(2000));
    file.write_all(b"three").expect("write");
    assert!(times(&here).1 > past(2000));
    drop(file);
    assert_eq!(times(&there), times(&here));
    assert!(times(&there).1 > past(2000));

    // The later of two counts; a truncation after them moves mtime.
    let mut file = OpenOptions::new().write(true).open(&here).expect("open");
    file.write_all(b"four").expect("write");
    set_mtime(&file, past(3000));
    set_mtime(&file, past(500));
    assert_eq!(times(&here), (past(500), past(500)));
    wait_until(PATIENCE, "the times elsewhere without fsync or close", || {
        (times(&there) == (past(500), past(500))).then_some(())
    });
    file.write_all(b"five").expect("write");
    set_mtime(&file, past(600));
    file.set_len(2).expect("ftruncate");
    assert!(times(&there).1 > past(600));
    assert_eq!(times(&there), times(&here));
    assert_eq!(fs::read(&there).expect("read"), b"fo");
}

/// Every write takes capabilities away when it is applied, also one that was only buffered when they were set.
#[test]
fn capabilities_that_are_set_after_bytes_stay() {
    const NAME: &str = "security.capability";
    // Version 2, one bit.
    let value = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let cluster = Cluster::up(3);
    let (here, there) = (cluster.mount(1).join("f"), cluster.mount(2).join("f"));
    let mut file = create(&here, 0o755);
    file.write_all(b"a program").expect("write");
    set_mtime(&file, UNIX_EPOCH + Duration::from_secs(1000));
    // Not by a program of its own: starting one closes what it inherits, which commits.
    rustix::fs::fsetxattr(&file, NAME, &value, XattrFlags::empty()).expect("fsetxattr");
    drop(file);
    for path in [&here, &there] {
        let mut found = [0; 20];
        assert_eq!(rustix::fs::getxattr(path, NAME, &mut found), Ok(20), "{}", path.display());
        assert_eq!(found, value);
    }
}

#[test]
fn truncation_cuts_what_was_written_before_it_and_not_what_comes_after() {
    let cluster = Cluster::up(3);
    let (here, there) = (cluster.mount(1).join("f"), cluster.mount(2).join("f"));
    for len in [10, 100_000] {
        let mut file = File::create(&here).expect("create");
        file.write_all(&vec![b'x'; len]).expect("write");
        file.set_len(3).expect("ftruncate");
        assert_eq!(file.metadata().expect("fstat").len(), 3);
        assert_eq!(fs::metadata(&there).expect("stat").len(), 3, "a mutation is seen at once");
        file.write_all(b"y").expect("write after the hole");
        drop(file);
        let mut wanted = vec![0; len + 1];
        wanted[..3].copy_from_slice(b"xxx");
        wanted[len] = b'y';
        assert!(fs::read(&there).expect("read") == wanted, "of {len} bytes");
        assert!(fs::read(&here).expect("read") == wanted, "of {len} bytes");
    }
}

#[test]
fn times_and_modes_that_are_set_stay_whatever_was_written_before() {
    let cluster = Cluster::up(3);
    let (here, there) = (cluster.mount(1).join("f"), cluster.mount(2).join("f"));
    let mtime = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let modified = |path: &Path| fs::metadata(path).expect("stat").modified().expect("a time");
    // One command; several; appended.
    for (len, append) in [(10, false), (300_000, false), (10, true)] {
        let mut options = OpenOptions::new();
        options.append(append).write(true).create(true);
        let mut file = options.open(&here).expect("open");
        file.write_all(&vec![b'x'; len]).expect("write");
        set_mtime(&file, mtime);
        chmod(&file, 0o4755);
        assert_eq!((modified(&here), modified(&there)), (mtime, mtime));
        // The owner stays, but chown takes suid away.
        fchown(&file, Some(0), None).expect("fchown");
        for path in [&here, &there] {
            assert_eq!(fs::metadata(path).expect("stat").mode() & 0o7777, 0o755);
        }
        drop(file);
        assert_eq!((modified(&here), modified(&there)), (mtime, mtime));
    }
}
