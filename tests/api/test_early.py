"""Early operations as users meet them: who waits, what is given up, what is refused."""

from __future__ import annotations

import pytest

import pyrepl
from pyrepl import operations
from pyrepl._core import view
from pyrepl.catalog import MOST_STORES, Catalog, Store
from pyrepl.early import plan_snapshots
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


# ---- of a whole group


@pytest.fixture(params=["relaxed", "strict"])
def wide(request, tmp_path):
    """Three volumes with a snapshot "s" of the group, and other content now."""
    with Rig(tmp_path / "rig", dict.fromkeys(NAMES, SIZE), seed=22, journal=48 * MIB, ordering=request.param) as made:
        for name in NAMES:
            made.fill(name, 0, SIZE)
        made.group_snapshot("s")
        for name in NAMES:
            made.fill(name, 0, SIZE)
        made.drain()
        yield made


NAMES = ("v", "w", "x")


def mibs(rig, before):
    """Whole MiB that were copied since, headers aside."""
    return (copied(rig) - before) // MIB


def test_early_snapshots_of_a_group(wide):
    """One LSN for all; of each volume just what was written to it between the two is copied, once."""
    before = copied(wide)
    with wide.near.begin_snapshot("t") as early:
        assert early.kind == "snapshot" and early.lsn == wide.near.wait() and early.wait(WAIT) == [LINK]
        assert len(wide.near.snapshots) == len(wide.far.snapshots) == 3, "those that are begun are hidden"
        wide.write("v", 0, MIB)
        wide.write("x", 2 * MIB, MIB)
        wide.write("v", 0, MIB)
        wide.drain()
        assert copied(wide) == before
        result = early.perform()
    assert (result.kind, result.lsn, result.state) == ("snapshot", wide.near.wait(), "performed") and early.is_over
    assert [made.name for made in result.snapshots] == [f"{name}-t" for name in NAMES] == list(result.created)
    assert {made.result.lsn for made in result.snapshots} == {result.lsn} and result.members == []
    for made, name in zip(result.snapshots, NAMES, strict=True):
        assert made.digest(0, SIZE) == wide.near.volume(name).digest(0, SIZE)
    equal(wide)
    assert mibs(wide, before) == 2
    assert {entry["lsn"]: entry["created"] for entry in wide.near.operations()}[result.lsn] == [f"{name}-t" for name in NAMES]


def test_an_early_restore_of_a_group(wide):
    before = copied(wide)
    with wide.near.begin_restore("s") as early:
        assert early.kind == "restore" and early.wait(WAIT) == [LINK]
        wide.write("w", MIB, MIB)  # of the volume
        wide.write("x-s", 3 * MIB, MIB)  # of a snapshot: it changes what is restored
        wide.link.wait_applied(wide.near.flush(), WAIT)
        assert copied(wide) == before and not wide.far.status()["consistent"]
        result = early.perform()
    assert (result.kind, result.lsn) == ("restore", wide.near.wait())
    assert [(member.kind, member.bytes_changed, member.created) for member in result.members] == [("restore", SIZE, {})] * 3
    for name in NAMES:
        assert wide.near.volume(name).digest(0, SIZE) == wide.near.store(f"{name}-s").digest(0, SIZE)
    equal(wide)
    assert mibs(wide, before) == 2
    (told,) = [one for one in wide.near.operations() if one["lsn"] == result.lsn]
    assert [one["kind"] for one in told["arguments"]["members"]] == ["restore"] * 3


def test_of_a_group_in_one_call(wide):
    """Nothing changes in between: nothing is copied. And of some volumes only."""
    before = copied(wide)
    made = wide.near.snapshot("t", early=True)
    some = wide.near.snapshot("u", volumes=[wide.near.volume("x"), "v"], early=True)
    restored = wide.near.restore("s", early=True)
    again = wide.near.restore("u", volumes=["x", "v"], early=True)
    assert [one.details for one in (made, some, restored, again)] == [{"early": 1}] * 4
    assert [one.name for one in some.snapshots] == ["x-u", "v-u"] and (len(restored.members), len(again.members)) == (3, 2)
    equal(wide)
    assert copied(wide) == before


def test_of_a_group_given_up(wide):
    """All of them: nothing hidden is left, and every volume is what it was."""
    before = {name: wide.near.volume(name).digest(0, SIZE) for name in NAMES}
    with wide.near.begin_snapshot("t") as snapshot, wide.near.begin_restore("s") as restore:
        assert restore.wait(WAIT) == [LINK]
    for early in (snapshot, restore):
        assert early.is_over
        early.cancel()
        with pytest.raises(Refused, match="given up"):
            early.perform()
    equal(wide)
    assert {name: wide.near.volume(name).digest(0, SIZE) for name in NAMES} == before
    wide.far.set_delay(3600)
    with pytest.raises(WaitTimeout, match=rf"{LINK}.*given up: nothing is performed here, what secondaries have done is taken back$"):
        wide.near.snapshot("t", early=True, timeout=0.2)
    with pytest.raises(WaitTimeout, match=rf"{LINK}.*given up: nothing is performed here.*by copying each volume, whole,"):
        wide.near.restore("s", early=True, timeout=0.2)
    wide.far.set_delay(0)
    equal(wide)
    assert {name: wide.near.volume(name).digest(0, SIZE) for name in NAMES} == before


def test_what_of_a_group_cannot_be(wide):
    """Nothing is begun then, and what cannot be performed performs nothing."""
    near, end = wide.near, wide.near.wait()
    near.volume("v").snapshot("w-t")
    near.volume("v").snapshot("v-only")
    end = near.wait()
    for error, words, call in (
        (Exists, "'w-t'", lambda: near.begin_snapshot("t")),
        (NotFound, "'w-only'", lambda: near.begin_restore("only")),
        (NotFound, "nothing", lambda: near.begin_snapshot("u", volumes=["v", "nothing"])),
        (UsageError, "twice", lambda: near.begin_snapshot("u", volumes=["v", "v"])),
        (UsageError, "twice", lambda: near.restore("s", volumes=["v", near.volume("v")], early=True)),
        (Refused, "no volume", lambda: near.begin_snapshot("u", volumes=[])),
        (Refused, "no volume", lambda: near.begin_restore("s", volumes=[])),
        (UsageError, "not compared", lambda: near.snapshot("u", early=True, verify=True)),
        (UsageError, "not compared", lambda: near.restore("s", early=True, verify=True)),
        (UsageError, "name", lambda: near.begin_restore("a/b")),
        (PyreplError, "role|primary", lambda: wide.far.begin_snapshot("u")),
    ):
        with pytest.raises(error, match=words):
            call()
    assert near.wait() == end, "no part of it was begun"
    with near.begin_snapshot("late") as early:
        near.volume("v").snapshot("x-late")
        with pytest.raises(Exists, match="x-late"):
            early.perform()
        assert not early.is_over and len(near.snapshots) == 6
        near.store("x-late").delete()
        assert len(early.perform().snapshots) == 3
    with near.begin_restore("s") as early:
        near.volume("w").resize(SIZE - MIB, force=True)
        with pytest.raises(UsageError, match="resized"):
            early.perform()
    near.volume("w").resize(SIZE)
    equal(wide)


def test_a_part_that_cannot_be_begun_takes_back_the_others(rig, monkeypatch):
    """A volume goes between the beginnings of two."""
    near, admit = rig.near, rig.near.site.admit

    def admits(operation, paths=None):
        done = admit(operation, paths)
        if isinstance(operation, operations.Early):
            monkeypatch.setattr(near.site, "admit", admit)
            admit(operations.remove_volume(near.site.end.catalog, "w", force=True))
        return done
    monkeypatch.setattr(near.site, "admit", admits)
    with pytest.raises(NotFound, match="'w'"):
        near.begin_snapshot("t")
    equal(rig)
    assert {store["name"] for store in near.status()["stores"]} == {"v", "s"}


KILLED = """
import os, signal, sys, pyrepl
with pyrepl.Node.open(sys.argv[1]) as node:
    group = node.group("db")
    group.link("far").wait_synced(60)
    snapshot, restore = group.begin_snapshot("t"), group.begin_restore("s")
    restore.wait(60)
    group.volume("w").write(1 << 20, b"new data" * (1 << 17))
    if sys.argv[2] == "performed":
        restore.perform(wait=False)
        snapshot.perform(wait=False)
    group.flush()
    os.write(1, b"done\\n")
    signal.pause()
"""


@pytest.mark.parametrize("when", ["begun", "performed"])
def test_a_primary_that_is_killed_between_the_halves(wide, python, when):
    """What was begun is given up by the start; what was performed is, of all volumes. What changed is not known any more:
    it is copied, and both sites are equal."""
    before = {name: wide.near.volume(name).digest(0, SIZE) for name in NAMES}
    wide.near_node.close()
    process = python(KILLED, str(wide.folder / "near"), when)
    assert process.stdout.readline() == "done\n"
    process.kill()
    process.wait()
    wide.near_node = pyrepl.Node.open(wide.folder / "near")
    wide.near = wide.near_node.group("db")
    wide.link = wide.near.link(LINK)
    equal(wide)
    after = {name: wide.near.volume(name).digest(0, SIZE) for name in NAMES}
    shown = {name: wide.near.store(f"{name}-s").digest(0, SIZE) for name in NAMES}
    if when == "performed":
        assert after == shown and {store.name for store in wide.near.snapshots} == {f"{n}-{s}" for n in NAMES for s in "st"}
    else:
        assert {**after, "w": 0} == {**before, "w": 0} and wide.near.volume("w").read(1 << 20, 8) == b"new data"


def test_who_was_away_performs_a_group_in_its_place(wide):
    wide.close_far()
    with wide.near.begin_restore("s") as restore, wide.near.begin_snapshot("t") as snapshot:
        wide.write("w", 0, MIB)
        assert restore.wait(WAIT) == []
        assert restore.perform().lsn + 1 == snapshot.perform().lsn
    wide.open_far()
    equal(wide)


def test_what_the_hidden_and_the_made_need_is_there_when_it_begins(rig):
    """Both are there for a moment: a group has room for the volumes and two times their snapshots, or nothing is begun."""
    third = MOST_STORES // 3
    for count, fits in ((third, True), (third + 1, False)):
        catalog = Catalog()
        for number in range(1, count + 1):
            catalog.add(Store(id=number, name=f"v{number}", kind="volume", size=SIZE, origin=0))
        if fits:
            assert len(plan_snapshots(rig.near, catalog, "t", None)) == count
        else:
            with pytest.raises(Refused, match=f"{count} early snapshots take {count} more"):
                plan_snapshots(rig.near, catalog, "t", None)
