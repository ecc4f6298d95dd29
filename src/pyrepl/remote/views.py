"""Views of a node in another process: what a store showed there at one LSN, for as long as a connection lasts.

Decides how long a view is open at the daemon: one connection holds it, and ends with the handle or its process. What a
view is, is ``pyrepl.volume``'s.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from pyrepl.errors import NotFound, Refused, UsageError
from pyrepl.remote import frames, requests
from pyrepl.remote.channel import next_told
from pyrepl.remote.stores import RemoteSnapshot, RemoteVolume, as_bytes, as_number

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pyrepl.remote.group import RemoteGroup


class RemoteView:
    """What a store showed at one LSN, read-only. Made by :meth:`RemoteGroup.open_view`; a context manager. See
    :class:`pyrepl.View`."""

    kind = "view"

    def __init__(
        self, group: RemoteGroup, store: RemoteVolume | RemoteSnapshot, told: dict[str, int], line: socket.socket
    ) -> None:
        self._group = group
        self._line = line
        self.id = told["id"]
        self.store = store
        self.lsn = told["lsn"]
        self.size = told["size"]

    @property
    def name(self) -> str:
        """``store@lsn``, for people."""
        return f"{self.store.name}@{self.lsn}"

    @property
    def group(self) -> RemoteGroup:
        return self._group

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset`` on; more than 4 MiB come in several requests, all of the one LSN."""
        offset, length = as_number(offset, "offset"), as_number(length, "length")
        parts: list[bytes] = []
        while True:
            size = min(length, frames.MOST_PAYLOAD)
            request = requests.ViewRead(group=self._group.name, view=self.id, offset=offset, length=size)
            if self.closed:
                raise Refused(f"the view {self.name!r} of group {self._group.name!r} is closed", reason="closed")
            parts.append(self._group.channel.call(request)[1])
            offset, length = offset + size, length - size
            if length <= 0:
                return b"".join(parts)

    def readinto(self, offset: int, buffer: Buffer) -> int:
        """Fills the buffer from ``offset`` on; the number of bytes."""
        view = as_bytes(buffer, f"reading into {self.kind} {self.name!r}")
        if view.readonly:
            raise UsageError(
                f"reading into {self.kind} {self.name!r}: {type(buffer).__name__} cannot be written to: give a "
                f"bytearray or a writable array"
            )
        view[:] = self.read(offset, len(view))
        return len(view)

    def close(self) -> None:
        """The daemon keeps nothing more for it, as soon as it notices. Harmless the second time."""
        self._line.close()

    @property
    def closed(self) -> bool:
        """Whether it can be read no more."""
        return self._line.fileno() < 0 or frames.has_ended(self._line)

    def __enter__(self) -> RemoteView:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<RemoteView {self.name!r} of group {self._group.name!r}>"


def open_view(group: RemoteGroup, store: RemoteVolume | RemoteSnapshot) -> RemoteView:
    """See :meth:`pyrepl.Group.open_view`."""
    line = group.channel.ask(requests.StoreView(store=store.key))
    try:
        told = next_told(line, None)
        if told is None:
            raise NotFound(f"group {group.name!r}: {store.kind} {store.name!r} is not shown any more", name=store.name)
        return RemoteView(group, store, told, line)
    except BaseException:
        line.close()
        raise
