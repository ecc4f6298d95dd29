"""Items: what a link sends beside events and copied regions. Pure values.

A secondary journals each item in its place in the stream and performs it there (``applier``). Decides their encoding;
must not know when they are sent (``link``).
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from pyrepl._core import layout
from pyrepl.catalog import MOST_STORES
from pyrepl.errors import ProtocolError
from pyrepl.operations import Outcome

MOST_SUCCESSION = 64  # links that a successor is told of
MOST_RUNS = 64  # in which a tail is told: the region maps of one are as exact as its length
MOST_TAIL = 64 << 10  # bytes of all region maps of a tail: a longer one is not told, and everything is copied
MOST_REASON = 100  # characters
MOST_REFUSALS = 64  # that a secondary keeps in mind until it is consistent again
Generation = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Lsn = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class StoreInfo(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A store as it is introduced to a peer."""

    id: int
    name: Annotated[str, msgspec.Meta(max_length=255)]
    kind: Annotated[str, msgspec.Meta(max_length=16)]
    size: int
    origin: int


class LinkInfo(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A link that a successor is to have, with what users told the one before it (names as in LinkOptions)."""

    name: Annotated[str, msgspec.Meta(max_length=255, pattern=r"\A[A-Za-z0-9_][A-Za-z0-9._-]*\Z")]
    address: Annotated[str, msgspec.Meta(max_length=512, pattern=r"\A\S+:[0-9]{1,5}\Z")]
    mode: Annotated[str, msgspec.Meta(pattern=r"\A(async|sync)\Z")]
    bandwidth: Annotated[int, msgspec.Meta(ge=0)] = 0
    dead: Annotated[float, msgspec.Meta(ge=0)] = 0.0  # 0: as a new link
    most_lag_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    most_lag_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class Run(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the events after those of the run before, up to LSN ``upto``, may have changed: store -> encoded map of the
    regions."""

    upto: Lsn
    regions: Annotated[
        dict[int, Annotated[bytes, msgspec.Meta(max_length=MOST_TAIL)]], msgspec.Meta(max_length=layout.MAX_STORES)
    ]


class Refusal(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An operation of which the secondary could not perform what it copies from images, or a plug-in with the result
    of the primary, and why. ``lsn`` 0: there were
    more than it keeps in mind."""

    lsn: Lsn
    reason: Annotated[str, msgspec.Meta(max_length=MOST_REASON)]


class Tail(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a site has changed since LSN ``lsn``, in order: a primary that has stepped down, since what one secondary
    had acknowledged; a secondary, since another one was known to stand there. That one may have more than was known:
    only the runs that end behind it count."""

    lsn: Lsn
    runs: Annotated[list[Run], msgspec.Meta(max_length=MOST_RUNS)]

    @property
    def length(self) -> int:
        """Bytes of its region maps."""
        return sum(len(data) for run in self.runs for data in run.regions.values())


class FoundDifferent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a verification found different at a secondary and was not to repair: as of which LSN, when (seconds since
    1970, by the clock of the primary), and of how many bytes of regions."""

    lsn: Lsn
    time: Annotated[float, msgspec.Meta(ge=0)]
    bytes: Annotated[int, msgspec.Meta(gt=0, le=(1 << 63) - 1)]


class Fork(msgspec.Struct, frozen=True, tag="fork", tag_field="item", forbid_unknown_fields=True):
    """Follow this lineage from this position: opens every stream, and is sent where a generation begins."""

    lineage: Annotated[list[tuple[Generation, Lsn]], msgspec.Meta(min_length=1, max_length=1024)]
    lsn: Lsn


class Skip(msgspec.Struct, frozen=True, tag="skip", tag_field="item", forbid_unknown_fields=True):
    """The events up to this LSN will never come; what they changed comes as copied regions."""

    lsn: Lsn
    lineage: Annotated[list[tuple[Generation, Lsn]], msgspec.Meta(min_length=1, max_length=1024)]


class Make(msgspec.Struct, frozen=True, tag="make", tag_field="item", forbid_unknown_fields=True):
    """Make a store that is lacking; its content is arbitrary until it was copied."""

    store: StoreInfo


class Drop(msgspec.Struct, frozen=True, tag="drop", tag_field="item", forbid_unknown_fields=True):
    """Drop a store that the primary does not have."""

    id: int


class Consistent(msgspec.Struct, frozen=True, tag="consistent", tag_field="item", forbid_unknown_fields=True):
    """At this place the secondary equals the primary as of the LSN that the stream has reached."""


class Handover(
    msgspec.Struct, frozen=True, tag="handover", tag_field="item", forbid_unknown_fields=True, omit_defaults=True
):
    """The primary has stepped down, and this is the end of its order: whoever holds it may be promoted.

    ``succession`` not None: it is to promote itself, without being told by anybody else, and to have these links then;
    the first leads back.
    """

    succession: Annotated[list[LinkInfo], msgspec.Meta(max_length=MOST_SUCCESSION)] | None = None


class Decided(msgspec.Struct, frozen=True, tag="decided", tag_field="item", forbid_unknown_fields=True):
    """The operation at LSN ``lsn`` follows, and this is what came of each of its plug-ins at the primary."""

    lsn: Lsn
    outcomes: Annotated[list[Outcome], msgspec.Meta(min_length=1, max_length=MOST_STORES)]


class Different(msgspec.Struct, frozen=True, tag="different", tag_field="item", forbid_unknown_fields=True):
    """What is known by now to differ at this secondary, and is not repaired; None: all of it was found equal, or what
    differed was copied before this."""

    found: FoundDifferent | None


Item = Fork | Skip | Make | Drop | Consistent | Handover | Decided | Different

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Item] = msgspec.msgpack.Decoder(Item)


def encode(item: Item) -> bytes:
    """The bytes that travel and stand in the secondary's journal."""
    data = _encoder.encode(item)
    if len(data) > layout.MAX_EVENT:
        raise ProtocolError(f"an item of {len(data)} bytes is longer than {layout.MAX_EVENT}")
    return data


def decode(data: bytes) -> Item:
    """The item that these bytes are.

    Raises:
        ProtocolError: they are none.
    """
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"not an item that this version knows: {error}") from error
