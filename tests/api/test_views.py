"""Views through the public API: at a primary, at a secondary over TCP, over a restart; every refusal."""

from __future__ import annotations

import os
import threading
import time

import pytest

import pyrepl
from pyrepl import inspection
from pyrepl._core.device import FileDevice
from pyrepl.errors import NotFound, Refused, UsageError
from pyrepl.journal import Journal
from tests.api.test_links import SIZE, WAIT, Pair

MIB = 1 << 20
REGION = 64 * 1024


@pytest.fixture
def data(group):
    volume = group.add_volume("data", size=MIB)
    volume.write(0, bytes(range(256)) * 4096)
    return volume


def test_it_shows_what_was_written_before_it(group, data):
    before = data.read(0, MIB)
    with group.open_view("data") as shown:
        assert isinstance(shown, pyrepl.View)
        assert shown.lsn == group.status()["lsn"]["end"] and shown.size == MIB and shown.store == data
        assert shown.name == f"data@{shown.lsn}" and shown.group is group and "data@" in repr(shown)
        data.write(5, os.urandom(3 * REGION))
        data.resize(2 * MIB)
        assert shown.read(0, MIB) == before and shown.read(7, 100) == before[7:107]
        buffer = bytearray(1000)
        assert shown.readinto(3, buffer) == 1000 and buffer == before[3:1003]
        (told,) = group.status()["views"]
        assert told["id"] == shown.id and told["name"] == "data" and told["lsn"] == shown.lsn
        assert [store["name"] for store in group.status()["stores"]] == ["data"]
        assert os.path.exists(told["path"])
    assert shown.closed and group.status()["views"] == []
    shown.close()


def test_it_shows_a_store_that_is_deleted(group, data):
    snapshot = data.snapshot("s")
    shown = group.open_view(snapshot)
    before = shown.read(0, MIB)
    snapshot.delete()
    data.remove()
    assert shown.read(0, MIB) == before and isinstance(shown.store, pyrepl.Snapshot)
    with pytest.raises(NotFound):
        shown.store.read(0, 1)
    shown.close()


def test_refusals(group, data):
    shown = group.open_view(data)
    for offset, length in ((MIB, 1), (0, MIB + 1), (-1, 5), (0, -1)):
        with pytest.raises(UsageError):
            shown.read(offset, length)
    with pytest.raises(UsageError, match="whole numbers"):
        shown.read("0", 5)
    with pytest.raises(UsageError, match="cannot be written to"):
        shown.readinto(0, b"readonly")
    with pytest.raises(UsageError, match="buffer protocol"):
        shown.readinto(0, 5)
    with pytest.raises(NotFound, match="no store 'x'"):
        group.open_view("x")
    shown.close()
    with pytest.raises(Refused, match="is closed") as caught:
        shown.read(0, 1)
    assert caught.value.reason == "closed"
    gone = data.snapshot("gone")
    gone.delete()
    with pytest.raises(NotFound, match="was deleted"):
        group.open_view(gone)
    opened = [group.open_view(data) for _ in range(64)]
    with pytest.raises(Refused, match="close some first") as caught:
        group.open_view(data)
    assert caught.value.reason == "limit"
    for one in opened:
        one.close()
    last = group.open_view(data)
    group.close()
    last.close()
    with pytest.raises(Refused, match="is closed"):
        last.read(0, 1)


def test_a_restart_closes_it_and_leaves_nothing(nodes, tmp_path):
    node = nodes("here")
    group = node.create_group("db", tmp_path / "journal", journal_size=16 * MIB)
    data = group.add_volume("data", size=MIB)
    data.write(0, b"a" * MIB)
    shown = group.open_view(data)
    data.write(0, b"b" * MIB)
    group.wait()
    folder = tmp_path / "here" / "groups" / "db" / "stores"
    assert any("view-of-data" in path.name for path in folder.iterdir())
    node.close()
    node = nodes("here")
    group = node.group("db")
    assert group.status()["views"] == [] and group.volume("data").read(0, MIB) == b"b" * MIB
    deadline = time.monotonic() + WAIT
    while group.site.shelf.zombies and time.monotonic() < deadline:
        time.sleep(0.01)
    group.site.checkpoint()
    assert not any("view-of" in path.name for path in folder.iterdir())
    with group.open_view("data") as again:
        assert again.id > shown.id
    with FileDevice(str(tmp_path / "journal"), writable=False, exclusive=False) as device:
        journal = Journal.find(device)
        told = [inspection.describe(at, record) for at, record in inspection.records(journal, journal.read_checkpoint())]
    assert {"opened", "closed"} <= {one.get("note") for one in told} and not any("problem" in one for one in told)


@pytest.mark.timeout(120)
def test_a_secondary_shows_one_lsn_while_it_is_fed(nodes, tmp_path):
    """A writer stamps both halves of the volume, the first half first: a view shows them at most one stamp apart."""
    pair = Pair(nodes, tmp_path)
    with pytest.raises(Refused, match="status says consistent") as caught:
        pair.far_group.open_view("data")
    assert caught.value.reason == "inconsistent"
    link = pair.link()
    link.wait_synced(WAIT)
    stop, half = threading.Event(), SIZE // 2
    written = {}

    def write() -> None:
        stamp = 0
        while not stop.is_set():
            stamp += 1
            for offset in (0, half):
                block = stamp.to_bytes(8, "little") * 512
                written[pair.near.write(offset, block)] = stamp
            if stamp % 50 == 0:
                pair.near.snapshot("s")
                pair.near.restore("s")
                pair.group.store("s").delete()

    writer = threading.Thread(target=write)
    writer.start()
    seen, opened = set(), []
    try:
        deadline = time.monotonic() + 60
        while len(seen) < 20 and time.monotonic() < deadline:
            shown = pair.far_group.open_view("data")
            if shown.lsn in seen:
                shown.close()  # else an applier that is slow would have them by the hundred
                time.sleep(0.02)
                continue
            first, second = (int.from_bytes(shown.read(offset, 8), "little") for offset in (0, half))
            assert first - second in (0, 1)
            opened.append((shown, first, second))
            seen.add(shown.lsn)
            time.sleep(0.02)
    finally:
        stop.set()
        writer.join()
    link.wait_synced(WAIT)
    assert len(seen) >= 20
    for shown, first, second in opened:
        assert [int.from_bytes(shown.read(offset, 8), "little") for offset in (0, half)] == [first, second]
        newest = max((lsn for lsn in written if lsn <= shown.lsn), default=0)
        assert max(first, second) == (written[newest] if newest else 0)
        with pytest.raises(PermissionError):
            pair.far_group.site.window.write(shown.id, 0, bytes(4096))
        shown.close()
    assert pair.equal()
