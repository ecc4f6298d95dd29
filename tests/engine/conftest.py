"""What tests of the engine share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.swap import SwapPair


@pytest.fixture
def pair() -> Iterator[Callable[[int], SwapPair]]:
    """``pair(seed)``: two simulated sites that can swap their roles, synchronized; closed with the test."""
    made: list[SwapPair] = []

    def make(seed: int) -> SwapPair:
        made.append(SwapPair(seed))
        made[-1].heal()
        return made[-1]

    yield make
    for one in made:
        one.close()
