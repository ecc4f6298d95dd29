"""A node in another process, with the nouns and verbs of the API: ``pyrepl.connect()``.

    frames     how bytes become frames           channel   connections, calls, errors
    messages   what can be asked                 node, group, stores, results   the handles

Knows the public API, whose shape it repeats, and no engine. A test holds the two beside each other.
"""

from __future__ import annotations

from pyrepl.remote.group import RemoteGroup, RemoteLink
from pyrepl.remote.images import RemoteImage
from pyrepl.remote.node import SOCKET, RemoteExport, RemoteNode, connect
from pyrepl.remote.results import RemoteEvents, RemoteOperationResult
from pyrepl.remote.stores import RemoteSnapshot, RemoteVolume
from pyrepl.remote.views import RemoteView

__all__ = [
    "SOCKET",
    "RemoteEvents",
    "RemoteExport",
    "RemoteGroup",
    "RemoteImage",
    "RemoteLink",
    "RemoteNode",
    "RemoteOperationResult",
    "RemoteSnapshot",
    "RemoteView",
    "RemoteVolume",
    "connect",
]
