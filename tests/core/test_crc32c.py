"""Every kernel of CRC32C against a twin of a few lines, at all short lengths and alignments."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrepl._core import crc32c as room
from pyrepl._core.crc32c import copy, crc32c
from tests.support.examples import examples

KERNELS = room.kernels()
NOISE = bytes((i * 167 + (i >> 3) * 91 + (i >> 9)) & 255 for i in range(16384))
EDGES = [length + more for length in (1024, 1536, 3 * 168, 3 * 1360, 4096, 8192, 3 * 4096) for more in (-1, 0, 1, 7)]


def bit_by_bit(data, value=0):
    """The definition: one bit at a time, reflected polynomial, inverted before and after."""
    value ^= 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


TWIN = list(itertools.accumulate(NOISE, lambda value, byte: bit_by_bit(bytes([byte]), value), initial=0))  # of each prefix


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("data", "value"),
    [  # RFC 3720, B.4, and the check value of the catalogue
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_known_values(kernel, data, value):
    assert crc32c(data, kernel=kernel) == value == bit_by_bit(data)


@pytest.mark.parametrize("kernel", KERNELS)
def test_all_short_lengths(kernel):
    for length in [*range(1300), *EDGES]:
        assert crc32c(NOISE[:length], kernel=kernel) == TWIN[length], length


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_alignment(kernel):
    for offset in range(70):
        for length in (0, 1, 7, 63, 64, 127, 128, 700, 4096, 5000):
            data = memoryview(NOISE)[offset : offset + length]
            # What follows a sum is a sum: the twin of a slice is the twin of the longer prefix, begun where the shorter ends.
            assert crc32c(data, TWIN[offset], kernel=kernel) == TWIN[offset + length]
            target = memoryview(bytearray(b"\xa5" * (length + 80)))
            into = target[offset % 64 : offset % 64 + length]
            assert copy(into, data, TWIN[offset], kernel=kernel) == TWIN[offset + length]
            assert into == data
            assert set(bytes(target[: offset % 64]) + bytes(target[offset % 64 + length :])) == {0xA5}  # and nothing beside it


@pytest.mark.parametrize("kernel", KERNELS)
def test_copy_of_all_lengths(kernel):
    for length in [*range(0, 1300, 3), *EDGES]:
        target = bytearray(length)
        assert copy(target, NOISE[:length], kernel=kernel) == TWIN[length]
        assert target == NOISE[:length]


@settings(max_examples=examples(100), deadline=None)
@given(st.binary(max_size=3000), st.integers(0, 3000), st.integers(0, 2**32 - 1), st.sampled_from(KERNELS))
def test_a_sum_goes_on_where_it_ended(data, cut, value, kernel):
    assert crc32c(data[cut:], crc32c(data[:cut], value, kernel=kernel)) == bit_by_bit(data, value)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("length", [64, 1024, 4096])
def test_every_bit_matters(kernel, length):
    data, good = bytearray(NOISE[:length]), TWIN[length]
    for bit in range(0, length * 8, 5):
        data[bit // 8] ^= 1 << bit % 8
        assert crc32c(data, kernel=kernel) != good
        data[bit // 8] ^= 1 << bit % 8
    assert crc32c(data, kernel=kernel) == good


def test_the_choice_is_one_of_the_kernels():
    assert KERNELS[0] == "scalar"
    assert room.chosen() in KERNELS
    assert set(KERNELS) <= {"scalar", "sse4.2", "vpclmul", "armv8"}
    with open("/proc/cpuinfo") as file:
        flags = set(file.read().split())
    assert ("sse4.2" in KERNELS) is ("sse4_2" in flags)
    assert ("vpclmul" in KERNELS) is ({"vpclmulqdq", "avx512f", "avx512vl"} <= flags)
    assert ("armv8" in KERNELS) is ("crc32" in flags)


@pytest.mark.parametrize("kernel", ["", "md5", "SCALAR", *sorted({"armv8", "sse4.2", "vpclmul"} - set(KERNELS))])
def test_a_kernel_that_cannot_run_is_an_error(kernel):
    for call in (lambda: crc32c(b"x", kernel=kernel), lambda: copy(bytearray(1), b"x", kernel=kernel)):
        with pytest.raises(ValueError, match="cannot run here: there are scalar"):
            call()


@pytest.mark.parametrize("value", [-1, 2**32, 2**63, 2**64])
def test_a_value_that_is_no_checksum(value):
    for call in (lambda: crc32c(b"x", value), lambda: copy(bytearray(1), b"x", value)):
        with pytest.raises(ValueError, match="32 bits"):
            call()


def test_copy_wants_as_much_room_as_there_is():
    for length in (0, 4, 6):
        with pytest.raises(ValueError, match=f"target has {length} bytes and source 5"):
            copy(bytearray(length), b"12345")
    with pytest.raises((ValueError, BufferError), match="read-only|writable"):
        copy(bytes(5), b"12345")


def test_large_data_give_the_lock_away_and_stay_right():
    data = NOISE * 64
    sums = {kernel: crc32c(data, kernel=kernel) for kernel in KERNELS}
    assert len(set(sums.values())) == 1
    target = bytearray(len(data))
    assert copy(target, data) == sums["scalar"] == crc32c(target)
    assert target == data
