"""Plug-ins as users write them, and how tests make them known: a distribution of nothing but entry points."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyrepl

STARTED, GO_ON = threading.Event(), threading.Event()  # of Slow


@dataclass
class Probe(pyrepl.Operation):
    """Changes nothing; its digest is that of a store."""

    store: str

    def footprint(self) -> pyrepl.Footprint:
        return pyrepl.Footprint(reads=(self.store,))

    def perform(self, stores: Mapping[str, pyrepl.WorkStore]) -> None:
        store, state = stores[self.store], hashlib.sha256()
        for offset in range(0, store.size, 1 << 20):
            state.update(store.read(offset, min(1 << 20, store.size - offset)))
        self._digest = state.digest()

    def digest(self) -> bytes:
        return self._digest


@dataclass
class Invert(pyrepl.Operation):
    """Turns every bit of a range of bytes, in steps that fit nothing."""

    store: str
    offset: int
    length: int
    step: int = 10007

    def footprint(self) -> pyrepl.Footprint:
        return pyrepl.Footprint(writes=(self.store,))

    def perform(self, stores: Mapping[str, pyrepl.WorkStore]) -> None:
        store, end = stores[self.store], self.offset + self.length
        for at in range(self.offset, end, self.step):
            data = store.read(at, min(self.step, end - at))
            store.write(at, bytes(byte ^ 255 for byte in data))


@dataclass
class Fold(pyrepl.Operation):
    """A region of ``target`` becomes the exclusive or of two regions of ``source``."""

    target: str
    source: str
    region: int = 0

    def footprint(self) -> pyrepl.Footprint:
        size = 65536
        return pyrepl.Footprint(reads=[(self.source, (0, 2 * size))], writes=[(self.target, (self.region * size, size))])

    def perform(self, stores: Mapping[str, pyrepl.WorkStore]) -> None:
        data = stores[self.source].read(0, 131072)
        one, other = int.from_bytes(data[:65536]), int.from_bytes(data[65536:])
        stores[self.target].write(self.region * 65536, (one ^ other).to_bytes(65536))


@dataclass
class Fails(pyrepl.Operation):
    """Writes, and then comes to nothing."""

    store: str
    how: str = "raise"

    def footprint(self) -> pyrepl.Footprint:
        return pyrepl.Footprint(writes=[(self.store, (0, 65536))])

    def perform(self, stores: Mapping[str, pyrepl.WorkStore]) -> None:
        store = stores[self.store]
        store.write(0, b"half done" * 100)
        if self.how == "outside":
            store.write(65536, b"x")
        elif self.how == "exit":
            raise SystemExit("out")
        elif self.how == "raise":
            raise ValueError("a bad day")

    def digest(self) -> bytes:
        return b"" if self.how != "digest" else b"x" * 65


@dataclass
class Dice(pyrepl.Operation):
    """Is not the same at any two sites: what it writes, or what it says."""

    store: str
    what: str = "writes"

    def footprint(self) -> pyrepl.Footprint:
        return pyrepl.Footprint(writes=[(self.store, (65536, 131072))])

    def perform(self, stores: Mapping[str, pyrepl.WorkStore]) -> None:
        data = os.urandom(70000) if self.what == "writes" else bytes(70000)
        stores[self.store].write(65536 + 17, data)

    def digest(self) -> bytes:
        return os.urandom(8) if self.what == "says" else b""


@dataclass
class Slow(pyrepl.Operation):
    """Waits for the test, at most as long as it has; and then still uses what it was given."""

    store: str
    seconds = 6.0

    def footprint(self) -> pyrepl.Footprint:
        return pyrepl.Footprint(writes=(self.store,))

    def perform(self, stores: Mapping[str, pyrepl.WorkStore]) -> None:
        stores[self.store].write(0, b"slow")
        STARTED.set()
        GO_ON.wait(60)
        stores[self.store].write(4, b"ly")


RUNS: list[str] = []  # of Tires


@dataclass
class Tires(pyrepl.Operation):
    """Is quick the first time, and too slow from then on."""

    store: str
    seconds = 1.0

    def footprint(self) -> pyrepl.Footprint:
        return pyrepl.Footprint(writes=[(self.store, (0, 65536))])

    def perform(self, stores: Mapping[str, pyrepl.WorkStore]) -> None:
        RUNS.append(self.store)
        stores[self.store].write(0, b"tired")
        if len(RUNS) > 1:
            GO_ON.wait(60)


MEMBERS = 8
TOGETHER = threading.Barrier(MEMBERS)  # of Meets


@dataclass
class Meets(pyrepl.Operation):
    """Copies a store over another, and is done when MEMBERS of them are under way at once."""

    target: str
    source: str
    seconds = 30.0

    def footprint(self) -> pyrepl.Footprint:
        return pyrepl.Footprint(reads=[self.source], writes=[self.target])

    def perform(self, stores: Mapping[str, pyrepl.WorkStore]) -> None:
        target, source = stores[self.target], stores[self.source]
        TOGETHER.wait(20)
        target.write(0, source.read(0, source.size))
        TOGETHER.wait(20)


@dataclass
class Unknown(pyrepl.Operation):
    """No entry point names it."""

    store: str

    def footprint(self) -> pyrepl.Footprint:
        return pyrepl.Footprint(reads=(self.store,))


class Forgetful(pyrepl.Operation):
    """Cannot be made again from what ``vars`` says."""

    def __init__(self, store: str) -> None:
        self.store = store
        self.more = os.urandom(4)

    def footprint(self) -> pyrepl.Footprint:
        return pyrepl.Footprint(reads=(self.store,))


@dataclass
class Footless(pyrepl.Operation):
    """Says nothing of what it reads and writes."""

    what: object = None

    def footprint(self) -> pyrepl.Footprint:
        return self.what  # type: ignore[return-value]


KNOWN = (Probe, Invert, Fold, Fails, Dice, Slow, Tires, Meets, Forgetful, Footless)


def install(folder: Path) -> Path:
    """A folder that, on Python's path, makes them known."""
    info = folder / "plugin_cases-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-cases\nVersion: 1.0\n")
    lines = [f"{each.__name__.lower()} = {each.__module__}:{each.__qualname__}" for each in KNOWN]
    (info / "entry_points.txt").write_text("[pyrepl.operations]\n" + "\n".join(lines) + "\nbroken = no_such_module:Thing\n")
    return folder
