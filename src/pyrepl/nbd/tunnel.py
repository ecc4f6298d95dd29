"""TLS for a connection whose other end wants a plain socket: one thread between the network and a socket pair.

The transmission phase is native and knows plain sockets only; encryption belongs to the standard library's ``ssl``.
Decides how much may wait on either side. Must not know what goes through.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time

from pyrepl.errors import PeerError

MOST = 1 << 20  # bytes that may wait in either direction
PIECE = 256 << 10


class Tunnel:
    """Serves TLS on ``wire``; ``plain`` is the socket for the other end, which closes it.

    Args:
        wire: connected; the tunnel owns it from here on.
        context: of the server's side.
        deadline: of time.monotonic(), for the handshake.

    Raises:
        PeerError: the handshake failed; ``wire`` is closed.
    """

    def __init__(self, wire: socket.socket, context: ssl.SSLContext, deadline: float) -> None:
        self._wire = wire
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        self._to_wire, self._to_plain = bytearray(), bytearray()
        try:
            self._handshake(deadline)
        except (OSError, PeerError) as error:
            wire.close()
            raise PeerError(f"no TLS with this client: {error}") from error
        self._inner, self.plain = socket.socketpair()
        self._inner.setblocking(False)
        wire.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="pyrepl-tls", daemon=True)
        self._thread.start()

    def close(self, seconds: float) -> None:
        """The other end is closed: waits until all is delivered, at most so long, then gives up what is left."""
        self._thread.join(seconds)
        self.stop()
        self._thread.join()

    def stop(self) -> None:
        """Ends it from any thread."""
        with contextlib.suppress(OSError):
            self._wire.shutdown(socket.SHUT_RDWR)

    def _handshake(self, deadline: float) -> None:
        while True:
            try:
                self._tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                done = False
            finally:
                pending = self._out.read()
                if pending:
                    self._wire.sendall(pending)  # an alert, too
            if done:
                return
            left = deadline - time.monotonic()
            if left <= 0:
                raise PeerError("the handshake took too long")
            self._wire.settimeout(left)
            data = self._wire.recv(PIECE)
            if not data:
                raise PeerError("the client left")
            self._in.write(data)

    def _run(self) -> None:
        poll = select.poll()
        wire, inner = self._wire.fileno(), self._inner.fileno()
        open_wire = open_inner = True
        try:
            self._decrypt()  # what came with the end of the handshake
            while (
                (open_wire and open_inner) or (not open_inner and self._to_wire) or (not open_wire and self._to_plain)
            ):
                for fd, wanted in (
                    (wire, (select.POLLIN if open_wire and len(self._to_plain) < MOST else 0)
                     | (select.POLLOUT if self._to_wire else 0)),
                    (inner, (select.POLLIN if open_inner and len(self._to_wire) < MOST else 0)
                     | (select.POLLOUT if self._to_plain else 0)),
                ):
                    poll.register(fd, wanted)
                ready = dict(poll.poll())
                if ready.get(wire, 0) & (select.POLLIN | select.POLLHUP | select.POLLERR) and open_wire:
                    data = self._receive(self._wire)
                    open_wire = data != b""
                    if data:
                        self._in.write(data)
                        open_wire = self._decrypt()
                if ready.get(inner, 0) & (select.POLLIN | select.POLLHUP | select.POLLERR) and open_inner:
                    data = self._receive(self._inner)
                    open_inner = data != b""
                    if data:
                        self._tls.write(data)
                    else:
                        with contextlib.suppress(ssl.SSLError):
                            self._tls.unwrap()  # says goodbye; the answer is not waited for
                    self._to_wire += self._out.read()
                self._send(self._wire, self._to_wire)
                self._send(self._inner, self._to_plain)
        except OSError:  # of either side, ssl.SSLError too: the connection is over
            pass
        finally:
            self._wire.close()
            self._inner.close()

    def _decrypt(self) -> bool:
        """False: the client said goodbye."""
        try:
            while data := self._tls.read(PIECE):
                self._to_plain += data
        except ssl.SSLWantReadError:
            self._to_wire += self._out.read()  # keys that were renewed
            return True
        except ssl.SSLZeroReturnError:
            pass
        return False

    @staticmethod
    def _receive(sock: socket.socket) -> bytes | None:
        try:
            return sock.recv(PIECE)
        except BlockingIOError:
            return None

    @staticmethod
    def _send(sock: socket.socket, waiting: bytearray) -> None:
        if waiting:
            with contextlib.suppress(BlockingIOError):
                del waiting[: sock.send(waiting)]
