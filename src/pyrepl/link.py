"""The primary's side of one link: who its secondary is, what is known of it, and what writers are promised of it.

    ledger   what holds at the secondary durably, and what it lacks that the log has dropped (``ledger``)
    stream   what goes out on the connection that there is, and has not been acknowledged (``stream``)

Decides what every message of the secondary does, and which knowledge a break of the connection leaves (model, "The
link"). Must not know how a connection begins (``greeting``), what goes out next (``stream``), or what of the knowledge
is kept (``ledger``). No threads, sockets or clocks; its methods, and those of its stream, are called with ``guard``
held (a context manager; all links of a site share one).

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

from pyrepl._core.regions import RegionMap
from pyrepl.bound import Bound, is_bounded
from pyrepl.errors import PeerError, ProtocolError, Refused, UsageError, check
from pyrepl.forecast import Forecast
from pyrepl.greeting import Greeting
from pyrepl.items import Refusal
from pyrepl.knowledge import Knowledge
from pyrepl.ledger import Ledger, LinkRecord
from pyrepl.lineage import Lineage, Pairs, is_valid
from pyrepl.options import LinkOptions
from pyrepl.parting import parting_of_two
from pyrepl.probes import Probing
from pyrepl.protocol import messages
from pyrepl.protocol.messages import Ack, Close, Digests, Forget, Heartbeat, Paired, Refuse, Welcome
from pyrepl.protocol.session import Received, Session, State
from pyrepl.resync import Walk
from pyrepl.stream import MOST_COPIES, Stream

ASYNC, SYNC = "async", "sync"
STATES = ("connecting", "streaming", "resyncing", "refused", "paused", "diverged", "down")
REFUSING = ("refused", "diverged")  # the secondary, or this site, does not want the connection
HELD_UP = ("space", "state")  # why a secondary ends the connection: it cannot take now what was sent
MOST_REFUSED = 16  # refused operations that are named in the status, the newest
MOST_LISTED = 1024  # refused operations of which it is known that they were, the newest
KINDS = ("events", "operations", "copied", "items", "control")


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
        self.stream = Stream(self)
        self.walk = Walk(site.region_size)  # goes on over connections, as the next
        self._heartbeats = 0
        self.bound = Bound()
        self.probing: Probing | None = None  # a verification that is under way
        self.forget = 0  # LSN of one that is over, to be said
        self.refused: deque[Refusal] = deque(maxlen=MOST_REFUSED)
        self.refused_lsns: deque[int] = deque(maxlen=MOST_LISTED)  # all of them, for the list of operations
        # of one connection
        self.session: Session | None = None
        self.greeting: Greeting | None = None
        self._ready = False  # the secondary's position was taken in
        self._told: tuple[Lineage, list[bytes]] | None = None  # in the hello, by a site that is fed itself
        self._is_void = False  # what was known, and sent, does not count any more: another connection is to be made
        self._siblings: list[tuple[bytes, int]] | None = None  # as the secondary was told of them
        # of the secondary, as last heard
        self.consistent = False  # its flag
        self.applied_lsn = self.received_lsn = 0
        self.heard_of = b""  # the last generation that it durably knows
        self.stands = ""  # why it performs nothing now
        self.leads_there = False  # who answered last was a primary itself
        self.met = b""  # node that answered last, whatever it said
        self.answered = False  # since the start: it goes on from this site's history
        self.asks_first = False  # it could not take what was sent: L7
        self.most_copies = MOST_COPIES  # bytes of copied regions, sent and not acknowledged
        # of this site, stepping down
        self.is_ending = False  # it has: a start knows nothing of the link
        self.handing_over = False  # it has: the secondary is told so when it has everything
        # for the status
        self.state = "connecting"
        self.last_error = ""
        self.bytes_sent = dict.fromkeys(KINDS, 0)
        self.frames_sent = 0
        self.connections = 0

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
        self.stand_at_base()

    def stand_at_base(self) -> None:
        """The base has become another, and nothing was sent since: the stream stands there."""
        self.stream.ahead = self.base

    def inherit(self) -> None:
        """Takes over what the site remembers of the node that has answered. Called by the applier's thread when a
        checkpoint begins, which makes it durable (L2)."""
        node, self.ledger.heir = self.ledger.heir, b""
        known = self.site.remembered.pop(node, None)
        if known is not None:
            self.ledger.inherit(known.ledger)
            self.stand_at_base()

    def fold(self, until: int) -> None:
        """Takes what the log is about to drop, up to the journal position ``until``, into the backlog."""
        ledger, ahead = self.ledger, self.stream.ahead
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
        self.refused.clear()  # LSNs may come again
        self.refused_lsns.clear()
        self.ledger.begin_again(reason)
        self.stream.forget()
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
        piece = self.ledger.next_piece(self.stream.ahead.lsn) if self.session is not None else None
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
        link.stand_at_base()
        return link

    def add_all(self, *stores: int) -> None:
        """These stores, or all that the secondary has, are different everywhere (verify, or by hand)."""
        for store in stores or tuple(self.base.divergence.maps):
            for knowledge in {id(k): k for k in (self.base, self.stream.ahead)}.values():
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
            self.stream.caught_up = False
            self._settle()

    def forecast(self) -> Forecast:
        """What the secondary will be like further on, by what is known and sent now."""
        ahead = self.stream.ahead.copy()
        backlog = [piece.copy() for piece in self.ledger.backlog if piece.upto > ahead.lsn]
        return Forecast(self.site, ahead, backlog, paired=self.peer is not None)

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
                    self.stream.acknowledged(received)
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
        self.asks_first, self.most_copies = True, 0

    def may_go_on(self) -> None:
        """The secondary has taken what it was asked with first (L7)."""
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
        news = self.site.siblings.tell(self) if self.stream.forked else None  # before that it has another history yet
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

    @property
    def is_informed(self) -> bool:
        """Whether the secondary durably knows the generation in which this site writes. If it takes over before that,
        what was written in it cannot be told from what an old primary writes beside a new one (split brain)."""
        return bool(self.heard_of == self.site.lineage.generation)

    @property
    def handed_over(self) -> bool:
        """Whether the secondary durably knows that this site has stepped down, and has everything."""
        return 0 < self.stream.handover <= self.stream.acked_item

    # ---------------------------------------------------------------- verification

    def probe(self) -> bytes:
        """The frame of a verification that is to be sent now, if there is one: between any two others."""
        if self.session is None or self.session.state is not State.OPEN:
            return b""
        if self.forget:
            lsn, self.forget = self.forget, 0
            return self.session.send(Forget(lsn=lsn))
        if self.probing is not None and self.probing.has_to_say():
            return self.session.send(self.probing.say())
        return b""

    def end_probing(self) -> None:
        """The verification is over, however: the secondary need not keep anything for it."""
        if self.probing is not None:
            self.forget, self.probing = self.probing.lsn, None

    def enter_found(self, store: int, different: RegionMap) -> None:
        """These regions differ as of the verification that is under way: they are copied, and what was made of them
        since. Saved before anything more is said (L2); the secondary's word that it is consistent does not empty D."""
        probing = self.probing
        check(probing is not None, "differences are found by a verification", link=self.name)
        assert probing is not None
        for knowledge in {id(k): k for k in (self.base, self.stream.ahead)}.values():
            for number, regions in probing.spread(store, different, knowledge.lsn).items():
                knowledge.divergence.enter(number, regions)
        self.ledger.doubt("a verification found differences")
        self.ledger.await_save()
        self.stream.unsettle()
        self.settle()

    def _digests(self, answer: Digests) -> None:
        if self.probing is not None:
            self.probing.heard(answer)  # else to one that is over

    # ---------------------------------------------------------------- sync

    @property
    def promises(self) -> bool:
        """Whether a write may be promised as held by both sites, once it is acknowledged."""
        stream = self.stream
        return (self.mode == SYNC and self.is_open and stream.caught_up and self.consistent
                and stream.will_be_consistent and not stream.unresolved)

    def settle(self) -> None:
        """Tells the window whether writes wait for a secondary, and how far those are that promise."""
        if self.mode == SYNC:
            self._settle()

    def _settle(self) -> None:
        links = [link for link in list(self.site.links.values()) if link.promises]  # the applier may attach one
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
        bounds = [link.bound.position for link in list(self.site.links.values())]
        self.site.window.set_bound(min((bound for bound in bounds if bound is not None), default=None))

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
            "in_flight_bytes": self.stream.flight_bytes,
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
        self._is_void = self._ready = False
        self.forget = 0
        if self.probing is not None:
            self.probing.broken()
        self.stream = Stream(self, self.stream.item)
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
        self.applied_lsn, self.received_lsn = greeting.applied_lsn, greeting.received_lsn
        self.state = "connecting"
        self.last_error = greeting.lost or (self.last_error if self.asks_first else "")  # else what was wrong is over
        self.stands = ""  # or its first heartbeat says so again
        self.consistent = greeting.consistent
        if self.probing is not None:
            self.probing.missed({refusal.lsn for refusal in greeting.refusals}.difference(self.refused_lsns))
        self.hear_of(greeting.refusals)
        self.ledger.hear(greeting.different)
        self.stream.begin(greeting)
        self._ready = self.answered = True
        self.connections += 1
        return b""


    def hear_of(self, refusals: list[Refusal]) -> None:
        """The secondary could not perform all of these operations: what they changed comes as data."""
        for refusal in refusals:
            if refusal not in self.refused:
                self.refused.append(refusal)
            if refusal.lsn not in self.refused_lsns:
                self.refused_lsns.append(refusal.lsn)
            self.site.refused_at(self.name, refusal.lsn)
            self.ledger.resync_reason = f"the operation at LSN {refusal.lsn} was not performed there: {refusal.reason}"
