"""What the claims share: a rig for each, a seed that is printed, and how often a scenario is repeated."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.rig import MIB, Rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """``rig(v=bytes, ...)``: two nodes whose group has these volumes, linked and synchronized; closed with the test."""
    with ExitStack() as stack:
        def make(*, seed: int | None = None, place: Any = None, journal: int = 128 * MIB, mode: str = "async",
                 synced: bool = True, ordering: str = "relaxed", **volumes: int) -> Rig:
            chosen = random.SystemRandom().randrange(1 << 30) if seed is None else seed
            return stack.enter_context(Rig(tmp_path / "rig", volumes, seed=chosen, place=place, journal=journal, mode=mode,
                                           synced=synced, ordering=ordering))
        yield make


@pytest.fixture
def times(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """``times(full)``: the full count with --long, else a tenth of it."""
    long = request.config.getoption("--long")
    return lambda full: full if long else -(-full // 10)


@pytest.fixture
def size(request: pytest.FixtureRequest) -> int:
    """Of the volume v where bytes are counted: 256 MiB with --long, else 32 MiB."""
    return (256 if request.config.getoption("--long") else 32) * MIB
