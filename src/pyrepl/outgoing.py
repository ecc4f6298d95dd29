"""What a link sends next: a frame as it stands, or what must be read before there is one.

Decides how many batches of events go out by one call, and that reading holds nobody up: it is done without the guard
of the links, and what was read may be void by then. Must not know what goes out next, nor whether what was read still
has a place (``stream``).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from pyrepl._core import pump
from pyrepl._core.stream import Outlet
from pyrepl._core.window import Entry
from pyrepl.resync import Step

if TYPE_CHECKING:
    from pyrepl.stream import Stream

MOST_LOT = 1 << 20  # bytes of the log that go out by one call, if one batch does not have more


class Out:
    """Frames that are to go out as they stand: one in ``buffers``, or a lot of batches of events. ``release`` when they
    are sent or copied away: they may pin the window's memory."""

    __slots__ = ("_buffers", "entry", "kind", "lot")

    def __init__(self, kind: str, buffers: list[Any], entry: Entry | None = None, lot: Outlet | None = None) -> None:
        self.kind = kind
        self._buffers = buffers
        self.entry = entry
        self.lot = lot

    @property
    def length(self) -> int:
        """Bytes."""
        return self.lot.length if self.lot is not None else sum(len(buffer) for buffer in self._buffers)

    @property
    def buffers(self) -> list[Any]:
        """All bytes of it, for whoever does not send a lot as one."""
        return [bytes(self.lot)] if self.lot is not None else self._buffers

    def release(self) -> None:
        """Nothing of it is needed any more."""
        self._buffers = []
        if self.entry is not None:
            self.entry.release()
            self.entry = None
        if self.lot is not None:
            self.lot.release()
            self.lot = None


class Plan:
    """What is to be read before it can be sent: what stands at a position of the journal, a lot of batches of events
    where there are some, or a step of the resync."""

    def __init__(self, stream: Stream, *, position: int = 0, until: int = 0, step: Step | None = None) -> None:
        self.stream = stream
        self.position = position
        self.until = until  # durable up to here
        self.step = step
        self.lot: Outlet | None = None
        self.entry: Entry | None = None
        self.copied: tuple[bytes, memoryview, int] | None = None

    def fetch(self) -> None:
        """Reads it. Called without the guard: reading back may wait for the disk, and for an operation to be
        performed."""
        stream, site = self.stream, self.stream.site
        if self.step is None:
            try:
                lot = Outlet(site.window)
                if lot.fetch(self.position, self.until, MOST_LOT):
                    self.lot = lot
                else:
                    self.entry = site.window.entry(self.position)
            except ValueError:
                # The tail has passed it: it was folded since. If it was not, the log is bad.
                if self.position >= site.window.state().tail_position:
                    raise
        else:
            with contextlib.suppress(LookupError, ValueError):  # deleted or shrunk since: `place` sees that too
                self.copied = pump.copied_batch(
                    site.window, site.stores, self.step.store, self.step.runs, group=site.group_id,
                    generation=site.lineage.generation, lsn=stream.ahead.lsn, item=stream.item + 1)
