"""Figures of pyrepl alone: the memory of its daemons, and how long a command takes.

    memory    A daemon's resident memory, idle and under load. The primary has three links and a sparse volume that was
              made when they were up, so that nothing of it has to be compared. Two secondaries follow; the third was
              synchronized and is away during the load, so that what it lacks is folded when the journal has run round.
              The load is fio, 4 KiB random writes, 32 in flight, as fast as they go: an hour at the rate of a busy
              appliance is ten minutes of this. It goes to PLACES all over the volume, which touches thousands of pages
              of every map and needs no more disk than there is: a place costs a region for each snapshot at each site,
              and time when files are removed from a file system that discards. A snapshot is taken every tenth part of
              the time, and the one before the last is deleted.
    cli       The wall time of ``pyrepl status`` against a daemon and of ``pyrepl --help``, in turn with that of a
              Python that does nothing, medians and the most.

Decides what is run and looked at; the limits that these figures are held to are nobody's business here.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers import load
from benchmarks.peers.load import Job
from benchmarks.peers.processes import usage, wait_until
from benchmarks.peers.rigs import Rig, Site

KIB, MIB = 1 << 10, 1 << 20
SNAPSHOTS = 10
PLACES = 4096


class Daemons(Rig):
    """A primary and three secondaries, of which the last ends once it is synchronized."""

    name = "pyrepl"

    def __init__(self, folder: Path, size: int, journal: int) -> None:
        super().__init__(folder, size)
        self.journal = journal

    def start(self) -> None:
        self.sites = [Site(self, name) for name in ("primary", "first", "second", "away")]
        self.idle = {name: usage([site.program.pid]).rss for name, site in self.named().items()}
        primary = self.sites[0]
        for site in self.sites:
            site.node.create_group(
                "bench", self.folder / f"{site.name}-journal", journal_size=self.journal,
                role="primary" if site is primary else "secondary",
            )  # fmt: skip
        self.group = primary.node.group("bench")
        for site in self.sites[1:]:
            self.group.add_link(site.name, site.address)
        self._synchronize()
        self.group.add_volume("data", size=self.size, zero=True)
        self._synchronize()
        away = self.sites.pop()
        away.node.close()
        away.program.close()
        primary.node.start_export("x", "bench", "data")
        self.target = f"nbd+unix:///x?socket={primary.nbd}"

    def _synchronize(self) -> None:
        for site in self.sites[1:]:
            self.group.link(site.name).wait_synced(timeout=600)

    def settle(self) -> float:
        begin = time.monotonic()
        lsn = self.group.flush()
        for site in self.sites[1:]:
            self.group.wait(lsn, where=site.name, timeout=3600)
            self.group.link(site.name).wait_synced(timeout=3600)
        return time.monotonic() - begin

    def named(self) -> dict[str, Site]:
        """The daemons by their names."""
        return {site.name: site for site in self.sites}


def memory(
    folder: Path, *, seconds: float, size: int, journal: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Bytes that each daemon has resident: idle, with its group, the most, and when the load is over.

    Args:
        size: bytes of the sparse volume.
        journal: bytes of each journal.
    """
    with tempfile.TemporaryDirectory(prefix="peers-", dir=folder) as place, Daemons(Path(place), size, journal) as rig:
        ready = {name: usage([site.program.pid]).rss for name, site in rig.named().items()}
        over = threading.Event()
        failures: list[Exception] = []

        def operate() -> None:
            try:
                for number in range(SNAPSHOTS):
                    if over.wait(seconds / (SNAPSHOTS + 1)):
                        return
                    rig.group.volume("data").snapshot(f"s{number}")
                    if number > 1:
                        rig.group.store(f"s{number - 2}").delete()
                    say(f"memory: snapshot {number + 1} of {SNAPSHOTS}")
            except Exception as error:
                failures.append(error)

        job = Job("memory", "randwrite", 4 * KIB, 32, seconds, align=max(4 * KIB, size // PLACES))
        operator = threading.Thread(target=operate)
        operator.start()
        try:
            outcome = load.run(rig.target, job, size, rig.folder / "fio")
        finally:
            over.set()
            operator.join()
        if failures:
            raise failures[0]
        caught_up = rig.settle()
        away = rig.group.link("away").status()
        after = {name: usage([site.program.pid]) for name, site in rig.named().items()}
        return {
            "seconds": outcome.seconds,
            "writes": outcome.requests,
            "writes_per_second": outcome.rate,
            "caught_up_seconds": caught_up,
            "away_divergent_bytes": away["divergent_bytes"] + away["backlog_bytes"],
            "daemons": {
                name: {
                    "idle": rig.idle[name],
                    "with_group": ready[name],
                    "peak": after[name].peak_rss,
                    "after": after[name].rss,
                }
                for name in after
            },
        }


def commands(folder: Path, *, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Milliseconds of wall time: ``pyrepl`` as it is installed beside this Python."""
    program = Path(sys.executable).with_name("pyrepl")
    if not program.exists():
        raise FileNotFoundError(f"there is no {program}: install the package into this environment")
    with tempfile.TemporaryDirectory(prefix="peers-", dir=folder) as place, contextlib.ExitStack() as stack:
        rig = stack.enter_context(_One(Path(place), 64 * MIB))
        asked = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "pyrepl --help": [program, "--help"],
            "pyrepl status": [program, "--socket", rig.site.control, "status"],
            "pyrepl status --json": [program, "--socket", rig.site.control, "status", "--json"],
        }
        times: dict[str, list[float]] = {name: [] for name in asked}
        for number in range(rounds + 1):
            say(f"cli: round {number} of {rounds}" if number else "cli: once, to fill the page cache")
            for name, words in asked.items():
                begin = time.perf_counter()
                subprocess.run([os.fspath(w) for w in words], check=True, stdout=subprocess.DEVNULL)
                if number:
                    times[name].append(1e3 * (time.perf_counter() - begin))
    return {
        name: {"median_ms": statistics.median(taken), "most_ms": max(taken), "least_ms": min(taken)}
        for name, taken in times.items()
    }


class _One(Rig):
    """One daemon with a group of one volume."""

    name = "pyrepl"

    def start(self) -> None:
        self.site = Site(self, "node")
        group = self.site.node.create_group("bench", self.folder / "journal", journal_size=64 * MIB)
        group.add_volume("data", size=self.size)
        wait_until(lambda: group.state == "active", "the group is active")
