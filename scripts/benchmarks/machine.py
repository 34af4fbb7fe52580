"""This machine: its programs, page cache, disk and processes. Only root can see and do all of it."""

import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

MIB = 1 << 20
TRACING = Path("/sys/kernel/tracing")
REQUEST_SENT = "events/fuse/fuse_request_send"
SECTOR = 512

stopping = threading.Event()  # set when the bench was told to end: threads look at it between two pieces


class Failure(Exception):
    """Something cannot be measured, and why."""


class Corrupt(Failure):
    """A file system gave back something other than what was written."""


def end_at_signals():
    """SIGINT, SIGTERM and SIGHUP end the program through all of its `finally` clauses."""

    def end(number, _frame):
        stopping.set()
        raise SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)


@contextmanager
def undisturbed():
    """Cleaning up is not interrupted a second time."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)


def run(*command, cwd=None):
    """What a program printed that must succeed."""
    program = _start(command, stdout=subprocess.PIPE, cwd=cwd)
    try:
        out, said = program.communicate()
    finally:
        _end(program)
    if program.returncode != 0:
        lines = (said.strip() or out.strip() or "it said nothing").splitlines()
        raise Failure(f"{' '.join(str(word) for word in command[:3])} failed: {' / '.join(lines[-3:])}")
    return out


def run_together(commands, pass_fds=()):
    """Runs programs side by side until all have ended well."""
    running = []
    try:
        for command in commands:
            running.append(_start(command, stdout=subprocess.DEVNULL, pass_fds=pass_fds))
        for command, program in zip(commands, running):
            _, said = program.communicate()
            if program.returncode != 0:
                raise Failure(f"{' '.join(str(word) for word in command)} failed: {said.strip()[-300:]}")
    finally:
        for program in running:
            _end(program)


@contextmanager
def running(*command):
    """A program that runs meanwhile, and has ended well afterwards."""
    program = _start(command, stdout=subprocess.DEVNULL)
    try:
        yield
        _, said = program.communicate()
        if program.returncode != 0:
            raise Failure(f"{' '.join(str(word) for word in command[:4])} failed: {said.strip()[-300:]}")
    finally:
        _end(program)


def _start(command, **options):
    """In a session of its own: the terminal's Ctrl-C is for us."""
    return subprocess.Popen(
        [str(word) for word in command], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
        start_new_session=True, **options,
    )  # fmt: skip


def _end(program):
    """Ends one that still runs, because we were interrupted; it may have to clean up itself."""
    if program.poll() is not None:
        return
    program.terminate()
    try:
        program.wait(10)
    except subprocess.TimeoutExpired:
        program.kill()
        program.wait()


def clock(operation):
    """Seconds that it takes."""
    start = time.monotonic()
    operation()
    return time.monotonic() - start


def wait_until(limit_s, what, condition, interval_s=0.1):
    """What `condition` returns once that is true."""
    deadline = time.monotonic() + limit_s
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise Failure(f"waited {limit_s:.0f} s for {what}")
        time.sleep(interval_s)
    return result


def drop_caches():
    """Empties the page, dentry and inode caches of the whole machine."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def written_by(pid):
    """Bytes that a process caused to be written to disks so far: those that it dirtied in the page cache, counted then
    and not when the kernel writes them back, less those that were removed before they were written back."""
    counters = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(counters["write_bytes"]) - int(counters["cancelled_write_bytes"])


def written_to_device(directory):
    """Bytes that the device below `directory` has written, by whomever; 0 where it has no counters."""
    device = os.stat(directory).st_dev
    counters = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    return int(counters.read_text().split()[6]) * SECTOR if counters.exists() else 0


def space_taken(directory):
    """Bytes of disk that a directory takes. Files come and go while it looks."""
    inodes = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                found = os.lstat(os.path.join(folder, name))
            except FileNotFoundError:
                continue
            inodes[found.st_ino] = found.st_blocks * SECTOR
    return sum(inodes.values())


def cpu_seconds(pid):
    """CPU time that a process has used so far, all of its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def forget_peak_memory(pid):
    """VmHWM counts from now on: proc_pid_clear_refs(5)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_memory_mib(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE).group(1)) / 1024


def mounts_below(directory):
    """Mount points below a directory, the innermost first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    points = [point.encode().decode("unicode_escape") for point in points]
    return sorted((point for point in points if point.startswith(f"{directory}/")), reverse=True)


def file_system_of(directory):
    """Its type, as mount(8) names it."""
    device = os.stat(directory).st_dev
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split()[2] == f"{os.major(device)}:{os.minor(device)}":
            return source.split()[0]
    return "unknown"


def can_count_requests():
    """Linux 6.10 and later tell of each FUSE request."""
    return (TRACING / REQUEST_SENT).exists()


@contextmanager
def requests_counted(mount):
    """Counts the FUSE requests of one mount, by their names, in a trace buffer of our own.

    FORGET is not among them: the kernel sends it in batches, and nobody waits for it.
    """
    instance = TRACING / "instances" / f"quorumfs-bench-{os.getpid()}"
    instance.mkdir()
    try:
        (instance / REQUEST_SENT / "filter").write_text(f"connection == {os.minor(os.stat(mount).st_dev)}")
        counted = Counter()
        (instance / REQUEST_SENT / "enable").write_text("1")
        yield counted
        counted.update(_requests_in(instance))
    finally:
        (instance / REQUEST_SENT / "enable").write_text("0")
        instance.rmdir()


def _requests_in(instance):
    """What the trace holds once nothing is added any more: RELEASE is sent after close has returned."""
    text = None
    while text != (text := (instance / "trace").read_text()):
        time.sleep(0.2)
    held, all_sent = re.search(r"entries-in-buffer/entries-written: (\d+)/(\d+)", text).groups()
    if held != all_sent:
        raise Failure(f"the trace buffer lost {int(all_sent) - int(held)} FUSE requests: count fewer operations")
    return re.findall(r"opcode \d+ \(FUSE_(\w+)\)", text)
