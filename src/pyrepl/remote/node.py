"""A node in another process: the verbs of ``node`` over the control socket, and how it is reached.

Decides nothing of what a verb means; the arguments are described where it is defined.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from pyrepl.errors import UsageError
from pyrepl.options import SiteOptions
from pyrepl.remote import requests
from pyrepl.remote.channel import Channel
from pyrepl.remote.group import RemoteGroup, there
from pyrepl.remote.results import RemoteEvents
from pyrepl.remote.values import ExportInfo

if TYPE_CHECKING:
    from pyrepl.remote.stores import RemoteStore
    from pyrepl.runtime.certificates import TlsFiles

SOCKET = "/run/pyrepl/control.sock"


def connect(socket: str | os.PathLike[str] = SOCKET, *, timeout: float = 10.0) -> RemoteNode:
    """Connects to the daemon behind this control socket.

    Args:
        socket: its path.
        timeout: seconds to wait for its welcome.

    Returns:
        the node, with the nouns and verbs of :class:`pyrepl.Node`; a context manager. Safe to use from many threads: as
        many calls as there are threads are under way at once.

    Raises:
        NotFound: there is no such socket.
        PeerError: nobody listens there, or nobody answers.
        Refused: this user may not (``reason="credentials"``).
    """
    try:
        path = os.fspath(socket)
    except TypeError:
        raise UsageError(f"socket {socket!r:.80}: give the path of the daemon's control socket") from None
    if not isinstance(path, str) or not path or "\0" in path:
        raise UsageError(f"socket {path!r:.80}: give the path of the daemon's control socket")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= 86400:
        raise UsageError(f"timeout={timeout!r}: give seconds, more than 0 and at most a day")
    channel = Channel(path, timeout)
    try:
        return RemoteNode(channel)
    except BaseException:
        channel.close()
        raise


class RemoteExport:
    """An export of a node in another process. See :class:`pyrepl.nbd.exports.Export`."""

    def __init__(self, node: RemoteNode, info: ExportInfo) -> None:
        self._node = node
        self._info = info

    @property
    def name(self) -> str:
        return self._info.name

    @property
    def group(self) -> RemoteGroup:
        return RemoteGroup(self._node.channel, self._info.group)

    @property
    def store(self) -> str:
        """The name of the store that it shows."""
        return self._info.store

    @property
    def read_only(self) -> bool | None:
        """True: never writable."""
        return self._info.read_only

    @property
    def clients(self) -> int:
        """Connections in the transmission phase."""
        return int(self.status()["clients"])

    def status(self) -> dict[str, Any]:
        """``state``: serving, held (cannot be shown now: ``reason``) or gone (its store was deleted)."""
        return self._node.channel.call(requests.ExportStatus(name=self.name))[0]

    def __repr__(self) -> str:
        return f"<export {self.name!r} of {self._info.group}/{self.store}>"


class RemoteNode:
    """A node in another process. Made by :func:`pyrepl.connect`; see :class:`pyrepl.Node`."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._info = channel.call(requests.NodeShow())[0]

    # ---- about it

    @property
    def path(self) -> Path:
        """The node's folder, on the daemon's machine."""
        return Path(self._info.path)

    @property
    def node_id(self) -> bytes:
        """16 bytes, for ever its own."""
        return bytes.fromhex(self._info.node_id)

    @property
    def name(self) -> str:
        return self._info.name

    @property
    def groups(self) -> list[RemoteGroup]:
        """In the order in which they were made."""
        return [RemoteGroup(self.channel, name) for name in self.channel.call(requests.NodeGroups())[0]]

    def group(self, name: str) -> RemoteGroup:
        """The group of that name."""
        return RemoteGroup(self.channel, self.channel.call(requests.GroupShow(group=name))[0].name)

    def status(self) -> dict[str, Any]:
        """Of the node and all its groups."""
        return self.channel.call(requests.NodeStatus())[0]

    def events(self) -> RemoteEvents:
        """What happens there from now on: an iterator of dicts that ends with the node."""
        return RemoteEvents(self.channel)

    def jobs(self, group: str | None = None) -> list[dict[str, Any]]:
        """The commands that were given to the daemon since it was started, in that order: those under way, and the last
        1000 that are over. ``docs/json.md`` has the fields (Job).

        Args:
            group: only those about the group of this name, which may be gone.
        """
        return self.channel.call(requests.NodeJobs(group=group))[0]

    def metrics(self) -> str:
        """The daemon's metrics, in the text format of Prometheus."""
        return self.channel.call(requests.NodeMetrics())[0]

    # ---- groups

    def create_group(
        self,
        name: str,
        journal: str | os.PathLike[str],
        *,
        journal_size: int | None = None,
        role: Literal["primary", "secondary"] = "primary",
        region_size: int = 64 * 1024,
        alignment: int = 4096,
        ordering: Literal["relaxed", "strict"] = "relaxed",
        resume: Literal["ask", "alone"] = "ask",
        force: bool = False,
        options: SiteOptions | None = None,
    ) -> RemoteGroup:
        """Makes a group whose journal is this block device or file of the daemon's machine."""
        request = requests.GroupCreate(
            group=name,
            journal=there(journal, "journal"),
            journal_size=journal_size,
            role=role,
            region_size=region_size,
            alignment=alignment,
            ordering=ordering,
            resume=resume,
            force=force,
            options=None if options is None else msgspec.structs.asdict(options),
        )
        return RemoteGroup(self.channel, self.channel.call(request)[0].name)

    def import_group(
        self, journal: str | os.PathLike[str], *, resume: Literal["ask", "alone"] = "ask", force: bool = False
    ) -> RemoteGroup:
        """A group whose journal and devices the daemon's machine sees becomes one of its node's."""
        request = requests.GroupImport(journal=there(journal, "journal"), resume=resume, force=force)
        return RemoteGroup(self.channel, self.channel.call(request)[0].name)

    def open_group(self, name: str) -> RemoteGroup:
        """A group that has failed is opened again from its journal."""
        return RemoteGroup(self.channel, self.channel.call(requests.GroupOpen(group=name))[0].name)

    def delete_group(self, name: str, *, force: bool = False) -> list[str]:
        """The group is no more at that node; what only it held is lost. Of one that has failed the paths of what is
        left."""
        return list(self.channel.call(requests.GroupDelete(group=name, force=force))[0])

    def listen(self, host: str, port: int = 0) -> tuple[str, int]:
        """Takes connections from primaries of the node's groups; the address, with the port that was chosen for 0.
        Not kept over a restart of the daemon: its configuration is."""
        return self.channel.call(requests.NodeListen(host=host, port=port))[0]

    # ---- NBD

    def listen_nbd(self, address: str, *, tls: TlsFiles | None = None, insecure: bool = False) -> str:
        """Serves the node's exports to NBD clients; paths are those of the daemon's machine."""
        files = {} if tls is None else {"certificate": tls.certificate, "key": tls.key, "ca": tls.ca}
        return self.channel.call(requests.NodeListenNbd(address=address, insecure=insecure, **files))[0]

    def stop_nbd(self, address: str) -> None:
        """Serves nobody there any more; clients that are attached lose their connection."""
        self.channel.call(requests.NodeStopNbd(address=address))

    @property
    def exports(self) -> list[RemoteExport]:
        """In the order in which they were started."""
        return [RemoteExport(self, info) for info in self.channel.call(requests.ExportList())[0]]

    def export(self, name: str) -> RemoteExport:
        """The export of that name."""
        return RemoteExport(self, self.channel.call(requests.ExportShow(name=name))[0])

    def start_export(
        self,
        name: str,
        group: RemoteGroup | str,
        store: RemoteStore | str,
        *,
        read_only: bool | None = None,
        keep: bool = True,
        trial: bool = False,
    ) -> RemoteExport:
        """NBD clients may attach this store under a name, at every address of :meth:`listen_nbd`."""
        owner = RemoteGroup(self.channel, group) if isinstance(group, str) else group
        request = requests.ExportStart(name=name, of=owner.key_of(store), read_only=read_only, keep=keep, trial=trial)
        return RemoteExport(self, self.channel.call(request)[0])

    def stop_export(self, name: str, *, force: bool = False) -> None:
        """No client can attach it any more."""
        self.channel.call(requests.ExportStop(name=name, force=force))

    # ---- the end

    def close(self) -> None:
        """Ends the connections to the daemon, which goes on. Harmless the second time."""
        self.channel.close()

    def __enter__(self) -> RemoteNode:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<RemoteNode {self.name!r} behind {self.channel.path}>"
