"""The control socket: who may ask, how much at once, and what becomes of it.

    accept      one thread; nothing is read there
    connection  a thread of its own, which reads a request, performs it, answers; so a long wait hinders nobody

Decides credentials, limits and cancelling. What a request does is ``verbs``, what is kept of it ``jobs``, how it
travels ``remote.frames`` and ``remote.messages``. Limits (design: "Parser limits"): a request's body 64 KiB, its data
4 MiB, ``connections`` in all and half of that for one user, ``requests_per_second`` for one user: who asks more often
waits.
"""

from __future__ import annotations

import contextlib
import grp
import logging
import os
import pwd
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from pyrepl.border import typed
from pyrepl.errors import PeerError, ProtocolError, PyreplError, Refused, UsageError
from pyrepl.remote import frames, messages, requests
from pyrepl.remote.messages import Answer, Hello, Progress, Welcome
from pyrepl.remote.requests import Request, verb
from pyrepl.remote.values import Failure
from pyrepl.results import check_timeout
from pyrepl.runtime.addresses import bind_unix, refuse_routable, unlink_own
from pyrepl.service.jobs import Jobs
from pyrepl.service.verbs import TABLE, Data
from pyrepl.service.verbs.call import ClientGone

if TYPE_CHECKING:
    from pyrepl.node import Node
    from pyrepl.service.jobs import Job

_log = logging.getLogger("pyrepl.control")

MODE = 0o660
HANDSHAKE = 10.0  # seconds from accept to the client's hello
DRAIN = 5.0  # seconds that requests under way have to end when the daemon stops
_SO_PEERGROUPS = 59  # asm-generic/socket.h; the same on all machines that are supported
_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid


class User(NamedTuple):
    """Who is at the other end, as the kernel says."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]

    @property
    def name(self) -> str:
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)


class Limits(NamedTuple):
    """Of all connections together. ``connections``: half of them for one user."""

    connections: int = 64
    requests_per_second: int = 100


class Control:
    """Serves one node on one unix socket, from :meth:`start` to :meth:`stop`.

    Args:
        node: the node.
        path: of the socket.
        group: name of the group whose members may ask; None: only root and this process's user.
        limits: see there.
        insecure: requests may make listeners without TLS on routable addresses.
        metrics: the text of the node's metrics.
        program: what the welcome says of the program.
    """

    def __init__(
        self,
        node: Node,
        path: str,
        *,
        group: str | None = None,
        limits: Limits | None = None,
        insecure: bool = False,
        metrics: Callable[[], str] | None = None,
        program: str = "",
    ) -> None:
        self.node = node
        self.path = path
        self.limits = limits if limits is not None else Limits()
        self.insecure = insecure
        self.program = program
        self.metrics = metrics
        self.stopping = False
        self.jobs = Jobs(node)
        self._gid = group_id(group)
        self._group = group
        self._lock = threading.Lock()
        self._connections: set[_Connection] = set()
        self._buckets: dict[int, _Bucket] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._socket: socket.socket | None = None
        self._acceptor = threading.Thread(target=self._accept, name="pyrepl-control", daemon=True)

    def start(self) -> None:
        """Listens.

        Raises:
            InUse: another process listens there.
            UsageError, Exists: it cannot be made there.
        """
        self._socket = bind_unix(self.path, mode=MODE, group=self._gid)
        self.jobs.start()
        self._acceptor.start()

    def stop(self) -> None:
        """Takes no more requests, lets those under way end (waits are told that the daemon stops), removes the socket.
        Harmless the second time."""
        with self._lock:
            if self.stopping or self._socket is None:
                return
            self.stopping = True
            connections = list(self._connections)
        unlink_own(self.path, self._socket)
        self._acceptor.join()
        self._socket.close()
        for connection in connections:
            connection.end_if_idle()
        deadline = time.monotonic() + DRAIN
        for connection in connections:
            connection.join(max(0.0, deadline - time.monotonic()))
            connection.shutdown()
        self.jobs.stop()

    # ---- for connections

    def judge(self, user: User) -> None:
        """Who may ask: root, this process's user, members of the configured group.

        Raises:
            Refused: nobody else.
        """
        if user.uid in (0, os.geteuid()):
            return
        if self._gid is not None and (user.gid == self._gid or self._gid in user.groups):
            return
        whom = f"or in group {self._group!r}" if self._group is not None else "(no group is configured)"
        raise Refused(
            f"user {user.name!r} may not control this node: be root, user {_user_name(os.geteuid())!r} {whom}",
            reason="credentials",
            uid=user.uid,
        )

    def requests(self) -> tuple[int, dict[tuple[str, str], int]]:
        """Connections now, and requests so far by (verb, outcome)."""
        with self._lock:
            return len(self._connections), dict(self._counts)

    def count(self, verb: str, outcome: str) -> None:
        """One more request."""
        with self._lock:
            self._counts[verb, outcome] += 1

    def pace(self, user: User) -> None:
        """Waits for this user's turn."""
        with self._lock:
            bucket = self._buckets.get(user.uid)
            if bucket is None:
                bucket = self._buckets[user.uid] = _Bucket()
            pause = bucket.take(time.monotonic(), self.limits.requests_per_second)
        if pause > 0:
            time.sleep(pause)

    def left(self, connection: _Connection) -> None:
        """A connection has ended."""
        with self._lock:
            self._connections.discard(connection)
            now = time.monotonic()
            self._buckets = {uid: bucket for uid, bucket in self._buckets.items() if not bucket.is_idle(now)}

    def _accept(self) -> None:
        assert self._socket is not None
        while not self.stopping:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                if self.stopping:
                    return
                time.sleep(0.05)  # out of descriptors: others may end meanwhile
                continue
            try:
                user = _peer(sock)
                with self._lock:
                    if self.stopping:
                        sock.close()
                        return
                    mine = sum(connection.user.uid == user.uid for connection in self._connections)
                    most = self.limits.connections
                    full = len(self._connections) >= most or (user.uid != 0 and mine >= max(1, most // 2))
                    connection = _Connection(self, sock, user)
                    if not full:
                        self._connections.add(connection)
                if full:
                    _log.warning("user %s has too many connections, or all together: one more is refused", user.name)
                    _try_send(sock, Failure(code="refused", text="the daemon has as many connections as it takes: try "
                                            "again", retryable=True, context={"reason": "limit"}))
                    sock.close()
                else:
                    connection.start()
            except (OSError, RuntimeError) as error:  # gone already; no thread to be had
                _log.warning("a connection to the control socket was not taken: %s", error)
                sock.close()


class _Connection:
    """One client. It is also the Call that verbs see."""

    def __init__(self, control: Control, sock: socket.socket, user: User) -> None:
        self.user = user
        self.payload = b""
        self._control = control
        self._socket = sock
        self._lock = threading.Lock()
        self._idle = True
        self._job: Job | None = None
        self._thread = threading.Thread(target=self._run, name=f"pyrepl-control-{user.pid}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def shutdown(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def end_if_idle(self) -> None:
        """Ends the connection unless a request is under way, which is answered first."""
        with self._lock:
            if self._idle:
                self.shutdown()

    # ---- as verbs see it

    @property
    def node(self) -> Node:
        return self._control.node

    def progress(self, told: dict[str, Any]) -> None:
        if self._job is not None:
            self._job.progress = told
        self.look()
        try:
            frames.send(self._socket, messages.encode_reply(Progress(told=told)))
        except PeerError as error:
            raise ClientGone(error.text) from error

    def look(self) -> None:
        if self._control.stopping:
            raise Refused("the daemon is stopping: what was waited for goes on when it is started again",
                          reason="closed", retryable=True)
        if frames.has_ended(self._socket):
            raise ClientGone("the client has ended the connection")

    def jobs(self, group: str | None) -> list[dict[str, Any]]:
        return self._control.jobs.list(group)

    def metrics(self) -> str:
        if self._control.metrics is None:
            raise Refused("this daemon has no metrics", reason="state")
        return self._control.metrics()

    def may_listen(self, host: str, port: int) -> None:
        refuse_routable(host, port, insecure=self._control.insecure, what="a listener")

    # ---- its thread

    def _run(self) -> None:
        try:
            self._control.judge(self.user)
            self._greet()
            while self._serve():
                pass
        except ClientGone:
            pass
        except PyreplError as error:
            level = logging.WARNING if isinstance(error, Refused | ProtocolError) else logging.DEBUG
            _log.log(level, "client %d of user %s: %s", self.user.pid, self.user.name, error)
            _try_send(self._socket, messages.failure_of(error))
        except Exception:
            _log.exception("client %d of user %s", self.user.pid, self.user.name)
        finally:
            self._control.left(self)
            self._socket.close()

    def _greet(self) -> None:
        frame = frames.receive(self._socket, frames.MOST_REQUEST, first=HANDSHAKE)
        if frame is None:
            raise ClientGone("no hello came")
        hello = messages.decode_request(frame[0])
        if not isinstance(hello, Hello):
            raise ProtocolError("the first frame of a client must be a hello")
        if hello.version != messages.VERSION:
            raise Refused(
                f"the client speaks version {hello.version} of the control protocol, this daemon {messages.VERSION}: "
                f"use the command line that was installed with the daemon",
                reason="version",
            )
        welcome = Welcome(version=messages.VERSION, node=self.node.name, program=self._control.program)
        frames.send(self._socket, messages.encode_reply(welcome))

    def _serve(self) -> bool:
        frame = frames.receive(self._socket, frames.MOST_REQUEST)
        if frame is None:
            return False
        with self._lock:
            self._idle = False
            if self._control.stopping:
                return False
        body, self.payload = frame
        try:
            self._control.pace(self.user)
            reply, data = self._answer(body)
            self.payload = b""
            frames.send(self._socket, messages.encode_reply(reply), data)
        finally:
            with self._lock:
                self._idle = True
        return not self._control.stopping

    def _answer(self, body: bytes) -> tuple[Answer | Failure, bytes]:
        name, outcome = "none", "internal"
        try:
            request = messages.decode_request(body)
            if isinstance(request, Hello):
                raise ProtocolError("a hello comes once")
            name = verb(type(request))
            value = self._perform(request)
            outcome = "done"
        except ClientGone:
            outcome = "left"
            raise
        except ProtocolError:
            raise
        except PyreplError as error:
            outcome = error.code
            return messages.failure_of(error), b""
        except Exception as error:  # ours; the client hears its text, the log has where
            _log.exception("%s for user %s failed", name, self.user.name)
            return messages.failure_of(typed(error, f"performing {name}")), b""
        finally:
            self._control.count(name, outcome)
        if isinstance(value, Data):
            return Answer(value=value.value), value.payload
        return Answer(value=value), b""

    def _perform(self, request: Request[Any]) -> Any:
        if self.payload and not isinstance(request, requests.StoreWrite):
            raise UsageError(f"{verb(type(request))} takes no payload")
        if isinstance(request, requests.Waits):
            check_timeout(request.timeout)
        entry = TABLE[type(request)]
        if not entry.changes:
            return entry.perform(self, request)
        with self._control.jobs.track(self.user, request, len(self.payload)) as self._job:
            value = entry.perform(self, request)
            self._job.answered(value)
        return value


# ---------------------------------------------------------------- who


def _peer(sock: socket.socket) -> User:
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    try:
        packed = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)  # more Python does not ask for
        groups = struct.unpack(f"{len(packed) // 4}I", packed)
    except OSError:  # it is in more than 256 groups: those that the system's files know will do
        try:
            groups = tuple(os.getgrouplist(pwd.getpwuid(uid).pw_name, gid))
        except KeyError:
            groups = ()
    return User(pid, uid, gid, frozenset(groups))


def group_id(name: str | None) -> int | None:
    """The number of a group of users; None: none is named.

    Raises:
        UsageError: there is none of that name.
    """
    if name is None:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise UsageError(f"there is no group {name!r} on this machine: make it, or name another", group=name) from None


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _try_send(sock: socket.socket, failure: Failure) -> None:
    with contextlib.suppress(PyreplError, OSError):
        frames.send(sock, messages.encode_reply(failure), patience=1.0)


class _Bucket:
    """So many requests a second, and as many at once after a pause."""

    def __init__(self) -> None:
        self._taken = 0.0
        self._at = time.monotonic()

    def take(self, now: float, rate: int) -> float:
        """Takes one; seconds to wait for it."""
        self._taken = max(0.0, self._taken - (now - self._at) * rate) + 1.0
        self._at = now
        return max(0.0, (self._taken - rate) / rate)

    def is_idle(self, now: float) -> bool:
        """Whether nobody has taken any for long enough that it is as new."""
        return now - self._at > 60.0
