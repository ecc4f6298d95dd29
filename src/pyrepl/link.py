"""The primary's side of one link: what it knows of the secondary, and what goes out next.

    base     what holds at the secondary durably: position p and divergence D, moved by acknowledgements only, in order
    ahead    what will hold there when everything that was sent has arrived: decides what to copy next
    backlog  what the journal has dropped, or is about to, and the secondary lacks: skips and operations, in order

Decides the content and order of the stream (model, "The link"). No threads, sockets or clocks; its methods are called
with ``guard`` held (a context manager; all links of a site share one), except :meth:`Plan.fetch`, which reads and may
wait.

  L1  Only what is durable here is sent, so a secondary never holds events that this site lost.
  L2  All of this lives in the checkpoint. A skip is sent only when a checkpoint that holds its fold is durable, and so
      is any other knowledge that what is sent next would make stale (``_awaited``).
  L3  After a break the secondary says where it stands. The way from base to there is walked through backlog and
      journal; what was sent as copies without acknowledgement stays in D, and is copied again.
  L4  A copy is read when everything before it in the stream was sent already, so nothing in the stream before it is
      newer.
  L5  A piece of the backlog does not grow once its skip may be at the secondary, and not across what was sent as
      events: a piece that arrived as events after all is no difference.
"""

from __future__ import annotations

import contextlib
from collections import deque
from contextlib import AbstractContextManager
from typing import Any

import msgspec

from pyrepl import items, operations
from pyrepl._core import batch, layout, pump
from pyrepl._core.regions import RegionMap
from pyrepl._core.window import Entry
from pyrepl.catalog import VOLUME, Catalog, Store
from pyrepl.divergence import Divergence, covered
from pyrepl.errors import PeerError, ProtocolError, Refused, UsageError, check
from pyrepl.items import StoreInfo
from pyrepl.knowledge import (
    CopiedRegions,
    Dropped,
    Effect,
    Events,
    Flight,
    Knowledge,
    Made,
    Performed,
    Piece,
    Said,
    Skipped,
    kept_operation,
    unsettles,
)
from pyrepl.lineage import Lineage, common, is_valid
from pyrepl.pairing import describe_limits, info_of, introduce, mismatch
from pyrepl.protocol import messages
from pyrepl.protocol.messages import Ack, Close, Heartbeat, Hello, Pair, Paired, Refuse, Welcome
from pyrepl.protocol.session import Received, Session, State
from pyrepl.resync import Step, Walk

ASYNC, SYNC = "async", "sync"
STATES = ("connecting", "streaming", "resyncing", "refused", "paused", "diverged", "down")
MOST_FLIGHT = 64 << 20  # bytes sent and not acknowledged
MOST_FRAMES = 4096  # frames sent and not acknowledged
SAVE_EVERY = 256 << 20  # bytes of copied regions acknowledged: a primary that dies copies so much again at most
MOST_COPIES = 16 << 20  # bytes of copied regions sent and not acknowledged: what an event waits for behind them
KINDS = ("events", "operations", "copied", "items", "control")


# ---------------------------------------------------------------- what goes out

class Out:
    """A frame that is to go out as it stands. ``release`` when it is sent or copied away: it may pin the window's
    memory."""

    __slots__ = ("buffers", "entry", "kind", "length")

    def __init__(self, kind: str, buffers: list[Any], entry: Entry | None = None) -> None:
        self.kind = kind
        self.buffers = buffers
        self.length = sum(len(buffer) for buffer in buffers)
        self.entry = entry

    def release(self) -> None:
        """Nothing of it is needed any more."""
        self.buffers = []
        if self.entry is not None:
            self.entry.release()
            self.entry = None


class Plan:
    """What is to be read before it can be sent: an event at a position, or a step of the resync."""

    def __init__(self, link: Link, *, position: int = 0, step: Step | None = None) -> None:
        self.link = link
        self.position = position
        self.step = step
        self.entry: Entry | None = None
        self.copied: tuple[bytes, memoryview, int] | None = None

    def fetch(self) -> None:
        """Reads it. Called without the guard: reading back may wait for the disk, and for an operation to be
        performed."""
        link, site = self.link, self.link.site
        if self.step is None:
            try:
                self.entry = site.window.entry(self.position)
            except ValueError:
                # The tail has passed it: it was folded since. If it was not, the log is bad.
                if self.position >= site.window.state().tail_position:
                    raise
        else:
            with contextlib.suppress(LookupError, ValueError):  # deleted or shrunk since: `place` sees that too
                self.copied = pump.copied_batch(
                    site.window, site.stores, self.step.store, self.step.runs, group=site.group_id,
                    generation=site.lineage.generation, lsn=link.ahead.lsn, item=link.item + 1)


class LinkOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of one link. Times in seconds.

    Raises:
        UsageError: a value outside its rule.
    """

    heartbeat: float = 1.0
    dead: float = 5.0
    """Nothing heard for so long: the connection is given up."""
    backoff_first: float = 0.05
    backoff_most: float = 5.0
    most_flight: int = MOST_FLIGHT

    def __post_init__(self) -> None:
        for name, least, most in (("heartbeat", 0.01, 60.0), ("dead", 0.05, 600.0), ("backoff_first", 0.001, 60.0),
                                  ("backoff_most", 0.001, 3600.0), ("most_flight", 1 << 20, 1 << 30)):
            value = getattr(self, name)
            if not least <= value <= most:
                raise UsageError(f"link option {name} = {value}: must be from {least} to {most}", option=name)
        if self.dead <= self.heartbeat:
            raise UsageError(
                f"link option dead = {self.dead}: must be more than heartbeat, {self.heartbeat}", option="dead"
            )


class PieceRecord(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A piece of the backlog in a checkpoint."""

    upto: int
    position: int
    regions: dict[int, bytes]
    operation: bytes


class LinkRecord(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A link in a checkpoint."""

    version: int = 1
    name: str
    address: str
    mode: str
    options: LinkOptions
    peer: bytes | None
    paused: bool
    doubted: bool
    lsn: int
    position: int
    stores: list[Store]
    next_id: int
    divergence: dict[int, bytes]
    backlog: list[PieceRecord]


class Link:
    """One secondary, as its primary sees it.

    Args:
        site: the engine of the group (see ``site.py``).
        name: of the link in its group.
        address: where the secondary listens; the engine does not read it.
        mode: "async" or "sync".
        peer: node id of the secondary; None: whoever answers first, then that one for ever.
        guard: held by whoever calls; all links of a site share one.
    """

    def __init__(self, site: Any, name: str, *, address: str, mode: str = ASYNC, peer: bytes | None = None,
                 options: LinkOptions | None = None, guard: AbstractContextManager[Any] | None = None) -> None:
        if mode not in (ASYNC, SYNC):
            raise UsageError(f"link mode {mode!r}: must be {ASYNC!r} or {SYNC!r}", option="mode")
        self.site = site
        self.name, self.address, self.mode, self.peer = name, address, mode, peer
        self.options = options if options is not None else LinkOptions()
        self.guard: AbstractContextManager[Any] = guard if guard is not None else contextlib.nullcontext()
        self.paused = False
        self._begun = False
        self.base = Knowledge(0, 0, Catalog(), Divergence())
        self.backlog: deque[Piece] = deque()
        self._fold = 0  # number of the knowledge that is to be saved
        self._captured = 0  # ... that the checkpoint being taken holds
        self._saved = 0  # ... that a durable checkpoint holds
        self._awaited = 0  # ... that must be saved before anything is sent
        self._captured_position = 0
        self.kept = 0  # position of the record in the last durable checkpoint: a restart needs the log from here on
        self._copied_unsaved = 0  # bytes of copied regions that were acknowledged since the last save
        self.checkpoint = 0  # the last durable checkpoint that was taken with this link
        # of one connection
        self.session: Session | None = None
        self.ahead = self.base
        self.flight: deque[Flight] = deque()
        self.flight_bytes = self._copies_bytes = 0
        self.item = 0
        self.consistent = False  # the secondary's flag as last heard
        self._will_be_consistent = False  # ... when all that was sent has arrived
        self._forked = False
        self._next_start: int | None = None  # the LSN at which the next generation is to be announced
        self._caught_up = False
        self._catch_up = 0  # events before this journal position go before the next copy
        self._acked = self._acked_item = 0
        self._heartbeats = 0
        self.applied_lsn = self.received_lsn = 0
        self.last_error = ""
        self.state = "connecting"
        self.bytes_sent = dict.fromkeys(KINDS, 0)
        self.frames_sent = 0
        self.connections = 0
        self.resync_reason = "first synchronization"
        self.doubted = False  # D was marked by hand: the secondary's word that it is consistent does not empty it
        self._ready = False  # the secondary's position was taken in
        self._remake: list[int] = []  # stores that are dropped and made again: not ours in size or name
        self._paired_stores: list[Store] = []
        self._pending_peer = b""
        self._walk = Walk(site.region_size)

    # ---------------------------------------------------------------- checkpoints and the log

    def begin(self) -> None:
        """The link's stream begins where the stores are now. Called by the applier's thread, which owns the catalog,
        when the link becomes part of the group; at the latest by its first :meth:`save`."""
        state = self.site.window.state()
        # Nothing is known of the secondary: no store is there, each will be different everywhere once it is.
        self.base = self.ahead = Knowledge(
            state.applied_lsn, state.applied_position, self.site.catalog.copy(), Divergence()
        )
        self._begun = True

    @property
    def position(self) -> int:
        """The log may not drop records at or after this position, unless :meth:`fold` has passed it."""
        return self.backlog[-1].position if self.backlog else self.base.position

    def fold(self, until: int) -> None:
        """Takes what the log is about to drop, up to the journal position ``until``, into the backlog."""
        if not self._begun:
            return
        position, catalog = self.position, self._folded_catalog()
        if position < until:
            self._fold += 1
        while position < until:
            entry = self.site.window.entry(position)
            check(entry is not None, "the log ends before what a link is to fold", link=self.name)
            assert entry is not None
            with entry:
                position = entry.next_position
                if entry.batch_kind == layout.BATCH_EVENTS:
                    piece = self._growing(entry.last_lsn)
                    for store in entry.stores():
                        if store in catalog:
                            regions = piece.regions.get(store)
                            if regions is None:
                                size = catalog[store].size // self.site.region_size
                                regions = piece.regions[store] = RegionMap(size)
                            pump.enter(entry, store, regions, self.site.region_size)
                    piece.upto, piece.position, piece.fold = entry.last_lsn, position, self._fold
                elif entry.batch_kind == layout.BATCH_OPERATION:
                    operations.decode(bytes(entry.body)).apply(catalog)
                    self.backlog.append(Piece(entry.last_lsn, position, self._fold,
                                              operation=bytes(entry.head) + bytes(entry.payload)))
                elif self.backlog:
                    self.backlog[-1].position = position
                else:
                    self.base.position = position
                    self.ahead.position = max(self.ahead.position, position)

        if self._next_piece() is None:  # all of it was sent: the stream goes on behind it, for the log will not hold it
            self.ahead.position = max(self.ahead.position, position)
        share = self.site.journal.area_size // (4 * max(1, len(self.site.links)))
        if self.session is None and self._backlog_size() > share:
            self._give_up()

    def _backlog_size(self) -> int:
        """Bytes that the backlog takes in a checkpoint, about."""
        return sum(32 + len(piece.operation) + sum(len(regions.encode()) for regions in piece.regions.values())
                   for piece in self.backlog)

    def _give_up(self) -> None:
        """The backlog is too long for a checkpoint to keep: it becomes one skip, and all is copied after it. The
        secondary's word that it is consistent says nothing of what lies behind the skip: ``doubted``."""
        last, region_size = self.backlog[-1], self.site.region_size
        catalog = self._folded_catalog()
        whole = Piece(last.upto, last.position, self._fold)
        whole.regions = {store.id: RegionMap(store.size // region_size, marked=True) for store in catalog}
        self.backlog = deque([whole])
        self.base.catalog = catalog  # of the skip's end: makes and drops come before it
        self.base.divergence = Divergence()  # nothing is known of any store
        self.doubted = True
        self.resync_reason = "more operations than a backlog keeps"

    def save(self) -> bytes:
        """What a checkpoint holds of this link; :meth:`saved` says when it is durable."""
        if not self._begun:
            self.begin()
        self._copied_unsaved = 0
        self._captured, self._captured_position = self._fold, self.position
        base = self.base
        return msgspec.msgpack.encode(
            LinkRecord(
                name=self.name,
                address=self.address,
                mode=self.mode,
                options=self.options,
                peer=self.peer,
                paused=self.paused,
                doubted=self.doubted,
                lsn=base.lsn,
                position=base.position,
                stores=list(base.catalog),
                next_id=base.catalog.next_id,
                divergence={store: regions.encode() for store, regions in base.divergence.maps.items()},
                backlog=[
                    PieceRecord(
                        piece.upto,
                        piece.position,
                        {store: regions.encode() for store, regions in piece.regions.items()},
                        piece.operation,
                    )
                    for piece in self.backlog
                ],
            )
        )

    def saved(self, checkpoint: int) -> None:
        """The checkpoint that :meth:`save` was last called for is durable."""
        self._saved, self.kept = max(self._saved, self._captured), self._captured_position
        self.checkpoint = checkpoint

    @property
    def wants_checkpoint(self) -> bool:
        """Whether the stream stands still until a checkpoint was taken, or much would be copied again without one."""
        if self._copied_unsaved >= SAVE_EVERY:
            return True
        if self._saved < self._awaited:
            return True
        if self.session is None:
            return False
        piece = self._next_piece()
        return piece is not None and not piece.operation and piece.fold > self._saved

    @classmethod
    def restore(cls, site: Any, data: bytes, guard: AbstractContextManager[Any] | None = None) -> Link:
        """A link as its record says. Any skip of its backlog may have been sent since."""
        record = msgspec.msgpack.decode(data, type=LinkRecord)
        link = cls(
            site,
            record.name,
            address=record.address,
            mode=record.mode,
            peer=record.peer,
            options=record.options,
            guard=guard,
        )
        link._begun = True
        link.kept = record.backlog[-1].position if record.backlog else record.position
        link.paused, link.doubted = record.paused, record.doubted
        link.base = Knowledge(record.lsn, record.position,
                              Catalog({store.id: store for store in record.stores}, record.next_id),
                              Divergence({store: RegionMap.decode(data) for store, data in record.divergence.items()}))
        for old in record.backlog:
            piece = Piece(old.upto, old.position, 0, operation=old.operation, sent=True)
            piece.regions = {store: RegionMap.decode(data) for store, data in old.regions.items()}
            link.backlog.append(piece)
        link.ahead = link.base
        link.resync_reason = "" if link.peer is not None else link.resync_reason
        return link

    def add_all(self, *stores: int) -> None:
        """These stores, or all that the secondary has, are different everywhere (verify, or by hand)."""
        for store in stores or tuple(self.base.divergence.maps):
            for knowledge in {id(k): k for k in (self.base, self.ahead)}.values():
                if store in knowledge.divergence.maps and store in knowledge.catalog:
                    size = knowledge.catalog[store].size // self.site.region_size
                    knowledge.divergence.add(store, size, differs=True)
        self.doubted = True
        self.resync_reason = "asked for"

    # ---------------------------------------------------------------- one connection

    def connect(self, session: Session) -> bytes:
        """A connection was made: the frame that opens it."""
        site = self.site
        state = site.window.state()
        self._reset()
        self.session = session
        self.state = "connecting"
        return session.send(
            Hello(
                versions=[layout.WIRE_VERSION],
                group=site.group_id,
                group_name=site.name,
                node=site.node_id,
                link=self.name,
                limits=messages.limits(site.alignment, site.region_size),
                mode=self.mode,
                lineage=site.lineage.encode(),
                lsn=state.durable_lsn,
                stores=introduce(site.end.catalog),
            )
        )

    def disconnect(self, error: str = "", state: str = "connecting") -> None:
        """The connection has ended: what was sent is unknown until the secondary says where it stands."""
        if self.session is not None:
            self.bytes_sent["control"] += self.session.bytes_sent
            self.session.close()
        self._reset()
        self.state = "paused" if self.paused else state
        if error:
            self.last_error = error

    def receive(self, received: Received) -> bytes:
        """A message came: what is to be answered at once (the pair), else nothing.

        Raises:
            ProtocolError: it cannot be.
            Refused: the secondary, or this site, refuses; nothing was written on either side.
            PeerError: the secondary ended the connection.
        """
        match received:
            case Ack():
                self._acknowledged(received)
            case Heartbeat():
                pass
            case Welcome():
                return self._welcomed(received)
            case Paired():
                self._paired(received)
            case Refuse(code=code, text=text):
                self._refuse(f"the secondary refuses: {text}", code)
            case Close(code=code, text=text):
                raise PeerError(f"the secondary closed the connection: {text or code}", retryable=True, reason=code)
            case _:
                raise ProtocolError(f"a {type(received).__name__} makes no sense to a primary")
        return b""

    def heartbeat(self) -> bytes:
        """The frame that says that this side is still here, if one may be sent now."""
        if not self.is_open:
            return b""
        assert self.session is not None
        self._heartbeats += 1
        return self.session.send(Heartbeat(number=self._heartbeats))

    def close(self, code: str, text: str) -> bytes:
        """The frame that ends the connection in good order, if one may be sent now."""
        if self.session is None or self.session.state in (State.NEW, State.CLOSED):
            return b""
        return self.session.send(Close(code=code, text=text[:1024]))

    @property
    def is_open(self) -> bool:
        """Whether the handshake is done: the stream may go."""
        return self.session is not None and self.session.state in (State.WELCOMED, State.OPEN) and self._ready

    def is_steady(self, durable_position: int) -> bool:
        """Whether nothing but a new event can bring the stream on: no acknowledgement is waited for."""
        return (
            self.consistent
            and self._will_be_consistent
            and self._caught_up
            and self.ahead.position >= durable_position
            and self.base.divergence.is_empty()
            and len(self.flight) < MOST_FRAMES
            and self.flight_bytes < self.options.most_flight
        )

    # ---------------------------------------------------------------- what goes out next

    def plan(self, durable_position: int) -> Out | Plan | None:
        """What goes out next: a frame, or what must be fetched for it (:meth:`Plan.fetch` without the guard, then
        :meth:`place`), or None: nothing can go before an acknowledgement, a checkpoint, or more that is durable."""
        if not self.is_open or self._saved < self._awaited:
            return None
        ahead = self.ahead
        if not self._forked or (self._next_start is not None and ahead.lsn >= self._next_start):
            return self._fork()
        if len(self.flight) >= MOST_FRAMES or self.flight_bytes >= self.options.most_flight:
            return None
        if self._remake:
            return self._item(items.Drop(self._remake[-1]), Dropped(self._remake.pop()))
        extra, missing = ahead.extra(), ahead.missing()
        if extra:
            return self._item(items.Drop(extra[0]), Dropped(extra[0]))
        if missing:
            return self._item(items.Make(info_of(missing[0])), Made(missing[0]))
        if self._catch_up <= ahead.position:  # what had to go first has gone: a copy has its turn
            copy = self._copy()
            if copy is not None:
                return copy
        event = self._event(durable_position)
        if event is not None:
            return event
        copy = self._copy()
        if copy is not None:
            return copy
        if self._may_say_consistent():
            out = self._item(items.Consistent(), Said(unsettles=False))
            self._will_be_consistent = True
            return out
        if ahead.position >= durable_position and not self.backlog:
            self._caught_up = True
            self.settle()
        return None

    def place(self, plan: Plan) -> Out | None:
        """What was fetched takes its place in the stream; None: it is void by now, plan again."""
        if plan.step is not None:
            return self._place_copy(plan.step, plan.copied)
        entry, ahead = plan.entry, self.ahead
        if not self.is_open or plan.position != ahead.position or self._next_piece() is not None:
            if entry is not None:
                entry.release()
            return None
        check(entry is not None, "the log holds what a link has not sent", link=self.name, position=plan.position)
        assert entry is not None
        if entry.kind != layout.RECORD_BATCH or entry.batch_kind not in (layout.BATCH_EVENTS, layout.BATCH_OPERATION):
            ahead.position = entry.next_position
            if not self.flight and self.base.lsn == ahead.lsn:
                self.base.position = entry.next_position
            entry.release()
            return None
        check(entry.first_lsn == ahead.lsn + 1, "the journal goes on where the stream stands", link=self.name,
              lsn=entry.first_lsn, expected=ahead.lsn + 1)
        effect: Effect
        if entry.batch_kind == layout.BATCH_EVENTS:
            differs = bool(ahead.divergence) or bool(self.base.divergence)
            runs = covered(entry.head, self.site.region_size) if differs else {}
            effect = Events(entry.last_lsn, entry.next_position, runs)
            kind = "events"
        else:
            effect = Performed(entry.last_lsn, entry.next_position, operations.decode(bytes(entry.body)))
            kind = "operations"
        return self._out(kind, entry.head, entry.payload, effect, entry)

    def next_out(self, durable_position: int) -> Out | None:
        """plan, fetch and place in one go, for those who hold no guard over it: simulations and tests."""
        while True:
            plan = self.plan(durable_position)
            if not isinstance(plan, Plan):
                return plan
            plan.fetch()
            out = self.place(plan)
            if out is not None:
                return out
            if plan.step is not None:
                return None

    # ---------------------------------------------------------------- sync

    @property
    def promises(self) -> bool:
        """Whether a write may be promised as held by both sites, once it is acknowledged."""
        return (self.mode == SYNC and self.is_open and self._caught_up and self.consistent and self._will_be_consistent)

    def settle(self) -> None:
        """Tells the window whether writes wait for a secondary, and how far those are that promise."""
        if self.mode != SYNC:
            return
        links = [link for link in self.site.links.values() if link.promises]
        if links:
            self.site.window.set_peer(min(link.base.lsn for link in links))
        self.site.window.set_sync(1 if links else 0)

    # ---------------------------------------------------------------- status

    def status(self) -> dict[str, Any]:
        """For people and programs. Bytes and LSNs are integers; what is not known is None."""
        state = self.site.window.state()
        base = self.base
        differs = base.divergence.count()
        backlog = sum(regions.count() for piece in self.backlog for regions in piece.regions.values())
        connected = self.is_open
        word = self.state
        if connected:
            resync = differs or not self.consistent or backlog or base.missing()
            word = "resyncing" if resync else "streaming"
        lag = max(0, state.end_lsn - base.lsn)
        bytes_sent = dict(self.bytes_sent)
        if self.session is not None:
            bytes_sent["control"] += self.session.bytes_sent
        return {
            "name": self.name,
            "address": self.address,
            "mode": self.mode,
            "state": word,
            "connected": connected,
            "consistent": self.consistent,
            "degraded": self.mode == SYNC and not self.promises,
            "peer": self.peer.hex() if self.peer is not None else None,
            "lsn": base.lsn,
            "received_lsn": self.received_lsn,
            "durable_lsn": base.lsn,
            "applied_lsn": self.applied_lsn,
            "lag_events": lag,
            "lag_bytes": max(0, state.end_position - base.position) if lag else 0,
            "divergent_bytes": (differs + sum(store.size // self.site.region_size for store in base.missing()))
            * self.site.region_size,
            "backlog_bytes": backlog * self.site.region_size,
            "in_flight_bytes": self.flight_bytes,
            "bytes_sent": bytes_sent,
            "connections": self.connections,
            "synced": connected and self.consistent and not differs and lag == 0,
            "reason": self.resync_reason if word == "resyncing" else "",
            "last_error": self.last_error,
        }

    # ---------------------------------------------------------------- inside: the handshake

    def _reset(self) -> None:
        self.session = None
        self._ready = self._forked = self._caught_up = False
        self.ahead = self.base
        self._remake = []
        self.flight.clear()
        self.flight_bytes = self._copies_bytes = self._acked = self._acked_item = self._catch_up = 0
        self.settle()

    def _refuse(self, text: str, code: str) -> None:
        raise Refused(text, reason=code, retryable=code in messages.PASSING, link=self.name)

    def _welcomed(self, welcome: Welcome) -> bytes:
        site, session = self.site, self.session
        assert session is not None
        if welcome.version != layout.WIRE_VERSION:
            self._refuse(
                f"the secondary speaks version {welcome.version} of the protocol, this site {layout.WIRE_VERSION}",
                "version",
            )
        if welcome.limits != messages.limits(site.alignment, site.region_size):
            self._refuse(
                f"the secondary's group has {describe_limits(welcome.limits)}, this one has "
                f"{describe_limits(messages.limits(site.alignment, site.region_size))}: both must be made alike",
                "limits",
            )
        if welcome.node == site.node_id:
            self._refuse("the address leads to this very node", "identity")
        if self.peer is not None and welcome.node != self.peer:
            self._refuse(f"node {welcome.node.hex()} answers where node {self.peer.hex()} was paired", "identity")
        if welcome.group is None:
            if self.peer is not None:
                self._refuse("the secondary is fresh, but this link was paired: remove the link and add it again "
                             "to synchronize from nothing", "identity")
            return self._pair(welcome)
        if welcome.group != site.group_id:
            self._refuse("the secondary holds another group", "group")
        if welcome.lineage is None or not is_valid(welcome.lineage):
            raise ProtocolError("a welcome without a lineage")
        self._resume(welcome, Lineage.decode(welcome.lineage))
        return b""

    def _pair(self, welcome: Welcome) -> bytes:
        """First pairing: stores are matched by name and size."""
        session, site, base = self.session, self.site, self.base
        assert session is not None
        problem = mismatch(base.catalog, welcome.stores)
        if problem and self._start_later():
            self._refuse("this site takes in what changed since the link was made, then tries again", "busy")
        if problem:
            self._refuse(problem, "stores")
        self._paired_stores = [store for store in base.catalog if store.kind == VOLUME]
        self._pending_peer = welcome.node
        self.item = welcome.item
        return session.send(
            Pair(
                group=site.group_id,
                node=site.node_id,
                lineage=site.lineage.reached(base.lsn).encode(),
                lsn=base.lsn,
                stores=[info_of(store) for store in self._paired_stores],
            )
        )

    def _start_later(self) -> bool:
        """A link that was never paired begins where the journal ends now, if other stores are there by now. Saved
        before it is used (L2): a store that was created on the way is not the one that the secondary has prepared."""
        before = self.base.catalog.copy()
        if not self._advance(self.site.window.state().durable_lsn) or before.stores == self.base.catalog.stores:
            return False
        self.base.divergence = Divergence()
        self._fold += 1
        self._awaited = self._fold
        return True

    def _paired(self, paired: Paired) -> None:
        if paired.lsn != self.base.lsn:
            raise ProtocolError(f"the secondary was paired at {self.base.lsn} and says {paired.lsn}")
        self.peer = self._pending_peer
        for store in self._paired_stores:
            self.base.divergence.add(store.id, store.size // self.site.region_size, differs=True)
        self.consistent = False
        self._opened()

    def _resume(self, welcome: Welcome, lineage: Lineage) -> None:
        """From what is known of the secondary to where it says that it stands (L3)."""
        site, base = self.site, self.base
        durable = site.window.state().durable_lsn
        fork = common(site.lineage, durable, lineage, welcome.lsn)
        if fork < 0:
            self._refuse("the secondary's history has nothing in common with this group's", "lineage")
        self.peer = welcome.node
        self.consistent = welcome.consistent
        self.item = welcome.item
        self.applied_lsn, self.received_lsn = min(welcome.applied, fork), fork
        lost = ""
        if fork < welcome.lsn:
            lost = f"the secondary holds events up to {welcome.lsn} that are not in this group's history after {fork}"
        elif fork < base.lsn:
            lost = f"the secondary had acknowledged events up to {base.lsn} and stands at {fork}"
        told = base.lsn > fork or self._advance(fork)
        if not lost and not told:
            lost = f"the journal does not tell what changed up to {fork}"
        there = {info.id: info for info in welcome.stores}
        if lost:
            self._start_over(fork)
        elif self.consistent and not self.doubted and there.keys() == base.catalog.stores.keys():
            # It equals this site as of where it stands: what an older checkpoint still says of D is outdated.
            base.divergence = Divergence(
                {store.id: RegionMap(store.size // site.region_size) for store in base.catalog}
            )
        self._match(there, lost)
        self._opened()

    def _match(self, there: dict[int, StoreInfo], lost: str) -> None:
        """D is about the stores that are really there: one that D does not know is different everywhere."""
        base, region_size = self.base, self.site.region_size
        for store in [store for store in base.divergence.maps if store not in there]:
            base.divergence.remove(store)
        for info in there.values():
            ours = base.catalog.stores.get(info.id)
            known = info.id in base.divergence.maps
            if ours is not None and (info.size != ours.size or info.name != ours.name):
                if known and not lost:
                    self._refuse(
                        f"store {info.id} is {info.name!r} of {info.size} bytes at the secondary and {ours.name!r} of "
                        f"{ours.size} here at event {base.lsn}",
                        "stores",
                    )
                base.divergence.remove(info.id)
                self._remake.append(info.id)
            elif not known:
                base.divergence.add(info.id, info.size // region_size, differs=True)
        if lost:
            self.consistent = False
            self.resync_reason = self.last_error = lost

    def _opened(self) -> None:
        self.ahead = self.base.copy()
        self._ready = True
        self.connections += 1
        self._will_be_consistent = self.consistent

    def _advance(self, lsn: int) -> bool:
        """Moves base to this LSN by what backlog and journal say. False: they do not tell, base is void."""
        base = self.base
        while self.backlog and base.lsn < lsn:
            piece = self.backlog[0]
            if piece.upto > lsn:
                if piece.operation:
                    return False
                base.lsn = lsn  # so far it came as events; what a skip passes over enters when it was performed
                break
            if piece.operation:
                base.take(Performed(piece.upto, piece.position, kept_operation(piece.operation)), self.site.region_size)
            elif piece.sent:
                base.take(Skipped(piece), self.site.region_size)
            else:
                base.lsn, base.position = piece.upto, piece.position
            self.backlog.popleft()
        while base.lsn < lsn:
            try:
                entry = self.site.window.entry(base.position)
            except ValueError:
                return False
            if entry is None:
                return False
            with entry:
                if entry.batch_kind in (layout.BATCH_EVENTS, layout.BATCH_OPERATION):
                    if entry.first_lsn != base.lsn + 1 or entry.last_lsn > lsn:
                        return False
                    if entry.batch_kind == layout.BATCH_EVENTS:
                        runs = covered(entry.head, self.site.region_size) if base.divergence else {}
                        base.take(Events(entry.last_lsn, entry.next_position, runs), self.site.region_size)
                    else:
                        operation = operations.decode(bytes(entry.body))
                        base.take(Performed(entry.last_lsn, entry.next_position, operation), self.site.region_size)
                else:
                    base.position = entry.next_position
        base.divergence.arrive(base.lsn)
        return True

    def _start_over(self, fork: int) -> None:
        """Nothing is known of the secondary but that it shares events up to ``fork``: it goes back there, or to where
        base is, skips to base, and all of it is copied. Saved before a word of it is said (L2)."""
        base = self.base
        self._fold += 1
        self._awaited = self._fold
        if fork < base.lsn:
            self.backlog.appendleft(Piece(base.lsn, base.position, self._fold))
            base.lsn = fork  # the catalog stays that of the skip's end: makes and drops come before it
        region_size = self.site.region_size
        base.divergence = Divergence(
            {store.id: RegionMap(store.size // region_size, marked=True) for store in base.catalog}
        )

    # ---------------------------------------------------------------- inside: the stream

    def _next_piece(self) -> Piece | None:
        return next((piece for piece in self.backlog if piece.upto > self.ahead.lsn), None)

    def _growing(self, lsn: int) -> Piece:
        """The piece of the backlog that takes in events up to ``lsn`` (L5)."""
        last = self.backlog[-1] if self.backlog else None
        boundary = self.session is not None and last is not None and last.upto <= self.ahead.lsn < lsn
        if last is None or last.operation or last.sent or boundary:
            last = Piece(lsn, 0, self._fold)
            self.backlog.append(last)
        return last

    def _folded_catalog(self) -> Catalog:
        catalog = self.base.catalog.copy()
        for piece in self.backlog:
            if piece.operation:
                kept_operation(piece.operation).apply(catalog)
        return catalog

    def _fork(self) -> Out:
        lsn = self.ahead.lsn
        self._forked = True
        self._announce(lsn)
        return self._item(items.Fork(self.site.lineage.reached(lsn).encode(), lsn), Said(unsettles=False))

    def _announce(self, lsn: int) -> None:
        """The secondary is told the lineage up to this LSN: where does the next generation begin, to be announced by a
        fork?"""
        self._next_start = next((start for _, start in self.site.lineage if start > lsn), None)

    def _event(self, durable_position: int) -> Out | Plan | None:
        ahead = self.ahead
        piece = self._next_piece()
        if piece is None:
            return Plan(self, position=ahead.position) if ahead.position < durable_position else None
        if piece.operation:
            count = batch.head_length(1)
            data = memoryview(piece.operation)
            effect = Performed(piece.upto, piece.position, kept_operation(piece.operation))
            return self._out("operations", data[:count], data[count:], effect)
        if piece.fold > self._saved:
            return None
        piece.sent = True
        lineage = self.site.lineage.reached(piece.upto)
        self._announce(piece.upto)
        return self._item(items.Skip(piece.upto, lineage.encode()), Skipped(piece))

    def _copy(self) -> Plan | None:
        if self._copies_bytes >= MOST_COPIES:
            return None
        step = self._walk.next(self.ahead.divergence, self.ahead.catalog, self.site.window.store_size)
        return Plan(self, step=step) if step is not None else None

    def _place_copy(self, step: Step, copied: tuple[bytes, memoryview, int] | None) -> Out | None:
        window = self.site.window
        self._catch_up = window.state().durable_position
        if copied is None or not self.is_open or window.store_size(step.store) != step.size:
            return None
        head, payload, _ = copied
        self.item += 1
        effect = CopiedRegions(step.store, step.runs, batch.head(head).read_end)
        return self._out("copied", head, payload, effect)

    def _may_say_consistent(self) -> bool:
        return (not self._will_be_consistent and self.ahead.is_equal() and self.base.is_equal()
                and not any(unsettles(flight.effect) for flight in self.flight)
                and not any(not piece.operation for piece in self.backlog))

    def _item(self, item: items.Item, effect: Effect) -> Out:
        site = self.site
        self.item += 1
        body = items.encode(item)
        data = memoryview(batch.encode(layout.BATCH_ITEM, [(layout.OPERATION, 0, 0, body)], group=site.group_id,
                                       generation=site.lineage.generation, first_lsn=self.ahead.lsn,
                                       alignment=site.alignment, item=self.item))
        count = batch.head_length(1)
        return self._out("items", data[:count], data[count:], effect)

    def _out(self, kind: str, head: Any, payload: Any, effect: Effect, entry: Entry | None = None) -> Out:
        session = self.session
        assert session is not None
        length = len(head) + len(payload)
        header = session.send_batch(length)
        self.ahead.take(effect, self.site.region_size)
        if unsettles(effect):
            self._will_be_consistent = self._caught_up = False
            self.settle()
        self.flight.append(Flight(session.sent, length, effect, self.item))
        self.flight_bytes += length
        if kind == "copied":
            self._copies_bytes += length
        self.bytes_sent[kind] += length
        self.frames_sent += 1
        return Out(kind, [header, head, payload] if len(payload) else [header, head], entry)

    def _acknowledged(self, ack: Ack) -> None:
        session, base = self.session, self.base
        assert session is not None
        if not self._acked <= ack.durable <= ack.received <= session.sent:
            raise ProtocolError(f"an acknowledgement of {ack.durable} and {ack.received} frames, "
                                f"where {self._acked} were acknowledged before and {session.sent} were sent")
        self._acked = ack.durable
        while self.flight and self.flight[0].frames <= ack.durable:
            flight = self.flight.popleft()
            base.take(flight.effect, self.site.region_size)
            self._acked_item = flight.item
            self.flight_bytes -= flight.length
            if isinstance(flight.effect, CopiedRegions):
                self._copies_bytes -= flight.length
                self._copied_unsaved += flight.length
            while self.backlog and self.backlog[0].upto <= base.lsn:
                base.position = max(base.position, self.backlog.popleft().position)
        if not self._acked_item:
            return  # it has not come to the fork yet, and says where it stood before
        if (ack.durable_lsn, ack.item) != (
            base.lsn,
            self._acked_item,
        ) or not base.lsn <= ack.received_lsn <= self.ahead.lsn:
            raise ProtocolError(
                f"an acknowledgement at event {ack.durable_lsn} and item {ack.item}, where what it acknowledges "
                f"ends at event {base.lsn} and item {self._acked_item}"
            )
        if not self.flight:
            base.position = max(base.position, self.ahead.position)
        self.applied_lsn, self.received_lsn = min(ack.applied_lsn, self.ahead.lsn), ack.received_lsn
        self.consistent = ack.consistent
        if self.consistent and base.is_equal():
            self.resync_reason, self.doubted = "", False
        self.settle()
