"""A plug-in in simulation: what it writes is made of all that it reads, so whoever reads something else is found out.

The same pure function drives the engine and the naive systems beside it. Decides nothing about the engine.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyrepl import operations
from pyrepl.catalog import Catalog
from pyrepl.operations import Perform

Writes = list[tuple[int, int, bytes]]


def work(operation: Perform, region: int, shown: Callable[[int, int, int], bytes]) -> tuple[Writes, bytes]:
    """(store, offset, data) of what it writes, and its digest; ``shown``: (store, offset, length) -> bytes."""
    given = operations.decode_arguments(operation.arguments)
    state = hashlib.sha256(given["salt"])
    for store, first, count in (*operation.reads, *operation.writes):
        state.update(shown(store, first * region, count * region))
    rng, writes = random.Random(state.digest()), Writes()
    for store, first, count in operation.writes:
        for _ in range(given["spots"]):
            length = rng.choice((1, 7, 512, region // 2, region, region + 100))
            offset = rng.randrange(count * region)
            length = min(length, count * region - offset)
            writes.append((store, first * region + offset, rng.randbytes(1) * length))
    return writes, state.digest()[:8]


def perform_on(operation: Any, region: int, stores: dict[int, bytes]) -> None:
    """Its plug-ins, the naive way."""
    before = dict(stores)
    for one in operations.works(operation):
        if operations.decode_arguments(one.arguments)["fails"]:
            continue
        for store, offset, data in work(one, region, lambda s, o, n: before[s][o : o + n])[0]:
            stores[store] = stores[store][:offset] + data + stores[store][offset + len(data) :]


class Run:
    """One that is over when it was asked for the ``patience``-th time."""

    def __init__(self, patience: int) -> None:
        self.error, self.said = "", b""
        self.ended = False
        self._patience = patience

    def is_over(self) -> bool:
        self._patience -= 1
        return self._patience <= 0

    def wait(self) -> None:
        self._patience = 0

    def end(self) -> None:
        self.ended = True


class Plugs:
    """The plug-in ``mix``, as a site has it. ``wrong`` says of a salt what this site does otherwise than another: "" is
    nothing, "missing", "fails", "says" another digest, "writes" something else."""

    def __init__(self, seed: int, wrong: Callable[[bytes], str] = lambda salt: "") -> None:
        self.dice = random.Random(seed)
        self.wrong = wrong
        self.begun = 0

    def begin(self, operation: Perform, lsn: int, benches: Mapping[str, Any]) -> Run:
        self.begun += 1
        run = Run(self.dice.choice((0, 0, 1, 3)))
        given = operations.decode_arguments(operation.arguments)
        wrong = self.wrong(given["salt"])
        if wrong == "missing":
            run.error = "there is no plug-in 'mix' here"
            return run
        by_store = {bench.store: bench for bench in benches.values()}
        region = next(iter(by_store.values()))._region if by_store else 1
        writes, run.said = work(operation, region, lambda s, o, n: by_store[s].read(o, n))
        if wrong == "writes" and writes:
            store, offset, data = writes[-1]
            writes[-1] = (store, offset, bytes(255 - byte for byte in data))
        for at, (store, offset, data) in enumerate(writes):
            by_store[store].write(offset, data)
            if given["fails"] or wrong == "fails":
                run.error = "it fails on purpose"
                return run
            assert by_store[store].read(offset, len(data)) == data, at
        if given["fails"]:
            run.error = "it fails on purpose"
        if wrong == "says":
            run.said = b"otherwise"
        return run


def random_work(rng: random.Random, catalog: Catalog, region: int, names: Sequence[str] = ()) -> Perform:
    """A plug-in on some of these stores (else of all): whole ones, or a range."""
    stores = list(names) or [store.name for store in catalog]

    def some(most: int) -> list[tuple[str, int | None, int | None]]:
        found: list[tuple[str, int | None, int | None]] = []
        for name in rng.sample(stores, min(len(stores), rng.randrange(most + 1))):
            regions = catalog.by_name(name).size // region
            if rng.random() < 0.5:
                found.append((name, None, None))
            else:
                first = rng.randrange(regions)
                found.append((name, first * region, rng.randrange(1, regions - first + 1) * region))
        return found

    given = {"salt": rng.randbytes(4), "fails": rng.random() < 0.1, "spots": rng.choice((1, 3, 8))}
    reads, writes = some(2), some(2)
    return operations.perform(
        catalog, "mix", 1, operations.encode_arguments(given), reads, writes, region_size=region)
