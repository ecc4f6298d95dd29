"""Exports: which stores NBD clients may see, under which names, and what one connection to one of them shows.

Decides what is writable, what a secondary shows (a view: its store at one LSN, the same for all who are attached; of a
trial its copy, which is written instead), and the answers to the rare requests. Must not know sockets, nor how requests
are carried out (``_core.nbdio``).

    role at the time of attaching    shows
    primary                          the store as it is; writable unless the export is read-only
    secondary                        a view of it, read-only; it is given back when the last client has left
    any, and the export is a trial   the trial's copy of it, writable; it is gone when the export is stopped

A change of role reaches clients that stay attached: what they could write answers ESHUTDOWN and can still be read.
"""

from __future__ import annotations

import contextlib
import errno
import struct
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from pyrepl._core import nbdio, view
from pyrepl._core.nbdio import COMMANDS
from pyrepl.catalog import check_name
from pyrepl.errors import Exists, InUse, NotFound, PyreplError, Refused, UsageError, counted
from pyrepl.nbd.negotiation import Choice, Shape
from pyrepl.volume import View

if TYPE_CHECKING:
    from pyrepl.group import Group
    from pyrepl.trial import Trial
    from pyrepl.volume import Store

ALLOCATION = "base:allocation"
DIVERGED = "x-pyrepl:diverged/"  # x-: the protocol knows no namespace of ours
HOLE, ZERO = 1, 2  # flags of base:allocation
DIFFERS = 1  # flag of DIVERGED
REQ_ONE = 8
FUA = 1
MOST_EXTENTS = 1024  # of one reply and context

_CHUNK = struct.Struct(">IHHQI")
_MAGIC, _DONE, _STATUS = 0x668E33EF, 1, 5


class Shown(NamedTuple):
    """What a connection shows: a store or a view of one, and whether it may be written."""

    store: Any
    read_only: bool


class Export:
    """A store under a name for NBD clients. Made by :meth:`Node.start_export`."""

    def __init__(
        self, name: str, group: Group, store: str, read_only: bool | None, trial: Trial | None = None
    ) -> None:
        self.name = check_name(name)
        self._group = group
        self.trial = trial
        self.store = store
        self.read_only = read_only
        self._lock = threading.Lock()
        self._connections: set[nbdio.Connection] = set()
        self._viewers = 0
        self._view: Any = None
        self._stopped = False
        self._counts: dict[str, Any] = {"requests": dict.fromkeys(COMMANDS, 0), "errors": 0, "bytes_read": 0,
                                        "bytes_written": 0}  # of connections that have ended

    @property
    def group(self) -> Group:
        return self._group

    # ---- what a client is told

    def shape(self) -> Shape:
        """As of now.

        Raises:
            NotFound: the store was deleted, or the export stopped.
            Refused: it cannot be shown now; the text says what to wait for.
        """
        if self._stopped:
            raise NotFound(f"export {self.name!r} was stopped", name=self.name)
        group = self._group if self.trial is None else self.trial.group
        store = group.store(self.store)
        size = store.size if group.role == "primary" else group.site.views.judge(store.id).size
        links = tuple(f"{DIVERGED}{link.name}" for link in group.links)
        return Shape(
            size=size,
            read_only=bool(self.read_only) or group.role != "primary",
            preferred=max(4096, group.alignment),
            description=f"{store.kind} {store.name} of group {self._group.name}{', a trial' if self.trial else ''}",
            contexts=(ALLOCATION, *links),
        )

    @contextlib.contextmanager
    def attach(self, choice: Choice) -> Iterator[Shown]:
        """For as long as one connection: what it shows.

        Raises:
            PyreplError: it cannot be shown any more.
        """
        group = self._group if self.trial is None else self.trial.group
        store = group.store(self.store)
        if group.role == "primary":
            yield Shown(store, choice.shape.read_only)
            return
        with self._lock:
            if self._view is None:
                self._view = group.open_view(store)
            self._viewers += 1
            shown = self._view
        try:
            yield Shown(shown, True)
        finally:
            with self._lock:
                self._viewers -= 1
                last, self._view = (self._view, None) if not self._viewers else (None, self._view)
            if last is not None:
                with contextlib.suppress(PyreplError):  # the group is closed: its views go with it
                    last.close()

    def connect(self, shown: Shown, choice: Choice, fd: int) -> nbdio.Connection:
        """The transmission phase on this socket; ``serve`` it, then :meth:`disconnect`."""
        store = shown.store
        session = Session(store.group, store, choice)
        connection = nbdio.Connection(
            store.group.site.window,
            store.group.site.stores,
            store=store.id,
            size=choice.shape.size,
            fd=fd,
            read_only=shown.read_only,
            structured=choice.structured,
            statuses=bool(choice.contexts),
            rare=session.rare,
        )
        with self._lock:
            if self._stopped:
                raise NotFound(f"export {self.name!r} was stopped", name=self.name)
            self._connections.add(connection)
        return connection

    def disconnect(self, connection: nbdio.Connection) -> None:
        """It has ended; what it did stays counted."""
        with self._lock:
            self._connections.discard(connection)
            _add(self._counts, connection.counts())

    # ---- about it

    @property
    def clients(self) -> int:
        """Connections in the transmission phase."""
        with self._lock:
            return len(self._connections)

    def status(self) -> dict[str, Any]:
        """``state``: serving, held (cannot be shown now: ``reason``) or gone (its store was deleted)."""
        state, reason, size = "serving", None, None
        try:
            size = self.shape().size
        except NotFound as error:
            state, reason = "gone", error.text
        except PyreplError as error:
            state, reason = "held", error.text
        with self._lock:
            counts: dict[str, Any] = {"requests": dict.fromkeys(COMMANDS, 0), "errors": 0, "bytes_read": 0,
                                      "bytes_written": 0}
            for one in (self._counts, *(connection.counts() for connection in self._connections)):
                _add(counts, one)
            shown = self.trial or self._view
            clients, lsn = len(self._connections), shown.lsn if shown is not None else None
        return {
            "name": self.name,
            "group": self._group.name,
            "store": self.store,
            "read_only": self._is_read_only(),
            "trial": self.trial is not None,
            "size": size,
            "state": state,
            "reason": reason,
            "view_lsn": lsn,
            "clients": clients,
            **counts,
        }

    def _is_read_only(self) -> bool:
        group = self._group if self.trial is None else self.trial.group
        return bool(self.read_only) or group.fault is not None or group.role != "primary"

    def stop(self) -> None:
        """No client can attach any more; those that are attached lose their connection."""
        with self._lock:
            self._stopped = True
            for connection in self._connections:
                connection.stop()
        if self.trial is not None:
            self._group.trials.release(self.trial)

    def __repr__(self) -> str:
        return f"<export {self.name!r} of {self._group.name}/{self.store}>"


def _add(total: dict[str, Any], one: dict[str, Any]) -> None:
    for command, count in one["requests"].items():
        total["requests"][command] += count
    for name in ("errors", "bytes_read", "bytes_written"):
        total[name] += one[name]


class Exports:
    """The exports of a node by name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._exports: dict[str, Export] = {}

    def add(self, export: Export) -> None:
        """Raises: Exists: the name is taken."""
        with self._lock:
            if export.name in self._exports:
                raise Exists(f"there is an export {export.name!r}: stop it first, or give another name",
                             name=export.name)
            self._exports[export.name] = export

    def remove(self, name: str, *, force: bool) -> None:
        """Stops it.

        Raises:
            NotFound: there is none of that name.
            InUse: clients are attached and ``force`` is not given.
        """
        export = self.find(name)
        if export.clients and not force:
            who = counted(export.clients, "client")
            raise InUse(f"export {name!r} has {who}: detach first, or stop it with force", name=name)
        with self._lock:
            self._exports.pop(name, None)
        export.stop()

    def renew(self, export: Export, group: Group) -> None:
        """Its group was opened again: who is attached loses the connection, and finds that group under the same name.
        What it shows of a trial is gone with the trial, and so is the export."""
        with self._lock:
            if self._exports.get(export.name) is not export:
                return
            if export.trial is None:
                self._exports[export.name] = Export(export.name, group, export.store, export.read_only)
            else:
                del self._exports[export.name]
        export.stop()

    def find(self, name: str) -> Export:
        """``name`` "": the only one there is.

        Raises:
            NotFound: there is none of that name.
        """
        with self._lock:
            if name == "" and len(self._exports) == 1:
                return next(iter(self._exports.values()))
            try:
                return self._exports[name]
            except (KeyError, TypeError):
                some = ", ".join(sorted(self._exports)) or "none"
                raise NotFound(f"there is no export {name!r} (there are: {some})", name=name) from None

    def all(self) -> list[Export]:
        """In the order in which they were started."""
        with self._lock:
            return list(self._exports.values())

    def names(self) -> list[str]:
        """For LIST."""
        return [export.name for export in self.all()]


class Session:
    """The rare requests of one connection: BLOCK_STATUS, and zeros and discards that are long or not aligned."""

    def __init__(self, group: Group, store: Store, choice: Choice) -> None:
        self._group = group
        self._store = store
        self._contexts = choice.contexts

    def rare(self, command: int, flags: int, cookie: int, offset: int, length: int) -> tuple[int, bytes]:
        """(error of the protocol or 0, the whole reply or nothing)."""
        try:
            if command == COMMANDS["block_status"]:
                return 0, self._status(cookie, offset, length, 1 if flags & REQ_ONE else MOST_EXTENTS)
            clear = self._store.discard if command == COMMANDS["trim"] else self._store.zero
            clear(offset, length)
            if flags & FUA:
                self._group.flush()
        except PyreplError as error:
            return _number_of(error), b""
        return 0, b""

    def _status(self, cookie: int, offset: int, length: int, most: int) -> bytes:
        chunks = bytearray()
        for place, (number, context) in enumerate(sorted(self._contexts.items()), 1):
            if context == ALLOCATION:
                runs = self._allocation(offset, length)
            else:
                runs = self._diverged(context.removeprefix(DIVERGED), offset, length)
            payload = struct.pack(">I", number) + b"".join(struct.pack(">II", n, flag) for n, flag in runs[:most])
            last = _DONE if place == len(self._contexts) else 0
            # the cookie is passed through as it stood on the wire
            chunks += _CHUNK.pack(_MAGIC, last, _STATUS, 0, len(payload))
            chunks[-_CHUNK.size + 8 : -_CHUNK.size + 16] = cookie.to_bytes(8, "little")
            chunks += payload
        return bytes(chunks)

    def _allocation(self, offset: int, length: int) -> list[tuple[int, int]]:
        site = self._group.site
        try:
            runs = view.allocation(site.window, site.stores, self._store.id, offset, length)
        except LookupError:
            raise NotFound(f"store {self._store.name!r} was deleted", name=self._store.name) from None
        return [(count, HOLE | ZERO if zero else 0) for count, zero in runs]

    def _diverged(self, link: str, offset: int, length: int) -> list[tuple[int, int]]:
        runs: list[tuple[int, int]] = []
        at, end = offset, offset + length
        # A secondary with links of its own shows a view: what its store's copy differs in is asked for.
        store = self._store.store if isinstance(self._store, View) else self._store
        for extent in self._group.link(link).divergent(store) if store is not None else ():
            first, behind = max(extent.offset, at), min(extent.offset + extent.length, end)
            if first >= behind:
                continue
            if first > at:
                runs.append((first - at, 0))
            runs.append((behind - first, DIFFERS))
            at = behind
        if at < end:
            runs.append((end - at, 0))
        return runs


def _number_of(error: PyreplError) -> int:
    """What the client is told."""
    match error:
        case UsageError():
            return errno.EINVAL
        case Refused(reason="role" | "closed") | NotFound():
            return errno.ESHUTDOWN
        case _ if getattr(error, "errno", None) == errno.ENOSPC:
            return errno.ENOSPC
        case _:
            return errno.EIO
