"""Delayed apply: a secondary holds everything durably at once and performs it later, against the truth of each LSN."""

from __future__ import annotations

import random

import pytest

from pyrepl import operations
from pyrepl._core import view
from pyrepl.delay import MOST_DELAY, SECOND
from pyrepl.errors import UsageError
from pyrepl.link import Link
from pyrepl.protective import Protective
from tests.support.pair import REGION, Pair

BEGIN = 4_000_000_000  # seconds since 1970, when the stories begin: later than what the clock says


class Late(Pair):
    """A pair whose sites have one clock, which stands still between steps, and whose secondary is delayed."""

    def __init__(self, seed: int, **options: int) -> None:
        super().__init__(seed, **options)
        self.now = BEGIN
        self.times: dict[int, int] = {}  # LSN -> when it was written
        self.tick(0)

    def tick(self, seconds: int) -> None:
        self.now += seconds
        for site in (self.a, self.b):
            site.window.set_time(self.now * SECOND)

    def reopen(self, which: int) -> None:
        super().reopen(which)
        self.tick(0)

    def delay(self, seconds: float) -> None:
        self.b.exclusive(lambda: self.b.delay.set(seconds))

    def arrive(self) -> None:
        """All that the primary has reaches the secondary's journal, and is acknowledged as durable."""
        for _ in range(3000):
            if self.session is None:
                self.connect()
            self.flush()
            if not self.send() and not self.link.stream.flight and self.link.base.lsn >= self.lsn:
                return
            self.settle(self.a)
            self.deliver()
            self.acknowledge()
            self.hear()
        raise AssertionError(f"seed {self.seed}: it does not arrive: {self.link.status()} {self.errors[-3:]}")

    def shows(self, lsn: int) -> None:
        """What readers see at the secondary is this LSN, and it says so."""
        assert self.b.here.lsn == self.b.window.state().applied_lsn == lsn
        assert self.b.here.consistent
        assert {s.id: s.size for s in self.b.visible} == {k: len(v) for k, v in self.truth[lsn].items()}
        self.compare(self.truth[lsn])
        for store in self.truth[lsn]:
            assert self.b.window.store_size(store) == len(self.truth[lsn][store])
        for store in set(self.b.end.catalog.stores) - set(self.truth[lsn]):
            assert self.b.window.store_size(store) is None


@pytest.fixture
def late():
    made = []

    def make(*args, **options):
        made.append(Late(*args, **options))
        return made[-1]
    yield make
    for one in made:
        one.close()


def equal_then_delayed(one: Late, seconds: float) -> int:
    one.heal()
    one.delay(seconds)
    return one.lsn


def test_what_arrives_is_durable_at_once_and_performed_later(late):
    one = late(1)
    before = equal_then_delayed(one, 60)
    one.write(1, 0, b"x" * REGION)
    one.arrive()
    status = one.link.status()
    assert status["durable_lsn"] == one.lsn and status["applied_lsn"] == before
    one.shows(before)
    assert one.b.delay.told() == {"seconds": 60.0, "waiting_bytes": 4096 + REGION, "oldest": float(BEGIN), "shortened": None}
    assert one.b.delay.wait == 60.0
    one.tick(30)
    one.write(1, 512, b"y" * 512)
    one.arrive()
    one.tick(29)
    one.settle(one.b)
    one.shows(before)
    one.tick(1)
    one.settle(one.b)
    one.shows(before + 1)
    one.tick(30)
    one.settle(one.b)
    one.shows(before + 2)
    assert one.b.delay.told() == {"seconds": 60.0, "waiting_bytes": 0, "oldest": None, "shortened": None}


def test_readers_do_not_see_operations_that_wait_nor_wait_for_them(late):
    """A snapshot, a new volume, a resize, a restore, the deletion of a volume: each is seen when its time has come."""
    one = late(2)
    steps = [equal_then_delayed(one, 10)]
    catalog = one.a.end.catalog
    for make in (
        lambda: operations.snapshot(catalog, ["a"], ["s"]),
        lambda: operations.add_volume(catalog, "new", 2 * REGION, zero=True, region_size=REGION),
        lambda: operations.resize(catalog, "b", 9 * REGION, force=True, region_size=REGION),
        lambda: operations.resize(catalog, "b", 2 * REGION, force=True, region_size=REGION),
        lambda: operations.restore(catalog, "a", "s", None, None, region_size=REGION),
        lambda: operations.delete(catalog, "s"),
        lambda: operations.remove_volume(catalog, "b"),
    ):
        one.write(1, 0, one.some_bytes(512))
        steps.append(one.lsn)
        one.operate(make())
        steps.append(one.lsn)
        one.arrive()
        one.settle(one.b)
        one.shows(steps[0])
        one.tick(1)
    one.write(1, 0, one.some_bytes(512))
    one.arrive()
    one.tick(3)
    for number in range(2, len(steps), 2):  # ten seconds after each pair of them
        one.settle(one.b)
        one.shows(steps[number])
        one.tick(1)
    one.tick(10)
    one.settle(one.b)
    one.shows(one.lsn)


def test_a_delay_that_ends_shows_everything_at_once_and_the_delay_begins_again(late):
    one = late(3)
    equal_then_delayed(one, 100)
    for _ in range(50):
        one.random_write()
    one.arrive()
    one.delay(0)
    one.settle(one.b)
    one.shows(one.lsn)
    assert one.b.window.state().shown_position is None
    one.delay(5)
    now = one.lsn
    one.random_write()
    one.arrive()
    one.shows(now)


def test_memory_is_not_the_bound(late):
    """More waits than the ring holds: it stands in the journal only, and comes back from there."""
    one = late(4, journal_size=64 << 20)
    before = equal_then_delayed(one, 60)
    ring = one.b.window.state().ring_size
    written = 0
    while written < ring * 3 // 2:
        for region in range(6):
            one.write(1, region * REGION, one.some_bytes(REGION))
            written += REGION
        if written % (64 * REGION) == 0:
            one.arrive()
            one.tick(0)
    one.arrive()
    one.shows(before)
    assert one.b.window.state().ring_used < ring // 8
    assert one.b.delay.told()["shortened"] is None
    middle = one.lsn
    one.tick(30)
    one.write(2, 0, one.some_bytes(512))
    one.arrive()
    one.tick(31)
    one.settle(one.b)
    one.shows(middle)
    one.tick(30)
    one.settle(one.b)
    one.shows(one.lsn)


def test_a_journal_that_fills_shortens_the_delay_and_says_why(late):
    one = late(5)
    before = equal_then_delayed(one, 3600)
    for _ in range(1500):
        one.write(1, one.rng.randrange(6) * REGION, one.some_bytes(REGION))
        if one.rng.random() < 0.1:
            one.arrive()
    one.arrive()
    told = one.b.delay.told()
    assert told["shortened"] and "journal" in told["shortened"]
    here = one.b.here.lsn
    assert before < here < one.lsn, "the oldest was performed, and no more than had to be"
    assert one.link.status()["durable_lsn"] == one.lsn
    assert one.b.room // 4 < told["waiting_bytes"] <= one.b.room // 2
    one.shows(here)
    one.tick(4000)
    one.settle(one.b)
    one.write(1, 0, one.some_bytes(512))
    one.arrive()
    one.tick(4000)
    one.settle(one.b)
    assert one.b.delay.told()["shortened"] is None
    one.shows(one.lsn)


def test_a_journal_without_room_for_a_delay_stalls_nobody(late):
    one = late(6, journal_size=7 << 20)
    equal_then_delayed(one, 3600)
    for _ in range(600):
        one.write(1, one.rng.randrange(6) * REGION, one.some_bytes(REGION))
    one.arrive()
    assert one.b.delay.told()["shortened"]


@pytest.mark.parametrize("crash", [False, True])
def test_a_delay_is_kept_over_a_restart(late, crash):
    one = late(7)
    before = equal_then_delayed(one, 60)
    for _ in range(20):
        one.random_write()
    one.operate(operations.snapshot(one.a.end.catalog, ["a"], ["s"]))
    one.random_write()
    one.arrive()
    if crash:
        one.crash(1)
    else:
        one.cut()
        one.b.close()
        one.reopen(1)
    assert one.b.delay.seconds == 60.0
    one.settle(one.b)
    one.shows(before)
    one.arrive()
    one.tick(61)
    one.settle(one.b)
    one.shows(one.lsn)


def test_a_site_that_takes_the_lead_performs_everything_first(late):
    one = late(8)
    equal_then_delayed(one, 60)
    for _ in range(20):
        one.random_write()
    one.operate(operations.remove_volume(one.a.end.catalog, "b"))
    one.arrive()
    one.cut()
    assert one.b.roles.take_lead(alone=True) == one.lsn
    one.b.window.write(1, 0, b"z" * 512)
    one.settle(one.b)
    assert view.read(one.b.window, one.b.stores, 1, 0, 512) == b"z" * 512
    assert one.b.window.store_size(2) is None and one.b.delay.seconds == 60.0
    one.b.attach(Link(one.b, "back", address="a:1", mode="async"))


def test_a_refused_promotion_leaves_the_delay(late):
    one = late(9)
    before = equal_then_delayed(one, 60)
    one.write(1, 0, b"x" * 512)
    one.arrive()
    one.cut()
    with pytest.raises(Exception, match="stepped down"):
        one.b.roles.take_lead(alone=False)
    assert one.b.here.lsn in (before, one.lsn)  # it may have been performed for the attempt
    one.connect()
    one.arrive()
    now = one.b.here.lsn
    one.write(1, 0, b"y" * 512)
    one.arrive()
    one.shows(now)


def test_what_waits_is_performed_before_a_resync(late):
    """The protective snapshot holds the last state of one moment: all that has arrived."""
    one = late(14)
    equal_then_delayed(one, 3600)
    one.write(1, 0, b"x" * 512)
    one.arrive()
    one.cut()
    last = one.lsn
    one.write(1, 512, b"y" * 512)
    one.flush()
    one.settle(one.a)
    one.link.fold(one.a.window.state().applied_position)
    one.a.checkpoint()
    one.connect()
    while one.b.end.consistent:
        one.send()
        one.deliver()
        one.acknowledge()
        one.hear()
    kept = one.b.protective.snapshot
    assert kept is not None and kept.lsn == last
    one.arrive()
    one.tick(4000)
    one.settle(one.b)
    one.heal()


def test_a_view_is_of_what_is_performed(late):
    """And does not wait: it is how what an operator did wrong is looked at as it was before."""
    one = late(10)
    before = equal_then_delayed(one, 60)
    one.operate(operations.zero(one.a.end.catalog, "a", 0, 6 * REGION, region_size=REGION))
    one.arrive()
    entry = one.b.views.open(1)
    assert entry.lsn == before
    assert view.read(one.b.window, one.b.stores, entry.id, 0, 6 * REGION) == one.truth[before][1]
    one.tick(61)
    one.settle(one.b)
    one.shows(one.lsn)
    assert view.read(one.b.window, one.b.stores, entry.id, 0, 6 * REGION) == one.truth[before][1]
    one.b.views.close(entry.id)


def test_what_is_shown_is_found_before_it_is_applied(late):
    """Read back from the log, it is what a reader finds beside an applier that has re-pointed a region and not written it yet;
    and an operation that is shown makes readers wait."""
    one = late(12)
    before = equal_then_delayed(one, 60)
    one.write(1, 0, b"x" * 512)
    middle = one.lsn
    one.operate(operations.zero(one.a.end.catalog, "b", 0, REGION, region_size=REGION))
    one.write(1, 512, b"y" * 512)
    one.arrive()
    window = one.b.window
    state = window.state()
    assert state.ring_used == 0 and state.notes > 0
    assert window.show(state.durable_position, BEGIN * SECOND - 1, 1 << 20) == (state.applied_position, BEGIN * SECOND)
    window.settle(2, wait=False)
    shown, following = window.show(state.durable_position, BEGIN * SECOND, 1)
    assert state.applied_position < shown < state.durable_position and following == 0
    assert view.read(window, one.b.stores, 1, 0, 1024) == b"x" * 512 + one.truth[before][1][512:1024]
    assert window.show(state.durable_position, BEGIN * SECOND, 1 << 20)[0] == state.durable_position
    with pytest.raises(BlockingIOError):
        window.settle(2, wait=False)
    assert view.read(window, one.b.stores, 1, 0, 1024) == b"x" * 512 + b"y" * 512
    entry = window.entry(state.applied_position)
    one.settle(one.b)
    with entry:
        assert entry.first_lsn == middle and bytes(entry.payload[:512]) == b"x" * 512
    one.shows(one.lsn)
    assert window.state().notes == 0


def test_room_for_the_notes_of_what_waits_grows_with_the_views(late):
    """Each store and view may have to be re-pointed by what waits: the log keeps room for that, counted anew."""
    one = late(13)
    equal_then_delayed(one, 60)
    for region in range(6):
        one.write(1, region * REGION, one.some_bytes(512))
    one.arrive()
    alone = one.b.window.state().notes
    entries = [one.b.views.open(1) for _ in range(3)]
    assert one.b.window.state().notes == alone * (2 + 3 + 2) // (2 + 2) > 0
    one.tick(61)
    one.settle(one.b)
    one.shows(one.lsn)
    assert one.b.window.state().notes == 0
    for entry in entries:
        one.b.views.close(entry.id)


@pytest.mark.parametrize("value", [-1, MOST_DELAY + 1, True, "10", None, float("nan")])
def test_a_delay_that_cannot_be(late, value):
    one = late(11)
    with pytest.raises(UsageError, match="delay"):
        one.b.delay.set(value)
    assert one.b.delay.seconds == 0.0


@pytest.mark.parametrize("seed", range(1000, 1024))
def test_stories(late, seed, monkeypatch):
    """Writes, operations, cuts, power losses, folds, delays that change, a clock that jumps: what readers see is always
    what the primary was at one LSN, never younger than the delay allows, and nothing waits that is older."""
    one = late(seed)
    rng: random.Random = one.rng
    one.heal()
    real, kept = Protective._keep, [0]  # LSNs: before a resync everything is performed

    def keep(self: Protective) -> None:
        real(self)
        kept.append(self.site.here.lsn)

    monkeypatch.setattr(Protective, "_keep", keep)
    written, shown = {one.lsn: one.now}, one.lsn
    weights = {"write": 20, "operate": 5, "arrive": 6, "some": 20, "tick": 8, "delay": 2, "cut": 2, "crash": 2, "fold": 1,
               "checkpoint": 3, "check": 10}
    for _ in range(150):
        match rng.choices(list(weights), list(weights.values()))[0]:
            case "write":
                one.random_write()
            case "operate":
                one.random_operation()
            case "arrive":
                one.arrive()
            case "some":
                if one.session is None:
                    one.connect()
                one.flush()
                one.send()
                one.deliver(rng.choice([100, 5000, 100000]))
                one.acknowledge(rng.random() < 0.7)
                one.hear()
            case "tick":
                one.tick(rng.choice([1, 3, 10, 40]))
            case "delay":
                one.delay(rng.choice([0, 5, 30]))
                one.settle(one.b)
                shown = one.b.here.lsn  # performed under what was chosen before, or when there was no delay
            case "cut":
                one.cut()
            case "crash":
                one.crash(1)
            case "fold":
                one.flush()
                one.settle(one.a)
                one.link.fold(one.a.window.state().applied_position)
                one.a.checkpoint()
                shown = one.lsn  # what is folded comes as data, and those do not wait
            case "checkpoint":
                one.b.checkpoint()
            case "check":
                one.settle(one.b)
                one.b.window.make_durable(one.b.window.state().end_position)
                one.settle(one.b)
                here, seconds = one.b.here, one.b.delay.seconds
                if here.consistent:
                    one.shows(here.lsn)
                    late = [lsn for lsn, time in written.items() if here.lsn < lsn <= one.b.end.lsn and time <= one.now - seconds]
                    assert not late, f"seed {seed}: {late} are old enough"
                    shown = max(shown, *kept)
                    young = [lsn for lsn, time in written.items() if shown < lsn <= here.lsn and time > one.now - seconds]
                    assert not young, f"seed {seed}: {young} are too young"
        one.flush()  # the time of an event is when its batch was closed
        for lsn in range(max(written) + 1, one.lsn + 1):
            written[lsn] = one.now
    one.delay(0)
    one.heal()
    assert one.b.window.state().shown_position is None
