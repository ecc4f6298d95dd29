"""Operations through the public API: what stores show afterwards, what the results say, what is refused and why."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

import pyrepl
from pyrepl.errors import Exists, InUse, NotFound, Refused, UsageError, WaitTimeout
from pyrepl.operations import Copy

MIB = 1 << 20
REGION = 64 * 1024
SIZE = 2 * MIB


@pytest.fixture
def data(group):
    volume = group.add_volume("data", size=SIZE)
    volume.write(0, b"a" * SIZE)
    return volume


def shows(store, *parts):
    """The store is these (letter, regions) one after the other; zeros are '0'."""
    wanted = b"".join((b"\0" if letter == "0" else letter.encode()) * (count * REGION) for letter, count in parts)
    assert len(wanted) == store.size
    return store.read(0, store.size) == wanted


def test_a_week(group, data):
    monday = data.snapshot("monday")
    assert (monday.state, monday.name, monday.size, monday.group) == ("performed", "monday", SIZE, group)
    assert monday.bytes_changed == SIZE and monday.bytes_avoided == 0, "there is no link that data would have crossed"
    data.write(0, b"b" * SIZE)
    assert shows(monday, ("a", 32)) and shows(data, ("b", 32))
    result = data.restore(monday, extent=pyrepl.Extent(4 * REGION, 2 * REGION))
    assert result.kind == "restore" and result.lsn > monday.lsn and result.bytes_changed == 2 * REGION
    assert shows(data, ("b", 4), ("a", 2), ("b", 26))
    monday.refresh()
    assert shows(monday, ("b", 4), ("a", 2), ("b", 26))
    monday.write(0, b"m" * REGION)
    data.write(SIZE - REGION, b"z" * REGION)
    assert shows(monday, ("m", 1), ("b", 3), ("a", 2), ("b", 26))
    assert shows(data, ("b", 4), ("a", 2), ("b", 25), ("z", 1))
    data.restore("monday")
    assert shows(data, ("m", 1), ("b", 3), ("a", 2), ("b", 26))
    monday.delete()
    assert group.snapshots == [] and shows(data, ("m", 1), ("b", 3), ("a", 2), ("b", 26))


def test_all_volumes_at_one_lsn(group, data):
    logs = group.add_volume("logs", size=SIZE)
    stop, writes = threading.Event(), [0]

    def write():
        while not stop.is_set():  # data is written before logs: no common point has a newer log
            writes[0] += 1
            data.write(0, writes[0].to_bytes(8, "little"))
            logs.write(0, writes[0].to_bytes(8, "little"))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for n in range(5):
            both = group.snapshot(f"s{n}")
            a, b = (int.from_bytes(snapshot.read(0, 8), "little") for snapshot in both.snapshots)
            if a != int.from_bytes(b"a" * 8, "little"):
                assert 0 <= a - b <= 1
            assert [snapshot.lsn for snapshot in both.snapshots] == [both.lsn] * 2
    finally:
        stop.set()
        writer.join()
    assert [s.name for s in group.snapshots] == [f"{v}-s{n}" for n in range(5) for v in ("data", "logs")]
    assert [s.name for s in group.snapshot("x", volumes=[logs]).snapshots] == ["logs-x"]


def test_clone_synchronize_and_copy(group, data):
    clone = data.clone("test")
    assert clone.kind == "volume" and clone in group.volumes and shows(clone, ("a", 32))
    clone.write(0, b"c" * SIZE)
    assert shows(data, ("a", 32))
    group.copy_range(clone, REGION, data, REGION, REGION)
    assert shows(data, ("a", 1), ("c", 1), ("a", 30))
    data.synchronize(clone)
    assert shows(data, ("c", 32))
    data.synchronize(data.snapshot("s"))
    assert data.device != clone.device and Path(clone.device).name.endswith("-test.img")


def test_resize(group, data):
    snapshot = data.snapshot("before")
    data.resize(SIZE + REGION)
    assert data.size == SIZE + REGION and shows(data, ("a", 32), ("0", 1))
    data.write(SIZE, b"n" * REGION)
    with pytest.raises(Refused, match="would lose its last 131072 bytes"):
        data.resize(SIZE - REGION)
    data.resize(SIZE - REGION, force=True)
    data.resize(SIZE)
    assert shows(data, ("a", 31), ("0", 1)) and shows(snapshot, ("a", 32))
    with pytest.raises(Refused):
        pyrepl.Volume(group, snapshot.id, "before").resize(SIZE)
    with pytest.raises(UsageError, match=str(REGION)):
        data.resize(SIZE + 1)


def test_zero_of_many_regions(group, data):
    before = data.snapshot("before")
    lsn = data.zero(100, SIZE - 200)
    assert lsn <= group.wait()
    assert data.read(0, SIZE) == b"a" * 100 + bytes(SIZE - 200) + b"a" * 100
    data.restore(before)
    data.discard(REGION, SIZE - REGION)
    assert shows(data, ("a", 1), ("0", 31)) and shows(before, ("a", 32))


def test_mark(group, data):
    result = group.mark("upgrade", b"x" * 4096)
    assert (result.kind, result.bytes_changed, result.created) == ("mark", 0, {})
    with pytest.raises(UsageError, match="4096"):
        group.mark("upgrade", b"x" * 4097)
    with pytest.raises(UsageError, match="cannot be a name"):
        group.mark("-upgrade")


def test_results_and_waiting(group, data):
    result = data.snapshot("later", wait=False)
    assert result.state in ("admitted", "performed")
    assert shows(result, ("a", 32))  # a reader waits for it by itself
    assert result.wait() is result.result and result.state == "performed"
    assert result.wait("here", timeout=0)
    assert group.wait() == group.applied_lsn == group.wait(result.lsn)
    with pytest.raises(NotFound, match="no link 'paris'"):
        result.wait("paris")
    with pytest.raises(UsageError, match="the last that was given"):
        group.wait(group.wait() + 1)
    for bad in (-1, True, "5"):
        with pytest.raises(UsageError):
            group.wait(bad)
    for bad in (-1, "5", float("nan"), 2**40, True):
        with pytest.raises(UsageError, match="timeout"):
            group.wait(timeout=bad)
    with pytest.raises(UsageError, match="found by name"):
        group.store("later").lsn


def test_time_over(group, data, monkeypatch):
    standing, held = threading.Event(), threading.Event()
    threading.Thread(target=lambda: group._driver.call(lambda: (standing.set(), held.wait())), daemon=True).start()
    try:
        assert standing.wait(60)
        with pytest.raises(WaitTimeout, match="is not performed after") as caught:
            data.snapshot("late", timeout=0.05)
        assert caught.value.retryable and isinstance(caught.value, TimeoutError)
        late = group.store("late")
    finally:
        held.set()
    group.wait(timeout=60)
    assert shows(late, ("a", 32))


def test_a_figure_is_remembered_or_unknown(group, data, monkeypatch):
    monkeypatch.setattr("pyrepl.applier.MOST_RESULTS", 2)
    asked, unasked = data.snapshot("asked"), data.snapshot("unasked", wait=False)
    group.wait()
    for n in range(3):
        group.mark(f"m{n}")
    assert asked.bytes_changed == SIZE and unasked.bytes_changed is None and unasked.state == "performed"


REFUSALS = {
    "no-such-snapshot": (lambda g, d: d.restore("nope"), NotFound, "no store 'nope'"),
    "not-a-snapshot": (lambda g, d: d.restore(g.volume("other")), Refused, "use synchronize"),
    "extent-offset": (lambda g, d: d.restore("s", extent=(1, REGION)), UsageError, str(REGION)),
    "extent-length": (lambda g, d: d.restore("s", extent=(0, REGION + 512)), UsageError, str(REGION)),
    "extent-outside": (lambda g, d: d.restore("s", extent=(SIZE, REGION)), UsageError, "ends outside"),
    "extent-huge": (lambda g, d: d.restore("s", extent=(0, 2**64 - REGION)), UsageError, "ends outside"),
    "extent-float": (lambda g, d: d.restore("s", extent=(0.0, REGION)), UsageError, "whole numbers"),
    "extent-float-length": (lambda g, d: d.restore("s", extent=(0, float(REGION))), UsageError, "whole numbers"),
    "extent-bool": (lambda g, d: d.restore("s", extent=(False, REGION)), UsageError, "whole numbers"),
    "extent-text": (lambda g, d: d.restore("s", extent=("0", REGION)), UsageError, "whole numbers"),
    "extent-none-at-all": (lambda g, d: d.restore("s", extent=5), UsageError, "give pyrepl.Extent"),
    "extent-of-three": (lambda g, d: d.restore("s", extent=(0, REGION, 1)), UsageError, "give pyrepl.Extent"),
    "range-float": (lambda g, d: g.copy_range(d, 0.0, "other", 0.0, REGION), UsageError, "whole numbers"),
    "range-none": (lambda g, d: g.copy_range(d, 0, "other", 0, None), UsageError, "whole numbers"),
    "size-float": (lambda g, d: d.resize(2.0 * SIZE), UsageError, "whole number"),
    "mark-text": (lambda g, d: g.mark("m", "text"), UsageError, "is bytes, not str"),
    "mark-number": (lambda g, d: g.mark("m", 5), UsageError, "is bytes, not int"),
    "mark-long": (lambda g, d: g.mark("m", bytes(4097)), UsageError, "at most 4096"),
    "device-number": (lambda g, d: g.add_volume("x", 3), UsageError, "device 3 is not a path"),
    "device-empty": (lambda g, d: d.clone("x", device=""), UsageError, "device '' is not a path"),
    "device-nul": (lambda g, d: d.clone("x", device="a\0b"), UsageError, "is not a path"),
    "name-taken": (lambda g, d: d.snapshot("s"), Exists, "named 's' exists"),
    "name-bad": (lambda g, d: d.snapshot("../x"), UsageError, "cannot be a name"),
    "name-empty": (lambda g, d: d.snapshot(""), UsageError, "cannot be a name"),
    "name-long": (lambda g, d: d.snapshot("x" * 256), UsageError, "cannot be a name"),
    "group-name": (lambda g, d: g.snapshot("x" * 255), UsageError, "cannot be a name"),
    "sizes-differ": (lambda g, d: d.synchronize("small"), UsageError, "resize the target first"),
    "itself": (lambda g, d: d.synchronize(d), UsageError, "same store"),
    "offsets-differ": (lambda g, d: g.copy_range(d, 0, "other", REGION, REGION), UsageError, "same offset"),
    "no-store": (lambda g, d: g.copy_range(d, 0, 5, 0, REGION), UsageError, "not a store"),
    "has-snapshots": (lambda g, d: d.remove(), Refused, "has 1 snapshot \\("),
    "no-device-no-size": (lambda g, d: g.add_volume("x"), UsageError, "needs a device, or a size"),
    "size-zero": (lambda g, d: g.add_volume("x", size=0), UsageError, "positive"),
    "size-odd": (lambda g, d: g.add_volume("x", size=REGION + 1), UsageError, "nearest sizes"),
    "size-vast": (lambda g, d: g.add_volume("x", size=2**63), UsageError, "too large"),
    "no-device": (lambda g, d: g.add_volume("x", "/nonexistent/disk"), NotFound, "check the path"),
    "folder": (lambda g, d: g.add_volume("x", "/tmp", size=REGION), UsageError, "neither a block device nor"),
    "taken": (lambda g, d: g.add_volume("data", size=REGION), Exists, "named 'data' exists"),
    "in-this-group": (lambda g, d: g.add_volume("x", d.device), InUse, "in use"),
    "its-journal": (lambda g, d: g.add_volume("x", g.site.journal.device.name), InUse, "in use"),
    "clone-on-taken": (lambda g, d: d.clone("x", device=d.device), InUse, "in use"),
    "no-volume": (lambda g, d: g.volume("nope"), NotFound, "no volume 'nope'"),
    "snapshot-no-volume": (lambda g, d: g.volume("s"), NotFound, "no volume 's'"),
    "no-such-store": (lambda g, d: g.store("nope"), NotFound, "no store 'nope'"),
    "nothing-chosen": (lambda g, d: g.snapshot("x", volumes=[]), Refused, "has no volume"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_and_nothing_changed(group, data, case):
    call, kind, words = REFUSALS[case]
    group.add_volume("other", size=SIZE)
    group.add_volume("small", size=REGION)
    data.snapshot("s")
    folder = Path(data.device).parent
    before = (group.wait(), sorted(store.name for store in group.volumes + group.snapshots), sorted(os.listdir(folder)))
    with pytest.raises(kind, match=words):
        call(group, data)
    assert before == (group.wait(), sorted(s.name for s in group.volumes + group.snapshots), sorted(os.listdir(folder)))
    data.write(0, b"still works")


def test_an_operation_that_would_not_read_back_is_not_admitted(group, data):
    """What stands in the journal and cannot be understood would be the end of the group, at every start anew."""
    before = group.wait()
    bad = Copy("restore", 1, 1, 0.0, 1)
    with pytest.raises(UsageError, match="not an operation"):
        group.operate(lambda _: bad)
    assert group.wait() == before and group.state == "active"
    data.write(0, b"still works")


def test_numbers_of_numpy_are_numbers(group, data):
    number = np.int64(REGION)
    data.snapshot("s")
    data.write(number, b"x" * REGION)
    data.write(number + 1, b"y")
    assert data.read(number, np.uint8(2)) == b"xy"
    data.zero(number + 3, np.int32(7))
    assert data.read(REGION + 2, 9) == b"x" + bytes(7) + b"x"
    data.restore("s", extent=(number, number))
    assert shows(data, ("a", 32))
    data.resize(np.int64(2 * SIZE))
    assert data.size == 2 * SIZE


def test_a_device_shorter_than_a_region(group, tmp_path):
    (tmp_path / "tiny").write_bytes(bytes(4096))
    with pytest.raises(UsageError, match="shorter than one region"):
        group.add_volume("x", tmp_path / "tiny")


def test_a_store_of_another_group(nodes, group, data, tmp_path):
    other = nodes("other").create_group("o", tmp_path / "other-journal", journal_size=16 * MIB)
    volume = other.add_volume("data", size=SIZE)
    with pytest.raises(UsageError, match="store of group 'o'"):
        data.synchronize(volume)
    assert volume != data and data == group.volume("data") and len({data, group.volume("data"), volume}) == 2


def test_remove_a_volume(group, data):
    snapshot = data.snapshot("s")
    data.remove(force=True)
    assert group.volumes == [] and shows(snapshot, ("a", 32))
    with pytest.raises(Refused, match="origin"):
        snapshot.refresh()
    with pytest.raises(Refused, match="no volume"):
        group.snapshot("x")


def test_devices_that_are_given(storage, nodes):
    node = nodes()
    group = node.create_group("db", storage.device(16 * MIB), alignment=storage.alignment)
    path = storage.device(SIZE + 4096)
    with open(path, "r+b") as raw:
        raw.write(b"old" * 1000)
    volume = group.add_volume("data", path)
    assert volume.size == SIZE and volume.device == path
    assert volume.read(0, 3000) == b"old" * 1000  # what the device holds stays
    spare = storage.device(SIZE)
    with open(spare, "r+b") as raw:
        raw.write(b"old" * 1000)
    with pytest.raises(Refused, match="holds data, which would be overwritten") as refused:
        group.add_volume("spare", spare, zero=True)
    assert refused.value.reason == "force"
    assert not any(group.add_volume("spare", spare, zero=True, force=True).read(0, SIZE))
    short = storage.device(SIZE - REGION)
    with pytest.raises(Refused, match="less than the"):
        volume.clone("copy", device=short)
    assert group.add_volume("short", short).size == SIZE - REGION  # it was given back
    clone = volume.clone("copy", device=storage.device(SIZE))
    volume.write(0, b"new" * 1000)
    clone.write(0, b"c" * 10)
    with pytest.raises(Refused, match="less than the"):
        volume.resize(2 * SIZE)
    node.close()
    group = nodes().group("db")
    assert group.volume("data").read(0, 3000) == b"new" * 1000
    assert group.volume("copy").read(0, 3000) == b"c" * 10 + (b"old" * 1000)[10:]
    assert Path(path).exists()


@pytest.mark.device
def test_sectors_above_the_alignment(nodes, tmp_path, loop_device):
    coarse = loop_device(SIZE, sector_size=4096)
    with pytest.raises(UsageError, match="sectors of 4096"):
        nodes().create_group("x", loop_device(16 * MIB, sector_size=4096), alignment=512)
    group = nodes("n").create_group("db", tmp_path / "j", journal_size=16 * MIB, alignment=512)
    with pytest.raises(Refused, match="sectors of 4096"):
        group.add_volume("data", coarse)
    assert group.volumes == [] and group.add_volume("data", size=REGION).size == REGION


@pytest.mark.device
def test_a_device_that_grew(nodes, tmp_path, loop_device):
    from pyrepl._core import blockdev

    group = nodes().create_group("db", tmp_path / "j", journal_size=16 * MIB)
    device = loop_device(SIZE)
    volume = group.add_volume("data", device)
    with pytest.raises(Refused, match="make it larger first"):
        volume.resize(SIZE + REGION)
    os.truncate(tmp_path / "loop-0", SIZE + REGION)
    blockdev.refresh_loop(device)
    volume.resize(SIZE + REGION)
    volume.write(SIZE, b"n" * REGION)
    assert shows(volume, ("0", 32), ("n", 1))
    group.wait()


def test_files_of_deleted_stores_go_away(nodes, tmp_path):
    node = nodes()
    group = node.create_group("db", tmp_path / "journal", journal_size=16 * MIB)
    volume = group.add_volume("data", size=SIZE)
    folder = Path(volume.device).parent
    before = sorted(os.listdir(folder))
    snapshot = volume.snapshot("s")
    volume.write(0, bytes(SIZE))
    assert len(os.listdir(folder)) > len(before)
    snapshot.delete()
    node.close()
    node = nodes()
    node.group("db").site.checkpoint()
    node.close()
    (folder / "77-lost.img").write_bytes(b"what a crash left")
    nodes()
    assert sorted(os.listdir(folder)) == before


def test_one_terabyte_is_instant_and_sparse(group):
    volume = group.add_volume("big", size=1 << 40)
    volume.write((1 << 40) - 5, b"12345")
    snapshot = volume.snapshot("s")
    volume.zero(0, 1 << 40)
    volume.restore(snapshot)
    assert volume.read((1 << 40) - 5, 5) == b"12345"
    assert os.stat(volume.device).st_blocks * 512 < 8 * MIB
