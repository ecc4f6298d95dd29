"""A point: what a site is at one place of its journal, as far as events and items say it (contents aside).

Decides how each record moves LSN, lineage, consistency and catalog. A site keeps two: at its journal's end and where
its stores are; recovery makes both by the same steps. Must not know devices.
"""

from __future__ import annotations

from pyrepl.catalog import Catalog, Store
from pyrepl.items import Consistent, Drop, Fork, Item, Make, Skip
from pyrepl.lineage import Lineage
from pyrepl.operations import Operation


class Point:
    """LSN, lineage, consistent flag, number of the last item, and catalog at one place of the journal."""

    def __init__(self, *, lsn: int, lineage: Lineage, consistent: bool, item: int, catalog: Catalog) -> None:
        self.lsn = lsn
        self.lineage = lineage
        self.consistent = consistent
        self.item = item
        self.catalog = catalog

    def copy(self) -> Point:
        """An independent point that is equal now."""
        return Point(
            lsn=self.lsn, lineage=self.lineage, consistent=self.consistent, item=self.item, catalog=self.catalog.copy()
        )

    def take_events(self, last_lsn: int) -> None:
        """A batch of events up to this LSN."""
        self.lsn = last_lsn

    def take_operation(self, operation: Operation, lsn: int) -> None:
        """An operation at this LSN."""
        operation.apply(self.catalog)
        self.lsn = lsn

    def take_copied(self, number: int) -> None:
        """Copied regions: from here on this site is no earlier state of its primary."""
        self.consistent = False
        self.item = number

    def take_item(self, item: Item, number: int) -> None:
        """Any other item. Every one but *consistent* and a fork on the spot unsettles (model: "Consistency")."""
        self.item = number
        match item:
            case Fork(lineage, lsn):
                follows = Lineage(tuple((g, n) for g, n in lineage))
                if lsn != self.lsn or follows.at(lsn) != self.lineage.at(lsn):
                    self.consistent = False
                self.lineage, self.lsn = follows, lsn
            case Skip(lsn, lineage):
                self.consistent = False
                self.lineage, self.lsn = Lineage(tuple((g, n) for g, n in lineage)), lsn
            case Make(info):
                self.consistent = False
                self.catalog.add(Store(id=info.id, name=info.name, kind=info.kind, size=info.size, origin=info.origin))
            case Drop(store):
                self.consistent = False
                self.catalog.stores.pop(store, None)
            case Consistent():
                self.consistent = True

    def begin(self, generation: bytes) -> None:
        """A generation begins after the LSN reached."""
        if all(known != generation for known, _ in self.lineage):  # a checkpoint may hold what stands behind it
            self.lineage = self.lineage.begin(generation, self.lsn)
