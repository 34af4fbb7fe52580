"""Comparisons that read on a node that did not write: one large file, and a data set of many small ones."""

import json
import os
import random
import shutil
import time

from .comparison import Bar, Comparison, Metric
from .content import check, each, piece, verify_file, write_file
from .machine import MIB, Corrupt, Failure, clock, drop_caches, run

IMAGE_BYTES = 100 * 1024
CLASSES = 10
READERS = 4
PATTERNS = {"read_seq_1m": ("read", MIB), "read_seq_4k": ("read", 4096), "read_random_4k": ("randread", 4096)}


def prepare_reads(site, sizes):
    write_file(site.write / "large", sizes.file_mib, fsync=True)


def measure_reads(site, sizes, readings):
    path = site.read / "large"
    # Makes it warm, and checks what the reads below find in the page cache.
    verify_file(path, sizes.file_mib)
    has_fio = shutil.which("fio")
    read = read_with_fio if has_fio else read_with_python
    for name, (pattern, block) in PATTERNS.items():
        readings.add(name, read(path, pattern, block, sizes) / 1e6)
        if not has_fio:
            readings.note(name, "a loop in Python, which itself takes most of the time: install fio")
    verify_file(path, sizes.file_mib)


def read_with_fio(path, pattern, block, sizes):
    """Bytes a second."""
    said = run(
        "fio", "--name=reads", f"--filename={path}", f"--rw={pattern}", f"--bs={block}", f"--size={sizes.file_mib}m",
        "--ioengine=psync", "--thread", "--readonly", "--invalidate=0", "--norandommap", "--time_based",
        f"--runtime={round(sizes.read_s * 1000)}ms", "--output-format=json",
    )  # fmt: skip
    job = json.loads(said[said.index("{") :])["jobs"][0]
    if job["error"]:
        raise Failure(f"fio on {path}: {os.strerror(job['error'])}")
    return job["read"]["bw_bytes"]


def read_with_python(path, pattern, block, sizes):
    """Bytes a second. Blocks of the first pieces are compared as they are read."""
    blocks = sizes.file_mib * MIB // block
    numbers = random.Random(4)
    pieces = [piece(number, MIB) for number in range(min(sizes.file_mib, 64))]
    fd = os.open(path, os.O_RDONLY)
    done, start = 0, time.monotonic()
    try:
        while time.monotonic() - start < sizes.read_s:
            for _ in range(256):
                number = numbers.randrange(blocks) if pattern == "randread" else done % blocks
                data = os.pread(fd, block, number * block)
                at, inside = divmod(number * block, MIB)
                if at < len(pieces) and data != pieces[at][inside : inside + block]:
                    raise Corrupt(f"{path}: other bytes at {number * block}")
                done += 1
        return done * block / (time.monotonic() - start)
    finally:
        os.close(fd)


READS = Comparison(
    name="reads",
    summary="one large file on a node that did not write it, warm (all of it was read before), by one thread",
    metrics=(
        Metric("read_seq_1m", "MB/s", "one after the other, 1 MiB each", bar=Bar(at_least_ratio=0.9)),
        Metric("read_seq_4k", "MB/s", "one after the other, 4 KiB each", bar=Bar(at_least_ratio=0.9)),
        Metric("read_random_4k", "MB/s", "at random places, 4 KiB each", bar=Bar(at_least_ratio=0.9)),
    ),
    prepare=prepare_reads,
    measure=measure_reads,
    room_mib=lambda sizes: 9 * sizes.file_mib,
    with_bare=True,
)


def image(number):
    return f"class{number % CLASSES}/image{number}.jpg"


def prepare_epoch(site, sizes):
    for number in range(CLASSES):
        (site.write / f"class{number}").mkdir()
    each(range(sizes.images), lambda number: write_file(site.write / image(number), 1, IMAGE_BYTES, number), READERS)


def measure_epoch(site, sizes, readings):
    def read(number):
        path = site.read / image(number)
        check(path.read_bytes(), number, IMAGE_BYTES, path)

    drop_caches()
    for name in ("epoch_cold", "epoch_warm"):
        order = random.sample(range(sizes.images), sizes.images)
        readings.add(name, sizes.images / clock(lambda: each(order, read, READERS)))


EPOCH = Comparison(
    name="epoch",
    summary="a data set of 100 KiB files in ten directories, all read in random order by four threads on a node that"
    " did not write it",
    metrics=(
        Metric("epoch_cold", "files/s", "nothing is in the page cache", bar=Bar(at_least_ratio=0.7)),
        Metric("epoch_warm", "files/s", "again, in another order", bar=Bar(at_least_ratio=0.8)),
    ),
    prepare=prepare_epoch,
    measure=measure_epoch,
    room_mib=lambda sizes: 9 * sizes.images * IMAGE_BYTES // MIB,
    with_bare=True,
)
