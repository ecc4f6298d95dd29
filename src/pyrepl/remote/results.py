"""What calls on a node in another process give back: operations, events.

Decides what of an operation a client remembers and what it asks the daemon for. See ``pyrepl.results``.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from pyrepl.errors import PeerError, Refused, WaitTimeout
from pyrepl.remote import requests
from pyrepl.remote.channel import Channel, next_told
from pyrepl.remote.values import OperationInfo
from pyrepl.results import PERFORM, PERFORMED, MemberResult, Progress, check_timeout

if TYPE_CHECKING:
    from pyrepl.remote.group import RemoteGroup
    from pyrepl.remote.stores import RemoteSnapshot


class RemoteOperationResult:
    """An operation that has its place in the order of a group. See :class:`pyrepl.OperationResult`."""

    def __init__(self, group: RemoteGroup, info: OperationInfo) -> None:
        from pyrepl.remote.stores import handle

        self._group = group
        self.links = info.links
        self._known = info
        self._avoided = info.bytes_avoided
        self.lsn = info.lsn
        self.kind = info.kind
        self.created = dict(info.created)
        self.details = dict(info.details)
        self._members = info.members
        self.snapshots: list[RemoteSnapshot] = [handle(group, store, self) for store in info.stores]

    @property
    def members(self) -> list[MemberResult]:
        """Of a set: what came of each of its operations, in the order in which they were given; else empty."""
        looked = self._look()
        if not self._members or not looked.figures:
            return [MemberResult(member.kind, dict(member.created), member.bytes_changed, member.digest, member.failed)
                    for member in self._members]
        return [MemberResult(member.kind, dict(member.created), changed, *(of if member.kind == PERFORM else ()))
                for member, changed, of in zip(self._members, looked.figures, looked.outcomes, strict=True)]

    @property
    def digest(self) -> bytes | None:
        """Of a plug-in: what it said of what it did; None until it is performed, and of other operations."""
        return self._outcome[0]

    @property
    def failed(self) -> str | None:
        """Of a plug-in: why it failed, and nothing was changed at any site; "": it did what it does. None until it is
        performed, and of other operations."""
        return self._outcome[1]

    @property
    def _outcome(self) -> tuple[bytes | None, str | None]:
        return next(iter(self._look().outcomes), (None, None)) if self.kind == PERFORM else (None, None)

    @property
    def state(self) -> str:
        """``admitted`` or ``performed``, at the daemon's site."""
        return self._look().state

    @property
    def bytes_changed(self) -> int | None:
        """Bytes of whole regions whose content may have changed; None until it is performed."""
        return self._look().bytes_changed

    @property
    def bytes_avoided(self) -> int | None:
        """Bytes that shipping the changed data would have put on the links, all together, but for those whose
        secondaries have refused it by now."""
        if self.bytes_changed is not None:
            known = self._ask().bytes_avoided  # a secondary may have refused it since
            self._avoided = known if known is not None else self._avoided
        return self._avoided

    def wait(
        self, where: str = "primary", timeout: float | None = None, progress: Progress | None = None
    ) -> RemoteOperationResult:
        """Returns when it is performed: at the daemon's site, or at the secondary of the link of that name."""
        self._group.wait(self.lsn, where=where, timeout=timeout, progress=progress)
        self._look()  # while the figure is still kept
        return self

    @property
    def verification(self) -> dict[str, Any] | None:
        """Of an operation with ``verify=True``: what came of the comparison so far; else None."""
        return self._look().verification

    def wait_verified(self, timeout: float | None = None, progress: Progress | None = None) -> dict[str, Any]:
        """Returns when the result of an operation with ``verify=True`` is compared at every link, and what differed is
        repaired; what came of it."""
        request = requests.GroupVerified(group=self._group.name, lsn=self.lsn, timeout=timeout)
        return self._group.channel.call(request, progress=progress)[0]

    def __repr__(self) -> str:
        return f"<{self.kind} at LSN {self.lsn} of group {self._group.name!r}>"

    def _look(self) -> OperationInfo:
        compared = self._known.verification
        going_on = compared is not None and not compared["done"]
        if self._known.state != PERFORMED or self._known.bytes_changed is None or going_on:
            self._known = self._ask()
            self._avoided = self._known.bytes_avoided
        return self._known

    def _ask(self) -> OperationInfo:
        request = requests.GroupOperation(group=self._group.name, lsn=self.lsn)
        info: OperationInfo = self._group.channel.call(request)[0]
        return info


class RemoteEvents(Iterator[dict[str, Any]]):
    """What happens at a node in another process, from the call on. See :class:`pyrepl.Events`."""

    def __init__(self, channel: Channel) -> None:
        self._context: AbstractContextManager[socket.socket] = channel.stream(requests.NodeEvents())
        self._socket: socket.socket | None = self._context.__enter__()
        next_told(self._socket, None)  # the daemon says that it listens: what happens from here on is seen
        self.missed = 0

    def get(self, timeout: float | None = None) -> dict[str, Any] | None:
        """The next event, or None: the node was closed, or this stream was.

        Raises:
            WaitTimeout: none came within ``timeout`` seconds.
        """
        check_timeout(timeout)
        if self._socket is None:
            return None
        try:
            told = next_told(self._socket, timeout)
        except TimeoutError:
            raise WaitTimeout(f"no event within {timeout:g} s") from None
        except PeerError:
            told = None
        except Refused as error:
            if error.reason != "closed":
                raise
            told = None  # the daemon is stopping, and said so
        if told is None:
            self.close()
            return None
        self.missed = int(told.pop("missed", self.missed))
        return told

    def __next__(self) -> dict[str, Any]:
        event = self.get()
        if event is None:
            raise StopIteration
        return event

    def close(self) -> None:
        """No more events are wanted. Harmless the second time."""
        if self._socket is not None:
            self._socket = None
            self._context.__exit__(None, None, None)
