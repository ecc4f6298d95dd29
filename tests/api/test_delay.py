"""Delayed apply as users meet it: the clock alone brings what waits in, over the control socket too; what it cannot do is said."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import pytest

from pyrepl.errors import UsageError, WaitTimeout
from tests.support.clients import until
from tests.support.rig import LINK, MIB, WAIT, Rig

SIZE = MIB


@pytest.fixture
def rig(tmp_path):
    with Rig(tmp_path / "rig", {"v": SIZE}, seed=7, journal=32 * MIB) as made:
        yield made


def test_it_is_performed_when_its_time_has_come_and_nothing_else_happens(rig):
    delay = 1.5
    rig.far.set_delay(delay)
    begin = time.time()
    lsn = rig.write("v", 0, 4096)
    rig.near.flush()
    rig.link.wait_synced(WAIT)
    assert rig.far.applied_lsn < lsn or time.time() - begin >= delay
    assert rig.far.wait(lsn, where="here", timeout=WAIT) == lsn
    assert time.time() - begin >= delay
    rig.check(rig.far, lsn)
    assert rig.far.status()["delay"]["waiting_bytes"] == 0 and rig.far.status()["delay"]["oldest"] is None


def test_a_shorter_delay_counts_for_what_waits_already(rig):
    rig.far.set_delay(3600)
    lsn = rig.write("v", 0, 4096)
    rig.near.flush()
    rig.link.wait_synced(WAIT)
    end = time.monotonic() + WAIT
    while (oldest := rig.far.status()["delay"]["oldest"]) is None and time.monotonic() < end:
        time.sleep(0.005)  # the applier has not looked at it yet
    assert oldest == pytest.approx(time.time(), abs=30)
    rig.far.set_delay(0.01)
    assert rig.far.wait(lsn, where="here", timeout=WAIT) == lsn


def test_who_waits_in_vain_is_told_of_the_delay(rig):
    rig.far.set_delay(3600)
    lsn = rig.write("v", 0, 4096)
    rig.near.flush()
    rig.link.wait_synced(WAIT)
    end = time.monotonic() + WAIT
    while rig.far.status()["delay"]["oldest"] is None and time.monotonic() < end:
        time.sleep(0.005)  # the applier has not looked at it yet
    with pytest.raises(WaitTimeout, match="holds all of that durably, and performs it later: it may be delayed"):
        rig.near.wait(lsn, where=LINK, timeout=0.1)
    with pytest.raises(WaitTimeout, match=r"this site is delayed by 3600 s, and the oldest that waits is performed in 3\d\d\d"):
        rig.far.wait(timeout=0.1)
    with pytest.raises(WaitTimeout, match=rf"LSN {lsn + 1} has not arrived"):
        rig.far.wait(lsn + 1, timeout=0.1)
    rig.far.set_delay(0)
    with pytest.raises(WaitTimeout) as caught:
        rig.far.wait(lsn + 1, timeout=0.1)
    assert "delayed" not in caught.value.text
    rig.link.pause()
    lsn = rig.write("v", 0, 4096)
    with pytest.raises(WaitTimeout) as caught:
        rig.near.wait(lsn, where=LINK, timeout=0.1)
    assert "delayed" not in caught.value.text


def test_what_fills_the_journal_during_a_step_shortens_the_delay_though_nothing_comes_after_it(rig, monkeypatch):
    """A step finds everything too young, and what fills the journal comes before it is over: no record follows that would
    wake the applier, for the next waits for the room that only a step makes."""
    monkeypatch.setattr("pyrepl.runtime.driver.LOOK", 600)  # it is what came that wakes it
    rig.far.set_delay(3600)
    site, step, is_full = rig.far.site, rig.far.site.step, threading.Event()
    driver = site.exclusive.__self__

    def then_it_fills():
        stepped = step()
        if not stepped and site.delay.next_ns and not is_full.is_set():
            for _ in range(20):
                rig.write("v", 0, MIB)
            rig.near.flush()
            rig.link.wait_synced(WAIT)
            with suppress(AssertionError):
                until(lambda: driver._awake, "whoever watches the journal may not rest yet", timeout=0.5)
            driver._awake = False  # as if it had been at rest: what it told came before the step looked
            is_full.set()
        return stepped

    monkeypatch.setattr(site, "step", then_it_fills)
    rig.write("v", 0, 4096)
    rig.near.flush()
    assert is_full.wait(WAIT)
    until(lambda: rig.far.status()["delay"]["waiting_bytes"] < 16 * MIB, "the oldest is performed before its time", timeout=20)
    assert rig.far.status()["delay"]["shortened"] == "what waits fills half of the journal"


def test_what_finds_no_room_shortens_the_delay_whatever_room_was_reckoned_with(rig, monkeypatch):
    """How much of the journal the next record takes, with the notes that it may need, is not known before it comes; nor do
    stores and views stay as many as they were when the applier looked last. Who waits for room says so."""
    monkeypatch.setattr("pyrepl.runtime.driver.LOOK", 600)
    rig.far.site.room = 1 << 40  # there seems to be plenty
    rig.far.set_delay(3600)
    first = rig.write("v", 0, MIB)
    for _ in range(40):
        rig.write("v", 0, MIB)
    rig.near.flush()
    rig.link.wait_synced(20)
    assert rig.far.applied_lsn >= first


def test_a_delay_that_is_shortened_counts_from_then_on(rig, monkeypatch):
    """Also where whoever waits for the time to come waits already."""
    monkeypatch.setattr("pyrepl.runtime.driver.LOOK", 600)
    rig.far.set_delay(3600)
    lsn, begin = rig.write("v", 0, 4096), time.time()
    rig.near.flush()
    rig.link.wait_synced(WAIT)
    until(lambda: rig.far.status()["delay"]["oldest"], "the applier has looked at it")
    delay = time.time() - begin + 1
    rig.far.set_delay(delay)
    until(lambda: rig.far.applied_lsn >= lsn, "it is performed", timeout=60)
    assert time.time() - begin >= delay


def test_a_primary_keeps_it_for_later_and_performs_at_once(rig):
    rig.near.set_delay(3600)
    lsn = rig.write("v", 0, 4096)
    assert rig.near.wait(lsn, timeout=WAIT) == lsn
    assert rig.near.status()["delay"] == {"seconds": 3600.0, "waiting_bytes": 0, "oldest": None, "shortened": None}
    rig.reopen_near()
    assert rig.near.delay == 3600.0
    assert rig.near.volume("v").read(0, 4096)


def test_after_a_planned_swap_the_old_primary_is_delayed(rig):
    rig.near.set_delay(3600)
    lsn = rig.near.demote(timeout=WAIT)
    rig.far.promote()
    address = rig.near_node.listen("127.0.0.1", 0)
    back = rig.far.add_link("back", f"127.0.0.1:{address[1]}")
    rig.far.volume("v").write(0, b"x" * 4096)
    rig.far.flush()
    back.wait_synced(WAIT)
    assert rig.near.applied_lsn == lsn and rig.near.status()["delay"]["waiting_bytes"] > 0
    assert back.status()["applied_lsn"] == lsn < back.status()["durable_lsn"]


def test_a_verification_of_what_waits_says_why_it_ends(rig, monkeypatch):
    monkeypatch.setattr("pyrepl.verifying.STUCK", 0.5)
    rig.far.set_delay(3600)
    found = rig.near.verify(timeout=WAIT)["links"][LINK]
    assert found["state"] == "failed" and "delayed" in found["reason"]
    monkeypatch.undo()
    found = rig.near.verify(timeout=2.0)["links"][LINK]
    assert found["state"] == "failed" and "the time is over" in found["reason"]
    assert "holds all of that durably, and performs it later: it may be delayed" in found["reason"]
    rig.far.set_delay(0)  # all that waited is performed now, and nobody promises how soon
    assert rig.near.verify(timeout=WAIT)["links"][LINK]["state"] == "equal"


def test_a_delay_that_cannot_be(rig):
    with pytest.raises(UsageError, match="delay"):
        rig.far.set_delay(-1)
    assert rig.far.delay == 0
