"""A link is changed while it works: mode, address, limits; at once, and over restarts. Bytes are counted by the proxy."""

from __future__ import annotations

import threading
import time

import pytest

from pyrepl.demo.proxy import Proxy
from pyrepl.errors import NotFound, UsageError
from pyrepl.runtime.bucket import burst_of
from tests.support.rig import LINK, MIB, WAIT, Rig

SIZE = 8 * MIB


@pytest.fixture
def rig(tmp_path):
    with Rig(tmp_path / "rig", {"v": SIZE}, seed=7, journal=32 * MIB) as made:
        yield made


def until(true, seconds=WAIT):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def is_over(thread, seconds=WAIT):
    thread.join(seconds)
    return not thread.is_alive()


@pytest.mark.parametrize("rate", [64 * 1024, MIB, 3_000_000])
def test_no_more_than_the_limit(rig, rate):
    """At every moment no more has crossed than limit * time + burst, counted from before the limit was set; and all of it
    arrives."""
    length = rate // 65536 * 65536 * 3 // 2
    begin, before = time.monotonic(), rig.proxy.counts().forward
    rig.link.set(bandwidth=rate)
    assert rig.link.status()["bandwidth"] == rig.link.bandwidth == rate
    rig.fill("v", 0, length, step=min(length, 512 * 1024))
    samples = []

    def sample(_status=None):
        crossed = rig.proxy.counts().forward - before
        samples.append((time.monotonic() - begin, crossed))
        assert crossed <= rate * samples[-1][0] + burst_of(rate), samples[-3:]

    while rig.link.status()["lag_events"]:
        sample()
        time.sleep(0.01)
    rig.link.wait_synced(WAIT, sample)
    sample()
    assert samples[-1][1] > length, "it went over the limited link"
    rig.check_both()


def test_a_change_takes_effect_while_a_large_batch_waits(rig):
    """4 MiB at 4 KiB/s would take a quarter of an hour."""
    rig.link.set(bandwidth=4096)
    connections = rig.link.status()["connections"]
    rig.fill("v", 0, 4 * MIB)
    before = rig.proxy.counts().forward
    until(lambda: rig.proxy.counts().forward > before + 1024)  # the frame is on its way
    assert rig.link.status()["lag_bytes"] > 3 * MIB and rig.proxy.counts().forward - before < MIB
    rig.link.set(bandwidth=0)
    rig.check_both()
    assert rig.link.status()["bandwidth"] is None and rig.link.status()["connections"] == connections


def test_the_first_synchronization_is_limited(tmp_path):
    with Rig(tmp_path / "rig", {"v": SIZE}, seed=8, journal=32 * MIB, synced=False) as rig:
        rig.fill("v", 0, 2 * MIB)
        rig.near.remove_link(LINK)
        rate, begin, before = MIB, time.monotonic(), rig.proxy.counts().forward
        rig.link = rig.near.add_link(LINK, f"127.0.0.1:{rig.proxy.port}", bandwidth=rate)
        copying = 0
        while not (status := rig.link.status())["synced"]:
            crossed = rig.proxy.counts().forward - before
            assert crossed <= rate * (time.monotonic() - begin) + burst_of(rate)
            copying += status["state"] == "resyncing"
            assert time.monotonic() - begin < WAIT
            time.sleep(0.01)
        assert copying and rig.link.bandwidth == rate
        rig.check_both()


def test_pausing_and_removing_a_limited_link_is_quick(rig):
    rig.link.set(bandwidth=1024)
    rig.fill("v", 0, MIB)
    before = rig.proxy.counts().forward
    until(lambda: rig.proxy.counts().forward > before)
    begin = time.monotonic()
    rig.link.pause()
    until(lambda: not rig.link.status()["connected"])
    rig.link.resume()
    until(lambda: rig.link.status()["connected"])
    rig.near.remove_link(LINK)
    assert time.monotonic() - begin < 60, "what is on its way would take a quarter of an hour"


def test_async_becomes_sync_and_back(rig):
    """In sync mode a write waits for the held secondary; the link becomes async, and it returns."""
    rig.link.set(mode="sync")
    rig.link.wait_synced(WAIT)
    assert rig.link.mode == "sync" and not rig.link.status()["degraded"]
    lsn = rig.write("v", 0, 4096)
    assert rig.far.site.window.state().durable_lsn >= lsn
    rig.cable.hold()
    writer = threading.Thread(target=rig.write, args=("v", 4096, 4096), daemon=True)
    writer.start()
    writer.join(0.5)
    assert writer.is_alive(), "a sync link does not hold a write back"
    rig.link.set(mode="async")
    assert is_over(writer)
    rig.write("v", 8192, 4096)  # nobody waits any more
    assert rig.link.status()["lag_events"] and not rig.link.status()["degraded"]
    rig.cable.release()
    rig.check_both()
    rig.link.set(mode="sync")
    rig.link.wait_synced(WAIT)
    lsn = rig.write("v", 0, 4096)
    assert rig.far.site.window.state().durable_lsn >= lsn


def test_a_sync_link_waits_until_it_has_caught_up(rig):
    """A link that lags does not stop writers when it becomes sync: it is degraded until all was sent."""
    rig.link.set(bandwidth=4096)
    rig.fill("v", 0, 4 * MIB)  # in several batches
    rig.link.set(mode="sync")
    writer = threading.Thread(target=rig.write, args=("v", 4096, 4096), daemon=True)
    writer.start()
    assert is_over(writer)
    assert rig.link.status()["degraded"] and rig.link.status()["connected"]
    rig.link.set(bandwidth=0)
    rig.link.wait_synced(WAIT)
    assert not rig.link.status()["degraded"]


def test_another_address(rig):
    """The stream goes on over another way to the same secondary: no region is copied."""
    copied = rig.link.status()["bytes_sent"]["copied"]
    with Proxy(("127.0.0.1", rig.cable.port)) as other:
        rig.link.set(address=f"127.0.0.1:{other.port}")
        rig.proxy.cut()  # the old way is of no use
        rig.fill("v", 0, MIB)
        rig.check_both()
        assert other.counts().forward > MIB and rig.link.address == f"127.0.0.1:{other.port}"
        assert rig.link.status()["bytes_sent"]["copied"] == copied
        rig.proxy.mend()
        rig.link.set(address=f"127.0.0.1:{rig.proxy.port}")
        rig.check_both()


def test_an_address_that_answers_nothing_is_left_at_once(rig):
    with Proxy(None) as nobody:
        rig.link.set(address=f"127.0.0.1:{nobody.port}", dead=600.0)  # an attempt may last so long
        rig.write("v", 0, 4096)
        until(lambda: rig.link.status()["last_error"])
        rig.link.set(address=f"127.0.0.1:{rig.proxy.port}")
        rig.check_both()


def test_an_address_of_another_node_is_refused(rig, tmp_path, monkeypatch):
    import pyrepl

    monkeypatch.setattr("pyrepl.runtime.dialer.REFUSED", 600.0)
    with pyrepl.Node.open(tmp_path / "other", create=True, name="other") as stranger:
        stranger.create_group("db", tmp_path / "other-journal", journal_size=16 * MIB, role="secondary").add_volume("v", size=SIZE)
        host, port = stranger.listen("127.0.0.1", 0)
        rig.link.set(address=f"{host}:{port}")
        until(lambda: rig.link.status()["state"] == "refused")
        assert "was paired" in rig.link.status()["last_error"]
        rig.link.set(address=f"127.0.0.1:{rig.proxy.port}")
        rig.check_both()  # a new address is asked at once, whenever a refusal would be asked about again


def test_what_was_set_outlives_a_restart(rig):
    before = rig.near.site.checkpoints
    rig.link.set(mode="sync", bandwidth=5 * MIB, dead=9.5)
    assert rig.near.site.checkpoints > before  # it would outlive a crash
    rig.reopen_near()
    rig.unseen = rig.proxy.counts().forward
    link = rig.link
    assert (link.mode, link.bandwidth, link.dead) == ("sync", 5 * MIB, 9.5)
    link.wait_synced(WAIT)
    status = link.status()
    assert status["dead_seconds"] == 9.5 and status["bandwidth"] == 5 * MIB and not status["degraded"]
    begin, crossed = time.monotonic(), rig.proxy.counts().forward
    link.set(mode="async")
    rig.fill("v", 0, 4 * MIB)
    while link.status()["lag_events"]:
        assert rig.proxy.counts().forward - crossed <= 5 * MIB * (time.monotonic() - begin) + burst_of(5 * MIB)
        time.sleep(0.01)
    link.set(bandwidth=0)
    rig.reopen_near()
    assert rig.link.bandwidth == 0 and rig.link.mode == "async" and rig.link.dead == 9.5


def test_silence_is_noticed_by_the_new_time(rig):
    """Nothing comes back any more, and the link was told to be patient for ten minutes; then for a second and a half."""
    rig.link.set(dead=600.0)
    rig.link.wait_synced(WAIT)
    connections = rig.link.status()["connections"]
    rig.cable.hush()
    rig.write("v", 0, 4096)
    rig.link.set(dead=1.5)
    until(lambda: "heard from the peer for 1.5 seconds" in rig.link.status()["last_error"]
          or "too long" in rig.link.status()["last_error"])
    rig.cable.speak()
    rig.check_both()
    assert rig.link.status()["connections"] > connections


def test_what_cannot_be_set(rig):
    link, before = rig.link, rig.link.status()
    for options, words in (
            ({}, "nothing to change"), ({"mode": "maybe"}, "mode"), ({"bandwidth": 1023}, "from 1024"), ({"bandwidth": -1}, "from 1024"),
            ({"bandwidth": (1 << 40) + 1}, "from 1024"), ({"bandwidth": 1e6}, "a whole number"), ({"bandwidth": True}, "a whole number"),
            ({"dead": 0.01}, "dead"), ({"dead": 601}, "dead"), ({"dead": 1.0}, "more than heartbeat"), ({"dead": "5"}, "a number"),
            ({"address": "nowhere"}, "not an address"), ({"address": "127.0.0.1:0"}, "no port"), ({"address": 5}, "not an address"),
            ({"mode": "sync", "bandwidth": 1}, "from 1024"), ({"address": "127.0.0.1:1", "dead": 0.01}, "dead")):
        with pytest.raises(UsageError, match=words):
            link.set(**options)
    after = link.status()
    assert [after[name] for name in ("mode", "address", "bandwidth", "dead_seconds")] == [
        before[name] for name in ("mode", "address", "bandwidth", "dead_seconds")]
    with pytest.raises(UsageError, match="a whole number"):
        rig.near.add_link("x", "127.0.0.1:1", bandwidth="fast")
    with pytest.raises(UsageError, match="from 1024"):
        rig.near.add_link("x", "127.0.0.1:1", bandwidth=5)
    rig.near.remove_link(LINK)
    with pytest.raises(NotFound):
        link.set(bandwidth=MIB)


def test_what_was_set_is_told(rig):
    events = rig.near_node.events()
    rig.link.set(bandwidth=MIB, mode="sync")
    told = next(event for event in iter(lambda: events.get(WAIT), None) if event["event"] == "link-changed")
    assert {key: told[key] for key in told if key not in ("time", "node")} == {"event": "link-changed", "group": "db", "link": LINK, "bandwidth": MIB, "mode": "sync"}
