"""A site: one group on one node, as a deterministic machine over its journal. No threads, sockets or clocks.

    write -> window (LSN, log) -> applier (epochs) -> stores          a primary appends, a secondary is fed (receive)
                    |                                                 both apply alike
                    +-> link (batches as they stand) -> peer

Who calls what, from where:
    admit            any thread, one at a time (the group's admission lock)
    receive          the thread that reads the link, on a secondary
    step             the applier's thread; it alone changes stores, maps, shelf and ``here``
    everything else  through ``exclusive``, which the runtime sets to run a call between two steps

Decides admission, checkpoints, the journal's tail and what happens when it is full. The meaning of operations is in
``operations``, crash safety in ``applier`` and ``recovery``, knowledge of peers in ``link``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from pyrepl import notes, operations
from pyrepl._core import layout
from pyrepl._core.device import Device
from pyrepl._core.stores import Stores
from pyrepl._core.window import Window, WindowState
from pyrepl.applier import Applier, OperationResult
from pyrepl.catalog import Catalog, Store
from pyrepl.delay import Delay
from pyrepl.errors import Exists, Refused, UsageError, check
from pyrepl.gallery import Gallery
from pyrepl.intake import Intake
from pyrepl.items import StoreInfo
from pyrepl.journal import Body, Checkpoint, Journal, pack_maps
from pyrepl.lineage import Lineage
from pyrepl.operations import Copied, CopiedImage, Created, Deleted, Effect, Operation, Resized, Reworked
from pyrepl.options import MIB, SiteOptions
from pyrepl.outcomes import Outcomes
from pyrepl.point import Point
from pyrepl.protective import Protective
from pyrepl.recovery import recover
from pyrepl.roles import NOBODY, PRIMARY, SECONDARY, Roles
from pyrepl.seams import Entropy, Gate, NoPlugins, OpenGate, Placement, Plugins
from pyrepl.shelf import Shelf
from pyrepl.shortage import Shortage
from pyrepl.siblings import Siblings
from pyrepl.standing import standing
from pyrepl.verification import Verification
from pyrepl.views import Views

if TYPE_CHECKING:
    from pyrepl.link import Link

RELAXED, STRICT = ORDERINGS = ("relaxed", "strict")  # whether sets, whose members have no order, are admitted
MOST_ZOMBIES = 32  # deleted stores that keep their devices while the mover rests
MAP_ENTRY = 24  # bytes of pr_map_entry
T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()


class Admission(NamedTuple):
    """An operation that has its place in the order. It is performed when the applier has passed ``lsn``."""

    lsn: int
    operation: Operation
    created: dict[str, int]

    @property
    def members(self) -> Sequence[operations.Member | operations.Adopt]:
        """See ``operations.members``."""
        return operations.members(self.operation)


class Site:
    """One group at one site. Made by :meth:`create` or :meth:`open`."""

    def __init__(
        self,
        journal: Journal,
        *,
        name: str,
        role: str,
        node_id: bytes,
        group_id: bytes | None,
        placement: Placement,
        entropy: Entropy,
        options: SiteOptions,
        ordering: str = RELAXED,
    ) -> None:
        self.journal = journal
        self.name = name
        self.role = role
        self.node_id = node_id
        self.group_id = group_id
        self.entropy = entropy
        self.options = options
        self.ordering = ordering
        self.region_size = journal.region_size
        self.alignment = journal.alignment
        self.fed_by: bytes | None = None
        self.turns = 0  # how often another node has come to feed this site in place of the one before
        self.turns_there = 0  # the same count of the one that feeds this site, as it told
        self.above: list[bytes] = []  # the nodes that feed that one, nearest first, as it has told
        self.links: dict[str, Link] = {}
        self.successor = ""  # of a primary that has stepped down: the link by which another site is asked to lead
        self.remembered: dict[bytes, Link] = {}  # by node: primaries that fed this site, until a link leads to them
        self.siblings = Siblings(self)
        self.reserved: dict[int, tuple[str, bool]] = {}  # store id -> (path, fresh): made or given at admission
        self.refusing: dict[int, str] = {}  # LSN of an operation to come -> why not all of it will be performed
        self.awaiting: set[bytes] = set()  # tickets of early operations that somebody in this process means to end
        self.refused = ""  # why of what was received last not all will be performed
        self.checkpoints = 0  # sequence of the last durable checkpoint
        self.gate: Gate = OpenGate()  # what happens at marks
        self.plugins: Plugins = NoPlugins()
        self.outcomes = Outcomes(self)
        self.exclusive: Callable[[Callable[[], Any]], Any] = lambda call: call()
        self.guard: AbstractContextManager[Any] = contextlib.nullcontext()  # of all links of this site
        self.stores = Stores(region_size=self.region_size, alignment=self.alignment)
        reserve = min(max(journal.log_size // 8 // layout.BLOCK * layout.BLOCK, 16 * layout.BLOCK), 16 * MIB)
        self.window = Window(ring=options.ring_bytes, alignment=self.alignment, reserve=reserve)
        self._expected = 0  # stores that applying may re-point
        self.views = Views(self)
        self.protective = Protective(self)
        self.intake = Intake(self)
        self.verification = Verification(self)
        self.roles = Roles(self)
        self.delay = Delay(self)
        self.shortage = Shortage(self)
        self.expect_notes(0)
        self.room = self._room = journal.log_size - reserve  # what batches may use of the log
        # What links may hold of it before it is folded: the longest event (1 MiB, half of a small log) still fits.
        self._most_held = self._room * (12 if self._room >= 8 * MIB else 7) // 16
        self.shelf = Shelf(self.stores, placement)
        self.gallery = Gallery(self)
        self.applier = Applier(self)
        self.here: Point  # where the stores are
        self.end: Point  # where the journal ends
        self._checkpoint_position = 0
        self._body_length = 0
        self._urgent_lsn = 0  # an operation waits there: the mover rests until it is performed
        self._parked = False  # what recovery found to be redone is left in the log
        self._closed = False

    # ---- life

    @classmethod
    def create(
        cls,
        journal: Device,
        *,
        name: str,
        node_id: bytes,
        role: str,
        options: SiteOptions,
        placement: Placement,
        entropy: Entropy,
        created_ns: int,
        ordering: str = RELAXED,
    ) -> Site:
        """Formats the journal device and opens an empty group on it: active if primary, fresh if secondary."""
        if ordering not in ORDERINGS:
            raise UsageError(f"a group cannot have the ordering {ordering!r}: 'relaxed' or 'strict'", ordering=ordering)
        if role not in (PRIMARY, SECONDARY):
            raise UsageError(f"a group cannot have the role {role!r}: primary or secondary", role=role)
        # A position that no journal used here before: what an older one left in the log cannot be taken for this one's.
        start = int.from_bytes(entropy(5), "little") * layout.BLOCK
        formatted = Journal.format(
            journal,
            name=name,
            node_id=node_id,
            journal_id=entropy(16),
            first_position=start,
            options=options,
            created_ns=created_ns,
        )
        group_id = entropy(16) if role == PRIMARY else None
        site = cls(
            formatted,
            name=name,
            role=role,
            node_id=node_id,
            group_id=group_id,
            placement=placement,
            entropy=entropy,
            options=options,
            ordering=ordering,
        )
        lineage = Lineage(((entropy(16), 0),))
        site.here = Point(lsn=0, lineage=lineage, consistent=role == PRIMARY, item=0, catalog=Catalog())
        site.end = site.here.copy()
        site._checkpoint_position = start
        site._open_window(start, start, int.from_bytes(entropy(8), "little"))
        site._checkpoint()
        return site

    @classmethod
    def open(cls, journal: Device, *, node_id: bytes, placement: Placement, entropy: Entropy,
             options: SiteOptions | None = None, adopt: bool = False, ask: bool = False) -> Site:
        """Recovers the group whose journal stands on this device. A primary begins a new generation before it appends.

        Args:
            ask: a primary that has links is not active before they have answered; see :meth:`Roles.activate`.
            adopt: the journal of another node is this node's from here on; durable with the next checkpoint.

        Raises:
            Corrupt: the device holds no journal, or one that is damaged below what was durable.
            Refused: the journal belongs to another node.
        """
        found = Journal.find(journal)
        checkpoint = found.read_checkpoint()
        body = checkpoint.body
        if body.node_id != node_id and not adopt:
            raise Refused(
                f"the journal on {journal.name} belongs to another node ({body.node_id.hex()})",
                reason="node",
                device=journal.name,
            )
        options = msgspec.structs.replace(
            options or SiteOptions(), region_size=found.region_size, alignment=found.alignment
        )
        site = cls(found, name=body.name, role=body.role, node_id=node_id, group_id=body.group_id, placement=placement,
                   entropy=entropy, options=options, ordering=body.ordering)
        site.fed_by, site.successor, site.above = body.fed_by, body.successor, body.above
        site.turns, site.turns_there = body.turns, body.turns_there
        site.intake.items_until = body.items_until
        site.delay.seconds = body.delay
        site.checkpoints = checkpoint.sequence
        try:
            site._recover(checkpoint, ask)
        except BaseException:
            site.shelf.close()  # at once, not when its memory is collected: it may be opened again soon
            raise
        return site

    def _recover(self, checkpoint: Checkpoint, ask: bool) -> None:
        body = checkpoint.body
        scan = recover(self, checkpoint)
        if self.role == PRIMARY:  # before any connection tells it; a secondary's is what its primary told
            self.end.lineage = self.end.lineage.pruned(self.here.lsn)
            self.here.lineage = self.end.lineage.reached(self.here.lsn)
        self._checkpoint_position = checkpoint.applied_position
        if body.links or body.remembered:
            from pyrepl.link import Link  # which knows Site

            self.links = {name: Link.restore(self, blob) for name, blob in body.links.items()}
            self.remembered = {node: Link.restore(self, blob) for node, blob in body.remembered.items()}
        self.siblings.restore(body.siblings)
        self.roles.asking = self.roles.held = ask and self.role == PRIMARY and bool(self.links)
        tail = min([checkpoint.scan_position, *(link.position for link in self.followers)])
        self._open_window(scan.end_position, tail, scan.chain)
        if self.accepts:
            self.activate()
        self.views.close_all()

    def begin_window(self, applied_position: int, redo: list[tuple[bytes, list[int]]], *, parked: bool) -> None:
        """Recovery hands over what is to be redone: records, each with the stores whose readers wait for it.
        ``parked``: it is left in the log until it is applied, and of the records there is only what stands before their
        payload."""
        self.expect_notes(len(self.end.catalog.stores))
        self._applied_position = applied_position
        for record, blocks in redo:
            self.window.load(record, blocks=blocks, parked=parked)
        self._parked = parked

    def _open_window(self, position: int, tail: int, chain: int) -> None:
        applied = getattr(self, "_applied_position", position)
        if applied < position:
            self.shortage.tear(position)  # what is to be redone may be done in part
        self.window.open(
            self.journal.device,
            log_offset=self.journal.log_offset,
            log_size=self.journal.log_size,
            position=position,
            tail=tail,
            chain=chain,
            lsn=self.end.lsn,
            applied_position=applied,
            applied_lsn=self.here.lsn,
            group=self.group_id or bytes(16),
            generation=self.end.lineage.generation,
            seed=int.from_bytes(self.entropy(8), "little"),
        )
        for store in self.here.catalog if self._parked else self.end.catalog:
            self.window.set_store(store.id, store.size, self.accepts)
        if self._parked:
            for number in {**self.here.catalog.stores, **self.end.catalog.stores}:
                store_then = self.end.catalog.stores.get(number)
                self.window.announce(number, store_then.size if store_then is not None else 0)
        self.delay.begin()

    def expect_notes(self, stores: int | None = None) -> None:
        """Overwriting a region may re-point each of so many stores, and every view: what that takes of the log is kept
        free. From any thread: whoever comes last has seen what the others expect."""
        if stores is not None:
            self._expected = stores
        count = -1
        while count != self._expected + self.views.expected:
            count = self._expected + self.views.expected
            self.window.set_notes(self.region_size, MAP_ENTRY * (count + 2))

    def activate(self) -> None:
        """A new generation, durable before the first append (model: "Lineage")."""
        generation = self.entropy(16)
        self.end.begin(generation)
        assert self.group_id is not None
        self.window.set_generation(generation, self.group_id)
        note = notes.Generation(generation, self.end.lsn)
        self.window.make_durable(self.window.append_note(notes.GENERATION, notes.encode(note)))

    def close(self) -> None:
        """Applies what the journal holds, takes a checkpoint, gives the devices back. Harmless the second time."""
        if self._closed:
            return
        self._closed = True
        try:
            if not self.window.state().failed:
                while self.applier.apply():
                    pass  # up to a mark that is held: it is held again after the next start
                self._checkpoint()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Gives the devices back as a killed process would: nothing more is written."""
        self._closed = True
        with contextlib.ExitStack() as last_first:  # all of it, whatever one of them meets
            last_first.callback(self.journal.device.close)
            last_first.callback(self.shelf.close)
            last_first.callback(self.window.close)
            last_first.callback(self.applier.workshop.abandon)

    # ---- one step of the applier's thread

    def step(self) -> bool:
        """One epoch, operation or item, and a step of the mover unless an operation waits (and no more deleted stores
        than a few wait for the mover); a checkpoint when one is due."""
        if self._is_checkpoint_due():
            self._checkpoint()
            return True
        if self.protective.is_over():
            self.protective.drop()
            return True
        applied = self.applier.apply()
        state = self.window.state()
        if self.shortage.stands and self._has_spare() and self.applier.give_back():
            return True
        if self.is_crowded():
            return applied
        hurry = state.applied_lsn < self._urgent_lsn or state.ring_used > state.ring_size // 2
        if hurry and len(self.shelf.zombies) <= MOST_ZOMBIES:
            return applied
        return self.applier.move() or applied

    def _has_spare(self) -> bool:
        """A few notes that make room for stores find some in the log, however full of events that is."""
        state, reserve = self.window.state(), self.journal.log_size - self._room
        return state.end_position - state.tail_position < self.journal.log_size - reserve // 2

    def is_crowded(self) -> bool:
        """What is left of the log belongs to the notes of events: the mover's would take their place."""
        state = self.window.state()
        return state.end_position - state.tail_position + state.notes > self._room * 7 // 8

    def perform_what_arrived(self) -> None:
        """Returns when what the journal holds at the call is performed, or held up. Step by step, so that others get
        their turn; not to be called between two steps."""
        end = self.window.state().end_position
        while self.exclusive(lambda: self.window.state().applied_position < end and self.step()):
            pass

    def make_room_for_note(self) -> bool:
        """Between two steps: a note of its own is to be appended, which takes nothing that events were promised. False:
        there is no room but the reserve's."""
        for _ in range(4):
            if not self.is_crowded():
                return True
            self.applier.apply()
            self._checkpoint()
        return not self.is_crowded()

    def clear_room_for_note(self) -> bool:
        """The same as part of a step, in which nothing more may be applied."""
        if self.is_crowded():
            self._checkpoint()
        return not self.is_crowded()

    @property
    def wait(self) -> float | None:
        """Seconds until a step may find something to do that needs no event; None: for ever."""
        return min((one for one in (self.delay.wait, self.shortage.wait) if one is not None), default=None)

    def _is_checkpoint_due(self) -> bool:
        state = self.window.state()
        if self.shortage.stands and self.shelf.graveyard:
            return True  # files that nobody needs go only after one, and make room
        progress = state.applied_position - self._checkpoint_position
        if progress >= min(self.options.checkpoint_bytes, self._room // 4) or self.siblings.is_due:
            return True
        stuck = self._is_stuck(state)
        if state.end_position - state.tail_position <= self._most_held // 2 and not stuck:
            return False
        # The log fills, and a checkpoint would give some of it back: what is applied and no link holds any more.
        gain = min(state.applied_position, self._held()) - state.tail_position
        return gain > (0 if stuck else self._room // 16) or self._must_fold(state)

    @staticmethod
    def _is_stuck(state: WindowState) -> bool:
        """Somebody finds no room in the log, and nothing is left to be applied that would make some: what comes from a
        primary may be longer than the longest event."""
        return state.wanting and state.applied_position == state.end_position

    def _held(self) -> int:
        """The first position that a link still needs in the log."""
        held = self.window.state().end_position
        for link in self.followers:
            with link.guard:
                held = min(held, link.position)
        return held

    def _must_fold(self, state: WindowState) -> bool:
        held = self._held()
        most = 0 if self._is_stuck(state) and held <= state.tail_position else self._most_held
        return held < state.applied_position and state.end_position - held > most

    def checkpoint(self) -> None:
        """Takes a checkpoint between two steps."""
        self.exclusive(self._checkpoint)

    def _checkpoint(self) -> None:
        state = self.window.state()
        for link in self.links.values():
            with link.guard:
                link.inherit()
        self.siblings.settle()
        if self._must_fold(state):
            self.siblings.advance()
            for link in self.followers:
                with link.guard:
                    link.fold(state.applied_position)
        if self.role == SECONDARY and self.followers:
            self.outcomes.spare_room()
        position, chain = state.applied_position, self._chain_at(state.applied_position)
        state = self.window.state()
        body = self._encode(self._capture())  # rule ckpt_capture: before the flush of the stores
        graves = list(self.shelf.graveyard)
        self._body_length = len(body)
        check(self.journal.fits(len(body)), f"a checkpoint of {len(body)} bytes does not fit its area")
        self.stores.flush()  # rule ckpt_flush
        self.checkpoints = self.journal.write_checkpoint(
            body,
            scan_position=position,
            scan_chain=chain,
            applied_lsn=self.here.lsn,
            note_position=state.durable_position,
            durable_position=state.durable_position,
        )
        self._checkpoint_position = position
        tail = position
        for link in self.followers:
            with link.guard:
                link.saved(self.checkpoints)
                tail = min(tail, link.ledger.kept)  # not its position, which moves on while the checkpoint is written
        self.window.set_tail(max(tail, state.tail_position))  # rule tail_after
        self.shelf.bury(graves)

    def _encode(self, body: Body) -> bytes:
        encoded = _encoder.encode(body)
        if 4 * len(encoded) <= self.journal.area_size:
            return encoded
        return _encoder.encode(pack_maps(body))

    def _chain_at(self, position: int) -> int:
        while True:
            entry = self.window.entry(position)
            if entry is not None:
                with entry:
                    return entry.chain
            state = self.window.state()
            if state.end_position == position:
                return state.chain
            self.window.write_out(state.end_position)

    def _capture(self) -> Body:
        here, shelf = self.here, self.shelf
        self.outcomes.forget()
        lineage = self.end.lineage.reached(here.lsn) if self.role == PRIMARY else here.lineage
        links, remembered = {}, {}
        for link in self.links.values():
            if not link.is_ending:  # who has stepped down keeps none over a start but that to its successor
                with link.guard:
                    links[link.name] = link.save()
        for node, link in self.remembered.items():
            with link.guard:
                remembered[node] = link.save()
        with self.guard:
            siblings = self.siblings.save()
        return Body(
            name=self.name,
            role=self.role,
            node_id=self.node_id,
            group_id=self.group_id,
            lineage=[(generation, lsn) for generation, lsn in lineage],
            lsn=here.lsn,
            consistent=here.consistent,
            item=here.item,
            stores=list(here.catalog),
            next_id=here.catalog.next_id,
            places=dict(shelf.places),
            zombies=dict(shelf.zombies),
            scratch=shelf.scratch,
            scratch_size=shelf.scratch_size,
            maps=shelf.maps(),
            links=links,
            remembered=remembered,
            siblings=siblings,
            handed_over=here.handed_over,
            succession=here.succession,
            successor=self.successor,
            tails=here.tails,
            yields=here.yields,
            fed_by=self.fed_by,
            given={store: path for store, (path, fresh) in list(self.reserved.items()) if not fresh},
            views=list(self.views.opened.values()),
            next_view=self.views.next_id,
            ordering=self.ordering,
            images=list(self.shelf.images.values()),
            refusals=list(here.refusals),
            refusing=self.refusing.copy(),
            decided=here.decided,
            outcomes=self.outcomes.known.copy(),
            delay=self.delay.seconds,
            protective=self.protective.snapshot,
            waived=here.waived,
            different=here.different,
            above=self.above,
            turns=self.turns,
            turns_there=self.turns_there,
            # What is just coming may be applied before it is said that it has come.
            items_until=(self.window.state().applied_position if self.intake.is_coming else self.intake.items_until),
        )

    def write_out(self) -> int:
        """All that has its place is in the log on return; the position behind it."""
        end = self.window.state().end_position
        self.window.write_out(end)
        return end

    # ---- a primary: admission

    @property
    def catalog(self) -> Catalog:
        """The stores as of the applied LSN."""
        return self.here.catalog

    @property
    def lineage(self) -> Lineage:
        """The lineage as of the journal's end."""
        return self.end.lineage

    def admit(self, operation: Operation, paths: dict[str, str] | None = None) -> Admission:
        """Gives the operation its place in the order; what it needs is reserved first, so that it cannot fail later.

        Args:
            operation: made against ``end.catalog`` by its constructor, under the same lock.
            paths: store name -> device, for stores that it creates elsewhere than where the placement would.

        Raises:
            Refused, DeviceError, UsageError: it cannot be performed here; nothing was changed.
        """
        self._require_primary()
        if self.ordering == STRICT and operations.is_unordered(operation):
            raise Refused(
                f"group {self.name!r} was made with strict ordering: each operation has a place of its own, make "
                f"them one after the other", reason="ordering")
        body = operations.encode(operation)
        check(operations.decode(body) == operation, "an operation reads back as it was meant", kind=operation.kind)
        effects = operation.effects(self.region_size)
        names = self._names_after(operation)
        created = {names[effect.store]: effect.store for effect in effects if isinstance(effect, Created)}
        if any(isinstance(effect, Created) for effect in effects):
            self.check_checkpoint_room()
        works = len(operations.works(operation))
        if works:
            self.outcomes.check_room(works)
        for name in created:
            if name in self.gallery.images:
                raise Exists(f"group {self.name!r} has an image {name!r} at this site: give another name", name=name)
        self.reserve(effects, names, paths or {})
        sizes = [(effect.store, effect.regions * self.region_size, True) for effect in effects
                 if isinstance(effect, Created | Resized)]
        dropped = [effect.store for effect in effects if isinstance(effect, Deleted)]
        self.expect_notes(max(len(names), len(self.end.catalog.stores)))
        if isinstance(operation, operations.Compared):
            self.verification.announce(operation)
        if isinstance(operation, operations.Early):
            self.awaiting.add(operation.ticket)  # before it has its place, and so before a link sends it
        pledged = False
        try:
            self.gallery.pledge(effects)
            pledged = True
            self._note_given(created, paths or {})
            lsn = self.window.submit_operation(body, blocks=operation.blocks, sizes=sizes,
                                               dropped=dropped)
        except BaseException:
            self.unreserve(effects)
            if pledged:
                self.gallery.redeem(effects)
            if isinstance(operation, operations.Compared):
                self.verification.retract(operation)
            if isinstance(operation, operations.Early):
                self.awaiting.discard(operation.ticket)
            with contextlib.suppress(OSError):  # then nothing can come that would take the note for its own
                self._note_given(created, dict.fromkeys(paths or {}, ""))
            raise
        self.end.take_operation(operation, lsn)
        self.expect_notes(len(names))
        self.applier.admitted(lsn)
        if works:
            self.outcomes.admitted(lsn, works)
        self._urgent_lsn = lsn
        return Admission(lsn, operation, created)

    def _note_given(self, created: dict[str, int], paths: dict[str, str]) -> None:
        """Stands before the operation, which is performed on these devices after a crash too. "" takes it back."""
        given = {created[name]: path for name, path in paths.items() if name in created}
        if given:
            self.window.append_note(notes.GIVEN, notes.encode(notes.Given(given)))

    @property
    def accepts(self) -> bool:
        """Whether new events get their place here."""
        return self.role == PRIMARY and not self.roles.held

    def _require_primary(self) -> None:
        if not self.accepts:
            state = "is changing its role" if self.role == PRIMARY else "is a secondary"
            if self.roles.asking:
                state = "does not lead yet"
            raise Refused(
                f"group {self.name!r} {state} here: operations and writes are made at its primary", reason="role"
            )

    def _names_after(self, operation: Operation) -> dict[int, str]:
        after = self.end.catalog.copy()
        operation.apply(after)
        return {store.id: store.name for store in after}

    def check_checkpoint_room(self) -> None:
        """Another store, or view, has room in a checkpoint.

        Raises:
            Refused: the text says what to do.
        """
        if not self.has_checkpoint_room(0):
            raise Refused(
                f"the checkpoint areas of this journal ({self.journal.area_size} bytes each) have no room for the map of "  # noqa: E501
                f"another store: delete snapshots, or move to a larger journal",
                reason="limit",
            )

    def has_checkpoint_room(self, more: int) -> bool:
        """Whether a checkpoint has room for so many bytes more."""
        return self.journal.fits(2 * self._body_length + 16 * 1024 + more)

    def reserve(self, effects: list[Effect], names: dict[int, str], paths: dict[str, str]) -> None:
        placement = self.shelf.placement
        try:
            for effect in effects:
                if isinstance(effect, Created):
                    size = effect.regions * self.region_size
                    path = paths.get(names[effect.store], "")
                    if path:
                        placement.resize(path, size)
                    self.reserved[effect.store] = (
                        path or placement.create(names[effect.store], effect.store, size, self.shelf.paths),
                        not path,
                    )
                elif isinstance(effect, Resized) and effect.store in self.shelf.places:
                    place = self.shelf.places[effect.store]
                    if self.stores.device(place.slot).size < effect.regions * self.region_size:
                        placement.resize(place.path, effect.regions * self.region_size)
        except BaseException:
            self.unreserve(effects)
            raise

    def unreserve(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Created):
                path, fresh = self.reserved.pop(effect.store, ("", False))
                if fresh:
                    self.shelf.placement.remove(path)

    def result(self, lsn: int) -> OperationResult | None:
        """What came of the operation at this LSN; None if it is not performed yet or long ago."""
        return self.applier.results.get(lsn)

    def refused_at(self, link: str, lsn: int) -> None:
        """What is admitted here and stands at this LSN was refused by the secondary of that link."""
        self.applier.refused_at(link, lsn)

    # ---- a secondary

    def show(self, effects: list[Effect]) -> None:
        """Readers see from here on what was parked and did this to stores."""
        for effect in effects:
            match effect:
                case Created(store, regions, _) | Resized(store, regions):
                    self.window.show_store(store, regions * self.region_size)
                case Deleted(store):
                    self.window.show_store(store, 0)
                case Copied() | CopiedImage() | Reworked():
                    pass

    @property
    def visible(self) -> Catalog:
        """The stores as readers see them: as of the journal's end, or as they are here where something is delayed."""
        return self.here.catalog if self.delay.is_parking else self.end.catalog

    def store_of(self, info: StoreInfo) -> Store:
        """The store that a peer introduces."""
        return Store(id=info.id, name=info.name, kind=info.kind, size=info.size, origin=info.origin)

    # ---- links

    @property
    def followers(self) -> list[Link]:
        """All for whom the log, or a backlog, is kept."""
        return [*self.links.values(), *self.remembered.values(), *self.siblings.kept.values()]

    @property
    def path(self) -> list[bytes]:
        """The nodes that feed this secondary, nearest first, as far as they have told; zeros: nobody does. Empty: it is
        a primary."""
        if self.role == PRIMARY:
            return []
        return [self.fed_by or NOBODY, *self.above]

    @property
    def is_settled(self) -> bool:
        """Whether the stores show a state of the order at the journal's end, as those of a primary always do."""
        return self.role == PRIMARY or (
            self.end.consistent and self.here.consistent and not self.refusing
            and (not self.delay.is_parking or self.here.lsn == self.end.lsn)
        )

    def remember(self, node: bytes, turns: int) -> None:
        """What changes from here on is kept for this node, which stands here or has gone further by itself: a link to
        it will know. Between two steps, with everything applied.

        Args:
            turns: its count, as it has told.
        """
        from pyrepl.link import Link  # which knows Site

        link = Link(self, "remembered", address="", peer=node, guard=self.guard)
        link.begin()
        # A secondary that fed this one may not have been consistent itself: it is counted when this one feeds that, and
        # then nothing of it is known but its own word.
        link.ledger.turns = turns
        for store in self.here.catalog:
            link.base.divergence.add(store.id, store.size // self.region_size, differs=False)
        self.remembered[node] = link

    def attach(self, link: Link) -> None:
        """The link is part of the group from here on; durable on return."""
        self.exclusive(lambda: self._attach(link))

    def _attach(self, link: Link) -> None:
        self.check_attach()
        link.begin()  # before it counts: one that has not begun would hold the log from its start, and fold the others
        self.links[link.name] = link
        try:
            self._checkpoint()
        except BaseException:
            self.links.pop(link.name, None)
            raise

    def check_attach(self) -> None:
        """Whether this site may have links: a primary that leads, or a secondary that is led.

        Raises:
            Refused: it may not; the text says why.
        """
        if self.role == PRIMARY:
            self._require_primary()
        elif self.group_id is None:
            raise Refused(
                f"group {self.name!r} is a secondary here that no primary has led yet: let it be paired, then add the "
                f"link", reason="role")
        elif self.successor:
            raise Refused(
                f"group {self.name!r} has stepped down here and asks another site to lead: add the link there",
                reason="role")
        elif self.fed_by is None:
            raise Refused(
                f"group {self.name!r} has stepped down here, and no primary has led it since: a secondary that it told "
                f"to lead would hear otherwise. Let it be led, then add the link", reason="role")
        elif self.delay.seconds:
            raise Refused(
                f"group {self.name!r} is delayed here, and a secondary with links of its own cannot be: what it shows "
                f"is older than what it sends. Delay the site that is last", reason="state")

    def detach(self, name: str) -> None:
        """The link is forgotten; durable on return."""
        def forget() -> None:
            link = self.links.pop(name)
            self.roles.meet(link.peer or link.met, None)
            self._checkpoint()
        self.exclusive(forget)

    def forget_links(self, but: str = "") -> None:
        """All but one: this site has stepped down, and the checkpoint that says so holds no other."""

        def forget() -> None:
            for name in [name for name in self.links if name != but]:
                del self.links[name]

        self.exclusive(forget)

    # ---- for people

    def status(self) -> dict[str, Any]:
        """Figures of this site: bytes, LSNs, states. See ``standing``."""
        return standing(self)
