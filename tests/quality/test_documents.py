"""What the documents say is so: commands, paths, rules, links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.support import clients

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[str]:
    """The lines of the README's blocks of shell."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]


def ci_script() -> list[str]:
    """The lines of .ci/run."""
    return [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]


def test_readme_has_the_two_commands() -> None:
    installing = [line for line in commands() if "pip install" in line]
    assert len(installing) == 2
    assert installing[0].endswith("pyrepl demo") and " -m pytest" in installing[1]
    assert all(line.startswith("python3 -m venv .venv && ") for line in installing)


def test_ci_runs_the_readme_command() -> None:
    script = ci_script()
    assert script[:2] == ["set -eu", 'cd "$(dirname "$0")/.."']
    assert script[-1:] == [line for line in commands() if " -m pytest" in line]
    assert sum("pytest" in line for line in script) == 1
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_ci_installs_the_foreign_clients() -> None:
    """The packages of .ci/run, of the README and of tests/support/clients.py are the same; nothing else is done there
    before the test command, and CI does not skip what is missing."""
    wanted = set(clients.PACKAGES.values())
    script = ci_script()[2:-1]
    assert set(re.findall(r"[\w-]+", script[0].removeprefix("clients="))) == wanted
    assert script[1:] == [
        'if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then',
        "    dpkg -s $clients > /dev/null 2>&1 || "
        "{ apt-get update && apt-get install -y --no-install-recommends $clients; }",
        f"    export {clients.REQUIRED}=required",
        "fi",
    ]
    (told,) = re.findall(r"`apt-get install ([\w -]+?)` brings\s+all\s+of\s+them", (ROOT / "README.md").read_text())
    assert set(told.split()) == wanted


def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_paths_exist(path: Path) -> None:
    text = path.read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"
    for name in re.findall(r"`((?:src|tests|docs|benchmarks)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), f"{path.name} names {name}"


def test_rules_stand_where_the_table_says() -> None:
    """Every rule of docs/ordering.md is kept in the file that it names, which names the rule, and has a test."""
    rows = re.findall(
        r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$",
        (ROOT / "docs" / "ordering.md").read_text(),
        flags=re.MULTILINE,
    )
    assert len(rows) >= 30
    assert len({row[0] for row in rows}) == len(rows)
    for rule, _, where, tests in rows:
        files = re.findall(r"`(src/[\w./-]+)`", where)
        assert files, f"{rule}: names no file"
        if "by construction" not in where:
            assert any(re.search(rf"\b{rule}\b", (ROOT / file).read_text()) for file in files), (
                f"{rule} is not named in {files}"
            )
        for test in re.findall(r"`(tests/[\w./-]+)`", tests):
            assert (ROOT / test).exists()
        assert "`tests/" in tests, f"{rule}: names no test"


def test_architecture_lists_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rooms = {
        path.name.removesuffix(".py")
        for path in (ROOT / "src" / "pyrepl").iterdir()
        if not path.name.startswith("__") and path.name != "py.typed"
    }
    missing = {room for room in rooms if f"`{room}`" not in text}
    assert not missing


def test_nothing_names_the_machine_it_was_made_on() -> None:
    """Paths of one machine help nobody else."""
    word = re.compile(r"(?<![\w.])/(?:work|home|root)/|/tmp/venv|/shared/design")
    for folder in ("src", "tests", "docs", "benchmarks", ".ci"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".pyx", ".pxd", ".pyi", ".c", ".h", ".md", ".json", "") and path.is_file():
                if path == Path(__file__).resolve():
                    continue
                found = word.search(path.read_text(errors="replace"))
                assert found is None, f"{path.relative_to(ROOT)} names {found and found[0]}"


def test_commands_can_be_split() -> None:
    for line in commands():
        assert shlex.split(line)
