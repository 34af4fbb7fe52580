//! Extended attributes: as on a local file system, with the limits of xattr(7), and from two mounts.

use std::fs;
use std::path::Path;
use std::thread;

use super::beside::{Beside, run};
use super::support::Cluster;

/// What Python needs to say what a call did.
const PRELUDE: &str = r"
import ctypes, errno, os
def attempt(call, *arguments, **options):
    try: print(call.__name__, *arguments, '=', call(*arguments, **options))
    except OSError as error: print(call.__name__, *arguments, '=', errno.errorcode[error.errno])
def listxattr(path): return sorted(os.listxattr(path, follow_symlinks=False))
kinds = ['file', 'directory', 'symlink', 'fifo', 'device']
names = ['user.a', 'trusted.a', 'security.a', 'system.a', 'other.a', 'a', 'user.', 'user', 'trusted.', '']
";

/// Every name on every kind of inode.
const NAMESPACES: &str = r"
for kind in kinds:
    for name in names:
        for flags in [0, os.XATTR_CREATE, os.XATTR_REPLACE, 3, 4]:
            attempt(os.setxattr, kind, name, b'v%d' % flags, flags, follow_symlinks=False)
        attempt(os.getxattr, kind, name, follow_symlinks=False)
    attempt(listxattr, kind)
";

const REMOVALS: &str = r"
for kind in kinds:
    for name in names:
        for flags in [os.XATTR_REPLACE, os.XATTR_CREATE, os.XATTR_CREATE]:
            attempt(os.setxattr, kind, name, b'', flags, follow_symlinks=False)
        for again in range(2): attempt(os.removexattr, kind, name, follow_symlinks=False)
    attempt(listxattr, kind)
";

const SIZES: &str = r"
libc = ctypes.CDLL(None, use_errno=True)
buffer = ctypes.create_string_buffer(1 << 17)
def getxattr(name, size): return checked(libc.getxattr(b'file', name, buffer, size))
def list_of(size): return checked(libc.listxattr(b'file', buffer, size))
def checked(result):
    if result < 0: raise OSError(ctypes.get_errno(), '')
    return result
os.setxattr('file', 'user.ten', b'0123456789')
for size in [0, 1, 9, 10, 11, 1 << 17]: attempt(getxattr, b'user.ten', size)
for size in [0, 1, 5, 9, 1 << 17]: attempt(list_of, size)
for length in [250, 251, 300]: attempt(os.setxattr, 'file', 'user.' + 'n' * length, b'long')
attempt(os.setxattr, 'file', 'user.large', b'v' * 2000)
attempt(os.setxattr, 'file', 'user.bytes\xfe\n', bytes(range(256)))
attempt(lambda: listxattr('file'))
";

const LOOK: &str =
    "for f in *; do stat --format '%n %A %u %g' $f; getfattr -hdm- -e hex $f | sort; done";

fn python(code: &str) -> String {
    format!("python3 - <<'END'\n{PRELUDE}{code}END\n")
}

fn as_user(command: &str) -> String {
    format!("setpriv --reuid=1 --regid=1 --clear-groups {command}")
}

#[test]
fn attributes_have_the_namespaces_and_errors_of_other_file_systems() {
    let cluster = Cluster::up(3);
    let mut beside = Beside::new(&cluster, "xattrs");
    let make = "touch file; mkdir directory; ln -s file symlink; mkfifo fifo; mknod device c 1 3";
    beside.step(make, LOOK);
    for code in [NAMESPACES, SIZES, REMOVALS] {
        beside.step(&python(code), LOOK);
    }
    beside.step("chown 1 file; chmod 1777 directory", LOOK);
    for code in [NAMESPACES, REMOVALS] {
        beside.step(&as_user(&python(code)), LOOK);
        beside.step(&python(code), &as_user("getfattr -hdm- -e hex * | sort"));
    }
    beside
        .step("setfattr -n user.k -v v file; ln file hard; mv file moved; cp -a moved copy", LOOK);
    beside.step("chmod 0 moved; setfattr -n user.k -v v moved", &as_user("getfattr -d moved"));
}

#[test]
fn attributes_have_limits() {
    let cluster = Cluster::up(3);
    let (here, there) = (cluster.mount(1), cluster.mount(2));
    fs::write(here.join("file"), "").expect("write");
    let say = |dir: &Path, code: &str| run(dir, &python(code));
    let set = "attempt(lambda: os.setxattr('file', 'user.v', b'v' * 65536))";
    assert_eq!(say(&here, &format!("{set}\n")), "<lambda> = None\n0\n");
    let set = "attempt(lambda: os.setxattr('file', 'user.v', b'v' * 65537))";
    assert_eq!(say(&here, &format!("{set}\n")), "<lambda> = E2BIG\n0\n");
    let get = "print(os.getxattr('file', 'user.v') == b'v' * 65536)\n";
    assert_eq!(say(&there, get), "True\n0\n");
    // Names may be more than a list can hold.
    let many = "for i in range(300): os.setxattr('file', 'user.%0250d' % i, b'')\n";
    assert_eq!(say(&there, many), "0\n");
    assert_eq!(say(&here, "attempt(os.listxattr, 'file')\n"), "listxattr file = E2BIG\n0\n");
    let fewer = "for i in range(100): os.removexattr('file', 'user.%0250d' % i)\n";
    assert_eq!(say(&there, fewer), "0\n");
    assert_eq!(say(&here, "print(len(os.listxattr('file')))\n"), "201\n0\n");
    fs::remove_file(there.join("file")).expect("unlink");
    fs::write(here.join("file"), "").expect("write");
    assert_eq!(say(&there, "print(os.listxattr('file'))\n"), "[]\n0\n");
}

#[test]
fn an_attribute_is_created_once_and_seen_at_once() {
    const ROUNDS: usize = 30;
    let cluster = Cluster::up(3);
    fs::write(cluster.mount(1).join("file"), "").expect("write");
    let race = format!(
        "won = 0\nfor i in range({ROUNDS}):\n    try:\n        \
         os.setxattr('file', 'user.%d' % i, b'', os.XATTR_CREATE)\n        won += 1\n    \
         except FileExistsError: pass\n    os.getxattr('file', 'user.%d' % i)\nprint(won)\n"
    );
    let command = python(&race);
    let won: usize = thread::scope(|scope| {
        let racers: Vec<_> = [1, 2, 3]
            .into_iter()
            .map(|node| {
                let (mount, command) = (cluster.mount(node), &command);
                scope.spawn(move || run(&mount, command))
            })
            .collect();
        let printed = racers.into_iter().map(|racer| racer.join().expect("no panic"));
        printed.map(|out| out.lines().next().expect("a line").parse::<usize>().expect(&out)).sum()
    });
    assert_eq!(won, ROUNDS);
}
