"""counting.py fcntl|flock|sqlite DIR TIMES: counts in DIR together with others, under locks.
counting.py MODE --total DIR: prints what was counted."""

import fcntl
import os
import sqlite3
import sys


def count_in_file(path, times, lock):
    for _ in range(times):
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        lock(fd, fcntl.LOCK_EX)
        value = int(os.pread(fd, 20, 0) or b"0")
        os.pwrite(fd, b"%019d" % (value + 1), 0)
        lock(fd, fcntl.LOCK_UN)
        os.close(fd)


def database(directory):
    connection = sqlite3.connect(os.path.join(directory, "count.db"), timeout=60, isolation_level=None)
    connection.execute("PRAGMA synchronous=FULL")
    return connection


def main():
    mode, rest = sys.argv[1], sys.argv[2:]
    if rest[0] == "--total":
        if mode == "sqlite":
            connection = database(rest[1])
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            print(connection.execute("SELECT sum(value) FROM counts").fetchone()[0])
        else:
            with open(os.path.join(rest[1], mode)) as file:
                print(int(file.read()))
        return
    directory, times = rest[0], int(rest[1])
    path = os.path.join(directory, mode)
    if mode == "fcntl":
        count_in_file(path, times, fcntl.lockf)
    elif mode == "flock":
        count_in_file(path, times, fcntl.flock)
    else:
        connection = database(directory)
        connection.execute("CREATE TABLE IF NOT EXISTS counts (value INTEGER)")
        for _ in range(times):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO counts VALUES (1)")
            connection.execute("COMMIT")


main()
