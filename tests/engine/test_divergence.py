"""The algebra of divergence against the executable specification, and its own corners against sets."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrepl._core import batch, layout
from pyrepl._core.regions import RegionMap
from pyrepl.divergence import Divergence, covered
from pyrepl.operations import Copied, Created, Deleted, Resized
from tests.support import divergence_model as model

IDS = {name: number for number, name in enumerate(["vol", "img", "snap1", "snap2"], 1)}


def marked(divergence):
    return {store: {r for first, count in regions.runs() for r in range(first, first + count)}
            for store, regions in divergence.maps.items()}


Oracle = model.Link


class Followed(Oracle):
    """The model's link, with ours beside it: both must say the same after each step."""

    steps = 0

    def __init__(self, journal, states, S, D, p):
        super().__init__(journal, states, S, D, p)
        self.ours = Divergence()
        for name in D:
            self.ours.add(IDS[name], model.REGIONS, differs=False)
            for r in D[name]:
                self.ours.maps[IDS[name]].mark(r)

    def _performed(self, event, lsn):
        ours = self.ours
        if event[0] == "write":
            _, x, r, _, cells = event
            if len(cells) == model.CELLS:
                ours.overwritten({IDS[x]: [(r, 1)]})
        elif event[0] == "copy":
            y, x = IDS[event[1]], IDS[event[2]]
            effects = [] if y in ours.maps else [Created(y, model.REGIONS, True)]
            ours.perform([*effects, Copied(y, x, 0, model.REGIONS)])
        else:
            ours.perform([Deleted(IDS[event[1]])])
        ours.arrive(lsn)

    def _compare(self):
        Followed.steps += 1
        theirs = {IDS[name]: set(regions) for name, regions in self.D.items()}
        assert marked(self.ours) == {**{store: set() for store in self.ours.maps}, **theirs}
        leaving = {(IDS[x], r): lsn for (x, r), lsn in self.leaving.items()}
        mine = {(d.store, r): d.lsn for d in self.ours.departures for first, count in d.runs for r in range(first, first + count)}
        assert mine == leaving
        assert {(store, r) for store, regions in marked(Divergence(self.ours.leaving)).items() for r in regions} == set(leaving)

    def stream(self):
        at = self.p
        super().stream()
        if self.p > at:
            self._performed(self.journal[at], self.p)
        self._compare()

    def overflow(self):
        at = self.p
        streaming, self.stream = self.stream, lambda: Oracle.stream(self)
        super().overflow()
        self.stream = streaming
        for lsn in range(at + 1, self.p + 1):
            event = self.journal[lsn - 1]
            if event[0] == "write":
                changed = RegionMap(model.REGIONS)
                changed.mark(event[2])
                self.ours.enter(IDS[event[1]], changed)
            else:
                self._performed(event, lsn)
        self.ours.arrive(self.p)
        self._compare()

    def copy_one(self, rng):
        before = len(self.copied)
        super().copy_one(rng)
        if len(self.copied) > before:
            x, r = self.copied[-1]
            self.ours.copied(IDS[x], [(r, 1)], len(self.journal))
            self.ours.arrive(self.p)
        self._compare()


def test_the_model_and_ours_say_the_same(monkeypatch):
    monkeypatch.setattr(model, "Link", Followed)
    for seed in range(400):
        model.run(seed)
    assert Followed.steps > 2000


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 1 << 32))
def test_next_run_is_what_differs_and_does_not_leave(seed):
    rng = random.Random(seed)
    size = rng.choice([1, 5, 64, 300])
    divergence = Divergence()
    divergence.add(1, size, differs=False)
    for _ in range(rng.randrange(8)):
        first = rng.randrange(size)
        divergence.maps[1].mark(first, rng.randrange(1, size - first + 1))
    for _ in range(rng.randrange(4)):
        first = rng.randrange(size)
        divergence.copied(1, [(first, rng.randrange(1, min(4, size - first) + 1))], rng.randrange(3) + 10 * len(divergence.departures))
    leaving = marked(Divergence(divergence.leaving)).get(1, set())
    want = marked(divergence)[1] - leaving
    most = rng.choice([1, 3, 1000])
    got, start = set(), 0
    while (run := divergence.next_run(1, start, most)) is not None:
        assert run[0] >= start and 0 < run[1] <= most
        got |= set(range(run[0], run[0] + run[1]))
        start = run[0] + run[1]
    assert got == want
    assert divergence.next_run(2, 0, 1) is None
    assert divergence.next_run(1, size, 1) is None


def one_store(size=8, *, differs=False):
    divergence = Divergence()
    divergence.add(1, size, differs=differs)
    return divergence


def test_resize_cuts_departures():
    divergence = one_store(differs=True)
    divergence.copied(1, [(2, 5)], 10)
    divergence.perform([Resized(1, 4)])
    assert divergence.departures[0].runs == [(2, 2)] and divergence.maps[1].size == 4
    divergence.perform([Resized(1, 9)])
    assert marked(divergence)[1] == {0, 1, 2, 3}
    divergence.arrive(10)
    assert marked(divergence)[1] == {0, 1} and not divergence.departures
    divergence.perform([Resized(7, 3)])  # not there: nothing


def test_zeros_and_sources_that_are_not_there():
    divergence = one_store(differs=True)
    divergence.copied(1, [(0, 8)], 5)
    divergence.perform([Copied(1, 0, 2, 3)])
    assert marked(divergence)[1] == {0, 1, 5, 6, 7} and divergence.departures[0].runs == [(0, 2), (5, 3)]
    divergence.perform([Copied(1, 9, 2, 1)])
    assert 2 in marked(divergence)[1]
    divergence.perform([Copied(1, 1, 0, 8), Copied(9, 1, 0, 8)])
    assert marked(divergence)[1] == {0, 1, 2, 5, 6, 7}


def test_a_volume_that_is_not_zero_differs_everywhere():
    divergence = Divergence()
    divergence.perform([Created(3, 4, False)])
    assert marked(divergence) == {3: {0, 1, 2, 3}} and divergence.count() == 4 and not divergence.is_empty()


def test_enter_all_and_remove():
    divergence = one_store()
    divergence.copied(1, [(0, 2)], 5)
    divergence.enter_all()
    assert marked(divergence)[1] == set(range(8)) and not divergence.departures
    divergence.copied(1, [(0, 2)], 6)
    divergence.copied(9, [(0, 2)], 6)
    divergence.remove(1)
    divergence.enter(1, RegionMap(8, marked=True))
    assert divergence.is_empty() and not divergence.maps


def test_a_copy_is_independent():
    divergence = one_store(differs=True)
    divergence.copied(1, [(0, 2)], 5)
    other = divergence.copy()
    other.arrive(5)
    assert marked(divergence)[1] == set(range(8)) and len(divergence.departures) == 1
    assert marked(other)[1] == set(range(2, 8))


def test_a_copy_leaves_only_at_its_lsn():
    divergence = one_store(differs=True)
    divergence.copied(1, [(0, 8)], 10)
    divergence.arrive(9)
    assert divergence.count() == 8
    divergence.arrive(10)
    assert divergence.is_empty()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 200), st.integers(1, 200)), min_size=1, max_size=8),
       st.sampled_from([512, 4096]), st.sampled_from([4096, 65536]))
def test_covered(writes, alignment, region_size):
    records = [(layout.ZERO, store, first * alignment, count * alignment) for store, first, count in writes]
    data = batch.encode(layout.BATCH_EVENTS, records, group=bytes(16), generation=bytes(16), first_lsn=1, alignment=alignment)
    want = {}
    for _, store, offset, length in records:
        for region in range(0, 400 * 4096 // region_size + 2):
            if offset <= region * region_size and (region + 1) * region_size <= offset + length:
                want.setdefault(store, set()).add(region)
    got = {store: {r for first, count in runs for r in range(first, first + count)} for store, runs in covered(data, region_size).items()}
    assert got == want


@pytest.mark.parametrize("count", [1, 122])
def test_covered_at_the_end_of_the_numbers(count):
    top = (1 << 56) - (1 << 20)
    records = [(layout.DISCARD, 1, top, 1 << 20)] * count
    data = batch.encode(layout.BATCH_EVENTS, records, group=bytes(16), generation=bytes(16), first_lsn=1, alignment=512)
    assert covered(data, 1 << 20) == {1: [(top >> 20, 1)] * count}
