"""Kept snapshots of a site in another process: the verbs of ``pyrepl.kept`` over the control socket.

Decides nothing of what they are. They are read like any store; what would change one is refused by the daemon.
"""

from __future__ import annotations

from typing import Any

from pyrepl.errors import NotFound
from pyrepl.remote import requests
from pyrepl.remote.stores import RemoteStore
from pyrepl.remote.values import StoreInfo


class RemoteKeptSnapshot(RemoteStore):
    """What a site keeps of a history that it had to leave. See :class:`pyrepl.kept.KeptSnapshot`."""

    kind = "kept"

    def _show(self) -> StoreInfo:
        return self._channel.call(requests.StoreShow(store=self._key, kind=self.kind))[0]

    @property
    def origin(self) -> str:
        """Name of the store, then."""
        return str(self._told()["origin"])

    @property
    def label(self) -> str:
        """Of all that was kept at the same moment: ``lost-<generation>``."""
        return self.name.removeprefix(f"{self.origin}-")

    @property
    def lsn(self) -> int:
        """The last event that it shows, in the history that was left."""
        return int(self._told()["lsn"])

    def _told(self) -> dict[str, Any]:
        number = self._show().id  # says that it is there no longer, if it is not
        for kept in self._group.status()["kept"]:
            if kept["id"] == number:
                return dict(kept)
        raise NotFound(f"group {self._group.name!r} has no kept snapshot {self.name!r}", name=self.name)

    def delete(self) -> None:
        """It is kept no longer, at that site."""
        self._channel.call(requests.KeptDelete(store=self._key))
