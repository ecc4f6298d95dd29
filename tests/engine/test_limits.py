"""What grows until it does not fit: notes of many snapshots, maps in a checkpoint; and what a restart must still know."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyrepl import operations
from pyrepl._core import view
from pyrepl._core.device import FileDevice
from pyrepl.options import SiteOptions
from pyrepl.runtime.placement import FilePlacement, make_journal
from pyrepl.site import Site
from tests.support.simulation import Disk, World, create_site, open_site
from tests.support.story import Story

MIB = 1 << 20
REGION = 65536


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[[], Site]]:
    """A primary on sparse files with a journal of 16 MiB; a second call opens it again."""
    opened: list[Site] = []
    options = SiteOptions(region_size=REGION, alignment=512, ring_bytes=64 * MIB)

    def make() -> Site:
        journal, folder = tmp_path / "journal", FilePlacement(tmp_path / "a" / "b" / "stores", alignment=512)
        fresh = not journal.exists()
        if fresh:
            make_journal(str(journal), 16 * MIB)
            one = Site.create(FileDevice(str(journal)), name="g", node_id=b"n" * 16, role="primary", options=options,
                              placement=folder, entropy=os.urandom, created_ns=0)
        else:
            one = Site.open(FileDevice(str(journal)), node_id=b"n" * 16, placement=folder, entropy=os.urandom, options=options)
        opened.append(one)
        return one

    yield make
    for one in opened:
        one.abandon()


def settle(one: Site) -> None:
    while one.step():
        pass


@pytest.mark.timeout(120)
@pytest.mark.parametrize("crash", [False, True])
def test_small_writes_under_many_snapshots(site: Callable[[], Site], crash: bool) -> None:
    """Each region that is overwritten re-points 150 snapshots: seven times as many bytes of notes as of writes."""
    one, regions, rng = site(), 12000, random.Random(1)
    one.admit(operations.add_volume(one.end.catalog, "v", regions * REGION, zero=True, region_size=REGION))
    for n in range(150):
        one.admit(operations.snapshot(one.end.catalog, ["v"], [f"s{n}"]))
        settle(one)
    order, written = list(range(regions)), {}
    rng.shuffle(order)
    rounds = 0
    for region in order:
        while True:
            try:
                one.window.submit(1, region * REGION, region.to_bytes(4, "little") * 128, wait=False)
                break
            except BlockingIOError:
                rounds += 1
                assert one.step() or one.window.commit_pending(), "there is no room, and nothing makes any"
        written[region] = region.to_bytes(4, "little") * 128
        if len(written) == 5000 and crash:
            one.window.make_durable(one.window.state().end_position)
            one.abandon()
            one = site()
    assert rounds, "the log was never full"
    one.window.commit_pending()
    settle(one)
    one.checkpoint()
    state = one.window.state()
    assert state.failed == 0 and state.notes == 0
    for region in rng.sample(order, 200):
        assert view.read(one.window, one.stores, 1, region * REGION, 512) == written[region]
        assert view.read(one.window, one.stores, rng.randrange(2, 150), region * REGION, 512) == bytes(512)


def test_reopened_again_and_again_without_a_write() -> None:
    """A checkpoint that names several generations after one LSN, and a log that holds their notes behind it."""
    story = Story(1)
    for _ in range(30):
        story.act()
    story.site.window.flush()
    story.settle(story.site)
    story.site.abandon()
    for n in range(4):
        site = open_site(story.world, n, options=story.options)
        site.checkpoint()
        generations = [generation for generation, _ in site.lineage]
        site.abandon()
        assert len(generations) == n + 2
    site = open_site(story.world, 9, options=story.options)
    assert [generation for generation, _ in site.lineage][:-1] == generations
    site.abandon()


@pytest.mark.parametrize("when", ["logged", "a checkpoint between", "performed"])
def test_a_given_device_is_found_again(when: str) -> None:
    """A crash after the admission and before the operation is performed: the volume is on the device that was given."""
    world = World()
    site = create_site(world, 1)
    world.disks["given-x"] = Disk(4 * 4096, b"precious" * 2048)
    if when == "a checkpoint between":  # ... the note and the operation
        site.admit(operations.mark("m", b""))
    site.admit(operations.add_volume(site.end.catalog, "v", 4 * 4096, zero=False, region_size=4096), {"v": "given-x"})
    site.window.make_durable(site.window.state().end_position)
    if when != "logged":
        site.applier.apply()
        site.checkpoint()
    site.abandon()
    site = open_site(world, 2)
    settle(site)
    assert view.read(site.window, site.stores, 1, 0, 4 * 4096) == b"precious" * 2048
    assert not site.reserved and [path for path in world.disks if path.startswith("made-1")] == []
    site.abandon()


def test_a_given_device_of_an_operation_that_failed_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next store has the same number, and a file of its own."""
    world = World()
    site = create_site(world, 1)
    world.disks["given-x"] = Disk(4 * 4096, b"precious" * 2048)
    add = operations.add_volume(site.end.catalog, "v", 4 * 4096, zero=False, region_size=4096)

    real = site._note_given

    def note_and_fail(created: dict[str, int], paths: dict[str, str]) -> None:
        real(created, paths)
        if any(paths.values()):
            raise OSError(28, "full")

    monkeypatch.setattr(site, "_note_given", note_and_fail)
    with pytest.raises(OSError, match="full"):
        site.admit(add, {"v": "given-x"})
    site.admit(operations.add_volume(site.end.catalog, "w", 4 * 4096, zero=False, region_size=4096))
    site.window.make_durable(site.window.state().end_position)
    site.abandon()
    site = open_site(world, 2)
    settle(site)
    assert site.shelf.places[1].path == "made-1-w"
    assert view.read(site.window, site.stores, 1, 0, 4 * 4096) == bytes(4 * 4096)
    site.abandon()


def test_more_than_a_ring_is_redone(tmp_path: Path) -> None:
    """What was applied since the last checkpoint, and what was not, is together more than fits the ring (rule rec_payload)."""
    options = SiteOptions(region_size=REGION, alignment=512, ring_bytes=4 * (4 * MIB + 4096), checkpoint_bytes=64 * MIB)
    journal, placement, entropy = tmp_path / "journal", FilePlacement(tmp_path / "stores", alignment=512), os.urandom
    make_journal(str(journal), 320 * MIB)
    one = Site.create(FileDevice(str(journal)), name="g", node_id=b"n" * 16, role="primary", options=options,
                      placement=placement, entropy=entropy, created_ns=0)
    one.admit(operations.add_volume(one.end.catalog, "v", 64 * MIB, zero=True, region_size=REGION))
    settle(one)
    one.checkpoint()
    before, rng, content = one.checkpoints, random.Random(1), b""
    for n in range(40):
        data = rng.randbytes(MIB)
        one.window.submit(1, n * MIB, data)
        content += data
        if n < 30:
            one.window.commit_pending()
            settle(one)
    one.window.make_durable(one.window.state().end_position)
    assert one.checkpoints == before and one.window.state().end_position - one.window.state().tail_position > options.ring_bytes
    one.abandon()
    again = Site.open(FileDevice(str(journal)), node_id=b"n" * 16, placement=placement, entropy=entropy, options=options)
    try:
        assert view.read(again.window, again.stores, 1, 0, 40 * MIB) == content
        settle(again)
        assert view.read(again.window, again.stores, 1, 0, 40 * MIB) == content
    finally:
        again.abandon()
