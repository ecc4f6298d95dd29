"""The verification: a point of the order as of which the sites compare what their stores show. It changes nothing, or
it is another operation, whose result is compared as of its own LSN.

Decides what such an operation names. What a site keeps for it is ``verification``, who compares is ``verifying``.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from pyrepl.catalog import Catalog
from pyrepl.errors import UsageError
from pyrepl.operations.base import Copied, CopiedImage, Created, Deleted, Effect, Resized, Reworked
from pyrepl.operations.copies import Copy
from pyrepl.operations.images import CloneImage, CopyImage
from pyrepl.operations.plugins import Perform
from pyrepl.operations.sets import Set
from pyrepl.operations.snapshots import Clone, Snapshot
from pyrepl.operations.volumes import Resize

MOST_VERIFIED = 32
"""Stores of one verification: each costs a view at each site while it lasts (half of ``catalog.MOST_VIEWS``)."""


class Verify(msgspec.Struct, frozen=True, tag="verify", tag_field="op", forbid_unknown_fields=True):
    """``token`` tells this one from all others, ``stores`` are compared."""

    token: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    stores: Annotated[list[int], msgspec.Meta(min_length=1, max_length=MOST_VERIFIED)]

    @property
    def kind(self) -> str:
        return "verify"

    @property
    def blocks(self) -> list[int]:
        return []

    def check(self, catalog: Catalog) -> None:
        """Admission at a secondary: a store that it lacks is not compared."""
        if len(set(self.stores)) != len(self.stores):
            raise UsageError("a verification names a store twice")

    def apply(self, catalog: Catalog) -> None:
        """Changes no catalog."""

    def effects(self, region_size: int) -> list[Effect]:
        return []


Verifiable = Snapshot | Clone | CloneImage | Copy | CopyImage | Resize | Perform | Set


class Verified(msgspec.Struct, frozen=True, tag="verified", tag_field="op", forbid_unknown_fields=True):
    """``operation``, and that the sites compare what these of the stores that it writes show right after it."""

    operation: Verifiable
    token: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    stores: Annotated[list[int], msgspec.Meta(min_length=1, max_length=MOST_VERIFIED)]

    @property
    def kind(self) -> str:
        return self.operation.kind

    @property
    def blocks(self) -> list[int]:
        """Stores whose readers wait until it is performed."""
        return self.operation.blocks

    def check(self, catalog: Catalog) -> None:
        """Admission at a secondary."""
        self.operation.check(catalog)
        if len(set(self.stores)) != len(self.stores):
            raise UsageError("an operation names a store twice that is to be compared")

    def apply(self, catalog: Catalog) -> None:
        self.operation.apply(catalog)

    def effects(self, region_size: int) -> list[Effect]:
        return self.operation.effects(region_size)


def written(effects: list[Effect]) -> dict[int, tuple[int, int]]:
    """What these effects write of stores that there are afterwards: (first, count) in regions, by store."""
    found: dict[int, tuple[int, int]] = {}
    for effect in effects:
        match effect:
            case Created(store, regions) | Resized(store, regions):
                found[store] = (0, regions)
            case Copied(store, _, first, count) | CopiedImage(store, _, first, count):
                found.setdefault(store, (first, count))  # what was made before is compared whole
            case Reworked(_, writes):
                found.update({store: (first, count) for store, first, count in writes})
            case Deleted(store):
                found.pop(store, None)
    return found


def verified(catalog: Catalog, operation: Any, token: bytes, *, region_size: int) -> Verified:
    """This operation, with the result to be compared.

    Args:
        token: 16 bytes that no other has.

    Raises:
        UsageError: it leaves nothing that could be compared, or too much.
    """
    stores = list(written(operation.effects(region_size)))
    if not isinstance(operation, Verifiable) or not 0 < len(stores) <= MOST_VERIFIED:
        raise UsageError(
            f"{operation.kind} writes {len(stores)} stores that there are afterwards: what 1 to {MOST_VERIFIED} show "
            f"can be compared; leave verify out", kind=operation.kind, stores=len(stores))
    return Verified(operation, token, stores)


def verify(catalog: Catalog, stores: list[int], token: bytes) -> Verify:
    """A verification of these stores, or of those of them that there still are.

    Args:
        token: 16 bytes that no other has.

    Raises:
        UsageError: none of them exists any more, or there are too many.
    """
    there = [store for store in stores if store in catalog]
    if not 0 < len(there) <= MOST_VERIFIED:
        raise UsageError(f"a verification compares from 1 to {MOST_VERIFIED} stores, not {len(there)}")
    return Verify(token, there)
