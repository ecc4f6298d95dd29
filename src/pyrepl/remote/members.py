"""What a set may be made of, and what may be asked of an operation before it is made: one frozen struct for each.

Decides names and types of their arguments, which are those of the request that does the same alone. Must not know what
becomes of a set (``requests``), nor what its members mean (``pyrepl.unordered``, ``pyrepl.explaining``).
"""

from __future__ import annotations

from typing import Any

from msgspec import field

from pyrepl.remote.values import Name, StoreKey, Value


class Member(Value, frozen=True, kw_only=True, tag_field="does"):
    """One operation of a set, with the arguments of the request of that name."""


class MemberSnapshot(Member, frozen=True, kw_only=True, tag="snapshot"):
    store: StoreKey
    name: Name


class MemberClone(Member, frozen=True, kw_only=True, tag="clone"):
    store: StoreKey
    name: Name


class MemberRestore(Member, frozen=True, kw_only=True, tag="restore"):
    store: StoreKey
    snapshot: StoreKey
    extent: tuple[int, int] | None = None


class MemberRefresh(Member, frozen=True, kw_only=True, tag="refresh"):
    store: StoreKey


class MemberSynchronize(Member, frozen=True, kw_only=True, tag="synchronize"):
    store: StoreKey
    source: StoreKey


class MemberCopyRange(Member, frozen=True, kw_only=True, tag="copy-range"):
    source: StoreKey
    target: StoreKey
    offset: int
    length: int


class MemberResize(Member, frozen=True, kw_only=True, tag="resize"):
    store: StoreKey
    size: int
    force: bool = False


class MemberRemove(Member, frozen=True, kw_only=True, tag="remove"):
    store: StoreKey
    force: bool = False


class MemberDelete(Member, frozen=True, kw_only=True, tag="delete"):
    store: StoreKey


class MemberPerform(Member, frozen=True, kw_only=True, tag="perform"):
    plugin: Name
    arguments: dict[str, Any] = field(default_factory=dict)


AnyMember = (
    MemberSnapshot
    | MemberClone
    | MemberRestore
    | MemberRefresh
    | MemberSynchronize
    | MemberCopyRange
    | MemberResize
    | MemberRemove
    | MemberDelete
    | MemberPerform
)


class MemberAddVolume(Member, frozen=True, kw_only=True, tag="add-volume"):
    name: Name
    size: int
    zero: bool = True


class MemberSnapshotAll(Member, frozen=True, kw_only=True, tag="snapshot-all"):
    name: Name
    volumes: tuple[StoreKey, ...] | None = None
    early: bool = False


class MemberWide(Member, frozen=True, kw_only=True, tag="wide"):
    what: Name
    name: Name
    snapshot: Name | None = None
    volumes: tuple[StoreKey, ...] | None = None
    early: bool = False


class MemberEarlySnapshot(Member, frozen=True, kw_only=True, tag="early-snapshot"):
    store: StoreKey
    name: Name


class MemberEarlyRestore(Member, frozen=True, kw_only=True, tag="early-restore"):
    store: StoreKey
    snapshot: StoreKey


class MemberMark(Member, frozen=True, kw_only=True, tag="mark"):
    name: Name
    message: bytes = b""


AnyExplained = (
    AnyMember | MemberAddVolume | MemberSnapshotAll | MemberWide | MemberEarlySnapshot | MemberEarlyRestore | MemberMark
)
