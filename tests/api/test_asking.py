"""A primary that is started again asks its peers before it leads: whoever was taken over from writes nothing beside it."""

from __future__ import annotations

import threading

import pytest

from pyrepl.errors import Refused, UsageError
from tests.api.test_links import SIZE, WAIT, Pair
from tests.support.clients import until

MIB = 1 << 20


@pytest.fixture
def pair(nodes, tmp_path):
    made = Pair(nodes, tmp_path)
    made.link().wait_synced(WAIT)
    return made


def start_far(pair):
    pair.there = pair.nodes("there")
    pair.there.listen("127.0.0.1", pair.port)
    pair.far_group = pair.there.group("db")
    pair.far = pair.far_group.volume("data")


def inactive(group, *names):
    """It refuses writes and operations, shows what it holds, and says whom it asks."""
    data = group.volume("data")
    for call in (lambda: data.write(0, b"x"), lambda: data.snapshot("s"), lambda: group.add_link("x", "127.0.0.1:1"),
                 lambda: group.promote()):
        with pytest.raises(Refused, match="asks first whether another site leads|does not lead yet") as caught:
            call()
        assert caught.value.reason in ("asking", "role")
    assert group.status()["asking"] == list(names) and group.role == "primary"
    return data.read(0, SIZE)


def test_it_leads_when_it_is_open_if_its_peers_are_there(pair):
    generations = set()
    for turn in range(3):
        pair.reopen()
        generations.add(pair.group.status()["generation"])
        pair.near.write(0, b"%d" % turn)  # at once
        assert pair.group.status()["asking"] == []
        pair.group.link("paris").wait_synced(WAIT)
    assert pair.equal() and len(generations) == 3 and pair.group.status()["lsn"]["end"] == 4


def test_a_primary_that_was_taken_over_from_does_not_write(pair):
    """It was restarted in good faith; there is no split brain, and it is led back."""
    pair.near.write(0, b"before")
    pair.group.link("paris").wait_synced(WAIT)
    pair.here.close()
    pair.far_group.takeover()
    pair.far.write(MIB, b"leads")
    link = pair.reopen()
    before = pair.group.status()["generation"]
    assert inactive(pair.group, "paris")[:6] == b"before"
    until(lambda: "is a primary on this node" in link.status()["last_error"], "it hears why", WAIT)
    pair.group.demote(force=True)
    assert pair.group.status()["generation"] == before, "it began none"
    back = pair.far_group.add_link("back", "%s:%d" % pair.here.listen("127.0.0.1", 0))
    back.wait_synced(WAIT)
    pair.far_group.wait(where="back", timeout=WAIT)
    assert back.status()["bytes_sent"]["copied"] == 0 and pair.group.kept == []
    assert pair.group.volume("data").read(0, SIZE) == pair.far.read(0, SIZE)


@pytest.mark.parametrize("written", [True, False])
def test_one_that_has_nothing_more_is_led_back_by_a_link_alone(pair, written):
    pair.near.write(0, b"before")
    pair.group.link("paris").wait_synced(WAIT)
    pair.here.close()
    pair.far_group.takeover()
    if written:
        pair.far.write(MIB, b"leads")
    pair.reopen()
    back = pair.far_group.add_link("back", "%s:%d" % pair.here.listen("127.0.0.1", 0))
    back.wait_synced(WAIT)
    pair.far_group.wait(where="back", timeout=WAIT)
    assert pair.group.role == "secondary" and pair.group.links == [] and pair.group.kept == []
    assert back.status()["bytes_sent"]["copied"] == 0
    assert pair.group.volume("data").read(0, SIZE) == pair.far.read(0, SIZE)


def test_one_that_has_more_waits_for_a_word(pair):
    """What it had not sent is lost by demoting it, and nobody has said so."""
    link = pair.group.link("paris")
    link.wait_synced(WAIT)
    link.pause()
    pair.near.write(0, b"never sent")
    pair.here.close()
    pair.far_group.takeover()
    pair.far.write(MIB, b"leads")
    pair.here = pair.nodes("here")
    pair.group = pair.here.group("db")
    back = pair.far_group.add_link("back", "%s:%d" % pair.here.listen("127.0.0.1", 0))
    until(lambda: "demote it here" in back.status()["last_error"] or "demote it there" in back.status()["last_error"], "it hears why", WAIT)
    assert pair.group.role == "primary" and pair.group.volume("data").read(0, 10) == b"never sent"
    pair.group.demote(force=True)
    back.wait_synced(WAIT)
    pair.far_group.wait(where="back", timeout=WAIT)
    assert pair.group.volume("data").read(0, SIZE) == pair.far.read(0, SIZE)
    until(lambda: len(pair.group.kept) == 1, "the protective snapshot goes when it is not needed any more", WAIT)
    assert [kept.read(0, 10) for kept in pair.group.kept] == [b"never sent"]


def test_as_long_as_it_says_that_it_asks_it_refuses_and_no_longer(pair, monkeypatch):
    """When the last has answered a generation is to be begun, and connections told of it, before there are writers."""
    pair.there.close()
    pair.here.close()
    pair.here = pair.nodes("here")
    pair.group = pair.here.group("db")
    redial, begins, goes_on = pair.group.attachments.redial, threading.Event(), threading.Event()

    def hold_up():
        begins.set()
        assert goes_on.wait(WAIT)
        redial()

    monkeypatch.setattr(pair.group.attachments, "redial", hold_up)
    start_far(pair)
    assert begins.wait(WAIT) and pair.group.status()["asking"] == ["paris"]
    with pytest.raises(Refused, match="changing its role") as caught:
        pair.group.volume("data").write(0, b"x")
    assert caught.value.retryable
    goes_on.set()
    until(lambda: not pair.group.status()["asking"], "it leads", WAIT)
    pair.group.volume("data").write(0, b"leads")  # at once


def test_it_leads_when_the_last_of_its_peers_has_answered(pair, tmp_path):
    third = pair.nodes("third")
    also = third.create_group("db", tmp_path / "third-journal", journal_size=16 * MIB, role="secondary")
    also.add_volume("data", size=SIZE)
    pair.group.add_link("oslo", "%s:%d" % third.listen("127.0.0.1", 0)).wait_synced(WAIT)
    pair.there.close()
    pair.here.close()
    pair.here = pair.nodes("here")
    pair.group = pair.here.group("db")
    until(lambda: pair.group.status()["asking"] == ["paris"], "oslo answers", WAIT)
    inactive(pair.group, "paris")
    heard = pair.here.events()
    start_far(pair)
    until(lambda: pair.group.site.accepts, "it leads", WAIT)
    told = heard.get(WAIT)
    while told["event"] != "activated":
        told = heard.get(WAIT)
    pair.near = pair.group.volume("data")
    pair.near.write(0, b"leads")
    for name in ("paris", "oslo"):
        pair.group.link(name).wait_synced(WAIT)
        pair.group.wait(where=name, timeout=WAIT)
    assert pair.equal() and also.volume("data").read(0, 5) == b"leads"


def test_it_is_told_to_lead_alone(pair):
    pair.there.close()
    pair.here.close()
    pair.here = pair.nodes("here")
    group = pair.here.group("db")
    inactive(group, "paris")
    lsn = group.promote(alone=True)
    assert group.volume("data").write(0, b"alone") == lsn + 1 and group.status()["asking"] == []
    start_far(pair)
    group.link("paris").wait_synced(WAIT)
    group.wait(where="paris", timeout=WAIT)
    assert pair.far.read(0, 5) == b"alone"


def test_a_peer_that_is_removed_is_not_asked(pair):
    pair.there.close()
    pair.here.close()
    pair.here = pair.nodes("here")
    group = pair.here.group("db")
    inactive(group, "paris")
    group.remove_link("paris")
    until(lambda: group.site.accepts, "nobody is left to be asked", WAIT)
    group.volume("data").write(0, b"alone")


def test_alone_was_chosen_when_it_was_made(nodes, tmp_path):
    with pytest.raises(UsageError):
        nodes("here").create_group("x", tmp_path / "x", journal_size=16 * MIB, resume="never")
    node = nodes("near")
    group = node.create_group("db", tmp_path / "journal", journal_size=16 * MIB, resume="alone")
    group.add_volume("data", size=SIZE)
    group.add_link("paris", "127.0.0.1:1")
    node.close()
    group = nodes("near").group("db")
    group.volume("data").write(0, b"at once")
    assert group.status()["asking"] == []
