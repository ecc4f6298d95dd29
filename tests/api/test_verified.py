"""Operations with verify=True over real TCP: their result is compared as of their own LSN, and repaired alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import pyrepl
from pyrepl import operations, verifying
from pyrepl.errors import Refused, UsageError, WaitTimeout
from tests.api.test_verify import REGION, SIZE, Two, flip, is_full

REGIONS = SIZE // REGION


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Two]:
    made = Two(tmp_path)
    yield made
    made.close()


def paris(found: dict[str, Any] | None) -> dict[str, Any]:
    assert found is not None and found["done"]
    return dict(found["links"]["paris"])


def plant(two: Two, *places: tuple[str, int]) -> None:
    """A bit of these regions of a store's own device is another at the secondary."""
    two.link.wait_applied(two.group.flush(), timeout=60)
    paths = {s["name"]: s["path"] for s in two.b.group("db").status()["stores"]}
    two.stop_far()
    for name, region in places:
        flip(paths[name], region * REGION + 99)
    two.start_far()


def test_each_operation_that_writes(two: Two) -> None:
    """Each result is equal, and only what it wrote is compared."""
    group, data, logs = two.group, two.group.volume("data"), two.group.volume("logs")
    data.write(0, os.urandom(SIZE))
    monday = data.snapshot("monday", verify=True)
    data.write(0, os.urandom(REGION))
    with group.unordered(verify=True) as ops:
        ops.snapshot(data, "tuesday")
        ops.resize(logs, SIZE - 2 * REGION, force=True)
    done = [
        (monday.result, REGIONS),
        (data.restore(monday, extent=(2 * REGION, 3 * REGION), verify=True), 3),
        (monday.refresh(verify=True), REGIONS),
        (group.copy_range(data, 4 * REGION, logs, 4 * REGION, REGION, verify=True), 1),
        (monday.clone("test", verify=True).result, REGIONS),
        (group.store("test").synchronize(data, verify=True), REGIONS),
        (group.volume("test").resize(SIZE + REGION, verify=True), REGIONS + 1),
        (group.snapshot("all", volumes=["data", "test"], verify=True), 2 * REGIONS + 1),
        (ops.result, 2 * REGIONS - 2),
    ]
    for result, regions in done:
        assert result is not None and result.state == "performed"
        found = paris(result.verification)
        assert (found["state"], found["regions_compared"], found["regions_different"]) == ("equal", regions, 0), result
        assert result.verification["lsn"] == result.lsn and found["bytes_on_wire"] < 1024  # type: ignore[index]
    listed = {one["lsn"]: one["verified"] for one in group.operations()}
    assert all(listed[result.lsn]["paris"]["state"] == "equal" for result, _ in done if result)
    assert listed[2] is None
    two.keeps_nothing()


def test_a_planted_difference_in_the_result_is_repaired_alone(two: Two) -> None:
    """What the operation copied was wrong at the secondary: its result and its source are mended, and nothing else."""
    data = two.group.volume("data")
    data.write(0, os.urandom(SIZE))
    data.snapshot("monday")
    data.write(0, os.urandom(SIZE))  # the snapshot has a device of its own now
    plant(two, ("monday", 7), ("monday", 40), ("logs", 3))
    copied = two.link.status()["bytes_sent"]["copied"]
    result = data.restore("monday", extent=(5 * REGION, 10 * REGION), verify=True)
    found = paris(result.verification)
    assert (found["state"], found["regions_compared"], found["regions_different"]) == ("repaired", 10, 1)
    assert found["extents"] == [{"store": "data", "offset": 7 * REGION, "length": REGION}]
    assert two.link.status()["bytes_sent"]["copied"] - copied <= REGION + 4096
    (listed,) = [one for one in two.group.operations() if one["lsn"] == result.lsn]
    assert listed["verified"]["paris"] == {"state": "repaired", "reason": "", "regions_compared": 10, "regions_different": 1}
    far = two.b.group("db")
    two.link.wait_applied(two.group.flush(), timeout=60)
    assert far.volume("data").read(0, SIZE) == data.read(0, SIZE)
    assert far.store("monday").read(40 * REGION, REGION) != two.group.store("monday").read(40 * REGION, REGION)


def test_events_say_what_was_found(two: Two) -> None:
    events = two.a.events()
    lsn = two.group.volume("data").snapshot("monday", verify=True).lsn
    told = [events.get(60), events.get(60)]
    assert [(e["event"], e["kind"], e["lsn"]) for e in told if e] == [("operation", "snapshot", lsn), ("compared", "snapshot", lsn)]
    assert told[1] is not None and told[1]["links"] == {"paris": "equal"}


def test_no_false_alarm_while_the_result_is_overwritten(two: Two) -> None:
    """Writers hit the target of each operation at full speed: it is compared as of the LSN of the operation."""
    data, over = two.group.volume("data"), threading.Event()
    data.write(0, os.urandom(SIZE))
    data.snapshot("monday")
    counts, beside = [0], 0

    def write() -> None:
        while not over.is_set():
            at = os.urandom(2)
            data.write(int.from_bytes(at, "little") % (SIZE // 16384) * 16384, os.urandom(16384))
            counts[0] += 1

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        for n in range(12):
            before, found = counts[0], None
            while found is None or is_full(found):
                found = paris((data.restore("monday", verify=True) if n % 2 else two.group.store("monday").refresh(verify=True)).verification)
            assert found["state"] == "equal" and found["regions_compared"] > 0, (n, found)
            beside += counts[0] > before
    finally:
        over.set()
        for writer in writers:
            writer.join()
    assert beside > 6, "it is compared while somebody writes"
    assert two.equal()


def test_without_waiting(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call returns with the place in the order; the comparison waits for a secondary that is paused away, and
    another one is refused until then."""
    data = two.group.volume("data")
    data.write(0, os.urandom(SIZE))
    two.link.wait_synced(timeout=60)
    monkeypatch.setattr(verifying, "GONE", 600.0)  # it comes back, and nobody promises how soon
    two.stop_far()
    result = data.snapshot("monday", verify=True, wait=False).result
    assert result is not None and result.verification is not None
    assert (result.verification["done"], result.verification["links"]["paris"]["state"]) == (False, "comparing")
    with pytest.raises(WaitTimeout, match="not compared after"):
        result.wait_verified(0.1)
    with pytest.raises(Refused, match="being verified already") as refused:
        data.snapshot("tuesday", verify=True)
    assert refused.value.reason == "busy" and [s.name for s in two.group.snapshots] == ["monday"]
    two.start_far()
    told: list[dict[str, Any]] = []
    assert paris(result.wait_verified(60, told.append))["state"] == "equal"
    assert data.snapshot("tuesday", verify=True).state == "performed"


def test_a_link_that_is_paused_is_said_so(two: Two) -> None:
    two.link.pause()
    found = paris(two.group.volume("data").snapshot("monday", verify=True).result.verification)  # type: ignore[union-attr]
    assert found["state"] == "failed" and "paused" in found["reason"]


def test_what_cannot_be_verified(two: Two, tmp_path: Path) -> None:
    data = two.group.volume("data")
    before = two.group.applied_lsn
    with pytest.raises(UsageError, match="without being verified"):
        data.snapshot("monday").result.wait_verified()  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="0 stores"), two.group.unordered(verify=True) as ops:
        ops.delete("monday")
    with pytest.raises(pyrepl.errors.Exists):
        data.snapshot("monday", verify=True)
    assert two.group.applied_lsn == before + 1
    assert two.group.verify(timeout=60)["links"]["paris"]["state"] == "equal"  # the refused ones left nothing locked
    with pytest.raises(UsageError, match="writes 33 stores"):
        two.group.operate(_many, verify=True)
    group = two.a.create_group("lonely", str(tmp_path / "lonely"), journal_size=16 << 20)
    with pytest.raises(Refused, match="has no link") as refused:
        group.add_volume("v", size=REGION).snapshot("s", verify=True)
    assert refused.value.reason == "empty" and group.snapshots == []


def _many(catalog: Any) -> Any:
    """33 snapshots at one point."""
    return operations.unordered(catalog, [partial(operations.snapshot, origins=["data"], names=[f"many-{n}"]) for n in range(33)])
