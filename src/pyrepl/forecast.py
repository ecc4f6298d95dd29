"""What a secondary will be like when everything up to a certain event has been performed there, and what an operation
would change of that.

Goes from what is known of it now through backlog and journal, by the same effects that the stream has (``knowledge``),
on copies: nothing is changed. What is copied meanwhile is not foreseen, so a link that copies may come to differ in
less than is said here. Decides what an operation costs on a link. Must not know when that is asked (``explaining``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pyrepl import operations
from pyrepl._core import batch, layout
from pyrepl.knowledge import Knowledge, Performed, Piece, Skipped, kept_operation, passed
from pyrepl.operations import Operation
from pyrepl.protocol.frames import HEADER

COMMAND, DATA = PERFORMED_AS = ("command", "data")


class Cost(NamedTuple):
    """Of an operation on one link.

    Attributes:
        performed_as: "command", or "data": its result is copied with everything else.
        command_bytes: of its frame on the wire; 0 for data.
        before: regions that differ at the secondary where the operation would stand.
        after: the same once it is performed at both sites.
        added: of those, the regions that differ because of it, and are copied.
        removed: the regions that do not differ any more because of it, and are not.
        unsettles: it leaves the secondary no earlier state of the primary, for a while.
        refused: ``added`` if the secondary refuses it, which is known only when it has been asked; None: it cannot.
    """

    performed_as: str
    command_bytes: int
    before: int
    after: int
    added: int
    removed: int
    unsettles: bool
    refused: int | None


class Forecast:
    """Of one secondary.

    Args:
        site: the engine of the group.
        knowledge: of the secondary when all that was sent has arrived; it is this object's own.
        backlog: what follows it and the journal has dropped; its own, too.
        paired: whether there ever was a secondary. One that comes later may begin where the journal ends then.
    """

    def __init__(self, site: Any, knowledge: Knowledge, backlog: list[Piece], *, paired: bool) -> None:
        self._site = site
        self._knowledge = knowledge
        self._backlog = backlog
        self._paired = paired
        self._begun_with = dict(knowledge.catalog.stores)
        for number in knowledge.extra():  # dropped first
            knowledge.divergence.remove(number)
        self._make()

    def _make(self) -> None:
        for store in self._knowledge.missing():  # made first, and different everywhere then
            self._knowledge.divergence.add(store.id, store.size // self._site.region_size, differs=True)

    def reach(self, lsn: int) -> None:
        """Goes on until everything up to ``lsn`` is performed there. Reads of the journal what is not in memory.

        Raises:
            LookupError: the journal has dropped something meanwhile: begin again.
        """
        knowledge, region_size = self._knowledge, self._site.region_size
        for piece in self._backlog:
            if piece.operation:
                operation = kept_operation(piece.operation)
                knowledge.take(Performed(piece.upto, piece.position, operation), region_size)
            else:
                knowledge.take(Skipped(piece), region_size)
        self._backlog = []
        while knowledge.lsn < lsn:
            try:
                entry = self._site.window.entry(knowledge.position)
            except ValueError as error:
                raise LookupError(f"the journal has dropped position {knowledge.position}") from error
            if entry is None:
                return
            with entry:
                after = entry.next_position
                if entry.batch_kind == layout.BATCH_EVENTS:
                    knowledge.take(knowledge.events(entry.head, entry.last_lsn, after, region_size), region_size)
                elif entry.batch_kind == layout.BATCH_OPERATION:
                    operation = operations.decode(bytes(entry.body))
                    knowledge.take(Performed(entry.last_lsn, after, operation), region_size)
                elif (beside := passed(entry, region_size)) is not None:
                    knowledge.take(beside, region_size)
                    self._make()
                else:
                    knowledge.position = after

    def cost(self, *made: Operation) -> Cost:
        """Of this operation where the secondary is now, which it changes nothing of. Of an early one: of both that it
        is, with nothing between them."""
        knowledge, added, removed = self._change(made)
        count = self._knowledge.divergence.count()
        performed_as = COMMAND if self._paired or knowledge.catalog.stores == self._begun_with else DATA
        is_command = performed_as == COMMAND
        length = sum(map(self._frame, made)) if is_command else 0
        unsettles = is_command and any(map(operations.unsettles, made))
        may_be_refused = is_command and any(map(operations.may_be_refused, made))
        refused = self._change(made, refused=True)[1] if may_be_refused else None
        return Cost(performed_as, length, count, knowledge.divergence.count(), added, removed, unsettles, refused)

    def _change(self, made: tuple[Operation, ...], *, refused: bool = False) -> tuple[Knowledge, int, int]:
        """What is known of the secondary then; regions that differ because of it, and that do not any more."""
        knowledge = self._knowledge.copy()
        before = {store: regions.copy() for store, regions in knowledge.divergence.maps.items()}
        for operation in made:
            knowledge.take(Performed(knowledge.lsn + 1, knowledge.position, operation, refused), self._site.region_size)
        added = removed = 0
        after = knowledge.divergence.maps
        for store in before.keys() | after.keys():
            old, new = before.get(store), after.get(store)
            if new is not None:
                extra = new.copy()
                if old is not None:
                    extra.subtract(old)
                added += extra.count()
            if old is not None:
                if new is not None:
                    old.subtract(new)
                removed += old.count()
        return knowledge, added, removed

    def _frame(self, operation: Operation) -> int:
        """Bytes of the frame in which one travels."""
        site, body = self._site, operations.encode(operation)
        return HEADER + len(
            batch.encode(layout.BATCH_OPERATION, [(layout.OPERATION, 0, 0, body)], group=site.group_id,
                         generation=site.lineage.generation, first_lsn=1, alignment=site.alignment)
        )
