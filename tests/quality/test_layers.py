"""Rooms import only from rooms above them, and the engine touches the world only through its seams."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "pyrepl"

LAYERS = [  # docs/architecture.md "Rooms" is this list; a room may import from its own layer and from those above
    ["_core"],
    ["errors"],
    ["lineage", "options", "parting", "seams", "shortage"],
    ["catalog", "operations", "items", "notes"],
    ["point", "journal", "shelf", "divergence"],
    ["inspection", "history"],
    ["provenance"],
    ["protocol"],
    ["bound", "pairing", "knowledge", "since", "ledger", "probes"],
    ["forecast", "greeting", "resync", "outgoing", "stream", "link", "replica"],
    ["recovery", "applier", "delay", "views", "gallery", "protective", "verification", "workshop", "outcomes", "siblings", "roles", "intake", "standing", "site"],
    ["runtime", "border"],
    ["folder", "nbd", "group", "image", "changeover", "succession", "node", "attachment", "attachments", "comparisons", "opening", "performed", "explaining", "losing", "verifying",
     "rewinding", "trial", "early", "volume", "plugin", "kept", "results", "unordered", "wide", "admissions", "membership", "viewing", "waiting", "__init__"],
    ["remote"],
    ["service", "cli", "demo"],
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
WORLD = {"_core", "border", "__init__", *LAYERS[-4], *LAYERS[-3], *LAYERS[-2], *LAYERS[-1]}
BANNED = {
    "socket",
    "threading",
    "time",
    "random",
    "asyncio",
    "os",
    "uuid",
    "select",
    "selectors",
    "secrets",
    "subprocess",
    "queue",
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, run_time_only: bool) -> Iterator[str]:
    """Names of modules that a file imports; without those that only the type checker sees."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if run_time_only
        and isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module
            if node.module == "pyrepl":
                yield from (f"pyrepl.{alias.name}" for alias in node.names)
            else:
                yield node.module


def test_every_room_has_its_layer() -> None:
    rooms = {room_of(path) for path in modules()} - {"py.typed"}
    assert rooms <= set(LEVEL), f"rooms without a layer: {sorted(rooms - set(LEVEL))}"
    assert len(rooms) > 15


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_upwards(path: Path) -> None:
    room = room_of(path)
    for name in imports(path, run_time_only=True):
        if name == "pyrepl":
            target = "__init__"
        elif name.startswith("pyrepl."):
            target = name.split(".")[1]
        else:
            continue
        if target not in LEVEL:  # a name of the API: "from pyrepl import Node"
            target = "__init__"
        assert LEVEL[target] <= LEVEL[room], f"{room} imports {name}, which is below it"


@pytest.mark.parametrize(
    "path", [path for path in modules() if room_of(path) not in WORLD], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_engine_has_no_io(path: Path) -> None:
    found = {name.split(".")[0] for name in imports(path, run_time_only=False)} & BANNED
    assert not found, f"{path.name} imports {sorted(found)}: the engine is sans I/O"


def test_the_check_sees_what_it_must(tmp_path: Path) -> None:
    """The checks above are not blind: each form of import is found."""
    file = tmp_path / "example.py"
    file.write_text(
        "import time, os.path\nfrom socket import create_server\ndef f():\n    import random\n"
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import select\n"
    )
    assert {name.split(".")[0] for name in imports(file, run_time_only=False)} >= {
        "time",
        "os",
        "socket",
        "random",
        "select",
    }
    assert "select" not in set(imports(file, run_time_only=True))


def test_core_imports_nothing_of_the_package() -> None:
    for path in sorted((ROOT / "src" / "_core").glob("*.pyx")):
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] in (["from"], ["import"], ["cimport"]) and words[1].startswith("pyrepl"):
                assert words[1].startswith("pyrepl._core"), f"{path.name}: {line}"


def test_c_files_know_no_python() -> None:
    files = sorted((ROOT / "src" / "_core").glob("*.[ch]"))
    assert len(files) > 10
    for path in files:
        assert "Python.h" not in path.read_text(), f"{path.name} includes Python.h: loops live in C that builds alone"
