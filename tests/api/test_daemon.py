"""pyrepld: ready line, signals, errors; and a primary that replicates into it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

MIB = 1 << 20
RUN = "import sys; from pyrepl.service.daemon import main; main(sys.argv[1:])"


def lines(process):
    return [json.loads(line) for line in process.stdout]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ready_and_stopped(tmp_path, python, number):
    daemon = python(RUN, "--state", str(tmp_path / "n"), "--create", "--listen", "127.0.0.1:0", "--listen", "[::1]:0")
    ready = json.loads(daemon.stdout.readline())
    assert ready["event"] == "ready" and ready["pid"] == daemon.pid and ready["groups"] == []
    assert [address.rpartition(":")[0] for address in ready["listening"]] == ["127.0.0.1", "[::1]"]
    os.kill(daemon.pid, number)
    assert lines(daemon) == [{"event": "stopping", "signal": number.name}, {"event": "stopped"}]
    assert daemon.wait(60) == 0


def test_a_secondary_as_a_service(tmp_path, python, nodes):
    node = nodes("there")
    node.create_group("db", tmp_path / "far", journal_size=16 * MIB, role="secondary").add_volume("data", size=MIB)
    node.close()
    daemon = python(RUN, "--state", str(tmp_path / "there"), "--listen", "127.0.0.1:0")
    ready = json.loads(daemon.stdout.readline())
    assert ready["groups"] == [{"name": "db", "state": "active"}]
    group = nodes("here").create_group("db", tmp_path / "near", journal_size=16 * MIB)
    volume = group.add_volume("data", size=MIB)
    volume.write(0, b"x" * MIB)
    link = group.add_link("paris", ready["listening"][0])
    link.wait_synced(60)
    os.kill(daemon.pid, signal.SIGTERM)
    assert [line["event"] for line in lines(daemon)] == ["stopping", "stopped"]
    assert nodes("there").group("db").volume("data").read(0, MIB) == b"x" * MIB


@pytest.mark.parametrize(("arguments", "status", "words"), [
    (["--state", "/nonexistent/node"], 3, "create=True"),
    (["--state", "STATE", "--create", "--listen", "nonsense"], 2, "not an address"),
    (["--state", "STATE", "--create", "--listen", "203.0.113.7:1"], 2, "cannot listen"),
    ([], 2, "--state"),
])
def test_errors(tmp_path, arguments, status, words):
    arguments = [str(tmp_path / "n") if argument == "STATE" else argument for argument in arguments]
    path = os.pathsep.join(p for p in sys.path if p)
    ended = subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, timeout=60, check=False,
                           env={**os.environ, "PYTHONPATH": path})
    assert ended.returncode == status and words in ended.stderr and not ended.stdout and "Traceback" not in ended.stderr
