"""Frames: the 32 bytes before everything on a connection (``layout.h``: pr_frame).

Decides whether a header is whole, ours, next in its sequence and of this session, and whether its length may be; before
one byte of the body is read. Must not know what may come when (``session``).
"""

from __future__ import annotations

from typing import NamedTuple

from pyrepl._core import layout, stream
from pyrepl._core.crc32c import crc32c
from pyrepl.errors import ProtocolError
from pyrepl.protocol.messages import LIMITS, TYPES

BATCH = layout.FRAME_BATCH
HEADER = layout.FRAME_SIZE
MOST_BATCH = layout.BLOCK + layout.MAX_PAYLOAD  # travel part and descriptors are less than a block


class Frame(NamedTuple):
    """A header that was judged good."""

    type: int
    length: int
    body_crc: int
    sequence: int

    @property
    def name(self) -> str:
        """For people."""
        return "Batch" if self.type == BATCH else TYPES[self.type].__name__


def pack(kind: int, length: int, body_crc: int, sequence: int, session: int) -> bytes:
    """The header of a frame."""
    return stream.pack_frame(kind, length, body_crc, sequence, session)


def unpack(header: bytes | memoryview, sequence: int, session: int) -> Frame:
    """Judges a header.

    Raises:
        ProtocolError: magic, version, checksum, type, length, sequence number or session id is not what it must be.
    """
    try:
        kind, length, body_crc, number, owner = stream.unpack_frame(header)
    except ValueError as error:
        raise ProtocolError(f"not a frame of this protocol: {error}") from None
    if kind != BATCH and kind not in TYPES:
        raise ProtocolError(f"a frame of type {kind}, which this version does not know")
    if length > (MOST_BATCH if kind == BATCH else LIMITS[kind]) or length == 0:
        raise ProtocolError(f"a frame of type {kind} cannot be {length} bytes long")
    if number != sequence:
        raise ProtocolError(f"frame number {number} where {sequence} is next")
    if owner != session:
        raise ProtocolError("a frame of another session")
    if kind == BATCH and body_crc:
        raise ProtocolError("a batch carries its own checksums: the frame's must be zero")
    return Frame(kind, length, body_crc, sequence)


def check_body(frame: Frame, body: bytes | memoryview) -> None:
    """Judges the body of a control frame (a batch is judged by ``replica``).

    Raises:
        ProtocolError: the checksum does not hold.
    """
    if frame.type != BATCH and crc32c(body) != frame.body_crc:
        raise ProtocolError(f"the checksum of a {frame.name} does not hold")
