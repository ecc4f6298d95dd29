"""Notes: records of the journal that never leave the site. Their types and bodies.

Decides the encoding only. Who appends them: the applier (map, performed, released), the site (generation, given,
refused), its views (opened, closed) and its protective snapshot (returned).
"""

from __future__ import annotations

import msgspec

from pyrepl.catalog import View
from pyrepl.operations import Outcome

MAP = 1  # body: an array of pr_map_entry (layout.h), written and read by the core
PERFORMED = 2
RELEASED = 3
GENERATION = 4
GIVEN = 5
OPENED = 6
CLOSED = 7
REFUSED = 8
RETURNED = 9

NAMES = {
    MAP: "map",
    PERFORMED: "performed",
    RELEASED: "released",
    GENERATION: "generation",
    GIVEN: "given",
    OPENED: "opened",
    CLOSED: "closed",
    REFUSED: "refused",
    RETURNED: "returned",
}


class Placed(msgspec.Struct, frozen=True, array_like=True):
    """A store's device at this site. ``fresh``: the site made it for the store, it is all zeros."""

    store: int
    slot: int
    path: str
    fresh: bool


class Worked(msgspec.Struct, frozen=True, array_like=True):
    """A plug-in has written these regions, (first, count), of a store, ``size`` bytes long: they stand on a device of
    their own, whose number is one of this site's."""

    store: int
    size: int
    placed: Placed
    runs: list[tuple[int, int]]


class Performed(msgspec.Struct, frozen=True, array_like=True):
    """An operation, or an item that makes or drops a store, has been performed: everything before ``position`` is in
    the stores.

    ``body`` is its encoding in the batch; ``placed`` is where this site put what it created, and the scratch if that
    grew. ``refused``: without what it copies from images, see :class:`Refused`. ``worked``: what its plug-ins have
    written; ``outcomes``: what came of each of them, if this site was the one to decide; ``differs``: why this site, a
    secondary, has not the result of all of them.
    """

    position: int
    lsn: int
    is_item: bool
    body: bytes
    placed: list[Placed]
    scratch: Placed | None
    scratch_size: int
    refused: bool = False
    worked: list[Worked] = []
    outcomes: list[Outcome] = []
    differs: str = ""


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


class Opened(msgspec.Struct, frozen=True, array_like=True):
    """A view has been made: from here on it shows what its store shows at this place among the notes."""

    view: View
    placed: Placed


class Closed(msgspec.Struct, frozen=True, array_like=True):
    """These views are gone; what others show from their devices is handed over as a deleted store's."""

    views: list[int]


class Refused(msgspec.Struct, frozen=True, array_like=True):
    """The operation of this LSN, which follows, is performed without what it copies from images: this site does not
    have them. ``reason`` "" takes it back: the operation did not come, and when it comes again it is performed."""

    lsn: int
    reason: str


class Returned(msgspec.Struct, frozen=True, array_like=True):
    """This site has gone back to its protective snapshot: to LSN ``lsn`` of this lineage. For readers of the log: what
    makes it so is the next checkpoint."""

    lineage: list[tuple[bytes, int]]
    lsn: int


_encoder = msgspec.msgpack.Encoder()


def encode(note: Performed | Released | Generation | Given | Opened | Closed | Refused | Returned) -> bytes:
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


def decode_opened(body: bytes) -> Opened:
    """Body -> note."""
    return msgspec.msgpack.decode(body, type=Opened)


def decode_closed(body: bytes) -> Closed:
    """Body -> note."""
    return msgspec.msgpack.decode(body, type=Closed)


def decode_refused(body: bytes) -> Refused:
    """Body -> note."""
    return msgspec.msgpack.decode(body, type=Refused)


def decode_returned(body: bytes) -> Returned:
    """Body -> note."""
    return msgspec.msgpack.decode(body, type=Returned)
