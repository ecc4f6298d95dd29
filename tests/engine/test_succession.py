"""A migration in simulation: cuts and power losses at every stage leave one site that leads, or none yet, never two."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from pyrepl import items
from pyrepl.errors import ProtocolError, Refused
from pyrepl.items import LinkInfo
from pyrepl.link import Link
from pyrepl.roles import PRIMARY, SECONDARY
from tests.support.swap import SwapPair

BACK = [LinkInfo("paris", "a:1", "async"), LinkInfo("oslo", "o:1", "sync")]
SEEN: Counter[str] = Counter()


def step_down(one: SwapPair) -> None:
    one.a.roles.hold(True)
    while one.a.window.commit_pending():
        pass
    one.a.roles.step_down("paris", BACK)
    one.link.handing_over = True


def lead(one: SwapPair) -> None:
    """What the successor's runtime does when it is asked, or finds at a start that it was."""
    one.cut()
    one.settle(one.b)
    links = [Link(one.b, info.name, address=info.address, mode=info.mode) for info in one.b.end.succession]
    one.b.roles.take_lead(alone=False, links=links)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(12))
def test_stories_of_migrations(pair, seed):
    """Both directions, cut and crashed at random: the one that was asked leads in the end, and nothing is copied."""
    one, rng = pair(seed), random.Random(seed)
    for _ in range(4):
        for _ in range(rng.randrange(4)):
            one.random_write()
            one.random_operation()
        one.heal()
        lsn, before = one.lsn, one.b.end.lineage
        step_down(one)
        for _ in range(500):
            assert (one.a.role, one.b.role) in ((SECONDARY, SECONDARY), (SECONDARY, PRIMARY))
            if one.b.role == PRIMARY and rng.random() < 0.15:
                break
            what = rng.choices(("talk", "lead", "cut", "crash here", "crash there"), (20, 4, 2, 1, 1))[0]
            if what == "talk" and one.a.successor:
                if one.session is None:
                    one.connect()
                one.send()
                one.deliver(rng.choice((50, 10000)))
                if rng.random() < 0.5:
                    one.acknowledge()
                one.hear()
            elif what == "lead" and one.b.role == SECONDARY and one.b.end.succession is not None:
                assert one.b.end.succession == BACK
                lead(one)
            elif what == "cut":
                one.cut()
            elif what.startswith("crash"):
                one.crash(what == "crash there")
                if one.a.successor:
                    one.link.handing_over = True
            else:
                continue
            SEEN[what] += 1
            if one.a.successor:
                assert list(one.a.links) == ["paris"] and one.a.end.succession == BACK
                if one.link.handed_over or one.link.leads_there:
                    SEEN["handed over" if one.link.handed_over else "leads there"] += 1
                    one.cut()
                    one.a.roles.end_succession()
                    assert one.b.end.succession == BACK or one.b.role == PRIMARY
        else:
            raise AssertionError("nobody leads in the end")
        assert one.b.end.lineage.starts_with(before) and list(one.b.links) == ["paris", "oslo"]
        one.cut()
        one.exchange()
        one.a.detach("oslo")
        one.lead()
        assert one.lsn == lsn
        one.heal()
        assert one.link.bytes_sent["copied"] == 0 and not one.b.successor and not one.b.links


def test_stories_were_enough(request):
    if len(request.session.items) < 12:
        pytest.skip("only a part of the seeds was asked for")
    for what in ("cut", "crash here", "crash there", "lead", "handed over", "leads there"):
        assert SEEN[what] >= 5, SEEN


def test_power_loss_while_a_primary_steps_down_for_another(pair):
    one = pair(60)
    one.random_write()
    one.heal()

    def judge(site):
        if site.role == PRIMARY:
            assert not site.successor and site.end.succession is None
        else:
            assert site.successor == "paris" and list(site.links) == ["paris"] and site.end.succession == BACK
        return site.role

    seen = one.watched(0, lambda: step_down(one), judge)
    assert seen[PRIMARY] and seen[SECONDARY], seen


def test_power_loss_while_a_successor_hears_and_leads(pair):
    one = pair(61)
    one.random_write()
    one.heal()
    step_down(one)

    def judge(site):
        if site.role == PRIMARY:
            assert list(site.links) == ["paris", "oslo"] and list(site.remembered) == [one.ids[0]]
            assert [link.address for link in site.links.values()] == ["a:1", "o:1"]
            return "leads"
        assert not site.links and site.end.succession in (None, BACK)
        assert (site.end.succession is None) == (not site.end.handed_over)
        return "was asked" if site.end.succession else "has not heard"

    def change():
        for _ in range(100):
            one.send()
            one.deliver()
            one.acknowledge()
            one.hear()
            if one.link.handed_over:
                break
        lead(one)

    seen = one.watched(1, change, judge)
    assert all(seen[what] for what in ("has not heard", "was asked", "leads")), seen


def test_a_checkpoint_keeps_what_a_successor_was_asked(pair):
    one = pair(62)
    step_down(one)
    for _ in range(100):
        one.send()
        one.deliver()
        one.acknowledge()
        one.hear()
        if one.link.handed_over:
            break
    one.settle(one.b)
    one.b.checkpoint()
    one.crash(1)
    assert one.b.here.succession == BACK == one.b.end.succession


def test_the_lead_can_be_taken_back_before_the_other_site_has_heard(pair):
    one = pair(63)
    step_down(one)
    one.crash(0)
    with pytest.raises(Refused, match="asks the site of link 'paris'"):
        one.a.roles.take_lead(alone=False)
    one.a.roles.take_lead(alone=True)
    assert one.a.role == PRIMARY and not one.a.links and not one.a.successor and one.a.end.succession is None
    one.lead()
    one.random_write()
    one.heal()


def test_whoever_follows_asks_nobody_any_more(pair):
    """The successor led and links back before the old primary has heard that it was heard."""
    one = pair(64)
    step_down(one)
    for _ in range(100):
        one.send()
        one.deliver()
        if one.b.end.succession is not None:
            break
    lead(one)
    assert one.a.successor == "paris"
    one.exchange()
    one.lead()
    one.heal()
    assert not one.b.successor and not one.b.links and one.b.end.succession is None
    one.crash(1)
    assert not one.b.successor and not one.b.links


@pytest.mark.parametrize("wrong", [
    {"succession": [["../etc", "a:1", "async"]]}, {"succession": [["paris", "a", "async"]]},
    {"succession": [["paris", "a:1", "both"]]}, {"succession": [["paris", "a:1", "async", -1]]},
    {"succession": [["paris", "a:1", "async", 0, 5.0, 0, 0.0, 1]]},
    {"succession": [["paris", "a:1", "async"]] * 65}, {"succession": 1},
])
def test_a_succession_that_cannot_be(wrong):
    import msgspec

    with pytest.raises(ProtocolError):
        items.decode(msgspec.msgpack.encode({"item": "handover", **wrong}))
    assert items.decode(msgspec.msgpack.encode({"item": "handover"})) == items.Handover()
    assert items.decode(items.encode(items.Handover(BACK))) == items.Handover(BACK)
