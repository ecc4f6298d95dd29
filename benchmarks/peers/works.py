"""What is run on the rigs, and what counts.

    P1    4 KiB random writes, 32 in flight, the link async.
    P2    the same with the link sync; and one in flight, for its latencies.
    P3    1 MiB random writes, 8 in flight, async and sync.
    P5    random reads of 4 KiB, 32 in flight, and of 1 MiB, 8 in flight.

A *burst* is a load as fast as it goes, beginning with everything settled. *Sustained* is the rate at which the
secondary has everything within 1 s of the end of the load: if it has after the burst, that is the one; otherwise the
load is run again, held to a rate (``fio --rate_iops``), first what the burst would have been with the catching up
counted in, then less and less. What "has everything" means says each rig; for pyrepl: performed at both sites, on
their disks.

Each round runs each rig once, in turn, on fresh files: A B C A B C. CPU seconds and bytes on the wire are counted from
the beginning of the load until the secondary has everything. After each run both copies are compared.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.peers import load, rigs
from benchmarks.peers.load import Job
from benchmarks.peers.processes import missing, usage, wire

KIB, MIB = 1 << 10, 1 << 20
CAUGHT_UP = 1.0  # seconds
TRIES = 5  # to find a rate that can be sustained
LESS = 0.7  # of the rate before


@dataclasses.dataclass(frozen=True)
class Sample:
    """One run of one load on one rig. Rates are requests per second, latencies microseconds, the rest bytes and
    seconds.

    ``cpu_us``: of the processes of the rig, for each request; ``load_cpu_us``: of fio. ``wire``: bytes that crossed TCP
    between the sites over the bytes that were written; None: there is no replica, or its connections changed meanwhile.
    ``equal``: both copies, at the end of the rig; None: there is one.
    """

    work: str
    load: str
    rig: str
    rate: float
    p50_us: float
    p99_us: float
    worst_us: float
    cpu_us: float
    load_cpu_us: float
    caught_up: float
    wire: float | None
    peak_rss: int
    equal: bool | None = None


@dataclasses.dataclass(frozen=True)
class Work:
    """Loads, and the rigs that they run on. ``sustained``: for which load also that rate is looked for."""

    name: str
    title: str
    loads: Sequence[tuple[str, str, int, int]]  # name, fio's rw, bytes, in flight
    rigs: Sequence[type[rigs.Rig]]
    sustained: bool = True


WORKS = {
    work.name: work
    for work in (
        Work(
            "P1",
            "4 KiB random writes, 32 in flight, link async",
            [("4k qd32", "randwrite", 4 * KIB, 32)],
            [rigs.Raw, rigs.NbdkitNull, rigs.QemuMirrorAsync, rigs.PyreplAsync],
        ),
        Work(
            "P2",
            "4 KiB random writes, link sync",
            [("4k qd32", "randwrite", 4 * KIB, 32), ("4k qd1", "randwrite", 4 * KIB, 1)],
            [rigs.Raw, rigs.NbdkitNull, rigs.QemuMirrorSync, rigs.PyreplSync],
        ),
        Work(
            "P3",
            "1 MiB random writes, 8 in flight",
            [("1m qd8", "randwrite", MIB, 8)],
            [rigs.Raw, rigs.NbdkitNull, rigs.QemuMirrorAsync, rigs.PyreplAsync, rigs.QemuMirrorSync, rigs.PyreplSync],
        ),
        Work(
            "P5",
            "random reads",
            [("4k qd32", "randread", 4 * KIB, 32), ("1m qd8", "randread", MIB, 8)],
            [
                rigs.Raw,
                rigs.NbdkitNull,
                rigs.NbdkitFile,
                rigs.NbdkitFileUncached,
                rigs.QemuNbd,
                rigs.PyreplAsync,
            ],
            sustained=False,
        ),
    )
}


class Different(RuntimeError):
    """The two copies of a rig are not equal: no figure of it counts."""


def lacking(work: Work) -> dict[str, list[str]]:
    """Rig -> what the machine lacks for it."""
    needs = {rig.name: missing(["fio", *rig.programs]) for rig in work.rigs}
    return {name: programs for name, programs in needs.items() if programs}


def perform(
    work: Work, folder: Path, size: int, *, seconds: float, rounds: int, say: Callable[[str], None]
) -> Iterator[Sample]:
    """Runs a work on all its rigs that the machine has, round by round.

    Args:
        folder: on the disk that is measured; needs about four times ``size`` bytes.
        size: bytes of a volume.
        seconds: of each load.
        say: told what is going on.

    Raises:
        Different: a replica does not equal its primary.
    """
    absent = lacking(work)
    for number in range(rounds):
        for kind in work.rigs:
            if kind.name in absent:
                continue
            say(f"{work.name} round {number + 1} of {rounds}: {kind.name}")
            with tempfile.TemporaryDirectory(prefix="peers-", dir=folder) as place, kind(Path(place), size) as rig:
                samples = [
                    sample
                    for name, rw, block, depth in work.loads
                    for sample in _measure(work, rig, Job(name, rw, block, depth, seconds), say)
                ]
                equal = rig.finish()
            if equal is False:
                raise Different(f"{kind.name}: after {work.name} the replica does not equal the primary")
            yield from (dataclasses.replace(sample, equal=equal) for sample in samples)


def _measure(work: Work, rig: rigs.Rig, job: Job, say: Callable[[str], None]) -> Iterator[Sample]:
    """The burst, and if it is asked for the sustained rate."""
    burst = _once(work, rig, job, "burst" if work.sustained else job.direction)
    yield burst
    if not work.sustained:
        return
    rate = burst.rate * job.seconds / (job.seconds + burst.caught_up)
    found, tries = burst, 1
    while found.caught_up > CAUGHT_UP:
        if tries == TRIES:
            say(f"{rig.name}: {rate:.0f}/s is still too fast for it ({found.caught_up:.1f} s): no sustained rate")
            return
        found = _once(work, rig, job._replace(rate=max(1, int(rate))), "sustained")
        rate, tries = rate * LESS, tries + 1
    yield dataclasses.replace(found, load=f"{job.name} sustained")


def _once(work: Work, rig: rigs.Rig, job: Job, what: str) -> Sample:
    rig.settle()
    before = usage(rig.pids)
    crossed = wire(rig.port) if rig.port is not None else None
    outcome = load.run(rig.target, job, rig.size, rig.folder / "fio.log")
    caught_up = rig.settle()
    after = usage(rig.pids)
    on_the_wire = None
    if rig.port is not None and crossed is not None:
        now = wire(rig.port)
        if now.connections == crossed.connections:
            on_the_wire = (now.total - crossed.total) / (outcome.requests * job.block)
    return Sample(
        work=work.name,
        load=f"{job.name} {what}",
        rig=rig.name,
        rate=outcome.rate,
        p50_us=outcome.p50,
        p99_us=outcome.p99,
        worst_us=outcome.worst,
        cpu_us=1e6 * (after.cpu_seconds - before.cpu_seconds) / outcome.requests,
        load_cpu_us=1e6 * outcome.cpu_seconds / outcome.requests,
        caught_up=caught_up,
        wire=on_the_wire,
        peak_rss=after.peak_rss,
    )
