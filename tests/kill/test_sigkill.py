"""Real SIGKILLs of primary, secondary or both, under load, over TCP: no returned write is lost, and nothing is copied again.

A kill loses no completed write of O_DIRECT, so this cannot find a missing flush (tests/crash does); it finds what a real process,
its lock, its sockets and its threads get wrong.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import pyrepl
from pyrepl.group import Group
from tests.support.ports import lasting_port

PROGRAM = str(Path(__file__).with_name("node_under_fire.py"))
KILLS = 60
MIB = 1 << 20


class Process:
    """A node process and what it says."""

    def __init__(self, role: str, folder: Path, port: int, expected: dict[int, int], seed: int) -> None:
        self.expected = expected
        self.process = subprocess.Popen([sys.executable, PROGRAM, role, str(folder), str(port), json.dumps(expected), str(seed)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert self.process.stdout is not None
        self.out = self.process.stdout.fileno()
        self.rest = b""
        self.restores = 0
        self.writes = 0

    def take(self, data: bytes) -> list[dict[str, Any]]:
        """What the lines say; acknowledged writes are remembered."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        said = []
        for line in lines:
            message = json.loads(line)
            if "written" in message:
                block, stamp = message["written"]
                self.expected[block] = max(stamp, self.expected.get(block, 0))
                self.writes += 1
            elif "restored" in message:
                self.restores += 1
            else:
                said.append(message)
            assert "lost" not in message, message
        return said

    def wait_for(self, key: str, timeout: float = 60) -> Any:
        """Reads on until it says that."""
        end = time.monotonic() + timeout
        while True:
            readable, _, _ = select.select([self.out], [], [], max(0, end - time.monotonic()))
            assert readable, f"it does not say {key!r} within {timeout} s"
            data = os.read(self.out, 1 << 16)
            assert data, f"the process ended with {self.process.wait()} before it said {key!r}"
            for message in self.take(data):
                if key in message:
                    return message[key]

    def listen(self, seconds: float) -> None:
        """Takes in what it says for so long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            readable, _, _ = select.select([self.out], [], [], left)
            if readable:
                data = os.read(self.out, 1 << 16)
                assert data, f"the process ended with {self.process.wait()}"
                self.take(data)

    def ask(self, command: str, key: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode() + b"\n")
        return self.wait_for(key)

    def kill(self) -> None:
        """SIGKILL; what it had said before is taken in."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        while data := os.read(self.out, 1 << 16):
            self.take(data)
        self.close()

    def end(self) -> None:
        """In good order."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"end\n")
        assert self.process.wait(60) == 0
        self.close()

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()


def make(folder: Path, role: str) -> tuple[pyrepl.Node, Group]:
    node = pyrepl.Node.open(folder, create=True)
    group = node.create_group("fire", journal=str(folder / "journal"), journal_size=512 * MIB, role=role)
    group.add_volume("stamped", size=4 * MIB)
    group.add_volume("operated", size=128 * 1024)
    return node, group


@pytest.mark.timeout(400)
def test_kills_lose_no_returned_write_and_copy_nothing_again(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1, 1 << 30)
    print(f"seed {seed}")
    rng, port, expected = random.Random(seed), lasting_port(), {}
    first, group = make(tmp_path / "a", "primary")
    second, _ = make(tmp_path / "b", "secondary")
    with first, second:
        second.listen("127.0.0.1", port)
        group.add_link("other", f"127.0.0.1:{port}").wait_synced(timeout=60)
    start = {"primary": tmp_path / "a", "secondary": tmp_path / "b"}
    processes = {role: Process(role, start[role], port, expected, rng.randrange(1, 1 << 30)) for role in ("secondary", "primary")}
    killed = dict.fromkeys(("primary", "secondary"), 0)
    copied = writes = restores = 0
    try:
        for process in processes.values():
            process.wait_for("ready")
        while sum(killed.values()) < KILLS:
            processes["primary"].listen(rng.uniform(0.05, 0.5))
            victims = rng.choice((["primary"], ["secondary"], ["primary", "secondary"], ["secondary", "primary"]))
            if "primary" in victims:
                copied += processes["primary"].ask("status", "status")["bytes_sent"]["copied"]
            for role in victims:
                processes[role].kill()
                writes, restores = writes + processes[role].writes, restores + processes[role].restores
                killed[role] += 1
            for role in victims:
                processes[role] = Process(role, start[role], port, expected, rng.randrange(1, 1 << 30))
            for role in victims:
                processes[role].wait_for("ready")
        processes["primary"].kill()
        processes["primary"] = Process("primary", start["primary"], port, expected, 0)
        processes["primary"].wait_for("ready")
        processes["primary"].ask("sync", "synced")
        copied += processes["primary"].ask("status", "status")["bytes_sent"]["copied"]
        here, there = (processes[role].ask("digests", "digests") for role in ("primary", "secondary"))
        assert here == there and {"stamped", "operated"} <= here.keys()
        for process in processes.values():
            process.end()
    finally:
        for process in processes.values():
            if process.process.poll() is None:
                process.process.kill()
                process.process.wait()
    print(f"{killed} kills, {writes} returned writes, {restores} restores, {copied} bytes copied again")
    assert killed["primary"] >= 10 and killed["secondary"] >= 10 and writes > 1000 and restores > 10
    assert copied == 0, f"{copied} bytes were copied although both journals survived"
