"""Plug-ins at their place in the order: what they are given, what they leave, and what comes of them.

A plug-in is run while the applier is held before its operation: everything before it is in the stores, nothing after
it, applier and mover stand, and the journal goes on. It reads what the stores show there, and writes to files of its
own; nothing names these before the note that performs the operation, which swaps all of them in at once.

    one decides   the primary (or whoever holds the operation without being told): what came of it is in the note, and
                  goes to every secondary before the operation. A plug-in that fails, is not there, or is not done in
                  its time changes nothing there, and is not even run elsewhere
    the others    run it, and compare: a secondary whose result is another, or that cannot run it, does without, says
                  so, and is not consistent from there on; the data come as for any refused operation

Decides what a plug-in may touch, what of it is kept, and what counts as the same result. Must not know how a plug-in
is found or run, nor what time it is given (``seams.Plugins``).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import xxhash

from pyrepl import notes
from pyrepl._core.device import Device
from pyrepl._core.regions import RegionMap
from pyrepl.errors import PyreplError, UsageError, check
from pyrepl.operations import Outcome, Perform, Scope

if TYPE_CHECKING:
    from pyrepl.seams import Run
    from pyrepl.site import Site

MOST_RUNS = 1024  # in which what one plug-in wrote to a store is told; nearer ones are joined
MOST_FAILED = 100  # characters of a reason
PIECE = 1 << 20


class Bench:
    """A store as a plug-in has it: what it shows at this place, with what the plug-in has written over it. One caller
    at a time; which thread does not matter."""

    def __init__(self, site: Site, store: int, reads: Sequence[Scope], writes: Sequence[Scope]) -> None:
        entry = site.here.catalog[store]
        self._site, self.store, self.name, self.size = site, store, entry.name, entry.size
        self._region = site.region_size
        self._readable = [scope for scope in (*reads, *writes) if scope.store == store]
        self._writable = [scope for scope in writes if scope.store == store]
        self.written = RegionMap(self.size // self._region)
        self.device: Device | None = None
        self.number, self.path = 0, ""
        self.runs: list[tuple[int, int]] = []  # what was written, when it is settled

    def open(self) -> None:
        """The file that it writes to, if it may write. Between two steps.

        Raises:
            OSError: there is no room.
        """
        if not self._writable:
            return
        placement = self._site.shelf.placement
        self.number = self._site.views.take_number()
        name = f"work-on-{self.name}"
        self.path = placement.create(name, self.number, self.size, self._site.shelf.paths)
        self.device = placement.open(self.path, self.size)

    def drop(self) -> None:
        """Nothing of it is wanted. Harmless the second time."""
        device, path, self.device, self.path = self.device, self.path, None, ""
        if device is not None:
            device.close()
        if path:
            self._site.shelf.placement.remove(path)

    def take_device(self) -> Device:
        """It is the table's from here on."""
        device, self.device, self.path = self.device, None, ""
        check(device is not None, "a bench that was written to has a device", name=self.name)
        assert device is not None
        return device

    # ---- what a plug-in does with it

    def read(self, offset: int, length: int) -> bytes:
        """What it shows there.

        Raises:
            UsageError: not a part of what the footprint says is read or written.
        """
        self._require(self._readable, offset, length, "reads")
        return self._read(offset, length)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Any offset and length.

        Raises:
            UsageError: not a part of what the footprint says is written.
        """
        view = memoryview(data).cast("B")
        self._require(self._writable, offset, len(view), "writes")
        size, at = self._region, 0
        while at < len(view):
            region = (offset + at) // size
            start = offset + at - region * size
            count = min(size - start, len(view) - at)
            self._write(region, start, view[at : at + count])
            at += count

    def _require(self, scopes: list[Scope], offset: int, length: int, verb: str) -> None:
        size = self._region
        if isinstance(offset, int) and isinstance(length, int) and offset >= 0 and length >= 0:
            for _, first, count in scopes:
                if offset >= first * size and offset + length <= (first + count) * size:
                    return
        raise UsageError(
            f"a plug-in {verb} {length!r} bytes at {offset!r} of {self.name!r}, which its footprint does not hold"
        )

    def _write(self, region: int, start: int, data: memoryview) -> None:
        device, size = self.device, self._region
        assert device is not None
        base, sector = region * size, device.sector_size
        first, end = 0, size
        if region in self.written:  # else the rest of the region has to be there too
            first, end = start // sector * sector, -(-(start + len(data)) // sector) * sector
        whole = data if len(data) == end - first else bytearray(self._read(base + first, end - first))
        if whole is not data:
            whole[start - first : start - first + len(data)] = data
        device.write(base + first, bytes(whole))
        self.written.mark(region)

    def _read(self, offset: int, length: int) -> bytes:
        parts, size = [], self._region
        while length:
            region = offset // size
            count = min(length, (region + 1) * size - offset)
            if region in self.written:
                assert self.device is not None
                parts.append(_aligned(self.device, offset, count))
            else:
                count = self._read_store(parts, offset, count)
            offset, length = offset + count, length - count
        return b"".join(parts)

    def _read_store(self, parts: list[bytes], offset: int, length: int) -> int:
        """What the store shows where it was not written, up to the end of a region; how much that was."""
        stores = self._site.stores
        extents, covered, _ = stores.resolve(self.store, offset, length)
        for slot, at, count in extents:
            parts.append(_aligned(stores.device(slot), at, count) if slot else bytes(count))
        return covered

    # ---- what it leaves

    def settle(self, into: xxhash.xxh3_128) -> None:
        """What was written becomes durable, in not too many runs: what lies between near ones is filled. Where it is
        and what it is enters the digest.

        Raises:
            OSError: the device.
        """
        runs = list(self.written.runs())
        gap = 1
        while len(runs) > MOST_RUNS:
            for (first, count), (following, _) in pairwise(runs):
                if following - first - count <= gap:
                    for region in range(first + count, following):
                        self._write(region, 0, memoryview(self._read(region * self._region, self._region)))
            runs, gap = list(self.written.runs()), gap * 2
        self.runs, size = runs, self._region
        into.update(self.store.to_bytes(8, "little"))
        for first, count in runs:
            into.update(first.to_bytes(8, "little") + count.to_bytes(8, "little"))
            for offset in range(first * size, (first + count) * size, PIECE):
                into.update(self._read(offset, min(PIECE, (first + count) * size - offset)))
        if self.device is not None:
            self.device.flush()  # rule work_flush


def _aligned(device: Device, offset: int, length: int) -> bytes:
    sector = device.sector_size
    first, end = offset // sector * sector, -(-(offset + length) // sector) * sector
    data = device.read(first, end - first)
    return data if end - first == length else data[offset - first : offset - first + length]


class Done(NamedTuple):
    """What came of the plug-ins of an operation here.

    ``outcomes``: of each; what it is to be everywhere if this site ``decides``. ``benches``: what is swapped in.
    ``differs``: why this site has not the result of all of them. ``told``: of each, by the one that decided.
    """

    outcomes: list[Outcome]
    decides: bool
    benches: list[Bench]
    differs: str = ""
    told: Sequence[Outcome] = ()

    @property
    def decided(self) -> list[Outcome]:
        """What it is to be everywhere: as this site says, or as it was told."""
        return self.outcomes if self.decides else list(self.told)

    def place(self, slots: Sequence[int]) -> list[notes.Worked]:
        """What the note says, with each bench in its slot."""
        return [
            notes.Worked(bench.store, bench.size, notes.Placed(bench.number, slot, bench.path, True), bench.runs)
            for bench, slot in zip(self.benches, slots, strict=True)
        ]

    def devices(self) -> dict[str, Device]:
        """By path; they are the caller's."""
        return {bench.path: bench.take_device() for bench in self.benches}


NOTHING = Done([], False, [])


class _Job:
    """One plug-in of the operation at hand."""

    def __init__(self, work: Perform, told: Outcome | None) -> None:
        self.work, self.told = work, told
        self.benches: list[Bench] = []
        self.run: Run | None = None
        self.problem = ""  # why it is not run, or came to nothing
        self.outcome = Outcome()

    def drop(self) -> None:
        for bench in self.benches:
            bench.drop()
        self.benches = []


class Workshop:
    """Where the plug-ins of one operation are run, at one site. Called by the applier's thread."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._position = 0  # of the operation at hand; 0: none
        self._jobs: list[_Job] = []
        self._done: tuple[int, Done] = 0, NOTHING  # of the operation that stood at that position

    @property
    def is_busy(self) -> bool:
        """Whether plug-ins are under way: they are to be asked again."""
        return bool(self._jobs)

    def done(self, works: list[Perform], position: int, lsn: int, *, wait: bool) -> Done | None:
        """What came of the plug-ins of the operation at this position; None: they are not done, ask again. The same
        until :meth:`forget`.

        Args:
            wait: it must be done when this returns.
        """
        if self._done[0] == position:
            return self._done[1]  # its operation found no room
        if self._position != position:
            self.abandon()
            self._begin(works, lsn)
            self._position = position
        for job in self._jobs:
            if job.run is not None and not job.run.is_over():
                if not wait:
                    return None
                job.run.wait()
        for job in self._jobs:
            self._judge(job)
        jobs, self._jobs, self._position = self._jobs, [], 0
        benches = [bench for job in jobs for bench in job.benches]
        decides = all(job.told is None for job in jobs)
        differs = "" if decides else next((job.problem for job in jobs if job.problem), "")
        told = [job.told for job in jobs if job.told is not None]
        done = Done([job.outcome for job in jobs], decides, benches, differs, told)
        self._done = position, done
        return done

    def forget(self) -> None:
        """The operation is performed."""
        self._done = 0, NOTHING

    def abandon(self) -> None:
        """What is under way is given up: nothing of it was said, and it is run again when it is asked for."""
        jobs, self._jobs, self._position = self._jobs, [], 0
        for bench in self._done[1].benches:
            bench.drop()
        self.forget()
        for job in jobs:
            if job.run is not None:
                job.run.end()
            job.drop()

    def _begin(self, works: list[Perform], lsn: int) -> None:
        decided = self.site.here.decided
        told: list[Outcome | None] = [None] * len(works)
        if decided is not None and decided.lsn == lsn:
            told = [*decided.outcomes]
        if len(told) != len(works):
            raise UsageError(f"{len(told)} outcomes were told of the {len(works)} plug-ins of the operation at {lsn}")
        self._jobs = [_Job(work, outcome) for work, outcome in zip(works, told, strict=True)]
        for job in self._jobs:
            if job.told is None or not job.told.failed:
                self._start(job, lsn)

    def _start(self, job: _Job, lsn: int) -> None:
        site, work = self.site, job.work
        stores = dict.fromkeys(scope.store for scope in (*work.reads, *work.writes))
        try:
            for store in stores:
                bench = Bench(site, store, work.reads, work.writes)
                job.benches.append(bench)
                bench.open()
        except (OSError, PyreplError) as error:
            job.problem = _words(f"no room to perform it: {error}")
            job.drop()
            return
        job.run = site.plugins.begin(work, lsn, {bench.name: bench for bench in job.benches})

    def _judge(self, job: _Job) -> None:
        """What came of it, and whether that is what it is to be."""
        run, told = job.run, job.told
        if run is not None:
            job.problem = _words(run.error)
            if not job.problem:
                try:
                    state = xxhash.xxh3_128()
                    for bench in job.benches:
                        bench.settle(state)
                    job.outcome = Outcome("", run.said, state.digest())
                except OSError as error:
                    job.problem = _words(f"{error}")
        if told is None:
            if job.problem:
                job.outcome = Outcome(job.problem)
        elif told.failed:
            job.outcome = told
        elif not job.problem and job.outcome != told:
            what = "digest" if job.outcome.said != told.said else "result"
            why = "" if self.site.here.consistent else ": what it read was not"  # a resync is under way
            job.problem = f"its {what} is not the primary's{why}"
        keep = not job.problem and not job.outcome.failed
        kept = [bench for bench in job.benches if keep and bench.written]
        for bench in job.benches:
            if bench not in kept:
                bench.drop()
        job.benches = kept


def _words(text: str) -> str:
    """As it may travel: one line, not long."""
    return " ".join(text.split()).encode(errors="replace").decode()[:MOST_FAILED]


__all__ = ["MOST_RUNS", "NOTHING", "Bench", "Done", "Workshop"]
