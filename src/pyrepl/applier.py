"""The applier: performs events, operations and items on the stores, in the journal's order; moves; hands devices back.

One thread steps it, so epoch, operation, mover and checkpoint never overlap: the locks of the crash model
(lock_mover_epoch, lock_mover_op, op_drain, fuzzy_op) hold by construction. What stays is the order of durability
within each step, and that is written out line by line below. Decides when the mover works. Must not know links,
sockets or time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from pyrepl import items, notes, operations
from pyrepl._core import layout
from pyrepl._core.epoch import Epoch
from pyrepl._core.window import Entry
from pyrepl.catalog import VOLUME, Catalog
from pyrepl.errors import check
from pyrepl.operations import Created, Deleted, Effect

if TYPE_CHECKING:
    from pyrepl.site import Site


class OperationResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an operation at this site. ``bytes_changed``: bytes of whole regions whose content may have
    changed."""

    lsn: int
    kind: str
    bytes_changed: int
    created: list[int]


MOST_RESULTS = 1024


class Applier:
    """The stores of one site, on their way to the end of its journal."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.window = site.window
        self.stores = site.stores
        self.shelf = site.shelf
        self.epoch = Epoch(site.stores, site.window)
        self.results: dict[int, OperationResult] = {}
        self.cursors: dict[int, int] = {}  # slot -> region where the mover goes on
        self.moving = True  # something may be left for the mover

    # ---- one step

    def apply(self) -> bool:
        """Applies one epoch, operation or item, if the journal holds any; False: all is applied."""
        state = self.window.state()
        if state.applied_position == state.end_position:
            return False
        if state.durable_position <= state.applied_position:
            self.window.make_durable(state.end_position)  # rule journal_first
            state = self.window.state()
        position = state.applied_position
        limit = self.site.options.epoch_bytes // (
            1 + len(self.shelf.places) // 16
        )  # a note has an entry for each store re-pointed
        until, last_lsn, last_item = self.epoch.gather(position, state.durable_position, limit)
        if until > position:
            self._epoch(until, last_lsn, last_item)
        else:
            self._one(position)
        return True

    def _epoch(self, until: int, last_lsn: int, last_item: int) -> None:
        try:
            for stage in range(self.epoch.plan()):
                self._stage(stage)
            self.epoch.write()
        finally:
            self.epoch.clear()
        here = self.site.here
        if last_lsn:
            here.take_events(last_lsn)
        if last_item:
            here.take_copied(last_item)
        self.window.applied(until, here.lsn)  # rule applied_complete
        self.moving = True

    def _stage(self, stage: int) -> None:
        if self.epoch.copy(stage):
            self.stores.flush()  # rules epoch_flush, mover_flush: what was moved or filled is durable before the note
        note = self.epoch.note(stage)
        if note:
            self.window.make_durable(
                self.window.append_note(notes.MAP, note)
            )  # rules epoch_note, mover_note, note_prefix
        self.epoch.repoint(stage)

    def _one(self, position: int) -> None:
        entry = self.window.entry(position)
        check(entry is not None, f"nothing stands at position {position}, which is durable")
        assert entry is not None
        with entry:
            body = bytes(entry.body)
            if entry.batch_kind == layout.BATCH_OPERATION:
                self._operate(entry, body)
            else:
                self._item(entry, body)
        self.moving = True

    def _operate(self, entry: Entry, body: bytes) -> None:
        operation = operations.decode(body)
        effects = operation.effects(self.site.region_size)
        catalog = self.site.here.catalog.copy()
        operation.apply(catalog)
        changed = self._perform(entry, body, effects, catalog, is_item=False)
        self.site.here.take_operation(operation, entry.last_lsn)
        created = [effect.store for effect in effects if isinstance(effect, Created)]
        self._remember(OperationResult(lsn=entry.last_lsn, kind=operation.kind, created=created,
                                       bytes_changed=changed * self.site.region_size))
        self.window.applied(entry.next_position, entry.last_lsn)

    def _item(self, entry: Entry, body: bytes) -> None:
        item = items.decode(body)
        match item:
            case items.Make(info):
                catalog = self.site.here.catalog.copy()
                catalog.add(self.site.store_of(info))
                created: list[Effect] = [Created(info.id, info.size // self.site.region_size, False)]
                self._perform(entry, body, created, catalog, is_item=True)
            case items.Drop(store):
                self._perform(entry, body, [Deleted(store)], self.site.here.catalog, is_item=True)
            case _:
                pass  # redone after a crash by being read again: it changes no map
        self.site.here.take_item(item, entry.item)
        self.window.applied(entry.next_position, self.site.here.lsn)

    def _perform(self, entry: Entry, body: bytes, effects: list[Effect], catalog: Catalog, *, is_item: bool) -> int:
        names = {store.id: store.name for store in catalog}
        reserved = self.site.reserved
        placed, scratch, scratch_size = self.shelf.prepare(effects, reserved, names)
        self.stores.flush()  # rule op_flush
        note = notes.Performed(entry.next_position, entry.last_lsn, is_item, body, placed, scratch, scratch_size)
        self.window.make_durable(self.window.append_note(notes.PERFORMED, notes.encode(note)))  # rule op_durable
        changed = self.shelf.perform(effects, placed, scratch, scratch_size)  # rule op_note_map
        for p in placed:
            reserved.pop(p.store, None)
        return changed

    def _remember(self, result: OperationResult) -> None:
        self.results[result.lsn] = result
        while len(self.results) > MOST_RESULTS:
            del self.results[next(iter(self.results))]

    # ---- the mover

    def move(self) -> bool:
        """One step of the mover; False: it has nothing to do."""
        if not self.moving:
            return False
        most = max(1, self.site.options.move_bytes // self.site.region_size)
        for slot, vacate in self._work():
            plan = self.epoch.plan_vacate if vacate else self.epoch.plan_move
            start = self.cursors.get(slot, 0)
            stages, cursor = plan(slot, start, most)
            try:
                for stage in range(stages):
                    self._stage(stage)
            finally:
                self.epoch.clear()
            if stages:
                self.cursors[slot] = cursor
                return True
            self.cursors.pop(slot, None)
            if start:
                return True  # from the beginning once more: something may have come in behind the cursor
            if vacate and slot in self.shelf.zombies and not self.stores.shown(slot, 1):
                self._release(slot)
                return True
        self.moving = False
        return False

    def _work(self) -> Iterator[tuple[int, bool]]:
        """(slot, vacate): volumes that show others' devices, then devices of deleted stores, then the scratch.

        Snapshots and clones rest: what they show is copied only when it is about to be overwritten.
        """
        for store in list(self.site.here.catalog):
            if store.kind == VOLUME and store.origin == 0:
                slot = self.shelf.places[store.id].slot
                if self.stores.foreign(slot):
                    yield slot, False
        yield from [(slot, True) for slot in self.shelf.zombies]
        if self.shelf.scratch is not None and self.stores.shown(self.shelf.scratch.slot, 1):
            yield self.shelf.scratch.slot, True

    def _release(self, slot: int) -> None:
        self.window.make_durable(self.window.append_note(notes.RELEASED, notes.encode(notes.Released(slot))))
        self.shelf.release(slot)
