"""Claims 1 to 5: operations travel as commands, and what they make is replicated."""

from __future__ import annotations

import pytest

from tests.support.model import BLOCK, content, differences
from tests.support.rig import COMMAND, LINK, MIB, REGION, WAIT, framing


@pytest.mark.parametrize("where", ["files", pytest.param("loop devices", marks=pytest.mark.device)])
def test_claim_01_operations_travel_as_commands(rig, size, where, request):
    place = request.getfixturevalue("loop_device") if where == "loop devices" else None
    one = rig(v=size, place=place)
    one.fill("v", 0, size)
    one.snapshot("v", "k")
    one.fill("v", 0, size * 6 // 10)
    one.drain()
    with one.measured() as wire, one.writers(["v"], size=MIB, least=65536) as writers:
        writers.more(20)
        restored = one.restore("v", "k").wait(LINK, WAIT)
        writers.more(20)
    one.check_both()
    assert wire.counts.copied == 0 and wire.counts.operations <= COMMAND
    assert wire.forward - wire.counts.signs - writers.payload <= COMMAND + framing(writers.payload)
    assert restored.bytes_avoided == restored.bytes_changed >= size * 6 // 10
    print(f"claim 1: the command {wire.counts.operations} bytes, all but payload {wire.forward - writers.payload}; "
          f"shipping {restored.bytes_avoided}")
    ship(one, "v", "k", size)


def ship(one, volume, snapshot, size):
    """The same, done by shipping: what differs is read from the snapshot and written."""
    one.fill(volume, 0, size * 6 // 10)
    one.drain()
    with one.measured() as wire:
        before = one.near.store(snapshot).read(0, size * 6 // 10)
        for offset in range(0, len(before), MIB):
            one.near.volume(volume).write(offset, before[offset:offset + MIB])
    shipped = wire.counts.writes
    assert size * 6 // 10 <= shipped <= size * 6 // 10 + framing(size)
    print(f"claim 1, shipped instead: {shipped} bytes")


def test_claim_02_restore_from_a_third_store(rig, size):
    """A range; and a snapshot that was written to. S reads its own copy: nothing of it is on the wire."""
    one = rig(v=size)
    one.fill("v", 0, size)
    one.snapshot("v", "k")
    one.fill("k", size // 2, size // 8)
    one.fill("v", 0, size)
    one.drain()
    before = one.model.at(one.near.wait())["v"].copy()
    extent = (4 * REGION, size // 4)
    with one.measured() as wire:
        result = one.restore("v", "k", extent)
    assert wire.counts.total - wire.counts.signs <= COMMAND and wire.counts.copied == wire.counts.writes == 0
    lsn = one.check_both()
    after = one.model.at(lsn)["v"]
    first, last = extent[0] // 4096, (extent[0] + extent[1]) // 4096
    assert (after[:first] == before[:first]).all() and (after[last:] == before[last:]).all()
    assert (after[first:last] != before[first:last]).all() and result.bytes_changed == extent[1]
    with one.measured() as wire:
        one.restore("v", "k")
    assert wire.counts.total - wire.counts.signs <= COMMAND and wire.counts.copied == wire.counts.writes == 0
    one.check_both()
    assert not differences(one.far.volume("v"), one.model.at(one.near.wait())["k"])


def test_claim_02_restore_from_an_image_that_both_sites_have(rig, size):
    """A backup that each site has for itself: a range, then all of it. S reads its own copy: no data on the wire."""
    one = rig(v=size)
    one.fill("v", 0, size)
    one.stamp += 1
    stamp = one.stamp
    for group, name in ((one.near, "near.img"), (one.far, "far.img")):
        with open(one.folder / name, "wb") as file:
            for offset in range(0, size, MIB):
                file.write(content(stamp, offset // BLOCK, MIB // BLOCK))
        group.add_image("golden", one.folder / name)

    def restore(offset, length, extent):
        result = one.near.volume("v").restore("golden", extent=extent)

        def step(stores):
            stores["v"][offset // BLOCK:(offset + length) // BLOCK] = stamp

        one.model.did(result.lsn, "restore v from an image", step)
        assert 0 < result.bytes_changed <= length
        result.wait(LINK, WAIT)

    one.drain()
    with one.measured() as wire, one.writers(["v"], size=MIB, least=65536) as writers:
        writers.more(5)
        restore(4 * REGION, size // 4, (4 * REGION, size // 4))
        writers.more(5)
    assert wire.counts.copied == 0 and wire.counts.operations <= COMMAND
    assert wire.forward - wire.counts.signs - writers.payload <= COMMAND + framing(writers.payload)
    one.check_both()
    with one.measured() as wire:
        restore(0, size, None)
    assert wire.counts.total - wire.counts.signs <= COMMAND and wire.counts.copied == wire.counts.writes == 0
    one.check_both()


def test_claim_03_synchronize_with_a_third_store(rig, size):
    one = rig(v=size, w=size)
    one.fill("v", 0, size)
    one.synchronize("w", "v")
    one.fill("w", size // 4, size * 4 // 10)
    one.drain()
    with one.measured() as wire, one.writers(["v", "w"], threads=2, size=MIB, least=65536) as writers:
        writers.more(20)
        result = one.synchronize("v", "w").wait(LINK, WAIT)
        writers.more(20)
    one.check_both()
    assert wire.counts.copied == 0 and wire.counts.operations <= COMMAND
    assert wire.forward - wire.counts.signs - writers.payload <= COMMAND + framing(writers.payload)
    print(f"claim 3: the command {wire.counts.operations} bytes, shipping {result.bytes_avoided}")
    assert result.bytes_avoided >= size * 4 // 10


def test_claim_03_regions_in_which_the_source_differs_are_shipped_besides(rig):
    """w' differs from w in regions that the journal does not hold any more when v is synchronized: those of w are copied, and
    the same ones of v where w' had them not yet when it came to that place. Nothing else of either is."""
    size, cold, hot = 48 * MIB, 6 * MIB, 2 * MIB
    one = rig(v=size, w=size, journal=32 * MIB)
    one.fill("v", 0, size)
    one.fill("w", 0, size)
    one.drain()
    one.link.pause()
    one.fill("w", 24 * MIB, cold)
    for _ in range(20):
        one.fill("w", 0, hot)  # pushes what came before out of the journal
    one.near.wait()
    assert sum(extent.length for extent in one.link.divergent("w")) >= cold
    result = one.synchronize("v", "w")
    with one.measured() as wire:
        one.link.resume()
    one.check_both()
    assert wire.counts.operations <= COMMAND
    print(f"claim 3, diverged by {cold} bytes: {wire.counts.copied} copied, {wire.counts.writes} written of the last {20 * hot}, "
          f"shipping the operation {result.bytes_avoided}")
    assert result.bytes_avoided == size
    assert cold <= wire.counts.copied <= 2 * (cold + hot) + framing(2 * (cold + hot))
    assert wire.counts.writes <= 32 * MIB + framing(32 * MIB)


def test_claim_04_snapshot(rig, times):
    one = rig(a=4 * MIB, b=4 * MIB, c=4 * MIB, d=4 * MIB)
    count, lsns, waits = times(100), {}, []
    one.cable.rate = 4 * MIB  # so that S is behind
    with one.writers(["a", "b", "c", "d"], threads=8, pause=0.02, size=16384) as writers:
        for n in range(count):
            writers.more(one.rng.randrange(1, 20))
            lsns[n] = one.group_snapshot(f"s{n}").lsn
            if n >= 10:
                for volume in "abcd":
                    one.delete(f"{volume}-s{n - 10}")
        waits = sorted(writers.waits)
    one.cable.rate = None
    lsn = one.check_both()
    state = one.model.at(lsn)
    for n in range(max(0, count - 10), count):
        twin = one.model.at(lsns[n])
        for volume in "abcd":
            assert (state[f"{volume}-s{n}"] == twin[volume]).all()
            assert one.near.store(f"{volume}-s{n}").read(0, 4 * MIB) == one.far.store(f"{volume}-s{n}").read(0, 4 * MIB)
    print(f"claim 4: {count} group snapshots, writers' median {waits[len(waits) // 2] * 1000:.1f} ms, p99 "
          f"{waits[int(len(waits) * 0.99)] * 1000:.1f} ms")


def test_claim_05_the_snapshots_become_a_replicated_pair(rig):
    one = rig(v=64 * MIB)
    one.fill("v", 0, 64 * MIB)
    one.snapshot("v", "k")
    one.drain()
    before = one.far.volume("v").read(0, 64 * MIB)
    with one.measured() as wire:
        written = one.fill("k", 7 * MIB, 50 * MIB)
    assert wire.counts.copied == wire.counts.operations == 0
    assert written <= wire.counts.writes <= written + framing(written)
    one.check_both()
    assert one.near.volume("v").read(0, 64 * MIB) == before == one.far.volume("v").read(0, 64 * MIB)
    assert "k" in [store["name"] for store in one.far.status()["stores"]] and one.link.divergent("k") == []
    one.link.pause()
    one.write("k", 0, 65536)
    assert one.link.status()["lag_events"] == 1
