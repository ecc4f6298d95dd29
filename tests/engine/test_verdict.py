"""What a verification found different at a secondary and did not repair: the secondary is told, and when it is over."""

from __future__ import annotations

import random

import pytest

from pyrepl._core import view
from pyrepl.errors import Refused
from pyrepl.items import FoundDifferent
from pyrepl.ledger import Ledger, Verdict
from pyrepl.link import Link
from pyrepl.roles import PRIMARY, SECONDARY
from tests.support.chain import Chain
from tests.support.pair import REGION
from tests.support.swap import SwapPair

CHANCES = {"write": 20, "operate": 6, "talk": 15, "cut": 4, "crash": 3, "checkpoint": 3, "fold": 1, "swap": 3, "takeover": 4}
SOME = FoundDifferent(1, 1.0, REGION)


def judge(one: SwapPair, found: FoundDifferent | None, *, durable: bool = True) -> None:
    """As a verification that is over."""
    one.link.ledger.judge(found)
    if durable:
        one.a.checkpoint()


def heal(one: SwapPair) -> None:
    """Both are equal, and what there is to say was said."""
    one.heal()
    converse(one)


def converse(one: SwapPair, turns: int = 30) -> None:
    """What there is to say arrives, and is acknowledged; no checkpoint is taken for it."""
    for _ in range(turns):
        one.send()
        one.deliver()
        one.acknowledge()
        one.hear()


def test_it_is_told_when_it_is_durable_and_outlives_a_crash(pair):
    """A primary that lost it after a crash would deny it, and the secondary would believe that."""
    one = pair(1)
    one.a.checkpoint()  # none is due for anything else
    judge(one, SOME, durable=False)  # rule verdict_told
    converse(one)
    assert one.b.end.different is None
    one.a.checkpoint()
    converse(one)
    assert one.b.end.different == SOME and one.b.end.consistent and one.link.status()["synced"]
    one.crash(1)
    assert one.b.end.different == SOME
    one.settle(one.b)
    one.b.checkpoint()
    one.crash(1)
    assert one.b.here.different == one.b.end.different == SOME
    one.crash(0)
    assert one.link.ledger.verdict == Verdict(SOME, judged=True)
    heal(one)
    assert one.b.end.different == SOME


def test_it_leads_only_when_it_is_told_to_all_the_same(pair):
    one = pair(2)
    judge(one, SOME)
    heal(one)
    one.cut()
    with pytest.raises(Refused, match="in 4 KiB, as the verification at LSN 1 found at 1970") as caught:
        one.b.roles.take_lead(alone=True)
    assert caught.value.reason == "different" and one.b.role == SECONDARY
    one.b.roles.take_lead(alone=True, force=True)
    assert one.b.role == PRIMARY and one.b.end.different is None
    one.exchange()
    one.lead()
    one.step_down(one.b)
    one.b.forget_links()
    heal(one)
    assert one.link.ledger.found_different == one.b.end.different == SOME, "each differs from the other"


def test_a_primary_that_asks_it_to_lead_has_its_word(pair):
    """People said so there, with force."""
    one = pair(3)
    judge(one, SOME)
    heal(one)
    one.a.roles.hold(True)
    while one.a.window.commit_pending():
        pass
    one.a.roles.step_down("paris", [])
    one.tell()
    assert one.b.end.succession is not None
    one.b.roles.take_lead(alone=False)
    assert one.b.role == PRIMARY


@pytest.mark.parametrize("seed", range(8))
def test_it_is_over_only_behind_all_that_repaired_it(pair, seed):
    """At every disk event of the secondary: an image that says nothing of a difference holds none."""
    one = pair(10 + seed)
    where = one.b.stores.device(one.b.shelf.places[1].slot)
    for region in range(6):
        where.write(region * REGION, one.rng.randbytes(REGION))
    where.flush()
    judge(one, SOME)
    converse(one)
    assert one.b.end.different == SOME
    truth = one.truth[one.lsn][1]

    def said(site):
        one.settle(site)
        same = view.read(site.window, site.stores, 1, 0, len(truth)) == truth
        assert same or site.end.different == SOME, f"seed {one.seed}: it says that it is equal, and is not"
        assert site.end.different == SOME or site.end.consistent
        return "told" if site.end.different == SOME else "over"

    def repair():
        one.link.add_all(1)  # as `verify` enters what it finds
        one.link.ledger.await_save()
        one.link.stream.will_be_consistent = False
        judge(one, None)
        heal(one)

    seen = one.watched(1, repair, said)
    assert seen["told"] and one.b.end.different is None and one.b.end.consistent, seen


def test_who_knows_nothing_believes_the_secondary(pair):
    """A link that is removed takes its word along; the next hears of it from the secondary, which keeps it."""
    one = pair(4)
    judge(one, SOME)
    heal(one)
    one.cut()
    one.a.detach("paris")
    one.a.attach(Link(one.a, "paris", address="b:1"))
    assert one.link.ledger.verdict == Verdict(None, judged=False)
    heal(one)
    assert one.link.ledger.found_different == one.b.end.different == SOME
    one.crash(0)
    heal(one)
    assert one.link.ledger.found_different == one.b.end.different == SOME


def test_a_word_that_did_not_arrive_comes_with_the_next_connection(pair):
    one = pair(5)
    judge(one, SOME)
    heal(one)
    one.cut()
    judge(one, None)
    one.crash(0)
    assert one.b.end.different == SOME
    heal(one)
    assert one.b.end.different is None and one.link.ledger.found_different is None


def test_who_goes_back_to_a_protective_snapshot_takes_it_along(pair):
    one = pair(6)
    judge(one, SOME)
    heal(one)
    one.cut()
    for _ in range(4):
        one.random_write()
    one.settle(one.a)
    one.fold()
    one.a.checkpoint()
    one.connect()
    for _ in range(200):
        if not one.b.end.consistent:
            break
        one.flush()
        one.send()
        one.deliver()
        one.acknowledge()
        one.hear()
    assert one.b.protective.snapshot is not None and one.b.end.different == SOME
    one.take_over(crash=False)
    assert one.gone_back == 1
    heal(one)
    assert one.link.ledger.found_different == one.b.end.different == SOME


def test_a_secondary_of_a_secondary_is_not_told():
    """It is of the two that were compared; and nothing of the last site is less for it."""
    one = Chain(8)
    try:
        one.pair_up()
        one.heal()
        copied = one.hop.link.bytes_sent["copied"]
        one.link.ledger.judge(SOME)
        one.a.checkpoint()
        for _ in range(20):
            one.talk(one)
            one.talk(one.hop)
        assert one.b.end.different == SOME
        one.heal()
        one.write(1, 0, b"z" * 512)
        one.heal()
        assert one.b.end.different == SOME and one.c.end.different is None and one.c.end.consistent
        assert one.hop.link.bytes_sent["copied"] == copied and one.hop.link.status()["synced"]
        one.b.roles.take_lead(alone=True, force=True)
        assert one.hop.link.ledger.found_different == SOME, "whoever leads with it differs from all others"
        one.b.checkpoint()
        for _ in range(20):
            one.talk(one.hop)
        assert one.c.end.different == SOME
    finally:
        one.close()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(12))
def test_stories(seed):
    """What both were told is known to whoever follows, and to whoever leads, over cuts, crashes, swaps and takeovers."""
    one, dice = SwapPair(seed), random.Random(seed)
    bad = False
    try:
        heal(one)
        for number in range(40):
            what = dice.choice(("story",) * 6 + ("find", "equal"))
            if what == "story":
                one.again_and_again(CHANCES, 1)  # whoever leads next has heard
                heal(one)
            elif what == "find":
                judge(one, FoundDifferent(one.lsn, float(number), REGION))
                heal(one)
                bad = True
            elif what == "equal":
                judge(one, None)
                heal(one)
                bad = False
            if bad:
                assert one.b.end.different is not None and one.link.ledger.found_different == one.b.end.different, f"{seed}"
            else:
                assert one.b.end.different is None and one.link.ledger.found_different is None, f"{seed}"
    finally:
        one.close()


class TestTheTestSees:
    """What must not be forgotten, forgotten on purpose."""

    def test_a_word_that_is_told_before_it_is_durable(self, pair, monkeypatch):
        one = pair(7)
        monkeypatch.setattr(Ledger, "judge", lambda self, found: setattr(self, "verdict", Verdict(found, judged=True)))
        judge(one, SOME, durable=False)
        converse(one)
        assert one.b.end.different == SOME
        one.crash(0)
        assert one.link.ledger.verdict.found is None
