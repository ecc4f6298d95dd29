"""Claim 32: the smallest computer that it is for: two cores, a daemon limited to 256 MiB, and the secondary away all the time."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.daemons import Pair
from tests.support.model import BLOCK, blocks, content, differences

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
            must = {"data": np.zeros(volume.size // BLOCK, dtype=np.uint64)}  # a stamp for each block, as of the model
            while written < total:
                for _ in range(16):
                    length = rng.randrange(1, 4 * 256 + 1) * BLOCK
                    offset = rng.randrange(0, volume.size - length + 1, BLOCK)
                    written += length
                    volume.write(offset, content(written, offset // BLOCK, length // BLOCK))
                    must["data"][blocks(offset, length)] = written
                name = f"s{written}"
                volume.snapshot(name)
                must[name] = must["data"].copy()
                if rng.random() < 0.5:
                    earlier = rng.choice([one for one in must if one != "data"])
                    volume.restore(earlier, extent=(16 * MIB, 16 * MIB))
                    must["data"][blocks(16 * MIB, 16 * MIB)] = must[earlier][blocks(16 * MIB, 16 * MIB)]
                if rng.random() < 0.7:
                    pair.group.store(name).delete()
                    del must[name]
            status = pair.group.status()
            assert status["state"] == "active" and not status["links"][0]["connected"]
            pair.secondary.start()
            pair.settle()
            used = most_memory(pid)
        print(f"{written >> 20} MiB were written; {used >> 20} MiB resident at most")
        assert pair.primary.pid == pid and used < LIMIT
        assert len(must) > 1
        for group in (pair.group, pair.secondary.client.group("db")):
            stores = [*group.volumes, *group.snapshots]
            assert {store.name for store in stores} == must.keys()
            for store in stores:
                assert not differences(store, must[store.name])
    finally:
        pair.close()
