"""A link and a replica over pipes that lose and chop bytes, between two real sites in simulation, against the truth."""

import pytest

from pyrepl import operations
from tests.support.pair import REGION, Pair


@pytest.fixture
def pair():
    made = []

    def make(*args, **options):
        made.append(Pair(*args, **options))
        return made[-1]
    yield make
    for one in made:
        one.close()


def test_first_synchronization(pair):
    one = pair(1)
    for _ in range(10):
        one.random_write()
    one.heal()
    assert one.link.status()["state"] == "streaming"
    assert one.b.group_id == one.a.group_id and one.b.fed_by == one.a.node_id
