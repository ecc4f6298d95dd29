"""Power loss around the views of a verification: promised, half of them opened, open, or closed. None outlives the process,
nothing of them stays on the disks, and the group is what it was without them."""

from __future__ import annotations

import random
from typing import Any

import pytest

from pyrepl import operations
from pyrepl.catalog import Catalog, View
from pyrepl.errors import UsageError
from pyrepl.views import Views
from tests.support.far import FarPair
from tests.support.pair import REGION
from tests.support.story import ViewStory, Violation

SEEDS = range(760, 778)
FAR_SEEDS = range(780, 794)
COUNT = {"images": 0, "kept": 0, "inside": 0, "far images": 0, "far kept": 0, "far inside": 0, "healed": 0}


def compared(operation: operations.Operation, rng: random.Random, catalog: Catalog, region: int) -> operations.Operation:
    """Often, the same with its result to be compared, if there is one."""
    try:
        if rng.random() < 0.5:
            return operations.verified(catalog, operation, rng.randbytes(16), region_size=region)
    except UsageError:
        pass
    return operation


class VerifyStory(ViewStory):
    """A story with verifications of one to four stores, and of results of operations, besides other views."""

    def __init__(self, seed: int, **options: int) -> None:
        self.kept = 0
        super().__init__(seed, **options)

    def act(self) -> None:
        roll = self.dice.random()
        if roll < 0.1:
            self.make_room()
            stores = sorted(self.site.end.catalog.stores)
            some = self.dice.sample(stores, min(len(stores), self.dice.choice((1, 2, 4))))
            self.perform(operations.verify(self.site.end.catalog, some, self.dice.randbytes(16)))
        elif roll < 0.14:
            self.site.verification.sweep()
        elif roll < 0.17:
            self.site.verification.forget(self.site.verification.lsn)
        else:
            super().act()
        for entry in self.site.verification.views.values():
            if entry.id in self.site.views.opened:  # else the story has closed it by its number
                self.look(entry)
                self.kept += 1

    def perform(self, operation: operations.Operation) -> None:
        super().perform(compared(operation, self.rng, self.site.end.catalog, self.region))

    def run(self, steps: int, crash_rate: float, some: int) -> int:
        count = super().run(steps, crash_rate, some)
        assert not self.site.verification.problem, self.site.verification.problem
        return count


class FarVerify(FarPair):
    """The same at a secondary that is fed, and performs when it pleases."""

    def __init__(self, seed: int, **options: Any) -> None:
        super().__init__(seed, **options)
        self.kept = 0
        self.sure: dict[int, bool] = {}  # LSN of a verification that is kept -> it was consistent there

    def random_operation(self) -> None:
        if self.rng.random() < 0.5:
            super().random_operation()
            return
        stores = sorted(self.a.end.catalog.stores)
        if stores:
            some = self.rng.sample(stores, min(len(stores), self.rng.choice((1, 3))))
            self.operate(operations.verify(self.a.end.catalog, some, self.rng.randbytes(16)))

    def operate(self, operation: operations.Operation) -> None:
        super().operate(compared(operation, self.rng, self.a.end.catalog, REGION))

    def turn(self, what: str) -> None:
        if what != "perform":
            super().turn(what)
            return
        self.b.window.commit_pending()
        for _ in range(self.rng.choice((1, 3, 20))):
            self.step()

    def step(self) -> bool:
        stepped = self.b.step()
        self.sure.setdefault(self.b.verification.lsn, self.b.here.consistent)
        return stepped

    def settle(self, site: Any) -> None:
        if site is not self.b:
            super().settle(site)
            return
        while site.window.commit_pending() or self.step():
            pass

    def crash(self, which: int) -> None:
        super().crash(which)
        self.sure.clear()

    def views_to_look_at(self) -> list[View]:
        kept = self.b.verification.views
        self.kept += len(kept)
        ours = {entry.id for entry in kept.values() if not self.sure.get(self.b.verification.lsn)}
        return [entry for entry in self.b.views.opened.values() if entry.id not in ours]


def tell(seed: int, *, rate: float = 0.15) -> VerifyStory:
    sector, alignment = ((512, 512), (512, 4096), (4096, 4096))[seed % 3]
    story = VerifyStory(seed, sector_size=sector, alignment=alignment, region_size=(4096, 8192)[seed % 2])
    COUNT["images"] += story.run(steps=140, crash_rate=rate, some=3)
    return story


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many disk events there were while views of a verification were being opened."""
    real, events = Views.open_promised, [0]

    def counted(self: Views, token: bytes, stores: list[int]) -> Any:
        world = self.site.shelf.placement
        before = world.ticks  # type: ignore[attr-defined]
        try:
            return real(self, token, stores)
        finally:
            events[0] += world.ticks - before  # type: ignore[attr-defined]

    monkeypatch.setattr(Views, "open_promised", counted)
    return events


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", SEEDS)
def test_views_of_a_verification_are_gone_after_a_crash(seed: int, inside: list[int]) -> None:
    COUNT["kept"] += tell(seed).kept
    COUNT["inside"] += inside[0]


@pytest.mark.timeout(300)
def test_every_disk_event_while_they_are_opened(inside: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not some of the events but all: what a kill and what a power loss leaves at each of them."""
    counted, judged = Views.open_promised, [0]
    story = VerifyStory(795)

    def under_fire(self: Views, token: bytes, stores: list[int]) -> Any:
        if self is not story.site.views:
            return counted(self, token, stores)
        world = story.world

        def on_tick(what: str, path: str) -> None:
            for image in world.images(story.dice, 2):
                judged[0] += 1
                story.check(image, story.dice)

        world.on_tick = on_tick
        try:
            return counted(self, token, stores)
        finally:
            world.on_tick = None

    monkeypatch.setattr(Views, "open_promised", under_fire)
    for _ in range(250):
        story.act()
    assert judged[0] > 100 and inside[0] > 50 and story.kept > 100, (judged, inside, story.kept)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", FAR_SEEDS)
def test_a_secondary_that_is_verified(seed: int, inside: list[int]) -> None:
    one = FarVerify(seed, rate=0.15, heal_rate=0.2)
    try:
        one.heal()
        one.watch()
        one.tell(180, operate=14)
    finally:
        one.worlds[1].on_tick = None
        one.close()
    COUNT["far images"] += one.images
    COUNT["far kept"] += one.kept
    COUNT["far inside"] += inside[0]
    COUNT["healed"] += one.healed


def test_images_were_enough(request: pytest.FixtureRequest) -> None:
    if len(request.session.items) < len(SEEDS) + len(FAR_SEEDS) + 2:
        pytest.skip("only a part of the seeds was asked for")
    print(COUNT)
    assert COUNT["images"] >= 700 and COUNT["kept"] >= 500 and COUNT["inside"] >= 300
    assert COUNT["far images"] >= 250 and COUNT["far kept"] >= 300 and COUNT["far inside"] >= 100 and COUNT["healed"] >= 30


class TestTheTestSees:
    """What would leave something behind, done on purpose."""

    @pytest.mark.timeout(300)
    def test_a_start_that_does_not_close_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Views, "close_all", lambda self: None)
        with pytest.raises(Violation, match="dead process"):
            for seed in SEEDS:
                tell(seed, rate=0.3)

    @pytest.mark.timeout(300)
    def test_notes_that_are_not_durable_before_the_map_changes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import inspect
        import textwrap

        source = textwrap.dedent(inspect.getsource(Views._open_all))
        kept = "site.window.make_durable(position)  # rule view_note"
        assert source.count(kept) == 1
        space: dict[str, Any] = dict(vars(__import__("pyrepl.views", fromlist=["Views"])))
        exec(compile("from __future__ import annotations\n" + source.replace(kept, "pass"), "<views>", "exec"), space)
        monkeypatch.setattr(Views, "_open_all", space["_open_all"])
        with pytest.raises(Violation):
            for seed in range(800, 840):
                tell(seed, rate=0.3)
