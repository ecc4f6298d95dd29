"""Plug-in operations by the public API, over real TCP."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pyrepl
from pyrepl.errors import NotFound, Refused, UsageError, WaitTimeout
from pyrepl.seams import NoPlugins
from tests.api.test_verify import REGION, SIZE, Two
from tests.support import plugin_cases as cases
from tests.support.clients import until


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Two]:
    monkeypatch.syspath_prepend(cases.install(tmp_path / "installed"))
    cases.STARTED.clear()
    cases.GO_ON.clear()
    cases.RUNS.clear()
    made = Two(tmp_path / "nodes")
    yield made
    cases.GO_ON.set()
    made.close()


def far(two: Two) -> Any:
    return two.b.group("db")


def same(two: Two, *names: str) -> None:
    """Both sites show the same, and the secondary is consistent."""
    two.link.wait_synced(60)
    for name in names or ("data", "logs"):
        here, there = two.group.store(name), far(two).store(name)
        assert here.read(0, here.size) == there.read(0, there.size), name


def last(group: Any) -> dict[str, Any]:
    return dict(group.operations()[-1])


def test_a_plugin_is_performed_at_both_sites_and_nothing_is_shipped(two: Two) -> None:
    data = two.group.volume("data")
    data.write(0, os.urandom(SIZE))
    two.link.wait_synced(60)
    before = data.read(0, SIZE)
    copied = two.link.status()["bytes_sent"]
    result = two.group.perform(cases.Invert("data", 1000, 3 * REGION))
    wanted = bytearray(before)
    wanted[1000 : 1000 + 3 * REGION] = bytes(byte ^ 255 for byte in before[1000 : 1000 + 3 * REGION])
    assert data.read(0, SIZE) == wanted
    assert (result.kind, result.failed, result.digest, result.state) == ("perform", "", b"", "performed")
    assert result.bytes_changed == 4 * REGION == result.bytes_avoided
    result.wait("paris", 60)
    same(two)
    after = two.link.status()["bytes_sent"]
    assert after["copied"] == copied["copied"] and after["events"] == copied["events"]
    assert 0 < after["operations"] - copied["operations"] < 1024
    for group, avoided in ((two.group, 4 * REGION), (far(two), 0)):
        told = last(group)
        assert told["lsn"] == result.lsn and told["kind"] == "perform" and told["refused"] is None
        assert told["arguments"] == {
            "plugin": "invert", "version": 1, "reads": [], "writes": ["data"],
            "arguments": {"store": "data", "offset": 1000, "length": 3 * REGION, "step": 10007},
        }
        assert told["bytes_changed"] == 4 * REGION and told["bytes_avoided"] == avoided


def test_it_reads_its_own_point_whatever_is_written_meanwhile(two: Two) -> None:
    data, rounds = two.group.volume("data"), 40
    data.write(0, os.urandom(SIZE))
    stop, lsns = threading.Event(), list[tuple[int, int, bytes]]()
    lock = threading.Lock()

    def write() -> None:
        while not stop.is_set():
            block = os.urandom(4096)
            with lock:
                offset = os.urandom(1)[0] * 4096
                lsns.append((data.write(offset, block), offset, block))

    content = bytearray(data.read(0, SIZE))
    writer = threading.Thread(target=write)
    writer.start()
    try:
        results = [two.group.perform(cases.Probe("data"), wait=False) for _ in range(rounds)]
    finally:
        stop.set()
        writer.join()
    wanted, place = dict[int, bytes](), 0
    lsns.sort()
    for result in results:
        while place < len(lsns) and lsns[place][0] < result.lsn:
            _, offset, block = lsns[place]
            content[offset : offset + 4096] = block
            place += 1
        wanted[result.lsn] = hashlib.sha256(content).digest()
    assert {result.lsn: result.wait(timeout=60).digest for result in results} == wanted
    results[-1].wait("paris", 60)
    there = {one["lsn"]: one["digest"] for one in far(two).operations() if one["kind"] == "perform"}
    assert there == {lsn: digest.hex() for lsn, digest in wanted.items()}
    assert two.link.status()["refused"] == []
    same(two)


@pytest.mark.parametrize(("how", "why"), [
    ("raise", "ValueError: a bad day"), ("exit", "SystemExit: out"), ("digest", "the digest of plug-in 'fails' is not"),
    ("outside", "a plug-in writes 1 bytes at 65536 of 'data', which its footprint does not hold")])
def test_one_that_fails_changes_nothing_anywhere(two: Two, how: str, why: str) -> None:
    data = two.group.volume("data")
    data.write(0, os.urandom(SIZE))
    before = data.read(0, SIZE)
    result = two.group.perform(cases.Fails("data", how))
    assert result.failed is not None and result.failed.startswith(why[:90])
    assert data.read(0, SIZE) == before and result.bytes_changed == 0
    result.wait("paris", 60)
    same(two)
    assert last(far(two))["failed"] == result.failed and last(far(two))["refused"] is None
    assert two.link.status()["refused"] == [] and two.link.status()["consistent"]
    assert [path for path in (two.a.path / "groups").rglob("*work-on*")] == []


@pytest.mark.parametrize("what", ["writes", "says"])
def test_one_that_is_not_the_same_twice_is_found_and_its_data_are_sent(two: Two, what: str) -> None:
    data = two.group.volume("data")
    data.write(0, os.urandom(SIZE))
    two.link.wait_synced(60)
    copied = two.link.status()["bytes_sent"]["copied"]
    result = two.group.perform(cases.Dice("data", what))
    result.wait("paris", 60)
    same(two)
    (refused,) = two.link.status()["refused"]
    word = "digest" if what == "says" else "result"
    assert refused == {"lsn": result.lsn, "reason": f"its {word} is not the primary's"}
    assert two.link.status()["bytes_sent"]["copied"] - copied < 2 * REGION + 8192, "the two regions that it may write"
    assert last(two.group)["secondaries"] == {"paris": "refused"}
    assert result.bytes_avoided == last(two.group)["bytes_avoided"] == 0
    assert last(far(two))["refused"] == refused["reason"]


@pytest.mark.parametrize("what", ["says", "writes"])
def test_one_that_is_not_the_same_is_no_difference_that_a_verification_finds(two: Two, what: str) -> None:
    """Right behind it nobody knows yet that the secondary comes to something else; the data are on their way."""
    data = two.group.volume("data")
    data.write(0, os.urandom(SIZE))
    two.link.wait_synced(60)
    two.group.perform(cases.Dice("data", what), wait=False)
    found = two.group.verify(repair=False, timeout=60)["links"]["paris"]
    assert found["state"] == "equal" and found["regions_known_to_differ"] <= 2, found
    same(two)
    assert two.link.status()["found_different"] is None and len(two.link.status()["refused"]) == 1


def test_a_secondary_without_the_plugin_gets_the_data(two: Two) -> None:
    data = two.group.volume("data")
    data.write(0, os.urandom(SIZE))
    two.link.wait_synced(60)
    installed, far(two).site.plugins = far(two).site.plugins, NoPlugins()
    result = two.group.perform(cases.Invert("data", 0, 2 * REGION))
    data.write(5, b"later")
    same(two)
    (refused,) = two.link.status()["refused"]
    assert refused == {"lsn": result.lsn, "reason": "there is no plug-in 'invert' here"}
    assert result.bytes_changed == 2 * REGION and result.bytes_avoided == last(two.group)["bytes_avoided"] == 0
    far(two).site.plugins = installed
    result = two.group.perform(cases.Invert("data", 0, 2 * REGION))
    same(two)
    assert len(two.link.status()["refused"]) == 1 and last(far(two))["refused"] is None


def test_one_that_hangs_is_given_up(two: Two) -> None:
    """Readers and operations wait for it, writers do not; when its time is over it has failed, and what it still does is
    nobody's business."""
    data = two.group.volume("data")
    data.write(0, b"before")
    result = two.group.perform(cases.Slow("data"), wait=False)
    assert cases.STARTED.wait(30)
    begin = time.monotonic()
    data.write(0, b"after!".ljust(4096))  # whole blocks: else it would have to read what is not performed yet
    with pytest.raises(WaitTimeout):
        result.wait(timeout=0.2)
    assert result.failed is None and result.state == "admitted"
    assert time.monotonic() - begin < cases.Slow.seconds, "nobody waits"
    assert two.group.status()["lsn"]["applied"] < result.lsn
    result.wait(timeout=30)
    assert result.failed == f"plug-in 'slow' was not done after {cases.Slow.seconds:g} s"
    assert data.read(0, 6) == b"after!"
    cases.GO_ON.set()
    result.wait("paris", 60)
    same(two)


def test_one_that_is_too_slow_at_the_secondary(two: Two) -> None:
    """It gets the data; what is written meanwhile arrives, and counts as acknowledged when that is settled."""
    data = two.group.volume("data")
    data.write(0, os.urandom(REGION))
    two.link.wait_synced(60)
    result = two.group.perform(cases.Tires("data"))
    assert result.failed == ""
    later = data.write(REGION, b"later".ljust(4096))
    two.group.flush()
    status = two.link.status()
    assert status["durable_lsn"] < result.lsn or status["refused"]
    same(two)
    assert two.link.status()["refused"] == [{"lsn": result.lsn, "reason": "plug-in 'tires' was not done after 1 s"}]
    assert cases.RUNS == ["data", "data"] and later > result.lsn


def test_at_a_secondary_that_is_delayed(two: Two) -> None:
    """The primary waits for what comes of it, so it is performed before its time, with all before it; what follows waits."""
    data = two.group.volume("data")
    far(two).set_delay(3600)
    before = data.write(0, b"before".ljust(4096))
    two.link.wait_synced(60)
    assert far(two).applied_lsn < before
    result = two.group.perform(cases.Invert("data", 0, 6))
    result.wait("paris", 60)
    assert far(two).volume("data").read(0, 6) == bytes(byte ^ 255 for byte in b"before")
    later = data.write(0, b"later".ljust(4096))
    two.link.wait_synced(60)
    assert two.link.status()["durable_lsn"] >= later > far(two).applied_lsn == result.lsn
    assert two.link.status()["refused"] == []
    far(two).set_delay(0)
    assert far(two).wait(later, timeout=60) >= later
    same(two)


def test_at_a_secondary_that_is_delayed_and_looks_before_it_is_said_what_has_come(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its place in the journal, and the applier looks, finds it too young and rests, before that is noted which says
    that somebody waits for what comes of it. Nothing comes after it."""
    monkeypatch.setattr("pyrepl.runtime.driver.LOOK", 600)
    far(two).set_delay(3600)
    site = far(two).site
    step, take, rested_at = site.step, site.end.take_operation, [0]

    def looks() -> bool:
        end = site.window.state().end_position
        stepped = step()
        if not stepped:
            rested_at[0] = end
        return bool(stepped)

    def late(*args: Any, **options: Any) -> None:
        end = site.window.state().end_position
        until(lambda: rested_at[0] >= end, "the applier has looked at what has its place")
        take(*args, **options)

    monkeypatch.setattr(site, "step", looks)
    monkeypatch.setattr(site.end, "take_operation", late)
    two.group.perform(cases.Invert("data", 0, 6)).wait("paris", 30)
    assert two.link.wait_synced(30)["refused"] == []


def test_an_inconsistent_secondary_keeps_what_it_was_before_a_plugin_differed(two: Two) -> None:
    data = two.group.volume("data")
    data.write(0, b"before".ljust(REGION))
    two.link.wait_synced(60)
    two.link.set(bandwidth=1024)  # so that the data that come instead take their time
    result = two.group.perform(cases.Dice("data"))
    deadline = time.monotonic() + 30
    while (kept := far(two).site.protective.snapshot) is None:  # not "inconsistent": before the pairing was applied it was
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert kept.lsn == result.lsn - 1
    while far(two).site.here.consistent:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    two.link.set(bandwidth=0)
    same(two)
    deadline = time.monotonic() + 30
    while far(two).site.protective.snapshot is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_site_that_steps_down_waits_for_it(two: Two) -> None:
    data = two.group.volume("data")
    data.write(0, b"before".ljust(4096))
    result = two.group.perform(cases.Slow("data"), wait=False)
    assert cases.STARTED.wait(30)
    threading.Timer(0.5, cases.GO_ON.set).start()
    two.group.demote(timeout=30)
    far(two).promote()
    assert data.read(0, 6) == far(two).volume("data").read(0, 6) == b"slowly"
    assert [one["failed"] for one in two.group.operations() if one["lsn"] == result.lsn] == [None]


def test_what_it_is_given_is_gone_when_it_is_over(two: Two) -> None:
    """A thread that a plug-in leaves behind can read and write nothing any more, and neither can one that was given up."""
    kept: list[Any] = []
    perform = cases.Probe.perform
    cases.Probe.perform = lambda self, stores: (kept.append(stores["data"]), perform(self, stores))[1]  # type: ignore[method-assign]
    try:
        two.group.perform(cases.Probe("data"))
    finally:
        cases.Probe.perform = perform  # type: ignore[method-assign]
    for use in (lambda: kept[0].read(0, 1), lambda: kept[0].write(0, b"x"), lambda: kept[0].zero(0, 1)):
        with pytest.raises(Refused, match="plug-in 'probe' is over"):
            use()


def test_a_start_in_the_middle_performs_it_again(two: Two) -> None:
    data = two.group.volume("data")
    data.write(0, b"before")
    result = two.group.perform(cases.Slow("data"), wait=False)
    assert cases.STARTED.wait(30)
    two.a.close()
    cases.STARTED.clear()
    two.a = pyrepl.Node.open(two.a.path)
    two.group = two.a.group("db")
    two.link = two.group.link("paris")
    assert cases.STARTED.wait(30) and two.group.applied_lsn < result.lsn
    threading.Timer(0.3, cases.GO_ON.set).start()
    assert two.group.volume("data").read(0, 6) == b"slowly", "a reader waits for what is performed again"
    assert two.group.wait(result.lsn, timeout=0) >= result.lsn
    same(two)
    assert two.link.status()["refused"] == []


def test_in_a_set(two: Two) -> None:
    """Members run side by side; one that fails changes nothing, the others do what they do, at both sites."""
    data, logs = two.group.volume("data"), two.group.volume("logs")
    data.write(0, os.urandom(2 * REGION))
    first, second = (int.from_bytes(data.read(at, REGION)) for at in (0, REGION))
    with two.group.unordered() as ops:
        ops.perform(cases.Fold("logs", "data", 2))
        ops.snapshot("data", "monday")
        ops.perform(cases.Probe("data"))
    assert logs.read(2 * REGION, REGION) == (first ^ second).to_bytes(REGION)
    folded, monday, probe = ops.result.members
    assert (folded.kind, folded.bytes_changed, folded.failed, folded.digest) == ("perform", REGION, "", b"")
    assert monday.digest is None and probe.digest == hashlib.sha256(data.read(0, SIZE)).digest()
    with pytest.raises(UsageError, match=r"number 1 \(perform\) writes store 'logs', which number 2 \(perform\) reads"), \
            two.group.unordered() as ops:
        ops.perform(cases.Fold("logs", "data"))
        ops.perform(cases.Probe("logs"))
    with two.group.unordered() as ops:
        ops.perform(cases.Fails("data"))
        ops.perform(cases.Invert("logs", 0, 100))
    assert [member.failed for member in ops.result.members] == ["ValueError: a bad day", ""]
    ops.result.wait("paris", 60)
    same(two, "data", "logs", "monday")
    assert [member["failed"] for member in last(far(two))["members"]] == ["ValueError: a bad day", None]
    assert two.link.status()["refused"] == []


def test_verified_and_explained(two: Two) -> None:
    data = two.group.volume("data")
    data.write(0, os.urandom(SIZE))
    two.link.wait_synced(60)
    with two.group.explain() as ops:
        ops.perform(cases.Fold("data", "logs"))
    (link,) = ops.result["links"]
    assert ops.result["kind"] == "perform" and ops.result["bytes_changed"] == REGION
    assert link["performed_as"] == "command" and link["bytes_added"] == 0 and link["command_bytes"] < 1024
    result = two.group.perform(cases.Fold("data", "logs"), verify=True)
    found = result.verification["links"]["paris"]
    assert found["state"] == "equal" and found["regions_compared"] == 1


def test_after_a_takeover_the_other_site_decides(two: Two) -> None:
    data = two.group.volume("data")
    data.write(0, os.urandom(SIZE))
    two.group.perform(cases.Invert("data", 0, 100)).wait("paris", 60)
    two.link.wait_synced(60)
    two.group.demote()
    group = far(two)
    group.promote()
    result = group.perform(cases.Probe("data"))
    assert result.digest == hashlib.sha256(group.volume("data").read(0, SIZE)).digest()


def test_what_is_refused_at_admission(two: Two) -> None:
    group, end = two.group, two.group.flush()
    with pytest.raises(UsageError, match="int is not a plug-in operation"):
        group.perform(7)
    with pytest.raises(UsageError, match="cannot be made with the arguments"):
        group.perform("probe")
    with pytest.raises(NotFound, match="there is no plug-in 'nothing' here"):
        group.perform("nothing", {"store": "data"})
    with pytest.raises(UsageError, match=r"no entry point of the group 'pyrepl.operations' names .*:Unknown"):
        group.perform(cases.Unknown("data"))
    with pytest.raises(UsageError, match="made from its arguments has others|cannot be made with the arguments"):
        group.perform(cases.Forgetful("data"))
    for what in (None, 7, (["data"], [("logs", 5)]), ([1], [])):
        with pytest.raises(UsageError, match="the footprint of plug-in 'footless'"):
            group.perform(cases.Footless(what))
    with pytest.raises(UsageError, match="are plain values"):
        group.perform(cases.Footless(object()))
    with pytest.raises(UsageError, match="An operation carries no data"):
        group.perform(cases.Probe("d" * 5000))
    with pytest.raises(NotFound, match="'nowhere'"):
        group.perform(cases.Probe("nowhere"))
    with pytest.raises(UsageError, match="multiples of the group's region size"):
        group.perform(cases.Footless((["data"], [("data", (1, REGION))])))
    with pytest.raises(UsageError, match="names a store twice"):
        group.perform(cases.Footless((["data", "data"], [])))
    with pytest.raises(Refused, match="secondary"):
        far(two).perform(cases.Probe("data"))
    assert group.flush() == end, "nothing got a place"
    for number in range(33):
        group.add_volume(f"v{number}", size=REGION)
    end = group.flush()
    with pytest.raises(UsageError, match="a set holds at most 32 plug-ins, and not 33"), group.unordered() as ops:
        for number in range(33):
            ops.perform(cases.Invert(f"v{number}", 0, 1))
    with pytest.raises(UsageError, match="may write 32 stores, all together, and not 33"), group.unordered() as ops:
        ops.perform(cases.Footless(([], [f"v{number}" for number in range(31)])))
        ops.perform(cases.Footless(([], ["v31", "v32"])))
    with pytest.raises(UsageError, match="touches more than 32 stores"):
        group.perform(cases.Footless(([f"v{number}" for number in range(33)], [])))
    assert group.flush() == end
    with group.unordered() as ops:
        for number in range(32):
            ops.perform(cases.Invert(f"v{number}", 0, 1))
    two.link.wait_synced(60)
    assert {member.failed for member in ops.result.members} == {""}


def test_what_came_of_them_outlives_a_restart_of_either_site(two: Two) -> None:
    """As long as they are listed: a digest, and why one has failed."""
    two.group.volume("data").write(0, os.urandom(SIZE))
    told = two.group.perform(cases.Probe("data"))
    failed = two.group.perform(cases.Fails("data", "raise"))
    failed.wait("paris", 60)
    same(two)
    assert told.digest and failed.failed == "ValueError: a bad day"
    wanted = {told.lsn: (told.digest.hex(), None), failed.lsn: (None, failed.failed)}
    two.stop_far()
    two.start_far()
    two.a.close()
    two.a = pyrepl.Node.open(two.path / "a")
    two.group = two.a.group("db")
    two.link = two.group.link("paris")
    for site in (two.group, far(two)):
        assert [one for one in site.operations() if one["lsn"] in wanted] == []
        found = {one["lsn"]: (one["digest"], one["failed"]) for one in site.operations(earlier=True) if one["kind"] == "perform"}
        assert found == wanted
