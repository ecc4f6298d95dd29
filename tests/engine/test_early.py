"""Operations that a secondary performs early, against the truth of each LSN: what is copied is what changed meanwhile."""

from __future__ import annotations

import contextlib

import pytest

from pyrepl import items, operations
from pyrepl._core import view
from pyrepl._core.regions import RegionMap
from pyrepl.catalog import MOST_STORES, UNFINISHED, Catalog, Store
from pyrepl.divergence import Divergence
from pyrepl.errors import Exists, NotFound, PyreplError, Refused, UsageError
from pyrepl.knowledge import CopiedRegions, Dropped, Knowledge, Made, Passed, Performed
from tests.engine.test_link import WEIGHTS, turn
from tests.support.pair import REGION, Pair

TICKET, OTHER = bytes(16), bytes(15) + b"1"


class EarlyPair(Pair):
    """A pair that begins operations early, and performs or forgoes them later."""

    def __init__(self, seed: int, **options: int) -> None:
        super().__init__(seed, **options)
        self.early: list[list[operations.Early]] = []  # those of a list end at one point
        self.tickets = 0

    def _ticket(self) -> bytes:
        self.tickets += 1
        return self.tickets.to_bytes(16, "big")

    def begin_snapshot(self, name: str) -> operations.Early:
        early = operations.early_snapshot(self.a.end.catalog, name, self._ticket(), region_size=REGION)
        self.operate(early)
        return early

    def begin_restore(self, name: str, snapshot: str) -> operations.Early:
        early = operations.early_restore(self.a.end.catalog, name, snapshot, self._ticket(), region_size=REGION)
        self.operate(early)
        return early

    def adopt(self, early: operations.Early, name: str = "") -> None:
        self.operate(operations.adopt(self.a.end.catalog, early, name))

    def adopt_all(self, early: list[operations.Early], names: list[str] | None = None) -> int:
        self.operate(operations.adopt_all(self.a.end.catalog, list(zip(early, names or [""] * len(early), strict=True))))
        return self.lsn

    def forgo(self, early: operations.Early) -> None:
        self.operate(operations.forgo(self.a.end.catalog, early))

    def act(self, what: str) -> None:
        catalog, rng = self.a.end.catalog, self.rng
        names = [store.name for store in catalog if store.kind != "unfinished"]
        self.fresh += 1
        try:
            match what:
                case "begin":
                    if rng.random() < 0.5:
                        early = self.begin_snapshot(rng.choice(names))
                    else:
                        early = self.begin_restore(*rng.choice(self.fitting() or [(rng.choice(names), rng.choice(names))]))
                    others = [one for one in self.early if bool(one[0].hidden) == bool(early.hidden)]
                    if others and rng.random() < 0.6:
                        rng.choice(others).append(early)
                    else:
                        self.early.append([early])
                case "end" if self.early:
                    several = self.early.pop(rng.randrange(len(self.early)))
                    rng.shuffle(several)
                    names = [f"e{self.fresh}-{early.hidden}" if early.hidden else "" for early in several]
                    try:
                        if len(several) == 1 and rng.random() < 0.4:
                            self.adopt(several[0], names[0])
                            return
                        if rng.random() < 0.8:
                            self.adopt_all(several, names)
                            return
                    except PyreplError:
                        pass  # a store of it is gone, or was resized; a volume is restored twice
                    for early in several:
                        with contextlib.suppress(PyreplError):
                            self.forgo(early)
                case _:
                    turn(self, what)
        except PyreplError:
            if what not in ("begin", "end"):
                raise

    def fitting(self) -> list[tuple[str, str]]:
        """Which volume can be restored from which snapshot."""
        catalog = self.a.end.catalog
        return [(one.name, other.name) for one in catalog for other in catalog
                if (one.kind, other.kind, one.size) == ("volume", "snapshot", other.size)]

    def finish(self) -> None:
        """Nothing is awaited any more."""
        for early in (one for several in self.early for one in several):
            with contextlib.suppress(PyreplError):
                self.forgo(early)
        self.early = []


@pytest.fixture
def pair():
    made = []

    def make(*args, **options):
        made.append(EarlyPair(*args, **options))
        return made[-1]
    yield make
    for one in made:
        one.close()


def copied(one) -> int:
    return one.link.bytes_sent["copied"]


def regions_of(one, before: int) -> int:
    """Regions that were copied since, headers aside."""
    return (copied(one) - before) // REGION


def arrive(one) -> None:
    """All that the primary has reaches the secondary; what differs is not waited for."""
    for _ in range(2000):
        if one.session is None:
            one.connect()
        one.flush()
        if not one.send() and not one.link.stream.flight and one.link.base.lsn >= one.lsn:
            return
        one.settle(one.a)
        one.deliver()
        one.acknowledge()
        one.hear()
    raise AssertionError("it does not arrive")


@pytest.mark.parametrize("changed", [0, 1, 3])
def test_an_early_snapshot_costs_what_changed_meanwhile(pair, changed):
    one = pair(1)
    one.heal()
    for region in range(6):
        one.write(1, region * REGION, one.some_bytes(REGION))
    early = one.begin_snapshot("a")
    arrive(one)
    hidden = one.b.here.catalog[early.hidden]
    assert hidden.kind == "unfinished" and one.b.here.consistent
    for region in range(changed):
        one.write(1, region * REGION, b"new data" * 64)
    one.write(2, 0, one.some_bytes(REGION))  # of another store: does not count
    before = copied(one)
    one.adopt(early, "s")
    one.heal()
    assert regions_of(one, before) == changed
    assert one.a.here.catalog.by_name("s").id in one.b.here.catalog and early.hidden not in one.b.here.catalog


@pytest.mark.parametrize(("volume", "snapshot"), [((), ()), ((0, 5), ()), ((), (1, 2)), ((3,), (3, 4))])
def test_an_early_restore_costs_what_changed_meanwhile(pair, volume, snapshot):
    """At source or destination. And nothing of the volume is copied before the primary has restored it."""
    one = pair(2)
    for region in range(6):
        one.write(1, region * REGION, b"old data" * (REGION // 8))
    one.operate(operations.snapshot(one.a.end.catalog, ["a"], ["s"]))
    number = one.a.end.catalog.by_name("s").id
    for region in range(6):
        one.write(1, region * REGION, one.some_bytes(REGION))
    one.heal()
    old = one.truth[one.lsn][number]
    before = copied(one)
    early = one.begin_restore("a", "s")
    arrive(one)
    assert not one.b.here.consistent
    one.settle(one.b)
    assert view.read(one.b.window, one.b.stores, 1, 0, 6 * REGION) == old, "it is restored there, and not here"
    assert view.read(one.a.window, one.a.stores, 1, 0, 6 * REGION) == one.truth[one.lsn][1] != old
    for store, regions in ((1, volume), (number, snapshot)):
        for region in regions:
            one.write(store, region * REGION + 512, b"new data" * 64)
    arrive(one)
    one.a.checkpoint()
    arrive(one)
    assert copied(one) == before, "nothing of it is copied while the primary has not restored it"
    assert one.link.status()["state"] == "resyncing"
    one.adopt(early)
    one.heal()
    assert regions_of(one, before) == len({*volume, *snapshot})


def test_what_is_given_up_leaves_nothing(pair):
    one = pair(3)
    one.operate(operations.snapshot(one.a.end.catalog, ["a"], ["s"]))
    one.write(1, 0, one.some_bytes(REGION))
    one.heal()
    stores = set(one.a.here.catalog.stores)
    snapshot, restore = one.begin_snapshot("b"), one.begin_restore("a", "s")
    arrive(one)
    one.forgo(snapshot)
    one.forgo(restore)
    one.heal()
    assert set(one.b.here.catalog.stores) == stores and not one.link.base.early


@pytest.mark.parametrize("fault", ["cut", "secondary", "primary"])
@pytest.mark.parametrize("when", ["begun", "adopted"])
@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_over_a_cut_or_a_crash(pair, fault, when, several):
    """A primary that died no longer knows what changed meanwhile: then all of it is copied, and it is right."""
    one = pair(4)
    for region in range(6):
        one.write(1, region * REGION, b"old data" * (REGION // 8))
    one.operate(operations.snapshot(one.a.end.catalog, ["a", "b"], ["s", "t"]))
    for region in range(6):
        one.write(1, region * REGION, one.some_bytes(REGION))
    one.heal()
    early = [one.begin_restore("a", "s")]
    other = [one.begin_snapshot("b")]
    if several:
        early.append(one.begin_restore("b", "t"))
        other.append(one.begin_snapshot("s"))
    one.flush()
    if when == "begun":
        arrive(one)
    one.write(1, 0, one.some_bytes(REGION))
    one.flush()

    def fail():
        if fault == "cut":
            one.cut()
        else:
            one.crash(1 if fault == "secondary" else 0)

    if when == "begun":
        fail()
    if several:
        one.adopt_all(early)
        one.adopt_all(other, ["u", "w"])
    else:
        one.adopt(early[0])
        one.adopt(other[0], "u")
    one.flush()
    if when == "adopted":
        fail()
    before = copied(one)
    one.heal()
    if fault != "primary":  # "u" is of "b", which was restored since, and so is all of it
        assert regions_of(one, before) <= (7 if several else 1)


@pytest.mark.parametrize("changed", [{}, {1: [0]}, {2: [5]}, {1: [0, 3], 2: [1]}], ids=str)
def test_early_snapshots_of_several_cost_what_changed_of_each(pair, changed):
    """All of them are one event, and each copies what changed of its own store since its own beginning."""
    one = pair(7)
    for store in (1, 2):
        for region in range(6):
            one.write(store, region * REGION, one.some_bytes(REGION))
    one.heal()
    several = [one.begin_snapshot("a")]
    arrive(one)
    for region in changed.get(1, []):
        one.write(1, region * REGION, b"new data" * 64)
    one.write(2, 4 * REGION, b"new data" * 64)  # before its own is begun: does not count
    several.append(one.begin_snapshot("b"))
    arrive(one)
    for region in changed.get(2, []):
        one.write(2, region * REGION, b"new data" * 64)
    before, end = copied(one), one.lsn
    assert one.adopt_all(several, ["s", "t"]) == end + 1
    arrive(one)
    one.heal()
    assert regions_of(one, before) == sum(map(len, changed.values()))
    assert {store.name for store in one.b.here.catalog} == {"a", "b", "s", "t"} and not one.link.base.early


@pytest.mark.parametrize("changed", [(), ((1, 0),), ((2, 5), (4, 5)), ((1, 1), (3, 2), (2, 3), (4, 4))], ids=str)
def test_early_restores_of_several_cost_what_changed_of_each(pair, changed):
    """At source or destination, of each volume; (store, region), stores 3 and 4 are the snapshots."""
    one = restorables(pair, 8)
    several = [one.begin_restore("a", "s")]
    arrive(one)
    one.write(2, 0, b"new data" * 64)  # before its own is begun: does not count
    several.append(one.begin_restore("b", "t"))
    arrive(one)
    for store, region in changed:
        one.write(store, region * REGION + 512, b"new data" * 64)
    arrive(one)
    before, end = copied(one), one.lsn
    assert one.adopt_all(several) == end + 1
    one.heal()
    assert regions_of(one, before) == len({(store if store < 3 else store - 2, region) for store, region in changed})
    assert not one.link.base.early


def test_what_several_restore_counts_for_others_that_are_open(pair):
    """An early snapshot of a volume that is restored meanwhile with others: it differs in all of it."""
    one = restorables(pair, 9)
    several = [one.begin_restore("a", "s"), one.begin_restore("b", "t")]
    other = one.begin_snapshot("b")
    arrive(one)
    one.adopt_all(several)
    arrive(one)
    one.adopt(other, "u")
    one.heal()


def test_several_are_performed_or_none(pair):
    """One of them was resized, or its snapshot's name is taken, or the volume is meant twice: nothing is performed."""
    one = restorables(pair, 10)
    twice = [one.begin_restore("a", "s"), one.begin_restore("a", "s")]
    several = [one.begin_snapshot("a"), one.begin_snapshot("b")]
    arrive(one)
    end = one.lsn
    with pytest.raises(UsageError, match="have store 1 in common"):
        one.adopt_all(twice)
    with pytest.raises(Exists, match="'b'"):
        one.adopt_all(several, ["u", "b"])
    with pytest.raises(Exists, match="'u'"):
        one.adopt_all(several, ["u", "u"])
    assert one.lsn == end == one.a.window.state().end_lsn
    for early in (*twice, *several):
        one.forgo(early)
    with pytest.raises(NotFound):
        one.adopt_all(several, ["u", "w"])
    one.heal()


def test_as_many_as_there_is_room_for():
    """Hidden stores go when what is made of them is there: that many are admitted, and no more, here and at a secondary."""
    catalog = Catalog()
    for number in range(1, MOST_STORES + 1):
        kind = UNFINISHED if number > MOST_STORES // 2 else "volume"
        catalog.add(Store(id=number, name=f"v{number}", kind=kind, size=REGION, origin=0))
    half = MOST_STORES // 2
    early = [(operations.Early(number.to_bytes(16, "big"), half + number, 0, number, 1), f"s{number}") for number in range(1, 3)]
    with pytest.raises(Refused, match="early snapshots take 2 more") as refused:
        operations.adopt_all(catalog, early)
    assert refused.value.reason == "limit"
    del catalog.stores[MOST_STORES], catalog.stores[MOST_STORES - 1]
    operation = operations.adopt_all(catalog, early)
    catalog.add(Store(id=MOST_STORES + 9, name="more", kind="volume", size=REGION, origin=0))
    with pytest.raises(Refused, match="early snapshots take 2 more"):
        operation.check(catalog)


def restorable(pair, seed):
    """A pair in which volume 1 has other content than its snapshot; the number of that."""
    one = pair(seed)
    for region in range(6):
        one.write(1, region * REGION, b"old data" * (REGION // 8))
    one.operate(operations.snapshot(one.a.end.catalog, ["a"], ["s"]))
    for region in range(6):
        one.write(1, region * REGION, one.some_bytes(REGION).replace(bytes(8), b"nonzeros"))
    one.heal()
    return one, one.a.end.catalog.by_name("s").id


def restorables(pair, seed):
    """Two such; the snapshots are stores 3 and 4."""
    one = pair(seed)
    for store in (1, 2):
        for region in range(6):
            one.write(store, region * REGION, b"old data" * (REGION // 8))
    one.operate(operations.snapshot(one.a.end.catalog, ["a", "b"], ["s", "t"]))
    for store in (1, 2):
        for region in range(6):
            one.write(store, region * REGION, one.some_bytes(REGION).replace(bytes(8), b"nonzeros"))
    one.heal()
    return one


def folded(one):
    """What was written since the cut comes as a skip and copies."""
    one.flush()
    one.settle(one.a)
    one.link.fold(one.a.window.state().applied_position)
    one.a.checkpoint()


def test_a_source_that_differed_then_makes_the_result_differ(pair):
    """The snapshot lacks a region at the secondary when that restores from it; it is copied to the snapshot later, and must
    come to the volume too."""
    one, number = restorable(pair, 11)
    one.cut()
    one.write(number, REGION, b"new data" * (REGION // 8))
    folded(one)
    early = one.begin_restore("a", "s")
    arrive(one)
    one.adopt(early)
    one.heal()


def test_what_was_folded_meanwhile_counts(pair):
    one, number = restorable(pair, 12)
    early = one.begin_restore("a", "s")
    arrive(one)
    one.cut()
    one.write(number, 2 * REGION, b"new data" * (REGION // 8))
    folded(one)
    before = copied(one)
    one.adopt(early)
    one.heal()
    assert regions_of(one, before) == 2, "to the snapshot, and to the volume"


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_what_was_folded_when_it_had_come_counts_too(pair, several):
    """The secondary has what was written, and has made of it what it did early; the primary, which has not heard that, folds
    it and learns only by the next greeting that it came as events."""
    one = restorables(pair, 18)
    early = [one.begin_snapshot("a"), one.begin_snapshot("b")]
    arrive(one)
    one.write(1, 2 * REGION, b"new data" * (REGION // 8))
    one.write(2, 3 * REGION, b"new data" * 64)
    if several:
        one.adopt_all(early, ["u", "w"])
    else:
        one.adopt(early[0], "u")
        one.adopt(early[1], "w")
    one.flush()
    while one.send():
        one.deliver()
    one.acknowledge()
    assert one.b.end.lsn == one.lsn > one.link.base.lsn
    one.cut()
    folded(one)
    before = copied(one)
    one.heal()
    assert regions_of(one, before) == 2


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
@pytest.mark.parametrize(("what", "differs"), [
    (Passed(9, None, {1: [(2, 1)]}), {2}), (Passed(9, None, {3: [(2, 1)]}), set()), (CopiedRegions(1, [(4, 2)], 7), {4, 5}),
    (Made(Store(id=1, name="a", kind="volume", size=6 * REGION, origin=0)), set(range(6))), (Dropped(1), None),
    (Passed(9, items.Make(items.StoreInfo(1, "a", "volume", 6 * REGION, 0)), {}), None),
    (Passed(9, items.Skip(8, [(bytes(16), 0)]), {}), set(range(6)))], ids=lambda value: type(value).__name__)
def test_what_comes_to_a_restored_volume_beside_the_order(what, differs, several):
    """Of the volume that the secondary has restored, and the site that feeds it not: it differs there. None: it is not there,
    and all of it when it is made again."""
    stores = {number: Store(id=number, name=name, kind=kind, size=6 * REGION, origin=0)
              for number, name, kind in ((1, "a", "volume"), (2, "b", "volume"), (3, "s", "snapshot"), (4, "t", "snapshot"))}
    known = Knowledge(7, 8, Catalog(dict(stores), 5), Divergence({number: RegionMap(6) for number in stores}))
    known.take(Performed(8, 8, operations.Early(TICKET, 0, 1, 3, 6)), REGION)
    known.take(Performed(9, 8, operations.Early(OTHER, 0, 2, 4, 6)), REGION)
    known.take(what, REGION)
    if differs is None:
        known.take(Made(stores[1]), REGION)
    last = [operations.Adopt(TICKET, 0, 1, 3, 6), operations.Adopt(OTHER, 0, 2, 4, 6)]
    for operation in [operations.AdoptAll(last)] if several else last:
        known.take(Performed(10, 8, operation), REGION)
    found = {number: {region for region in range(6) if region in known.divergence.maps[number]} for number in (1, 2)}
    assert found[1] == (set(range(6)) if differs is None else differs)
    assert found[2] == (found[1] if isinstance(what, Passed) and isinstance(what.item, items.Skip) else set())


def test_a_volume_that_was_copied_meanwhile_is_no_restored_one(pair):
    """Whoever asked for it is gone: the volume is copied again, and the operation comes all the same."""
    one, _ = restorable(pair, 13)
    early = one.begin_restore("a", "s")
    arrive(one)
    one.a.awaiting.clear()
    one.heal()
    one.adopt(early)
    one.heal()


def test_a_volume_that_was_shorter_meanwhile(pair):
    one, _ = restorable(pair, 14)
    early = one.begin_restore("a", "s")
    arrive(one)
    for regions in (3, 6):
        one.operate(operations.resize(one.a.end.catalog, "a", regions * REGION, force=True, region_size=REGION))
    one.adopt(early)
    one.heal()


def test_a_takeover_goes_back_to_before_the_restore(pair):
    """A secondary that has restored early is no state of its primary: if it takes over, what it leads from is the last one."""
    one, number = restorable(pair, 15)
    before = one.lsn
    one.begin_restore("a", "s")
    one.begin_snapshot("b")
    one.write(1, 0, b"new data" * 64)
    arrive(one)
    one.settle(one.b)
    kept = one.b.protective.snapshot
    assert kept is not None and kept.lsn == before
    one.cut()
    assert one.b.roles.take_lead(alone=True) == before
    one.settle(one.b)
    assert set(one.b.here.catalog.stores) == {1, 2, number}
    for store, content in one.truth[before].items():
        assert view.read(one.b.window, one.b.stores, store, 0, len(content)) == content


@pytest.mark.parametrize("seed", range(8))
def test_a_secondary_that_lost_its_power_has_restored(pair, seed):
    one, _ = restorable(pair, 100 + seed)
    one.b.checkpoint()
    one.b.applier.resting = True  # the note alone says that it is restored
    early = one.begin_restore("a", "s")
    hidden = one.begin_snapshot("b")
    one.write(2, 0, one.some_bytes(REGION))
    arrive(one)
    one.settle(one.b)
    one.crash(1)
    one.settle(one.b)
    assert view.read(one.b.window, one.b.stores, 1, 0, 6 * REGION) == b"old data" * (6 * REGION // 8)
    one.adopt(early)
    one.adopt(hidden, "t")
    arrive(one)
    one.settle(one.b)
    one.crash(1)
    one.heal()


def test_what_cannot_be(pair):
    one = pair(5)
    catalog = one.a.end.catalog
    with pytest.raises(PyreplError, match="from a snapshot"):
        one.begin_restore("a", "b")
    one.operate(operations.add_volume(catalog, "small", REGION, zero=True, region_size=REGION))
    one.operate(operations.snapshot(catalog, ["a"], ["of-a"]))
    with pytest.raises(UsageError, match="small"):
        one.begin_restore("small", "of-a")
    with pytest.raises(PyreplError, match="volume"):
        one.begin_restore("of-a", "of-a")
    early = one.begin_snapshot("a")
    with pytest.raises(PyreplError, match="b"):
        one.adopt(early, "b")
    one.operate(operations.resize(catalog, "a", 7 * REGION, region_size=REGION))
    with pytest.raises(UsageError, match="resized"):
        one.adopt(early, "s")
    one.forgo(early)
    with pytest.raises(PyreplError):
        one.forgo(early)


@pytest.mark.parametrize("operation", [
    operations.Early(b"short", 9, 0, 1, 6), operations.Early(TICKET, 9, 1, 2, 6), operations.Early(TICKET, 0, 0, 1, 6),
    operations.Early(TICKET, 9, 0, 1, 0), operations.Early(TICKET, 9, 0, 77, 6), operations.Early(TICKET, 0, 77, 1, 6),
    operations.Early(TICKET, 2, 0, 1, 6), operations.Adopt(b"short", 9, 0, 1, 6, 10, "t"), operations.Adopt(TICKET, 0, 0, 1, 6),
    operations.Adopt(TICKET, 0, 77, 1, 6), operations.Adopt(TICKET, 0, 1, 77, 6), operations.Adopt(TICKET, 77, 0, 1, 6, 10, "t"),
    operations.Adopt(TICKET, 2, 0, 1, 6, 10, "t"), operations.Adopt(TICKET, 2, 0, 1, 6, 10, "a"),
    operations.Adopt(TICKET, 2, 0, 1, 6, 10, "/"), operations.Adopt(TICKET, 2, 0, 1, 6, 1, "t"), operations.Forgo(b"short", 0),
    operations.Forgo(TICKET, 77), operations.Forgo(TICKET, 2),
    operations.AdoptAll([operations.Adopt(TICKET, 0, 77, 1, 6)]), operations.AdoptAll([operations.Adopt(TICKET, 0, 1, 77, 6)]),
    operations.AdoptAll([operations.Adopt(TICKET, 0, 1, 3, 6), operations.Adopt(TICKET, 0, 2, 3, 6)]),
    operations.AdoptAll([operations.Adopt(TICKET, 0, 1, 3, 6), operations.Adopt(OTHER, 0, 1, 3, 6)]),
    operations.AdoptAll([operations.Adopt(TICKET, 0, 1, 2, 6), operations.Adopt(OTHER, 0, 2, 3, 6)]),
    operations.AdoptAll([operations.Adopt(TICKET, 0, 1, 3, 6), operations.Adopt(OTHER, 4, 0, 2, 6, 10, "t")]),
    operations.AdoptAll([operations.Adopt(TICKET, 4, 0, 1, 6, 10, "t"), operations.Adopt(OTHER, 4, 0, 1, 6, 11, "u")]),
    operations.AdoptAll([operations.Adopt(TICKET, 4, 0, 1, 6, 10, "t"), operations.Adopt(OTHER, 5, 0, 2, 6, 10, "u")]),
    operations.AdoptAll([operations.Adopt(TICKET, 4, 0, 1, 6, 10, "t"), operations.Adopt(OTHER, 5, 0, 2, 6, 11, "t")]),
    operations.AdoptAll([operations.Adopt(TICKET, 4, 0, 1, 6, 10, "t"), operations.Adopt(OTHER, 5, 0, 4, 6, 11, "u")]),
    operations.AdoptAll([operations.Adopt(OTHER, 5, 0, 4, 6, 11, "u"), operations.Adopt(TICKET, 4, 0, 1, 6, 10, "t")]),
], ids=str)
def test_what_a_peer_may_not_send(pair, operation):
    one = pair(6)
    one.operate(operations.snapshot(one.a.end.catalog, ["a"], ["s"]))
    assert (one.begin_snapshot("a").hidden, one.begin_snapshot("b").hidden) == (4, 5)
    with pytest.raises(PyreplError):
        operation.check(one.a.end.catalog)


def test_what_a_peer_may_send_of_several(pair):
    one = pair(6)
    one.operate(operations.snapshot(one.a.end.catalog, ["a"], ["s"]))
    assert (one.begin_snapshot("a").hidden, one.begin_snapshot("b").hidden) == (4, 5)
    for operation, there in (
        (operations.AdoptAll([operations.Adopt(TICKET, 0, 1, 3, 6), operations.Adopt(OTHER, 0, 2, 3, 6)]), []),
        (operations.AdoptAll([operations.Adopt(TICKET, 4, 0, 1, 6, 10, "t"), operations.Adopt(OTHER, 5, 0, 2, 6, 11, "u")]),
         [operations.Created(10, 6, True), operations.Copied(10, 4, 0, 6), operations.Deleted(4),
          operations.Created(11, 6, True), operations.Copied(11, 5, 0, 6), operations.Deleted(5)]),
    ):
        operation.check(one.a.end.catalog)
        assert operations.effects_there(operation, REGION) == there, "what it has done early is what it takes"
        assert operations.unsettles(operation) and operations.decode(operations.encode(operation)) == operation
    for empty in (operations.AdoptAll([]), operations.Set([])):
        with pytest.raises(UsageError):
            operations.decode(operations.encode(empty))


@pytest.mark.parametrize("seed", range(48))
def test_stories(pair, seed):
    """Early operations among everything else that can happen to a link."""
    one = pair(seed)
    chosen = {**WEIGHTS, "begin": 5, "end": 5, **({"fold": 4, "checkpoint": 6} if seed % 2 else {})}
    weights = {what: weight * one.rng.choice([0.2, 1, 1, 3]) for what, weight in chosen.items()}
    for _ in range(150):
        one.act(one.rng.choices(list(weights), list(weights.values()))[0])
    one.finish()
    one.heal()
    assert [error for error in one.errors if "tries again" not in error] == []
