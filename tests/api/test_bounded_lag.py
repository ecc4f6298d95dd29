"""Writers are slowed down when a secondary is as far behind as it may be; never by a link that is down."""

from __future__ import annotations

import threading
import time

import pytest

from pyrepl.errors import UsageError
from tests.support.rig import LINK, MIB, WAIT, Rig

SIZE = 8 * MIB


@pytest.fixture
def rig(tmp_path):
    with Rig(tmp_path / "rig", {"v": SIZE}, seed=5, journal=32 * MIB) as made:
        yield made


def until(true, seconds=WAIT):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_no_more_bytes_behind_than_wanted(rig):
    """24 MiB are written over a link of 4 MiB/s that may be 2 MiB behind: at no moment is it further behind than that and
    one write."""
    rig.link.set(bandwidth=4 * MIB, most_lag_bytes=2 * MIB)
    until(lambda: not rig.link.status()["degraded"])
    seen = held = 0
    with rig.writers(["v"], threads=3, pause=0, size=64 * 1024, least=64 * 1024) as writers:
        while writers.payload < 12 * MIB:
            status = rig.link.status()
            assert status["lag_bytes"] <= 2 * MIB + 3 * (64 * 1024 + 8192) + 64 * 1024, status
            seen, held = max(seen, status["lag_bytes"]), held + status["holds_writers"]
            time.sleep(0.005)
        rig.snapshot("v", "passes", wait=False)  # an operation does not wait for the link
    assert held and seen > MIB and rig.link.status()["most_lag_bytes"] == 2 * MIB
    rig.link.set(bandwidth=0)
    rig.check_both()
    assert not rig.link.status()["holds_writers"]


def test_no_older_than_wanted(rig):
    """The secondary is held: writers go on for about a second, then they wait; when it goes on, so do they."""
    rig.link.set(most_lag_seconds=1.0)
    until(lambda: rig.link.status()["connected"] and not rig.link.status()["degraded"])
    rig.cable.hold()
    written = []

    def write():
        for number in range(200):
            rig.write("v", number % 64 * 4096, 4096)
            written.append(time.monotonic())
            time.sleep(0.02)

    writer = threading.Thread(target=write, daemon=True)
    begin = time.monotonic()
    writer.start()
    until(lambda: rig.link.status()["holds_writers"])
    stopped, late = len(written), time.monotonic() - begin
    time.sleep(0.5)
    assert len(written) <= stopped + 1 and writer.is_alive(), "writers go on, although the secondary is late"
    assert late > 0.9, "it is not late yet"
    snapshot = threading.Thread(target=rig.snapshot, args=("v", "s"), kwargs={"wait": False}, daemon=True)
    snapshot.start()
    snapshot.join(5)
    assert not snapshot.is_alive(), "an operation waits for the link"
    rig.cable.release()
    writer.join(WAIT)
    assert not writer.is_alive() and len(written) == 200
    rig.check_both()


def test_writers_that_write_are_judged_whatever_the_link_does(rig):
    """The sender is in the middle of a frame that takes minutes, and nothing comes back."""
    connections = rig.link.status()["connections"]
    rig.link.set(dead=300)  # by another connection; the silence is not to end it
    until(lambda: rig.link.status()["connections"] > connections)
    rig.link.set(bandwidth=1024, most_lag_seconds=0.5)
    until(lambda: not rig.link.status()["degraded"])
    rig.write("v", 0, MIB)
    rig.cable.hush()
    stop = threading.Event()

    def write():
        while not stop.wait(0.01):
            rig.write("v", 0, 4096)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    until(lambda: rig.link.status()["holds_writers"])
    stop.set()
    rig.cable.speak()
    rig.link.set(bandwidth=0, most_lag_seconds=0)
    writer.join(WAIT)
    assert not writer.is_alive()
    rig.check_both()


def test_a_link_that_goes_down_lets_writers_go(rig):
    rig.link.set(bandwidth=4096, most_lag_bytes=MIB)
    until(lambda: not rig.link.status()["degraded"])
    writer = threading.Thread(target=rig.fill, args=("v", 0, SIZE), kwargs={"step": 256 * 1024}, daemon=True)
    writer.start()
    until(lambda: rig.link.status()["holds_writers"])
    assert writer.is_alive()
    rig.proxy.cut()
    writer.join(WAIT)
    assert not writer.is_alive()
    status = rig.link.status()
    assert status["degraded"] and not status["holds_writers"] and not status["connected"]
    rig.link.set(bandwidth=0)
    rig.proxy.mend()
    rig.check_both()
    assert not rig.link.status()["degraded"]


@pytest.mark.parametrize("how", ["taken away", "raised", "paused", "removed"])
def test_writers_are_let_go_at_once(rig, how):
    rig.link.set(bandwidth=4096, most_lag_bytes=MIB)
    until(lambda: not rig.link.status()["degraded"])
    writer = threading.Thread(target=rig.fill, args=("v", 0, SIZE), kwargs={"step": 256 * 1024}, daemon=True)
    writer.start()
    until(lambda: rig.link.status()["holds_writers"])
    match how:
        case "taken away":
            rig.link.set(most_lag_bytes=0)
        case "raised":
            rig.link.set(most_lag_bytes=64 * MIB)
        case "paused":
            rig.link.pause()
        case _:
            rig.near.remove_link(LINK)
    writer.join(WAIT)
    assert not writer.is_alive()


def test_a_link_that_has_much_to_make_up_for_stops_nobody(rig):
    """It was away; the bound holds again once the secondary is within it."""
    rig.link.set(most_lag_bytes=MIB)
    rig.link.pause()
    rig.fill("v", 0, SIZE)
    rig.link.set(bandwidth=64 * 1024)  # two minutes
    rig.link.resume()
    until(lambda: rig.link.status()["connected"])
    writer = threading.Thread(target=rig.fill, args=("v", 0, MIB), daemon=True)
    writer.start()
    writer.join(WAIT)
    assert not writer.is_alive() and rig.link.status()["degraded"]
    rig.link.set(bandwidth=0)
    rig.check_both()
    until(lambda: not rig.link.status()["degraded"])


def test_it_outlives_a_restart_and_is_judged(rig):
    rig.link.set(most_lag_bytes=3 * MIB, most_lag_seconds=20)
    rig.reopen_near()
    assert (rig.link.most_lag_bytes, rig.link.most_lag_seconds) == (3 * MIB, 20)
    status = rig.link.status()
    assert (status["most_lag_bytes"], status["most_lag_seconds"]) == (3 * MIB, 20)
    for options in ({"most_lag_bytes": 5}, {"most_lag_bytes": 1.5}, {"most_lag_seconds": 0.01}, {"most_lag_seconds": "1"}):
        with pytest.raises(UsageError, match="most-lag"):
            rig.link.set(**options)
    rig.link.set(most_lag_bytes=0, most_lag_seconds=0)
    status = rig.link.status()
    assert (status["most_lag_bytes"], status["most_lag_seconds"], status["degraded"]) == (None, None, False)
