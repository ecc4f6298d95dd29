"""What a volume shows when it is read at a secondary: a state that its primary really had, before, in and after a resync,
delayed or not."""

from __future__ import annotations

import random
import threading
from types import SimpleNamespace

import pytest

from pyrepl._core import view
from pyrepl.errors import Refused, UsageError
from tests.api.test_links import SIZE, WAIT, Pair
from tests.api.test_takeover import BIG, MIB, Story
from tests.support.clients import until


def story_of(nodes, tmp_path) -> Story:
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    return Story(nodes, tmp_path, random.Random(seed))


def diverged(group) -> dict[str, list[str]]:
    return {store["name"]: store["diverged"] for store in group.status()["stores"]}


@pytest.mark.timeout(120)
def test_in_a_resync_what_was_before_is_read_and_what_was_made_since_is_not(nodes, tmp_path):
    story = story_of(nodes, tmp_path)
    lsn = story.into_a_resync()
    then, there = story.at(lsn), story.other
    until(lambda: "later" in diverged(there), "the snapshot that was made since comes there")
    assert diverged(there) == {"data": ["here"], "big": ["here"], "later": ["here"]}
    for name, bytes_ in then.items():
        volume, buffer = there.volume(name), bytearray(len(bytes_))
        assert volume.read(0, len(bytes_)) == bytes_
        assert volume.readinto(0, buffer) == len(bytes_) and buffer == bytes_
        assert volume.digest(MIB, 3 * MIB // 4) == there.kept_snapshot(f"{name}-protective").digest(MIB, 3 * MIB // 4)
    with pytest.raises(Refused, match="read when status says consistent") as caught:
        there.store("later").read(0, 1)
    assert caught.value.reason == "inconsistent" and caught.value.retryable
    with pytest.raises(UsageError, match="not inside"):
        there.volume("data").read(SIZE, 1)
    with pytest.raises(UsageError, match="cannot be written to"):
        there.volume("data").readinto(0, b"12")
    there.unprotect()
    with pytest.raises(Refused) as caught:
        there.volume("data").read(0, 1)
    assert caught.value.reason == "inconsistent"
    story.link.set(bandwidth=0)
    story.equal()
    assert there.store("later").read(0, SIZE) == story.at(int(story.one.status()["lsn"]["end"]))["data"]
    assert diverged(there) == {"data": [], "big": [], "later": []}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("delay", [0, 3600])
def test_no_read_shows_regions_of_two_moments(nodes, tmp_path, delay):
    """Reads that go on while a resync begins and ends find what was before it, or what is after it, and never go back."""
    story = story_of(nodes, tmp_path)
    volume, found, stopping = story.other.volume("big"), [], threading.Event()
    end = story.one.wait(where=story.link.name, timeout=WAIT)
    then = bytes(story.at(end)["big"])
    story.other.set_delay(delay)

    def read() -> None:
        while not stopping.is_set():
            data = volume.read(0, BIG)
            if not found or data != found[-1]:
                found.append(data)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        story.into_a_resync()
        now = bytes(story.at(int(story.one.status()["lsn"]["end"]))["big"])
        story.link.set(bandwidth=0)
        story.link.wait_synced(WAIT)
        if delay:
            assert story.other.status()["consistent"]
            story.other.set_delay(0)
        until(lambda: found[-1] == now, "what is after it is read")
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
    assert all(data in (then, now) for data in found)
    assert volume.read(0, BIG) == now != then


@pytest.mark.timeout(120)
def test_what_a_delayed_secondary_has_not_performed_is_not_taken_for_consistent(nodes, tmp_path):
    """Copied regions do not wait, what was written beside them does: until that is performed too, they are of a later
    moment than what stands beside them."""
    story = story_of(nodes, tmp_path)
    story.other.set_delay(3600)
    story.link.pause()
    before = story.other.volume("big").read(0, BIG)
    for offset in range(4 * MIB, 22 * MIB, MIB):
        story.write(("big", offset, MIB))
    story.link.set(bandwidth=6 * MIB)
    story.link.resume()
    # What is left must fit the secondary's journal behind what waits there: it is performed sooner otherwise.
    # How much is left to copy, and how much the log still has, differs from run to run.
    link = story.link.status
    until(lambda: link()["bytes_sent"]["copied"] > 4 * 65536 and link()["divergent_bytes"] < 6 * MIB, "most regions are copied")
    story.link.set(bandwidth=65536)
    for offset in range(4 * MIB, 22 * MIB, 2 * MIB):
        story.write(("big", offset, 4096))  # in what is still to be copied, and what was
    story.link.set(bandwidth=0)
    story.link.wait_synced(WAIT)
    there = story.other
    assert there.status()["consistent"] and there.status()["delay"]["waiting_bytes"]
    assert diverged(there)["big"] == ["here"], "as it is read, it is no state of the primary"
    until(lambda: there.status()["protective"], "what was before is kept")
    seen = there.volume("big").read(0, BIG)
    assert seen == story.at(there.status()["protective"]["lsn"])["big"]
    site = there.site
    assert view.read(site.window, site.stores, there.volume("big").id, 0, BIG) != seen, "what the store itself shows"
    assert len(seen) == len(before)
    there.set_delay(0)
    story.equal()


@pytest.mark.timeout(120)
def test_a_read_that_began_before_a_resync_is_made_again(nodes, tmp_path, monkeypatch):
    story = story_of(nodes, tmp_path)
    lsn, late = [], []

    def read(window, stores, number, offset, length):
        if not late:
            late.append(number)
            lsn.append(story.into_a_resync())
        return view.read(window, stores, number, offset, length)

    monkeypatch.setattr("pyrepl.volume.view", SimpleNamespace(read=read))
    volume = story.other.volume("big")
    seen = volume.read(0, BIG)
    assert late == [volume.id] and seen == story.at(lsn[0])["big"]
    monkeypatch.undo()


@pytest.mark.timeout(60)
def test_a_secondary_that_waits_for_its_first_primary_is_read_and_one_that_is_fed_first_is_not(nodes, tmp_path):
    pair = Pair(nodes, tmp_path)
    assert pair.far.read(0, 4096) == bytes(4096)
    pair.near.write(0, random.randbytes(SIZE))
    link = pair.link(bandwidth=256 * 1024)
    until(lambda: pair.far_group.site.group_id is not None, "it is paired")
    with pytest.raises(Refused) as caught:
        pair.far.read(0, SIZE)
    assert caught.value.reason == "inconsistent"
    link.set(bandwidth=0)
    link.wait_synced(WAIT)
    assert pair.equal()
