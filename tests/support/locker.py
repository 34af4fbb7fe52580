"""A program with files and locks, told by lines on its input what to do; one line of answer for each.

open NAME PATH          fcntl NAME r|w|u START LEN [wait]     get NAME START LEN
close NAME              flock NAME s|x|u [wait]               on-signal
read NAME START LEN     write NAME START TEXT                 sync NAME
truncate NAME LEN       close-copy NAME
map NAME LEN            store NAME START TEXT                 msync NAME
unmap NAME
"""

import errno
import fcntl
import mmap
import os
import signal
import struct
import sys

KINDS = {"r": fcntl.F_RDLCK, "w": fcntl.F_WRLCK, "u": fcntl.F_UNLCK}
FLOCKS = {"s": fcntl.LOCK_SH, "x": fcntl.LOCK_EX, "u": fcntl.LOCK_UN}
# struct flock on 64-bit Linux: type, whence, start, length, pid.
FLOCK = "hhqqi4x"

files = {}
mappings = {}


def record_lock(command, name, kind, start, length):
    lock = struct.pack(FLOCK, KINDS[kind], os.SEEK_SET, int(start), int(length), 0)
    return struct.unpack(FLOCK, fcntl.fcntl(files[name], command, lock))


def execute(verb, *words):
    if verb == "open":
        files[words[0]] = os.open(words[1], os.O_RDWR | os.O_CREAT, 0o644)
    elif verb == "open-read-only":
        files[words[0]] = os.open(words[1], os.O_RDONLY)
    elif verb == "close-copy":
        # As each process that is started does with all of them.
        os.close(os.dup(files[words[0]]))
    elif verb == "close":
        os.close(files.pop(words[0]))
    elif verb == "fcntl":
        record_lock(fcntl.F_SETLKW if "wait" in words else fcntl.F_SETLK, *words[:4])
    elif verb == "get":
        kind, _, start, length, pid = record_lock(fcntl.F_GETLK, words[0], "w", *words[1:3])
        names = {value: name for name, value in KINDS.items()}
        return f"{names[kind]} {start} {length} {pid}"
    elif verb == "flock":
        fcntl.flock(files[words[0]], FLOCKS[words[1]] | (0 if "wait" in words else fcntl.LOCK_NB))
    elif verb == "write":
        os.pwrite(files[words[0]], words[2].encode(), int(words[1]))
    elif verb == "read":
        return os.pread(files[words[0]], int(words[2]), int(words[1])).decode()
    elif verb == "truncate":
        os.ftruncate(files[words[0]], int(words[1]))
    elif verb == "sync":
        os.fsync(files[words[0]])
    elif verb == "map":
        mappings[words[0]] = mmap.mmap(files[words[0]], int(words[1]))
    elif verb == "store":
        start = int(words[1])
        mappings[words[0]][start : start + len(words[2])] = words[2].encode()
    elif verb == "msync":
        mappings[words[0]].flush()
    elif verb == "unmap":
        mappings.pop(words[0]).close()
    elif verb == "on-signal":
        # A handler that raises ends a system call in Python, too.
        def interrupted(*_):
            raise InterruptedError(errno.EINTR, "interrupted")

        signal.signal(signal.SIGUSR1, interrupted)
    else:
        raise ValueError(verb)
    return "ok"


for line in sys.stdin:
    try:
        print(execute(*line.split()), flush=True)
    except OSError as error:
        # Python knows this one by another name.
        names = errno.errorcode | {errno.EDEADLK: "EDEADLK"}
        print(names[error.errno], flush=True)
