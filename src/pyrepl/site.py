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
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from pyrepl import items, notes, operations
from pyrepl._core import batch, layout
from pyrepl._core.device import Device
from pyrepl._core.stores import Stores
from pyrepl._core.window import Window, WindowState
from pyrepl.applier import Applier, OperationResult
from pyrepl.catalog import VOLUME, Catalog, Store, check_new_name, check_size
from pyrepl.errors import Diverged, Refused, UsageError, check
from pyrepl.items import StoreInfo
from pyrepl.journal import Body, Journal, pack_maps
from pyrepl.lineage import Lineage
from pyrepl.operations import Copied, Created, Deleted, Effect, Operation, Resized
from pyrepl.options import MIB, SiteOptions
from pyrepl.point import Point
from pyrepl.recovery import recover
from pyrepl.seams import Entropy, Placement
from pyrepl.shelf import Shelf

if TYPE_CHECKING:
    from pyrepl.link import Link

PRIMARY, SECONDARY = "primary", "secondary"
MAP_ENTRY = 24  # bytes of pr_map_entry
T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()


class Admission(NamedTuple):
    """An operation that has its place in the order. It is performed when the applier has passed ``lsn``."""

    lsn: int
    operation: Operation
    created: dict[str, int]


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
    ) -> None:
        self.journal = journal
        self.name = name
        self.role = role
        self.node_id = node_id
        self.group_id = group_id
        self.entropy = entropy
        self.options = options
        self.region_size = journal.region_size
        self.alignment = journal.alignment
        self.fed_by: bytes | None = None
        self.links: dict[str, Link] = {}
        self.reserved: dict[int, tuple[str, bool]] = {}  # store id -> (path, fresh): made or given at admission
        self.checkpoints = 0  # sequence of the last durable checkpoint
        self.exclusive: Callable[[Callable[[], Any]], Any] = lambda call: call()
        self.stores = Stores(region_size=self.region_size, alignment=self.alignment)
        reserve = min(max(journal.log_size // 8 // layout.BLOCK * layout.BLOCK, 16 * layout.BLOCK), 16 * MIB)
        self.window = Window(ring=options.ring_bytes, alignment=self.alignment, reserve=reserve)
        self._expect_notes(0)
        self._room = journal.log_size - reserve  # what batches may use of the log
        # What links may hold of it before it is folded: the longest event (1 MiB, half of a small log) still fits.
        self._most_held = self._room * (12 if self._room >= 8 * MIB else 7) // 16
        self.shelf = Shelf(self.stores, placement)
        self.applier = Applier(self)
        self.here: Point  # where the stores are
        self.end: Point  # where the journal ends
        self._checkpoint_position = 0
        self._body_length = 0
        self._urgent_lsn = 0  # an operation waits there: the mover rests until it is performed
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
    ) -> Site:
        """Formats the journal device and opens an empty group on it: active if primary, fresh if secondary."""
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
             options: SiteOptions | None = None) -> Site:
        """Recovers the group whose journal stands on this device. A primary begins a new generation before it appends.

        Raises:
            Corrupt: the device holds no journal, or one that is damaged below what was durable.
            Refused: the journal belongs to another node.
        """
        found = Journal.find(journal)
        checkpoint = found.read_checkpoint()
        body = checkpoint.body
        if body.node_id != node_id:
            raise Refused(
                f"the journal on {journal.name} belongs to another node ({body.node_id.hex()})",
                reason="node",
                device=journal.name,
            )
        options = msgspec.structs.replace(
            options or SiteOptions(), region_size=found.region_size, alignment=found.alignment
        )
        site = cls(found, name=body.name, role=body.role, node_id=node_id, group_id=body.group_id, placement=placement,
                   entropy=entropy, options=options)
        site.fed_by = body.fed_by
        site.checkpoints = checkpoint.sequence
        scan = recover(site, checkpoint)
        site._checkpoint_position = checkpoint.applied_position
        if body.links:
            from pyrepl.link import Link  # which knows Site

            site.links = {name: Link.restore(site, blob) for name, blob in body.links.items()}
        tail = min([checkpoint.scan_position, *(link.position for link in site.links.values())])
        site._open_window(scan.end_position, tail, scan.chain)
        if site.role == PRIMARY:
            site._activate()
        return site

    def begin_window(self, applied_position: int, redo: list[tuple[int, bytes]]) -> None:
        """Recovery hands over what is to be redone."""
        self._expect_notes(len(self.end.catalog.stores))
        self._applied_position = applied_position
        for _, record in redo:
            self.window.load(record)

    def _open_window(self, position: int, tail: int, chain: int) -> None:
        applied = getattr(self, "_applied_position", position)
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
        for store in self.end.catalog:
            self.window.set_store(store.id, store.size, self.role == PRIMARY)

    def _expect_notes(self, stores: int) -> None:
        """Overwriting a region may re-point each of so many stores: what that takes of the log is kept free."""
        self.window.set_notes(self.region_size, MAP_ENTRY * (stores + 2))

    def _activate(self) -> None:
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
                    pass
                self._checkpoint()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Gives the devices back as a killed process would: nothing more is written."""
        self._closed = True
        self.window.close()
        self.shelf.close()
        self.journal.device.close()

    # ---- one step of the applier's thread

    def step(self) -> bool:
        """One epoch, operation or item, and a step of the mover unless an operation waits; a checkpoint when one is
        due."""
        if self._is_checkpoint_due():
            self._checkpoint()
            return True
        applied = self.applier.apply()
        state = self.window.state()
        if state.applied_lsn < self._urgent_lsn or state.ring_used > state.ring_size // 2 or self._is_crowded():
            return applied
        return self.applier.move() or applied

    def _is_crowded(self) -> bool:
        """What is left of the log belongs to the notes of events: the mover's would take their place."""
        state = self.window.state()
        return state.end_position - state.tail_position + state.notes > self._room * 7 // 8

    def _is_checkpoint_due(self) -> bool:
        state = self.window.state()
        progress = state.applied_position - self._checkpoint_position
        if progress >= min(self.options.checkpoint_bytes, self._room // 4):
            return True
        if state.end_position - state.tail_position <= self._most_held // 2:
            return False
        # The log fills, and a checkpoint would give some of it back: what is applied and no link holds any more.
        gain = min(state.applied_position, self._held()) - state.tail_position
        return gain > self._room // 16 or self._must_fold(state)

    def _held(self) -> int:
        """The first position that a link still needs in the log."""
        held = self.window.state().end_position
        for link in self.links.values():
            with link.guard:
                held = min(held, link.position)
        return held

    def _must_fold(self, state: WindowState) -> bool:
        held = self._held()
        return held < state.applied_position and state.end_position - held > self._most_held

    def checkpoint(self) -> None:
        """Takes a checkpoint between two steps."""
        self.exclusive(self._checkpoint)

    def _checkpoint(self) -> None:
        state = self.window.state()
        if self._must_fold(state):
            for link in self.links.values():
                with link.guard:
                    link.fold(state.applied_position)
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
        for link in self.links.values():
            with link.guard:
                link.saved(self.checkpoints)
                tail = min(tail, link.kept)  # not its position, which moves on while the checkpoint is written
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
        lineage = self.end.lineage.reached(here.lsn) if self.role == PRIMARY else here.lineage
        links = {}
        for name, link in self.links.items():
            with link.guard:
                links[name] = link.save()
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
            fed_by=self.fed_by,
            given={store: path for store, (path, fresh) in list(self.reserved.items()) if not fresh},
        )

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
        body = operations.encode(operation)
        check(operations.decode(body) == operation, "an operation reads back as it was meant", kind=operation.kind)
        effects = operation.effects(self.region_size)
        names = self._names_after(operation)
        created = {names[effect.store]: effect.store for effect in effects if isinstance(effect, Created)}
        self._check_checkpoint_room(effects)
        self._reserve(effects, names, paths or {})
        sizes = [(effect.store, effect.regions * self.region_size, True) for effect in effects
                 if isinstance(effect, Created | Resized)]
        dropped = [effect.store for effect in effects if isinstance(effect, Deleted)]
        self._expect_notes(max(len(names), len(self.end.catalog.stores)))
        try:
            self._note_given(created, paths or {})
            lsn = self.window.submit_operation(body, blocks=operation.blocks, sizes=sizes,
                                               dropped=dropped)
        except BaseException:
            self._unreserve(effects)
            with contextlib.suppress(OSError):  # then nothing can come that would take the note for its own
                self._note_given(created, dict.fromkeys(paths or {}, ""))
            raise
        self.end.take_operation(operation, lsn)
        self._expect_notes(len(names))
        self._urgent_lsn = lsn
        return Admission(lsn, operation, created)

    def _note_given(self, created: dict[str, int], paths: dict[str, str]) -> None:
        """Stands before the operation, which is performed on these devices after a crash too. "" takes it back."""
        given = {created[name]: path for name, path in paths.items() if name in created}
        if given:
            self.window.append_note(notes.GIVEN, notes.encode(notes.Given(given)))

    def _require_primary(self) -> None:
        if self.role != PRIMARY:
            raise Refused(
                f"group {self.name!r} is a secondary here: operations and writes are made at its primary", reason="role"
            )

    def _names_after(self, operation: Operation) -> dict[int, str]:
        after = self.end.catalog.copy()
        operation.apply(after)
        return {store.id: store.name for store in after}

    def _check_checkpoint_room(self, effects: list[Effect]) -> None:
        if any(isinstance(effect, Created) for effect in effects) and not self.journal.fits(
            2 * self._body_length + 16 * 1024
        ):
            raise Refused(
                f"the checkpoint areas of this journal ({self.journal.area_size} bytes each) have no room for the map of "  # noqa: E501
                f"another store: delete snapshots, or move to a larger journal",
                reason="limit",
            )

    def _reserve(self, effects: list[Effect], names: dict[int, str], paths: dict[str, str]) -> None:
        placement = self.shelf.placement
        try:
            for effect in effects:
                if isinstance(effect, Created):
                    size = effect.regions * self.region_size
                    path = paths.get(names[effect.store], "")
                    if path:
                        placement.resize(path, size)
                    self.reserved[effect.store] = (
                        path or placement.create(names[effect.store], effect.store, size),
                        not path,
                    )
                elif isinstance(effect, Resized) and effect.store in self.shelf.places:
                    place = self.shelf.places[effect.store]
                    if self.stores.device(place.slot).size < effect.regions * self.region_size:
                        placement.resize(place.path, effect.regions * self.region_size)
        except BaseException:
            self._unreserve(effects)
            raise

    def _unreserve(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Created):
                path, fresh = self.reserved.pop(effect.store, ("", False))
                if fresh:
                    self.shelf.placement.remove(path)

    def result(self, lsn: int) -> OperationResult | None:
        """What came of the operation at this LSN; None if it is not performed yet or long ago."""
        return self.applier.results.get(lsn)

    # ---- a secondary: what arrives

    def receive(self, head: memoryview, payload: memoryview) -> int:
        """Appends a batch that was judged and checked against the protocol, unchanged; the position after it.

        Raises:
            Refused, UsageError, NotFound, Exists: an operation that this site cannot perform; nothing was appended.
        """
        check(self.role == SECONDARY, "only a secondary receives")
        travel = batch.head(head)
        if travel.kind == layout.BATCH_EVENTS:
            _, after = self.window.append_received(head, payload)
            self.end.take_events(travel.first_lsn + travel.count - 1)
        elif travel.kind == layout.BATCH_COPIED:
            _, after = self.window.append_received(head, payload)
            self.end.take_copied(travel.item)
        else:
            record = batch.records(head)[0]
            body = bytes(payload[record.payload:record.payload + record.length])
            if travel.kind == layout.BATCH_OPERATION:
                after = self._receive_operation(head, payload, operations.decode(body), travel.first_lsn)
            else:
                after = self._receive_item(head, payload, items.decode(body), travel.item)
        return after

    def _receive_operation(self, head: memoryview, payload: memoryview, operation: Operation, lsn: int) -> int:
        operation.check(self.end.catalog)
        effects = operation.effects(self.region_size)
        catalog = self.end.catalog.copy()
        operation.apply(catalog)
        operations.judge(effects, catalog, self.region_size)
        self._reserve([e for e in effects if isinstance(e, Resized)], {}, {})
        _, after = self.window.append_received(head, payload, blocks=operation.blocks)
        self.end.take_operation(operation, lsn)
        self._expect_notes(len(self.end.catalog.stores))
        self._announce(effects)
        return after

    def _receive_item(self, head: memoryview, payload: memoryview, item: items.Item, number: int) -> int:
        if isinstance(item, items.Make):
            check_new_name(self.end.catalog, item.store.name)
            check_size(item.store.size, self.region_size)
        _, after = self.window.append_received(head, payload)
        self.end.take_item(item, number)
        match item:
            case items.Fork() | items.Skip():
                self.window.set_lsn(self.end.lsn)
            case items.Make(info):
                self.window.set_store(info.id, info.size, False)
            case items.Drop(store):
                self.window.drop_store(store)
        self._expect_notes(len(self.end.catalog.stores))
        return after

    def _announce(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Created(store, regions, _) | Resized(store, regions):
                    self.window.set_store(store, regions * self.region_size, False)
                case Deleted(store):
                    self.window.drop_store(store)
                case Copied():
                    pass

    def store_of(self, info: StoreInfo) -> Store:
        """The store that a peer introduces."""
        return Store(id=info.id, name=info.name, kind=info.kind, size=info.size, origin=info.origin)

    def prepare_volume(self, name: str, size: int, path: str = "") -> int:
        """A fresh secondary gets a volume before it is paired; durable. Its id holds until the primary gives it
        another.

        Raises:
            Refused: the group is a primary, or paired: then volumes come by the stream.
        """
        return int(self.exclusive(lambda: self._prepare_volume(name, size, path)))

    def _prepare_volume(self, name: str, size: int, path: str) -> int:
        if self.role != SECONDARY or self.group_id is not None:
            raise Refused(
                f"group {self.name!r} is not a fresh secondary: a volume is added at the primary", reason="role"
            )
        catalog = self.here.catalog
        check_new_name(catalog, name)
        check_size(size, self.region_size)
        if path:
            self.shelf.placement.resize(path, size)
        store = Store(id=catalog.next_id, name=name, kind=VOLUME, size=size)
        effects: list[Effect] = [Created(store.id, size // self.region_size, False)]
        placed = self.shelf.prepare(effects, {store.id: (path, False)} if path else {}, {store.id: name})
        self.shelf.perform(effects, *placed)
        catalog.add(store)
        self.end = self.here.copy()
        self.window.set_store(store.id, size, False)
        self._expect_notes(len(catalog.stores))
        self._checkpoint()
        return store.id

    def adopt(self, group_id: bytes, ids: dict[str, int], lineage: Lineage, lsn: int, primary: bytes) -> None:
        """First pairing: this secondary takes over identity, store numbers, lineage and position; durable on return.

        Raises:
            Diverged: it is paired already, with another group.
        """
        self.exclusive(lambda: self._adopt(group_id, ids, lineage, lsn, primary))

    def _adopt(self, group_id: bytes, ids: dict[str, int], lineage: Lineage, lsn: int, primary: bytes) -> None:
        if self.group_id is not None:
            raise Diverged(
                f"group {self.name!r} is paired already, as {self.group_id.hex()}", group=self.group_id.hex()
            )
        check(set(ids) == {store.name for store in self.here.catalog}, "pairing names other volumes than there are")
        while self.applier.apply():
            pass
        adopted = Catalog()
        for store in self.here.catalog:
            adopted.add(Store(id=ids[store.name], name=store.name, kind=store.kind, size=store.size))
            self.window.drop_store(store.id)
        self.shelf.renumber({store.id: (ids[store.name], store.size) for store in self.here.catalog})
        self.here = Point(lsn=lsn, lineage=lineage, consistent=False, item=0, catalog=adopted)
        self.end = self.here.copy()
        self.group_id, self.fed_by = group_id, primary
        self.window.set_generation(lineage.generation, group_id)
        self.window.set_lsn(lsn)
        state = self.window.state()
        self.window.applied(state.applied_position, lsn)
        for store in adopted:
            self.window.set_store(store.id, store.size, False)
        self._checkpoint()

    # ---- links

    def attach(self, link: Link) -> None:
        """The link is part of the group from here on; durable on return."""
        self.exclusive(lambda: self._attach(link))

    def _attach(self, link: Link) -> None:
        self._require_primary()
        self.links[link.name] = link
        try:
            self._checkpoint()
        except BaseException:
            self.links.pop(link.name, None)
            raise

    def detach(self, name: str) -> None:
        """The link is forgotten; durable on return."""
        def forget() -> None:
            self.links.pop(name)
            self._checkpoint()
        self.exclusive(forget)

    # ---- for people

    def status(self) -> dict[str, Any]:
        """Figures of this site: bytes, LSNs, states. A consistent look at each, not at all together."""
        state = self.window.state()
        return {
            "group": self.name,
            "group_id": self.group_id.hex() if self.group_id else None,
            "role": self.role,
            "consistent": self.end.consistent,
            "generation": self.end.lineage.generation.hex(),
            "lsn": {
                "end": state.end_lsn,
                "written": state.written_lsn,
                "durable": state.durable_lsn,
                "applied": state.applied_lsn,
            },
            "journal": {
                "size": self.journal.log_size,
                "used": state.end_position - state.tail_position,
                "tail": state.tail_position,
                "end": state.end_position,
                "engine": self.journal.device.engine,
                "checkpoints": self.checkpoints,
            },
            "window": {
                "size": state.ring_size,
                "used": state.ring_used,
                "batches": state.batches,
                "records": state.records,
                "payload_bytes": state.payload_bytes,
                "commits": state.commits,
                "flushes": state.flushes,
            },
            "map_memory": self.stores.map_memory(),
            "failed": state.failed,
            "stores": [
                {
                    "id": store.id,
                    "name": store.name,
                    "kind": store.kind,
                    "size": store.size,
                    "path": self.shelf.places[store.id].path if store.id in self.shelf.places else None,
                }
                for store in list(self.here.catalog)
            ],
        }
