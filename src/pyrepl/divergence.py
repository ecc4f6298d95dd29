"""The algebra of divergence (model, "The link: a position and a divergence map"): how the set of regions in which a
secondary may differ changes with what is performed there, folded, or copied.

Decides which regions leave and enter, and when a copied region leaves. Pure: must not know the journal, the wire, nor
who asks. Every map is a superset of the truth: a rule may mark too much, never too little.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np

from pyrepl._core import layout
from pyrepl._core.regions import RegionMap
from pyrepl.operations import Copied, CopiedImage, Created, Deleted, Effect, Resized, Reworked, Scope

Runs = list[tuple[int, int]]

_RECORD = np.dtype([("kind", "u1"), ("flags", "u1"), ("reserved0", "<u2"), ("store", "<u4"), ("offset", "<u8"),
                    ("length", "<u4"), ("crc", "<u4"), ("payload", "<u4"), ("reserved1", "<u4")])
_TRAVEL = 128  # bytes of pr_travel, after which the descriptors begin


class Departure(NamedTuple):
    """These regions were copied as of ``lsn`` and leave when the position has come that far."""

    lsn: int
    store: int
    runs: Runs


def descriptors(head: memoryview | bytes) -> np.ndarray:
    """The descriptors of a batch (travel part and descriptors, judged before) as a structured array, without a copy."""
    return np.frombuffer(head, dtype=_RECORD, offset=_TRAVEL)


def covered(head: memoryview | bytes, region_size: int) -> dict[int, Runs]:
    """Which whole regions a batch of events overwrites, by store: only these become equal by streaming it."""
    records = descriptors(head)
    offset = records["offset"]
    first = (offset + np.uint64(region_size - 1)) // np.uint64(region_size)
    last = (offset + records["length"]) // np.uint64(region_size)
    result: dict[int, Runs] = {}
    for i in np.nonzero(last > first)[0].tolist():
        result.setdefault(int(records["store"][i]), []).append((int(first[i]), int(last[i] - first[i])))
    return result


def touched(head: memoryview | bytes, region_size: int, stores: Collection[int]) -> dict[int, Runs]:
    """Which regions of these stores a batch of events writes, whole or in part."""
    records = descriptors(head)
    result: dict[int, Runs] = {}
    for i in np.nonzero(np.isin(records["store"], list(stores)))[0].tolist():
        offset, length = int(records["offset"][i]), int(records["length"][i])
        first = offset // region_size
        count = (offset + length - 1) // region_size - first + 1
        result.setdefault(int(records["store"][i]), []).append((first, count))
    return result


class Divergence:
    """D of one secondary as of one place in the stream: which stores are there, in which regions each may differ, and
    which of those leave later."""

    def __init__(self, maps: dict[int, RegionMap] | None = None) -> None:
        self.maps: dict[int, RegionMap] = maps if maps is not None else {}
        self.leaving: dict[int, RegionMap] = {}  # the regions that some departure names
        self.departures: deque[Departure] = deque()  # LSNs never fall: a copy is read after those before it

    def copy(self) -> Divergence:
        """An independent one that is equal now."""
        other = Divergence({store: regions.copy() for store, regions in self.maps.items()})
        other.leaving = {store: regions.copy() for store, regions in self.leaving.items()}
        other.departures = deque(self.departures)
        return other

    # -- asked

    def __bool__(self) -> bool:
        return any(self.maps.values())

    def count(self) -> int:
        """Regions that may differ, in all stores."""
        return sum(regions.count() for regions in self.maps.values())

    def is_empty(self) -> bool:
        """Whether nothing differs and nothing is on its way out."""
        return not self and not self.departures

    def next_run(self, store: int, start: int, most: int) -> tuple[int, int] | None:
        """The next run at or after ``start``, at most ``most`` regions, that differs and is not on its way out."""
        regions, leaving = self.maps.get(store), self.leaving.get(store)
        while regions is not None and start < regions.size:
            run = regions.next_run(start, most)
            gap = leaving.next_run(run[0]) if run is not None and leaving is not None else None
            if run is None or gap is None or gap[0] >= run[0] + run[1]:
                return run
            if gap[0] > run[0]:
                return run[0], gap[0] - run[0]
            start = gap[0] + gap[1]
        return None

    # -- a store as a whole

    def add(self, store: int, regions: int, *, differs: bool) -> None:
        """A store is there now (made, created, matched): all of it differs, or nothing."""
        self.remove(store)
        self.maps[store] = RegionMap(regions, marked=differs)

    def remove(self, store: int) -> None:
        """A store is gone, its departures with it."""
        self.maps.pop(store, None)
        self._cancel_store(store)

    def enter_all(self) -> None:
        """Every region of every store may differ: nothing is known."""
        for store, regions in self.maps.items():
            if regions.size:
                regions.mark(0, regions.size)
            self._cancel_store(store)

    # -- what happened

    def enter(self, store: int, other: RegionMap) -> None:
        """These regions changed at one site only (folded): they differ, and do not leave by an earlier copy."""
        regions = self.maps.get(store)
        if regions is not None:
            regions.union(other)
            if store in self.leaving:
                self._cancel(store, other)

    def overwritten(self, runs: dict[int, Runs]) -> None:
        """These whole regions were overwritten alike at both sites."""
        for store, store_runs in runs.items():
            regions = self.maps.get(store)
            if regions:
                for first, count in store_runs:
                    if first < regions.size:
                        regions.clear(first, min(count, regions.size - first))

    def perform(self, effects: Iterable[Effect], *, refused: bool = False) -> None:
        """An operation was performed at both sites at the same place; ``refused``: at the secondary without what it
        copies from images, or with another result of a plug-in."""
        for effect in effects:
            match effect:
                case Created(store, regions, zero):
                    self.add(store, regions, differs=not zero)
                case Copied(target, source, first, count):
                    self._mirror(target, source, first, count)
                case CopiedImage(target, _, first, count) if refused:
                    self._refuse(target, first, count)
                case CopiedImage(target, _, first, count):  # the same digest: equal, as zeros are
                    self._mirror(target, layout.SOURCE_ZERO, first, count)
                case Reworked(reads, writes):
                    self._rework(reads, writes, refused=refused)
                case Resized(store, regions):
                    self._resize(store, regions)
                case Deleted(store):
                    self.remove(store)

    def copied(self, store: int, runs: Runs, lsn: int) -> None:
        """These regions hold what the primary showed at ``lsn``: until the position is there they differ, then they
        leave."""
        regions = self.maps.get(store)
        if regions is None:
            return
        leaving = self.leaving.setdefault(store, RegionMap(regions.size))
        for first, count in runs:
            regions.mark(first, count)
            leaving.mark(first, count)
        self.departures.append(Departure(lsn, store, runs))

    def arrive(self, position: int) -> None:
        """The position has come to this LSN: what was copied as of it, or before, leaves."""
        while self.departures and self.departures[0].lsn <= position:
            _, store, runs = self.departures.popleft()
            for first, count in runs:
                self.maps[store].clear(first, count)
                self.leaving[store].clear(first, count)

    # -- inside

    def _mirror(self, target: int, source: int, first: int, count: int) -> None:
        regions = self.maps.get(target)
        if regions is None:
            return
        count = max(0, min(count, regions.size - first))
        other = self.maps.get(source)
        if not count:
            return
        if source == layout.SOURCE_ZERO:
            regions.clear(first, count)
        elif other is None:  # a source that is not there at the secondary: nothing is known
            regions.mark(first, count)
        elif other is not regions:
            regions.copy_range(other, first, count)
        if target in self.leaving:
            scope = RegionMap(regions.size)
            scope.mark(first, count)
            self._cancel(target, scope)

    def _touches(self, scopes: Iterable[Scope]) -> bool:
        """Whether something of these regions may differ, or is not there."""
        for store, first, count in scopes:
            regions = self.maps.get(store)
            if regions is None or first + count > regions.size:
                return True
            run = regions.next_run(first) if first < regions.size else None
            if run is not None and run[0] < first + count:
                return True
        return False

    def _rework(self, reads: tuple[Scope, ...], writes: tuple[Scope, ...], *, refused: bool) -> None:
        """Both sites made it from what they show themselves. Where that is the same, so is the result; but what a copy
        brings of a later moment is not what this made of it."""
        differs = refused or self._touches((*reads, *writes))
        for store, first, count in writes:
            if differs:
                self._refuse(store, first, count)

    def _refuse(self, target: int, first: int, count: int) -> None:
        regions = self.maps.get(target)
        if regions is not None and first < regions.size:
            scope = RegionMap(regions.size)
            scope.mark(first, min(count, regions.size - first))
            self.enter(target, scope)

    def _resize(self, store: int, size: int) -> None:
        regions = self.maps.get(store)
        if regions is None:
            return
        if size < regions.size and store in self.leaving:
            beyond = RegionMap(regions.size)
            beyond.mark(size, regions.size - size)
            self._cancel(store, beyond)
        regions.resize(size)
        if store in self.leaving:
            self.leaving[store].resize(size)

    def _cancel_store(self, store: int) -> None:
        if self.leaving.pop(store, None) is not None:
            self.departures = deque(departure for departure in self.departures if departure.store != store)

    def _cancel(self, store: int, regions: RegionMap) -> None:
        """These regions changed again at one site: no earlier copy makes them equal."""
        kept: deque[Departure] = deque()
        for departure in self.departures:
            if departure.store == store:
                runs = [part for run in departure.runs for part in _without(run, regions)]
                if not runs:
                    continue
                departure = Departure(departure.lsn, store, runs)
            kept.append(departure)
        self.departures = kept
        self.leaving[store].subtract(regions)


def _without(run: tuple[int, int], regions: RegionMap) -> Runs:
    """The parts of a run that are not marked."""
    parts: Runs = []
    first, end = run[0], run[0] + run[1]
    while first < end:
        marked = regions.next_run(first) if first < regions.size else None
        if marked is None or marked[0] >= end:
            parts.append((first, end - first))
            break
        if marked[0] > first:
            parts.append((first, marked[0] - first))
        first = marked[0] + marked[1]
    return parts
