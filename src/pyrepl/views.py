"""Views: what a store showed at one LSN, read-only, at this site alone.

A view is a hidden store with a source map of its own. It is made between two steps of the applier by the machinery of
operations (``shelf``), so whatever overwrites a device moves what a view shows from it, as for a snapshot, and the
mover rests for it. It is in no stream and in no catalog: peers do not know it, and store numbers from
``layout.FIRST_LOCAL`` on are never theirs.

    open     a note, durable before the map changes (rule view_note): notes of maps that follow may re-point the view
    keep     the same for several stores at one LSN, under a label and over restarts. A checkpoint comes first, so that
             no redo writes below them what they show (rule view_kept)
    close    a note likewise; the device then is a deleted store's, and leaves the table when nobody shows it
    a start  closes what a dead process left open: nobody reads those any more. What is kept it leaves

Decides when a view may be opened. What it costs is what any snapshot costs: the old content of what is overwritten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyrepl import notes
from pyrepl._core import layout
from pyrepl.catalog import MOST_VIEWS, View
from pyrepl.errors import NotFound, Refused, check
from pyrepl.operations import Copied, Created, Deleted, Effect
from pyrepl.shortage import room_for

if TYPE_CHECKING:
    from pyrepl.site import Site


PROTECTIVE = "protective"  # the label of those that are a protective snapshot: none of MOST_VIEWS, and kept as one


class Shown(NamedTuple):
    """What a view of a store would show: ``source``, if not the store itself, and at which LSN."""

    source: int
    name: str
    size: int
    lsn: int


class Views:
    """The views of one site. ``open`` and ``close`` may be called from any thread, one at a time."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.opened: dict[int, View] = {}
        self.next_id = layout.FIRST_LOCAL
        self._counted = 0
        self.promised: dict[bytes, int] = {}  # token of a verification that is not performed -> its views

    @property
    def expected(self) -> int:
        """So many views may be re-pointed by applying what the journal holds."""
        return self._counted + sum(list(self.promised.values()))

    def open(self, store: int) -> View:
        """Shows from now on what this store shows when everything is applied that the journal held at the call.

        Raises:
            Refused: a secondary that is no earlier state of its primary now; too many views; no room.
            NotFound: there is no such store.
        """
        return self.open_all([store])[0]

    def keep(self, label: str, stores: list[int]) -> None:
        """Shows from now on, over restarts too, what these stores show when everything is applied that the journal held
        at the call, be it consistent or not; durable on return. Harmless if just that is kept under this label.

        Raises:
            Refused: too many views; no room. Nothing is kept.
        """
        site = self.site
        known = self.kept(label)
        if {view.store for view in known} == set(stores):
            return
        if self.count - len(known) + len(stores) > MOST_VIEWS:
            raise Refused(
                f"group {site.name!r} has {self.count} views, and {MOST_VIEWS} are the most: there is no room to "
                f"keep {len(stores)} stores as {label!r}. Delete kept snapshots, or close views",
                reason="limit",
                retryable=True,
            )
        self._expect(len(self.opened) + len(stores))
        try:
            site.perform_what_arrived()
            site.exclusive(lambda: self._keep(label, stores))
        finally:
            self._expect(len(self.opened))

    @property
    def count(self) -> int:
        """So many are open beside those of the protective snapshot."""
        return sum(view.label != PROTECTIVE for view in list(self.opened.values()))

    def open_all(self, stores: list[int]) -> list[View]:
        """The same for several stores, at one LSN: all of them, or none.

        Raises:
            Refused, NotFound: as of :meth:`open`.
        """
        site = self.site
        self._expect(len(self.opened) + len(stores))
        try:
            # What is not applied yet was given room in the log without these views (rule view_room).
            site.perform_what_arrived()

            def open_them() -> list[View]:
                site.make_room_for_note()
                site.shortage.check("show what its stores show")  # rule stand_whole
                opened = self._open_all(stores, "", {store: self.judge(store) for store in stores})
                return [opened[store] for store in stores]

            made: list[View] = site.exclusive(open_them)
        finally:
            self._expect(len(self.opened))
        return made

    def kept(self, label: str = "") -> list[View]:
        """The views that are kept under this label; all that are kept but those of the protective snapshot."""
        return [
            view
            for view in list(self.opened.values())
            if view.label and (view.label == label or (not label and view.label != PROTECTIVE))
        ]

    def close(self, number: int) -> None:
        """The view is gone. Harmless the second time.

        Raises:
            Refused: it is a part of the protective snapshot.
        """
        view = self.opened.get(number)
        if view is not None and view.label == PROTECTIVE:
            raise Refused(
                f"what group {self.site.name!r} shows of {view.name!r} at LSN {view.lsn} is a part of its protective "
                f"snapshot, which is given up as a whole: pyrepl group unprotect {self.site.name}",
                reason="protective",
            )
        self.site.exclusive(lambda: self._close([number]) if number in self.opened else None)

    def take_number(self) -> int:
        """A number of this site's own, between two steps."""
        self.next_id += 1
        return self.next_id - 1

    def judge(self, store: int) -> Shown:
        """What a view of this store would show now: the store, or of a secondary that is being resynchronized what its
        protective snapshot has kept.

        Raises:
            Refused, NotFound: it may not.
        """
        site = self.site
        if site.here.consistent:
            found = site.here.catalog[store]
            return Shown(0, found.name, found.size, site.here.lsn)
        return self._sheltered(store)

    def readable(self, store: int) -> int:
        """Where to read what this store shows now: the store, or the view that the protective snapshot has of it.

        Raises:
            Refused: neither is a state of the primary.
        """
        return store if self.site.protective.is_settled else self._sheltered(store).source

    def _sheltered(self, store: int) -> Shown:
        site = self.site
        kept = site.protective.snapshot
        stores = {} if kept is None else {entry.id: entry for entry in kept.stores}
        if kept is None or store not in stores:
            raise Refused(
                f"group {site.name!r} is not an earlier state of its primary at this site now, and keeps none of that "
                f"store: it can be read when status says consistent, after the link has copied what differs",
                reason="inconsistent",
                retryable=True,
            )
        return Shown(kept.views[store], stores[store].name, stores[store].size, kept.lsn)

    # ---- many at once, for an operation

    def promise(self, token: bytes, count: int) -> None:
        """So many views are opened when the operation of this token is performed: what follows it has room for them
        (rule view_room)."""
        self.promised[token] = count
        self.site.expect_notes()

    def withdraw(self, token: bytes) -> None:
        """They are not."""
        self.promised.pop(token, None)
        self.site.expect_notes()

    def open_promised(self, token: bytes, stores: list[int]) -> dict[int, View]:
        """Views of these stores as far as they exist, in the step that has performed the operation, whether the site is
        consistent or not: for the engine only.

        Raises:
            Refused, OSError: there is no room; nothing was opened.
        """
        site = self.site
        if token not in self.promised:
            raise Refused("it was admitted before the last start of the site", reason="state")
        try:
            there = [store for store in stores if store in site.here.catalog][: self.promised[token]]
            return self._open_all(there, "")
        finally:
            self._counted = max(self._counted, len(self.opened))
            self.withdraw(token)

    def _open_all(self, stores: list[int], label: str, shown: dict[int, Shown] | None = None) -> dict[int, View]:
        """Between two steps; all of them, or none. ``shown``: what of each, if not what it shows now."""
        site = self.site
        if self.count + len(stores) > MOST_VIEWS:
            raise Refused(
                f"group {site.name!r} has {self.count} views at this site, and no room for {len(stores)} more: "
                f"{MOST_VIEWS} are the most, close some first",
                reason="limit",
            )
        self._check_slots(len(stores))
        site.check_checkpoint_room()
        if not site.clear_room_for_note():
            raise Refused("the journal is full of writes that are not applied yet: try again", reason="journal",
                          retryable=True)
        opened = self._prepare({store: self._now(store) for store in stores} if shown is None else shown, label)
        position = 0
        try:
            for note in opened:
                position = site.window.append_note(notes.OPENED, notes.encode(note))
        except BaseException:
            if not position:  # else a start may find some of them
                for note in opened:
                    site.shelf.placement.remove(note.placed.path)
            raise
        if position:
            site.window.make_durable(position)  # rule view_note
        return {note.view.store: self._enter(note) for note in opened}

    def _check_slots(self, count: int) -> None:
        if len(self.site.stores.slots()) + count >= layout.MAX_STORES - 64:
            raise Refused(
                f"group {self.site.name!r} has no slots for {count} more views: deleted stores keep theirs until what "
                f"others show from them is handed over; try again",
                reason="limit",
                retryable=True,
            )

    def _now(self, store: int) -> Shown:
        entry = self.site.here.catalog[store]
        return Shown(0, entry.name, entry.size, self.site.here.lsn)

    def _prepare(self, shown: dict[int, Shown], label: str) -> list[notes.Opened]:
        """Devices of views of these stores; nothing names them yet."""
        site = self.site
        paths: dict[int, tuple[str, bool]] = {}
        try:
            made: list[View] = []
            for store, (source, name, size, lsn) in shown.items():
                number = self.take_number()
                with room_for():
                    paths[number] = (site.shelf.placement.create(f"view-of-{name}", number, size), True)
                made.append(View(id=number, store=store, name=name, size=size, lsn=lsn, label=label, source=source))
            effects = [effect for view in made for effect in _effects(view, site.region_size)]
            placed, scratch, _ = site.shelf.prepare(effects, paths, {})
            check(scratch is None and len(placed) == len(made), "a store that is shown needs no larger scratch")
        except BaseException:
            for path, _ in paths.values():
                site.shelf.placement.remove(path)
            raise
        return [notes.Opened(view, place) for view, place in zip(made, placed, strict=True)]

    def _enter(self, note: notes.Opened) -> View:
        self.take_opened(note)
        self.site.window.set_store(note.view.id, note.view.size, False)
        return note.view

    def open_now(self, stores: list[int], label: str) -> list[View]:
        """Views of these stores, in a step in which everything is applied; all of them, or none. Durable with the next
        checkpoint, which is the caller's next act: before it no note may be appended.

        Raises:
            Refused: there is no room; nothing was opened.
        """
        site = self.site
        self._check_slots(len(stores))
        site.check_checkpoint_room()
        return [self._enter(note) for note in self._prepare({store: self._now(store) for store in stores}, label)]

    def _keep(self, label: str, stores: list[int]) -> None:
        self.site.applier.catch_up()
        self.site.shortage.check("keep what its stores show")  # rule stand_whole
        torn = self.kept(label)  # a crash left a part of them
        if torn:
            self._close([view.id for view in torn])
        self.site.checkpoint()  # rule view_kept
        self._open_all([store for store in stores if store in self.site.here.catalog], label)

    def close_these(self, numbers: list[int]) -> None:
        """Several are gone, between two steps."""
        if numbers:
            self._close(numbers)

    # ---- between two steps

    def _close(self, numbers: list[int]) -> None:
        site = self.site
        site.make_room_for_note()
        note = notes.Closed(numbers)
        site.window.make_durable(site.window.append_note(notes.CLOSED, notes.encode(note)))  # rule view_note
        self.take_closed(note)
        for number in numbers:
            if site.window.store_size(number) is not None:  # a start finds them in the maps only
                site.window.drop_store(number)
        self._expect(len(self.opened))
        site.applier.moving = True  # its device may be free now, or a deleted store's that only it showed

    def _expect(self, count: int) -> None:
        self._counted = count
        self.site.expect_notes()

    # ---- recovery

    def restore(self, views: list[View], next_id: int) -> None:
        """Becomes what a checkpoint says; the shelf has their devices and maps already."""
        self.opened = {view.id: view for view in views}
        self.next_id = next_id
        self._counted = len(self.opened)

    def take_opened(self, note: notes.Opened) -> None:
        """The note says that it happened."""
        view, site = note.view, self.site
        site.shelf.perform(_effects(view, site.region_size), [note.placed], None, 0)
        self.opened[view.id] = view
        self.next_id = max(self.next_id, view.id + 1)
        self._counted = max(self._counted, len(self.opened))

    def take_closed(self, note: notes.Closed) -> None:
        """The note says that it happened."""
        for number in note.views:
            del self.opened[number]  # first: a reader who finds no map asks here why
        effects: list[Effect] = [Deleted(number) for number in note.views]
        self.site.shelf.perform(effects, [], None, 0)

    def close_all(self) -> None:
        """At a start, when the journal can be appended to: nobody reads what a dead process had opened. What is kept
        can be read again."""
        ended = [view.id for view in self.opened.values() if not view.label]
        if ended:
            self._close(ended)
        for view in self.opened.values():
            self.site.window.set_store(view.id, view.size, False)

    # ---- for people

    def __getitem__(self, number: int) -> View:
        try:
            return self.opened[number]
        except KeyError:
            raise NotFound(f"there is no view {number}: it was closed", view=number) from None


def _effects(view: View, region_size: int) -> list[Effect]:
    regions = view.size // region_size
    return [Created(view.id, regions, True), Copied(view.id, view.source or view.store, 0, regions)]
