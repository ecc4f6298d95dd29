"""What of the order the log still holds, the part before its tail included: read from the device, forwards and back.

The log before the tail is nobody's any more, and stays readable until it is written over. Nothing is held for who reads
here: a record that was written over meanwhile fails its chain, and that is an error that says so (:class:`Overtaken`).
So a reader never stands in the way of a writer, and needs memory for one segment.

    segment   some MiB of records that were walked once, forwards: where they begin (position, chain), their LSNs, times
    beginning the history begins behind the last record that is no plain event of this order (a copied region, a skip,
              a fork away from here): what stores showed before it was no state of this order

Decides what is part of the history, and which LSN a time means. Must not know what is made of it (``provenance``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pyrepl import items, notes, operations
from pyrepl._core import batch, layout
from pyrepl._core.window import scan_log
from pyrepl.catalog import ImageKey
from pyrepl.errors import Refused, check
from pyrepl.journal import Journal
from pyrepl.lineage import Lineage
from pyrepl.operations import Copied, CopiedImage, Created, Resized, Reworked

SEGMENT = 8 << 20  # bytes of the log that are in memory at a time, at most
SHARE = 32  # of the log: a segment is no longer, for the oldest one is lost as a whole
MARGINS = 64, 16, 4, 2  # of the log's oldest part such a share is left to the writers, tried one after the other
_LONGEST = layout.MAX_PAYLOAD + layout.BLOCK  # of a record: how far it is to the next one from anywhere in the log


class Overtaken(Refused):
    """The log was written over while it was read: what was there is gone for good."""

    def __init__(self, text: str, **context: Any) -> None:
        super().__init__(text, reason="overtaken", retryable=True, **context)


class Segment(NamedTuple):
    """A stretch of the log that was walked."""

    position: int
    chain: int
    end: int
    last_lsn: int
    last_time: int  # ns since 1970 of its last event that has a time, or that before it; 0: none has


class Batch(NamedTuple):
    """Events, or one operation, of the history. ``head`` is the travel part with the descriptors, ``payload`` the
    data."""

    position: int
    first_lsn: int
    last_lsn: int
    time_ns: int
    head: memoryview
    payload: memoryview
    operation: operations.Operation | None


class History:
    """The order as far as the log of one site holds it, from event ``first_lsn + 1`` to ``last_lsn``.

    Made by :meth:`find`. What is read from the device may take long: it is for a thread of its own.

    Attributes:
        first_lsn: the LSN before the first event that is held.
        first_time: when that one was written, or the one before it; ns since 1970, 0: not known.
        most: regions of the longest store that operations of the history make or resize.
        images: that were copied from; each has a number below 0.
        related: stores of which one was copied to the other.
    """

    def __init__(self, journal: Journal, position: int, chain: int) -> None:
        self.journal = journal
        self.segments: list[Segment] = []
        self.first_lsn = self.last_lsn = -1
        self.first_time = 0
        self.most = 0
        self.images: dict[ImageKey, int] = {}
        self.related: dict[int, set[int]] = {}
        self.end, self._chain = position, chain
        self._begin = position  # records before it are not part of the history
        self._generation = b""
        self._time = 0

    @classmethod
    def find(cls, journal: Journal, written: Callable[[], int]) -> History:
        """All that the log holds.

        Args:
            written: the position up to which the log is written, now.

        Raises:
            Overtaken: it is written over faster than it can be read.
        """
        for share in MARGINS:
            until = written()
            start = max(journal.superblock["first_position"], until - journal.log_size + journal.log_size // share)
            for position in range(-(-start // layout.BLOCK) * layout.BLOCK, min(until, start + _LONGEST), layout.BLOCK):
                head = batch.local(journal.device.read(journal.log_offset + position % journal.log_size, layout.BLOCK))
                if head.position != position:
                    continue
                history = cls(journal, position, head.chain)
                try:
                    history.extend(until)
                except Overtaken:  # or no record, although it looks like one
                    continue
                return history
        raise Overtaken(f"the log on {journal.device.name} is written over faster than it can be read")

    def touched(self, lsn: int, region_size: int) -> set[int] | None:
        """The stores that events after this LSN have made, written to or changed; None: not all those events are held.

        Raises:
            Overtaken: they were written over meanwhile.
        """
        if not 0 <= self.first_lsn <= lsn:
            return None
        found = set[int]()
        for one in self.after(lsn):
            if one.operation is None:
                events = enumerate(batch.records(one.head), one.first_lsn)
                found.update(record.store for number, record in events if number > lsn)
                continue
            for effect in one.operation.effects(region_size):
                match effect:
                    case Created(store) | Resized(store) | Copied(store) | CopiedImage(store):
                        found.add(store)
                    case Reworked(_, writes):
                        found.update(store for store, _, _ in writes)
        return found

    # ---- forwards

    def extend(self, until: int) -> None:
        """Walks on to the position ``until``, which has been written.

        Raises:
            Overtaken: a record on the way is not there any more.
        """
        while self.end < until:
            position, chain = self.end, self._chain
            most = min(SEGMENT, self.journal.log_size // SHARE, until - position)
            records, self.end, self._chain = self._scan(position, chain, most)
            if not records:
                raise self._overtaken(position)
            for at, record in records:
                self._take(at, record)
            self.segments.append(Segment(position, chain, self.end, self.last_lsn, self._time))
            while self.segments and self.segments[0].end <= self._begin:
                self.segments.pop(0)

    def _take(self, position: int, record: bytes) -> None:
        local = batch.local(record)
        if local.kind == layout.RECORD_NOTE:
            if local.note == notes.RETURNED:
                body = record[layout.LOCAL_SIZE : layout.LOCAL_SIZE + local.body_length]
                self._restart(position + local.length, notes.decode_returned(body).lsn)
            return
        travelling = memoryview(record)[layout.LOCAL_SIZE :]
        head = batch.head(travelling)
        after = position + local.length
        if head.kind in (layout.BATCH_COPIED, layout.BATCH_ITEM):
            if head.kind == layout.BATCH_COPIED or not self._goes_on(_body(record)):
                self._restart(after, -1)
            return
        if head.first_lsn != self.last_lsn + 1:  # at first, and where a fork led elsewhere
            self._restart(position, head.first_lsn - 1)
        self.last_lsn = head.first_lsn + head.count - 1
        self._generation = head.generation
        self._time = head.time_ns or self._time
        self.first_time = self.first_time or head.time_ns
        if head.kind == layout.BATCH_OPERATION:
            operation = operations.decode(_body(record))
            if operations.unsettles(operation):  # a secondary did something else
                self._restart(after, self.last_lsn)
            for effect in operation.effects(self.journal.region_size):
                match effect:
                    case Created(_, regions):
                        self.most = max(self.most, regions)
                    case Resized(_, regions, before):
                        self.most = max(self.most, regions, before)
                    case CopiedImage(_, image):
                        self.images.setdefault(image, -1 - len(self.images))
                    case Copied(target, source) if source:
                        self.related.setdefault(target, set()).add(source)
                        self.related.setdefault(source, set()).add(target)
                    case _:
                        pass

    def _goes_on(self, body: bytes) -> bool:
        """Whether an item leaves the stores a state of this order."""
        match items.decode(body):
            case items.Consistent() | items.Handover() | items.Decided() | items.Different():
                return True
            case items.Fork(lineage, lsn):
                return lsn == self.last_lsn and Lineage(lineage).at(lsn) == self._generation
        return False

    def _restart(self, position: int, lsn: int) -> None:
        self._begin, self.first_lsn, self.last_lsn, self.first_time = position, lsn, lsn, 0
        self.most, self.related = 0, {}

    # ---- what a time means

    def lsn_at(self, time_ns: int) -> int:
        """The last LSN before the first event that is later than that time. -1: all of them are."""
        found = -1
        for segment in self.segments:
            if segment.last_time > time_ns:
                for one in self.batches(segment):
                    if one.time_ns > time_ns:
                        break
                    found = one.last_lsn if one.time_ns else found
                else:
                    continue
                break
            if segment.last_time:
                found = segment.last_lsn
        return found

    def time_of(self, lsn: int) -> int:
        """When the event of that LSN was written, ns since 1970; 0: it is not held, or has no time."""
        for segment in self.segments:
            if segment.last_lsn >= lsn > self.first_lsn:
                return next((one.time_ns for one in self.batches(segment) if one.last_lsn >= lsn), 0)
        return 0

    # ---- again

    def batches(self, segment: Segment) -> list[Batch]:
        """What a segment holds of the history, ascending.

        Raises:
            Overtaken: it was written over since.
        """
        records, end, _ = self._scan(segment.position, segment.chain, segment.end - segment.position)
        if end < segment.end:
            raise self._overtaken(segment.position)
        found = []
        for position, record in records:
            local = batch.local(record)
            if local.kind == layout.RECORD_NOTE or not self._begin <= position < segment.end:
                continue
            travelling = memoryview(record)[layout.LOCAL_SIZE :]
            head = batch.head(travelling)
            if head.kind in (layout.BATCH_COPIED, layout.BATCH_ITEM):
                continue
            operation = operations.decode(_body(record)) if head.kind == layout.BATCH_OPERATION else None
            found.append(Batch(position, head.first_lsn, head.first_lsn + head.count - 1, head.time_ns,
                               travelling[: batch.head_length(head.count)],
                               memoryview(record)[layout.BLOCK :][: head.payload_length], operation))
        return found

    def outcomes(self) -> dict[int, list[operations.Outcome]]:
        """By LSN: what came of the plug-ins of an operation, as far as the log still tells: by the note of who decided
        it, or by the item with which that was told here."""
        found = dict[int, list[operations.Outcome]]()
        for segment in self.segments:
            for position, record in self._scan(segment.position, segment.chain, segment.end - segment.position)[0]:
                if not self._begin <= position < segment.end:
                    continue
                local = batch.local(record)
                if local.kind == layout.RECORD_NOTE:
                    if local.note == notes.PERFORMED:
                        body = bytes(record[layout.LOCAL_SIZE : layout.LOCAL_SIZE + local.body_length])
                        performed = notes.decode_performed(body)
                        if performed.outcomes:
                            found[performed.lsn] = performed.outcomes
                elif batch.head(memoryview(record)[layout.LOCAL_SIZE :]).kind == layout.BATCH_ITEM:
                    item = items.decode(_body(record))
                    if isinstance(item, items.Decided):
                        found[item.lsn] = item.outcomes
        return found

    def batches_back(self) -> Iterator[Batch]:
        """All batches, the last one first, as far back as they still stand."""
        for segment in reversed(self.segments):
            try:
                held = self.batches(segment)
            except Overtaken:
                return
            yield from reversed(held)

    def after(self, lsn: int) -> Iterator[Batch]:
        """The batches that hold events after ``lsn``, ascending."""
        for segment in self.segments:
            if segment.last_lsn > lsn:
                yield from (one for one in self.batches(segment) if one.last_lsn > lsn)

    def forget_lost(self) -> None:
        """What was written over meanwhile is no part of the history any more: the oldest segments, as wholes."""
        while self.segments and not self._scan(self.segments[0].position, self.segments[0].chain, 1)[0]:
            lost = self.segments.pop(0)
            self.first_lsn, self.first_time = max(self.first_lsn, lost.last_lsn), max(self.first_time, lost.last_time)

    # ---- inside

    def _scan(self, position: int, chain: int, most: int) -> tuple[list[tuple[int, bytes]], int, int]:
        journal = self.journal
        records, end, chain, _, _ = scan_log(
            journal.device, log_offset=journal.log_offset, log_size=journal.log_size, position=position, chain=chain,
            alignment=journal.alignment, most=max(most, 1))
        check(not records or records[0][0] == position, "a scan of the log begins where it was asked to")
        return records, end, chain

    def _overtaken(self, position: int) -> Overtaken:
        return Overtaken(
            f"the log on {self.journal.device.name} was written over at position {position} while it was read: try "
            f"again; what is gone is gone", position=position)


def _body(record: bytes) -> bytes:
    """The encoded operation or item in a record."""
    one = batch.records(memoryview(record)[layout.LOCAL_SIZE :])[0]
    start = layout.BLOCK + one.payload
    return record[start : start + one.length]
