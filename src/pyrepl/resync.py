"""Resync: which regions are copied next, and how much at a time.

Decides the order (stores by id, regions upwards, round and round) and the size of one step. Must not know when a step
may be sent (``link``), nor how regions are read (``_core.pump``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from pyrepl._core import layout
from pyrepl.catalog import Store
from pyrepl.divergence import Divergence, Runs


class Step(NamedTuple):
    """Runs of regions of one store, to be read and sent as one batch."""

    store: int
    runs: Runs
    size: int  # of the store when this was decided, bytes: what was read is void if it has changed


class Walk:
    """Goes round the regions that differ."""

    def __init__(self, region_size: int) -> None:
        self.region_size = region_size
        # No more regions than fit one batch, even if each becomes a record of its own with its data.
        self.most = min(layout.MAX_PAYLOAD // region_size, layout.MAX_RECORDS)
        self._store = 0
        self._region = 0

    def next(
        self, divergence: Divergence, stores: Iterable[Store], size_now: Callable[[int], int | None], most: int
    ) -> Step | None:
        """The next step, or None if nothing can be copied now.

        Args:
            divergence: as of the place in the stream where the copy would stand.
            stores: that exist at that place.
            size_now: bytes that a store has at the journal's end (None: it is gone): what is read ends there.
            most: bytes that it may have, if that is more than one region.
        """
        regions = min(self.most, max(1, most // self.region_size))
        order = sorted(stores, key=lambda store: (store.id < self._store, store.id))
        for store in [*order, *order[:1]]:  # the first once more: from region 0 on
            start = self._region if store.id == self._store else 0
            self._store, self._region = store.id, 0
            now = size_now(store.id)
            if now is None:
                continue  # its deletion is on the way
            runs = self._runs(divergence, store.id, start, min(now, store.size) // self.region_size, regions)
            if runs:
                self._region = runs[-1][0] + runs[-1][1]
                return Step(store.id, runs, now)
        return None

    def _runs(self, divergence: Divergence, store: int, start: int, end: int, left: int) -> Runs:
        runs: Runs = []
        while left and start < end:
            run = divergence.next_run(store, start, left)
            if run is None or run[0] >= end:
                break
            first, count = run[0], min(run[1], end - run[0])
            runs.append((first, count))
            start, left = first + count, left - count
        return runs
