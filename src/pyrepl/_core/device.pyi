"""Devices: the seam to disks."""
from typing import Any

from typing_extensions import Buffer

class Device:
    """A disk. All offsets and lengths in bytes, multiples of `sector_size`, inside the device: ValueError else,
    before anything is done. What the disk refuses is OSError with the device's name; after close() it is
    OSError(ESHUTDOWN)."""
    name: str
    size: int
    sector_size: int
    engine: str  # "io_uring", "threads", "python"
    failed: int  # errno of the flush that failed, or 0
    bytes_read: int
    bytes_written: int
    flushes: int
    def read(self, offset: int, length: int) -> bytes: ...
    def readinto(self, offset: int, buffer: Buffer) -> None: ...
    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None: ...
    def zero(self, offset: int, length: int) -> None: ...
    def discard(self, offset: int, length: int) -> None: ...
    def perform(self, ios: list[tuple[str, int, Buffer | int, bool]]) -> list[int]:
        """A list at full depth: (kind, offset, memory, fua) with kind "read", "write", or "zero", "discard" (then a
        length in place of memory); memory aligned to `sector_size`. The result of each: 0 or -errno. For tests, tools
        and benchmarks."""
    def flush(self) -> None: ...
    def resize(self, size: int) -> None:
        """A file gets this size; a block device must have it already (OSError(ENOSPC)) and is looked at again."""
    def close(self) -> None: ...
    def __enter__(self) -> Device: ...
    def __exit__(self, *args: Any) -> None: ...

class FileDevice(Device):
    """An O_DIRECT file or block device. `exclusive` takes flock(LOCK_EX | LOCK_NB) (and O_EXCL on block devices):
    OSError(EBUSY) says that it is in use. `engine`: "auto", "threads", or "io_uring" (OSError if the kernel refuses
    it). `depth`: I/Os of one list in flight, 1 to 128. direct=False does without O_DIRECT, for file systems that have
    none. A file's size counts in whole sectors."""
    def __init__(self, path: str, *, writable: bool = True, engine: str = "auto", exclusive: bool = True,
                 depth: int = 64,
                 direct: bool = True) -> None: ...

class PythonDevice(Device):
    """The seam for simulations: a subclass implements the four methods below; each is called with the GIL, in order
    of the list. What they raise becomes its errno (or EIO) in the core, and the cause of the OSError that is raised
    in the end. The rest of the list is carried out all the same."""
    def __init__(self, name: str, size: int, sector_size: int = 512) -> None: ...
    def do_read(self, offset: int, length: int) -> bytes: ...
    def do_write(self, ios: list[tuple[int, bytes, bool]]) -> None:
        """The writes of one list, which are in flight together: (offset, data, fua). Zero arrives as a write of
        zeros."""
    def do_discard(self, offset: int, length: int) -> None: ...
    def do_flush(self) -> None: ...

def probe() -> tuple[str, str]:
    """The engine that "auto" takes, and why: ("io_uring", "") or ("threads", "io_uring_setup: EPERM ...")."""
