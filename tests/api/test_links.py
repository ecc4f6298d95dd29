"""Two nodes over loopback TCP, through the public API: pairing, modes, waiting, refusals, pausing, restarts."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import ExitStack

import pytest

from pyrepl.errors import Exists, NotFound, Refused, UsageError, WaitTimeout
from tests.support.clients import until
from tests.support.ports import lasting_port

MIB = 1 << 20
REGION = 64 * 1024
SIZE = 2 * MIB
WAIT = 60.0


class Pair:
    """A primary with one volume, and a secondary that was prepared for it."""

    def __init__(self, nodes, tmp_path, alignment=4096):
        self.nodes, self.path = nodes, tmp_path
        self.there = nodes("there")
        self.far_group = self.there.create_group("db", tmp_path / "far-journal", journal_size=16 * MIB, role="secondary",
                                                 alignment=alignment)
        self.far = self.far_group.add_volume("data", size=SIZE)
        self.host, self.port = self.there.listen("127.0.0.1", lasting_port())
        self.here = nodes("here")
        self.group = self.here.create_group("db", tmp_path / "near-journal", journal_size=16 * MIB, alignment=alignment)
        self.near = self.group.add_volume("data", size=SIZE)

    def link(self, **options):
        return self.group.add_link("paris", f"{self.host}:{self.port}", **options)

    def reopen(self):
        self.here.close()
        self.here = self.nodes("here")
        self.group = self.here.group("db")
        self.near = self.group.volume("data")
        return self.group.link("paris")

    def equal(self):
        names = sorted(store.name for store in [*self.group.volumes, *self.group.snapshots])
        assert names == sorted(store.name for store in [*self.far_group.volumes, *self.far_group.snapshots])
        for name in names:
            near, far = self.group.store(name), self.far_group.store(name)
            assert near.size == far.size and near.read(0, near.size) == far.read(0, far.size)
        return True


@pytest.fixture
def pair(nodes, tmp_path):
    return Pair(nodes, tmp_path)


@pytest.mark.parametrize("alignment", [512, 4096])
@pytest.mark.parametrize("mode", ["async", "sync"])
def test_everything_arrives(nodes, tmp_path, mode, alignment):
    pair = Pair(nodes, tmp_path, alignment)
    pair.near.write(0, os.urandom(SIZE // 2))
    told: list[dict] = []
    link = pair.link(mode=mode)
    status = link.wait_synced(WAIT, told.append)
    assert status["consistent"] and told[-1] == status and told[0]["state"] in ("connecting", "resyncing", "streaming")
    assert pair.equal()
    assert pair.group.link("paris") is link and pair.group.links == [link] and link.mode == mode
    pair.near.write(5, b"between")
    snapshot = pair.near.snapshot("s")
    pair.near.write(0, os.urandom(SIZE))
    result = pair.near.restore(snapshot)
    assert result.wait("paris", WAIT) is result
    pair.group.snapshot("all").wait("paris", WAIT)
    assert pair.equal() and pair.far.read(5, 7) == b"between"
    snapshot.delete().wait("paris", WAIT)
    pair.group.add_volume("more", size=REGION).write(0, b"m")
    pair.group.wait(where="paris", timeout=WAIT)
    assert pair.equal() and pair.far_group.volume("more").read(0, 1) == b"m"
    assert pair.far_group.wait(result.lsn, timeout=WAIT) == result.lsn  # at the secondary itself
    assert pair.group.status()["links"][0]["name"] == "paris"


def test_operations_cost_no_data(pair):
    link = pair.link()
    pair.near.write(0, os.urandom(SIZE))
    snapshot = pair.near.snapshot("s")
    pair.near.write(0, os.urandom(SIZE))
    link.wait_synced(WAIT)
    before = link.status()["wire_bytes_sent"]
    restored = pair.near.restore(snapshot).wait("paris", WAIT)
    assert restored.bytes_avoided == restored.bytes_changed == SIZE
    assert snapshot.bytes_avoided == snapshot.bytes_changed, "a figure is of the links that there were"
    pair.near.clone("copy").wait("paris", WAIT)
    assert link.status()["wire_bytes_sent"] - before < 64 * 1024
    assert pair.equal()


def test_both_sites_restart(pair):
    link = pair.link()
    pair.near.write(0, os.urandom(SIZE))
    link.wait_synced(WAIT)
    link = pair.reopen()
    pair.near.write(0, b"after the primary's restart")
    link.wait_synced(WAIT)
    pair.there.close()
    pair.near.write(REGION, b"while the secondary was away")
    with pytest.raises(WaitTimeout, match="paris.* it goes on"):
        link.wait_synced(0.1)
    pair.there = pair.nodes("there")
    pair.far_group = pair.there.group("db")
    assert pair.far_group.role == "secondary"
    pair.there.listen(pair.host, pair.port)
    link.wait_synced(WAIT)
    assert pair.equal() and link.status()["bytes_sent"]["copied"] == 0


def test_pause_and_resume(pair):
    link = pair.link()
    link.wait_synced(WAIT)
    before = pair.group.site.checkpoints
    link.pause()
    assert link.status()["state"] == "paused" and not link.status()["connected"]
    assert pair.group.site.checkpoints > before  # it would outlive a crash
    pair.near.write(0, b"paused")
    with pytest.raises(WaitTimeout, match="is paused"):
        link.wait_synced(0.5)
    assert pair.far.read(0, 6) == bytes(6)
    link = pair.reopen()  # a pause outlives a restart
    with pytest.raises(WaitTimeout, match="is paused"):
        pair.group.wait(where="paris", timeout=0.5)
    link.resume()
    link.wait_synced(WAIT)
    assert pair.far.read(0, 6) == b"paused"


def test_what_was_known_before_the_link_broke_is_not_synced(pair):
    """All was confirmed, and nothing was written since: but nobody is there to say so now."""
    link = pair.link()
    link.wait_synced(WAIT)
    pair.there.close()
    until(lambda: link.status()["state"] == "down", "the link has heard of it", WAIT)
    status = link.status()
    assert not status["connected"] and status["consistent"] and not status["lag_events"] and not status["divergent_bytes"]
    with pytest.raises(WaitTimeout, match=f"LSN {status['durable_lsn']} after 0.2 s: it is down"):
        link.wait_synced(0.2)
    pair.there = pair.nodes("there")
    pair.there.listen(pair.host, pair.port)
    assert link.wait_synced(WAIT)["connected"]
    link.pause()
    with pytest.raises(WaitTimeout, match="is paused"):
        link.wait_synced(0)


def test_removing_a_link(pair):
    link = pair.link()
    link.wait_synced(WAIT)
    pair.group.remove_link("paris")
    assert pair.group.links == []
    for call in (lambda: pair.group.link("paris"), lambda: pair.group.remove_link("paris"), link.wait_synced, link.pause,
                 lambda: pair.group.wait(where="paris")):
        with pytest.raises(NotFound, match="paris"):
            call()
    pair.near.write(0, b"unseen")
    pair.reopen_names = [group.links for group in pair.here.groups]
    assert pair.reopen_names == [[]] and pair.far.read(0, 6) == bytes(6)


def test_waiting_for_a_link_that_is_removed(pair):
    pair.near.write(0, b"x")
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        link = pair.group.add_link("deaf", "127.0.0.1:%d" % deaf.getsockname()[1])
        caught: list[BaseException] = []

        def wait():
            try:
                link.wait_synced()
            except NotFound as error:
                caught.append(error)

        waiter = threading.Thread(target=wait)
        waiter.start()
        pair.group.remove_link("deaf")
        waiter.join(WAIT)
        assert not waiter.is_alive() and len(caught) == 1


@pytest.mark.parametrize("removed", [0, 3])
def test_handles_from_before_the_pairing(nodes, tmp_path, removed):
    there, here = nodes("there"), nodes("here")
    far = there.create_group("db", tmp_path / "f", journal_size=16 * MIB, role="secondary")
    near = here.create_group("db", tmp_path / "n", journal_size=16 * MIB)
    names = ["a", "b", "c"]
    handles = {name: far.add_volume(name, size=REGION) for name in names}
    numbers = {name: handles[name].id for name in names}
    for n in range(removed):
        near.add_volume(f"early-{n}", size=REGION).remove()
    for name in reversed(names):
        near.add_volume(name, size=REGION).write(0, name.encode() * REGION)
    link = near.add_link("paris", "%s:%d" % there.listen("127.0.0.1"))
    assert not link.wait_synced(WAIT)["last_error"] or removed
    near.wait(where="paris", timeout=WAIT)
    assert {name: handles[name].read(0, REGION) for name in names} == {name: name.encode() * REGION for name in names}
    assert handles["a"].id != numbers["a"] and all(handles[name] == far.volume(name) for name in names)
    into = bytearray(3)
    stale = far.volume("b")
    stale._id, stale._paired = handles["c"].id, None  # as if the number of another store had been its own
    assert stale.readinto(0, into) == 3 and into == b"bbb" and stale.device == handles["b"].device
    near.volume("b").remove().wait("paris", WAIT)
    with pytest.raises(NotFound, match="deleted"):
        handles["b"].read(0, 1)


def test_closing_ends_all_threads(nodes, tmp_path):
    before = set(threading.enumerate())  # what an earlier test let go may take a moment to end
    pair = Pair(nodes, tmp_path)
    pair.link(mode="sync").wait_synced(WAIT)
    pair.here.close()
    pair.there.close()
    left = [thread.name for thread in threading.enumerate() if thread not in before and thread.name.startswith(("pyrepl-", "db-"))]
    assert not left


def test_link_refusals(pair):
    link = pair.link()
    for name, address, options, kind, words in (
            ("paris", "127.0.0.1:1", {}, Exists, "has a link 'paris'"), ("-x", "127.0.0.1:1", {}, UsageError, "cannot be a name"),
            ("x", "127.0.0.1", {}, UsageError, "not an address"), ("x", "127.0.0.1:99999", {}, UsageError, "not an address"),
            ("x", ":80", {}, UsageError, "not an address"), ("x", "a b:1", {}, UsageError, "not an address"),
            ("x", 5, {}, UsageError, "not an address"), ("x", "127.0.0.1:0", {}, UsageError, "no port"), ("primary", "127.0.0.1:1", {}, UsageError, "means this site"),
            ("x", "127.0.0.1:1", {"mode": "maybe"}, UsageError, "mode")):
        with pytest.raises(kind, match=words):
            pair.group.add_link(name, address, **options)
    assert pair.group.links == [link]
    for bad in (-1, "x"):
        with pytest.raises(UsageError, match="timeout"):
            link.wait_synced(bad)
    with pytest.raises(UsageError, match="the last that was given"):
        pair.group.wait(10**9, where="paris")


def test_a_figure_is_of_all_links(pair):
    """Two links, one of which leads nowhere: what shipping would have cost counts twice."""
    pair.link().wait_synced(WAIT)
    pair.group.add_link("nowhere", "127.0.0.1:1")
    snapshot = pair.near.snapshot("s")
    assert snapshot.bytes_changed == SIZE and snapshot.bytes_avoided == 2 * SIZE
    later = pair.near.snapshot("later", wait=False)
    later.wait()
    assert later.bytes_avoided == 2 * SIZE


def test_removing_a_link_that_cannot_connect_is_quick(pair):
    """An address that answers nothing at all: the queue of who knocks there is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf, ExitStack() as knocking:
        for _ in range(4):
            sock = knocking.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(deaf.getsockname())
        link = pair.group.add_link("deaf", f"127.0.0.1:{deaf.getsockname()[1]}")
        with pytest.raises(WaitTimeout, match="connecting"):
            link.wait_synced(0.3)
        link.set(dead=600.0)
        until(lambda: link._dialer._dialled[1] == 600.0, "an attempt that may last so long has begun", WAIT)
        begin = time.monotonic()
        pair.group.remove_link("deaf")
        assert time.monotonic() - begin < 60


def test_a_secondary_that_does_not_fit(nodes, tmp_path, monkeypatch):
    monkeypatch.setattr("pyrepl.attachment._REFUSED", 0.2)
    pair = Pair(nodes, tmp_path)
    pair.far_group.add_volume("surplus", size=REGION)
    link = pair.link()
    with pytest.raises(Refused, match="surplus") as caught:
        link.wait_synced(WAIT)
    assert caught.value.reason == "peer" and link.status()["state"] == "refused"
    pair.near.write(0, b"goes on")
    assert pair.far.read(0, 7) == bytes(7) and pair.far_group.status()["group_id"] is None


def test_volumes_of_a_paired_secondary_come_from_the_primary(pair):
    pair.link().wait_synced(WAIT)
    with pytest.raises(Refused, match="added at the primary") as caught:
        pair.far_group.add_volume("x", size=REGION)
    assert caught.value.reason == "role"
    with pytest.raises(Exists):
        pair.group.add_volume("data", size=REGION)


def test_a_link_that_is_down_stops_nobody(pair):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    link = pair.group.add_link("void", f"127.0.0.1:{port}")
    begin = time.monotonic()
    for n in range(60):  # more than the journal holds
        pair.near.write(n % 2 * MIB, os.urandom(MIB))
    assert time.monotonic() - begin < 100
    with pytest.raises(WaitTimeout, match=f"127.0.0.1:{port}"):
        link.wait_synced(0.3)
    assert link.status()["state"] in ("down", "connecting")
    pair.group.remove_link("void")
    pair.link().wait_synced(WAIT)
    assert pair.equal()
