"""Slots of the table of devices: deleted stores keep theirs until what others show is handed over, and no operation that
was admitted may find none."""

from __future__ import annotations

import pytest

from pyrepl import operations
from pyrepl._core import layout, view
from pyrepl.operations import Created
from pyrepl.site import Site
from tests.support.pair import REGION
from tests.support.simulation import World, create_site, open_site

REGIONS = 4


@pytest.fixture
def world():
    return World()


@pytest.fixture
def site(world):
    """A primary with a volume of four regions, each full of its own number."""
    one = create_site(world, 1, journal_size=64 << 20)
    one.admit(operations.add_volume(one.end.catalog, "v", REGIONS * REGION, zero=True, region_size=REGION))
    settle(one)
    yield one
    one.abandon()


def settle(one: Site) -> None:
    while one.window.commit_pending() or one.step():
        pass


def shown(one: Site, store: int) -> bytes:
    size = one.window.store_size(store)
    assert size is not None
    return view.read(one.window, one.stores, store, 0, size)


def settle_but_for_the_mover(one: Site) -> None:
    while one.window.commit_pending() or one.applier.apply():
        pass


def churn(one: Site, rounds: int) -> bytes:
    """Each round writes, takes a snapshot and deletes the one before; the last one's content."""
    for number in range(rounds):
        content = bytes([number % 255 + 1]) * REGION
        one.window.write(1, number % REGIONS * REGION, content)
        one.admit(operations.snapshot(one.end.catalog, ["v"], [f"s{number}"]))
        if number:
            one.admit(operations.delete(one.end.catalog, f"s{number - 1}"))
        while one.window.commit_pending():
            pass
        while one.applier.apply():  # and no step of the mover between
            pass
        if number % 50 == 0:
            one.checkpoint()
    return content


def test_a_long_queue_of_operations_finds_slots(site, world):
    """More deletions than there are slots; the mover has never had a turn."""
    content = churn(site, layout.MAX_STORES + 100)
    assert len(site.shelf.zombies) > 100, "the mover had a turn, so this shows nothing"
    last = next(store.id for store in site.end.catalog if store.name == f"s{layout.MAX_STORES + 99}")
    before = shown(site, last), shown(site, 1)
    assert content in before[0]
    settle(site)
    assert not site.shelf.zombies and (shown(site, last), shown(site, 1)) == before
    site.abandon()
    again = open_site(world, 2)
    settle(again)
    assert (shown(again, last), shown(again, 1)) == before
    again.abandon()


def test_devices_that_only_a_view_shows_are_handed_over_when_slots_are_short(site):
    entry = site.views.open(1)
    site.window.write(1, 0, b"x" * 512)
    settle(site)
    before = shown(site, entry.id)
    site.admit(operations.remove_volume(site.end.catalog, "v", force=True))
    settle(site)
    assert len(site.shelf.zombies) == 1 and not site.step()
    site.applier.free_slots(layout.MAX_STORES - 1 - len(site.shelf.places) - (site.shelf.scratch is not None))
    assert not site.shelf.zombies and shown(site, entry.id) == before


def test_the_mover_does_not_rest_for_ever(site):
    """Although an operation waits all the time, devices of deleted stores are given back."""
    most = 0
    for number in range(300):
        site.admit(operations.snapshot(site.end.catalog, ["v"], [f"s{number}"]))
        if number:
            site.admit(operations.delete(site.end.catalog, f"s{number - 1}"))
        while site.window.commit_pending():
            pass
        for _ in range(3):
            site.step()
        most = max(most, len(site.shelf.zombies))
    assert 0 < most < 100


def test_the_device_of_a_deleted_store_is_not_emptied_for_one_of_its_number_and_name(site, world):
    site.window.write(1, 0, b"x" * REGION)
    site.admit(operations.snapshot(site.end.catalog, ["v"], ["s"]))
    settle_but_for_the_mover(site)
    before, path = shown(site, 2), site.shelf.places[1].path
    site.admit(operations.remove_volume(site.end.catalog, "v", force=True))
    settle_but_for_the_mover(site)
    assert path in site.shelf.paths
    (placed,), _, _ = site.shelf.prepare([Created(1, REGIONS, True)], {}, {1: "v"})
    assert placed.path != path and shown(site, 2) == before
