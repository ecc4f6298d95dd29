"""Structs packed by the room against the same bytes written by hand with the module struct."""

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrepl._core import layout
from tests.support.examples import examples
from tests.support.forge import crc32c

FORMATS = {  # written down a second time, on purpose
    "superblock": "<8sII16s16sQ2QQQQIIIIQQ64s3900sI",
    "checkpoint": "<8sII16sQQQQQQQQ3996sI",
    "frame": "<IHHIIQII",
}
MAGICS = {"superblock": b"PYREPLSB", "checkpoint": b"PYREPLCK", "frame": 0x31465250}
PACK = {"superblock": layout.pack_superblock, "checkpoint": layout.pack_checkpoint, "frame": layout.pack_frame}
UNPACK = {"superblock": layout.unpack_superblock, "checkpoint": layout.unpack_checkpoint, "frame": layout.unpack_frame}
STRUCTS = sorted(PACK)
HEADER = (Path(__file__).resolve().parents[2] / "src" / "_core" / "layout.h").read_text()

u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
uuids = st.binary(min_size=16, max_size=16)
FIELDS = {  # in the order in which they lie
    "superblock": {"block_size": u32, "journal": uuids, "node": uuids, "device_size": u64, "area_offset": st.tuples(u64, u64),
                   "area_size": u64, "log_offset": u64, "log_size": u64, "alignment": u32, "region_size": u32, "max_event": u32,
                   "max_payload": u32, "created_ns": u64, "first_position": u64, "name": st.binary(min_size=64, max_size=64)},
    "checkpoint": {"body_crc": u32, "journal": uuids, "sequence": u64, "body_length": u64, "scan_position": u64, "scan_chain": u64,
                   "applied_position": u64, "applied_lsn": u64, "note_position": u64, "durable_position": u64},
    "frame": {"type": u16, "length": u32, "body_crc": u32, "sequence": u64, "session": u32},
}  # fmt: skip


def by_hand(name, values, *, magic=None, version=1, reserved=b"", crc=None):
    flat = [magic or MAGICS[name], version]
    for value in (values[field] for field in FIELDS[name]):
        flat += value if isinstance(value, tuple) else [value]
    raw = struct.pack(FORMATS[name], *flat, *([] if name == "frame" else [reserved]), 0)
    return raw[:-4] + struct.pack("<I", crc32c(raw[:-4]) if crc is None else crc)


@settings(max_examples=examples(60), deadline=None)
@given(st.sampled_from(STRUCTS), st.data())
def test_packed_as_by_hand_and_back(name, data):
    values = data.draw(st.fixed_dictionaries(FIELDS[name]))
    packed = PACK[name](**values)
    assert packed == by_hand(name, values)
    expected = {"magic": MAGICS[name], "version": 1, **values}
    assert UNPACK[name](packed) == expected
    assert UNPACK[name](memoryview(b"?" + packed)[1:]) == expected


@pytest.mark.parametrize("name", STRUCTS)
def test_what_is_not_given_is_zero(name):
    values = UNPACK[name](PACK[name]())
    magic, version, rest = values.pop("magic"), values.pop("version"), values.values()
    assert (magic, version) == (MAGICS[name], 1)
    assert not any(any(value) if isinstance(value, (bytes, tuple)) else value for value in rest)
    assert len(PACK[name]()) == struct.calcsize(FORMATS[name])


def zeros(name):
    """Values of a struct of zeros."""
    return {key: value for key, value in UNPACK[name](PACK[name]()).items() if key not in ("magic", "version")}


@pytest.mark.parametrize("name", STRUCTS)
@pytest.mark.parametrize("cut", [0, 1, -1])
def test_a_wrong_length(name, cut):
    packed = PACK[name]()
    wrong = b"" if cut == 0 else packed[:-1] if cut < 0 else packed + b"\0"
    with pytest.raises(ValueError, match=f"a {name} has {len(packed)} bytes, not {len(wrong)}"):
        UNPACK[name](wrong)


@pytest.mark.parametrize("name", STRUCTS)
def test_each_thing_that_can_be_wrong_is_named(name):
    magic = b"PYREPLXX" if name != "frame" else 0x32465250
    with pytest.raises(ValueError, match="magic"):
        UNPACK[name](by_hand(name, zeros(name), magic=magic))
    for version in (0, 2, 65535):
        with pytest.raises(ValueError, match=f"version {version} of the {name} cannot be read"):
            UNPACK[name](by_hand(name, zeros(name), version=version))
    with pytest.raises(ValueError, match="checksum"):
        UNPACK[name](by_hand(name, zeros(name), crc=1))
    if name != "frame":
        for reserved in (b"\1", bytes(3899) + b"\1"):
            with pytest.raises(ValueError, match="reserved"):
                UNPACK[name](by_hand(name, zeros(name), reserved=reserved))


@settings(max_examples=examples(100), deadline=None)
@given(st.sampled_from(STRUCTS), st.data())
def test_every_bit_is_under_the_checksum(name, data):
    packed = bytearray(PACK[name]())
    bit = data.draw(st.integers(0, len(packed) * 8 - 1))
    packed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ValueError, match="magic|version|checksum"):
        UNPACK[name](packed)


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("frame", {"colour": 1}, "frame has no field 'colour'"),
        ("frame", {"crc": 1}, "'crc' that can be given"),
        ("superblock", {"reserved": b"x"}, "'reserved' that can be given"),
        ("frame", {"type": 2**16}, "no room"),
        ("frame", {"type": -1}, "no room"),
        ("frame", {"length": 2**32}, "no room"),
        ("frame", {"sequence": 2**64}, "no room"),
        ("checkpoint", {"scan_chain": 2**64}, "no room"),
        ("superblock", {"area_offset": (2**64, 0)}, "no room"),
        ("superblock", {"area_offset": (1,)}, "area_offset has 2 numbers, not 1"),
        ("superblock", {"area_offset": (1, 2, 3)}, "area_offset has 2 numbers, not 3"),
        ("superblock", {"name": b"x" * 65}, "name has 64 bytes, not 65"),
        ("superblock", {"journal": b"x" * 17}, "journal has 16 bytes, not 17"),
    ],
)
def test_what_cannot_be_packed(name, values, text):
    with pytest.raises(ValueError, match=text):
        PACK[name](**values)


@pytest.mark.parametrize("value", [5, "name", None])
def test_bytes_are_given_as_bytes(value):
    """bytes(5) would be five zeros."""
    with pytest.raises(TypeError):
        layout.pack_superblock(name=value)


def test_shorter_bytes_are_padded():
    assert layout.unpack_superblock(layout.pack_superblock(name=b"bank"))["name"] == b"bank" + bytes(60)


def test_every_number_of_the_header_is_there():
    """Names and values as they stand in layout.h, read here by regular expressions and not by the compiler."""
    numbers = {}
    for name, text in re.findall(r"^#define PR_(\w+) ([^/\n]+)", HEADER, re.MULTILINE):
        numbers[name] = eval(re.sub(r"\b(0x[0-9a-f]+|\d+)u\b", r"\1", text), {})
    for name, text in re.findall(r"^ {4}PR_(\w+) = (\d+),", HEADER, re.MULTILINE):
        numbers[name] = int(text)
    assert len(numbers) > 20
    assert {name: getattr(layout, name, None) for name in numbers} == numbers
    sizes = dict(re.findall(r"sizeof\(struct pr_(\w+)\) == (\d+)", HEADER))
    assert len(sizes) == 7
    for name, size in sizes.items():
        assert getattr(layout, f"{name.upper()}_SIZE") == int(size)
        assert sum(size for _, _, size in layout.fields(name)) == int(size)


def test_every_field_of_the_header_is_there():
    for name, body in re.findall(r"^struct pr_(\w+) \{(.*?)^\};", HEADER, re.MULTILINE | re.DOTALL):
        declared = re.findall(r"^ {4}u?int\d+_t (\w+)", body, re.MULTILINE)
        assert [field for field, _, _ in layout.fields(name)] == declared


def test_fields_of_a_struct_that_is_none():
    with pytest.raises(ValueError, match=r"no struct 'cheque'.*superblock"):
        layout.fields("cheque")
