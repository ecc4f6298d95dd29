"""RegionMap against its slow twin, a set of numbers."""

import struct
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrepl._core.regions import RegionMap
from tests.support.examples import examples

FEW = settings(max_examples=examples(100), deadline=None)
WORD, BLOCK = 64, 4096  # the edges inside: a word of the bits, and the regions of one summary word
MOST = 1 << 40
TOO_MUCH = [-1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, 1 << 70]
sizes = st.one_of(
    st.integers(0, 200), st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 64, 2 * BLOCK, 3 * BLOCK + 7])
)


def runs_of(marked):
    """The twin's runs."""
    out = []
    for region in sorted(marked):
        if out and out[-1][0] + out[-1][1] == region:
            out[-1][1] += 1
        else:
            out.append([region, 1])
    return [tuple(run) for run in out]


def check(regions, size, marked):
    """Every way of looking at the map says the same as the set."""
    runs = runs_of(marked)
    assert regions.size == size
    assert regions.count() == len(marked)
    assert bool(regions) is bool(marked)
    assert list(regions.runs()) == runs
    array = regions.array()
    assert array.dtype == np.uint64 and len(array) == -(-size // WORD)
    bits = np.unpackbits(array.view(np.uint8), bitorder="little") if size else np.zeros(0, np.uint8)
    assert set(np.flatnonzero(bits).tolist()) == marked  # behind the end, too
    for region in {0, size // 2, size - 1, *list(marked)[:5]} if size else ():
        assert (region in regions) is (region in marked)
    again = RegionMap.decode(regions.encode())
    assert again == regions and regions.copy() == regions
    assert again.size == size and list(again.runs()) == runs
    assert again.encode() == regions.encode()


@st.composite
def ranges_in(draw, size):
    """A range that likes the edges of words and blocks."""
    edges = [e for e in (0, 1, WORD - 1, WORD, WORD + 1, BLOCK - 1, BLOCK, BLOCK + 1, size - 1, size) if 0 <= e <= size]
    point = st.one_of(st.sampled_from(edges), st.integers(0, size))
    a, b = sorted((draw(point), draw(point)))
    return a, b - a


@st.composite
def maps(draw, size):
    """A map and its twin: some ranges, and perhaps single regions strewn over it, so that blocks are sparse or spread."""
    regions, marked = RegionMap(size), set()
    for _ in range(draw(st.integers(0, 4))):
        first, count = draw(ranges_in(size))
        regions.mark(first, count)
        marked.update(range(first, first + count))
    step = draw(st.sampled_from([0, 2, 37, 100, 1000]))
    for region in range(draw(st.integers(0, 63)), size, step) if step else ():
        regions.mark(region)
        marked.add(region)
    for _ in range(draw(st.integers(0, 3))):
        first, count = draw(ranges_in(size))
        regions.clear(first, count)
        marked.difference_update(range(first, first + count))
    return regions, marked


@FEW
@given(st.data())
def test_mark_and_clear(data):
    size = data.draw(sizes)
    regions, marked = data.draw(maps(size))
    check(regions, size, marked)


@FEW
@given(st.data())
def test_mark_ranges_is_mark_for_each(data):
    size = data.draw(sizes)
    ranges = data.draw(st.lists(ranges_in(size), max_size=20))
    packed = b"".join(struct.pack("<QQ", *one) for one in ranges)
    regions = RegionMap(size)
    offset = data.draw(st.integers(0, 7))  # of any alignment
    regions.mark_ranges(memoryview(bytes(offset) + packed)[offset:])
    check(regions, size, {region for first, count in ranges for region in range(first, first + count)})


@FEW
@given(st.data())
def test_next_run(data):
    size = data.draw(sizes)
    regions, marked = data.draw(maps(size))
    start, most = data.draw(st.integers(0, size + 2)), data.draw(st.one_of(st.integers(0, 200), st.just(1 << 70)))
    left = runs_of({region for region in marked if region >= start})
    expected = (left[0][0], min(left[0][1], most)) if left and most else None
    assert regions.next_run(start, most) == expected


@FEW
@given(st.data())
def test_union_and_subtract_of_maps_of_any_two_sizes(data):
    size, other_size = data.draw(sizes), data.draw(sizes)
    regions, marked = data.draw(maps(size))
    other, other_marked = data.draw(maps(other_size))
    united, less = regions.copy(), regions.copy()
    united.union(other)
    less.subtract(other)
    check(united, size, {region for region in marked | other_marked if region < size})
    check(less, size, marked - other_marked)
    check(other, other_size, other_marked)


@FEW
@given(st.data())
def test_copy_range(data):
    size, other_size = data.draw(sizes), data.draw(sizes)
    regions, marked = data.draw(maps(size))
    other, other_marked = data.draw(maps(other_size))
    first, count = data.draw(ranges_in(size))
    regions.copy_range(other, first, count)
    inside = set(range(first, first + count))
    check(regions, size, (marked - inside) | (other_marked & inside))


@FEW
@given(st.data())
def test_resize_keeps_what_fits_and_adds_clear_regions(data):
    size, other_size = data.draw(sizes), data.draw(sizes)
    regions, marked = data.draw(maps(size))
    regions.resize(other_size)
    check(regions, other_size, {region for region in marked if region < other_size})
    regions.resize(size)
    check(regions, size, {region for region in marked if region < other_size})


@pytest.mark.parametrize("size", [0, 1, WORD, BLOCK, 3 * BLOCK + 7])
def test_a_map_with_itself(size):
    regions = RegionMap(size, marked=True)
    regions.union(regions)
    regions.copy_range(regions, 0, size)
    check(regions, size, set(range(size)))
    regions.subtract(regions)
    check(regions, size, set())


@FEW
@given(st.data())
def test_equal_maps_are_equal_in_size_and_marks(data):
    size, other_size = data.draw(sizes), data.draw(sizes)
    regions, marked = data.draw(maps(size))
    other, other_marked = data.draw(maps(other_size))
    assert (regions == other) is (size == other_size and marked == other_marked)
    if size:
        changed, region = regions.copy(), data.draw(st.integers(0, size - 1))
        (changed.clear if region in marked else changed.mark)(region)
        assert changed != regions


def test_not_equal_to_other_things_and_not_hashable():
    assert RegionMap(3) != 3
    with pytest.raises(TypeError, match="unhashable"):
        hash(RegionMap(3))


def number(value):
    """LEB128, the twin."""
    out = bytearray()
    while value >= 128:
        out.append(value % 128 | 128)
        value //= 128
    return bytes([*out, value])


def encoded(size, marked):
    """The twin's bytes: the runs, each as gap and length, or the words where they are shorter."""
    by_runs, end = b"", 0
    for first, count in runs_of(marked):
        by_runs += number(first - end - (end > 0)) + number(count - 1)
        end = first + count
    words = -(-size // WORD)
    if len(by_runs) < words * 8 or not words:
        return bytes([1]) + struct.pack("<Q", size) + by_runs
    return bytes([2]) + struct.pack("<Q", size) + sum(1 << region for region in marked).to_bytes(words * 8, "little")


@FEW
@given(st.data())
def test_encode_is_the_twins(data):
    size = data.draw(sizes)
    regions, marked = data.draw(maps(size))
    assert regions.encode() == encoded(size, marked)


def test_the_shorter_encoding_is_written():
    size = 1 << 20
    assert RegionMap(size).encode() == bytes([1]) + struct.pack("<Q", size)
    assert RegionMap(size, marked=True).encode() == bytes([1]) + struct.pack("<Q", size) + b"\0\xff\xff\x3f"
    dense = RegionMap(64)
    for region in range(0, 64, 2):
        dense.mark(region)
    assert dense.encode() == bytes([2]) + struct.pack("<QQ", 64, 0x5555555555555555)
    assert RegionMap.decode(dense.encode()) == dense


def test_runs_over_the_edges_of_words_are_counted_once():
    """3.5 runs in each word take 7 of its 8 bytes; counted at each edge again they would seem to take 9."""
    size, marked = 100 * WORD, {region for region in range(100 * WORD) if region % 18}
    regions = RegionMap(size, marked=True)
    for region in range(0, size, 18):
        regions.clear(region)
    assert encoded(size, marked)[0] == 1
    check(regions, size, marked)
    assert regions.encode() == encoded(size, marked)


def test_what_another_thread_marks_meanwhile_does_no_harm():
    """The bytes are good, and hold what was marked before, though the map grows between the count and the writing."""
    size, calls = 1 << 24, 20
    # each call marks regions all over the map, in ascending order, so that a walk meets marks in the making
    wanted = [np.arange(n, size - 100, 1220, dtype=np.uint64) for n in range(0, 61 * calls, 61)]
    pairs = [np.ascontiguousarray(np.stack([first, np.full_like(first, 1 + n)], 1)) for n, first in enumerate(wanted)]
    for _ in range(5):
        regions, done = RegionMap(size), []

        def mark(regions=regions, done=done):
            for ranges in pairs:
                regions.mark_ranges(ranges)
                done.append(None)

        marker = threading.Thread(target=mark)
        marker.start()
        alive = True
        while alive:
            alive, before = marker.is_alive(), len(done)
            again = RegionMap.decode(regions.encode())
            words = again.array()
            for first in wanted[:before]:
                assert (words[first // 64] >> first % 64 & 1).all()
        marker.join()
        assert again == regions and len(done) == calls


def run_bytes(size, *numbers):
    return bytes([1]) + struct.pack("<Q", size) + b"".join(number(n) for n in numbers)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes([1]) + bytes(7),
        bytes([0]) + struct.pack("<Q", 64),
        bytes([3]) + struct.pack("<Q", 64),
        run_bytes(MOST + 1),
        run_bytes((1 << 64) - 1),
        run_bytes(64, 0),  # half a run
        run_bytes(64, 0, 64),  # one region too long
        run_bytes(64, 64, 0),  # one region too far
        run_bytes(64, 0, 9, 53, 0),  # the second is: 10 + 1 + 53 = 64
        run_bytes(64, 0, 63, 0, 0),  # behind the end
        run_bytes(0, 0, 0),
        run_bytes(64, (1 << 63) - 1, 0),
        run_bytes(64, 0, (1 << 63) - 1),
        run_bytes(64, 0, 0, (1 << 63) - 1, (1 << 63) - 1),
        run_bytes(64, 1 << 63, 0),  # a number of more than 63 bits
        run_bytes(64, (1 << 64) - 1, (1 << 64) - 1),
        run_bytes(64) + b"\x80\0\0",  # not the shortest form of 0
        run_bytes(64) + b"\x80",  # ends in a number
        run_bytes(64, 0) + b"\xff",
        bytes([2]) + struct.pack("<QQ", 65, 1),
        bytes([2]) + struct.pack("<QQQ", 64, 1, 0),
        bytes([2]) + struct.pack("<Q", MOST - 1),
        bytes([2]) + struct.pack("<QQQ", 65, 0, 2),  # a region behind the end
        bytes([2]) + struct.pack("<QQ", 1, 1 << 63),
    ],
    ids=bytes.hex,
)
def test_a_malformed_encoding_is_refused(data):
    with pytest.raises(ValueError, match="not an encoded region map"):
        RegionMap.decode(data)


def test_the_last_region_is_not_outside():
    """The twin of the refusals above: one less, and each is good."""
    assert list(RegionMap.decode(run_bytes(64, 0, 63)).runs()) == [(0, 64)]
    assert list(RegionMap.decode(run_bytes(64, 63, 0)).runs()) == [(63, 1)]
    assert list(RegionMap.decode(run_bytes(64, 0, 9, 52, 0)).runs()) == [(0, 10), (63, 1)]
    assert list(RegionMap.decode(bytes([2]) + struct.pack("<QQQ", 65, 0, 1)).runs()) == [(64, 1)]


@FEW
@given(st.binary(max_size=80), st.data())
def test_any_bytes_are_a_map_or_refused(noise, data):
    """Decoding never does anything else; sizes are kept small, for a large one is only address space."""
    raw = bytearray(noise)
    if len(raw) >= 9:
        raw[0], raw[4:9] = data.draw(st.sampled_from([1, 2])), bytes(5)
    try:
        regions = RegionMap.decode(bytes(raw))
    except ValueError:
        return
    check(regions, regions.size, {region for first, count in regions.runs() for region in range(first, first + count)})


@pytest.mark.parametrize("size", [-1, MOST + 1, (1 << 63), (1 << 64) - 1, 1 << 64])
def test_a_size_that_cannot_be(size):
    with pytest.raises(ValueError, match="a map of|not below 0"):
        RegionMap(size)
    regions = RegionMap(70, marked=True)
    with pytest.raises(ValueError, match="a map of|not below 0"):
        regions.resize(size)
    check(regions, 70, set(range(70)))


OUTSIDE = [*((n, 1) for n in TOO_MUCH), *((0, n) for n in TOO_MUCH), *((n, n) for n in TOO_MUCH), (70, 1), (71, 0), (1, 70)]


@pytest.mark.parametrize("change", ["mark", "clear", "copy_range"])
@pytest.mark.parametrize("bad", OUTSIDE, ids=str)
def test_a_range_outside_is_refused_and_changes_nothing(change, bad):
    regions = RegionMap(70)
    regions.mark(3, 5)
    call = getattr(regions, change)
    with pytest.raises(ValueError, match="outside a map of 70|not below 0"):
        call(*((RegionMap(70, marked=True), *bad) if change == "copy_range" else bad))
    check(regions, 70, set(range(3, 8)))


@pytest.mark.parametrize("bad", [(70, 1), (71, 0), (0, 71), (1, (1 << 64) - 1), ((1 << 64) - 1, 2), (1 << 63, 1 << 63)])
def test_of_many_ranges_one_outside_and_none_is_marked(bad):
    regions = RegionMap(70)
    with pytest.raises(ValueError, match="range 1 is outside a map of 70"):
        regions.mark_ranges(struct.pack("<4Q", 0, 70, *bad))
    check(regions, 70, set())
    with pytest.raises(ValueError, match="pairs"):
        regions.mark_ranges(bytes(24))
    regions.mark_ranges(b"")
    check(regions, 70, set())


@pytest.mark.parametrize("region", [*TOO_MUCH, 70])
def test_in_asks_only_inside(region):
    with pytest.raises(ValueError, match="outside a map of 70|not below 0"):
        region in RegionMap(70)


def test_next_run_from_anywhere_but_below_zero():
    regions = RegionMap(70, marked=True)
    assert regions.next_run(1 << 70) is None
    assert regions.next_run(70) is None
    assert regions.next_run((1 << 64) - 1, (1 << 64) - 1) is None
    assert regions.next_run(69) == (69, 1)
    for arguments in ((-1, 1), (0, -1)):
        with pytest.raises(ValueError, match="not below 0"):
            regions.next_run(*arguments)


@pytest.mark.parametrize("method", ["union", "subtract"])
def test_only_maps_go_together(method):
    for other in (None, b"", 3):
        with pytest.raises(TypeError):
            getattr(RegionMap(3), method)(other)
    with pytest.raises(TypeError):
        RegionMap(3).copy_range(None, 0, 1)


def test_the_array_shows_the_map_and_cannot_be_written():
    regions = RegionMap(130)
    array = regions.array()
    regions.mark(0, 65)
    assert array.tolist() == [(1 << 64) - 1, 1, 0]
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True
    with pytest.raises((BufferError, TypeError)):
        struct.pack_into("<Q", regions, 0, 1)
    del regions
    assert array.tolist() == [(1 << 64) - 1, 1, 0]  # it keeps the map's memory


def test_while_an_array_lives_the_map_keeps_its_size():
    regions = RegionMap(130, marked=True)
    array, second = regions.array(), regions.array()
    del second
    with pytest.raises(BufferError, match="while an array"):
        regions.resize(1 << 20)
    assert array.tolist() == [(1 << 64) - 1, (1 << 64) - 1, 3]
    del array
    regions.resize(2)
    check(regions, 2, {0, 1})


def test_a_map_says_what_it_is():
    regions = RegionMap(10)
    regions.mark(2, 3)
    assert repr(regions) == "<RegionMap 3 of 10>"


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_what_is_never_marked_costs_no_memory():
    """2**33 regions have 1 GiB of bits."""
    before, size = resident_bytes(), 1 << 33
    regions = RegionMap(size)
    for region in (0, size // 2, size - 1):
        regions.mark(region)
    assert list(regions.runs()) == [(0, 1), (size // 2, 1), (size - 1, 1)]
    regions.resize(size + size // 2)
    regions.clear(size // 2, size)
    assert regions.count() == 1
    assert resident_bytes() - before < 128 << 20  # walking the summary touches a 64th of it
