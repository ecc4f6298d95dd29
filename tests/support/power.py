"""A machine's disks with volatile caches, and the cut of its power: what was not flushed is there, or not, or torn.

A disk is a server of its own for the NBD protocol, written from its specification and unrelated to the package's; nbdfuse
and a loop device make it a block device with direct I/O. A write is answered when the cache has it, a flush when the disk
has all that was answered before. Decides what survives: each write that was not flushed wholly, not at all, or some of its
sectors, in any order. Knows nothing of pyrepl.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from pathlib import Path
from typing import BinaryIO

from tests.support.clients import FileSystem

SECTOR = 512
_GREETING = struct.pack(">QQH", 0x4E42444D41474943, 0x49484156454F5054, 3)  # fixed newstyle, no zeros
_OPTION, _OPTION_REPLY, _REQUEST, _REPLY = 0x49484156454F5054, 0x3E889045565A9, 0x25609513, 0x67446698
_GO, _ABORT = 7, 2
_ACK, _INFO, _UNSUPPORTED = 1, 3, (1 << 31) + 1
_READ, _WRITE, _DISCONNECT, _FLUSH = 0, 1, 2, 3
_FLAGS = 1 | 4  # has flags, can flush
_EINVAL, _EIO = 22, 5


class Disk:
    """Of ``size`` bytes; ``device`` is its block device while the power is on."""

    def __init__(self, folder: Path, size: int) -> None:
        folder.mkdir()
        self._folder, self._size = folder, size
        self._media = bytearray(size)  # what survives
        self._shown = bytearray(size)  # with the cache
        self._cache: list[tuple[int, bytes]] = []
        self._lock = threading.RLock()
        self._on = False
        self.flushed = 0  # how often
        self.device = folder / "device"  # where it is found, whatever the kernel calls it

    def power_on(self) -> None:
        self._on, self._shown = True, bytearray(self._media)
        path = self._folder / "socket"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        self._attached = FileSystem(f"nbd+unix:///?socket={path}", self._folder / "fuse")
        self._attached.attach()
        self.device.symlink_to(self._attached.device)

    def held(self) -> threading.RLock:
        """While this is entered nothing is answered."""
        return self._lock

    def lose_power(self, rng: random.Random) -> int:
        """Nothing is answered any more; how many writes were in the cache."""
        with self._lock:
            self._on = False
            for offset, data in self._cache:
                kind = rng.randrange(3)
                for at in range(0, len(data), SECTOR):
                    if kind == 0 or (kind == 1 and rng.random() < 0.5):
                        self._media[offset + at:offset + at + SECTOR] = data[at:at + SECTOR]
            lost = len(self._cache)
            self._cache.clear()
        return lost

    def take_away(self) -> None:
        """The block device goes, when nobody uses it any more."""
        self._attached.detach()
        self.device.unlink()
        self._listener.shutdown(socket.SHUT_RDWR)  # a thread that waits in accept() would stay, and keep the media
        self._listener.close()
        (self._folder / "socket").unlink()

    # ---- the server

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream, contextlib.suppress(OSError, struct.error):
            connection.sendall(_GREETING)
            stream.read(4)  # the client's flags
            while True:
                _, option, length = struct.unpack(">QII", stream.read(16))
                stream.read(length)
                if option == _GO:
                    export = struct.pack(">HQH", 0, self._size, _FLAGS)
                    connection.sendall(_told(option, _INFO, export) + _told(option, _ACK))
                    break
                connection.sendall(_told(option, _ACK if option == _ABORT else _UNSUPPORTED))
                if option == _ABORT:
                    return
            while self._answer(connection, *struct.unpack(">IHHQQI", stream.read(28)), stream):
                pass

    def _answer(self, connection: socket.socket, magic: int, flags: int, command: int, cookie: int, offset: int, length: int,
                stream: BinaryIO) -> bool:
        assert magic == _REQUEST and flags == 0
        data, error = b"", 0
        payload = stream.read(length) if command == _WRITE else b""
        if command == _DISCONNECT:
            return False
        with self._lock:
            if not self._on:
                error = _EIO
            elif command == _READ:
                data = bytes(self._shown[offset:offset + length])
            elif command == _WRITE:
                self._shown[offset:offset + length] = payload
                self._cache.append((offset, payload))
            elif command == _FLUSH:
                for at, written in self._cache:
                    self._media[at:at + len(written)] = written
                self._cache.clear()
                self.flushed += 1
            else:
                error = _EINVAL
        connection.sendall(struct.pack(">IIQ", _REPLY, error, cookie) + data)
        return True


def _told(option: int, kind: int, body: bytes = b"") -> bytes:
    return struct.pack(">QIII", _OPTION_REPLY, option, kind, len(body)) + body


class Machine:
    """Disks under one power supply. A context manager: at its end all is off and away."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._disks: list[Disk] = []

    def disk(self, size: int) -> Disk:
        """A new one, all zeros, switched on."""
        made = Disk(self._folder / f"disk-{len(self._disks)}", size)
        made.power_on()
        self._disks.append(made)
        return made

    @property
    def flushed(self) -> int:
        """Flushes of all disks."""
        return sum(disk.flushed for disk in self._disks)

    def lose_power(self, rng: random.Random) -> int:
        """All at once; how many writes were in caches. No disk answers between the first and the last of them, for an
        answer of one may cause a write to another."""
        with contextlib.ExitStack() as stack:
            for disk in self._disks:
                stack.enter_context(disk.held())
            return sum(disk.lose_power(rng) for disk in self._disks)

    def power_on(self) -> None:
        """When the machine's programs have ended: they cannot go on with the disks as they were."""
        for disk in self._disks:
            disk.take_away()
            disk.power_on()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *args: object) -> None:
        for disk in self._disks:
            disk.take_away()
