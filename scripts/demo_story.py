"""The story that scripts/demo tells, against a dev cluster that is up.

    python3 demo_story.py BINARY DIRECTORY

DIRECTORY/cluster is the dev cluster; input is made beside it. Prints what it does and what it
verified. Exits with 0 after a last line `ok`, else with 1 after saying precisely what differed.
"""

import hashlib
import json
import os
import sqlite3
import struct
import subprocess
import sys
import sysconfig
import tarfile
import threading
import time

TREE_FILES = 4000
TREE_BYTES = 64 << 20
FILE_BYTES = 1 << 20
TRANSACTIONS = 500
CHECKPOINT_BYTES = 64 << 20
STALL_LIMIT_S = 4.0
CATCH_UP_LIMIT_S = 120.0


class Failure(Exception):
    """Something is not as it must be."""


class Cluster:
    """The dev cluster, through its command line."""

    def __init__(self, binary, directory):
        self.binary = binary
        self.directory = directory

    def run(self, command, *arguments):
        done = subprocess.run(
            [self.binary, "dev", command, *arguments, "--dir", self.directory],
            stdout=subprocess.PIPE,
            check=False,
        )
        if done.returncode != 0:
            raise Failure(f"quorumfs dev {command} failed")
        return done.stdout

    def status(self):
        return json.loads(self.run("status", "--json"))

    def leader(self):
        def known():
            return self.status()["leader"]

        return wait_until(30, "a leader", known)

    def mount(self, node):
        return os.path.join(self.directory, f"n{node}", "mnt")


def wait_until(limit_s, what, condition):
    """What `condition` returns once that is true."""
    deadline = time.monotonic() + limit_s
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise Failure(f"waited {limit_s:.0f} s for {what}")
        time.sleep(0.1)


def say(text):
    print(f"   {text}", flush=True)


def chapter(text):
    print(f"== {text}", flush=True)


def run(*command, cwd=None):
    """Output of a program that must succeed."""
    done = subprocess.run(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        raise Failure(f"{' '.join(command)} in {cwd}: {done.stdout.strip()[-500:]}")
    return done.stdout


# ---------------------------------------------------------------- input


def source_roots():
    """Where this machine has real source trees."""
    cargo = os.environ.get("CARGO_HOME") or os.path.expanduser("~/.cargo")
    roots = [sysconfig.get_path("stdlib"), os.path.join(cargo, "registry", "src"), "/usr/share"]
    return [root for root in roots if os.path.isdir(root)]


def is_source(path):
    """Not what a build left between the sources: libraries, archives."""
    return (
        not os.path.islink(path)
        and os.path.isfile(path)
        and os.path.getsize(path) <= FILE_BYTES
        and os.access(path, os.R_OK)
    )


def pack(archive, roots):
    """Packs thousands of real files; answers {name in the archive: checksum}."""
    sums = {}
    size = 0
    with tarfile.open(archive, "w") as tar:
        for number, root in enumerate(roots):
            for folder, folders, files in os.walk(root):
                folders[:] = sorted(f for f in folders if f not in ("__pycache__", ".git", "lib"))
                for file in sorted(files):
                    path = os.path.join(folder, file)
                    if not is_source(path):
                        continue
                    name = os.path.join(f"tree{number}", os.path.relpath(path, root))
                    sums[name] = checksum(path)
                    size += os.path.getsize(path)
                    tar.add(path, name)
                    if len(sums) >= TREE_FILES or size >= TREE_BYTES:
                        return sums
    return sums


def checksum(path):
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def unpack(archive, target, progress=lambda done: None):
    """Unpacks by hand; answers (operations, longest time in s between two that completed)."""
    made = {target}
    operations = 0
    longest_s = 0.0
    last = time.monotonic()

    def completed():
        nonlocal operations, longest_s, last
        now = time.monotonic()
        longest_s = max(longest_s, now - last)
        last = now
        operations += 1

    os.makedirs(target)
    completed()
    with tarfile.open(archive) as tar:
        for done, member in enumerate(tar):
            path = os.path.join(target, member.name)
            parent = os.path.dirname(path)
            missing = []
            while parent not in made:
                missing.append(parent)
                parent = os.path.dirname(parent)
            for folder in reversed(missing):
                os.mkdir(folder)
                made.add(folder)
                completed()
            source = tar.extractfile(member)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                completed()
                while chunk := source.read(1 << 20):
                    written = 0
                    while written < len(chunk):
                        written += os.write(fd, chunk[written:])
                        completed()
            finally:
                os.close(fd)
            completed()
            os.chmod(path, member.mode & 0o777)
            completed()
            os.utime(path, (member.mtime, member.mtime))
            completed()
            progress(done + 1)
    return operations, longest_s


# ---------------------------------------------------------------- programs


def git(*arguments, cwd):
    identity = ["-c", "user.name=demo", "-c", "user.email=demo@localhost", "-c", "gc.auto=0"]
    return run("git", "-c", "safe.directory=*", *identity, *arguments, cwd=cwd)


def fill_database(path):
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("CREATE TABLE steps (number INTEGER PRIMARY KEY, loss REAL)")
    for number in range(TRANSACTIONS):
        database.execute("INSERT INTO steps VALUES (?, ?)", (number, 1.0 / (number + 1)))
    database.close()


def check_database(path):
    database = sqlite3.connect(path)
    try:
        verdict = database.execute("PRAGMA integrity_check").fetchone()[0]
        rows, total = database.execute("SELECT count(*), sum(number) FROM steps").fetchone()
    except sqlite3.Error as error:
        raise Failure(f"{path}: {error}") from error
    finally:
        database.close()
    if verdict != "ok":
        raise Failure(f"{path}: integrity_check says {verdict}")
    if (rows, total) != (TRANSACTIONS, TRANSACTIONS * (TRANSACTIONS - 1) // 2):
        raise Failure(f"{path}: {rows} rows instead of {TRANSACTIONS}")


def save_checkpoint(path):
    """A safetensors file: header length, JSON header, tensors. Answers its checksum."""
    shape = [CHECKPOINT_BYTES // 4 // 1024, 1024]
    tensor = {"dtype": "F32", "shape": shape, "data_offsets": [0, CHECKPOINT_BYTES]}
    header = json.dumps({"weights": tensor}).encode()
    header += b" " * (-len(header) % 8)
    digest = hashlib.blake2b(digest_size=16)
    temporary = path + ".tmp"
    with open(temporary, "wb") as file:
        for part in [struct.pack("<Q", len(header)), header]:
            digest.update(part)
            file.write(part)
        for _ in range(CHECKPOINT_BYTES >> 20):
            part = os.urandom(1 << 20)
            digest.update(part)
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)
    return digest.hexdigest()


# ---------------------------------------------------------------- comparing


def tree_sums(root):
    """{path below root: checksum} of everything that is there."""

    def refuse(error):
        raise error

    sums = {}
    for folder, _, files in os.walk(root, onerror=refuse):
        for file in files:
            path = os.path.join(folder, file)
            sums[os.path.relpath(path, root)] = checksum(path)
    return sums


def compare(expected, found, where):
    problems = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    problems += [f"{name} should not be there" for name in sorted(found.keys() - expected.keys())]
    problems += [
        f"{name} has other bytes"
        for name in sorted(expected.keys() & found.keys())
        if expected[name] != found[name]
    ]
    if problems:
        shown = "; ".join(problems[:10])
        raise Failure(f"{where}: {len(problems)} of {len(expected)} files differ: {shown}")


def verify(cluster, node, expected):
    mount = cluster.mount(node)
    compare(expected, tree_sums(mount), f"mount {node}")
    project = os.path.join(mount, "project")
    git("fsck", "--full", cwd=project)
    # Without optional locks it does not rewrite its index, which is compared on the other mounts.
    if git("--no-optional-locks", "status", "--porcelain", cwd=project).strip():
        raise Failure(f"mount {node}: git status finds changes in the committed tree")
    check_database(os.path.join(mount, "training.db"))
    say(f"mount {node}: {len(expected)} files equal, git fsck and integrity_check are clean")


# ---------------------------------------------------------------- the story


def work_on_first_mount(cluster, first_tar, first_sums):
    """Real programs on mount 1; answers the checksums of all that is there then."""
    mount = cluster.mount(1)
    project = os.path.join(mount, "project")

    chapter("mount 1: a source tree, git, SQLite, a checkpoint")
    start = time.monotonic()
    operations, _ = unpack(first_tar, project)
    say(f"unpacked {len(first_sums)} files ({operations} operations) in {elapsed(start)}")
    start = time.monotonic()
    git("init", "-q", "-b", "main", cwd=project)
    git("add", "-A", "-f", cwd=project)
    git("commit", "-q", "-m", "Everything", cwd=project)
    say(f"git init, add, commit in {elapsed(start)}")
    start = time.monotonic()
    fill_database(os.path.join(mount, "training.db"))
    say(f"{TRANSACTIONS} SQLite transactions in {elapsed(start)}")
    start = time.monotonic()
    checkpoint = save_checkpoint(os.path.join(mount, "model.safetensors"))
    say(f"checkpoint of {CHECKPOINT_BYTES >> 20} MiB written, fsynced, renamed in {elapsed(start)}")

    expected = {f"project/{name}": value for name, value in first_sums.items()}
    expected["model.safetensors"] = checkpoint
    found = tree_sums(mount)
    made_by_programs = {
        name: value
        for name, value in found.items()
        if name.startswith("project/.git/") or name == "training.db"
    }
    expected.update(made_by_programs)
    compare(expected, found, "mount 1")
    return expected


def lose_the_leader(cluster, second_tar, second_sums):
    """Kills the leader while another node's mount is worked on; answers which node that was."""
    leader = cluster.leader()
    writer = 2 if leader == 1 else 1
    chapter(f"node {leader} leads: it is killed while mount {writer} unpacks a second tree")
    kill_at = threading.Event()
    killed = []

    def kill():
        kill_at.wait()
        try:
            cluster.run("kill", str(leader), "--signal", "KILL")
            killed.append(time.monotonic())
        except Failure as failure:
            killed.append(failure)

    def progress(done):
        if done >= len(second_sums) // 3:
            kill_at.set()

    killer = threading.Thread(target=kill)
    killer.start()
    start = time.monotonic()
    try:
        target = os.path.join(cluster.mount(writer), "second")
        operations, longest_s = unpack(second_tar, target, progress)
    except OSError as error:
        raise Failure(f"unpacking through mount {writer} failed: {error}") from error
    finally:
        kill_at.set()
        killer.join()
    end = time.monotonic()
    if isinstance(killed[0], Failure):
        raise killed[0]
    if end < killed[0]:
        raise Failure("the second tree was unpacked before the leader died: nothing was shown")
    say(f"unpacked {len(second_sums)} files ({operations} operations) in {elapsed(start)}")
    say(f"node {cluster.leader()} leads now")
    return leader, longest_s


def bring_back(cluster, node):
    chapter(f"node {node} starts again and catches up")
    start = time.monotonic()
    cluster.run("start", str(node))

    def caught_up():
        nodes = {entry["id"]: entry for entry in cluster.status()["nodes"]}
        others = [entry["applied"] for entry in nodes.values() if entry["id"] != node]
        back = nodes[node]
        return back["role"] != "down" and back["mounted"] and back["applied"] >= max(others)

    wait_until(CATCH_UP_LIMIT_S, f"node {node} to catch up", caught_up)
    say(f"caught up after {elapsed(start)}")


def elapsed(start):
    return f"{time.monotonic() - start:.1f} s"


def tell(binary, directory):
    cluster = Cluster(binary, os.path.join(directory, "cluster"))
    chapter("packing two real source trees of this machine")
    roots = source_roots()
    first_tar = os.path.join(directory, "first.tar")
    second_tar = os.path.join(directory, "second.tar")
    first_sums = pack(first_tar, roots)
    second_sums = pack(second_tar, roots[1:] + roots[:1])
    say(f"{len(first_sums)} and {len(second_sums)} files")

    expected = work_on_first_mount(cluster, first_tar, first_sums)
    dead, longest_s = lose_the_leader(cluster, second_tar, second_sums)
    expected.update({f"second/{name}": value for name, value in second_sums.items()})

    alive = [node for node in (1, 2, 3) if node != dead]
    chapter("comparing every file on the mounts that are left")
    for node in alive:
        verify(cluster, node, expected)
    bring_back(cluster, dead)
    verify(cluster, dead, expected)

    print()
    print(f"verified on all three mounts: {len(expected)} files by checksum, git fsck, SQLite")
    print(f"longest stall at the leader's death: {longest_s:.2f} s")
    if longest_s >= STALL_LIMIT_S:
        raise Failure(f"the longest stall was {longest_s:.2f} s; {STALL_LIMIT_S:.0f} s are allowed")


def main():
    binary, directory = sys.argv[1:]
    try:
        tell(binary, directory)
    except (Failure, OSError, sqlite3.Error) as failure:
        print(f"demo failed: {failure}", file=sys.stderr)
        return 1
    print("ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
