"""The threads of the NBD transmission phase under ThreadSanitizer: a program of C alone, for Python cannot run under it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "src" / "_core"
ROOMS = ("crc32c", "batch", "buffers", "sources", "device", "stores", "window", "window_stores", "window_index", "window_append",
         "window_commit", "window_read", "window_parked", "view")
FLAGS = ["-fsanitize=thread", "-g1", "-O1", "-std=gnu11", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Wno-unused-parameter",
         "-Wno-missing-field-initializers", f"-I{SOURCES}"]
ENOUGH = 200  # batches of each connection
BEGIN = "uint64_t total = 0, place = 0, bytes = 0;\n"  # of what every worker runs


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All but nbdio.c, compiled."""
    if not SOURCES.is_dir():
        pytest.skip("the sources are not beside the tests")
    folder = tmp_path_factory.mktemp("tsan")
    try:
        probe = subprocess.run(["gcc", "-fsanitize=thread", "-x", "c", "-", "-o", "probe"], input="int main(void) { return 0; }", text=True,
                               cwd=folder, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("gcc is not installed")
    if probe.returncode:
        pytest.skip(f"gcc has no ThreadSanitizer: {probe.stderr[-200:]}")
    if subprocess.run([folder / "probe"], capture_output=True, check=False).returncode:
        pytest.skip("ThreadSanitizer cannot run here (its memory map does not fit this kernel)")
    own = Path(__file__).with_name("nbd_threads.c")
    subprocess.run(["gcc", *FLAGS, "-c", str(own), *(str(SOURCES / f"{room}.c") for room in ROOMS)], cwd=folder, check=True)
    return folder


def run(rooms: Path, nbdio: Path, batches: int) -> subprocess.CompletedProcess[str]:
    program = rooms / f"{nbdio.parent.name}-threads"
    objects = [str(rooms / f"{name}.o") for name in ("nbd_threads", *ROOMS)]
    subprocess.run(["gcc", *FLAGS, str(nbdio), *objects, "-pthread", "-o", str(program)], check=True)
    mine = {name: value for name, value in os.environ.items() if name != "TSAN_OPTIONS"}
    return subprocess.run([str(program), str(batches)], capture_output=True, text=True, check=False, timeout=100, env=mine)


@pytest.mark.timeout(120)
def test_no_data_races(rooms: Path) -> None:
    done = run(rooms, SOURCES / "nbdio.c", ENOUGH)
    assert done.returncode == 0 and "ThreadSanitizer" not in done.stderr, done.stdout + done.stderr[:8000]
    print(done.stdout.strip())


@pytest.mark.timeout(120)
def test_a_planted_race_is_seen(rooms: Path, tmp_path: Path) -> None:
    text = (SOURCES / "nbdio.c").read_text()
    assert text.count(BEGIN) == 1
    planted = tmp_path / "nbdio.c"
    planted.write_text(text.replace(BEGIN, BEGIN + "    static uint64_t planted;\n    planted++;\n"))
    done = run(rooms, planted, 50)
    assert done.returncode and "data race" in done.stderr and "planted" in done.stderr, done.stdout + done.stderr[:2000]
