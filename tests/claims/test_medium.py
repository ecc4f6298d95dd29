"""Claims 27 to 31: the scenarios of claims 1, 9, 10, 11 and 13 by what the built package puts on a disk: a wheel, installed where
there is nothing else, with the tests beside it and the sources out of reach."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "src")


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tests, and in ``bin`` a Python that has the wheel, pytest, and what they ask for."""
    place = tmp_path_factory.mktemp("medium")
    source, wheels, home = place / "source", place / "wheels", place / "home"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info"))
        else:
            shutil.copy2(ROOT / name, source / name)
    _run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, source)
    shutil.rmtree(source)
    (wheel,) = wheels.glob("*.whl")
    venv.create(home, with_pip=True)
    _run(home / "bin" / "python", "-m", "pip", "install", "--quiet", wheel, "pytest>=8", "pytest-timeout>=2.3")
    shutil.copytree(ROOT / "tests", home / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "pyproject.toml", home)
    return home


def _run(*command: object) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stdout[-2000:]}{done.stderr[-3000:]}"


def _passes(home: Path, test: str, long: bool) -> None:
    """This test passes there, and it was the wheel that it ran."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    python = home / "bin" / "python"
    found = subprocess.run([python, "-c", "import pyrepl; print(pyrepl.__file__)"], cwd=home, env=clean, text=True,
                           capture_output=True, check=True).stdout.strip()
    assert Path(found).is_relative_to(home / "lib"), found
    done = subprocess.run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/claims/{test}",
                           *(["--long"] if long else [])], cwd=home, env=clean, text=True, capture_output=True, check=False)
    last = done.stdout.strip().rpartition("\n")[2]
    if done.returncode == 0 and "skipped" in last:
        pytest.skip(f"not all of it can run here: {last}")
    assert done.returncode == 0 and re.fullmatch(r"\d+ passed in .*", last), done.stdout[-4000:] + done.stderr[-1000:]


@pytest.mark.timeout(900)  # the first of them builds the wheel
def test_claim_27_operations_travel_as_commands_by_the_medium(medium, request):
    _passes(medium, "test_operations.py::test_claim_01_operations_travel_as_commands", request.config.getoption("--long"))


@pytest.mark.timeout(900)
def test_claim_28_ordered_operations_by_the_medium(medium, request):
    _passes(medium, "test_order.py::test_claim_09_ordered_operations", request.config.getoption("--long"))


@pytest.mark.timeout(900)
def test_claim_29_at_the_very_place_by_the_medium(medium, request):
    _passes(medium, "test_order.py::test_claim_10_at_the_very_place", request.config.getoption("--long"))


@pytest.mark.timeout(900)
def test_claim_30_the_command_is_in_the_stream_by_the_medium(medium, request):
    _passes(medium, "test_order.py::test_claim_11_the_command_is_in_the_stream", request.config.getoption("--long"))


@pytest.mark.timeout(900)
def test_claim_31_unordered_set_at_one_point_by_the_medium(medium, request):
    _passes(medium, "test_sets.py::test_claim_13_unordered_set_at_one_point", request.config.getoption("--long"))
