"""Files of images: opened for reading and shared, known by an identity, digested with progress.

Decides what makes a file another one, and what its digest is. Must not know which images a group has (``gallery``).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Callable

from pyrepl._core import blockdev
from pyrepl._core.device import FileDevice
from pyrepl.errors import DeviceError, InUse, NotFound, UsageError

PIECE = 4 << 20  # bytes read at a time
TELL_EVERY = 0.2  # seconds between two calls of the progress callback


class ImageFile(FileDevice):
    """The device of an image. While it is open no store or journal can be put on the file: that takes it exclusively,
    this shares it with others who read."""

    def __init__(self, path: str) -> None:
        self._lock = _share(path)
        try:
            super().__init__(path, writable=False, exclusive=False)
        except BaseException:
            self._release()
            raise

    def close(self) -> None:
        super().close()
        self._release()

    def _release(self) -> None:
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)


def open_image(path: str, size: int) -> ImageFile:
    """The device for reading.

    Raises:
        OSError: it is not there; it is used exclusively, or shorter than ``size`` bytes.
    """
    device = ImageFile(path)
    if device.size < size:
        device.close()
        raise DeviceError(f"{path} is {device.size} bytes long, and its image has {size}: give it back its size",
                          device=path, size=device.size, needed=size)
    return device


def identify(path: str) -> tuple[int, ...]:
    """Inode, size and time of change of a file. Of a block device, which has no time of change that can be relied on,
    its size."""
    found = os.stat(path)
    if stat.S_ISBLK(found.st_mode):
        return (found.st_rdev, blockdev.block_size(path))
    return (found.st_ino, found.st_size, found.st_mtime_ns)


def measure(path: str) -> int:
    """Bytes of a file or block device that can be an image.

    Raises:
        NotFound, UsageError, InUse: there is none, it is neither, or a device that somebody uses.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"there is no device or file {path}: check the path", device=path) from None
    if stat.S_ISBLK(mode):
        use = blockdev.in_use(path)
        if use is not None:
            raise InUse(f"{path} is in use ({use}): an image must be at rest", device=path, use=use)
        return blockdev.block_size(path)
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} is neither a block device nor a regular file", device=path)
    return os.path.getsize(path)


def digest(path: str, size: int, tell: Callable[[int], None] = lambda _: None) -> bytes:
    """SHA-256 of the first ``size`` bytes. ``tell`` is called with the bytes that are done, now and then; what it
    raises ends the reading and is the caller's.

    Raises:
        DeviceError: the file is shorter.
    """
    state, done, told = hashlib.sha256(), 0, time.monotonic()
    buffer = memoryview(bytearray(min(size, PIECE)))
    with open(path, "rb", buffering=0) as file:
        while done < size:
            count = file.readinto(buffer[: size - done])
            if not count:
                raise DeviceError(f"{path} ends after {done} bytes, and {size} were expected", device=path)
            state.update(buffer[:count])
            # What was read is not wanted in memory: it is larger than that, often enough, and others need it.
            os.posix_fadvise(file.fileno(), done, count, os.POSIX_FADV_DONTNEED)
            done += count
            if time.monotonic() - told >= TELL_EVERY:
                told = time.monotonic()
                tell(done)
    tell(done)
    return state.digest()


def _share(path: str) -> int:
    """A descriptor that keeps others from using the file exclusively; -1 for a block device, whose exclusive use the
    kernel does not let share."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if stat.S_ISBLK(os.fstat(fd).st_mode):
            os.close(fd)
            return -1
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise InUse(f"{path} is in use by a store or journal: give a copy of it, or remove that store first",
                    device=path) from None
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(fd)
        raise
    return fd
