"""docs/formats.md describes each field of each struct of layout.h, at the place where the compiler puts it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyrepl import items, notes
from pyrepl._core import layout
from pyrepl.protocol import messages

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "formats.md").read_text()
SECTIONS = {
    "superblock": "Superblock",
    "checkpoint": "Checkpoint",
    "local": "Local part",
    "travel": "Travelling part",
    "record": "Descriptor",
    "frame": "The wire",
    "map_entry": "Map entry",
}


def described(heading: str) -> list[tuple[str, int, int]]:
    """(field, offset, size) of the first table of fields below a heading."""
    section = re.split(rf"^#+ {re.escape(heading)}$", TEXT, maxsplit=1, flags=re.MULTILINE)[1]
    table = section.split("| field | offset | bytes | meaning |\n", 1)[1].split("\n\n", 1)[0]
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \| (.+?) \|$", table, flags=re.MULTILINE)
    assert len(rows) == len(table.splitlines()) - 1, "a row that is not field, offset, bytes, meaning"
    return [(name, int(offset), int(size)) for name, offset, size, _ in rows]


@pytest.mark.parametrize("struct", SECTIONS)
def test_table_equals_struct(struct: str) -> None:
    assert described(SECTIONS[struct]) == [tuple(field) for field in layout.fields(struct)]


@pytest.mark.parametrize("struct", SECTIONS)
def test_fields_leave_no_hole(struct: str) -> None:
    end = 0
    for name, offset, size in layout.fields(struct):
        assert offset == end, f"a hole before {struct}.{name}"
        end = offset + size


def test_no_struct_is_left_out() -> None:
    header = (ROOT / "src" / "_core" / "layout.h").read_text()
    assert set(re.findall(r"^struct pr_(\w+) \{", header, flags=re.MULTILINE)) == set(SECTIONS)


def test_message_types() -> None:
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (?:primary|secondary|both) \|", TEXT, flags=re.MULTILINE)
    told = {int(number): name for number, name in rows}
    assert told.pop(layout.FRAME_BATCH) == "batch"
    assert told == {number: kind.__name__.lower() for number, kind in messages.TYPES.items()}


def test_note_types() -> None:
    rows = re.findall(
        r"^\| (\d+) \| (\w+) \| [^|]+ \|$", TEXT.split("## Notes")[1].split("### ")[0], flags=re.MULTILINE
    )
    assert {int(number): name for number, name in rows} == notes.NAMES


def test_limits_in_the_text() -> None:
    assert layout.MAX_RECORDS == 122 and "at most 122 records" in TEXT
    assert layout.MAX_PAYLOAD == 4 << 20 and layout.MAX_EVENT == 1 << 20
    assert items.Consistent is not None and layout.DISK_VERSION == layout.WIRE_VERSION == 1
