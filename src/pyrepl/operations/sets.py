"""The unordered set: several operations that are one event, at one point of the order (model: "Unordered sets").

No member reads or writes a store that another one writes, so that it makes no difference which is performed first.
Decides that, and which operations can be members.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Protocol

import msgspec

from pyrepl.catalog import MOST_STORES, Catalog
from pyrepl.errors import UsageError
from pyrepl.operations.base import Effect, Footprint
from pyrepl.operations.copies import Copy
from pyrepl.operations.images import CloneImage, CopyImage
from pyrepl.operations.plugins import MOST_TOUCHED, Perform
from pyrepl.operations.snapshots import Clone, Snapshot
from pyrepl.operations.volumes import Delete, Resize

Member = Snapshot | Clone | CloneImage | Copy | CopyImage | Delete | Resize | Perform


RESTORE, REFRESH, CLONE, DELETE = WIDE = ("restore", "refresh", "clone", "delete")


class Set(
    msgspec.Struct, frozen=True, tag="set", tag_field="op", forbid_unknown_fields=True, omit_defaults=True
):
    """Its members, in the order in which they were given, which means nothing. ``verb``: what all of them do, where it
    is one operation of a whole group (``operations.wide``)."""

    members: Annotated[list[Member], msgspec.Meta(min_length=1, max_length=MOST_STORES)]
    verb: str = ""

    @property
    def kind(self) -> str:
        return self.verb or "set"

    @property
    def blocks(self) -> list[int]:
        """Stores whose readers wait until it is performed."""
        return [store for member in self.members for store in member.blocks]

    def check(self, catalog: Catalog) -> None:
        """Admission at a secondary: as at the primary, member by member, and that none is in the way of another."""
        beside = catalog.copy()
        if self.verb and (self.verb not in WIDE or {member.kind for member in self.members} != {self.verb}):
            raise UsageError(f"not a {self.verb} of a group: {', '.join(sorted({m.kind for m in self.members}))}")
        for member in self.members:
            member.check(beside)
            accompany(beside, member)
        check_works(self.members)
        conflict = find_conflict(self.members)
        if conflict is not None:
            raise UsageError(f"members {conflict.first} and {conflict.second} of a set have store {conflict.store} in "
                             f"common, which one of them writes", store=conflict.store)

    def apply(self, catalog: Catalog) -> None:
        for member in self.members:
            member.apply(catalog)

    def effects(self, region_size: int) -> list[Effect]:
        return [effect for member in self.members for effect in member.effects(region_size)]


class Conflict(msgspec.Struct, frozen=True):
    """Two members, by their places from 1 on, and the store that is in the way."""

    first: int
    second: int
    store: int


def accompany(catalog: Catalog, member: Member) -> None:
    """The catalog in which the next member is judged: stores that this one makes are there, so that names and numbers
    are given once; stores that it deletes or resizes are still as they were."""
    if isinstance(member, Snapshot | Clone | CloneImage):
        member.apply(catalog)


def check_works(members: Sequence[Member]) -> None:
    """Each store that a plug-in writes takes a slot at each site until it is its own again: there are so many. And
    each plug-in is a thread, and something that came of it.

    Raises:
        UsageError: more than that.
    """
    works = [member for member in members if isinstance(member, Perform)]
    writes = sum(len(work.writes) for work in works)
    if len(works) > MOST_TOUCHED:
        raise UsageError(f"a set holds at most {MOST_TOUCHED} plug-ins, and not {len(works)}")
    if writes > MOST_TOUCHED:
        raise UsageError(f"the plug-ins of a set may write {MOST_TOUCHED} stores, all together, and not {writes}")


class Footed(Protocol):
    """An operation that can tell which stores it reads and writes."""

    @property
    def footprint(self) -> Footprint: ...


def find_conflict(members: Sequence[Footed]) -> Conflict | None:
    """The first two members of which one writes a store that the other one reads or writes."""
    readers: dict[int, int] = {}
    writers: dict[int, int] = {}
    for number, member in enumerate(members, 1):
        footprint: Footprint = member.footprint
        for store in footprint.writes:
            other = writers.get(store, readers.get(store))
            if other is not None:
                return Conflict(other, number, store)
        for store in footprint.reads:
            if store in writers:
                return Conflict(writers[store], number, store)
        readers |= dict.fromkeys(footprint.reads, number)
        writers |= dict.fromkeys(footprint.writes, number)
    return None
