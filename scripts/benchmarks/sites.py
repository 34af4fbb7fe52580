"""The file systems that are compared: where a program writes, and where another machine would read."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from . import machine
from .machine import Failure, run, running, wait_until

NODES = 3
SETTLE_S = 600.0
LOG_LINES = 15


class Replica(NamedTuple):
    """A process that keeps a copy of the data, and where."""

    pid: int
    data: Path


class Native:
    """The file system that everything lies on, without any replication."""

    label = "ext4"

    def __init__(self, directory):
        self.directory = directory
        self.write = self.read = directory
        self.readers = [directory]

    def start(self):
        self.directory.mkdir(parents=True)

    def replicas(self):
        """This program itself writes what it writes."""
        return [Replica(os.getpid(), self.directory)]

    def settle(self):
        os.sync()

    def last_words(self):
        """What may explain a failure."""
        return ""

    def stop(self):
        remove(self.directory)


class Bare:
    """What FUSE itself leaves of ext4: the example `bare_fuse` serves what was written, from memory and in passthrough,
    with nothing in between. No file system in a daemon can do better here."""

    label = "bare FUSE"

    def __init__(self, directory, program):
        self.directory, self.program = directory, program
        self.write, self.read = directory / "tree", directory / "mnt"
        self.readers = [self.read]
        self.process = None

    def start(self):
        self.write.mkdir(parents=True)
        self.read.mkdir()

    def settle(self):
        """It serves what is there when it begins."""
        os.sync()
        self.process = subprocess.Popen([self.program, self.write, self.read], stdin=subprocess.DEVNULL)

        def is_mounted():
            if self.process.poll() is not None:
                raise Failure(f"bare_fuse has ended with {self.process.returncode}")
            return self.read.is_mount()

        wait_until(SETTLE_S, "bare_fuse to mount", is_mounted, 0.05)

    def last_words(self):
        return ""

    def stop(self):
        if self.process and self.process.poll() is None:
            if self.read.is_mount():
                run("umount", self.read)
            else:
                self.process.terminate()
            self.process.wait()
        remove(self.directory)


class Quorumfs:
    """A cluster of three on this machine: written through node 1, read through the others."""

    label = "quorumfs"

    def __init__(self, directory, binary):
        self.directory, self.binary = directory, binary
        self.write = self.mount(1)
        self.readers = [self.mount(node) for node in range(2, NODES + 1)]
        self.read = self.readers[0]
        self.down = set()

    def dev(self, command, *arguments):
        return run(self.binary, "dev", command, *arguments, "--dir", self.directory)

    def start(self):
        self.dev("up", "--nodes", NODES)

    def kill(self, node):
        self.dev("kill", node)
        self.down.add(node)

    def starting(self, node):
        """`quorumfs dev start` meanwhile; it ends when the node's mount serves."""
        self.down.discard(node)
        return running(self.binary, "dev", "start", node, "--dir", self.directory)

    def mount(self, node):
        return self.directory / f"n{node}" / "mnt"

    def data(self, node):
        return self.directory / f"n{node}" / "data"

    def nodes(self):
        """What `quorumfs dev status` says of each, by number."""
        return {node["id"]: node for node in json.loads(self.dev("status", "--json"))["nodes"]}

    def status(self, node):
        """What `quorumfs status` says; nothing while its daemon does not answer."""
        try:
            return json.loads(run(self.binary, "status", "--json", "--addr", self.addresses[node]))
        except Failure:
            return {}

    @property
    def addresses(self):
        base_port = json.loads((self.directory / "dev.json").read_text())["base_port"]
        return {node: f"127.0.0.1:{base_port + node - 1}" for node in range(1, NODES + 1)}

    def replicas(self):
        return [Replica(node["pid"], self.data(number)) for number, node in self.nodes().items() if node["pid"]]

    def last_words(self):
        """The ends of the daemons' logs, which are removed with the rest."""
        words = []
        for node in range(1, NODES + 1):
            log = self.directory / f"n{node}" / "log" / "quorumfs.log"
            if log.exists():
                words += [f"-- the end of {log}", *log.read_text(errors="replace").splitlines()[-LOG_LINES:]]
        return "\n".join(words)

    def settle(self):
        """Waits until every replica that runs has applied the same and has brought it in place and on its disk."""
        quiet_since, before = time.monotonic(), None

        def is_quiet():
            nonlocal quiet_since, before
            os.sync()
            nodes = self.nodes()
            if stopped := [number for number, node in nodes.items() if not node["pid"] and number not in self.down]:
                raise Failure(f"the daemon of node {stopped[0]} has stopped by itself")
            running = [node for node in nodes.values() if node["pid"]]
            now = [(node["pid"], node["digest"], machine.written_by(node["pid"])) for node in running]
            if now != before or len({digest for _, digest, _ in now}) != 1:
                quiet_since, before = time.monotonic(), now
            return time.monotonic() - quiet_since > 1.5

        wait_until(SETTLE_S, "the replicas to settle", is_quiet, 0.3)

    def stop(self):
        if (self.directory / "dev.json").exists():
            self.dev("down")
        remove(self.directory)


def remove(directory):
    """Removes what a site has made; never enters what is mounted there."""
    if mounted := machine.mounts_below(directory):
        raise Failure(f"{mounted[0]} is still mounted: unmount it, then remove {directory}")
    shutil.rmtree(directory, ignore_errors=True)

