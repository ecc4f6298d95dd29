"""A TCP connection of a link: frames out by one system call, in by as few as may be, with time limits; counted.

Decides how bytes move and when a peer counts as dead. Must not know what they mean. No lock: one thread sends, one
receives. Under a bandwidth limit a long frame goes out in pieces several times a second: the peer hears something as
long as there is something to say, and a heartbeat waits for no more than the rest of one frame.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from pyrepl._core.stream import Inlet, Reach
from pyrepl._core.window import Window
from pyrepl.errors import PeerError, UsageError
from pyrepl.outgoing import Out
from pyrepl.protocol.frames import HEADER, MOST_BATCH
from pyrepl.protocol.session import Received, Session
from pyrepl.runtime.bucket import Bucket

PATIENCE = 0.02
"""Seconds for which a frame that pins the journal's memory waits for room in the socket; then it is copied away. So a
peer that does not read delays the memory's reuse by no more than this."""
INPUT = 2 * (HEADER + MOST_BATCH)  # bytes: what comes behind the longest frame needs no call of its own
TAKEN = 4 << 20  # bytes of batches that are taken in at once


def parse_address(address: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port``.

    Raises:
        UsageError: it is neither.
    """
    if not isinstance(address, str):
        raise UsageError(f"{address!r:.80} is not an address: give host:port or [v6]:port")
    host, colon, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if (
        not colon
        or not bare
        or any(c.isspace() or not c.isprintable() for c in bare)
        or not port.isascii()
        or not port.isdigit()
        or not 0 <= int(port) <= 65535
        or (":" in bare and bare == host)
    ):
        raise UsageError(f"{address[:80]!r} is not an address: give host:port or [v6]:port", address=address)
    return bare, int(port)


def _connect(sock: socket.socket, place: Any, seconds: float, wanted: Callable[[], bool]) -> None:
    sock.setblocking(False)
    code = sock.connect_ex(place)
    deadline = time.monotonic() + seconds
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    while code == errno.EINPROGRESS:
        if not wanted():
            code = errno.ECANCELED
        elif poll.poll(100):
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        elif time.monotonic() > deadline:
            code = errno.ETIMEDOUT
    if code:
        raise OSError(code, os.strerror(code))


class Connection:
    """A connected socket. ``dead``: seconds without a byte after which the peer is given up. ``bucket``: what
    :meth:`send_out` may send."""

    def __init__(self, sock: socket.socket, *, dead: float, bucket: Bucket | None = None) -> None:
        self._socket = sock
        self._dead = dead
        self._bucket = bucket if bucket is not None else Bucket()
        self._buffer = memoryview(mmap.mmap(-1, INPUT))
        self._inlet = Inlet(sock.fileno(), self._buffer)
        self._poll = select.poll()
        self.bytes_sent = 0
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # SO_SNDBUF and SO_RCVBUF are left alone: the kernel's tuning goes to tcp_wmem/tcp_rmem, a fixed size only to
        # wmem_max.
        self._limit_wait(dead)
        self._poll.register(sock, select.POLLOUT)

    @classmethod
    def dial(cls, address: str, *, dead: float, bucket: Bucket | None = None,
             wanted: Callable[[], bool] = lambda: True) -> Connection:
        """Connects to the first address of the host that answers.

        Args:
            address: ``host:port``.
            dead: seconds for each address.
            bucket: see the class.
            wanted: looked at ten times a second; when it says no, the call ends.

        Raises:
            OSError: it cannot be reached, or is not wanted any more.
        """
        host, port = parse_address(address)
        problem: OSError = OSError(errno.EADDRNOTAVAIL, "the host has no address")
        for family, kind, number, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            sock = socket.socket(family, kind, number)
            try:
                _connect(sock, place, dead, wanted)
                return cls(sock, dead=dead, bucket=bucket)
            except OSError as error:
                sock.close()
                problem = error
            if not wanted():
                break
        raise problem

    @property
    def local_host(self) -> str:
        """The address of this machine by which it reaches the peer."""
        return str(self._socket.getsockname()[0])

    def _limit_wait(self, seconds: float) -> None:
        whole = max(0.001, seconds)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO,
                                struct.pack("ll", int(whole), int(whole % 1 * 1e6)))

    # ---- out

    def send(self, data: bytes | memoryview) -> None:
        """Sends all of it, at once: a limit makes what follows wait.

        Raises:
            PeerError: the peer took nothing for ``dead`` seconds.
            OSError: the connection broke.
        """
        self._bucket.charge(len(data))
        self._send([memoryview(data).cast("B")], self._dead)

    def send_out(self, out: Out) -> None:
        """Sends frames as they stand, and releases what they pin as soon as possible. Waits for the bucket."""
        try:
            limited = not self._bucket.has(out.length)
            if out.lot is not None and not limited:
                self._bucket.charge(out.length)
                self.bytes_sent += out.lot.send(self._socket.fileno(), int(PATIENCE * 1000), int(self._dead * 1000))
                return
            rest = [memoryview(buffer).cast("B") for buffer in out.buffers]
            if not limited:
                self._bucket.charge(out.length)
                rest = self._send(rest, PATIENCE if out.entry else self._dead)
            if rest:
                copied = memoryview(b"".join(rest))
                del rest
                out.release()
                self._send_slowly(copied) if limited else self._send([copied], self._dead)
        except TimeoutError:  # of a lot
            raise self._stuck() from None
        finally:
            out.release()

    def _send_slowly(self, data: memoryview) -> None:
        while data:
            count = self._bucket.take(len(data))
            self._send([data[:count]], self._dead)
            data = data[count:]

    def _send(self, buffers: list[memoryview], patience: float) -> list[memoryview]:
        """Sends what the socket takes within ``patience`` seconds without progress; the rest."""
        while buffers:
            try:
                count = self._socket.sendmsg(buffers, [], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                if self._poll.poll(max(1, int(patience * 1000))):
                    continue
                if patience < self._dead:
                    return buffers
                raise self._stuck() from None
            self.bytes_sent += count
            while buffers and count >= len(buffers[0]):
                count -= len(buffers.pop(0))
            if count:
                buffers[0] = buffers[0][count:]
        return buffers

    def _stuck(self) -> PeerError:
        return PeerError(f"the peer took no data for {self._dead:g} seconds", retryable=True)

    # ---- in

    def receive(self, session: Session, lock: Any, deadline: float | None = None) -> Received:
        """The next frame, in this connection's own buffer: valid until the next call.

        Args:
            lock: held while the session takes it in.
            deadline: of time.monotonic(), for the handshake.

        Raises:
            ProtocolError: it is not one.
            PeerError: the peer ended the connection, or was silent too long.
        """
        header = self._fill(HEADER, deadline)
        with lock:
            frame = session.take_header(header)
        data = self._fill(HEADER + frame.length, deadline)
        self._inlet.skip(len(data))
        with lock:
            return session.take_body(data[HEADER:])

    def take(self, window: Window, reach: Reach, quiet: int) -> bool:
        """Takes in the batches of events that come next, without :meth:`receive`; returns when some were and no more
        are at hand. False: another frame comes next, whole or not.

        Args:
            reach: where the stream stands; moved by what was taken.
            quiet: bytes that the caller makes durable itself (see ``stream.pyi``).

        Raises:
            PeerError: the peer ended the connection, or was silent too long.
            OSError: the connection broke, or the log failed.
        """
        try:
            return self._inlet.take(window, reach, TAKEN, quiet)
        except (BlockingIOError, EOFError) as end:
            raise self._lost(end) from None

    @property
    def has_more(self) -> bool:
        """Whether another frame was received whole."""
        return self._inlet.is_whole

    @property
    def bytes_received(self) -> int:
        """All that came."""
        return self._inlet.received

    def _fill(self, length: int, deadline: float | None) -> memoryview:
        """Waits until so many bytes are at hand."""
        if deadline is not None and self._inlet.at_hand < length:
            left = deadline - time.monotonic()
            if left <= 0:
                raise PeerError("the handshake took too long", retryable=True)
            self._limit_wait(min(left, self._dead))
        try:
            start = self._inlet.fill(length)
        except (BlockingIOError, EOFError) as end:
            raise self._lost(end) from None
        return self._buffer[start:start + length]

    def _lost(self, end: Exception) -> PeerError:
        if isinstance(end, EOFError):
            return PeerError("the peer ended the connection", retryable=True)
        return PeerError(f"nothing was heard from the peer for {self._dead:g} seconds", retryable=True)

    def greeted(self) -> None:
        """The handshake is over: from here on only silence counts."""
        self._limit_wait(self._dead)

    # ---- end

    def shutdown(self) -> None:
        """Ends both directions; whoever waits on this connection wakes up. From any thread."""
        with contextlib.suppress(OSError):  # it has ended already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Gives the socket back. Only when no thread uses it any more."""
        self.shutdown()
        self._socket.close()
