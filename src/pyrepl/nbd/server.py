"""The sockets of the NBD server: listens, negotiates in time, then hands the connection to the core.

One thread accepts at each address; one for each connection negotiates, and then is the one that takes its requests in.
Decides time limits, and how many may knock or be served; what is answered is for ``negotiation`` and ``exports``.

    knocking    connections that have not chosen an export. When as many as may be do, a new one is let in at the cost
                of the oldest of whoever has most of them (a user of a unix socket, a host): silent ones keep out nobody
                else. Of one's own only those go that have had GRACE.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from pyrepl.errors import InUse, PyreplError, Refused, UsageError, counted
from pyrepl.nbd.exports import Export, Exports
from pyrepl.nbd.negotiation import Choice, Negotiation, Shape, State
from pyrepl.nbd.tunnel import Tunnel
from pyrepl.runtime.addresses import bind_unix, refuse_routable, show, unlink_own
from pyrepl.runtime.certificates import TlsFiles
from pyrepl.runtime.transport import parse_address

MOST_KNOCKING = 64  # connections at one address that have not chosen an export yet
NEGOTIATION = 10.0  # seconds
GRACE = 1.0  # seconds: who knocks is not sent away earlier to make room for another of the same user or host
BACKLOG = 1024  # connections that the kernel keeps until they are accepted
BUFFER = 4 << 20  # bytes of a socket's buffers: fewer wake-ups for large requests
LINGER = 5.0  # seconds that a stop waits for one connection to end, and a connection for its last bytes
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33  # beyond what the system allows everybody, where we may

QUIET = 1.0  # seconds between two lines of the log about clients that are not served: anybody can make them

_log = logging.getLogger("pyrepl.nbd")


class Complaints:
    """What the log says of clients that are not served: with who it was, and one line for many."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._last = -QUIET
        self._untold = 0

    def tell(self, peer: object, what: str) -> None:
        """A line, if the last one is old enough; else it is counted, and told with the next."""
        now = time.monotonic()
        with self._guard:
            if now - self._last < QUIET:
                self._untold += 1
                return
            untold, self._untold, self._last = self._untold, 0, now
        who = f"of user {peer}" if isinstance(peer, int) else f"at {peer or 'an address that is not known'}"
        more = f"; {counted(untold, 'other')} before it" if untold else ""
        _log.info("a client %s %s%s", who, what, more)


class _Knocker(NamedTuple):
    """A connection that has not chosen: whose it is, and since when it knocks (of time.monotonic())."""

    peer: object
    since: float


class Server:
    """Listens at one address.

    Args:
        exports: the node's.
        address: ``unix:/path``, ``host:port``; port 0: any.
        room: a place of it is taken for each client that is told of an export.
        tls: certificates; then nothing is served without TLS.
        insecure: allow an address that others can reach without TLS.

    Raises:
        UsageError, Refused: no such address; one that others can reach without TLS; certificates that cannot be used.
        InUse, Exists: the address is taken.
    """

    def __init__(
        self,
        exports: Exports,
        address: str,
        *,
        room: threading.BoundedSemaphore,
        tls: TlsFiles | None = None,
        insecure: bool = False,
    ) -> None:
        self._exports = exports
        self._room = room
        self._context = tls.server_context() if tls is not None else None
        self._complaints = Complaints()
        self._lock = threading.Lock()
        self._connections: dict[threading.Thread, Callable[[], None]] = {}  # how to end each
        self._knocking: dict[threading.Thread, _Knocker] = {}  # in the order in which they came
        self._stopping = False
        self._path = ""
        self._socket = self._listen(address, insecure)
        self.address = address if self._path else show(*self._socket.getsockname()[:2])
        self._acceptor = threading.Thread(target=self._accept, name="pyrepl-nbd-accept", daemon=True)
        self._acceptor.start()

    @property
    def secure(self) -> bool:
        """Whether it serves over TLS only."""
        return self._context is not None

    def renew(self, tls: TlsFiles) -> None:
        """Other certificates, for connections to come.

        Raises:
            UsageError, Refused: they cannot be used; those before stay.
        """
        self._context = tls.server_context()

    def stop(self) -> None:
        """Nobody is served at this address any more; harmless the second time."""
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
            ends = dict(self._connections)
        if self._path:
            unlink_own(self._path, self._socket)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._socket.close()
        for end in ends.values():
            end()
        deadline = time.monotonic() + LINGER
        for thread in ends:
            thread.join(max(0.0, deadline - time.monotonic()))

    # ---- listening

    def _listen(self, address: str, insecure: bool) -> socket.socket:
        if isinstance(address, str) and address.startswith("unix:"):
            self._path = address.removeprefix("unix:")
            return bind_unix(self._path, mode=0o660, group=None)
        host, port = parse_address(address)
        if self._context is None:
            refuse_routable(host, port, insecure=insecure, what="an NBD server")
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            taken = InUse if error.errno == errno.EADDRINUSE else UsageError
            raise taken(f"cannot listen on {address}: {error.strerror}", address=address) from error

    def _accept(self) -> None:
        while not self._stopping:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                if self._stopping:
                    return
                time.sleep(0.05)  # out of descriptors, or the client is gone already
                continue
            thread = threading.Thread(target=self._serve, args=(sock,), name="pyrepl-nbd", daemon=True)
            if not self._let_in(thread, sock):
                sock.close()
                continue
            try:
                thread.start()
            except RuntimeError:  # no more threads
                self._known(thread)
                sock.close()

    def _let_in(self, thread: threading.Thread, sock: socket.socket) -> bool:
        """Whether this one may knock; it is one of them then."""
        peer, now = _peer(sock), time.monotonic()
        with self._lock:
            if self._stopping:
                return False
            gone = None
            if len(self._knocking) >= MOST_KNOCKING:
                leaving = _who_leaves(self._knocking, peer, now)
                if leaving is None:
                    return False
                gone = self._knocking.pop(leaving)
                self._connections[leaving]()  # under the lock: its socket is not closed meanwhile
            self._knocking[thread] = _Knocker(peer, now)
            self._connections[thread] = _ending(sock)
        if gone is not None:
            self._complaints.tell(gone.peer, "that had not chosen an export was sent away to make room for another")
        return True

    # ---- one connection

    def _serve(self, sock: socket.socket) -> None:
        me = threading.current_thread()
        tunnel: Tunnel | None = None
        guest = _Guest(self._exports, self._room)
        peer = _peer(sock)
        try:
            _prepare(sock)
            try:
                deadline = time.monotonic() + NEGOTIATION
                context = self._context
                talk = Negotiation(guest, tls=context is not None)
                sock.sendall(talk.greet())
                last = _negotiate(sock, talk, deadline)
                if talk.state is State.TLS and context is not None:
                    tunnel = Tunnel(sock, context, deadline)
                    sock = tunnel.plain
                    self._ended_by(me, tunnel.stop)
                    talk = talk.inside()
                    last = _negotiate(sock, talk, deadline)
            finally:
                self._known(me)
            if talk.choice is not None and not talk.rest:
                self._transmit(sock, guest.chosen(talk.choice), talk.choice, last, tunnel)
            else:
                _log.debug("a client left in the negotiation: %s", talk.reason or "it said nothing more")
        except (OSError, PyreplError) as error:
            self._complaints.tell(peer, f"was not served: {error}")
        finally:
            sock.close()
            guest.leave()
            if tunnel is not None:
                tunnel.close(LINGER)
            with self._lock:
                self._connections.pop(me, None)

    def _transmit(
        self, sock: socket.socket, export: Export, choice: Choice, last: bytes, tunnel: Tunnel | None
    ) -> None:
        """``last``: the answer to its choice, which it gets when what it will see is there."""
        with export.attach(choice) as shown:
            sock.settimeout(None)
            sock.sendall(last)
            connection = export.connect(shown, choice, sock.fileno())
            try:
                self._ended_by(threading.current_thread(), _both(connection.stop, tunnel.stop if tunnel else None))
                _log.info("export %s: a client is attached", export.name)
                end = connection.serve()
            finally:
                export.disconnect(connection)
            level = logging.INFO if end in ("left", "lost") else logging.WARNING
            _log.log(level, "export %s: a client has ended: %s", export.name, end)
            if connection.failure is not None:
                _log.error("export %s: a request failed", export.name, exc_info=connection.failure)

    def _known(self, thread: threading.Thread) -> None:
        """It knocks no more."""
        with self._lock:
            self._knocking.pop(thread, None)
            if not thread.is_alive():
                self._connections.pop(thread, None)

    def _ended_by(self, thread: threading.Thread, end: Callable[[], None]) -> None:
        with self._lock:
            self._connections[thread] = end
            stopping = self._stopping
        if stopping:
            end()


class _Guest:
    """What one client may see: the exports, once there is room for it. It has its place from the moment it is told of
    one, so that nobody is told yes and then sent away."""

    def __init__(self, exports: Exports, room: threading.BoundedSemaphore) -> None:
        self._exports = exports
        self._room = room
        self._seated = False
        self._told: dict[str, Export] = {}  # which export each name meant when the client was last told of it

    def names(self) -> list[str]:
        return self._exports.names()

    def shape(self, name: str) -> Shape:
        export = self._exports.find(name)
        shape = export.shape()
        self._seated = self._seated or self._room.acquire(blocking=False)
        if not self._seated:
            _log.warning("export %s: a client was turned away: as many as may be are served", name)
            raise Refused("as many clients as may be are served here: try again later", reason="limit", retryable=True)
        self._told[name] = export
        return shape

    def chosen(self, choice: Choice) -> Export:
        """The one that the client was told of, whatever its name means by now: "" above all."""
        return self._told[choice.name]

    def leave(self) -> None:
        if self._seated:
            self._room.release()
            self._seated = False


def _negotiate(sock: socket.socket, talk: Negotiation, deadline: float) -> bytes:
    """Until the client has chosen, wants TLS, or is out of bounds. The answer to its choice, not sent yet.

    Raises:
        TimeoutError: it took too long.
    """
    while talk.state in (State.GREETING, State.OPTIONS):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the negotiation took too long")
        sock.settimeout(left)
        data = sock.recv(4096)
        if not data:
            break
        answer = talk.receive(data)
        if talk.choice is not None:
            return answer
        if answer:
            sock.sendall(answer)
    return b""


def _peer(sock: socket.socket) -> object:
    """Whose connection it is: the user's at the other end of a unix socket, the host's address otherwise."""
    try:
        if sock.family == socket.AF_UNIX:
            return struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]  # pid, uid, gid
        return sock.getpeername()[0]
    except OSError:  # it has gone already
        return None


def _who_leaves(
    knocking: dict[threading.Thread, _Knocker], peer: object, now: float
) -> threading.Thread | None:
    """Of those that knock, who goes so that one more of ``peer`` may; None: nobody."""
    counts = Counter(knocker.peer for knocker in knocking.values())
    greedy, most = counts.most_common(1)[0]
    if counts[peer] >= most:
        greedy = peer
    thread = next(thread for thread, knocker in knocking.items() if knocker.peer == greedy)
    return None if greedy == peer and now - knocking[thread].since < GRACE else thread


def _prepare(sock: socket.socket) -> None:
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a host that vanished is noticed some time
    for option, forced in ((socket.SO_SNDBUF, _SO_SNDBUFFORCE), (socket.SO_RCVBUF, _SO_RCVBUFFORCE)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, BUFFER)
        except OSError:
            sock.setsockopt(socket.SOL_SOCKET, option, BUFFER)


def _ending(sock: socket.socket) -> Callable[[], None]:
    def end() -> None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    return end


def _both(first: Callable[[], None], second: Callable[[], None] | None) -> Callable[[], None]:
    def end() -> None:
        first()
        if second is not None:
            second()

    return end
