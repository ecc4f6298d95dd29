"""What calls of the API give back: the result of an operation, the ticket of a submitted write, a stream of events.

Decides how a caller asks what has become of something. Must not know how it is performed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pyrepl.errors import UsageError, WaitTimeout

if TYPE_CHECKING:
    from pyrepl._core import window
    from pyrepl.group import Group
    from pyrepl.site import Admission
    from pyrepl.volume import Snapshot

ADMITTED, PERFORMED = "admitted", "performed"


class OperationResult:
    """An operation that has its place in the order of the group.

    Attributes:
        lsn: its place; every event with a smaller LSN is before it, at every site.
        kind: what it is ("snapshot", "restore", ...).
        created: names of the stores that it made.
        snapshots: of a snapshot of the whole group: the snapshots that it made.
    """

    def __init__(self, group: Group, admission: Admission) -> None:
        self._group = group
        self._changed: int | None = None
        self._links = len(group.site.links)  # of the group when it was admitted
        self.lsn = admission.lsn
        self.kind = admission.operation.kind
        self.created = dict(admission.created)
        self.snapshots: list[Snapshot] = []

    @property
    def state(self) -> str:
        """``admitted`` or ``performed``, at this site."""
        return PERFORMED if self._group.applied_lsn >= self.lsn else ADMITTED

    @property
    def bytes_changed(self) -> int | None:
        """Bytes of whole regions whose content may have changed here; None until it is performed (or if nobody asked
        for long: the figures of the last 1024 operations are kept)."""
        if self._changed is None:
            self._changed = self._group.figure(self.lsn)
        return self._changed

    @property
    def bytes_avoided(self) -> int | None:
        """Bytes that shipping the changed data would have put on the links that the group had, all together: 0 without
        a link. None as long as :attr:`bytes_changed` is."""
        changed = self.bytes_changed
        return changed * self._links if changed is not None else None

    def wait(self, where: str = "primary", timeout: float | None = None) -> OperationResult:
        """Returns when it is performed: here (``primary``), or at the secondary of the link of that name.

        Raises:
            WaitTimeout: ``timeout`` seconds are over; the operation goes on.
            NotFound: there is no such link.
        """
        self._group.wait(self.lsn, where=where, timeout=timeout)
        if where == "primary":
            self._changed = self.bytes_changed  # while the figure is still kept
        return self

    def __repr__(self) -> str:
        return f"<{self.kind} at LSN {self.lsn} of group {self._group.name!r}: {self.state}>"


class Ticket:
    """A write that was submitted. It has its place in the order (:attr:`lsn`), and is written by itself soon."""

    __slots__ = ("_group", "_native", "lsn")

    def __init__(self, group: Group, native: window.Ticket | None, lsn: int) -> None:
        self._group = group
        self._native = native  # None: it was written at once
        self.lsn = lsn

    def done(self) -> bool:
        """Whether wait would return at once."""
        return self._native is None or self._native.done()

    def wait(self, timeout: float | None = None) -> int:
        """Returns the LSN when the write is in the journal (with ``fua``: durable; in sync mode: at the peer too).

        Raises:
            WaitTimeout: ``timeout`` seconds are over; the write goes on.
            DeviceError: the journal failed; the write may be lost.
        """
        if self._native is not None:
            check_timeout(timeout)
            try:
                self._native.wait(timeout)
            except TimeoutError as error:
                raise WaitTimeout(
                    f"the write at LSN {self.lsn} is not written after {timeout} s; it goes on", lsn=self.lsn
                ) from error
            except Exception as error:
                raise self._group.failure(error, f"waiting for the write at LSN {self.lsn}") from error
        return self.lsn


class Events(Iterator[dict[str, Any]]):
    """What happens at a node, as it happens, from the call on; ends when the node is closed. A caller who is slow
    misses the oldest.

    Each event is a dict with ``event`` (a word), ``group``, and what belongs to it.
    """

    MOST = 1024

    def __init__(self, forget: Callable[[Events], None]) -> None:
        self._forget = forget
        self._ready = threading.Condition()
        self._waiting: deque[dict[str, Any]] = deque(maxlen=self.MOST)
        self._ended = False
        self.missed = 0

    def put(self, event: dict[str, Any]) -> None:
        """One more (the node calls this)."""
        with self._ready:
            self.missed += len(self._waiting) == self.MOST
            self._waiting.append(event)
            self._ready.notify()

    def get(self, timeout: float | None = None) -> dict[str, Any] | None:
        """The next event, or None: the node was closed.

        Raises:
            WaitTimeout: none came within ``timeout`` seconds.
        """
        check_timeout(timeout)
        with self._ready:
            if not self._ready.wait_for(lambda: self._waiting or self._ended, timeout):
                raise WaitTimeout(f"no event within {timeout} s")
            return self._waiting.popleft() if self._waiting else None

    def __next__(self) -> dict[str, Any]:
        event = self.get()
        if event is None:
            raise StopIteration
        return event

    def close(self) -> None:
        """No more events are wanted. Harmless the second time."""
        with self._ready:
            self._ended = True
            self._ready.notify_all()
        self._forget(self)


def check_timeout(timeout: float | None) -> float | None:
    """A time in seconds, or None for ever.

    Raises:
        UsageError: anything else.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 <= timeout < 1 << 31:
        raise UsageError(f"timeout={timeout!r}: give seconds from 0 up, or None to wait for ever")
    return timeout


__all__ = ["ADMITTED", "PERFORMED", "Events", "OperationResult", "Ticket", "check_timeout"]
