"""A rewind from its call to its result: a new volume that shows what a volume showed at an earlier LSN.

    look      the history is walked once, forwards; views of the volume, and of what was copied to or from it, are bases
    trace     back from the views to where every region of the volume can be found (``provenance``)
    build     from there forwards, what no store shows at the LSN is put together in a hidden file of this site
    make      the operation *rewind*: the new store shows what stores show; it is unfinished: nobody finds it by name
    fill      where the file differs from it, it is written: ordinary writes, which reach every site
    complete  the operation *complete*: it is a volume

Nothing is held for it: writers may write over what is read (``history``), and what is lost so is not covered any more.
Whatever ends it early, its store is deleted, its views are closed and its file is removed; after a crash the next start
does that, or whoever is promoted (``abandon_unfinished``). Decides all this. In memory are a piece of a store, a
segment of the log, and a bit for each region of each store that has to do with it.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrepl import operations
from pyrepl._core import layout, view
from pyrepl._core.device import Device
from pyrepl._core.regions import RegionMap
from pyrepl.catalog import UNFINISHED, Catalog, check_new_name, whole
from pyrepl.divergence import descriptors
from pyrepl.errors import NotFound, PyreplError, Refused, UsageError, WaitTimeout
from pyrepl.gallery import READY
from pyrepl.history import Batch, History, Overtaken
from pyrepl.operations import Copied, CopiedImage, Resized, Reworked
from pyrepl.provenance import Base, Begin, Pass, Provenance, Reach, common
from pyrepl.results import TELL_EVERY, OperationResult, Progress, check_timeout

if TYPE_CHECKING:
    from pyrepl.group import Group
    from pyrepl.volume import View

PIECE = 1 << 20  # bytes that are compared, and copied, at a time
MOST_BASES = 24  # views of one rewind
_SECOND = 1_000_000_000
_ALWAYS = (1 << 63) - 1  # an LSN behind all others


def rewind(
    group: Group, volume: int, to: int | datetime, name: str, *, timeout: float | None, progress: Progress | None
) -> OperationResult:
    """See :meth:`pyrepl.Volume.rewind`; the operation that completed the new volume."""
    check_timeout(timeout)
    check_new_name(group.site.end.catalog, name)
    return Rewinding(group, volume, name, timeout, progress).run(to)


def abandon_unfinished(group: Group) -> None:
    """Deletes what a rewind left that did not come to its end: nobody is at it any more."""
    for store in [entry.id for entry in group.site.end.catalog if entry.kind == UNFINISHED]:
        _abandon(group, store)


def _abandon(group: Group, store: int) -> None:
    with contextlib.suppress(PyreplError):  # then the next start does it
        group.operate(lambda catalog: operations.abandon(catalog, store), wait=False)


class Rewinding:
    """One rewind of one volume."""

    def __init__(
        self, group: Group, volume: int, name: str, timeout: float | None, progress: Progress | None
    ) -> None:
        self._group, self._volume, self._name = group, volume, name
        self._site = group.site
        self._region = group.site.region_size
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._timeout, self._progress = timeout, progress
        self._told = 0.0
        self._state: dict[str, Any] = {"phase": "look", "lsn": None, "bytes_done": 0, "bytes_total": None}
        self._views: dict[int, View] = {}
        self._images: dict[int, Device] = {}

    def run(self, to: int | datetime) -> OperationResult:
        """All of it."""
        site = self._site
        end_lsn = self._check_target(to)
        history = History.find(site.journal, self._written)
        with contextlib.ExitStack() as cleanup:
            for store in self._candidates(history):
                with contextlib.suppress(NotFound):  # deleted since
                    view = cleanup.enter_context(self._group.open_view(site.end.catalog[store].name))
                    self._views[store] = view
            if self._volume not in self._views:
                raise NotFound(f"group {self._group.name!r}: the volume was deleted while it was looked at")
            self._extend(history)
            while True:
                try:
                    self._state["lsn"] = lsn = self._lsn_of(to, history, end_lsn)
                    return self._attempt(history, lsn)
                except Overtaken:
                    held = len(history.segments)
                    history.forget_lost()
                    if len(history.segments) == held:
                        raise

    def _attempt(self, history: History, lsn: int) -> OperationResult:
        """With what the log still holds now."""
        placement = self._site.shelf.placement
        traced = self._trace(history, lsn)
        path = placement.create(f"rewind-{self._name}", 0, traced.regions * self._region)
        try:
            with placement.open(path, traced.regions * self._region) as device:
                shown = self._build(history, traced, device)
                return self._make(history, traced, shown, device)
        finally:
            placement.remove(path)

    # ---- look

    def _check_target(self, to: int | datetime) -> int:
        """The last LSN that there is, if the target can be one at all."""
        end = self._site.window.state().end_lsn
        if isinstance(to, datetime):
            if to.timestamp() > time.time() + 1:
                raise UsageError(f"rewind to {_text(to)}: that is still to come")
        elif whole(to) is None or not 0 <= to <= end:
            raise UsageError(f"rewind to LSN {to!r}: give an LSN from 0 to {end}, the last one, or a datetime", end=end)
        return end

    def _lsn_of(self, to: int | datetime, history: History, end: int) -> int:
        if not isinstance(to, datetime):
            return int(to)
        found = history.lsn_at(int(to.timestamp() * _SECOND))
        if found < 0 and history.last_lsn > history.first_lsn:
            raise Refused(
                f"rewind to {_text(to)}: the journal holds nothing that early; the oldest event that it holds is LSN "
                f"{history.first_lsn + 1} of {_when(history.first_time)}", reason="range",
                first=history.first_lsn + 1, last=end)
        return min(found, end) if found >= 0 else end

    def _candidates(self, history: History) -> list[int]:
        """The volume, then the stores that it was copied to or from, and so on, as far as they exist."""
        catalog, found, ahead = self._site.end.catalog, [self._volume], deque([self._volume])
        seen = {self._volume}
        while ahead and len(found) < MOST_BASES:
            for store in sorted(history.related.get(ahead.popleft(), ()), reverse=True):
                if store not in seen:
                    seen.add(store)
                    ahead.append(store)
                    if store in catalog and catalog[store].kind != UNFINISHED and len(found) < MOST_BASES:
                        found.append(store)
        return found

    def _written(self) -> int:
        """The position of the journal's end, when all before it is written."""
        window = self._site.window
        end = window.state().end_position
        window.write_out(end)
        return end

    def _extend(self, history: History) -> None:
        history.extend(self._written())

    # ---- trace

    def _trace(self, history: History, lsn: int) -> Provenance:
        bases = {store: Base(view.lsn, view.size // self._region) for store, view in self._views.items()}
        bases |= self._hang(history)
        most = max([history.most, *(base.regions for base in bases.values())])
        self._enter("trace", history.end - history.segments[0].position if history.segments else 0)
        traced = Provenance(self._volume, lsn, bases, most, self._region, history.images)
        end = min(view.lsn for view in self._views.values())
        oldest = history.first_lsn if history.last_lsn >= 0 else end
        if oldest > end:
            raise Overtaken(f"the log on {self._site.journal.device.name} is written over faster than it can be read")
        if lsn >= oldest:
            self._walk(history, traced)
        if traced.created_at > lsn:
            raise Refused(
                f"rewind to LSN {lsn}: the volume was made at LSN {traced.created_at}, there was none before",
                reason="range", first=traced.created_at, last=history.last_lsn)
        if not traced.is_found or not traced.regions:
            reach = Reach(self._volume, end, bases, most, self._region, history.images)
            self._walk(history, reach)
            first = max(reach.first(), oldest)
            raise Refused(
                f"rewind to LSN {lsn}: the journal and the snapshots do not hold all that the volume showed then. They "
                f"hold every LSN from {first}{_from(history.time_of(first))} to {end}, the last one",
                reason="range", first=first, last=end)
        return traced

    def _hang(self, history: History) -> dict[int, Base]:
        """The images of the history that this site has, as they were."""
        gallery, bases = self._site.gallery, dict[int, Base]()
        for key, number in history.images.items():
            image = gallery.images.get(key.name)
            if image is not None and image.key == key and gallery.state_of(image) == READY:
                self._images[number] = self._site.stores.device(image.slot)
                bases[number] = Base(_ALWAYS, key.size // self._region)
        return bases

    def _walk(self, history: History, traced: Provenance) -> None:
        done, lsn = 0, traced.lsn
        for segment in reversed(history.segments):
            self._go_on(done)
            for one in reversed(history.batches(segment)):
                traced.reach(one.last_lsn)
                if not traced.is_asking and one.last_lsn <= lsn:
                    traced.begin()
                if traced.is_found:
                    return
                if one.operation is not None:
                    traced.operate(one.last_lsn, one.operation.effects(self._region))
                elif not traced.is_asking and one.first_lsn <= lsn:
                    traced.write(one, lsn + 1, one.last_lsn)
                    traced.begin()
                    traced.write(one, one.first_lsn, lsn)
                else:
                    traced.write(one, one.first_lsn, one.last_lsn)
            done += segment.end - segment.position
        traced.reach(history.first_lsn)
        if not traced.is_asking:
            traced.begin()

    # ---- build

    def _build(self, history: History, traced: Provenance, device: Device) -> dict[int, RegionMap]:
        """What stores show at the LSN, by store. All other regions are in the file then."""
        steps = deque(reversed(traced.steps))
        building = Building(device, self._region, {**self._views, **self._images}, self._go_on)
        self._enter("build", None)
        for one in history.after(steps[0].lsn if steps else traced.lsn):
            while steps and steps[0].lsn < one.first_lsn:
                building.take(steps.popleft())
            if one.first_lsn > traced.lsn:
                break
            if one.operation is None:
                building.write(one, traced.lsn)
        for step in steps:
            building.take(step)
        for base in self._images:
            building.fetch_all(base)
        return {base: map_ for base, map_ in building.shown.items() if map_}

    # ---- make, fill, complete

    def _make(
        self, history: History, traced: Provenance, shown: dict[int, RegionMap], device: Device
    ) -> OperationResult:
        group, size = self._group, traced.regions * self._region
        parts: list[tuple[int, int, int]] = []

        def operation(catalog: Catalog) -> operations.Operation:
            parts[:] = self._parts(catalog, traced.regions, shown)
            return operations.rewind(catalog, self._volume, self._name, size, traced.lsn, parts)

        made = group.operate(operation, timeout=self._left())
        store = made.created[self._name]
        try:
            self._extend(history)
            written = self._fill(store, traced.regions, self._wrong(history, made.lsn, shown, parts), shown, device)
            result = group.operate(lambda catalog: operations.complete(catalog, store), timeout=self._left())
        except BaseException:
            _abandon(group, store)
            raise
        result.created = {self._name: store}
        result.details = {"to_lsn": traced.lsn, "bytes_written": written}
        group.emit({"event": "rewound", "group": group.name, "created": self._name, "to_lsn": traced.lsn,
                    "lsn": result.lsn, "bytes_written": written})
        return result

    def _parts(self, catalog: Catalog, regions: int, shown: dict[int, RegionMap]) -> list[tuple[int, int, int]]:
        """The volume as it is, and over that what other stores show; if those are too many runs, the longest."""
        now = min(regions, catalog[self._volume].size // self._region)
        runs = [(min(count, catalog[store].size // self._region - first), store, first)
                for store, map_ in shown.items() if store != self._volume and store in catalog
                for first, count in map_.runs() if first < catalog[store].size // self._region]
        runs = sorted(runs, reverse=True)[: operations.MOST_PARTS - 1]
        return [(self._volume, 0, now), *((store, first, count) for count, store, first in runs)]

    def _wrong(
        self, history: History, made: int, shown: dict[int, RegionMap], parts: list[tuple[int, int, int]]
    ) -> dict[int, RegionMap]:
        """Regions of what a store shows that the new store does not: no part of the operation had them, or they were
        touched after the view of the store was taken and before the operation."""
        wrong = {store: map_.copy() for store, map_ in shown.items()}
        for store, first, count in parts:
            if store in wrong:
                wrong[store].clear(first, count)
        for one in history.after(min(base.lsn for base in self._views.values())):
            if one.first_lsn >= made:
                break
            for store, first, count in touched(one, self._region):
                if store in wrong and one.last_lsn > self._views[store].lsn and first < wrong[store].size:
                    late = RegionMap(wrong[store].size)
                    late.mark(first, min(count, late.size - first))
                    wrong[store].union(common(late, shown[store]))
        return wrong

    def _fill(
        self, store: int, regions: int, wrong: dict[int, RegionMap], shown: dict[int, RegionMap], device: Device
    ) -> int:
        """Makes the new store what it is to be; the bytes that were written."""
        built = RegionMap(next(iter(shown.values())).size if shown else regions)
        built.mark(0, regions)
        for map_ in shown.values():
            built.subtract(map_)
        todo: list[tuple[Callable[[int, memoryview], Any], RegionMap]] = [(device.readinto, built)]
        todo += [(self._views[base].readinto, map_) for base, map_ in wrong.items()]
        total = sum(map_.count() for _, map_ in todo) * self._region
        self._enter("fill", total)
        site, unit, done, written = self._site, self._site.alignment, 0, 0
        wanted, found = (memoryview(bytearray(max(PIECE, self._region))) for _ in range(2))
        for read, map_ in todo:
            for first, count in map_.runs():
                end = (first + count) * self._region
                for offset in range(first * self._region, end, len(wanted)):
                    length = min(len(wanted), end - offset)
                    read(offset, wanted[:length])
                    view.readinto(site.window, site.stores, store, offset, found[:length])
                    for start, stop in different(wanted[:length], found[:length], unit):
                        written += stop - start
                        if any(wanted[start:stop]):
                            site.window.write(store, offset + start, wanted[start:stop])
                        else:
                            site.window.zero(store, offset + start, stop - start)
                    done += length
                    self._go_on(done)
        return written

    # ---- going on

    def _enter(self, phase: str, total: int | None) -> None:
        self._state.update(phase=phase, bytes_done=0, bytes_total=total)
        self._go_on(0)

    def _go_on(self, done: int | None = None) -> None:
        """Raises if it is to end here: the group failed, the time is over, or the caller's progress says so."""
        self._group.check()
        if done is not None:
            self._state["bytes_done"] = done
        now = time.monotonic()
        if self._progress is not None and now - self._told >= TELL_EVERY:
            self._told = now
            self._progress(dict(self._state))
        if self._left() == 0:
            raise WaitTimeout(
                f"the rewind is not done after {self._timeout:g} s and was given up: nothing is left of it")

    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())


class Building:
    """The file in which regions become what they were: begun where they are found, then written to.

    Attributes:
        shown: what bases show so far that nothing has been written to; it is not in the file.
    """

    def __init__(
        self, device: Device, region: int, bases: Mapping[int, View | Device], go_on: Callable[[], None]
    ) -> None:
        self._device, self._region, self._bases, self._go_on = device, region, bases, go_on
        self._begun: dict[int, RegionMap] = {}
        self._memory = memoryview(bytearray(max(PIECE, region)))
        self.shown: dict[int, RegionMap] = {}

    def take(self, step: Begin | Pass) -> None:
        """The next step."""
        if isinstance(step, Pass):
            of = self._begun.get(step.source)
            moved = common(of, step.regions) if of is not None else None
            if of is not None and moved:
                of.subtract(moved)
                self._into(step.target, moved)
            return
        self._into(step.store, step.regions)
        if step.base:
            self.shown.setdefault(step.base, RegionMap(step.regions.size)).union(step.regions)

    def _into(self, store: int, regions: RegionMap) -> None:
        self._begun.setdefault(store, RegionMap(regions.size)).union(regions)

    def write(self, batch: Batch, last: int) -> None:
        """The events of a batch up to LSN ``last``, as far as they fall into regions that are begun."""
        region = self._region
        records = descriptors(batch.head)[: last - batch.first_lsn + 1]
        for store, begun in self._begun.items():
            for one in records[records["store"] == store]:
                offset, length = int(one["offset"]), int(one["length"])
                data = batch.payload[int(one["payload"]) :][:length] if one["kind"] == layout.WRITE else None
                for first, end in _inside(begun, offset // region, (offset + length - 1) // region + 1):
                    self._fetch(first, end)
                    start, stop = max(offset, first * region), min(offset + length, end * region)
                    if data is None:
                        self._device.zero(start, stop - start)
                    else:
                        self._device.write(start, data[start - offset : stop - offset])
        self._go_on()

    def fetch_all(self, base: int) -> None:
        """Whatever this one shows comes into the file."""
        if base in self.shown:
            for first, count in list(self.shown[base].runs()):
                self._fetch(first, first + count)

    def _fetch(self, first: int, end: int) -> None:
        """What bases show of these regions comes into the file."""
        for base, map_ in self.shown.items():
            for start, stop in list(_inside(map_, first, end)):
                for offset in range(start * self._region, stop * self._region, len(self._memory)):
                    part = self._memory[: stop * self._region - offset]
                    self._bases[base].readinto(offset, part)
                    self._device.write(offset, part)
                map_.clear(start, stop - start)


def _inside(regions: RegionMap, first: int, end: int) -> Iterator[tuple[int, int]]:
    """The marked runs of a range, as (first, end)."""
    while first < min(end, regions.size):
        run = regions.next_run(first)
        if run is None or run[0] >= end:
            return
        yield run[0], min(run[0] + run[1], end)
        first = run[0] + run[1]


def touched(batch: Batch, region: int) -> Iterator[tuple[int, int, int]]:
    """What a batch touches: (store, first region, regions)."""
    if batch.operation is None:
        for one in descriptors(batch.head):
            first = int(one["offset"]) // region
            yield int(one["store"]), first, (int(one["offset"]) + int(one["length"]) - 1) // region + 1 - first
        return
    for effect in batch.operation.effects(region):
        match effect:
            case Copied(target, _, first, count) | CopiedImage(target, _, first, count):
                yield target, first, count
            case Reworked(_, writes):
                yield from writes
            case Resized(store, regions, before):
                yield store, min(regions, before), max(regions, before) - min(regions, before)
            case _:
                pass


def different(a: memoryview, b: memoryview, unit: int) -> list[tuple[int, int]]:
    """The runs of blocks in which two pieces of equal length differ, as (start, end) in bytes."""
    if a == b:
        return []
    blocks = [np.frombuffer(part, np.uint64).reshape(-1, unit // 8) for part in (a, b)]
    differs = np.concatenate(([False], (blocks[0] != blocks[1]).any(axis=1), [False]))
    edges = np.flatnonzero(differs[1:] != differs[:-1]) * unit
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def _text(at: datetime) -> str:
    return at.isoformat(sep=" ", timespec="milliseconds")


def _when(time_ns: int) -> str:
    return _text(datetime.fromtimestamp(time_ns / _SECOND, UTC)) if time_ns else "a time that is not known"


def _from(time_ns: int) -> str:
    return f" ({_when(time_ns)})" if time_ns else ""
