"""A node's folder: its file, and the lock of the process that has it open.

    node.json        identity, groups and exports (NodeConfig); replaced in one piece, durable before it is relied on
    lock             held while a process has the node open
    groups/NAME/     files of stores that were given no device, what came of hooks (``runtime.hooks``)
    jobs             what was given to its daemons, and what came of it (``service.job_file``)

Decides what the file says and who may have the folder. Must not know what a group is.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from pyrepl.catalog import check_name
from pyrepl.errors import Corrupt, InUse, NotFound
from pyrepl.runtime.placement import sync_folder

VERSION = 2
READABLE = (1, 2)  # 2 has exports, and says which journals the node made
_DYING = 30.0  # seconds to wait for the lock of a process that is being killed
_ALIVE = 0.5  # seconds to wait for the lock of one that lives: it may be just closing

Hex16 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]


class GroupEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group as the folder names it. ``resume``: at start "ask" the peers who is primary, or be active "alone"."""

    name: str
    journal: str
    resume: Literal["ask", "alone"] = "ask"
    made: bool = False
    """The node made the journal's file."""


class ExportEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An export as the folder keeps it."""

    name: str
    group: str
    store: str
    read_only: bool | None = None


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``node.json`` holds."""

    version: int = VERSION
    node_id: Hex16
    name: str
    groups: tuple[GroupEntry, ...] = ()
    exports: tuple[ExportEntry, ...] = ()

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
                f"{path.parent} holds no node: open it with create=True (pyrepld: create = true, or --create) to make "
                f"one",
                path=str(path),
            ) from None
        try:
            config = msgspec.json.decode(data, type=cls)
        except msgspec.MsgspecError as error:
            raise Corrupt(f"{path} cannot be read: {error}", path=str(path), reason="format") from error
        if config.version not in READABLE:
            raise Corrupt(
                f"{path} has version {config.version}, this program reads {READABLE}: use the program that wrote it",
                path=str(path),
                reason="version",
            )
        return msgspec.structs.replace(config, version=VERSION)

    def save(self, path: Path) -> None:
        """Replaces the file; durable on return."""
        fresh = path.with_suffix(".new")
        with open(fresh, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
        sync_folder(path.parent)


def load_or_make(path: Path, create: bool, name: str | None) -> NodeConfig:
    """The node's file; made if there is none and ``create`` is given."""
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


def take_lock(path: Path) -> int:
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
