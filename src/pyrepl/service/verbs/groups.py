"""The verbs of a group and its links. Decides nothing of what they mean: that is ``pyrepl.group``'s."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pyrepl.catalog import SNAPSHOT, VOLUME
from pyrepl.errors import NotFound, UsageError
from pyrepl.kept import KEPT
from pyrepl.options import SiteOptions
from pyrepl.remote import members, requests
from pyrepl.remote.values import GroupInfo, LinkInfo, OperationInfo, StoreInfo, StoreKey, StoreMade
from pyrepl.results import ADMITTED, PERFORMED, figures_of
from pyrepl.service.verbs.call import Call, group_info, link_info, made, performed, store_info, store_of, volume_of
from pyrepl.service.verbs.images import source_of
from pyrepl.wide import wide

if TYPE_CHECKING:
    from pyrepl.unordered import Collected
    from pyrepl.volume import Snapshot, Volume


def group_create(call: Call, request: requests.GroupCreate) -> GroupInfo:
    options = request.options
    if options is not None and not options.keys() <= set(SiteOptions.__struct_fields__):
        raise UsageError(f"options {sorted(options)}: the options of a group are {list(SiteOptions.__struct_fields__)}")
    group = call.node.create_group(
        request.group,
        request.journal,
        journal_size=request.journal_size,
        role=request.role,  # type: ignore[arg-type]  # it is judged there
        region_size=request.region_size,
        alignment=request.alignment,
        resume=request.resume,  # type: ignore[arg-type]
        force=request.force,
        ordering=request.ordering,  # type: ignore[arg-type]
        options=None if options is None else SiteOptions(**options),
    )
    return group_info(group)


def group_import(call: Call, request: requests.GroupImport) -> GroupInfo:
    resume = request.resume
    return group_info(call.node.import_group(request.journal, resume=resume, force=request.force))  # type: ignore[arg-type]


def group_open(call: Call, request: requests.GroupOpen) -> GroupInfo:
    return group_info(call.node.open_group(request.group))


def group_delete(call: Call, request: requests.GroupDelete) -> tuple[str, ...]:
    return tuple(call.node.delete_group(request.group, force=request.force))


def group_show(call: Call, request: requests.GroupShow) -> GroupInfo:
    return group_info(call.node.group(request.group))


def group_status(call: Call, request: requests.GroupStatus) -> dict[str, Any]:
    return call.node.group(request.group).status()


def group_stores(call: Call, request: requests.GroupStores) -> tuple[StoreInfo, ...]:
    group = call.node.group(request.group)
    found: list[Volume | Snapshot] = []
    if request.kind in ("", VOLUME):
        found += group.volumes
    if request.kind in ("", SNAPSHOT):
        found += group.snapshots
    if request.kind == KEPT:
        return tuple(store_info(kept) for kept in group.kept)
    infos = []
    for store in found:
        with suppress(NotFound):  # deleted since
            infos.append(store_info(store))
    return tuple(infos)


def group_add_volume(call: Call, request: requests.GroupAddVolume) -> StoreMade:
    volume = call.node.group(request.group).add_volume(
        request.name, request.device_path, size=request.size, zero=request.zero, force=request.force, wait=False
    )
    return made(call, volume, request)


def group_snapshot(call: Call, request: requests.GroupSnapshot) -> OperationInfo:
    group = call.node.group(request.group)
    volumes = None if request.volumes is None else [volume_of(call, key) for key in request.volumes]
    result = group.snapshot(
        request.name, volumes=volumes, verify=request.verify, early=request.early, wait=False,  # type: ignore[arg-type]
        timeout=request.timeout if request.early else None)
    return performed(call, group, result, request)


def group_wide(call: Call, request: requests.GroupWide) -> OperationInfo:
    group = call.node.group(request.group)
    volumes: list[Volume | str] | None = (
        None if request.volumes is None else [_known(call, key) for key in request.volumes])
    if request.early:
        if request.what != "restore":
            raise UsageError(f"{request.what!r} of a whole group cannot be early: a snapshot or a restore can")
        result = group.restore(request.name, volumes=volumes, verify=request.verify, early=True, wait=False,
                               timeout=request.timeout)
        return performed(call, group, result, request)
    make = wide(group, request.what, request.name, volumes, request.snapshot)
    return performed(call, group, group.operate(make, verify=request.verify, wait=False), request)


def group_copy_range(call: Call, request: requests.GroupCopyRange) -> OperationInfo:
    group = call.node.group(request.group)
    result = group.copy_range(
        source_of(call, request.source),
        request.source_offset,
        store_of(call, request.target),
        request.target_offset,
        request.length,
        verify=request.verify,
        wait=False,
    )
    return performed(call, group, result, request)


def group_unordered(call: Call, request: requests.GroupUnordered) -> OperationInfo:
    group = call.node.group(request.group)
    with group.unordered(verify=request.verify, wait=False) as ops:
        for member in request.members:
            _add(call, ops, member)
    return performed(call, group, ops.result, request)


def group_explain(call: Call, request: requests.GroupExplain) -> dict[str, Any]:
    with call.node.group(request.group).explain(timeout=request.timeout) as ops:
        for member in request.members:
            match member:
                case members.MemberAddVolume(name=name, size=size, zero=zero):
                    ops.add_volume(name, size=size, zero=zero)
                case members.MemberSnapshotAll(name=name, volumes=volumes, early=early):
                    names: list[Volume | str] = [_known(call, key) for key in volumes or ()]
                    ops.snapshot_all(name, volumes=None if volumes is None else names, early=early)
                case members.MemberWide(what=what, name=name, snapshot=snapshot, volumes=volumes, early=early):
                    of: list[Volume | str] | None = None if volumes is None else [_known(call, key) for key in volumes]
                    match what:
                        case "restore":
                            ops.restore_all(name, volumes=of, early=early)
                        case "refresh":
                            ops.refresh_all(name, volumes=of)
                        case "clone":
                            ops.clone_all(name, snapshot=snapshot, volumes=of)
                        case _:
                            ops.delete_all(name, volumes=of)
                case members.MemberEarlySnapshot(store=store, name=name):
                    ops.early_snapshot(_known(call, store), name)
                case members.MemberEarlyRestore(store=store, snapshot=source):
                    ops.early_restore(_known(call, store), _known(call, source))
                case members.MemberMark(name=name, message=message):
                    ops.mark(name, message)
                case _:
                    _add(call, ops, member)
    return ops.result


def _add(call: Call, ops: Collected, member: members.AnyMember) -> None:
    match member:
        case members.MemberSnapshot(store=store, name=name):
            ops.snapshot(_known(call, store), name)
        case members.MemberClone(store=store, name=name):
            ops.clone(_known(call, store), name)
        case members.MemberRestore(store=store, snapshot=snapshot, extent=extent):
            ops.restore(_known(call, store), _known(call, snapshot), extent=extent)
        case members.MemberRefresh(store=store):
            ops.refresh(_known(call, store))
        case members.MemberSynchronize(store=store, source=source):
            ops.synchronize(_known(call, store), _known(call, source))
        case members.MemberCopyRange(source=source, target=target, offset=offset, length=length):
            ops.copy_range(_known(call, source), _known(call, target), offset, length)
        case members.MemberResize(store=store, size=size, force=force):
            ops.resize(_known(call, store), size, force=force)
        case members.MemberRemove(store=store, force=force):
            ops.remove(_known(call, store), force=force)
        case members.MemberDelete(store=store):
            ops.delete(_known(call, store))
        case members.MemberPerform(plugin=plugin, arguments=arguments):
            ops.perform(plugin, arguments)


def _known(call: Call, key: StoreKey) -> str:
    """The name of the store that a client means. One that was meant by name alone may be a member's that is to make it:
    the set itself then says what is wrong."""
    return source_of(call, key).name if key.id else key.name


def group_perform(call: Call, request: requests.GroupPerform) -> OperationInfo:
    group = call.node.group(request.group)
    result = group.perform(request.plugin, request.arguments, verify=request.verify, wait=False)
    return performed(call, group, result, request)


def group_mark(call: Call, request: requests.GroupMark) -> OperationInfo:
    group = call.node.group(request.group)
    return performed(call, group, group.mark(request.name, request.message, wait=False), request)


def group_set_delay(call: Call, request: requests.GroupSetDelay) -> None:
    call.node.group(request.group).set_delay(request.seconds)


def group_flush(call: Call, request: requests.GroupFlush) -> int:
    return call.node.group(request.group).flush()


def group_wait(call: Call, request: requests.GroupWait) -> int:
    group = call.node.group(request.group)
    return group.wait(request.lsn, where=request.where, timeout=request.timeout, progress=call.progress)


def group_operation(call: Call, request: requests.GroupOperation) -> OperationInfo:
    group = call.node.group(request.group)
    state = PERFORMED if group.applied_lsn >= request.lsn else ADMITTED
    figures = figures_of(group, request.lsn)
    judged = group.comparisons.find(request.lsn)
    return OperationInfo(
        lsn=request.lsn,
        kind="",
        state=state,
        links=0,
        created={},
        bytes_changed=figures.changed,
        bytes_avoided=figures.avoided,
        figures=tuple(figures.members),
        outcomes=tuple(figures.outcomes),
        verification=judged.result() if judged is not None else None,
    )


def group_verified(call: Call, request: requests.GroupVerified) -> dict[str, Any]:
    group = call.node.group(request.group)
    judged = group.comparisons.find(request.lsn)
    if judged is None:
        raise UsageError(
            f"group {group.name!r}: nothing is known of a comparison of what stands at LSN {request.lsn}: only the "
            f"result of an operation that is made to be verified is compared, and known until the group is closed",
            lsn=request.lsn,
        )
    return judged.wait(request.timeout, call.progress)


def group_operations(call: Call, request: requests.GroupOperations) -> list[dict[str, Any]]:
    return call.node.group(request.group).operations(request.earlier)


def group_latency(call: Call, request: requests.GroupLatency) -> dict[str, Any]:
    return call.node.group(request.group).latency()


def group_add_link(call: Call, request: requests.GroupAddLink) -> LinkInfo:
    group = call.node.group(request.group)
    mode: Any = request.mode  # it is judged there
    return link_info(group, group.add_link(request.name, request.address, mode=mode, bandwidth=request.bandwidth))


def group_remove_link(call: Call, request: requests.GroupRemoveLink) -> None:
    call.node.group(request.group).remove_link(request.name)


def group_links(call: Call, request: requests.GroupLinks) -> tuple[LinkInfo, ...]:
    group = call.node.group(request.group)
    return tuple(link_info(group, link) for link in group.links)


def group_verify(call: Call, request: requests.GroupVerify) -> dict[str, Any]:
    return call.node.group(request.group).verify(
        repair=request.repair, link=request.link, timeout=request.timeout, progress=call.progress
    )


def group_demote(call: Call, request: requests.GroupDemote) -> int:
    return call.node.group(request.group).demote(timeout=request.timeout, force=request.force)


def group_promote(call: Call, request: requests.GroupPromote) -> int:
    return call.node.group(request.group).promote(alone=request.alone, force=request.force)


def group_takeover(call: Call, request: requests.GroupTakeover) -> int:
    return call.node.group(request.group).takeover(dry_run=request.dry_run, force=request.force)


def group_migrate(call: Call, request: requests.GroupMigrate) -> int:
    group = call.node.group(request.group)
    return group.migrate(request.link, timeout=request.timeout, back=request.back, force=request.force)


def group_resolve(call: Call, request: requests.GroupResolve) -> int:
    return call.node.group(request.group).resolve(request.loser)


def group_unprotect(call: Call, request: requests.GroupUnprotect) -> None:
    call.node.group(request.group).unprotect()


def group_loss(call: Call, request: requests.GroupLoss) -> dict[str, Any]:
    return call.node.group(request.group).loss(request.loser)


def link_show(call: Call, request: requests.LinkShow) -> LinkInfo:
    group = call.node.group(request.group)
    return link_info(group, group.link(request.name))


def link_status(call: Call, request: requests.LinkStatus) -> dict[str, Any]:
    return call.node.group(request.group).link(request.name).status()


def link_set(call: Call, request: requests.LinkSet) -> None:
    mode: Any = request.mode  # it is judged there
    call.node.group(request.group).link(request.name).set(
        mode=mode, address=request.address, bandwidth=request.bandwidth, dead=request.dead,
        most_lag_bytes=request.most_lag_bytes, most_lag_seconds=request.most_lag_seconds,
    )


def link_pause(call: Call, request: requests.LinkPause) -> None:
    call.node.group(request.group).link(request.name).pause()


def link_resume(call: Call, request: requests.LinkResume) -> None:
    call.node.group(request.group).link(request.name).resume()


def link_wait_synced(call: Call, request: requests.LinkWaitSynced) -> dict[str, Any]:
    return call.node.group(request.group).link(request.name).wait_synced(request.timeout, call.progress)


def link_wait_applied(call: Call, request: requests.LinkWaitApplied) -> None:
    call.node.group(request.group).link(request.name).wait_applied(request.lsn, request.timeout, call.progress)


def link_divergent(call: Call, request: requests.LinkDivergent) -> tuple[tuple[int, int], ...]:
    extents = call.node.group(request.group).link(request.name).divergent(store_of(call, request.of))
    return tuple((extent.offset, extent.length) for extent in extents)
