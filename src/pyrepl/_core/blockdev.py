"""Block and loop devices: size, sectors, discard, zero-out, attaching, and who uses a device.

Decides: how a loop device is found and made, and what counts as "in use". Must not know groups or journals; starts
no program.
Errors are OSError with the path; a value that cannot be is ValueError. Loop devices need root.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyrepl._core import _blk  # type: ignore[attr-defined]

__all__ = [
    "attach_loop",
    "block_size",
    "detach_loop",
    "discard",
    "in_use",
    "physical_sector_size",
    "refresh_loop",
    "sector_size",
    "zero_out",
]

_LOOP_MAJOR = 7
_TRIES = 32  # how often another process may take the free loop device before us


def _answer(value: int, path: str | int) -> int:
    """The value, or the OSError that a negative one stands for."""
    if value < 0:
        raise OSError(-value, os.strerror(-value), str(path))
    return value


@contextmanager
def _opened(device: str | os.PathLike[str] | int, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A descriptor for a path; one that is given is lent, not closed."""
    if isinstance(device, int):
        yield device
        return
    fd = os.open(device, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _name(device: str | os.PathLike[str] | int) -> str | int:
    return device if isinstance(device, int) else os.fspath(device)


def block_size(device: str | os.PathLike[str] | int) -> int:
    """Bytes of a block device (a path or a descriptor)."""
    with _opened(device) as fd:
        return _answer(_blk.lib.blk_size(fd), _name(device))


def sector_size(device: str | os.PathLike[str] | int) -> int:
    """Bytes of its logical sector: the least that can be read or written."""
    with _opened(device) as fd:
        return _answer(_blk.lib.blk_sector(fd), _name(device))


def physical_sector_size(device: str | os.PathLike[str] | int) -> int:
    """Bytes of its physical sector: smaller writes cost the disk a read."""
    with _opened(device) as fd:
        return _answer(_blk.lib.blk_physical(fd), _name(device))


def _range(offset: int, length: int) -> None:
    if not (0 <= offset < 1 << 63 and 0 < length < 1 << 63):
        raise ValueError(f"offset {offset} and length {length} must be below 2**63, and length above 0")


def discard(device: str | os.PathLike[str] | int, offset: int, length: int) -> None:
    """Gives the bytes back; what is read there afterwards is not defined."""
    _range(offset, length)
    with _opened(device, os.O_RDWR) as fd:
        _answer(_blk.lib.blk_discard(fd, offset, length), _name(device))


def zero_out(device: str | os.PathLike[str] | int, offset: int, length: int) -> None:
    """Makes the bytes zero, by the device itself where it can."""
    _range(offset, length)
    with _opened(device, os.O_RDWR) as fd:
        _answer(_blk.lib.blk_zero_out(fd, offset, length), _name(device))


# ---- loop devices --------------------------------------------------------------------------------------------------


def _loop_node(number: int) -> str:
    """The path of loop device `number`; its node is made where no udev does it."""
    node = f"/dev/loop{number}"
    with suppress(FileExistsError):
        os.mknod(node, stat.S_IFBLK | 0o660, os.makedev(_LOOP_MAJOR, number))
    return node


def _configure(node: str, file: int, path: str, sector_bytes: int, *, direct: bool, writable: bool) -> bool:
    """Attaches. False: somebody else took this loop device meanwhile."""
    with _opened(node, os.O_RDWR if writable else os.O_RDONLY) as loop:
        name = os.fsencode(path)[:63]
        code = _blk.lib.loop_configure(loop, file, sector_bytes, direct, not writable, name)
        if code == -errno.EBUSY:
            return False
        _answer(code, path)
        if direct and _answer(_blk.lib.loop_is_direct(loop), node) != 1:
            _blk.lib.loop_clear(loop)
            raise OSError(errno.EINVAL, "its file system gives a loop device no direct I/O", path)
    return True


def attach_loop(
    path: str | os.PathLike[str], *, sector_size: int = 512, direct: bool = True, writable: bool = True
) -> str:
    """Attaches a file to a free loop device; the path of the device.

    Args:
        path: the file; its size is the device's, rounded down to sectors.
        sector_size: logical sector in bytes, 512 to 4096.
        direct: use the file with direct I/O, so that it is not cached twice. OSError if its file system cannot.
        writable: False makes the device read-only.
    """
    if sector_size not in (512, 1024, 2048, 4096):
        raise ValueError(f"sector_size must be 512, 1024, 2048 or 4096, not {sector_size}")
    path = os.fspath(path)
    with (
        _opened(path, os.O_RDWR if writable else os.O_RDONLY) as file,
        _opened("/dev/loop-control", os.O_RDWR) as control,
    ):
        for _ in range(_TRIES):
            number = _answer(_blk.lib.loop_free_number(control), "/dev/loop-control")
            node = _loop_node(number)
            if _configure(node, file, path, sector_size, direct=direct, writable=writable):
                return node
    raise OSError(errno.EBUSY, "every free loop device was taken by somebody else", path)


def detach_loop(device: str | os.PathLike[str]) -> None:
    """Lets a loop device go. If it is open somewhere the kernel does so when that ends. OSError(ENXIO): not
    attached."""
    with _opened(device) as loop:
        _answer(_blk.lib.loop_clear(loop), os.fspath(device))


def refresh_loop(device: str | os.PathLike[str]) -> int:
    """A loop device takes the size of its file, which grew or shrank, again; the size in bytes."""
    with _opened(device) as loop:
        _answer(_blk.lib.loop_update_size(loop), os.fspath(device))
        return block_size(loop)


# ---- who uses it ---------------------------------------------------------------------------------------------------


def _unescape(word: str) -> str:
    """The kernel writes blanks in paths as \\040."""
    return word.encode("latin-1", "replace").decode("unicode_escape") if "\\" in word else word


def _mounts() -> Iterator[tuple[str, str]]:
    """(major:minor, where) of every mount that this process sees."""
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        words = line.split()
        yield words[2], _unescape(words[4])


def _is_swap(device: int) -> bool:
    for line in Path("/proc/swaps").read_text(errors="surrogateescape").splitlines()[1:]:
        try:
            status = os.stat(_unescape(line.split()[0]))
        except OSError:
            continue
        if stat.S_ISBLK(status.st_mode) and status.st_rdev == device:
            return True
    return False


def _block_in_use(path: str, device: int) -> str | None:
    number = f"{os.major(device)}:{os.minor(device)}"
    for mounted, where in _mounts():
        if mounted == number:
            return f"mounted on {where}"
    if _is_swap(device):
        return "used as swap"
    folder = Path("/sys/dev/block") / number
    holders = sorted(entry.name for entry in folder.glob("holders/*"))
    if holders:
        return f"held by {', '.join(holders)}"
    for partition in sorted(folder.glob("*/partition")):
        major, minor = (partition.parent / "dev").read_text().strip().split(":")
        use = _block_in_use(f"/dev/{partition.parent.name}", os.makedev(int(major), int(minor)))
        if use:
            return f"partition {partition.parent.name} is {use}"
    try:  # whoever holds it exclusively without a trace in /sys: another process, a file system of another namespace
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return "held by another process or by the kernel"
        if error.errno not in (errno.ENOENT, errno.ENXIO, errno.ENOMEDIUM):
            raise
    return None


def _file_in_use(path: str) -> str | None:
    for backing in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        try:
            name = backing.read_text(errors="surrogateescape").rstrip("\n")
            if os.path.samefile(name, path):
                return f"attached to /dev/{backing.parent.parent.name}"
        except OSError:  # detached meanwhile, or its file was removed
            continue
    return None


def in_use(path: str | os.PathLike[str]) -> str | None:
    """Who else uses a device or file, as a clause for people; None: nobody that can be seen from here.

    A block device: mounted, swap, held by another device, one of its partitions is, or opened exclusively. A regular
    file:
    attached to a loop device. This is a look, not a lock: opening it exclusively is what decides.
    """
    path = os.fspath(path)
    status = os.stat(path)
    if stat.S_ISBLK(status.st_mode):
        return _block_in_use(path, status.st_rdev)
    return _file_in_use(path)
