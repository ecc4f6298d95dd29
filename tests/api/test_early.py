"""Early operations as users meet them: who waits, what is given up, what is refused."""

from __future__ import annotations

import pytest

from pyrepl._core import view
from pyrepl.errors import Exists, NotFound, PyreplError, Refused, UsageError, WaitTimeout
from tests.support.rig import LINK, MIB, WAIT, Rig

SIZE = 4 * MIB


@pytest.fixture
def rig(tmp_path):
    with Rig(tmp_path / "rig", {"v": SIZE, "w": SIZE}, seed=21, journal=32 * MIB) as made:
        made.fill("v", 0, SIZE)
        made.snapshot("v", "s")
        made.fill("v", 0, SIZE)
        made.drain()
        yield made


def equal(rig):
    """Both sites hold the same stores with the same content."""
    rig.link.wait_synced(WAIT)
    rig.near.wait(where=LINK, timeout=WAIT)
    near, far = ({store.name: store.digest(0, SIZE) for store in (*group.volumes, *group.snapshots)} for group in (rig.near, rig.far))
    assert near == far
    assert len(rig.near.status()["stores"]) == len(rig.far.status()["stores"]) == len(near), "nothing hidden is left"


def copied(rig):
    return rig.link.status()["bytes_sent"]["copied"]


def test_in_one_call(rig):
    """Nothing changes in between: nothing is copied."""
    before = copied(rig)
    made = rig.near.volume("v").snapshot("t", early=True)
    result = rig.near.volume("v").restore("s", early=True)
    assert result.kind == "restore" and made.result.kind == "snapshot"
    equal(rig)
    assert copied(rig) == before


def test_what_is_not_performed_is_given_up(rig):
    before = rig.near.volume("v").digest(0, SIZE)
    with rig.near.volume("w").begin_snapshot("t") as snapshot, rig.near.volume("v").begin_restore("s") as restore:
        assert (snapshot.kind, restore.kind) == ("snapshot", "restore") and restore.wait(WAIT) == [LINK]
        volume, site = rig.far.volume("v"), rig.far.site
        shown = view.read(site.window, site.stores, volume.id, 0, SIZE)
        assert shown == rig.far.store("s").read(0, SIZE) == rig.near.store("s").read(0, SIZE), "it is performed there"
        assert volume.digest(0, SIZE) == before, "and no state of the primary, so that readers find what was before"
        assert [store.name for store in rig.near.snapshots] == [store.name for store in rig.far.snapshots] == ["s"]
    assert snapshot.is_over and restore.is_over
    for early in (snapshot, restore):
        early.cancel()
        with pytest.raises(Refused, match="given up"):
            early.perform()
    equal(rig)
    assert rig.near.volume("v").digest(0, SIZE) == before


def test_a_restart_gives_it_up(rig):
    before = rig.near.volume("v").digest(0, SIZE)
    rig.near.volume("w").begin_snapshot("t")
    rig.near.volume("v").begin_restore("s").wait(WAIT)
    rig.reopen_near()
    equal(rig)
    assert rig.near.volume("v").digest(0, SIZE) == before
    assert {store["name"] for store in rig.near.status()["stores"]} == {"v", "w", "s"}


def test_who_leads_next_gives_it_up(rig):
    snapshot = rig.near.volume("w").begin_snapshot("t")
    assert snapshot.wait(WAIT) == [LINK]
    rig.near.demote(timeout=WAIT)
    rig.far.promote()
    snapshot.cancel()
    assert snapshot.is_over
    rig.far.wait(timeout=WAIT)
    assert {store["name"] for store in rig.far.status()["stores"]} == {"v", "w", "s"}


def test_who_is_not_connected_is_not_waited_for(rig):
    rig.close_far()
    with rig.near.volume("v").begin_restore("s") as early:
        assert early.wait(WAIT) == []
        early.perform()
    rig.open_far()
    equal(rig)


def test_who_is_late_is_named(rig):
    rig.far.set_delay(3600)
    before = rig.near.volume("v").digest(0, SIZE)
    with pytest.raises(WaitTimeout, match=rf"{LINK}.*given up: nothing is performed here.*by copying the whole volume"):
        rig.near.volume("v").restore("s", early=True, timeout=0.2)
    assert rig.near.volume("v").digest(0, SIZE) == before
    with rig.near.volume("v").begin_restore("s") as early, pytest.raises(WaitTimeout, match=rf"{LINK}.*it goes on"):
        early.wait(0.2)
    rig.far.set_delay(0)
    equal(rig)


def test_how_many_were_first_is_said(rig):
    v = rig.near.volume("v")
    assert v.snapshot("one", early=True).result.details == {"early": 1}
    rig.close_far()
    assert v.snapshot("none", early=True).result.details == {"early": 0}
    rig.open_far()
    equal(rig)


def test_what_cannot_be(rig):
    v = rig.near.volume("v")
    for options, words in (({"verify": True}, "verify"), ({"extent": (0, 65536)}, "extent")):
        with pytest.raises(UsageError, match=words):
            v.restore("s", early=True, **options)
    with pytest.raises(UsageError, match="verify"):
        v.snapshot("t", early=True, verify=True)
    with pytest.raises(Exists):
        v.begin_snapshot("s")
    with pytest.raises(NotFound):
        v.begin_restore("nothing")
    with pytest.raises(Refused, match="from a snapshot"):
        v.begin_restore("w")
    with pytest.raises(PyreplError, match=r"role|primary"):
        rig.far.volume("v").begin_snapshot("t")
    with v.begin_snapshot("t") as early:
        v.snapshot("t")
        with pytest.raises(Exists):
            early.perform()
        assert not early.is_over
    equal(rig)
