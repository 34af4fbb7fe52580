"""A node that was down while a tree was written: how soon it holds all of it, beside `cp -r` and `sync` of the same."""

import hashlib
import os
import random
import shutil
import time
from contextlib import suppress

from .comparison import Bar, Comparison, Metric
from .content import each, verify_file, write_file
from .machine import MIB, Corrupt, Failure, clock, drop_caches, run
from .sites import Native

DOWN = 3
LARGE_FILES = 8
FOLDERS = 100
HEAL_S = 900.0


class Tree:
    """Half of its bytes in a few large files, half in thousands of small ones."""

    def __init__(self, root, sizes):
        self.root = root
        self.small = sizes.tree_files - LARGE_FILES
        self.small_bytes = sizes.tree_mib * MIB // 2 // self.small
        self.large_mib = sizes.tree_mib // 2 // LARGE_FILES

    def small_file(self, number, root=None):
        return (root or self.root) / f"folder{number % FOLDERS}" / f"small{number}"

    def write(self):
        for number in range(FOLDERS):
            (self.root / f"folder{number}").mkdir(parents=True)
        each(range(self.small), lambda number: write_file(self.small_file(number), 1, self.small_bytes, number), 4)
        each(range(LARGE_FILES), lambda number: write_file(self.root / f"large{number}", self.large_mib), 2)

    def verify(self, root):
        each(range(self.small), lambda number: self.verify_small(number, root), 2)
        each(range(LARGE_FILES), lambda number: verify_file(root / f"large{number}", self.large_mib), 2)

    def verify_small(self, number, root):
        verify_file(self.small_file(number, root), 1, self.small_bytes, number)


def prepare(site, sizes):
    if isinstance(site, Native):
        Tree(site.write / "tree", sizes).write()


def measure(site, sizes, readings):
    if isinstance(site, Native):
        seconds = copy(Tree(site.write / "tree", sizes), site.write / "copy")
    else:
        tree = Tree(site.write / "tree", sizes)
        site.settle()
        site.kill(DOWN)
        tree.write()
        site.settle()
        drop_caches()
        seconds = heal(site, tree, readings)
        compare_backing_files(site)
        tree.verify(site.mount(DOWN) / "tree")
        shutil.rmtree(tree.root)
    readings.add("heal", sizes.tree_mib * MIB / 1e6 / seconds)


def copy(tree, target):
    drop_caches()
    seconds = clock(lambda: (run("cp", "-r", tree.root, target), run("sync")))
    tree.verify(target)
    shutil.rmtree(target)
    return seconds


def heal(cluster, tree, readings):
    """Seconds from the start of the daemon until all is on its disk. Meanwhile small files are read there."""
    wanted = cluster.nodes()[1]["applied"]
    lacking = Lacking(cluster)
    mount, latencies, last_read = cluster.mount(DOWN), [], 0.0
    start = time.monotonic()
    with cluster.starting(DOWN):
        while True:
            status = cluster.status(DOWN)
            if status.get("applied", 0) >= wanted and lacking.nothing(status):
                break
            if time.monotonic() - start > HEAL_S:
                raise Failure(f"node {DOWN} still lacks bytes after {HEAL_S:.0f} s")
            if status.get("mounted") and time.monotonic() - last_read > 0.5:
                number, last_read = random.randrange(tree.small), time.monotonic()
                latencies.append(clock(lambda: tree.verify_small(number, mount / "tree")))
            time.sleep(0.1)
        # As beside it: cp, and sync.
        os.sync()
        seconds = time.monotonic() - start
    for latency in latencies:
        readings.add("heal_read", latency * 1e3)
    readings.note("heal", lacking.said())
    readings.note("heal_read", f"{len(latencies)} reads")
    return seconds


class Lacking:
    """Whether bytes are missing on the node: what its status says, or else whether its backing files are whole."""

    def __init__(self, cluster):
        self.files = cluster.data(DOWN) / "files"
        whole = backing_files(cluster.data(1))
        self.unproven = {name: found.st_size for name, found in whole.items() if found.st_size}
        self.most_mib = self.first_eta_s = None

    def nothing(self, status):
        if missing := status.get("missing"):
            self.most_mib = max(self.most_mib or 0, missing["bytes"] / MIB)
            if missing["left_ms"] is not None:
                self.first_eta_s = self.first_eta_s or missing["left_ms"] / 1e3
            return missing["bytes"] == 0 and missing["files"] == 0
        for name in list(self.unproven):
            if not is_whole(self.files / name, self.unproven[name]):
                return False
            del self.unproven[name]
        return True

    def said(self):
        if self.most_mib is None:
            return "status names no missing bytes: backing files were looked at"
        eta = f"; its first ETA was {self.first_eta_s:.1f} s" if self.first_eta_s else ""
        return f"status named up to {self.most_mib:.0f} MiB missing{eta}"


def is_whole(path, size):
    """As long as it must be, and without a hole."""
    with suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDONLY)
        try:
            return os.fstat(fd).st_size == size == os.lseek(fd, 0, os.SEEK_HOLE)
        finally:
            os.close(fd)
    return False


def backing_files(data):
    """Of a replica: {path below files/: stat}, spares not among them."""
    files = data / "files"
    return {
        str(path.relative_to(files)): path.stat()
        for folder in files.iterdir() if len(folder.name) == 2
        for path in folder.iterdir()
    }  # fmt: skip


def compare_backing_files(cluster):
    whole, healed = cluster.data(1), cluster.data(DOWN)
    names = backing_files(whole)
    if names.keys() != (found := backing_files(healed)).keys():
        differing = sorted(names.keys() ^ found.keys())
        raise Corrupt(f"{len(differing)} backing files are on one of nodes 1 and {DOWN} only, as {differing[0]}")

    def compare(name):
        one, other = (checksum(data / "files" / name) for data in (whole, healed))
        if one != other:
            raise Corrupt(f"backing file {name} differs on nodes 1 and {DOWN}")

    each(names, compare, 2)


def checksum(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


HEAL = Comparison(
    name="heal",
    summary="a node was down while a tree was written; then it is started, all page caches being empty. ext4: cp -r of "
    "such a tree and sync",
    metrics=(
        Metric("heal", "MB/s", "of the tree, until nothing is missing, and sync", bar=Bar(at_least_ratio=0.5)),
        Metric("heal_read", "ms", "small files of that tree, read and compared on that node meanwhile", True),
    ),
    prepare=prepare,
    measure=measure,
    room_mib=lambda sizes: 6 * sizes.tree_mib,
    with_gluster=False,
)  # fmt: skip
