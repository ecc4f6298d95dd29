"""A node: an identity, the groups whose journals it knows, and who may reach them from outside.

Everything that recovery needs stands on the journals (a journal describes itself); the node's folder (``folder``) says
only where they are. Decides what is opened, offered and closed, and in which order.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from pyrepl._core.device import FileDevice
from pyrepl.border import again, typed
from pyrepl.catalog import VOLUME, check_name
from pyrepl.errors import Exists, InUse, NotFound, PyreplError, Refused, UsageError, counted
from pyrepl.folder import ExportEntry, GroupEntry, NodeConfig, load_or_make, take_lock
from pyrepl.group import Group
from pyrepl.journal import Journal
from pyrepl.nbd.exports import Export, Exports
from pyrepl.opening import create_group, open_group
from pyrepl.options import SiteOptions
from pyrepl.results import Events
from pyrepl.runtime.placement import left_of, path_of, wipe_journal

if TYPE_CHECKING:
    from pyrepl.nbd.server import Server
    from pyrepl.runtime.certificates import TlsFiles
    from pyrepl.runtime.hooks import Hook
    from pyrepl.runtime.listener import Failed, Feed, Listener
    from pyrepl.volume import Store

ASKED = 3.0  # seconds that a start waits for the peers of its primaries, unless one of them cannot be reached
MOST_SERVED = 128  # NBD connections that are served at a time


def _no_hooks(group: str) -> Sequence[Hook]:
    return ()


class Node:
    """A process's hold on a node. Made by :meth:`open`; a context manager.

    All methods may be called from many threads.
    """

    def __init__(self, path: Path, lock: int, config: NodeConfig, hooks: Callable[[str], Sequence[Hook]]) -> None:
        self._hooks = hooks
        self.path = path
        self._lock_file = lock
        self._config = config
        self._lock = threading.RLock()  # of groups, listeners and config
        self._changing = threading.Lock()  # held as long as a group is opened again or deleted; taken before _lock
        self._groups: dict[str, Group] = {}
        self._listeners: list[tuple[Listener, tuple[str, int]]] = []
        self._exports = Exports()
        self._servers: dict[str, Server] = {}  # NBD, by address
        self._served = threading.BoundedSemaphore(MOST_SERVED)
        self._subscribers: list[Events] = []
        self._audience = threading.Lock()  # of subscribers: a leaf, for a failing group speaks from any thread
        self._closed = False

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        create: bool = False,
        *,
        name: str | None = None,
        hooks: Callable[[str], Sequence[Hook]] = _no_hooks,
    ) -> Node:
        """Opens the node in this folder, recovers its groups and connects their links.

        A group that cannot be recovered does not hinder the others: it is there, failed, and every call on it raises
        why.

        Args:
            path: the folder.
            create: make a node there if there is none.
            name: of a node that is made; otherwise the host's name.
            hooks: of the group of that name, those that it has from the first moment on; see :meth:`Group.on_mark`.

        Raises:
            NotFound: there is no node.
            InUse: another process has it open.
            Corrupt: its file cannot be read.
        """
        folder = Path(path_of(path, "the node's folder"))
        if name is not None:
            check_name(name)
        try:
            if create:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not folder.is_dir():
                raise NotFound(
                    f"there is no folder {folder}: open it with create=True (pyrepld: create = true, or --create) to "
                    f"make a node",
                    path=str(folder),
                )
            if not create:
                NodeConfig.load(folder / "node.json")  # before a lock file is left in some other folder
            lock = take_lock(folder / "lock")
            try:
                node = cls(folder, lock, load_or_make(folder / "node.json", create, name), hooks)
            except BaseException:
                os.close(lock)
                raise
        except OSError as error:
            raise typed(error, f"opening the node in {folder}") from error
        try:
            for entry in node._config.groups:
                group = open_group(
                    entry.name,
                    entry.journal,
                    node_id=node.node_id,
                    folder=node._folder_of(entry.name),
                    emit=node.emit,
                    hooks=hooks(entry.name),
                    ask=entry.resume == "ask",
                )
                node._enter(group)
            for export in node._config.exports:
                node._exports.add(Export(export.name, node._groups[export.group], export.store, export.read_only))
        except BaseException:  # Ctrl-C: a group that cannot be opened does not raise
            node.close()
            raise
        for group in node.groups:
            if group.fault is None:
                group.connect()
        deadline = time.monotonic() + ASKED
        for group in node.groups:
            group.attachments.await_answers(deadline)
        return node

    # ---- about it

    @property
    def node_id(self) -> bytes:
        """16 bytes, for ever its own."""
        return bytes.fromhex(self._config.node_id)

    @property
    def name(self) -> str:
        return self._config.name

    @property
    def groups(self) -> list[Group]:
        """In the order in which they were made."""
        with self._lock:
            return list(self._groups.values())

    def group(self, name: str) -> Group:
        """The group of that name.

        Raises:
            NotFound: there is none.
        """
        self._check()
        with self._lock:
            try:
                return self._groups[name]
            except (KeyError, TypeError):
                some = ", ".join(sorted(self._groups)) or "none"
                raise NotFound(f"node {self.name!r} has no group {name!r} (it has: {some})", name=name) from None

    def status(self) -> dict[str, Any]:
        """Of the node and all its groups."""
        with self._lock:
            listening = [list(address) for _, address in self._listeners]
        return {
            "node": self.name,
            "node_id": self._config.node_id,
            "path": str(self.path),
            "listening": listening,
            "nbd": list(self._servers),
            "exports": [export.status() for export in self.exports],
            "groups": [group.status() for group in self.groups],
        }

    def events(self) -> Events:
        """What happens here from now on: an iterator of dicts that ends with the node. See :class:`Events`."""
        self._check()
        stream = Events(self._forget)
        with self._audience:
            self._subscribers.append(stream)
        return stream

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
    ) -> Group:
        """Makes a group whose journal is this block device or file.

        Args:
            name: 1 to 255 of A-Z a-z 0-9 . _ -, not beginning with . or -.
            journal: a block device, an existing file, or with ``journal_size`` a file that is made.
            journal_size: bytes, a multiple of 4096. The file is written with zeros (up to 1 GiB; what is beyond is
                reserved).
            role: "secondary": it waits for the link of a primary, which pairs with it.
            region_size: bytes; granule of operations and of what is known of secondaries. Equal at both sites.
            alignment: 512 or 4096. Equal at both sites.
            ordering: "strict": every operation has a place of its own, :meth:`Group.unordered` is refused. It binds
                the primary: give it to the secondary too, which may become one.
            resume: "ask": a primary that is started again asks the secondaries of all its links whether another site
                has taken over meanwhile, and refuses writes until all have answered (``reason="asking"``) or it is told
                to lead (``promote(alone=True)``). "alone": it leads at once.
            force: use the journal device although something stands there, as the journal of another group, a file
                system or a partition table: it is lost.
            options: more of them; region_size and alignment then count from there.

        Raises:
            Exists: the name is taken, or the journal's file exists.
            Refused: something stands on the journal's device, and ``force`` is not given.
            UsageError, InUse, NotFound, DeviceError: the text says what to do; nothing was changed.
        """
        self._check()
        check_name(name)
        if role not in ("primary", "secondary"):
            raise UsageError(f"role {role!r}: a group is made primary or secondary", role=role)
        if resume not in ("ask", "alone"):
            raise UsageError(f"resume {resume!r}: must be 'ask' or 'alone'", resume=resume)
        if options is None:
            options = SiteOptions(region_size=region_size, alignment=alignment)
        elif not isinstance(options, SiteOptions):
            raise UsageError(f"options={options!r}: give pyrepl.options.SiteOptions(...)")
        place = path_of(journal, "journal")
        if journal_size is None and not os.path.exists(place):
            raise NotFound(
                f"there is no {place}: give the journal a size to make a file, or the path of a device", path=place
            )
        with self._lock:
            self._check()
            if name in self._groups:
                raise Exists(f"node {self.name!r} has a group {name!r}: choose another name", name=name)
            group = create_group(
                name,
                place,
                journal_size=journal_size,
                role=role,
                ordering=ordering,
                node_id=self.node_id,
                folder=self._folder_of(name),
                options=options,
                force=force,
                emit=self.emit,
                hooks=self._hooks(name),
            )
            entry = GroupEntry(name=name, journal=place, resume=resume, made=journal_size is not None)
            try:
                self._keep(groups=(*self._config.groups, entry))
            except BaseException as error:
                group.close()
                if journal_size is not None:
                    os.unlink(place)
                if isinstance(error, OSError):
                    raise typed(error, f"making group {name!r}") from error
                raise
            self._enter(group)
        self.emit({"event": "group-created", "group": name, "role": role})
        return group

    def import_group(
        self, journal: str | os.PathLike[str], *, resume: Literal["ask", "alone"] = "ask", force: bool = False
    ) -> Group:
        """A group whose journal and devices this machine sees becomes one of this node's. The journal says all that
        there is to know.

        Args:
            journal: a block device or file that holds the journal of a group.
            force: it belongs to another node, which will never open it again: this node takes it over. Its secondaries
                go on with this node: the links are in the journal, and nothing is copied anew.

        Raises:
            Corrupt: there is no journal there, or one that recovery refuses.
            Exists: this node has a group of that name.
            Refused: it belongs to another node, and ``force`` is not given.
            InUse, NotFound, DeviceError: of the journal or of a device of the group; nothing was changed.
        """
        self._check()
        place = path_of(journal, "journal")
        for entry in self._config.groups:
            if os.path.realpath(entry.journal) == os.path.realpath(place):
                raise Exists(f"node {self.name!r} has the group of {place}, as {entry.name!r}", name=entry.name)
        try:
            with FileDevice(place, writable=False) as device:  # exclusively: nobody uses it
                body = Journal.find(device).read_checkpoint().body
        except OSError as error:
            raise typed(error, f"looking for a journal on {place}") from error
        with self._lock:
            if body.name in self._groups:
                raise Exists(f"node {self.name!r} has a group {body.name!r}: delete it first", name=body.name)
            if body.node_id != self.node_id and not force:
                raise Refused(
                    f"the journal of group {body.name!r} on {place} belongs to another node ({body.node_id.hex()}): "
                    f"open it there, or take it over with force if that node will never open it again",
                    reason="node",
                    journal=place,
                )
            group = open_group(
                body.name,
                place,
                node_id=self.node_id,
                folder=self._folder_of(body.name),
                emit=self.emit,
                adopt=force,
                ask=resume == "ask" and not force,
                hooks=self._hooks(body.name),
            )
            if group.fault is not None:
                raise group.fault
            try:
                group.site.checkpoint()  # it is this node's, durably, before the folder says so
                self._keep(groups=(*self._config.groups, GroupEntry(name=body.name, journal=place, resume=resume)))
            except BaseException:
                group.close()
                raise
            self._enter(group)
        group.connect()
        group.attachments.await_answers(time.monotonic() + ASKED)
        self.emit({"event": "group-imported", "group": body.name, "role": group.role})
        return group

    def open_group(self, name: str) -> Group:
        """A group that has failed is closed, and opened again from its journal, as a start of the node would: all that
        was acknowledged is there, exports are served again (clients that are attached lose their connection), links
        connect, and a primary with links asks their secondaries first.

        Handles of the group and its stores from before raise: take new ones. Its trials are gone.

        Returns:
            the group.

        Raises:
            NotFound: there is no such group.
            Refused: it has not failed (``reason="state"``).
            PyreplError: why it cannot be opened. It stays failed, with that as its fault, and this can be tried again.
        """
        with self._changing:
            group = self.group(name)
            if group.fault is None:
                raise Refused(
                    f"group {name!r} works: only one that has failed is opened again", reason="state", group=name
                )
            entry = next(entry for entry in self._config.groups if entry.name == name)
            group.fault = Refused(
                f"group {name!r} is opened again: take its handle anew, Node.group({name!r})", reason="closed",
                retryable=True, group=name,
            )
            self._let_go(group)
            fresh = open_group(
                name,
                entry.journal,
                node_id=self.node_id,
                folder=self._folder_of(name),
                emit=self.emit,
                ask=entry.resume == "ask",
                hooks=self._hooks(name),
            )
            with self._lock:
                self._enter(fresh)
                for export in self.exports:
                    if export.group is group:
                        self._exports.renew(export, fresh)
        if fresh.fault is not None:
            raise again(fresh.fault)
        fresh.connect()
        fresh.attachments.await_answers(time.monotonic() + ASKED)
        fresh.check()  # it may have failed again by now
        self.emit({"event": "group-opened", "group": name, "role": fresh.role})
        return fresh

    def delete_group(self, name: str, *, force: bool = False) -> list[str]:
        """The group is no more at this node: its journal is made unreadable, the files that the node made for it are
        removed. Devices that were given keep what is on them. Other sites are not told.

        One that has failed is only forgotten: its journal and files stay as they are, for :meth:`import_group` or for
        whoever removes them.

        Args:
            force: it has stores, or exports with clients: what only they hold is lost. Or it has failed.

        Returns:
            paths of what of a group that has failed is left.

        Raises:
            NotFound: there is no such group.
            Refused: it has stores or has failed, and ``force`` is not given.
            InUse: exports of it are attached, and ``force`` is not given.
        """
        with self._changing:
            group = self.group(name)
            failed = group.fault is not None
            self._judge_deletion(group, force)
            for export in self.exports:
                if export.group is group:
                    self.stop_export(export.name, force=force)
            entry = next(entry for entry in self._config.groups if entry.name == name)
            self._let_go(group)
            with self._lock:
                self._keep(groups=tuple(other for other in self._config.groups if other is not entry))
                del self._groups[name]
            left = left_of(entry.journal, self._folder_of(name)) if failed else []
            try:
                if not failed:
                    wipe_journal(entry.journal, made=entry.made)
                    shutil.rmtree(self._folder_of(name).parent, ignore_errors=True)
            except OSError as error:
                raise typed(error, f"clearing {entry.journal} of group {name!r}, which is deleted") from error
        self.emit({"event": "group-deleted", "group": name})
        return left

    def listen(self, host: str, port: int = 0) -> tuple[str, int]:
        """Takes connections from primaries of this node's groups; the address, with the port that was chosen for 0.

        Raises:
            InUse: the address is taken.
            UsageError: no such host, or no such port.
        """
        from pyrepl.runtime.listener import Listener

        self._check()
        if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
            raise UsageError(f"port {port!r}: give a number from 0 (any that is free) to 65535", port=port)
        if not isinstance(host, str) or not host.isprintable():
            raise UsageError(f"host {host!r}: give a name or an address of this machine", host=host)
        listener = Listener(self._sites, os.urandom, failed=self._failed)
        try:
            address = listener.start(host, port)
        except socket.gaierror as error:
            raise UsageError(f"cannot listen on {host!r}: {error.strerror}", host=host) from error
        except OSError as error:
            cause = InUse if error.errno == errno.EADDRINUSE else UsageError
            raise cause(f"cannot listen on {host}:{port}: {error.strerror}", host=host, port=port) from error
        with self._lock:
            self._listeners.append((listener, address))
        self.emit({"event": "listening", "group": None, "address": list(address)})
        return address

    # ---- NBD

    def listen_nbd(self, address: str, *, tls: TlsFiles | None = None, insecure: bool = False) -> str:
        """Serves the node's exports to NBD clients; the address, with the port that was chosen for 0.

        Args:
            address: ``unix:/path``, ``host:port`` or ``[v6]:port``.
            tls: certificates; then nothing is served without TLS. Given again for an address: they are renewed.
            insecure: allow an address that other machines can reach without TLS.

        Raises:
            UsageError, Refused: no such address; one that others can reach; certificates that cannot be used.
            InUse, Exists: the address is taken.
        """
        from pyrepl.nbd.server import Server

        self._check()
        with self._lock:
            known = self._servers.get(address)
            if known is not None and tls is not None and known.secure:
                known.renew(tls)
                return address
            server = Server(self._exports, address, room=self._served, tls=tls, insecure=insecure)
            self._servers[server.address] = server
        self.emit({"event": "listening", "group": None, "address": server.address, "protocol": "nbd"})
        return server.address

    def stop_nbd(self, address: str) -> None:
        """Serves nobody there any more; clients that are attached lose their connection.

        Raises:
            NotFound: nobody listens there.
        """
        with self._lock:
            server = self._servers.pop(address, None)
            if server is None:
                some = ", ".join(self._servers) or "none"
                raise NotFound(f"no NBD server listens at {address!r} (there are: {some})", address=address)
        server.stop()

    @property
    def exports(self) -> list[Export]:
        """In the order in which they were started."""
        return self._exports.all()

    def export(self, name: str) -> Export:
        """The export of that name.

        Raises:
            NotFound: there is none.
        """
        self._check()
        return self._exports.find(name)

    def start_export(
        self, name: str, group: Group | str, store: Store | str, *, read_only: bool | None = None, keep: bool = True,
        trial: bool = False,
    ) -> Export:
        """NBD clients may attach this store under a name, at every address of :meth:`listen_nbd`.

        Args:
            name: of the export, unique at this node.
            group: handle or name.
            store: a volume or snapshot of it, by handle or name.
            read_only: never writable. Otherwise it is writable where the group is primary; a secondary shows its stores
                as of one LSN, read-only.
            keep: over restarts of the node.
            trial: it shows the copy of this volume in a trial of the group (:meth:`Group.open_trial`), writable: for a
                test of a failover. The exports of a group that are trials share one, so all are at one LSN; it is gone
                with the last of them, and with a restart.

        Raises:
            NotFound: no such group or store.
            Exists: the name is taken.
            UsageError: a trial of a snapshot, or one that is read-only.
        """
        self._check()
        owner = self.group(group) if isinstance(group, str) else group
        found = owner.store(store) if isinstance(store, str) else store
        if trial:
            if read_only or found.kind != VOLUME:
                raise UsageError(f"export {name!r}: a trial is a writable copy of a volume; without it a secondary "
                                 f"shows its stores read-only", name=name)
            keep = False
        export = Export(name, owner, found.name, read_only, owner.trials.hold() if trial else None)
        with self._lock:
            try:
                self._exports.add(export)
            except BaseException:
                export.stop()
                raise
            entry = ExportEntry(name=name, group=owner.name, store=found.name, read_only=read_only)
            try:
                if keep:
                    self._keep(exports=(*self._config.exports, entry))
            except BaseException:
                self._exports.remove(name, force=True)
                raise
        self.emit({"event": "export-started", "group": owner.name, "export": name, "store": found.name})
        return export

    def stop_export(self, name: str, *, force: bool = False) -> None:
        """No client can attach it any more.

        Args:
            force: clients that are attached lose their connection; without it they are a reason to refuse.

        Raises:
            NotFound: there is none of that name.
            InUse: clients are attached.
        """
        self._check()
        with self._lock:
            group = self._exports.find(name).group.name
            self._exports.remove(name, force=force)
            self._keep(exports=tuple(entry for entry in self._config.exports if entry.name != name))
        self.emit({"event": "export-stopped", "group": group, "export": name})

    # ---- the end

    def close(self) -> None:
        """Closes groups, listeners and links in order, and lets the node go. Harmless the second time.

        Raises:
            PyreplError: the first failure of a group; all the others are closed nevertheless.
        """
        with self._changing, self._lock:
            if self._closed:
                return
            self._closed = True
            listeners, groups = self._listeners, list(self._groups.values())
            servers = list(self._servers.values())
        failures: list[PyreplError] = []
        for server in servers:
            server.stop()
        for listener, _ in listeners:
            listener.stop()
        for group in groups:
            try:
                group.close()
            except PyreplError as error:
                failures.append(error)
        with self._audience:
            subscribers = list(self._subscribers)
        for stream in subscribers:
            stream.close()
        os.close(self._lock_file)
        if failures:
            raise failures[0]

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Node {self.name!r} in {self.path}>"

    # ---- inside

    def _keep(self, **changed: Any) -> None:
        """Part of the folder's file from here on; durable."""
        config = msgspec.structs.replace(self._config, **changed)
        config.save(self.path / "node.json")
        self._config = config

    def emit(self, event: dict[str, Any]) -> None:
        """Tells everybody who listens to events."""
        with self._audience:
            subscribers = list(self._subscribers)
        for stream in subscribers:
            stream.put({"time": time.time(), **event})

    def _forget(self, stream: Events) -> None:
        with self._audience, suppress(ValueError):
            self._subscribers.remove(stream)

    def _judge_deletion(self, group: Group, force: bool) -> None:
        """Raises Refused if it would take something away that nobody has said is to go."""
        if force:
            return
        name = group.name
        if group.fault is not None:
            raise Refused(
                f"group {name!r} has failed ({group.fault}), so nobody can see what it holds: open it again "
                f"(`pyrepl group open {name}`) when the cause is gone; deleted with force it is forgotten, and its "
                f"journal and files stay where they are",
                reason="force",
            )
        stores = len(group.volumes) + len(group.snapshots)
        if stores:
            raise Refused(
                f"group {name!r} would be lost: it has {counted(stores, 'store')}: remove them first, or delete it "
                f"with force", reason="force"
            )

    def _let_go(self, group: Group) -> None:
        """Ends what feeds it, and closes it, whatever state it is in."""
        site = group.site_if_any
        if site is not None:
            with self._lock:
                listeners = [listener for listener, _ in self._listeners]
            for listener in listeners:
                listener.drop(site)
        with suppress(PyreplError):
            group.close()

    def _enter(self, group: Group) -> None:
        group.feeds = self._feeds_of
        group.introduce = lambda: (self.name, [address for _, address in self._listeners])
        self._groups[group.name] = group

    def _feeds_of(self, site: Any) -> list[Feed]:
        """The connections of primaries that feed this group."""
        with self._lock:
            listeners = [listener for listener, _ in self._listeners]
        return [feed for listener in listeners if (feed := listener.feed(site)) is not None]

    def _sites(self) -> list[Any]:
        return [group.site for group in self.groups if group.fault is None]

    def _failed(self) -> list[Failed]:
        from pyrepl.runtime.listener import Failed

        failed = [(group, fault) for group in self.groups if (fault := group.fault) is not None]
        return [
            Failed(group.name, site.group_id if (site := group.site_if_any) is not None else None, str(fault))
            for group, fault in failed
        ]

    def _folder_of(self, name: str) -> Path:
        return self.path / "groups" / name / "stores"

    def _check(self) -> None:
        if self._closed:
            raise Refused(f"node {self.name!r} is closed", reason="closed")
