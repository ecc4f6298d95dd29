"""SQLite on ext4 on a replicated primary that is killed with SIGKILL: no committed row is missing, at either site."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import pyrepl
from tests.support import clients
from tests.support.clients import FileSystem, LoopMount

MIB = 1 << 20
SIZE = 64 * MIB
WRITER = Path(__file__).with_name("database_writer.py")

pytestmark = [pytest.mark.device, pytest.mark.timeout(300, method="signal")]


@pytest.fixture(autouse=True)
def _programs():
    if reason := clients.why_no_mounts():
        pytest.skip(reason)
    clients.need("nbdfuse", "fusermount3", "mkfs.ext4", "e2fsck", "sqlite3", "nbdcopy")


def noted(notes: Path) -> int:
    """The last row that the writer knew to be committed."""
    lines = notes.read_bytes().split(b"\n")[:-1] if notes.exists() else []
    return int(lines[-1]) if lines else 0


def judge(database: Path, committed: int, where: str) -> int:
    """The database is sound and holds what was committed; how many rows it has."""
    assert clients.run("sqlite3", database, "PRAGMA integrity_check").strip() == "ok", where
    count, least, last = (int(word) for word in clients.run("sqlite3", database, "SELECT count(*), min(id), max(id) FROM rows").split("|"))
    assert (count, least) == (last, 1), f"{where}: rows 1 to {last}, but {count} of them"
    assert last >= committed, f"{where}: row {committed} was committed, the last is {last}"
    assert last <= committed + 1, f"{where}: row {last} was never begun"
    return last


@contextmanager
def writing(database: Path, notes: Path, mode: str) -> Iterator[subprocess.Popen[bytes]]:
    """A writer of the database, once it has committed some rows."""
    before = noted(notes)
    writer = subprocess.Popen([sys.executable, str(WRITER), str(database), str(notes), mode], stdin=subprocess.DEVNULL,
                              start_new_session=True)
    try:
        clients.until(lambda: noted(notes) > before + 20, "the writer commits")
        yield writer
    finally:
        writer.kill()
        writer.wait()


@pytest.mark.parametrize(("mode", "rounds"), [("DELETE", 2), ("WAL", 2), pytest.param("WAL", 20, marks=pytest.mark.long)])
def test_a_killed_primary_loses_no_committed_row(pairs, tmp_path, mode, rounds):
    pair, notes = pairs(SIZE, "sync"), tmp_path / "notes"
    disk = FileSystem(pair.export.uri(), tmp_path / "near")
    try:
        disk.attach()
        disk.make()
        for number in range(rounds):
            root = disk.mount()
            if number:
                judge(root / "rows.db", noted(notes), f"the primary, after kill {number}")
            before = noted(notes)
            assert not pair.group.link("far").status()["degraded"]
            with writing(root / "rows.db", notes, mode) as writer:
                time.sleep(0.3 + 0.1 * number)  # the load before the kill
                pair.primary.kill()
                assert writer.wait(60) == 0
            committed = noted(notes)
            assert committed > before
            disk.detach()  # with its errors: the disk is gone
            # The secondary alone, as if the primary never came back.
            copy = tmp_path / "copy"
            clients.run("nbdcopy", pair.secondary.uri("data"), copy)
            clients.run("e2fsck", "-fy", copy, status=None)
            clients.run("e2fsck", "-fn", copy)
            with LoopMount(copy, tmp_path / "far") as mounted:
                judge(mounted / "rows.db", committed, f"the secondary, after kill {number}")
            pair.primary.start()
            pair.settle()
            disk.attach()
        judge(disk.mount() / "rows.db", noted(notes), "the primary, at the end")
    finally:
        disk.detach()


def test_a_takeover_goes_on_with_every_committed_row(pairs, tmp_path):
    """The secondary takes over from a killed primary, with the same file system; the old primary then follows it."""
    pair, notes = pairs(SIZE, "sync"), tmp_path / "notes"
    near, far = (FileSystem(daemon.uri("data"), tmp_path / daemon.name) for daemon in (pair.primary, pair.secondary))
    try:
        near.attach()
        near.make()
        with writing(near.mount() / "rows.db", notes, "WAL") as writer:
            pair.primary.kill()
            assert writer.wait(60) == 0
        near.detach()
        there, committed = pair.secondary.client.group("db"), noted(notes)
        clients.until(lambda: took_over(there), "the secondary takes over")
        far.attach()
        judge(far.mount() / "rows.db", committed, "the secondary that took over")
        with writing(far.root / "rows.db", notes, "WAL") as writer:
            pair.primary.start()
            pair.group.demote(force=True)
            there.add_link("back", pair.primary.address, mode="sync")
            # Until the link has caught up with the writer it is degraded, and promises nothing.
            clients.until(lambda: not there.link("back").status()["degraded"], "the link back promises", timeout=60)
            kept = noted(notes)
            clients.until(lambda: noted(notes) > kept + 5, "the writer commits at both sites")
            assert not there.link("back").status()["degraded"]
            pair.secondary.kill()
            assert writer.wait(60) == 0
        far.detach()
        committed = noted(notes)
        clients.until(lambda: took_over(pair.group), "the first takes over again")
        near.attach()
        judge(near.mount() / "rows.db", committed, "the old primary, which took over in its turn")
        near.unmount()
        clients.run("e2fsck", "-fn", near.device)
    finally:
        near.detach()
        far.detach()


def took_over(group) -> bool:
    """False as long as it has not noticed that its primary is gone."""
    try:
        group.takeover()
    except pyrepl.errors.Refused as refusal:
        if refusal.reason != "connected":
            raise
        return False
    return True
