"""Writers, readers, snapshots and restores by many threads on one group: what each may see, checked while it happens."""

from __future__ import annotations

import random
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pyrepl

BLOCK = 4096
SECONDS = 8.0
MIB = 1 << 20


def content(block: int, version: int) -> bytes:
    return struct.pack("<QQ", block, version) * (BLOCK // 16)


def version_of(data: bytes, block: int) -> int:
    """The version that a whole block shows; a mixture of two is a torn write."""
    whose, version = struct.unpack_from("<QQ", data)
    assert data == struct.pack("<QQ", whose, version) * (BLOCK // 16), f"block {block} is torn"
    assert (whose, version) == (0, 0) or whose == block
    return int(version)


class Fight:
    """Threads over two volumes: ``v`` is written and read block by block, ``w`` is restored as a whole."""

    def __init__(self, group: Any, blocks: int) -> None:
        self.group, self.blocks = group, blocks
        self.v, self.w = group.volume("v"), group.volume("w")
        self.last = [0] * blocks  # version of each block of v whose write has returned
        self.over = threading.Event()
        self.errors: list[BaseException] = []
        self.did: Counter[str] = Counter()

    def versions(self, store: Any, first: int, count: int) -> list[int]:
        data = store.read(first * BLOCK, count * BLOCK)
        return [version_of(data[i * BLOCK:(i + 1) * BLOCK], first + i) for i in range(count)]

    def write(self, k: int) -> None:
        rng, mine = random.Random(k), range(k, self.blocks, 3)
        while not self.over.is_set():
            block = rng.choice(mine)
            self.v.write(block * BLOCK, content(block, self.last[block] + 1))
            self.last[block] += 1
            self.did["written"] += 1
            if rng.random() < 0.3:
                assert self.versions(self.v, block, 1) == [self.last[block]], "a returned write is not visible"

    def read(self, k: int) -> None:
        rng = random.Random(100 + k)
        while not self.over.is_set():
            first = rng.randrange(self.blocks)
            count = min(rng.choice((1, 4, 16)), self.blocks - first)
            before = self.last[first:first + count]
            got = self.versions(self.v, first, count)
            after = self.last[first:first + count]
            assert all(a <= x <= b + 1 for a, x, b in zip(before, got, after, strict=True)), (first, before, got, after)
            self.did["read"] += 1

    def restore(self, _: int) -> None:
        rng, snapshots, size = random.Random(7), [], self.blocks * BLOCK
        n = 0
        while not self.over.is_set():
            n += 1
            for block in range(0, self.blocks, rng.choice((1, 3, 7))):
                self.w.write(block * BLOCK, content(block, n))
            snapshots.append((self.w.snapshot(f"s{n}").name, self.w.read(0, size)))
            for block in range(0, self.blocks, rng.choice((1, 2, 5))):
                self.w.write(block * BLOCK, content(block, n + MIB))
            name, want = rng.choice(snapshots)
            self.w.restore(name)
            assert self.w.read(0, size) == want, "a restored volume differs"
            assert self.group.store(name).read(0, size) == want, "the snapshot differs"
            time.sleep(rng.choice((0, 0, 0.02)))
            assert self.w.read(0, size) == want, "after the mover"
            while len(snapshots) > rng.choice((3, 8)):
                self.group.store(snapshots.pop(rng.randrange(len(snapshots)))[0]).delete()
            self.did["restored"] += 1

    def freeze(self, _: int) -> None:
        n = 0
        while not self.over.is_set():
            n += 1
            before = list(self.last)
            snapshot = self.v.snapshot(f"t{n}")
            after = list(self.last)
            got = self.versions(snapshot, 0, self.blocks)
            assert all(a <= x <= b + 1 for a, x, b in zip(before, got, after, strict=True)), "not of one place of the order"
            time.sleep(0.01)
            assert self.versions(snapshot, 0, self.blocks) == got, "a snapshot changed"
            snapshot.delete()
            self.did["frozen"] += 1

    def guarded(self, body: Callable[[int], None], k: int) -> None:
        try:
            body(k)
        except BaseException as error:
            self.errors.append(error)
            self.over.set()

    @property
    def is_enough(self) -> bool:
        did = dict(self.did)
        return len(did) == 4 and min(did.values()) >= 10

    def run(self, seconds: float) -> None:
        bodies = [(self.write, 0), (self.write, 1), (self.write, 2), (self.read, 0), (self.read, 1), (self.restore, 0), (self.freeze, 0)]
        threads = [threading.Thread(target=self.guarded, args=one) for one in bodies]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60  # on a machine that does much else it takes longer until each has done its share
        self.over.wait(seconds)
        while not self.over.wait(0.01) and not self.is_enough and time.monotonic() < deadline:
            pass
        self.over.set()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads), "a thread hangs"
        if self.errors:
            raise self.errors[0]


@pytest.mark.timeout(120)
def test_threads_on_one_group(tmp_path: Path) -> None:
    with pyrepl.Node.open(tmp_path / "node", create=True) as node:
        group = node.create_group("db", tmp_path / "journal", journal_size=32 * MIB)
        for name in "vw":
            group.add_volume(name, size=8 * group.region_size)
        fight = Fight(group, 8 * group.region_size // BLOCK)
        fight.run(SECONDS)
        assert fight.is_enough, fight.did
        final = fight.versions(fight.v, 0, fight.blocks)
        assert final == fight.last
    with pyrepl.Node.open(tmp_path / "node") as node:
        fight = Fight(node.group("db"), fight.blocks)
        assert fight.versions(fight.v, 0, fight.blocks) == final
