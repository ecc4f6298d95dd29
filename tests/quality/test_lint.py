"""Lint is a test. Where a tool is missing the test is skipped and says so; the extra ``test`` brings all of them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pyrepl

ROOT = Path(__file__).resolve().parents[2]


def run(module: str, *arguments: str, **environment: str) -> None:
    """Runs a tool as a module of this Python, so that the one of this environment is used."""
    if importlib.util.find_spec(module.split(".", maxsplit=1)[0]) is None:
        pytest.skip(f"{module} is not installed: pip install 'pyrepl-volume[test]'")
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, f"{module} {' '.join(arguments)}\n{done.stdout[-6000:]}{done.stderr[-2000:]}"


def test_ruff() -> None:
    run("ruff", "check", "--no-cache", "src", "tests", "benchmarks", "setup.py")


def test_mypy(tmp_path: Path) -> None:
    run("mypy", "--cache-dir", str(tmp_path))


def native_rooms() -> list[str]:
    folder = ROOT / "src" / "pyrepl" / "_core"
    return sorted(path.stem for path in folder.glob("*.pyi"))


def test_every_native_room_has_a_face() -> None:
    built = {path.name.split(".")[0] for path in Path(pyrepl.__file__).parent.joinpath("_core").glob("*.so")}
    assert built - {"_blk"} <= set(native_rooms())


def test_stubs_equal_the_runtime(tmp_path: Path) -> None:
    """stubtest imports the compiled rooms and compares names, arguments and kinds with the faces."""
    config = tmp_path / "mypy.ini"
    config.write_text(f"[mypy]\ncache_dir = {tmp_path}\n")
    allow = ROOT / "tests" / "quality" / "stubtest.allow"
    run(
        "mypy.stubtest",
        *(f"pyrepl._core.{room}" for room in native_rooms()),
        "--mypy-config-file",
        str(config),
        "--allowlist",
        str(allow),
        "--ignore-unused-allowlist",
        "--ignore-positional-only",
        "--ignore-disjoint-bases",
        **({} if "site-packages" in pyrepl.__file__ else {"MYPYPATH": str(Path(pyrepl.__file__).parents[1])}),
    )


def test_cython_lint() -> None:
    files = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "src" / "_core").glob("*.pyx"))]
    files += [str(path.relative_to(ROOT)) for path in sorted((ROOT / "src" / "pyrepl" / "_core").glob("*.pxd"))]
    run("cython_lint.cython_lint", *files, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
