"""What arrives at a secondary: batches of events, operations, items and copied regions, as the stream has them.

Each is appended to the journal unchanged, and to the point of the journal's end; nothing is performed here. Decides
what must be so before it is appended (room, a name that is free, a protective snapshot, a refusal that is noted), and
what readers are told of stores that are to come. Must not know connections (``replica``), nor how anything is
performed (``applier``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from pyrepl import items, notes, operations
from pyrepl._core import batch, layout
from pyrepl.catalog import VOLUME, Catalog, Store, check_new_name, check_size
from pyrepl.errors import Diverged, PeerError, Refused, check
from pyrepl.lineage import Lineage
from pyrepl.operations import Copied, CopiedImage, Created, Deleted, Effect, Operation, Resized, Reworked
from pyrepl.point import Point
from pyrepl.roles import MOST_ABOVE, SECONDARY
from pyrepl.shortage import NoRoom, room_for

if TYPE_CHECKING:
    from pyrepl.site import Site

LOOK = 0.1  # seconds until it is looked again whether a place in the journal can be waited for


class Intake:
    """Of one site. ``receive`` is called by the thread that takes in the stream, the rest by whoever pairs."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.items_until = 0  # journal position behind the last thing that came beside the order
        self.is_coming = False  # such a thing is being appended
        self.turning = False  # a fork that leads this site elsewhere is about to arrive: no link may connect
        self.taken: Callable[[], None] = lambda: None  # called when more than events was taken in, or was not after all
        self.ends: Callable[[], bool] | None = None  # whether the connection that brings it is over

    def receive(self, head: memoryview, payload: memoryview) -> int:
        """Appends a batch that was judged and checked against the protocol, unchanged; the position after it.

        Raises:
            Refused, UsageError, NotFound, Exists: an operation that this site cannot perform; nothing was appended.
        """
        site = self.site
        check(site.role == SECONDARY, "only a secondary receives")
        # Before anybody may read what it brings: no link copies that meanwhile (rule cascade_pass).
        kind = batch.head(head).kind
        self.is_coming = kind in (layout.BATCH_COPIED, layout.BATCH_ITEM)
        try:
            after = self._receive(head, payload)
            if self.is_coming:
                self.items_until = after
            return after
        finally:
            self.is_coming = False
            site.protective.arrived()
            if self.turning:
                with site.guard:
                    self.turning = False
            if kind not in (layout.BATCH_EVENTS, layout.BATCH_COPIED):
                # The applier may have looked, and rest, between its place in the journal and what that means here: a
                # plug-in whose outcome is awaited, room that is kept for more views, a snapshot that is over.
                self.taken()

    def _protect(self) -> None:
        """What is about to be appended leaves the stores no earlier state of the primary (rule protect_first)."""
        site = self.site
        if site.end.consistent:
            site.protective.keep()

    def _turn(self) -> None:
        """A fork leads this site away from where it stands: its LSNs come again, with other events. What its links know
        is forgotten before that is in the journal, durably (rule cascade_turn)."""
        site = self.site
        with site.guard:
            self.turning = True  # and nothing is begun for a sibling any more, for something is coming
            for link in list(site.links.values()):
                link.void()
        if site.links:
            site.exclusive(self._begin_again)
        elif site.siblings.kept:
            site.exclusive(self._forget_siblings)

    def _forget_siblings(self) -> None:
        self.site.siblings.forget()  # rule sibling_turn: durable before the fork is in the journal
        self.site.checkpoint()

    def _begin_again(self) -> None:
        site = self.site
        site.applier.catch_up()
        if (site.here.lsn, site.here.item) != (site.end.lsn, site.end.item):
            raise Refused("what is left behind is not applied yet", reason="state", retryable=True)
        for link in site.links.values():
            with site.guard:
                link.begin_again("this site was led away from where it stood")
        self._forget_siblings()

    def _receive(self, head: memoryview, payload: memoryview) -> int:
        site = self.site
        site.refused = ""
        travel = batch.head(head)
        if travel.kind == layout.BATCH_EVENTS:
            site.protective.check_room(len(payload), travel.count)
            after = self._append(head, payload)
            site.end.take_events(travel.first_lsn + travel.count - 1)
        elif travel.kind == layout.BATCH_COPIED:
            self._protect()
            site.protective.check_room(len(payload))
            after = self._append(head, payload)
            site.end.take_copied(travel.item)
        else:
            record = batch.records(head)[0]
            body = bytes(payload[record.payload:record.payload + record.length])
            if travel.kind == layout.BATCH_OPERATION:
                after = self._receive_operation(head, payload, operations.decode(body), travel.first_lsn)
            else:
                after = self._receive_item(head, payload, items.decode(body), travel.item)
        return after

    def _append(self, head: memoryview, payload: memoryview, blocks: Sequence[int] = ()) -> int:
        """Waits for its place in the journal; the position after it.

        Raises:
            Refused: the site stands still, and there is none.
            PeerError: the connection has ended before there was one.
        """
        while True:
            try:
                return self.site.window.append_received(head, payload, blocks=blocks, timeout=LOOK)[1]
            except TimeoutError:
                self.site.shortage.turn_away()
                if self.ends is not None and self.ends():
                    raise PeerError("the connection has ended", retryable=True, reason="stop") from None

    def _receive_operation(self, head: memoryview, payload: memoryview, operation: Operation, lsn: int) -> int:
        site = self.site
        operation.check(site.end.catalog)
        effects = operation.effects(site.region_size)
        catalog = site.end.catalog.copy()
        operation.apply(catalog)
        operations.judge(effects, catalog, site.region_size)
        with suppress(NoRoom), room_for():  # else the site stands still where it is to be performed
            site.reserve([e for e in effects if isinstance(e, Resized)], {}, {})
        refused = self._refuse(effects, lsn)
        if refused or operations.unsettles(operation):
            self._protect()
        if isinstance(operation, operations.Compared):
            site.verification.announce(operation)
        works = bool(operations.works(operation))
        if works:
            site.outcomes.receive(len(site.end.catalog.stores))
        try:
            after = self._append(head, payload, operation.blocks)
        except BaseException:
            if not refused:
                site.gallery.redeem(effects)
            if isinstance(operation, operations.Compared):
                site.verification.retract(operation)
            if works:
                site.outcomes.done()
            raise
        with site.guard:  # the applier may say meanwhile what came of an earlier one
            site.end.take_operation(operation, lsn, refused, secondary=True)
        if works:
            site.outcomes.received_until = after
        site.refused = refused
        site.expect_notes(len(site.end.catalog.stores))
        self._announce(effects)
        return after

    def _refuse(self, effects: list[Effect], lsn: int) -> str:
        """Why this site cannot perform what the operation copies from images: it is performed without, and the primary
        sends the data. Empty: it can. Noted before the operation is there, and taken back if it comes again."""
        site = self.site
        reason, known = site.gallery.try_pledge(effects), site.refusing.get(lsn, "")
        if reason == known:
            return reason
        self._set_refusing(lsn, reason)  # before the note: a checkpoint may come between
        try:
            if site.is_crowded():
                raise Refused("the journal is full of what is not applied yet", reason="journal", retryable=True)
            site.window.append_note(notes.REFUSED, notes.encode(notes.Refused(lsn, reason)))
        except BaseException:
            self._set_refusing(lsn, known)
            if not reason:
                site.gallery.redeem(effects)
            raise
        return reason

    def _set_refusing(self, lsn: int, reason: str) -> None:
        site = self.site
        if reason:
            site.refusing[lsn] = reason
        else:
            site.refusing.pop(lsn, None)

    def _receive_item(self, head: memoryview, payload: memoryview, item: items.Item, number: int) -> int:
        site = self.site
        if isinstance(item, items.Make):
            check_new_name(site.end.catalog, item.store.name)
            check_size(item.store.size, site.region_size)
        if isinstance(item, items.Fork) and item.lsn < site.end.lsn and site.refusing:
            site.exclusive(site.applier.catch_up)
        if isinstance(item, items.Fork) and item.lsn < site.end.lsn and site.refusing:
            # Its LSNs come again.
            raise Refused("what is left behind is not applied yet", reason="state", retryable=True)
        if site.end.unsettles(item):
            self._protect()
            if isinstance(item, items.Fork):
                self._turn()
        after = self._append(head, payload)
        site.end.take_item(item, number)
        match item:
            case items.Fork() | items.Skip():
                site.window.set_lsn(site.end.lsn)
            case items.Make(info):
                site.window.announce(info.id, info.size)
            case items.Drop(store):
                site.window.announce(store, 0)
            case items.Handover(succession) if succession is not None:
                site.roles.asked()
        site.expect_notes(len(site.end.catalog.stores))
        return after

    def _announce(self, effects: list[Effect]) -> None:
        site = self.site
        for effect in effects:
            match effect:
                case Created(store, regions, _) | Resized(store, regions):
                    site.window.announce(store, regions * site.region_size)
                case Deleted(store):
                    site.window.announce(store, 0)
                case Copied() | CopiedImage() | Reworked():
                    pass

    # ---- before it is fed

    def prepare_volume(self, name: str, size: int, path: str = "") -> int:
        """A fresh secondary gets a volume before it is paired; durable. Its id holds until the primary gives it
        another.

        Raises:
            Refused: the group is a primary, or paired: then volumes come by the stream.
        """
        site = self.site
        return int(site.exclusive(lambda: self._prepare_volume(name, size, path)))

    def _prepare_volume(self, name: str, size: int, path: str) -> int:
        site = self.site
        if site.role != SECONDARY or site.group_id is not None:
            raise Refused(
                f"group {site.name!r} is not a fresh secondary: a volume is added at the primary", reason="role"
            )
        catalog = site.here.catalog
        check_new_name(catalog, name)
        check_size(size, site.region_size)
        if path:
            site.shelf.placement.resize(path, size)
        store = Store(id=catalog.next_id, name=name, kind=VOLUME, size=size)
        effects: list[Effect] = [Created(store.id, size // site.region_size, False)]
        placed = site.shelf.prepare(effects, {store.id: (path, False)} if path else {}, {store.id: name})
        site.shelf.perform(effects, *placed)
        catalog.add(store)
        site.end = site.here.copy()
        site.window.set_store(store.id, size, False)
        site.expect_notes(len(catalog.stores))
        site.checkpoint()
        return store.id

    def take_back_volume(self, name: str) -> None:
        """A volume that was prepared is none any more, as long as this site is not paired; durable on return. Its
        device is given back as it is; a file that this site made for it is removed.

        A crash before the checkpoint leaves the volume as it was, for nothing on disk has changed by then; its file
        goes when a checkpoint that does not name it is durable (rule of every deleted store).

        Raises:
            NotFound: there is no such volume.
            Refused: the group is a primary, or paired: its volumes go by the stream.
        """
        self.site.exclusive(lambda: self._take_back_volume(name))

    def _take_back_volume(self, name: str) -> None:
        site = self.site
        if site.role != SECONDARY or site.group_id is not None:
            raise Refused(
                f"group {site.name!r} is paired, and its volumes are its primary's: remove {name!r} there, and it goes "
                f"here too. To give it another device here, delete the group here, make it anew, and add a link to it "
                f"at the primary: everything is copied",
                reason="role",
            )
        catalog = site.here.catalog
        store = catalog.by_name(name)
        slot = site.shelf.places[store.id].slot
        site.window.drop_store(store.id)
        site.shelf.perform([Deleted(store.id)], [], None, 0)
        site.shelf.release(slot)  # no map ever showed it but its own
        del catalog.stores[store.id]
        site.end = site.here.copy()
        site.expect_notes(len(catalog.stores))
        site.checkpoint()

    def adopt(self, group_id: bytes, ids: dict[str, int], lineage: Lineage, lsn: int, primary: bytes,
              above: list[bytes], turns: int) -> None:
        """First pairing: this secondary takes over identity, store numbers, lineage and position; durable on return.

        Raises:
            Diverged: it is paired already, with another group.
        """
        site = self.site
        site.exclusive(lambda: self._adopt(group_id, ids, lineage, lsn, primary, above, turns))

    def _adopt(self, group_id: bytes, ids: dict[str, int], lineage: Lineage, lsn: int, primary: bytes,
               above: list[bytes], turns: int) -> None:
        site = self.site
        if site.group_id is not None:
            raise Diverged(
                f"group {site.name!r} is paired already, as {site.group_id.hex()}", group=site.group_id.hex()
            )
        if set(ids) != {store.name for store in site.here.catalog}:
            raise Refused("volumes came or went here while it was paired: it is tried again", reason="state",
                          retryable=True)
        site.applier.finish()
        adopted = Catalog()
        for store in site.here.catalog:
            adopted.add(Store(id=ids[store.name], name=store.name, kind=store.kind, size=store.size))
            site.window.drop_store(store.id)
        site.shelf.renumber({store.id: (ids[store.name], store.size) for store in site.here.catalog})
        site.here = Point(lsn=lsn, lineage=lineage, consistent=False, item=0, catalog=adopted)
        site.end = site.here.copy()
        site.group_id, site.fed_by = group_id, primary
        site.above, site.turns_there = above[:MOST_ABOVE], turns
        site.window.set_generation(lineage.generation, group_id)
        site.window.set_lsn(lsn)
        state = site.window.state()
        site.window.applied(state.applied_position, lsn)
        for store in adopted:
            site.window.set_store(store.id, store.size, False)
        site.checkpoint()
