"""The bytes that are written, and how they are recognized. They do not compress, and no two pieces are alike."""

import os
import random
from concurrent.futures import ThreadPoolExecutor

from .machine import MIB, Corrupt, stopping

_POOL = memoryview(random.Random(1).randbytes(9 * MIB))


def piece(number, size):
    """Piece `number`: its number, then bytes that depend on it."""
    return number.to_bytes(8, "little") + _rest(number, size)


def _rest(number, size):
    start = number * 7919 % (len(_POOL) - size)
    return _POOL[start : start + size - 8]


def check(data, number, size, where):
    """Refuses anything but piece `number`: bytes or a bytearray. It is part of what is timed, so it copies nothing, and
    compares as memcmp does (a comparison with a memoryview goes byte by byte)."""
    if len(data) != size:
        raise Corrupt(f"{where}: {len(data)} bytes in place of {size}")
    if not (data.startswith(number.to_bytes(8, "little")) and data.endswith(_rest(number, size))):
        raise Corrupt(f"{where}: piece {number} has other bytes")


def write_file(path, pieces, size=MIB, first=0, fsync=False):
    """A new file of that many pieces."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for number in range(first, first + pieces):
            if stopping.is_set():
                return
            data = memoryview(piece(number, size))
            while data:
                data = data[os.write(fd, data) :]
        if fsync:
            os.fsync(fd)
    finally:
        os.close(fd)


def verify_file(path, pieces, size=MIB, first=0):
    """Reads a whole file and compares it."""
    buffer = bytearray(size)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:
        for number in range(first, first + pieces):
            got = 0
            while got < size and (more := file.readinto(view[got:])):
                got += more
            if got < size:
                raise Corrupt(f"{path}: ends in piece {number}, {got} bytes of {size}")
            check(buffer, number, size, path)
        if file.read(1):
            raise Corrupt(f"{path}: longer than {pieces * size} bytes")


def each(items, operation, threads):
    """The operation on each item, by some threads that share the items; the first failure ends all of them."""
    todo = iter(items)
    failed = []

    def work(_):
        for item in todo:
            if stopping.is_set() or failed:
                return
            try:
                operation(item)
            except Exception:
                failed.append(item)
                raise

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
