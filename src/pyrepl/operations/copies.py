"""Operations that make a store show another's content: restore, refresh, synchronize, copy a range; and zeroing.

Each is ``copy(target := source)`` of the source map over whole regions (model: "The source map"). They differ in what
is admitted and in what people call them.
"""

from __future__ import annotations

import msgspec

from pyrepl.catalog import SNAPSHOT, VOLUME, Catalog
from pyrepl.errors import Refused, UsageError
from pyrepl.operations.base import Copied, Effect, Footprint, scope


class Copy(msgspec.Struct, frozen=True, tag="copy", tag_field="op", forbid_unknown_fields=True):
    """``verb`` is restore, refresh, synchronize or copy-range; the scope is in regions."""

    verb: str
    target: int
    source: int
    first: int
    count: int

    @property
    def kind(self) -> str:
        return self.verb

    @property
    def blocks(self) -> list[int]:
        """Stores whose readers wait until it is performed."""
        return [self.target]

    @property
    def footprint(self) -> Footprint:
        return Footprint([self.source], [self.target])

    def check(self, catalog: Catalog) -> None:
        """Admission at a secondary."""
        if self.verb not in ("restore", "refresh", "synchronize", "copy-range") or self.count <= 0 or self.first < 0:
            raise UsageError(f"not a copy: {self.verb!r} of {self.count} regions from {self.first}")

    def apply(self, catalog: Catalog) -> None:
        """Changes no catalog."""

    def effects(self, region_size: int) -> list[Effect]:
        return [Copied(self.target, self.source, self.first, self.count)]


class Zero(msgspec.Struct, frozen=True, tag="zero", tag_field="op", forbid_unknown_fields=True):
    """Whole regions read as zeros. Counted as data, not as an operation: it is a large write of zeros or a discard."""

    target: int
    first: int
    count: int

    @property
    def kind(self) -> str:
        return "zero"

    @property
    def blocks(self) -> list[int]:
        return [self.target]

    def check(self, catalog: Catalog) -> None:
        """Admission at a secondary."""
        catalog[self.target]

    def apply(self, catalog: Catalog) -> None:
        """Changes no catalog."""

    def effects(self, region_size: int) -> list[Effect]:
        return [Copied(self.target, 0, self.first, self.count)]


def _copy(verb: str, catalog: Catalog, target: str, source: str, offset: int | None, length: int | None,
          region_size: int) -> Copy:
    into, other = catalog.by_name(target), catalog.by_name(source)
    if into.id == other.id:
        raise UsageError(f"{verb}: source and target are the same store, {target!r}", target=target)
    return Copy(verb, into.id, other.id, *scope(into, other, offset, length, region_size))


def restore(catalog: Catalog, target: str, source: str, offset: int | None = None, length: int | None = None, *,
            region_size: int) -> Copy:
    """The volume ``target`` shows again what the snapshot ``source`` shows, whole or on a range of whole regions.

    Raises:
        Refused: the source is not a snapshot (then synchronize is meant).
    """
    if catalog.by_name(source).kind != SNAPSHOT:
        raise Refused(
            f"{source!r} is a {catalog.by_name(source).kind}: a store is restored from a snapshot; to make it equal "
            f"to another volume use synchronize",
            reason="kind",
            source=source,
        )
    return _copy("restore", catalog, target, source, offset, length, region_size)


def refresh(catalog: Catalog, name: str, *, region_size: int) -> Copy:
    """The snapshot shows what its origin shows now.

    Raises:
        Refused: it is not a snapshot, or its origin is gone.
    """
    store = catalog.by_name(name)
    if store.kind != SNAPSHOT:
        raise Refused(f"{name!r} is a {store.kind}: only a snapshot is refreshed", reason="kind", name=name)
    if store.origin not in catalog:
        raise Refused(f"the origin of snapshot {name!r} was removed: use synchronize with a store that exists",
                      reason="origin", name=name)
    return _copy("refresh", catalog, name, catalog[store.origin].name, None, None, region_size)


def synchronize(catalog: Catalog, target: str, source: str, *, region_size: int) -> Copy:
    """The store ``target`` becomes equal to ``source``, any other store of the group of the same size."""
    return _copy("synchronize", catalog, target, source, None, None, region_size)


def copy_range(catalog: Catalog, source: str, target: str, offset: int, length: int, *, region_size: int) -> Copy:
    """A range of whole regions of ``target`` becomes equal to the same range of ``source``."""
    if offset is None or length is None:
        raise UsageError(f"copy-range: offset {offset!r} and length {length!r}: give whole numbers of bytes")
    return _copy("copy-range", catalog, target, source, offset, length, region_size)


def zero(catalog: Catalog, name: str, offset: int, length: int, *, region_size: int) -> Zero:
    """A range of whole regions of a volume or snapshot reads as zeros."""
    store = catalog.by_name(name)
    if store.kind not in (VOLUME, SNAPSHOT):
        raise Refused(f"{name!r} is read-only", reason="kind", name=name)
    return Zero(store.id, *scope(store, None, offset, length, region_size))
