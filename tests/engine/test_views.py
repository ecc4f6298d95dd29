"""Views: what a store showed at one LSN, whatever comes after, at a primary and at a secondary that is fed meanwhile."""

from __future__ import annotations

import random

import pytest

from pyrepl import operations
from pyrepl._core import layout, view
from pyrepl.catalog import MOST_VIEWS
from pyrepl.errors import NotFound, Refused
from pyrepl.site import Site
from tests.support.pair import REGION, Pair
from tests.support.simulation import World, create_site, open_site
from tests.support.story import ViewStory


@pytest.fixture
def site():
    """A primary with a volume of 6 regions, each full of its own number."""
    one = create_site(World(), 1, journal_size=2 << 20)
    one.admit(operations.add_volume(one.end.catalog, "v", 6 * REGION, zero=True, region_size=REGION))
    for region in range(6):
        one.window.write(1, region * REGION, bytes([region + 1]) * REGION)
    yield one
    one.abandon()


def settle(one: Site) -> None:
    while one.window.commit_pending() or one.step():
        pass


def shown(one: Site, store: int) -> bytes:
    size = one.window.store_size(store)
    assert size is not None
    return view.read(one.window, one.stores, store, 0, size)


def operate(one: Site, operation) -> None:
    one.admit(operation)
    settle(one)


FULL = b"".join(bytes([region + 1]) * REGION for region in range(6))


def test_a_view_stays_whatever_comes(site):
    """Writes, zeros, a snapshot, a restore, a resize, the deletion of its store: it shows what it showed."""
    entry = site.views.open(1)
    assert entry.lsn == site.window.state().end_lsn == 7 and entry.size == 6 * REGION and entry.id == layout.FIRST_LOCAL
    site.window.write(1, REGION, b"x" * 512)
    settle(site)
    catalog = site.end.catalog
    operate(site, operations.snapshot(catalog, ["v"], ["s"]))
    operate(site, operations.zero(catalog, "v", 0, 2 * REGION, region_size=REGION))
    later = site.views.open(1)
    operate(site, operations.restore(catalog, "v", "s", region_size=REGION))
    operate(site, operations.resize(catalog, "v", 3 * REGION, force=True, region_size=REGION))
    operate(site, operations.resize(catalog, "v", 8 * REGION, region_size=REGION))
    operate(site, operations.delete(catalog, "s"))
    assert shown(site, entry.id) == FULL
    assert shown(site, later.id) == bytes(2 * REGION) + FULL[2 * REGION:]
    operate(site, operations.remove_volume(catalog, "v"))
    assert not site.here.catalog.stores
    assert shown(site, entry.id) == FULL
    site.views.close(entry.id)
    settle(site)
    assert shown(site, later.id) == bytes(2 * REGION) + FULL[2 * REGION:]
    site.views.close(later.id)
    site.views.close(later.id)
    settle(site)
    assert not site.shelf.places and not site.shelf.zombies


def test_the_mover_rests_for_views(site):
    """What only views show from a deleted store's device stays there; what a store shows too is handed over."""
    settle(site)
    catalog = site.end.catalog
    first = site.views.open(1)
    operate(site, operations.snapshot(catalog, ["v"], ["s"]))
    operate(site, operations.zero(catalog, "s", 0, 2 * REGION, region_size=REGION))
    copied = [site.stores.source(site.shelf.places[first.id].slot, r) for r in range(6)]
    operate(site, operations.remove_volume(catalog, "v", force=True))
    (zombie,) = site.shelf.zombies
    now = [site.stores.source(site.shelf.places[first.id].slot, r) for r in range(6)]
    kept = site.shelf.places[2].slot
    assert copied == [zombie] * 6 and now == [zombie] * 2 + [kept] * 4
    assert shown(site, first.id) == FULL and shown(site, 2) == bytes(2 * REGION) + FULL[2 * REGION:]
    assert not site.step(), "it does not try again and again"
    site.views.close(first.id)
    settle(site)
    assert not site.shelf.zombies and shown(site, 2) == bytes(2 * REGION) + FULL[2 * REGION:]


def test_a_view_is_read_only_and_of_this_site(site):
    entry = site.views.open(1)
    with pytest.raises(PermissionError):
        site.window.write(entry.id, 0, bytes(512))
    assert entry.id not in site.here.catalog and entry.id not in site.end.catalog
    status = site.status()
    assert [store["name"] for store in status["stores"]] == ["v"]
    assert status["views"] == [{"id": entry.id, "store": 1, "name": "v", "size": 6 * REGION, "lsn": 7,
                                "path": site.shelf.places[entry.id].path}]


def test_a_view_of_a_store_that_is_just_being_made(site):
    """What the journal holds at the call is applied first."""
    site.admit(operations.snapshot(site.end.catalog, ["v"], ["s"]))
    entry = site.views.open(2)
    assert shown(site, entry.id) == FULL and entry.lsn == 8


def test_numbers_are_never_used_again(site):
    numbers = []
    world = site.shelf.placement
    for _ in range(3):
        for _ in range(2):
            numbers.append(site.views.open(1).id)
            site.views.close(numbers[-1])
        site.abandon()
        site = open_site(world, len(numbers))
        site.checkpoint()
    assert numbers == list(range(layout.FIRST_LOCAL, layout.FIRST_LOCAL + 6))
    site.abandon()


def test_refusals(site):
    with pytest.raises(NotFound):
        site.views.open(99)
    settle(site)
    for _ in range(MOST_VIEWS):
        site.views.open(1)
    disks = set(site.shelf.placement.disks)
    with pytest.raises(Refused, match="64 views") as caught:
        site.views.open(1)
    assert caught.value.reason == "limit"
    site.views.close(layout.FIRST_LOCAL)
    site.views.open(1)
    site.here.consistent = False
    site.views.close(layout.FIRST_LOCAL + 1)
    with pytest.raises(Refused, match="status says consistent") as caught:
        site.views.open(1)
    assert caught.value.reason == "inconsistent" and caught.value.retryable
    made = set(site.shelf.placement.disks) - disks
    assert made == {f"made-{layout.FIRST_LOCAL + MOST_VIEWS}-view-of-v"}, "a refusal leaves no file"


def test_no_slot_is_taken_from_stores(site):
    for slot in range(10, layout.MAX_STORES - 48):
        site.shelf.placement.create("x", slot, REGION)
        site.stores.add(slot, site.shelf.placement.open(f"made-{slot}-x", REGION))
    settle(site)
    before = set(site.shelf.placement.disks)
    with pytest.raises(Refused, match="slot") as caught:
        site.views.open(1)
    assert caught.value.reason == "limit" and set(site.shelf.placement.disks) == before


def test_a_checkpoint_must_have_room_for_its_map(site):
    site._body_length = site.journal.area_size
    with pytest.raises(Refused, match="checkpoint areas") as caught:
        site.views.open(1)
    assert caught.value.reason == "limit" and not site.views.opened


@pytest.mark.parametrize("rule", ["on", "off"])
def test_a_full_log_has_room_for_what_views_need(rule, monkeypatch):
    """Each region that is overwritten re-points every view: notes as long as the writes. Rule off: views do not count."""
    world, rng = World(), random.Random(3)
    one = create_site(world, 1, journal_size=2 << 20)
    one.admit(operations.add_volume(one.end.catalog, "v", 3000 * REGION, zero=True, region_size=REGION))
    if rule == "off":
        monkeypatch.setattr(type(one.views), "_expect", lambda self, count: None)
    failed = None
    try:
        for _ in range(MOST_VIEWS - 1):
            one.views.open(1)
        for _ in range(6000):
            offset = rng.randrange(3000) * REGION
            try:
                one.window.submit(1, offset, bytes([rng.randrange(256)]) * 512, wait=False)
            except BlockingIOError:
                one.window.commit_pending()
                if not one.step():
                    one.checkpoint()
        number = one.views.open(1).id
        assert len(shown(one, number)) == 3000 * REGION
        one.views.close(number)
    except OSError as error:
        failed = error
    finally:
        one.abandon()
    assert (failed is not None) == (rule == "off"), failed


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(4))
def test_every_disk_event_while_a_view_exists(seed):
    """A kill (all is left that was written) and a power loss, at each event of opening, overwriting, deleting, closing."""
    story = ViewStory(700 + seed)
    story.open_view()
    assert story.run(steps=80, crash_rate=1.0, some=1) > 200


# ---- at a secondary


def views_at_a_secondary(seed: int) -> tuple[int, int, int, int]:
    """A story over a link: views opened at the secondary whenever it will have them. (read, refused, unsettled, of its
    protective snapshot)"""
    one, rng = Pair(seed), random.Random(seed ^ 0xF00)
    read = refused = unsettled = back = 0

    def look() -> int:
        count = 0
        for entry in one.b.views.opened.values():
            want = one.truth[entry.lsn][entry.store]
            assert shown(one.b, entry.id) == want, f"seed {seed}: {entry}"
            count += 1
        return count

    try:
        one.heal()
        for _ in range(150):
            roll = rng.random()
            if roll < 0.35:
                one.random_write()
            elif roll < 0.45:
                one.random_operation()
            elif roll < 0.55:
                one.flush()
                one.settle(one.a)
            elif roll < 0.60:
                one.cut()
            elif roll < 0.67 and one.session is None:
                one.settle(one.a)
                one.link.fold(one.a.window.state().applied_position)
            elif roll < 0.75:
                if one.session is None:
                    one.connect()
                for _ in range(rng.choice((1, 3, 6, 20))):
                    one.flush()
                    one.send()
                    one.deliver()
                    one.acknowledge()
                    one.hear()
            elif roll < 0.90:
                try:
                    if one.b.here.catalog.stores:
                        entry = one.b.views.open(rng.choice(sorted(one.b.here.catalog.stores)))
                        back += bool(entry.source)
                        assert one.b.here.consistent or entry.lsn == one.b.protective.snapshot.lsn
                except Refused as error:
                    assert error.reason in ("inconsistent", "limit") and not (
                        error.reason == "inconsistent" and one.b.here.consistent
                    )
                    refused += error.reason == "inconsistent"
            elif open_now := [view.id for view in one.b.views.opened.values() if not view.label]:
                one.b.views.close(rng.choice(open_now))
            read += look()
            unsettled += bool(one.b.views.opened) and not one.b.here.consistent
        one.heal()
        read += look()
        one.crash(1)
        assert not one.b.views.opened
        one.heal()
    finally:
        one.close()
    return read, refused, unsettled, back


@pytest.mark.timeout(300)
def test_views_at_a_secondary_that_is_fed():
    """Each equals the primary as of its LSN, while events, operations, skips and copied regions go on beneath it."""
    total = [0, 0, 0, 0]
    for seed in range(30):
        total = [a + b for a, b in zip(total, views_at_a_secondary(seed), strict=True)]
    read, refused, unsettled, back = total
    assert read > 2000 and refused > 5 and unsettled > 300 and back > 30, total


def test_a_fresh_secondary_has_no_view():
    one = Pair(5)
    try:
        with pytest.raises(Refused) as caught:
            one.b.views.open(1)
        assert caught.value.reason == "inconsistent"
    finally:
        one.close()
