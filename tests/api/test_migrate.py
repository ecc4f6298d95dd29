"""A planned swap in one call, over TCP: under a writer, over cuts and restarts at every stage, with a third site."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress

import pytest

from pyrepl.errors import NotFound, PyreplError, Refused, UsageError, WaitTimeout
from pyrepl.roles import Roles
from tests.api.test_links import SIZE, WAIT, Pair
from tests.api.test_roles import Stamps
from tests.support.clients import until
from tests.support.ports import lasting_port

MIB = 1 << 20


class Sites:
    """Two nodes that listen; ``one`` is the group that is primary, ``other`` the other one."""

    def __init__(self, nodes, tmp_path, **options):
        self.nodes = nodes
        pair = Pair(nodes, tmp_path)
        self.node = {"here": pair.here, "there": pair.there}
        self.port = {"here": pair.here.listen("127.0.0.1", lasting_port())[1], "there": pair.port}
        self.leader = "here"
        pair.link(**options).wait_synced(WAIT)
        pair.group.add_link
        self.name = "paris"  # of the link that the leader has

    @property
    def one(self):
        return self.node[self.leader].group("db")

    @property
    def follower(self):
        return "there" if self.leader == "here" else "here"

    @property
    def other(self):
        return self.node[self.follower].group("db")

    def migrated(self):
        """The other one leads now."""
        self.name = self.node[self.leader].name
        self.leader = self.follower

    def migrate(self, **options):
        lsn = self.one.migrate(self.name, timeout=WAIT, **options)
        self.migrated()
        return lsn

    def reopen(self, which):
        self.node[which].close()
        self.start(which)

    def start(self, which):
        self.node[which] = self.nodes(which)
        self.node[which].listen("127.0.0.1", self.port[which])

    def equal(self):
        link = self.one.link(self.name)
        link.wait_synced(WAIT)
        self.one.wait(where=self.name, timeout=WAIT)
        for store in [*self.one.volumes, *self.one.snapshots]:
            assert store.read(0, store.size) == self.other.store(store.name).read(0, store.size), store.name
        return link.status()


@pytest.fixture
def sites(nodes, tmp_path):
    return Sites(nodes, tmp_path)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.long)])
def test_there_and_back_under_a_writer(nodes, tmp_path, mode, rounds):
    """Nothing that was acknowledged is lost, nothing is copied, and each link is as the one that it replaces."""
    sites = Sites(nodes, tmp_path, mode=mode)
    writer = Stamps(sites)
    lsns, copied = [], 0
    try:
        for _ in range(rounds):
            for _ in range(2):
                time.sleep(0.1)
                lsns.append(sites.migrate())
                assert (sites.one.role, sites.other.role) == ("primary", "secondary")
                link = sites.one.link(sites.name)
                link.wait_synced(WAIT)
                copied += link.status()["bytes_sent"]["copied"]
                assert link.mode == mode and len(sites.one.links) == 1 and sites.other.links == []
                sites.one.volume("data").snapshot(f"s{len(lsns)}")
    finally:
        written = writer.stop()
    assert lsns == sorted(lsns) and copied == 0
    sites.equal()
    for group in (sites.one, sites.other):
        for block, stamp in written.items():
            assert group.volume("data").read(block * 4096, 8) == stamp.to_bytes(8, "little")
        assert group.status()["successor"] is None
    assert len(sites.one.snapshots) == 2 * rounds


def interrupted(sites, monkeypatch, name, when):
    """Migrates, and ends the node ``name`` when a role is about to change, or has been changed, there."""
    site = sites.node[name].group("db").site
    method = "_step_down" if name == sites.leader else "_take_lead"
    real = getattr(Roles, method)
    reached = threading.Event()

    def change(self, *args):
        if self.site is not site:
            return real(self, *args)
        if when == "after":
            real(self, *args)
        reached.set()
        raise OSError("the process ends here")

    monkeypatch.setattr(Roles, method, change)
    failure = []

    def run():
        try:
            sites.one.migrate(sites.name, timeout=0.5)
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert reached.wait(WAIT)
    until(lambda: sites.node[name].group("db").fault is not None, "the group fails")
    thread.join()
    monkeypatch.setattr(Roles, method, real)
    with suppress(PyreplError):
        sites.node[name].close()
    return failure[0]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("which", ["primary", "successor"])
def test_a_site_dies_where_its_role_changes(sites, monkeypatch, which, when):
    """There is never more than one primary, and once the old one has stepped down the other one leads by itself."""
    old, new = sites.leader, sites.follower
    sites.one.volume("data").write(0, b"before")
    interrupted(sites, monkeypatch, old if which == "primary" else new, when)
    alive = new if which == "primary" else old
    assert sites.node[alive].group("db").role == "secondary"
    sites.start(new if alive == old else old)
    if which == "primary" and when == "before":
        assert sites.one.role == "primary" and sites.other.status()["handed_over"] is False
        assert sites.one.status()["successor"] is None
    else:
        until(lambda: sites.node[new].group("db").site.accepts, "the successor leads", WAIT)
        sites.migrated()
        until(lambda: not sites.other.links and sites.other.status()["successor"] is None, "the old one has heard", WAIT)
    sites.one.volume("data").write(4096, b"after")
    sites.equal()
    assert sites.one.volume("data").read(0, 6) == b"before"


def test_the_successor_is_away_when_it_is_to_hear(sites, monkeypatch):
    """Nobody leads until it is back; the old primary is asked twice, over its own restart too."""
    monkeypatch.setattr("pyrepl.changeover._LOOK", 0.0)
    group, far, node = sites.one, sites.follower, sites.node[sites.follower]
    real = group.succession.begin

    def gone():
        node.close()
        real()

    group.succession.begin = gone
    with pytest.raises(WaitTimeout, match="has stepped down here at LSN .* has not heard of it yet") as caught:
        group.migrate("paris", timeout=1.0)
    assert caught.value.context["role"] == "secondary" and group.status()["successor"] == "paris"
    assert [link.name for link in group.links] == ["paris"]
    with pytest.raises(Refused, match="asks the site of link 'paris' to lead") as caught:
        group.promote()
    assert caught.value.reason == "primary"
    sites.reopen(sites.leader)
    assert sites.one.role == "secondary" and sites.one.status()["successor"] == "paris"
    with pytest.raises(Refused) as caught:
        sites.one.volume("data").write(0, b"x")
    assert caught.value.reason == "role"
    sites.start(far)
    until(lambda: sites.other.site.accepts, "the successor leads", WAIT)
    sites.migrated()
    sites.one.volume("data").write(0, b"led")
    sites.equal()
    until(lambda: sites.other.links == [], "the link is forgotten", WAIT)


def test_the_lead_is_taken_back(sites):
    group, node = sites.one, sites.node[sites.follower]
    real = group.succession.begin
    group.succession.begin = lambda: (node.close(), real())
    with pytest.raises(WaitTimeout):
        group.migrate("paris", timeout=0.5)
    lsn = group.promote(alone=True)
    assert group.role == "primary" and group.links == [] and group.status()["successor"] is None
    assert group.volume("data").write(0, b"back") == lsn + 1
    sites.start(sites.follower)
    group.add_link("paris", f"127.0.0.1:{sites.port[sites.follower]}")
    sites.equal()
    assert sites.other.role == "secondary"
    sites.migrate()
    assert sites.one.role == "primary" and sites.one.volume("data").read(0, 4) == b"back"


@pytest.mark.timeout(120)
def test_the_other_links_go_with_the_lead(sites, tmp_path):
    """A third site follows the new primary, and nothing is copied to it."""
    third = sites.nodes("third")
    also = third.create_group("db", tmp_path / "third-journal", journal_size=16 * MIB, role="secondary")
    also.add_volume("data", size=SIZE)
    host, port = third.listen("127.0.0.1", 0)
    first = sites.one.add_link("oslo", f"{host}:{port}", mode="sync", bandwidth=100 * MIB)
    first.wait_synced(WAIT)
    before = first.status()["connections"]
    first.set(dead=7.0, most_lag_bytes=32 * MIB)
    until(lambda: first.status()["connections"] > before, "another time of silence makes another connection", WAIT)
    sites.one.volume("data").write(0, os.urandom(SIZE))
    sites.migrate()
    sites.one.volume("data").write(0, b"from there")
    oslo = sites.one.link("oslo")
    oslo.wait_synced(WAIT)
    sites.one.wait(where="oslo", timeout=WAIT)
    assert (oslo.mode, oslo.bandwidth, oslo.dead, oslo.most_lag_bytes, oslo.most_lag_seconds) == (
        "sync", 100 * MIB, 7.0, 32 * MIB, 0)
    assert oslo.status()["bytes_sent"]["copied"] == 0
    assert also.volume("data").read(0, SIZE) == sites.one.volume("data").read(0, SIZE)
    sites.equal()


def test_what_is_refused(nodes, tmp_path):
    pair = Pair(nodes, tmp_path)
    link = pair.link()
    link.wait_synced(WAIT)
    with pytest.raises(NotFound, match="no link 'rome'"):
        pair.group.migrate("rome")
    with pytest.raises(Refused, match="listens nowhere") as caught:
        pair.group.migrate(link)
    assert caught.value.reason == "address"
    for wrong in ("nowhere", "host:0"):
        with pytest.raises(UsageError):
            pair.group.migrate("paris", back=wrong)
    link.pause()
    with pytest.raises(Refused, match="is paused.*swap without it") as caught:
        pair.group.migrate("paris", back="127.0.0.1:1")
    assert caught.value.reason == "behind"
    link.resume()
    with pytest.raises(Refused) as caught:
        pair.far_group.migrate("paris")
    assert caught.value.reason == "role"
    link.wait_synced(WAIT)
    pair.near.write(0, b"still the primary")
    assert pair.group.role == "primary" and not pair.group.site.roles.changing


def test_an_address_that_leads_nowhere(sites):
    """The swap is done; who called hears that the link back is not."""
    with pytest.raises(WaitTimeout, match="has not linked back to 127.0.0.1:1 yet"):
        sites.one.migrate("paris", back="127.0.0.1:1", timeout=5.0)  # enough to be heard
    sites.migrated()
    assert sites.one.role == "primary" and sites.one.link(sites.name).address == "127.0.0.1:1"
    sites.one.remove_link(sites.name)
    sites.one.add_link(sites.name, f"127.0.0.1:{sites.port[sites.follower]}")
    sites.equal()


def test_a_node_that_listens_everywhere_is_reached_where_it_dials_from(nodes, tmp_path):
    pair = Pair(nodes, tmp_path)
    _, port = pair.here.listen("0.0.0.0", 0)
    pair.link().wait_synced(WAIT)
    pair.group.migrate("paris", timeout=WAIT)
    assert pair.far_group.link(pair.here.name).address == f"127.0.0.1:{port}"
