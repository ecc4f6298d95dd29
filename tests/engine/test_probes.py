"""Probes of a verification in simulation: what a hostile primary or secondary sends is refused, stories with crashes."""

from __future__ import annotations

import random

import pytest

from pyrepl import operations
from pyrepl.errors import ProtocolError
from pyrepl.probes import Asked, Probing
from pyrepl.protocol.messages import MOST_ASKED, Digests, Forget, Probe
from tests.support.pair import REGION, Pair

TOKEN = bytes(range(16))


def synced(seed: int) -> Pair:
    pair = Pair(seed)
    pair.write(1, 0, b"x" * REGION)
    pair.heal()
    return pair


def verify(pair: Pair) -> Probing:
    """An operation that has passed both sites."""
    probing = pair.link.probing = Probing(TOKEN)
    pair.operate(operations.verify(pair.a.end.catalog, [1, 2], TOKEN))
    pair.heal()
    assert probing.lsn == pair.lsn == pair.a.verification.lsn == pair.b.verification.lsn
    return probing


def test_digests_of_both_sites_are_those_of_that_lsn() -> None:
    pair = synced(1)
    probing = verify(pair)
    pair.write(1, 0, b"y" * REGION)
    pair.heal()
    for asked in (Asked(1, 0, 6, 1), Asked(2, 0, 6, 4), Asked(1, 1, 5, 64)):
        probing.ask(asked)
        pair.to_b += pair.link.probe()
        pair.deliver()
        assert pair.replica is not None and pair.replica.look()
        pair.to_a += pair.replica.answer()
        pair.hear()
        assert probing.answers[asked] == pair.a.verification.digests(probing.lsn, *asked)
        assert len(probing.answers[asked]) == 16 * -(-asked.count // asked.per)
    pair.link.end_probing()
    pair.to_b += pair.link.probe()
    pair.deliver()
    assert pair.replica is not None and pair.replica.look() and not pair.b.views.opened
    pair.close()


@pytest.mark.parametrize(("change", "text"), [
    ({"count": 0}, "probe of 0"), ({"per": 0}, "by 0"), ({"count": 1 << 31}, "the most"), ({"per": 1 << 31}, "the most"),
    ({"count": 1025}, "digests"),
])
def test_a_probe_beyond_its_limits_ends_the_connection(change: dict[str, int], text: str) -> None:
    pair = synced(2)
    probing = verify(pair)
    probe = Probe(**{"lsn": probing.lsn, "store": 1, "first": 0, "count": 1, "per": 1, **change})
    assert pair.replica is not None
    with pytest.raises(ProtocolError, match=text):
        pair.replica.receive(probe)
    assert not pair.replica.look()
    pair.close()


def test_a_probe_outside_its_store_ends_the_connection() -> None:
    pair = synced(3)
    probing = verify(pair)
    assert pair.replica is not None
    for first, count in ((6, 1), (0, 7), (1 << 62, 1)):
        pair.replica._asked.clear()
        pair.replica.receive(Probe(lsn=probing.lsn, store=1, first=first, count=count, per=1))
        with pytest.raises(ProtocolError, match="not inside"):
            pair.replica.look()
    pair.close()


def test_what_is_not_kept_is_said() -> None:
    pair = synced(4)
    probing = verify(pair)
    assert pair.replica is not None
    for lsn, store, text in ((probing.lsn + 1, 1, "not kept"), (probing.lsn, 99, "no store"), (0, 1, "not kept")):
        pair.replica.receive(Probe(lsn=lsn, store=store, first=0, count=1, per=1))
        assert pair.replica.look()
        assert text in pair.replica._answers.pop().problem
        pair.replica._unanswered = 0
    pair.close()


def test_too_many_probes_and_forgets() -> None:
    pair = synced(5)
    probing = verify(pair)
    assert pair.replica is not None
    for _ in range(MOST_ASKED):
        pair.replica.receive(Probe(lsn=probing.lsn, store=1, first=0, count=1, per=1))
    with pytest.raises(ProtocolError, match="before an answer"):
        pair.replica.receive(Probe(lsn=probing.lsn, store=1, first=0, count=1, per=1))
    with pytest.raises(ProtocolError, match="than were begun"):
        for _ in range(3 * MOST_ASKED):
            pair.replica.receive(Forget(lsn=1))
    pair.close()


def test_answers_that_nobody_asked_for() -> None:
    pair = synced(6)
    probing = verify(pair)
    good = Digests(lsn=probing.lsn, store=1, first=0, digests=bytes(16), problem="")
    with pytest.raises(ProtocolError, match="nobody asked"):
        pair.link.receive(good)
    probing.ask(Asked(1, 0, 2, 1))
    assert pair.link.probe()
    with pytest.raises(ProtocolError, match="bytes of digests"):
        pair.link.receive(good)
    pair.link.end_probing()
    assert pair.link.receive(good) == b""  # late, and harmless
    pair.close()


def test_refusals_that_were_not_heard_in_time_are_no_difference() -> None:
    """What was refused before the verification, and heard with the next connection, cannot be left out any more."""
    probing = Probing(TOKEN)
    probing.missed({3})  # before it has its place: D will know
    probing.lsn = 5
    probing.missed(set())
    probing.missed({6})
    assert not probing.problem
    probing.missed({3, 6})
    assert "the operation at LSN 3 was not performed there" in probing.problem


def test_a_verification_that_nobody_asks_about_is_swept() -> None:
    pair = synced(7)
    verify(pair)
    pair.b.verification.sweep()
    assert len(pair.b.views.opened) == 2
    pair.b.verification.sweep()
    assert not pair.b.views.opened and pair.b.verification.lsn == 0
    pair.close()


@pytest.mark.parametrize("seed", range(30))
def test_stories_with_verifications_and_crashes(seed: int) -> None:
    """Whatever D says at that LSN, what is outside it is equal there; a crash leaves no view."""
    rng, pair = random.Random(seed), Pair(seed)
    judged = 0
    for step in range(250):
        if pair.session is None:
            pair.connect()
        what = rng.random()
        if what < 0.4:
            pair.random_write()
        elif what < 0.47:
            pair.random_operation()
        elif what < 0.5 and pair.a.end.catalog.stores:
            token = rng.randbytes(16)
            pair.link.end_probing()
            pair.link.probing = Probing(token)
            stores = sorted(pair.a.end.catalog.stores)[:8]
            pair.operate(operations.verify(pair.a.end.catalog, stores, token))
        elif what < 0.51:
            pair.crash(rng.randrange(2))
            assert not pair.a.views.opened or not pair.b.views.opened
        elif what < 0.52:
            pair.settle(pair.a)
            pair.link.fold(pair.a.window.state().applied_position)
        elif what < 0.53:
            pair.cut()
        else:
            pair.flush()
            pair.settle(pair.a)
            for _ in range(rng.randrange(8)):
                pair.send()
            pair.deliver()
            pair.acknowledge()
            pair.hear()
        probing = pair.link.probing
        if probing is not None and probing.lsn and probing.lsn == pair.a.verification.lsn == pair.b.verification.lsn:
            for store in pair.a.verification.views:
                regions = pair.a.verification.views[store].size // REGION
                anyway = probing.anyway.get(store)
                if anyway is None or store not in pair.b.verification.views:
                    continue
                ours = pair.a.verification.digests(probing.lsn, store, 0, regions, 1)
                theirs = pair.b.verification.digests(probing.lsn, store, 0, regions, 1)
                different = [r for r in range(regions) if ours[16 * r:][:16] != theirs[16 * r:][:16]]
                assert all(r in anyway for r in different), f"seed {seed} step {step}: a false alarm"
                judged += 1
    pair.link.end_probing()
    pair.heal()
    pair.close()
    assert judged
