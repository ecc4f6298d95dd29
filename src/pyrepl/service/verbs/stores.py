"""The verbs of volumes and snapshots. Decides nothing of what they mean: that is ``pyrepl.volume``'s."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from pyrepl.errors import UsageError
from pyrepl.kept import KEPT
from pyrepl.remote import frames, requests
from pyrepl.remote.values import OperationInfo, StoreInfo, StoreMade
from pyrepl.service.verbs.call import (
    Call,
    Data,
    made,
    operation_info,
    performed,
    readable_of,
    snapshot_of,
    store_info,
    store_of,
    volume_of,
)
from pyrepl.service.verbs.images import source_of
from pyrepl.volume import View

MOST_DIGEST = 64 << 20  # bytes, so that a request ends soon


def store_show(call: Call, request: requests.StoreShow) -> StoreInfo:
    find = readable_of if request.kind == KEPT else store_of
    return store_info(find(call, request.store, request.kind))


def store_read(call: Call, request: requests.StoreRead) -> Data:
    if request.length > frames.MOST_PAYLOAD:
        raise UsageError(f"reading {request.length} bytes: one request reads at most {frames.MOST_PAYLOAD}")
    data = readable_of(call, request.store).read(request.offset, request.length)
    return Data(len(data), data)


def store_view(call: Call, request: requests.StoreView) -> None:
    store = store_of(call, request.store)
    with store.group.open_view(store) as view:
        call.progress({"id": view.id, "lsn": view.lsn, "size": view.size})
        while store.group.fault is None and not view.closed:
            time.sleep(frames.LOOK)
            call.look()


def view_read(call: Call, request: requests.ViewRead) -> Data:
    if request.length > frames.MOST_PAYLOAD:
        raise UsageError(f"reading {request.length} bytes: one request reads at most {frames.MOST_PAYLOAD}")
    group = call.node.group(request.group)
    group.check()
    data = View(group, None, group.site.views[request.view]).read(request.offset, request.length)
    return Data(len(data), data)


def store_digest(call: Call, request: requests.StoreDigest) -> bytes:
    if request.length > MOST_DIGEST:
        raise UsageError(f"a digest of {request.length} bytes: one request makes one of at most {MOST_DIGEST}")
    return readable_of(call, request.store).digest(request.offset, request.length)


def store_write(call: Call, request: requests.StoreWrite) -> int:
    return store_of(call, request.store).write(request.offset, call.payload, fua=request.fua)


def store_zero(call: Call, request: requests.StoreZero) -> int:
    return store_of(call, request.store).zero(request.offset, request.length)


def store_discard(call: Call, request: requests.StoreDiscard) -> int:
    return store_of(call, request.store).discard(request.offset, request.length)


def store_snapshot(call: Call, request: requests.StoreSnapshot) -> StoreMade:
    store = store_of(call, request.store)
    snapshot = store.snapshot(request.name, verify=request.verify, early=request.early, wait=False,
                              timeout=request.timeout if request.early else None)
    return made(call, snapshot, request)


def store_clone(call: Call, request: requests.StoreClone) -> StoreMade:
    store = store_of(call, request.store)
    volume = store.clone(request.name, request.device, force=request.force, verify=request.verify, wait=False)
    return made(call, volume, request)


def store_synchronize(call: Call, request: requests.StoreSynchronize) -> OperationInfo:
    store = store_of(call, request.store)
    result = store.synchronize(source_of(call, request.source), verify=request.verify, wait=False)
    return performed(call, store.group, result, request)


def volume_restore(call: Call, request: requests.VolumeRestore) -> OperationInfo:
    volume = volume_of(call, request.store)
    source = source_of(call, request.snapshot)
    # By name: that a source is no snapshot is refused by the operation itself.
    result = volume.restore(source.name, extent=request.extent, verify=request.verify, early=request.early, wait=False,
                            timeout=request.timeout if request.early else None)
    return performed(call, volume.group, result, request)


def volume_rewind(call: Call, request: requests.VolumeRewind) -> StoreMade:
    volume = volume_of(call, request.store)
    if (request.to_lsn is None) == (request.to_time is None):
        raise UsageError("a rewind to an LSN, or to a time: give one of the two")
    to: int | datetime
    if request.to_time is None:
        assert request.to_lsn is not None
        to = request.to_lsn
    else:
        try:
            to = datetime.fromtimestamp(request.to_time, UTC)
        except (ValueError, OverflowError, OSError) as error:
            raise UsageError(f"a rewind to the time {request.to_time}: {error}") from error
    made = volume.rewind(to, request.name, timeout=request.timeout, progress=call.progress)
    assert made.result is not None
    return StoreMade(store=store_info(made), operation=operation_info(made.result))


def volume_resize(call: Call, request: requests.VolumeResize) -> OperationInfo:
    volume = volume_of(call, request.store)
    result = volume.resize(request.size, force=request.force, verify=request.verify, wait=False)
    return performed(call, volume.group, result, request)


def volume_remove(call: Call, request: requests.VolumeRemove) -> OperationInfo | None:
    volume = volume_of(call, request.store)
    result = volume.remove(force=request.force, wait=False)
    return None if result is None else performed(call, volume.group, result, request)


def snapshot_refresh(call: Call, request: requests.SnapshotRefresh) -> OperationInfo:
    snapshot = snapshot_of(call, request.store)
    return performed(call, snapshot.group, snapshot.refresh(verify=request.verify, wait=False), request)


def snapshot_delete(call: Call, request: requests.SnapshotDelete) -> OperationInfo:
    snapshot = snapshot_of(call, request.store)
    return performed(call, snapshot.group, snapshot.delete(wait=False), request)


def kept_delete(call: Call, request: requests.KeptDelete) -> None:
    call.node.group(request.store.group).kept_snapshot(request.store.name).delete()
