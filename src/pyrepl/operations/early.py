"""Operations that a secondary performs before the primary does (claim 21): a snapshot, or a restore of a whole volume.

    early    e   a secondary performs it: a snapshot as a hidden store, a restore in place; the primary keeps a hidden
                 snapshot too, or does nothing
    adopt    n   the primary performs it; a secondary takes what it did at e for the result
    forgo        it will not come: what was hidden goes

Of several volumes there is one *early* for each, and one *adopt-all* that performs all of them, at one point.

These stand in the order like any operation, so a secondary has performed the first before it meets the second, whatever
was cut on the way. What differs behind n is what changed between e and n at one of the two stores (``knowledge``). A
site performs them by its role, which changes only when everything is applied. Must not know what a link knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from pyrepl.catalog import (
    MOST_STORES,
    SNAPSHOT,
    UNFINISHED,
    VOLUME,
    Catalog,
    Store,
    check_name,
    check_new_name,
)
from pyrepl.errors import Exists, Refused, UsageError
from pyrepl.operations.base import Copied, Created, Deleted, Effect, Footprint, scope
from pyrepl.operations.sets import find_conflict

TICKET = 16  # bytes


class Early(msgspec.Struct, frozen=True, tag="early", tag_field="op", forbid_unknown_fields=True):
    """A secondary performs it here. ``hidden``: the store that is to become the snapshot, 0 for a restore; ``target``:
    the volume that is restored, 0 for a snapshot."""

    ticket: bytes
    hidden: int
    target: int
    source: int
    count: int

    @property
    def kind(self) -> str:
        return "early-restore" if self.target else "early-snapshot"

    @property
    def blocks(self) -> list[int]:
        """Stores whose readers wait until it is performed."""
        return [self.target or self.hidden]

    @property
    def footprint(self) -> Footprint:
        return Footprint([self.source], [self.target or self.hidden])

    def check(self, catalog: Catalog) -> None:
        """Admission at a secondary."""
        if len(self.ticket) != TICKET or bool(self.hidden) == bool(self.target) or self.count <= 0:
            raise UsageError("an early operation is a snapshot or a restore, of a whole store")
        catalog[self.source]
        if self.target:
            catalog[self.target]
        elif self.hidden in catalog or self.hidden < 1:
            raise Exists(f"store number {self.hidden} exists", store=self.hidden)
        elif len(catalog.stores) >= MOST_STORES:
            raise Refused(
                f"a group holds at most {MOST_STORES} stores: delete some first", reason="limit", limit=MOST_STORES
            )

    def apply(self, catalog: Catalog) -> None:
        if self.hidden:
            name = f"early-{self.hidden}-{self.ticket.hex()}"
            size = catalog[self.source].size
            catalog.add(Store(id=self.hidden, name=name, kind=UNFINISHED, size=size, origin=self.source))

    def effects(self, region_size: int) -> list[Effect]:
        if self.target:
            return []
        return [Created(self.hidden, self.count, True), Copied(self.hidden, self.source, 0, self.count)]

    def effects_there(self, region_size: int) -> list[Effect]:
        """At a secondary."""
        return [Copied(self.target, self.source, 0, self.count)] if self.target else self.effects(region_size)


class Adopt(msgspec.Struct, frozen=True, tag="adopt", tag_field="op", forbid_unknown_fields=True):
    """The primary performs it here; see :class:`Early`. ``id`` and ``name``: of the snapshot."""

    ticket: bytes
    hidden: int
    target: int
    source: int
    count: int
    id: int = 0
    name: str = ""

    @property
    def kind(self) -> str:
        return "restore" if self.target else "snapshot"

    @property
    def blocks(self) -> list[int]:
        return [self.target or self.id]

    @property
    def footprint(self) -> Footprint:
        return Footprint([self.source], [self.target] if self.target else [self.id, self.hidden])

    def check(self, catalog: Catalog) -> None:
        """Admission at a secondary."""
        if len(self.ticket) != TICKET or bool(self.hidden) == bool(self.target) or self.count <= 0:
            raise UsageError("what is adopted is a snapshot or a restore, of a whole store")
        if self.target:
            catalog[self.target]
            catalog[self.source]
            return
        check_name(self.name)
        check_new_name(catalog, self.name)
        if self.id in catalog or self.id < 1:
            raise Exists(f"store number {self.id} exists", store=self.id)
        hidden, source = catalog[self.hidden], catalog[self.source]
        if hidden.kind != UNFINISHED or hidden.size != source.size:
            raise UsageError(f"store {self.hidden} is not what became of {source.name!r} early", store=self.hidden)

    def apply(self, catalog: Catalog) -> None:
        if self.hidden:
            hidden = catalog[self.hidden]
            del catalog.stores[self.hidden]
            catalog.add(Store(id=self.id, name=self.name, kind=SNAPSHOT, size=hidden.size, origin=self.source))

    def effects(self, region_size: int) -> list[Effect]:
        if self.target:
            return [Copied(self.target, self.source, 0, self.count)]
        return self._made(self.source)

    def effects_there(self, region_size: int) -> list[Effect]:
        """At a secondary."""
        return [] if self.target else self._made(self.hidden)

    def _made(self, source: int) -> list[Effect]:
        return [Created(self.id, self.count, True), Copied(self.id, source, 0, self.count), Deleted(self.hidden)]


class AdoptAll(msgspec.Struct, frozen=True, tag="adopt-all", tag_field="op", forbid_unknown_fields=True):
    """The primary performs all of these here, as one event; see :class:`Adopt`. All are snapshots, or all restores, and
    none reads or writes what another one writes: so each is what it would be alone."""

    members: Annotated[list[Adopt], msgspec.Meta(min_length=1, max_length=MOST_STORES)]

    @property
    def kind(self) -> str:
        return self.members[0].kind

    @property
    def blocks(self) -> list[int]:
        return [store for member in self.members for store in member.blocks]

    def check(self, catalog: Catalog) -> None:
        """Admission at a secondary."""
        if len({member.kind for member in self.members}) != 1:
            raise UsageError("what is adopted at one point is all snapshots, or all restores")
        if len({member.ticket for member in self.members}) != len(self.members):
            raise UsageError("an early operation is adopted twice")
        conflict = find_conflict(self.members)
        if conflict is not None:
            raise UsageError(f"members {conflict.first} and {conflict.second} of what is adopted have store "
                             f"{conflict.store} in common, which one of them writes", store=conflict.store)
        if self.kind == "snapshot":
            check_adopted(len(catalog.stores), len(self.members))
        beside = catalog.copy()
        for member in self.members:
            member.check(beside)
            member.apply(beside)

    def apply(self, catalog: Catalog) -> None:
        for member in self.members:
            member.apply(catalog)

    def effects(self, region_size: int) -> list[Effect]:
        return [effect for member in self.members for effect in member.effects(region_size)]

    def effects_there(self, region_size: int) -> list[Effect]:
        """At a secondary."""
        return [effect for member in self.members for effect in member.effects_there(region_size)]


class Forgo(msgspec.Struct, frozen=True, tag="forgo", tag_field="op", forbid_unknown_fields=True):
    """It will not come; see :class:`Early`."""

    ticket: bytes
    hidden: int

    @property
    def kind(self) -> str:
        return "forgo"

    @property
    def blocks(self) -> list[int]:
        return []

    @property
    def footprint(self) -> Footprint:
        return Footprint([], [self.hidden] if self.hidden else [])

    def check(self, catalog: Catalog) -> None:
        """Admission at a secondary."""
        if len(self.ticket) != TICKET or (self.hidden and catalog[self.hidden].kind != UNFINISHED):
            raise UsageError("what is given up is an early operation", store=self.hidden)

    def apply(self, catalog: Catalog) -> None:
        catalog.stores.pop(self.hidden, None)

    def effects(self, region_size: int) -> list[Effect]:
        return [Deleted(self.hidden)] if self.hidden else []


def effects_there(operation: Any, region_size: int) -> list[Effect]:
    """What an operation does at a secondary."""
    if isinstance(operation, Early | Adopt | AdoptAll):
        return operation.effects_there(region_size)
    effects: list[Effect] = operation.effects(region_size)
    return effects


def unsettles(operation: Any) -> bool:
    """Whether a secondary is no earlier state of its primary when it has performed this."""
    return isinstance(operation, Adopt | AdoptAll) or (isinstance(operation, Early) and operation.target > 0)


def ends(operation: Any) -> list[Adopt | Forgo]:
    """Which early operations this adopts or gives up; empty: it is another operation."""
    if isinstance(operation, AdoptAll):
        return [*operation.members]
    return [operation] if isinstance(operation, Adopt | Forgo) else []


def check_adopted(stores: int, count: int) -> None:
    """Whether there is room for so many snapshots beside the stores that there are: what was hidden goes after they
    are made.

    Raises:
        Refused: no.
    """
    if stores + count > MOST_STORES:
        raise Refused(
            f"a group holds at most {MOST_STORES} stores, and {count} early snapshots take {count} more until they are "
            f"made: delete some first", reason="limit", limit=MOST_STORES)


def early_snapshot(catalog: Catalog, source: str, ticket: bytes, *, region_size: int) -> Early:
    """A snapshot of the store that secondaries make now.

    Raises:
        NotFound, Refused: no such store; too many.
    """
    of = catalog.by_name(source)
    return _checked(catalog, Early(ticket, catalog.next_id, 0, of.id, of.size // region_size))


def early_restore(catalog: Catalog, volume: str, snapshot: str, ticket: bytes, *, region_size: int) -> Early:
    """A restore of the whole volume that secondaries perform now.

    Raises:
        NotFound, UsageError: no such store; of other sizes.
        Refused: it is no volume, or no snapshot.
    """
    target, source = catalog.by_name(volume), catalog.by_name(snapshot)
    if target.kind != VOLUME:
        raise Refused(f"{volume!r} is a {target.kind}: what is restored is a volume", reason="kind", name=volume)
    if source.kind != SNAPSHOT:
        raise Refused(f"{snapshot!r} is a {source.kind}: a volume is restored from a snapshot", reason="kind",
                      name=snapshot)
    _, count = scope(target, source, None, None, region_size)
    return _checked(catalog, Early(ticket, 0, target.id, source.id, count))


def adopt(catalog: Catalog, early: Early, name: str = "") -> Adopt:
    """The primary performs what its secondaries performed early. ``name``: of the snapshot.

    Raises:
        NotFound, UsageError, Exists, Refused: a store is gone or was resized since; the name is taken.
    """
    target, source = early.target and catalog[early.target], catalog[early.source]
    sizes = {catalog[early.hidden or early.target].size, source.size}
    if len(sizes) > 1 or (target and target.kind != VOLUME):
        raise UsageError(f"{source.name!r} was resized since it was performed early: give that up", name=source.name)
    number = 0 if early.target else catalog.next_id
    operation = Adopt(early.ticket, early.hidden, early.target, early.source, early.count, number, name)
    operation.check(catalog)
    return operation


def adopt_all(catalog: Catalog, early: Sequence[tuple[Early, str]]) -> AdoptAll:
    """The primary performs all of these, as one event. Each with the name of its snapshot, "" for a restore.

    Raises:
        NotFound, UsageError, Exists, Refused: as of :func:`adopt`, of any of them; too many stores.
    """
    beside, members = catalog.copy(), list[Adopt]()
    for one, name in early:
        members.append(adopt(beside, one, name))
        members[-1].apply(beside)
    operation = AdoptAll(members)
    operation.check(catalog)
    return operation


def forgo(catalog: Catalog, early: Early) -> Forgo:
    """It is given up.

    Raises:
        NotFound: it is gone.
    """
    operation = Forgo(early.ticket, early.hidden)
    operation.check(catalog)
    return operation


def _checked(catalog: Catalog, operation: Early) -> Early:
    operation.check(catalog)
    return operation

