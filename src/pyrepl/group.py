"""A group of volumes with one journal, as users of the package hold it.

Decides what a call on a group does with the engine: admission under one lock, waiting, links, and what a failure looks
like from outside. The engine (``site``), its threads (``runtime``) and the meaning of operations are elsewhere.

    fault     None while the group works; then the error that every call raises. It is looked at without a lock on the
              path of a write, for it changes once.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from pyrepl import operations
from pyrepl._core.device import FileDevice
from pyrepl.attachment import Attachment
from pyrepl.border import again, typed
from pyrepl.catalog import SNAPSHOT, VOLUME, Catalog, check_name
from pyrepl.catalog import Store as StoreEntry
from pyrepl.errors import Corrupt, Exists, NotFound, PyreplError, Refused, UsageError, WaitTimeout
from pyrepl.journal import Journal
from pyrepl.operations import Operation
from pyrepl.options import SiteOptions
from pyrepl.results import OperationResult, check_timeout
from pyrepl.runtime.driver import Driver
from pyrepl.runtime.placement import PATIENCE, FilePlacement, check_free, make_journal, open_patiently, path_of
from pyrepl.site import PRIMARY, SECONDARY, Site
from pyrepl.volume import Snapshot, Store, Volume

ACTIVE, FAILED, CLOSED = "active", "failed", "closed"
Emit = Callable[[dict[str, Any]], None]
T = TypeVar("T")


class Group:
    """Volumes whose writes and operations have one order. Made by :meth:`Node.create_group` or found by
    :meth:`Node.group`.

    All methods may be called from many threads.
    """

    def __init__(
        self, name: str, *, site: Site | None, placement: FilePlacement, emit: Emit, fault: PyreplError | None = None
    ) -> None:
        self.name = name
        self.fault = fault
        self._site = site
        self._placement = placement
        self._emit = emit
        self._closed = False
        self._closing = threading.Lock()
        self._admission = threading.Lock()
        self._links: dict[str, Attachment] = {}
        self._guard = threading.RLock()  # of all links of this group
        if site is not None:
            for link in site.links.values():
                link.guard = self._guard  # before the applier, which folds and saves links, begins
                self._links[link.name] = Attachment(self, link)
            self._driver = Driver(site, self._failed)

    # ---- made by the node

    @classmethod
    def create(
        cls,
        name: str,
        journal: str,
        *,
        journal_size: int | None,
        role: str,
        node_id: bytes,
        folder: Path,
        options: SiteOptions,
        force: bool,
        emit: Emit,
    ) -> Group:
        """Formats a journal; see :meth:`Node.create_group`."""
        made = False
        try:
            if journal_size is not None:
                make_journal(journal, journal_size)
                made = True
            check_free(journal)
            device = open_patiently(journal, 0.0)
            try:
                if not force:
                    _check_no_journal(device)
                placement = FilePlacement(folder, alignment=options.alignment)
                site = Site.create(
                    device,
                    name=name,
                    node_id=node_id,
                    role=role,
                    options=options,
                    placement=placement,
                    entropy=os.urandom,
                    created_ns=time.time_ns(),
                )
            except BaseException:
                device.close()
                raise
            return cls(name, site=site, placement=placement, emit=emit)
        except BaseException as error:
            if made:
                os.unlink(journal)
            if isinstance(error, Exception):
                raise typed(error, f"making group {name!r} on {journal}", group=name) from error
            raise

    @classmethod
    def open(cls, name: str, journal: str, *, node_id: bytes, folder: Path, emit: Emit) -> Group:
        """Recovers a group. One that cannot be is returned failed: every call raises why."""
        placement = FilePlacement(folder, alignment=4096)
        try:
            device = open_patiently(journal, PATIENCE)
            try:
                placement = FilePlacement(folder, alignment=Journal.find(device).alignment)
                site = Site.open(device, node_id=node_id, placement=placement, entropy=os.urandom)
            except BaseException:
                device.close()
                raise
            shelf = site.shelf
            placement.sweep(
                {place.path for place in shelf.places.values()}
                | set(shelf.zombies.values())
                | set(shelf.graveyard)
                | ({shelf.scratch.path} if shelf.scratch is not None else set())
            )
            return cls(name, site=site, placement=placement, emit=emit)
        except Exception as error:
            placement.close()
            fault = typed(error, f"opening group {name!r} on {journal}", group=name)
            fault.__cause__ = error
            traceback.clear_frames(error.__traceback__)  # they hold the devices that were opened so far
            emit({"event": "group-failed", "group": name, "error": fault.code, "text": str(fault)})
            return cls(name, site=None, placement=placement, emit=emit, fault=fault)

    # ---- about it

    @property
    def site(self) -> Site:
        """The engine."""
        if self._site is None:
            self.check()
        assert self._site is not None
        return self._site

    @property
    def role(self) -> str:
        """``primary`` or ``secondary``."""
        return self.site.role

    @property
    def region_size(self) -> int:
        """Bytes. Extents of operations and sizes of volumes are whole regions."""
        return self.site.region_size

    @property
    def alignment(self) -> int:
        """Bytes: 512 or 4096. Writes that are not aligned to it cost a read."""
        return self.site.alignment

    @property
    def applied_lsn(self) -> int:
        """Everything up to this LSN is performed here."""
        return self.site.window.state().applied_lsn

    @property
    def state(self) -> str:
        """``active``, ``failed`` or ``closed``."""
        if self._closed:
            return CLOSED
        return ACTIVE if self.fault is None else FAILED

    @property
    def volumes(self) -> list[Volume]:
        """In the order in which they were made."""
        return [Volume(self, entry.id, entry.name) for entry in self._entries() if entry.kind == VOLUME]

    @property
    def snapshots(self) -> list[Snapshot]:
        """Of all stores, oldest first."""
        return [Snapshot(self, entry.id, entry.name) for entry in self._entries() if entry.kind == SNAPSHOT]

    @property
    def links(self) -> list[Attachment]:
        self.check()
        return list(self._links.values())

    def volume(self, name: str) -> Volume:
        """The volume of that name.

        Raises:
            NotFound: there is none; the text lists some that there are.
        """
        return Volume(self, self._entry(name, VOLUME).id, name)

    def store(self, name: str) -> Volume | Snapshot:
        """The volume or snapshot of that name. (``snapshot(name)`` makes one.)

        Raises:
            NotFound: there is none.
        """
        entry = self._entry(name)
        kind: type[Volume] | type[Snapshot] = Volume if entry.kind == VOLUME else Snapshot
        return kind(self, entry.id, name)

    def link(self, name: str) -> Attachment:
        """The link of that name.

        Raises:
            NotFound: there is none.
        """
        self.check()
        try:
            return self._links[name]
        except (KeyError, TypeError):
            some = ", ".join(sorted(self._links)) or "none"
            raise NotFound(f"group {self.name!r} has no link {name!r} (it has: {some})", name=name) from None

    def status(self) -> dict[str, Any]:
        """Figures for people and programs: bytes, LSNs, words of closed lists. Works for a group that failed, too."""
        site = self._site
        if site is None or self._closed:
            known: dict[str, Any] = {"group": self.name, "role": site.role if site is not None else None, "links": []}
        else:
            known = {**site.status(), "links": [link.status() for link in list(self._links.values())]}
        return {
            **known,
            "state": self.state,
            "error": str(self.fault) if self.fault is not None and not self._closed else None,
        }

    # ---- stores

    def add_volume(
        self,
        name: str,
        device_path: str | os.PathLike[str] | None = None,
        *,
        size: int | None = None,
        zero: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> Volume:
        """A volume enters the group.

        Args:
            name: unique in the group.
            device_path: a block device or an existing file, used exclusively; what it holds stays. None: a sparse file
                in the node's folder, all zeros.
            size: bytes, whole regions. Without it: of the device, rounded down to whole regions.
            zero: the volume shows zeros, whatever the device holds; then nothing needs to be copied to secondaries.
            wait: return when it is performed here; else when it has its place in the order.
            timeout: seconds to wait at most.

        On a secondary that is not paired yet this prepares the volume that the primary has under the same name and
        size; once it is paired, volumes come from the primary.

        Raises:
            Exists, NotFound, InUse, UsageError, Refused: the text says what to do; nothing was changed.
        """
        self.check()
        path = path_of(device_path, "device") if device_path is not None else None
        check_name(name)
        if size is None:
            if path is None:
                raise UsageError(f"volume {name!r} needs a device, or a size for a file of its own", name=name)
            check_free(path)
            with self._border(f"looking at {path}"), FileDevice(path, writable=False) as device:
                size = device.size // self.region_size * self.region_size
            if size == 0:
                raise UsageError(
                    f"{path} is shorter than one region, {self.region_size} bytes: give a larger device", device=path
                )
        devices = {name: path} if path is not None else {}
        if self.role == SECONDARY:
            return Volume(self, self._prepare(name, size, devices), name)
        result = self.operate(
            lambda catalog: operations.add_volume(
                catalog, name, size, zero=zero or path is None, region_size=self.region_size
            ),
            devices=devices,
            wait=wait,
            timeout=timeout,
        )
        return Volume(self, result.created[name], name, result)

    def snapshot(
        self, name: str, *, volumes: list[Volume | str] | None = None, wait: bool = True, timeout: float | None = None
    ) -> OperationResult:
        """Snapshots of all volumes (or of these), at one LSN. They are named ``<volume>-<name>``, however many there
        are.

        Returns:
            the operation; its ``snapshots`` are in the order of the volumes.

        Raises:
            Refused: there is no volume.
            Exists, UsageError: a name is taken, or too long with its volume's.
        """
        check_name(name)
        origins: list[str] = []

        def make(catalog: Catalog) -> Operation:
            chosen = volumes if volumes is not None else [entry.name for entry in catalog if entry.kind == VOLUME]
            if not chosen:
                raise Refused(f"group {self.name!r} has no volume to take a snapshot of: add one first", reason="empty")
            origins[:] = [self.name_of(volume, catalog) for volume in chosen]
            return operations.snapshot(catalog, origins, [f"{origin}-{name}" for origin in origins])

        result = self.operate(make, wait=wait, timeout=timeout)
        names = [f"{origin}-{name}" for origin in origins]
        result.snapshots = [Snapshot(self, result.created[full], full, result) for full in names]
        return result

    def copy_range(
        self,
        source: Store | str,
        source_offset: int,
        target: Store | str,
        target_offset: int,
        length: int,
        *,
        wait: bool = True,
        timeout: float | None = None,
    ) -> OperationResult:
        """A range of ``target`` becomes equal to the same range of ``source``. No data move.

        Raises:
            UsageError: the offsets differ, or the range is not made of whole regions.
        """
        if source_offset != target_offset:
            raise UsageError(
                f"copy_range from offset {source_offset} to {target_offset}: a range is copied to the same offset; "
                f"to move data, read and write them",
                source_offset=source_offset,
                target_offset=target_offset,
            )
        return self.operate(
            lambda catalog: operations.copy_range(
                catalog,
                self.name_of(source, catalog),
                self.name_of(target, catalog),
                source_offset,
                length,
                region_size=self.region_size,
            ),
            wait=wait,
            timeout=timeout,
        )

    def mark(
        self, name: str, payload: bytes = b"", *, wait: bool = True, timeout: float | None = None
    ) -> OperationResult:
        """A message of up to 4096 bytes at this point of the order, which changes nothing and passes every site."""
        return self.operate(lambda _: operations.mark(name, payload), wait=wait, timeout=timeout)

    # ---- waiting

    def flush(self) -> int:
        """Everything that was written before this call survives the loss of power; the LSN up to which."""
        with self._border("flushing"):
            return self.site.window.flush()

    def wait(self, lsn: int | None = None, *, where: str = "primary", timeout: float | None = None) -> int:
        """Returns when everything up to ``lsn`` is performed: here, or at the secondary of the link ``where``; the LSN.

        Args:
            lsn: None: all that has its place in the order now.
            where: "primary" (or "here"), or the name of a link.
            timeout: seconds, None for ever.

        Raises:
            WaitTimeout: it goes on.
            NotFound: there is no such link.
        """
        self.check()
        check_timeout(timeout)
        window = self.site.window
        end = window.state().end_lsn
        if lsn is None:
            lsn = end
        elif isinstance(lsn, bool) or not isinstance(lsn, int) or lsn < 0 or (lsn > end and self.role == PRIMARY):
            raise UsageError(f"LSN {lsn!r}: the last that was given is {end}", lsn=lsn, end=end)
        if where not in (PRIMARY, "here"):
            self.link(where).wait_applied(lsn, timeout)
            return lsn
        self._driver.hurry()
        with self._border(f"waiting for LSN {lsn}"):
            if not window.wait_applied(lsn, timeout):
                raise WaitTimeout(
                    f"group {self.name!r}: LSN {lsn} is not performed after {timeout} s; it goes on", lsn=lsn
                )
        return lsn

    # ---- links

    def add_link(self, name: str, address: str, *, mode: Literal["async", "sync"] = "async") -> Attachment:
        """Attaches the secondary that listens at ``address`` ("host:port"), and begins to synchronize it in the
        background.

        Args:
            name: of the link, unique in the group.
            address: where the other node listens. It need not be there yet.
            mode: "async": writes never wait for it. "sync": they return when its journal holds them, while it keeps up.

        Raises:
            Exists: a link has that name.
            Refused: this group is a secondary.
        """
        from pyrepl.link import Link
        from pyrepl.runtime.transport import parse_address

        self.check()
        check_name(name)
        with self._border(f"adding link {name!r}"):
            if parse_address(address)[1] == 0:
                raise UsageError(f"{address!r} has no port to connect to: give that of the other node", address=address)
            if name in ("primary", "here"):
                raise UsageError(f"{name!r} means this site: give the link another name", name=name)
            with self._admission:
                if name in self._links:
                    raise Exists(
                        f"group {self.name!r} has a link {name!r}: give another name, or remove it first", name=name
                    )
                link = Link(self.site, name, address=address, mode=mode, guard=self._guard)
                self.site.attach(link)
                attachment = self._links[name] = Attachment(self, link)
        attachment.start()
        self._emit({"event": "link-added", "group": self.name, "link": name, "address": address, "mode": mode})
        return attachment

    def remove_link(self, name: str) -> None:
        """Detaches it. What is known of the secondary is forgotten; its stores stay as they are."""
        attachment = self.link(name)
        attachment.stop()
        with self._border(f"removing link {name!r}"), self._admission:
            if self._links.pop(name, None) is not None:
                self.site.detach(name)
        self._emit({"event": "link-removed", "group": self.name, "link": name})

    def start_links(self) -> None:
        """Begins to connect (the node calls this when the group is open)."""
        for attachment in list(self._links.values()):
            attachment.start()

    # ---- for stores, links and results

    def check(self) -> None:
        """Raises why the group does not work, if it does not."""
        if self.fault is not None:
            raise again(self.fault)

    def figure(self, lsn: int) -> int | None:
        """Bytes changed by the operation at this LSN, if it is known."""
        result = self.site.result(lsn)
        return result.bytes_changed if result is not None else None

    def look_up(self, name: str) -> StoreEntry | None:
        """The catalog's entry of that name, as of the journal's end."""
        return next((entry for entry in self._entries() if entry.name == name), None)

    def name_of(self, store: Store | str, catalog: Catalog) -> str:
        """The name of a store that was given by handle or by name.

        Raises:
            NotFound: the handle's store was deleted.
            UsageError: of another group, or no store at all.
        """
        if isinstance(store, str):
            return store
        if not isinstance(store, Store):
            raise UsageError(f"{type(store).__name__} is not a store: give a volume, a snapshot, or the name of one")
        if store.group is not self:
            raise UsageError(
                f"{store.name!r} is a store of group {store.group.name!r}: operations stay within one group, here "
                f"{self.name!r}",
                name=store.name,
            )
        if store.id not in catalog:
            raise NotFound(f"group {self.name!r}: {store.kind} {store.name!r} was deleted", name=store.name)
        return catalog[store.id].name

    def operate(
        self,
        make: Callable[[Catalog], Operation],
        *,
        devices: Mapping[str, str] | None = None,
        wait: bool = True,
        timeout: float | None = None,
    ) -> OperationResult:
        """Admits an operation and, if wanted, waits until it is performed here.

        Args:
            make: its constructor, given the catalog as of the journal's end.
            devices: store name -> path, for stores that it creates on devices of their own.
            wait: False: return when it has its place in the order and is in the journal.
            timeout: seconds to wait at most for its performance.
        """
        self.check()
        check_timeout(timeout)
        site = self.site
        if site.role != PRIMARY:
            raise Refused(
                f"group {self.name!r} is a secondary here: operations are made at its primary",
                reason="role",
                group=self.name,
            )
        with self._border("admitting an operation"):
            with self._admission:
                admission = self._reserving(devices, lambda paths: site.admit(make(site.end.catalog), paths))
            self._driver.hurry()
            site.window.commit(admission.lsn)
        result = OperationResult(self, admission)
        self._emit(
            {
                "event": "operation",
                "group": self.name,
                "kind": result.kind,
                "lsn": result.lsn,
                "created": sorted(result.created),
            }
        )
        if wait:
            result.wait(timeout=timeout)
        return result

    def failure(self, error: Exception, what: str) -> PyreplError:
        """What is to be raised for an error of the engine. If it is the end of the group, it is that from here on."""
        if self.fault is not None:
            return again(self.fault)
        if not isinstance(error, PyreplError) and self._site is not None and self._site.window.state().failed:
            self._driver.fail(error)
            if self.fault is not None:
                return again(self.fault)
        return typed(error, what, group=self.name)

    # ---- the end

    def close(self) -> None:
        """Applies what the journal holds, takes a checkpoint, gives devices back. Harmless the second time.

        Raises:
            DeviceError: a disk failed meanwhile; the journal holds what was acknowledged.
        """
        with self._closing:
            if self._closed:
                return
            self._closed = True
            if self.fault is None:
                self.fault = Refused(f"group {self.name!r} is closed", reason="closed", group=self.name)
            if self._site is None:
                return
            for attachment in list(self._links.values()):
                attachment.stop()
            try:
                self._driver.close()
            except Exception as error:
                raise typed(error, f"closing group {self.name!r}", group=self.name) from error
            finally:
                self._placement.close()

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Group {self.name!r}: {self.state}>"

    # ---- inside

    def _failed(self, error: BaseException) -> None:
        """The driver says that the group is over."""
        if self._closed:
            return
        what = f"group {self.name!r} has failed and takes nothing more until it is opened again"
        fault = typed(error if isinstance(error, Exception) else RuntimeError(repr(error)), what, group=self.name)
        if fault is error:
            fault = again(fault)
        fault.__cause__ = error
        self.fault = fault
        self._emit({"event": "group-failed", "group": self.name, "error": fault.code, "text": str(fault)})

    def _border(self, doing: str) -> _Border:
        return _Border(self, doing)

    def _entries(self) -> list[StoreEntry]:
        self.check()
        return list(self.site.end.catalog.stores.values())

    def _entry(self, name: str, kind: str = "") -> StoreEntry:
        entries = [entry for entry in self._entries() if not kind or entry.kind == kind]
        for entry in entries:
            if entry.name == name:
                return entry
        some = ", ".join(sorted(entry.name for entry in entries)[:5]) or "none"
        raise NotFound(f"group {self.name!r} has no {kind or 'store'} {name!r} (it has: {some})", name=name)

    def _prepare(self, name: str, size: int, devices: Mapping[str, str]) -> int:
        with self._border(f"preparing volume {name!r}"), self._admission:
            return self._reserving(devices, lambda paths: self.site.prepare_volume(name, size, paths.get(name, "")))

    def _reserving(self, devices: Mapping[str, str] | None, admit: Callable[[dict[str, str]], T]) -> T:
        """Takes given devices before the admission, and gives them back if it fails."""
        paths = {name: path_of(path, "device") for name, path in (devices or {}).items()}
        taken: list[str] = []
        try:
            for path in paths.values():
                self._placement.take(path)
                taken.append(path)
            return admit(paths)
        except BaseException:
            for path in taken:
                self._placement.give_back(path)
            raise


class _Border:
    """Makes errors of the engine typed ones; see ``border``."""

    def __init__(self, group: Group, doing: str) -> None:
        self._group = group
        self._doing = doing

    def __enter__(self) -> None:
        self._group.check()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            raise self._group.failure(error, f"group {self._group.name!r}: {self._doing}") from error


def _check_no_journal(device: FileDevice) -> None:
    with suppress(Corrupt):
        found = Journal.find(device)
        name = bytes(found.superblock["name"]).rstrip(b"\0").decode(errors="replace")
        raise Exists(
            f"{device.name} holds the journal of a group {name!r}: open the node that it belongs to, give another "
            f"device, or use force=True to lose it",
            device=device.name,
        )
