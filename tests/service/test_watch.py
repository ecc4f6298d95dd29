"""What the daemon tells of links and split brains: each change once, and at a level that people look at."""

from __future__ import annotations

import logging

import pytest

from pyrepl.service.serving import Chronicle
from pyrepl.service.watch import Watch
from tests.api.test_links import WAIT, Pair
from tests.api.test_resolve import Parted
from tests.support.clients import until


class Heard:
    """The events of a node that a watch made, of the kinds that it makes."""

    def __init__(self, node):
        self.watch = Watch(node)
        self._node = node

    def look(self):
        """Those of one look, without the time."""
        told = []
        emit, self._node.emit = self._node.emit, told.append
        try:
            self.watch.look()
        finally:
            self._node.emit = emit
        return told


def test_a_link_is_told_when_it_changes_and_only_then(nodes, tmp_path):
    pair = Pair(nodes, tmp_path)
    heard = Heard(pair.here)
    link = pair.link()
    assert heard.look() == [], "it is as it should be, or dialling"
    link.wait_synced(WAIT)
    heard.look()
    assert heard.look() == []
    pair.there.close()
    until(lambda: link.status()["state"] == "down", "the other node is gone", WAIT)
    (told,) = heard.look()
    assert (told["event"], told["group"], told["link"], told["state"]) == ("link-state", "db", "paris", "down") and told["text"]
    for _ in range(20):
        assert heard.look() == [], "it dials again and again, and is down"
    pair.there = nodes("there")
    pair.there.listen("127.0.0.1", pair.port)
    link.wait_synced(WAIT)
    assert [(one["state"], one["text"]) for one in heard.look()] == [("streaming", None)]
    link.pause()
    assert [(one["state"], one["text"]) for one in heard.look()] == [("paused", None)]
    pair.group.remove_link("paris")
    assert heard.look() == []


def test_a_link_that_was_bad_from_the_start_is_told(nodes, tmp_path):
    pair = Pair(nodes, tmp_path)
    link = pair.group.add_link("rome", "127.0.0.1:1")
    until(lambda: link.status()["state"] == "down", "nobody listens there", WAIT)
    (told,) = Heard(pair.here).look()
    assert (told["link"], told["state"]) == ("rome", "down") and "refused" in told["text"]


def test_a_sync_link_says_when_writes_do_not_wait_for_it(nodes, tmp_path):
    pair = Pair(nodes, tmp_path)
    link = pair.link(mode="sync")
    link.wait_synced(WAIT)
    heard = Heard(pair.here)
    heard.look()
    with link._link.guard:  # else it has caught up before anybody looks
        link._link.stream.caught_up = False
        told = heard.look()
    assert [(one["state"], one["degraded"], one["text"]) for one in told] == [("streaming", True, "writes do not wait for it")]
    until(lambda: not link.status()["degraded"], "it has caught up", WAIT)
    assert [(one["degraded"], one["text"]) for one in heard.look()] == [(False, "writes wait for it again")]


def test_a_link_says_when_its_secondary_stands_still(nodes, tmp_path):
    pair = Pair(nodes, tmp_path)
    link = pair.link()
    link.wait_synced(WAIT)
    heard = Heard(pair.here)
    heard.look()
    with link._link.guard:  # else the next heartbeat comes before anybody looks
        link._link.stands = "it stands still"
        told = heard.look() + heard.look()
    assert [(one["state"], one["text"]) for one in told] == [("streaming", "it stands still")]
    until(lambda: not link.status()["stands"], "its secondary says that it does not", WAIT)
    assert [(one["state"], one["text"]) for one in heard.look()] == [("streaming", "its secondary goes on")]


def test_a_split_brain_is_told_once_for_each_fork(nodes, tmp_path, caplog):
    parted = Parted(nodes, tmp_path)
    heard = Heard(parted.here)
    until(lambda: parted.old.status()["split_brain"], "they have met", WAIT)
    told = [one for one in heard.look() if one["event"] == "split-brain"]
    assert len(told) == 1 and told[0]["link"] == "paris" and "`pyrepl resolve db --loser here` or `--loser paris`" in told[0]["text"]
    assert heard.watch.parted == ["db"]
    parted.old.volume("data").write(0, b"more of it")
    assert not [one for one in heard.look() if one["event"] == "split-brain"]
    parted.old.resolve("here")
    assert heard.look() == [] and heard.watch.parted == []


def test_the_form_of_a_line(nodes, caplog):
    caplog.set_level(logging.INFO, "pyrepl.node")
    node = nodes("here")
    chronicle = Chronicle(node)
    port = node.listen("::1", 0)[1]
    node.emit({"event": "role-changed", "group": "db", "role": "primary", "lsn": 0, "told": []})
    node.emit({"event": "role-changed", "group": "db", "role": "secondary", "lsn": 9, "told": ["paris", "oslo"]})
    until(lambda: len(caplog.records) >= 3, "they are written", WAIT)
    chronicle.stop()
    assert [record.getMessage() for record in caplog.records] == [
        f"event=listening address=[::1]:{port}", "event=role-changed group=db role=primary lsn=0",
        "event=role-changed group=db role=secondary lsn=9 told=paris,oslo"]


@pytest.mark.parametrize(("event", "level"), [
    ({"event": "split-brain", "text": "x"}, logging.ERROR), ({"event": "group-failed"}, logging.ERROR),
    ({"event": "stands-still"}, logging.ERROR), ({"event": "goes-on"}, logging.INFO),
    ({"event": "link-state", "state": "down", "degraded": False}, logging.WARNING),
    ({"event": "link-state", "state": "diverged", "degraded": False}, logging.WARNING),
    ({"event": "link-state", "state": "streaming", "degraded": True}, logging.WARNING),
    ({"event": "link-state", "state": "streaming", "degraded": False}, logging.INFO),
    ({"event": "operation"}, logging.DEBUG), ({"event": "role-changed"}, logging.INFO),
])
def test_levels(nodes, caplog, event, level):
    caplog.set_level(logging.DEBUG, "pyrepl.node")
    node = nodes("here")
    chronicle = Chronicle(node)
    node.emit(event)
    until(lambda: any(f"event={event['event']}" in record.getMessage() for record in caplog.records), "it is written", WAIT)
    chronicle.stop()
    assert [record.levelno for record in caplog.records if f"event={event['event']}" in record.getMessage()] == [level]
