"""Claim 32: the smallest computer that it is for: two cores, a daemon limited to 256 MiB, and the secondary away all the time."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemons import Pair

MIB = 1 << 20
LIMIT = 256 * MIB
HIERARCHIES = (  # where memory is limited, of cgroup version 1 and 2, and the file with the limit
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max"),
)


@contextlib.contextmanager
def limited(pid: int) -> Iterator[None]:
    """The kernel kills this process, which has just started, if it takes more than LIMIT."""
    for root, limit in HIERARCHIES:
        folder = root / f"pyrepl-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / limit).write_text(str(LIMIT))
        except OSError:
            folder.rmdir()
            continue
        try:
            (folder / "cgroup.procs").write_text(str(pid))
            yield
        finally:
            (root / "cgroup.procs").write_text(str(pid))
            folder.rmdir()
        return
    pytest.skip("no memory cgroup can be made here: that needs root and a hierarchy that is writable")


def most_memory(pid: int) -> int:
    """Bytes resident at most, so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def test_claim_32_a_small_computer(tmp_path, request):
    total = (4096 if request.config.getoption("--long") else 384) * MIB
    pair = Pair(tmp_path / "pair", 64 * MIB, "async", journal=128 * MIB)
    try:
        pid = pair.primary.pid
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), sorted(os.sched_getaffinity(0))[:2])
        pair.secondary.kill()
        with limited(pid):
            volume, rng, written = pair.group.volume("data"), random.Random(32), 0
            while written < total:
                for _ in range(16):
                    length = rng.randrange(1, 4 * 256 + 1) * 4096
                    volume.write(rng.randrange(0, volume.size - length + 1, 4096), rng.randbytes(length))
                    written += length
                name = f"s{written}"
                volume.snapshot(name)
                if rng.random() < 0.5:
                    volume.restore(name, extent=(16 * MIB, 16 * MIB))
                if rng.random() < 0.7:
                    pair.group.store(name).delete()
            status = pair.group.status()
            assert status["state"] == "active" and not status["links"][0]["connected"]
            pair.secondary.start()
            pair.settle()
            used = most_memory(pid)
        print(f"{written >> 20} MiB were written; {used >> 20} MiB resident at most")
        assert pair.primary.pid == pid and used < LIMIT
        stores = [*pair.group.volumes, *pair.group.snapshots]
        assert len(stores) > 1
        there = pair.secondary.client.group("db")
        assert [store.name for store in stores] == [store.name for store in [*there.volumes, *there.snapshots]]
        for store in stores:
            assert store.digest(0, store.size) == there.store(store.name).digest(0, store.size), store.name
    finally:
        pair.close()
