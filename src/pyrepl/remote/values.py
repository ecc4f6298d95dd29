"""What requests and answers are made of: how things are named, and what is told of each.

Decides which fields a thing has on the control socket; ``docs/control.md`` has the table, and a test holds it beside
this list. Must not know who asks for it (``requests``), nor how it travels (``messages``).
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

Name = Annotated[str, Meta(max_length=1024)]  # longer than any name may be: the API words the refusal
Place = Annotated[str, Meta(max_length=4096)]  # a path, or an address


class Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What travels: frozen, all fields named, nothing unknown."""


class Failure(Value, frozen=True, kw_only=True, tag="failure"):
    """An error of :mod:`pyrepl.errors`."""

    code: str
    text: str
    retryable: bool = False
    context: dict[str, Any] = {}
    errno: int | None = None
    filename: str | None = None


class StoreKey(Value, frozen=True, kw_only=True):
    """A store as a handle knows it. ``id`` 0: whatever has the name now. ``identity``: that of the group when the
    number was given; in a group that was paired since, it is another."""

    group: Name
    name: Name
    id: int = 0
    identity: str = ""


class StoreInfo(Value, frozen=True, kw_only=True):
    """A store as it is."""

    group: str
    name: str
    id: int
    identity: str
    kind: str
    size: int
    device: str | None


class MemberInfo(Value, frozen=True, kw_only=True):
    """An operation of a set. ``bytes_changed``: None until it is performed. Of a plug-in ``digest``, what it said of
    what it did, and ``failed``, why it did nothing."""

    kind: str
    created: dict[str, int]
    bytes_changed: int | None = None
    digest: bytes | None = None
    failed: str | None = None


class OperationInfo(Value, frozen=True, kw_only=True):
    """An operation that has its place in the order. ``links``: of the group when it was admitted. ``outcomes``: once it
    is performed, (digest, why it failed) of the plug-in, or of each member of a set."""

    lsn: int
    kind: str
    state: str
    links: int
    created: dict[str, int]
    bytes_changed: int | None = None
    bytes_avoided: int | None = None
    stores: tuple[StoreInfo, ...] = ()
    members: tuple[MemberInfo, ...] = ()
    figures: tuple[int, ...] = ()
    outcomes: tuple[tuple[bytes, str], ...] = ()
    verification: dict[str, Any] | None = None
    details: dict[str, int] = {}


class StoreMade(Value, frozen=True, kw_only=True):
    """A store and the operation that made it; no operation: prepared on a fresh secondary."""

    store: StoreInfo
    operation: OperationInfo | None


class GroupInfo(Value, frozen=True, kw_only=True):
    """A group; of one that failed ``fault``, and None for what cannot be known then."""

    name: str
    state: str
    fault: Failure | None = None
    role: str | None = None
    region_size: int | None = None
    alignment: int | None = None
    applied_lsn: int | None = None


class ImageInfo(Value, frozen=True, kw_only=True):
    """An image as it is at this site. ``digest``: SHA-256, hexadecimal. ``device``: its path."""

    group: str
    name: str
    id: int
    size: int
    digest: str
    device: str
    state: str


class LinkInfo(Value, frozen=True, kw_only=True):
    """What is chosen for a link. `bandwidth`: bytes per second, `dead`: seconds; 0 of the others: no bound."""

    group: str
    name: str
    address: str
    mode: str
    bandwidth: int
    dead: float
    most_lag_bytes: int
    most_lag_seconds: float


class ExportInfo(Value, frozen=True, kw_only=True):
    """What of an export does not change."""

    name: str
    group: str
    store: str
    read_only: bool | None


class NodeInfo(Value, frozen=True, kw_only=True):
    """What of a node does not change."""

    name: str
    node_id: str
    path: str
