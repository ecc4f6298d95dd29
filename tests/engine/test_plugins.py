"""Plug-in operations in the engine: roles, the algebra, what is kept of their outcomes, and going back over them."""

from __future__ import annotations

import random
from typing import Any

import pytest

from pyrepl import operations
from pyrepl._core import view
from pyrepl.divergence import Divergence
from pyrepl.errors import Refused, UsageError
from pyrepl.items import Decided
from pyrepl.operations import Outcome, Reworked, Scope
from pyrepl.provenance import Base, Provenance
from tests.support.pair import REGION, Pair
from tests.support.plugs import Plugs, random_work
from tests.support.swap import SwapPair

CHANCES = {"write": 30.0, "operate": 10.0, "talk": 30.0, "cut": 3.0, "crash": 2.0, "checkpoint": 2.0, "fold": 2.0, "swap": 1.5,
           "takeover": 3.0}


class WorkingPair(SwapPair):
    """A pair that swaps roles; half of its operations are plug-ins."""

    works = 0

    def __init__(self, seed: int, **options: Any) -> None:
        super().__init__(seed, **options)
        for world, site in zip(self.worlds, (self.a, self.b), strict=True):
            world.plugins = site.plugins = Plugs(seed)

    def random_operation(self) -> None:
        catalog = self.a.end.catalog
        if self.rng.random() < 0.5 or not catalog.stores:
            super().random_operation()
        else:
            self.works += 1
            self.operate(random_work(self.rng, catalog, REGION))


@pytest.mark.parametrize("seed", range(900, 920))
def test_swaps_and_takeovers_between_plugins(seed: int) -> None:
    one = WorkingPair(seed, journal_size=random.Random(seed).choice((1 << 20, 12 << 20)))
    try:
        one.heal()
        count = one.again_and_again(CHANCES, 120)
        assert [error for error in one.errors if "try again" not in error and "tries again" not in error] == []
        assert one.works and count["write"]
    finally:
        one.close()


class TestTheAlgebra:
    """Regions of stores 1 and 2, six each."""

    @staticmethod
    def of(**marked: tuple[int, ...]) -> Divergence:
        divergence = Divergence()
        for store in (1, 2):
            divergence.add(store, 6, differs=False)
            for region in marked.get(f"s{store}", ()):
                divergence.maps[store].mark(region)
        return divergence

    @staticmethod
    def shown(divergence: Divergence, store: int) -> set[int]:
        return {region for region in range(6) if region in divergence.maps[store]}

    def test_what_it_reads_is_the_same(self) -> None:
        one = self.of(s1=(0, 5), s2=(0, 5))
        one.perform([Reworked((Scope(1, 1, 4),), (Scope(2, 1, 3),))])
        assert self.shown(one, 1) == {0, 5} and self.shown(one, 2) == {0, 5}

    @pytest.mark.parametrize("region", [1, 4])
    def test_what_it_reads_differs(self, region: int) -> None:
        one = self.of(s1=(region,))
        one.perform([Reworked((Scope(1, 1, 4),), (Scope(2, 1, 3),))])
        assert self.shown(one, 1) == {region} and self.shown(one, 2) == {1, 2, 3}

    def test_what_it_may_write_differs(self) -> None:
        """It may read that, too."""
        one = self.of(s2=(3,))
        one.perform([Reworked((), (Scope(2, 1, 3), Scope(1, 0, 1)))])
        assert self.shown(one, 2) == {1, 2, 3} and self.shown(one, 1) == {0}

    def test_what_it_reads_is_not_there(self) -> None:
        one = self.of()
        one.remove(1)
        one.perform([Reworked((Scope(1, 0, 1),), (Scope(2, 0, 2),))])
        assert self.shown(one, 2) == {0, 1}

    def test_refused(self) -> None:
        one = self.of()
        one.perform([Reworked((Scope(1, 0, 1),), (Scope(2, 2, 2),))], refused=True)
        assert self.shown(one, 2) == {2, 3} and self.shown(one, 1) == set()

    def test_what_was_copied_of_a_later_moment_does_not_leave(self) -> None:
        one = self.of(s2=(2,))
        one.copied(2, [(2, 1)], 9)
        one.perform([Reworked((), (Scope(2, 2, 1),))])
        one.arrive(9)
        assert self.shown(one, 2) == {2}


def test_where_content_that_a_plugin_made_can_be_found() -> None:
    """Where something shows what it made, and nowhere else; before it, not behind it."""
    made = [Reworked((), (Scope(1, 0, 4),))]
    kept = Provenance(1, 5, {1: Base(9, 4), 2: Base(9, 4)}, 4, REGION)
    kept.reach(9)
    kept.operate(8, [operations.Copied(1, 2, 0, 4)])  # v restored from a snapshot, which was made of it ...
    kept.operate(6, [operations.Created(2, 4, True), operations.Copied(2, 1, 0, 4)])  # ... at 6
    kept.begin()
    assert kept.is_found
    lost = Provenance(1, 5, {1: Base(9, 4)}, 4, REGION)
    lost.reach(9)
    lost.operate(7, list(made))
    lost.begin()
    assert not lost.is_found, "what it showed before a plug-in went over it"
    for lsn in (4, 3):
        lost.operate(lsn, list(made))
    assert not lost.is_found, "nor is it what another one made earlier"


def two_sites(seed: int, **options: Any) -> Pair:
    pair = Pair(seed, **options)
    for world, site in zip(pair.worlds, (pair.a, pair.b), strict=True):
        world.plugins = site.plugins = Plugs(seed)
    pair.heal()
    return pair


def some_work(pair: Pair, name: str = "a", salt: bytes = b"salt", fails: bool = False) -> operations.Perform:
    given = operations.encode_arguments({"salt": salt, "fails": fails, "spots": 2})
    return operations.perform(pair.a.end.catalog, "mix", 1, given, [], [(name, None, None)], region_size=REGION)


def turn(pair: Pair) -> None:
    """Everything that can go goes."""
    for _ in range(60):
        pair.flush()
        pair.settle(pair.a)
        while pair.send():
            pass
        pair.deliver()
        pair.acknowledge()
        pair.hear()


def test_outcomes_are_kept_until_the_secondary_has_passed_them() -> None:
    pair = two_sites(11)
    pair.cut()
    for number in range(3):
        pair.operate(some_work(pair, salt=bytes([number])))
        pair.write(2, 0, b"x" * REGION)
        pair.settle(pair.a)
        pair.a.checkpoint()
    assert len(pair.a.outcomes.known) == 3
    pair.a.abandon()
    pair.reopen(0)
    assert len(pair.a.outcomes.known) == 3, "over a start"
    pair.settle(pair.a)
    pair.link.fold(pair.a.window.state().applied_position)
    pair.a.checkpoint()
    assert len(pair.a.outcomes.known) == 3, "folded operations are still sent"
    pair.heal()
    pair.a.checkpoint()
    assert not pair.a.outcomes.known and not pair.link.refused
    pair.a.detach("paris")
    pair.operate(some_work(pair))
    pair.settle(pair.a)
    pair.a.checkpoint()
    assert not pair.a.outcomes.known, "nobody will ask"
    pair.close()


def test_a_secondary_that_does_not_come_keeps_no_more_than_has_room() -> None:
    """Its backlog becomes a skip before the outcomes of its operations fill the checkpoint."""
    pair = two_sites(12, journal_size=640 << 10)
    pair.cut()
    refused = 0
    for number in range(900):
        try:
            pair.operate(some_work(pair, salt=number.to_bytes(4, "little"), fails=number % 3 > 0))
        except Refused as error:
            assert error.retryable and "plug-ins" in error.text
            refused += 1
        pair.settle(pair.a)
        if number % 10 == 9:
            pair.link.fold(pair.a.window.state().applied_position)
            pair.a.checkpoint()
    assert refused < 450 and pair.link.ledger.doubted, "it was shortened"
    assert len(pair.a.outcomes.known) < 500
    pair.heal()
    pair.close()


def test_a_link_that_is_in_sync_promises_nothing_before_it_is_performed_there() -> None:
    pair = two_sites(13, mode="sync")
    turn(pair)
    assert pair.link.promises
    pair.b.plugins.dice = random.Random(0)  # type: ignore[attr-defined]
    pair.operate(some_work(pair))
    pair.write(2, 0, b"y" * REGION)
    pair.settle(pair.a)
    pair.flush()
    while pair.send():
        pass
    pair.settle, settle = lambda site: None, pair.settle  # type: ignore[method-assign]
    pair.deliver()
    pair.acknowledge()
    pair.hear()
    assert not pair.link.promises and pair.link.base.lsn < pair.lsn - 1, "nor does it acknowledge"
    pair.settle = settle  # type: ignore[method-assign]
    pair.settle(pair.b)
    pair.acknowledge()
    pair.hear()
    assert pair.link.promises and pair.link.base.lsn == pair.lsn
    pair.close()


def test_a_secondary_that_performs_says_so_to_whom_connects() -> None:
    pair = two_sites(14)
    pair.operate(some_work(pair))
    pair.settle(pair.a)
    pair.flush()
    while pair.send():
        pass
    pair.settle, settle = lambda site: None, pair.settle  # type: ignore[method-assign]
    pair.deliver()
    pair.connect()
    pair.deliver()
    pair.hear()
    assert "performs a plug-in on this node, and cannot say what came of it yet: try again" in pair.errors[-1]
    pair.settle = settle  # type: ignore[method-assign]
    pair.heal()
    assert not pair.link.refused
    pair.close()


@pytest.mark.parametrize("told", [0, 2])
def test_a_plugin_whose_outcome_was_not_said_is_not_taken(told: int) -> None:
    """Nor one with too many."""
    pair = two_sites(15)
    end, before = pair.b.end, pair.b.window.state().end_position
    end.decided = Decided(end.lsn + 1, [Outcome()] * told) if told else None
    pair.link.stream.decided = pair.lsn + 1  # as if it had been said
    pair.operate(some_work(pair))
    pair.settle(pair.a)
    pair.flush()
    while pair.send():
        pass
    pair.deliver()
    assert f"an operation with 1 plug-ins, of which {told} outcomes were told" in pair.errors[0]
    assert pair.b.window.state().end_position == before
    end.decided = None
    pair.heal()
    pair.close()


def test_outcomes_of_another_event_are_not_taken() -> None:
    pair = two_sites(18)
    turn(pair)
    before = pair.b.window.state().end_position
    pair.a.outcomes.known[pair.lsn + 2] = [Outcome()]
    out = pair.link.stream._decide(pair.lsn + 2)
    assert out is not None
    pair.to_b += b"".join(bytes(buffer) for buffer in out.buffers)
    pair.deliver()
    assert f"outcomes of event {pair.lsn + 2} where {pair.lsn + 1} is next" in pair.errors[0]
    assert pair.b.window.state().end_position == before
    pair.close()


def test_bounds_at_a_secondary() -> None:
    pair = two_sites(16)
    catalog = pair.b.end.catalog
    good = some_work(pair)
    bad: list[operations.Perform] = [
        operations.Perform("mix", 1, good.arguments, [], [Scope(1, 0, 99)]),
        operations.Perform("mix", 1, good.arguments, [], [Scope(1, 5, 2)]),
        operations.Perform("mix", 1, good.arguments, [Scope(1, 0, 0)], []),
    ]
    for one in bad:
        with pytest.raises(UsageError, match="are not inside store 1"):
            operations.judge(one.effects(REGION), catalog, REGION)
    with pytest.raises(UsageError, match="not the arguments"):
        operations.Perform("mix", 1, b"\xc1", [], []).check(catalog)
    with pytest.raises(UsageError, match="twice"):
        operations.Perform("mix", 1, good.arguments, [], [Scope(1, 0, 1), Scope(1, 2, 1)]).check(catalog)
    many = [operations.Perform("mix", 1, good.arguments, [], [])] * 33
    with pytest.raises(UsageError, match="at most 32 plug-ins"):
        operations.Set(list(many)).check(catalog)
    with pytest.raises(UsageError, match="not an operation that this version knows"):
        operations.decode(operations.encode(good).replace(b"perform", b"perfarm"))
    pair.close()


def test_many_small_writes_are_told_in_few_runs() -> None:
    """A plug-in that writes every second region of a large store: what lies between is filled, and right."""
    from pyrepl.workshop import MOST_RUNS

    pair = Pair(17, regions=5000)

    class Every:
        def begin(self, work: Any, lsn: int, benches: Any) -> Any:
            from pyrepl.seams import Ended

            for region in range(0, 5000, 2):
                benches["a"].write(region * REGION + 5, b"z")
            return Ended()

    for site in (pair.a, pair.b):
        site.plugins = Every()  # type: ignore[assignment]
    pair.write(1, 0, b"q" * (1 << 20))
    work = operations.perform(pair.a.end.catalog, "mix", 1, operations.encode_arguments({"salt": b"", "fails": True, "spots": 0}),
                              [], [("a", None, None)], region_size=REGION)
    pair.operate(work)
    content = bytearray(pair.truth[pair.lsn][1])
    for region in range(0, 5000, 2):
        content[region * REGION + 5] = ord("z")
    pair.truth[pair.lsn][1] = bytes(content)
    pair.settle(pair.a)
    assert view.read(pair.a.window, pair.a.stores, 1, 0, len(content)) == content
    assert MOST_RUNS < 2500
    pair.heal()
    pair.close()
