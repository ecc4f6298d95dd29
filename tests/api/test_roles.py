"""Roles through the public API, over TCP: a planned swap and back, a takeover after a kill, what is refused and why."""

from __future__ import annotations

import os
import threading
import time

import pytest

from pyrepl.errors import Refused, WaitTimeout
from pyrepl.runtime.dialer import Dialer
from tests.api.test_links import SIZE, WAIT, Pair
from tests.support.clients import until

MIB = 1 << 20
REGION = 64 * 1024


class Swap:
    """Two nodes that listen; whichever group is the primary is ``one``, the other ``other``."""

    def __init__(self, nodes, tmp_path, **options):
        pair = Pair(nodes, tmp_path)
        host, port = pair.here.listen("127.0.0.1", 0)
        self.address = {pair.group: f"{host}:{port}", pair.far_group: f"{pair.host}:{pair.port}"}
        self.one, self.other = pair.group, pair.far_group
        self.link = pair.link(**options)
        self.link.wait_synced(WAIT)
        self.nodes = {pair.group: pair.here, pair.far_group: pair.there}

    def swap(self, **options):
        old, new = self.one, self.other
        lsn = old.demote(timeout=WAIT)
        assert new.promote() == lsn
        self.one, self.other = new, old
        self.link = new.add_link("back", self.address[old], **options)
        return lsn

    def equal(self):
        self.link.wait_synced(WAIT)
        self.one.wait(where=self.link.name, timeout=WAIT)
        names = sorted(store.name for store in [*self.one.volumes, *self.one.snapshots])
        assert names == sorted(store.name for store in [*self.other.volumes, *self.other.snapshots])
        for name in names:
            near, far = self.one.store(name), self.other.store(name)
            assert near.read(0, near.size) == far.read(0, far.size), name


@pytest.fixture
def swap(nodes, tmp_path):
    return Swap(nodes, tmp_path)


class Stamps:
    """A writer that stamps blocks of a volume and goes where the primary is; what was acknowledged must stay."""

    def __init__(self, swap):
        self.swap = swap
        self.stamp, self.written, self.stopping = 0, {}, False
        self.failures = []
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        while not self.stopping:
            self.stamp += 1
            block = self.stamp % 300
            try:
                self.swap.one.volume("data").write(block * 4096, self.stamp.to_bytes(8, "little") * 512)
            except Refused as error:
                if error.reason != "role":
                    self.failures.append(error)
                    return
                time.sleep(0.001)
                continue
            except Exception as error:
                self.failures.append(error)
                return
            self.written[block] = self.stamp
            time.sleep(0.002)  # so that a journal of 16 MiB does not overflow while there is no link

    def stop(self):
        self.stopping = True
        self.thread.join()
        assert not self.failures, self.failures
        return self.written


@pytest.mark.timeout(180)
@pytest.mark.parametrize("mode", ["async", "sync"])
def test_five_swaps_there_and_back(nodes, tmp_path, mode):
    """Writes go on all the time, to whoever is primary; nothing that was acknowledged is lost, and nothing is copied."""
    swap = Swap(nodes, tmp_path, mode=mode)
    writer = Stamps(swap)
    lsns, copied = [], 0
    try:
        for _ in range(5):
            for _ in range(2):
                time.sleep(0.1)
                lsns.append(swap.swap(mode=mode))
                swap.one.volume("data").snapshot(f"s{len(lsns)}")
                swap.link.wait_synced(WAIT)
                copied += swap.link.status()["bytes_sent"]["copied"]
            assert swap.one.role == "primary" and swap.other.role == "secondary"
    finally:
        written = writer.stop()
    assert lsns == sorted(lsns) and writer.stamp > 100
    swap.equal()
    assert copied == 0, "each knew what the other one had"
    for group in (swap.one, swap.other):
        for block, stamp in written.items():
            assert group.volume("data").read(block * 4096, 8) == stamp.to_bytes(8, "little")
    assert len(swap.one.snapshots) == 10


def test_a_role_outlives_a_restart(nodes, tmp_path):
    swap = Swap(nodes, tmp_path)
    swap.one.volume("data").write(0, b"before")
    heard = swap.nodes[swap.one].events()
    old, new = swap.one, swap.other
    lsn = swap.swap()
    told = heard.get(WAIT)
    while told["event"] != "role-changed":
        told = heard.get(WAIT)
    assert (told["role"], told["lsn"], told["told"]) == ("secondary", lsn, ["paris"]) and old.links == []
    assert old.status()["handed_over"] is False and new.status()["handed_over"] is False
    swap.one.volume("data").write(0, b"after!")
    swap.equal()
    for group in (old, new):
        swap.nodes[group].close()
    here, there = nodes("here"), nodes("there")
    assert (here.group("db").role, there.group("db").role) == ("secondary", "primary")
    assert here.group("db").links == [] and here.group("db").volume("data").read(0, 6) == b"after!"
    with pytest.raises(Refused, match="is a secondary here"):
        here.group("db").volume("data").write(0, b"x")
    there.group("db").promote(alone=True)  # it asks first, and the other one does not listen
    there.group("db").volume("data").write(0, b"again!")
    assert [link.name for link in there.group("db").links] == ["back"]


def test_who_has_stepped_down_refuses(swap):
    """Each way to write, while the readers go on."""
    group, data = swap.one, swap.one.volume("data")
    data.write(0, b"kept")
    shown = group.open_view(data)
    group.demote(timeout=WAIT)
    for call in (
        lambda: data.write(0, bytes(4096)),
        lambda: data.write(3, b"unaligned"),
        lambda: data.submit_write(0, bytes(4096)),
        lambda: data.zero(0, 4096),
        lambda: data.discard(0, 2 * MIB),
        lambda: data.snapshot("s"),
        lambda: group.mark("m"),
        lambda: group.add_link("x", "127.0.0.1:1"),
        lambda: group.demote(),
    ):
        with pytest.raises(Refused) as caught:
            call()
        assert caught.value.reason == "role", caught.value
    assert data.read(0, 4) == b"kept" and shown.read(0, 4) == b"kept"
    with pytest.raises(Refused, match="has not stepped down") as caught:
        group.promote()  # the other one was told that it may lead
    assert caught.value.reason == "primary"
    assert group.promote(alone=True) == group.applied_lsn
    data.write(0, b"back")
    assert data.read(0, 4) == b"back" and shown.read(0, 4) == b"kept"


def test_a_group_without_links_steps_down_and_up(group):
    data = group.add_volume("data", size=MIB)
    for turn in range(3):
        lsn = data.write(0, bytes([turn]) * 4096)
        assert group.demote() == lsn and group.role == "secondary"
        assert group.promote() == lsn and group.role == "primary"
    assert data.read(0, 1) == b"\2"
    with pytest.raises(Refused) as caught:
        group.promote()
    assert caught.value.reason == "role"
    with pytest.raises(Refused) as caught:
        group.takeover()
    assert caught.value.reason == "role"


def test_promote_is_refused_while_the_primary_leads(nodes, tmp_path):
    pair = Pair(nodes, tmp_path)
    for call in (pair.far_group.promote, pair.far_group.takeover):
        with pytest.raises(Refused, match="never paired") as caught:
            call()
        assert caught.value.reason == "inconsistent"
    pair.link().wait_synced(WAIT)
    with pytest.raises(Refused, match="demote it there first") as caught:
        pair.far_group.promote()
    assert caught.value.reason == "primary"
    with pytest.raises(Refused, match="is connected") as caught:
        pair.far_group.takeover()
    assert caught.value.reason == "connected" and pair.far_group.role == "secondary"
    pair.near.write(0, b"goes on")
    pair.group.link("paris").wait_synced(WAIT)
    assert pair.equal()


def test_promote_alone_drops_the_primary_and_refuses_it_afterwards(nodes, tmp_path):
    pair = Pair(nodes, tmp_path)
    link = pair.link()
    pair.near.write(0, os.urandom(MIB))
    link.wait_synced(WAIT)
    with pytest.raises(Refused, match="split brain.*migrate the group there") as refusal:
        pair.far_group.promote(alone=True)
    assert refusal.value.reason == "force" and pair.far_group.role == "secondary" and link.status()["state"] == "streaming"
    pair.far_group.promote(alone=True, force=True)
    pair.far.write(0, b"mine")

    def refused():
        status = link.status()  # at first, perhaps, because the role is just being changed
        return status["state"] == "refused" and "is a primary on this node" in status["last_error"]

    until(refused, "it hears why", WAIT)
    assert "is a primary on this node" in pair.far_group.status()["last_refusal"]
    assert pair.far.read(0, 4) == b"mine"


def test_inconsistent_is_refused(nodes, tmp_path):
    """The primary dies in the middle of a synchronization."""
    pair = Pair(nodes, tmp_path)
    link = pair.link()
    pair.near.write(0, os.urandom(SIZE))
    link.wait_synced(WAIT)
    link.pause()
    pair.group.site.exclusive(lambda: pair.group.site.links["paris"].add_all())
    site = pair.far_group.site

    def unsettle():
        while site.applier.apply():  # what came is durable, not necessarily applied: an item *consistent* may wait
            pass
        site.here.consistent = False

    site.exclusive(unsettle)
    for call in (lambda: pair.far_group.promote(alone=True), pair.far_group.takeover):
        with pytest.raises(Refused, match="no one moment") as caught:
            call()
        assert caught.value.reason == "inconsistent" and pair.far_group.role == "secondary"


def test_a_link_that_is_down_holds_a_demotion_up(nodes, tmp_path):
    pair = Pair(nodes, tmp_path)
    link = pair.link()
    link.wait_synced(WAIT)
    link.pause()
    pair.near.write(0, b"behind")
    with pytest.raises(Refused, match="is paused") as caught:
        pair.group.demote()
    assert caught.value.reason == "behind" and pair.group.role == "primary"
    pair.near.write(0, b"goes on")
    lsn = pair.group.demote(force=True)
    assert pair.group.role == "secondary" and pair.group.links == []
    with pytest.raises(Refused) as caught:
        pair.far_group.promote()
    assert caught.value.reason == "primary"
    assert pair.far_group.takeover() < lsn
    pair.far.write(4096, b"the other way")
    host, port = pair.here.listen("127.0.0.1", 0)
    back = pair.far_group.add_link("back", f"{host}:{port}")
    assert "not in this group's history" in back.wait_synced(WAIT)["last_error"]
    assert pair.equal() and pair.far.read(0, 6) != b"goes o"


def test_a_demotion_that_takes_too_long_is_taken_back(swap):
    """The secondary's applier stands still: it cannot become consistent any more, so it cannot be waited for."""
    link = swap.one.site.links["paris"]
    stream = link.stream
    with link.guard:
        stream.acknowledged = lambda ack: None  # first: one that is late would say otherwise
        link.consistent = False
    try:
        with pytest.raises(WaitTimeout, match="goes on as primary"):
            swap.one.demote(timeout=0.3)
    finally:
        del stream.acknowledged
    swap.one.volume("data").write(0, b"goes on")
    assert swap.one.role == "primary" and not swap.one.site.roles.changing
    swap.one.link("paris").pause()
    swap.one.link("paris").resume()
    swap.equal()


def test_split_brain_is_seen_by_both_and_no_byte_moves(nodes, tmp_path):
    swap = Swap(nodes, tmp_path)
    old, new = swap.one, swap.other
    swap.one.link("paris").pause()
    new.takeover()
    new.volume("data").write(0, b"one story")
    swap.nodes[old].close()
    here = nodes("here")
    old = here.group("db")
    old.promote(alone=True)  # it would not have written: the other one leads
    old.volume("data").write(0, b"another story")
    old.demote(force=True)
    host, port = here.listen("127.0.0.1", 0)
    link = new.add_link("back", f"{host}:{port}")
    before = (old.site.window.state().end_position, old.volume("data").read(0, MIB))
    with pytest.raises(Refused, match="split brain"):
        link.wait_synced(WAIT)
    until(lambda: link.status()["state"] == "diverged", "it may just ask again", WAIT)
    status = link.status()
    assert not status["bytes_sent"]["copied"] and not status["bytes_sent"]["items"]
    assert "split brain" in old.status()["last_refusal"]
    assert before == (old.site.window.state().end_position, old.volume("data").read(0, MIB))
    assert old.volume("data").read(0, 7) == b"another" and new.volume("data").read(0, 3) == b"one"


def test_what_a_restarted_primary_lost_is_no_split_brain(nodes, tmp_path, monkeypatch):
    """It waits until the secondary is synced, loses the link, writes, and dies. The secondary takes over and writes: what
    the old one wrote is a lost tail, for who is synced knows the generation. (Once seen as "split brain".)"""
    streaming = threading.Event()
    real = Dialer._stream
    monkeypatch.setattr(Dialer, "_stream", lambda *args: (streaming.wait(WAIT), real(*args)))
    streaming.set()
    swap = Swap(nodes, tmp_path)
    swap.nodes[swap.one].close()
    streaming.clear()  # the connection is made, and nothing is sent yet
    here = nodes("here")
    swap.one = old = here.group("db")
    link = old.link("paris")
    until(lambda: link.status()["connected"], "it connects", WAIT)
    status = link.status()
    assert status["consistent"] and status["lag_events"] == 0 and not status["synced"]
    with pytest.raises(WaitTimeout):
        link.wait_synced(0.2)
    streaming.set()
    link.wait_synced(WAIT)
    link.pause()
    old.volume("data").write(0, os.urandom(MIB))
    here.close()
    new = swap.other
    new.takeover()
    new.volume("data").write(MIB, b"leads")
    here = nodes("here")
    here.group("db").demote(force=True)
    host, port = here.listen("127.0.0.1", 0)
    swap.one, swap.other = new, here.group("db")
    swap.link = new.add_link("back", f"{host}:{port}")
    swap.equal()


@pytest.mark.timeout(120)
def test_a_third_site_follows_whoever_took_over(nodes, tmp_path):
    """Three nodes: the primary dies, one of two secondaries takes over and leads the other one; the old one is refused."""
    pair = Pair(nodes, tmp_path)
    third = nodes("third")
    also = third.create_group("db", tmp_path / "third-journal", journal_size=16 * MIB, role="secondary")
    also.add_volume("data", size=SIZE)
    host, port = third.listen("127.0.0.1", 0)
    pair.near.write(0, os.urandom(SIZE))
    for link in (pair.link(), pair.group.add_link("oslo", f"{host}:{port}")):
        link.wait_synced(WAIT)
    pair.here.close()
    pair.far_group.takeover()
    pair.far.write(0, b"led by another")
    oslo = pair.far_group.add_link("oslo", f"{host}:{port}")
    oslo.wait_synced(WAIT)
    pair.far_group.wait(where="oslo", timeout=WAIT)
    assert also.volume("data").read(0, SIZE) == pair.far.read(0, SIZE)
    assert also.status()["fed_by"] == pair.there.node_id.hex()
    here = nodes("here")  # active at once, as it does not ask yet
    link = here.group("db").link("oslo")
    with pytest.raises(Refused, match="another primary|split brain"):
        link.wait_synced(WAIT)
    assert also.volume("data").read(0, 14) == b"led by another"
    here.group("db").demote(force=True)
    host, port = here.listen("127.0.0.1", 0)
    pair.far_group.add_link("home", f"{host}:{port}").wait_synced(WAIT)
    assert here.group("db").volume("data").read(0, SIZE) == pair.far.read(0, SIZE)


PRIMARY = """
import os, sys, pyrepl
with pyrepl.Node.open(sys.argv[1]) as node:
    group = node.group("db")
    data = group.volume("data")
    link = group.add_link("paris", sys.argv[2], mode=sys.argv[3])
    link.wait_synced(60)
    print("ready", flush=True)
    stamp = 0
    while True:
        stamp += 1
        block = stamp % 256
        data.write(block * 4096, stamp.to_bytes(8, "little") * 512)
        os.write(1, b"%d %d %d\\n" % (block, stamp, not link.status()["degraded"]))
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", ["async", "sync"])
def test_takeover_after_a_kill_and_the_old_primary_comes_back(nodes, tmp_path, python, mode):
    """What a sync link promised is there; a moment of one LSN is; the old primary becomes equal."""
    pair = Pair(nodes, tmp_path)
    pair.near.write(0, bytes(SIZE))
    pair.here.close()
    process = python(PRIMARY, str(tmp_path / "here"), f"{pair.host}:{pair.port}", mode)
    assert process.stdout.readline() == "ready\n"
    written, promised = {}, 0
    for _ in range(400):
        block, stamp, held = map(int, process.stdout.readline().split())
        written[stamp] = block
        if mode == "sync" and held:
            promised = stamp
    process.kill()
    process.wait()
    group, deadline = pair.far_group, time.monotonic() + WAIT
    while True:
        try:
            group.takeover()
            break
        except Refused as error:
            assert error.reason == "connected" and time.monotonic() < deadline
            time.sleep(0.01)
    stamps = {block: int.from_bytes(pair.far.read(block * 4096, 8), "little") for block in range(256)}
    last = max(stamps.values())
    for block in range(256):
        newest = last - (last - block) % 256
        assert stamps[block] == max(newest, 0), "all blocks are of one moment"
    assert promised <= last and (mode == "async" or promised > 300)
    pair.far.write(SIZE - 4096, b"new" * 100)
    here = nodes("here")
    old = here.group("db")
    old.demote(force=True)
    host, port = here.listen("127.0.0.1", 0)
    home = group.add_link("home", f"{host}:{port}", mode=mode)
    home.wait_synced(WAIT)
    group.wait(where="home", timeout=WAIT)
    assert home.status()["bytes_sent"]["copied"] <= SIZE // 2 + 4096, "no more than it had written by itself"
    assert old.volume("data").read(0, SIZE) == pair.far.read(0, SIZE)
    assert group.demote() == old.promote()
    old.volume("data").write(0, b"home again")
