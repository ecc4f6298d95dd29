"""What the demo writes, and what must be there afterwards.

The real input is an ext4 image of the installed Python tree, or the same files one after the other without mkfs.ext4.
The oracle knows every acknowledged write and its LSN; it derives the final content without asking the package.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

BLOCK = 4096
CHUNK = 1 << 20


def make_image(path: str, size: int, folder: str) -> str:
    """Makes the input at ``path``, ``size`` bytes long, from files of the Python tree; returns what it is, in words."""
    tree = os.path.join(folder, "tree")
    files = _stage(tree, size // 2)
    try:
        tool = shutil.which("mkfs.ext4", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if tool is not None:
            with open(path, "wb") as image:
                image.truncate(size)
            done = subprocess.run(
                [tool, "-q", "-F", "-b", str(BLOCK), "-d", tree, path], check=False, capture_output=True
            )
            if done.returncode == 0:
                return f"an ext4 image of {files} files of the Python tree"
        with open(path, "wb") as image:
            for folder_name, _, names in os.walk(tree):
                for name in sorted(names):
                    with open(os.path.join(folder_name, name), "rb") as file:
                        shutil.copyfileobj(file, image)
            image.truncate(size)
        return f"{files} files of the Python tree, one after the other (mkfs.ext4 was not found or failed)"
    finally:
        shutil.rmtree(tree, ignore_errors=True)


def _stage(tree: str, budget: int) -> int:
    """Copies files of the standard library to ``tree`` until the budget of bytes is used; returns how many."""
    root = sysconfig.get_paths()["stdlib"]
    files = 0
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in ("__pycache__", "test", "site-packages"))
        target = os.path.join(tree, os.path.relpath(folder, root))
        os.makedirs(target, exist_ok=True)
        for name in sorted(names):
            source = os.path.join(folder, name)
            if not os.path.isfile(source) or os.path.islink(source):
                continue
            budget -= -(-os.path.getsize(source) // BLOCK) * BLOCK
            if budget < 0:
                return files
            shutil.copyfile(source, os.path.join(target, name))
            files += 1
    return files


def chunks(path: str, size: int, first: int = 0, length: int | None = None) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of the file in order, zero-padded to ``size``; or just of ``length`` bytes from ``first`` on."""
    end = size if length is None else min(size, first + length)
    with open(path, "rb") as file:
        file.seek(first)
        for offset in range(first, end, CHUNK):
            wanted = min(CHUNK, end - offset)
            yield offset, file.read(wanted).ljust(wanted, b"\0")


def stamp(counter: int, block: int) -> bytes:
    """The content of a stamped block: tells which write it is and where it belongs."""
    return struct.pack("<8sQQQ", b"pyrepl!!", counter, block, ~counter & (1 << 64) - 1) * (BLOCK // 32)


class Acknowledged(NamedTuple):
    """A write that returned."""

    lsn: int
    block: int
    counter: int


class Writer:
    """A thread that writes stamped blocks at random places, at a steady rate, until it is stopped."""

    def __init__(self, write: Callable[[int, bytes], int], blocks: int, rate: float, seed: int) -> None:
        self.history: list[Acknowledged] = []
        self.error: BaseException | None = None
        self.slowest = 0.0
        self._write, self._blocks, self._rate = write, blocks, rate
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo-writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends it and waits for the write in flight.

        Raises:
            whatever the write raised that ended it early.
        """
        self._stop.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        begin, counter = time.monotonic(), 0
        try:
            while not self._stop.wait(max(0.0, begin + counter / self._rate - time.monotonic())):
                counter += 1
                block = self._random.randrange(self._blocks)
                before = time.monotonic()
                lsn = self._write(block * BLOCK, stamp(counter, block))
                self.slowest = max(self.slowest, time.monotonic() - before)
                self.history.append(Acknowledged(lsn, block, counter))
        except BaseException as error:
            self.error = error


class Verdict(NamedTuple):
    """``lost``: acknowledged writes that should show and do not. ``wrong``: other blocks that differ."""

    lost: int
    wrong: int


def expected(history: list[Acknowledged], snapshot: int, restore: int) -> dict[int, int]:
    """Block -> counter of the write that it must show: the restore undid the writes since the snapshot."""
    show: dict[int, int] = {}
    for write in sorted(history):
        if write.lsn < snapshot or write.lsn > restore:
            show[write.block] = write.counter
    return show


def judge(read: Callable[[int, int], bytes], source: str, size: int, show: dict[int, int]) -> Verdict:
    """Compares all of a volume with the input and the stamps that must show over it."""
    lost = wrong = 0
    for offset, base in chunks(source, size):
        first = offset // BLOCK
        want, stamped = bytearray(base), set()
        for block in range(first, first + len(base) // BLOCK):
            if block in show:
                at = block * BLOCK - offset
                want[at : at + BLOCK] = stamp(show[block], block)
                stamped.add(block)
        found = read(offset, len(base))
        if found == want:
            continue
        for at in range(0, len(base), BLOCK):
            if found[at : at + BLOCK] != want[at : at + BLOCK]:
                if first + at // BLOCK in stamped:
                    lost += 1
                else:
                    wrong += 1
    return Verdict(lost, wrong)
