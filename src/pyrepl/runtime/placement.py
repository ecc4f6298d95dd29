"""Where a site keeps its devices: files of its own in the node's folder, and devices that were given, where they are.

Decides paths, and that a device belongs to one group at a time: whoever is given one takes it exclusively at
admission, so that performing the operation cannot find it taken. What it made itself it removes; what was given it
never removes.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from itertools import count
from pathlib import Path

from pyrepl._core import blockdev
from pyrepl._core.device import Device, FileDevice
from pyrepl.border import typed
from pyrepl.errors import DeviceError, Exists, InUse, NotFound, Refused, UsageError
from pyrepl.runtime import images
from pyrepl.runtime.contents import blank, check_path_blank

TRIALS = "trials"  # the folder of what lasts as long as a process: see ``trial``
PATIENCE = 10.0  # seconds: a killed process holds its devices until the kernel has ended its I/O
_MOST_NAME = 120  # characters of a store's name in the name of its file
_FILL = 1 << 30  # bytes of a new journal file that are written, see make_journal
_CHUNK = 4 << 20


class FilePlacement:
    """The placement (:class:`pyrepl.seams.Placement`) of one group: ``folder`` is where its own files are.

    Devices with sectors above ``alignment`` are refused when they are made or taken, not when they are first written.
    """

    def __init__(self, folder: Path, *, alignment: int, engine: str = "auto") -> None:
        self.folder = folder
        self._alignment = alignment
        self._engine = engine
        self._lock = threading.Lock()
        self._taken: dict[str, FileDevice] = {}  # given devices, between admission and being performed

    # ---- the seam

    def create(self, name: str, store_id: int, size: int, taken: Collection[str] = ()) -> str:
        """A fresh sparse file. One of that name that a crash left is emptied, but for ``taken``: nothing names it."""
        self._make_folder()
        stem = self.folder / f"{store_id}-{name[:_MOST_NAME]}"
        path = next(path for n in count(1) if (path := f"{stem}{f'.{n}' if n > 1 else ''}.img") not in taken)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, 0)
            os.ftruncate(fd, size)
            os.fsync(fd)
        finally:
            os.close(fd)
        with FileDevice(path, engine=self._engine) as device:
            self._check_sectors(device)
        sync_folder(self.folder)
        return path

    def open(self, path: str, size: int) -> Device:
        """The device, exclusively. Waits a little for one whose last user is being killed."""
        with self._lock:
            device = self._taken.pop(os.path.realpath(path), None)
        if device is None:
            device = open_patiently(path, PATIENCE, engine=self._engine)
        if device.size < size and self._is_own(path):
            device.resize(size)
        if device.size < size:
            device.close()
            raise DeviceError(
                f"{path} is {device.size} bytes long, and its store needs {size}: give it back its size",
                device=path,
                size=device.size,
                needed=size,
            )
        return device

    def resize(self, path: str, size: int) -> None:
        """Own files grow; of given ones only the length is checked."""
        if self._is_own(path):
            if os.path.getsize(path) < size:
                os.truncate(path, size)
            return
        length = device_size(path)
        if length < size:
            raise Refused(
                f"{path} is {length} bytes long, less than the {size} bytes that are needed: make it larger first",
                reason="size",
                device=path,
                size=length,
                needed=size,
            )

    def remove(self, path: str) -> None:
        """Own files go; a given device is left alone."""
        if self._is_own(path):
            Path(path).unlink(missing_ok=True)

    def room(self, path: str = "") -> int:
        """What the file system of the folder has left, or that of a path."""
        self._make_folder()
        try:
            left = os.statvfs(path or self.folder)
        except OSError:  # it was not made, for want of room
            left = os.statvfs(self.folder)
        return left.f_bavail * left.f_frsize

    def open_image(self, path: str, size: int) -> Device:
        """The device of an image, for reading."""
        return images.open_image(path, size)

    def identify(self, path: str) -> tuple[int, ...]:
        """What the file of an image is known by."""
        return images.identify(path)

    def digest(self, path: str, size: int) -> bytes:
        """SHA-256 of an image."""
        return images.digest(path, size)

    # ---- given devices

    def take(self, path: str) -> Device:
        """Takes a given device for a store that is about to use it; ``open`` hands it over.

        Raises:
            InUse: somebody has it, be it another store of this group.
            Refused: its sectors are larger than the group's alignment.
        """
        check_free(path)
        try:
            device = open_patiently(path, 0.0, engine=self._engine)
        except OSError as error:
            raise typed(error, "taking a device", device=path) from error
        try:
            self._check_sectors(device)
        except Refused:
            device.close()
            raise
        with self._lock:
            self._taken[os.path.realpath(path)] = device
        return device

    def give_back(self, path: str) -> None:
        """The store will not come into being after all."""
        with self._lock:
            device = self._taken.pop(os.path.realpath(path), None)
        if device is not None:
            device.close()

    # ---- the folder

    def sweep(self, known: set[str]) -> list[str]:
        """Removes own files that a crash left and nothing names; their paths."""
        if not self.folder.is_dir():
            return []
        shutil.rmtree(self.folder / TRIALS, ignore_errors=True)
        gone = [str(path) for path in self.folder.glob("*.img") if str(path) not in known]
        for path in gone:
            os.unlink(path)
        return gone

    def close(self) -> None:
        """Gives back what was taken and never used."""
        with self._lock:
            taken, self._taken = self._taken, {}
        for device in taken.values():
            device.close()

    def _check_sectors(self, device: Device) -> None:
        if device.sector_size > self._alignment:
            raise Refused(
                f"{device.name} has sectors of {device.sector_size} bytes, the group is aligned to {self._alignment}: "
                f"use another device, or make the group with an alignment of {device.sector_size}",
                reason="alignment",
                device=device.name,
            )

    def holds(self, path: str) -> bool:
        """Whether it lies among this placement's own files, which come and go with their stores."""
        return self._is_own(os.path.realpath(path)) or Path(os.path.realpath(path)).parent == self.folder.resolve()

    def _is_own(self, path: str) -> bool:
        return Path(path).parent == self.folder

    def _make_folder(self) -> None:
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            for folder in (self.folder.parent, self.folder.parent.parent, self.folder.parent.parent.parent):
                sync_folder(folder)


def path_of(given: object, what: str) -> str:
    """The absolute path that a caller gave.

    Raises:
        UsageError: it is none; the text names it as ``what``.
    """
    try:
        path = os.fsdecode(given)  # type: ignore[arg-type]
    except TypeError:
        path = ""
    if not path or "\0" in path:
        raise UsageError(f"{what} {given!r} is not a path: give a str or an os.PathLike object")
    return os.path.abspath(path)


def open_patiently(path: str, patience: float, *, engine: str = "auto") -> FileDevice:
    """Opens a device exclusively; while it is in use, tries again for so many seconds."""
    deadline = time.monotonic() + patience
    pause = 0.01
    while True:
        try:
            return FileDevice(path, engine=engine)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(pause * 2, 0.2)


def check_free(path: str) -> None:
    """Nobody else uses this device or file, as far as can be seen. (Opening it exclusively is what decides.)

    Raises:
        NotFound: there is none.
        InUse: the text says who has it.
        UsageError: neither a block device nor a regular file.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise NotFound(f"there is no device or file {path}: check the path", device=path) from error
        raise typed(error, f"looking at {path}") from error
    if not (stat.S_ISBLK(mode) or stat.S_ISREG(mode)):
        raise UsageError(f"{path} is neither a block device nor a regular file", device=path)
    use = blockdev.in_use(path)
    if use is not None:
        raise InUse(f"{path} is in use ({use}): release it there, or give another device", device=path, use=use)


def check_overwritten(device: str | os.PathLike[str], *, force: bool) -> None:
    """Nothing stands on a device that is given for a store which will not show it, or that may be lost.

    Raises:
        Refused: something does; reason "force".
        NotFound, InUse, UsageError: it cannot be used at all.
    """
    path = path_of(device, "device")
    if not force:
        check_free(path)
        check_path_blank(path)


def device_size(path: str) -> int:
    """Bytes of a block device or file."""
    if stat.S_ISBLK(os.stat(path).st_mode):
        return blockdev.block_size(path)
    return os.path.getsize(path)


def make_journal(path: str, size: int) -> None:
    """A new file for a journal of ``size`` bytes, durable.

    It is written with zeros up to 1 GiB: a write into space that is only reserved makes the file system convert it,
    and the flush behind that write then commits a transaction of the file system. What is beyond is reserved.

    Raises:
        Exists: something of that name exists.
        UsageError: ``size`` cannot be.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size <= 0 or size % 4096 or size >> 56:
        raise UsageError(
            f"a journal cannot be {size!r} bytes long: give a positive multiple of 4096 bytes, below 2**56", size=size
        )
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Exists(
            f"{path} exists: give no size for the journal to use it as it is, or give another path", path=path
        ) from None
    try:
        try:
            os.posix_fallocate(fd, 0, size)
            zeros = bytes(_CHUNK)
            for offset in range(0, min(size, _FILL), _CHUNK):
                os.pwrite(fd, zeros[: min(_CHUNK, size - offset)], offset)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
        sync_folder(Path(path).absolute().parent)
    except BaseException:
        os.unlink(path)
        raise


def wipe_journal(path: str, *, made: bool) -> None:
    """The journal there is none any more: its superblocks, and what stood beside them, are zeros, or its file, which
    the node made, is gone. A path that is gone already has none either."""
    with suppress(FileNotFoundError), FileDevice(path) as device:
        blank(device)
    if made:
        Path(path).unlink(missing_ok=True)


def left_of(journal: str, folder: Path) -> list[str]:
    """What there is of a group that nobody knows any more: its journal, and the files of its stores."""
    found = [journal] if os.path.lexists(journal) else []
    with suppress(OSError):
        found += sorted(str(path) for path in folder.glob("*.img"))
    return found


def sync_folder(path: Path) -> None:
    """What was made or renamed in the folder is durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
