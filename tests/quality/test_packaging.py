"""The distribution: names, weight of imports, the guard against the other pyrepl."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, packages_distributions, version
from pathlib import Path

import pytest

import pyrepl
from pyrepl._core import _guard

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HEAVY = ("numpy", "rich", "asyncio", "prometheus_client")


def installed() -> bool:
    return "pyrepl-volume" in packages_distributions().get("pyrepl", [])


def test_names() -> None:
    assert PROJECT["project"]["name"] == "pyrepl-volume"
    assert set(PROJECT["project"]["scripts"]) == {"pyrepl", "pyrepld"}


def test_installed_version_and_commands() -> None:
    if not installed():
        pytest.skip("pyrepl-volume is not installed here: the package is imported from a checkout")
    assert version("pyrepl-volume") == PROJECT["project"]["version"]
    names = {
        entry.name
        for entry in entry_points(group="console_scripts")
        if entry.dist and entry.dist.name == "pyrepl-volume"
    }
    assert names == {"pyrepl", "pyrepld"}


def test_changelog_has_the_version() -> None:
    assert f"## {PROJECT['project']['version']} " in (ROOT / "CHANGELOG.md").read_text()


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("statement", ["import pyrepl", "import pyrepl.cli"])
def test_import_is_light(statement: str) -> None:
    """Counted in modules, not in milliseconds, which are noise on a shared machine."""
    heavy = {name for name in HEAVY if name in loaded_by(statement)}
    assert not heavy, f"{statement} imports {sorted(heavy)}"


def test_command_line_loads_only_the_command_asked_for() -> None:
    modules = loaded_by("from pyrepl.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass")
    assert not [name for name in modules if name.startswith("pyrepl.cli.")]


def test_no_module_has_the_name_that_the_guard_looks_for() -> None:
    assert not list(Path(pyrepl.__file__).parent.rglob(_guard.FOREIGN))


def test_our_package_is_recognised() -> None:
    assert _guard.OURS.decode() in (pyrepl.__doc__ or "")


def test_guard_stops_the_other_package(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text("# the line editor\n")
    _guard.check_package(str(tmp_path))
    (tmp_path / _guard.FOREIGN).write_text("")
    with pytest.raises(ImportError, match="pip uninstall pyrepl"):
        _guard.check_package(str(tmp_path))
    (tmp_path / "__init__.py").write_text('"""pyrepl-volume: block volumes."""\n')
    _guard.check_package(str(tmp_path))


def test_every_pyx_is_built() -> None:
    rooms = set(re.findall(r'^    "(\w+)": (?:\[|WINDOW)', (ROOT / "setup.py").read_text(), flags=re.MULTILINE))
    assert rooms == {path.stem for path in (ROOT / "src" / "_core").glob("*.pyx")}
