"""The operation of a plug-in: a name under which each site has a program of its own, its arguments, and which regions
it reads and writes.

Decides what such an operation names, and what came of it in words that travel. Must not know how a plug-in is found
or run (``workshop``, ``runtime.plugins``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

from pyrepl.catalog import SNAPSHOT, VOLUME, Catalog, check_name
from pyrepl.errors import Refused, UsageError
from pyrepl.operations.base import Effect, Footprint, Reworked, Scope, scope

MOST_ARGUMENTS = 4096  # bytes, encoded
MOST_TOUCHED = 32  # stores that one plug-in reads or writes
MOST_DIGEST = 64  # bytes that a plug-in says of what it did
MOST_FAILED = 100  # characters of why it failed, as a refusal has them

Scopes = Annotated[list[Scope], msgspec.Meta(max_length=MOST_TOUCHED)]


class Perform(msgspec.Struct, frozen=True, tag="perform", tag_field="op", forbid_unknown_fields=True):
    """``plugin`` in version ``version`` is performed with these arguments (a map in MessagePack). It sees nothing but
    ``reads`` and ``writes``, and changes nothing but ``writes``: whole regions, each store once."""

    plugin: Annotated[str, msgspec.Meta(max_length=255)]
    version: Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)]
    arguments: Annotated[bytes, msgspec.Meta(max_length=MOST_ARGUMENTS)]
    reads: Scopes
    writes: Scopes

    @property
    def kind(self) -> str:
        return "perform"

    @property
    def blocks(self) -> list[int]:
        """Stores whose readers wait until it is performed."""
        return [one.store for one in self.writes]

    @property
    def footprint(self) -> Footprint:
        return Footprint([one.store for one in self.reads], [one.store for one in self.writes])

    def check(self, catalog: Catalog) -> None:
        """Admission at a secondary."""
        check_name(self.plugin)
        decode_arguments(self.arguments)
        for scopes in (self.reads, self.writes):
            if len({one.store for one in scopes}) != len(scopes):
                raise UsageError(f"plug-in {self.plugin!r} names a store twice", plugin=self.plugin)
            for one in scopes:
                catalog[one.store]

    def apply(self, catalog: Catalog) -> None:
        """Changes no catalog."""

    def effects(self, region_size: int) -> list[Effect]:
        return [Reworked(tuple(self.reads), tuple(self.writes))]


class Outcome(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What came of a plug-in at the primary, which is what it is to be everywhere.

    ``failed``: why it changed nothing; "": it did what it does. ``said``: the digest that it gave itself. ``wrote``:
    XXH3-128 of the regions that it wrote.
    """

    failed: Annotated[str, msgspec.Meta(max_length=MOST_FAILED)] = ""
    said: Annotated[bytes, msgspec.Meta(max_length=MOST_DIGEST)] = b""
    wrote: Annotated[bytes, msgspec.Meta(max_length=16)] = b""


def encode_arguments(arguments: Any) -> bytes:
    """Arguments by name, as they travel.

    Raises:
        UsageError: they are no plain values by name, or too long.
    """
    try:
        data = msgspec.msgpack.encode(arguments, order="sorted")
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(f"the arguments of a plug-in are plain values (None, bool, int, float, str, bytes, list, dict "
                         f"with names): {error}") from error
    if len(data) > MOST_ARGUMENTS:
        raise UsageError(f"the arguments of a plug-in are {len(data)} bytes: at most {MOST_ARGUMENTS}. An operation "
                         f"carries no data: let it read them from a store", length=len(data))
    decode_arguments(data)
    return data


def decode_arguments(data: bytes) -> dict[str, Any]:
    """The same, back.

    Raises:
        UsageError: they are none.
    """
    try:
        return msgspec.msgpack.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise UsageError(f"not the arguments of a plug-in: {error}") from error


Wanted = tuple[str, int | None, int | None]  # a store by name, offset and length in bytes (None: all of it)


def perform(
    catalog: Catalog, plugin: str, version: int, arguments: bytes, reads: Iterable[Wanted], writes: Iterable[Wanted], *,
    region_size: int
) -> Perform:
    """A plug-in that is to be performed.

    Raises:
        NotFound, UsageError: no such store; not whole regions; the same store twice.
        Refused: a store that cannot be written.
    """
    found: list[list[Scope]] = []
    for wanted in (reads, writes):
        scopes = []
        for name, offset, length in wanted:
            store = catalog.by_name(name)
            scopes.append(Scope(store.id, *scope(store, None, offset, length, region_size)))
            if wanted is writes and store.kind not in (VOLUME, SNAPSHOT):
                raise Refused(f"{name!r} is read-only", reason="kind", name=name)
        found.append(scopes)
    if max(len(scopes) for scopes in found) > MOST_TOUCHED:
        raise UsageError(f"plug-in {plugin!r} touches more than {MOST_TOUCHED} stores", plugin=plugin)
    operation = Perform(check_name(plugin), version, arguments, *found)
    operation.check(catalog)
    return operation
