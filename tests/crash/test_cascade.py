"""Power cuts of the site in the middle, at its disk events: what is left of it, with the other two killed as they stand, is
a chain that ends with three equal sites (rules cascade_pass, cascade_turn)."""

import random

import pytest

from tests.engine.test_cascade import WEIGHTS, lead_elsewhere, turn
from tests.support.chain import Chain, Hop
from tests.support.simulation import World, open_site


class UnderFire(Chain):
    """``judged``: images of the middle that were opened, and with which the chain went on."""

    def __init__(self, seed: int, rate: float) -> None:
        super().__init__(seed)
        self.fire, self.rate, self.judged, self.judging = random.Random(seed ^ 0xF1FE), rate, 0, False
        self.failures: list[Exception] = []
        self.lead_node = b"A" * 16

    def watch(self) -> None:
        self.worlds[1].on_tick = self.on_tick

    def on_tick(self, what: str, path: str) -> None:
        if what == "read" or self.judging or self.failures or self.fire.random() >= self.rate:
            return
        self.judging = True
        try:
            for image in self.worlds[1].images(self.fire, 1):
                self.go_on(image)
        except Exception as error:
            error.add_note(f"seed {self.seed}, at {what} of {path}")
            self.failures.append(error)
        finally:
            self.judging = False

    def go_on(self, image: World) -> None:
        twin = object.__new__(Chain)
        twin.rng, twin.way, twin.seed, twin.fresh = random.Random(self.fire.random()), random.Random(~self.seed), self.seed, 0
        twin.worlds = [self.worlds[0].settled(), image, self.worlds[2].settled()]
        twin.truth, twin.lsn = dict(self.truth), self.lsn
        twin.session = twin.replica = None
        twin.to_b, twin.to_a, twin.replies, twin.errors = bytearray(), bytearray(), b"", []
        twin.contents = {}
        twin.hop = Hop(twin, self.seed)
        twin.a = open_site(twin.worlds[0], self.fire.randrange(1 << 30), node=self.lead_node)
        twin.b = open_site(image, self.fire.randrange(1 << 30), node=b"B" * 16)
        twin.c = open_site(twin.worlds[2], self.fire.randrange(1 << 30), node=b"C" * 16)
        twin.lsn = twin.a.window.state().end_lsn
        try:
            twin.heal()
            self.judged += 1
        finally:
            twin.close()


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_left_of_the_middle_goes_on(seed):
    one = UnderFire(seed, 0.05)
    try:
        one.pair_up()
        if seed % 3:
            one.heal()
        one.watch()
        weights = {what: weight for what, weight in WEIGHTS.items() if what != "crash"}
        for _ in range(200):
            what = one.rng.choices(list(weights), list(weights.values()))[0]
            turn(one, what)
            if one.failures:
                raise one.failures[0]
        one.worlds[1].on_tick = None
        one.heal()
        assert one.judged > 0
    finally:
        one.worlds[1].on_tick = None
        one.close()


@pytest.mark.parametrize("seed", range(4))
def test_a_fork_of_the_middle_is_cut_anywhere(seed):
    """A power cut of the middle while it is led back, with the last site before or behind the fork."""
    one = UnderFire(seed, 0.3)
    try:
        one.pair_up()
        one.heal()
        lead = lead_elsewhere(one)
        if seed % 2:
            one.hop.cut()
        for _ in range(20):
            one.random_write()
        for _ in range(100):
            one.talk(one)
            if not seed % 2:
                one.talk(one.hop)
        lead()
        one.lead_node = b"D" * 16
        for _ in range(6):
            one.random_write()
        one.watch()
        for _ in range(60):
            one.talk(one)
            one.talk(one.hop)
            if one.failures:
                raise one.failures[0]
        one.worlds[1].on_tick = None
        one.heal()
        assert one.judged > 5
    finally:
        one.worlds[1].on_tick = None
        one.close()
