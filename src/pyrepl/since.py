"""What changed at a primary since one of its secondaries was last known to be consistent ("changed since").

A secondary that takes over while it is not consistent goes back to its protective snapshot, which is no older than
that. So this is what the old primary may differ in when it is led back, beside what the new one has changed.

    runs      (LSN, regions by store), ascending: what the events up to that LSN may have changed, after the run before
    position  of the journal, behind the last of them: what follows is read there when somebody asks

Decides how precise it stays: some runs, each a superset of the truth. Must not know what a secondary lacks (``ledger``)
nor who asks (``roles``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from pyrepl import items, operations
from pyrepl._core import layout, pump
from pyrepl._core.regions import RegionMap
from pyrepl.catalog import Catalog, Store
from pyrepl.errors import check
from pyrepl.knowledge import Piece, kept_operation, moves, passed
from pyrepl.operations import Copied, CopiedImage, Operation, Resized, Reworked

Changed = dict[int, RegionMap]
Run = tuple[int, Changed]
MOST_KEPT = 8  # runs that a checkpoint holds: they are as exact as it is long


class SinceRecord(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """In a checkpoint."""

    lsn: int
    position: int
    stores: list[Store]
    next_id: int
    runs: list[tuple[int, dict[int, bytes]]]


class Since:
    """What changed after the event ``lsn``.

    Args:
        site: the engine of the group (see ``site``).
        position: of the journal, behind that event and what ``runs`` tell.
        catalog: of the primary, there; becomes this one's.
    """

    def __init__(self, site: Any, lsn: int, position: int, catalog: Catalog, runs: Iterable[Run] = ()) -> None:
        self.site = site
        self.lsn = lsn
        self.position = position
        self.runs: list[Run] = list(runs)
        self.is_lost = False  # what came beside the order, from a primary of this site's, is not told by it
        self._catalog = catalog
        self._lsn = max([lsn, *(upto for upto, _ in self.runs)])  # that was read up to

    @classmethod
    def after(cls, site: Any, lsn: int, position: int, catalog: Catalog, backlog: Iterable[Piece]) -> Since:
        """From what a link has to send yet: the pieces of its backlog, and what follows in the journal."""
        since = cls(site, lsn, position, catalog.copy())
        for piece in backlog:
            if piece.operation:
                since.runs.append((piece.upto, since._performed(kept_operation(piece.operation))))
            else:
                since.runs.append((piece.upto, {store: regions.copy() for store, regions in piece.regions.items()}))
            since.position, since._lsn = piece.position, piece.upto
        return since

    def copy(self) -> Since:
        """An independent one that tells the same now."""
        runs = [(upto, {store: regions.copy() for store, regions in changed.items()}) for upto, changed in self.runs]
        other = Since(self.site, self.lsn, self.position, self._catalog.copy(), runs)
        other.is_lost, other._lsn = self.is_lost, self._lsn
        return other

    def take(self, until: int, *, most: int = MOST_KEPT) -> None:
        """Reads the journal on to the position ``until``: it may be dropped up to there.

        Args:
            most: runs that are left then.
        """
        if self.position < until:
            step = max(1, (until - self.position) // max(1, most // 2))
            while self.position < until and not self.is_lost:
                self._read(min(self.position + step, until))
            self.position = max(self.position, until)
        while len(self.runs) > most:
            self.runs = [_together(*pair) for pair in zip(self.runs[::2], [*self.runs[1::2], (0, {})], strict=False)]

    def changed(self, lsn: int) -> Changed:
        """What the runs say that may have changed after this LSN."""
        found: Run = (0, {})
        for run in self.runs:
            if run[0] > lsn:
                found = _together(found, run)
        return found[1]

    def tail(self, until: int) -> items.Tail | None:
        """All that changed up to the position ``until``, as it is told to who leads then; None: it is too long."""
        whole = self.copy()  # this one may be asked again, when more has changed
        whole.take(until, most=items.MOST_RUNS)
        told = [
            items.Run(upto, {store: changed.encode() for store, changed in run.items()}) for upto, run in whole.runs
        ]
        tail = items.Tail(self.lsn, told)
        return None if whole.is_lost or tail.length > items.MOST_TAIL else tail

    # ---- checkpoints

    def save(self, most: int) -> SinceRecord | None:
        """What a checkpoint holds of it. None: it is longer than ``most`` bytes, even as one run, or lost."""
        if self.is_lost:
            return None
        while True:
            runs = [(upto, {store: regions.encode() for store, regions in run.items()}) for upto, run in self.runs]
            if sum(len(data) for _, run in runs for data in run.values()) <= most:
                return SinceRecord(self.lsn, self.position, list(self._catalog), self._catalog.next_id, runs)
            if len(self.runs) == 1:
                return None
            self.runs = [_together(*pair) for pair in zip(self.runs[::2], [*self.runs[1::2], (0, {})], strict=False)]

    @classmethod
    def restore(cls, site: Any, record: SinceRecord) -> Since:
        """As its record says."""
        catalog = Catalog({store.id: store for store in record.stores}, record.next_id)
        runs = [(upto, {store: RegionMap.decode(data) for store, data in run.items()}) for upto, run in record.runs]
        return cls(site, record.lsn, record.position, catalog, runs)

    # ---- inside

    def _read(self, until: int) -> None:
        """One run more: what stands in the journal up to there."""
        changed: Changed = {}
        upto = 0
        while self.position < until:
            entry = self.site.window.entry(self.position)
            check(entry is not None, "the log ends before what changed since was read")
            assert entry is not None
            with entry:
                if entry.batch_kind == layout.BATCH_EVENTS:
                    upto = entry.last_lsn
                    for store in entry.stores():
                        if store in self._catalog:
                            size = self._catalog[store].size // self.site.region_size
                            pump.enter(entry, store, changed.setdefault(store, RegionMap(size)), self.site.region_size)
                elif entry.batch_kind == layout.BATCH_OPERATION:
                    upto = entry.last_lsn
                    done = self._performed(operations.decode(bytes(entry.body)))
                    changed = _together((0, changed), (upto, done))[1]
                else:
                    beside = passed(entry, self.site.region_size)
                    if beside is not None and moves(beside, self._lsn):
                        self.is_lost = True
                        return  # stores may be others from here on
                self._lsn = max(self._lsn, upto)
                self.position = entry.next_position
        if upto:
            self.runs.append((upto, changed))

    def _performed(self, operation: Operation) -> Changed:
        """What an operation may have changed: everything that it writes. Moves the catalog on."""
        catalog, region_size = self._catalog, self.site.region_size
        operation.apply(catalog)
        changed: Changed = {}
        effects = operation.effects(region_size)
        if self.site.role == "secondary":  # which performs some early
            effects = [*effects, *operations.effects_there(operation, region_size)]
        for effect in effects:
            match effect:
                case Copied(target, _, first, count) | CopiedImage(target, _, first, count) if target in catalog:
                    regions = changed.setdefault(target, RegionMap(catalog[target].size // region_size))
                    regions.mark(first, max(0, min(count, regions.size - first)))
                case Reworked(_, writes):
                    for target, first, count in writes:
                        if target in catalog:
                            regions = changed.setdefault(target, RegionMap(catalog[target].size // region_size))
                            regions.mark(first, max(0, min(count, regions.size - first)))
                case Resized(store, size):
                    changed[store] = RegionMap(size, marked=size > 0)
        return changed


def _together(one: Run, other: Run) -> Run:
    """Two runs as one. A store that was resized between them is told whole by that."""
    regions = {store: changed.copy() for store, changed in one[1].items()}
    for store, changed in other[1].items():
        known = regions.setdefault(store, RegionMap(changed.size))
        known.resize(max(known.size, changed.size))
        known.union(changed)
    return max(one[0], other[0]), regions
