"""Devices in memory for tests: plain, recording, failing.

Decides: nothing about the engine; these are disks. MemoryDevice keeps bytes; RecordingDevice also keeps what was
asked of it, in
order, so that a test can build what a power loss would leave; FailingDevice raises where it is told to.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pyrepl._core.device import PythonDevice


class MemoryDevice(PythonDevice):
    """Bytes in memory. ``data`` may be looked at and changed by the test."""

    def __init__(self, name: str = "memory", size: int = 1 << 20, sector_size: int = 512, fill: bytes = b"\0") -> None:
        super().__init__(name, size, sector_size)
        self.data = bytearray(size) if fill == b"\0" else bytearray(fill * (size // len(fill)))

    def do_read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def do_write(self, ios: list[tuple[int, bytes, bool]]) -> None:
        for offset, data, _ in ios:
            self.data[offset : offset + len(data)] = data

    def do_discard(self, offset: int, length: int) -> None:
        """What a discard leaves is not defined, so it is not zeros here."""
        self.data[offset : offset + length] = b"\xdc" * length

    def do_flush(self) -> None:
        pass

    def resize(self, size: int) -> None:
        super().resize(size)
        self.data = self.data[:size] + bytearray(max(0, size - len(self.data)))


class Recorded(NamedTuple):
    """One thing that a device was asked: "read", "write", "discard" or "flush"."""

    what: str
    offset: int = 0
    data: bytes = b""
    fua: bool = False
    together: int = 0  # the number of the list: writes of one list are in flight together


class RecordingDevice(MemoryDevice):
    """Keeps everything that it was asked in ``log``; ``crash`` builds what a power loss leaves."""

    def __init__(
        self, name: str = "recording", size: int = 1 << 20, sector_size: int = 512, fill: bytes = b"\0"
    ) -> None:
        super().__init__(name, size, sector_size, fill)
        self.log: list[Recorded] = []
        self.start = bytes(self.data)
        self._list = 0

    def do_read(self, offset: int, length: int) -> bytes:
        self.log.append(Recorded("read", offset, bytes(length)))
        return super().do_read(offset, length)

    def do_write(self, ios: list[tuple[int, bytes, bool]]) -> None:
        self._list += 1
        self.log += [Recorded("write", offset, data, fua, self._list) for offset, data, fua in ios]
        super().do_write(ios)

    def do_discard(self, offset: int, length: int) -> None:
        self.log.append(Recorded("discard", offset, b"\xdc" * length))
        super().do_discard(offset, length)

    def do_flush(self) -> None:
        self.log.append(Recorded("flush"))
        super().do_flush()

    def crash(self, end: int, survives: Callable[[int], bool] = lambda _: False) -> bytes:
        """The bytes after a power loss when log[:end] had been answered: what a flush or FUA covers, and of the rest
        what ``survives`` (given its index) says, sector by sector in order."""
        image = bytearray(self.start)
        last_flush = max((i for i in range(end) if self.log[i].what == "flush"), default=-1)
        for i, one in enumerate(self.log[:end]):
            if one.what in ("write", "discard") and (i < last_flush or one.fua or survives(i)):
                image[one.offset : one.offset + len(one.data)] = one.data
        return bytes(image)


class FailingDevice(MemoryDevice):
    """Raises OSError in its n-th call (from 0) of one kind, or from there on."""

    def __init__(
        self,
        name: str = "failing",
        size: int = 1 << 20,
        sector_size: int = 512,
        *,
        kind: str = "write",
        calls: Iterable[int] = (),
        beyond: int | None = None,
        code: int = errno.EIO,
    ) -> None:
        super().__init__(name, size, sector_size)
        self.kind, self.calls, self.beyond, self.code = kind, set(calls), beyond, code
        self.counts = {"read": 0, "write": 0, "discard": 0, "flush": 0}

    def _count(self, kind: str) -> None:
        n = self.counts[kind]
        self.counts[kind] += 1
        if kind == self.kind and (n in self.calls or (self.beyond is not None and n >= self.beyond)):
            raise OSError(self.code, os.strerror(self.code), f"{kind} {n} of {self.name}")

    def do_read(self, offset: int, length: int) -> bytes:
        self._count("read")
        return super().do_read(offset, length)

    def do_write(self, ios: list[tuple[int, bytes, bool]]) -> None:
        self._count("write")
        super().do_write(ios)

    def do_discard(self, offset: int, length: int) -> None:
        self._count("discard")
        super().do_discard(offset, length)

    def do_flush(self) -> None:
        self._count("flush")
        super().do_flush()
