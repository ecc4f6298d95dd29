"""The verbs of a node. Decides nothing of what they mean: that is ``pyrepl.node``'s."""

from __future__ import annotations

from typing import Any

from pyrepl.errors import Refused, UsageError, WaitTimeout
from pyrepl.remote import frames, requests
from pyrepl.remote.values import ExportInfo, NodeInfo
from pyrepl.runtime.certificates import TlsFiles
from pyrepl.service.verbs.call import Call, export_info, store_of


def node_show(call: Call, _: requests.NodeShow) -> NodeInfo:
    node = call.node
    return NodeInfo(name=node.name, node_id=node.node_id.hex(), path=str(node.path))


def node_status(call: Call, _: requests.NodeStatus) -> dict[str, Any]:
    return call.node.status()


def node_groups(call: Call, _: requests.NodeGroups) -> tuple[str, ...]:
    return tuple(group.name for group in call.node.groups)


def node_events(call: Call, _: requests.NodeEvents) -> None:
    stream = call.node.events()
    try:
        call.progress({})  # the client knows now that it will miss nothing
        while True:
            try:
                event = stream.get(frames.LOOK)
            except WaitTimeout:
                call.look()
                continue
            if event is None:
                return
            call.progress({**event, "missed": stream.missed})
    except Refused:
        return  # the daemon is stopping, and with it the node
    finally:
        stream.close()


def node_listen(call: Call, request: requests.NodeListen) -> tuple[str, int]:
    call.may_listen(request.host, request.port)
    return call.node.listen(request.host, request.port)


def node_listen_nbd(call: Call, request: requests.NodeListenNbd) -> str:
    tls = None
    if request.certificate is not None or request.key is not None:
        if request.certificate is None or request.key is None:
            raise UsageError("TLS needs a certificate and its key: give both")
        tls = TlsFiles(certificate=request.certificate, key=request.key, ca=request.ca)
    elif request.ca is not None:
        raise UsageError("a CA without a certificate and a key: give all three")
    return call.node.listen_nbd(request.address, tls=tls, insecure=request.insecure)


def node_stop_nbd(call: Call, request: requests.NodeStopNbd) -> None:
    call.node.stop_nbd(request.address)


def node_jobs(call: Call, request: requests.NodeJobs) -> list[dict[str, Any]]:
    return call.jobs(request.group)


def node_metrics(call: Call, _: requests.NodeMetrics) -> str:
    return call.metrics()


# ---------------------------------------------------------------- exports


def export_start(call: Call, request: requests.ExportStart) -> ExportInfo:
    store = store_of(call, request.of)
    export = call.node.start_export(request.name, store.group, store, read_only=request.read_only, keep=request.keep,
                                    trial=request.trial)
    return export_info(export)


def export_stop(call: Call, request: requests.ExportStop) -> None:
    call.node.stop_export(request.name, force=request.force)


def export_list(call: Call, _: requests.ExportList) -> tuple[ExportInfo, ...]:
    return tuple(export_info(export) for export in call.node.exports)


def export_show(call: Call, request: requests.ExportShow) -> ExportInfo:
    return export_info(call.node.export(request.name))


def export_status(call: Call, request: requests.ExportStatus) -> dict[str, Any]:
    return call.node.export(request.name).status()
