"""Trials: what a takeover would find here, writable, while replication goes on. For tests of a failover.

A trial is a group of its own, of this site alone: its volumes show views of this group's volumes, all at one LSN, until
they are written; what is written stands in files of the trial. So it is in no stream and no catalog, nothing of it ever
reaches the stores of the group, and writes, flushes, snapshots, restores and NBD work in it as in any group. It is gone
when it is closed; a start of the node removes what a dead process left.

    a view      is to the trial's group what an image is: a device that is read only, of known content
    the mover   rests in a trial: what was not written takes no space
    space       of the trial: its journal and what is written. Of the group: what is overwritten there meanwhile, as for
                any view

Decides what a trial is made of, and who holds it. Must not know how a view is kept (``views``), nor exports.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrepl._core import view
from pyrepl._core.device import Device, FileDevice, PythonDevice
from pyrepl.border import typed
from pyrepl.catalog import VOLUME, ImageKey
from pyrepl.errors import PyreplError, Refused, UsageError
from pyrepl.image import Image
from pyrepl.options import SiteOptions
from pyrepl.roles import PRIMARY
from pyrepl.runtime.placement import TRIALS, FilePlacement, make_journal
from pyrepl.site import Site

if TYPE_CHECKING:
    from pyrepl.catalog import View as ViewEntry
    from pyrepl.group import Group
    from pyrepl.volume import Volume

JOURNAL = 64 << 20  # bytes of a trial's journal, where none are given
_VIEW = "view-"


class Trial:
    """A writable copy of a group's volumes as of one LSN. Made by :meth:`Group.open_trial`; a context manager. Safe to
    use from many threads.

    Attributes:
        number: among the trials of the group since it was opened.
        lsn: everything up to it is in it, nothing after it.
        group: what it is: a group of its own, for its volumes and whatever is done with them.
    """

    def __init__(self, owner: Trials, number: int, group: Group, views: list[ViewEntry], folder: Path) -> None:
        self._owner = owner
        self._views = views
        self._folder = folder
        self._opened = time.time()
        self.number = number
        self.group = group
        self.lsn = views[0].lsn

    @property
    def volumes(self) -> list[Volume]:
        """In the order of the group's."""
        return self.group.volumes

    def volume(self, name: str) -> Volume:
        """The trial's copy of the volume of that name; writable.

        Raises:
            NotFound: there is none.
            Refused: the trial is closed.
        """
        return self.group.volume(name)

    @property
    def closed(self) -> bool:
        """Whether it is gone."""
        return self not in self._owner.open

    def close(self) -> None:
        """It is gone, with all that was written. Harmless the second time, and after the group was closed."""
        self._owner.close(self)

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Trial {self.number} of group {self._owner.group.name!r} at LSN {self.lsn}>"

    def told(self) -> dict[str, Any]:
        """For people and programs. ``space``: bytes that its files take."""
        fault, site = self.group.fault, self.group.site_if_any
        error = str(fault) if fault is not None else site.shortage.words() if site is not None else ""
        return {"number": self.number, "lsn": self.lsn, "opened": self._opened, "space": _space(self._folder),
                "exports": self._owner.holders(self), "error": error or None}

    def discard(self) -> None:
        """Its group and files; the views are its owner's."""
        try:
            self.group.close()
        except PyreplError:
            self.group.site.abandon()  # a disk failed: nothing of it is wanted
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def views(self) -> list[ViewEntry]:
        """What it shows where it was not written."""
        return self._views


class Trials:
    """Those of one group."""

    def __init__(self, group: Group, folder: Path) -> None:
        self.group = group
        self._folder = folder / TRIALS
        self._lock = threading.Lock()
        self._last = 0
        self._shared: tuple[Trial, int] | None = None  # and how many hold it
        self.open: list[Trial] = []

    def make(self, journal_size: int = JOURNAL) -> Trial:
        """See :meth:`Group.open_trial`."""
        group = self.group
        group.check()
        with self._lock:
            group.check()
            stores = [entry.id for entry in group.entries() if entry.kind == VOLUME]
            if not stores:
                raise Refused(f"group {group.name!r} has no volumes: there is nothing to try", reason="state")
            number = self._last + 1
            folder = self._folder / str(number)
            views = group.viewing.open_all(stores)
            try:
                trial = Trial(self, number, self._build(number, folder, views, journal_size), views, folder)
            except BaseException as error:
                group.viewing.close_all(views)
                shutil.rmtree(folder, ignore_errors=True)
                if isinstance(error, Exception) and not isinstance(error, PyreplError):
                    raise typed(error, f"group {group.name!r}: opening a trial", group=group.name) from error
                raise
            self._last = number
            self.open.append(trial)
        group.emit({"event": "trial-opened", "group": group.name, "trial": number, "lsn": trial.lsn})
        return trial

    def _build(self, number: int, folder: Path, views: list[ViewEntry], journal_size: int) -> Group:
        from pyrepl.group import Group

        origin, site = self.group, self.group.site
        folder.mkdir(parents=True)
        journal = str(folder / "journal")
        make_journal(journal, journal_size)
        placement = _Placement(folder, site, views)
        device = FileDevice(journal)
        try:
            made = Site.create(
                device,
                name=f"{origin.name}.trial-{number}",
                node_id=site.node_id,
                role=PRIMARY,
                options=SiteOptions(region_size=site.region_size, alignment=site.alignment),
                placement=placement,
                entropy=os.urandom,
                created_ns=time.time_ns(),
            )
        except BaseException:
            device.close()
            raise
        made.applier.resting = True
        group = Group(made.name, site=made, placement=placement, emit=self._tell)
        try:
            for entry in views:
                key = ImageKey(f"{_VIEW}{entry.id}", entry.size, os.urandom(32))  # nobody compares it
                gallery = made.gallery
                identity = placement.identify(key.name)
                image = group.between_steps("showing a view", lambda: gallery.add(key, key.name, identity))  # noqa: B023
                Image(group, image).clone(entry.name)
        except BaseException:
            group.close()
            raise
        return group

    def _tell(self, event: dict[str, Any]) -> None:
        if event.get("event") == "group-failed":  # what else happens in it is nobody's business
            self.group.emit({**event, "event": "trial-failed", "group": self.group.name, "trial": event["group"]})

    def close(self, trial: Trial) -> None:
        """See :meth:`Trial.close`."""
        with self._lock:
            if trial not in self.open:
                return
            self.open.remove(trial)
            if self._shared is not None and self._shared[0] is trial:
                self._shared = None
        trial.discard()
        self.group.viewing.close_all(trial.views)
        self.group.emit({"event": "trial-closed", "group": self.group.name, "trial": trial.number})

    def close_all(self) -> None:
        """The group is about to be closed."""
        for trial in list(self.open):
            self.close(trial)

    # ---- shared by exports

    def hold(self) -> Trial:
        """The one that exports share, so that all of them are at one LSN; :meth:`release` it."""
        with self._lock:
            if self._shared is not None:
                self._shared = (self._shared[0], self._shared[1] + 1)
                return self._shared[0]
        trial = self.make()
        with self._lock:
            if self._shared is None:
                self._shared = (trial, 1)
                return trial
            self._shared = (self._shared[0], self._shared[1] + 1)
            other = self._shared[0]
        trial.close()
        return other

    def release(self, trial: Trial) -> None:
        """An export has ended; the last one closes it."""
        with self._lock:
            if self._shared is None or self._shared[0] is not trial:
                return
            count = self._shared[1] - 1
            self._shared = (trial, count) if count else None
        if not count:
            trial.close()

    def holders(self, trial: Trial) -> int:
        """How many exports hold it."""
        shared = self._shared
        return shared[1] if shared is not None and shared[0] is trial else 0

    def told(self) -> list[dict[str, Any]]:
        """For the status of the group."""
        return [trial.told() for trial in list(self.open)]


class _Placement(FilePlacement):
    """Files of the trial, and views as images."""

    def __init__(self, folder: Path, site: Site, views: list[ViewEntry]) -> None:
        super().__init__(folder, alignment=site.alignment)
        self._site = site
        self._views = {f"{_VIEW}{entry.id}": entry for entry in views}

    def open_image(self, path: str, size: int) -> Device:
        return _ViewDevice(self._site, self._views[path])

    def identify(self, path: str) -> tuple[int, ...]:
        return (self._views[path].id,)  # what a view shows never changes


class _ViewDevice(PythonDevice):
    """What a view shows, as a device."""

    def __init__(self, site: Site, entry: ViewEntry) -> None:
        super().__init__(f"view {entry.name}@{entry.lsn} of group {site.name}", entry.size, site.alignment)
        self._site = site
        self._id = entry.id

    def do_read(self, offset: int, length: int) -> bytes:
        return view.read(self._site.window, self._site.stores, self._id, offset, length)

    def do_write(self, ios: list[tuple[int, bytes, bool]]) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), self.name)

    def do_discard(self, offset: int, length: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), self.name)

    def do_flush(self) -> None:
        pass


def check_journal_size(size: object) -> int:
    """Bytes of a trial's journal.

    Raises:
        UsageError: the text says the rule.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 8 << 20 or size % 4096:
        raise UsageError(f"journal_size={size!r}: a trial's journal is a multiple of 4096 bytes, at least 8 MiB")
    return size


def _space(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in _files(folder))


def _files(folder: Path) -> Iterator[Path]:
    try:
        yield from [path for path in folder.iterdir() if path.is_file()]
    except OSError:
        return
