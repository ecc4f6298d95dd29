"""A site behind a site, over TCP: a secondary with a link of its own, its refusals, restarts, and changes of role above it."""

from __future__ import annotations

import os
import time

import pytest

from pyrepl.errors import Refused
from tests.api.test_links import REGION, SIZE, WAIT, Pair
from tests.nbd.test_server import attach
from tests.support.clients import until
from tests.support.nbd_client import STATUS
from tests.support.rig import Rig

MIB = 1 << 20


class Chain:
    """``near`` feeds ``middle``, which feeds ``last``."""

    def __init__(self, nodes, tmp_path, *, linked=True):
        self.nodes, self.tmp_path = nodes, tmp_path
        pair = Pair(nodes, tmp_path)
        self.node = {"near": pair.here, "middle": pair.there}
        self.listens = {"near": pair.here.listen("127.0.0.1", 0), "middle": (pair.host, pair.port)}
        self.make("last")
        pair.link().wait_synced(WAIT)
        if linked:
            self.group("middle").add_link("far", self.address("last"))
            self.await_last()

    def make(self, name):
        self.node[name] = self.nodes(name)
        group = self.node[name].create_group("db", self.tmp_path / f"{name}-journal", journal_size=16 * MIB, role="secondary")
        group.add_volume("data", size=SIZE)
        self.listens[name] = self.node[name].listen("127.0.0.1", 0)

    def names(self):
        return {"near": "here", "middle": "there"}

    def reopen(self, name):
        self.node[name].close()
        self.start(name)

    def start(self, name):
        self.node[name] = self.nodes(self.names().get(name, name))
        self.node[name].listen(*self.listens[name])

    def group(self, name):
        return self.node[name].group("db")

    def address(self, name):
        return "{}:{}".format(*self.listens[name])

    def link(self, name="middle"):
        return self.group(name).link("far")

    def await_last(self, *, first=("near", "paris")):
        """Everything that the leader has is at the last site too."""
        leader = self.group(first[0])
        lsn = leader.wait()
        leader.flush()
        leader.link(first[1]).wait_synced(WAIT)
        self.group("middle").wait(lsn, timeout=WAIT) if first[0] != "middle" else None
        until(lambda: self.group("last").site.window.state().durable_lsn >= lsn and self.link().status()["synced"],
              "the last site has everything", WAIT)
        until(lambda: self.group("last").applied_lsn >= lsn, "the last site has performed everything", WAIT)
        return lsn

    def equal(self, *names, leader="near"):
        one = self.group(leader)
        wanted = {store.name: store.read(0, store.size) for store in [*one.volumes, *one.snapshots]}
        for name in names or ("middle", "last"):
            other = self.group(name)
            assert {s.name: s.read(0, s.size) for s in [*other.volumes, *other.snapshots]} == wanted, name


@pytest.fixture
def chain(nodes, tmp_path):
    return Chain(nodes, tmp_path)


def test_everything_arrives_at_the_last_site(chain):
    """Writes, a snapshot and a restore: as commands, at their own LSN; nothing is copied."""
    near = chain.group("near")
    data = near.volume("data")
    before = chain.link().status()["bytes_sent"]
    data.write(0, os.urandom(MIB))
    snapshot = data.snapshot("monday")
    data.write(5, b"other")
    data.restore("monday")
    lsn = chain.await_last()
    after = chain.link().status()["bytes_sent"]
    assert after["copied"] == before["copied"] and after["operations"] > before["operations"]
    assert [(one["lsn"], one["kind"]) for one in chain.group("last").operations()][-2:] \
        == [(one["lsn"], one["kind"]) for one in near.operations()][-2:]
    assert snapshot.lsn < lsn
    with chain.group("last").open_view("data") as view:
        assert view.lsn == lsn and view.read(0, SIZE) == data.read(0, SIZE)
    chain.equal()
    status = chain.group("middle").status()
    assert status["role"] == "secondary" and [link["state"] for link in status["links"]] == ["streaming"]
    assert chain.group("last").status()["fed_by"] == chain.node["middle"].node_id.hex()


@pytest.mark.parametrize("which", ["near", "middle", "last"])
def test_a_site_of_the_chain_restarts(chain, which):
    """What the middle knows of the last site survives: nothing is copied again."""
    chain.group("near").volume("data").write(0, os.urandom(MIB))
    chain.await_last()
    chain.reopen(which)
    chain.group("near").volume("data").write(MIB, os.urandom(4096))
    chain.await_last()
    assert which != "middle" or chain.link().status()["bytes_sent"]["copied"] == 0
    chain.equal()


def test_while_the_middle_is_away_the_last_site_stays_consistent(chain):
    chain.node["middle"].close()
    chain.group("near").volume("data").write(0, b"meanwhile")
    assert chain.group("last").status()["consistent"]
    chain.start("middle")
    chain.await_last()
    chain.equal()


def test_a_difference_that_verification_finds_is_repaired_down_to_the_last_site(chain):
    """The primary copies the region to the middle, which copies it on."""
    near = chain.group("near")
    near.volume("data").write(0, os.urandom(SIZE))
    chain.await_last()
    path = next(store["path"] for store in chain.group("middle").status()["stores"] if store["name"] == "data")
    chain.node["middle"].close()
    with open(path, "r+b") as file:
        file.seek(3 * REGION)
        file.write(os.urandom(REGION))
    chain.start("middle")
    near.link("paris").wait_synced(WAIT)
    assert near.verify(timeout=WAIT)["links"]["paris"]["state"] == "repaired"
    until(lambda: chain.link().status()["bytes_sent"]["copied"] > 0, "the middle, which has it, copies it on")
    chain.await_last()
    chain.equal()
    with pytest.raises(Refused, match="is a secondary here"):
        chain.group("middle").verify()


def test_what_is_refused(chain, nodes, tmp_path):
    middle, last = chain.group("middle"), chain.group("last")
    for refused in (lambda: middle.add_link("s", "127.0.0.1:1", mode="sync"), lambda: chain.link().set(mode="sync"),
                    lambda: chain.link().set(most_lag_bytes=MIB), lambda: chain.link().set(most_lag_seconds=1.0)):
        with pytest.raises(Refused, match="no writer waits for a link of its own"):
            refused()
    with pytest.raises(Refused, match="Delay the site that is last"):
        middle.set_delay(5.0)
    last.set_delay(0.2)
    with pytest.raises(Refused, match="Delay the site that is last"):
        last.add_link("on", "127.0.0.1:1")
    last.set_delay(0)
    fresh = nodes("fresh").create_group("db", tmp_path / "fresh-journal", journal_size=16 * MIB, role="secondary")
    with pytest.raises(Refused, match="no primary has led yet"):
        fresh.add_link("on", "127.0.0.1:1")
    assert [link.name for link in middle.links] == ["far"] and not last.links
    near = chain.group("near")
    near.demote(timeout=WAIT)
    with pytest.raises(Refused, match="no primary has led it since"):
        near.add_link("on", "127.0.0.1:1")
    middle.promote()


def why(link, word):
    until(lambda: word in link.status()["last_error"], f"it is refused with {word!r}", WAIT)


def test_a_loop_is_refused(chain):
    """A secondary feeds neither the primary, nor the one that feeds it."""
    why(chain.group("middle").add_link("back", chain.address("near")), "a secondary feeds no primary")
    why(chain.group("last").add_link("back", chain.address("middle")), "a loop")
    why(chain.group("last").add_link("first", chain.address("near")), "a secondary feeds no primary")
    assert chain.group("near").status()["split_brain"] == [] and chain.group("near").role == "primary"
    chain.group("near").volume("data").write(0, b"goes on")
    chain.await_last()
    chain.equal()


def test_one_feeds(chain):
    """The primary links to the last site too: refused while the middle feeds that, accepted when it does not."""
    near = chain.group("near")
    near.volume("data").write(0, os.urandom(MIB))
    chain.await_last()
    direct = near.add_link("direct", chain.address("last"))
    why(direct, "feeds this secondary now, and one is enough")
    chain.node["middle"].close()
    near.volume("data").write(MIB, os.urandom(MIB))
    direct.wait_synced(WAIT)
    near.wait(where="direct", timeout=WAIT)
    assert direct.status()["bytes_sent"]["copied"] == 0
    chain.equal("last")
    chain.start("middle")
    why(chain.link(), "feeds this secondary now, and one is enough")
    near.remove_link("direct")
    chain.await_last()
    assert chain.link().status()["bytes_sent"]["copied"] == 0
    chain.equal()


def test_another_link_of_the_same_node_is_refused(chain):
    """As a successor may have it: its own link, and that which the old primary had to the same site."""
    again = chain.group("middle").add_link("again", chain.address("last"))
    why(again, "link 'far' of the same node feeds this secondary now")
    chain.group("near").volume("data").write(0, os.urandom(MIB))
    chain.await_last()
    assert chain.link().status()["connections"] == 1
    chain.group("middle").remove_link("far")
    again.wait_synced(WAIT)
    lsn = chain.group("near").volume("data").write(0, b"by the other")
    until(lambda: chain.group("last").applied_lsn >= lsn, "it arrives by the other link", WAIT)
    chain.equal()


def test_the_middle_takes_over(chain):
    """Its link stays and goes on: nothing is copied. The old primary becomes its secondary."""
    chain.group("near").volume("data").write(0, os.urandom(SIZE))
    chain.await_last()
    chain.node["near"].close()
    middle = chain.group("middle")
    middle.takeover()
    middle.volume("data").write(0, b"led from the middle")
    middle.volume("data").snapshot("after")
    chain.await_last(first=("middle", "far"))
    assert chain.link().status()["bytes_sent"]["copied"] == 0 or chain.link().status()["connections"] > 0
    chain.equal("last", leader="middle")
    chain.start("near")
    chain.group("near").demote(force=True) if chain.group("near").role == "primary" else None
    middle.add_link("back", chain.address("near")).wait_synced(WAIT)
    middle.wait(where="back", timeout=WAIT)
    chain.equal("near", "last", leader="middle")


def test_the_lead_goes_to_the_middle(chain):
    """migrate: the link of the middle stays, beside the one back."""
    near = chain.group("near")
    near.volume("data").write(0, os.urandom(SIZE))
    chain.await_last()
    copied = chain.link().status()["bytes_sent"]["copied"]
    near.migrate("paris", timeout=WAIT)
    middle = chain.group("middle")
    back = chain.node["near"].name
    assert sorted(link.name for link in middle.links) == sorted(["far", back])
    middle.volume("data").write(0, b"led from the middle")
    chain.await_last(first=("middle", "far"))
    middle.link(back).wait_synced(WAIT)
    middle.wait(where=back, timeout=WAIT)
    assert chain.link().status()["bytes_sent"]["copied"] == copied
    chain.equal("near", "last", leader="middle")


def test_names_of_links_do_not_meet(chain, nodes, tmp_path):
    """The successor has a link of the name that the old primary gave to another: both stay."""
    chain.make("other")
    chain.group("near").add_link("far", chain.address("other")).wait_synced(WAIT)
    chain.await_last()
    chain.group("near").migrate("paris", timeout=WAIT)
    middle = chain.group("middle")
    assert sorted(link.name for link in middle.links) == sorted(["far", "far-2", chain.node["near"].name])
    middle.volume("data").write(0, b"to all")
    for link in middle.links:
        link.wait_synced(WAIT)
        middle.wait(where=link.name, timeout=WAIT)
    chain.equal("near", "last", "other", leader="middle")


def test_the_last_site_takes_over_and_leads_the_middle_back(chain):
    near = chain.group("near")
    near.volume("data").write(0, os.urandom(SIZE))
    chain.await_last()
    for name in ("near", "middle"):
        chain.node[name].close()
    last = chain.group("last")
    last.takeover()
    last.volume("data").write(0, b"led from the end")
    chain.start("middle")
    chain.group("middle").remove_link("far")
    back = last.add_link("up", chain.address("middle"))
    back.wait_synced(WAIT)
    last.wait(where="up", timeout=WAIT)
    chain.equal("middle", leader="last")


def test_a_fork_takes_the_middle_and_the_last_site_back(chain, nodes, tmp_path):
    """Another secondary, which had less, takes over and leads the middle: what only the middle and the last site had of
    the old primary is taken back at both."""
    near = chain.group("near")
    chain.make("other")
    near.add_link("other", chain.address("other")).wait_synced(WAIT)
    near.volume("data").write(0, b"known to all")
    chain.await_last()
    near.link("other").wait_synced(WAIT)
    near.wait(where="other", timeout=WAIT)
    chain.node["other"].close()
    near.volume("data").write(0, os.urandom(MIB))
    near.volume("data").snapshot("lost")
    chain.await_last()
    chain.node["near"].close()
    chain.start("other")
    other = chain.group("other")
    other.takeover()
    other.volume("data").write(MIB, b"another way")
    link = other.add_link("paris", chain.address("middle"))
    link.wait_synced(WAIT)
    other.wait(where="paris", timeout=WAIT)
    lsn = other.wait()
    until(lambda: chain.link().status()["synced"] and chain.group("last").applied_lsn == lsn, "the last site follows", WAIT)
    chain.equal(leader="other")
    assert chain.group("last").status()["split_brain"] == []


@pytest.mark.parametrize("middle", [False, True])
def test_more_than_a_journal_while_the_last_site_is_away(chain, middle):
    """The middle folds what the last site lacks; ``middle``: what that site lacked itself, too."""
    near = chain.group("near")
    data = near.volume("data")
    chain.link().pause()
    if middle:
        near.link("paris").pause()
    for _ in range(16):
        data.write(0, os.urandom(MIB))
        data.write(MIB + REGION, os.urandom(REGION))
    data.snapshot("kept")
    if middle:
        near.link("paris").resume()
    near.link("paris").wait_synced(WAIT)
    for _ in range(16):
        data.write(0, os.urandom(MIB))
    near.link("paris").wait_synced(WAIT)
    chain.link().resume()
    chain.await_last()
    chain.equal()


def test_a_lag_is_the_same_as_of_one_link_more(chain):
    """A write is at the last site soon: the middle does not wait for anything but its journal."""
    near = chain.group("near")
    for at in range(20):
        begin = time.monotonic()
        lsn = near.volume("data").write(at * 4096, os.urandom(4096))
        until(lambda lsn=lsn: chain.group("last").applied_lsn >= lsn, "it arrives", 5.0)
        assert time.monotonic() - begin < 2.0


def test_nbd_tells_where_the_last_site_may_differ(chain, tmp_path):
    """The export of a secondary shows a view; what is told of its link is of the store, not of the view."""
    node = chain.node["middle"]
    node.start_export("data", "db", "data")
    client = attach(node.listen_nbd(f"unix:{tmp_path}/nbd"), "data", contexts=["x-pyrepl:diverged/far"])
    assert client.call(STATUS, 0, SIZE).statuses == {2: [(SIZE, 0)]}
    chain.link().pause()
    chain.group("near").volume("data").write(0, b"not there")
    with chain.link()._link.guard:
        chain.link()._link.add_all()
    assert client.call(STATUS, 0, SIZE).statuses == {2: [(SIZE, 1)]}
    chain.link().resume()
    chain.await_last()
    chain.equal()


def test_what_comes_in_long_batches_finds_room_beside_what_a_link_lacks(tmp_path):
    """The link of a secondary is down: the journal keeps what it lacks, as long as there is room for the longest event beside
    it. A batch that was made elsewhere holds several, and waited for good."""
    with Rig(tmp_path / "rig", {"v": 4 * MIB}, seed=5, journal=16 * MIB) as rig:
        rig.far.add_link("last", "127.0.0.1:9")
        site = rig.far.site
        site._most_held = site._room  # so it is with any length that comes
        for _ in range(40):
            rig.write("v", 0, MIB)
        rig.near.flush()
        rig.link.wait_synced(30)
