"""Images of a node in another process: the verbs of ``image`` over the control socket.

Decides how a handle names its image to the daemon. What a verb means is ``pyrepl.image``'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrepl.remote import requests
from pyrepl.remote.results import RemoteOperationResult
from pyrepl.remote.stores import RemoteVolume
from pyrepl.remote.values import ImageInfo, StoreKey

if TYPE_CHECKING:
    from pyrepl.remote.group import RemoteGroup


class RemoteImage:
    """An image of a group in another process. See :class:`pyrepl.Image`."""

    kind = "image"

    def __init__(self, group: RemoteGroup, info: ImageInfo) -> None:
        self._group = group
        self._channel = group.channel
        self.id = info.id
        self.name = info.name
        self.size = info.size
        self.digest = info.digest
        self.device = info.device

    @property
    def group(self) -> RemoteGroup:
        return self._group

    @property
    def key(self) -> StoreKey:
        """How it is named to the daemon."""
        return StoreKey(group=self._group.name, name=self.name, id=self.id)

    @property
    def state(self) -> str:
        """``ready``, ``changed``, ``missing``, ``leaving`` or ``gone``."""
        for info in self._channel.call(requests.GroupImages(group=self._group.name))[0]:
            if info.id == self.id:
                return info.state
        return "gone"

    def clone(
        self,
        name: str,
        device: str | None = None,
        *,
        force: bool = False,
        verify: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> RemoteVolume:
        """A new volume ``name`` with the content of the image; ``device`` is a path on the daemon's machine."""
        request = requests.ImageClone(
            image=self.key, name=name, device=device, force=force, verify=verify, wait=wait, timeout=timeout
        )
        made, _ = self._channel.call(request)
        result = RemoteOperationResult(self._group, made.operation) if made.operation is not None else None
        return RemoteVolume(self._group, made.store, result)

    def remove(self, *, wait: bool = True, timeout: float | None = None) -> None:
        """That site uses it no more; what stores still show of it is copied to them first."""
        self._channel.call(requests.ImageRemove(image=self.key, wait=wait, timeout=timeout))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, RemoteImage)
            and other._channel is self._channel
            and (other._group.name, other.id) == (self._group.name, self.id)
        )

    def __hash__(self) -> int:
        return hash((self._group.name, self.id))

    def __repr__(self) -> str:
        return f"<RemoteImage {self.name!r} of group {self._group.name!r}>"
