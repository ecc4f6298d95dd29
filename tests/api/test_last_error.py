"""What was wrong with a link: since when, until when, and what a wait makes of it, at whatever moment it looks."""

from __future__ import annotations

import time

import pytest

from pyrepl.errors import Refused, WaitTimeout
from pyrepl.lineage import Lineage
from pyrepl.parting import parting_of_two, words_of_two
from pyrepl.runtime import dialer
from tests.api.test_links import MIB, WAIT, Pair
from tests.support.clients import until


def test_an_error_has_a_time_and_is_over_when_the_link_works_again(nodes, tmp_path):
    pair = Pair(nodes, tmp_path)
    link = pair.link()
    fresh = link.wait_synced(WAIT)
    assert (fresh["last_error"], fresh["last_error_time"]) == ("", None)
    begin = time.time()
    pair.there.close()
    until(lambda: link.status()["state"] == "down", "the other node is gone", WAIT)
    down = link.status()
    assert down["last_error"] and begin <= down["last_error_time"] <= time.time()
    until(lambda: link.status()["last_error_time"] > down["last_error_time"], "it has dialled again", WAIT)
    link.pause()
    paused = link.status()
    assert (paused["state"], paused["last_error"], paused["last_error_time"]) == ("paused", "", None)
    with pytest.raises(WaitTimeout) as late:
        link.wait_synced(0.1)
    assert "it is paused" in str(late.value) and "last error" not in str(late.value)
    with pytest.raises(Refused) as behind:
        pair.group.demote(timeout=0.1)
    assert "is paused" in str(behind.value) and "refused" not in str(behind.value)
    link.resume()
    until(lambda: link.status()["last_error"], "it dials again, and nobody is there", WAIT)
    pair.there = nodes("there")
    pair.there.listen("127.0.0.1", pair.port)
    again = link.wait_synced(WAIT)
    assert (again["last_error"], again["last_error_time"]) == ("", None)


def test_a_wait_for_a_refused_link_ends_alike_at_every_moment(nodes, tmp_path):
    """It is asked about again meanwhile: whoever looks then sees a refused link too."""
    there = nodes("there")
    there.create_group("db", tmp_path / "f", journal_size=16 * MIB, role="secondary").add_volume("data", size=MIB)
    group = nodes("here").create_group("db", tmp_path / "n", journal_size=16 * MIB)
    group.add_volume("data", size=2 * MIB)
    link = group.add_link("paris", "%s:%d" % there.listen("127.0.0.1"))
    until(lambda: link.status()["state"] == "refused", "it is refused", WAIT)
    first, asked = link.status()["last_error_time"], 0
    states = set()
    end = time.monotonic() + WAIT
    while asked < 3:
        link._dialer.hurry()  # it asks at once, again and again
        for timeout in (0, 0.01):
            with pytest.raises(Refused, match="is refused"):
                link.wait_synced(timeout)
        states.add(link.status()["state"])
        now = link.status()["last_error_time"]
        asked, first = asked + (now > first), now
        assert time.monotonic() < end
    assert states == {"refused"}


def test_busy_is_no_refusal_before_it_has_lasted(nodes, tmp_path, monkeypatch):
    pair = Pair(nodes, tmp_path)
    link = pair.link()
    link.wait_synced(WAIT)
    pair.far_group.site.roles.changing = True
    link.redial()
    until(lambda: "changing its role" in link.status()["last_error"], "it is sent away", WAIT)
    busy = link.status()
    assert busy["state"] == "connecting" and busy["last_error_time"]
    monkeypatch.setattr(dialer, "PASSES", 0.3)
    until(lambda: link.status()["state"] == "refused", "it has lasted", WAIT)
    assert pair.far_group.status()["last_refusal"] and pair.far_group.status()["last_refusal_time"] <= time.time()
    monkeypatch.undo()
    pair.far_group.site.roles.changing = False
    assert link.wait_synced(WAIT)["last_error"] == ""
    assert (pair.far_group.status()["last_refusal"], pair.far_group.status()["last_refusal_time"]) == ("", None)
    pair.far_group.site.roles.changing = True  # another time begins anew
    link.redial()
    until(lambda: "changing its role" in link.status()["last_error"], "it is sent away", WAIT)
    assert link.status()["state"] == "connecting"


def test_a_refusal_is_told_until_the_two_agree(nodes, tmp_path):
    pair = Pair(nodes, tmp_path)
    link = pair.link()
    link.wait_synced(WAIT)
    pair.far_group.promote(alone=True, force=True)
    until(lambda: "is a primary on this node" in pair.far_group.status()["last_refusal"], "the old one has knocked", WAIT)
    pair.group.demote(force=True)
    host, port = pair.here.listen("127.0.0.1")
    pair.far_group.add_link("back", f"{host}:{port}").wait_synced(WAIT)
    until(lambda: not pair.far_group.status()["last_refusal"], "it follows", WAIT)


def test_two_primaries_are_told_what_is_so():
    """One that was started again, and had not sent all, has written: nobody may say that neither has."""
    a, b, c = b"a" * 16, b"b" * 16, b"c" * 16
    led = Lineage([(a, 0), (b, 10)])
    unsent = parting_of_two(led, 10, Lineage([(a, 0)]), 15, asks=False, asks_there=True)
    assert unsent is not None and "up to 15, was never sent" in words_of_two(unsent, "db")
    equal = parting_of_two(led, 10, Lineage([(a, 0), (c, 10)]), 10, asks=False, asks_there=False)
    assert equal is not None and "When they met, neither had written since event 10" in words_of_two(equal, "db")
