"""A TCP proxy between the two sites: counts every byte of both directions, and is the cable that the demo cuts.

It is independent of the counters of the package: it sees only bytes. To tell the writers' own bytes, and what keeps the
link alive, from all others it reads frame headers as they pass (layout.h: ``pr_frame``, then of a batch its
``pr_travel``). It never changes a byte.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import NamedTuple

from pyrepl._core import layout
from pyrepl.protocol.messages import NUMBERS, Ack, Heartbeat

FRAME, PEEK = 32, 7  # bytes of a frame's header; and of a batch, up to the kind of its travelling part
CHUNK = 256 * 1024
SIGNS = -1  # among the kinds of batches: acknowledgements and heartbeats
_SIGNS = (NUMBERS[Ack], NUMBERS[Heartbeat])


class Counts(NamedTuple):
    """Bytes since the start. ``total`` = both directions; the others are parts of it."""

    total: int = 0
    forward: int = 0
    writes: int = 0
    """Frames whose batch holds writes, zeros or discards: their headers, descriptors and data."""
    operations: int = 0
    copied: int = 0
    signs: int = 0
    """Frames of acknowledgements and heartbeats: they grow with time and with the writes, not with an operation."""

    def since(self, before: Counts) -> Counts:
        """What crossed after ``before``."""
        return Counts(*(now - then for now, then in zip(self, before, strict=True)))


class Meter:
    """Follows the frames of one direction of one connection, cut anywhere."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._left = 0  # bytes of the frame's body that are still to come
        self._kind = 0  # of the batch that they belong to; or SIGNS; 0: another frame
        self._lost = False  # not our frames: count, do not classify

    def feed(self, data: memoryview) -> dict[int, int]:
        """Takes the next bytes; returns bytes by batch kind (no batch: SIGNS or 0)."""
        kinds: dict[int, int] = {}
        position, end = 0, len(data)
        while position < end:
            if self._lost:
                kinds[0] = kinds.get(0, 0) + end - position
                break
            if self._left:
                taken = min(self._left, end - position)
                self._left -= taken
                position += taken
                kinds[self._kind] = kinds.get(self._kind, 0) + taken
                continue
            taken = min(self._wanted() - len(self._head), end - position)
            self._head += data[position : position + taken]
            position += taken
            if len(self._head) == self._wanted():
                self._begin(kinds)
        return kinds

    def _wanted(self) -> int:
        if len(self._head) < FRAME:
            return FRAME
        _, _, kind, length = struct.unpack_from("<IHHI", self._head)
        return FRAME + (PEEK if kind == layout.FRAME_BATCH and length >= PEEK else 0)

    def _begin(self, kinds: dict[int, int]) -> None:
        magic, _, frame, length = struct.unpack_from("<IHHI", self._head)
        self._lost = magic != layout.FRAME_MAGIC
        self._kind = 0
        if not self._lost:
            self._kind = self._head[FRAME + 6] if len(self._head) > FRAME else SIGNS if frame in _SIGNS else 0
        self._left = 0 if self._lost else length - (len(self._head) - FRAME)
        kinds[self._kind] = kinds.get(self._kind, 0) + len(self._head)
        self._head.clear()


class Proxy:
    """Listens on loopback and relays to ``target``, which may change while nothing is connected.

    A context manager; close() ends every thread that it started.
    """

    def __init__(self, target: tuple[str, int] | None = None) -> None:
        self.target = target
        self._lock = threading.Lock()
        self._total = self._forward = 0
        self._kinds: dict[int, int] = {}
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._is_cut = self._is_closed = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def counts(self) -> Counts:
        """A consistent look at all counters."""
        with self._lock:
            kinds = self._kinds
            return Counts(
                self._total,
                self._forward,
                kinds.get(layout.BATCH_EVENTS, 0),
                kinds.get(layout.BATCH_OPERATION, 0),
                kinds.get(layout.BATCH_COPIED, 0),
                kinds.get(SIGNS, 0),
            )

    def cut(self) -> None:
        """Ends every connection and refuses new ones until mend()."""
        with self._lock:
            self._is_cut = True
            sockets = list(self._sockets)
        for sock in sockets:
            _end(sock)

    def mend(self) -> None:
        """Connections are taken again."""
        with self._lock:
            self._is_cut = False

    def close(self) -> None:
        """Ends everything; again is harmless."""
        if self._is_closed:
            return
        self._is_closed = True
        self.cut()
        _end(self._listener)
        for thread in self._threads:
            thread.join(5)
        self._listener.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def _start(self, body: object, *args: object) -> None:
        thread = threading.Thread(target=body, args=args, name="demo-proxy", daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            target = self.target
            if self._is_cut or target is None:
                near.close()
                continue
            try:
                far = socket.create_connection(target, timeout=5)
            except OSError:
                near.close()
                continue
            for sock in (near, far):
                sock.settimeout(None)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets |= {near, far}
                late = self._is_cut
            pair = _Pair(near, far)
            self._start(self._relay, pair, near, far, True)
            self._start(self._relay, pair, far, near, False)
            if late:
                self.cut()

    def _relay(self, pair: _Pair, source: socket.socket, target: socket.socket, forward: bool) -> None:
        meter, buffer = Meter(), memoryview(bytearray(CHUNK))
        try:
            while length := source.recv_into(buffer):
                kinds = meter.feed(buffer[:length])
                with self._lock:  # before it is passed on: who sees the effect of a byte finds it counted
                    self._total += length
                    self._forward += length if forward else 0
                    for kind, count in kinds.items():
                        self._kinds[kind] = self._kinds.get(kind, 0) + count
                target.sendall(buffer[:length])
        except OSError:
            pass
        _end(source)
        _end(target)
        if pair.is_last():
            with self._lock:
                self._sockets -= {source, target}
            source.close()
            target.close()


class _Pair:
    """The two sockets of one connection; the relay that ends last closes them."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.sockets = (near, far)
        self._ends = 0
        self._lock = threading.Lock()

    def is_last(self) -> bool:
        with self._lock:
            self._ends += 1
            return self._ends == 2


def _end(sock: socket.socket) -> None:
    """Wakes whoever waits on it; closing a descriptor under a waiting thread would not."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
