"""docs/claims.md and the tests of this folder name each other."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).resolve().parent


def test_the_table_names_every_test_and_every_claim() -> None:
    text = (HERE.parents[1] / "docs" / "claims.md").read_text()
    rows = re.findall(r"^\| ([\d, ]+) \| ([^|]+) \| ([^|]+) \|$", text, flags=re.MULTILINE)
    claims = [int(number) for row in rows for number in row[0].split(",")]
    assert claims == list(range(1, 34))
    tests = {name for path in HERE.glob("test_*.py")
             for name in re.findall(r"^def (test_claim_\w+)", path.read_text(), flags=re.MULTILINE)}
    named = [(row[0], name) for row in rows for name in re.findall(r"`(test_claim_\w+)`", row[2])]
    assert {name for _, name in named} == tests and len(named) == len(tests)
    for numbers, name in named:
        assert numbers.split(", ") == [str(int(number)) for number in re.findall(r"(?<=_)\d\d(?=_)", name)], name
    assert all("test_claim" in row[2] or row[2].startswith("not yet: ") for row in rows)
