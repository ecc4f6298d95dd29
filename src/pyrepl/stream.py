"""The stream of one connection of a link: what goes out, in which order, and what an acknowledgement of it means.

    ahead    what will hold at the secondary when everything that was sent has arrived: decides what to copy next
    flight   what was sent and is not acknowledged

Decides the content and order of the stream (model, "The link"), by the rules L1 and L4 to L7 of ``link``. It ends with
the connection: the next one begins where the secondary says that it stands. Must not know how that is found out
(``greeting``), what of the knowledge is kept (``ledger``), nor what writers are promised (``link``). As all of a link
it is called with the guard held.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from pyrepl import items, operations
from pyrepl._core import batch, layout
from pyrepl._core.stream import Outlet
from pyrepl._core.window import Entry
from pyrepl.divergence import Runs, covered, touched
from pyrepl.errors import ProtocolError, check
from pyrepl.items import Refusal
from pyrepl.knowledge import (
    CopiedRegions,
    Dropped,
    Effect,
    Events,
    Flight,
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
from pyrepl.outgoing import Out, Plan
from pyrepl.pairing import info_of
from pyrepl.protocol.messages import Ack
from pyrepl.resync import Step

if TYPE_CHECKING:
    from pyrepl.greeting import Greeting
    from pyrepl.link import Link

MOST_FRAMES = 4096  # frames sent and not acknowledged
MOST_COPIES = 16 << 20  # bytes of copied regions sent and not acknowledged: what an event waits for behind them


class Stream:
    """Of one connection; before there is one, of the next.

    Args:
        item: number of the last item that was sent on the connection before.
    """

    def __init__(self, link: Link, item: int = 0) -> None:
        self.link = link
        self.site = link.site
        self.ahead = link.base
        self.flight: deque[Flight] = deque()
        self.flight_bytes = self.copies_bytes = 0
        self.item = item
        self.remake: list[int] = []  # stores that are dropped and made again: not ours in size or name
        self.will_be_consistent = False  # the secondary's flag when all that was sent has arrived
        self.told_different: items.FoundDifferent | None = None  # what the secondary knows then
        self.forked = False
        self.next_start: int | None = None  # the LSN at which the next generation is to be announced
        self.announced = 0  # number of the item that announced the last one
        self.caught_up = False
        self.catch_up = 0  # events before this journal position go before the next copy
        self.acked = self.acked_item = 0
        self.unresolved = 0  # operations in flight of which it is not known yet whether they were refused
        self.decided = 0  # LSN of the plug-ins of which the outcomes were sent
        self.undecided = 0  # LSN of plug-ins that are next, and that this site has not performed
        self.handover = 0  # number of the item that told that this site has stepped down

    def begin(self, greeting: Greeting) -> None:
        """The secondary has said where it stands: it goes on from there."""
        self.item, self.remake = greeting.item, greeting.remake
        self.will_be_consistent = greeting.consistent
        self.told_different = greeting.different
        self.ahead = self.link.base.copy()
        self.catch_up = self.site.window.state().durable_position  # operations among it may make copies needless

    def forget(self) -> None:
        """Nothing of the secondary is known any more, and what was sent does not count."""
        self.flight.clear()
        self.flight_bytes = self.copies_bytes = self.unresolved = 0
        self.ahead = self.link.base

    def unsettle(self) -> None:
        """The secondary will differ when all that was sent has arrived."""
        self.will_be_consistent = self.caught_up = False

    # ---------------------------------------------------------------- what goes out next

    def is_steady(self, durable_position: int) -> bool:
        """Whether nothing but a new event can bring the stream on: no acknowledgement is waited for."""
        link = self.link
        return (
            link.consistent
            and self.will_be_consistent
            and self.caught_up
            and self.ahead.position >= durable_position
            and link.base.divergence.is_empty()
            and len(self.flight) < MOST_FRAMES
            and self.flight_bytes < link.options.most_flight
            and not link.handing_over
            and link.probing is None
            and not link.forget
            and self._verdict() is None
        )

    def plan(self, durable_position: int) -> Out | Plan | None:
        """What goes out next: a frame, or what must be fetched for it (:meth:`Plan.fetch` without the guard, then
        :meth:`place`), or None: nothing can go before an acknowledgement, a checkpoint, or more that is durable."""
        link, ahead = self.link, self.ahead
        if not link.is_open or link.ledger.is_awaited or link.is_stale:
            return None
        if not self.forked or (self.next_start is not None and ahead.lsn >= self.next_start):
            return self._fork()
        if len(self.flight) >= MOST_FRAMES or self.flight_bytes >= link.options.most_flight:
            return None
        if link.asks_first and any(unsettles(flight.effect) for flight in self.flight):
            return None  # L7
        if self.remake:
            return self._item(items.Drop(self.remake[-1]), Dropped(self.remake.pop()))
        verdict = self._verdict()
        if verdict is not None:
            self.told_different = verdict.found
            return self._item(verdict, Said(unsettles=False))
        extra, missing = ahead.extra(), ahead.missing()
        if extra:
            return self._item(items.Drop(extra[0]), Dropped(extra[0]))
        if missing:
            return self._item(items.Make(info_of(missing[0])), Made(missing[0]))
        if self.catch_up <= ahead.position:  # what had to go first has gone: a copy has its turn
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
            self.will_be_consistent = True
            return out
        if ahead.position >= durable_position and not link.ledger.backlog:
            self.caught_up = True
            link.settle()
            if link.handing_over and not self.handover and self.will_be_consistent and not self.unresolved:
                asks = self.site.successor == link.name
                out = self._item(items.Handover(self.site.end.succession if asks else None), Said(unsettles=False))
                self.handover = self.item
                return out
        return None

    def place(self, plan: Plan) -> Out | None:
        """What was fetched takes its place in the stream; None: it is void by now, plan again."""
        if plan.step is not None:
            return self._place_copy(plan.step, plan.copied)
        link, entry, ahead = self.link, plan.entry, self.ahead
        void = not link.is_open or link.is_stale or plan.position != ahead.position
        if void or link.ledger.next_piece(ahead.lsn) is not None:
            for pinned in (entry, plan.lot):
                if pinned is not None:
                    pinned.release()
            return None
        if plan.lot is not None:
            return self._place_lot(plan.lot)
        check(entry is not None, "the log holds what a link has not sent", link=link.name, position=plan.position)
        assert entry is not None
        beside = passed(entry, self.site.region_size)
        if beside is not None:
            entry.release()
            return self._pass(beside)
        if entry.kind != layout.RECORD_BATCH:
            ahead.position = entry.next_position
            if not self.flight and link.base.lsn == ahead.lsn:
                link.base.position = entry.next_position
            entry.release()
            return None
        check(entry.first_lsn == ahead.lsn + 1, "the journal goes on where the stream stands", link=link.name,
              lsn=entry.first_lsn, expected=ahead.lsn + 1)
        effect: Effect
        if entry.batch_kind == layout.BATCH_OPERATION and self.decided != entry.last_lsn:
            lsn, works = entry.last_lsn, operations.works(operations.decode(bytes(entry.body)))
            if works:
                entry.release()
                return self._decide(lsn)
        if entry.batch_kind == layout.BATCH_EVENTS:
            differs = bool(ahead.divergence) or bool(link.base.divergence)
            runs = covered(entry.head, self.site.region_size) if differs else {}
            effect = Events(entry.last_lsn, entry.next_position, runs, self._touched(entry.head))
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

    # ---------------------------------------------------------------- what was acknowledged

    def acknowledged(self, ack: Ack) -> None:
        """What the secondary durably holds, and what came of it: knowledge moves on, in the order of the stream.

        Raises:
            ProtocolError: it cannot be.
        """
        link, session, base = self.link, self.link.session, self.link.base
        assert session is not None
        if not self.acked <= ack.durable <= ack.received <= session.sent:
            raise ProtocolError(f"an acknowledgement of {ack.durable} and {ack.received} frames, "
                                f"where {self.acked} were acknowledged before and {session.sent} were sent")
        self.acked = ack.durable
        if not ack.consistent:
            link.ledger.unsettled()
        refusals = {refusal.lsn: refusal.reason for refusal in ack.refusals}
        refused = bool(refusals)
        while self.flight and self.flight[0].frames <= ack.durable:
            flight = self.flight.popleft()
            effect = flight.effect
            if may_be_refused(effect):
                effect = self._resolve(effect, refusals)
            if isinstance(effect, Passed):
                link.ledger.pass_beside(effect)
            else:
                base.take(effect, self.site.region_size)
            if link.probing is not None and isinstance(effect, Performed):
                link.probing.resolved(effect, base)
            self.acked_item = flight.item
            self.flight_bytes -= flight.length
            if unsettles(flight.effect):
                link.may_go_on()
            if isinstance(flight.effect, CopiedRegions):
                link.most_copies = min(link.most_copies + flight.length, MOST_COPIES)
                self.copies_bytes -= flight.length
                link.ledger.copied(flight.length)
            link.ledger.arrived()
        if refused:
            self._expect_again()
        if refusals:
            raise ProtocolError(f"a refusal of event {min(refusals)}, which is none that it acknowledges")
        if not self.acked_item:
            return  # it has not come to the fork yet, and says where it stood before
        link.ledger.agreed()
        if (ack.durable_lsn, ack.item) != (
            base.lsn,
            self.acked_item,
        ) or not base.lsn <= ack.received_lsn <= self.ahead.lsn:
            raise ProtocolError(
                f"an acknowledgement at event {ack.durable_lsn} and item {ack.item}, where what it acknowledges "
                f"ends at event {base.lsn} and item {self.acked_item}"
            )
        if not self.flight:
            base.position = max(base.position, self.ahead.position)
        link.applied_lsn, link.received_lsn = min(ack.applied_lsn, self.ahead.lsn), ack.received_lsn
        link.consistent = ack.consistent
        if self.next_start is None and self.announced <= self.acked_item:
            link.heard_of = self.site.lineage.generation
        if link.consistent and base.is_equal():
            link.ledger.equal()
            link.may_go_on()
        link.settle()

    def _resolve(self, effect: Effect, refusals: dict[int, str]) -> Effect:
        """What has become of an operation at the secondary; ``refusals`` loses its own."""
        assert isinstance(effect, Performed)
        self.unresolved -= 1
        reason = refusals.pop(effect.lsn, None)
        if reason is None:
            return effect
        self.link.hear_of([Refusal(effect.lsn, reason)])
        self.unsettle()
        return effect._replace(refused=True)

    def _expect_again(self) -> None:
        """What was sent will arrive at a secondary that is another than was thought when it was sent."""
        expected = self.link.base.copy()
        for flight in self.flight:
            expected.take(flight.effect, self.site.region_size)
        expected.position = max(expected.position, self.ahead.position)  # notes, and what is folded, are passed over
        self.ahead = expected

    # ---------------------------------------------------------------- inside: what is next

    def _fork(self) -> Out:
        lsn = self.ahead.lsn
        self.forked, self.decided = True, 0
        self._announce(lsn)
        return self._item(items.Fork(self.site.lineage.reached(lsn).encode(), lsn), Said(unsettles=False))

    def _announce(self, lsn: int) -> None:
        """The next item tells the secondary the lineage up to this LSN: where does the next generation begin, to be
        announced by a fork?"""
        self.announced = self.item + 1
        self.next_start = next((start for _, start in self.site.lineage if start > lsn), None)

    def _event(self, durable_position: int) -> Out | Plan | None:
        ahead = self.ahead
        piece = self.link.ledger.next_piece(ahead.lsn)
        if piece is None:
            if ahead.position >= durable_position:
                return None
            if self.undecided == ahead.lsn + 1 and self.undecided not in self.site.outcomes.known:
                return None
            return Plan(self, position=ahead.position, until=durable_position)
        if piece.operation:
            count = batch.head_length(1)
            data = memoryview(piece.operation)
            effect = Performed(piece.upto, piece.position, kept_operation(piece.operation))
            if self.decided != piece.upto and operations.works(effect.operation):
                return self._decide(piece.upto)
            return self._out("operations", data[:count], data[count:], effect)
        if not self.link.ledger.is_saved(piece):
            return None
        piece.sent = True
        lineage = self.site.lineage.reached(piece.upto)
        self._announce(piece.upto)
        return self._item(items.Skip(piece.upto, lineage.encode()), Skipped(piece))

    def _verdict(self) -> items.Different | None:
        """What a verification found there, if the secondary is to be told now (rule verdict_told): that something
        differs at once, that nothing does when all that repaired it went before."""
        verdict = self.link.ledger.verdict
        if not verdict.judged or verdict.found == self.told_different:
            return None
        if verdict.found is None and not (self.will_be_consistent and self.ahead.is_equal()):
            return None
        return items.Different(verdict.found)

    def _decide(self, lsn: int) -> Out | None:
        """What came here of the plug-ins of the operation that is next goes before it; None: that is not known yet."""
        outcomes = self.site.outcomes.known.get(lsn)
        if outcomes is None:
            check(self.site.window.state().applied_lsn < lsn, "it is kept what came of plug-ins that a link lacks",
                  link=self.link.name, lsn=lsn)
            self.undecided = lsn
            return None
        self.decided = lsn
        return self._item(items.Decided(lsn, outcomes), Said(unsettles=False))

    def _copy(self) -> Plan | None:
        link = self.link
        full = self.copies_bytes >= max(link.most_copies, 1)
        if full or not self.ahead.divergence or not self._is_settled:
            return None
        held = self.ahead.held(self.site.awaiting) if self.ahead.early else ()
        stores = [store for store in self.ahead.catalog if store.id not in held] if held else self.ahead.catalog
        step = link.walk.next(self.ahead.divergence, stores, self.site.window.store_size, link.most_copies)
        return Plan(self, step=step) if step is not None else None

    @property
    def _is_settled(self) -> bool:
        """Whether what this site shows at its journal's end is a state of the order, and the stream has passed all that
        made it one beside the order (L6). Always so where this site was never fed."""
        intake = self.site.intake
        return bool(not intake.is_coming and self.ahead.position >= intake.items_until and self.site.is_settled)

    def _may_say_consistent(self) -> bool:
        link = self.link
        return (self._is_settled and not self.will_be_consistent and self.ahead.is_equal() and link.base.is_equal()
                and not self.unresolved
                and not any(unsettles(flight.effect) for flight in self.flight)
                and not any(not piece.operation for piece in link.ledger.backlog))

    # ---------------------------------------------------------------- inside: its place in the stream

    def _pass(self, beside: Passed) -> Out | None:
        """What this site was sent beside the order does not go on, but for a skip; what it did counts from here on."""
        ahead, site = self.ahead, self.site
        item = beside.item
        if isinstance(item, items.Skip):
            self._announce(item.lsn)
            return self._item(items.Skip(item.lsn, site.lineage.reached(item.lsn).encode()), beside)
        if isinstance(item, items.Fork) and moves(beside, ahead.lsn):
            self.link.void()  # it leads this site away: the secondary is asked again where it stands
            return None
        ahead.take(beside, site.region_size)
        if self.flight:
            session = self.link.session
            assert session is not None
            self.flight.append(Flight(session.sent, 0, beside, self.item))
        else:
            self.link.ledger.pass_beside(beside)
        return None

    def _place_copy(self, step: Step, copied: tuple[bytes, memoryview, int] | None) -> Out | None:
        link, window = self.link, self.site.window
        self.catch_up = window.state().durable_position
        if not link.is_open or link.is_stale or not self._is_settled:
            return None
        if copied is None or window.store_size(step.store) != step.size:
            return None
        head, payload, _ = copied
        self.item += 1
        effect = CopiedRegions(step.store, step.runs, batch.head(head).read_end)
        return self._out("copied", head, payload, effect)

    def _place_lot(self, lot: Outlet) -> Out:
        link, ahead, region_size = self.link, self.ahead, self.site.region_size
        session = link.session
        assert session is not None
        check(lot.first_lsn == ahead.lsn + 1, "the journal goes on where the stream stands", link=link.name,
              lsn=lot.first_lsn, expected=ahead.lsn + 1)
        differs = bool(ahead.divergence) or bool(link.base.divergence)
        sequence = session.send_batches(lot.count)
        for number, (length, lsn, position, longest) in enumerate(lot.marks()):
            # No shorter event overwrites a region whole.
            runs = covered(lot.head(number), region_size) if differs and longest >= region_size else {}
            effect = Events(lsn, position, runs, self._touched(lot.head(number)))
            ahead.take(effect, region_size)
            self.flight.append(Flight(sequence + number + 1, length, effect, self.item))
            self.flight_bytes += length
            link.bytes_sent["events"] += length
        link.frames_sent += lot.count
        lot.seal(sequence, session.id)
        return Out("events", [], lot=lot)

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
        link, session = self.link, self.link.session
        assert session is not None
        length = len(head) + len(payload)
        header = session.send_batch(length)
        self.ahead.take(effect, self.site.region_size)
        if link.probing is not None and isinstance(effect, Performed):
            link.probing.streamed(effect, self.ahead, self.site.region_size)
        if unsettles(effect):
            self.unsettle()
            link.settle()
        if may_be_refused(effect):
            self.unresolved += 1
            link.settle()
        self.flight.append(Flight(session.sent, length, effect, self.item))
        self.flight_bytes += length
        if kind == "copied":
            self.copies_bytes += length
        link.bytes_sent[kind] += length
        link.frames_sent += 1
        return Out(kind, [header, head, payload] if len(payload) else [header, head], entry)

    def _touched(self, head: memoryview | bytes) -> dict[int, Runs]:
        """Of stores whose changes count, for an operation that was performed early there."""
        if not self.ahead.early and not self.link.base.early:
            return {}
        return touched(head, self.site.region_size, self.ahead.watched | self.link.base.watched)
