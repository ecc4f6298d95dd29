"""Volumes, snapshots and views as users of the package hold them: reading, writing, and the operations on one store.

Decides how a request of any offset and length meets the engine, and the words of a refusal. A handle caches the
store's number, so that an aligned write is one call into the window; what is unusual is found out afterwards, from the
error.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pyrepl import operations
from pyrepl._core import layout, view
from pyrepl.catalog import SNAPSHOT, VOLUME, whole
from pyrepl.catalog import View as ViewEntry
from pyrepl.early import EarlyOperation, begin_restore, begin_snapshot, check_early
from pyrepl.errors import NotFound, PyreplError, Refused, UsageError
from pyrepl.image import Image, copy_from
from pyrepl.membership import take_back
from pyrepl.results import OperationResult, Progress, Ticket
from pyrepl.roles import PRIMARY, SECONDARY
from pyrepl.runtime.placement import check_overwritten

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pyrepl.group import Group


DIGEST_PIECE = 1 << 20  # bytes read at a time for a digest
T = TypeVar("T")

# What the core raises for a call that cannot be.
_MISUSE = (ValueError, TypeError, LookupError, OverflowError, BufferError)


class Extent(NamedTuple):
    """A range of bytes of a store. Of operations: whole regions of the group."""

    offset: int
    length: int


class Store:
    """What volumes and snapshots have in common. Made by the group; cheap, and safe to use from many threads."""

    kind = ""

    def __init__(self, group: Group, store_id: int, name: str, result: OperationResult | None = None) -> None:
        self._group = group
        self._id = store_id
        self._site = group.site
        self._window = group.site.window
        self._stores = group.site.stores
        self._paired = group.site.group_id  # when a fresh secondary is paired, its stores get other numbers
        self.name = name
        self.result = result
        """The operation that made it; None for a handle that was found by name."""

    # ---- about it

    @property
    def group(self) -> Group:
        return self._group

    @property
    def id(self) -> int:
        """The store's number, never used again in its group."""
        if self._site.group_id is not self._paired:
            self._find()
        return self._id

    @property
    def size(self) -> int:
        """Bytes."""
        while True:
            size = self._window.store_size(self.id)
            if size is not None:
                return size
            self._find()

    @property
    def device(self) -> str | None:
        """The path of the device that it has at this site; None until the operation that makes it is performed."""
        place = self._group.site.shelf.places.get(self.id)
        return place.path if place is not None else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and other._group is self._group and other.id == self.id

    def __hash__(self) -> int:
        return hash((id(self._group), self.name))  # not the number: a secondary's changes when it is paired

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} of group {self._group.name!r}>"

    # ---- the operation that made it

    @property
    def lsn(self) -> int:
        """The place of the operation that made it in the order of the group."""
        return self._made().lsn

    @property
    def state(self) -> str:
        """``admitted`` or ``performed``: of the operation that made it."""
        return self._made().state

    @property
    def bytes_changed(self) -> int | None:
        """See :attr:`OperationResult.bytes_changed`."""
        return self._made().bytes_changed

    @property
    def bytes_avoided(self) -> int | None:
        """See :attr:`OperationResult.bytes_avoided`."""
        return self._made().bytes_avoided

    def wait(
        self, where: str = "primary", timeout: float | None = None, progress: Progress | None = None
    ) -> OperationResult:
        """Waits for the operation that made it, see :meth:`OperationResult.wait`."""
        return self._made().wait(where, timeout, progress)

    def _made(self) -> OperationResult:
        if self.result is None:
            raise UsageError(
                f"{self.name!r} was found by name: only the call that made a store knows its operation", name=self.name
            )
        return self.result

    # ---- data

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset`` on, aligned or not. Every write that has returned is seen.

        At a secondary, what has arrived (and is old enough, see :meth:`Group.set_delay`); while that is
        resynchronized, what the store showed as of its protective snapshot (``status()["protective"]``). What several
        reads find is of one LSN only in a view (:meth:`Group.open_view`).

        Raises:
            UsageError: outside the store.
            Refused: a secondary that is not consistent now, and keeps nothing of it (``reason="inconsistent"``).
            NotFound: the store was deleted.
            DeviceError: a disk failed.
        """
        group = self._group
        while True:
            if group.fault is not None:
                group.check()
            if self._site.group_id is not self._paired:
                self._find()
            try:
                if self._site.role != PRIMARY:
                    return self._read_there(view.read, offset, length, length)
                return view.read(self._window, self._stores, self._id, offset, length)
            except Exception as error:
                self._settle(error, "reading", offset, length)

    def readinto(self, offset: int, buffer: Buffer) -> int:
        """Fills the buffer from ``offset`` on; the number of bytes. Errors as of :meth:`read`."""
        group = self._group
        while True:
            if group.fault is not None:
                group.check()
            if self._site.group_id is not self._paired:
                self._find()
            try:
                if self._site.role != PRIMARY:
                    self._read_there(view.readinto, offset, buffer, _length(buffer, self, "reading into"))
                else:
                    view.readinto(self._window, self._stores, self._id, offset, buffer)
            except Exception as error:
                if _is_readonly(buffer):
                    raise _readonly(self, buffer) from error
                self._settle(error, "reading", offset, _length(buffer, self, "reading into"))
            else:
                return _length(buffer, self, "reading into")

    def digest(self, offset: int, length: int) -> bytes:
        """XXH3-128 of ``length`` bytes from ``offset`` on, 16 bytes: for comparing stores without moving what they
        hold. Of a store that is written meanwhile it is not that of one moment. Errors as of :meth:`read`."""
        return digest_of(self, offset, length)

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> int:
        """Writes the buffer at ``offset``, aligned or not; the LSN. Survives a crash of the process when it returns.

        Args:
            offset: bytes.
            data: anything contiguous with the buffer protocol; it may be used again when this returns.
            fua: return when it survives the loss of power (in sync mode: at the peer too).

        Raises:
            UsageError: outside the store, empty, or not a contiguous buffer.
            Refused: a secondary (``reason="role"``), or closed.
            DeviceError: the journal failed; the group stops.
        """
        if self._group.fault is not None:
            self._group.check()
        try:
            return self._window.write(self._id, offset, data, fua=fua)
        except Exception as error:
            return self._write_otherwise(error, offset, data, fua)

    def submit_write(self, offset: int, data: Buffer, *, fua: bool = False) -> Ticket:
        """The same without waiting for the journal: many in flight from one thread. Returns when the data were taken
        over.

        A write that is not aligned to the group's alignment is written at once: its ticket is done.
        """
        group = self._group
        if group.fault is not None:
            group.check()
        try:
            native = self._window.submit(self._id, offset, data, fua=fua)
        except Exception as error:
            return Ticket(group, None, self._write_otherwise(error, offset, data, fua))
        return Ticket(group, native, native.lsn)

    def zero(self, offset: int, length: int) -> int:
        """The range reads as zeros; the LSN. No data go into the journal or over links. Errors as of :meth:`write`."""
        return self._clear(offset, length, discard=False)

    def discard(self, offset: int, length: int) -> int:
        """The same, and the space may be given back to the device; the LSN."""
        return self._clear(offset, length, discard=True)

    def flush(self) -> int:
        """Everything that was written to the group before this call survives the loss of power; the LSN up to which."""
        return self._group.flush()

    # ---- operations

    def snapshot(
        self, name: str, *, verify: bool = False, early: bool = False, wait: bool = True, timeout: float | None = None
    ) -> Snapshot:
        """A snapshot of this store as it is at this point of the order. No data move.

        Args:
            name: of the snapshot, unique in the group.
            verify: the result is compared with every secondary's by digests, as of the place of the operation; what
                differs is copied alone. ``wait`` waits for that too; see :meth:`OperationResult.wait_verified`.
            early: the secondaries that are connected perform it first, see :meth:`begin_snapshot`.
            wait: return when it is performed here; else when it has its place (``snapshot.wait()`` then waits).
            timeout: seconds to wait at most.

        Raises:
            Exists: a store has that name.
            WaitTimeout: it goes on; if it was to be early, it was given up.
        """
        if early:
            check_early(verify=verify)
            result = self.begin_snapshot(name).at_once(wait=wait, timeout=timeout)
            return Snapshot(self._group, result.created[name], name, result)
        result = self._group.operate(
            lambda catalog: operations.snapshot(catalog, [self._named(catalog)], [name]),
            verify=verify,
            wait=wait,
            timeout=timeout,
        )
        return Snapshot(self._group, result.created[name], name, result)

    def begin_snapshot(self, name: str) -> EarlyOperation:
        """The secondaries make a snapshot of this store now, hidden until this site makes it too
        (:meth:`EarlyOperation.perform`). Theirs then holds what changed in between as copied regions, and nothing
        else crosses the links.

        Raises:
            Exists, NotFound, Refused: as of :meth:`snapshot`.
        """
        return begin_snapshot(self, name)

    def clone(
        self,
        name: str,
        device: str | None = None,
        *,
        force: bool = False,
        verify: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> Volume:
        """A new volume ``name`` with the content of this store; on ``device`` if one is given, at least as long.

        Args:
            force: what the device holds may be lost.

        Raises:
            Refused: something stands on the device, and ``force`` is not given.
        """
        if device is not None:
            check_overwritten(device, force=force)
        result = self._group.operate(
            lambda catalog: operations.clone(catalog, self._named(catalog), name),
            devices={name: device} if device is not None else {},
            verify=verify,
            wait=wait,
            timeout=timeout,
        )
        return Volume(self._group, result.created[name], name, result)

    def synchronize(
        self, source: Store | Image | str, *, verify: bool = False, wait: bool = True, timeout: float | None = None
    ) -> OperationResult:
        """This store becomes equal to ``source``, a store or an image of the same size. No data move."""
        return self._group.operate(
            lambda catalog: copy_from(self._group, "synchronize", catalog, self._named(catalog), source),
            verify=verify,
            wait=wait,
            timeout=timeout,
        )

    # ---- inside

    def _named(self, catalog: Any) -> str:
        return self._group.name_of(self, catalog)

    def _read_there(self, call: Callable[..., T], offset: int, what: Any, length: int) -> T:
        """A read at a secondary: of the store, as long as that is a state of the primary; else of what is kept of it.

        Raises:
            Refused: nothing is.
        """
        views, protective = self._site.views, self._site.protective
        while True:
            before = protective.unsettlings  # rule read_settled
            number = views.readable(self._id)
            kept = views.opened.get(number)
            try:
                result = call(self._window, self._stores, number, offset, what)
            except Exception as error:
                if kept is None:
                    raise
                if number not in views.opened:
                    continue  # the resync is over
                if isinstance(error, _MISUSE):
                    check_range(View(self._group, self, kept), offset, length)
                raise
            if kept is not None or protective.unsettlings == before:
                return result

    def _find(self) -> None:
        """The number was given when the group was not paired yet, or the store is gone."""
        group = self._group
        if group.fault is not None:
            group.check()
        paired = self._site.group_id
        now = group.look_up(self.name)
        # Within one identity of the group a number is for ever: what has this name now is another store.
        if now is None or paired is self._paired:
            raise NotFound(f"group {group.name!r}: {self.kind} {self.name!r} was deleted", name=self.name)
        self._id, self._paired = now.id, paired

    def _settle(self, error: Exception, doing: str, offset: int, length: int) -> None:
        """Makes the call worth repeating, or raises what it should have."""
        what = f"group {self._group.name!r}: {doing} {self.kind} {self.name!r}"
        if isinstance(error, LookupError) and not isinstance(error, PyreplError):
            self._find()
            return
        if isinstance(error, _MISUSE):
            check_range(self, offset, length)
        raise self._group.failure(error, what) from error

    def _write_otherwise(self, error: Exception, offset: int, data: Buffer, fua: bool) -> int:
        """The write that was not aligned; or the reason why there cannot be one."""
        self._group.require_primary()
        if isinstance(error, PyreplError) or not isinstance(error, _MISUSE):
            raise self._group.failure(error, f"group {self._group.name!r}: writing {self.name!r}") from error
        length = _length(data, self, "writing")
        if isinstance(error, LookupError):
            self._find()
        offset, _ = check_range(self, offset, length)
        return self._engine(view.write_unaligned, self._window, self._stores, self._id, offset, data, fua=fua)

    def _engine(self, call: Callable[..., int], *arguments: Any, **options: Any) -> int:
        try:
            return call(*arguments, **options)
        except Exception as error:
            what = f"group {self._group.name!r}: writing {self.kind} {self.name!r}"
            raise self._group.failure(error, what) from error

    def _clear(self, offset: int, length: int, *, discard: bool) -> int:
        group = self._group
        group.check()
        group.require_primary()
        offset, length = check_range(self, offset, length)
        region, end = group.region_size, offset + length
        first, last = -(-offset // region) * region, end // region * region
        if last - first <= layout.MAX_EVENT:
            return self._clear_blocks(offset, end, discard)
        self._clear_blocks(offset, first, discard)
        result = group.operate(
            lambda catalog: operations.zero(catalog, self._named(catalog), first, last - first, region_size=region),
            wait=False,
        )
        return self._clear_blocks(last, end, discard) or result.lsn

    def _clear_blocks(self, offset: int, end: int, discard: bool) -> int:
        """Zeros in events; the LSN of the last, 0 if there is nothing between."""
        unit = self._group.alignment
        first, last = -(-offset // unit) * unit, end // unit * unit
        if first >= last:
            first = last = end
        lsn = 0
        for start, length in ((offset, first - offset), (last, end - last)):
            if length:
                lsn = self._engine(view.write_unaligned, self._window, self._stores, self._id, start, bytes(length))
        if last > first:
            lsn = self._engine(self._window.zero, self._id, first, last - first, discard=discard)
        return lsn


class Volume(Store):
    """A volume: what applications read and write."""

    kind = VOLUME

    def restore(
        self,
        snapshot: Snapshot | Image | str,
        *,
        extent: Extent | tuple[int, int] | None = None,
        verify: bool = False,
        early: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> OperationResult:
        """The volume shows again what the snapshot or image shows, whole or on an extent of whole regions. No data
        move. ``early``: the secondaries that are connected perform it first, see :meth:`begin_restore`.

        Raises:
            UsageError: the extent is not made of whole regions (the text names their size); sizes differ.
            Refused: the source is neither snapshot nor image; the image is not what it was (``reason="image"``).
        """
        group = self._group
        try:
            offset, length = (None, None) if extent is None else extent
        except (TypeError, ValueError):
            raise UsageError(f"extent={extent!r}: give pyrepl.Extent(offset, length)") from None
        if early:
            check_early(verify=verify, part=extent is not None)
            return self.begin_restore(snapshot).at_once(wait=wait, timeout=timeout)
        return group.operate(
            lambda catalog: copy_from(group, "restore", catalog, self._named(catalog), snapshot, offset, length),
            verify=verify,
            wait=wait,
            timeout=timeout,
        )

    def begin_restore(self, snapshot: Snapshot | Image | str) -> EarlyOperation:
        """The secondaries restore this volume from a snapshot now, whole; this site when it is told to
        (:meth:`EarlyOperation.perform`). Until then they are no state of this site (writes in mode sync do not wait for
        them, readers there find what was before), and nothing of the volume is copied to them. Then what changed in
        between, at the volume or the snapshot, is copied, and nothing else.

        Raises:
            UsageError: sizes differ; an image.
            Refused: the source is no snapshot.
        """
        return begin_restore(self, snapshot)

    def rewind(
        self, to: int | datetime, name: str, *, timeout: float | None = None, progress: Progress | None = None
    ) -> Volume:
        """A new volume ``name`` that shows what this one showed earlier; it can be written, and this one stays as it
        is. Possible for every LSN that the journal and the stores of the group still cover, across operations too: a
        region can be found if a store shows it unchanged, if a write since covers it whole, or if the journal holds all
        that was written to it since a snapshot or a restore.

        What stores show is taken over by an operation, no data move; the rest is written to the new volume as
        ordinary writes. The journal is only read: writers are never held up, and can write over what is read.

        Args:
            to: an LSN; or a datetime: the last LSN that the primary of then had written by its clock at that time. One
                without a time zone is local time.
            name: of the new volume, unique in the group.
            timeout: seconds; when they are over it is given up, and nothing is left of it.
            progress: called a few times a second with ``phase`` (look, trace, build, fill), ``lsn``, ``bytes_done``,
                ``bytes_total``. What it raises ends the rewind, of which nothing is left, and is the caller's.

        Returns:
            the volume; its ``lsn`` is that of the operation that completed it.

        Raises:
            Refused: not all of it can be found (``reason="range"``: the text, and ``first`` and ``last`` of the
                context, say for which LSNs it can); the journal was written over while it was read (``"overtaken"``); a
                secondary (``"role"``); another rewind is under way (``"busy"``).
            UsageError: an LSN or a time that is still to come.
            Exists: a store has that name.
            WaitTimeout: it was given up.
        """
        from pyrepl.rewinding import rewind

        group = self._group
        group.check()
        group.require_primary()
        if not group.rewinding.acquire(blocking=False):
            raise Refused(f"group {group.name!r}: another rewind is under way", reason="busy", retryable=True)
        try:
            result = rewind(group, self.id, to, name, timeout=timeout, progress=progress)
        except PyreplError:
            raise
        except (OSError, LookupError, ValueError) as error:
            raise group.failure(error, f"group {group.name!r}: rewinding {self.name!r}") from error
        finally:
            group.rewinding.release()
        return Volume(group, result.created[name], name, result)

    def resize(
        self,
        size: int,
        *,
        force: bool = False,
        verify: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> OperationResult:
        """The volume becomes ``size`` bytes long, whole regions; what is added reads as zeros.

        Raises:
            Refused: it would shrink and ``force`` is not given; its device is too small.
        """
        group = self._group
        return group.operate(
            lambda catalog: operations.resize(
                catalog, self._named(catalog), size, force=force, region_size=group.region_size
            ),
            verify=verify,
            wait=wait,
            timeout=timeout,
        )

    def remove(self, *, force: bool = False, wait: bool = True, timeout: float | None = None) -> OperationResult | None:
        """The volume leaves the group, at every site; what it holds is lost to the group.

        On a secondary that is not paired yet this takes back a volume that was prepared: one of the wrong size, or on
        the wrong device. A device keeps what is on it; a file that the node made is removed.

        Returns:
            the operation; None: a volume that was prepared has been taken back.

        Raises:
            Refused: it has snapshots and ``force`` is not given (they keep their content); a secondary that is paired,
                whose volumes go by its primary (``reason="role"``).
        """
        if self._group.role == SECONDARY:
            take_back(self._group, self.name)
            return None
        return self._group.operate(
            lambda catalog: operations.remove_volume(catalog, self._named(catalog), force=force),
            wait=wait,
            timeout=timeout,
        )


class Snapshot(Store):
    """A snapshot: the state of a store at one point of the order. It can be written, refreshed and restored from."""

    kind = SNAPSHOT

    def refresh(
        self, *, verify: bool = False, wait: bool = True, timeout: float | None = None
    ) -> OperationResult:
        """It shows what its origin shows now.

        Raises:
            Refused: its origin was removed.
        """
        group = self._group
        return group.operate(
            lambda catalog: operations.refresh(catalog, self._named(catalog), region_size=group.region_size),
            verify=verify,
            wait=wait,
            timeout=timeout,
        )

    def delete(self, *, wait: bool = True, timeout: float | None = None) -> OperationResult:
        """It leaves the group, at every site."""
        return self._group.operate(
            lambda catalog: operations.delete(catalog, self._named(catalog)), wait=wait, timeout=timeout
        )


class View:
    """What a store showed at one LSN, read-only and at this site only, whatever comes after. Made by
    :meth:`Group.open_view`; a context manager. Safe to use from many threads.

    Attributes:
        id: its number, which reads in the core go by.
        store: the volume or snapshot that it shows (of a kept snapshot None).
        lsn: everything up to it is seen, nothing after it.
        size: bytes, those of the store at that LSN.
    """

    def __init__(self, group: Group, store: Store | None, entry: ViewEntry) -> None:
        self._group = group
        self._site = group.site
        self.id = entry.id
        self.store = store
        self.lsn = entry.lsn
        self.size = entry.size

    @property
    def name(self) -> str:
        """``store@lsn``, for people."""
        return f"{self.store.name if self.store is not None else ''}@{self.lsn}"

    @property
    def group(self) -> Group:
        return self._group

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset`` on, aligned or not.

        Raises:
            UsageError: outside the view.
            Refused: the view is closed.
            DeviceError: a disk failed.
        """
        return self._reading(view.read, offset, length, length)

    def readinto(self, offset: int, buffer: Buffer) -> int:
        """Fills the buffer from ``offset`` on; the number of bytes. Errors as of :meth:`read`."""
        length = _length(buffer, self, "reading into")
        self._reading(view.readinto, offset, buffer, length)
        return length

    def close(self) -> None:
        """Nothing more is kept for it. Harmless the second time, and after the group was closed."""
        self._group.viewing.close(self)

    @property
    def closed(self) -> bool:
        """Whether it can be read no more."""
        return self.id not in self._site.views.opened

    def __enter__(self) -> View:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<View {self.name!r} of group {self._group.name!r}>"

    kind = "view"

    def _reading(self, call: Callable[..., T], offset: int, what: Any, length: int) -> T:
        group, site = self._group, self._site
        group.check()
        try:
            return call(site.window, site.stores, self.id, offset, what)
        except Exception as error:
            if self.closed:
                raise Refused(f"the view {self.name!r} of group {group.name!r} is closed", reason="closed") from error
            if isinstance(error, BufferError | TypeError) and not isinstance(what, int) and _is_readonly(what):
                raise _readonly(self, what) from error
            if isinstance(error, _MISUSE):
                check_range(self, offset, length)
            raise group.failure(error, f"group {group.name!r}: reading view {self.name!r}") from error


def digest_of(store: Store | View, offset: int, length: int) -> bytes:
    """XXH3-128 of a range. Errors as of reading it."""
    import xxhash

    offset, length = check_range(store, offset, length)
    state, buffer = xxhash.xxh3_128(), memoryview(bytearray(min(length, DIGEST_PIECE)))
    for start in range(offset, offset + length, DIGEST_PIECE):
        piece = buffer[: offset + length - start]
        store.readinto(start, piece)
        state.update(piece)
    return state.digest()


def check_range(store: Store | View, offset: int, length: int) -> tuple[int, int]:
    """A range of bytes that is not empty and inside the store, in Python's numbers.

    Raises:
        UsageError: the text names range and size.
    """
    first, count = whole(offset), whole(length)
    if first is None or count is None or first < 0 or count < 0:
        raise UsageError(f"offset {offset!r} and length {length!r}: give whole numbers of bytes, not below 0")
    offset, length, size = first, count, store.size
    if length == 0:
        raise UsageError(f"an empty range, at {offset}: give at least one byte", offset=offset)
    if offset > size or length > size - offset:
        raise UsageError(
            f"{length} bytes at {offset} are not inside {store.kind} {store.name!r}, which is {size} bytes long",
            name=store.name,
            offset=offset,
            length=length,
            size=size,
        )
    return offset, length


def _readonly(store: Store | View, buffer: Buffer) -> UsageError:
    return UsageError(
        f"reading into {store.kind} {store.name!r}: {type(buffer).__name__} cannot be written to: give a bytearray or "
        f"a writable array"
    )


def _is_readonly(data: Buffer) -> bool:
    try:
        with memoryview(data) as seen:
            return seen.readonly
    except TypeError:
        return False


def _length(data: Buffer, store: Store | View, doing: str) -> int:
    """Bytes of a contiguous buffer."""
    try:
        with memoryview(data) as seen:
            if not seen.contiguous:
                raise UsageError(f"{doing} {store.kind} {store.name!r}: the buffer is not contiguous, copy it first")
            return seen.nbytes
    except TypeError as error:
        raise UsageError(
            f"{doing} {store.kind} {store.name!r}: {type(data).__name__} has no buffer protocol: give bytes, "
            f"bytearray, memoryview or an array"
        ) from error
