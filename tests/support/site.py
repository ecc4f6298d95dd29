"""A small site for tests of the core: a window over a log in memory, stores, and the slowest applier that is right.

Decides: nothing. It applies one event after the other, moving every region that another store shows before it is
overwritten.
Only copies from one store to stores that nobody else shows are understood (no rings).
"""

from __future__ import annotations

import struct

from pyrepl._core import batch
from pyrepl._core.stores import Stores
from pyrepl._core.window import Window
from tests.support.devices import MemoryDevice

BLOCK = 4096
PAYLOAD = 4 << 20
GROUP, GENERATION = b"g" * 16, b"n" * 16
WRITE, ZERO, DISCARD = 1, 2, 3


class Site:
    """Stores 1..n of `size` bytes, each in the slot of its number."""

    def __init__(
        self,
        count: int = 2,
        *,
        size: int = 64 << 10,
        alignment: int = 512,
        region_size: int = 8192,
        device=MemoryDevice,
        log=MemoryDevice,
        log_size: int = 64 << 20,
    ) -> None:
        self.alignment, self.region_size = alignment, region_size
        self.window = Window(ring=4 * (PAYLOAD + BLOCK), alignment=alignment, reserve=64 << 10)
        self.stores = Stores(region_size=region_size, alignment=alignment)
        self.log = log("log", log_size, BLOCK if alignment == BLOCK else 512)
        self.devices = {}
        for number in range(1, count + 1):
            self.devices[number] = device(f"disk{number}", size, alignment)
            self.stores.add(number, self.devices[number], store=number, size=size)
            self.window.set_store(number, size)
        self.window.open(
            self.log, log_offset=0, log_size=log_size, position=0, tail=0, chain=1, lsn=0,
            applied_position=0, applied_lsn=0, group=GROUP, generation=GENERATION, seed=7,
        )  # fmt: skip

    def repoint(self, first: int, slot: int, source: int, count: int = 1) -> None:
        self.stores.repoint(struct.pack("<QQII", first, count, slot, source))

    def _own(self, slot: int, region: int) -> None:
        """The store's own device comes to hold what it shows in this region."""
        source, at = self.stores.source(slot, region), region * self.region_size
        if source == slot:
            return
        end = min(at + self.region_size, self.devices[slot].size)
        self.devices[slot].data[at:end] = self.devices[source].data[at:end] if source else bytes(end - at)
        self.repoint(region, slot, slot)

    def _perform(self, store: int, offset: int, data: bytes) -> None:
        for region in range(offset // self.region_size, -(-(offset + len(data)) // self.region_size)):
            for slot in self.stores.slots():
                if slot != store and self.stores.source(slot, region) == store:
                    self._own(slot, region)
            self._own(store, region)
        self.devices[store].data[offset : offset + len(data)] = data

    def apply(self) -> None:
        """Performs everything in the window and says so."""
        self.window.flush()
        state = self.window.state()
        position, lsn = state.applied_position, state.applied_lsn
        while (entry := self.window.entry(position)) is not None:
            with entry:
                if entry.batch_kind == 1:
                    payload = bytes(entry.payload)
                    for record in batch.records(bytes(entry.head) + payload):
                        data = payload[record.payload : record.payload + record.length]
                        self._perform(
                            record.store, record.offset, data if record.kind == WRITE else bytes(record.length)
                        )
                position, lsn = entry.next_position, max(lsn, entry.last_lsn)
        self.window.applied(position, lsn)
        self.window.set_tail(position)

    def copy(self, target: int, source: int, first: int, count: int) -> None:
        """map(target) := map(source); `target` is shown by nobody."""
        self.apply()
        self.stores.copy(target, source, first, count)

    def entries(self) -> list:
        """All entries of the log that are not applied."""
        found, position = [], self.window.state().applied_position
        while (entry := self.window.entry(position)) is not None:
            found.append(entry)
            position = entry.next_position
        return found
