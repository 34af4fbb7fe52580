"""GlusterFS beside it, where it is installed: three bricks on this machine, replica 3, two FUSE clients.

The options are those with which its own test suite runs several nodes on one host (tests/cluster.rc): an address, a
state directory and a socket for each.
"""

import os
import shutil
import signal
import time
from pathlib import Path

from . import machine
from .machine import Failure, run, wait_until
from .sites import NODES, Replica, remove

VOLUME = "bench"
START_S = 60.0


def is_installed():
    return all(shutil.which(program) for program in ("glusterd", "gluster", "glusterfs"))


class Gluster:
    label = "GlusterFS"

    def __init__(self, directory):
        self.directory = directory
        self.write, self.read = directory / "mnt1", directory / "mnt2"
        self.readers = [self.read]

    def address(self, node):
        """A loopback network of our own, so that other pools on this machine are not disturbed."""
        return f"127.{1 + os.getpid() % 250}.77.{node}"

    def brick(self, node):
        return self.directory / f"n{node}" / "brick"

    def gluster(self, *words):
        return run("gluster", "--mode=script", f"--glusterd-sock={self.directory}/n1/glusterd/gd.sock", *words)

    def start(self):
        for node in range(1, NODES + 1):
            self._start_daemon(node)
        wait_until(START_S, "glusterd to answer", lambda: self._answers("peer", "status"))
        for node in range(2, NODES + 1):
            self.gluster("peer", "probe", self.address(node))
        connected = "Peer in Cluster (Connected)"
        wait_until(START_S, "GlusterFS peers", lambda: self.gluster("peer", "status").count(connected) == NODES - 1)
        bricks = [f"{self.address(node)}:{self.brick(node)}" for node in range(1, NODES + 1)]
        # force: the bricks lie on the root file system, against which it warns.
        self.gluster("volume", "create", VOLUME, "replica", NODES, *bricks, "force")
        self.gluster("volume", "start", VOLUME)
        wait_until(START_S, "GlusterFS bricks", lambda: len(self.replicas()) == NODES)
        for mount in (self.write, self.read):
            mount.mkdir()
            servers = [f"--volfile-server={self.address(node)}" for node in range(1, NODES + 1)]
            run("glusterfs", *servers, f"--volfile-id={VOLUME}", f"--log-file={mount}.log", mount)
            wait_until(START_S, f"GlusterFS on {mount}", mount.is_mount)

    def _start_daemon(self, node):
        own = self.directory / f"n{node}"
        for name in ("glusterd", "brick", "log", "run"):
            (own / name).mkdir(parents=True)
        options = {
            "transport.socket.bind-address": self.address(node),
            "working-directory": own / "glusterd",
            "run-directory": own / "run",
            "glusterd-sockfile": own / "glusterd/gd.sock",
            "cluster-test-mode": own / "log",
        }
        words = [word for key, value in options.items() for word in ("--xlator-option", f"management.{key}={value}")]
        run("glusterd", *words, f"--log-file={own}/log/glusterd.log", f"--pid-file={own}/glusterd/glusterd.pid")

    def _answers(self, *words):
        try:
            return bool(self.gluster(*words))
        except Failure:
            return False

    def replicas(self):
        """Its brick processes name their bricks."""
        named = {str(self.brick(node)).encode(): self.brick(node) for node in range(1, NODES + 1)}
        found = []
        for pid, words in self._processes():
            if words[0].endswith(b"glusterfsd"):
                found += [Replica(pid, brick) for name, brick in named.items() if name in words]
        return found

    def _processes(self):
        """All of ours: each names the directory in its command line."""
        ours = f"{self.directory}/".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if b"gluster" in words[0] and any(ours in word for word in words):
                yield int(folder.name), words

    def settle(self):
        os.sync()

    def last_words(self):
        return f"see {self.write}.log"

    def stop(self):
        for mount in machine.mounts_below(self.directory):
            run("umount", "--lazy", mount)
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + 5
            for pid, _ in self._processes():
                os.kill(pid, number)
            while list(self._processes()) and time.monotonic() < deadline:
                time.sleep(0.1)
        remove(self.directory)
