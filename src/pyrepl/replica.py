"""The secondary's side of a link: whether a primary may feed this site, whether what it sends may be taken, and what is
acknowledged.

Decides every refusal of a secondary before anything is written: the handshake (who, what group, what limits, which
history) and each batch (next in its order, whole, inside its stores). Must not know how a batch is performed
(``applier``), nor sockets. A batch that passes goes to :meth:`Site.receive` as it came. What is durable is told by the
window; this only remembers which frame ended where.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np

from pyrepl import items, operations
from pyrepl._core import batch, layout
from pyrepl._core.stream import Reach
from pyrepl.divergence import descriptors
from pyrepl.errors import NotFound, PeerError, ProtocolError, PyreplError, Refused, UsageError, check
from pyrepl.items import MOST_REFUSALS, Refusal
from pyrepl.lineage import Lineage, common, is_valid
from pyrepl.pairing import describe_limits, introduce
from pyrepl.parting import parting_of_two, words_of_two
from pyrepl.protocol import messages
from pyrepl.protocol.frames import HEADER
from pyrepl.protocol.messages import (
    DIGEST,
    MOST_ASKED,
    MOST_DIGESTS,
    MOST_PROBED,
    Ack,
    Close,
    Digests,
    Forget,
    Heartbeat,
    Hello,
    Pair,
    Paired,
    Probe,
    Refuse,
    Welcome,
)
from pyrepl.protocol.session import Batch, Received, Session, State
from pyrepl.seams import Entropy


class Reached(NamedTuple):
    """Where the stream stood when so many frames had been received."""

    frames: int
    position: int  # of the journal: durable up to it, durable so far
    lsn: int
    item: int
    consistent: bool
    refusal: Refusal | None = None  # of the operation that this frame was
    works: bool = False  # it was one with plug-ins: what came of it is known when it is performed


class Replica:
    """One connection from a primary.

    Args:
        site: the engine of the group; a secondary.
        entropy: for the session's number.
        allow: node ids that may pair with a fresh site; None: whoever knows the address.
    """

    def __init__(self, site: Any, session: Session, entropy: Entropy, *, allow: set[bytes] | None = None) -> None:
        self.site = site
        self.session = session
        self.allow = allow
        self._entropy = entropy
        self._hello: Hello | None = None
        self._leads = False  # this site is a primary of the group itself, and says where it stands
        self._forked = False
        self._previous: int | None = None  # digest of the batch before; None: not known
        self._reached: deque[Reached] = deque()
        self._durable = Reached(0, 0, 0, 0, False)
        self._last = self._durable
        self._told: Ack | None = None
        self._unsettled = -1  # frames: up to there, the flag of a frame may be older than a result that differed
        self._reach: Reach | None = None
        self._heartbeats = 0
        self._asked: deque[Probe | Forget] = deque()
        self._answers: deque[Digests] = deque()
        self._unanswered = 0
        self.bytes_received = dict.fromkeys(("events", "operations", "copied", "items"), 0)

    # ---------------------------------------------------------------- what comes

    def receive(self, received: Received) -> bytes:
        """A frame came: what is to be answered at once, else nothing.

        Raises:
            ProtocolError: it must not come, or not like this; nothing of it was taken.
            Refused: this site cannot be fed by that primary; :meth:`refuse` makes the frame that says so.
            PeerError: the primary ended the connection.
        """
        match received:
            case Batch(data):
                self._batch(data)
            case Heartbeat(siblings=siblings):
                if siblings is not None:
                    self.site.siblings.hear(siblings)
                self._note(self._last.position, self._last.lsn, self._last.item, self._last.consistent)
            case Probe():
                self._probe(received)
            case Forget():
                self._asked.append(received)
                if len(self._asked) > 2 * MOST_ASKED:
                    raise ProtocolError("more verifications are over than were begun")
            case Hello():
                return self._greeted(received)
            case Pair():
                return self._pair(received)
            case Close(code=code, text=text):
                raise PeerError(f"the primary closed the connection: {text or code}", retryable=True, reason=code)
            case _:
                raise ProtocolError(f"a {type(received).__name__} makes no sense to a secondary")
        return b""

    def refuse(self, error: PyreplError) -> bytes:
        """The frame that says why not, if one may be sent now."""
        if self.session.state in (State.WELCOMED, State.CLOSED):
            return self.close(getattr(error, "reason", error.code), error.text)
        reason = getattr(error, "reason", "state")
        code = reason if reason in messages.REFUSALS else "state"
        if not self._leads:
            return self.session.send(Refuse(code=code, text=error.text[:1024]))
        site = self.site
        return self.session.send(Refuse(code=code, text=error.text[:1024], node=site.node_id,
                                        lineage=site.end.lineage.encode(), lsn=site.window.state().durable_lsn,
                                        asks=site.roles.asking))

    def close(self, code: str, text: str) -> bytes:
        """The frame that ends the connection in good order, if one may be sent now."""
        if self.session.state in (State.NEW, State.CLOSED):
            return b""
        return self.session.send(Close(code=code, text=text[:1024]))

    def heartbeat(self) -> bytes:
        """The frame that says that this side is still here."""
        self._heartbeats += 1
        return self.session.send(Heartbeat(number=self._heartbeats, stands=self.site.shortage.words()[:1024]))

    # ---------------------------------------------------------------- what is acknowledged

    @property
    def link(self) -> str:
        """The name of the link, at its own site; empty: it has not said hello."""
        return self._hello.link if self._hello is not None else ""

    @property
    def pending(self) -> int:
        """The journal position that is to become durable before all that was received can be acknowledged."""
        return self._last.position

    def acknowledge(self) -> bytes:
        """The frame that says how far this site is; empty if nothing has changed since the last one."""
        if self.session.state is not State.OPEN:
            return b""
        state = self.site.window.state()
        refusals: list[Refusal] = []
        while self._reached and self._reached[0].position <= state.durable_position and len(refusals) < MOST_REFUSALS:
            if self._reached[0].works and self._reached[0].position > state.applied_position:
                break  # what came of it is not known: nor is that durable
            self._durable = self._reached.popleft()
            if self._durable.refusal is not None:
                refusals.append(self._durable.refusal)
            elif self._durable.works and (reason := self.site.outcomes.surprises.pop(self._durable.lsn, "")):
                refusals.append(Refusal(self._durable.lsn, reason))
                self._unsettled = self._last.frames
        durable, last = self._durable, self._last
        ack = Ack(received=last.frames, durable=durable.frames, received_lsn=last.lsn, durable_lsn=durable.lsn,
                  applied_lsn=state.applied_lsn, item=durable.item,
                  consistent=durable.consistent and durable.frames > self._unsettled, refusals=refusals)
        if ack == self._told:
            return b""
        self._told = ack
        return self.session.send(ack)

    @property
    def owes(self) -> bool:
        """Whether something was received that the primary has not been told is durable."""
        return self._told is None or self._told.durable < self._last.frames

    # ---------------------------------------------------------------- verification

    def _probe(self, probe: Probe) -> None:
        """Limits what one probe, and all that are unanswered, may cost."""
        regions = max(1, MOST_PROBED // self.site.region_size)
        if not 0 < probe.count <= regions or not 0 < probe.per <= regions:
            raise ProtocolError(f"a probe of {probe.count} regions by {probe.per}, where {regions} are the most")
        if -(-probe.count // probe.per) > MOST_DIGESTS:
            raise ProtocolError(f"a probe for more than {MOST_DIGESTS} digests")
        if self._unanswered >= MOST_ASKED:
            raise ProtocolError(f"more than {MOST_ASKED} probes before an answer")
        self._unanswered += 1
        self._asked.append(probe)

    @property
    def is_asked(self) -> bool:
        """Whether :meth:`look` has something to do."""
        return bool(self._asked)

    def look(self) -> bool:
        """Digests what the next probe asks for; :meth:`answer` makes the frame. May take long, and wait for the
        applier: never called by the threads that receive or send. False: nothing was asked.

        Raises:
            ProtocolError: regions that the store does not have.
        """
        if not self._asked:
            return False
        asked = self._asked[0]
        if isinstance(asked, Forget):
            self.site.verification.forget(asked.lsn)
        else:
            digests, problem = b"", ""
            try:
                digests = self.site.verification.digests(asked.lsn, asked.store, asked.first, asked.count, asked.per)
                check(len(digests) == -(-asked.count // asked.per) * DIGEST, "one digest for each part of a probe")
            except UsageError as error:
                raise ProtocolError(f"a probe that cannot be: {error.text}") from error
            except (NotFound, Refused, LookupError, OSError) as error:
                problem = str(error)[:1024]
            self._answers.append(
                Digests(lsn=asked.lsn, store=asked.store, first=asked.first, digests=digests, problem=problem)
            )
        self._asked.popleft()
        return True

    def answer(self) -> bytes:
        """The frame of the next answer; empty if there is none."""
        if not self._answers or self.session.state is not State.OPEN:
            return b""
        self._unanswered -= 1
        return self.session.send(self._answers.popleft())

    # ---------------------------------------------------------------- the handshake

    def _refuse(self, code: str, text: str) -> None:
        raise Refused(text, reason=code, retryable=code in messages.PASSING)

    def judge(self, hello: Hello) -> None:
        """Whether this primary may feed this site; changes nothing.

        Raises:
            Refused, ProtocolError: no, and why.
        """
        site = self.site
        if layout.WIRE_VERSION not in hello.versions:
            self._refuse(
                "version", f"this site speaks version {layout.WIRE_VERSION} of the protocol, the primary does not"
            )
        if hello.path:
            self._judge_path(hello)
        if site.role != "secondary" and hello.overrules and self._overruled(hello):
            self._refuse("busy", f"group {site.name!r} is a primary here, and steps down for the one that overrules it")
        if site.role != "secondary":
            self._refuse_primary(hello)
        if site.roles.changing:
            self._refuse("busy", f"group {site.name!r} is changing its role on this node: try again")
        if site.outcomes.is_pending and site.shortage.stands:
            self._refuse("space", site.shortage.words())
        if site.outcomes.is_pending:
            self._refuse("busy", f"group {site.name!r} performs a plug-in on this node, and cannot say what came of it "
                                 f"yet: try again")
        if hello.node == site.node_id:
            self._refuse("identity", "the primary is this very node")
        ours = messages.limits(site.alignment, site.region_size)
        for code, names in (
            ("alignment", ("alignment",)),
            ("region-size", ("region_size",)),
            ("limits", ("max_event", "max_payload")),
        ):
            if any(getattr(hello.limits, name) != getattr(ours, name) for name in names):
                self._refuse(
                    code,
                    f"the primary's group has {describe_limits(hello.limits)}, this one has {describe_limits(ours)}: "
                    "both must be made alike",
                )
        if not is_valid(hello.lineage):
            raise ProtocolError("a hello without a lineage")
        if self.allow is not None and hello.node not in self.allow and hello.node != site.fed_by:
            self._refuse("identity", "this node is not told to be paired with that primary")
        if site.group_id is not None:
            if hello.group != site.group_id:
                self._refuse("group", f"this node holds another group under the name {site.name!r}")
            lineage = Lineage.decode(hello.lineage)
            site.roles.judge(hello.node, lineage, hello.lsn, path=hello.path, link=hello.link,
                             overrules=hello.overrules)

    def _judge_path(self, hello: Hello) -> None:
        """The one that asks is a secondary itself: it feeds nobody who leads, nor anybody above it."""
        site = self.site
        if site.role != "secondary":
            self._refuse("role", f"group {site.name!r} is a primary on this node, and a secondary on the one that "
                                 f"asks: a secondary feeds no primary. Remove that link there")
        if site.node_id in hello.path:
            self._refuse("identity", f"a loop: the one that asks is fed by this node, directly or through others, so "
                                     f"it cannot feed group {site.name!r} here. Remove that link there")

    def _refuse_primary(self, hello: Hello) -> None:
        """There are two primaries: what each has that the other lacks decides what is to be done."""
        site, parted = self.site, None
        if hello.group == site.group_id and hello.node != site.node_id and is_valid(hello.lineage):
            here = site.window.state().durable_lsn
            parted = parting_of_two(site.end.lineage, here, Lineage.decode(hello.lineage), hello.lsn,
                                    asks=site.roles.asking, asks_there=hello.asks)
            site.roles.meet(hello.node, parted)
            self._leads = True
        if parted is not None and site.roles.gives_way(hello.node, parted, leads=not hello.asks):
            self._refuse("busy", f"group {site.name!r} was a primary on this node, has nothing that the one that took "
                                 f"over lacks, and becomes its secondary: try again")
        if parted is None:
            self._refuse("role", f"group {site.name!r} is a primary on this node: demote it there first")
        else:
            self._refuse("lineage" if parted.is_split_brain else "role", words_of_two(parted, site.name))

    def _overruled(self, hello: Hello) -> bool:
        if hello.group != self.site.group_id or hello.node == self.site.node_id or not is_valid(hello.lineage):
            return False
        return bool(self.site.roles.overruled(hello.node, Lineage.decode(hello.lineage), hello.lsn))

    def _greeted(self, hello: Hello) -> bytes:
        site = self.site
        self.judge(hello)
        self._hello = hello
        if site.group_id is not None:
            site.protective.check_feed()
            site.shortage.check_feed()
            site.roles.follow(hello.node, hello.path, hello.turns)  # rule role_follow
        self._settle_position()
        return self.session.send(
            Welcome(
                version=layout.WIRE_VERSION,
                session=int.from_bytes(self._entropy(4), "little") or 1,
                group=site.group_id,
                node=site.node_id,
                limits=messages.limits(site.alignment, site.region_size),
                lineage=None if site.group_id is None else site.end.lineage.encode(),
                lsn=self._last.lsn,
                applied=site.window.state().applied_lsn,
                item=site.end.item,
                consistent=site.end.consistent and site.group_id is not None,
                stores=introduce(site.end.catalog),
                yields=site.end.yields,
                refusals=list(site.end.refusals),
                turns=site.turns,
                tail=self._tail(hello) if site.group_id is not None else None,
                different=site.end.different,
            )
        )

    def _tail(self, hello: Hello) -> items.Tail | None:
        """What this site has beyond what it shares with the one that asks, if it is known. All that arrived is
        durable."""
        tail: items.Tail | None = self.site.end.tails.get(hello.node)
        if tail is None and not hello.path:  # a secondary that is behind waits, and takes nobody back
            tail = self.site.siblings.tail(Lineage.decode(hello.lineage), hello.lsn)
        return tail

    def _settle_position(self) -> None:
        """What is reported must not be lost later: all that the journal holds is made durable first (rule
        report_durable)."""
        end, window = self.site.end, self.site.window
        position = window.state().end_position
        window.make_durable(position)
        self.site.outcomes.surprises.clear()  # the welcome tells them all
        self._last = self._durable = Reached(self.session.received, position, end.lsn, end.item, end.consistent)

    def _pair(self, pair: Pair) -> bytes:
        site, hello = self.site, self._hello
        assert hello is not None
        if site.group_id is not None:
            raise ProtocolError("a pair for a group that is paired already")
        if pair.group != hello.group or pair.node != hello.node or not is_valid(pair.lineage):
            raise ProtocolError("a pair that is not of the site that said hello")
        ids = {info.id for info in pair.stores}
        if len(ids) != len(pair.stores) or any(not 1 <= number < layout.FIRST_LOCAL for number in ids):
            raise ProtocolError("a pair with store numbers that cannot be")
        names = {info.name: info for info in pair.stores}
        if len(names) != len(pair.stores):
            raise ProtocolError("a pair that names a store twice")
        for store in site.end.catalog:
            info = names.get(store.name)
            if info is None or info.size != store.size or info.kind != store.kind:
                self._refuse(
                    "stores", f"volume {store.name!r} of {store.size} bytes does not match what the primary names"
                )
        if len(names) != len(site.end.catalog.stores):
            self._refuse("stores", "the primary names volumes that this site does not have")
        lineage = Lineage.decode(pair.lineage)
        site.intake.adopt(pair.group, {name: info.id for name, info in names.items()}, lineage, pair.lsn, pair.node,
                          hello.path, hello.turns)
        self._settle_position()
        return self.session.send(Paired(lsn=pair.lsn))

    # ---------------------------------------------------------------- batches by the run

    def reach(self) -> Reach | None:
        """What the next batches of events must be, for whoever takes in many at once (``_core/stream``); None: the next
        frame is to be received by itself. Batches that do not fit it come to :meth:`receive`, which says why."""
        site, session = self.site, self.session
        if not self._forked or session.state is not State.OPEN or site.role != "secondary":
            return None
        if site.protective.is_tight or site.shortage.stands:
            return None
        if self._reach is None:
            self._reach = Reach(alignment=site.alignment)
        end = site.end
        self._reach.begin(
            site.group_id, end.lineage.generation, session.id, session.received, end.lsn, self._previous
        )
        return self._reach

    def took(self, reach: Reach) -> None:
        """They were taken in as far as ``reach`` says: in the window, each judged."""
        if not reach.batches:
            return
        end = self.site.end
        self.site.refused = ""
        self.session.took_batches(reach.sequence)
        end.take_events(reach.lsn)
        self._previous = reach.previous
        self.bytes_received["events"] += reach.bytes - HEADER * reach.batches
        self._note(reach.position, end.lsn, end.item, end.consistent)

    # ---------------------------------------------------------------- batches

    def _batch(self, data: memoryview) -> None:
        site = self.site
        check(site.group_id is not None, "a batch comes only after pairing")
        reason = batch.judge(data, alignment=site.alignment, group=site.group_id)
        if reason:
            raise ProtocolError(
                f"a batch that is not whole: {batch.REASONS.get(reason, 'unknown reason')}", reason=reason
            )
        travel = batch.head(data)
        count = batch.head_length(travel.count)
        head, payload = data[:count], data[count:]
        if travel.kind in (layout.BATCH_EVENTS, layout.BATCH_OPERATION):
            kind = self._check_events(travel, head, payload)
        else:
            kind = self._check_item(travel, head, payload)
        try:
            position = site.intake.receive(head, payload)
        except PeerError:
            raise
        except PyreplError as error:
            code = "space" if getattr(error, "reason", "") == "space" else "state"
            raise Refused(f"this site cannot take what the primary sent: {error.text}", reason=code) from error
        self.bytes_received[kind] += len(data)
        refusal = Refusal(site.end.lsn, site.refused) if site.refused else None
        works = travel.kind == layout.BATCH_OPERATION and position == site.outcomes.received_until
        self._note(position, site.end.lsn, site.end.item, site.end.consistent, refusal, works)

    def _note(self, position: int, lsn: int, item: int, consistent: bool, refusal: Refusal | None = None,
              works: bool = False) -> None:
        self._last = Reached(self.session.received, position, lsn, item, consistent, refusal, works)
        self._reached.append(self._last)

    def _check_events(self, travel: batch.Head, head: memoryview, payload: memoryview) -> str:
        end = self.site.end
        if not self._forked:
            raise ProtocolError("events before the fork that opens the stream")
        if travel.item or travel.read_end:
            raise ProtocolError("events that call themselves an item")
        if travel.first_lsn != end.lsn + 1:
            raise ProtocolError(f"event {travel.first_lsn} where {end.lsn + 1} is next")
        if travel.generation != end.lineage.generation:
            raise ProtocolError("events of another generation than the stream is in")
        if self._previous is not None and travel.previous != self._previous:
            raise ProtocolError("a batch that does not follow the one before it")
        if travel.kind == layout.BATCH_EVENTS:
            self._check_inside(head)
        else:
            try:
                operation = operations.decode(body_of(head, payload))
                operation.check(end.catalog)
            except PyreplError as error:
                raise Refused(f"an operation that this site cannot perform: {error.text}", reason="state") from error
            works, decided = operations.works(operation), end.decided
            told = len(decided.outcomes) if decided is not None and decided.lsn == travel.first_lsn else 0
            if told != len(works):
                raise ProtocolError(f"an operation with {len(works)} plug-ins, of which {told} outcomes were told")
        self._previous = digest(travel)
        return "events" if travel.kind == layout.BATCH_EVENTS else "operations"

    def _check_inside(self, head: memoryview, unit: int = 1) -> None:
        """Every record lies inside a store that is there, and is made of whole units (regions, for copies)."""
        records = descriptors(head)
        catalog = self.site.end.catalog
        for number in np.unique(records["store"]).tolist():
            if number not in catalog:
                raise ProtocolError(f"data for store {number}, which is not there")
            size = np.uint64(catalog[number].size)
            mine = records[records["store"] == number]
            offset, length = mine["offset"], mine["length"].astype(np.uint64)
            if (offset > size).any() or (length > size - np.minimum(offset, size)).any():
                raise ProtocolError(f"data outside store {number}")
            if unit > 1 and ((offset % np.uint64(unit)).any() or (length % np.uint64(unit)).any()):
                raise ProtocolError("copied regions that are not whole regions")

    def _check_item(self, travel: batch.Head, head: memoryview, payload: memoryview) -> str:
        end = self.site.end
        if travel.kind not in (layout.BATCH_COPIED, layout.BATCH_ITEM):
            raise ProtocolError(f"a batch of kind {travel.kind}, which this version does not know")
        if travel.item != end.item + 1:
            raise ProtocolError(f"item {travel.item} where {end.item + 1} is next")
        if travel.kind == layout.BATCH_COPIED:
            if not self._forked:
                raise ProtocolError("copied regions before the fork that opens the stream")
            if travel.first_lsn != end.lsn:
                raise ProtocolError(f"an item at event {travel.first_lsn} where the stream stands at {end.lsn}")
            self._check_inside(head, self.site.region_size)
            return "copied"
        item = items.decode(body_of(head, payload))
        if not self._forked and not isinstance(item, items.Fork):
            raise ProtocolError("an item before the fork that opens the stream")
        if travel.first_lsn != (item.lsn if isinstance(item, items.Fork) else end.lsn):
            raise ProtocolError(f"an item at event {travel.first_lsn} where the stream stands at {end.lsn}")
        match item:
            case items.Fork(pairs, lsn):
                self._check_fork(pairs, lsn)
                self._keep_tail(lsn)  # rule role_tail
            case items.Skip(lsn, pairs):
                if lsn <= end.lsn or not self._follows(pairs, lsn):
                    raise ProtocolError(f"a skip to event {lsn} from {end.lsn}")
                self._previous = None
            case items.Make(info):
                region_size = self.site.region_size
                if info.id in end.catalog or not 1 <= info.id < layout.FIRST_LOCAL or end.catalog.is_taken(info.name):
                    raise ProtocolError(f"a store {info.id} that is there already")
                if info.size <= 0 or info.size % region_size or info.size >> 56:
                    raise ProtocolError(f"a store of {info.size} bytes")
            case items.Drop(number):
                if number not in end.catalog:
                    raise ProtocolError(f"store {number} is to be dropped and is not there")
            case items.Decided(lsn):
                if lsn != end.lsn + 1:
                    raise ProtocolError(f"outcomes of event {lsn} where {end.lsn + 1} is next")
            case items.Consistent() | items.Handover() | items.Different():
                pass
        return "items"

    def _keep_tail(self, fork: int) -> None:
        try:
            self.site.roles.keep_tail(fork)
        except (PyreplError, OSError) as error:
            raise Refused(
                f"what this site holds after event {fork} would be lost, and cannot be kept: {error}", reason="state",
                retryable=True,
            ) from error

    def _check_fork(self, pairs: list[tuple[bytes, int]], lsn: int) -> None:
        """Only to a position that both have in common, along the lineage of the hello; once where the stream opens,
        later on the spot."""
        end, hello = self.site.end, self._hello
        assert hello is not None
        theirs = Lineage.decode(hello.lineage)
        if self._forked:
            allowed = lsn == end.lsn
        else:
            allowed = lsn <= common(end.lineage, end.lsn, theirs, max(hello.lsn, lsn))
        if not allowed or not self._follows(pairs, lsn):
            raise ProtocolError(f"a fork to event {lsn}, which is not a position that both sites have in common")
        self._forked = True
        self._previous = None

    def _follows(self, pairs: list[tuple[bytes, int]], lsn: int) -> bool:
        """Whether this is the part of the hello's lineage that is reached at this LSN."""
        assert self._hello is not None
        return is_valid(pairs) and Lineage.decode(pairs) == Lineage.decode(self._hello.lineage).reached(lsn)


def digest(travel: batch.Head) -> int:
    """What the ``previous`` of the next batch of events names."""
    return travel.crc << 32 | travel.first_lsn & 0xFFFFFFFF


def body_of(head: memoryview, payload: memoryview) -> bytes:
    """The encoded operation or item of a batch.

    Raises:
        ProtocolError: it is not one record that holds one.
    """
    records = batch.records(head)
    if len(records) != 1 or records[0].kind != layout.OPERATION:
        raise ProtocolError("an operation or item is one record")
    record = records[0]
    return bytes(payload[record.payload:record.payload + record.length])
