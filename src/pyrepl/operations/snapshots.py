"""Operations that make a store from another: snapshot (of one store, or of several at one LSN) and clone."""

from __future__ import annotations

from typing import Annotated

import msgspec

from pyrepl.catalog import MOST_STORES, SNAPSHOT, VOLUME, Catalog, Store, check_name, check_new_name
from pyrepl.errors import Exists, Refused, UsageError
from pyrepl.operations.base import Copied, Created, Effect, Footprint


class Member(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One new store: made from ``origin``, as long as that was."""

    origin: int
    id: int
    name: str
    size: int


class Snapshot(msgspec.Struct, frozen=True, tag="snapshot", tag_field="op", forbid_unknown_fields=True):
    """Snapshots of one or several stores at one point of the order."""

    members: Annotated[list[Member], msgspec.Meta(min_length=1, max_length=MOST_STORES)]

    @property
    def kind(self) -> str:
        return "snapshot"

    @property
    def blocks(self) -> list[int]:
        return [member.id for member in self.members]

    @property
    def footprint(self) -> Footprint:
        return Footprint([member.origin for member in self.members], [member.id for member in self.members])

    def check(self, catalog: Catalog) -> None:
        """Admission at a secondary."""
        _check(catalog, self.members)

    def apply(self, catalog: Catalog) -> None:
        for member in self.members:
            catalog.add(Store(id=member.id, name=member.name, kind=SNAPSHOT, size=member.size, origin=member.origin))

    def effects(self, region_size: int) -> list[Effect]:
        return _effects(self.members, region_size)


class Clone(msgspec.Struct, frozen=True, tag="clone", tag_field="op", forbid_unknown_fields=True):
    """A new volume with the content of a store."""

    member: Member

    @property
    def kind(self) -> str:
        return "clone"

    @property
    def blocks(self) -> list[int]:
        return [self.member.id]

    @property
    def footprint(self) -> Footprint:
        return Footprint([self.member.origin], [self.member.id])

    def check(self, catalog: Catalog) -> None:
        """Admission at a secondary."""
        _check(catalog, [self.member])

    def apply(self, catalog: Catalog) -> None:
        member = self.member
        catalog.add(Store(id=member.id, name=member.name, kind=VOLUME, size=member.size, origin=member.origin))

    def effects(self, region_size: int) -> list[Effect]:
        return _effects([self.member], region_size)


def _effects(members: list[Member], region_size: int) -> list[Effect]:
    effects: list[Effect] = []
    for member in members:
        count = member.size // region_size
        effects += [Created(member.id, count, True), Copied(member.id, member.origin, 0, count)]
    return effects


def _check(catalog: Catalog, members: list[Member]) -> None:
    if len(catalog.stores) + len(members) > MOST_STORES:
        raise Refused(
            f"a group holds at most {MOST_STORES} stores: delete some first", reason="limit", limit=MOST_STORES
        )
    for member in members:
        check_new_name(catalog, member.name)
        if member.id in catalog or member.id < 1:
            raise Exists(f"store number {member.id} exists", store=member.id)
        if catalog[member.origin].size != member.size:
            raise UsageError(f"store {member.origin} is not {member.size} bytes long", store=member.origin)


def _members(catalog: Catalog, origins: list[str], names: list[str]) -> list[Member]:
    if len(origins) != len(names) or not origins:
        raise UsageError(f"{len(origins)} stores and {len(names)} names: give one name for each store, at least one")
    for name in names:
        check_name(name)
    if len(set(names)) != len(names) or len(set(origins)) != len(origins):
        raise UsageError("the same store or the same name is given twice", names=names)
    members = []
    for i, (origin, name) in enumerate(zip(origins, names, strict=True)):
        store = catalog.by_name(origin)
        members.append(Member(store.id, catalog.next_id + i, name, store.size))
    _check(catalog, members)
    return members


def snapshot(catalog: Catalog, origins: list[str], names: list[str]) -> Snapshot:
    """Snapshots of these stores, all at one LSN.

    Raises:
        NotFound, Exists, UsageError, Refused: no such store, name taken, lists that do not match, too many stores.
    """
    return Snapshot(_members(catalog, origins, names))


def clone(catalog: Catalog, source: str, name: str) -> Clone:
    """A new volume ``name`` with the content of ``source``."""
    return Clone(_members(catalog, [source], [name])[0])
