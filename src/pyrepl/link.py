"""The primary's side of one link: what it knows of the secondary, and what goes out next.

    ledger   what holds at the secondary durably, and what it lacks that the log has dropped (``ledger``)
    ahead    what will hold there when everything that was sent has arrived: decides what to copy next

Decides the content and order of the stream (model, "The link"). Must not know how a connection begins (``greeting``)
or what of the knowledge is kept (``ledger``). No threads, sockets or clocks; its methods are called
with ``guard`` held (a context manager; all links of a site share one), except :meth:`Plan.fetch`, which reads and may
wait.

  L1  Only what is durable here is sent, so a secondary never holds events that this site lost.
  L2  The ledger lives in the checkpoint. A skip is sent only when a checkpoint that holds its fold is durable, and so
      is any other knowledge that what is sent next would make stale (``await_save``).
  L3  After a break the secondary says where it stands. The way from base to there is walked through backlog and
      journal (``Ledger.advance``); what was sent as copies without acknowledgement stays in D, and is copied again.
  L4  A copy is read when everything before it in the stream was sent already, so nothing in the stream before it is
      newer.
  L5  A piece of the backlog does not grow once its skip may be at the secondary, and not across what was sent as
      events: a piece that arrived as events after all is no difference.
  L6  Of a site that is fed itself (model, "Cascade"): what it was sent beside the order is passed at its place, and
      nothing is copied, nor called consistent, before all of it was passed and this site is consistent itself.
  L7  When the secondary could not take what was sent, it is asked with the first thing that leaves it no earlier state
      of this site, or one region: nothing goes out behind that before it is acknowledged. Then copies become more by
      what was acknowledged. So what it refuses again and again costs next to nothing.
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
from pyrepl._core.stream import Outlet
from pyrepl._core.window import Entry
from pyrepl.bound import Bound, is_bounded
from pyrepl.divergence import Runs, covered, touched
from pyrepl.errors import PeerError, ProtocolError, Refused, UsageError, check
from pyrepl.forecast import Forecast
from pyrepl.greeting import Greeting
from pyrepl.items import Refusal
from pyrepl.knowledge import (
    CopiedRegions,
    Dropped,
    Effect,
    Events,
    Flight,
    Knowledge,
    Made,
    Passed,
    Performed,
    Said,
    Skipped,
    kept_operation,
    may_be_refused,
    moves,
    passed,
    unsettles,
)
from pyrepl.ledger import Ledger, LinkRecord
from pyrepl.lineage import Lineage, Pairs, is_valid
from pyrepl.options import LinkOptions
from pyrepl.pairing import info_of
from pyrepl.parting import parting_of_two
from pyrepl.probes import Probing
from pyrepl.protocol import messages
from pyrepl.protocol.messages import Ack, Close, Digests, Forget, Heartbeat, Paired, Refuse, Welcome
from pyrepl.protocol.session import Received, Session, State
from pyrepl.resync import Step, Walk

ASYNC, SYNC = "async", "sync"
STATES = ("connecting", "streaming", "resyncing", "refused", "paused", "diverged", "down")
REFUSING = ("refused", "diverged")  # the secondary, or this site, does not want the connection
MOST_FRAMES = 4096  # frames sent and not acknowledged
MOST_LOT = 1 << 20  # bytes of the log that go out by one call, if one batch does not have more
MOST_COPIES = 16 << 20  # bytes of copied regions sent and not acknowledged: what an event waits for behind them
HELD_UP = ("space", "state")  # why a secondary ends the connection: it cannot take now what was sent
MOST_REFUSED = 16  # refused operations that are named in the status, the newest
MOST_LISTED = 1024  # refused operations of which it is known that they were, the newest
KINDS = ("events", "operations", "copied", "items", "control")


# ---------------------------------------------------------------- what goes out

class Out:
    """Frames that are to go out as they stand: one in ``buffers``, or a lot of batches of events. ``release`` when they
    are sent or copied away: they may pin the window's memory."""

    __slots__ = ("_buffers", "entry", "kind", "lot")

    def __init__(self, kind: str, buffers: list[Any], entry: Entry | None = None, lot: Outlet | None = None) -> None:
        self.kind = kind
        self._buffers = buffers
        self.entry = entry
        self.lot = lot

    @property
    def length(self) -> int:
        """Bytes."""
        return self.lot.length if self.lot is not None else sum(len(buffer) for buffer in self._buffers)

    @property
    def buffers(self) -> list[Any]:
        """All bytes of it, for whoever does not send a lot as one."""
        return [bytes(self.lot)] if self.lot is not None else self._buffers

    def release(self) -> None:
        """Nothing of it is needed any more."""
        self._buffers = []
        if self.entry is not None:
            self.entry.release()
            self.entry = None
        if self.lot is not None:
            self.lot.release()
            self.lot = None


class Plan:
    """What is to be read before it can be sent: what stands at a position of the journal, a lot of batches of events
    where there are some, or a step of the resync."""

    def __init__(self, link: Link, *, position: int = 0, until: int = 0, step: Step | None = None) -> None:
        self.link = link
        self.position = position
        self.until = until  # durable up to here
        self.step = step
        self.lot: Outlet | None = None
        self.entry: Entry | None = None
        self.copied: tuple[bytes, memoryview, int] | None = None

    def fetch(self) -> None:
        """Reads it. Called without the guard: reading back may wait for the disk, and for an operation to be
        performed."""
        link, site = self.link, self.link.site
        if self.step is None:
            try:
                lot = Outlet(site.window)
                if lot.fetch(self.position, self.until, MOST_LOT):
                    self.lot = lot
                else:
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


def check_mode(mode: str) -> str:
    """A mode of a link.

    Raises:
        UsageError: there is no such.
    """
    if mode not in (ASYNC, SYNC):
        raise UsageError(f"link mode {mode!r}: must be {ASYNC!r} or {SYNC!r}", option="mode")
    return mode


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
        self.site = site
        self.name, self.address, self.mode = name, address, check_mode(mode)
        self.options = options if options is not None else LinkOptions()
        self.guard: AbstractContextManager[Any] = guard if guard is not None else contextlib.nullcontext()
        self.paused = False
        self.ledger = Ledger(site, peer)
        # of one connection
        self.session: Session | None = None
        self.greeting: Greeting | None = None
        self.ahead = self.ledger.base
        self.flight: deque[Flight] = deque()
        self.flight_bytes = self._copies_bytes = 0
        self.item = 0
        self.consistent = False  # the secondary's flag as last heard
        self._will_be_consistent = False  # ... when all that was sent has arrived
        self._forked = False
        self._next_start: int | None = None  # the LSN at which the next generation is to be announced
        self._announced = 0  # number of the item that announced the last one
        self._heard_of = b""  # the last generation that the secondary durably knows
        self._caught_up = False
        self._catch_up = 0  # events before this journal position go before the next copy
        self._acked = self._acked_item = 0
        self._heartbeats = 0
        self._siblings: list[tuple[bytes, int]] | None = None  # as the secondary was told of them
        self.applied_lsn = self.received_lsn = 0
        self.last_error = ""
        self.stands = ""  # why the secondary performs nothing now, as last heard
        self.state = "connecting"
        self.bytes_sent = dict.fromkeys(KINDS, 0)
        self.frames_sent = 0
        self.connections = 0
        self.bound = Bound()
        self._ready = False  # the secondary's position was taken in
        self._remake: list[int] = []  # stores that are dropped and made again: not ours in size or name
        self._walk = Walk(site.region_size)
        self._told: tuple[Lineage, list[bytes]] | None = None  # in the hello, by a site that is fed itself
        self._is_void = False  # what was known, and sent, does not count any more: another connection is to be made
        self.is_ending = False  # this site has stepped down: a start knows nothing of the link
        self.asks_first = False  # the secondary could not take what was sent: L7
        self._most_copies = MOST_COPIES
        self.handing_over = False  # this site has stepped down: the secondary is told so when it has everything
        self.leads_there = False  # who answered last was a primary itself
        self.met = b""  # node that answered last, whatever it said
        self.answered = False  # since the start: the secondary goes on from this site's history
        self._handover = 0  # number of the item that told it
        self.refused: deque[Refusal] = deque(maxlen=MOST_REFUSED)
        self.refused_lsns: deque[int] = deque(maxlen=MOST_LISTED)  # all of them, for the list of operations
        self._unresolved = 0  # operations in flight of which it is not known yet whether they were refused
        self.probing: Probing | None = None  # a verification that is under way
        self._forget = 0  # LSN of one that is over, to be said
        self._told_different: items.FoundDifferent | None = None  # what the secondary knows when all has arrived
        self._decided = 0  # LSN of the plug-ins of which the outcomes were sent
        self._undecided = 0  # LSN of plug-ins that are next, and that this site has not performed

    # ---------------------------------------------------------------- the ledger

    @property
    def peer(self) -> bytes | None:
        """Node id of the secondary, once there was one."""
        return self.ledger.peer

    @property
    def base(self) -> Knowledge:
        """What holds at the secondary durably."""
        return self.ledger.base

    @property
    def position(self) -> int:
        """The log may not drop records at or after this position, unless :meth:`fold` has passed it."""
        return self.ledger.position

    def begin(self) -> None:
        """The link's stream begins where the stores are now. Called by the applier's thread when the link becomes part
        of the group; at the latest by its first :meth:`save`."""
        self.ledger.begin()
        self.ahead = self.base

    def inherit(self) -> None:
        """Takes over what the site remembers of the node that has answered. Called by the applier's thread when a
        checkpoint begins, which makes it durable (L2)."""
        node, self.ledger.heir = self.ledger.heir, b""
        known = self.site.remembered.pop(node, None)
        if known is not None:
            self.ledger.inherit(known.ledger)
            self.ahead = self.base

    def fold(self, until: int) -> None:
        """Takes what the log is about to drop, up to the journal position ``until``, into the backlog."""
        ledger, ahead = self.ledger, self.ahead
        if not ledger.begun:
            return
        if not ledger.fold(until, sent=ahead.lsn if self.session is not None else None):
            self.begin_again("the journal could not keep what this site was sent beside the order")
            ledger.doubted = True  # it may have been what repairs there what it had from here
            return
        if ledger.next_piece(ahead.lsn) is None:  # all was sent, and the log will not hold it: goes on behind
            ahead.position = max(ahead.position, ledger.position)
        if self.session is None:
            ledger.shorten()

    def void(self) -> None:
        """The connection, if there is one, ends soon, and nothing of it counts any more."""
        self._is_void = self.session is not None

    def begin_again(self, reason: str) -> None:
        """Nothing of the secondary is known any more. Called by the applier's thread; the next checkpoint makes it
        durable."""
        self.void()
        self.flight.clear()
        self.flight_bytes = self._copies_bytes = self._unresolved = 0
        self.refused.clear()  # LSNs may come again
        self.refused_lsns.clear()
        self.ledger.begin_again(reason)
        self.ahead = self.base
        self.end_probing()
        self.settle()

    @property
    def is_stale(self) -> bool:
        """Whether another connection is to be made, for this one was begun as something that is not so any more."""
        return self.session is not None and (
            self._is_void or (self._told is not None and self._told != (self.site.lineage, self._path))
        )

    @property
    def _path(self) -> list[bytes]:
        """Who feeds this site, as it tells the secondary; of one that has stepped down nobody: it speaks as who led."""
        led = self.is_ending or self.site.successor == self.name
        return [] if led else self.site.path

    def save(self) -> bytes:
        """What a checkpoint holds of this link; :meth:`saved` says when it is durable."""
        if not self.ledger.begun:
            self.begin()
        return self.ledger.save(
            name=self.name, address=self.address, mode=self.mode, options=self.options, paused=self.paused,
            refused=self.refused, refused_lsns=self.refused_lsns)

    def saved(self, checkpoint: int) -> None:
        """The checkpoint that :meth:`save` was last called for is durable."""
        self.ledger.saved(checkpoint)

    @property
    def wants_checkpoint(self) -> bool:
        """Whether the stream stands still until a checkpoint was taken, or much would be copied again without one."""
        if self.ledger.wants_checkpoint:
            return True
        piece = self.ledger.next_piece(self.ahead.lsn) if self.session is not None else None
        return piece is not None and not piece.operation and not self.ledger.is_saved(piece)

    @classmethod
    def restore(cls, site: Any, data: bytes, guard: AbstractContextManager[Any] | None = None) -> Link:
        """A link as its record says."""
        record = msgspec.msgpack.decode(data, type=LinkRecord)
        link = cls(site, record.name, address=record.address, mode=record.mode, options=record.options, guard=guard)
        link.paused = record.paused
        link.refused.extend(record.refused)
        link.refused_lsns.extend(record.refused_lsns)
        link.ledger = Ledger.restore(site, record)
        link.ahead = link.base
        return link

    def add_all(self, *stores: int) -> None:
        """These stores, or all that the secondary has, are different everywhere (verify, or by hand)."""
        for store in stores or tuple(self.base.divergence.maps):
            for knowledge in {id(k): k for k in (self.base, self.ahead)}.values():
                if store in knowledge.divergence.maps and store in knowledge.catalog:
                    size = knowledge.catalog[store].size // self.site.region_size
                    knowledge.divergence.add(store, size, differs=True)
        self.ledger.doubt("asked for")

    def set(self, *, mode: str | None = None, address: str | None = None, **wanted: Any) -> None:
        """Becomes another in these, and in the options that are named; the next checkpoint makes it durable. A link
        that becomes sync holds writes back from when it has caught up; one that becomes async lets go those that wait.

        Raises:
            UsageError: a value outside its rule; nothing was changed.
        """
        options = msgspec.structs.replace(self.options, **wanted)
        self.mode, before = check_mode(self.mode if mode is None else mode), self.mode
        self.options = options
        self.bound.void()
        self._settle_bound()
        if address is not None and address != self.address:
            self.address, self.last_error = address, ""
        if self.mode != before:
            self._caught_up = False
            self._settle()

    def forecast(self) -> Forecast:
        """What the secondary will be like further on, by what is known and sent now."""
        lsn = self.ahead.lsn
        backlog = [piece.copy() for piece in self.ledger.backlog if piece.upto > lsn]
        return Forecast(self.site, self.ahead.copy(), backlog, paired=self.peer is not None)

    # ---------------------------------------------------------------- one connection

    def connect(self, session: Session) -> bytes:
        """A connection was made: the frame that opens it."""
        self._reset()
        self.session, site = session, self.site
        if site.role != "primary" or site.intake.items_until > self.base.position:
            site.window.make_durable(site.window.state().end_position)  # what is told of this site holds after a crash
            self._told = site.lineage, self._path
            self.ledger.pass_items()
        self.greeting = Greeting(site, self.name, self.mode, self.ledger, session, self._path)
        if self.state not in REFUSING:  # that holds until the secondary says otherwise
            self.state = "connecting"
        self.leads_there = False
        return self.greeting.hello()

    def disconnect(self, error: str = "", state: str = "connecting") -> None:
        """The connection has ended: what was sent is unknown until the secondary says where it stands."""
        if self.session is not None:
            self.bytes_sent["control"] += self.session.bytes_sent
            self.session.close()
        self._reset()
        self.stands = self.stands if state in ("connecting", "refused") and not self.paused else ""
        self.state = "paused" if self.paused else state
        if error or self.paused:  # who pauses a link knows why it is not connected
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
                if not self.is_stale:
                    self._acknowledged(received)
            case Heartbeat(stands=stands):
                self.stands = stands
            case Digests():
                self._digests(received)
            case Welcome() | Paired():
                return self._greeted(received)
            case Refuse(code=code, text=text):
                self.leads_there = code == "role" or received.lineage is not None
                if received.node is not None and received.lineage is not None:
                    self._meet(received.node, received.lineage, received)
                if code in HELD_UP:
                    self._ask_first()
                self.stands = text if code == "space" else ""
                raise Refused(f"the secondary refuses: {text}", reason=code, retryable=code in messages.PASSING,
                              link=self.name)
            case Close(code=code, text=text):
                if code in HELD_UP:
                    self._ask_first()
                if code == "space":
                    self.stands = text
                    raise Refused(f"the secondary refuses: {text}", reason=code, retryable=True, link=self.name)
                raise PeerError(f"the secondary closed the connection: {text or code}", retryable=True, reason=code)
            case _:
                raise ProtocolError(f"a {type(received).__name__} makes no sense to a primary")
        return b""

    def _ask_first(self) -> None:
        self.asks_first, self._most_copies = True, 0

    def _may_go_on(self) -> None:
        if self.asks_first:
            self.asks_first, self.last_error = False, ""

    def _meet(self, node: bytes, lineage: Pairs, refuse: Refuse) -> None:
        """The secondary is a primary of the group itself, and says where it stands."""
        if not is_valid(lineage):
            raise ProtocolError("a refusal with a lineage that cannot be")
        site, self.met = self.site, node
        here, there = site.window.state().durable_lsn, refuse.lsn
        site.roles.meet(node, parting_of_two(site.lineage, here, Lineage.decode(lineage), there,
                                             asks=site.roles.asking, asks_there=refuse.asks))

    def heartbeat(self) -> bytes:
        """The frame that says that this side is still here, if one may be sent now."""
        if not self.is_open:
            return b""
        assert self.session is not None
        self._heartbeats += 1
        news = self.site.siblings.tell(self) if self._forked else None  # before that it has another history yet
        if news is None or news == self._siblings:
            return self.session.send(Heartbeat(number=self._heartbeats))
        self._siblings = news
        return self.session.send(Heartbeat(number=self._heartbeats, siblings=news))

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
            and not self.handing_over
            and self.probing is None
            and not self._forget
            and self._verdict() is None
        )

    @property
    def is_informed(self) -> bool:
        """Whether the secondary durably knows the generation in which this site writes. If it takes over before that,
        what was written in it cannot be told from what an old primary writes beside a new one (split brain)."""
        return bool(self._heard_of == self.site.lineage.generation)

    # ---------------------------------------------------------------- what goes out next

    def plan(self, durable_position: int) -> Out | Plan | None:
        """What goes out next: a frame, or what must be fetched for it (:meth:`Plan.fetch` without the guard, then
        :meth:`place`), or None: nothing can go before an acknowledgement, a checkpoint, or more that is durable."""
        if not self.is_open or self.ledger.is_awaited or self.is_stale:
            return None
        ahead = self.ahead
        if not self._forked or (self._next_start is not None and ahead.lsn >= self._next_start):
            return self._fork()
        if len(self.flight) >= MOST_FRAMES or self.flight_bytes >= self.options.most_flight:
            return None
        if self.asks_first and any(unsettles(flight.effect) for flight in self.flight):
            return None  # L7
        if self._remake:
            return self._item(items.Drop(self._remake[-1]), Dropped(self._remake.pop()))
        verdict = self._verdict()
        if verdict is not None:
            self._told_different = verdict.found
            return self._item(verdict, Said(unsettles=False))
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
        if ahead.position >= durable_position and not self.ledger.backlog:
            self._caught_up = True
            self.settle()
            if self.handing_over and not self._handover and self._will_be_consistent and not self._unresolved:
                asks = self.site.successor == self.name
                out = self._item(items.Handover(self.site.end.succession if asks else None), Said(unsettles=False))
                self._handover = self.item
                return out
        return None

    @property
    def handed_over(self) -> bool:
        """Whether the secondary durably knows that this site has stepped down, and has everything."""
        return 0 < self._handover <= self._acked_item

    def place(self, plan: Plan) -> Out | None:
        """What was fetched takes its place in the stream; None: it is void by now, plan again."""
        if plan.step is not None:
            return self._place_copy(plan.step, plan.copied)
        entry, ahead = plan.entry, self.ahead
        void = not self.is_open or self.is_stale or plan.position != ahead.position
        if void or self.ledger.next_piece(ahead.lsn) is not None:
            for pinned in (entry, plan.lot):
                if pinned is not None:
                    pinned.release()
            return None
        if plan.lot is not None:
            return self._place_lot(plan.lot)
        check(entry is not None, "the log holds what a link has not sent", link=self.name, position=plan.position)
        assert entry is not None
        beside = passed(entry, self.site.region_size)
        if beside is not None:
            entry.release()
            return self._pass(beside)
        if entry.kind != layout.RECORD_BATCH:
            ahead.position = entry.next_position
            if not self.flight and self.base.lsn == ahead.lsn:
                self.base.position = entry.next_position
            entry.release()
            return None
        check(entry.first_lsn == ahead.lsn + 1, "the journal goes on where the stream stands", link=self.name,
              lsn=entry.first_lsn, expected=ahead.lsn + 1)
        effect: Effect
        if entry.batch_kind == layout.BATCH_OPERATION and self._decided != entry.last_lsn:
            lsn, works = entry.last_lsn, operations.works(operations.decode(bytes(entry.body)))
            if works:
                entry.release()
                return self._decide(lsn)
        if entry.batch_kind == layout.BATCH_EVENTS:
            differs = bool(ahead.divergence) or bool(self.base.divergence)
            runs = covered(entry.head, self.site.region_size) if differs else {}
            effect = Events(entry.last_lsn, entry.next_position, runs, self._touched(entry.head))
            kind = "events"
        else:
            effect = Performed(entry.last_lsn, entry.next_position, operations.decode(bytes(entry.body)))
            kind = "operations"
        return self._out(kind, entry.head, entry.payload, effect, entry)

    def _pass(self, beside: Passed) -> Out | None:
        """What this site was sent beside the order does not go on, but for a skip; what it did counts from here on."""
        ahead, site = self.ahead, self.site
        item = beside.item
        if isinstance(item, items.Skip):
            self._announce(item.lsn)
            return self._item(items.Skip(item.lsn, site.lineage.reached(item.lsn).encode()), beside)
        if isinstance(item, items.Fork) and moves(beside, ahead.lsn):
            self.void()  # it leads this site away: the secondary is asked again where it stands
            return None
        ahead.take(beside, site.region_size)
        if self.flight:
            session = self.session
            assert session is not None
            self.flight.append(Flight(session.sent, 0, beside, self.item))
        else:
            self.ledger.pass_beside(beside)
        return None

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

    # ---------------------------------------------------------------- verification

    def probe(self) -> bytes:
        """The frame of a verification that is to be sent now, if there is one: between any two others."""
        if self.session is None or self.session.state is not State.OPEN:
            return b""
        if self._forget:
            lsn, self._forget = self._forget, 0
            return self.session.send(Forget(lsn=lsn))
        if self.probing is not None and self.probing.has_to_say():
            return self.session.send(self.probing.say())
        return b""

    def end_probing(self) -> None:
        """The verification is over, however: the secondary need not keep anything for it."""
        if self.probing is not None:
            self._forget, self.probing = self.probing.lsn, None

    def enter_found(self, store: int, different: RegionMap) -> None:
        """These regions differ as of the verification that is under way: they are copied, and what was made of them
        since. Saved before anything more is said (L2); the secondary's word that it is consistent does not empty D."""
        probing = self.probing
        check(probing is not None, "differences are found by a verification", link=self.name)
        assert probing is not None
        for knowledge in {id(k): k for k in (self.base, self.ahead)}.values():
            for number, regions in probing.spread(store, different, knowledge.lsn).items():
                knowledge.divergence.enter(number, regions)
        self.ledger.doubt("a verification found differences")
        self.ledger.await_save()
        self._will_be_consistent = self._caught_up = False
        self.settle()

    def _digests(self, answer: Digests) -> None:
        if self.probing is not None:
            self.probing.heard(answer)  # else to one that is over

    # ---------------------------------------------------------------- sync

    @property
    def promises(self) -> bool:
        """Whether a write may be promised as held by both sites, once it is acknowledged."""
        return (self.mode == SYNC and self.is_open and self._caught_up and self.consistent and self._will_be_consistent
                and not self._unresolved)

    def settle(self) -> None:
        """Tells the window whether writes wait for a secondary, and how far those are that promise."""
        if self.mode == SYNC:
            self._settle()

    def _settle(self) -> None:
        links = [link for link in self.site.links.values() if link.promises]
        if links:
            self.site.window.set_peer(min(link.base.lsn for link in links))
        self.site.window.set_sync(1 if links else 0)

    # ---------------------------------------------------------------- bounded lag

    def judge_lag(self, age: float) -> None:
        """Writers wait, or go on, by how much the secondary lacks. ``age``: seconds since the oldest event was written
        of that, 0 if it lacks nothing."""
        if not self.is_open:
            return
        before, state, base = self.bound.position, self.site.window.state(), self.base
        acknowledged = base.position if state.end_lsn > base.lsn else state.end_position
        self.bound.judge(self.options, acknowledged=acknowledged, end=state.end_position, age=age)
        if self.bound.position != before:
            self._settle_bound()

    def _settle_bound(self) -> None:
        """Tells the window where writers wait for the first of all links."""
        bounds = [link.bound.position for link in self.site.links.values() if link.bound.position is not None]
        self.site.window.set_bound(min(bounds) if bounds else None)

    # ---------------------------------------------------------------- status

    def status(self) -> dict[str, Any]:
        """For people and programs. Bytes and LSNs are integers; what is not known is None."""
        state = self.site.window.state()
        base = self.base
        differs = base.divergence.count()
        backlog = sum(regions.count() for piece in self.ledger.backlog for regions in piece.regions.values())
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
            "bandwidth": self.options.bandwidth or None,
            "dead_seconds": self.options.dead,
            "state": word,
            "connected": connected,
            "consistent": self.consistent,
            "degraded": (self.mode == SYNC and not self.promises)
            or (is_bounded(self.options) and not self.bound.holds),
            "most_lag_bytes": self.options.most_lag_bytes or None,
            "most_lag_seconds": self.options.most_lag_seconds or None,
            "holds_writers": self.bound.position is not None and state.end_position >= self.bound.position,
            "peer": self.peer.hex() if self.peer is not None else None,
            "lsn": base.lsn,
            "received_lsn": self.received_lsn,
            "durable_lsn": base.lsn,
            "applied_lsn": self.applied_lsn,
            "lag_events": lag,
            "lag_bytes": max(0, state.end_position - base.position) if lag else 0,
            "divergent_bytes": (differs + sum(store.size // self.site.region_size for store in base.missing()))
            * self.site.region_size,
            "found_different": msgspec.structs.asdict(found) if (found := self.ledger.found_different) else None,
            "backlog_bytes": backlog * self.site.region_size,
            "in_flight_bytes": self.flight_bytes,
            "bytes_sent": bytes_sent,
            "connections": self.connections,
            "synced": connected and self.consistent and not differs and lag == 0 and self.is_informed
            and self.site.is_settled,
            "stands": self.stands,
            "reason": self._reason(word == "resyncing"),
            "last_error": self.last_error,
            "refused": [{"lsn": refusal.lsn, "reason": refusal.reason} for refusal in list(self.refused)],
        }

    def _reason(self, resyncs: bool) -> str:
        if resyncs and not self.site.is_settled:
            return "this site is not consistent itself: it copies nothing before its own primary has made it so"
        return self.ledger.resync_reason if resyncs else ""

    # ---------------------------------------------------------------- inside: the handshake

    def _reset(self) -> None:
        self.session = self.greeting = self._told = self._siblings = None
        self._is_void = False
        self._ready = self._forked = self._caught_up = False
        self._handover = self._decided = self._undecided = 0
        self.ahead = self.base
        self._remake = []
        self._forget = 0
        if self.probing is not None:
            self.probing.broken()
        self.flight.clear()
        self._unresolved = 0
        self.flight_bytes = self._copies_bytes = self._acked = self._acked_item = self._catch_up = 0
        self.settle()
        self.bound.void()
        self._settle_bound()

    def _greeted(self, answer: Welcome | Paired) -> bytes:
        greeting = self.greeting
        assert greeting is not None
        if isinstance(answer, Paired):
            greeting.paired(answer)
        else:
            self.met = answer.node
            frame = greeting.welcomed(answer)
            if frame:
                return frame
        if self.is_stale or self.site.intake.turning:
            raise Refused("this site is being led elsewhere itself: it tries again", reason="busy", retryable=True,
                          link=self.name)
        if self.peer is not None:
            self.site.roles.meet(self.peer, None)
        self.item, self._remake = greeting.item, greeting.remake
        self.applied_lsn, self.received_lsn = greeting.applied_lsn, greeting.received_lsn
        self.state = "connecting"
        self.last_error = greeting.lost or (self.last_error if self.asks_first else "")  # else what was wrong is over
        self.stands = ""  # or its first heartbeat says so again
        self.consistent = self._will_be_consistent = greeting.consistent
        if self.probing is not None:
            self.probing.missed({refusal.lsn for refusal in greeting.refusals}.difference(self.refused_lsns))
        self._hear_of(greeting.refusals)
        self._told_different = greeting.different
        self.ledger.hear(greeting.different)
        self.ahead = self.base.copy()
        self._catch_up = self.site.window.state().durable_position  # operations among it may make copies needless
        self._ready = self.answered = True
        self.connections += 1
        return b""

    # ---------------------------------------------------------------- inside: the stream

    def _fork(self) -> Out:
        lsn = self.ahead.lsn
        self._forked, self._decided = True, 0
        self._announce(lsn)
        return self._item(items.Fork(self.site.lineage.reached(lsn).encode(), lsn), Said(unsettles=False))

    def _announce(self, lsn: int) -> None:
        """The next item tells the secondary the lineage up to this LSN: where does the next generation begin, to be
        announced by a fork?"""
        self._announced = self.item + 1
        self._next_start = next((start for _, start in self.site.lineage if start > lsn), None)

    def _event(self, durable_position: int) -> Out | Plan | None:
        ahead = self.ahead
        piece = self.ledger.next_piece(ahead.lsn)
        if piece is None:
            if ahead.position >= durable_position:
                return None
            if self._undecided == ahead.lsn + 1 and self._undecided not in self.site.outcomes.known:
                return None
            return Plan(self, position=ahead.position, until=durable_position)
        if piece.operation:
            count = batch.head_length(1)
            data = memoryview(piece.operation)
            effect = Performed(piece.upto, piece.position, kept_operation(piece.operation))
            if self._decided != piece.upto and operations.works(effect.operation):
                return self._decide(piece.upto)
            return self._out("operations", data[:count], data[count:], effect)
        if not self.ledger.is_saved(piece):
            return None
        piece.sent = True
        lineage = self.site.lineage.reached(piece.upto)
        self._announce(piece.upto)
        return self._item(items.Skip(piece.upto, lineage.encode()), Skipped(piece))

    def _verdict(self) -> items.Different | None:
        """What a verification found there, if the secondary is to be told now (rule verdict_told): that something
        differs at once, that nothing does when all that repaired it went before."""
        verdict = self.ledger.verdict
        if not verdict.judged or verdict.found == self._told_different:
            return None
        if verdict.found is None and not (self._will_be_consistent and self.ahead.is_equal()):
            return None
        return items.Different(verdict.found)

    def _touched(self, head: memoryview | bytes) -> dict[int, Runs]:
        """Of stores whose changes count, for an operation that was performed early there."""
        if not self.ahead.early and not self.base.early:
            return {}
        return touched(head, self.site.region_size, self.ahead.watched | self.base.watched)

    def _decide(self, lsn: int) -> Out | None:
        """What came here of the plug-ins of the operation that is next goes before it; None: that is not known yet."""
        outcomes = self.site.outcomes.known.get(lsn)
        if outcomes is None:
            check(self.site.window.state().applied_lsn < lsn, "it is kept what came of plug-ins that a link lacks",
                  link=self.name, lsn=lsn)
            self._undecided = lsn
            return None
        self._decided = lsn
        return self._item(items.Decided(lsn, outcomes), Said(unsettles=False))

    def _copy(self) -> Plan | None:
        full = self._copies_bytes >= max(self._most_copies, 1)
        if full or not self.ahead.divergence or not self._is_settled:
            return None
        held = self.ahead.held(self.site.awaiting) if self.ahead.early else ()
        stores = [store for store in self.ahead.catalog if store.id not in held] if held else self.ahead.catalog
        step = self._walk.next(self.ahead.divergence, stores, self.site.window.store_size, self._most_copies)
        return Plan(self, step=step) if step is not None else None

    def _place_copy(self, step: Step, copied: tuple[bytes, memoryview, int] | None) -> Out | None:
        window = self.site.window
        self._catch_up = window.state().durable_position
        if not self.is_open or self.is_stale or not self._is_settled:
            return None
        if copied is None or window.store_size(step.store) != step.size:
            return None
        head, payload, _ = copied
        self.item += 1
        effect = CopiedRegions(step.store, step.runs, batch.head(head).read_end)
        return self._out("copied", head, payload, effect)

    def _place_lot(self, lot: Outlet) -> Out:
        session, ahead, region_size = self.session, self.ahead, self.site.region_size
        assert session is not None
        check(lot.first_lsn == ahead.lsn + 1, "the journal goes on where the stream stands", link=self.name,
              lsn=lot.first_lsn, expected=ahead.lsn + 1)
        differs = bool(ahead.divergence) or bool(self.base.divergence)
        sequence = session.send_batches(lot.count)
        for number, (length, lsn, position, longest) in enumerate(lot.marks()):
            # No shorter event overwrites a region whole.
            runs = covered(lot.head(number), region_size) if differs and longest >= region_size else {}
            effect = Events(lsn, position, runs, self._touched(lot.head(number)))
            ahead.take(effect, region_size)
            self.flight.append(Flight(sequence + number + 1, length, effect, self.item))
            self.flight_bytes += length
            self.bytes_sent["events"] += length
        self.frames_sent += lot.count
        lot.seal(sequence, session.id)
        return Out("events", [], lot=lot)

    @property
    def _is_settled(self) -> bool:
        """Whether what this site shows at its journal's end is a state of the order, and the stream has passed all that
        made it one beside the order (L6). Always so where this site was never fed."""
        intake = self.site.intake
        return bool(not intake.is_coming and self.ahead.position >= intake.items_until and self.site.is_settled)

    def _may_say_consistent(self) -> bool:
        return (self._is_settled and not self._will_be_consistent and self.ahead.is_equal() and self.base.is_equal()
                and not self._unresolved
                and not any(unsettles(flight.effect) for flight in self.flight)
                and not any(not piece.operation for piece in self.ledger.backlog))

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
        if self.probing is not None and isinstance(effect, Performed):
            self.probing.streamed(effect, self.ahead, self.site.region_size)
        if unsettles(effect):
            self._will_be_consistent = self._caught_up = False
            self.settle()
        if may_be_refused(effect):
            self._unresolved += 1
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
        if not ack.consistent:
            self.ledger.unsettled()
        refusals = {refusal.lsn: refusal.reason for refusal in ack.refusals}
        refused = bool(refusals)
        while self.flight and self.flight[0].frames <= ack.durable:
            flight = self.flight.popleft()
            effect = flight.effect
            if may_be_refused(effect):
                effect = self._resolve(effect, refusals)
            if isinstance(effect, Passed):
                self.ledger.pass_beside(effect)
            else:
                base.take(effect, self.site.region_size)
            if self.probing is not None and isinstance(effect, Performed):
                self.probing.resolved(effect, base)
            self._acked_item = flight.item
            self.flight_bytes -= flight.length
            if unsettles(flight.effect):
                self._may_go_on()
            if isinstance(flight.effect, CopiedRegions):
                self._most_copies = min(self._most_copies + flight.length, MOST_COPIES)
                self._copies_bytes -= flight.length
                self.ledger.copied(flight.length)
            self.ledger.arrived()
        if refused:
            self._expect_again()
        if refusals:
            raise ProtocolError(f"a refusal of event {min(refusals)}, which is none that it acknowledges")
        if not self._acked_item:
            return  # it has not come to the fork yet, and says where it stood before
        self.ledger.agreed()
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
        if self._next_start is None and self._announced <= self._acked_item:
            self._heard_of = self.site.lineage.generation
        if self.consistent and base.is_equal():
            self.ledger.equal()
            self._may_go_on()
        self.settle()

    def _resolve(self, effect: Effect, refusals: dict[int, str]) -> Effect:
        """What has become of an operation at the secondary; ``refusals`` loses its own."""
        assert isinstance(effect, Performed)
        self._unresolved -= 1
        reason = refusals.pop(effect.lsn, None)
        if reason is None:
            return effect
        self._hear_of([Refusal(effect.lsn, reason)])
        self._will_be_consistent = self._caught_up = False
        return effect._replace(refused=True)

    def _expect_again(self) -> None:
        """What was sent will arrive at a secondary that is another than was thought when it was sent."""
        expected = self.base.copy()
        for flight in self.flight:
            expected.take(flight.effect, self.site.region_size)
        expected.position = max(expected.position, self.ahead.position)  # notes, and what is folded, are passed over
        self.ahead = expected

    def _hear_of(self, refusals: list[Refusal]) -> None:
        """The secondary could not perform all of these operations: what they changed comes as data."""
        for refusal in refusals:
            if refusal not in self.refused:
                self.refused.append(refusal)
            if refusal.lsn not in self.refused_lsns:
                self.refused_lsns.append(refusal.lsn)
            self.site.refused_at(self.name, refusal.lsn)
            self.ledger.resync_reason = f"the operation at LSN {refusal.lsn} was not performed there: {refusal.reason}"
