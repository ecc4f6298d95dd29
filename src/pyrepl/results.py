"""What calls of the API give back: the result of an operation, the ticket of a submitted write, a stream of events.

Decides how a caller asks what has become of something. Must not know how it is performed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pyrepl.errors import UsageError, WaitTimeout

if TYPE_CHECKING:
    from pyrepl._core import window
    from pyrepl.group import Group
    from pyrepl.operations import Adopt, Member
    from pyrepl.site import Admission
    from pyrepl.volume import Snapshot

ADMITTED, PERFORMED = "admitted", "performed"
PERFORM = "perform"  # the kind of plug-ins
Progress = Callable[[dict[str, Any]], None]
TELL_EVERY = 0.2  # seconds between two calls of a progress callback


class MemberResult(NamedTuple):
    """One operation of a set: its kind, the names and numbers of the stores that it made, and the bytes that it changed
    here, None until the set is performed; of a plug-in ``digest`` and ``failed``, as of :class:`OperationResult`."""

    kind: str
    created: dict[str, int]
    bytes_changed: int | None
    digest: bytes | None = None
    failed: str | None = None


class Figures(NamedTuple):
    """What came of an operation here.

    Attributes:
        changed, avoided: bytes, as of :class:`OperationResult`; None: it is not performed, or too long ago.
        members: bytes changed by each operation of a set; else empty.
        outcomes: digest, and why it failed, for each operation of a set; else for the one. Empty: they are not known.
    """

    changed: int | None
    avoided: int | None
    members: Sequence[int]
    outcomes: Sequence[tuple[bytes, str]]


UNKNOWN = Figures(None, None, (), ())


def figures_of(group: Group, lsn: int) -> Figures:
    """Of the operation at this LSN, as far as it is known."""
    result = group.site.result(lsn)
    if result is None:
        return UNKNOWN
    return Figures(
        result.bytes_changed,
        result.bytes_avoided,
        [member.bytes_changed for member in result.members],
        [(one.digest, one.failed) for one in result.members or (result,)],
    )


class OperationResult:
    """An operation that has its place in the order of the group.

    Attributes:
        lsn: its place; every event with a smaller LSN is before it, at every site.
        kind: what it is ("snapshot", "restore", ...).
        created: names of the stores that it made.
        links: how many links the group had when it was admitted.
        snapshots: of a snapshot of the whole group: the snapshots that it made.
        details: of a rewind: ``to_lsn``, the LSN that the new volume shows; ``bytes_written``, what was written to it.
            Of one that was to be early: ``early``, how many secondaries have performed it first.
    """

    def __init__(self, group: Group, admission: Admission) -> None:
        self._group = group
        self._changed: int | None = None
        self._avoided: int | None = None
        self._outcome: tuple[bytes, str] | None = None
        self.links = len(group.site.links)
        self.lsn = admission.lsn
        self.kind = admission.operation.kind
        self.created = dict(admission.created)
        self.snapshots: list[Snapshot] = []
        self.details: dict[str, int] = {}
        self._members = [(member.kind, _created(member, admission.created)) for member in admission.members]

    @property
    def members(self) -> list[MemberResult]:
        """Of a set: what came of each of its operations, in the order in which they were given; else empty."""
        figures = figures_of(self._group, self.lsn) if self._members else UNKNOWN
        known: list[int | None] = [*figures.members] or [None] * len(self._members)
        came = figures.outcomes if figures.members else [(None, None)] * len(self._members)
        return [MemberResult(kind, dict(created), changed, *(of if kind == PERFORM else (None, None)))
                for (kind, created), changed, of in zip(self._members, known, came, strict=True)]

    @property
    def digest(self) -> bytes | None:
        """Of a plug-in: what it said of what it did; None until it is performed, and of other operations."""
        self._look()
        return self._outcome[0] if self._outcome is not None else None

    @property
    def failed(self) -> str | None:
        """Of a plug-in: why it failed, and nothing was changed at any site; "": it did what it does. None until it is
        performed, and of other operations."""
        self._look()
        return self._outcome[1] if self._outcome is not None else None

    def _look(self) -> None:
        if self._outcome is None and self.kind == PERFORM:
            self._outcome = next(iter(figures_of(self._group, self.lsn).outcomes), None)

    @property
    def state(self) -> str:
        """``admitted`` or ``performed``, at this site."""
        return PERFORMED if self._group.applied_lsn >= self.lsn else ADMITTED

    @property
    def bytes_changed(self) -> int | None:
        """Bytes of whole regions whose content may have changed here; None until it is performed (or if nobody asked
        for long: the figures of the last 1024 operations are kept)."""
        if self._changed is None:
            figures = figures_of(self._group, self.lsn)
            self._changed, self._avoided = figures.changed, figures.avoided
        return self._changed

    @property
    def bytes_avoided(self) -> int | None:
        """Bytes that shipping the changed data would have put on the links that the group had, all together: 0 without
        a link. A link whose secondary refused it (it lacks the image or the plug-in, or came to another result) got the
        data, and does not count for these: that is known when the secondary has said so, and the figure is less from
        then on. None as long as :attr:`bytes_changed` is."""
        if self.bytes_changed is not None:
            known = figures_of(self._group, self.lsn).avoided  # a secondary may have refused it since
            self._avoided = known if known is not None else self._avoided
        return self._avoided

    def wait(
        self, where: str = "primary", timeout: float | None = None, progress: Progress | None = None
    ) -> OperationResult:
        """Returns when it is performed: here (``primary``), or at the secondary of the link of that name.

        Args:
            where: "primary" (or "here"), or the name of a link.
            timeout: seconds, None for ever.
            progress: as of :meth:`Group.wait`.

        Raises:
            WaitTimeout: ``timeout`` seconds are over; the operation goes on.
            NotFound: there is no such link.
        """
        self._group.wait(self.lsn, where=where, timeout=timeout, progress=progress)
        if where == "primary":
            self._changed, self._avoided = self.bytes_changed, self.bytes_avoided  # while the figures are still kept
            self._look()
        return self

    @property
    def verification(self) -> dict[str, Any] | None:
        """Of an operation with ``verify=True``: ``lsn``, ``done`` (whether the comparison is over), ``region_size`` in
        bytes, and ``links`` as of :meth:`Group.verify`, with the state ``comparing`` until then. Else None."""
        judged = self._group.comparisons.find(self.lsn)
        return judged.result() if judged is not None else None

    def wait_verified(self, timeout: float | None = None, progress: Progress | None = None) -> dict[str, Any]:
        """Returns when the result of an operation with ``verify=True`` is compared at every link, and what differed is
        repaired; what :attr:`verification` is then. A link that does not get on is given up; see :meth:`Group.verify`.

        Args:
            timeout: seconds, None for ever.
            progress: called a few times a second with the verification so far. What it raises ends the waiting only.

        Raises:
            UsageError: it was made without ``verify=True``.
            WaitTimeout: it goes on.
        """
        judged = self._group.comparisons.find(self.lsn)
        if judged is None:
            raise UsageError(f"the {self.kind} at LSN {self.lsn} was made without being verified: nothing is compared",
                             lsn=self.lsn)
        return judged.wait(check_timeout(timeout), progress)

    def wait_all(self, timeout: float | None, progress: Progress | None = None) -> None:
        """As a call that makes an operation waits for it: until it is performed here, and compared if that is wanted.
        Arguments and errors as of :meth:`wait`."""
        begin = time.monotonic()
        self.wait(timeout=timeout, progress=progress)
        if self._group.comparisons.find(self.lsn) is not None:
            self.wait_verified(None if timeout is None else max(0.0, begin + timeout - time.monotonic()), progress)

    def __repr__(self) -> str:
        return f"<{self.kind} at LSN {self.lsn} of group {self._group.name!r}: {self.state}>"


def _created(member: Member | Adopt, created: dict[str, int]) -> dict[str, int]:
    """Those of the stores that a set made which this member made."""
    return {name: store for name, store in created.items() if store in member.footprint.writes}


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
                    f"the write at LSN {self.lsn} is not written after {timeout:g} s; it goes on", lsn=self.lsn
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
                raise WaitTimeout(f"no event within {timeout:g} s")
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


__all__ = ["ADMITTED", "PERFORM", "PERFORMED", "Events", "MemberResult", "OperationResult", "Progress", "Ticket",
           "check_timeout", "figures_of"]
