"""Power loss at any disk event of a secondary: it opens, holds what it acknowledged, and is equal where it says consistent.

Events, operations, copied regions, skips, makes, drops and forks arrive and are performed in simulation; some images are
then fed by the primary as it is at that moment, killed too, and must become equal.
"""

from __future__ import annotations

import pytest

from pyrepl import items
from pyrepl.link import Link
from pyrepl.point import Point
from tests.support.far import FarPair

SEEDS = (*range(20), 224)  # 224: a fold behind which only notes stand, while everything was sent
VIEW_SEEDS = range(300, 312)
COUNT = {"images": 0, "unsettled": 0, "healed": 0, "sheltered": 0, "returned": 0, "led_back": 0, "moved": 0, "diverged": 0}
VIEWS = {"images": 0, "shown": 0, "healed": 0}


def play(seed: int, *, rate: float = 0.15, heal_rate: float = 0.2, **changes: float) -> FarPair:
    one = FarPair(seed, rate=rate, heal_rate=heal_rate)
    try:
        if changes:
            one.heal()
        one.watch()
        one.tell(200, **changes)
    finally:
        one.worlds[1].on_tick = None
        one.close()
    return one


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_image_may_be_believed(seed: int) -> None:
    one = play(seed)
    for what in COUNT:
        COUNT[what] += getattr(one, what)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", VIEW_SEEDS)
def test_views_of_a_secondary(seed: int) -> None:
    """They are what they were while it is fed, resynchronized and killed, and gone with the process."""
    one = play(seed, view=8, **{"close view": 3})
    for what in VIEWS:
        VIEWS[what] += getattr(one, what)


def test_images_were_enough(request: pytest.FixtureRequest) -> None:
    if len(request.session.items) < len(SEEDS) + len(VIEW_SEEDS) + 1:
        pytest.skip("only a part of the seeds was asked for")
    print(COUNT, VIEWS)
    assert VIEWS["images"] >= 300 and VIEWS["shown"] >= 500 and VIEWS["healed"] >= 50
    assert COUNT["sheltered"] >= 100 and COUNT["returned"] >= 20 and COUNT["led_back"] >= 10
    assert COUNT["moved"] < COUNT["diverged"] / 2, "only what one of them changed since"
    assert COUNT["images"] >= 500 and COUNT["healed"] >= 60 and COUNT["unsettled"] >= 100


class TestTheTestSees:
    """What a secondary must not get wrong, got wrong on purpose."""

    def broken(self) -> bool:
        for seed in range(100, 130):
            try:
                play(seed, heal_rate=0.3)
            except AssertionError:
                return True
        return False

    @pytest.mark.timeout(120)
    def test_a_flag_that_a_skip_does_not_clear(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = Point.take_item

        def take_item(self: Point, item: items.Item, number: int) -> None:
            before = self.consistent
            real(self, item, number)
            if isinstance(item, items.Skip):
                self.consistent = before

        monkeypatch.setattr(Point, "take_item", take_item)
        assert self.broken()

    @pytest.mark.timeout(120)
    def test_a_primary_that_forgets_what_was_folded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = Link.fold

        def forgetful(self: Link, until: int) -> None:
            real(self, until)
            for piece in self.ledger.backlog:
                piece.regions.clear()

        monkeypatch.setattr(Link, "fold", forgetful)
        assert self.broken()
