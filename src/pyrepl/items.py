"""Items: what a link sends beside events and copied regions. Pure values.

A secondary journals each item in its place in the stream and performs it there (``applier``). Decides their encoding;
must not know when they are sent (``link``).
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from pyrepl._core import layout
from pyrepl.errors import ProtocolError

Generation = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Lsn = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class StoreInfo(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A store as it is introduced to a peer."""

    id: int
    name: Annotated[str, msgspec.Meta(max_length=255)]
    kind: Annotated[str, msgspec.Meta(max_length=16)]
    size: int
    origin: int


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


Item = Fork | Skip | Make | Drop | Consistent

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
