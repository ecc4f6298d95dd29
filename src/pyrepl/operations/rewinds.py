"""The two operations of a rewind: a new store that other stores fill as far as they show the content, and its
completion.

Between the two what no store shows is written to it as ordinary writes. Until it is complete the store is of the kind
``unfinished``: nobody finds it by name. Decides what is admitted; who fills it is ``rewinding``.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from pyrepl.catalog import MOST_STORES, UNFINISHED, VOLUME, Catalog, Store, check_new_name
from pyrepl.errors import Exists, Refused, UsageError
from pyrepl.operations.base import Copied, Created, Effect
from pyrepl.operations.volumes import Delete

MOST_PARTS = 4096
Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 56)]


class Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``count`` regions from ``first`` on are what ``source`` shows."""

    source: int
    first: Number
    count: Number


class Rewind(msgspec.Struct, frozen=True, tag="rewind", tag_field="op", forbid_unknown_fields=True):
    """A new store is to become what ``volume`` showed at LSN ``lsn``. It shows what its parts say, a later one over an
    earlier one, and zeros elsewhere."""

    id: int
    name: str
    size: int
    volume: int
    lsn: Number
    parts: Annotated[list[Part], msgspec.Meta(max_length=MOST_PARTS)]

    @property
    def kind(self) -> str:
        return "rewind"

    @property
    def blocks(self) -> list[int]:
        return [self.id]

    def check(self, catalog: Catalog) -> None:
        """Admission at a secondary."""
        check_new_name(catalog, self.name)
        if self.id in catalog or self.id < 1:
            raise Exists(f"store number {self.id} exists", store=self.id)
        if len(catalog.stores) >= MOST_STORES:
            raise Refused(
                f"a group holds at most {MOST_STORES} stores: delete some first", reason="limit", limit=MOST_STORES
            )
        for part in self.parts:
            if part.source == self.id:
                raise UsageError(f"store {self.id} cannot be made from itself", store=self.id)

    def apply(self, catalog: Catalog) -> None:
        catalog.add(Store(id=self.id, name=self.name, kind=UNFINISHED, size=self.size, origin=self.volume))

    def effects(self, region_size: int) -> list[Effect]:
        effects: list[Effect] = [Created(self.id, self.size // region_size, True)]
        return effects + [Copied(self.id, part.source, part.first, part.count) for part in self.parts]


class Complete(msgspec.Struct, frozen=True, tag="complete", tag_field="op", forbid_unknown_fields=True):
    """An unfinished store is a volume from here on."""

    id: int

    @property
    def kind(self) -> str:
        return "complete"

    @property
    def blocks(self) -> list[int]:
        return []

    def check(self, catalog: Catalog) -> None:
        """Admission at a secondary."""
        if catalog[self.id].kind != UNFINISHED:
            raise UsageError(f"store {self.id} is complete already", store=self.id)

    def apply(self, catalog: Catalog) -> None:
        old = catalog[self.id]
        catalog.add(Store(id=old.id, name=old.name, kind=VOLUME, size=old.size, origin=old.origin))

    def effects(self, region_size: int) -> list[Effect]:
        return []


def rewind(catalog: Catalog, volume: int, name: str, size: int, lsn: int, parts: list[tuple[int, int, int]]) -> Rewind:
    """A new store ``name`` of ``size`` bytes, made of these parts: (source, first region, regions).

    Raises:
        NotFound: a source is gone.
        Exists, UsageError, Refused: the name is taken or cannot be one, too many parts, too many stores.
    """
    for source, _, _ in parts:
        catalog[source]
    if len(parts) > MOST_PARTS:
        raise UsageError(f"a store of {len(parts)} parts: at most {MOST_PARTS}")
    operation = Rewind(catalog.next_id, name, size, volume, lsn, [Part(*part) for part in parts])
    operation.check(catalog)
    return operation


def complete(catalog: Catalog, store: int) -> Complete:
    """The store is whole.

    Raises:
        NotFound: it is gone.
    """
    operation = Complete(store)
    operation.check(catalog)
    return operation


def abandon(catalog: Catalog, store: int) -> Delete:
    """An unfinished store is given up.

    Raises:
        NotFound: it is gone.
        UsageError: it is complete.
    """
    Complete(store).check(catalog)
    return Delete(store)
