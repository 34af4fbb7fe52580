//! Times, permission rules, suid and sgid, sticky and setgid directories: as on a local file system.

use std::fs::{self, File, FileTimes};
use std::time::{Duration, UNIX_EPOCH};

use super::beside::{Beside, run};
use super::support::Cluster;

const LOOK: &str = "find . -printf '%P %M %U %G %n %l\\n' | sort";

fn as_user(user: u32, groups: &str, command: &str) -> String {
    format!("setpriv --reuid={user} --regid={user} {groups} sh -c '{command}'")
}

/// Whether each of the ways to look at something renews its access time. (Not of symlinks: kernels keep
/// their targets. Opening for reading and writing counts as reading.)
const RELATIME: &str = r"python3 - <<'END'
import mmap, os
DAY = 24 * 3600
now = int(os.stat('.').st_ctime)
def renewed(what, path, look, atime, mtime):
    os.utime(path, (atime, mtime), follow_symlinks=False)
    look(path)
    print(what, path, os.stat(path, follow_symlinks=False).st_atime != atime)
def read(path):
    with open(path) as file: file.read()
def read_noatime(path):
    file = os.open(path, os.O_RDONLY | os.O_NOATIME)
    os.read(file, 1)
    os.close(file)
def write(path):
    file = os.open(path, os.O_WRONLY)
    os.write(file, b'x')
    os.close(file)
def mapped(path):
    with open(path) as file: mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)[0]
for path, looks in {'file': [read, read_noatime, write, mapped, os.stat],
                    'directory': [os.listdir]}.items():
    for look in looks:
        name = look.__name__
        renewed(name + ' read after the last change', path, look, now + DAY, now)
        renewed(name + ' written since', path, look, now - 20, now - 10)
END
";

const TIMES: &str = r"python3 - <<'END'
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2
class Times(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ['a', 'an', 'm', 'mn']]
def utimensat(path, *times):
    result = libc.utimensat(-100, path.encode(), ctypes.byref(Times(*times)), 0x100)
    stat = os.stat(path, follow_symlinks=False)
    show = lambda ns: 'now' if abs(ns - stat.st_ctime_ns) < 10 ** 9 else ns
    print(path, times, result, ctypes.get_errno(), show(stat.st_atime_ns), show(stat.st_mtime_ns))
for path in ['file', 'directory', 'symlink', 'fifo']:
    utimensat(path, 1, 1, 2, 999999999)
    utimensat(path, 0, OMIT, 3, 123456789)
    utimensat(path, 4, 987654321, 0, OMIT)
    utimensat(path, 0, NOW, 0, OMIT)
    utimensat(path, 0, OMIT, 0, NOW)
    utimensat(path, -1, 1, -1000000000, 999999999)
    utimensat(path, 1 << 31, 5, (1 << 32) + 1, 6)
    utimensat(path, 0, OMIT, 0, OMIT)
    utimensat(path, 0, NOW, 0, NOW)
    utimensat(path, 0, 1000000000, 0, 0)
    utimensat(path, 7, 8, 9, 10)
END
";

#[test]
fn times_are_kept_to_the_nanosecond_and_renewed_as_elsewhere() {
    let cluster = Cluster::up(3);
    let mut beside = Beside::new(&cluster, "times");
    let make = "echo bytes > file; mkdir directory; ln -s file symlink; mkfifo fifo";
    beside.step(make, LOOK);
    let times = "stat --format '%n %x %y' file directory symlink fifo";
    beside.step(TIMES, times);
    beside.step("touch -hd @1.5 symlink; cp -a file copy", "stat --format '%n %y' *");
    beside.step(RELATIME, LOOK);
    // Further than what a local file system holds.
    let mount = cluster.mount(1);
    run(&mount, "touch f; touch -d 9999-12-31T23:59:59.123456789Z f");
    let far = "TZ=UTC stat --format %y f";
    assert_eq!(run(&cluster.mount(2), far), "9999-12-31 23:59:59.123456789 +0000\n0\n");
}

/// Every way to change a file's bytes or owner.
const CHANGES: [&str; 10] = [
    "echo x > f",
    "echo x >> f",
    "printf x | dd of=f conv=notrunc status=none",
    "printf x | dd of=f conv=notrunc,fsync oflag=append status=none",
    "truncate -s 0 f",
    "truncate -s 100 f",
    "chown 1 f",
    "chgrp 1 f",
    "chmod u+w f",
    "touch f",
];

#[test]
#[ignore = "long"]
fn suid_sgid_and_capabilities_go_as_elsewhere() {
    let cluster = Cluster::up(3);
    let mut beside = Beside::new(&cluster, "suid");
    let capability = "setfattr -n security.capability \
        -v 0x0100000200200000000000000000000000000000 f";
    let look = "stat --format %A f; getfattr -dm- -e hex f";
    // Not both: a write by root to a file that has both is a chown to us.
    for (mode, capability) in [("6777", ""), ("2760", ""), ("777", capability)] {
        let make = format!("rm -f f; echo bytes > f; chown 1:1 f; chmod {mode} f\n{capability}");
        for change in CHANGES {
            let users = [
                change.to_owned(),
                as_user(1, "--clear-groups", change),
                as_user(4, "--clear-groups", change),
            ];
            let each = users.map(|change| format!("{make}\n{change}\n{look}\n"));
            beside.step(&each.concat(), look);
        }
    }
}

#[test]
fn setgid_and_sticky_directories_are_as_elsewhere() {
    let cluster = Cluster::up(3);
    let mut beside = Beside::new(&cluster, "bits");
    let make = "touch $0/f; mkdir $0/d; mkfifo $0/p; ln -s x $0/l";
    let make = |dir: &str| format!("umask 022; {}", make.replace("$0", dir));
    for command in [
        "mkdir s t n; chown 1:2 s; chmod 2777 s; chmod 1777 t; chmod 777 n",
        &make("s"),
        &as_user(4, "--clear-groups", &make("s/.").replace("/f", "/f4").replace("/d", "/d4")),
        &as_user(
            4,
            "--groups=2",
            "umask 0; python3 -c \"import os; os.open(\\\"s/x\\\", 66, 0o2777)\"",
        ),
        &as_user(4, "--clear-groups", "python3 -c \"import os; os.open(\\\"s/y\\\", 66, 0o2777)\""),
        &as_user(4, "--clear-groups", "cd n; touch f; mkdir d; chmod 2777 f d; chgrp 2 f"),
        &as_user(4, "--groups=2", "cd n; chgrp 2 f d; chmod 2777 f d; chmod 1666 f"),
        "mkdir -p s/d/e/f; mv n/d s/moved; ln n/f s/linked; chmod g-s s; mkdir s/plain",
        "touch t/root; mkdir t/rootdir; chmod 777 t/rootdir",
        &as_user(4, "--clear-groups", "touch t/mine; mkdir t/dir; echo x > t/mine"),
        &as_user(1, "--clear-groups", "rm -f t/mine t/root; rmdir t/dir; mv t/mine t/stolen"),
        &as_user(1, "--clear-groups", "touch t/other; mv t/other t/mine; mv t/other n/other"),
        &as_user(4, "--clear-groups", "mv t/mine t/renamed; rm t/renamed; rmdir t/dir"),
        "mkdir -p a/b a/c a/d; mv a/b a/c/b; rmdir a/d; mv a/c .; mkdir a/c; mv -T a/c c/b",
    ] {
        beside.step(command, LOOK);
    }
}

/// A time that is set stays, though another mount has just read the file and has not told anybody yet.
#[test]
fn a_time_that_is_set_is_not_renewed_by_what_was_read_before() {
    let cluster = Cluster::up(3);
    let paths = [1, 2].map(|node| cluster.mount(node).join("f"));
    fs::write(&paths[0], b"bytes").expect("write");
    for round in 1..=20 {
        fs::read(&paths[1]).expect("read");
        let time = UNIX_EPOCH + Duration::from_secs(round * 1000);
        let times = FileTimes::new().set_accessed(time);
        File::options()
            .write(true)
            .open(&paths[0])
            .expect("open")
            .set_times(times)
            .expect("utimes");
        let look =
            || paths.each_ref().map(|path| fs::metadata(path).expect("stat").accessed().ok());
        assert_eq!(look(), [Some(time); 2], "round {round}");
        std::thread::sleep(Duration::from_millis(round * 20));
        assert_eq!(look(), [Some(time); 2], "round {round}, later");
    }
}
