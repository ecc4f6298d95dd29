"""A node: a folder with an identity, and the groups whose journals it knows.

    node.json        identity and list of groups (NodeConfig); replaced in one piece, durable before it is relied on
    lock             held while a process has the node open
    groups/NAME/     files of stores that were given no device

Everything that recovery needs stands on the journals (architecture.md, "A journal device describes itself"); the
folder says only where they are. Decides what belongs to the folder and which process may use it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from pyrepl.border import typed
from pyrepl.catalog import check_name
from pyrepl.errors import Corrupt, Exists, InUse, NotFound, PyreplError, Refused, UsageError
from pyrepl.group import Group
from pyrepl.options import SiteOptions
from pyrepl.results import Events
from pyrepl.runtime.placement import path_of, sync_folder

if TYPE_CHECKING:
    from pyrepl.runtime.listener import Listener

VERSION = 1
_DYING = 30.0  # seconds to wait for the lock of a process that is being killed
_ALIVE = 0.5  # seconds to wait for the lock of one that lives: it may be just closing

Hex16 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]


class GroupEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group as the folder names it. ``resume``: at start "ask" the peers who is primary, or be active "alone"; not
    acted on before there are roles that can change."""

    name: str
    journal: str
    resume: Literal["ask", "alone"] = "ask"


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``node.json`` holds."""

    version: int = VERSION
    node_id: Hex16
    name: str
    groups: tuple[GroupEntry, ...] = ()

    @classmethod
    def load(cls, path: Path) -> NodeConfig:
        """Reads it.

        Raises:
            NotFound: there is none.
            Corrupt: not what this version writes; the text says where.
        """
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise NotFound(
                f"{path.parent} holds no node: open it with create=True to make one", path=str(path)
            ) from None
        try:
            config = msgspec.json.decode(data, type=cls)
        except msgspec.MsgspecError as error:
            raise Corrupt(f"{path} cannot be read: {error}", path=str(path), reason="format") from error
        if config.version != VERSION:
            raise Corrupt(
                f"{path} has version {config.version}, this program reads {VERSION}: use the program that wrote it",
                path=str(path),
                reason="version",
            )
        return config

    def save(self, path: Path) -> None:
        """Replaces the file; durable on return."""
        fresh = path.with_suffix(".new")
        with open(fresh, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
        sync_folder(path.parent)


class Node:
    """A process's hold on a node. Made by :meth:`open`; a context manager.

    All methods may be called from many threads.
    """

    def __init__(self, path: Path, lock: int, config: NodeConfig) -> None:
        self.path = path
        self._lock_file = lock
        self._config = config
        self._lock = threading.RLock()  # of groups, listeners and config
        self._groups: dict[str, Group] = {}
        self._listeners: list[tuple[Listener, tuple[str, int]]] = []
        self._subscribers: list[Events] = []
        self._audience = threading.Lock()  # of subscribers: a leaf, for a failing group speaks from any thread
        self._closed = False

    @classmethod
    def open(cls, path: str | os.PathLike[str], create: bool = False, *, name: str | None = None) -> Node:
        """Opens the node in this folder, recovers its groups and connects their links.

        A group that cannot be recovered does not hinder the others: it is there, failed, and every call on it raises
        why.

        Args:
            path: the folder.
            create: make a node there if there is none.
            name: of a node that is made; otherwise the host's name.

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
                    f"there is no folder {folder}: open it with create=True to make a node", path=str(folder)
                )
            if not create:
                NodeConfig.load(folder / "node.json")  # before a lock file is left in some other folder
            lock = _take_lock(folder / "lock")
            try:
                node = cls(folder, lock, _load_or_make(folder / "node.json", create, name))
            except BaseException:
                os.close(lock)
                raise
        except OSError as error:
            raise typed(error, f"opening the node in {folder}") from error
        try:
            for entry in node._config.groups:
                node._groups[entry.name] = Group.open(
                    entry.name, entry.journal, node_id=node.node_id, folder=node._folder_of(entry.name), emit=node.emit
                )
        except BaseException:  # Ctrl-C: a group that cannot be opened does not raise
            node.close()
            raise
        for group in node.groups:
            if group.fault is None:
                group.start_links()
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
            resume: kept for the roles to come (demote, takeover), and not acted on yet: a primary is active at once
                after every start, whichever is given. Do not start two primaries of one group.
            force: use the journal device although the journal of another group stands there, which is lost.
            options: more of them; region_size and alignment then count from there.

        Raises:
            Exists: the name is taken; the journal's file exists; or a journal stands on it.
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
                f"there is no {place}: give journal_size to make a file, or the path of a device", path=place
            )
        with self._lock:
            self._check()
            if name in self._groups:
                raise Exists(f"node {self.name!r} has a group {name!r}: choose another name", name=name)
            group = Group.create(
                name,
                place,
                journal_size=journal_size,
                role=role,
                node_id=self.node_id,
                folder=self._folder_of(name),
                options=options,
                force=force,
                emit=self.emit,
            )
            entry = GroupEntry(name=name, journal=place, resume=resume)
            config = msgspec.structs.replace(self._config, groups=(*self._config.groups, entry))
            try:
                config.save(self.path / "node.json")
            except BaseException as error:
                group.close()
                if journal_size is not None:
                    os.unlink(place)
                if isinstance(error, OSError):
                    raise typed(error, f"making group {name!r}") from error
                raise
            self._config = config
            self._groups[name] = group
        self.emit({"event": "group-created", "group": name, "role": role})
        return group

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
        listener = Listener(self._sites, os.urandom)
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

    # ---- the end

    def close(self) -> None:
        """Closes groups, listeners and links in order, and lets the node go. Harmless the second time.

        Raises:
            PyreplError: the first failure of a group; all the others are closed nevertheless.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            listeners, groups = self._listeners, list(self._groups.values())
        failures: list[PyreplError] = []
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

    def emit(self, event: dict[str, Any]) -> None:
        """Tells everybody who listens to events."""
        with self._audience:
            subscribers = list(self._subscribers)
        for stream in subscribers:
            stream.put({"time": time.time(), **event})

    def _forget(self, stream: Events) -> None:
        with self._audience, suppress(ValueError):
            self._subscribers.remove(stream)

    def _sites(self) -> list[Any]:
        return [group.site for group in self.groups if group.fault is None]

    def _folder_of(self, name: str) -> Path:
        return self.path / "groups" / name / "stores"

    def _check(self) -> None:
        if self._closed:
            raise Refused(f"node {self.name!r} is closed", reason="closed")


def _load_or_make(path: Path, create: bool, name: str | None) -> NodeConfig:
    try:
        return NodeConfig.load(path)
    except NotFound:
        if not create:
            raise
    config = NodeConfig(node_id=os.urandom(16).hex(), name=check_name(name or _host_name()))
    config.save(path)
    return config


def _host_name() -> str:
    letters = [c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in socket.gethostname()]
    return "".join(letters).lstrip(".-")[:255] or "node"


def _take_lock(path: Path) -> int:
    """The node is this process's. A process that was killed keeps the lock until the kernel has ended it: that is
    waited for.

    Raises:
        InUse: another process has the node open.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    begin = time.monotonic()
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                text = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
                holder = int(text) if text.isdecimal() else 0
                waited = time.monotonic() - begin
                if holder == os.getpid() or waited > (_ALIVE if _is_well(holder) else _DYING):
                    raise InUse(
                        f"the node in {path.parent} is open in process {text or 'unknown'}: close it there first",
                        path=str(path.parent),
                        pid=holder,
                    ) from None
                time.sleep(0.01)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_well(pid: int) -> bool:
    """Whether the process lives and was not told to die."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    words = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    killed = (int(words.get("SigPnd", "0"), 16) | int(words.get("ShdPnd", "0"), 16)) >> 8 & 1
    return words.get("State", "X")[0] not in "ZX" and not killed
