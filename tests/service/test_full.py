"""Daemons, the secondary on a full file system: it is killed while it stands still, and stands still again; what people and
monitoring are told at both ends; and it goes on by itself when there is room."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemons import _COMMAND, _ENVIRONMENT, Daemon
from tests.support.full_disk import FullDisk, Small

from .conftest import MIB, until

SIZE = 16 * MIB

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Small]:
    made = Small(tmp_path / "small")
    yield made
    made.close()


@pytest.fixture
def two(tmp_path: Path, small: Small) -> Iterator[tuple[Daemon, Daemon]]:
    made: list[Daemon] = []
    try:
        made += [Daemon(tmp_path / "near", "near"), Daemon(small.folder / "far", "far")]
        yield made[0], made[1]
    finally:
        small.give()
        for daemon in made:
            daemon.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FullDisk]:
    made = FullDisk(tmp_path / "disk", SIZE, 8 * MIB)
    yield made
    made.close()


def test_a_thin_disk_without_room(disk: FullDisk, two: tuple[Daemon, Daemon]) -> None:
    """The volume of a primary is on it: what was written has returned, is read, and is on the disk when that has room."""
    near, _ = two
    group = near.client.create_group("db", near.folder / "journal", journal_size=64 * MIB)
    volume = group.add_volume("data", disk.device, size=SIZE, zero=True)
    disk.fill()
    written = random.Random(8).randbytes(8 * MIB)
    for at in range(0, len(written), MIB):
        volume.write(at, written[at : at + MIB])
    until(lambda: group.status()["stands"], "it stands still")
    assert group.status()["stands"]["device"] == disk.device and group.status()["state"] == "active"
    assert volume.read(0, len(written)) == written
    near.kill()
    near.start()
    group = near.client.group("db")
    until(lambda: group.status()["stands"], "it stands still again")
    assert group.volume("data").read(0, len(written)) == written
    disk.give()
    until(lambda: group.status()["stands"] is None, "it goes on by itself")
    assert check(near)[0] == 0 and group.volume("data").read(0, len(written)) == written


def check(daemon: Daemon) -> tuple[int, str]:
    """What monitoring is told."""
    done = subprocess.run([sys.executable, "-c", _COMMAND, "status", "--check"], capture_output=True, text=True, check=False,
                          env={**_ENVIRONMENT, "PYREPL_SOCKET": str(daemon.control)}, timeout=60)
    return done.returncode, done.stdout


def test_a_secondary_is_killed_while_it_stands_still(two: tuple[Daemon, Daemon], small: Small) -> None:
    """Everything of it, its journal too, is on the file system that is full: a start needs nothing more of it."""
    near, far = two
    for daemon, role in ((near, "primary"), (far, "secondary")):
        daemon.client.create_group("db", daemon.folder / "journal", journal_size=16 * MIB, role=role).add_volume("data", size=SIZE)
    group, rng = near.client.group("db"), random.Random(3)
    link, volume = group.add_link("far", far.address, mode="sync"), group.volume("data")

    def write(count: int) -> None:
        for _ in range(count):
            volume.write(rng.randrange(SIZE // MIB) * MIB, rng.randbytes(MIB))

    def told() -> Any:
        return far.client.group("db").status()["stands"]

    write(16)
    group.wait(group.flush(), where="far", timeout=60)
    link.wait_synced(timeout=60)
    volume.snapshot("monday")
    group.wait(group.flush(), where="far", timeout=60)
    small.fill()
    write(3)
    until(told, "it stands still")
    for _ in range(2):
        far.kill()
        far.start()
        until(told, "it stands still again")
        write(1)
        until(lambda: link.status()["stands"] and link.status()["connected"], "its primary hears that")
    assert "No space left on device" in told()["text"]
    for daemon in two:
        status, text = check(daemon)
        assert status == 2 and "CRITICAL: " in text and "stands still after LSN" in text, text
        assert "stands still after LSN" in daemon.pyrepl("status")
        (known,) = json.loads(daemon.pyrepl("status", "--json"))["groups"]
        if daemon is far:
            assert known["stands"]["error"] == "No space left on device" and known["state"] == "active"
            assert "pyrepl_group_stands_still{group=\"db\"} 1.0" in daemon.pyrepl("metrics")
        else:
            assert "stands still" in known["links"][0]["stands"] and known["stands"] is None
    small.give()
    until(lambda: told() is None, "it goes on by itself")
    write(2)
    group.wait(group.flush(), where="far", timeout=60)
    until(lambda: check(near)[0] == check(far)[0] == 0, "nothing is wrong any more")
    there = far.client.group("db")
    for name in ("data", "monday"):
        assert group.store(name).digest(0, SIZE) == there.store(name).digest(0, SIZE)
