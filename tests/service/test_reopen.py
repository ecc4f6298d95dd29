"""A group that has failed is opened again, over the control socket, without a restart of its daemon: real disks that fail
and come back. What was acknowledged is there, exports and links come back, other groups go on. One that cannot be opened is
forgotten by force."""

from __future__ import annotations

import os
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pyrepl.errors import Corrupt, DeviceError, Exists, NotFound, PyreplError, Refused
from tests.support.daemons import Daemon
from tests.support.full_disk import FullDisk
from tests.support.nbd_client import Client

from .conftest import MIB, until

BLOCK = 64 * 1024

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting and loop devices need root")


@pytest.fixture
def near(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path / "near", "near")
    yield daemon
    daemon.close()


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path / "far", "far")
    yield daemon
    daemon.close()


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Callable[[int, int], FullDisk]]:
    made: list[FullDisk] = []

    def make(size: int, room: int) -> FullDisk:
        made.append(FullDisk(tmp_path / f"disk{len(made)}", size, room))
        return made[-1]

    yield make
    for disk in made:
        disk.close()


def attach(path: Path, export: str) -> Client:
    """The transmission phase of a real connection, by the oldest way to ask for it."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    assert sock.recv(18, socket.MSG_WAITALL)[:8] == b"NBDMAGIC"
    name = export.encode()
    sock.sendall(struct.pack(">IQII", 3, 0x49484156454F5054, 1, len(name)) + name)
    assert len(sock.recv(10, socket.MSG_WAITALL)) == 10
    return Client(sock)


class Writer:
    """Writes block by block, each durably, until it is refused; knows what was acknowledged, and what may be there."""

    def __init__(self, group: Any, size: int) -> None:
        self.group, self.size = group, size
        self.acknowledged: dict[int, int] = {}
        self.pending: tuple[int, int] | None = None
        self._number = 0

    def write(self) -> None:
        block, fill = self._number % (self.size // BLOCK), 1 + self._number % 251
        self._number += 1
        self.pending = block, fill
        self.group.volume("data").write(block * BLOCK, bytes([fill]) * BLOCK, fua=True)
        self.acknowledged[block], self.pending = fill, None

    def write_until_it_fails(self) -> None:
        for _ in range(20 * self.size // BLOCK):
            try:
                self.write()
            except PyreplError:
                break
        until(lambda: self.group.status()["state"] == "failed", "the group fails")

    def check(self) -> None:
        """Everything that was acknowledged is there; the write that was not, may be."""
        volume = self.group.volume("data")
        for block, fill in self.acknowledged.items():
            may = {bytes([fill]) * BLOCK}
            if self.pending is not None and self.pending[0] == block:
                may.add(bytes([self.pending[1]]) * BLOCK)
            assert volume.read(block * BLOCK, BLOCK) in may, f"block {block} of what was acknowledged"


@needs_root
@pytest.mark.parametrize("what", ["journal", "volume"])
def test_a_disk_fails_and_comes_back(
    near: Daemon, far: Daemon, disks: Callable[[int, int], FullDisk], tmp_path: Path, what: str
) -> None:
    size = 16 * MIB
    far.client.create_group("db", far.folder / "journal", journal_size=32 * MIB, role="secondary").add_volume("data", size=size)
    disk = disks(64 * MIB if what == "journal" else size, 80 * MIB if what == "journal" else 24 * MIB)
    if what == "journal":
        group = near.client.create_group("db", disk.device)
    else:
        group = near.client.create_group("db", tmp_path / "journal", journal_size=64 * MIB)
    volume = group.add_volume("data", disk.device if what == "volume" else None, size=size, zero=True)
    other = near.client.create_group("other", tmp_path / "other", journal_size=16 * MIB).add_volume("more", size=MIB)
    group.add_link("far", far.address).wait_synced(timeout=60)
    near.client.start_export("data", "db", "data")
    writer = Writer(group, size)
    for _ in range(20):
        writer.write()
    snapshot = volume.snapshot("before")
    before = volume.read(0, 20 * BLOCK)
    client = attach(near.unix, "data")
    assert client.read(0, BLOCK) == before[:BLOCK]
    near.client.start_export("trial", "db", "data", trial=True)

    disk.fill() if what == "journal" else disk.lock()
    writer.write_until_it_fails()
    assert "pyrepl group open db" in group.status()["error"]
    assert "pyrepl group open db" in near.pyrepl("status", "db")
    assert near.client.export("data").status()["state"] == "held"
    other.write(0, b"o" * BLOCK)  # no other group is touched

    with suppress(PyreplError):  # the cause is still there: it fails at once, or at its first write
        near.client.open_group("db")
    until(lambda: group.status()["state"] == "failed", "it fails again")
    disk.give() if what == "journal" else disk.unlock()
    assert near.pyrepl("group", "open", "db").startswith("db  primary")
    writer.check()
    with pytest.raises(Refused, match="works"):
        near.client.open_group("db")

    assert [export.name for export in near.client.exports] == ["data"], "a trial is gone, as by a start"
    assert client.is_gone(), "who was attached has lost the connection"
    with suppress(OSError):
        client.sock.close()
    fresh = attach(near.unix, "data")
    fresh.write(0, b"\xee" * BLOCK)
    assert fresh.read(0, BLOCK) == b"\xee" * BLOCK
    fresh.sock.close()
    writer.acknowledged.pop(0, None)
    for _ in range(20):
        writer.write()
    writer.check()
    assert near.client.group("db").store(snapshot.name).read(0, 20 * BLOCK) == before
    link = near.client.group("db").link("far")
    link.wait_synced(timeout=60)
    assert near.client.group("db").verify(timeout=60)["links"]["far"]["state"] == "equal"


def test_a_journal_that_was_away_at_the_start(near: Daemon, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    writer = Writer(near.client.create_group("db", journal, journal_size=16 * MIB), MIB)
    writer.group.add_volume("data", size=MIB)
    near.client.start_export("data", "db", "data")
    writer.write()
    near.stop()
    journal.rename(tmp_path / "away")
    near.start()
    writer.group = near.client.group("db")
    assert writer.group.status()["state"] == "failed"
    with pytest.raises(DeviceError, match="No such file"):
        near.client.open_group("db")
    assert "pyrepl group open db" in near.pyrepl("status")
    shutil.copy(tmp_path / "away", journal)
    with open(journal, "r+b") as damaged:  # both superblocks and the checkpoints
        damaged.write(bytes(16 * MIB))
    with pytest.raises(Corrupt):
        near.client.open_group("db")
    journal.unlink()
    (tmp_path / "away").rename(journal)
    assert near.client.open_group("db").role == "primary"
    writer.check()
    writer.write()
    writer.check()
    client = attach(near.unix, "data")
    assert client.read(0, BLOCK) == writer.group.volume("data").read(0, BLOCK)
    client.sock.close()


def test_a_group_that_cannot_be_opened_is_forgotten_by_force(near: Daemon, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    writer = Writer(near.client.create_group("db", journal, journal_size=16 * MIB), MIB)
    path = writer.group.add_volume("data", size=MIB).device
    near.client.start_export("data", "db", "data")
    writer.write()
    near.stop()
    journal.rename(tmp_path / "away")
    near.start()
    with pytest.raises(Refused, match="nobody can see what it holds") as refused:
        near.client.delete_group("db")
    assert refused.value.reason == "force" and " stores" not in str(refused.value)
    told = near.pyrepl("group", "delete", "db", "--force")
    assert told.splitlines()[0] == "group db: forgotten" and f"left as it is: {path}" in told.splitlines()
    assert near.client.groups == [] and near.client.exports == []
    with pytest.raises(Exists, match="forgotten"):  # whose files would go at the next start
        near.client.create_group("db", tmp_path / "another", journal_size=16 * MIB)
    assert not (tmp_path / "another").exists()
    near.stop()
    near.start()  # it is forgotten durably
    assert near.client.groups == [] and Path(path).exists()
    (tmp_path / "away").rename(journal)
    writer.group = near.client.import_group(journal)
    writer.check()
    near.client.delete_group("db", force=True)  # one that works is deleted, with all that is its
    assert not Path(path).exists()


def test_only_what_has_failed_is_opened_again(near: Daemon) -> None:
    near.client.create_group("db", near.folder / "journal", journal_size=16 * MIB)
    with pytest.raises(Refused, match="works") as refused:
        near.client.open_group("db")
    assert refused.value.reason == "state"
    with pytest.raises(NotFound):
        near.client.open_group("nothing")
    near.client.group("db").add_volume("data", size=MIB)  # and it goes on
