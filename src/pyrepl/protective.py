"""The protective snapshot of a secondary: its last consistent state, which it keeps while it is none, and goes back to.

Before the first thing arrives that leaves the stores no earlier state of the primary (``Point.unsettles``), all stores
are kept as views, with lineage and LSN: local, in no stream. What is copied or applied afterwards leaves them alone, by
copy before write. They go when the site is consistent again.

    keep     everything that has arrived is performed, delayed or not; then one checkpoint holds the views, and nothing
             of what is to come is in the journal (rule protect_first): a crash leaves the snapshot as a whole, or has
             no need of it
    drop     the note *closed*, behind the item *consistent* in the journal (rule protect_drop): what says that it is
             gone is durable only if what makes it needless is
    go back  the stores become what the views show, by their maps; lineage, LSN and catalog are those of the snapshot.
             Durable with the checkpoint that makes this site a primary (rule protect_return), so it is never torn
    give up  by command only: the views go, and none are kept until the site is consistent again

What is overwritten while it is kept moves to it, and needs space. What arrives is refused before that space comes to
its end, so that the resync stands still and the group does not fail (rule protect_room): what would begin it, and
copied regions, while there is still enough for events; then these.

Decides when there is one, and what going back to it is. Must not know who asks for that (``roles``), nor how a view is
made (``views``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyrepl import notes
from pyrepl.catalog import Catalog, ProtectiveSnapshot, View
from pyrepl.errors import NotFound, Refused, check
from pyrepl.lineage import Lineage
from pyrepl.operations import Copied, Created, Deleted, Effect, Resized
from pyrepl.point import Point
from pyrepl.shortage import NoRoom
from pyrepl.views import PROTECTIVE

if TYPE_CHECKING:
    from pyrepl.site import Site

SPARE = 16 << 20  # bytes that a resync leaves to events and to what else is written
LEAST = 4 << 20  # bytes that events leave, while what they overwrite is kept
_TOKEN = b"protective"


class Protective:
    """Of one site. ``keep`` is called by the thread that takes in the stream, everything else between two steps."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._record: ProtectiveSnapshot | None = None
        self._awaited = False  # it was made, and what it is made for has not arrived yet
        self.unsettlings = 0  # so often something was about to arrive that leaves the stores no earlier state
        self._arriving = False  # ... and is arriving now
        self._unsettled = 0  # journal position behind the last of it
        self._turned_away: tuple[int, int] | None = None  # bytes and number of the events that found no room

    @property
    def is_settled(self) -> bool:
        """Whether what readers find in the stores themselves is a state of the primary. Of a site that is no secondary,
        or is not paired yet, always. Who reads the stores looks at ``unsettlings`` before this, and again when it has
        read."""
        site = self.site
        if site.role != "secondary" or site.group_id is None:
            return True
        if self._arriving or not site.end.consistent:
            return False
        if not site.delay.is_parking:
            return True  # readers find all that has arrived
        is_past = self._record is None or self.is_over()
        state = site.window.state()
        if state.shown_position is not None and not site.shortage.shows(state.shown_position):
            return False
        return site.here.consistent and is_past and state.applied_position >= self._unsettled

    @property
    def snapshot(self) -> ProtectiveSnapshot | None:
        """What is kept now."""
        record = self._record
        if record is None or any(view not in self.site.views.opened for view in record.views.values()):
            return None
        return record

    def restore(self, record: ProtectiveSnapshot | None) -> None:
        """Becomes what a checkpoint says. Notes that follow may close its views: then there is none."""
        self._record = record

    # ---- keep

    def keep(self) -> None:
        """Something is about to arrive that leaves the stores no earlier state of the primary. Durable on return.

        Raises:
            Refused: there is no room for the snapshot, or what arrived before is held up at a mark. Nothing was done.
        """
        site = self.site
        if not site.end.waived:
            self._refuse_short(SPARE, 0)  # before anything is made that would find none
            self._keep_all()
        self._arriving = True  # before it counts: who has not seen it counted does not find it settled either
        self.unsettlings += 1

    def _keep_all(self) -> None:
        site = self.site
        # What arrives from now on finds room in the log for these views too (rule view_room).
        site.views.promise(_TOKEN, len(site.end.catalog.stores))
        try:
            site.perform_what_arrived()
            site.exclusive(self._keep)
        finally:
            site.views.withdraw(_TOKEN)

    def check_room(self, length: int, events: int = 0) -> None:
        """So many bytes, of so many events or of copied regions, are about to arrive: what they overwrite moves to the
        snapshot, and needs space. Copied regions are refused before there is none for events.

        Raises:
            Refused: the text says what helps.
        """
        if self.snapshot is None:
            return
        try:
            self._judge_room(LEAST if events else SPARE, length, events)
        except Refused:
            self._turned_away = (length, events) if events else self._turned_away
            raise

    def check_feed(self) -> None:
        """A primary is about to feed this site: it is told at once, and sends nothing, if events found no room and
        there is still none.

        Raises:
            Refused: the text says what helps.
        """
        if self._turned_away is None:
            return
        if self.snapshot is not None:
            self._refuse_short(LEAST, self._cost(*self._turned_away))
        self._turned_away = None

    @property
    def is_tight(self) -> bool:
        """Whether what arrives may find no room: it is to be taken in one by one then, each with :meth:`check_room`."""
        return self.snapshot is not None and self.site.shelf.placement.room() < LEAST + self._most()

    def _judge_room(self, spare: int, length: int, events: int) -> None:
        """What has arrived is performed first if it is in the way, and not delayed: what it costs is known then."""
        site, cost = self.site, self._cost(length, events)
        waiting = self._waiting()
        if site.shelf.placement.room() >= spare + min(cost + waiting, self._most()):
            return
        if waiting and not site.delay.is_parking:
            site.perform_what_arrived()
        self._refuse_short(spare, cost + self._waiting())

    def _waiting(self) -> int:
        state = self.site.window.state()
        return self._cost(state.end_position - state.applied_position, state.end_lsn - state.applied_lsn)

    def _refuse_short(self, spare: int, cost: int) -> None:
        site, record = self.site, self.snapshot
        needed = spare + min(cost, self._most())
        room = site.shelf.placement.room()
        if room >= needed:
            return
        kept = (
            f"What is overwritten is kept in the protective snapshot of LSN {record.lsn}, until the resync is over. "
            f"Free some space, or give the snapshot up" if record is not None else
            "A protective snapshot must be kept before it. Free some space, or go without it"
        )
        raise Refused(
            f"the file system of group {site.name!r} has {room} bytes left, and the resync needs {needed}: it stands "
            f"still. {kept}: pyrepl group unprotect {site.name}",
            reason="space",
            retryable=True,
        )

    def _cost(self, length: int, events: int) -> int:
        """Bytes that so much may take: where it is written, and in the snapshot, whole regions at either end of each
        event."""
        return 2 * (length + events * self.site.region_size)

    def _most(self) -> int:
        """Bytes that all stores may take, and what they were: no more is ever overwritten."""
        return 2 * sum(store.size for store in self.site.end.catalog)

    def keep_here(self) -> None:
        """In the applier's step, which is about to perform something that does not come to what it came to at the
        primary. What stands behind it in the journal was given room for these views (``outcomes``). Where there is no
        room otherwise the site goes on without."""
        site = self.site
        if site.here.waived or not site.here.consistent:
            return
        if self.snapshot is not None:
            self._drop()
        stores = list(site.here.catalog)
        try:
            kept = site.views.open_now([store.id for store in stores], PROTECTIVE)
        except (Refused, OSError):
            return
        self._enter(kept)

    def arrived(self) -> None:
        """What it was made for is in the journal, or will not come now."""
        self._awaited = False
        if self._arriving:
            self._unsettled = self.site.window.state().end_position
            self._arriving = False

    def _keep(self) -> None:
        site = self.site
        site.applier.catch_up()
        site.shortage.check("keep the protective snapshot that must be there before a resync")
        here, end = site.here, site.end
        if (here.lsn, here.item) != (end.lsn, end.item):
            raise Refused(
                f"group {site.name!r} must keep a protective snapshot before it is resynchronized, and a mark is held "
                f"or a plug-in runs here at LSN {here.lsn + 1}: it goes on when that has ended",
                reason="state",
                retryable=True,
            )
        if not here.consistent:
            return  # a plug-in did not come to what it is to be, just now: what was before is kept
        if self.snapshot is not None:
            self._drop()  # of a time before: what it was made for did not come
        stores = list(here.catalog)
        try:
            kept = site.views.open_now([store.id for store in stores], PROTECTIVE)
        except NoRoom as error:
            raise Refused(
                f"the file system of group {site.name!r} has no space for the protective snapshot that must be kept "
                f"before the resync: it stands still. Free some space, or go without it: pyrepl group unprotect "
                f"{site.name}",
                reason="space",
                retryable=True,
            ) from error
        except Refused as error:
            raise Refused(
                f"{error.text}. A protective snapshot of {len(stores)} stores must be kept before the resync; to go "
                f"without it: pyrepl group unprotect {site.name}",
                reason="state",
                retryable=True,
            ) from error
        self._awaited = True
        self._enter(kept)  # before what they are kept for is in the journal

    def _enter(self, kept: list[View]) -> None:
        here = self.site.here
        self._record = ProtectiveSnapshot(
            lineage=here.lineage.encode(),
            lsn=here.lsn,
            item=here.item,
            stores=list(here.catalog),
            next_id=here.catalog.next_id,
            views={view.store: view.id for view in kept},
        )
        self.site.checkpoint()  # rule protect_first: the views, as a whole, before what they are kept for is performed

    # ---- drop

    def is_over(self) -> bool:
        """Whether it is needed no more: the item *consistent* has been performed, or what it was made for did not
        come."""
        record, here, end = self._record, self.site.here, self.site.end
        if record is None or self._awaited or not (here.consistent and end.consistent):
            return False
        return here.item > record.item or (here.lsn, here.item) == (end.lsn, end.item)

    def drop(self) -> None:
        """It is needed no more."""
        self._drop()

    def _drop(self) -> None:
        record, self._record = self.snapshot, None
        if record is not None:
            self.site.views.close_these(list(record.views.values()))  # rule protect_drop: a note behind *consistent*

    def give_up(self) -> None:
        """There is none, and none is kept until this site is consistent again. Durable on return.

        Raises:
            Refused: a primary, which has none.
        """
        self.site.exclusive(self._give_up)

    def _give_up(self) -> None:
        site = self.site
        if site.role != "secondary":
            raise Refused(f"group {site.name!r} is a primary here: only a secondary keeps a protective snapshot",
                          reason="role")
        site.applier.catch_up()
        self._drop()
        site.here.waived = site.end.waived = True
        site.checkpoint()

    # ---- go back

    def go_back(self) -> None:
        """The site is what it was when the snapshot was kept, and the snapshot is gone. Everything that has arrived is
        applied. Durable with the next checkpoint, which is the caller's next act: before it no record may be appended
        that means something of this state.

        Raises:
            NotFound: there is none.
        """
        site, record = self.site, self.snapshot
        if record is None:
            raise NotFound(f"group {site.name!r} has no protective snapshot")
        here, window = site.here, site.window
        state = window.state()
        check(here.lsn == state.applied_lsn == state.end_lsn, "what goes back has performed everything")
        effects = self._effects(record)
        names = {store.id: store.name for store in record.stores}
        site.applier.free_slots(sum(isinstance(effect, Created) for effect in effects) + 1)
        placed, scratch, scratch_size = site.shelf.prepare(effects, {}, names)
        # Whoever reads the log later learns here that its LSNs begin again; to a start it says nothing.
        note = notes.Returned(record.lineage, record.lsn)
        window.make_durable(window.append_note(notes.RETURNED, notes.encode(note)))
        site.shelf.perform(effects, placed, scratch, scratch_size)
        for effect in effects:
            match effect:
                case Deleted(store):
                    site.views.opened.pop(store, None)
                    window.drop_store(store)
                case Created(store, regions, _) | Resized(store, regions):
                    window.set_store(store, regions * site.region_size, False)
                case _:
                    pass
        catalog = Catalog({store.id: store for store in record.stores}, max(record.next_id, here.catalog.next_id))
        lineage = _with_heard_of(Lineage.decode(record.lineage), here.lineage, record.lsn)
        site.here = Point(lsn=record.lsn, lineage=lineage, consistent=True, item=here.item, catalog=catalog,
                          different=here.different)
        site.end = site.here.copy()
        site.refusing.clear()
        site.outcomes.surprises.clear()
        window.set_lsn(record.lsn)
        window.applied(window.state().applied_position, record.lsn)
        site.expect_notes(len(catalog.stores))
        site.applier.moving = True
        self._record, self._awaited = None, False

    def _effects(self, record: ProtectiveSnapshot) -> list[Effect]:
        here, size = self.site.here.catalog, self.site.region_size
        wanted = {store.id for store in record.stores}
        effects: list[Effect] = []
        for store in record.stores:
            regions = store.size // size
            if store.id not in here:
                effects.append(Created(store.id, regions, True))
            elif here[store.id].size != store.size:
                effects.append(Resized(store.id, regions, here[store.id].size // size))
            effects.append(Copied(store.id, record.views[store.id], 0, regions))
        effects += [Deleted(store.id) for store in here if store.id not in wanted]
        return effects + [Deleted(view) for view in record.views.values()]

    # ---- for people

    def status(self) -> dict[str, Any] | None:
        """As of which event there is one; None: there is none."""
        record = self.snapshot
        if record is None or self.is_over():
            return None
        return {
            "lsn": record.lsn,
            "generation": Lineage.decode(record.lineage).at(record.lsn).hex(),
            "stores": len(record.stores),
        }


def _with_heard_of(kept: Lineage, left: Lineage, lsn: int) -> Lineage:
    """The lineage that was kept, and as empty ones the generations that this site had heard of since: whoever leads
    here now knows of them, and that what was written in them is lost (model, "Lineage")."""
    at = left.aligned(kept)
    since = left.pairs[at[0] if at is not None else 0 :]
    heard = [generation for generation, _ in since if generation not in kept.generations]
    return Lineage((*kept.pairs, *((generation, lsn) for generation in heard))).pruned(lsn)

