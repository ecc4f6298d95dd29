"""A client's connections to the control socket: one request at a time on each, as many as there are callers at once.

Decides how the daemon is reached and what it means when it is not. Must not know what is asked.
"""

from __future__ import annotations

import errno
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from pyrepl.errors import NotFound, PeerError, ProtocolError, Refused, UsageError
from pyrepl.remote import frames, messages
from pyrepl.remote.messages import Answer, Hello, Progress, Welcome
from pyrepl.remote.requests import Request
from pyrepl.remote.values import Failure

MOST_IDLE = 4  # connections kept for the next call
A = TypeVar("A")
Told = Callable[[dict[str, Any]], None]


class Channel:
    """Reaches one daemon. Safe to use from many threads.

    Args:
        path: of the control socket.
        timeout: seconds to wait for the daemon's welcome.
    """

    def __init__(self, path: str, timeout: float) -> None:
        self.path = path
        self._timeout = timeout
        self._idle: list[socket.socket] = []
        self._lock = threading.Lock()
        self._closed = False
        with self._connection() as _:
            pass  # that the daemon is there is found out now

    def call(
        self, request: Request[A], payload: bytes | memoryview = b"", progress: Told | None = None
    ) -> tuple[A, bytes]:
        """Asks, and waits for the answer and its payload.

        Args:
            request: what is asked.
            payload: bytes that go with it.
            progress: called with what the daemon tells meanwhile. An exception of it ends the waiting.

        Raises:
            PyreplError: whatever the daemon raised.
            PeerError: the connection broke; whether a command was performed is not known then.
        """
        with self._connection() as sock:
            _ask(sock, request, payload)
            while True:
                reply, data = _reply(sock)
                match reply:
                    case Answer():
                        return messages.decode_answer(request, reply), data
                    case Failure():
                        error = messages.error_of(reply)
                        break
                    case Progress(told=told):
                        if progress is not None:
                            progress(told)
                    case _:
                        raise ProtocolError("the daemon answered with something that is no answer")
        raise error  # not before the connection was given back: it is good

    @contextmanager
    def stream(self, request: Request[Any]) -> Iterator[socket.socket]:
        """A connection on which the answers to this request are read by the caller; it ends with the context."""
        sock = self.ask(request)
        try:
            yield sock
        finally:
            sock.close()

    def ask(self, request: Request[Any]) -> socket.socket:
        """The same; it ends when the caller closes it."""
        sock = self.dial()
        try:
            _ask(sock, request, b"")
        except BaseException:
            sock.close()
            raise
        return sock

    def dial(self) -> socket.socket:
        """A new connection, welcomed.

        Raises:
            NotFound: no daemon was ever there.
            PeerError: none is there now, or it does not answer.
            Refused: this user may not.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(self._timeout)
            try:
                sock.connect(self.path)
            except OSError as error:
                raise _unreachable(self.path, error) from error
            sock.settimeout(None)
            with suppress(PeerError):  # it may have refused already, and said why
                frames.send(sock, messages.encode_request(Hello(version=messages.VERSION)))
            reply, _ = _reply(sock, self._timeout)
            if isinstance(reply, Failure):
                raise messages.error_of(reply)
            if not isinstance(reply, Welcome) or reply.version != messages.VERSION:
                raise ProtocolError(f"what listens on {self.path} is no daemon of this version")
            return sock
        except BaseException:
            sock.close()
            raise

    def close(self) -> None:
        """Ends the connections. Harmless the second time."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for sock in idle:
            sock.close()

    @contextmanager
    def _connection(self) -> Iterator[socket.socket]:
        """A connection for one call; it is used again if the call ended in good order."""
        sock = self._take()
        try:
            yield sock
        except BaseException:
            sock.close()
            raise
        with self._lock:
            if not self._closed and len(self._idle) < MOST_IDLE:
                self._idle.append(sock)
                return
        sock.close()

    def _take(self) -> socket.socket:
        while True:
            with self._lock:
                if self._closed:
                    raise Refused("this connection to the daemon was closed: connect again", reason="closed")
                if not self._idle:
                    break
                sock = self._idle.pop()
            if not frames.has_ended(sock):
                return sock
            sock.close()  # the daemon was restarted meanwhile
        return self.dial()


def _ask(sock: socket.socket, request: Request[Any], payload: bytes | memoryview) -> None:
    body = messages.encode_request(request)
    if len(body) > frames.MOST_REQUEST:
        raise UsageError(f"a request of {len(body)} bytes: at most {frames.MOST_REQUEST} are taken")
    frames.send(sock, body, payload)


def _reply(sock: socket.socket, seconds: float | None = None) -> tuple[messages.Reply, bytes]:
    frame = frames.receive(sock, frames.MOST_ANSWER, first=seconds)
    if frame is None:
        raise PeerError("the daemon ended the connection; whether it did what was asked is not known", retryable=True)
    body, payload = frame
    return messages.decode_reply(body), payload


def next_told(sock: socket.socket, seconds: float | None) -> dict[str, Any] | None:
    """The next Progress of a stream; None: the stream has ended.

    Raises:
        TimeoutError: nothing came within ``seconds``.
    """
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    if not poll.poll(None if seconds is None else int(seconds * 1000)):
        raise TimeoutError
    frame = frames.receive(sock, frames.MOST_ANSWER)
    if frame is None:
        return None
    match messages.decode_reply(frame[0]):
        case Progress(told=told):
            return told
        case Answer():
            return None
        case Failure() as failure:
            raise messages.error_of(failure)
        case _:
            raise ProtocolError("the daemon answered with something that is no answer")


def _unreachable(path: str, error: OSError) -> Exception:
    match error:
        case FileNotFoundError() | NotADirectoryError():
            return NotFound(f"there is no {path}: start pyrepld, or give the path of its control socket", path=path)
        case ConnectionRefusedError():
            return PeerError(f"nobody listens on {path}: the daemon has ended, start it", path=path)
        case PermissionError():
            return Refused(
                f"this user may not use {path}: be root, the daemon's user, or in the group of the socket",
                reason="credentials",
                path=path,
            )
        case OSError(errno=errno.EAGAIN) | TimeoutError():
            return PeerError(f"the daemon behind {path} takes no more connections now", retryable=True, path=path)
        case _:
            text = error.strerror or str(error)
            return UsageError(f"{path!r:.200} cannot be a control socket: {text}", path=path)
