"""What a comparison is, and how it is run: all sites in turn, many rounds, so that a drifting disk meets all alike."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .machine import MIB, Failure, undisturbed
from .sites import Bare, Native, Quorumfs

RESERVE_MIB = 2048  # what is left to logs, snapshots and everybody else


@dataclass(frozen=True)
class Sizes:
    """How much each comparison does."""

    file_mib: int = 1024
    read_s: float = 3.0
    images: int = 2000
    tree_files: int = 10_000
    tree_mib: int = 2048
    operations: int = 100
    writers: int = 8
    writers_mib: int = 8192


QUICK = Sizes(file_mib=128, read_s=0.5, images=300, tree_files=500, tree_mib=128, operations=20, writers_mib=512)


@dataclass(frozen=True)
class Bar:
    """What must be reached: at least a ratio to ext4, or at most a value."""

    at_least_ratio: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class Metric:
    name: str
    unit: str
    summary: str
    less_is_better: bool = False
    bar: Bar | None = None


class Readings:
    """What one site gave in all rounds."""

    def __init__(self):
        self.values = {}
        self.notes = {}

    def add(self, name, value):
        self.values.setdefault(name, []).append(value)

    def note(self, name, text):
        """Said beside the metric; the last round's stays."""
        self.notes[name] = text


@dataclass(frozen=True)
class Comparison:
    name: str
    summary: str
    metrics: tuple[Metric, ...]
    measure: Callable
    """`measure(site, sizes, readings)`: one round. It checks what it reads, and removes what it makes."""
    room_mib: Callable
    """Of the disk, at most, for these sizes, while it runs."""
    prepare: Callable = lambda site, sizes: None
    """Once on each site, before the first round."""
    with_native: bool = True
    with_gluster: bool = True
    with_bare: bool = False
    """Whether the ceiling of FUSE says something here."""


@dataclass
class Outcome:
    comparison: Comparison
    readings: dict[str, Readings] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Beside:
    """What quorumfs is compared with besides ext4; nothing where it is not there."""

    gluster: Callable | None
    """Makes a site in a directory."""
    bare: Path | None
    """The example `bare_fuse`."""


def compare(comparison, directory, binary, beside, sizes, rounds):
    """Runs it on new sites, which are gone afterwards, whatever happens."""
    sites = [Native(directory / "ext4")] if comparison.with_native else []
    if beside.bare and comparison.with_bare:
        sites.append(Bare(directory / "bare", beside.bare))
    if beside.gluster and comparison.with_gluster:
        sites.append(beside.gluster(directory / "gluster"))
    sites.append(Quorumfs(directory / "quorumfs", binary))
    outcome = Outcome(comparison, {site.label: Readings() for site in sites})
    try:
        for site in sites:
            attempt(outcome, site, lambda: (site.start(), comparison.prepare(site, sizes), site.settle()))
        for number in range(rounds):
            say(f"   {comparison.name}: round {number + 1} of {rounds}")
            for site in sites:
                readings = outcome.readings[site.label]
                attempt(outcome, site, lambda: comparison.measure(site, sizes, readings))
    finally:
        with undisturbed():
            stop_all(sites)
    return outcome


def attempt(outcome, site, step):
    """A site that fails is left out from then on, and has no figures: half of the rounds would not be comparable."""
    if site.label in outcome.failures:
        return
    try:
        step()
    except (Failure, OSError) as error:
        outcome.failures[site.label] = f"{type(error).__name__}: {error}"
        outcome.readings[site.label] = Readings()
        say(f"   {outcome.comparison.name}: {site.label} failed: {error}")
        say(site.last_words())


def stop_all(sites):
    """Stops every site although another does not stop; then says which did not."""
    failed = []
    for site in sites:
        try:
            site.stop()
        except (Failure, OSError) as error:
            failed.append(f"{site.label}: {error}")
    if failed:
        raise Failure("cannot clean up: " + "; ".join(failed))


def need_room(comparison, directory, sizes):
    """Refuses to begin what would fill the disk."""
    free_mib = shutil.disk_usage(directory).free // MIB
    needed_mib = comparison.room_mib(sizes) + RESERVE_MIB
    if free_mib < needed_mib:
        raise Failure(
            f"{comparison.name} needs {needed_mib} MiB in {directory} and {free_mib} are free:"
            " free some, give another --dir, or use --quick"
        )


def say(text):
    print(text, file=sys.stderr, flush=True)
