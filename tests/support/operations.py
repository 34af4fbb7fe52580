"""operations.py NAME DIR: one operation of a file system, in a process of its own.

Makes what it needs in DIR, then says `ready`. For each line on its input it does the operation once more, and says
what came of it and how many seconds the call took. `operations.py --list` prints all names.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import stat
import struct
import sys
import time

ROUNDS = 4
PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)


def check(result):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Bench:
    """A directory with the files of one process, all open; `round` counts how often the operation was done."""

    def __init__(self, path):
        os.mkdir(path)
        self.path = path
        self.round = 0
        self.dir = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self.file = self.create("file")
        os.write(self.file, b"x" * PAGE * (ROUNDS + 1))
        os.fsync(self.file)

    def create(self, name, flags=0):
        return os.open(name, os.O_RDWR | os.O_CREAT | flags, 0o644, dir_fd=self.dir)

    def name(self, kind="new"):
        return f"{kind}-{self.round}"

    def each(self, make):
        """What each round uses up."""
        made = []
        for self.round in range(ROUNDS):
            made.append(make())
        self.round = 0
        return made


def record_lock(command, kind):
    def prepare(bench):
        lock = struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)

        def operate():
            fcntl.fcntl(bench.file, command, lock)

        def undo():
            fcntl.lockf(bench.file, fcntl.LOCK_UN)

        return operate, None, undo

    return prepare


def of_names(make, operate):
    """An operation on one name, which `make` makes where it is to be there."""

    def prepare(bench):
        if make is not None:
            bench.each(lambda: make(bench, bench.name()))
        return lambda: operate(bench, bench.name())

    return prepare


def on_file(operate):
    return lambda bench: lambda: operate(bench)


def dirty(bench):
    os.pwrite(bench.file, b"round %d" % bench.round, 0)


def fsync(bench):
    return lambda: os.fsync(bench.file), lambda: dirty(bench)


def fdatasync(bench):
    return lambda: os.fdatasync(bench.file), lambda: dirty(bench)


def flush(bench):
    """What a close of one of several descriptors is."""
    copies = bench.each(lambda: os.dup(bench.file))
    return lambda: os.close(copies[bench.round]), lambda: dirty(bench)


def close(bench):
    files = bench.each(lambda: bench.create(bench.name("closed")))
    for file in files:
        # Before the first write the kernel asks for the file's capabilities.
        os.write(file, b"-")
    return (
        lambda: os.close(files[bench.round]),
        lambda: os.pwrite(files[bench.round], b"closed", 0),
    )


def write_large(bench):
    """More than a mount keeps in memory of one file."""
    block = b"y" * (1 << 20)

    def operate():
        slowest = 0
        for at in range(12):
            began = time.monotonic()
            try:
                os.pwrite(bench.file, block, at << 20)
            except OSError as error:
                error.slowest = max(slowest, time.monotonic() - began)
                raise
            slowest = max(slowest, time.monotonic() - began)
        return slowest

    return operate


def write_synced(bench):
    synced = bench.create("synced", os.O_SYNC)
    return lambda: os.pwrite(synced, b"synced", 0)


def read(bench):
    direct = os.open("file", os.O_RDONLY | os.O_DIRECT, dir_fd=bench.dir)
    page = mmap.mmap(-1, PAGE)
    return lambda: os.preadv(direct, [page], 0)


def copy(bench):
    target = bench.create("copy")
    return lambda: os.copy_file_range(bench.file, target, 100, 0, 0)


def in_child(touch):
    """What ends a process that gets an error: a child does it."""
    child = os.fork()
    if child == 0:
        libc.prctl(1, signal.SIGKILL)
        try:
            touch()
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGBUS:
        raise OSError(errno.EIO, "SIGBUS")
    if os.WIFSIGNALED(status):
        raise RuntimeError(f"the child was ended by signal {os.WTERMSIG(status)}")
    if number := os.WEXITSTATUS(status):
        raise OSError(number, os.strerror(number))


def mapped_read(bench):
    pages = mmap.mmap(bench.file, 0, prot=mmap.PROT_READ)
    os.posix_fadvise(bench.file, 0, 0, os.POSIX_FADV_DONTNEED)
    pages.madvise(mmap.MADV_RANDOM)
    return lambda: in_child(lambda: pages[bench.round * PAGE])


def mapped_write(bench):
    pages = mmap.mmap(bench.file, 0)

    def change():
        pages[0] = pages[0] ^ 1

    def operate():
        change()
        pages.flush()

    operate()
    return lambda: in_child(operate)


def xattr(bench, kind="r"):
    bench.each(lambda: os.setxattr(bench.file, "user." + bench.name(kind), b"v"))


def getxattr(bench):
    xattr(bench)
    return lambda: os.getxattr(bench.file, "user." + bench.name("r"))


def removexattr(bench):
    xattr(bench)
    return lambda: os.removexattr(bench.file, "user." + bench.name("r"))


def make_file(bench, name):
    os.close(bench.create(name))


def make_directory(bench, name):
    os.mkdir(name, dir_fd=bench.dir)


def make_link(bench, name):
    os.symlink("target", name, dir_fd=bench.dir)


def lookup(bench, name):
    try:
        os.stat(name, dir_fd=bench.dir)
    except FileNotFoundError:
        pass


def readdir(bench):
    make_file(bench, "one")
    return lambda: os.listdir(bench.dir)


def opened(bench, name):
    os.close(os.open(name, os.O_RDONLY, dir_fd=bench.dir))


def faccess(bench):
    check(libc.faccessat(bench.dir, b".", os.R_OK, 0))


def unknown_ioctl(bench):
    try:
        fcntl.ioctl(bench.file, 0x5101)
    except OSError as error:
        if error.errno != errno.ENOTTY:
            raise


OPERATIONS = {
    "lookup": of_names(None, lookup),
    "getattr": on_file(lambda bench: os.fstat(bench.file)),
    "chmod": on_file(lambda bench: os.fchmod(bench.file, 0o600 + bench.round)),
    "chown": on_file(lambda bench: os.fchown(bench.file, 1 + bench.round, 1)),
    "truncate": on_file(lambda bench: os.ftruncate(bench.file, 10 + bench.round)),
    "utimens": on_file(lambda bench: os.utime(bench.dir, (1, bench.round))),
    "readlink": of_names(make_link, lambda bench, name: os.readlink(name, dir_fd=bench.dir)),
    "symlink": of_names(None, make_link),
    "mknod": of_names(None, lambda bench, name: os.mknod(name, stat.S_IFIFO | 0o600, dir_fd=bench.dir)),
    "mkdir": of_names(None, make_directory),
    "create": of_names(None, make_file),
    "unlink": of_names(make_file, lambda bench, name: os.unlink(name, dir_fd=bench.dir)),
    "rmdir": of_names(make_directory, lambda bench, name: os.rmdir(name, dir_fd=bench.dir)),
    "rename": of_names(
        make_file,
        lambda bench, name: os.rename(name, name + "-to", src_dir_fd=bench.dir, dst_dir_fd=bench.dir),
    ),
    "link": of_names(
        None,
        lambda bench, name: os.link("file", name, src_dir_fd=bench.dir, dst_dir_fd=bench.dir),
    ),
    "open": of_names(make_file, opened),
    "read": read,
    "write": on_file(lambda bench: os.pwrite(bench.file, b"w", 0)),
    "write-large": write_large,
    "write-synced": write_synced,
    "statfs": on_file(lambda bench: os.fstatvfs(bench.file)),
    "close": close,
    "flush": flush,
    "fsync": fsync,
    "fdatasync": fdatasync,
    "setxattr": on_file(lambda bench: os.setxattr(bench.file, "user.s", b"%d" % bench.round)),
    "getxattr": getxattr,
    "listxattr": on_file(lambda bench: os.listxattr(bench.file)),
    "removexattr": removexattr,
    "opendir": on_file(lambda bench: os.close(os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=bench.dir))),
    "readdir": readdir,
    "fsyncdir": on_file(lambda bench: os.fsync(bench.dir)),
    "access": on_file(faccess),
    "getlk": record_lock(fcntl.F_GETLK, fcntl.F_WRLCK),
    "setlk": record_lock(fcntl.F_SETLK, fcntl.F_WRLCK),
    "setlkw": record_lock(fcntl.F_SETLKW, fcntl.F_WRLCK),
    "fallocate": on_file(lambda bench: os.posix_fallocate(bench.file, bench.round << 20, 1 << 20)),
    "lseek": on_file(lambda bench: os.lseek(bench.file, 0, os.SEEK_DATA)),
    "copy_file_range": copy,
    "ioctl": on_file(unknown_ioctl),
    "mapped-read": mapped_read,
    "mapped-write": mapped_write,
}


def prepared(name, bench):
    """The operation, what comes before it and what takes it back: the last two are not timed."""
    parts = OPERATIONS[name](bench)
    parts = parts if isinstance(parts, tuple) else (parts,)
    operate, before, undo = parts + (None,) * (3 - len(parts))
    return operate, before or (lambda: None), undo or (lambda: None)


def main():
    if sys.argv[1] == "--list":
        print("\n".join(OPERATIONS))
        return
    name, directory = sys.argv[1:]
    bench = Bench(os.path.join(directory, name))
    operate, before, undo = prepared(name, bench)
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "undo":
            try:
                undo()
            except OSError:
                # Without a quorum there is nothing to take back.
                pass
            continue
        before()
        began = time.monotonic()
        slowest = None
        try:
            slowest = operate()
            result = "ok"
        except OSError as error:
            result = errno.errorcode[error.errno]
            slowest = getattr(error, "slowest", None)
        # One that makes many calls says how long the slowest took.
        seconds = slowest if isinstance(slowest, float) else time.monotonic() - began
        print(result, f"{seconds:.3f}", flush=True)
        bench.round += 1


main()
