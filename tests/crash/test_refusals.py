"""Operations from images that a secondary has, lacks, or has otherwise: what it cannot perform comes as data, whatever fails."""

from __future__ import annotations

import random

import pytest

from pyrepl import operations
from pyrepl._core import view
from pyrepl.catalog import ImageKey
from pyrepl.errors import PyreplError, Refused
from pyrepl.items import MOST_REFUSALS, Refusal
from pyrepl.operations import Operation
from tests.support.far import FarPair
from tests.support.pair import REGION, Pair
from tests.support.simulation import add_image

SEEDS = range(1000, 1016)
COUNT = {"images": 0, "copies": 0, "refused": 0, "healed": 0}


class FarImages(FarPair):
    """Half of the operations are from images. The secondary has a copy, has none, or has another one of that name."""

    def __init__(self, seed: int, **options: float) -> None:
        super().__init__(seed, **options)  # type: ignore[arg-type]
        self.dice = random.Random(seed ^ 0x1A6E)
        self.keys: list[ImageKey] = []
        self.copies = self.refused = 0
        for number in range(4):
            content = b"".join(self.dice.randbytes(8) * (REGION // 8) for _ in range(6))
            self.keys.append(add_image(self.a, self.worlds[0], f"i{number}", content))
            self.contents[self.keys[-1].digest] = content
        self.change_far()

    def change_far(self) -> None:
        """One of the images becomes another thing at the secondary."""
        key = self.dice.choice(self.keys)
        if key.name in self.b.gallery.images:
            self.b.gallery.remove(key.name)
            self.settle(self.b)
        elif self.dice.random() < 0.7:
            add_image(self.b, self.worlds[1], key.name, self.contents[key.digest])
        else:
            add_image(self.b, self.worlds[1], key.name, self.dice.randbytes(6 * REGION))

    def random_operation(self) -> None:
        if self.dice.random() < 0.2:
            self.change_far()
        if self.dice.random() < 0.4:
            super().random_operation()
            return
        catalog, key = self.a.end.catalog, self.dice.choice(self.keys)
        if key.name not in self.a.gallery.images:
            return
        self.fresh += 1
        target, first = self.dice.choice(list(catalog)), self.dice.randrange(4)

        def copy(c):
            return operations.copy_image("restore", c, target.name, key, first * REGION, REGION * 2, region_size=REGION)

        def clone(c):
            return operations.clone_image(c, key, f"c{self.fresh}")

        try:
            if self.dice.random() < 0.2 and len(catalog.stores) < 9:
                operation: Operation = clone(catalog)
            elif self.dice.random() < 0.2 and len(catalog.stores) < 9:
                operation = operations.unordered(catalog, [copy, clone])
            else:
                operation = copy(catalog)
        except PyreplError:
            return
        self.copies += 1
        self.operate(operation)

    def deliver(self, most: int = 1 << 30) -> None:
        before = self.b.end.refusals
        super().deliver(most)
        self.refused += len(set(self.b.end.refusals) - set(before))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_secondary_that_lacks_images_under_fire(seed: int) -> None:
    one = FarImages(seed, rate=0.06, heal_rate=0.15)
    try:
        one.watch()
        one.tell(260, operate=14)
    finally:
        one.worlds[1].on_tick = None
        one.close()
    COUNT["images"] += one.images
    COUNT["copies"] += one.copies
    COUNT["refused"] += one.refused
    COUNT["healed"] += one.healed


def test_that_was_enough() -> None:
    if COUNT["images"] == 0:
        pytest.skip("the stories run elsewhere")
    assert COUNT["copies"] > 60 and COUNT["refused"] > 20 and COUNT["healed"] > 20, COUNT


class TwoSites:
    """A pair that is synced, and an image that only the primary has."""

    def __init__(self, seed: int = 3, mode: str = "async") -> None:
        self.pair = Pair(seed, mode=mode)
        self.pair.heal()
        content = bytes(range(256)) * (6 * REGION // 256)
        self.key = add_image(self.pair.a, self.pair.worlds[0], "golden", content)
        self.pair.contents[self.key.digest] = content
        self.content = content

    def restore(self, first: int = 0, count: int = 6, name: str = "a") -> None:
        self.pair.operate(operations.copy_image("restore", self.pair.a.end.catalog, name, self.key, first * REGION,
                                                count * REGION, region_size=REGION))

    def turn(self) -> None:
        """Everything that can go goes."""
        pair = self.pair
        for _ in range(60):
            pair.flush()
            pair.settle(pair.a)
            while pair.send():
                pass
            pair.deliver()
            pair.acknowledge()
            pair.hear()


def test_what_the_secondary_lacks_comes_as_data_and_is_told() -> None:
    two = TwoSites()
    pair, link = two.pair, two.pair.link
    copied = link.bytes_sent["copied"]
    two.restore(1, 2)
    pair.write(1, 0, b"x" * REGION)
    two.turn()
    (refused,) = link.status()["refused"]
    assert refused["reason"] == "it has no image of that name" and link.status()["synced"]
    assert 2 * REGION <= link.bytes_sent["copied"] - copied <= 2 * REGION + 4096, "these two regions and no more"
    assert pair.b.applier.results[refused["lsn"]].refused == refused["reason"]
    assert pair.b.applier.results[refused["lsn"]].bytes_changed == 0
    assert pair.b.here.consistent and pair.b.here.refusals == () and not pair.b.refusing
    pair.heal()
    add_image(pair.b, pair.worlds[1], "golden", two.content)
    copied = link.bytes_sent["copied"]
    two.restore()
    two.turn()
    assert link.bytes_sent["copied"] == copied and len(link.status()["refused"]) == 1 and link.status()["synced"]
    pair.heal()
    pair.close()


def test_what_follows_a_refused_operation_before_it_is_known() -> None:
    """A snapshot of what was to be restored differs there as well; a write that covers a region heals it."""
    two = TwoSites()
    pair, link = two.pair, two.pair.link
    copied = link.bytes_sent["copied"]
    two.restore(0, 3)
    pair.operate(operations.snapshot(pair.a.end.catalog, ["a"], ["s"]))
    pair.write(1, REGION, b"y" * REGION)
    two.turn()
    assert link.status()["synced"] and 5 * REGION <= link.bytes_sent["copied"] - copied <= 6 * REGION + 8192
    pair.heal()
    pair.close()


@pytest.mark.parametrize("has_it", [False, True])
def test_a_sync_link_promises_nothing_until_the_outcome_is_known(has_it: bool) -> None:
    two = TwoSites(mode="sync")
    pair, link = two.pair, two.pair.link
    if has_it:
        add_image(pair.b, pair.worlds[1], "golden", two.content)
    two.turn()
    assert link.promises
    two.restore()
    pair.flush()
    pair.settle(pair.a)
    assert link.promises and pair.send() and not link.promises and not link.stream._may_say_consistent()
    pair.deliver()
    pair.acknowledge()
    pair.hear()
    assert link.promises is has_it
    two.turn()
    assert link.promises
    pair.close()


def test_the_secondary_says_it_once_more_after_a_break() -> None:
    two = TwoSites()
    pair, link = two.pair, two.pair.link
    two.restore()
    pair.flush()
    pair.settle(pair.a)
    while pair.send():
        pass
    pair.deliver()  # and the acknowledgement is lost
    assert [refusal.reason for refusal in pair.b.end.refusals] == ["it has no image of that name"]
    assert not pair.b.end.consistent
    pair.crash(1)
    pair.b.window.make_durable(pair.b.window.state().end_position)
    pair.heal()
    assert len(link.status()["refused"]) <= 1
    pair.close()


def test_more_refusals_than_are_kept_in_mind() -> None:
    two = TwoSites()
    pair = two.pair
    pair.connect()
    two.turn()
    for _ in range(MOST_REFUSALS + 6):
        two.restore(0, 1)
        pair.flush()
        pair.settle(pair.a)
        while pair.send():
            pass
        pair.deliver()
    assert pair.b.end.refusals == (Refusal(0, "it has no image of that name"),)
    pair.cut()
    pair.connect()
    pair.deliver()
    pair.hear()
    assert pair.link.base.divergence.count() == 12, "everything may differ"
    pair.heal()
    pair.close()


def test_a_refusal_that_is_taken_back() -> None:
    """The note is durable, the operation is not; when it comes again the image is there."""
    two = TwoSites()
    pair, b = two.pair, two.pair.b
    lsn = b.end.lsn + 1
    effects: list[operations.Effect] = [operations.CopiedImage(1, two.key, 0, 1)]
    assert b.intake._refuse(effects, lsn) and b.refusing and not b.gallery.pledged
    b.window.make_durable(b.window.state().end_position)
    pair.cut()
    b.abandon()
    pair.reopen(1)
    assert pair.b.refusing == {lsn: "it has no image of that name"}
    add_image(pair.b, pair.worlds[1], "golden", two.content)
    two.restore()
    pair.connect()
    two.turn()
    assert not pair.b.refusing and pair.link.status()["refused"] == []
    pair.crash(1)
    pair.heal()
    assert pair.link.status()["refused"] == [] and view.read(pair.b.window, pair.b.stores, 1, 0, REGION) == two.content[:REGION]
    pair.close()


def test_a_refusal_waits_for_room_in_the_journal(monkeypatch) -> None:
    two = TwoSites()
    b = two.pair.b
    monkeypatch.setattr(b, "is_crowded", lambda: True)
    with pytest.raises(Refused, match="not applied yet") as caught:
        b.intake._refuse([operations.CopiedImage(1, two.key, 0, 1)], b.end.lsn + 1)
    assert caught.value.retryable and not b.refusing
    two.pair.close()
