"""What the stores of a group must hold at every LSN: the naive system, told by callers what they did and which LSN they got.

A block of 4096 bytes holds its stamp and its own number, over and over, so that a store's content is one number a block,
and a block that is torn or stands in the wrong place is seen. Nothing here asks the package what it thinks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

BLOCK = 4096
REGION = 64 * 1024
Stores = dict[str, np.ndarray]
Step = Callable[[Stores], None]


def content(stamp: int, first: int, count: int) -> bytes:
    """Of ``count`` blocks from block ``first`` on, each with this stamp."""
    words = np.empty((count, BLOCK // 16, 2), dtype="<u8")
    words[:, :, 0] = stamp
    words[:, :, 1] = np.arange(first, first + count, dtype="<u8")[:, None]
    return words.tobytes()


def stamps(data: bytes) -> np.ndarray:
    """The stamp of each block; all ones where a block is torn or another's. Zeros have stamp 0."""
    words = np.frombuffer(data, dtype="<u8").reshape(-1, BLOCK // 16, 2)
    found = words[:, 0, 0].copy()
    whole = (words[:, :, 0] == found[:, None]).all(axis=1)
    number = np.arange(len(words), dtype="<u8")[:, None]
    placed = (words[:, :, 1] == number).all(axis=1) | ((found == 0) & (words[:, :, 1] == 0).all(axis=1))
    found[~(whole & placed)] = np.iinfo(np.uint64).max
    return found


def blocks(offset: int, length: int) -> slice:
    """Bytes as a slice of blocks."""
    return slice(offset // BLOCK, (offset + length) // BLOCK)


class Model:
    """The history, in the order of LSNs, whoever reported first. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps: dict[int, tuple[str, Step]] = {}

    def did(self, lsn: int, what: str, step: Step) -> None:
        """What the event at this LSN does to the stores."""
        with self._lock:
            assert lsn not in self._steps, f"LSN {lsn} was given twice: {what} and {self._steps[lsn][0]}"
            self._steps[lsn] = (what, step)

    def wrote(self, lsn: int, store: str, offset: int, length: int, stamp: int) -> None:
        where = blocks(offset, length)

        def step(stores: Stores) -> None:
            stores[store][where] = stamp

        self.did(lsn, f"write {store} {offset} {length}", step)

    def copied(self, lsn: int, target: str, source: str, offset: int, length: int | None) -> None:
        where = slice(None) if length is None else blocks(offset, length)

        def step(stores: Stores) -> None:
            stores[target][where] = stores[source][where]

        self.did(lsn, f"copy {target} := {source}", step)

    def made(self, lsn: int, stores: dict[str, str | int]) -> None:
        """New stores: of a number of bytes, all zeros, or as another store is."""

        def step(known: Stores) -> None:
            for name, like in stores.items():
                known[name] = known[like].copy() if isinstance(like, str) else np.zeros(like // BLOCK, dtype="<u8")

        self.did(lsn, f"make {sorted(stores)}", step)

    def resized(self, lsn: int, store: str, size: int) -> None:
        def step(known: Stores) -> None:
            old, known[store] = known[store], np.zeros(size // BLOCK, dtype="<u8")
            kept = min(len(old), len(known[store]))
            known[store][:kept] = old[:kept]

        self.did(lsn, f"resize {store}", step)

    def deleted(self, lsn: int, store: str) -> None:
        def step(known: Stores) -> None:
            del known[store]

        self.did(lsn, f"delete {store}", step)

    def nothing(self, lsn: int, what: str) -> None:
        """An event that changes nothing: a mark."""
        self.did(lsn, what, lambda known: None)

    def copy(self) -> Model:
        """An independent one that knows the same now."""
        other = Model()
        with self._lock:
            other._steps = dict(self._steps)
        return other

    def forget_after(self, lsn: int) -> None:
        """What came after this LSN was lost with its site; others get those LSNs."""
        with self._lock:
            for later in [number for number in self._steps if number > lsn]:
                del self._steps[later]

    @property
    def order(self) -> list[tuple[int, str]]:
        with self._lock:
            return sorted((lsn, what) for lsn, (what, _) in self._steps.items())

    def walk(self, lsns: Iterable[int]) -> Iterator[tuple[int, Stores]]:
        """The stores at each of these LSNs, in their order. Every event up to there must be known."""
        with self._lock:
            history = sorted((lsn, step) for lsn, (_, step) in self._steps.items())
        stores: Stores = {}
        place = 0
        for wanted in sorted(set(lsns)):
            while place < len(history) and history[place][0] <= wanted:
                lsn, step = history[place]
                assert lsn == place + 1, f"nobody reported the event at LSN {place + 1}"
                step(stores)
                place += 1
            assert place == wanted, f"LSN {wanted}: nobody reported the events after {place}"
            yield wanted, stores

    def at(self, lsn: int) -> Stores:
        """The stores at one LSN."""
        return next(iter(self.walk([lsn])))[1]


def differences(store: Any, wanted: np.ndarray) -> str:
    """Where a store (volume, snapshot or view) is not what it must be; empty if it is."""
    if store.size != len(wanted) * BLOCK:
        return f"{store.name} is {store.size} bytes long and must be {len(wanted) * BLOCK}"
    step, wrong = 1024, []
    for first in range(0, len(wanted), step):
        part = wanted[first:first + step]
        words = np.frombuffer(store.read(first * BLOCK, len(part) * BLOCK), dtype="<u8").reshape(-1, BLOCK // 16, 2)
        number = np.where(part == 0, 0, np.arange(first, first + len(part), dtype="<u8"))
        good = (words[:, :, 0] == part[:, None]).all(axis=1) & (words[:, :, 1] == number[:, None]).all(axis=1)
        wrong += [(first + int(n), int(words[n, 0, 0]), int(part[n])) for n in np.flatnonzero(~good)]
    return f"{store.name}: {len(wrong)} blocks, (block, stamp, wanted) {wrong[:4]}" if wrong else ""
