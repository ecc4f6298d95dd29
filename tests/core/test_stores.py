"""The table of stores: maps against lists, resolution, what is refused."""
import errno
import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrepl._core.stores import Stores
from tests.support.devices import MemoryDevice
from tests.support.examples import examples

REGION = 4096


class Memory(MemoryDevice):
    """A device in memory whose flush may be told to fail."""

    flush_error = 0

    def do_flush(self):
        if self.flush_error:
            raise OSError(self.flush_error, "told to")


@pytest.fixture
def stores():
    return Stores(region_size=REGION, alignment=512)


def entry(first, count, slot, source):
    return struct.pack("<QQII", first, count, slot, source)


def sources(stores, slot):
    return [source for _, count, source in stores.runs(slot) for _ in range(count)]


@settings(max_examples=examples(100), deadline=None)
@given(st.data())
def test_as_lists(data):
    """Copies, repoints, resizes and removals against lists; every resolution says what the lists say."""
    stores = Stores(region_size=REGION, alignment=512)
    devices = {slot: Memory(f"d{slot}", 8 * REGION) for slot in range(1, 6)}
    maps, sizes = {}, {}
    for slot, device in devices.items():
        sizes[slot] = data.draw(st.integers(0, 64)) * 512
        zero = data.draw(st.booleans())
        stores.add(slot, device, store=100 - slot, size=sizes[slot], zero=zero)     # ids in another order than slots
        maps[slot] = [0 if zero else slot] * (-(-sizes[slot] // REGION))
    for _ in range(data.draw(st.integers(0, 12))):
        target, source = data.draw(st.sampled_from(sorted(maps))), data.draw(st.sampled_from([0, *sorted(maps)]))
        what = data.draw(st.sampled_from(["copy", "copy", "repoint", "resize", "decode"]))
        limit = min(len(maps[target]), len(maps[source])) if source else len(maps[target])
        first = data.draw(st.integers(0, limit))
        count = data.draw(st.integers(0, limit - first))
        before = stores.version(100 - target, first * REGION, 512)
        if what == "copy":
            new = maps[source][first:first + count] if source else [0] * count
            foretold = stores.differing(target, source, first, count)
            assert foretold == stores.differing(target, source, first, count)  # nothing was changed by asking
            assert foretold == stores.copy(target, source, first, count) == sum(
                a != b for a, b in zip(maps[target][first:first + count], new, strict=True))
            maps[target][first:first + count] = new
        elif what == "repoint" and count:
            stores.repoint(entry(first, count, target, source))
            maps[target][first:first + count] = [source] * count
        elif what == "resize":
            sizes[target] = data.draw(st.integers(0, 64)) * 512
            stores.resize(target, sizes[target])
            length = -(-sizes[target] // REGION)
            maps[target] = (maps[target] + [0] * length)[:length]
        elif what == "decode":
            stores.decode_map(target, stores.encode_map(target))
        if (what in ("copy", "repoint") and count) or what in ("resize", "decode"):
            assert stores.version(100 - target, first * REGION, 512) != before
        for slot, twin in maps.items():
            assert sources(stores, slot) == twin
            assert stores.foreign(slot) == sum(s not in (0, slot) for s in twin)
            shown = sum(s == slot for other, o in maps.items() if other != slot for s in o)
            assert stores.shown(slot) == shown
            assert stores.shown(slot, 2) == min(shown, 2)
            offset = data.draw(st.integers(0, sizes[slot] // 512)) * 512
            length = data.draw(st.integers(0, (sizes[slot] - offset) // 512)) * 512
            most = data.draw(st.integers(1, 4))
            extents, covered, _ = stores.resolve(100 - slot, offset, length, most)
            assert len(extents) <= most and covered == sum(e[2] for e in extents)
            assert covered == length or len(extents) == most
            blocks = [(s, at) for s, begin, n in extents for at in range(begin, begin + n, 512)]
            assert blocks == [(twin[at // REGION], at) for at in range(offset, offset + covered, 512)]
            assert all(a[0] != b[0] for a, b in itertools.pairwise(extents))
    for slot in list(maps):
        users = [other for other, twin in maps.items() if other != slot and slot in twin]
        if users:
            with pytest.raises(OSError) as caught:
                stores.remove(slot)
            assert caught.value.errno == errno.EBUSY
            stores.drop_map(slot)
            with pytest.raises(OSError):
                stores.remove(slot)
            for other in users:
                stores.copy(other, 0, 0, len(maps[other]))
                maps[other] = [0] * len(maps[other])
        stores.remove(slot)
        del maps[slot]
        assert slot not in stores.slots()
        with pytest.raises(LookupError):
            stores.resolve(100 - slot, 0, 0)
        assert stores.version(100 - slot, 0, 0) == 2**64 - 1


def test_table(stores):
    assert stores.slots() == [] and stores.free_slot() == 1 and stores.region_size == REGION
    stores.add(1, Memory("a", 2 * REGION), store=7, size=2 * REGION)
    stores.add(3, Memory("b", 2 * REGION))
    assert stores.slots() == [1, 3] and stores.free_slot() == 2
    assert stores.device(3).name == "b"
    with pytest.raises(LookupError):
        stores.runs(3)                           # a device without a map
    stores.set_scratch(3)
    with pytest.raises(OSError) as caught:
        stores.set_scratch(1)
    assert caught.value.errno == errno.EBUSY
    with pytest.raises(LookupError):
        stores.set_scratch(4)
    stores.set_scratch(0)
    assert stores.map_memory() > 0


def test_all_slots_in_use(stores):
    device = Memory("one", REGION)
    for slot in range(1, 1024):
        stores.add(slot, device)
    with pytest.raises(OSError) as caught:
        stores.free_slot()
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(ValueError, match="from 1 to 1023"):
        stores.add(1024, device)


def test_behind_the_end_of_a_device(stores):
    """A store that shows a shorter device reads zeros behind its end."""
    stores.add(1, Memory("long", 2 * REGION), store=1, size=2 * REGION)
    stores.add(2, Memory("short", REGION + 1024), store=2, size=REGION + 1024)
    stores.copy(1, 2, 0, 2)
    assert stores.resolve(1, 0, 2 * REGION)[0] == [(2, 0, REGION + 1024), (0, REGION + 1024, REGION - 1024)]
    assert stores.resolve(1, REGION + 2048, 512)[0] == [(0, REGION + 2048, 512)]


@pytest.mark.parametrize("region_size,alignment", [(2048, 512), (1 << 21, 512), (4097, 512), (65536, 1024), (65536, 0)])
def test_bad_sizes(region_size, alignment):
    with pytest.raises(ValueError, match="must be"):
        Stores(region_size=region_size, alignment=alignment)


def test_refused_devices(stores):
    device = Memory("a", 2 * REGION)
    with pytest.raises(ValueError, match="slot 0"):
        stores.add(0, device)
    with pytest.raises(ValueError, match="not a multiple"):
        stores.add(1, device, store=1, size=100)
    with pytest.raises(ValueError, match="beyond the end"):
        stores.add(1, device, store=1, size=3 * REGION)
    with pytest.raises(ValueError, match="sectors of 4096"):
        stores.add(1, Memory("b", 2 * REGION, 4096), store=1, size=REGION)
    stores.add(1, device, store=1, size=REGION)
    with pytest.raises(ValueError, match="already"):
        stores.add(1, device, store=2, size=REGION)
    with pytest.raises(ValueError, match="already"):
        stores.add(2, device, store=1, size=REGION)
    with pytest.raises(RuntimeError):
        stores.__init__(region_size=REGION, alignment=512)
    assert stores.slots() == [1]


@pytest.mark.parametrize("bad", [
    b"x" * 23,
    entry(0, 1, 1, 2) + b"x",
    entry(0, 1, 0, 1),
    entry(0, 1, 9, 1),
    entry(0, 1, 3, 1),                           # a device without a map
    entry(0, 1, 1, 9),
    entry(0, 1, 1, 65537),
    entry(0, 1, 2**32 - 1, 1),
    entry(0, 0, 1, 1),
    entry(0, 3, 1, 1),
    entry(2, 1, 1, 1),
    entry(2**64 - 1, 2, 1, 1),
    entry(2, 2**64 - 1, 1, 1),
])
def test_bad_notes(stores, bad):
    stores.add(1, Memory("a", 2 * REGION), store=1, size=2 * REGION)
    stores.add(2, Memory("b", 2 * REGION), store=2, size=2 * REGION)
    stores.add(3, Memory("c", 2 * REGION))
    for note in (bad, entry(0, 2, 2, 1) + bad):
        with pytest.raises(ValueError, match="map entr"):
            stores.repoint(note)
    assert sources(stores, 1) == [1, 1] and sources(stores, 2) == [2, 2]
    stores.repoint(b"")
    stores.repoint(entry(0, 1, 1, 3))
    assert sources(stores, 1) == [3, 1]


@pytest.mark.parametrize("first,count", [(0, 3), (2, 1), (2**64 - 1, 1), (1, 2**64 - 1)])
def test_outside(stores, first, count):
    stores.add(1, Memory("a", 2 * REGION), store=1, size=2 * REGION)
    stores.add(2, Memory("b", 4 * REGION), store=2, size=4 * REGION)
    with pytest.raises(ValueError, match="outside"):
        stores.copy(1, 2, first, count)
    with pytest.raises(ValueError, match="outside"):
        stores.copy(2, 1, first, count)
    with pytest.raises(ValueError, match="outside"):
        stores.copy(1, 0, first, count)
    with pytest.raises(ValueError, match="outside"):
        stores.resolve(1, first * 512 % 2**64, 4 * REGION)
    with pytest.raises(IndexError):
        stores.source(1, 2**63)
    assert stores.source(2, 3) == 2


def test_no_such(stores):
    stores.add(1, Memory("a", REGION), store=1, size=REGION)
    stores.add(2, Memory("zombie", REGION))
    for slot in (0, 2, 3, 1023, 1024, 2**32 - 1):
        for refused, more in ((stores.drop_map, ()), (stores.resize, (0,)), (stores.copy, (1, 0, 1)), (stores.runs, ()),
                              (stores.foreign, ()), (stores.encode_map, ()), (stores.source, (0,)),
                              (stores.decode_map, (b"",))):
            with pytest.raises(LookupError):
                refused(slot, *more)
    for slot in (0, 3, 1024):
        with pytest.raises(LookupError):
            stores.remove(slot)
        with pytest.raises(LookupError):
            stores.shown(slot)
    with pytest.raises(LookupError):
        stores.copy(1, 2, 0, 1)
    with pytest.raises(ValueError, match="not a multiple"):
        stores.resize(1, 100)


def test_decode_refuses(stores):
    stores.add(1, Memory("a", REGION), store=1, size=REGION)
    stores.add(2, Memory("b", 4 * REGION), store=2, size=4 * REGION)
    with pytest.raises(ValueError, match="malformed"):
        stores.decode_map(1, b"nonsense")
    with pytest.raises(ValueError, match="malformed"):
        stores.decode_map(1, b"")
    with pytest.raises(ValueError, match="not one of the store"):
        stores.decode_map(1, stores.encode_map(2))
    other = Stores(region_size=REGION, alignment=512)
    other.add(3, Memory("c", REGION), store=1, size=REGION)
    with pytest.raises(ValueError, match="not one of the store"):
        stores.decode_map(1, other.encode_map(3))


def test_flush_names_the_device(stores):
    good, bad = Memory("good", REGION), Memory("the bad one", REGION)
    stores.add(1, good)
    stores.add(2, bad)
    stores.flush()                               # the first may cover what was written before: it is never left out
    good.write(0, bytes(512))
    stores.flush()
    assert good.flushes == 2 and bad.flushes == 1
    bad.write(0, bytes(512))
    bad.flush_error = errno.EIO
    with pytest.raises(OSError, match="the bad one") as caught:
        stores.flush()
    assert caught.value.errno == errno.EIO
    assert good.flushes == 2


@pytest.mark.parametrize("count", [1, 1000, 70_000])
def test_what_a_copy_would_change_is_counted_over_pages(count):
    stores = Stores(region_size=REGION, alignment=512)
    for slot in (1, 2):
        stores.add(slot, Memory(f"d{slot}", count * REGION), store=slot, size=count * REGION)
    stores.copy(2, 1, 0, count // 2)
    stores.copy(1, 0, count // 3, count // 3)
    for target, source, first, length in itertools.product((1, 2), (0, 1, 2), (0, count // 5, count - 1), (0, 1, count // 2, count)):
        length = min(length, count - first)
        foretold = stores.differing(target, source, first, length)
        one, other = sources(stores, target)[first:first + length], sources(stores, source)[first:first + length] if source else [0] * length
        assert foretold == sum(a != b for a, b in zip(one, other, strict=True))


def test_what_cannot_be_compared(stores):
    stores.add(1, Memory("d1", 4 * REGION), store=1, size=4 * REGION)
    stores.add(2, Memory("d2", 2 * REGION), store=2, size=2 * REGION)
    for first, count in ((0, 5), (5, 0), (0, 3), (2**64 - 1, 1), (1, 2**64 - 1)):
        with pytest.raises(ValueError):
            stores.differing(1, 2, first, count)
    for target, source in ((3, 1), (1, 3), (0, 1)):
        with pytest.raises((ValueError, LookupError, OSError)):
            stores.differing(target, source, 0, 1)


ASKED = """
import threading
from pyrepl._core.stores import Stores
from tests.support.devices import MemoryDevice

stores, over = Stores(region_size=4096, alignment=4096), threading.Event()


def ask():
    while not over.is_set():
        stores.map_memory()


threads = [threading.Thread(target=ask) for _ in range(2)]
for thread in threads:
    thread.start()
device = MemoryDevice("m", 64 << 20)
for _ in range(12000):
    for slot in range(1, 5):
        stores.add(slot, device, store=slot, size=64 << 20)
    for slot in range(1, 5):
        stores.drop_map(slot)
        stores.remove(slot)
over.set()
for thread in threads:
    thread.join()
print(stores.map_memory())
"""


def test_map_memory_is_asked_while_maps_go(python):
    """A status is asked for by any thread, and the applier drops maps meanwhile: it crashed, so it is asked in a process of its
    own."""
    process = python(ASKED)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "0\n")
