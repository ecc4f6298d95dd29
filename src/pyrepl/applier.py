"""The applier: performs events, operations and items on the stores, in the journal's order; moves; hands devices back.

One thread steps it, so epoch, operation, mover and checkpoint never overlap: the locks of the crash model
(lock_mover_epoch, lock_mover_op, op_drain, fuzzy_op) hold by construction. What stays is the order of durability
within each step, and that is written out line by line below. Decides when the mover works. Must not know links,
sockets or time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from pyrepl import items, notes, operations
from pyrepl._core import layout
from pyrepl._core.epoch import Epoch
from pyrepl._core.window import Entry
from pyrepl.catalog import VOLUME, Catalog
from pyrepl.errors import check
from pyrepl.operations import CopiedImage, Created, Deleted, Effect, Operation, Outcome, Perform, Reworked
from pyrepl.shortage import NoRoom, room_for
from pyrepl.workshop import NOTHING, Done, Workshop

if TYPE_CHECKING:
    from pyrepl.site import Site


class MemberResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one member of a set."""

    kind: str
    bytes_changed: int
    created: list[int]
    digest: bytes = b""
    failed: str = ""


class OperationResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an operation at this site. ``bytes_changed``: bytes of whole regions whose content may have
    changed. ``refused``: why this site, a secondary, could not perform all of it; the primary sends the data.
    ``digest``: what a plug-in said of what it did; ``failed``: why it did nothing."""

    lsn: int
    kind: str
    bytes_changed: int
    created: list[int]
    members: list[MemberResult] = []
    refused: str = ""
    time_ns: int = 0
    """When it got its place, by the clock of the primary of then; 0: not known."""
    seconds: float | None = None
    """From there to its performance here; None: not known."""
    links: int = 0
    """That the group had when it was admitted here; 0 at a secondary."""
    refused_at: tuple[str, ...] = ()
    """Links of which the secondaries have refused it."""
    bytes_refusable: int = 0
    """Of ``bytes_changed``, what such a secondary did not make: from images, and by plug-ins."""
    arguments: dict[str, Any] = {}
    digest: bytes = b""
    failed: str = ""

    @property
    def bytes_avoided(self) -> int:
        """See ``operations.avoided``."""
        return operations.avoided(self.bytes_changed, self.links, self.bytes_refusable, len(self.refused_at))


MOST_RESULTS = 1024
Plan = Callable[[int, int, int], tuple[int, int]]
"""What of a device is moved next: slot, region to begin with, most regions -> stages, where to go on."""


class Applier:
    """The stores of one site, on their way to the end of its journal."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.window = site.window
        self.stores = site.stores
        self.shelf = site.shelf
        self.shortage = site.shortage
        self.epoch = Epoch(site.stores, site.window)
        self.results: dict[int, OperationResult] = {}
        self.links: dict[int, int] = {}  # operations that were admitted here and wait: LSN -> links of the group
        self.bytes_avoided = 0  # of all that were performed since the site was opened
        self._refused: dict[int, list[str]] = {}  # of those that wait: the links whose secondaries have refused it
        self.performed: Counter[str] = Counter()  # operations by kind, since the site was opened
        self.cursors: dict[int, int] = {}  # slot -> region where the mover goes on
        self.moving = True  # something may be left for the mover
        self.workshop = Workshop(site)
        self.resting = False  # volumes rest too: what they show is copied only when it is about to be overwritten
        self.held = False  # a mark that the gate keeps, or plug-ins that run: nothing after it is performed
        self._finishing = False
        self._sheltered = 0  # journal position of the operation for which a protective snapshot was kept

    # ---- one step

    def apply(self) -> bool:
        """Applies one epoch, operation or item, if the journal holds any; False: all is applied, or a mark is held, or
        plug-ins run, or the site stands still for want of room."""
        if self.shortage.is_early:
            return False
        try:
            return self._apply()
        except NoRoom as error:
            self.shortage.begin(error)  # rule stand_still: nothing of it has moved the applied position
            return False

    def _apply(self) -> bool:
        state = self.window.state()
        if state.applied_position == state.end_position:
            self.shortage.over()
            if state.shown_position is not None:
                self.site.delay.until(state)
            return False
        if state.durable_position <= state.applied_position:
            self.window.make_durable(state.end_position)  # rule journal_first
            state = self.window.state()
        position, old = state.applied_position, self.site.delay.until(state)
        if old <= position:
            self.shortage.over()
            return False
        limit = self.site.options.epoch_bytes // (
            1 + len(self.shelf.places) // 16
        )  # a note has an entry for each store re-pointed
        if self.shortage.most:  # what there is room for is done, and what is tried in vain costs little
            limit = min(limit, self.shortage.most)
        until, last_lsn, last_item = self.epoch.gather(position, min(old, state.durable_position), limit)
        if until > position:
            self._epoch(until, last_lsn, last_item)
            return True
        return self._one(position)

    def finish(self) -> None:
        """Applies everything, also what a mark holds up: the site changes its role. Plug-ins are waited for."""
        self._finishing = True
        try:
            self.catch_up()
        finally:
            self._finishing = False

    def catch_up(self) -> None:
        """Applies everything, whatever delay was chosen, up to a mark that is held, or as far as there is room."""
        self.site.delay.waived = True
        self.shortage.hurry(True)
        try:
            while self.apply():
                pass
        finally:
            self.site.delay.waived = False
            self.shortage.hurry(False)

    def _epoch(self, until: int, last_lsn: int, last_item: int) -> None:
        try:
            for stage in range(self.epoch.plan()):
                self._stage(stage)
            with room_for():
                self.epoch.write()
        except NoRoom:
            self.shortage.tear(until)  # rule stand_whole: maps may be ahead of the data
            raise
        finally:
            self.epoch.clear()
        here = self.site.here
        if last_lsn:
            here.take_events(last_lsn)
        if last_item:
            here.take_copied(last_item)
        self._applied(until, here.lsn)  # rule applied_complete
        self.moving = True

    def _applied(self, position: int, lsn: int) -> None:
        self.window.applied(position, lsn)
        self.shortage.passed(position)

    def _stage(self, stage: int) -> None:
        with room_for():
            copied = self.epoch.copy(stage)
        if copied:
            self.stores.flush()  # rules epoch_flush, mover_flush: what was moved or filled is durable before the note
        note = self.epoch.note(stage)
        if note:
            self.window.make_durable(
                self.window.append_note(notes.MAP, note)
            )  # rules epoch_note, mover_note, note_prefix
        self.epoch.repoint(stage)

    def _one(self, position: int) -> bool:
        entry = self.window.entry(position)
        check(entry is not None, f"nothing stands at position {position}, which is durable")
        assert entry is not None
        with entry:
            body = bytes(entry.body)
            if entry.batch_kind == layout.BATCH_OPERATION:
                self.held = not self._operate(entry, body)
            else:
                self._item(entry, body)
        self.moving = True
        return not self.held

    def _operate(self, entry: Entry, body: bytes) -> bool:
        """False: it is a mark that is held, or its plug-ins are not done."""
        operation, gate = operations.decode(body), self.site.gate
        self.shortage.whole()  # no epoch reaches beyond an operation
        mark = operation if isinstance(operation, operations.Mark) else None
        if mark is not None and not (self._finishing or gate.may_pass(mark, entry.last_lsn)):
            return False
        works, done = operations.works(operation), NOTHING
        if works:
            result = self.workshop.done(works, entry.next_position, entry.last_lsn, wait=self._finishing)
            if result is None:
                return False
            done = result
            # Else one was kept when it arrived, or when it was to be performed before, and found no room.
            if done.differs and entry.last_lsn not in self.site.refusing and self._sheltered != entry.position:
                self.site.protective.keep_here()
                self._sheltered = entry.position
        secondary = self.site.role == "secondary"
        effects = (operations.effects_there(operation, self.site.region_size) if secondary
                   else operation.effects(self.site.region_size))
        before = {store.id: store.name for store in self.site.here.catalog}
        catalog = self.site.here.catalog.copy()
        operation.apply(catalog)
        refused = self.site.refusing.get(entry.last_lsn, "")
        changed = self._perform(entry, body, effects, catalog, is_item=False, refused=bool(refused), done=done)
        self.site.here.take_operation(operation, entry.last_lsn, refused or done.differs, secondary=secondary)
        self.site.refusing.pop(entry.last_lsn, None)
        if works:
            self.workshop.forget()
            self.site.outcomes.performed(entry.last_lsn, done, is_known=bool(refused))
        self._remember(entry, operation, changed, refused or done.differs, done.outcomes,
                       before | {store.id: store.name for store in catalog})
        self._applied(entry.next_position, entry.last_lsn)
        if isinstance(operation, operations.Compared):
            self.site.verification.capture(operation, entry.last_lsn)  # in this step: nothing after it is applied yet
        if mark is not None:
            gate.passed(mark, entry.last_lsn)
        return True

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
        self._applied(entry.next_position, self.site.here.lsn)

    def _perform(
        self, entry: Entry, body: bytes, effects: list[Effect], catalog: Catalog, *, is_item: bool,
        refused: bool = False, done: Done = NOTHING,
    ) -> list[int]:
        names = {store.id: store.name for store in catalog}
        reserved = self.site.reserved
        made = sum(isinstance(effect, Created) for effect in effects)
        self.free_slots(made + len(done.benches) + 1)  # one for a scratch
        placed, scratch, scratch_size = self.shelf.prepare(effects, reserved, names)
        self.stores.flush()  # rule op_flush
        worked = done.place(self.shelf.work_slots(len(done.benches), placed, scratch))
        note = notes.Performed(
            entry.next_position, entry.last_lsn, is_item, body, placed, scratch, scratch_size, refused, worked,
            done.decided if done.decides or self.site.followers else [], done.differs)
        self.window.make_durable(self.window.append_note(notes.PERFORMED, notes.encode(note)))  # rule op_durable
        changed = self.shelf.perform(effects, placed, scratch, scratch_size, refused=refused, worked=worked,
                                     devices=done.devices())  # rule op_note_map
        for p in placed:
            reserved.pop(p.store, None)
        self.site.show(effects)
        if not refused:
            self.site.gallery.redeem(effects)
        return changed

    def _remember(
        self, entry: Entry, operation: Operation, changed: list[int], refused: str, outcomes: list[Outcome],
        names: dict[int, str],
    ) -> None:
        """``changed``: regions, for each effect of the operation. ``outcomes``: of its plug-ins. ``names``: of the
        stores before and after it."""
        lsn = entry.last_lsn
        region_size = self.site.region_size
        members, begin, came = [], 0, iter(outcomes)
        plain = operations.plain(operation)
        for member in operations.members(operation):
            effects = member.effects(region_size)
            regions, begin = sum(changed[begin:begin + len(effects)]), begin + len(effects)
            of = next(came) if isinstance(member, Perform) else Outcome()
            members.append(MemberResult(kind=member.kind, bytes_changed=regions * region_size, created=_made(effects),
                                        digest=of.said, failed=of.failed))
        of = outcomes[0] if isinstance(plain, Perform) else Outcome()
        refusable = sum(count for count, effect in zip(changed, operation.effects(region_size), strict=False)
                        if isinstance(effect, CopiedImage | Reworked))
        result = OperationResult(lsn=lsn, kind=operation.kind, bytes_changed=sum(changed) * region_size,
                                 created=_made(operation.effects(region_size)), members=members,
                                 refused=refused, time_ns=entry.time_ns, bytes_refusable=refusable * region_size,
                                 seconds=max(0, self.window.time() - entry.time_ns) / 1e9 if entry.time_ns else None,
                                 arguments=operations.arguments(plain, names), digest=of.said, failed=of.failed)
        self.performed[result.kind] += 1
        with self.site.guard:  # links hear of refusals in threads of their own
            result = msgspec.structs.replace(
                result, links=self.links.pop(lsn, 0), refused_at=tuple(self._refused.pop(lsn, ())))
            self.bytes_avoided += result.bytes_avoided
            self.results[result.lsn] = result
            while len(self.results) > MOST_RESULTS:
                del self.results[next(iter(self.results))]

    def admitted(self, lsn: int) -> None:
        """It has its place here, and may even be performed already."""
        with self.site.guard:
            result = self.results.get(lsn)
            if result is None:
                self.links[lsn] = len(self.site.links)
                return
            known = msgspec.structs.replace(result, links=len(self.site.links))
            self.results[lsn] = known
            self.bytes_avoided += known.bytes_avoided - result.bytes_avoided

    def refused_at(self, link: str, lsn: int) -> None:
        """A secondary has refused what was admitted here, and gets the data instead: it may say so before this site has
        performed it, long after, and once more with each connection."""
        with self.site.guard:
            result = self.results.get(lsn)
            if result is None:
                names = self._refused.setdefault(lsn, []) if lsn > self.window.state().applied_lsn else [link]
                if link not in names:
                    names.append(link)
            elif link not in result.refused_at:
                known = msgspec.structs.replace(result, refused_at=(*result.refused_at, link))
                self.results[lsn] = known
                self.bytes_avoided -= result.bytes_avoided - known.bytes_avoided

    # ---- the mover

    def move(self) -> bool:
        """One step of the mover; False: it has nothing to do, or rests for want of room."""
        if not self.moving or self.held or self.shortage.is_mover_early:
            return False
        self.site.gallery.watch()
        short: NoRoom | None = None
        for slot, plan in self._work():
            try:
                if self._move(slot, plan):
                    return True
            except NoRoom as error:  # another device may be elsewhere, or may just go, which makes room
                short = error
        if short is not None:
            self.shortage.mover_found_none(short)
            return False
        self.moving = False
        self.shortage.mover_is_done()
        return False

    def _vacate(self, slot: int, start: int, most: int) -> tuple[int, int]:
        # Nothing is moved for the sake of a view alone, which does not last.
        return self.epoch.plan_vacate(slot, start, most, local=False)

    def _vacate_whole(self, slot: int, start: int, most: int) -> tuple[int, int]:
        return self.epoch.plan_vacate(slot, start, most, local=True)

    def _move(self, slot: int, plan: Plan) -> bool:
        """One step with one device; False: it has nothing to do there.

        Raises:
            NoRoom: nothing of the stage that found none was done.
        """
        most = max(1, self.site.options.move_bytes // self.site.region_size)
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
        if not self.stores.shown(slot, 1):
            if slot in self.shelf.zombies:
                self._release(slot)
                return True
            for image in self.site.gallery.leaving():
                if image.slot == slot:
                    self.site.gallery.let_go(image)
                    return True
        return False

    def free_slots(self, needed: int) -> None:
        """Hands devices of deleted stores over until so many slots are free, as part of a step: what was admitted, here
        or at the primary, must find room. There is, for live stores and views leave slots to deleted ones
        (``catalog.MOST_STORES``)."""
        while self.shelf.free_slots < needed:
            self.site.clear_room_for_note()
            moved = any(self._move(slot, self._vacate_whole) for slot in list(self.shelf.zombies))
            check(moved, f"{needed} slots are free once deleted stores have handed over what others show")

    def _work(self) -> Iterator[tuple[int, Plan]]:
        """(slot, how): volumes that show others' devices, then devices of deleted stores, images that were removed, and
        the scratch.

        Snapshots and clones rest: what they show is copied only when it is about to be overwritten.
        """
        for store in [] if self.resting or self.shortage.stands else list(self.site.here.catalog):
            if store.kind == VOLUME and store.origin == 0:
                slot = self.shelf.places[store.id].slot
                if self.stores.foreign(slot):
                    yield slot, self.epoch.plan_move
        yield from [(slot, self._vacate) for slot in self.shelf.zombies]
        yield from [(image.slot, self._vacate_whole) for image in self.site.gallery.leaving()]
        if self.shelf.scratch is not None and self.stores.shown(self.shelf.scratch.slot, 1):
            yield self.shelf.scratch.slot, self._vacate

    def give_back(self) -> bool:
        """A deleted store's device that nobody shows leaves the table: its file makes room. False: there is none."""
        slot = next((slot for slot in self.shelf.zombies if not self.stores.shown(slot, 1)), None)
        if slot is not None:
            self._release(slot)
        return slot is not None

    def _release(self, slot: int) -> None:
        self.window.make_durable(self.window.append_note(notes.RELEASED, notes.encode(notes.Released(slot))))
        self.shelf.release(slot)


def _made(effects: list[Effect]) -> list[int]:
    return [effect.store for effect in effects if isinstance(effect, Created)]
