"""The naive system: every store is a bytearray, every operation copies at once, and the state after each LSN is kept."""

from __future__ import annotations

from pyrepl.catalog import Catalog
from pyrepl.operations import Copied, CopiedImage, Created, Deleted, Operation, Resized
from tests.support.plugs import perform_on

State = dict[int, bytes]


class Oracle:
    """``states[lsn]``: store id -> content after that event. Contents are immutable and shared between states."""

    def __init__(self, region_size: int) -> None:
        self.region_size = region_size
        self.states: dict[int, State] = {0: {}}
        self.catalogs: dict[int, Catalog] = {0: Catalog()}
        self.lsn = 0
        self.images: dict[bytes, bytes] = {}  # digest -> content

    @property
    def now(self) -> State:
        return self.states[self.lsn]

    def _become(self, lsn: int, state: State) -> None:
        assert lsn == self.lsn + 1, f"LSN {lsn} after {self.lsn}"
        self.states[lsn] = state
        self.lsn = lsn

    def write(self, lsn: int, store: int, offset: int, data: bytes) -> None:
        old = self.now[store]
        self.catalogs[lsn] = self.catalogs[self.lsn]
        self._become(lsn, {**self.now, store: old[:offset] + data + old[offset + len(data):]})

    def perform(self, lsn: int, operation: Operation, contents: dict[int, bytes] | None = None) -> None:
        """``contents``: what a store that is created without zeros finds on its device."""
        state, region = dict(self.now), self.region_size
        for effect in operation.effects(region):
            match effect:
                case Created(store, regions, _):
                    state[store] = (contents or {}).get(store, bytes(regions * region))
                case Copied(target, source, first, count):
                    a, b = first * region, (first + count) * region
                    part = state[source][a:b] if source else bytes(b - a)
                    state[target] = state[target][:a] + part + state[target][b:]
                case CopiedImage(target, key, first, count):
                    a, b = first * region, (first + count) * region
                    state[target] = state[target][:a] + self.images[key.digest][a:b] + state[target][b:]
                case Resized(store, regions):
                    state[store] = state[store][:regions * region].ljust(regions * region, b"\0")
                case Deleted(store):
                    del state[store]
        perform_on(operation, region, state)
        catalog = self.catalogs[self.lsn].copy()
        operation.apply(catalog)
        self.catalogs[lsn] = catalog
        self._become(lsn, state)

    def forget_after(self, lsn: int) -> None:
        """A crash lost the events after this one."""
        for n in [n for n in self.states if n > lsn]:
            del self.states[n], self.catalogs[n]
        self.lsn = lsn
