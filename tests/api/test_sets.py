"""Unordered sets through the public API: all members at one point, or none; what is refused, and which two are named."""

from __future__ import annotations

import threading

import pytest

import pyrepl
from pyrepl import inspection, operations
from pyrepl._core.device import FileDevice
from pyrepl.errors import Exists, NotFound, Refused, UsageError
from pyrepl.journal import Journal

REGION = 64 * 1024
SIZE = 16 * REGION


@pytest.fixture
def stores(group):
    """Volumes data, logs, third: all 'a'; a snapshot monday of data; then all 'b'."""
    volumes = [group.add_volume(name, size=SIZE) for name in ("data", "logs", "third")]
    for volume in volumes:
        volume.write(0, b"a" * SIZE)
    monday = volumes[0].snapshot("monday")
    for volume in volumes:
        volume.write(0, b"b" * SIZE)
    return [*volumes, monday]


def test_one_point(group, stores):
    data, logs, third, monday = stores
    before = group.wait()
    with group.unordered() as ops:
        ops.restore(data, monday, extent=pyrepl.Extent(0, 2 * REGION))
        ops.snapshot(logs, "x")
        ops.clone("logs", "y")
        ops.resize(third, SIZE + REGION)
    result = ops.result
    assert (result.kind, result.lsn, result.state) == ("set", before + 1, "performed")
    assert group.wait() == result.lsn, "one event"
    assert [member.kind for member in result.members] == ["restore", "snapshot", "clone", "resize"]
    assert [sorted(member.created) for member in result.members] == [[], ["x"], ["y"], []]
    assert [member.bytes_changed for member in result.members] == [2 * REGION, SIZE, SIZE, 0]
    assert result.bytes_changed == 2 * REGION + 2 * SIZE and sorted(result.created) == ["x", "y"]
    assert data.read(0, SIZE) == b"a" * 2 * REGION + b"b" * (SIZE - 2 * REGION)
    assert group.store("x").read(0, SIZE) == group.volume("y").read(0, SIZE) == b"b" * SIZE
    assert third.size == SIZE + REGION and third.read(SIZE, REGION) == bytes(REGION)
    (told,) = [one for one in group.operations() if one["lsn"] == result.lsn]
    assert told["kind"] == "set" and told["created"] == ["x", "y"]
    assert told["members"][1] == {"kind": "snapshot", "bytes_changed": SIZE, "created": ["x"], "digest": None, "failed": None}
    assert group.operation_counts()["set", "performed"] == 1


def test_the_rest_of_the_verbs(group, stores):
    data, logs, third, monday = stores
    tuesday = logs.snapshot("tuesday")
    logs.write(0, b"c" * SIZE)
    with group.unordered() as ops:
        ops.refresh(tuesday)
        ops.copy_range("logs", "third", REGION, REGION)
        ops.delete(monday)
    assert tuesday.read(0, SIZE) == b"c" * SIZE
    assert third.read(0, 3 * REGION) == b"b" * REGION + b"c" * REGION + b"b" * REGION
    with group.unordered() as ops:
        ops.synchronize(data, logs)
        ops.remove(third)
    assert data.read(0, SIZE) == b"c" * SIZE and [v.name for v in group.volumes] == ["data", "logs"]
    assert [s.name for s in group.snapshots] == ["tuesday"]


@pytest.mark.parametrize(
    ("fill", "told"),
    [
        (lambda o: (o.restore("data", "monday"), o.snapshot("data", "x")),
         r"number 1 \(restore\) writes store 'data', which number 2 \(snapshot\) reads"),
        (lambda o: (o.snapshot("data", "x"), o.snapshot("logs", "y"), o.restore("data", "monday")),
         r"number 1 \(snapshot\) reads store 'data', which number 3 \(restore\) writes"),
        (lambda o: (o.synchronize("data", "logs"), o.synchronize("logs", "data")), r"'logs'|'data'"),
        (lambda o: (o.snapshot("logs", "x"), o.restore("data", "x")),
         r"number 1 \(snapshot\) writes store 'x', which number 2 \(restore\) reads"),
        (lambda o: (o.delete("monday"), o.refresh("monday")), "delete.*'monday'.*refresh"),
        (lambda o: (o.copy_range("logs", "data", 0, REGION), o.copy_range("third", "data", REGION, REGION)), "'data'"),
        (lambda o: (o.resize("data", 2 * SIZE), o.resize("data", SIZE)), "resize.*resize"),
        (lambda o: None, "at least one"),
    ],
)  # fmt: skip
def test_conflicts_name_the_two(group, stores, fill, told):
    before = group.wait()
    with pytest.raises(UsageError, match=told), group.unordered() as ops:
        fill(ops)
    assert group.wait() == before and [s.name for s in group.snapshots] == ["monday"]
    with pytest.raises(UsageError, match="when its with block has ended"):
        _ = ops.result


def test_reading_the_same_store_is_no_conflict(group, stores):
    with group.unordered() as ops:
        ops.snapshot("logs", "x")
        ops.snapshot("logs", "y")
        ops.synchronize("data", "logs")
    assert len(ops.result.members) == 3


def test_all_or_nothing(group, stores):
    before, data = group.wait(), stores[0]
    for error, fill in (
        (NotFound, lambda o: o.snapshot("nothing", "y")),
        (Exists, lambda o: o.snapshot("logs", "x")),
        (Exists, lambda o: o.snapshot("third", "monday")),
        (Refused, lambda o: o.restore("logs", "third")),
        (UsageError, lambda o: o.restore("logs", "monday", extent=(1, 2))),
        (UsageError, lambda o: o.restore("logs", "monday", extent=7)),
    ):
        with pytest.raises(error), group.unordered() as ops:
            ops.snapshot(data, "x")
            fill(ops)
    with pytest.raises(ZeroDivisionError), group.unordered() as ops:
        ops.snapshot(data, "x")
        _ = 1 / 0
    assert group.wait() == before and group.look_up("x") is None
    with pytest.raises(UsageError, match="has ended"):
        ops.snapshot(data, "x")


def test_strict_ordering(nodes, group, tmp_path):
    node = nodes("other")
    strict = node.create_group("strict", tmp_path / "strict.journal", journal_size=8 << 20, ordering="strict")
    strict.add_volume("data", size=SIZE)
    with pytest.raises(Refused, match="one after the other") as caught, strict.unordered() as ops:
        ops.snapshot("data", "x")
    assert caught.value.reason == "ordering" and strict.status()["ordering"] == "strict"
    assert group.status()["ordering"] == "relaxed" and strict.snapshots == []
    assert strict.operation_counts()["set", "refused"] == 1
    with pytest.raises(UsageError, match="'relaxed' or 'strict'"):
        node.create_group("g2", tmp_path / "g2.journal", journal_size=8 << 20, ordering="some")
    path = node.path
    node.close()
    with pyrepl.Node.open(path) as again:
        assert again.group("strict").status()["ordering"] == "strict"


def test_writers_on_both_sides_of_the_point(group, stores):
    """Stamps are written to data before logs. Two snapshots that a set takes of both never have a newer log."""
    data, logs, _, _ = stores
    stop, count = threading.Event(), [0]

    def write() -> None:
        while not stop.is_set():
            count[0] += 1
            data.write(0, count[0].to_bytes(8, "little"))
            logs.write(0, count[0].to_bytes(8, "little"))

    data.write(0, bytes(8))
    logs.write(0, bytes(8))
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for n in range(8):
            with group.unordered() as ops:
                ops.snapshot(logs, f"l{n}")
                ops.snapshot(data, f"d{n}")
            a, b = (int.from_bytes(group.store(f"{which}{n}").read(0, 8), "little") for which in "dl")
            assert 0 <= a - b <= 1
    finally:
        stop.set()
        writer.join()


def test_without_waiting(group, stores):
    with group.unordered(wait=False) as ops:
        ops.snapshot("data", "x")
    assert ops.result.wait(timeout=10).members[0].bytes_changed == SIZE
    with pytest.raises(UsageError, match="timeout"):
        group.unordered(timeout=-1)

def test_the_journal_shows_the_members(group, stores):
    with group.unordered() as ops:
        ops.snapshot("data", "x")
        ops.restore("logs", "monday")
    journal = group.status()["journal"]["path"]
    group.close()
    with FileDevice(journal, writable=False) as device:
        found = Journal.find(device)
        told = [inspection.describe(*one) for one in inspection.records(found, found.read_checkpoint())]
    (event,) = [one for one in told if one.get("first_lsn") == ops.result.lsn and one["kind"] == "operation"]
    assert [member["op"] for member in event["operation"]["members"]] == ["snapshot", "copy"]
    performed = [one for one in told if one.get("note") == "performed" and one["lsn"] == ops.result.lsn]
    assert len(performed) == 1, "one note for all of it"


def test_who_is_no_member():
    from pyrepl.catalog import Catalog

    with pytest.raises(UsageError, match="mark cannot be a member"):
        operations.unordered(Catalog(), [lambda _: operations.mark("m")])
