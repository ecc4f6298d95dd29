"""Split brain and lost tails over TCP: who loses is said at either side; what it had is kept, and only what differs moves."""

from __future__ import annotations

import os
import time

import pytest

from pyrepl.errors import NotFound, Refused, UsageError
from pyrepl.parting import Parting
from tests.api.test_links import SIZE, WAIT, Pair
from tests.support.clients import until
from tests.support.ports import lasting_port

MIB = 1 << 20
REGION = 64 * 1024


class Parted:
    """``old`` was the primary, ``new`` has taken over from it; both have written since, and both are primary."""

    def __init__(self, nodes, tmp_path):
        self.nodes = nodes
        pair = Pair(nodes, tmp_path)
        self.there, self.port = pair.there, pair.port
        pair.near.write(0, os.urandom(SIZE))
        pair.link().wait_synced(WAIT)
        pair.group.link("paris").pause()
        pair.group.site.checkpoint()
        self.new = pair.far_group
        self.new.takeover()
        self.here_port = lasting_port()
        pair.here.close()
        self.start_here()
        self.old = self.here.group("db")
        self.old.promote(alone=True)
        self.old.link("paris").resume()
        self.common = self.old.volume("data").read(0, SIZE)
        self.old.volume("data").write(0, b"o" * REGION)
        self.old.volume("data").write(5 * REGION, b"o" * REGION)
        self.new.volume("data").write(0, b"n" * REGION)
        self.new.volume("data").write(9 * REGION, b"n" * REGION)
        self.tail = {group: group.volume("data").read(0, SIZE) for group in (self.old, self.new)}

    def start_here(self):
        self.here = self.nodes("here")
        self.here.listen("127.0.0.1", self.here_port)

    def back(self):
        return self.new.add_link("back", f"127.0.0.1:{self.here_port}")


@pytest.fixture
def parted(nodes, tmp_path):
    return Parted(nodes, tmp_path)


def agreed(leader, link, follower, kept):
    """Both are equal; three regions moved; what the follower had can still be read there."""
    link.wait_synced(WAIT)
    leader.wait(where=link.name, timeout=WAIT)
    assert (leader.role, follower.role) == ("primary", "secondary")
    data = follower.volume("data").read(0, SIZE)
    assert data == leader.volume("data").read(0, SIZE)
    assert 0 < link.status()["bytes_sent"]["copied"] <= 2 * (REGION + 4096), "of the tail; the rest came as events"
    until(lambda: len(follower.kept) == 1, "the protective snapshot goes when it is not needed any more", WAIT)
    (snapshot,) = follower.kept
    assert snapshot.name.startswith("data-lost-") and snapshot.read(0, SIZE) == kept and snapshot.size == SIZE
    assert not follower.status()["yields"] and not link._link.ledger.overrules
    leader.volume("data").write(5 * REGION, b"goes on")
    leader.volume("data").write(0, os.urandom(REGION))
    link.wait_synced(WAIT)
    leader.wait(where=link.name, timeout=WAIT)
    assert snapshot.read(0, SIZE) == kept and follower.volume("data").read(5 * REGION, 7) == b"goes on"
    return snapshot


def told_of(group):
    """What its status says of a split brain: of all but the nodes' ids."""
    return [(found["link"], found["fork_lsn"], found["lsn"], found["there_lsn"]) for found in group.status()["split_brain"]]


def test_both_sides_say_so_until_it_is_settled(parted):
    """Both primaries know it, whoever dials; it is over when one of them follows."""
    fork, old, new = parted.new.site.lineage.start, parted.old.flush(), parted.new.flush()
    until(lambda: told_of(parted.old) == [("paris", fork, old, new)], "the old primary has dialled", WAIT)
    until(lambda: told_of(parted.new) == [(None, fork, new, old)], "no link yet: it was told by who dialled", WAIT)
    assert parted.old.status()["split_brain"][0]["node"] == parted.there.node_id.hex()
    assert parted.new.status()["split_brain"][0]["node"] == parted.here.node_id.hex()
    until(lambda: parted.old.link("paris").status()["state"] == "diverged", "the link that has met it stands so", WAIT)
    text = parted.old.link("paris").status()["last_error"]
    assert f"split brain: after event {fork} each site has events" in text and "pyrepl resolve db --loser here" in text
    link = parted.back()
    until(lambda: told_of(parted.new) == [("back", fork, new, old)], "its own link was refused", WAIT)
    parted.new.resolve("back")
    assert told_of(parted.new) == [], "it has been said who loses"
    agreed(parted.new, link, parted.old, parted.tail[parted.old])
    assert told_of(parted.old) == told_of(parted.new) == []


def test_a_link_that_is_removed_takes_its_split_brain_along(parted):
    until(lambda: told_of(parted.old), "the old primary has dialled", WAIT)
    parted.old.remove_link("paris")
    assert told_of(parted.old) == []


def test_the_loser_is_named_at_its_own_side(parted):
    link = parted.back()
    until(lambda: link.status()["state"] == "diverged", "both have written", WAIT)
    link.pause()  # by itself it would ask again some time, and be obeyed
    lsn = parted.old.flush()
    assert parted.old.resolve("here") == lsn
    assert parted.old.role == "secondary" and parted.old.status()["yields"] and not parted.old.links
    link.resume()
    snapshot = agreed(parted.new, link, parted.old, parted.tail[parted.old])
    parted.here.close()
    parted.start_here()
    old = parted.here.group("db")
    (again,) = old.kept
    assert (again.name, again.lsn) == (snapshot.name, lsn) and again.read(0, SIZE) == parted.tail[parted.old]
    assert old.status()["kept"] == [{"id": again.id, "name": again.name, "kind": "kept", "size": SIZE, "origin": "data",
                                     "diverged": [], "lsn": lsn, "path": again.device}]
    assert old.kept_snapshot(again.name).digest(0, SIZE) == again.digest(0, SIZE)
    again.delete()
    again.delete()
    assert old.kept == [] and again.closed
    with pytest.raises(NotFound, match="no kept snapshot"):
        old.kept_snapshot(again.name)
    parted.here.close()
    parted.start_here()
    assert parted.here.group("db").kept == [] and not os.path.exists(again.device or "")


def test_the_loser_is_named_at_the_winner(parted):
    """It is a primary still, and steps down when it hears of it."""
    link = parted.back()
    until(lambda: link.status()["state"] == "diverged", "both have written", WAIT)
    assert parted.new.resolve("back") == parted.new.flush()
    agreed(parted.new, link, parted.old, parted.tail[parted.old])


def test_the_one_that_took_over_loses(parted):
    """The link of the old primary is still there."""
    link = parted.old.link("paris")
    until(lambda: link.status()["state"] == "diverged", "both have written", WAIT)
    parted.old.resolve(parted.there.node_id.hex())
    agreed(parted.old, link, parted.new, parted.tail[parted.new])
    with pytest.raises(Refused, match="is connected") as caught:
        parted.old.resolve("paris")
    assert caught.value.reason == "state"


def test_a_secondary_that_has_stepped_down_gives_way(parted):
    tail = parted.tail[parted.old]
    parted.old.demote(force=True)
    link = parted.back()
    until(lambda: link.status()["state"] == "diverged", "split brain", WAIT)
    assert "pyrepl resolve" in link.status()["last_error"] and "pyrepl resolve" in parted.old.status()["last_refusal"]
    link.pause()  # by itself it would ask again some time, and be obeyed
    parted.old.resolve(parted.here.name)
    parted.here.close()  # the word outlives a restart
    parted.start_here()
    parted.old = parted.here.group("db")
    assert parted.old.status()["yields"]
    link.resume()
    agreed(parted.new, link, parted.old, tail)


def test_what_would_be_lost_is_told_before(parted):
    """By the journal of the one that loses; the other one knows how far that one was."""
    assert parted.old.loss("here") | {"lsn": 0} == {"loser": "here", "fork_lsn": None, "lsn": 0, "since": None, "whole": False,
                                                    "stores": None, "operations": None, "kept": None}
    fork = parted.new.site.lineage.start
    other = parted.old.add_volume("other", size=MIB)
    other.write(0, b"o" * 512)
    parted.old.volume("data").snapshot("evening")
    parted.old.link("paris").redial()
    until(lambda: parted.old.status()["split_brain"] and parted.new.status()["split_brain"], "they have met", WAIT)
    told, begin = parted.old.loss("here"), time.time()
    assert told == {
        "loser": "here", "fork_lsn": fork, "lsn": parted.old.flush(), "since": told["since"], "whole": True, "operations": 2,
        "stores": [{"store": "data", "bytes": 2 * REGION}, {"store": "other", "bytes": 4096}],
        "kept": [f"{name}-{told['kept'][0][5:]}" for name in ("data", "other", "evening")],
    }  # fmt: skip
    assert told["kept"][0].startswith("data-lost-") and begin - 60 < told["since"] <= begin
    unknown = {"since": None, "whole": False, "stores": None, "operations": None, "kept": None}
    assert parted.old.loss("paris") == {"loser": "paris", "fork_lsn": fork, "lsn": parted.new.flush(), **unknown}
    assert parted.new.loss("here")["stores"] == [{"store": "data", "bytes": 2 * REGION}]
    for call in (parted.old.loss, parted.old.resolve):
        with pytest.raises(NotFound, match="knows no 'rome'"):
            call("rome")
    assert parted.old.role == parted.new.role == "primary" and not parted.old.status()["yields"], "nothing was changed by asking"
    parted.old.resolve("here")
    link = parted.back()
    link.wait_synced(WAIT)
    until(lambda: {snapshot.name for snapshot in parted.old.kept} == set(told["kept"]), "they are named as was told", WAIT)


def test_what_the_journal_holds_no_longer_is_said_to_be_more(parted):
    parted.old.link("paris").redial()
    until(lambda: parted.old.status()["split_brain"], "they have met", WAIT)
    parted.old.remove_link("paris")  # it would hold the journal
    before = parted.old.loss("here")
    parted.old.site.roles.parted = {parted.there.node_id: Parting(parted.new.site.lineage.start, 0, 0, True, True)}
    for _ in range(40):
        parted.old.volume("data").write(0, os.urandom(MIB))
        parted.old.site.checkpoint()
    told = parted.old.loss("here")
    assert before["stores"] is None and not told["whole"] and 0 < told["stores"][0]["bytes"] < 40 * MIB


def test_what_is_refused(parted):
    with pytest.raises(NotFound, match="knows no 'rome'"):
        parted.old.resolve("rome")
    parted.new.demote(force=True)
    with pytest.raises(Refused) as caught:
        parted.new.resolve("rome")
    assert caught.value.reason == "role"
    fresh = parted.here.create_group("fresh", parted.here.path / "j", journal_size=16 * MIB, role="secondary")
    with pytest.raises(Refused, match="never paired"):
        fresh.resolve("here")
    parted.old.add_link(parted.here.name, "127.0.0.1:1")
    with pytest.raises(UsageError, match="give the node id"):
        parted.old.resolve(parted.here.name)


def test_a_lost_tail_is_kept_too(nodes, tmp_path):
    """No split brain: the primary died with what it had not sent."""
    pair = Pair(nodes, tmp_path)
    pair.near.write(0, os.urandom(SIZE))
    link = pair.link()
    link.wait_synced(WAIT)
    link.pause()
    pair.near.write(REGION, b"lost")
    pair.near.snapshot("only-here")
    pair.near.write(2 * REGION, b"lost too")
    kept = pair.near.read(0, SIZE)
    pair.far_group.takeover()
    pair.far.write(0, b"new")
    pair.group.demote(force=True)
    back = pair.far_group.add_link("back", "%s:%d" % pair.here.listen("127.0.0.1", 0))
    back.wait_synced(WAIT)
    pair.far_group.wait(where="back", timeout=WAIT)
    assert pair.equal()
    until(lambda: pair.group.status()["protective"] is None, "the protective snapshot goes when it is not needed any more", WAIT)
    found = {snapshot.origin: snapshot for snapshot in pair.group.kept}
    assert set(found) == {"data", "only-here"} and len({snapshot.label for snapshot in found.values()}) == 1
    assert found["data"].read(0, SIZE) == kept
    assert found["only-here"].read(REGION, 4) == b"lost" and found["only-here"].read(2 * REGION, 8) != b"lost too"


def test_what_both_sides_made_under_one_name_is_kept(nodes, tmp_path):
    """Both sites give out the same next number, too; a snapshot that was only changed counts as well, one that was not does not."""
    pair = Pair(nodes, tmp_path)
    pair.near.write(0, os.urandom(SIZE))
    for name in ("changed", "same"):
        pair.near.snapshot(name)
    link = pair.link()
    link.wait_synced(WAIT)
    link.pause()
    pair.near.write(REGION, b"lost")
    pair.near.snapshot("nightly")
    pair.group.store("changed").refresh()
    pair.near.write(REGION, b"later")
    pair.far_group.takeover()
    pair.far.write(0, b"new")
    pair.far.snapshot("nightly")
    pair.group.demote(force=True)
    back = pair.far_group.add_link("back", "%s:%d" % pair.here.listen("127.0.0.1", 0))
    back.wait_synced(WAIT)
    pair.far_group.wait(where="back", timeout=WAIT)
    assert pair.equal() and pair.group.store("nightly").read(0, 3) == b"new"
    until(lambda: pair.group.status()["protective"] is None, "the protective snapshot goes when it is not needed any more", WAIT)
    found = {snapshot.origin: snapshot.read(REGION, 4) for snapshot in pair.group.kept}
    assert found == {"data": b"late", "nightly": b"lost", "changed": b"lost"}


def test_a_primary_that_writes_on_beside_the_one_that_took_over(nodes, tmp_path):
    """It was never restarted: the other one knows its generation. Writers are still told that they are safe."""
    pair = Pair(nodes, tmp_path)
    link = pair.link()
    link.wait_synced(WAIT)
    link.pause()
    fork = pair.group.flush()
    pair.far_group.takeover()
    pair.far.write(0, b"new")
    pair.far_group.flush()
    link.resume()
    until(lambda: link.status()["state"] == "refused", "it is a primary, and nothing was written here", WAIT)
    assert pair.group.status()["split_brain"] == [] and "if this one leads, demote it there" in link.status()["last_error"]
    pair.near.write(0, b"old")
    link.redial()
    until(lambda: told_of(pair.group) == [("paris", fork, pair.group.flush(), pair.far_group.flush())], "both have written", WAIT)
    until(lambda: told_of(pair.far_group) == [(None, fork, pair.far_group.flush(), pair.group.flush())], "both know it", WAIT)
    until(lambda: link.status()["state"] == "diverged", "the link that has met it stands so", WAIT)
    assert pair.group.loss("here")["stores"] == [{"store": "data", "bytes": 4096}]
    pair.group.resolve("here")
    assert told_of(pair.group) == []


def test_what_a_dead_primary_had_not_sent_is_no_split_brain(nodes, tmp_path):
    """Whoever took over agreed to lose it, and it does not write beside it when it is started again."""
    pair = Pair(nodes, tmp_path)
    link = pair.link()
    link.wait_synced(WAIT)
    link.pause()
    pair.near.write(0, b"not sent")
    pair.far_group.takeover()
    pair.far.write(0, b"new")
    pair.far_group.flush()
    pair.group.link("paris").resume()
    pair.group.site.checkpoint()
    pair.reopen()
    link = pair.group.link("paris")
    until(lambda: link.status()["state"] == "refused", "it is a primary", WAIT)
    assert pair.group.status()["asking"] == ["paris"] and "if this one leads, demote it there" in link.status()["last_error"]
    assert pair.group.status()["split_brain"] == pair.far_group.status()["split_brain"] == []
