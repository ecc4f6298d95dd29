"""A fresh secondary takes a volume back that was prepared on it, and loses power on the way: it is there whole, or not at all."""

from __future__ import annotations

import random

import pytest

from pyrepl.errors import NotFound, Refused
from tests.support.simulation import Disk, World, create_site, open_site

REGION = 4096


@pytest.mark.parametrize("given", [False, True])
def test_whole_or_not_at_all(given: bool) -> None:
    rng = random.Random(5)
    seen, worlds = set(), []
    world = World()
    site = create_site(world, 5, role="secondary")
    site.intake.prepare_volume("keep", 3 * REGION)
    if given:
        world.disks["given-wrong"] = Disk(5 * REGION, b"mine")
    wrong = site.intake.prepare_volume("wrong", 5 * REGION, "given-wrong" if given else "")
    path = site.shelf.places[wrong].path
    world.on_tick = lambda what, of: worlds.extend(world.images(rng, 3))  # before each thing that a disk is asked
    site.intake.take_back_volume("wrong")
    world.on_tick = None
    assert (path in world.disks) == given, "a file that was made goes, a given device stays"
    worlds += world.images(rng, 3)
    assert len(worlds) > 3
    for after in worlds:
        again = open_site(after, 6)
        names = {store.name: store.size for store in again.end.catalog}
        assert names in ({"keep": 3 * REGION}, {"keep": 3 * REGION, "wrong": 5 * REGION})
        seen.add(len(names))
        for store in again.end.catalog:
            assert again.shelf.places[store.id].path in after.disks
        if len(names) == 1:  # the name, and another number, can be had
            assert again.intake.prepare_volume("wrong", 4 * REGION) > wrong
        else:
            again.intake.take_back_volume("wrong")
        again.close()
    assert seen == {1, 2}
    if given:
        assert world.disks[path].read(0, 4) == b"mine"
    site.close()


def test_only_what_is_not_paired() -> None:
    world = World()
    site = create_site(world, 5, role="secondary")
    with pytest.raises(NotFound):
        site.intake.take_back_volume("data")
    site.intake.prepare_volume("data", 3 * REGION)
    site.intake.adopt(b"g" * 16, {"data": 7}, site.end.lineage, 12, b"p" * 16, [], 0)
    with pytest.raises(Refused, match="its primary's") as refused:
        site.intake.take_back_volume("data")
    assert refused.value.reason == "role" and 7 in site.end.catalog
    site.close()
