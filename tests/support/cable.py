"""The line between two sites, between the counting proxy and the secondary: as slow as wanted, held, recorded, or robbed of a frame.

Reads frame headers of the direction from the primary as they pass, and decides nothing about what they mean.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable

from pyrepl._core import batch, layout

HEADER = layout.FRAME_SIZE
Tap = Callable[[int, bytes], bool]


def _exactly(sock: socket.socket, length: int) -> bytes:
    got = bytearray()
    while len(got) < length:
        part = sock.recv(min(1 << 18, length - len(got)))
        if not part:
            raise OSError("the end")
        got += part
    return bytes(got)


class Cable:
    """Listens on loopback and relays to ``target``.

    Attributes:
        rate: bytes a second from the primary to the secondary; None: as fast as it goes.
        tap: called with (frame type, header and body) of each frame from the primary; False: it is not passed on.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.rate: float | None = None
        self.tap: Tap | None = None
        self._open = threading.Event()
        self._open.set()
        self._hush = threading.Event()
        self._hush.set()
        self._closed = False
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def hold(self) -> None:
        """No frame from the primary passes any more; the connection stays."""
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def hush(self) -> None:
        """Nothing from the secondary passes any more; the connection stays."""
        self._hush.clear()

    def speak(self) -> None:
        self._hush.set()

    def close(self) -> None:
        """Ends everything."""
        self._closed = True
        self._open.set()
        self._hush.set()
        for sock in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        self._listener.close()

    def _start(self, body: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=body, args=arguments, name="cable", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self.target, timeout=5)
            except OSError:
                near.close()
                continue
            for sock in (near, far):
                sock.settimeout(None)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets |= {near, far}
            self._start(self._forward, near, far)
            self._start(self._back, far, near)

    def _forward(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                header = _exactly(near, HEADER)
                _, _, kind, length = struct.unpack_from("<IHHI", header)
                frame = header + _exactly(near, length)
                self._open.wait()
                if self.rate is not None:
                    time.sleep(len(frame) / self.rate)
                if self.tap is None or self.tap(kind, frame):
                    far.sendall(frame)
        self._end(near, far)

    def _back(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(1 << 16):
                self._hush.wait()
                near.sendall(data)
        self._end(near, far)

    @staticmethod
    def _end(*sockets: socket.socket) -> None:
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class Gate:
    """A tap that keeps every frame that came, and lets events and operations through up to an LSN. By LSN and not by number:
    while one waits here the link may lose patience, and connect and send them again."""

    def __init__(self, upto: int | None = None) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self._upto = upto
        self._changed = threading.Condition()

    def __call__(self, kind: int, frame: bytes) -> bool:
        self.frames.append((kind, frame))
        if kind == layout.FRAME_BATCH and frame[HEADER + 6] in (layout.BATCH_EVENTS, layout.BATCH_OPERATION):
            first = batch.head(frame[HEADER:]).first_lsn
            with self._changed:
                self._changed.wait_for(lambda: self._upto is None or first <= self._upto)
        return True

    def open(self, upto: int | None = None) -> None:
        """Lets them through up to this LSN; None: all."""
        with self._changed:
            self._upto = upto
            self._changed.notify_all()
