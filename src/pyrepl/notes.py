"""Notes: records of the journal that never leave the site. Their types and bodies.

Decides the encoding only. Who appends them: the applier (map, performed, released) and the site (generation).
"""

from __future__ import annotations

import msgspec

MAP = 1  # body: an array of pr_map_entry (layout.h), written and read by the core
PERFORMED = 2
RELEASED = 3
GENERATION = 4
GIVEN = 5

NAMES = {MAP: "map", PERFORMED: "performed", RELEASED: "released", GENERATION: "generation", GIVEN: "given"}


class Placed(msgspec.Struct, frozen=True, array_like=True):
    """A store's device at this site. ``fresh``: the site made it for the store, it is all zeros."""

    store: int
    slot: int
    path: str
    fresh: bool


class Performed(msgspec.Struct, frozen=True, array_like=True):
    """An operation, or an item that makes or drops a store, has been performed: everything before ``position`` is in
    the stores.

    ``body`` is its encoding in the batch; ``placed`` is where this site put what it created, and the scratch if that
    grew.
    """

    position: int
    lsn: int
    is_item: bool
    body: bytes
    placed: list[Placed]
    scratch: Placed | None
    scratch_size: int


class Released(msgspec.Struct, frozen=True, array_like=True):
    """The device of a deleted store is shown by nobody any more and has left the table."""

    slot: int


class Given(msgspec.Struct, frozen=True, array_like=True):
    """The operation that follows creates these stores on devices that were given: store id -> path."""

    paths: dict[int, str]


class Generation(msgspec.Struct, frozen=True, array_like=True):
    """This site became able to append: a generation begins after LSN ``lsn``."""

    generation: bytes
    lsn: int


_encoder = msgspec.msgpack.Encoder()


def encode(note: Performed | Released | Generation | Given) -> bytes:
    """The body of the note."""
    return _encoder.encode(note)


def decode_performed(body: bytes) -> Performed:
    """Body -> note."""
    return msgspec.msgpack.decode(body, type=Performed)


def decode_released(body: bytes) -> Released:
    """Body -> note."""
    return msgspec.msgpack.decode(body, type=Released)


def decode_generation(body: bytes) -> Generation:
    """Body -> note."""
    return msgspec.msgpack.decode(body, type=Generation)


def decode_given(body: bytes) -> Given:
    """Body -> note."""
    return msgspec.msgpack.decode(body, type=Given)
