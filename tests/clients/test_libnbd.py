"""libnbd's view of an export: each case of libnbd_cases.py, run by a Python that has libnbd, over a unix socket and TCP."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from tests.support import clients

MIB = 1 << 20
PROGRAM = Path(__file__).with_name("libnbd_cases.py")


def cases() -> list[str]:
    """The names in CASES, read without importing it: this Python need not have libnbd."""
    tree = ast.parse(PROGRAM.read_text())
    found = [node.value for node in tree.body if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "CASES"]
    names = [name.id for name in found[0].elts]  # type: ignore[attr-defined]
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert set(names) <= functions and len(names) > 20
    return names


@pytest.mark.parametrize("case", cases())
@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_libnbd(exports, away, case, transport):
    clients.need("libnbd for Python")
    rw, ro = exports(8 * MIB), exports(8 * MIB, read_only=True)
    ro.volume.write(0, b"what nobody may change" * 1000)
    uris = {"rw": rw.uri(transport), "ro": ro.uri(transport), "away": away.uri(transport)}
    clients.run(clients.find("libnbd for Python"), PROGRAM, case, json.dumps(uris), timeout=100)
