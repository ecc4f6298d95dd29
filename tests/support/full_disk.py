"""Real file systems without room, and a disk that has none, or fails, and comes back: a loop device whose file is sparse,
on a small file system that is filled up.

What was written before stays; what needs room finds none (ENOSPC), as of a thin disk, until there is room again; or nothing
can be written. Decides nothing about what uses it. Needs root; mounts and loop devices are taken away by ``close``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from pathlib import Path

MIB = 1 << 20


class Small:
    """A file system of 100 MiB and ``files`` files."""

    def __init__(self, folder: Path, files: int = 1000) -> None:
        folder.mkdir()
        self.folder, self._ballast, self._crowd = folder, folder / "ballast", folder / "crowd"
        _run("mount", "-t", "tmpfs", "-o", f"size=100m,nr_inodes={files}", "tmpfs", str(folder))

    @property
    def free(self) -> int:
        left = os.statvfs(self.folder)
        return left.f_bavail * left.f_frsize

    def leave(self, room: int) -> None:
        """So many bytes are left, and never more meanwhile."""
        with open(self._ballast, "ab") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, ballast.tell() + self.free - room)

    def fill(self) -> None:
        """Nothing is left, whatever is given back meanwhile."""
        while self.free:
            self.leave(0)

    def crowd(self) -> None:
        """No more files can be made."""
        self._crowd.mkdir()
        with contextlib.suppress(OSError):
            for number in range(1 << 20):
                (self._crowd / str(number)).touch()

    def give(self) -> None:
        """All that nobody else uses is left."""
        self._ballast.unlink(missing_ok=True)
        shutil.rmtree(self._crowd, ignore_errors=True)

    def close(self) -> None:
        _run("umount", "-l", str(self.folder))


class FullDisk:
    """``device`` is ``size`` bytes long; the file system below it has room for ``room`` of them."""

    def __init__(self, folder: Path, size: int, room: int) -> None:
        folder.mkdir()
        self.folder, self._filler = folder, folder / "filler"
        self._stack = contextlib.ExitStack()
        try:
            _run("mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(folder))
            self._stack.callback(_run, "umount", "-l", str(folder))
            file = folder / "disk"
            with open(file, "wb") as made:
                made.truncate(size)
            self.device = _run("losetup", "--find", "--show", str(file))
            self._stack.callback(_run, "losetup", "-d", self.device)
        except BaseException:
            self.close()
            raise

    def lock(self) -> None:
        """Nothing can be written to it any more."""
        _run("blockdev", "--setro", self.device)

    def unlock(self) -> None:
        """It can."""
        _run("blockdev", "--setrw", self.device)

    def fill(self) -> None:
        """What has no room yet gets none."""
        with open(self._filler, "wb", buffering=0) as filler, contextlib.suppress(OSError):
            for size in (MIB, 4096):
                try:
                    while True:
                        filler.write(os.urandom(size))
                except OSError as error:
                    assert error.errno == errno.ENOSPC

    def give(self) -> None:
        """There is room again."""
        self._filler.unlink()

    def close(self) -> None:
        """Harmless the second time."""
        self._stack.close()


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
