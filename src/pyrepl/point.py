"""A point: what a site is at one place of its journal, as far as events and items say it (contents aside).

Decides how each record moves LSN, lineage, consistency and catalog. A site keeps two: at its journal's end and where
its stores are; recovery makes both by the same steps. Must not know devices.
"""

from __future__ import annotations

from pyrepl.catalog import Catalog, Store
from pyrepl.items import (
    MOST_REFUSALS,
    Consistent,
    Decided,
    Different,
    Drop,
    Fork,
    FoundDifferent,
    Handover,
    Item,
    LinkInfo,
    Make,
    Refusal,
    Skip,
    Tail,
)
from pyrepl.lineage import Lineage
from pyrepl.operations import Operation, unsettles


class Point:
    """LSN, lineage, consistent flag, number of the last item, and catalog at one place of the journal.

    Until the next record: ``handed_over``, the primary has stepped down there; ``succession``, the links that its
    successor is to have, whom it has asked to lead (at the successor), or is to ask (where it stepped down); ``tails``,
    this site was the primary and has stepped down there, and what it had changed that each secondary may lack, by node;
    ``yields``, this site was told to lose what no other site has.

    ``refusals``: of a secondary, the operations since it was last consistent of which it could not perform all.
    ``decided``: what came at the primary of the plug-ins of the operation that is next.
    ``waived``: by command no protective snapshot is kept until it is consistent again.
    ``different``: of a secondary, what a verification of its primary has found different here and did not repair.
    """

    def __init__(
        self,
        *,
        lsn: int,
        lineage: Lineage,
        consistent: bool,
        item: int,
        catalog: Catalog,
        handed_over: bool = False,
        succession: list[LinkInfo] | None = None,
        tails: dict[bytes, Tail] | None = None,
        yields: bool = False,
        refusals: tuple[Refusal, ...] = (),
        decided: Decided | None = None,
        waived: bool = False,
        different: FoundDifferent | None = None,
    ) -> None:
        self.lsn = lsn
        self.lineage = lineage
        self.consistent = consistent
        self.item = item
        self.catalog = catalog
        self.handed_over = handed_over
        self.succession = succession
        self.tails = tails or {}
        self.yields = yields
        self.refusals = refusals
        self.decided = decided
        self.waived = waived
        self.different = different

    def copy(self) -> Point:
        """An independent point that is equal now."""
        return Point(
            lsn=self.lsn,
            lineage=self.lineage,
            consistent=self.consistent,
            item=self.item,
            catalog=self.catalog.copy(),
            handed_over=self.handed_over,
            succession=self.succession,
            tails=self.tails,
            yields=self.yields,
            refusals=self.refusals,
            decided=self.decided,
            waived=self.waived,
            different=self.different,
        )

    def _go_on(self) -> None:
        self.handed_over, self.succession, self.tails, self.yields = False, None, {}, False

    def take_events(self, last_lsn: int) -> None:
        """A batch of events up to this LSN."""
        self.lsn, self.decided = last_lsn, None
        self._go_on()

    def take_operation(self, operation: Operation, lsn: int, refused: str = "", *, secondary: bool = False) -> None:
        """An operation at this LSN; ``refused``: why this site, a ``secondary``, could not perform all of it."""
        operation.apply(self.catalog)
        self.lsn, self.decided = lsn, None
        if secondary and unsettles(operation):
            self.consistent = False
        if refused:
            self.refuse(lsn, refused)
        self._go_on()

    def refuse(self, lsn: int, reason: str) -> None:
        """This site could not perform all of the operation at this LSN."""
        self.consistent = False
        self.refusals = (*self.refusals, Refusal(lsn, reason))
        if len(self.refusals) > MOST_REFUSALS or not self.refusals[0].lsn:
            self.refusals = (Refusal(0, reason),)

    def take_copied(self, number: int) -> None:
        """Copied regions: from here on this site is no earlier state of its primary."""
        self.consistent = False
        self.item = number
        self._go_on()

    def unsettles(self, item: Item) -> bool:
        """Whether this item, if it comes next, leaves the stores no earlier state of the primary: every one but
        *consistent*, *handover*, *decided*, *different* and a fork on the spot (model: "Consistency")."""
        match item:
            case Consistent() | Handover() | Decided() | Different():
                return False
            case Fork(lineage, lsn):
                return lsn != self.lsn or Lineage(tuple((g, n) for g, n in lineage)).at(lsn) != self.lineage.at(lsn)
        return True

    def take_item(self, item: Item, number: int) -> None:
        """Any other item."""
        if self.unsettles(item):
            self.consistent = False
        self.item = number
        self._go_on()
        match item:
            case Handover(succession):
                self.handed_over, self.succession = True, succession
            case Fork(lineage, lsn):
                self.lineage, self.lsn, self.decided = Lineage(tuple((g, n) for g, n in lineage)), lsn, None
            case Skip(lsn, lineage):
                self.lineage, self.lsn, self.decided = Lineage(tuple((g, n) for g, n in lineage)), lsn, None
            case Make(info):
                self.catalog.add(Store(id=info.id, name=info.name, kind=info.kind, size=info.size, origin=info.origin))
            case Drop(store):
                self.catalog.stores.pop(store, None)
            case Consistent():
                self.consistent, self.refusals, self.waived = True, (), False
            case Decided():
                self.decided = item
            case Different(found):
                self.different = found

    def begin(self, generation: bytes) -> None:
        """A generation begins after the LSN reached."""
        if all(known != generation for known, _ in self.lineage):  # a checkpoint may hold what stands behind it
            self.lineage = self.lineage.begin(generation, self.lsn)
