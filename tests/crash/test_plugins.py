"""Power loss around plug-in operations: all of what one wrote or nothing of it, at one site and at a secondary that has
the same plug-in, lacks it, or does something else."""

from __future__ import annotations

import inspect
import random
import textwrap
from collections.abc import Callable

import pytest

from pyrepl import divergence, operations, recovery, workshop
from pyrepl.catalog import Catalog
from pyrepl.divergence import Divergence
from pyrepl.errors import PyreplError
from pyrepl.operations import Operation, Perform
from pyrepl.workshop import Bench, Workshop
from tests.support.far import FarPair
from tests.support.pair import REGION
from tests.support.plugs import Plugs, random_work
from tests.support.story import Story, Violation

SEEDS = range(1100, 1118)
FAR_SEEDS = range(1120, 1140)
COUNT = {"images": 0, "works": 0, "sets": 0, "far images": 0, "far works": 0, "refused": 0, "healed": 0}


def random_operation(rng: random.Random, catalog: Catalog, region: int, stamp: str) -> Operation | None:
    """A plug-in, alone or in a set; None: this time there is none."""
    if rng.random() < 0.6:
        return random_work(rng, catalog, region)
    makers: list[Callable[[Catalog], Operation]] = [lambda c: random_work(rng, c, region) for _ in range(2)]
    if len(catalog.stores) < 7:
        makers.append(lambda c: operations.snapshot(c, [rng.choice([s.name for s in catalog])], [stamp]))
    for _ in range(6):
        try:
            return operations.unordered(catalog, rng.sample(makers, 2))
        except PyreplError:
            continue  # a conflict
    return None


class WorkStory(Story):
    """Half of its operations are plug-ins."""

    works = sets = 0

    def operate(self) -> None:
        if self.rng.random() < 0.4:
            super().operate()
            return
        self.make_room()
        operation = random_operation(self.rng, self.site.end.catalog, self.region, f"w{self.oracle.lsn}")
        if operation is not None:
            self.works += isinstance(operation, Perform)
            self.sets += not isinstance(operation, Perform)
            self.perform(operation)


class FarWorks(FarPair):
    """The same at a primary that feeds a secondary, whose plug-in is not always the same one."""

    works = refused = 0

    def __init__(self, seed: int, wrong: Callable[[bytes], str], **options: float) -> None:
        super().__init__(seed, **options)  # type: ignore[arg-type]
        self.worlds[0].plugins = self.a.plugins = Plugs(seed)
        self.worlds[1].plugins = self.b.plugins = Plugs(seed + 1, wrong)

    def random_operation(self) -> None:
        if self.rng.random() < 0.4:
            super().random_operation()
            return
        self.fresh += 1
        catalog = self.a.end.catalog
        operation = random_operation(self.rng, catalog, REGION, f"w{self.fresh}") if catalog.stores else None
        if operation is not None:
            self.works += 1
            self.operate(operation)

    def turn(self, what: str) -> None:
        before = self.b.end.refusals
        super().turn(what)
        self.refused += len(set(self.b.end.refusals) - set(before))


def tell(seed: int, *, rate: float = 0.15) -> WorkStory:
    sector, alignment = ((512, 512), (512, 4096), (4096, 4096))[seed % 3]
    story = WorkStory(seed, sector_size=sector, alignment=alignment, region_size=(4096, 8192)[seed % 2])
    story.world.plugins = story.site.plugins = Plugs(seed)
    COUNT["images"] += story.run(steps=160, crash_rate=rate, some=3)
    return story


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_plugin_is_performed_whole_or_not_at_all(seed: int) -> None:
    story = tell(seed)
    COUNT["works"] += story.works
    COUNT["sets"] += story.sets


def under_fire(seed: int) -> FarWorks:
    words = ("", "", "missing", "fails", "says", "writes")
    one = FarWorks(seed, lambda salt: words[salt[0] % 6] if seed % 2 else "", rate=0.06, heal_rate=0.15)
    try:
        one.watch()
        one.tell(260, operate=14)
    finally:
        one.worlds[1].on_tick = None
        one.close()
    return one


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", FAR_SEEDS)
def test_a_secondary_under_fire(seed: int) -> None:
    one = under_fire(seed)
    COUNT["far images"] += one.images
    COUNT["far works"] += one.works
    COUNT["refused"] += one.refused
    COUNT["healed"] += one.healed


def test_that_was_enough() -> None:
    if COUNT["images"] == 0 or COUNT["far images"] == 0:
        pytest.skip("the stories run elsewhere")
    print(COUNT)
    assert COUNT["images"] > 700 and COUNT["works"] > 80 and COUNT["sets"] > 40, COUNT
    assert COUNT["far works"] > 150 and COUNT["refused"] > 40 and COUNT["healed"] > 40, COUNT


def changed(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, module: object, old: str, new: str) -> None:
    """The function, with a piece of it replaced."""
    source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
    assert source.count(old) == 1, f"{old!r} is not in {name}"
    space = dict(vars(module))
    exec(compile("from __future__ import annotations\n" + source.replace(old, new), f"<{name}>", "exec"), space)
    monkeypatch.setattr(owner, name, space[name])


class TestTheTestSees:
    """What would lose or invent something, done on purpose."""

    @pytest.mark.timeout(300)
    def test_a_result_that_is_not_on_the_disk_before_the_note(self, monkeypatch: pytest.MonkeyPatch) -> None:
        changed(monkeypatch, Bench, "settle", workshop, "self.device.flush()", "pass")
        with pytest.raises(Violation):
            for seed in SEEDS:
                tell(seed, rate=0.3)

    @pytest.mark.timeout(300)
    def test_a_start_that_forgets_what_was_swapped_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        changed(monkeypatch, recovery, "_take_note", recovery, "worked=note.worked", "worked=[]")
        with pytest.raises(Violation):
            for seed in SEEDS:
                tell(seed, rate=0.3)

    @pytest.mark.timeout(300)
    def test_what_it_writes_into_the_store_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It reads what is not of its point: the newest that was written."""
        changed(monkeypatch, Bench, "_read_store", workshop, "stores.resolve(self.store, offset, length)",
                "([], 0, 0) if parts.append(__import__('pyrepl._core.view').view.read(self._site.window, stores, "
                "self.store, offset, length)) else ([], length, 0)")
        monkeypatch.setattr(Perform, "blocks", property(lambda self: []))
        with pytest.raises(Violation):
            for seed in SEEDS:
                tell(seed, rate=0.1)

    @pytest.mark.timeout(300)
    @pytest.mark.parametrize(("name", "old", "new"), [
        ("_rework", "refused or ", ""),
        ("_rework", "if differs:", "if False:"),
    ])
    def test_an_algebra_that_says_too_little(
        self, monkeypatch: pytest.MonkeyPatch, name: str, old: str, new: str
    ) -> None:
        changed(monkeypatch, Divergence, name, divergence, old, new)
        with pytest.raises(AssertionError):
            for seed in FAR_SEEDS:
                under_fire(seed)

    @pytest.mark.timeout(300)
    def test_a_secondary_that_does_not_compare(self, monkeypatch: pytest.MonkeyPatch) -> None:
        changed(monkeypatch, Workshop, "_judge", workshop, "job.outcome != told", "False")
        with pytest.raises(AssertionError):
            for seed in FAR_SEEDS:
                under_fire(seed)
