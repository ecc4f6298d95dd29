"""Operations that a client collects in a ``with`` block, to make them or to ask what they cost; the daemon is asked
once, when the block ends.

Decides nothing of what its members mean: see ``pyrepl.unordered`` and ``pyrepl.explaining``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyrepl.errors import UsageError
from pyrepl.remote import members, requests
from pyrepl.remote.members import AnyExplained, AnyMember
from pyrepl.remote.results import RemoteOperationResult
from pyrepl.results import check_timeout

if TYPE_CHECKING:
    from pyrepl.remote.group import RemoteGroup
    from pyrepl.remote.images import RemoteImage
    from pyrepl.remote.stores import RemoteSnapshot, RemoteStore, RemoteVolume
    from pyrepl.runtime.plugins import Operation as PluginOperation
    from pyrepl.volume import Extent


class _Collected:
    """Operations that are wanted: their stores by handle or by name."""

    def __init__(self, group: RemoteGroup, *, timeout: float | None) -> None:
        self._group = group
        self._timeout = check_timeout(timeout)
        self._members: list[AnyMember | AnyExplained] = []
        self._open = True

    def snapshot(self, store: RemoteStore | str, name: str) -> None:
        """A snapshot of the store."""
        self._add(members.MemberSnapshot(store=self._group.key_of(store), name=name))

    def clone(self, store: RemoteStore | RemoteImage | str, name: str) -> None:
        """A new volume with the content of the store or image."""
        self._add(members.MemberClone(store=self._group.key_of(store), name=name))

    def restore(
        self,
        volume: RemoteVolume | str,
        snapshot: RemoteSnapshot | RemoteImage | str,
        *,
        extent: Extent | tuple[int, int] | None = None,
    ) -> None:
        """The volume shows again what the snapshot or image shows, whole or on an extent."""
        try:
            pair = None if extent is None else (extent[0], extent[1])
        except (TypeError, IndexError):
            raise UsageError(f"extent={extent!r}: give pyrepl.Extent(offset, length)") from None
        self._add(members.MemberRestore(
            store=self._group.key_of(volume), snapshot=self._group.key_of(snapshot), extent=pair))

    def refresh(self, snapshot: RemoteSnapshot | str) -> None:
        """The snapshot shows what its origin shows now."""
        self._add(members.MemberRefresh(store=self._group.key_of(snapshot)))

    def synchronize(self, target: RemoteStore | str, source: RemoteStore | RemoteImage | str) -> None:
        """``target`` becomes equal to ``source``."""
        self._add(members.MemberSynchronize(store=self._group.key_of(target), source=self._group.key_of(source)))

    def copy_range(
        self, source: RemoteStore | RemoteImage | str, target: RemoteStore | str, offset: int, length: int
    ) -> None:
        """The range of ``target`` becomes equal to the same range of ``source``."""
        self._add(members.MemberCopyRange(
            source=self._group.key_of(source), target=self._group.key_of(target), offset=offset, length=length))

    def resize(self, volume: RemoteVolume | str, size: int, *, force: bool = False) -> None:
        """The volume gets another size."""
        self._add(members.MemberResize(store=self._group.key_of(volume), size=size, force=force))

    def remove(self, volume: RemoteVolume | str, *, force: bool = False) -> None:
        """The volume leaves the group."""
        self._add(members.MemberRemove(store=self._group.key_of(volume), force=force))

    def delete(self, snapshot: RemoteSnapshot | str) -> None:
        """The snapshot leaves the group."""
        self._add(members.MemberDelete(store=self._group.key_of(snapshot)))

    def perform(self, operation: PluginOperation | str, arguments: Mapping[str, Any] | None = None) -> None:
        """What a plug-in does."""
        from pyrepl.plugin import told

        name, given = told(operation, arguments)
        self._add(members.MemberPerform(plugin=name, arguments=given))

    def _add(self, member: AnyMember | AnyExplained) -> None:
        if not self._open:
            raise UsageError("the with block of these operations has ended: begin another")
        self._members.append(member)


class RemoteUnorderedSet(_Collected):
    """A set of operations of a node in another process. See :class:`pyrepl.UnorderedSet`."""

    def __init__(self, group: RemoteGroup, *, verify: bool, wait: bool, timeout: float | None) -> None:
        super().__init__(group, timeout=timeout)
        self._verify, self._wait = verify, wait
        self._result: RemoteOperationResult | None = None

    @property
    def result(self) -> RemoteOperationResult:
        """The operation that the set became; its ``members`` are in the order of the calls."""
        if self._result is None:
            raise UsageError("the set has its place in the order when its with block has ended, and not before")
        return self._result

    def __enter__(self) -> RemoteUnorderedSet:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if not self._open:
            return
        self._open = False
        if kind is None:
            members = tuple(member for member in self._members if isinstance(member, AnyMember))
            request = requests.GroupUnordered(
                group=self._group.name, members=members, verify=self._verify, wait=self._wait, timeout=self._timeout)
            self._result = RemoteOperationResult(self._group, self._group.channel.call(request)[0])


class RemoteExplanation(_Collected):
    """What operations of a node in another process would change and cost. See :class:`pyrepl.Explanation`."""

    def __init__(self, group: RemoteGroup, *, timeout: float | None) -> None:
        super().__init__(group, timeout=timeout)
        self._result: dict[str, Any] | None = None

    @property
    def result(self) -> dict[str, Any]:
        """What they would change and cost; see :meth:`pyrepl.Group.explain`."""
        if self._result is None:
            raise UsageError("what operations would cost is known when their with block has ended, and not before")
        return self._result

    def add_volume(self, name: str, *, size: int, zero: bool = True) -> None:
        """A volume enters the group."""
        self._add(members.MemberAddVolume(name=name, size=size, zero=zero))

    def snapshot_all(
        self, name: str, *, volumes: list[RemoteVolume | str] | None = None, early: bool = False
    ) -> None:
        """Snapshots of all volumes, or of these, at one LSN."""
        chosen = None if volumes is None else tuple(self._group.key_of(volume) for volume in volumes)
        self._add(members.MemberSnapshotAll(name=name, volumes=chosen, early=early))

    def early_snapshot(self, store: RemoteStore | str, name: str) -> None:
        """A snapshot that the secondaries make first."""
        self._add(members.MemberEarlySnapshot(store=self._group.key_of(store), name=name))

    def early_restore(
        self, volume: RemoteVolume | str, snapshot: RemoteSnapshot | RemoteImage | str
    ) -> None:
        """A restore that the secondaries perform first."""
        self._add(members.MemberEarlyRestore(
            store=self._group.key_of(volume), snapshot=self._group.key_of(snapshot)))

    def restore_all(
        self, name: str, *, volumes: list[RemoteVolume | str] | None = None, early: bool = False
    ) -> None:
        """All volumes, or these, show again what a snapshot of the group shows."""
        self._wide("restore", name, volumes, early=early)

    def refresh_all(self, name: str, *, volumes: list[RemoteVolume | str] | None = None) -> None:
        """A snapshot of the group, or of these volumes, shows what they show now."""
        self._wide("refresh", name, volumes)

    def clone_all(
        self, name: str, *, snapshot: str | None = None, volumes: list[RemoteVolume | str] | None = None
    ) -> None:
        """New volumes with the content of all, or of these, or of a snapshot of them."""
        self._wide("clone", name, volumes, snapshot)

    def delete_all(self, name: str, *, volumes: list[RemoteVolume | str] | None = None) -> None:
        """A snapshot of the group, or of these volumes, leaves it."""
        self._wide("delete", name, volumes)

    def _wide(
        self, what: str, name: str, volumes: list[RemoteVolume | str] | None, snapshot: str | None = None, *,
        early: bool = False,
    ) -> None:
        chosen = None if volumes is None else tuple(self._group.key_of(volume) for volume in volumes)
        self._add(members.MemberWide(what=what, name=name, snapshot=snapshot, volumes=chosen, early=early))

    def mark(self, name: str, payload: bytes = b"") -> None:
        """A message at this point of the order."""
        self._add(members.MemberMark(name=name, message=payload))

    def __enter__(self) -> RemoteExplanation:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if not self._open:
            return
        self._open = False
        if kind is None:
            request = requests.GroupExplain(
                group=self._group.name, members=tuple(self._members), timeout=self._timeout)
            self._result = self._group.channel.call(request)[0]
