"""A disk that fails and comes back: a loop device whose file is sparse, on a small file system that is filled up.

What was written before stays; what needs room fails with an error of the device, until there is room again. Decides
nothing about what uses it. Needs root; mount and loop device are taken away by :meth:`FullDisk.close`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from pathlib import Path

MIB = 1 << 20


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

    def fail(self) -> None:
        """What has no room yet gets none."""
        with open(self._filler, "wb", buffering=0) as filler, contextlib.suppress(OSError):
            for size in (MIB, 4096):
                try:
                    while True:
                        filler.write(os.urandom(size))
                except OSError as error:
                    assert error.errno == errno.ENOSPC

    def heal(self) -> None:
        """There is room again."""
        self._filler.unlink()

    def close(self) -> None:
        """Harmless the second time."""
        self._stack.close()


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
