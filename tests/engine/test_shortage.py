"""Want of room: a site stands still where the file system of its stores is full, loses nothing, and goes on by itself; over
crashes too. In simulation: at random, writes to stores, and files that are made or grow, find no room for a while."""

from __future__ import annotations

import errno
import os
import random
from collections import Counter
from collections.abc import Collection

import pytest

from pyrepl import operations, shortage
from pyrepl._core import view
from pyrepl.errors import Refused
from pyrepl.operations import Operation
from pyrepl.roles import SECONDARY
from pyrepl.site import Site
from tests.support.pair import REGION, Pair
from tests.support.plugs import Plugs
from tests.support.simulation import World, open_site
from tests.support.story import Story, ViewStory

SEEN: Counter[str] = Counter()
BEGIN = 4 * 10**18  # ns since 1970: later than what the clock says


def no_room(path: str, code: int = errno.ENOSPC) -> OSError:
    return OSError(code, os.strerror(code), path)


class Filled(World):
    """While ``lack`` says so, what needs room finds none: a write to a store, so that the rest of its list is not done
    either, and a file that is made or grows in a step of the applier."""

    def __init__(self, rng: random.Random, lack: float, **options: int) -> None:
        super().__init__(**options)
        self.rng, self.lack, self.stepping = rng, lack, False
        self.only = ""  # of files whose names have this
        self.code = errno.ENOSPC

    @classmethod
    def of(cls, world: World, rng: random.Random, lack: float) -> Filled:
        """With the disks of another."""
        made = cls(rng, lack, sector_size=world.sector_size)
        made.disks = world.disks
        return made

    def tick(self, what: str, path: str) -> None:
        super().tick(what, path)
        if what == "write" and path != "journal":
            self.take(path)

    def take(self, path: str) -> None:
        """Something needs room."""
        if self.only in path and self.rng.random() < self.lack:
            raise no_room(path, self.code)

    def create(self, name: str, store_id: int, size: int, taken: Collection[str] = ()) -> str:
        path = super().create(name, store_id, size, taken)
        if self.stepping:
            self.take(path)
        return path

    def resize(self, path: str, size: int) -> None:
        if self.stepping:
            self.take(path)
        super().resize(path, size)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again with each step."""
    monkeypatch.setattr(shortage, "AGAIN", 0.0)


class FullStory(Story):
    """A story in which there is no room now and then."""

    def __init__(self, seed: int, **options: int) -> None:
        self.operated: list[int] = [0]
        super().__init__(seed, **options)
        self.dice = random.Random(seed ^ 0xF011)
        full = Filled.of(self.world, self.dice, 0.0)
        full.on_tick, full.plugins = self.world.on_tick, self.world.plugins
        self.promised = self.site.window.flush()
        self.site.abandon()
        self.world = full
        self.site = open_site(full, seed, options=self.options)

    def act(self) -> None:
        if self.dice.random() < 0.1:
            self.world.lack = self.dice.choice((0.0, 0.3, 0.7, 1.0))
            self.world.code = self.dice.choice((errno.ENOSPC, errno.EDQUOT))
        if self.dice.random() < 0.4:
            self.step()
        super().act()
        if self.site.shortage.stands:
            SEEN["stands"] += 1
            if self.dice.random() < 0.2:
                self.look_at(self.site, self.oracle.lsn, "while it stands still")

    def perform(self, operation: Operation) -> None:
        super().perform(operation)
        self.operated.append(self.oracle.lsn)

    def look_at(self, site: Site, lsn: int, when: str) -> None:
        """Readers find everything; they wait for operations on their stores, so none is to be on its way."""
        if site.here.lsn >= max(one for one in self.operated if one <= lsn):
            SEEN["read"] += 1
            self.compare(site, lsn, when)

    def step(self) -> None:
        self.world.stepping = True
        try:
            self.site.step()
        finally:
            self.world.stepping = False

    def make_room(self) -> None:
        state = self.site.window.state()
        if state.end_position - state.tail_position >= state.log_size // 2:
            self.world.lack = 0.0
        super().make_room()

    def drain(self, site: Site) -> None:
        if site is self.site:
            self.world.lack = 0.0
        super().drain(site)

    def check(self, world: World, rng: random.Random, *, again: bool = True) -> int:
        """Now and then there is no room at first after the crash either: it stands still again."""
        if again and rng.random() < 0.3:
            full = Filled.of(world, rng, 1.0)
            site = open_site(full, rng.getrandbits(32), options=self.options)
            try:
                self.opened(site)
                for _ in range(6):
                    site.step()
                SEEN["stands after a crash"] += site.shortage.stands
                self.look_at(site, site.end.lsn, "after a crash, while it stands still")
            finally:
                site.abandon()
            world.disks = full.disks
        return super().check(world, rng, again=again)


class FullViewStory(FullStory, ViewStory):
    """... and in which views are opened, which show what they say, or are refused."""

    def open_view(self) -> None:
        try:
            super().open_view()
        except Refused as error:
            assert error.reason == "space", error
            SEEN["view refused"] += 1


@pytest.mark.timeout(120)
@pytest.mark.parametrize("story", [FullStory, FullViewStory])
@pytest.mark.parametrize("seed", range(6))
def test_power_fails_while_it_stands_still(story: type[FullStory], seed: int) -> None:
    sector, alignment = ((512, 512), (512, 4096), (4096, 4096))[seed % 3]
    story(seed, sector_size=sector, alignment=alignment, region_size=(4096, 8192)[seed % 2]).run(
        steps=160, crash_rate=0.08, some=2)


# ---- a secondary


class Short(Pair):
    """A pair whose secondary finds no room now and then; it must never fail."""

    def __init__(self, seed: int, **options: int) -> None:
        super().__init__(seed, **options)
        self.heal()
        self.lack = 0.0

    @property
    def lack(self) -> float:
        return self.worlds[1].lack

    @lack.setter
    def lack(self, lack: float) -> None:
        if not isinstance(self.worlds[1], Filled):
            full = Filled.of(self.worlds[1], self.rng, lack)
            self.b.shelf.placement = self.worlds[1] = full
            for slot in self.b.stores.slots():
                self.b.stores.device(slot).world = full
        self.worlds[1].lack, self.worlds[1].stepping = lack, True

    def crash(self, which: int) -> None:
        lack = self.lack
        super().crash(which)
        if which:
            self.lack = lack

    def carry(self, turns: int = 40) -> None:
        """What was written at the primary reaches the secondary, and its journal."""
        for turn in range(turns):
            if self.session is None:
                self.connect()
            if not self.send():
                self.flush()
                self.settle(self.a)
            self.deliver()
            self.settle(self.b)
            if turn % 3 == 2:
                self.acknowledge()
            self.hear()

    def beat(self) -> None:
        """The secondary shows that it is alive."""
        self.to_a += self.replica.heartbeat()
        self.hear()


@pytest.fixture
def short():
    made = []

    def make(seed: int, **options: int) -> Short:
        made.append(Short(seed, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(8))
def test_a_secondary_stands_still_and_becomes_equal_by_itself(short, seed):
    one = short(seed)
    for _ in range(25):
        one.lack = one.rng.choice((0.0, 0.4, 1.0))
        for _ in range(one.rng.randrange(1, 6)):
            one.random_write() if one.rng.random() < 0.7 else one.random_operation()
        one.carry(one.rng.randrange(2, 12))
        if one.b.shortage.stands:
            SEEN["secondary stands"] += 1
        if one.rng.random() < 0.15:
            one.crash(1)
            one.settle(one.b)
            SEEN["secondary stands after a crash"] += one.b.shortage.stands
        if one.rng.random() < 0.1:
            one.crash(0)
    one.lack = 0.0
    one.heal()
    assert not one.b.shortage.stands and one.b.shortage.told() is None
    assert not one.link.refused, "nothing was given up for its data"


def stands(one: Short) -> None:
    """There is no room, and the secondary stands still before what is performed next."""
    one.lack = 1.0
    one.carry()
    one.beat()
    assert one.b.shortage.stands and one.link.stands == one.b.shortage.words() == one.link.status()["stands"]
    assert "No space left on device" in one.link.stands and one.link.is_open


@pytest.mark.parametrize("what", ["write", "create", "resize"])
def test_it_stands_still_at_that_point(short, what):
    """A write that is kept by copy before write; a store that needs a device; one that grows."""
    one = short(40)
    one.operate(operations.snapshot(one.a.end.catalog, ["a"], ["s"]))
    one.carry()
    before = one.lsn
    one.lack = 1.0
    if what == "write":
        one.write(1, 0, one.some_bytes(REGION))
    elif what == "create":
        one.operate(operations.clone(one.a.end.catalog, "a", "new"))
    else:
        one.operate(operations.resize(one.a.end.catalog, "a", 9 * REGION, force=False, region_size=REGION))
    one.operate(operations.snapshot(one.a.end.catalog, ["b"], ["later"]))
    for _ in range(3):
        one.write(2, REGION, one.some_bytes(REGION))
    stands(one)
    assert one.b.here.lsn == before, "nothing of it, and nothing behind it"
    assert one.link.base.lsn == one.lsn, "what its journal holds is acknowledged"
    told = one.b.shortage.told()
    assert told["error"] == os.strerror(errno.ENOSPC) and told["text"] == one.b.shortage.words()
    with pytest.raises(Refused, match=r"cannot lead now: it stands still after LSN .* No space left"):
        one.b.roles.take_lead(alone=True)
    assert one.b.role == SECONDARY
    one.lack = 0.0
    one.carry()
    one.beat()
    assert one.b.here.lsn == one.lsn and not one.link.stands
    one.heal()
    assert not one.link.bytes_sent["copied"] or one.link.status()["synced"]


def test_its_journal_takes_in_what_comes_and_then_pushes_back(short):
    one = short(41, journal_size=3 << 20)
    one.operate(operations.snapshot(one.a.end.catalog, ["a"], ["s"]))
    one.carry()
    one.lack = 1.0
    one.write(1, 0, one.some_bytes(REGION))
    stands(one)
    for turn in range(400):
        one.write(2, turn % 6 * REGION, one.some_bytes(REGION))
        one.carry(3)
        if any("cannot take more now" in error for error in one.errors):
            break
    else:
        raise AssertionError("it never pushes back")
    assert turn > 10, "its journal took in what came"
    assert one.b.shortage.stands and "cannot take more now" in one.link.stands
    one.cut()
    one.connect()
    one.deliver()
    one.hear()
    assert one.session is None and "cannot take more now" in one.link.last_error, "it says so at once, and is sent nothing"
    one.crash(1)
    one.carry(3)
    assert one.b.shortage.stands
    one.lack = 0.0
    one.heal()
    assert one.link.stands == "" and not one.b.shortage.stands


def test_a_view_is_made_of_what_is_wholly_performed(short):
    """Rule stand_whole: of an epoch that found no room the maps may be there, and not the data."""
    one = short(42)
    one.write(1, 0, b"old" + bytes(REGION - 3))
    one.write(2, 0, b"then" + bytes(REGION - 4))
    one.operate(operations.snapshot(one.a.end.catalog, ["b"], ["s"]))
    one.carry()
    one.operate(operations.restore(one.a.end.catalog, "a", "s", region_size=REGION))
    one.b.applier.resting = True  # the volume shows the snapshot's device
    one.carry()
    slot = one.b.shelf.places[1].slot
    assert one.b.stores.source(slot, 0) != slot and view.read(one.b.window, one.b.stores, 1, 0, 4) == b"then"
    one.lack = 1.0
    one.write(1, 0, b"new" + bytes(REGION - 3))
    stands(one)
    assert one.b.stores.source(slot, 0) == slot, "the map is ahead"
    with pytest.raises(Refused, match="cannot show what its stores show now"):
        one.b.views.open(1)
    assert view.read(one.b.window, one.b.stores, 1, 0, 3) == b"new", "readers find it in the journal"
    one.lack = 0.0
    entry = one.b.views.open(1)
    assert view.read(one.b.window, one.b.stores, entry.id, 0, 3) == b"new"


def test_the_mover_rests_and_goes_on(short):
    one = short(43)
    one.write(2, 0, b"then" + bytes(REGION - 4))
    one.operate(operations.snapshot(one.a.end.catalog, ["b"], ["s"]))
    one.b.applier.resting = True
    one.operate(operations.restore(one.a.end.catalog, "a", "s", region_size=REGION))
    one.carry()
    slot = one.b.shelf.places[1].slot
    assert one.b.stores.foreign(slot) and not one.b.shortage.stands
    one.lack, one.b.applier.resting, one.b.applier.moving = 1.0, False, True
    one.settle(one.b)
    assert not one.b.shortage.stands and "the mover rests" in one.b.shortage.mover_told()["text"]
    one.write(1, 0, one.some_bytes(REGION))
    stands(one)
    one.lack = 0.0
    one.carry()
    assert one.b.shortage.mover_told() is None and not one.b.stores.foreign(slot)
    one.heal()


def test_what_is_given_up_makes_room_while_it_stands_still(short):
    """A view that is closed: its device goes at once, however full the journal is."""
    one = short(44, journal_size=3 << 20)
    entry = one.b.views.open(1)
    path = one.b.shelf.places[entry.id].path
    one.operate(operations.snapshot(one.a.end.catalog, ["a"], ["s"]))
    one.carry()
    one.lack = 1.0
    one.write(1, 0, one.some_bytes(REGION))
    stands(one)
    for turn in range(400):
        one.write(2, turn % 6 * REGION, one.some_bytes(REGION))
        one.carry(3)
        if any("cannot take more now" in error for error in one.errors):
            break
    assert path in one.worlds[1].disks
    one.b.views.close(entry.id)
    one.settle(one.b)
    assert one.b.shortage.stands and path not in one.worlds[1].disks
    one.lack = 0.0
    one.heal()


def test_a_plugin_is_not_run_again_for_it(short):
    """A set with a plug-in, and a clone that finds no room for its device: what the plug-in did waits for that."""
    one = short(47)
    one.lack = 0.0
    plugs = [Plugs(1), Plugs(2)]
    for site, world, mine in zip((one.a, one.b), one.worlds, plugs, strict=True):
        site.plugins = world.plugins = mine
    catalog = one.a.end.catalog
    given = operations.encode_arguments({"salt": b"salt", "fails": False, "spots": 3})
    work = operations.perform(catalog, "mix", 1, given, [("b", None, None)], [("a", None, None)],
                              region_size=REGION)
    one.lack, one.worlds[1].only = 1.0, "-new"
    one.operate(operations.Set([work, operations.clone(catalog, "b", "new")]))
    one.carry()
    one.beat()
    assert one.b.shortage.stands and plugs[1].begun == 1, "it has run, and is not performed"
    one.settle(one.b)
    one.lack = 0.0
    one.heal()
    assert [mine.begun for mine in plugs] == [1, 1] and not one.link.refused
    assert not [path for path in one.worlds[1].disks if "work-on" in path and path not in one.b.shelf.paths]


def test_what_a_delayed_secondary_shows_after_a_crash(short):
    """Rule stand_whole: what was begun, and is parked again by the start, is not shown before it is performed."""
    one = short(48)
    for site in (one.a, one.b):
        site.window.set_time(BEGIN)
    one.b.exclusive(lambda: one.b.delay.set(5.0))
    one.operate(operations.snapshot(one.a.end.catalog, ["a"], ["s"]))
    one.carry()
    one.b.window.set_time(BEGIN + 6 * 10**9)
    one.settle(one.b)
    one.a.window.set_time(BEGIN + 6 * 10**9)
    for region in range(6):
        one.write(1, region * REGION, one.some_bytes(REGION))
    one.carry()
    assert one.b.protective.is_settled
    one.lack = 1.0
    one.b.window.set_time(BEGIN + 12 * 10**9)
    one.settle(one.b)
    assert one.b.shortage.stands and one.b.protective.is_settled, "readers find it in the window"
    one.crash(1)
    one.b.window.set_time(BEGIN + 12 * 10**9)
    one.b.shelf.placement.stepping = True
    one.b.step()
    state = one.b.window.state()
    assert one.b.shortage.stands
    assert one.b.protective.is_settled == (state.shown_position is None or state.shown_position >= state.end_position)
    one.lack = 0.0
    one.b.window.set_time(BEGIN + 30 * 10**9)
    one.settle(one.b)
    assert one.b.protective.is_settled and not one.b.shortage.stands
    one.compare(one.truth[one.lsn])


def test_a_primary_stands_still_too(short):
    """The write has returned, and is in the journal: it loses nothing, and steps down when everything is performed."""
    one = short(45)
    one.operate(operations.snapshot(one.a.end.catalog, ["a"], ["s"]))
    one.settle(one.a)
    full = Filled.of(one.worlds[0], one.rng, 1.0)
    for slot in one.a.stores.slots():
        one.a.stores.device(slot).world = full
    data = one.some_bytes(REGION) or bytes(REGION)
    one.write(1, 0, data)
    one.settle(one.a)
    assert one.a.shortage.stands and one.a.window.flush() == one.lsn
    assert view.read(one.a.window, one.a.stores, 1, 0, REGION) == data
    one.a.roles.hold(True)
    with pytest.raises(Refused, match="cannot step down now: it stands still"):
        one.a.roles.step_down()
    one.a.roles.hold(False)
    full.lack = 0.0
    one.heal()
    assert not one.a.shortage.stands


def test_a_flush_that_fails_for_it_is_a_failure(short):
    """What was written may be lost by then: the site does not go on from there."""
    one = short(49)
    one.write(2, 0, b"then" + bytes(REGION - 4))
    one.operate(operations.snapshot(one.a.end.catalog, ["b"], ["s"]))
    one.carry()
    one.lack = 0.0

    def fail(what: str, path: str) -> None:
        if what == "flush" and path != "journal":
            raise no_room(path)

    one.worlds[1].on_tick = fail
    one.write(2, 0, one.some_bytes(REGION))
    with pytest.raises(OSError, match="No space left on device"):
        one.carry()
    assert not one.b.shortage.stands


def test_the_clock_may_be_set(monkeypatch: pytest.MonkeyPatch, short) -> None:
    """It is tried again once a second, whichever way the clock goes meanwhile, and at once for whoever needs it."""
    monkeypatch.setattr(shortage, "AGAIN", 1.0)
    one = short(46)
    one.operate(operations.snapshot(one.a.end.catalog, ["a"], ["s"]))
    one.carry()
    now = 10**18
    one.b.window.set_time(now)
    one.write(1, 0, one.some_bytes(REGION))
    stands(one)
    for set_to, tries in ((now + 9 * 10**8, 0), (now + 10**9, 1), (now - 10**15, 1), (now - 10**15 + 9 * 10**8, 0)):
        one.b.window.set_time(set_to)
        before = one.worlds[1].ticks
        one.b.step()
        assert (one.worlds[1].ticks > before) == tries
        assert 0 <= one.b.wait <= 1
    before = one.worlds[1].ticks
    one.b.applier.catch_up()
    assert one.worlds[1].ticks > before
    one.lack = 0.0
    one.b.applier.catch_up()
    assert not one.b.shortage.stands and one.b.wait is None


def test_all_of_it_came(request: pytest.FixtureRequest) -> None:
    if len(request.session.items) < 20:
        pytest.skip("only a part of the stories was asked for")
    for what in ("stands", "stands after a crash", "view refused", "read", "secondary stands",
                 "secondary stands after a crash"):
        assert SEEN[what], SEEN
