"""What a primary knows of a secondary at one place of the stream, and how each thing that is sent moves it.

Decides the effect of every frame on position, catalog and divergence (model, "What is in flight"). Must not know when
it is sent or acknowledged (``link``). The same effects move what is known for certain and what is expected.
"""

from __future__ import annotations

from typing import NamedTuple

from pyrepl import operations
from pyrepl._core import batch
from pyrepl._core.regions import RegionMap
from pyrepl.catalog import Catalog, Store
from pyrepl.divergence import Divergence, Runs


class Events(NamedTuple):
    """A batch of events, and the regions that it overwrites whole."""

    lsn: int
    position: int
    runs: dict[int, Runs]


class Performed(NamedTuple):
    """An operation."""

    lsn: int
    position: int
    operation: operations.Operation


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


Effect = Events | Performed | Skipped | CopiedRegions | Made | Dropped | Said


class Flight(NamedTuple):
    """What was sent and is not acknowledged: ``frames`` were sent when it had been."""

    frames: int
    length: int
    effect: Effect
    item: int  # number of the last item sent then


class Piece:
    """Of the backlog: a run of events that were folded into regions, or one operation that is kept as it travels."""

    __slots__ = ("fold", "operation", "position", "regions", "sent", "upto")

    def __init__(self, upto: int, position: int, fold: int, *, operation: bytes = b"", sent: bool = False) -> None:
        self.upto = upto  # LSN
        self.position = position  # of the record after it
        self.operation = operation
        self.regions: dict[int, RegionMap] = {}
        self.fold = fold  # the save that holds it as it is
        self.sent = sent  # its skip may be at the secondary


class Knowledge:
    """The secondary at one place of the stream. Its stores are the keys of ``divergence.maps``."""

    def __init__(self, lsn: int, position: int, catalog: Catalog, divergence: Divergence) -> None:
        self.lsn = lsn
        self.position = position  # journal position of the first record after it, unless the backlog stands before that
        self.catalog = catalog  # of the primary, at this LSN
        self.divergence = divergence

    def copy(self) -> Knowledge:
        """An independent one that is equal now."""
        return Knowledge(self.lsn, self.position, self.catalog.copy(), self.divergence.copy())

    def take(self, effect: Effect, region_size: int) -> None:
        """This was performed there."""
        divergence = self.divergence
        match effect:
            case Events(lsn, position, runs):
                divergence.overwritten(runs)
                self.lsn, self.position = lsn, position
            case Performed(lsn, position, operation):
                divergence.perform(operation.effects(region_size))
                operation.apply(self.catalog)
                self.lsn, self.position = lsn, position
            case Skipped(piece):
                for store, regions in piece.regions.items():
                    divergence.enter(store, regions)
                self.lsn, self.position = piece.upto, piece.position
            case CopiedRegions(store, runs, read_end):
                divergence.copied(store, runs, read_end)
            case Made(store):
                divergence.add(store.id, store.size // region_size, differs=True)
            case Dropped(store):
                divergence.remove(store)
        divergence.arrive(self.lsn)

    def missing(self) -> list[Store]:
        """Stores that the secondary lacks."""
        return [store for store in self.catalog if store.id not in self.divergence.maps]

    def extra(self) -> list[int]:
        """Stores that only the secondary has."""
        return [store for store in self.divergence.maps if store not in self.catalog]

    def is_equal(self) -> bool:
        """Whether the secondary is the primary's state at this LSN."""
        return self.divergence.is_empty() and self.divergence.maps.keys() == self.catalog.stores.keys()


def unsettles(effect: Effect) -> bool:
    """Whether the secondary is no earlier state of the primary while this is performed."""
    return isinstance(effect, Skipped | CopiedRegions | Made | Dropped) or (
        isinstance(effect, Said) and effect.unsettles
    )


def kept_operation(travelling: bytes) -> operations.Operation:
    """The operation in a batch that is kept as it travels."""
    return operations.decode(travelling[batch.head_length(1):][: _length(travelling)])


def _length(travelling: bytes) -> int:
    return batch.records(travelling)[0].length
