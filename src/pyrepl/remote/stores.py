"""Stores of a node in another process: the verbs of ``volume`` over the control socket.

Decides how a handle names its store to the daemon, and how a long read or write becomes frames. What a verb means is
``volume``'s; the arguments are described there.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from pyrepl.catalog import SNAPSHOT, VOLUME, whole
from pyrepl.errors import NotFound, UsageError
from pyrepl.remote import frames, requests
from pyrepl.remote.results import RemoteOperationResult
from pyrepl.remote.values import StoreInfo, StoreKey, StoreMade
from pyrepl.results import Progress

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pyrepl.remote.group import RemoteGroup
    from pyrepl.remote.images import RemoteImage
    from pyrepl.volume import Extent


class RemoteStore:
    """What remote volumes and snapshots have in common. See :class:`pyrepl.volume.Store`."""

    kind = ""

    def __init__(self, group: RemoteGroup, info: StoreInfo, result: RemoteOperationResult | None = None) -> None:
        self._group = group
        self._channel = group.channel
        self._key = StoreKey(group=info.group, name=info.name, id=info.id, identity=info.identity)
        self.name = info.name
        self.result = result

    # ---- about it

    @property
    def group(self) -> RemoteGroup:
        return self._group

    @property
    def id(self) -> int:
        """The store's number, never used again in its group."""
        return self._show().id

    @property
    def size(self) -> int:
        """Bytes."""
        return self._show().size

    @property
    def device(self) -> str | None:
        """The path of its device at the daemon's site; None until the operation that makes it is performed."""
        return self._show().device

    @property
    def key(self) -> StoreKey:
        """How it is named to the daemon."""
        return self._key

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, RemoteStore)
            and other._channel is self._channel
            and (other._key.group, other.name) == (self._key.group, self.name)
            and (other._key.id == self._key.id if other._key.identity == self._key.identity else other.id == self.id)
        )

    def __hash__(self) -> int:
        return hash((self._key.group, self.name))  # not the number: a secondary's changes when it is paired

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} of group {self._key.group!r}>"

    # ---- the operation that made it

    @property
    def lsn(self) -> int:
        """The place of the operation that made it in the order of the group."""
        return self._made().lsn

    @property
    def state(self) -> str:
        """``admitted`` or ``performed``: of the operation that made it."""
        return self._made().state

    @property
    def bytes_changed(self) -> int | None:
        """See :attr:`pyrepl.OperationResult.bytes_changed`."""
        return self._made().bytes_changed

    @property
    def bytes_avoided(self) -> int | None:
        """See :attr:`pyrepl.OperationResult.bytes_avoided`."""
        return self._made().bytes_avoided

    def wait(
        self, where: str = "primary", timeout: float | None = None, progress: Progress | None = None
    ) -> RemoteOperationResult:
        """Waits for the operation that made it."""
        return self._made().wait(where, timeout, progress)

    def _made(self) -> RemoteOperationResult:
        if self.result is None:
            raise UsageError(
                f"{self.name!r} was found by name: only the call that made a store knows its operation", name=self.name
            )
        return self.result

    # ---- data

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset`` on; more than 4 MiB come in several requests."""
        offset, length = as_number(offset, "offset"), as_number(length, "length")
        parts: list[bytes] = []
        while True:
            size = min(length, frames.MOST_PAYLOAD)
            _, data = self._channel.call(requests.StoreRead(store=self._key, offset=offset, length=size))
            parts.append(data)
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

    def digest(self, offset: int, length: int) -> bytes:
        """XXH3-128 of at most 64 MiB from ``offset`` on, made by the daemon."""
        request = requests.StoreDigest(
            store=self._key, offset=as_number(offset, "offset"), length=as_number(length, "length")
        )
        return self._channel.call(request)[0]

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> int:
        """Writes the buffer at ``offset``; the LSN of the last event. More than 4 MiB go in several requests: they are
        one write neither to a crash nor to other writers."""
        offset = as_number(offset, "offset")
        view = as_bytes(data, f"writing {self.kind} {self.name!r}")
        lsn = 0
        for start in range(0, max(1, len(view)), frames.MOST_PAYLOAD):
            part = view[start : start + frames.MOST_PAYLOAD]
            lsn, _ = self._channel.call(requests.StoreWrite(store=self._key, offset=offset + start, fua=fua), part)
        return lsn

    def zero(self, offset: int, length: int) -> int:
        """The range reads as zeros; the LSN."""
        request = requests.StoreZero(
            store=self._key, offset=as_number(offset, "offset"), length=as_number(length, "length")
        )
        return self._channel.call(request)[0]

    def discard(self, offset: int, length: int) -> int:
        """The same, and the space may be given back to the device; the LSN."""
        request = requests.StoreDiscard(
            store=self._key, offset=as_number(offset, "offset"), length=as_number(length, "length")
        )
        return self._channel.call(request)[0]

    def flush(self) -> int:
        """Everything that was written to the group before this call survives the loss of power; the LSN up to which."""
        return self._group.flush()

    # ---- operations

    def snapshot(
        self, name: str, *, verify: bool = False, early: bool = False, wait: bool = True, timeout: float | None = None
    ) -> RemoteSnapshot:
        """A snapshot of this store as it is at this point of the order. No data move."""
        request = requests.StoreSnapshot(
            store=self._key, name=name, verify=verify, early=early, wait=wait, timeout=timeout)
        made, _ = self._channel.call(request)
        return RemoteSnapshot(self._group, made.store, _result(self._group, made))

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
        """A new volume ``name`` with the content of this store; ``device`` is a path on the daemon's machine."""
        request = requests.StoreClone(
            store=self._key, name=name, device=device, force=force, verify=verify, wait=wait, timeout=timeout
        )
        made, _ = self._channel.call(request)
        return RemoteVolume(self._group, made.store, _result(self._group, made))

    def synchronize(
        self,
        source: RemoteStore | RemoteImage | str,
        *,
        verify: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> RemoteOperationResult:
        """This store becomes equal to ``source``, a store or an image of the same size. No data move."""
        request = requests.StoreSynchronize(
            store=self._key, source=self._group.key_of(source), verify=verify, wait=wait, timeout=timeout
        )
        return RemoteOperationResult(self._group, self._channel.call(request)[0])

    # ---- inside

    def _show(self) -> StoreInfo:
        return self._channel.call(requests.StoreShow(store=self._key))[0]


class RemoteVolume(RemoteStore):
    """A volume of a node in another process. See :class:`pyrepl.Volume`."""

    kind = VOLUME

    def restore(
        self,
        snapshot: RemoteSnapshot | RemoteImage | str,
        *,
        extent: Extent | tuple[int, int] | None = None,
        verify: bool = False,
        early: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> RemoteOperationResult:
        """The volume shows again what the snapshot or image shows, whole or on an extent of whole regions."""
        try:
            part = None if extent is None else (as_number(extent[0], "offset"), as_number(extent[1], "length"))
            if extent is not None and len(extent) != 2:
                raise ValueError
        except (TypeError, ValueError, LookupError):
            raise UsageError(f"extent={extent!r}: give pyrepl.Extent(offset, length)") from None
        request = requests.VolumeRestore(
            store=self._key,
            snapshot=self._group.key_of(snapshot),
            extent=part,
            verify=verify,
            early=early,
            wait=wait,
            timeout=timeout,
        )
        return RemoteOperationResult(self._group, self._channel.call(request)[0])

    def rewind(
        self, to: int | datetime, name: str, *, timeout: float | None = None, progress: Progress | None = None
    ) -> RemoteVolume:
        """A new volume ``name`` that shows what this one showed at an LSN or a time. A client that goes away meanwhile
        gives it up."""
        request = requests.VolumeRewind(
            store=self._key, name=name, timeout=timeout, to_time=to.timestamp() if isinstance(to, datetime) else None,
            to_lsn=None if isinstance(to, datetime) else _lsn(to),
        )
        made, _ = self._channel.call(request, progress=progress)
        return RemoteVolume(self._group, made.store, _result(self._group, made))

    def resize(
        self,
        size: int,
        *,
        force: bool = False,
        verify: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> RemoteOperationResult:
        """The volume becomes ``size`` bytes long, whole regions; what is added reads as zeros."""
        request = requests.VolumeResize(
            store=self._key, size=as_number(size, "size"), force=force, verify=verify, wait=wait, timeout=timeout
        )
        return RemoteOperationResult(self._group, self._channel.call(request)[0])

    def remove(
        self, *, force: bool = False, wait: bool = True, timeout: float | None = None
    ) -> RemoteOperationResult | None:
        """The volume leaves the group, at every site; what it holds is lost to the group. None: it was prepared on a
        fresh secondary, and is taken back."""
        request = requests.VolumeRemove(store=self._key, force=force, wait=wait, timeout=timeout)
        operation, _ = self._channel.call(request)
        return None if operation is None else RemoteOperationResult(self._group, operation)


class RemoteSnapshot(RemoteStore):
    """A snapshot of a node in another process. See :class:`pyrepl.Snapshot`."""

    kind = SNAPSHOT

    def refresh(
        self, *, verify: bool = False, wait: bool = True, timeout: float | None = None
    ) -> RemoteOperationResult:
        """It shows what its origin shows now."""
        request = requests.SnapshotRefresh(store=self._key, verify=verify, wait=wait, timeout=timeout)
        return RemoteOperationResult(self._group, self._channel.call(request)[0])

    def delete(self, *, wait: bool = True, timeout: float | None = None) -> RemoteOperationResult:
        """It leaves the group, at every site."""
        request = requests.SnapshotDelete(store=self._key, wait=wait, timeout=timeout)
        return RemoteOperationResult(self._group, self._channel.call(request)[0])


KINDS: dict[str, type[RemoteVolume] | type[RemoteSnapshot]] = {VOLUME: RemoteVolume, SNAPSHOT: RemoteSnapshot}


def handle(group: RemoteGroup, info: StoreInfo, result: RemoteOperationResult | None = None) -> Any:
    """The handle of a store, by its kind."""
    if info.kind not in KINDS:
        raise NotFound(f"{info.name!r} is a {info.kind}, which this version does not know", name=info.name)
    return KINDS[info.kind](group, info, result)


def _result(group: RemoteGroup, made: StoreMade) -> RemoteOperationResult | None:
    return RemoteOperationResult(group, made.operation) if made.operation is not None else None


def as_number(value: Any, what: str) -> int:
    """A whole number of bytes."""
    number = whole(value)
    if number is None:
        raise UsageError(f"{what} {value!r}: give a whole number of bytes")
    return number


def _lsn(value: Any) -> int:
    number = whole(value)
    if number is None:
        raise UsageError(f"rewind to LSN {value!r}: give a whole number, or a datetime")
    return number


def as_bytes(data: Buffer, doing: str) -> memoryview:
    """The bytes of a contiguous buffer."""
    try:
        view = memoryview(data)
    except TypeError as error:
        raise UsageError(
            f"{doing}: {type(data).__name__} has no buffer protocol: give bytes, bytearray, memoryview or an array"
        ) from error
    if not view.contiguous:
        raise UsageError(f"{doing}: the buffer is not contiguous, copy it first")
    return view.cast("B")
