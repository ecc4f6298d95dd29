"""Where what a store showed at an earlier LSN can be found now: walked backwards through the order. Pure.

A *base* is a store of which a readable copy was taken at a known LSN. Going back from there, these hold as of each
place:

    shown[X][Z]   regions in which the copy of Z shows what X showed there. Of X itself: all that nothing has touched
    need[X]       regions of the result whose content, there, was that of X

    going back over               shown                                need
    a write to (X, r)             r leaves shown[X]                    covered whole: r is found; else it stays
    copy(Y := X) on a scope       shown[X] gains shown[Y] there,       what Y needed there, X needs; of zeros: found
                                  Y loses it
    Y created                     Y is forgotten                       zeros: found; else it stays
    Y resized                     what was cut off is shown by nobody  what was added is zeros: found

An image is a base that is as old as the order, for it never changes.

A region is found where a base shows it, where it is zeros, or where one batch covers it: from there on the writes of
the history make it what it was. Each such place is a step. At any place one store holds the ancestor of a region, so
the steps fill one result and an operation in between needs no copy: it only says whose writes count from there on.

``Reach`` is the same walk for all LSNs at once: from which one on everything can be found.
Decides this; must not know how records are read (``history``), nor who builds the result (``rewinding``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from pyrepl._core.regions import RegionMap
from pyrepl.catalog import ImageKey
from pyrepl.divergence import descriptors
from pyrepl.history import Batch
from pyrepl.operations import Copied, CopiedImage, Created, Deleted, Effect, Resized, Reworked


class Begin(NamedTuple):
    """After event ``lsn`` these regions of the result are what ``store`` showed: the copy of ``base`` shows it; 0: they
    are zeros; None: whatever is there, the batch that follows covers them."""

    lsn: int
    store: int
    base: int | None
    regions: RegionMap


class Pass(NamedTuple):
    """At event ``lsn`` these regions of the result pass from one store to another: from here on the writes of
    ``target`` count."""

    lsn: int
    source: int
    target: int
    regions: RegionMap


_MADE = -(1 << 32)  # below the numbers of images


class Base(NamedTuple):
    """A readable copy of a store as of ``lsn``."""

    lsn: int
    regions: int


class Provenance:
    """Of one volume as of one LSN.

    Args:
        volume: its number.
        lsn: everything up to it counts.
        bases: by store.
        most: regions of the longest store that there was.
        region_size: bytes.
        images: the number of each image that the order copies from, which is that of no store.
    """

    def __init__(
        self, volume: int, lsn: int, bases: dict[int, Base], most: int, region_size: int,
        images: dict[ImageKey, int] | None = None,
    ) -> None:
        self.volume, self.lsn, self._images = volume, lsn, images or {}
        self.steps: list[Begin | Pass] = []  # in the order of the walk, the last event first
        self.need: dict[int, RegionMap] = {}
        self.regions = bases[volume].regions  # of the volume, until the walk has come to the LSN; 0: not known
        self.created_at = 0  # LSN of the operation that made the volume, if the walk has passed it
        self._bases, self._most, self._region_size = bases, most, region_size
        self._begun: set[int] = set()  # bases whose LSN was passed
        self._touched: dict[int, RegionMap] = {}
        self._shown: dict[int, dict[int, RegionMap]] = {}
        self._asked = False  # the LSN was passed
        self._made = _MADE  # the next number for what a plug-in has made, which is that of no store

    # ---- the walk

    def begin(self) -> None:
        """The walk has come to the LSN: the volume is asked for."""
        self._asked = True
        self._require(self.volume, self._some(0, self.regions))
        self._find(self.volume, self.lsn)

    @property
    def is_asking(self) -> bool:
        return self._asked

    @property
    def is_found(self) -> bool:
        """Whether the walk need not go on."""
        return self._asked and not any(self.need.values())

    def reach(self, lsn: int) -> None:
        """Everything after ``lsn`` was walked: bases taken there begin to show."""
        for store, base in self._bases.items():
            if store not in self._begun and base.lsn >= lsn:
                self._begun.add(store)
                if base.regions < self._most:
                    self._touch(store, self._some(base.regions, self._most - base.regions))

    def write(self, batch: Batch, first: int, last: int) -> None:
        """Back over the events of a batch with LSNs from ``first`` to ``last``, all of them on the same side of the LSN
        that is asked for."""
        records = descriptors(batch.head)[first - batch.first_lsn : last - batch.first_lsn + 1]
        size = np.uint64(self._region_size)
        for store in np.unique(records["store"]).tolist():
            mine = records[records["store"] == store]
            begin, end = mine["offset"], mine["offset"] + mine["length"].astype(np.uint64)
            start = begin // size
            touched = np.stack([start, (end - np.uint64(1)) // size - start + np.uint64(1)], axis=1)
            self._wrote(store, self._marked(touched), self._marked(_covered(begin, end, size)), first, last)

    def operate(self, lsn: int, effects: list[Effect]) -> None:
        """Back over an operation."""
        for effect in reversed(effects):
            match effect:
                case Copied(target, source, start, count):
                    self._copied(lsn, target, source, self._some(start, count))
                case CopiedImage(target, image, start, count):
                    self._copied(lsn, target, self._images[image], self._some(start, count))
                case Reworked(_, writes):
                    for scope in writes:  # as if copied from a store that nobody has and no event made
                        self._copied(lsn, scope.store, self._made, self._some(scope.first, scope.count))
                        self._made -= 1
                case Created(store, _, zero):
                    self._created(lsn, store, zero)
                case Resized(store, regions, before):
                    self._resized(lsn, store, before, regions)
                case Deleted():
                    pass  # no base is left of what was deleted

    # ---- inside

    def _some(self, first: int, count: int) -> RegionMap:
        regions = RegionMap(self._most)
        if first < self._most:
            regions.mark(first, min(count, self._most - first))
        return regions

    def _marked(self, runs: np.ndarray) -> RegionMap:
        regions = RegionMap(self._most)
        regions.mark_ranges(self._clip(runs).data)
        return regions

    def _clip(self, runs: np.ndarray) -> np.ndarray:
        """Without what lies beyond the longest store that counts."""
        runs = runs[runs[:, 0] < self._most]
        runs[:, 1] = np.minimum(runs[:, 1], np.uint64(self._most) - runs[:, 0])
        return np.ascontiguousarray(runs)

    def _wrote(self, store: int, touched: RegionMap, whole: RegionMap, first: int, last: int) -> None:
        self._touch(store, touched)
        need = self.need.get(store)
        if need and whole:
            found = common(need, whole)
            if found:
                need.subtract(found)
                self._found(Begin(first - 1, store, None, found))

    def _touch(self, store: int, regions: RegionMap) -> None:
        if store in self._begun:
            self._touched.setdefault(store, RegionMap(self._most)).union(regions)
        for shown in self._shown.get(store, {}).values():
            shown.subtract(regions)

    def _copied(self, lsn: int, target: int, source: int, scope: RegionMap) -> None:
        if source:
            for base, regions in self._showing(target):
                shared = common(scope, regions) if regions is not None else scope.copy()
                if regions is None and target in self._touched:
                    shared.subtract(self._touched[target])
                if shared:
                    self._shown.setdefault(source, {}).setdefault(base, RegionMap(self._most)).union(shared)
        self._touch(target, scope)
        passing = self._hand_over(target, scope)
        if passing is not None and source:
            self._found(Pass(lsn, source, target, passing))
            self._require(source, passing, heir=target)
        elif passing is not None:
            self._found(Begin(lsn, target, 0, passing))
        self._find(source, lsn - 1)

    def _created(self, lsn: int, store: int, zero: bool) -> None:
        need = self.need.get(store)
        if need and zero:
            found = need.copy()
            need.subtract(found)
            self._found(Begin(lsn, store, 0, found))
        if store == self.volume:
            self.created_at = lsn
        self._begun.discard(store)
        self._touched.pop(store, None)
        self._shown.pop(store, None)

    def _resized(self, lsn: int, store: int, before: int, after: int) -> None:
        if not before:
            self._lose(lsn, store)
            return
        if store == self.volume and not self._asked:
            self.regions = before
        need = self.need.get(store)
        if before < after and need:
            zeros = common(need, self._some(before, after - before))
            if zeros:
                need.subtract(zeros)
                self._found(Begin(lsn, store, 0, zeros))
        elif before > after:
            cut = self._some(after, before - after)
            self._touch(store, cut)
            self._cut(lsn, store, cut)

    def _lose(self, lsn: int, store: int) -> None:
        """How long it was before is not known: nothing of it can be told."""
        self._touch(store, self._some(0, self._most))
        if store == self.volume and not self._asked:
            self.regions = 0

    def _showing(self, store: int) -> Iterable[tuple[int, RegionMap | None]]:
        """The bases that show something of a store; None: its own copy, where nothing has touched it."""
        if store in self._begun:
            yield store, None
        yield from list(self._shown.get(store, {}).items())

    def _find(self, store: int, lsn: int) -> None:
        """What is needed of a store after event ``lsn`` and a base shows."""
        need = self.need.get(store)
        for base, regions in self._showing(store):
            if not need:
                return
            if regions is None:
                found = need.copy()
                if store in self._touched:
                    found.subtract(self._touched[store])
            else:
                found = common(need, regions)
            if found:
                need.subtract(found)
                self._found(Begin(lsn, store, base, found))

    # ---- what differs for all LSNs at once

    def _require(self, store: int, regions: RegionMap, heir: int | None = None) -> None:
        self.need.setdefault(store, RegionMap(self._most)).union(regions)

    def _hand_over(self, target: int, scope: RegionMap) -> RegionMap | None:
        """What is needed of the target of a copy, and is not any more; None: nothing."""
        need = self.need.get(target)
        if not need:
            return None
        passing = common(need, scope)
        need.subtract(passing)
        return passing if passing else None

    def _cut(self, lsn: int, store: int, regions: RegionMap) -> None:
        """A store had these regions before event ``lsn``, and then no more."""

    def _found(self, step: Begin | Pass) -> None:
        self.steps.append(step)


class Reach(Provenance):
    """From which LSN on all of a volume can be found. ``since[X][r]``: before that LSN region r, X's then, is not found
    so far."""

    def __init__(
        self, volume: int, lsn: int, bases: dict[int, Base], most: int, region_size: int,
        images: dict[ImageKey, int] | None = None,
    ) -> None:
        super().__init__(volume, lsn, bases, most, region_size, images)
        self._since: dict[int, np.ndarray] = {}

    def first(self) -> int:
        """The first LSN of those from which on it can; all up to ``lsn`` are covered then."""
        first = self.created_at
        for store, need in self.need.items():
            since = self._since.get(store)
            for start, count in need.runs():
                first = max(first, int(since[start : start + count].max()) if since is not None else self.lsn)
        return first

    def begin(self) -> None:
        self._asked = True

    @property
    def is_found(self) -> bool:
        return False

    def _wrote(self, store: int, touched: RegionMap, whole: RegionMap, first: int, last: int) -> None:
        super()._wrote(store, touched, whole, first, last)
        if store == self.volume and self._asked:
            self._enter(store, touched, last)

    def _copied(self, lsn: int, target: int, source: int, scope: RegionMap) -> None:
        super()._copied(lsn, target, source, scope)
        if target == self.volume and self._asked:
            self._enter(target, scope, lsn)

    def _lose(self, lsn: int, store: int) -> None:
        super()._lose(lsn, store)
        if store == self.volume:
            self._enter(store, self._some(0, self._most), lsn)

    def _cut(self, lsn: int, store: int, regions: RegionMap) -> None:
        if store == self.volume and self._asked:
            self._enter(store, regions, lsn)

    def _enter(self, store: int, regions: RegionMap, lsn: int) -> None:
        """What a volume showed there before event ``lsn`` is to be found."""
        need = self.need.setdefault(store, RegionMap(self._most))
        new = regions.copy()
        new.subtract(need)
        since = self._times(store)
        for start, count in new.runs():
            since[start : start + count] = lsn
        need.union(new)

    def _require(self, store: int, regions: RegionMap, heir: int | None = None) -> None:
        super()._require(store, regions)
        if heir is not None:
            into, of = self._times(store), self._times(heir)
            for start, count in regions.runs():
                np.maximum(into[start : start + count], of[start : start + count], out=into[start : start + count])

    def _times(self, store: int) -> np.ndarray:
        return self._since.setdefault(store, np.zeros(self._most, np.uint64))  # untouched pages take no memory

    def _found(self, step: Begin | Pass) -> None:
        if isinstance(step, Begin):
            since = self._since.get(step.store)
            if since is not None:
                for start, count in step.regions.runs():
                    since[start : start + count] = 0


def _covered(begin: np.ndarray, end: np.ndarray, size: np.uint64) -> np.ndarray:
    """The regions that these ranges of bytes cover whole, all together: runs."""
    order = np.argsort(begin, kind="stable")
    begin, end = begin[order], np.maximum.accumulate(end[order])
    new = np.ones(len(begin), bool)
    new[1:] = begin[1:] > end[:-1]  # what overlaps or touches is one range
    last = np.append(np.flatnonzero(new)[1:] - 1, len(begin) - 1)
    first, until = (begin[new] + size - np.uint64(1)) // size, end[last] // size
    some = until > first
    return np.stack([first[some], until[some] - first[some]], axis=1)


def common(a: RegionMap, b: RegionMap) -> RegionMap:
    """What is marked in both."""
    without, both = a.copy(), a.copy()
    without.subtract(b)
    both.subtract(without)
    return both
