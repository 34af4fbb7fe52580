"""How many FUSE requests an operation takes: each costs a program two changes of context."""

import os

from .comparison import Comparison, Metric
from .content import check, piece, write_file
from .machine import drop_caches, requests_counted

FILE_BYTES = 4096


def prepare(site, sizes):
    for number in range(sizes.operations):
        write_file(site.write / f"small{number}", 1, FILE_BYTES, number)


def measure(site, sizes, readings):
    def path(number):
        return site.read / f"small{number}"

    def read(number):
        fd = os.open(path(number), os.O_RDONLY)
        data = os.read(fd, FILE_BYTES + 1)
        os.close(fd)
        check(data, number, FILE_BYTES, path(number))

    def load(number):
        check(path(number).read_bytes(), number, FILE_BYTES, path(number))

    def create(number):
        fd = os.open(site.read / f"new{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, piece(number, FILE_BYTES))
        os.close(fd)

    drop_caches()
    for name, operation in (
        ("requests_read", read),
        ("requests_read_again", read),
        ("requests_load", load),
        ("requests_stat", lambda number: os.stat(path(number))),
        ("requests_create", create),
    ):
        count(site, sizes, readings, name, operation)
    for number in range(sizes.operations):
        new = site.write / f"new{number}"
        check(new.read_bytes(), number, FILE_BYTES, new)
        new.unlink()


def count(site, sizes, readings, name, operation):
    with requests_counted(site.read) as counted:
        for number in range(sizes.operations):
            operation(number)
    readings.add(name, counted.total() / sizes.operations)
    kinds = [f"{kind} {times / sizes.operations:.2f}" for kind, times in counted.most_common()]
    readings.note(name, ", ".join(kinds) or "none")


REQUESTS = Comparison(
    name="requests",
    summary="FUSE requests of one operation on a file of 4 KiB, on a node that did not write it, counted by the"
    " kernel's tracepoint fuse_request_send",
    metrics=(
        Metric("requests_read", "requests", "open, read, close, of what the kernel has not cached", True),
        Metric("requests_read_again", "requests", "open, read, close once more", True),
        Metric("requests_load", "requests", "once more by Python's open().read(), which asks for size and terminal too",
               True),
        Metric("requests_stat", "requests", "stat", True),
        Metric("requests_create", "requests", "create, write, close", True),
    ),
    prepare=prepare,
    measure=measure,
    room_mib=lambda sizes: 64,
    with_native=False,
)  # fmt: skip
