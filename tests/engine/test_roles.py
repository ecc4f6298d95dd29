"""Changes of role in simulation: swaps, takeovers with and without a lost tail, split brain, power loss at every disk event."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from pyrepl import operations
from pyrepl._core.regions import RegionMap
from pyrepl.errors import Refused
from pyrepl.items import Run, Tail
from pyrepl.ledger import Ledger
from pyrepl.lineage import Lineage
from pyrepl.link import Link
from pyrepl.protocol.session import State
from pyrepl.roles import PRIMARY, SECONDARY
from pyrepl.site import Site
from tests.support.pair import REGION
from tests.support.simulation import World, create_site, open_site
from tests.support.swap import SwapPair

CHANCES = {"write": 30.0, "operate": 8, "talk": 20, "cut": 4, "crash": 2, "checkpoint": 3, "fold": 1, "swap": 3, "takeover": 4}
TOTAL: Counter[str] = Counter()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(40))
def test_stories_of_swaps_and_takeovers(seed: int) -> None:
    """A secondary that calls itself consistent is a state of the history that leads; without faults both become equal."""
    one = SwapPair(seed, journal_size=random.Random(seed).choice((1 << 20, 12 << 20)))
    try:
        one.heal()
        TOTAL.update(one.again_and_again(CHANCES, 120))
        assert [error for error in one.errors if "tries again" not in error] == []
    finally:
        one.close()


def test_stories_were_enough(request: pytest.FixtureRequest) -> None:
    if len(request.session.items) < 41:
        pytest.skip("only a part of the seeds was asked for")
    print(dict(TOTAL))
    assert TOTAL["swap"] >= 80 and TOTAL["takeover"] >= 60 and TOTAL["crash"] >= 60


@pytest.fixture
def pair():
    made = []

    def make(seed: int, **options: object) -> SwapPair:
        made.append(SwapPair(seed, **options))
        made[-1].heal()
        return made[-1]

    yield make
    for one in made:
        one.close()


def copied(one: SwapPair) -> int:
    return one.link.bytes_sent["copied"]


def differing(one: SwapPair) -> int:
    """Regions that may differ, as the new primary sees it when the old one has said where it stands."""
    for _ in range(1 + bool(one.a.remembered)):
        one.connect()
        one.deliver()
        one.hear()
    assert one.link.is_open
    return one.link.base.divergence.count()


class TestWhatIsCopied:
    """What the new primary knows of the old one decides it."""

    def test_nothing_after_a_swap(self, pair):
        one = pair(1)
        one.swap()
        for _ in range(5):
            one.random_write()
        one.heal()
        assert copied(one) == 0 and one.b.end.lineage == one.a.end.lineage and not one.a.remembered

    def test_nothing_after_a_takeover_from_a_primary_that_had_nothing_more(self, pair):
        one = pair(2)
        one.take_over(crash=False)
        for _ in range(5):
            one.random_write()
        one.heal()
        assert copied(one) == 0

    def test_what_was_folded_meanwhile(self, pair):
        """The old primary is away for longer than the journal lasts, and over restarts of the new one."""
        one = pair(3)
        one.cut()
        one.b.roles.take_lead(alone=True)
        one.exchange()
        one.lead()
        one.a.detach("paris")
        for _ in range(3):
            one.write(1, 0, one.some_bytes(REGION))
            one.fold()
            one.a.checkpoint()
            one.crash(0)
            assert list(one.a.remembered) == [one.ids[1]]
        one.step_down(one.b)
        one.b.forget_links()
        one.lead() if one.a.end.lineage.generation not in one.generations else one.a.attach(Link(one.a, "paris", address="b:1"))
        one.heal()
        assert 0 < copied(one) < 2 * (REGION + 512), "one region"

    @pytest.mark.parametrize("crash", [False, True])
    def test_the_regions_of_a_lost_tail(self, pair, crash):
        """The old primary says what it wrote that nobody has."""
        one = pair(4)
        one.cut()
        one.a.checkpoint()  # or a crash would bring back what was known of the secondary before
        one.write(1, REGION, one.some_bytes(REGION))
        one.write(2, 2 * REGION - 512, one.some_bytes(1024))
        one.flush()
        one.take_over(crash=crash)
        one.write(1, 5 * REGION, one.some_bytes(REGION))
        assert differing(one) == 3 and "not in this group's history" in one.link.ledger.resync_reason
        assert one.link.wants_checkpoint and not one.send(), "not before it is durable"
        if crash:
            one.crash(0)
        one.heal()
        assert copied(one) <= 3 * (REGION + 512)

    def test_what_operations_of_a_lost_tail_wrote(self, pair):
        """Their destinations, whatever was copied there; a snapshot that only the old one has costs nothing."""
        one = pair(7)
        one.cut()
        one.operate(operations.snapshot(one.a.end.catalog, ["b"], ["mine"]))
        one.operate(operations.zero(one.a.end.catalog, "a", 0, 2 * REGION, region_size=REGION))
        one.operate(operations.copy_range(one.a.end.catalog, "b", "a", 3 * REGION, REGION, region_size=REGION))
        one.write(2, 0, one.some_bytes(REGION))
        one.flush()
        one.take_over(crash=False)
        one.write(1, 5 * REGION, one.some_bytes(REGION))
        assert differing(one) == 4 + 6, "and the snapshot, which is dropped"
        one.heal()
        assert copied(one) <= 4 * (REGION + 512)

    @pytest.mark.parametrize("size", [4, 6, 9])
    def test_a_store_that_was_resized_in_a_lost_tail(self, pair, size):
        """It is made anew if it is of another size now, and copied whole if it is not; the others are not."""
        one = pair(13)
        one.cut()
        one.write(2, REGION, one.some_bytes(REGION))
        for regions in (8, size):
            one.operate(operations.resize(one.a.end.catalog, "a", regions * REGION, force=True, region_size=REGION))
        one.flush()
        one.take_over(crash=False)
        one.random_write()
        differing(one)
        maps = one.link.base.divergence.maps
        assert maps[2].count() == 1 and (maps[1].count() == 6 if size == 6 else 1 not in maps)
        one.heal()
        assert copied(one) <= 8 * (REGION + 512)

    def test_stores_that_were_deleted_in_a_lost_tail(self, pair):
        one = pair(14)
        one.operate(operations.snapshot(one.a.end.catalog, ["a"], ["old"]))
        one.heal()
        one.cut()
        one.operate(operations.delete(one.a.end.catalog, "old"))
        one.operate(operations.snapshot(one.a.end.catalog, ["b"], ["its"]))
        one.flush()
        one.take_over(crash=False)
        one.operate(operations.snapshot(one.a.end.catalog, ["a"], ["mine"]))  # of the same number
        one.heal()
        assert copied(one) <= 6 * (REGION + 512), "the one that it lacks"

    def test_what_was_sent_and_not_known_to_be(self, pair):
        """The old primary died, and knows an older position than the secondary had reached: only what lies behind that
        counts, as exactly as the runs are."""
        one = pair(15)
        one.cut()
        one.a.checkpoint()
        for turn in range(40):
            one.write(1, turn % 5 * REGION, one.some_bytes(REGION))
        one.heal()
        one.cut()
        assert one.link.base.lsn > 40
        one.write(2, 3 * REGION, one.some_bytes(REGION))
        one.flush()
        one.b.roles.take_lead(alone=True)
        one.exchange()
        one.lead()
        one.b.abandon()
        one.worlds[1] = next(iter(one.worlds[1].images(random.Random(1), 0)))  # nothing but what was flushed
        one.reopen(1)
        one.step_down(one.b)
        (tail,) = one.b.end.tails.values()
        assert tail.lsn < 5 and [run.upto for run in tail.runs] == [one.lsn, one.lsn + 1]
        one.b.forget_links()
        assert differing(one) <= 2
        one.heal()
        assert copied(one) <= 2 * (REGION + 512)

    def test_a_tail_is_not_told_twice(self, pair):
        """It is of the moment of stepping down: whoever was fed since has another history."""
        one = pair(8)
        one.cut()
        one.write(1, REGION, one.some_bytes(REGION))
        one.flush()
        one.take_over(crash=False)
        assert list(one.b.end.tails) == [one.ids[0]]
        one.crash(1)
        assert list(one.b.end.tails) == [one.ids[0]]
        one.heal()
        one.crash(1)
        one.settle(one.b)
        assert not one.b.end.tails and not one.b.here.tails

    @pytest.mark.parametrize("regions", [{1: RegionMap(5).encode()}, {99: RegionMap(6).encode()}])
    def test_a_tail_of_stores_that_were_others(self, pair, regions):
        """One of another size differs everywhere; one that is not there does not matter."""
        one = pair(9)
        one.cut()
        one.a.checkpoint()
        one.write(2, 0, one.some_bytes(512))
        one.flush()
        one.take_over(crash=False)
        one.b.end.tails = {one.ids[0]: Tail(0, [Run(1 << 20, regions), Run(1 << 20, {2: RegionMap(6, marked=True).encode()})])}
        assert differing(one) == 6 + 6 * (1 in regions)
        one.heal()

    @pytest.mark.parametrize("regions", [{1: b"x"}, {99: b"x"}])
    def test_a_tail_that_cannot_be(self, pair, regions):
        one = pair(9)
        one.cut()
        one.random_write()
        one.flush()
        one.take_over(crash=False)
        one.b.end.tails = {one.ids[0]: Tail(0, [Run(1 << 20, regions)])}
        for _ in range(2):
            one.connect()
            one.deliver()
            one.hear()
        assert "a welcome with a tail" in one.errors[-1] and not one.link.is_open

    def test_nothing_for_one_who_stands_where_the_link_begins(self, pair):
        """Nothing is remembered of it, but it is an earlier state of the same history, and at this very place."""
        one = pair(5)
        one.step_down(one.a)
        one.tell()
        one.b.roles.take_lead(alone=False)
        one.b.remembered.clear()
        one.exchange()
        one.lead()
        one.random_write()
        one.heal()
        assert copied(one) == 0

    def test_everything_for_one_who_stands_before_that(self, pair):
        one = pair(6)
        one.step_down(one.a)
        one.tell()
        one.b.roles.take_lead(alone=False)
        one.b.remembered.clear()
        one.exchange()
        one.lsn = one.a.window.state().end_lsn
        one.random_write()
        one.settle(one.a)
        one.lead()
        differing(one)
        (piece,) = one.link.ledger.backlog
        assert sum(regions.count() for regions in piece.regions.values()) == 12
        one.heal()


class TestSplitBrain:
    def diverged(self, pair) -> SwapPair:
        one = pair(10)
        one.cut()
        one.b.roles.take_lead(alone=True)
        one.exchange()
        one.lead()
        one.random_write()
        one.flush()
        one.b.abandon()
        one.reopen(1)  # the old primary, active once more
        one.b.window.write(1, 0, b"x" * 512)
        one.step_down(one.b)
        one.b.forget_links()
        return one

    def test_seen_by_the_secondary_before_it_answers(self, pair):
        one = self.diverged(pair)
        before = one.b.window.state().end_position
        one.connect()
        one.deliver()
        assert "split brain" in one.errors[0] and one.b.window.state().end_position == before
        assert one.b.fed_by is None, "nobody was followed"
        assert one.session is None or one.session.state is State.CLOSED

    def test_seen_by_the_primary_too(self, pair, monkeypatch):
        """Were the secondary not to look, the primary would say the same."""
        one = self.diverged(pair)
        monkeypatch.setattr(type(one.b.roles), "judge", lambda *_, **__: None)
        for _ in range(2):
            one.connect()
            one.deliver()
            one.hear()
        assert "split brain" in one.errors[-1] and one.link.bytes_sent["items"] == 0 and not one.link.is_open

    def test_not_after_the_secondary_was_said_to_be_synced(self, pair):
        """A restarted primary begins a generation. It calls the secondary synced when that one knows it, and not at its
        welcome: what it writes then and cannot send is a lost tail of a known generation."""
        one = pair(12)
        one.crash(0)
        one.connect()
        said = []
        for _ in range(20):
            one.deliver()
            one.acknowledge()
            one.hear()
            said.append(one.link.status()["synced"])
            if said[-1]:
                break
            one.send()
        assert one.link.is_open and said == [False, True], "not at the welcome, but with the fork"
        assert one.a.lineage.generation in one.b.end.lineage.generations and one.link.is_informed
        one.cut()
        assert one.link.is_informed, "it does not forget"
        one.write(1, 0, one.some_bytes(REGION))
        one.flush()
        assert one.can_take_over()
        one.take_over(crash=True)
        one.write(1, REGION, one.some_bytes(REGION))
        one.heal()

    def test_a_generation_without_events_is_none(self, pair):
        """The old primary was active again and wrote nothing: it is led back, and nothing is copied."""
        one = pair(11)
        one.cut()
        one.take_over(crash=True)
        one.random_write()
        one.heal()
        assert copied(one) == 0


def test_tail_of_a_lineage():
    """The generations of the events after the fork, and no others."""
    g = [bytes([n]) * 16 for n in range(5)]
    lineage = Lineage([(g[0], 0), (g[1], 5), (g[2], 5), (g[3], 9)])
    assert lineage.tail(9, 9) == set() and lineage.tail(9, 8) == {g[2]} and lineage.tail(9, 4) == {g[0], g[2]}
    assert lineage.tail(10, 9) == {g[3]} and lineage.tail(12, 0) == {g[0], g[2], g[3]} and lineage.tail(3, 3) == set()


# ---- power loss


def judged(one: SwapPair, which: int, change, roles: tuple[str, str]) -> Counter[str]:
    """Runs the change; at each of its disk events what a crash leaves is one role or the other, and a state of the group."""
    world, seen, failures = one.worlds[which], Counter[str](), []
    before = (one.a, one.b)[which].end.lineage
    rng = random.Random(one.seed)

    def on_tick(what: str, path: str) -> None:
        if what == "read" or failures:
            return
        world.on_tick = None
        try:
            for image in (*world.images(rng, 2), world.settled()):
                site = open_site(image, rng.randrange(1 << 30), node=one.ids[which])
                try:
                    assert site.role in roles
                    fresh = [g for g in site.end.lineage.generations if g not in before.generations]
                    # a primary begins one at every start; a new primary has that of its promotion too
                    assert len(fresh) == {(SECONDARY, SECONDARY): 0, (PRIMARY, PRIMARY): 1, (SECONDARY, PRIMARY): 2,
                                          (PRIMARY, SECONDARY): 0}[roles[0], site.role], (roles, site.role, fresh)
                    assert site.accepts == (site.role == PRIMARY)
                    while site.step():
                        pass
                    assert site.end.lsn == site.here.lsn == one.lsn or site.role == PRIMARY
                    if site.role == PRIMARY:
                        assert site.window.write(1, 0, bytes(512)) == one.lsn + 1
                    else:
                        with pytest.raises(PermissionError):
                            site.window.write(1, 0, bytes(512))
                        assert site.here.consistent
                    seen[site.role] += 1
                finally:
                    site.abandon()
        except Exception as error:
            failures.append(error)
        world.on_tick = on_tick

    world.on_tick = on_tick
    change()
    world.on_tick = None
    if failures:
        raise failures[0]
    return seen


@pytest.mark.parametrize("seed", range(6))
def test_power_loss_while_a_primary_steps_down(pair, seed):
    one = pair(20 + seed)
    for _ in range(4):
        one.random_write()
        one.random_operation()
    one.heal()
    seen = judged(one, 0, lambda: one.step_down(one.a), (PRIMARY, SECONDARY))
    assert seen[PRIMARY] and seen[SECONDARY], seen


@pytest.mark.parametrize("seed", range(6))
def test_power_loss_while_a_secondary_takes_the_lead(pair, seed):
    one = pair(30 + seed)
    for _ in range(4):
        one.random_write()
        one.random_operation()
    one.heal()
    seen = judged(one, 1, lambda: one.b.roles.take_lead(alone=True), (SECONDARY, PRIMARY))
    assert seen[PRIMARY] and seen[SECONDARY], seen


def test_a_promise_to_lead_ends_with_the_next_record(pair):
    """Handover is the end of an order: whatever comes after it takes it back, and a restart keeps it."""
    one = pair(40)
    one.step_down(one.a)
    one.tell()
    one.crash(1)
    assert one.b.end.handed_over
    one.settle(one.b)
    one.b.checkpoint()
    one.crash(1)
    assert one.b.here.handed_over
    one.a.roles.take_lead(alone=True)  # the old primary leads on
    one.lead()
    one.random_write()
    one.heal()
    assert not one.b.here.handed_over
    with pytest.raises(Refused) as caught:
        one.b.roles.take_lead(alone=False)
    assert caught.value.reason == "primary"


def test_only_a_primary_steps_down_and_only_a_secondary_leads(pair):
    one = pair(41)
    with pytest.raises(Refused, match="already"):
        one.a.roles.take_lead(alone=True)
    with pytest.raises(Refused, match="already"):
        one.b.roles.step_down()
    fresh = create_site(World(), 1, role="secondary")
    with pytest.raises(Refused, match="never paired") as caught:
        fresh.roles.take_lead(alone=True)
    assert caught.value.reason == "inconsistent" and fresh.role == SECONDARY
    fresh.abandon()


def test_a_change_of_role_keeps_primaries_out(pair):
    one = pair(42)
    one.b.roles.changing = True
    one.connect()
    one.deliver()
    assert "changing its role" in one.errors[-1]
    one.b.roles.changing = False
    one.cut()
    one.heal()


class TestTheTestSees:
    """What must not be forgotten, forgotten on purpose."""

    @pytest.mark.parametrize("change", ["step down", "take the lead"])
    def test_a_role_that_is_not_made_durable(self, pair, monkeypatch, change):
        one = pair(50)
        monkeypatch.setattr(Site, "checkpoint", lambda self: None)  # rule role_checkpoint
        if change == "step down":
            seen = judged(one, 0, lambda: one.step_down(one.a), (PRIMARY, SECONDARY))
            assert not seen[SECONDARY]
        else:
            seen = judged(one, 1, lambda: one.b.roles.take_lead(alone=True), (SECONDARY, PRIMARY))
            assert not seen[PRIMARY]

    def test_a_tail_that_is_told_in_part(self, monkeypatch):
        real = Ledger.tail
        monkeypatch.setattr(Ledger, "tail", lambda self: (tail := real(self)) and Tail(tail.lsn, []))
        for seed in range(40):
            one = SwapPair(seed)
            try:
                one.heal()
                one.again_and_again({**CHANCES, "operate": 2, "takeover": 8}, 80)
            except AssertionError:
                return
            finally:
                one.close()
        raise AssertionError("40 stories hold without it")

    @pytest.mark.parametrize("what", ["the backlog", "where it stood"])
    def test_a_link_that_inherits_too_little(self, monkeypatch, what):
        real = Link.inherit

        def inherit(self: Link) -> None:
            before = self.peer
            real(self)
            if before is None and self.peer is not None:
                if what == "the backlog":
                    for piece in self.ledger.backlog:
                        piece.regions.clear()
                else:
                    state = self.site.window.state()
                    self.ledger.backlog.clear()
                    self.base.lsn, self.base.position = state.applied_lsn, state.applied_position

        monkeypatch.setattr(Link, "inherit", inherit)
        for seed in range(40):
            one = SwapPair(seed)
            try:
                one.heal()
                one.again_and_again({**CHANCES, "fold": 6}, 80)
            except AssertionError:
                return
            finally:
                one.close()
        raise AssertionError("40 stories hold without it")
