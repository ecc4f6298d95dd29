"""Groups and links of a node in another process: the verbs of ``group`` and ``attachment`` over the control socket.

Decides nothing of what a verb means; the arguments are described where it is defined.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pyrepl.catalog import SNAPSHOT, VOLUME
from pyrepl.errors import InternalError, PyreplError, UsageError
from pyrepl.remote import messages, requests
from pyrepl.remote.channel import Channel
from pyrepl.remote.images import RemoteImage
from pyrepl.remote.kept import RemoteKeptSnapshot
from pyrepl.remote.results import RemoteOperationResult
from pyrepl.remote.sets import RemoteExplanation, RemoteUnorderedSet
from pyrepl.remote.stores import RemoteSnapshot, RemoteStore, RemoteVolume, handle
from pyrepl.remote.values import GroupInfo, LinkInfo, StoreInfo, StoreKey
from pyrepl.remote.views import RemoteView, open_view
from pyrepl.results import Progress

if TYPE_CHECKING:
    from pyrepl.runtime.plugins import Operation as PluginOperation
    from pyrepl.volume import Extent

T = TypeVar("T")


class RemoteGroup:
    """A group of a node in another process. See :class:`pyrepl.Group`."""

    def __init__(self, channel: Channel, name: str) -> None:
        self.channel = channel
        self.name = name

    # ---- about it

    @property
    def fault(self) -> PyreplError | None:
        """None while the group works; then the error that every call raises."""
        fault = self._info().fault
        return messages.error_of(fault) if fault is not None else None

    @property
    def role(self) -> str:
        """``primary`` or ``secondary``."""
        return _known(self._working().role)

    @property
    def region_size(self) -> int:
        """Bytes. Extents of operations and sizes of volumes are whole regions."""
        return _known(self._working().region_size)

    @property
    def alignment(self) -> int:
        """Bytes: 512 or 4096."""
        return _known(self._working().alignment)

    @property
    def applied_lsn(self) -> int:
        """Everything up to this LSN is performed at the daemon's site."""
        return _known(self._working().applied_lsn)

    @property
    def state(self) -> str:
        """``active``, ``failed`` or ``closed``."""
        return self._info().state

    @property
    def volumes(self) -> list[RemoteVolume]:
        """In the order in which they were made."""
        request = requests.GroupStores(group=self.name, kind=VOLUME)
        return [RemoteVolume(self, info) for info in self.channel.call(request)[0]]

    @property
    def snapshots(self) -> list[RemoteSnapshot]:
        """Of all stores, oldest first."""
        request = requests.GroupStores(group=self.name, kind=SNAPSHOT)
        return [RemoteSnapshot(self, info) for info in self.channel.call(request)[0]]

    @property
    def images(self) -> list[RemoteImage]:
        """That are registered at the daemon's site, oldest first."""
        return [RemoteImage(self, info) for info in self.channel.call(requests.GroupImages(group=self.name))[0]]

    @property
    def kept(self) -> list[RemoteKeptSnapshot]:
        """Snapshots that the daemon's site alone keeps of a history that it had to leave, oldest first."""
        request = requests.GroupStores(group=self.name, kind="kept")
        return [RemoteKeptSnapshot(self, info) for info in self.channel.call(request)[0]]

    def kept_snapshot(self, name: str) -> RemoteKeptSnapshot:
        """The kept snapshot of that name."""
        return RemoteKeptSnapshot(self, self._find(name, "kept"))

    @property
    def links(self) -> list[RemoteLink]:
        return [RemoteLink(self, info) for info in self.channel.call(requests.GroupLinks(group=self.name))[0]]

    def volume(self, name: str) -> RemoteVolume:
        """The volume of that name."""
        return RemoteVolume(self, self._find(name, VOLUME))

    def store(self, name: str) -> RemoteVolume | RemoteSnapshot:
        """The volume or snapshot of that name. (``snapshot(name)`` makes one.)"""
        found: RemoteVolume | RemoteSnapshot = handle(self, self._find(name, ""))
        return found

    def image(self, name: str) -> RemoteImage:
        """The image of that name at the daemon's site."""
        key = StoreKey(group=self.name, name=name)
        return RemoteImage(self, self.channel.call(requests.ImageShow(image=key))[0])

    def link(self, name: str) -> RemoteLink:
        """The link of that name."""
        return RemoteLink(self, self.channel.call(requests.LinkShow(group=self.name, name=name))[0])

    def status(self) -> dict[str, Any]:
        """Figures for people and programs: bytes, LSNs, words of closed lists."""
        return self.channel.call(requests.GroupStatus(group=self.name))[0]

    def latency(self) -> dict[str, dict[str, Any]]:
        """How long things took there, since the group was opened. See :meth:`pyrepl.Group.latency`."""
        return self.channel.call(requests.GroupLatency(group=self.name))[0]

    # ---- stores

    def add_volume(
        self,
        name: str,
        device_path: str | os.PathLike[str] | None = None,
        *,
        size: int | None = None,
        zero: bool = False,
        force: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> RemoteVolume:
        """A volume enters the group. ``device_path`` is a path on the daemon's machine."""
        request = requests.GroupAddVolume(
            group=self.name,
            name=name,
            device_path=None if device_path is None else there(device_path, "device"),
            size=size,
            zero=zero,
            force=force,
            wait=wait,
            timeout=timeout,
        )
        made, _ = self.channel.call(request)
        result = RemoteOperationResult(self, made.operation) if made.operation is not None else None
        return RemoteVolume(self, made.store, result)

    def snapshot(
        self,
        name: str,
        *,
        volumes: list[RemoteVolume | str] | None = None,
        verify: bool = False,
        early: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> RemoteOperationResult:
        """Snapshots of all volumes (or of these), at one LSN, named ``<volume>-<name>``."""
        chosen = None if volumes is None else tuple(self.key_of(volume) for volume in volumes)
        request = requests.GroupSnapshot(
            group=self.name, name=name, volumes=chosen, verify=verify, early=early, wait=wait,
            timeout=timeout)
        return RemoteOperationResult(self, self.channel.call(request)[0])

    def restore(
        self,
        name: str,
        *,
        volumes: list[RemoteVolume | str] | None = None,
        verify: bool = False,
        early: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> RemoteOperationResult:
        """All volumes (or these) show again what their snapshots ``<volume>-<name>`` show: all of them, or none."""
        return self._operate_wide("restore", name, volumes, None, verify, wait, timeout, early=early)

    def refresh(
        self,
        name: str,
        *,
        volumes: list[RemoteVolume | str] | None = None,
        verify: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> RemoteOperationResult:
        """The snapshots ``<volume>-<name>`` of all volumes (or of these) show what the volumes show now."""
        return self._operate_wide("refresh", name, volumes, None, verify, wait, timeout)

    def clone(
        self,
        name: str,
        *,
        snapshot: str | None = None,
        volumes: list[RemoteVolume | str] | None = None,
        verify: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> RemoteOperationResult:
        """New volumes ``<volume>-<name>`` with the content of the volumes, or of their snapshots
        ``<volume>-<snapshot>``."""
        return self._operate_wide("clone", name, volumes, snapshot, verify, wait, timeout)

    def delete_snapshots(
        self,
        name: str,
        *,
        volumes: list[RemoteVolume | str] | None = None,
        wait: bool = True,
        timeout: float | None = None,
    ) -> RemoteOperationResult:
        """The snapshots ``<volume>-<name>`` of all volumes (or of these) leave the group."""
        return self._operate_wide("delete", name, volumes, None, False, wait, timeout)

    def _operate_wide(
        self, verb: str, name: str, volumes: list[RemoteVolume | str] | None, snapshot: str | None, verify: bool,
        wait: bool, timeout: float | None, *, early: bool = False,
    ) -> RemoteOperationResult:
        chosen = None if volumes is None else tuple(self.key_of(volume) for volume in volumes)
        request = requests.GroupWide(group=self.name, what=verb, name=name, snapshot=snapshot, volumes=chosen,
                                     verify=verify, early=early, wait=wait, timeout=timeout)
        return RemoteOperationResult(self, self.channel.call(request)[0])

    def add_image(
        self, name: str, path: str | os.PathLike[str], *, progress: Progress | None = None
    ) -> RemoteImage:
        """Registers a file or block device on the daemon's machine as an image at its site."""
        request = requests.GroupAddImage(group=self.name, name=name, path=there(path, "image"))
        return RemoteImage(self, self.channel.call(request, progress=progress)[0])

    def copy_range(
        self,
        source: RemoteStore | RemoteImage | str,
        source_offset: int,
        target: RemoteStore | str,
        target_offset: int,
        length: int,
        *,
        verify: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> RemoteOperationResult:
        """A range of ``target`` becomes equal to the same range of ``source``. No data move."""
        request = requests.GroupCopyRange(
            group=self.name,
            source=self.key_of(source),
            source_offset=source_offset,
            target=self.key_of(target),
            target_offset=target_offset,
            length=length,
            verify=verify,
            wait=wait,
            timeout=timeout,
        )
        return RemoteOperationResult(self, self.channel.call(request)[0])

    def unordered(
        self, *, verify: bool = False, wait: bool = True, timeout: float | None = None
    ) -> RemoteUnorderedSet:
        """Several operations at one point of the order, collected in a ``with`` block: all of them, or none."""
        return RemoteUnorderedSet(self, verify=verify, wait=wait, timeout=timeout)

    def explain(self, *, timeout: float | None = None) -> RemoteExplanation:
        """What an operation would change and cost, without making it; told in a ``with`` block. See
        :meth:`pyrepl.Group.explain`."""
        return RemoteExplanation(self, timeout=timeout)

    def mark(
        self, name: str, payload: bytes = b"", *, wait: bool = True, timeout: float | None = None
    ) -> RemoteOperationResult:
        """A message of up to 4096 bytes at this point of the order."""
        request = requests.GroupMark(group=self.name, name=name, message=payload, wait=wait, timeout=timeout)
        return RemoteOperationResult(self, self.channel.call(request)[0])

    def perform(
        self,
        operation: PluginOperation | str,
        arguments: Mapping[str, Any] | None = None,
        *,
        verify: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> RemoteOperationResult:
        """Performs a plug-in operation that the daemon has installed, too. See :meth:`pyrepl.Group.perform`."""
        from pyrepl.plugin import told

        name, given = told(operation, arguments)
        request = requests.GroupPerform(
            group=self.name, plugin=name, arguments=given, verify=verify, wait=wait, timeout=timeout)
        return RemoteOperationResult(self, self.channel.call(request)[0])

    def open_view(self, store: RemoteStore | str) -> RemoteView:
        """What a volume or snapshot shows now, kept as it is until the view is closed or this process ends. See
        :meth:`pyrepl.Group.open_view`."""
        key = self.key_of(store)
        return open_view(self, handle(self, self.channel.call(requests.StoreShow(store=key))[0]))

    # ---- what is chosen for that site

    @property
    def delay(self) -> float:
        """Seconds; see :meth:`set_delay`."""
        return float(self.status()["delay"]["seconds"])

    def set_delay(self, seconds: float) -> None:
        """From now on that site, while it is a secondary, performs an event when it is so old. See
        :meth:`pyrepl.Group.set_delay`."""
        self.channel.call(requests.GroupSetDelay(group=self.name, seconds=seconds))

    # ---- waiting

    def flush(self) -> int:
        """Everything that was written before this call survives the loss of power; the LSN up to which."""
        return self.channel.call(requests.GroupFlush(group=self.name))[0]

    def wait(
        self,
        lsn: int | None = None,
        *,
        where: str = "primary",
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Returns when everything up to ``lsn`` is performed: there, or at the secondary of the link ``where``."""
        request = requests.GroupWait(group=self.name, lsn=lsn, where=where, timeout=timeout)
        return self.channel.call(request, progress=progress)[0]

    # ---- links

    def add_link(
        self, name: str, address: str, *, mode: Literal["async", "sync"] = "async", bandwidth: int = 0
    ) -> RemoteLink:
        """Attaches the secondary that listens at ``address``, and begins to synchronize it in the background."""
        request = requests.GroupAddLink(group=self.name, name=name, address=address, mode=mode, bandwidth=bandwidth)
        return RemoteLink(self, self.channel.call(request)[0])

    def remove_link(self, name: str) -> None:
        """Detaches it. What is known of the secondary is forgotten; its stores stay as they are."""
        self.channel.call(requests.GroupRemoveLink(group=self.name, name=name))

    def operations(self, earlier: bool = False) -> list[dict[str, Any]]:
        """What was performed there since the group was opened, oldest first, the last 1024; ``earlier``: and before."""
        return self.channel.call(requests.GroupOperations(group=self.name, earlier=earlier))[0]

    def verify(
        self,
        *,
        repair: bool = True,
        link: str | None = None,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Compares all stores with those of the secondaries. A client that goes away ends the comparison; what was
        found by then is repaired nevertheless."""
        request = requests.GroupVerify(group=self.name, repair=repair, link=link, timeout=timeout)
        return self.channel.call(request, progress=progress)[0]

    # ---- roles

    def demote(self, *, timeout: float | None = 30.0, force: bool = False) -> int:
        """That site steps down: from primary to secondary. It goes on although the client goes away."""
        return self.channel.call(requests.GroupDemote(group=self.name, timeout=timeout, force=force))[0]

    def promote(self, *, alone: bool = False, force: bool = False) -> int:
        """That secondary becomes primary."""
        return self.channel.call(requests.GroupPromote(group=self.name, alone=alone, force=force))[0]

    def takeover(self, *, dry_run: bool = False, force: bool = False) -> int:
        """That secondary becomes primary because the primary is gone; ``dry_run``: only whether it may; ``force``:
        although what it holds was found different."""
        return self.channel.call(requests.GroupTakeover(group=self.name, dry_run=dry_run, force=force))[0]

    def migrate(
        self, link: RemoteLink | str, *, timeout: float | None = 30.0, back: str | None = None, force: bool = False
    ) -> int:
        """A planned swap: that site steps down, the secondary of this link becomes primary, and links back. It goes on
        although the client goes away."""
        name = link if isinstance(link, str) else link.name
        request = requests.GroupMigrate(group=self.name, link=name, timeout=timeout, back=back, force=force)
        return self.channel.call(request)[0]

    def resolve(self, loser: str) -> int:
        """Ends a split brain: the loser ("here", that node's name or id, or a link's) gives up what only it has."""
        return self.channel.call(requests.GroupResolve(group=self.name, loser=loser))[0]

    def unprotect(self) -> None:
        """That secondary gives its protective snapshot up, until it is consistent again."""
        self.channel.call(requests.GroupUnprotect(group=self.name))

    def loss(self, loser: str) -> dict[str, Any]:
        """What :meth:`resolve` would take from this loser; nothing is changed."""
        return self.channel.call(requests.GroupLoss(group=self.name, loser=loser))[0]

    # ---- for stores and results

    def check(self) -> None:
        """Raises why the group does not work, if it does not."""
        self._working()

    def key_of(self, store: RemoteStore | RemoteImage | str) -> StoreKey:
        """How a store or image that was given by handle or by name is named to the daemon.

        Raises:
            UsageError: of another group, or no store at all.
        """
        if isinstance(store, str):
            return StoreKey(group=self.name, name=store)
        if not isinstance(store, RemoteStore | RemoteImage):
            raise UsageError(f"{type(store).__name__} is not a store: give a volume, a snapshot, or the name of one")
        what = "an image" if isinstance(store, RemoteImage) else "a store"
        if store.group.channel is not self.channel or store.group.name != self.name:
            raise UsageError(
                f"{store.name!r} is {what} of group {store.group.name!r}: operations stay within one group, here "
                f"{self.name!r}",
                name=store.name,
            )
        return store.key

    def __repr__(self) -> str:
        return f"<RemoteGroup {self.name!r}>"

    # ---- inside

    def _info(self) -> GroupInfo:
        return self.channel.call(requests.GroupShow(group=self.name))[0]

    def _working(self) -> GroupInfo:
        info = self._info()
        if info.fault is not None:
            raise messages.error_of(info.fault)
        return info

    def _find(self, name: str, kind: str) -> StoreInfo:
        key = StoreKey(group=self.name, name=name)
        return self.channel.call(requests.StoreShow(store=key, kind=kind))[0]


class RemoteLink:
    """A link of a group in another process. See :class:`pyrepl.Attachment`."""

    def __init__(self, group: RemoteGroup, info: LinkInfo) -> None:
        self._group = group
        self._channel = group.channel
        self._info = info

    @property
    def name(self) -> str:
        return self._info.name

    @property
    def address(self) -> str:
        """``host:port`` of the secondary."""
        return self._show().address

    @property
    def mode(self) -> str:
        """``async`` or ``sync``."""
        return self._show().mode

    @property
    def bandwidth(self) -> int:
        """Bytes per second that are sent at most; 0: no limit."""
        return self._show().bandwidth

    @property
    def dead(self) -> float:
        """Seconds of silence after which the secondary is given up, and dialled again."""
        return self._show().dead

    @property
    def most_lag_bytes(self) -> int:
        """Of the journal, that the secondary may lack before writers wait for it; 0: any number."""
        return self._show().most_lag_bytes

    @property
    def most_lag_seconds(self) -> float:
        """That the oldest event which it lacks may be old before writers wait; 0: any age."""
        return self._show().most_lag_seconds

    def status(self) -> dict[str, Any]:
        """Bytes and LSNs are integers; ``state`` is a word of a closed list."""
        return self._channel.call(requests.LinkStatus(group=self._info.group, name=self.name))[0]

    def divergent(self, store: RemoteStore | str) -> list[Extent]:
        """Where the secondary's copy of a store may differ: extents of whole regions, ascending."""
        from pyrepl.volume import Extent

        request = requests.LinkDivergent(group=self._info.group, name=self.name, of=self._group.key_of(store))
        return [Extent(offset, length) for offset, length in self._channel.call(request)[0]]

    def pause(self) -> None:
        """Ends the connection until :meth:`resume`, over restarts too."""
        self._channel.call(requests.LinkPause(group=self._info.group, name=self.name))

    def resume(self) -> None:
        """Connects again, and sends what the secondary lacks."""
        self._channel.call(requests.LinkResume(group=self._info.group, name=self.name))

    def set(
        self,
        *,
        mode: Literal["async", "sync"] | None = None,
        address: str | None = None,
        bandwidth: int | None = None,
        dead: float | None = None,
        most_lag_bytes: int | None = None,
        most_lag_seconds: float | None = None,
    ) -> None:
        """Changes the link while it works; it holds at once, and over restarts. See :meth:`pyrepl.Attachment.set`."""
        request = requests.LinkSet(
            group=self._info.group, name=self.name, mode=mode, address=address, bandwidth=bandwidth, dead=dead,
            most_lag_bytes=most_lag_bytes, most_lag_seconds=most_lag_seconds,
        )
        self._channel.call(request)

    def wait_synced(self, timeout: float | None = None, progress: Progress | None = None) -> dict[str, Any]:
        """Returns when the secondary is consistent and durably holds all that was written before the call; the status
        then. ``progress`` is called with the status a few times a second."""
        request = requests.LinkWaitSynced(group=self._info.group, name=self.name, timeout=timeout)
        return self._channel.call(request, progress=progress)[0]

    def wait_applied(self, lsn: int, timeout: float | None = None, progress: Progress | None = None) -> None:
        """Returns when the secondary has performed everything up to ``lsn``."""
        request = requests.LinkWaitApplied(group=self._info.group, name=self.name, lsn=lsn, timeout=timeout)
        self._channel.call(request, progress=progress)

    def __repr__(self) -> str:
        return f"<link {self.name!r} of group {self._info.group!r}>"

    # ---- inside

    def _show(self) -> LinkInfo:
        return self._channel.call(requests.LinkShow(group=self._info.group, name=self.name))[0]


def there(path: str | os.PathLike[str], what: str) -> str:
    """A path on the daemon's machine.

    Raises:
        UsageError: no path, or a relative one: the daemon stands in another folder.
    """
    try:
        text = os.fspath(path)
    except TypeError:
        raise UsageError(f"{what} {path!r:.80}: give a path") from None
    if not isinstance(text, str) or not text.startswith("/"):
        raise UsageError(f"{what} {text!r:.200}: give the whole path, from / on: the daemon works in another folder")
    return text


def _known(value: T | None) -> T:
    if value is None:
        raise InternalError("the daemon says nothing of a group that works")
    return value
