"""A fan-out over TCP: the primary is killed, one of its two secondaries takes over and leads the other one, then the old primary.
What is copied is what differs, and no volume as a whole."""

from __future__ import annotations

import os
import time

import pytest

from pyrepl.errors import Refused
from tests.api.test_links import WAIT, Pair
from tests.support.clients import until
from tests.support.ports import lasting_port

MIB = 1 << 20
REGION = 64 * 1024
SIZE = 16 * MIB
FRAME = 4096  # bytes of a batch of copied regions beside them, at most

PRIMARY = """
import os, pathlib, sys, time, pyrepl
folder, b, c, far = sys.argv[1:]
MIB, REGION = 1 << 20, 64 * 1024
with pyrepl.Node.open(folder) as node:
    group = node.group("db")
    data, other = group.volume("data"), group.volume("other")
    for volume in (data, other):
        for offset in range(0, volume.size, MIB):
            volume.write(offset, os.urandom(MIB))
    links = {"b": group.add_link("b", b), "c": group.add_link("c", c)}
    for link in links.values():
        link.wait_synced(60)
    print("synced", flush=True)
    while not pathlib.Path(folder, "go").exists():
        time.sleep(0.01)
    away = {"behind": ["c"], "dropped": ["c"], "ahead": ["b"]}.get(far, [])
    for name in away:
        links[name].pause()
    for region in (1, 2, 5):
        data.write(region * REGION, os.urandom(REGION))
    snapshot = data.snapshot("between")
    data.write(2 * REGION + 4096, os.urandom(4096))
    other.write(0, b"x" * 4096)
    data.restore(snapshot, extent=(2 * REGION, REGION))
    other.resize(other.size + MIB)
    if far == "dropped":
        for turn in range(40):  # never more than this journal holds ahead of b: that would be resynchronized, too
            group.wait(data.write(8 * REGION, os.urandom(MIB)), where="b", timeout=60)
    lsn = other.write(REGION, os.urandom(REGION))
    group.flush()
    for name in links:
        if name not in away:
            group.wait(lsn, where=name, timeout=60)
    print("done", flush=True)
    time.sleep(600)
"""


class Fan:
    """Three nodes: ``a`` is to be primary in a process of its own; ``b`` and ``c`` are made and listen."""

    def __init__(self, nodes, tmp_path, python, far):
        self.nodes, self.path, self.python, self.far = nodes, tmp_path, python, far
        self.node, self.listens = {}, {}
        for name in "abc":
            node = self.node[name] = nodes(name)
            group = node.create_group("db", tmp_path / f"{name}-journal", journal_size=16 * MIB,
                                      role="primary" if name == "a" else "secondary")
            group.add_volume("data", size=SIZE)
            group.add_volume("other", size=MIB)
            self.listens[name] = node.listen("127.0.0.1", lasting_port())
        self.node["a"].close()
        self.process = python(PRIMARY, str(tmp_path / "a"), self.address("b"), self.address("c"), far)
        self.hear("synced")

    def hear(self, word):
        line = self.process.stdout.readline()
        assert line == f"{word}\n", line

    def address(self, name):
        return "{}:{}".format(*self.listens[name])

    def group(self, name):
        return self.node[name].group("db")

    def kept(self, at, of):
        return self.group(at).site.siblings.kept.get(self.node[of].node_id)

    def told(self):
        """Both have heard of each other, and know that both have all that there is."""
        lsn = self.group("b").site.window.state().end_lsn
        for at, of in (("b", "c"), ("c", "b")):
            until(lambda at=at, of=of: self.kept(at, of) is not None, f"{at} hears of {of}", WAIT)
            until(lambda at=at, of=of: self.has_heard(at, of, lsn), f"{at} hears where {of} stands", WAIT)

    def has_heard(self, at, of, lsn):
        return (self.group(at).site.siblings.told or {}).get(self.node[of].node_id, 0) >= lsn

    def restart(self, name):
        self.node[name].close()
        self.node[name] = self.nodes(name)
        self.node[name].listen(*self.listens[name])

    def go(self):
        (self.path / "a" / "go").touch()
        self.hear("done")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def take_over(self, name):
        deadline = time.monotonic() + WAIT
        while True:
            try:
                return self.group(name).takeover()
            except Refused as error:
                assert error.reason == "connected" and time.monotonic() < deadline
                time.sleep(0.01)

    def follow(self, leader, name):
        """Bytes copied until it is what the leader is."""
        link = self.group(leader).add_link(name, self.address(name))
        link.wait_synced(WAIT)
        self.group(leader).wait(where=name, timeout=WAIT)
        one, other = self.group(leader), self.group(name)
        names = sorted(store.name for store in [*one.volumes, *one.snapshots])
        assert names == sorted(store.name for store in [*other.volumes, *other.snapshots])
        for store in names:
            near, far = one.store(store), other.store(store)
            assert near.size == far.size and near.read(0, near.size) == far.read(0, far.size), store
        return link.status()["bytes_sent"]["copied"]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("far", ["behind", "ahead", "equal", "dropped"])
def test_after_a_takeover_in_a_fan_out_what_differs_is_copied(nodes, tmp_path, python, far, restarts):
    fan = Fan(nodes, tmp_path, python, far)
    fan.told()
    for name in "bc":
        fan.group(name).site.checkpoint()  # else the knowledge begins a little later in one run than in another
    if restarts:
        fan.restart("b")
        fan.told()
    fan.go()
    if far == "dropped":
        until(lambda: fan.kept("b", "c").ledger.backlog, "the journal drops what c lacks", WAIT)
    fan.kill()
    if restarts:
        fan.restart("b")
    lsn = fan.take_over("b")
    b, c = fan.group("b"), fan.group("c")
    there = c.site.window.state().end_lsn
    assert {"behind": there < lsn, "dropped": there < lsn, "ahead": there > lsn, "equal": there == lsn}[far]
    if restarts:
        fan.restart("b")
        b = fan.group("b")
    b.volume("data").write(20 * REGION, os.urandom(REGION))
    b.volume("data").snapshot("after")
    copied = fan.follow("b", "c")
    print(f"{copied} bytes copied to a secondary of {2 * SIZE}")
    # Behind: as events and operations. Ahead: three regions of writes, two of other, and other is made anew, with its MiB more.
    most = {"behind": 0, "equal": 0, "ahead": 3 * REGION + 2 * MIB + FRAME, "dropped": (4 + 16 + 2) * REGION + 2 * MIB + FRAME}
    assert copied <= most[far]
    fan.node["a"] = nodes("a")
    fan.node["a"].listen(*fan.listens["a"])
    if fan.group("a").role == "primary":
        fan.group("a").demote(force=True)
    copied = fan.follow("b", "a")
    print(f"{copied} bytes copied to the old primary")
    assert copied <= most["ahead" if far == "ahead" else "equal"]


class Third(Pair):
    """A primary in this process, with two secondaries that are linked."""

    def __init__(self, nodes, tmp_path):
        super().__init__(nodes, tmp_path)
        self.third = nodes("third")
        self.also = self.third.create_group("db", tmp_path / "third-journal", journal_size=16 * MIB, role="secondary")
        self.also.add_volume("data", size=self.near.size)
        self.address = "{}:{}".format(*self.third.listen("127.0.0.1", lasting_port()))
        self.near.write(0, os.urandom(self.near.size))
        for link in (self.link(), self.group.add_link("oslo", self.address)):
            link.wait_synced(WAIT)

    def heard(self):
        for site, of in ((self.far_group.site, self.third), (self.also.site, self.there)):
            until(lambda site=site, of=of: of.node_id in site.siblings.kept, "the secondaries hear of each other", WAIT)

    def all_equal(self, *links):
        for link in links:
            link.wait_synced(WAIT)
            self.far_group.wait(where=link.name, timeout=WAIT)
        want = self.far.read(0, self.far.size)
        assert self.also.volume("data").read(0, self.far.size) == want == self.group.volume("data").read(0, self.far.size)
        assert [link.status()["bytes_sent"]["copied"] for link in links] == [0] * len(links)


@pytest.mark.timeout(120)
def test_a_migration_copies_nothing_to_the_others(nodes, tmp_path):
    three = Third(nodes, tmp_path)
    three.here.listen("127.0.0.1", 0)
    three.near.snapshot("before")
    three.group.migrate("paris", timeout=WAIT)
    three.far.write(REGION, os.urandom(REGION))
    assert sorted(link.name for link in three.far_group.links) == sorted(["oslo", three.here.name])
    three.all_equal(*three.far_group.links)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("restarts", [False, True])
def test_a_planned_swap_copies_nothing_to_one_that_is_linked_later(nodes, tmp_path, restarts):
    three = Third(nodes, tmp_path)
    three.heard()
    three.group.demote(timeout=WAIT)
    three.far_group.promote()
    for turn in range(8):
        three.far.write(turn * REGION, os.urandom(REGION))
    if restarts:
        three.there.close()
        three.there = nodes("there")
        three.far_group = three.there.group("db")
        three.far = three.far_group.volume("data")
    host, port = three.here.listen("127.0.0.1", 0)
    links = [three.far_group.add_link("oslo", three.address), three.far_group.add_link("home", f"{host}:{port}")]
    three.far.write(9 * REGION, os.urandom(4096))
    three.all_equal(*links)
