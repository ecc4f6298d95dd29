"""Bulk work: copied batches, folding and streaming into region maps, digests, comparing devices; each against a slow
twin."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrepl._core import batch, pump
from pyrepl._core.regions import RegionMap
from tests.support.devices import FailingDevice, MemoryDevice
from tests.support.examples import examples
from tests.support.site import GENERATION, GROUP, Site

COPIED = 3
REGION = 8192


def copied(site, store, runs, *, lsn=5, item=9):
    head, payload, length = pump.copied_batch(
        site.window, site.stores, store, runs, group=GROUP, generation=GENERATION, lsn=lsn, item=item
    )
    assert len(payload) == length
    data = head + bytes(payload)
    assert batch.judge(data, alignment=site.alignment, group=GROUP) == 0
    return batch.head(data), batch.records(data), bytes(payload)


def unpacked(records, payload):
    """What the records say, as {offset: byte string} by block of 512."""
    blocks = {}
    for record in records:
        data = payload[record.payload : record.payload + record.length] if record.kind == 1 else bytes(record.length)
        assert len(data) == record.length <= 1 << 20 and record.kind in (1, 2)
        for at in range(0, record.length, 512):
            assert record.offset + at not in blocks
            blocks[record.offset + at] = data[at : at + 512]
    return blocks


@settings(max_examples=examples(30), deadline=None)
@given(data=st.data(), size=st.sampled_from([64 << 10, (64 << 10) + 512, (64 << 10) - 512]))
def test_copied_regions_are_what_the_store_shows(data, size):
    site = Site(1, size=size, region_size=REGION)
    regions = -(-size // REGION)
    for region in data.draw(st.sets(st.integers(0, regions - 1))):
        site.devices[1].data[region * REGION : min(size, (region + 1) * REGION)] = os.urandom(
            min(REGION, size - region * REGION)
        )
    for region in data.draw(st.sets(st.integers(0, size // REGION - 1), max_size=3)):
        site.window.write(1, region * REGION + 512, b"w" * 1024)
    cuts = sorted(data.draw(st.sets(st.integers(0, regions), min_size=2, max_size=8)))
    runs = [(a, b - a) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    head, records, payload = copied(site, 1, runs)
    want = {}
    site.apply()
    for first, count in runs:
        for at in range(first * REGION, min(size, (first + count) * REGION), 512):
            want[at] = bytes(site.devices[1].data[at : at + 512])
    assert unpacked(records, payload) == want
    zeros = sum(
        min(size, (r + 1) * REGION) - r * REGION
        for first, count in runs
        for r in range(first, first + count)
        if not any(site.devices[1].data[r * REGION : (r + 1) * REGION])
    )
    assert len(payload) == len(want) * 512 - zeros
    assert (head.kind, head.group, head.generation) == (COPIED, GROUP, GENERATION)
    assert (head.first_lsn, head.item, head.read_end) == (5, 9, site.window.state().end_lsn)


def test_zero_regions_by_map_and_by_device_cost_nothing():
    site = Site(2, size=1 << 20, region_size=REGION)
    site.repoint(0, 1, 0, 64)
    _, records, payload = copied(site, 1, [(0, 128)])
    assert payload == b"" and [(r.kind, r.offset, r.length) for r in records] == [(2, 0, 1 << 20)]


def test_the_largest_batches():
    """Alternating zeros would need more records than a batch has: then zeros travel as data, and nothing is lost."""
    size = 4 << 20
    site = Site(1, size=size, region_size=4096, alignment=4096)
    want = bytearray(size)
    for region in range(0, 1024, 2):
        want[region * 4096 : region * 4096 + 4096] = bytes([region % 255 + 1]) * 4096
    site.devices[1].data[:] = want
    for runs in ([(0, 1024)], [(n * 8, 8) for n in range(122)], [(n * 11, 3 if n % 2 else 11) for n in range(93)]):
        _, records, payload = copied(site, 1, runs)
        assert len(records) <= 122
        for at, block in unpacked(records, payload).items():
            assert block == want[at : at + 512]
        assert sum(record.length for record in records) == sum(count for _, count in runs) * 4096
    _, records, payload = copied(site, 1, [(0, 1024)])
    assert len(records) > 100 and len(payload) < size  # as far as it goes, zeros were left out
    site.devices[1].data[:] = b"x" * size
    _, records, payload = copied(site, 1, [(0, 1024)])
    assert [record.length for record in records] == [1 << 20] * 4 and payload == b"x" * size


class Liar(list):
    """Says 1, and gives all."""

    def __len__(self):
        return 1


def test_what_cannot_be_copied():
    site = Site(1, size=8 << 20, region_size=REGION)
    for runs in (
        [],
        [(0, 1)] * 129,
        [(0, 513)],
        [(0, 0)],
        [(-1, 1)],
        [(0, 2**32)],
        [(2**52, 1)],
        [(1024, 1)],
        [(1020, 5)],
    ):
        with pytest.raises(ValueError):
            copied(site, 1, runs)
    with pytest.raises(ValueError, match="not 129"):
        copied(site, 1, Liar([(0, 1)] * 129))
    with pytest.raises(ValueError, match="do not fit"):
        copied(site, 1, [(n, 1) for n in range(123)])
    with pytest.raises(LookupError):
        copied(site, 9, [(0, 1)])
    for names in ({"group": b"short", "generation": GENERATION}, {"group": GROUP, "generation": bytes(17)}):
        with pytest.raises(ValueError, match="must be 16 bytes"):
            pump.copied_batch(site.window, site.stores, 1, [(0, 1)], lsn=0, item=0, **names)
    site = Site(1, size=64 << 10, device=lambda *args: FailingDevice(*args, kind="read", beyond=0))
    with pytest.raises(OSError) as caught:
        copied(site, 1, [(0, 1)])
    assert caught.value.errno == errno.EIO and caught.value.filename == "disk1"


# ---- events and region maps ----------------------------------------------------------------------------------------

EVENTS = st.lists(
    st.tuples(st.sampled_from([1, 2, 3]), st.integers(1, 2), st.integers(0, 127), st.integers(1, 60)),
    min_size=1,
    max_size=30,
)


def one_entry(site, events):
    """These events as one batch in the window; kinds 1 write, 2 zero, 3 discard; blocks of 512."""
    records = [
        (kind, store, first * 512, b"e" * (count * 512) if kind == 1 else count * 512)
        for kind, store, first, count in events
    ]
    data = batch.encode(1, records, group=GROUP, generation=GENERATION, first_lsn=1, alignment=512)
    cut = batch.head_length(len(records))
    position, _ = site.window.append_received(data[:cut], data[cut:])
    site.window.flush()
    return site.window.entry(position)


@settings(max_examples=examples(40), deadline=None)
@given(events=EVENTS, size=st.sampled_from([100 << 10, (96 << 10) + 512]))
def test_enter_and_leave(events, size):
    site = Site(2, size=128 << 10)
    events = [one for one in events if (one[2] + one[3]) * 512 <= size]
    if not events:
        return
    regions = -(-size // REGION)
    with one_entry(site, events) as entry:
        for store in (1, 2):
            touched, spans = set(), []
            for _, whose, first, count in events:
                if whose == store:
                    touched |= {at * 512 // REGION for at in range(first, first + count)}
                    if spans and spans[-1][-1] == first - 1:  # follows the event before
                        spans[-1] = range(spans[-1][0], first + count)
                    else:
                        spans.append(range(first, first + count))
            covered = {
                r
                for r in range(regions)
                for span in spans
                if all(at in span for at in range(r * REGION // 512, min(size, (r + 1) * REGION) // 512))
            }
            entered = RegionMap(regions)
            pump.enter(entry, store, entered, REGION)
            assert {r for r in range(regions) if r in entered} == touched
            left = RegionMap(regions, marked=True)
            pump.leave(entry, store, left, REGION, size)
            assert {r for r in range(regions) if r not in left} == covered


def test_the_last_region_ends_with_the_store():
    """A write up to the store's end covers a region that is cut short there; one block less does not."""
    size = (96 << 10) + 1024
    for count, left in ((2, {0}), (1, {0, 12})):
        site = Site(1, size=128 << 10)
        with one_entry(site, [(1, 1, 1, 15 + 176), (1, 1, 192, count)]) as entry:
            regions = RegionMap(13, marked=True)
            pump.leave(entry, 1, regions, REGION, size)
            assert {r for r in range(13) if r in regions} == left


def test_maps_that_do_not_fit():
    site = Site(2, size=128 << 10)
    with one_entry(site, [(1, 1, 0, 4), (1, 1, 100, 20), (1, 2, 0, 4)]) as entry:
        small = RegionMap(4)
        with pytest.raises(ValueError, match="outside the map"):
            pump.enter(entry, 1, small, REGION)
        assert not small  # nothing was marked
        pump.enter(entry, 2, small, REGION)
        assert small.count() == 1
        pump.leave(entry, 1, small, 512, 128 << 10)
        assert small.count() == 0
        for wrong in (0, -8192, 3000, 2**63, 2**64):
            for call in (
                lambda size: pump.enter(entry, 1, small, size),
                lambda size: pump.leave(entry, 1, small, size, 4096),
            ):
                with pytest.raises(ValueError, match="power of two"):
                    call(wrong)
    for call in (lambda: pump.enter(entry, 1, small, REGION), lambda: pump.leave(entry, 1, small, REGION, 4096)):
        with pytest.raises(ValueError, match="released"):
            call()


def test_what_is_no_batch_of_events():
    site = Site(1, size=128 << 10)
    position = site.window.state().end_position
    site.window.make_durable(site.window.append_note(1, b"note"))
    with site.window.entry(position) as entry:
        for call in (
            lambda: pump.enter(entry, 1, RegionMap(4), REGION),
            lambda: pump.leave(entry, 1, RegionMap(4), REGION, 4096),
        ):
            with pytest.raises(ValueError, match="not a batch of events"):
                call()


# ---- digests -------------------------------------------------------------------------------------------------------

M = 2**64 - 1
P1, P2, P3, P4, P5 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5


def rotate(x, n):
    return (x << n | x >> (64 - n)) & M


def avalanche(x):
    x = (x ^ x >> 33) * P2 & M
    x = (x ^ x >> 29) * P3 & M
    return x ^ x >> 32


def slow_hash(data: bytes) -> bytes:
    lanes = [(P1 * (i + 1) + P2) & M for i in range(4)]
    mixed = [(P3 * (i + 1) & M) ^ P4 for i in range(4)]
    padded = data + bytes(-len(data) % 32)
    for at in range(0, len(padded), 8):
        i, word = at // 8 % 4, int.from_bytes(padded[at : at + 8], "little")
        lanes[i] = rotate((lanes[i] + word * P2) & M, 31) * P1 & M
        mixed[i] = (rotate(mixed[i] ^ word, 27) * P4 + P5) & M
    low, high = (len(data) * P5 + P1) & M, (len(data) * P3 & M) ^ P2
    for i in range(4):
        low = ((rotate(low ^ avalanche(lanes[i]), 27) * P1 + P4) & M) ^ rotate(mixed[i], 32)
        high = (rotate((high + avalanche((mixed[i] + P2) & M)) & M, 31) * P2 + lanes[i] * P3) & M
    return avalanche(low).to_bytes(8, "little") + avalanche(high).to_bytes(8, "little")


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 511, 512, 8192, 65535, 65536])
def test_the_digest_is_that_of_the_twin(length):
    site = Site(1, size=64 << 10)
    site.devices[1].data[:] = os.urandom(64 << 10)
    assert pump.hash_store(site.window, site.stores, 1, length) == slow_hash(bytes(site.devices[1].data[:length]))


def test_a_digest_says_what_the_store_shows_not_where_it_is():
    size = 9 << 20
    one, two = Site(1, size=size, region_size=65536), Site(2, size=size, region_size=65536)
    data = bytearray(os.urandom(1 << 20) + bytes(5 << 20) + os.urandom(3 << 20))
    one.devices[1].data[:] = data
    two.devices[2].data[:] = data
    two.devices[2].data[1 << 20 : 6 << 20] = os.urandom(5 << 20)  # behind zeros of the map
    two.repoint(0, 1, 2, 144)
    two.repoint(16, 1, 0, 80)
    digest = pump.hash_store(one.window, one.stores, 1, size)
    assert pump.hash_store(two.window, two.stores, 1, size) == digest
    one.window.write(1, 4096, b"w" * 512)
    changed = pump.hash_store(one.window, one.stores, 1, size)
    assert changed != digest
    one.apply()
    assert pump.hash_store(one.window, one.stores, 1, size) == changed
    two.window.write(1, 4096, b"w" * 512)
    assert pump.hash_store(two.window, two.stores, 1, size) == changed


def test_every_bit_counts():
    site = Site(1, size=4096)
    seen = {pump.hash_store(site.window, site.stores, 1, 4096)}
    for bit in range(0, 4096 * 8, 37):
        site.devices[1].data[bit // 8] ^= 1 << bit % 8
        seen.add(pump.hash_store(site.window, site.stores, 1, 4096))
        site.devices[1].data[bit // 8] ^= 1 << bit % 8
    for length in range(1, 4096, 41):  # zeros of another length
        seen.add(pump.hash_store(site.window, site.stores, 1, length))
    assert len(seen) == 1 + len(range(0, 4096 * 8, 37)) + len(range(1, 4096, 41))
    assert len({digest[:8] for digest in seen}) == len({digest[8:] for digest in seen}) == len(seen)


def test_what_has_no_digest():
    site = Site(1, size=64 << 10)
    for length in (-1, (64 << 10) + 1, 2**63, 2**64):
        with pytest.raises(ValueError):
            pump.hash_store(site.window, site.stores, 1, length)
    with pytest.raises(LookupError):
        pump.hash_store(site.window, site.stores, 9, 512)
    site = Site(1, size=64 << 10, device=lambda *args: FailingDevice(*args, kind="read", beyond=0))
    with pytest.raises(OSError, match="disk1"):
        pump.hash_store(site.window, site.stores, 1, 512)


# ---- two devices ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [None, 0, 511, 4095, 4096, (4 << 20) - 1, 4 << 20, (5 << 20) + 100, (9 << 20) - 1])
def test_the_first_difference(at):
    size = 9 << 20
    a, b = MemoryDevice("a", size, 4096), MemoryDevice("b", size + 4096)
    a.data[:] = os.urandom(size)
    b.data[:size] = a.data
    if at is not None:
        for later in {at, (at + size) // 2, size - 1}:
            b.data[later] ^= 1
    assert pump.equal(a, b, size) == (-1 if at is None else at)
    if at:
        assert pump.equal(a, b, at // 4096 * 4096) == -1
    assert pump.equal(a, a, 0) == -1


def test_what_cannot_be_compared():
    a, b = MemoryDevice("a", 8192, 4096), MemoryDevice("b", 4096)
    for length in (-4096, 512, 8192, 2**64):
        with pytest.raises(ValueError, match="whole sectors"):
            pump.equal(a, b, length)
    bad = FailingDevice("bad", 8192, kind="read", beyond=0)
    for pair in ((a, bad), (bad, a)):
        with pytest.raises(OSError) as caught:
            pump.equal(*pair, 8192)
        assert caught.value.filename == "bad" and caught.value.__cause__ is not None
