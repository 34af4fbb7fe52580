//! Names, symlinks, hard links and renames, from two mounts at once.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::thread;

use super::beside::{Beside, run};
use super::support::{Cluster, names};

const LINK_MAX: u64 = 65_000;

const RENAMES: &str = r"python3 - <<'END'
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def rename(old, new, flags):
    result = libc.renameat2(-100, old.encode(), -100, new.encode(), flags)
    print(old, new, flags, result and errno.errorcode[ctypes.get_errno()])
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
names = ['file', 'other', 'full', 'empty', 'link', 'hard', 'full/below', 'missing', '.', 'full/..']
for old in names:
    for new in names:
        for flags in [NOREPLACE, EXCHANGE, EXCHANGE | NOREPLACE, EXCHANGE | WHITEOUT, 8]:
            rename(old, new, flags)
            if flags == EXCHANGE: rename(old, new, flags)
rename('file', 'full/new', NOREPLACE)
rename('full', 'moved', NOREPLACE)
rename('moved', 'empty', EXCHANGE)
rename('empty/below', 'moved', EXCHANGE)
END
";

#[test]
fn any_bytes_and_255_of_them_are_a_name() {
    let cluster = Cluster::up(3);
    let (here, there) = (cluster.mount(1), cluster.mount(2));
    let mut wanted: Vec<Vec<u8>> =
        (1..=255_u8).filter(|byte| !matches!(byte, b'/' | b'.')).map(|byte| vec![byte]).collect();
    wanted.extend([
        vec![0xff; 255],
        "ü".repeat(127).into_bytes(),
        b"...".to_vec(),
        b" \n".to_vec(),
    ]);
    for (number, name) in wanted.iter().enumerate() {
        let mount = if number % 2 == 0 { &here } else { &there };
        fs::write(mount.join(OsStr::from_bytes(name)), name).expect("create");
    }
    wanted.sort();
    for mount in [&here, &there] {
        let entries = fs::read_dir(mount).expect("readdir");
        let mut found: Vec<_> =
            entries.map(|entry| entry.expect("readdir").file_name().into_vec()).collect();
        found.sort();
        assert!(found == wanted, "{found:?}");
        for name in &wanted {
            assert_eq!(fs::read(mount.join(OsStr::from_bytes(name))).expect("read"), *name);
        }
        let long = mount.join(OsStr::from_bytes(&[b'n'; 256]));
        for error in
            [fs::create_dir(&long), fs::write(&long, ""), fs::rename(mount.join("a"), &long)]
        {
            assert_eq!(error.expect_err("too long").raw_os_error(), Some(libc::ENAMETOOLONG));
        }
    }
    for (number, name) in wanted.iter().enumerate() {
        let mount = if number % 2 == 0 { &there } else { &here };
        fs::remove_file(mount.join(OsStr::from_bytes(name))).expect("unlink");
    }
    assert_eq!(names(&here), [""; 0]);
}

#[test]
fn symlinks_hold_4095_bytes_of_any_kind() {
    let cluster = Cluster::up(3);
    let (here, there) = (cluster.mount(1), cluster.mount(2));
    let targets: [Vec<u8>; 3] =
        [vec![b'x'; 4095], (1..=255).cycle().take(4095).collect(), b"/".to_vec()];
    for (number, target) in targets.iter().enumerate() {
        let name = number.to_string();
        symlink(OsStr::from_bytes(target), here.join(&name)).expect("symlink");
        for mount in [&there, &here] {
            let link = mount.join(&name);
            let found = fs::read_link(&link).expect("readlink").into_os_string().into_vec();
            assert!(found == *target, "target {number}");
            let size = fs::symlink_metadata(&link).expect("lstat").len();
            assert_eq!(size, target.len() as u64);
        }
    }
    for (target, errno) in [(vec![b'x'; 4096], libc::ENAMETOOLONG), (vec![], libc::ENOENT)] {
        let error = symlink(OsStr::from_bytes(&target), here.join("no")).expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(errno));
    }
}

#[test]
fn renames_with_flags_are_as_elsewhere() {
    let cluster = Cluster::up(3);
    let mut beside = Beside::new(&cluster, "renames");
    let look = "find . -printf '%P %y %n %l\\n' | sort; find . -type f -exec grep -H . {} + | sort";
    let make =
        "echo f > file; echo o > other; mkdir -p full/below empty; ln -s file link; ln file hard";
    beside.step(make, look);
    beside.step(RENAMES, look);
    beside.step("mkdir a b; touch a/x b/x; mv -T a b; mv -n other hard; mv file link .", look);
}

#[test]
fn renames_over_open_files_leave_them_to_those_who_have_them_open() {
    let cluster = Cluster::up(3);
    let (here, there) = (cluster.mount(1), cluster.mount(2));
    let text = |mut file: &File| {
        let mut text = String::new();
        file.seek(SeekFrom::Start(0)).expect("seek");
        file.read_to_string(&mut text).expect("read");
        text
    };
    for (name, bytes) in [("a", "first"), ("b", "second")] {
        fs::write(here.join(name), bytes).expect("write");
    }
    let open = |mount: &Path, name: &str| {
        File::options().read(true).write(true).open(mount.join(name)).expect("open")
    };
    let files: Vec<_> = [&here, &there].map(|m| (open(m, "a"), open(m, "b"))).into();
    let exchange = "python3 -c 'import ctypes; \
        print(ctypes.CDLL(None).renameat2(-100, b\"a\", -100, b\"b\", 2))'";
    assert_eq!(run(&there, exchange), "0\n0\n");
    for (mount, (a, b)) in [&here, &there].into_iter().zip(&files) {
        assert_eq!((text(a), text(b)), ("first".into(), "second".into()));
        assert_eq!(fs::read_to_string(mount.join("a")).expect("read"), "second");
        assert_eq!(fs::read_to_string(mount.join("b")).expect("read"), "first");
    }
    // "b" is "first" now, and is replaced by "second".
    fs::rename(here.join("a"), here.join("b")).expect("rename");
    for (mount, (first, second)) in [&here, &there].into_iter().zip(&files) {
        assert_eq!(names(mount), ["b"]);
        assert_eq!((text(first), text(second)), ("first".into(), "second".into()));
        let links = |file: &File| file.metadata().expect("fstat").nlink();
        assert_eq!((links(first), links(second)), (0, 1));
    }
    // Who writes to a file without a name writes for all who have it open.
    let (writer, reader) = (&files[0].0, &files[1].0);
    writer.write_all_at(b"FIRST and last", 0).expect("write");
    writer.sync_all().expect("fsync");
    assert_eq!(reader.metadata().expect("fstat").len(), 14);
    assert_eq!(text(&open_again(reader)), "FIRST and last");
    assert_eq!(fs::read_to_string(there.join("b")).expect("read"), "second");
}

/// Bytes are visible to opens that begin afterwards.
fn open_again(file: &File) -> File {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("open")
}

#[test]
#[ignore = "long: 65,000 links"]
fn a_file_has_65_000_names_and_no_more() {
    let cluster = Cluster::up(3);
    fs::write(cluster.mount(1).join("file"), "bytes").expect("write");
    fs::create_dir(cluster.mount(1).join("names")).expect("mkdir");
    let link = |node: u64, number: u64| {
        let mount = cluster.mount(node);
        fs::hard_link(mount.join("file"), mount.join("names").join(number.to_string()))
    };
    thread::scope(|scope| {
        for node in 1..=3 {
            scope.spawn(move || {
                for number in (1..LINK_MAX).filter(|number| number % 3 + 1 == node) {
                    link(node, number).expect("link");
                }
            });
        }
    });
    for node in 1..=3 {
        let error = link(node, LINK_MAX).expect_err("one too many");
        assert_eq!(error.raw_os_error(), Some(libc::EMLINK));
        let stat = fs::metadata(cluster.mount(node).join("file")).expect("stat");
        assert_eq!(stat.nlink(), LINK_MAX);
    }
    assert_eq!(names(&cluster.mount(2).join("names")).len() as u64, LINK_MAX - 1);
    fs::remove_file(cluster.mount(3).join("names/7")).expect("unlink");
    link(1, LINK_MAX).expect("there is room again");
    cluster.settle();
}
