"""`pyrepl demo` as a program: its report is true, it fails where it must, and it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from pyrepl._core import blockdev
from pyrepl.cli import main
from pyrepl.demo.process import Agent
from pyrepl.demo.scenario import Report

MIB = 1 << 20
COMMAND = [sys.executable, "-c", "from pyrepl.cli import main; main()", "demo"]


def loops(folder: Path) -> list[str]:
    """Loop devices whose file is in this folder."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        if path.read_text().startswith(str(folder)):
            found.append(path.parts[3])
    return found


def agents(folder: Path) -> list[int]:
    """Node processes that have a file in this folder open."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"pyrepl.demo.agent" in path.read_bytes():
                opened = [os.readlink(link) for link in (path.parent / "fd").iterdir()]
                if any(name.startswith(str(folder)) for name in opened):
                    found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where the demo works; nothing may be left in it or of it afterwards."""
    yield tmp_path
    assert not list(tmp_path.glob("pyrepl-demo-*"))
    assert loops(tmp_path) == []
    assert agents(tmp_path) == []


def demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "--dir", str(folder), *arguments], capture_output=True, text=True, check=False, timeout=110,
        env={**os.environ, "COLUMNS": "240"},  # paths of tests are long
    )


def check_report(report: dict[str, Any], size: int) -> None:
    assert report["equal"] is True
    assert report["lost_writes"] == 0
    assert report["acknowledged_writes"] > 100
    assert {"data", "monday", "tuesday"} == set(report["stores"])
    steps = {step["name"]: step for step in report["steps"]}
    assert len(steps) == len(report["steps"]) >= 9
    for step in report["steps"]:
        assert {"name", "seconds", "bytes_changed", "bytes_on_wire"} <= set(step)
    overwrite = next(step for name, step in steps.items() if name.startswith("overwrite"))
    assert overwrite["bytes_changed"] >= size // 4
    assert overwrite["bytes_on_wire"] >= overwrite["bytes_changed"], "what was written crosses the wire"
    restore = report["restore"]
    assert restore["bytes_changed"] >= size // 4
    assert 0 < restore["bytes_on_wire"] <= 1024, "a restore is a command: nothing but it crosses the wire"
    assert restore["bytes_of_acknowledgements"] > 0
    assert "applied at both sites" in steps
    assert restore["seconds_until_usable"] > 0


def test_demo_tells_the_truth_as_json(folder: Path) -> None:
    done = demo(folder, "--json", "--size", "32M")
    assert done.returncode == 0, done.stdout + done.stderr
    check_report(json.loads(done.stdout), 32 * MIB)
    assert len(done.stdout.splitlines()) == 1
    assert list(json.loads(done.stdout)) == list(Report.__struct_fields__)  # which docs/json.md describes
    msgspec.json.decode(done.stdout, type=Report, strict=True)


def test_demo_as_a_table_from_an_image(folder: Path) -> None:
    image = folder / "golden.img"
    image.write_bytes(os.urandom(MIB) * 20)
    done = demo(folder, "--size", "32M", "--source", str(image))
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("restore", "on the wire", "monday: equal at both sites", "both sites are equal", "0 lost", str(image)):
        assert word in done.stdout


@pytest.mark.device
def test_demo_on_given_devices(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    devices = []
    try:
        for index in range(4):
            path = folder / f"disk-{index}"
            with open(path, "wb") as file:
                file.truncate(64 * MIB)
            devices.append(blockdev.attach_loop(path))
        options = [word for device in devices for word in ("--device", device)]
        for forced in ([], ["--force"]):
            done = demo(folder, "--json", "--size", "32M", *options, *forced)
            assert done.returncode == 0, done.stdout + done.stderr
            report = json.loads(done.stdout)
            check_report(report, 32 * MIB)
            assert [note for note in report["notes"] if devices[0] in note]
            done = demo(folder, "--json", "--size", "32M", *options)
            assert done.returncode == 2 and f"{devices[0]} holds " in done.stderr and "with force" in done.stderr
    finally:
        for device in devices:
            blockdev.detach_loop(device)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "1M"], "--size"),
        (["--size", "16E"], "not a size"),
        (["--source", "/nonexistent/image"], "no such file"),
        (["--device", "/nonexistent/device"], "no such device"),
        (["--device", "/dev/null", "--device", "/dev/null"], "twice"),
        (["--device", "/dev/null"], "neither a block device nor a file"),
        (["--device", "/tmp"], "neither a block device nor a file"),
        (["--dir", "/proc/nowhere"], "cannot be made"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_touched(folder: Path, arguments: list[str], words: str) -> None:
    done = demo(folder, *arguments)  # of two --dir the last counts
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_folder_that_was_made_goes_away(folder: Path) -> None:
    done = demo(folder, "--json", "--size", "32M", "--dir", str(folder / "made" / "here"))
    assert done.returncode == 0, done.stderr
    assert not (folder / "made").exists()


AS_NOBODY = """
import os, sys
import pyrepl._core.blockdev, pyrepl.cli.demo, pyrepl.demo.process, pyrepl.demo.table  # before they cannot be read
os.setgroups([]); os.setgid(65534); os.setuid(65534)
pyrepl.cli.main(["demo", "--json", *sys.argv[1:]])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_demo_as_a_user_who_may_little() -> None:
    """What is refused to him is said in a sentence. (That it works with files is seen wherever tests run without root.)"""
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path: others may not even look into that
        os.chmod(folder, 0o755)
        secret = Path(folder, "secret")
        secret.write_bytes(bytes(64 * MIB))
        secret.chmod(0o600)
        public = Path(folder, "public")
        public.write_bytes(bytes(64 * MIB))
        public.chmod(0o644)
        for option, path, words in (
            ("--source", secret, "not readable"),
            ("--device", public, "may not be used by this user"),
            ("--dir", folder, "cannot be written to"),
        ):
            command = [sys.executable, "-c", AS_NOBODY, "--size", "32M", option, str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 2 and words in done.stderr, done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_interrupted_demo_cleans_up(folder: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--dir", str(folder), "--json", "--size", "64M"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not agents(folder) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)  # until there is something to clean up
    assert agents(folder)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: the whole group gets it
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert b"Traceback" not in errors


def test_node_that_dies_is_reported_with_its_words(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--dir", str(folder), "--json", "--size", "64M"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not (found := agents(folder)) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    os.kill(found[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    assert b"the process ended" in errors or b"the process is gone" in errors


@pytest.mark.parametrize("planted", ["store", "lost write"])
def test_a_difference_is_seen(folder: Path, planted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something differs at one site: the demo says so and ends with 1."""
    call = Agent.call

    def lying(self: Agent, command: str, **arguments: Any) -> dict[str, Any]:
        answer = call(self, command, **arguments)
        if planted == "store" and command == "stores" and self.name == "second":
            answer["digests"]["monday"] = "0" * 32
        if planted == "lost write" and command == "judge":
            answer["lost"] += 1
        return answer

    monkeypatch.setattr(Agent, "call", lying)
    result = CliRunner().invoke(main, ["demo", "--dir", str(folder), "--size", "32M"])
    assert result.exit_code == 1, result.output
    assert "the sites differ" in result.output
    assert ("0" * 32 in result.output, "1 lost" in result.output) == (planted == "store", planted == "lost write")
