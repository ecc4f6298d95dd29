"""An NBD client in raw bytes, for the transmission phase: what it sends is what a test says, what it takes is checked.

Decides: how requests and replies look (doc/proto.md of NetworkBlockDevice/nbd), independently of what the server's source
says. Knows nothing of pyrepl but the class that serves a socket.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 12, 22, 28, 75, 95, 108
REQUEST, SIMPLE, STRUCTURED = 0x25609513, 0x67446698, 0x668E33EF
HEAD = struct.Struct(">IHHQQI")
PATIENCE = 60.0  # seconds until a test says that the server hangs


class Reply(NamedTuple):
    """A whole one, of however many chunks."""

    cookie: int
    error: int
    data: bytes = b""
    statuses: dict[int, list[tuple[int, int]]] | None = None
    chunks: int = 0  # of content
    raw: bytes = b""


class Gone(Exception):
    """The server has ended the connection."""


def request(command: int, offset: int = 0, length: int = 0, *, flags: int = 0, cookie: int = 0, data: bytes = b"",
            magic: int = REQUEST) -> bytes:
    """A request as it goes over the wire."""
    return HEAD.pack(magic, flags, command, cookie, offset, length) + data


class Client:
    """One connection. Not for several threads, but for one that sends and one that takes."""

    def __init__(self, sock: socket.socket, *, structured: bool = False) -> None:
        self.sock = sock
        self.structured = structured
        sock.settimeout(PATIENCE)
        self._lengths: dict[int, list[tuple[int, int, int]]] = {}  # by cookie: command, offset and length, in order
        self._next = 1
        self._chunks: dict[int, list[Any]] = {}

    def send(self, command: int, offset: int = 0, length: int | None = None, *, flags: int = 0, data: bytes = b"",
             cookie: int | None = None) -> int:
        """Sends one request; its cookie. The length of a WRITE is that of its data unless it is given."""
        packed, cookie = self.pack(command, offset, length, flags=flags, data=data, cookie=cookie)
        self.sock.sendall(packed)
        return cookie

    def pack(self, command: int, offset: int = 0, length: int | None = None, *, flags: int = 0, data: bytes = b"",
             cookie: int | None = None) -> tuple[bytes, int]:
        """The bytes of a request whose reply will be understood, and its cookie; for requests that are sent together."""
        if cookie is None:
            cookie, self._next = self._next, self._next + 1
        length = len(data) if length is None else length
        self._lengths.setdefault(cookie, []).append((command, offset, length))
        return request(command, offset, length, flags=flags, cookie=cookie, data=data), cookie

    def exactly(self, count: int) -> bytes:
        """Raises: Gone."""
        parts = []
        while count:
            part = self.sock.recv(min(count, 1 << 20))
            if not part:
                raise Gone
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def reply(self) -> Reply:
        """The next reply that is whole; chunks of others may come between.

        Raises:
            Gone: the server has ended the connection.
        """
        while True:
            magic = self.exactly(4)
            (kind,) = struct.unpack(">I", magic)
            if kind == SIMPLE:
                rest = self.exactly(12)
                error, cookie = struct.unpack(">IQ", rest)
                command, _, length = self._lengths[cookie].pop(0)
                assert not (self.structured and command == READ), "a simple reply to a READ where replies are structured"
                data = self.exactly(length) if command == READ and not error else b""
                return Reply(cookie, error, data, {}, raw=magic + rest + data)
            assert kind == STRUCTURED and self.structured, f"magic {kind:#x}"
            done = self._chunk(magic)
            if done is not None:
                return done

    def _chunk(self, magic: bytes) -> Reply | None:
        rest = self.exactly(16)
        flags, kind, cookie, length = struct.unpack(">HHQI", rest)
        assert flags in (0, 1) and length <= (32 << 20) + 8
        body = self.exactly(length)
        command, offset, wanted = self._lengths[cookie][0]
        state = self._chunks.setdefault(cookie, [0, bytearray(), {}, 0, b""])
        state[4] += magic + rest + body
        if kind == 1:
            assert command == READ and length >= 9
            (at,) = struct.unpack_from(">Q", body)
            assert at == offset + len(state[1]) and at + length - 8 <= offset + wanted, "data in order, and inside"
            state[1] += body[8:]
            state[3] += 1
        elif kind == 5:
            assert command == STATUS and length >= 12 and length % 8 == 4
            (context,) = struct.unpack_from(">I", body)
            assert context not in state[2]
            extents = [struct.unpack_from(">II", body, at) for at in range(4, length, 8)]
            assert all(count for count, _ in extents) and sum(count for count, _ in extents[:-1]) < wanted
            state[2][context] = extents
        elif kind == 32769:
            error, text = struct.unpack_from(">IH", body)
            assert error and length == 6 + text
            state[0] = error
        else:
            assert (kind, flags, length) == (0, 1, 0), f"chunk {kind}"
        if not flags & 1:
            return None
        self._lengths[cookie].pop(0)
        error, data, statuses, chunks, raw = self._chunks.pop(cookie)
        if command == READ and not error:
            assert len(data) == wanted
        return Reply(cookie, error, bytes(data), statuses, chunks, raw)

    def call(self, command: int, offset: int = 0, length: int | None = None, *, flags: int = 0, data: bytes = b"") -> Reply:
        """One request and its reply, alone."""
        cookie = self.send(command, offset, length, flags=flags, data=data)
        reply = self.reply()
        assert reply.cookie == cookie
        return reply

    def read(self, offset: int, length: int) -> bytes:
        """What must be readable."""
        reply = self.call(READ, offset, length)
        assert reply.error == 0, reply.error
        return reply.data

    def write(self, offset: int, data: bytes, flags: int = 0) -> None:
        """What must be writable."""
        assert self.call(WRITE, offset, data=data, flags=flags).error == 0

    def is_gone(self) -> bool:
        """Nothing comes any more but the end."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionError:
            return True


class Served:
    """A client, the connection that serves it, the thread that does, and how it ended."""

    def __init__(self, make: Any, *, structured: bool = False) -> None:
        self.theirs, ours = socket.socketpair()
        self.client = Client(ours, structured=structured)
        self.connection = make(self.theirs.fileno())
        self.end = ""
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        self.end = self.connection.serve()
        self.theirs.close()

    def finish(self) -> str:
        """The client goes; how the connection ended."""
        self.client.sock.close()
        return self.join()

    def join(self) -> str:
        """Waits for the end that something else has brought about."""
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive(), "serve does not return"
        return self.end


@contextmanager
def serving(make: Any, *, structured: bool = False) -> Iterator[Served]:
    """``make(fd)`` is the connection."""
    served = Served(make, structured=structured)
    try:
        yield served
    finally:
        served.client.sock.close()
        served.connection.stop()
        served.thread.join(PATIENCE)
        assert not served.thread.is_alive(), "serve does not return"
