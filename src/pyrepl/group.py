"""A group of volumes with one journal, as users of the package hold it.

Says what each call means to who makes it, and decides the life of a group: what belongs to it, what it is when it has
failed, and how it ends. What a call does is the decision of a room:

    admissions, membership      how operations get their place; how volumes enter
    wide, unordered, early      operations of several volumes or stores, as one; those that secondaries perform first
    explaining, losing          what something would change, or lose, without doing it
    viewing, trial, kept        what is shown beside the stores
    waiting, performed          what has become of what was asked for
    attachments, comparisons    its links, and whether their secondaries are equal
    changeover, succession      who leads

The engine is ``site``, its threads are ``runtime``. How a group comes to be is ``opening``.

    fault     None while the group works; then the error that every call raises. It is looked at without a lock on the
              path of a write, for it changes once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pyrepl import operations
from pyrepl.admissions import Admissions
from pyrepl.attachments import Attachments
from pyrepl.border import again, typed
from pyrepl.catalog import SNAPSHOT, UNFINISHED, VOLUME, Catalog, check_name
from pyrepl.catalog import Store as StoreEntry
from pyrepl.changeover import Changeover
from pyrepl.comparisons import Comparisons
from pyrepl.delay import check_delay
from pyrepl.early import EarlyOperation, begin_restores, begin_snapshots, check_early
from pyrepl.errors import NotFound, PyreplError, Refused, UsageError, some_of
from pyrepl.image import Image, add_image, copy_from
from pyrepl.membership import add_volume
from pyrepl.operations import Operation
from pyrepl.performed import performed, written_down
from pyrepl.plugin import maker as plugin_maker
from pyrepl.results import OperationResult, Progress, check_timeout
from pyrepl.roles import PRIMARY
from pyrepl.runtime.driver import Driver
from pyrepl.runtime.hooks import TIMEOUT, Hook, Hooks, Passing
from pyrepl.runtime.placement import FilePlacement
from pyrepl.runtime.plugins import InstalledPlugins
from pyrepl.site import Site
from pyrepl.succession import Succession
from pyrepl.trial import JOURNAL, Trial, Trials, check_journal_size
from pyrepl.unordered import UnorderedSet
from pyrepl.viewing import Viewing
from pyrepl.volume import Snapshot, Store, View, Volume
from pyrepl.waiting import wait_performed
from pyrepl.wide import snapshot_all, wide

if TYPE_CHECKING:
    from pyrepl.attachment import Attachment
    from pyrepl.explaining import Explanation
    from pyrepl.kept import KeptSnapshot
    from pyrepl.runtime.listener import Feed
    from pyrepl.runtime.plugins import Operation as PluginOperation

ACTIVE, FAILED, CLOSED = "active", "failed", "closed"
Emit = Callable[[dict[str, Any]], None]
T = TypeVar("T")


class Group:
    """Volumes whose writes and operations have one order. Made by :meth:`Node.create_group` or found by
    :meth:`Node.group`.

    All methods may be called from many threads.
    """

    def __init__(
        self,
        name: str,
        *,
        site: Site | None,
        placement: FilePlacement,
        emit: Emit,
        fault: PyreplError | None = None,
        hooks: Sequence[Hook] = (),
    ) -> None:
        self.name = name
        self.fault = fault
        self._site = site
        self._placement = placement
        self.emit = emit
        self._closed = False
        self._closing = threading.Lock()
        self.admission = threading.Lock()
        self.feeds: Callable[[Site], list[Feed]] = lambda site: []  # connections that feed this group; the node's
        self.introduce: Callable[[], tuple[str, list[tuple[str, int]]]] = lambda: ("", [])  # the node: name, listeners
        self.rewinding = threading.Lock()
        self.admissions = Admissions(self, placement)
        self.viewing = Viewing(self)
        self.attachments = Attachments(self)
        self.comparisons = Comparisons(self)
        self.succession = Succession(self)
        self.changeover = Changeover(self)
        self.trials = Trials(self, placement.folder)
        if site is not None:
            site.roles.asked = self.succession.begin
            site.shortage.changed = self._tell_standing
            site.roles.feeding = lambda: next((feed.link for feed in self.feeds(site) if feed.is_open), "")
            self.attachments.enter_site(site)
            self._hooks = site.gate = Hooks(site, hooks, emit, placement.folder)  # before the applier begins, too
            plugins = site.plugins = InstalledPlugins()
            self._driver = Driver(site, self._failed)
            self._driver.after_step = self.attachments.judge_lags
            site.siblings.heard = site.intake.taken = self._driver.hurry
            self._hooks.hurry = plugins.hurry = self._driver.hurry
            self._driver.hurry()  # a plug-in that was performed again may be done already

    # ---- about it

    @property
    def site(self) -> Site:
        """The engine."""
        if self._site is None:
            self.check()
        assert self._site is not None
        return self._site

    @property
    def site_if_any(self) -> Site | None:
        """The engine, of a group that has failed too; None: it could not be opened."""
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
        return [Volume(self, entry.id, entry.name) for entry in self.entries() if entry.kind == VOLUME]

    @property
    def snapshots(self) -> list[Snapshot]:
        """Of all stores, oldest first."""
        return [Snapshot(self, entry.id, entry.name) for entry in self.entries() if entry.kind == SNAPSHOT]

    @property
    def kept(self) -> list[KeptSnapshot]:
        """Snapshots that this site alone keeps: of a history that it had to leave (``lost-<generation>``), oldest
        first, then those of its protective snapshot (``protective``), while a secondary is not consistent."""
        from pyrepl.kept import kept_of

        return kept_of(self)

    def kept_snapshot(self, name: str) -> KeptSnapshot:
        """The kept snapshot of that name.

        Raises:
            NotFound: there is none.
        """
        from pyrepl.kept import find_kept

        return find_kept(self, name)

    @property
    def images(self) -> list[Image]:
        """That are registered at this site, oldest first."""
        self.check()
        return [Image(self, entry) for entry in list(self.site.gallery.images.values())]

    @property
    def links(self) -> list[Attachment]:
        self.check()
        return list(self.attachments)

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

    def image(self, name: str) -> Image:
        """The image of that name at this site.

        Raises:
            NotFound: there is none.
        """
        self.check()
        return Image(self, self.site.gallery.find(name))

    def link(self, name: str) -> Attachment:
        """The link of that name.

        Raises:
            NotFound: there is none.
        """
        self.check()
        return self.attachments.find(name)

    def status(self) -> dict[str, Any]:
        """Figures for people and programs: bytes, LSNs, words of closed lists. Works for a group that failed, too."""
        site = self._site
        if site is None or self._closed:
            known: dict[str, Any] = {"group": self.name, "role": site.role if site is not None else None, "links": []}
        else:
            fed = any(feed.is_open for feed in self.feeds(site))
            standing, diverged = site.status(), self.attachments.diverged()
            for store in standing["stores"]:
                store["diverged"] += diverged.get(store["id"], [])
            known = {**standing, "links": self.attachments.status(), "hooks": self._hooks.told(),
                     "trials": self.trials.told(), "primary_connected": fed if site.role != PRIMARY else None}
        return {
            **known,
            "state": self.state,
            "error": str(self.fault) if self.fault is not None and not self._closed else None,
        }

    def latency(self) -> dict[str, dict[str, Any]]:
        """How long things took here, since the group was opened: of ``write`` and ``flush`` as their callers waited, of
        ``operation`` from its place in the order to its performance.

        Returns:
            by name: ``buckets``: [upper bound in seconds, how many took no longer], ``count``, ``sum`` in seconds.
        """
        return {
            name: {"buckets": [list(bucket) for bucket in buckets], "count": count, "sum": total}
            for name, (buckets, count, total) in self.site.window.latencies().items()
        }

    def operation_counts(self) -> dict[tuple[str, str], int]:
        """Operations since the group was opened, by (kind, result): "performed" here, or "refused" at admission (kind
        "none": before it was one)."""
        return self.admissions.counts()

    def operations(self, earlier: bool = False) -> list[dict[str, Any]]:
        """What was performed here since the group was opened, oldest first, the last 1024: ``lsn``, ``kind``, ``time``
        (seconds since 1970, by the clock of the primary of then, when it got its place; None: not known), ``seconds``
        (from there to its performance here), ``arguments``,
        of a plug-in ``digest`` (hexadecimal digits: what it said of what it did) and ``failed`` (None, or why it did
        nothing), ``bytes_changed``, ``bytes_avoided`` (as of :attr:`OperationResult.bytes_avoided`; 0 at a
        secondary), and
        ``created``, the names of the stores that it made and that there still are, of a set
        ``members``, the same of each but its LSN; ``refused``: None, or why this site, a secondary, could not perform
        what it copies from images (its primary sends the data); ``verified``: of an operation whose result is
        compared, by link ``state``, ``reason``, ``regions_compared`` and ``regions_different`` (else None);
        ``secondaries``: by link "performed", "refused" (the data were sent in place of it) or "pending".

        Args:
            earlier: also those from before the group was opened, as far as its journal still holds them: it is read
                for that, all of it. Of those ``seconds``, ``bytes_changed`` and ``bytes_avoided`` are None.
        """
        self.check()
        known = performed(self)
        if not earlier:
            return known
        first = known[0]["lsn"] if known else self.applied_lsn + 1
        with self.border("reading the journal"):
            return [one for one in written_down(self) if one["lsn"] < first] + known

    # ---- stores, and operations on them

    def add_volume(
        self,
        name: str,
        device_path: str | os.PathLike[str] | None = None,
        *,
        size: int | None = None,
        zero: bool = False,
        force: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> Volume:
        """A volume enters the group.

        Args:
            name: unique in the group.
            device_path: a block device or an existing file, used exclusively; what it holds stays, at a primary. None:
                a sparse file in the node's folder, all zeros.
            size: bytes, whole regions. Without it: of the device, rounded down to whole regions.
            zero: the volume shows zeros, whatever the device holds; then nothing needs to be copied to secondaries.
            force: what the device holds may be lost: at a secondary, or with ``zero``.
            wait: return when it is performed here; else when it has its place in the order.
            timeout: seconds to wait at most.

        On a secondary that is not paired yet this prepares the volume that the primary has under the same name and
        size; once it is paired, volumes come from the primary. What the device holds is overwritten with the
        primary's content then.

        Raises:
            Exists, NotFound, InUse, UsageError, Refused: the text says what to do; nothing was changed.
        """
        number, result = add_volume(
            self, name, device_path, size, zero=zero, force=force, wait=wait, timeout=timeout
        )
        return Volume(self, number, name, result)

    def snapshot(
        self,
        name: str,
        *,
        volumes: list[Volume | str] | None = None,
        verify: bool = False,
        early: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> OperationResult:
        """Snapshots of all volumes (or of these), at one LSN. They are named ``<volume>-<name>``, however many there
        are.

        Args:
            early: the secondaries that are connected perform it first, see :meth:`begin_snapshot`.

        Returns:
            the operation; its ``snapshots`` are in the order of the volumes.

        Raises:
            Refused: there is no volume.
            Exists, UsageError: a name is taken, or too long with its volume's.
            WaitTimeout: it goes on; if it was to be early, it was given up.
        """
        check_name(name)
        if early:
            check_early(verify=verify)
            return self.begin_snapshot(name, volumes=volumes).at_once(wait=wait, timeout=timeout)
        return snapshot_all(self, name, volumes, verify=verify, wait=wait, timeout=timeout)

    def begin_snapshot(self, name: str, *, volumes: list[Volume | str] | None = None) -> EarlyOperation:
        """The secondaries make snapshots of all volumes (or of these) now, hidden until this site makes them too
        (:meth:`EarlyOperation.perform`): all of them at one LSN, which is that of the snapshots at every site. What
        changed in between is copied, and nothing else. All of them are begun, or none.

        Raises:
            Refused, NotFound, Exists, UsageError: as of :meth:`snapshot`.
        """
        def told(result: OperationResult) -> None:
            result.snapshots = [Snapshot(self, number, full, result) for full, number in result.created.items()]

        return begin_snapshots(self, name, volumes, told)

    def restore(
        self,
        name: str,
        *,
        volumes: list[Volume | str] | None = None,
        verify: bool = False,
        early: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> OperationResult:
        """All volumes (or these) show again what their snapshots ``<volume>-<name>`` show, those that
        :meth:`snapshot` has made: one operation, at one point of the order, all of it or nothing. No data move. A group
        that was made with ``ordering="strict"`` takes it too. ``early``: the secondaries that are connected perform it
        first, see :meth:`begin_restore`.

        Returns:
            the operation; its ``members`` are in the order of the volumes.

        Raises:
            NotFound: a volume has no such snapshot: name those that have one.
            Refused: there is no volume.
            UsageError: a volume has another size than its snapshot; one is given twice.
            WaitTimeout: it goes on; if it was to be early, it was given up.
        """
        if early:
            check_early(verify=verify)
            return self.begin_restore(name, volumes=volumes).at_once(wait=wait, timeout=timeout)
        return self.operate(wide(self, "restore", name, volumes), verify=verify, wait=wait, timeout=timeout)

    def begin_restore(self, name: str, *, volumes: list[Volume | str] | None = None) -> EarlyOperation:
        """The secondaries restore all volumes (or these) from their snapshots ``<volume>-<name>`` now, one after the
        other; this site when it is told to (:meth:`EarlyOperation.perform`): all of them at one point, where the
        secondaries have them. Until then it is with each as :meth:`Volume.begin_restore` says. All of them are begun,
        or none.

        Raises:
            Refused, NotFound, UsageError: as of :meth:`restore`.
        """
        return begin_restores(self, name, volumes)

    def refresh(
        self,
        name: str,
        *,
        volumes: list[Volume | str] | None = None,
        verify: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> OperationResult:
        """The snapshots ``<volume>-<name>`` of all volumes (or of these) show what the volumes show now, at one LSN.
        Returns and raises as :meth:`restore`."""
        return self.operate(wide(self, "refresh", name, volumes), verify=verify, wait=wait, timeout=timeout)

    def clone(
        self,
        name: str,
        *,
        snapshot: str | None = None,
        volumes: list[Volume | str] | None = None,
        verify: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> OperationResult:
        """New volumes ``<volume>-<name>`` with the content of all volumes (or of these), at one LSN; or of their
        snapshots ``<volume>-<snapshot>``. Returns and raises as :meth:`restore`, and:

        Raises:
            Exists: a store has such a name.
        """
        return self.operate(wide(self, "clone", name, volumes, snapshot), verify=verify, wait=wait, timeout=timeout)

    def delete_snapshots(
        self,
        name: str,
        *,
        volumes: list[Volume | str] | None = None,
        wait: bool = True,
        timeout: float | None = None,
    ) -> OperationResult:
        """The snapshots ``<volume>-<name>`` of all volumes (or of these) leave the group, at every site. Returns and
        raises as :meth:`restore`."""
        return self.operate(wide(self, "delete", name, volumes), wait=wait, timeout=timeout)

    def add_image(
        self, name: str, path: str | os.PathLike[str], *, progress: Progress | None = None
    ) -> Image:
        """Registers a file or block device as an image at this site: a third copy, from which stores are restored,
        synchronized or cloned by a command. It is never written. Each site registers its own copy, under the same name;
        a primary, or a secondary, at any time.

        All of it is read once for its digest (SHA-256). From then on the file must not be changed until the image is
        gone (:meth:`Image.remove`): stores may show what it holds, until it was copied to them in the background. If it
        is changed nevertheless, operations from it are refused, and a group of which a store shows it stops.

        Args:
            name: unique in the group, among images and stores.
            path: of whole regions of the group. Other groups and programs may read it at the same time.
            progress: called a few times a second with a dict (``bytes_done``, ``bytes_total``). What it raises ends the
                registration and is the caller's.

        Raises:
            Exists: the name is taken.
            NotFound, UsageError, InUse, DeviceError: the file is not there, not made of whole regions, used by a store,
                or cannot be read.
            Refused: too many images (``reason="limit"``); changed while it was read (``"changed"``).
        """
        return add_image(self, self._placement, name, path, progress)

    def copy_range(
        self,
        source: Store | Image | str,
        source_offset: int,
        target: Store | str,
        target_offset: int,
        length: int,
        *,
        verify: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> OperationResult:
        """A range of ``target`` becomes equal to the same range of ``source``, a store or an image. No data move.

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
            lambda catalog: copy_from(
                self, "copy-range", catalog, self.name_of(target, catalog), source, source_offset, length
            ),
            verify=verify,
            wait=wait,
            timeout=timeout,
        )

    def unordered(
        self, *, verify: bool = False, wait: bool = True, timeout: float | None = None
    ) -> UnorderedSet:
        """Several operations at one point of the order: all of them, or none. They are collected in a ``with`` block
        and admitted as one event where it ends::

            with group.unordered() as ops:
                ops.restore(data, monday)
                ops.snapshot(logs, "x")
            ops.result.members

        If the block raises, nothing is admitted. What it looks like after a crash, and at every secondary: the whole
        set, or nothing of it.

        Args:
            verify: what it has written is compared with every secondary's; see :meth:`OperationResult.wait_verified`.
            wait: the block ends when the set is performed here; else when it has its place in the order.
            timeout: seconds to wait at most.

        Raises (where the block ends):
            UsageError: one operation writes a store that another one reads or writes; the text names the two.
            Refused: the group was made with ``ordering="strict"`` (``reason="ordering"``).
            And what a member alone would raise; then nothing was changed.
        """
        self.check()
        check_timeout(timeout)
        return UnorderedSet(self, verify=verify, wait=wait, timeout=timeout)

    def explain(self, *, timeout: float | None = None) -> Explanation:
        """What an operation would change and cost, without making it. It is told in a ``with`` block, in the words of
        :meth:`unordered`; several are a set. Besides, alone: ``add_volume``, ``mark``, ``snapshot_all``,
        ``restore_all`` and the other group-wide forms, ``early_snapshot`` and ``early_restore``::

            with group.explain() as ops:
                ops.restore(data, monday)
            ops.result["links"][0]["bytes_removed"]

        The result is a dict: ``lsn``, the end of the order when it was asked; ``kind``; ``bytes_changed``: of whole
        regions whose content would become another here; ``links``, for each:

        - ``name``, ``state``, ``consistent``, ``lag_bytes`` (of the journal, which go before the operation): of the
          link as it is now.
        - ``performed_as``: "command", or "data" (a link that was never paired, whose secondary begins later).
        - ``command_bytes``: on the wire, of the command with its frame.
        - ``divergent_bytes``, ``divergent_bytes_after``: of regions that differ at the secondary, when it has come to
          that place, without the operation and with it.
        - ``bytes_added``, ``bytes_removed``: of regions that differ, and will be copied, because of it; that do not
          differ any more because of it, and will never be copied.
        - ``bytes_if_refused``: ``bytes_added`` if the secondary refuses it: whether one has an image or a plug-in, and
          comes to the same, is not known before it is asked; the other figures are of one that performs it. None: it
          cannot refuse it. ``last_refused``: then ``lsn`` and ``reason`` of what it has refused last, None: nothing.
        - ``bytes_avoided``: what shipping the changed data would put on the wire.
        - ``unsettles``: the secondary is no earlier state of this site for a while because of it, as of an early
          operation: it keeps a protective snapshot, and writes in mode sync do not wait for it.

        What is copied or written between the answer and the operation changes the figures of divergence.

        Args:
            timeout: seconds to wait until what has its place in the order now is performed here.

        Raises (where the block ends):
            What making the operation would raise; Refused (``reason="busy"``) if the journal drops what a link lacks
            faster than it can be read; WaitTimeout.
        """
        from pyrepl.explaining import Explanation

        self.check()
        check_timeout(timeout)
        self.require_primary()
        return Explanation(self, timeout=timeout)

    def mark(
        self, name: str, payload: bytes = b"", *, wait: bool = True, timeout: float | None = None
    ) -> OperationResult:
        """A message of up to 4096 bytes at this point of the order, which changes nothing and passes every site."""
        return self.operate(lambda _: operations.mark(name, payload), wait=wait, timeout=timeout)

    def perform(
        self,
        operation: PluginOperation | str,
        arguments: Mapping[str, Any] | None = None,
        *,
        verify: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> OperationResult:
        """Performs a plug-in operation at one point of the order, at this site and at every secondary.

        It sees its stores as they are at that point, and writes to copies that nobody sees: all of it is swapped in at
        once, or, if it fails, nothing is changed anywhere, and :attr:`OperationResult.failed` says why. While it runs,
        what was written later waits for it in the journal, and so do readers of the stores that it writes.

        Args:
            operation: of a class that an entry point of the group ``pyrepl.operations`` names, at every site; or the
                name of that entry point.
            arguments: with which the class is called, if its name is given.
            verify: see :meth:`Volume.restore`.
            wait: False: return when it has its place in the order.
            timeout: seconds to wait at most for its performance.

        Raises:
            UsageError: no entry point names its class; arguments that are not plain, or do not make it again; a
                footprint that is none.
            NotFound: a store of its footprint does not exist.
        """
        return self.operate(plugin_maker(self, operation, arguments), verify=verify, wait=wait, timeout=timeout)

    def on_mark(
        self,
        mark: str,
        run: Callable[[Passing], object] | Sequence[str] | None,
        *,
        timeout: float = TIMEOUT,
        hold: bool = False,
    ) -> None:
        """What this site does, from now on, where a mark of that name passes: at the primary and at each secondary
        whoever wants it says so there. It is not kept over a restart; see :meth:`Node.open`.

        Args:
            mark: the name; ``"*"``: every mark that has no hook of its own.
            run: a callable, given a :class:`pyrepl.Passing`; or a program (its whole path) with its arguments, which is
                told ``PYREPL_GROUP``, ``PYREPL_MARK``, ``PYREPL_LSN`` and ``PYREPL_ROLE`` by its environment, and the
                payload on standard input. None: nothing any more.
            timeout: seconds, at most 300; then a program is killed, and nobody waits for a callable any more.
            hold: the applier stands before the mark until the hook has ended or its time is over: the stores are, and
                stay, as of that point. It is released early when the journal fills, for writes never wait for it.
                After a crash in the middle it runs again. Otherwise it runs after the mark, at most once.

        What came of it is in ``status()["hooks"]``, and an event.

        Raises:
            UsageError: the text names value and rule.
        """
        self.check()
        if run is None:
            self._hooks.set(mark, None)
        else:
            self._hooks.set(mark, Hook(mark, run, timeout=timeout, hold=hold))

    # ---- views

    def open_view(self, store: Store | str) -> View:
        """What a volume or snapshot shows now, kept as it is until the view is closed: read-only, at this site only.

        On a primary it shows every write that has returned. On a secondary it shows what has arrived (and is old
        enough, see :meth:`set_delay`), at one LSN of the primary; while that is resynchronized, the LSN of its
        protective snapshot (``status()["protective"]``). What is overwritten meanwhile costs space here, as with a
        snapshot; a restart closes all views.

        Raises:
            Refused: a secondary that is not consistent now, and keeps nothing (``reason="inconsistent"``); 64 views
                are open (``reason="limit"``).
            NotFound: there is no such store.
        """
        return self.viewing.open(store)

    def open_trial(self, *, journal_size: int = JOURNAL) -> Trial:
        """A test of a failover: a writable copy of all volumes as this site has them now, at one LSN, while replication
        goes on. At this site only, in no stream; what is written there never reaches the volumes of the group. It is
        gone when it is closed, and with a restart of the node.

        It costs space in the node's folder: its journal and what is written to it; and, as a view, what is overwritten
        in the group meanwhile. Without space left the trial stands still; so may the group, if its stores share that
        space.

        Args:
            journal_size: bytes of its journal: how much may be written to it and not be in its volumes' files yet.

        Raises:
            Refused: a secondary that is not consistent now (``reason="inconsistent"``); no volumes; too many views.
            DeviceError: no space.
        """
        return self.trials.make(check_journal_size(journal_size))

    # ---- what is chosen for this site

    @property
    def delay(self) -> float:
        """Seconds; see :meth:`set_delay`."""
        return self.site.delay.seconds

    def set_delay(self, seconds: float) -> None:
        """From now on this site, while it is a secondary, performs an event when it is so old; durable on return.

        Everything is received, made durable and acknowledged at once, so that neither the primary nor a link in mode
        sync notices. But readers here, and views, see what is performed: what an operator did wrong at the primary can
        be read here as it was before. A takeover or promotion performs all that has arrived first. Age is by the time
        of the primary's record and the clock of this machine. Data that a synchronization copies do not wait by
        themselves. When the journal fills the oldest is performed before its time: ``status()["delay"]`` says so.

        Args:
            seconds: 0 (none: what waits is performed at once) to 30 days.

        Raises:
            UsageError: another value; nothing was changed.
        """
        check_delay(seconds)
        with self.border("setting the delay"):
            self.site.exclusive(lambda: self.site.delay.set(seconds))
        self._driver.hurry()

    # ---- waiting

    def flush(self) -> int:
        """Everything that was written before this call survives the loss of power; the LSN up to which."""
        with self.border("flushing"):
            return self.site.window.flush()

    def wait(
        self,
        lsn: int | None = None,
        *,
        where: str = "primary",
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Returns when everything up to ``lsn`` is performed: here, or at the secondary of the link ``where``; the LSN.

        Args:
            lsn: None: all that has its place in the order now.
            where: "primary" (or "here"), or the name of a link.
            timeout: seconds, None for ever.
            progress: called a few times a second with a dict (``applied_lsn``; of a link: its status). What it raises
                ends the waiting and is the caller's.

        Raises:
            WaitTimeout: it goes on.
            NotFound: there is no such link.
        """
        return wait_performed(self, lsn, where, timeout, progress)

    # ---- links

    def connect(self) -> None:
        """Links begin to connect, and a change of role that was under way goes on: the group is open."""
        self.attachments.start()
        self.succession.begin()

    def add_link(
        self, name: str, address: str, *, mode: Literal["async", "sync"] = "async", bandwidth: int = 0
    ) -> Attachment:
        """Attaches the secondary that listens at ``address`` ("host:port"), and begins to synchronize it in the
        background.

        Args:
            name: of the link, unique in the group.
            address: where the other node listens. It need not be there yet.
            mode: "async": writes never wait for it. "sync": they return when its journal holds them, while it keeps up.
            bandwidth: bytes per second that are sent at most, from the first synchronization on; 0: no limit.

        Mode, address and bandwidth can be changed later: :meth:`Attachment.set`. A secondary may have links, too, in
        mode "async": it passes on what it is fed (a cascade).

        Raises:
            Exists: a link has that name.
            Refused: a secondary that was never paired, that is delayed, or for the mode "sync".
        """
        self.check()
        return self.attachments.add(name, address, mode, bandwidth)

    def remove_link(self, name: str) -> None:
        """Detaches it. What is known of the secondary is forgotten; its stores stay as they are."""
        self.check()
        self.attachments.remove(name)

    def verify(
        self,
        *,
        repair: bool = True,
        link: str | None = None,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Compares all stores with those of the secondaries, as of one point of the order, by digests (XXH3-128);
        writes go on meanwhile and are never taken for a difference. Of a group with more than 32 stores, 32 at a time.

        Args:
            repair: what differs is copied, and nothing else; the call waits for that. False: it is only remembered, as
                ``found_different`` of the link's status, until a verification finds all of it equal or repairs it.
            link: the name of one link; None: all.
            timeout: seconds; a link that is not done by then counts as failed. A link that is not connected for 10 s,
                or on which nothing moves for 30 s, does so in any case.
            progress: called a few times a second with the result so far. What it raises ends the verification, and is
                the caller's.

        Returns:
            ``lsn``, ``region_size`` in bytes, and ``links``: by name ``state`` (equal, repaired, different, failed),
            ``reason`` (of the latter), ``regions`` (that there are), ``regions_compared``, ``regions_different``,
            ``regions_known_to_differ`` (the link had still to copy them), ``extents`` (the first 256 that differ:
            ``store``, ``offset``, ``length``), ``bytes_on_wire``, ``seconds``.

        Raises:
            Refused: a secondary; no link, or no store (``reason="empty"``); another verification is under way
                (``"busy"``).
            NotFound: there is no such link.
            WaitTimeout: this site itself did not come to that point in time.
        """
        self.check()
        check_timeout(timeout)
        self.require_primary()
        chosen = [self.link(link)] if link is not None else self.links
        if not chosen or not self.entries():
            raise Refused(f"group {self.name!r} has no link, or no store: there is nothing to verify", reason="empty")
        return self.comparisons.verify(chosen, repair=repair, timeout=timeout, progress=progress)

    # ---- roles

    def demote(self, *, timeout: float | None = 30.0, force: bool = False) -> int:
        """This site steps down: from primary to secondary, for good, over restarts too. Writers are refused from the
        call on, every secondary gets all that was written, and then hears that it may be promoted. The links of this
        site end and are forgotten: whoever is promoted adds one that leads here.

        Args:
            timeout: seconds to wait for the secondaries; when they are over the group goes on as primary.
            force: without waiting for anybody, and although a verification has found all their copies different. What
                a secondary lacks by then is lost to it if it is promoted.

        Returns:
            the last LSN.

        Raises:
            Refused: a secondary already (``reason="role"``); a link is not connected (``"behind"``); the copies of all
                links were found different, and are not repaired (``"different"``); this site stands still for want of
                room (``"space"``).
            WaitTimeout: a secondary does not have everything; the group is primary as before.
        """
        self.check()
        with self.border("stepping down"):
            return self.changeover.demote(timeout, force)

    def promote(self, *, alone: bool = False, force: bool = False) -> int:
        """This secondary becomes primary, over restarts too: its stores can be written from here on.

        Args:
            alone: although its primary has not stepped down, as far as this site has heard. If that one writes on, both
                histories part, and one of them is lost.
            force: although a verification has found what this site holds different; and with ``alone``, although that
                primary is connected and feeds this site: there are two then.

        Returns:
            the LSN after which its generation begins.

        Raises:
            Refused: a primary already (``reason="role"``); not an earlier state of its primary, and without ``alone``
                it does not go back to its protective snapshot, or it keeps none (``"inconsistent"``); the primary has
                not stepped down (``"primary"``); without ``force``, what this site holds was found different from what
                its primary had, and not repaired (``"different"``; ``context`` has LSN, time and bytes), or with
                ``alone``, the primary is connected and leads (``"force"``); this site stands still for want of room
                (``"space"``).
        """
        self.check()
        with self.border("becoming primary"):
            return self.changeover.promote(alone=alone, gone=False, force=force)

    def takeover(self, *, dry_run: bool = False, force: bool = False) -> int:
        """This secondary becomes primary because the primary is gone. What it had written and not sent is lost, unless
        the link was in mode ``sync`` and not degraded. One that is being resynchronized goes back to its protective
        snapshot first (``status()["protective"]``): what came after that is lost too. When the old primary comes back,
        demote it there and add a link to it here. Returns and raises as :meth:`promote`, and:

        Args:
            dry_run: only whether it may: raises as it would, changes nothing, and returns the LSN from which the group
                would go on.
            force: although a verification has found what this site holds different, and did not repair it
                (``status()["found_different"]``): its content is the one that counts then.

        Raises:
            Refused: the primary is connected (``reason="connected"``).
        """
        self.check()
        with self.border("taking over"):
            if dry_run:
                return self.changeover.judge_takeover(force)
            return self.changeover.promote(alone=True, gone=True, force=force)

    def unprotect(self) -> None:
        """Gives the protective snapshot of this secondary up, and with it the space that it takes; none is kept again
        until this secondary is consistent. It cannot take over until then.

        Raises:
            Refused: a primary, which has none (``reason="role"``).
        """
        self.check()
        with self.border("giving the protective snapshot up"):
            self.site.protective.give_up()

    def abandon_unfinished(self) -> None:
        """What a rewind left that did not come to its end is deleted, if operations are made here."""
        if self.site.accepts and any(entry.kind == UNFINISHED for entry in self.site.end.catalog):
            from pyrepl.rewinding import abandon_unfinished

            abandon_unfinished(self)

    def migrate(
        self, link: Attachment | str, *, timeout: float | None = 30.0, back: str | None = None, force: bool = False
    ) -> int:
        """A planned swap: this primary steps down, the secondary of this link becomes primary, and links back to here.
        Nothing is lost, and nothing is copied. Writers are refused here from the call on (``reason="role"``).

        The request to lead is durable: over a cut or a crash of either site it is performed as soon as they meet. Until
        then nobody leads; ``status()["successor"]`` names the link. To lead here again: ``promote(alone=True)``, if the
        other site has not heard (there ``handed_over`` is false).

        Args:
            link: handle or name. The successor gets the other links of this group too.
            timeout: seconds until every secondary has everything: when they are over the group goes on as primary. And
                once more until the successor has linked back.
            back: ``host:port`` by which the successor reaches this node. None: the first address at which it listens;
                where that means all addresses, the one by which this machine reaches the successor. The link back is
                named as this node, and has mode and limits of ``link``.
            force: although a verification has found its copy different, and did not repair it: that copy counts then.

        Returns:
            the last LSN of this site's reign.

        Raises:
            NotFound: there is no such link.
            Refused: a secondary (``reason="role"``); a link is not connected (``"behind"``); its copy was found
                different (``"different"``); this node listens nowhere (``"address"``); this site, or that of the link,
                stands still for want of room (``"space"``). The group is primary as before.
            WaitTimeout: a secondary does not have everything in time: the group is primary as before. Or the successor
                has not linked back in time: the text says how far it is, and it goes on; ``context["role"]`` is what
                this site is now.
        """
        self.check()
        name = link if isinstance(link, str) else link.name
        with self.border(f"handing over to link {name!r}"):
            return self.changeover.migrate(name, timeout, back, force)

    def resolve(self, loser: str) -> int:
        """Ends a split brain: the loser gives up what it has written since the last event that both sites have, and is
        resynchronized by what differs. What it showed is kept at its site, as snapshots ``<volume>-lost-<generation>``
        (:attr:`kept`), until they are deleted. Said at either side, once.

        Args:
            loser: "here", or this node's name or id: this site steps down, if it is primary, and waits for a link of
                the other one. Or the name of a link of this primary, or the node id of its secondary: at the next
                connection that one steps down, if it is primary, and follows.

        Returns:
            the last LSN of this site, before.

        Raises:
            NotFound: neither this node nor a link.
            UsageError: it may mean both.
            Refused: this site is a secondary, and cannot name another one (``reason="role"``); the link is connected
                (``"state"``); this site was never paired (``"lineage"``).
        """
        self.check()
        with self.border("resolving a split brain"):
            return self.changeover.resolve(loser)

    def loss(self, loser: str) -> dict[str, Any]:
        """What :meth:`resolve` would take from this loser; nothing is changed.

        Args:
            loser: as of :meth:`resolve`.

        Returns:
            ``loser`` ("here", or the name of a link), ``fork_lsn`` (the last event that both sites have), ``lsn`` (the
            last one of the loser), ``since`` (when the first event after the fork was written, seconds since 1970),
            ``stores`` (``store`` and ``bytes``: written since), ``operations`` (made since, so many), ``whole`` (False:
            the journal holds only a part of that, and it is more), ``kept`` (names of the snapshots that it would be
            kept in). What this site does not know is None: of another site all but the two LSNs, and everything if
            there was no split brain when the two met last.

        Raises:
            NotFound, UsageError, Refused: as of :meth:`resolve`.
        """
        from pyrepl.losing import loss

        self.check()
        with self.border("looking for what would be lost"):
            return loss(self, loser)

    def require_primary(self) -> None:
        """Raises Refused (``reason="role"``) if events cannot get their place here."""
        site = self.site
        asking = site.roles.asking
        if asking or not site.accepts:
            raise self.admissions.refusal(asking)

    # ---- for its rooms

    def check(self) -> None:
        """Raises why the group does not work, if it does not."""
        if self.fault is not None:
            raise again(self.fault)

    def entries(self) -> list[StoreEntry]:
        """Of the catalog as of the journal's end, without what is unfinished."""
        self.check()
        return [entry for entry in self.site.visible if entry.kind != UNFINISHED]

    def look_up(self, name: str) -> StoreEntry | None:
        """The catalog's entry of that name, as of the journal's end."""
        return next((entry for entry in self.entries() if entry.name == name), None)

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
        verify: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> OperationResult:
        """Admits an operation and, if wanted, waits until it is performed here.

        Args:
            make: its constructor, given the catalog as of the journal's end.
            devices: store name -> path, for stores that it creates on devices of their own.
            verify: its result is compared with every secondary's; ``wait`` waits for that too.
            wait: False: return when it has its place in the order and is in the journal.
            timeout: seconds to wait at most for its performance.
        """
        return self.admissions.operate(make, devices, verify, wait, timeout)

    def hurry(self) -> None:
        """The applier looks at once whether there is something to do."""
        self._driver.hurry()

    def border(self, doing: str) -> Border:
        """Errors of the engine leave this ``with`` block as typed ones; see :meth:`failure`."""
        return Border(self, doing)

    def between_steps(self, doing: str, call: Callable[[], T]) -> T:
        """What the call returns, run where nothing of the engine changes meanwhile."""
        with self.border(doing):
            value: T = self.site.exclusive(call)
        return value

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
            try:
                try:
                    self.succession.stop()
                    self.attachments.stop()
                    self.trials.close_all()
                    self._hooks.close()
                finally:  # the devices are given back in any case
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

    def _tell_standing(self, why: str) -> None:
        if why:
            self.emit({"event": "stands-still", "group": self.name, "text": why})
        else:
            self.emit({"event": "goes-on", "group": self.name, "lsn": self.applied_lsn})

    def _failed(self, error: BaseException) -> None:
        """The driver says that the group is over."""
        if self._closed:
            return
        what = (f"group {self.name!r} has failed and takes nothing more until it is opened again (`pyrepl group open "
                f"{self.name}`, Node.open_group)")
        fault = typed(error if isinstance(error, Exception) else RuntimeError(repr(error)), what, group=self.name)
        if fault is error:
            fault = again(fault)
        fault.__cause__ = error
        self.fault = fault
        self.emit({"event": "group-failed", "group": self.name, "error": fault.code, "text": str(fault)})
        threading.Thread(target=self._send_away, name="pyrepl-cut", daemon=True).start()  # the failing one holds locks

    def _send_away(self) -> None:
        """Whoever feeds this group is to hear that it has failed: it knocks again, and is told."""
        if self._site is not None:
            for feed in self.feeds(self._site):
                feed.cut()

    def _entry(self, name: str, kind: str = "") -> StoreEntry:
        entries = [entry for entry in self.entries() if not kind or entry.kind == kind]
        for entry in entries:
            if entry.name == name:
                return entry
        some = some_of(entry.name for entry in entries)
        raise NotFound(f"group {self.name!r} has no {kind or 'store'} {name!r} (it has: {some})", name=name)


class Border:
    """Makes errors of the engine typed ones; see ``border``."""

    def __init__(self, group: Group, doing: str) -> None:
        self._group = group
        self._doing = doing

    def __enter__(self) -> None:
        self._group.check()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            raise self._group.failure(error, f"group {self._group.name!r}: {self._doing}") from error
