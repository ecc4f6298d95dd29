"""SourceMap against its slow twin, a list."""
import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrepl._core.sources import SourceMap
from tests.support.examples import examples

PAGE = 512
SIZES = st.one_of(st.integers(0, 40), st.sampled_from([PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 3 * PAGE + 7]))
VALUES = st.sampled_from([0, 1, 2, 3, 1023, 65535])


def runs(values):
    out = []
    for region, value in enumerate(values):
        if out and out[-1][2] == value:
            out[-1][1] += 1
        else:
            out.append([region, 1, value])
    return [tuple(run) for run in out]


def ranges(draw, size):
    """Ranges that like the edges of pages."""
    edges = [e for e in (0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, size - 1, size) if 0 <= e <= size]
    point = st.one_of(st.sampled_from(edges), st.integers(0, size))
    a, b = sorted((draw(point), draw(point)))
    return a, b - a


def check(source_map, twin):
    assert source_map.size == len(twin)
    assert list(source_map.runs()) == runs(twin)
    again = SourceMap.decode(source_map.encode())
    assert again == source_map
    assert list(again.runs()) == runs(twin)


@settings(max_examples=examples(100), deadline=None)
@given(st.data())
def test_as_a_list(data):
    size = data.draw(SIZES)
    maps = [(SourceMap(size, 1), [1] * size), (SourceMap(size, 2), [2] * size)]
    for _ in range(data.draw(st.integers(1, 12))):
        what = data.draw(st.sampled_from(["set", "set", "copy_range", "copy", "resize", "step"]))
        number = data.draw(st.integers(0, len(maps) - 1))
        source_map, twin = maps[number]
        if what == "set":
            first, count = ranges(data.draw, len(twin))
            value = data.draw(VALUES)
            source_map.set(first, count, value)
            twin[first:first + count] = [value] * count
        elif what == "copy_range":
            other, other_twin = maps[data.draw(st.integers(0, len(maps) - 1))]
            first, count = ranges(data.draw, min(len(twin), len(other_twin)))
            pairs = zip(twin[first:first + count], other_twin[first:first + count], strict=True)
            changed = sum(a != b for a, b in pairs)
            assert source_map.copy_range(other, first, count) == changed
            twin[first:first + count] = other_twin[first:first + count]
        elif what == "copy" and len(maps) < 5:
            maps.append((source_map.copy(), list(twin)))
        elif what == "resize":
            count, value = data.draw(SIZES), data.draw(VALUES)
            source_map.resize(count, value)
            twin[:] = (twin + [value] * count)[:count]
        elif what == "step" and twin:            # what the mover does: one region at a time until a page is uniform
            for region in range(min(len(twin), 50)):
                source_map.set(region, 1, 7)
                twin[region] = 7
        for one, its_twin in maps:               # a copy that shares pages must not see the others' changes
            check(one, its_twin)
    for one, its_twin in maps:
        start, value, equal = data.draw(st.integers(0, 3 * PAGE)), data.draw(VALUES), data.draw(st.booleans())
        want = [r for r in range(start, len(its_twin)) if (its_twin[r] == value) == equal]
        run = []
        for r in want:
            if run and r != run[-1] + 1:
                break
            run.append(r)
        assert one.find(value, start=start, equal=equal) == ((run[0], len(run)) if run else None)
        if start < len(its_twin):
            assert one[start] == its_twin[start]


def test_equal():
    a, b = SourceMap(10000, 1), SourceMap(10000, 1)
    assert a == b and a == a.copy()
    b.set(9999, 1, 2)
    assert a != b
    b.set(9999, 1, 1)
    assert a == b
    assert a != SourceMap(9999, 1)
    assert a.__eq__("map") is NotImplemented


def test_memory_is_what_differs():
    source_map = SourceMap(1 << 24, 1)
    plain = source_map.memory_bytes
    page = 2 * PAGE
    assert plain < 9 * (1 << 24) // PAGE
    source_map.set(5, 1, 2)
    assert plain + page <= source_map.memory_bytes < plain + page + 100
    twin = source_map.copy()
    assert twin.memory_bytes < plain + page / 2 + 100  # the page is shared by two
    twin.set(6, 1, 2)
    assert twin.memory_bytes >= plain + page     # and not any more
    assert source_map[6] == 1
    for region in range(PAGE):                   # region by region back to one value: the page goes
        source_map.set(region, 1, 1)
    assert source_map.memory_bytes == plain


def test_copy_of_a_tebibyte_is_short():
    source_map = SourceMap(1 << 24, 1)           # 1 TiB of 64 KiB regions
    for region in range(0, 1 << 24, 1 << 15):
        source_map.set(region, 1, 2)
    snapshot = SourceMap(1 << 24, 3)
    assert snapshot.copy_range(source_map, 0, 1 << 24) == 1 << 24
    best = 1.0
    for _ in range(5):
        began = time.perf_counter()
        assert snapshot.copy_range(source_map, 0, 1 << 24) == 0
        best = min(best, time.perf_counter() - began)
    assert best < 0.005
    assert snapshot == source_map


@pytest.mark.parametrize("first,count", [(0, 11), (10, 1), (11, 0), (2**64 - 1, 1), (1, 2**64 - 1), (2**63, 2**63)])
def test_outside(first, count):
    source_map = SourceMap(10, 1)
    with pytest.raises(ValueError, match="outside a map of 10"):
        source_map.set(first, count, 2)
    with pytest.raises(ValueError, match="outside a map of 10"):
        source_map.copy_range(SourceMap(20, 1), first, count)
    with pytest.raises(ValueError, match="outside a map of 10"):
        SourceMap(2**20, 1).copy_range(source_map, first, count)
    with pytest.raises((IndexError, OverflowError)):
        source_map[max(first, 10)]
    assert list(source_map.runs()) == [(0, 10, 1)]


def test_values_that_do_not_fit():
    with pytest.raises(OverflowError):
        SourceMap(10, 65536)
    with pytest.raises(OverflowError):
        SourceMap(-1, 0)
    with pytest.raises(MemoryError):
        SourceMap(2**64 - 1, 0)
    source_map = SourceMap(10, 1)
    with pytest.raises(MemoryError):
        source_map.resize(2**64 - 1, 0)
    with pytest.raises(OverflowError):
        source_map.set(0, 1, 65536)
    assert list(source_map.runs()) == [(0, 10, 1)]


def encoded(count, *pages, version=1, zeros=bytes(6)):
    return struct.pack("<H", version) + zeros + struct.pack("<Q", count) + b"".join(pages)


ONE = b"\0\1\0"


@pytest.mark.parametrize("data", [
    b"",
    encoded(10, ONE)[:-1],
    encoded(10, ONE) + b"\0",
    encoded(10, ONE, version=2),
    encoded(10, ONE, zeros=bytes(5) + b"\1"),
    encoded(10),
    encoded(0, ONE),
    encoded(2**64 - 1, ONE),
    encoded(2**63, ONE * 1000),
    encoded(10, b"\3\1\0"),                                                         # no such kind
    encoded(10, b"\1" + struct.pack("<HHH", 1, 10, 1)),                             # one run is a uniform page
    encoded(10, b"\1" + struct.pack("<HHHHH", 2, 5, 1, 4, 2)),                      # too short
    encoded(10, b"\1" + struct.pack("<HHHHH", 2, 5, 1, 6, 2)),                      # too long
    encoded(10, b"\1" + struct.pack("<HHHHHHH", 3, 5, 1, 0, 3, 5, 2)),              # an empty run
    encoded(10, b"\1" + struct.pack("<HHHHH", 2, 5, 1, 5, 1)),                      # one run in two
    encoded(10, b"\1" + struct.pack("<HHHH", 2, 5, 1, 5)),
    encoded(10, b"\2" + bytes(19)),
], ids=lambda data: data.hex()[:60])
def test_malformed(data):
    with pytest.raises(ValueError, match="malformed source map"):
        SourceMap.decode(data)


@settings(max_examples=examples(100), deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes(data):
    """No bytes harm; what is taken is a map."""
    try:
        source_map = SourceMap.decode(encoded(20, data))
    except ValueError:
        return
    assert sum(run[1] for run in source_map.runs()) == 20


def test_encoded_is_short():
    source_map = SourceMap(1 << 24, 1)
    assert len(source_map.encode()) == 16 + 3 * (2**24 // PAGE)
    source_map.set(100, 10, 2)
    assert len(source_map.encode()) == 16 + 3 * (2**24 // PAGE - 1) + 1 + 2 + 4 * 3
    for region in range(0, PAGE, 2):
        source_map.set(region, 1, 3)
    assert len(source_map.encode()) == 16 + 3 * (2**24 // PAGE - 1) + 1 + 2 * PAGE


def test_not_hashable():
    with pytest.raises(TypeError):
        hash(SourceMap(1, 1))
