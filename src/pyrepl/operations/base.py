"""The effects of operations: the little that maps and divergence maps need to know of them."""

from __future__ import annotations

from typing import NamedTuple

from pyrepl._core import layout
from pyrepl.catalog import Catalog, ImageKey, Store, check_size, whole
from pyrepl.errors import UsageError


class Created(NamedTuple):
    """A store comes into being. It shows zeros (``zero``), or whatever its device holds; copies may follow."""

    store: int
    regions: int
    zero: bool


class Copied(NamedTuple):
    """``target`` shows what ``source`` shows (source 0: zeros), on ``count`` regions from ``first`` on."""

    target: int
    source: int
    first: int
    count: int  # type: ignore[assignment]  # a field, although a tuple has a method of that name


class CopiedImage(NamedTuple):
    """``target`` shows what this site's own copy of an image holds, on ``count`` regions from ``first`` on."""

    target: int
    image: ImageKey
    first: int
    count: int  # type: ignore[assignment]  # as above


class Scope(NamedTuple):
    """``count`` regions of a store, from ``first`` on."""

    store: int
    first: int
    count: int  # type: ignore[assignment]  # as above


class Reworked(NamedTuple):
    """A plug-in has made, from what ``reads`` and ``writes`` show, what ``writes`` show afterwards."""

    reads: tuple[Scope, ...]
    writes: tuple[Scope, ...]


class Resized(NamedTuple):
    """A store has so many regions now, and had ``before`` (0: not known); what was added shows zeros."""

    store: int
    regions: int
    before: int = 0


class Deleted(NamedTuple):
    """A store is gone."""

    store: int


Effect = Created | Copied | CopiedImage | Reworked | Resized | Deleted


def avoided(bytes_changed: int, links: int, bytes_refused: int = 0, refused: int = 0) -> int:
    """Bytes that shipping the data in place of the operation would have put on the links, all together: whole regions
    whose content it may have changed, once for each link that the group had when the operation was admitted. The
    command itself and framing are not counted. Everything that tells ``bytes_avoided`` goes by this.

    Args:
        refused: links of which the secondaries refused it: they got the data.
        bytes_refused: of ``bytes_changed``, what these did not make."""
    return bytes_changed * links - bytes_refused * min(refused, links)


class Footprint(NamedTuple):
    """Which stores an operation looks at and which it changes, makes or deletes."""

    reads: list[int]
    writes: list[int]


def scope(
    target: Store, source: Store | None, offset: int | None, length: int | None, region_size: int
) -> tuple[int, int]:
    """The regions of an operation on a range of bytes: (first, count). Without offset and length, the whole target.

    Raises:
        UsageError: not whole regions, or outside target or source; for the whole of two stores of different sizes.
    """
    if offset is None and length is None:
        if source is not None and source.size != target.size:
            raise UsageError(
                f"{target.name!r} is {target.size} bytes long and {source.name!r} is {source.size}: "
                f"resize the target first, or name a range that both have", target=target.name, source=source.name)
        return 0, target.size // region_size
    first = whole(0 if offset is None else offset)
    size = whole(target.size - first if length is None and first is not None else length)
    if first is None or size is None:
        raise UsageError(f"offset {offset!r} and length {length!r}: give whole numbers of bytes")
    offset, length = first, size
    if offset < 0 or length <= 0 or offset % region_size or length % region_size:
        raise UsageError(f"the range of {length} bytes from {offset} is not made of whole regions: "
                         f"offset and length must be multiples of the group's region size, {region_size} bytes",
                         offset=offset, length=length, region_size=region_size)
    for store in (target, source):
        if store is not None and (offset > store.size or length > store.size - offset):
            raise UsageError(f"the range of {length} bytes from {offset} ends outside {store.name!r}, "
                             f"which is {store.size} bytes long", store=store.name, offset=offset, length=length)
    return offset // region_size, length // region_size


def judge(effects: list[Effect], after: Catalog, region_size: int) -> None:
    """Admission at a secondary: what the constructors promise of sizes and ranges holds for an operation that arrived.
    One that does not could not be performed, and stands in the journal for ever.

    Args:
        after: the catalog with the operation applied.

    Raises:
        UsageError, NotFound: the text says what cannot be.
    """
    for effect in effects:
        match effect:
            case Created(store) | Resized(store):
                if not 0 < store < layout.FIRST_LOCAL:
                    raise UsageError(f"a store cannot have the number {store}", store=store)
                check_size(after[store].size, region_size)
            case Copied(target, source, first, count):
                for store in (target, source) if source else (target,):
                    regions = after[store].size // region_size
                    if first < 0 or count <= 0 or first > regions or count > regions - first:
                        raise UsageError(f"{count} regions from {first} are not inside store {store} of {regions}")
            case CopiedImage(target, image, first, count):
                check_size(image.size, region_size)
                regions = min(after[target].size, image.size) // region_size
                if first < 0 or count <= 0 or first > regions or count > regions - first:
                    raise UsageError(f"{count} regions from {first} are not inside store {target} and its image")
            case Reworked(reads, writes):
                for store, first, count in (*reads, *writes):
                    regions = after[store].size // region_size
                    if first < 0 or count <= 0 or first > regions or count > regions - first:
                        raise UsageError(f"{count} regions from {first} are not inside store {store} of {regions}")
            case Deleted():
                pass


def put_size(catalog: Catalog, store_id: int, size: int) -> None:
    """The store has another size from here on."""
    old = catalog[store_id]
    catalog.add(Store(id=old.id, name=old.name, kind=old.kind, size=size, origin=old.origin))
