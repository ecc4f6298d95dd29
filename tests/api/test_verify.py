"""group.verify over real TCP: exact under load, what differs is found and mended, and nothing else."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pyrepl
from pyrepl import operations, verifying
from pyrepl.errors import Refused
from tests.support.ports import lasting_port

REGION = 65536
SIZE = 16 << 20


class Two:
    """A primary with two volumes, and the secondary's node in the same process, both on files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.a = pyrepl.Node.open(path / "a", create=True)
        self.b = pyrepl.Node.open(path / "b", create=True)
        self.group = self.a.create_group("db", str(path / "a.journal"), journal_size=64 << 20)
        far = self.b.create_group("db", str(path / "b.journal"), journal_size=64 << 20, role="secondary")
        for name in ("data", "logs"):
            with open(path / f"{name}.far", "wb") as file:
                file.truncate(SIZE)
            self.group.add_volume(name, size=SIZE)
            far.add_volume(name, path / f"{name}.far", size=SIZE)
        self.address = self.b.listen("127.0.0.1", lasting_port())
        self.link = self.group.add_link("paris", "{}:{}".format(*self.address))
        self.link.wait_synced(timeout=60)

    def stop_far(self) -> None:
        self.b.close()

    def start_far(self) -> None:
        self.b = pyrepl.Node.open(self.path / "b")
        self.b.listen(*self.address)
        self.link.wait_synced(timeout=60)

    def verify(self, **options: Any) -> dict[str, Any]:
        result = self.group.verify(timeout=60, **options)
        return {"lsn": result["lsn"], **result["links"]["paris"]}

    def equal(self) -> bool:
        lsn = self.link.wait_synced(timeout=60)["durable_lsn"]
        self.link.wait_applied(lsn, timeout=60)
        far = self.b.group("db")
        return all(far.store(s.name).read(0, s.size) == s.read(0, s.size) for s in [*self.group.volumes, *self.group.snapshots])

    def keeps_nothing(self) -> None:
        """Of what was compared; the secondary hears of the end a moment later."""
        assert self.group.status()["views"] == []
        end = time.monotonic() + 20
        while views := self.b.group("db").status()["views"]:
            assert time.monotonic() < end, views
            time.sleep(0.01)

    def close(self) -> None:
        self.a.close()
        self.b.close()


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Two]:
    made = Two(tmp_path)
    yield made
    made.close()


def is_full(found: dict[str, Any]) -> bool:
    """Whether a disk was so slow that writers had filled the journal: nothing was compared then, and nothing is said."""
    return found["state"] == "failed" and "the journal is full of writes that are not applied yet: try again" in found["reason"]


def flip(path: str | Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0xFF]))


def test_equal_and_what_it_costs(two: Two) -> None:
    two.group.volume("data").write(0, os.urandom(SIZE))
    result = two.verify()
    assert (result["state"], result["regions_compared"], result["regions_different"]) == ("equal", 2 * SIZE // REGION, 0)
    digests = 2 * SIZE // (4 << 20) * 16
    assert digests <= 2 * SIZE * 0.00015
    assert result["bytes_on_wire"] <= digests + 2 * 256  # a question and an answer for each volume
    assert two.group.status()["views"] == []


def test_no_false_alarm_under_full_load(two: Two) -> None:
    """A writer at full speed, snapshots, restores: twenty verifications find nothing."""
    over, counts, beside = threading.Event(), [0], 0
    volumes = [two.group.volume(name) for name in ("data", "logs")]

    def write() -> None:
        while not over.is_set():
            data, at = os.urandom(16384), os.urandom(4)
            volumes[at[0] & 1].write(int.from_bytes(at, "little") % (SIZE // 16384) * 16384, data)
            counts[0] += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for n in range(20):
            before = counts[0]
            if n % 5 == 1:
                two.group.snapshot(f"s{n}")
            if n % 5 == 3:
                volumes[0].restore(f"data-s{n - 2}")
            result = two.verify()
            while is_full(result):
                result = two.verify()
            assert result["state"] == "equal", (n, result)
            assert result["regions_compared"] > 0
            beside += counts[0] > before
    finally:
        over.set()
        writer.join()
    assert beside > 10, "it is compared while somebody writes"
    assert two.equal()


def test_planted_differences_are_found_and_mended(two: Two) -> None:
    data, logs = (two.group.volume(name) for name in ("data", "logs"))
    data.write(0, os.urandom(SIZE))
    logs.write(0, os.urandom(SIZE))
    snapshot = data.snapshot("monday")
    for region in (10, 11, 50):  # what the snapshot shows there comes to a file of its own
        data.write(region * REGION, os.urandom(REGION))
    two.link.wait_synced(timeout=60)
    two.link.wait_applied(two.group.flush(), timeout=60)
    own = {s["name"]: s["path"] for s in two.b.group("db").status()["stores"]}
    two.stop_far()
    flip(own["data"], 3 * REGION + 17)  # the snapshot shows it too
    flip(own["data"], 50 * REGION)
    flip(own["logs"], SIZE - 1)
    flip(own["monday"], 11 * REGION + 5)
    two.start_far()
    planted = {("data", 3), ("data", 50), ("monday", 3), ("monday", 11), ("logs", SIZE // REGION - 1)}

    def found(result: dict[str, Any]) -> set[tuple[str, int]]:
        return {(e["store"], e["offset"] // REGION + n) for e in result["extents"] for n in range(e["length"] // REGION)}

    result = two.verify(repair=False)
    assert (result["state"], found(result)) == ("different", planted)
    assert two.link.status()["divergent_bytes"] == 0 and not two.equal()
    copied = two.link.status()["bytes_sent"]["copied"]
    result = two.verify()
    assert (result["state"], found(result), result["regions_different"]) == ("repaired", planted, 5)
    assert two.link.status()["bytes_sent"]["copied"] - copied <= 5 * (REGION + 4096)
    assert two.equal()
    assert two.verify()["state"] == "equal"
    assert snapshot.name == "monday"


def test_a_link_that_is_down_says_so(two: Two) -> None:
    two.stop_far()
    for _ in range(2):  # as it goes down, and when it is
        result = two.group.verify()["links"]["paris"]  # no timeout, and no hang
        assert result["state"] == "failed" and "not connected" in result["reason"]
    two.start_far()
    assert two.verify()["state"] == "equal"


def test_a_secondary_that_restarts_in_the_middle(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps nothing over a restart: a clear failure; the next verification is good."""
    real, restarted = verifying.Comparison._compare, []

    def restart_first(comparison: Any, lsn: int, repair: bool) -> None:
        if not restarted:
            restarted.append(lsn)
            two.stop_far()
            two.start_far()
        real(comparison, lsn, repair)

    monkeypatch.setattr(verifying.Comparison, "_compare", restart_first)
    result = two.verify()
    assert result["state"] == "failed" and "restarted" in result["reason"]
    two.keeps_nothing()
    assert two.verify()["state"] == "equal"


def test_differences_spread_by_what_follows(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot that is taken between the verification and its comparison shows what differs: it is mended too."""
    data = two.group.volume("data")
    data.write(0, os.urandom(SIZE))
    two.link.wait_synced(timeout=60)
    two.link.wait_applied(two.group.flush(), timeout=60)
    path = next(s["path"] for s in two.b.group("db").status()["stores"] if s["name"] == "data")
    two.stop_far()
    flip(path, 7 * REGION)
    two.start_far()
    real = verifying.Comparison._compare

    def snapshot_first(comparison: Any, lsn: int, repair: bool) -> None:
        if repair:
            data.snapshot("late")
        real(comparison, lsn, repair)

    monkeypatch.setattr(verifying.Comparison, "_compare", snapshot_first)
    result = two.verify()
    assert (result["state"], result["regions_different"]) == ("repaired", 1)
    assert two.equal()
    assert two.verify(repair=False)["state"] == "equal"


def test_nothing_to_verify(two: Two) -> None:
    two.group.remove_link("paris")
    with pytest.raises(pyrepl.errors.Refused, match="nothing to verify"):
        two.group.verify()


def test_a_paused_link_says_so_at_once(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "GONE", 600.0)  # it is not waited for as one that is down
    two.link.pause()
    result = two.group.verify()["links"]["paris"]
    assert result["state"] == "failed" and "paused" in result["reason"]
    two.link.resume()
    assert two.verify()["state"] == "equal"


def plant(two: Two, store: str, offset: int) -> Path:
    """One byte of a secondary's device is another than what was written there; both sites are synced again."""
    two.link.wait_synced(timeout=60)
    two.link.wait_applied(two.group.flush(), timeout=60)
    path = next(s["path"] for s in two.b.group("db").status()["stores"] if s["name"] == store)
    two.stop_far()
    flip(path, offset)
    two.start_far()
    return Path(path)


def found(two: Two) -> tuple[int, int] | None:
    """LSN and bytes of what is remembered."""
    one = two.link.status()["found_different"]
    return None if one is None else (one["lsn"], one["bytes"])


def test_what_is_found_and_not_repaired_is_remembered(two: Two) -> None:
    """Over restarts of this site, and whatever cannot be compared later, until all of it is known to be equal."""
    two.group.volume("data").write(0, os.urandom(SIZE))
    assert two.verify(repair=False)["state"] == "equal" and found(two) is None
    path = plant(two, "data", 7 * REGION + 5)
    lsn = two.verify(repair=False)["lsn"]
    assert found(two) == (lsn, REGION) and two.link.status()["synced"]
    assert abs(two.link.status()["found_different"]["time"] - time.time()) < 60
    two.a.close()
    two.a = pyrepl.Node.open(two.path / "a")
    two.group = two.a.group("db")
    two.link = two.group.link("paris")
    two.link.wait_synced(timeout=60)
    assert found(two) == (lsn, REGION), "it is durable"
    two.link.pause()
    assert two.verify()["state"] == "failed" and found(two) == (lsn, REGION), "nothing was compared"
    two.link.resume()
    two.link.wait_synced(timeout=60)
    two.stop_far()
    flip(path, 7 * REGION + 5)  # it is mended by somebody else
    two.start_far()
    assert two.verify(repair=False)["state"] == "equal" and found(two) is None
    two.stop_far()
    flip(path, 7 * REGION + 5)
    two.start_far()
    again = two.verify(repair=False)["lsn"]
    assert found(two) == (again, REGION)
    assert two.verify()["state"] == "repaired" and found(two) is None and two.equal()


def test_what_is_remembered_of_more_stores_than_one_verification_has(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that is equal says nothing of the others; one that is not compared keeps what was known."""
    monkeypatch.setattr(operations, "MOST_VERIFIED", 1)
    two.group.volume("data").write(0, os.urandom(SIZE))
    plant(two, "data", 0)
    assert two.verify(repair=False)["state"] == "different"
    known = found(two)
    assert known is not None and known[1] == REGION
    real, compared = verifying.Comparison._compare, []

    def first_only(comparison: Any, lsn: int, repair: bool) -> None:
        compared.append(lsn)
        if len(compared) == 2:
            raise OSError("no more")
        if len(compared) > 2:  # the first part is found equal, whatever it is
            real(comparison, lsn, repair)

    monkeypatch.setattr(verifying.Comparison, "_compare", first_only)
    assert two.verify()["state"] == "failed" and len(compared) == 2 and found(two) == known
    assert two.verify()["state"] == "repaired" and found(two) is None and two.equal()


def test_a_copy_that_was_found_different_does_not_lead_unasked(two: Two) -> None:
    """Its bytes would be the ones that count, and the last good copy would be repaired by them."""
    two.a.listen("127.0.0.1", lasting_port())
    data = two.group.volume("data")
    data.write(0, os.urandom(SIZE))
    good = data.read(0, SIZE)
    plant(two, "data", 3 * REGION)
    lsn = two.verify(repair=False)["lsn"]
    for step_down in (lambda: two.group.migrate("paris", timeout=60), lambda: two.group.demote(timeout=60)):
        with pytest.raises(Refused, match=f"differs from this one in 64 KiB, as the verification at LSN {lsn} found") as caught:
            step_down()
        assert (caught.value.reason, caught.value.context["bytes"]) == ("different", REGION)
        assert two.group.role == "primary"
    data.write(0, good[:REGION])  # it goes on
    assert two.verify()["state"] == "repaired"
    two.group.migrate("paris", timeout=60)
    far = two.b.group("db")
    assert (two.group.role, far.role) == ("secondary", "primary") and far.volume("data").read(0, SIZE) == good


def test_it_leads_with_force(two: Two) -> None:
    two.a.listen("127.0.0.1", lasting_port())
    two.group.volume("data").write(0, bytes(SIZE))
    plant(two, "data", 3 * REGION)
    two.verify(repair=False)
    two.group.migrate("paris", timeout=60, force=True)
    assert two.b.group("db").volume("data").read(3 * REGION, 1) == b"\xff"


def test_another_secondary_may_take_its_place(two: Two) -> None:
    """Stepping down is refused only if no secondary is free of it. A link that is removed takes its word along, and the
    secondary tells it to the next, which copies nothing that is not known to differ."""
    two.group.volume("data").write(0, os.urandom(SIZE))
    plant(two, "data", 0)
    two.verify(repair=False)
    known = found(two)
    with pytest.raises(Refused, match="verification"):
        two.group.demote(timeout=60)
    await_told(two)
    two.group.remove_link("paris")
    two.link = two.group.add_link("paris", "{}:{}".format(*two.address))
    two.link.wait_synced(timeout=60)
    assert found(two) == known
    with pyrepl.Node.open(two.path / "c", create=True) as third:
        far = third.create_group("db", str(two.path / "c.journal"), journal_size=64 << 20, role="secondary")
        for volume in two.group.volumes:
            far.add_volume(volume.name, size=SIZE)
        two.group.add_link("rome", "{}:{}".format(*third.listen("127.0.0.1", 0))).wait_synced(timeout=60)
        two.group.demote(timeout=60)
    assert two.group.role == "secondary"


def await_told(two: Two, *, found_there: bool = True) -> dict[str, Any] | None:
    """The secondary hears of it a moment later; what it says of itself."""
    end = time.monotonic() + 20
    while ((told := two.b.group("db").status()["found_different"]) is not None) != found_there:
        assert time.monotonic() < end, told
        time.sleep(0.01)
    return told  # type: ignore[no-any-return]


def test_the_secondary_knows_it_and_does_not_take_over_unasked(two: Two) -> None:
    """Its primary is gone, and it knows by itself, over a restart, until it is told otherwise."""
    two.group.volume("data").write(0, os.urandom(SIZE))
    plant(two, "data", 3 * REGION)
    assert two.b.group("db").status()["found_different"] is None
    lsn = two.verify(repair=False)["lsn"]
    told = await_told(two)
    assert told == two.link.status()["found_different"] and (told["lsn"], told["bytes"]) == (lsn, REGION)
    two.stop_far()
    two.start_far()
    far = two.b.group("db")
    assert far.status()["found_different"] == told
    two.a.close()
    for lead in (far.takeover, lambda: far.takeover(dry_run=True), lambda: far.promote(alone=True)):
        with pytest.raises(Refused, match=f"in 64 KiB, as the verification at LSN {lsn} found at 20") as caught:
            lead()
        assert caught.value.reason == "different" and {key: caught.value.context[key] for key in told} == told
        assert far.role == "secondary"
    assert far.takeover(dry_run=True, force=True) >= lsn and far.role == "secondary"
    far.takeover(force=True)
    assert far.role == "primary" and far.status()["found_different"] is None
    two.a = pyrepl.Node.open(two.path / "a")
    old = two.a.group("db")
    if old.role == "primary":
        old.demote(force=True)
    link = far.add_link("berlin", "{}:{}".format(*two.a.listen("127.0.0.1", lasting_port())))
    link.wait_synced(timeout=60)
    assert link.status()["found_different"] == told, "each differs from the other"


def test_it_is_promoted_only_with_force(two: Two) -> None:
    two.group.volume("data").write(0, bytes(SIZE))
    plant(two, "data", 3 * REGION)
    two.verify(repair=False)
    await_told(two)
    two.group.demote(timeout=60, force=True)
    far = two.b.group("db")
    assert far.status()["handed_over"]
    with pytest.raises(Refused, match="found at") as caught:
        far.promote()
    assert caught.value.reason == "different"
    far.promote(force=True)
    assert far.role == "primary"


def test_the_secondary_hears_that_it_was_repaired(two: Two) -> None:
    two.group.volume("data").write(0, os.urandom(SIZE))
    plant(two, "data", 3 * REGION)
    two.verify(repair=False)
    await_told(two)
    assert two.verify()["state"] == "repaired"
    await_told(two, found_there=False)
    assert two.equal()
    two.a.close()
    two.b.group("db").takeover()
    assert two.b.group("db").role == "primary"
