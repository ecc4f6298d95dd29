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
    assert all("test_claim" in row[2] for row in rows), "a claim without a test"


def test_what_is_beyond_the_claims_names_tests_that_there_are() -> None:
    root = HERE.parents[1]
    _, _, text = (root / "docs" / "claims.md").read_text().partition("## Beyond the claims")
    rows = [row for row in re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", text, flags=re.MULTILINE) if row[0] != "what"]
    assert len(rows) > 5
    for what, said in rows:
        elsewhere = [root / path for path in re.findall(r"`(tests/[\w/.]+)`", said)]
        tests = {name for path in [*HERE.glob("test_*.py"), *elsewhere]
                 for name in re.findall(r"^def (test_\w+)", path.read_text(), flags=re.MULTILINE)}
        if not said.startswith("not yet: "):
            named = re.findall(r"`(test_\w+)`", said)
            assert named and set(named) <= tests, f"{what}: {set(named) - tests}"
