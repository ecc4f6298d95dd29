"""A primary that asks before it leads, in simulation: it begins no generation, and appends nothing, before that."""

from __future__ import annotations

import pytest

from pyrepl.errors import Refused
from pyrepl.roles import PRIMARY
from pyrepl.site import Site
from tests.support.simulation import entropy_of
from tests.support.swap import SwapPair


@pytest.fixture
def one():
    pair = SwapPair(70)
    pair.heal()
    yield pair
    pair.close()


def started(one: SwapPair) -> Site:
    """The primary again, after a power loss, as a node opens it that asks."""
    one.cut()
    one.a.abandon()
    one.worlds[0] = one.rng.choice(list(one.worlds[0].images(one.rng, 2)))
    world = one.worlds[0]
    one.a = Site.open(world.device("journal"), node_id=one.ids[0], placement=world, entropy=entropy_of(7), ask=True)
    one.lsn = one.a.window.state().end_lsn
    return one.a


def test_nothing_is_appended_before_it_leads(one):
    before = one.a.end.lineage
    for _ in range(3):
        site = started(one)
        assert site.role == PRIMARY and site.roles.asking and not site.accepts and site.end.lineage == before
        with pytest.raises(PermissionError):
            site.window.write(1, 0, bytes(512))
        with pytest.raises(Refused, match="does not lead yet"):
            site.attach(one.link)
        while site.step():
            pass
        site.checkpoint()
    one.connect()
    one.deliver()
    assert not one.link.answered
    one.hear()
    assert one.link.answered and one.link.is_open
    one.a.roles.activate()
    one.cut()  # the connection has told the lineage as it was
    one.a.roles.hold(False)
    assert len(one.a.end.lineage) == len(before) + 1 and one.a.end.lineage.starts_with(before)
    one.random_write()
    one.heal()
    one.a.roles.activate()  # harmless
    assert len(one.a.end.lineage) == len(before) + 1


def test_whoever_took_over_does_not_answer(one):
    site = started(one)
    one.b.roles.take_lead(alone=True)
    one.connect()
    one.deliver()
    assert not one.link.answered and "is a primary on this node" in one.errors[-1]
    site.roles.step_down()
    assert not site.roles.asking and site.role != PRIMARY


def test_a_group_without_links_asks_nobody(one):
    one.cut()
    one.a.detach("paris")
    assert started(one).accepts
