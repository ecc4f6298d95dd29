"""A secondary with a link of its own, in simulation, against the truth: stories with cuts of each link and power cuts of
each site (model, "Cascade")."""

from collections import Counter

import pytest

from pyrepl import operations
from tests.support.chain import Chain
from tests.support.pair import REGION

WEIGHTS = {"write": 20, "operate": 5, "talk": 12, "talk on": 12, "cut": 1, "cut on": 1, "crash": 0.7, "checkpoint": 2, "fold": 0.7,
           "fold on": 0.4, "doubt": 0.5, "apply": 4, "check": 3}
SEEN = Counter()


@pytest.fixture
def chain():
    made = []

    def make(*args, **options):
        made.append(Chain(*args, **options))
        return made[-1]
    yield make
    for one in made:
        one.close()


def fold(site):
    for link in site.followers:
        link.fold(site.window.state().applied_position)


def turn(one, what):
    rng = one.rng
    match what:
        case "write":
            one.random_write()
        case "operate":
            one.random_operation()
        case "talk":
            one.talk(one, rng.choice((1, 5, 20)))
        case "talk on":
            one.talk(one.hop, rng.choice((1, 5, 20)))
        case "cut":
            one.cut()
        case "cut on":
            one.hop.cut()
        case "crash":
            one.crash(rng.randrange(3))
        case "checkpoint":
            rng.choice((one.a, one.b, one.c)).checkpoint()
        case "fold" if one.session is None:
            one.settle(one.a)
            fold(one.a)
        case "fold on":
            one.settle(one.b)
            fold(one.b)
        case "doubt" if one.session is None:
            one.link.add_all()
        case "apply":
            one.settle(one.a)
        case "check":
            one.check()
            assert one.differs_beyond() == []


@pytest.mark.parametrize("seed", range(40))
def test_stories_end_with_three_equal_sites(chain, seed):
    one = chain(seed)
    for _ in range(5):
        one.random_write()
    one.pair_up()
    if seed % 3:
        one.heal()
    weights = {what: weight * one.rng.choice([0.2, 1, 1, 3]) for what, weight in WEIGHTS.items()}
    for _ in range(300):
        what = one.rng.choices(list(weights), list(weights.values()))[0]
        try:
            turn(one, what)
        except Exception as error:
            error.add_note(f"seed {seed}, at {what}")
            raise
    one.heal()
    SEEN["skips"] += "skip" in str(one.c.here.lineage) or one.hop.link.bytes_sent["items"] > 0
    assert [error for error in one.hop.errors if "tries again" not in error] == []


def test_what_the_middle_is_sent_beside_the_order_reaches_the_last(chain):
    """The first link overflows; what is skipped to the middle is skipped to the last one, and copied there once."""
    one = chain(1)
    one.pair_up()
    one.heal()
    one.cut()
    one.write(1, 0, b"x" * REGION)
    one.write(1, 3 * REGION, b"y" * 512)
    one.settle(one.a)
    fold(one.a)
    before = one.hop.link.bytes_sent["copied"]
    one.heal()
    assert REGION * 2 <= one.hop.link.bytes_sent["copied"] - before < REGION * 3


def test_an_operation_is_performed_at_the_last_site_as_itself(chain):
    one = chain(2)
    one.pair_up()
    one.heal()
    before = one.hop.link.bytes_sent["copied"]
    one.operate(operations.snapshot(one.a.end.catalog, ["a"], ["s"]))
    one.write(1, 0, b"z" * 512)
    one.operate(operations.restore(one.a.end.catalog, "a", "s", None, None, region_size=REGION))
    one.heal()
    assert one.hop.link.bytes_sent["copied"] == before and one.hop.link.bytes_sent["operations"] > 0
