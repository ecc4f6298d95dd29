"""Frames of the control socket: a fixed header, a body of msgpack, and bytes of volumes as they are.

    offset  bytes
    0       4      "prc1": magic and version of the framing
    4       4      length of the body, little-endian
    8       4      length of the payload, little-endian
    12      4      zero

Decides how much a frame may hold and how long the other end may take over one. Must not know what a body says
(``messages``). Lengths are compared with their limits before memory is taken.
"""

from __future__ import annotations

import select
import socket
import struct
import time

from pyrepl.errors import PeerError, ProtocolError

MAGIC = b"prc1"
HEADER = struct.Struct("<4sIII")
MOST_REQUEST = 64 * 1024  # bytes of the body of a request
MOST_ANSWER = 16 << 20  # ... of an answer: the status of 64 volumes with 256 snapshots each is about 4 MiB
MOST_PAYLOAD = 4 << 20  # bytes of data in one frame, either way
LOOK = 0.25  # seconds between two looks whether a client still waits
PATIENCE = 10.0  # seconds for the rest of a frame that has begun, and for a peer to take what it is sent


def send(sock: socket.socket, body: bytes, payload: bytes | memoryview = b"", *, patience: float = PATIENCE) -> None:
    """Sends one frame.

    Raises:
        PeerError: the peer ended the connection, or took nothing for ``patience`` seconds.
    """
    view = memoryview(payload).cast("B")
    buffers = [memoryview(HEADER.pack(MAGIC, len(body), len(view), 0)), memoryview(body), view]
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    while any(buffers):
        buffers = [buffer for buffer in buffers if len(buffer)]
        try:
            count = sock.sendmsg(buffers, [], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            if not poll.poll(int(patience * 1000)):
                raise PeerError(f"the other end of the control socket took nothing for {patience:g} s") from None
            continue
        except OSError as error:
            raise PeerError(f"the control socket's connection broke: {error.strerror}") from error
        for index, buffer in enumerate(buffers):
            taken = min(count, len(buffer))
            buffers[index] = buffer[taken:]
            count -= taken


def receive(
    sock: socket.socket,
    most_body: int,
    *,
    first: float | None = None,
    patience: float = PATIENCE,
) -> tuple[bytes, bytes] | None:
    """The body and the payload of the next frame; None: the peer ended the connection between two frames.

    Args:
        sock: connected.
        most_body: bytes; a longer body is refused before memory is taken for it.
        first: seconds to wait for the first byte, None for ever.
        patience: seconds from the first byte to the last.

    Raises:
        ProtocolError: not a frame. What came is not repeated.
        PeerError: the peer was silent too long, or ended the connection in the middle.
    """
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    if not poll.poll(None if first is None else int(first * 1000)):
        raise PeerError(f"nothing came on the control socket for {first:g} s", retryable=True)
    deadline = time.monotonic() + patience
    header = _fill(sock, HEADER.size, deadline, may_end=True)
    if not header:
        return None
    magic, body_length, payload_length, zero = HEADER.unpack(header)
    if magic != MAGIC or zero:
        raise ProtocolError("what came on the control socket is not a frame of this version")
    if body_length > most_body or payload_length > MOST_PAYLOAD:
        raise ProtocolError(
            f"a frame with a body of {body_length} and a payload of {payload_length} bytes: at most {most_body} and "
            f"{MOST_PAYLOAD} are taken"
        )
    return bytes(_fill(sock, body_length, deadline)), bytes(_fill(sock, payload_length, deadline))


def has_ended(sock: socket.socket) -> bool:
    """Whether the peer has ended the connection; what it has sent before counts as ended too, for nobody asked."""
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLRDHUP)
    return bool(poll.poll(0))


def _fill(sock: socket.socket, length: int, deadline: float, *, may_end: bool = False) -> bytearray:
    buffer = bytearray(length)
    view = memoryview(buffer)
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    while view:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(max(1, int(left * 1000))):
            raise PeerError("the other end of the control socket stopped in the middle of a frame", retryable=True)
        try:
            count = sock.recv_into(view, len(view), socket.MSG_DONTWAIT)
        except BlockingIOError:
            continue
        except OSError as error:
            raise PeerError(f"the control socket's connection broke: {error.strerror}", retryable=True) from error
        if count == 0:
            if may_end and len(view) == length:
                return bytearray()
            raise PeerError("the control socket's connection ended in the middle of a frame", retryable=True)
        view = view[count:]
    return buffer
