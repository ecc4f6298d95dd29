"""Foreign programs that tests run: which there are, how they are called, and a file system on an NBD export.

Decides how a missing program is skipped (by its name, with the package that brings it) and in which order what was started
or mounted is taken away again. Knows nothing of pyrepl.

Programs run in sessions of their own: a Ctrl-C ends the test, and the test's fixtures end the programs, in that order.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyrepl._core import blockdev

PACKAGES = {  # program -> package of Debian; .ci/run installs them, README names them
    "nbdinfo": "libnbd-bin",
    "nbdcopy": "libnbd-bin",
    "nbdsh": "libnbd-bin",
    "nbdfuse": "libnbd-bin",
    "libnbd for Python": "python3-libnbd",
    "nbdkit": "nbdkit",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common",
    "fio": "fio",
    "fusermount3": "fuse3",
    "sqlite3": "sqlite3",
    "mkfs.ext4": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "openssl": "openssl",
}
REQUIRED = "PYREPL_TEST_CLIENTS"  # "required": what is missing fails the test (.ci/run says so)
_SBIN = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def find(program: str) -> str | None:
    """Where a program is; of "libnbd for Python" a Python that has it."""
    if program == "libnbd for Python":
        for python in (sys.executable, "/usr/bin/python3"):
            if os.path.exists(python) and not subprocess.run([python, "-c", "import nbd"], capture_output=True, check=False).returncode:
                return python
        return None
    return shutil.which(program, path=_SBIN)


def missing() -> list[str]:
    """Names of the programs that this machine lacks."""
    return [program for program in PACKAGES if find(program) is None]


def need(*programs: str) -> None:
    """Skips the test, by the names of the programs that are missing; fails it where none may be."""
    lacking = [program for program in programs if find(program) is None]
    if lacking:
        reason = "; ".join(f"{program} is missing: apt-get install {PACKAGES[program]}" for program in lacking)
        assert os.environ.get(REQUIRED) != "required", reason
        pytest.skip(reason)


def why_no_mounts() -> str:
    """Why file systems cannot be mounted here; empty if they can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    for path in ("/dev/fuse", "/dev/loop-control"):
        if not os.path.exists(path):
            return f"{path} is missing"
    return ""


def run(*arguments: object, status: int | None = 0, timeout: float = 60, **options: Any) -> str:
    """What a program printed, errors included.

    Args:
        status: with which it must end; None: any.
    """
    words = [str(argument) for argument in arguments]
    path = find(words[0]) if os.sep not in words[0] else words[0]
    assert path is not None, f"{words[0]} is missing: the test does not say that it needs it"
    done = subprocess.run([path, *words[1:]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, timeout=timeout, check=False, start_new_session=True, **options)
    assert status is None or done.returncode == status, f"{' '.join(words)}: {done.returncode}\n{done.stdout[-4000:]}"
    return done.stdout


def until(condition: Callable[[], bool], what: str, timeout: float = 60) -> None:
    """Returns when the condition holds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not within {timeout} s: {what}"
        time.sleep(0.01)


def is_mounted(path: Path) -> bool:
    """Whether something is mounted there; also if it is dead, and does not answer to stat any more."""
    return any(line.split()[4] == str(path) for line in Path("/proc/self/mountinfo").read_text().splitlines())


class FileSystem:
    """ext4 on an NBD export: nbdfuse makes it a file, a loop device with direct I/O makes that a disk, and it is mounted.

    A context manager that takes everything away, whatever happened. ``attach`` after ``detach`` begins anew.
    """

    def __init__(self, uri: str, folder: Path, *, read_only: bool = False) -> None:
        self.uri, self.read_only = uri, read_only
        folder.mkdir(exist_ok=True)
        self.file, self.root, self.log = folder / "disk", folder / "root", folder / "nbdfuse.log"
        self.device = ""
        self._stack = contextlib.ExitStack()

    def attach(self) -> None:
        """The export becomes ``device``, a disk of this machine."""
        self.root.mkdir(exist_ok=True)
        self.file.touch()
        try:
            log = self._stack.enter_context(self.log.open("ab"))
            fuse = subprocess.Popen([str(find("nbdfuse")), *(["-r"] if self.read_only else []), str(self.file), self.uri],
                                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
            self._stack.callback(self._end_fuse, fuse)

            def is_there() -> bool:
                assert fuse.poll() is None, f"nbdfuse ended: {self.log.read_text()}"
                return is_mounted(self.file)

            until(is_there, "nbdfuse shows the export")
            self.device = blockdev.attach_loop(self.file, writable=not self.read_only)
            self._stack.callback(blockdev.detach_loop, self.device)
            self._stack.callback(self.unmount)
        except BaseException:
            self.detach()
            raise

    def make(self) -> None:
        """A new, empty file system."""
        run("mkfs.ext4", "-q", "-F", self.device)

    def mount(self) -> Path:
        """Mounts it; where. A read-only one as it is, without looking at its journal."""
        run("mount", *(["-o", "ro,noload"] if self.read_only else []), "-t", "ext4", self.device, self.root)
        return self.root

    def unmount(self) -> None:
        """Everything goes to the export. Harmless if it is not mounted."""
        until(lambda: not is_mounted(self.root) or not run("umount", self.root, status=None), f"umount {self.root}")

    def detach(self) -> None:
        """Takes mount, loop device and nbdfuse away. Harmless the second time."""
        self._stack.close()

    def __enter__(self) -> FileSystem:
        self.attach()
        return self

    def __exit__(self, *args: object) -> None:
        self.detach()

    def _end_fuse(self, fuse: subprocess.Popen[bytes]) -> None:
        if is_mounted(self.file):
            until(lambda: not run("fusermount3", "-u", self.file, status=None), f"fusermount3 -u {self.file}")
        elif fuse.poll() is None:
            fuse.terminate()
        try:
            fuse.wait(60)
        except subprocess.TimeoutExpired:
            fuse.kill()
            fuse.wait()


class LoopMount:
    """An image of ext4 in a file, mounted. A context manager: where it is mounted."""

    def __init__(self, image: Path, root: Path) -> None:
        self._image, self._root = image, root
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Path:
        self._root.mkdir(exist_ok=True)
        try:
            device = blockdev.attach_loop(self._image)
            self._stack.callback(blockdev.detach_loop, device)
            run("mount", "-t", "ext4", device, self._root)
            self._stack.callback(lambda: until(lambda: not run("umount", self._root, status=None), f"umount {self._root}"))
        except BaseException:
            self._stack.close()
            raise
        return self._root

    def __exit__(self, *args: object) -> None:
        self._stack.close()
