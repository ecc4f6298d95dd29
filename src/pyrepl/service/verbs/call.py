"""What verbs have in common: the call as they see it, handles from names, and results as they travel.

An operation is admitted first and waited for afterwards, with ``call.progress``, so that a client that goes away ends
the waiting and never the operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from pyrepl.catalog import SNAPSHOT, VOLUME
from pyrepl.errors import NotFound, PyreplError
from pyrepl.kept import KEPT, KeptSnapshot
from pyrepl.remote import messages, requests
from pyrepl.remote.values import (
    ExportInfo,
    GroupInfo,
    LinkInfo,
    MemberInfo,
    OperationInfo,
    StoreInfo,
    StoreKey,
    StoreMade,
)

if TYPE_CHECKING:
    from pyrepl.attachment import Attachment
    from pyrepl.group import Group
    from pyrepl.nbd.exports import Export
    from pyrepl.node import Node
    from pyrepl.results import OperationResult
    from pyrepl.volume import Snapshot, Store, Volume


class Call(Protocol):
    """One request under way, as its function sees it."""

    node: Node
    payload: bytes

    def progress(self, told: dict[str, Any]) -> None:
        """Tells the client. Raises if it is gone, or the daemon is about to stop."""

    def look(self) -> None:
        """The same without telling anything."""

    def metrics(self) -> str:
        """The metrics of the daemon."""

    def jobs(self, group: str | None) -> list[dict[str, Any]]:
        """The commands of this daemon, or of one group."""

    def may_listen(self, host: str, port: int) -> None:
        """Raises if nothing may listen there."""


class ClientGone(PyreplError):
    """Whoever waited has ended the connection: the waiting ends, what was waited for goes on."""


class Data(NamedTuple):
    """An answer with a payload."""

    value: Any
    payload: bytes


class Verb(NamedTuple):
    """What a request does. ``changes``: it changes something, so it is a job (``service.jobs``)."""

    perform: Callable[[Any, Any], Any]
    changes: bool = False


def store_of(call: Call, key: StoreKey, kind: str = "") -> Store:
    """The handle of the store that a client means.

    Raises:
        NotFound: there is none, or the one that was meant was deleted.
    """
    group = call.node.group(key.group)
    store = group.volume(key.name) if kind == VOLUME else group.store(key.name)
    if key.id and key.id != store.id and key.identity == identity_of(group):
        raise NotFound(
            f"group {group.name!r}: the {store.kind} {key.name!r} that was meant was deleted; another has its name now",
            name=key.name,
        )
    if kind and store.kind != kind:
        raise NotFound(f"group {group.name!r} has no {kind} {key.name!r}: it is a {store.kind}", name=key.name)
    return store


def readable_of(call: Call, key: StoreKey, kind: str = "") -> Store | KeptSnapshot:
    """The handle of a store that a client means, or of what the site keeps under that name.

    Raises:
        NotFound: there is neither.
    """
    if kind != KEPT:
        try:
            return store_of(call, key, kind)
        except NotFound:
            if kind or key.name not in {kept.name for kept in call.node.group(key.group).kept}:
                raise
    return call.node.group(key.group).kept_snapshot(key.name)


def volume_of(call: Call, key: StoreKey) -> Volume:
    return cast("Volume", store_of(call, key, VOLUME))


def snapshot_of(call: Call, key: StoreKey) -> Snapshot:
    return cast("Snapshot", store_of(call, key, SNAPSHOT))


def identity_of(group: Group) -> str:
    known = group.site.group_id
    return known.hex() if known is not None else ""


def store_info(store: Store | KeptSnapshot) -> StoreInfo:
    return StoreInfo(
        group=store.group.name,
        name=store.name,
        id=store.id,
        identity=identity_of(store.group),
        kind=store.kind,
        size=store.size,
        device=store.device,
    )


def group_info(group: Group) -> GroupInfo:
    fault = group.fault
    if fault is not None:
        return GroupInfo(name=group.name, state=group.state, fault=messages.failure_of(fault))
    return GroupInfo(
        name=group.name,
        state=group.state,
        role=group.role,
        region_size=group.region_size,
        alignment=group.alignment,
        applied_lsn=group.applied_lsn,
    )


def export_info(export: Export) -> ExportInfo:
    return ExportInfo(name=export.name, group=export.group.name, store=export.store, read_only=export.read_only)


def link_info(group: Group, link: Attachment) -> LinkInfo:
    return LinkInfo(
        group=group.name,
        name=link.name,
        address=link.address,
        mode=link.mode,
        bandwidth=link.bandwidth,
        dead=link.dead,
        most_lag_bytes=link.most_lag_bytes,
        most_lag_seconds=link.most_lag_seconds,
    )


def made(call: Call, store: Store, request: requests.Performs[Any]) -> StoreMade:
    result = store.result
    operation = None if result is None else performed(call, store.group, result, request)
    return StoreMade(store=store_info(store), operation=operation)


def performed(call: Call, group: Group, result: OperationResult, request: requests.Performs[Any]) -> OperationInfo:
    if request.wait:
        result.wait_all(request.timeout, call.progress)
    return operation_info(result)


def operation_info(result: OperationResult) -> OperationInfo:
    return OperationInfo(
        lsn=result.lsn,
        kind=result.kind,
        state=result.state,
        links=result.links,
        created=result.created,
        bytes_changed=result.bytes_changed,
        bytes_avoided=result.bytes_avoided,
        stores=tuple(store_info(snapshot) for snapshot in result.snapshots),
        members=tuple(
            MemberInfo(kind=member.kind, created=member.created, bytes_changed=member.bytes_changed,
                       digest=member.digest, failed=member.failed)
            for member in result.members
        ),
        outcomes=() if result.digest is None or result.failed is None else ((result.digest, result.failed),),
        details=result.details,
        verification=result.verification,
    )
