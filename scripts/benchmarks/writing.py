"""Comparisons that write large files: write amplification, checkpoints, memory."""

import mmap
import os

from . import machine
from .comparison import Bar, Comparison, Metric
from .content import each, piece, verify_file, write_file
from .machine import MIB, clock, run_together
from .sites import NODES


def measure_amplification(site, sizes, readings):
    path, program_bytes = site.write / "large", sizes.file_mib * MIB
    site.settle()
    replicas = site.replicas()
    before = [(machine.written_by(pid), machine.space_taken(data)) for pid, data in replicas]
    device_before = machine.written_to_device(site.directory)
    write_file(path, sizes.file_mib, fsync=True)
    site.settle()
    after = [(machine.written_by(pid), machine.space_taken(data)) for pid, data in replicas]
    device_bytes = machine.written_to_device(site.directory) - device_before
    written = [new[0] - old[0] for new, old in zip(after, before)]
    grown = [new[1] - old[1] for new, old in zip(after, before)]
    readings.add("amplification_process", max(written) / program_bytes)
    readings.add("amplification_space", max(grown) / program_bytes)
    readings.add("amplification_device", device_bytes / len(replicas) / program_bytes)
    readings.note("amplification_process", "each: " + ", ".join(f"{one / program_bytes:.3f}" for one in written))
    for reader in site.readers:
        verify_file(reader / path.name, sizes.file_mib)
    path.unlink()


AMPLIFICATION = Comparison(
    name="amplification",
    summary="bytes written per replica over bytes written by the program, for one new file, after fsync and sync",
    metrics=(
        Metric("amplification_process", "x", "by the replica's process (write_bytes less cancelled_write_bytes of"
               " /proc/PID/io: what it dirtied in the page cache), the worst replica", True, Bar(at_most=1.05)),
        Metric("amplification_space", "x", "growth of the replica's directory, the worst replica", True,
               Bar(at_most=1.05)),
        Metric("amplification_device", "x", "what the device wrote for one replica, with journals and metadata (and"
               " whatever else this machine did)", True),
    ),
    measure=measure_amplification,
    room_mib=lambda sizes: 7 * sizes.file_mib,
)  # fmt: skip


class Checkpoint:
    """Bytes in memory that dd can read: no file, so nothing is left of them."""

    def __init__(self, mib):
        self.mib = mib
        self.fd = os.memfd_create("checkpoint")
        for number in range(mib):
            os.write(self.fd, piece(number, MIB))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.fd)

    def write_to(self, *paths):
        """Writes and fsyncs it to files, side by side, with dd."""
        # Each dd opens it anew, so that each has an offset of its own.
        run_together(
            [["dd", f"if=/dev/fd/{self.fd}", f"of={path}", "bs=8M", "conv=fsync"] for path in paths], [self.fd]
        )

    def is_in(self, path):
        verify_file(path, self.mib)


def measure_checkpoint(site, sizes, readings):
    site.settle()
    with Checkpoint(sizes.file_mib) as checkpoint:
        if site.label == "ext4":
            paths = [site.write / f"model{copy}" for copy in range(NODES)]
            seconds = clock(lambda: checkpoint.write_to(*paths))
            seen = paths[:1]
        else:
            paths = [site.write / "model"]
            part = site.write / "model.part"
            cpu = sum(machine.cpu_seconds(replica.pid) for replica in site.replicas())
            seconds = clock(lambda: (checkpoint.write_to(part), part.rename(paths[0])))
            cpu = sum(machine.cpu_seconds(replica.pid) for replica in site.replicas()) - cpu
            readings.note("checkpoint_save", f"{cpu:.2f} s of CPU time in the replicas' processes")
            seen = [reader / "model" for reader in site.readers]
        readings.add("checkpoint_save", sizes.file_mib * MIB / 1e6 / seconds)
        # At once: nothing waits until it is there.
        readings.add("checkpoint_readable", clock(lambda: each(seen, checkpoint.is_in, len(seen))))
    for path in paths:
        path.unlink()


CHECKPOINT = Comparison(
    name="checkpoint",
    summary="one file written and fsynced by dd, and renamed: it is on the disks of a quorum then. ext4: dd writes and"
    " fsyncs three such files side by side",
    metrics=(
        Metric("checkpoint_save", "MB/s", "of the program's bytes, until rename has returned",
               bar=Bar(at_least_ratio=0.8)),
        Metric("checkpoint_readable", "s", "from there until all of it has been read and compared on all other mounts"
               " at once (ext4: on the one)", True),
    ),
    measure=measure_checkpoint,
    room_mib=lambda sizes: 10 * sizes.file_mib,
)  # fmt: skip


def measure_memory(site, sizes, readings):
    site.settle()
    replicas = site.replicas()
    for pid, _ in replicas:
        machine.forget_peak_memory(pid)
    each_mib = sizes.writers_mib // sizes.writers
    paths = {site.write / f"writer{number}": number * each_mib for number in range(sizes.writers)}
    seconds = clock(lambda: each(paths, lambda path: write_file(path, each_mib, first=paths[path]), sizes.writers))
    site.settle()
    peaks = [machine.peak_memory_mib(pid) for pid, _ in replicas]
    readings.add("memory_peak", max(peaks))
    readings.note("memory_peak", "each: " + ", ".join(f"{peak:.0f}" for peak in peaks))
    readings.add("memory_write", sizes.writers_mib * MIB / 1e6 / seconds)
    for path, first in paths.items():
        verify_file(site.read / path.name, each_mib, first=first)
        path.unlink()


MEMORY = Comparison(
    name="memory",
    summary="several writers, a file each, through one mount",
    metrics=(
        Metric("memory_peak", "MiB", "VmHWM, the worst daemon", True, Bar(at_most=600)),
        Metric("memory_write", "MB/s", "of the programs' bytes, until all are closed"),
    ),
    measure=measure_memory,
    # Three copies, twice where a stage is copied.
    room_mib=lambda sizes: NODES * sizes.writers_mib + 2 * sizes.writers_mib // sizes.writers,
    with_native=False,
    with_gluster=False,
)
