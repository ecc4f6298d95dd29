"""Power loss around the operations of a rewind: the unfinished store, its completion, and its end, between writes to it."""

from __future__ import annotations

import pytest

from pyrepl import operations
from pyrepl.catalog import UNFINISHED, VOLUME
from pyrepl.errors import PyreplError
from tests.support.story import Story

SEEDS = range(760, 772)
COUNT = {"operations": 0}


class RewindStory(Story):
    """A third of its operations are those of a rewind."""

    performed = 0

    def operate(self) -> None:
        if self.rng.random() > 0.35:
            super().operate()
            return
        self.make_room()
        catalog, region = self.site.end.catalog, self.region
        unfinished = [store.id for store in catalog if store.kind == UNFINISHED]
        try:
            if unfinished and self.rng.random() < 0.7:
                end = self.rng.choice((operations.complete, operations.abandon))
                operation: operations.Operation = end(catalog, unfinished[0])
            else:
                volume = self.rng.choice([store for store in catalog if store.kind == VOLUME])
                regions = volume.size // region
                parts = [(volume.id, 0, min(regions, 3)), *((store.id, 0, 1) for store in catalog if store.id != volume.id)]
                operation = operations.rewind(catalog, volume.id, f"r{self.oracle.lsn}", max(regions, 3) * region, 1, parts[:3])
        except PyreplError:
            return
        if len(catalog.stores) < 8:
            self.perform(operation)
            self.performed += 1


@pytest.mark.parametrize("seed", SEEDS)
def test_a_power_loss_leaves_one_place_of_the_order(seed: int) -> None:
    story, images = RewindStory(seed), 0
    for count in range(100):
        story.act()
        if count % 20 == 19:
            for world in story.world.images(story.rng, 3):
                story.check(world, story.rng)
                images += 1
    assert images >= 5, f"seed {seed}: {images} images"
    COUNT["operations"] += story.performed


def test_there_were_enough_of_them() -> None:
    assert COUNT["operations"] >= 2 * len(SEEDS)
