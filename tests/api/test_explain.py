"""An operation is explained, then made: what was said of each link is what the proxy counts. Nothing is changed by asking."""

from __future__ import annotations

import pytest

import pyrepl
from pyrepl import waiting
from pyrepl.errors import Exists, NotFound, Refused, UsageError, WaitTimeout
from tests.support.rig import LINK, MIB, REGION, WAIT, Rig

SIZE = 8 * MIB


@pytest.fixture
def rig(tmp_path):
    with Rig(tmp_path / "rig", {"v": SIZE, "w": SIZE}, seed=11, journal=16 * MIB) as made:
        made.fill("v", 0, SIZE)
        made.snapshot("v", "s")
        made.drain()
        yield made


def on(told, name=LINK):
    return next(link for link in told["links"] if link["name"] == name)


def explain(group, tell):
    before = group.status()["lsn"]["end"], group.operations()
    with group.explain() as ops:
        tell(ops)
    assert (group.status()["lsn"]["end"], group.operations()) == before, "asking changes something"
    return ops.result


LOST = 7 * MIB


def overflow(rig, store="v"):
    """Writes while the link is away, more than the journal holds. What of it is still there when the last is written depends
    on when checkpoints were taken; so one that has to give everything up is taken at the end."""
    rig.fill(store, 0, 3 * MIB)
    for _ in range(5):
        rig.fill(store, 4 * MIB, 4 * MIB)
    rig.near.wait()
    site = rig.near.site

    def fold():
        with site.guard:
            for link in site.links.values():
                link.fold(site.window.state().applied_position)

    site.exclusive(fold)
    site.checkpoint()


CASES = {
    "restore": (lambda ops: ops.restore("v", "s"), lambda group: group.volume("v").restore("s")),
    "a part": (lambda ops: ops.restore("v", "s", extent=(4 * REGION, MIB)),
               lambda group: group.volume("v").restore("s", extent=(4 * REGION, MIB))),
    "refresh": (lambda ops: ops.refresh("s"), lambda group: group.store("s").refresh()),
    "synchronize": (lambda ops: ops.synchronize("w", "v"), lambda group: group.volume("w").synchronize("v")),
    "copy a range": (lambda ops: ops.copy_range("v", "w", 0, MIB), lambda group: group.copy_range("v", 0, "w", 0, MIB)),
    "snapshot": (lambda ops: ops.snapshot("v", "t"), lambda group: group.volume("v").snapshot("t")),
    "clone": (lambda ops: ops.clone("s", "c"), lambda group: group.store("s").clone("c")),
    "resize": (lambda ops: ops.resize("w", 2 * SIZE), lambda group: group.volume("w").resize(2 * SIZE)),
    "shrink": (lambda ops: ops.resize("v", MIB, force=True), lambda group: group.volume("v").resize(MIB, force=True)),
    "remove": (lambda ops: ops.remove("v", force=True), lambda group: group.volume("v").remove(force=True)),
    "delete": (lambda ops: ops.delete("s"), lambda group: group.store("s").delete()),
    "mark": (lambda ops: ops.mark("m", b"payload"), lambda group: group.mark("m", b"payload")),
    "all": (lambda ops: ops.snapshot_all("all"), lambda group: group.snapshot("all")),
    "some": (lambda ops: ops.snapshot_all("some", volumes=["v"]), lambda group: group.snapshot("some", volumes=["v"])),
    "add": (lambda ops: ops.add_volume("n", size=MIB), lambda group: group.add_volume("n", size=MIB)),
}
AFTER = {"restore": 0, "a part": LOST - MIB, "refresh": 2 * LOST, "synchronize": 2 * LOST, "copy a range": LOST + MIB,
         "snapshot": 2 * LOST, "shrink": MIB, "remove": 0, "all": 2 * LOST, "some": 2 * LOST}
"""Bytes that differ then, of the 7 MiB of v that do without the operation; of those that are not named: as many."""


@pytest.mark.parametrize("state", ["streaming", "paused", "overflowed"])
@pytest.mark.parametrize("case", CASES)
def test_what_is_said_is_what_happens(rig, case, state):
    tell, make = CASES[case]
    if state != "streaming":
        rig.link.pause()
        overflow(rig) if state == "overflowed" else rig.fill("v", 0, MIB)
    told = explain(rig.near, tell)
    link = on(told)
    assert link["performed_as"] == "command" and link["state"] == ("streaming" if state == "streaming" else "paused")
    assert link["divergent_bytes_after"] == link["divergent_bytes"] + link["bytes_added"] - link["bytes_removed"]
    assert link["bytes_avoided"] == told["bytes_changed"] and (link["lag_bytes"] > 0) == (state != "streaming")
    lost = LOST if state == "overflowed" else 0
    after = AFTER.get(case, LOST) if lost else 0
    assert (link["divergent_bytes"], link["divergent_bytes_after"]) == (lost, after)
    with rig.measured() as wire:
        made = make(rig.near)
        assert made.bytes_changed == told["bytes_changed"]
        rig.link.resume()
    assert wire.counts.operations == link["command_bytes"]
    assert after <= wire.counts.copied <= after + after // 50 + 400
    assert {store.name: store.read(0, store.size) for store in [*rig.far.volumes, *rig.far.snapshots]} == {
        store.name: store.read(0, store.size) for store in [*rig.near.volumes, *rig.near.snapshots]}


def test_a_restore_takes_away_what_was_not_sent(rig):
    """What was overwritten and is no longer in the journal is never sent after the restore, neither as event nor as copy."""
    rig.link.pause()
    overflow(rig)
    link = on(explain(rig.near, CASES["restore"][0]))
    assert link["bytes_removed"] == link["divergent_bytes"] == LOST and link["divergent_bytes_after"] == 0
    with rig.measured() as wire:
        rig.restore("v", "s")
        rig.link.resume()
    assert wire.counts.copied == 0 and wire.counts.operations == link["command_bytes"]
    rig.check_both()


def test_several_links_in_several_states(rig, tmp_path):
    """One streams, one is paused with an overflow behind it, one was never there."""
    with pyrepl.Node.open(tmp_path / "third", create=True, name="third") as third:
        group = third.create_group("db", tmp_path / "third-journal", journal_size=16 * MIB, role="secondary")
        for name in ("v", "w"):
            group.add_volume(name, size=SIZE)
        rig.near.snapshot("x", volumes=["w"])  # makes the new link's beginning another than the group's
        rome = rig.near.add_link("rome", "{}:{}".format(*third.listen("127.0.0.1")))
        rome.wait_synced(WAIT)
        rome.pause()
        rig.near.add_link("void", "127.0.0.1:1")
        overflow(rig)
        rig.link.wait_synced(WAIT)
        told = explain(rig.near, lambda ops: ops.restore("v", "s"))
        far, away, void = on(told), on(told, "rome"), on(told, "void")
        assert (far["divergent_bytes"], far["bytes_added"], far["bytes_removed"], far["lag_bytes"]) == (0, 0, 0, 0)
        assert away["bytes_removed"] == away["divergent_bytes"] > 0 and away["state"] == "paused" and away["consistent"]
        # Nobody is there: all four stores differ, s too, and so does v after the restore.
        assert void["divergent_bytes"] == void["divergent_bytes_after"] == 4 * SIZE and not void["consistent"]
        assert void["performed_as"] == "command" and on(explain(rig.near, CASES["snapshot"][0]), "void")["performed_as"] == "data"
        assert far["command_bytes"] == away["command_bytes"] == void["command_bytes"]
        before = rome.status()["bytes_sent"]
        rig.near.volume("v").restore("s")
        rome.resume()
        rome.wait_synced(WAIT)
        after = rome.status()["bytes_sent"]
        assert after["copied"] == before["copied"], "what rome lacked was overwritten again by the restore"
        for name in ("v", "w", "s"):
            assert group.store(name).read(0, SIZE) == rig.near.store(name).read(0, SIZE)


def test_while_it_resyncs(rig):
    """The limit holds the copying up: what is said then is the most that is copied after the restore."""
    rig.link.pause()
    overflow(rig, "w")
    rig.link.set(bandwidth=64 * 1024)
    rig.link.resume()
    while rig.link.status()["state"] != "resyncing":
        pass
    told = on(explain(rig.near, lambda ops: ops.synchronize("w", "s")))
    assert told["state"] == "resyncing" and told["bytes_removed"] == told["divergent_bytes"] > 0
    copied = rig.link.status()["bytes_sent"]["copied"]
    rig.synchronize("w", "s")
    rig.link.set(bandwidth=0)
    rig.check_both()
    sent = rig.link.status()["bytes_sent"]["copied"] - copied
    assert sent <= 16 * MIB  # what was under way already; the rest was taken away


def test_of_a_set_and_a_device(rig):
    told = explain(rig.near, lambda ops: (ops.restore("v", "s"), ops.snapshot("w", "x")))
    with rig.measured() as wire, rig.near.unordered() as ops:
        ops.restore("v", "s")
        ops.snapshot("w", "x")
    assert told["kind"] == "set" and wire.counts.operations == on(told)["command_bytes"]
    assert ops.result.bytes_changed == told["bytes_changed"]
    told = explain(rig.near, lambda ops: ops.add_volume("n2", size=MIB, zero=False))
    assert on(told)["bytes_added"] == MIB


@pytest.mark.parametrize("what", ["snapshot", "restore", "restore that differs"])
def test_of_an_early_operation(rig, what):
    """Two commands, and what differs at the source; what changes between the two is not foreseen, for nothing does."""
    rig.fill("v", 0, 2 * MIB)
    rig.drain()
    if what == "restore that differs":  # the snapshot does, of which nothing was sent
        rig.link.pause()
        rig.near.store("s").write(0, rig.rng.randbytes(MIB))
        overflow(rig, "w")
    if what == "snapshot":
        told = explain(rig.near, lambda ops: ops.early_snapshot("v", "t"))
    else:
        told = explain(rig.near, lambda ops: ops.early_restore(rig.near.volume("v"), "s"))
    link = on(told)
    assert told["kind"] == what.split()[0] and link["performed_as"] == "command" and link["unsettles"]
    assert link["bytes_avoided"] == told["bytes_changed"] > 0
    if what == "restore that differs":
        assert link["bytes_added"] == MIB and link["divergent_bytes_after"] == link["divergent_bytes"] + MIB
        assert on(explain(rig.near, lambda ops: ops.restore("v", "s")))["bytes_added"] == MIB, "as of one that is not early"
        rig.near.volume("v").restore("s", early=True)
        assert rig.link.status()["state"] == "paused"
        rig.link.resume()
        rig.link.wait_synced(WAIT)
    else:
        assert link["bytes_added"] == link["bytes_removed"] == link["divergent_bytes_after"] == 0
        with rig.measured() as wire:
            if what == "snapshot":
                made = rig.near.volume("v").snapshot("t", early=True).result
            else:
                made = rig.near.volume("v").restore("s", early=True)
            rig.link.wait_synced(WAIT)
            rig.near.wait(where=LINK, timeout=WAIT)
        assert wire.counts.operations == link["command_bytes"] and made.bytes_changed == told["bytes_changed"]
    plain = on(explain(rig.near, lambda ops: ops.snapshot("v", "u")))
    assert not plain["unsettles"] and plain["command_bytes"] < link["command_bytes"]
    for name in ("v", "s"):
        near, far = rig.near.store(name), rig.far.store(name)
        assert near.read(0, SIZE) == far.read(0, SIZE)


@pytest.mark.parametrize("what", ["snapshot", "restore"])
def test_of_an_early_operation_of_a_group(rig, what):
    """A command for each volume, and one: as many bytes as travel when it is made."""
    rig.near.snapshot("all")
    rig.fill("v", 0, 2 * MIB)
    rig.drain()
    if what == "snapshot":
        told = explain(rig.near, lambda ops: ops.snapshot_all("t", early=True))
    else:
        told = explain(rig.near, lambda ops: ops.restore_all("all", volumes=["w", rig.near.volume("v")], early=True))
    link = on(told)
    assert told["kind"] == what and link["performed_as"] == "command" and link["unsettles"]
    assert link["bytes_added"] == link["bytes_removed"] == link["divergent_bytes_after"] == 0
    with rig.measured() as wire:
        if what == "snapshot":
            made = rig.near.snapshot("t", early=True)
        else:
            made = rig.near.restore("all", volumes=["w", "v"], early=True)
        rig.link.wait_synced(WAIT)
        rig.near.wait(where=LINK, timeout=WAIT)
    assert wire.counts.operations == link["command_bytes"] and made.bytes_changed == told["bytes_changed"] > 0
    with pytest.raises(UsageError, match="no member of a set"):
        explain(rig.near, lambda ops: (ops.snapshot_all("u", early=True), ops.snapshot("v", "x")))


def test_what_of_early_operations_cannot_be_explained(rig, tmp_path):
    path = tmp_path / "golden"
    path.write_bytes(bytes(SIZE))
    rig.near.add_image("golden", path)
    for tell, kind, words in (
        (lambda ops: ops.early_restore("v", "golden"), UsageError, "each site has its own"),
        (lambda ops: ops.early_restore("v", rig.near.image("golden")), UsageError, "each site has its own"),
        (lambda ops: ops.early_restore("v", "w"), Refused, "from a snapshot"),
        (lambda ops: ops.early_restore("s", "s"), UsageError, "the same store"),
        (lambda ops: ops.early_snapshot("v", "s"), Exists, "'s'"),
        (lambda ops: ops.early_snapshot("none", "t"), NotFound, "none"),
        (lambda ops: (ops.early_snapshot("v", "t"), ops.snapshot("w", "u")), UsageError, "no member of a set"),
        (lambda ops: (ops.early_snapshot("v", "t"), ops.early_snapshot("w", "u")), UsageError, "no member of a set"),
    ):
        with pytest.raises(kind, match=words), rig.near.explain() as ops:
            tell(ops)


def test_what_cannot_be_explained(rig, tmp_path):
    group = rig.near
    for tell, kind in (
            (lambda ops: ops.restore("v", "nothing"), NotFound), (lambda ops: ops.restore("v", "w"), Refused),
            (lambda ops: ops.resize("v", 5), UsageError), (lambda ops: None, UsageError),
            (lambda ops: (ops.snapshot("v", "x"), ops.mark("m")), UsageError),
            (lambda ops: (ops.restore("v", "s"), ops.snapshot("v", "x")), UsageError)):
        with pytest.raises(kind), group.explain() as ops:
            tell(ops)
        with pytest.raises(UsageError, match="ended"):
            ops.result
        with pytest.raises(UsageError, match="ended"):
            ops.mark("late")
    with pytest.raises(UsageError, match="timeout"):
        group.explain(timeout=-1)
    with pytest.raises(Refused) as caught:
        rig.far.explain()
    assert caught.value.reason == "role"
    with pytest.raises(ZeroDivisionError), group.explain() as ops:
        raise ZeroDivisionError
    strict = rig.near_node.create_group("strict", tmp_path / "strict", journal_size=16 * MIB, ordering="strict")
    strict.add_volume("a", size=MIB)
    strict.add_volume("b", size=MIB)
    with pytest.raises(Refused, match="strict"), strict.explain() as ops:
        ops.snapshot("a", "x")
        ops.snapshot("b", "y")
    assert explain(strict, lambda ops: ops.snapshot("a", "x"))["links"] == []


def test_the_end_is_waited_for_as_long_as_is_wanted(rig, monkeypatch):
    rig.near.check()
    monkeypatch.setattr(waiting, "_wait_applied", lambda *_: False)
    with pytest.raises(WaitTimeout), rig.near.explain(timeout=0.01) as ops:
        ops.mark("m")


def test_what_a_secondary_may_refuse_is_said_with_what_it_costs_then(rig, tmp_path):
    """Of an image that it lacks: what is said is what the proxy counts, of a part, of a clone, and of a set."""
    (tmp_path / "image").write_bytes(rig.rng.randbytes(SIZE))
    golden = rig.near.add_image("golden", tmp_path / "image")

    def both(ops):
        ops.restore("w", golden, extent=(0, 2 * MIB))
        ops.refresh("s")

    cases = [
        (lambda ops: ops.restore("v", golden, extent=(4 * REGION, MIB)),
         lambda: rig.near.volume("v").restore(golden, extent=(4 * REGION, MIB)), MIB),
        (lambda ops: ops.clone(golden, "twin"), lambda: golden.clone("twin"), SIZE),
        (both, None, 2 * MIB),
    ]
    last = None
    for tell, make, cost in cases:
        link = on(explain(rig.near, tell))
        assert link["bytes_if_refused"] == cost and link["bytes_added"] == 0 and link["last_refused"] == last
        with rig.measured() as wire:
            if make is not None:
                make()
            else:
                with rig.near.unordered() as ops:
                    both(ops)
        assert cost <= wire.counts.copied <= cost + cost // 50 + 400
        last = rig.link.status()["refused"][-1]
    link = on(explain(rig.near, lambda ops: ops.refresh("s")))
    assert link["bytes_if_refused"] is None and link["last_refused"] is None
