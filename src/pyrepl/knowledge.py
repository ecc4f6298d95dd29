"""What a primary knows of a secondary at one place of the stream, and how each thing that is sent moves it.

Decides the effect of every frame on position, catalog and divergence (model, "What is in flight"). Must not know when
it is sent or acknowledged (``link``). The same effects move what is known for certain and what is expected.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from pyrepl import items, operations
from pyrepl._core import batch, layout
from pyrepl._core.regions import RegionMap
from pyrepl._core.window import Entry
from pyrepl.catalog import Catalog, Store
from pyrepl.divergence import Divergence, Runs, covered, touched
from pyrepl.operations import Adopt, Copied, CopiedImage, Deleted, Early, Resized


class Events(NamedTuple):
    """A batch of events, the regions that it overwrites whole, and those that it touches of stores that are watched."""

    lsn: int
    position: int
    runs: dict[int, Runs]
    touched: dict[int, Runs]


class Performed(NamedTuple):
    """An operation. ``refused``: without what it copies from images, which the secondary lacks, or with another result
    of a plug-in."""

    lsn: int
    position: int
    operation: operations.Operation
    refused: bool = False


class Skipped(NamedTuple):
    """A piece of the backlog that will never come as events."""

    piece: Piece


class CopiedRegions(NamedTuple):
    """Regions with their content as of an LSN."""

    store: int
    runs: Runs
    read_end: int


class Made(NamedTuple):
    """A store that was lacking."""

    store: Store


class Dropped(NamedTuple):
    """A store that is not ours."""

    store: int


class Said(NamedTuple):
    """An item that changes nothing here: a fork on the spot, *consistent*."""

    unsettles: bool


class Passed(NamedTuple):
    """What a site that is fed itself has received beside the order, at its place in that site's journal: an item, or
    copied regions. Nothing of it goes on but a skip (model, "Cascade")."""

    position: int
    item: items.Item | None
    runs: dict[int, Runs]  # of copied regions


Effect = Events | Performed | Skipped | CopiedRegions | Made | Dropped | Said | Passed


class Flight(NamedTuple):
    """What was sent and is not acknowledged: ``frames`` were sent when it had been."""

    frames: int
    length: int
    effect: Effect
    item: int  # number of the last item sent then


class Piece:
    """Of the backlog: a run of events that were folded into regions, or one operation that is kept as it travels."""

    __slots__ = ("fold", "operation", "position", "regions", "sent", "time_ns", "upto")

    def __init__(
        self, upto: int, position: int, fold: int, *, operation: bytes = b"", sent: bool = False, time_ns: int = 0
    ) -> None:
        self.upto = upto  # LSN
        self.position = position  # of the record after it
        self.operation = operation
        self.regions: dict[int, RegionMap] = {}
        self.fold = fold  # the save that holds it as it is
        self.sent = sent  # its skip may be at the secondary
        self.time_ns = time_ns  # of its first event, as of a batch

    def copy(self) -> Piece:
        """An independent one that is equal now."""
        other = Piece(self.upto, self.position, self.fold, operation=self.operation, sent=self.sent,
                      time_ns=self.time_ns)
        other.regions = {store: regions.copy() for store, regions in self.regions.items()}
        return other


class Awaited:
    """An operation that the secondary has performed early, and the primary has not yet.

    Attributes:
        target: the volume that is restored; 0: it is a snapshot.
        watched: stores; what changes of them makes the result at one site another than that at the other.
        changed: in which regions; None: not known.
    """

    __slots__ = ("changed", "target", "watched")

    def __init__(self, target: int, watched: tuple[int, ...], changed: RegionMap | None) -> None:
        self.target, self.watched, self.changed = target, watched, changed

    def copy(self) -> Awaited:
        """An independent one that is equal now."""
        return Awaited(self.target, self.watched, self.changed.copy() if self.changed is not None else None)

    def mark(self, store: int, runs: Runs) -> None:
        """These regions of a store changed."""
        if self.changed is not None and store in self.watched:
            for first, count in runs:
                if first < self.changed.size:
                    self.changed.mark(first, min(count, self.changed.size - first))

    def enter(self, store: int, regions: RegionMap) -> None:
        """The same, by a map."""
        if self.changed is not None and store in self.watched:
            if regions.size == self.changed.size:
                self.changed.union(regions)
            else:
                self.changed = None


class Knowledge:
    """The secondary at one place of the stream. Its stores are the keys of ``divergence.maps``."""

    def __init__(self, lsn: int, position: int, catalog: Catalog, divergence: Divergence) -> None:
        self.lsn = lsn
        self.position = position  # journal position of the first record after it, unless the backlog stands before that
        self.catalog = catalog  # of the primary, at this LSN
        self.divergence = divergence
        self.early: dict[bytes, Awaited] = {}  # by ticket. Not saved: what is not known of one is everything

    def copy(self) -> Knowledge:
        """An independent one that is equal now."""
        other = Knowledge(self.lsn, self.position, self.catalog.copy(), self.divergence.copy())
        other.early = {ticket: awaited.copy() for ticket, awaited in self.early.items()}
        return other

    @property
    def watched(self) -> set[int]:
        """Stores of which each event that touches them counts."""
        return {store for awaited in self.early.values() for store in awaited.watched}

    def held(self, awaiting: Collection[bytes]) -> set[int]:
        """Volumes that were restored early, and are to be restored here by somebody who is ``awaiting`` that: nothing
        of them is copied before, it would only undo the restore."""
        return {awaited.target for ticket, awaited in self.early.items() if awaited.target and ticket in awaiting}

    def events(self, head: memoryview | bytes, lsn: int, position: int, region_size: int) -> Events:
        """What a batch of events will do here."""
        runs = covered(head, region_size) if self.divergence else {}
        return Events(lsn, position, runs, touched(head, region_size, self.watched) if self.early else {})

    def take(self, effect: Effect, region_size: int) -> None:
        """This was performed there."""
        divergence = self.divergence
        if isinstance(effect, Events) and not effect.runs and not divergence.departures and not effect.touched:
            self.lsn, self.position = effect.lsn, effect.position
            return
        match effect:
            case Events(lsn, position, runs, changed):
                divergence.overwritten(runs)
                for store, store_runs in changed.items():
                    for awaited in self.early.values():
                        awaited.mark(store, store_runs)
                self.lsn, self.position = lsn, position
            case Performed(lsn, position, operation, refused):
                self._perform(operation, region_size, refused)
                operation.apply(self.catalog)
                self.lsn, self.position = lsn, position
            case Skipped(piece):
                for store, regions in piece.regions.items():
                    divergence.enter(store, regions)
                self.pass_over(piece)
            case CopiedRegions(store, runs, read_end):
                divergence.copied(store, runs, read_end)
                for awaited in self.early.values():
                    if awaited.target == store:
                        awaited.mark(store, runs)  # it is what the primary showed again
            case Made(store):
                divergence.add(store.id, store.size // region_size, differs=True)
                self._remade(store.id)
            case Dropped(store):
                divergence.remove(store)
                self._remade(store)
            case Passed():
                self._pass(effect)
        divergence.arrive(self.lsn)

    def pass_over(self, piece: Piece) -> None:
        """What was folded into this is performed there. What is performed early at one site sees another content of it
        than what is performed later at the other, even if it came as events."""
        for store, regions in piece.regions.items():
            for awaited in self.early.values():
                awaited.enter(store, regions)
        self.lsn, self.position = piece.upto, piece.position

    def _remade(self, store: int) -> None:
        """What was performed early there of this store, or in it, is gone."""
        for awaited in self.early.values():
            if store in awaited.watched:
                awaited.changed = None

    def _pass(self, passed: Passed) -> None:
        divergence = self.divergence
        for store, runs in passed.runs.items():
            for awaited in self.early.values():
                if awaited.target == store:
                    awaited.mark(store, runs)
            known = divergence.maps.get(store)
            if known is not None:
                regions = RegionMap(known.size)
                for first, count in runs:
                    if first < regions.size:
                        regions.mark(first, min(count, regions.size - first))
                divergence.enter(store, regions)
        match passed.item:
            case items.Make(info):
                self.catalog.add(Store(id=info.id, name=info.name, kind=info.kind, size=info.size, origin=info.origin))
                divergence.remove(info.id)  # what bears its number there is another
                self._remade(info.id)
            case items.Drop(number):
                self.catalog.stores.pop(number, None)
                self._remade(number)
            case items.Skip(lsn):
                self.lsn = lsn
                for awaited in self.early.values():
                    awaited.changed = None
            case items.Fork(_, lsn) if lsn != self.lsn:
                self.lsn, self.early = lsn, {}
                divergence.enter_all()
            case _:
                pass
        self.position = passed.position

    def _perform(self, operation: operations.Operation, region_size: int, refused: bool) -> None:
        divergence = self.divergence
        ended = [(end, self.early.pop(end.ticket, None)) for end in operations.ends(operation)]
        for awaited in self.early.values():
            for effect in [*operation.effects(region_size), *operations.effects_there(operation, region_size)]:
                match effect:
                    case Copied(target, _, first, count) | CopiedImage(target, _, first, count):
                        awaited.mark(target, [(first, count)])
                    case (Resized(store) | Deleted(store)) if store in awaited.watched:
                        awaited.changed = None
                    case _:
                        pass
        if isinstance(operation, Early):
            self._begin(operation, region_size)
            return
        divergence.perform(operations.effects_there(operation, region_size), refused=refused)
        for end, mine in ended:
            if isinstance(end, Adopt):
                self._adopt(end, mine)

    def _adopt(self, operation: Adopt, mine: Awaited | None) -> None:
        """The primary has performed it. What else that event does is none of its stores' (``AdoptAll``)."""
        divergence = self.divergence
        result, count = operation.target or operation.id, operation.count
        if result not in divergence.maps:
            return
        changed = mine.changed if mine is not None else None
        if changed is None or changed.size != count:
            changed = RegionMap(count, marked=True)
        if operation.target:
            divergence.add(result, count, differs=False)  # all of it was entered when it was restored early
        divergence.enter(result, changed)

    def _begin(self, early: Early, region_size: int) -> None:
        """The secondary performs it, the primary does not."""
        divergence, count = self.divergence, early.count
        if not early.target:
            divergence.perform(early.effects(region_size))
            self.early[early.ticket] = Awaited(0, (early.source, early.hidden), RegionMap(count))
            return
        of = divergence.maps.get(early.source)
        changed = of.copy() if of is not None and of.size == count else None
        if early.target in divergence.maps:
            divergence.enter(early.target, RegionMap(count, marked=True))
        self.early[early.ticket] = Awaited(early.target, (early.source, early.target), changed)

    def missing(self) -> list[Store]:
        """Stores that the secondary lacks."""
        return [store for store in self.catalog if store.id not in self.divergence.maps]

    def differing(self) -> set[int]:
        """Stores whose copy at the secondary may differ."""
        maps = self.divergence.maps
        return {store.id for store in self.catalog if store.id not in maps or maps[store.id]}

    def extra(self) -> list[int]:
        """Stores that only the secondary has."""
        return [store for store in self.divergence.maps if store not in self.catalog]

    def is_equal(self) -> bool:
        """Whether the secondary is the primary's state at this LSN."""
        return self.divergence.is_empty() and self.divergence.maps.keys() == self.catalog.stores.keys()


def unsettles(effect: Effect) -> bool:
    """Whether the secondary is no earlier state of the primary while this is performed."""
    return isinstance(effect, Skipped | CopiedRegions | Made | Dropped) or (
        (isinstance(effect, Said) and effect.unsettles)
        or (isinstance(effect, Passed) and isinstance(effect.item, items.Skip))
        or (isinstance(effect, Performed) and operations.unsettles(effect.operation))
    )


def may_be_refused(effect: Effect) -> bool:
    """Whether it is known only by the acknowledgement what the secondary did with this."""
    return isinstance(effect, Performed) and operations.may_be_refused(effect.operation)


def passed(entry: Entry, region_size: int) -> Passed | None:
    """What a record means that is neither an event nor an operation; None: it is a note, or one of these."""
    if entry.kind != layout.RECORD_BATCH:
        return None
    if entry.batch_kind == layout.BATCH_COPIED:
        return Passed(entry.next_position, None, covered(entry.head, region_size))
    if entry.batch_kind == layout.BATCH_ITEM:
        return Passed(entry.next_position, items.decode(bytes(entry.body)), {})
    return None


def moves(effect: Passed, lsn: int) -> bool:
    """Whether it makes stores, position or catalog of a site that stands at this LSN others: all but an item that is
    only said."""
    match effect.item:
        case items.Consistent() | items.Handover() | items.Decided() | items.Different():
            return False
        case items.Fork(_, fork):
            return fork != lsn
    return True


def kept_operation(travelling: bytes) -> operations.Operation:
    """The operation in a batch that is kept as it travels."""
    return operations.decode(travelling[batch.head_length(1):][: _length(travelling)])


def _length(travelling: bytes) -> int:
    return batch.records(travelling)[0].length
