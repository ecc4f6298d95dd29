"""The benchmarks against peers run, on a small scale: every rig starts, is loaded, and its replica equals its primary."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import clients

ROOT = Path(__file__).resolve().parents[2]


def run(folder: Path, *arguments: str) -> dict:
    path = os.pathsep.join([str(ROOT), *(path for path in sys.path if path)])
    done = subprocess.run([sys.executable, "-m", "benchmarks.peers", "--dir", str(folder), "--json", *arguments],
                          capture_output=True, text=True, check=False, cwd=ROOT, timeout=240,
                          env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr[-4000:]
    assert not list(folder.iterdir()), "something was left behind"
    return json.loads(done.stdout)


@pytest.mark.timeout(300)
def test_every_rig_runs(tmp_path):
    clients.need("fio", "nbdkit", "qemu-storage-daemon")
    told = run(tmp_path, "--rounds", "1", "--seconds", "0.5", "--size", "32", "--journal", "128", "P1", "P2", "P5")
    assert told["missing"] == {"P1": {}, "P2": {}, "P5": {}}
    rigs = {row["rig"]: row for row in told["rows"]}
    assert {"raw file", "nbdkit null", "nbdkit file, cached", "qemu-nbd, O_DIRECT", "qemu mirror, background",
            "qemu mirror, write-blocking", "pyrepl, async", "pyrepl, sync"} <= set(rigs)
    for row in told["rows"]:
        assert row["rate"] > 0 and row["rounds"] == 1
        if "mirror" in row["rig"] or "pyrepl" in row["rig"]:
            assert row["equal"] is True and row["cpu_us"] > 0
    ours = [row for row in told["rows"] if row["rig"].startswith("pyrepl") and row["work"] != "P5"]
    assert all(1 < row["wire"] < 1.2 for row in ours), "bytes on the wire over the payload"


def test_a_command_is_timed(tmp_path):
    if not Path(sys.executable).with_name("pyrepl").exists():
        pytest.skip("the command pyrepl is not installed beside this Python")
    told = run(tmp_path, "--cli-rounds", "2", "cli")
    assert {"pyrepl --help", "pyrepl status"} <= set(told["cli"])
