"""The API path: what a write costs above the device, and how long operations take on a large sparse volume.

On files in a temporary folder; with PYREPL_BENCH_DEV=DEVICE the volume is on that device. It is written only if
PYREPL_BENCH_DEV_WRITE=1 and it is not mounted, held or partitioned. Every benchmark checks the result of what it timed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable

import pyrepl

MIB = 1 << 20
BLOCK = 4096
BULK = 256


class Bench:
    """A node with one group and one volume."""

    size = 256 * MIB
    on_device = True

    def setup(self, *_: object) -> None:
        self.folder = tempfile.mkdtemp(prefix="pyrepl-bench-")
        self.node = pyrepl.Node.open(os.path.join(self.folder, "node"), create=True)
        self.group = self.node.create_group(
            "bench", journal=os.path.join(self.folder, "journal"), journal_size=256 * MIB
        )
        self.volume = self.group.add_volume("data", self._device(), size=self.size, zero=True, force=True)
        self.block = os.urandom(BLOCK)

    def _device(self) -> str | None:
        device = os.environ.get("PYREPL_BENCH_DEV") if self.on_device else None
        if device is None:
            return None
        from pyrepl._core import blockdev

        if os.environ.get("PYREPL_BENCH_DEV_WRITE") != "1":
            raise NotImplementedError("PYREPL_BENCH_DEV_WRITE=1 is needed: this benchmark overwrites the device")
        used = blockdev.in_use(device)
        if used:
            raise NotImplementedError(f"{device} is in use: {used}")
        return device

    def teardown(self, *_: object) -> None:
        if hasattr(self, "node"):
            self.node.close()
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder, ignore_errors=True)

    def check(self, blocks: int) -> None:
        """What was written is there."""
        for index in (0, blocks // 2, blocks - 1):
            if self.volume.read(index * BLOCK, BLOCK) != self.block:
                raise AssertionError("what was written is not there")

    def cpu_per(self, count: int, work: Callable[[], None]) -> float:
        """Microseconds of processor time of this process for one of ``count``."""
        before = time.process_time()
        work()
        return (time.process_time() - before) / count * 1e6


class Writes(Bench):
    """4 KiB writes: one at a time from one thread, and 32 in flight."""

    def time_write_qd1(self) -> None:
        for index in range(BULK):
            self.volume.write(index * BLOCK, self.block)
        self.check(BULK)

    def _deep(self) -> None:
        tickets = []
        for index in range(BULK):
            tickets.append(self.volume.submit_write(index * BLOCK, self.block))
            if len(tickets) == 32:
                tickets.pop(0).wait()
        for ticket in tickets:
            ticket.wait()

    def time_write_qd32(self) -> None:
        self._deep()
        self.check(BULK)

    def track_cpu_qd1(self) -> float:
        return self.cpu_per(BULK, self.time_write_qd1)

    track_cpu_qd1.unit = "us/write"  # type: ignore[attr-defined]

    def track_cpu_qd32(self) -> float:
        return self.cpu_per(BULK, self.time_write_qd32)

    track_cpu_qd32.unit = "us/write"  # type: ignore[attr-defined]

    def time_read_qd1(self) -> None:
        for index in range(BULK):
            self.volume.read(index * BLOCK, BLOCK)


class Operations(Bench):
    """Snapshot and restore of a sparse volume of 1 TiB that holds ten snapshots."""

    size = 1 << 40
    on_device = False
    number = 1
    repeat = 5
    timeout = 120

    def setup(self, *_: object) -> None:
        super().setup()
        for index in range(10):
            self.volume.write(index * 64 * MIB, self.block)
            self.volume.snapshot(f"day-{index}")
        self.names = (f"one-{index}" for index in range(10000))

    def time_snapshot(self) -> None:
        self.volume.snapshot(next(self.names))

    def time_restore(self) -> None:
        self.volume.write(0, bytes(BLOCK))
        self.volume.restore("day-9")
        if self.volume.read(0, BLOCK) != self.block:
            raise AssertionError("the restore does not show")

    def track_map_memory(self) -> int:
        return int(self.group.status()["map_memory"])

    track_map_memory.unit = "bytes"  # type: ignore[attr-defined]
