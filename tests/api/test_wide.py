"""Group-wide forms through the public API: every volume at one point, or none; at the secondary by one command."""

from __future__ import annotations

import pytest

from pyrepl import operations
from pyrepl.errors import Exists, NotFound, Refused, UsageError
from pyrepl.operations.sets import Set
from tests.support.rig import COMMAND, LINK, WAIT, Rig

REGION = 64 * 1024
SIZE = 8 * REGION
NAMES = ("data", "logs", "data-logs")


@pytest.fixture(params=["relaxed", "strict"])
def ordered(request, nodes, tmp_path):
    """A group that takes sets, and one that refuses them: the volumes as of "monday" all 'a', now all 'b'."""
    group = nodes("wide").create_group("db", tmp_path / "wide.journal", journal_size=16 << 20, ordering=request.param)
    for name in NAMES:
        group.add_volume(name, size=SIZE).write(0, b"a" * SIZE)
    group.snapshot("monday")
    for name in NAMES:
        group.volume(name).write(0, b"b" * SIZE)
    return group


def shown(group, names=NAMES):
    return {name: group.store(name).read(0, SIZE)[:1] * (len(set(group.store(name).read(0, SIZE))) == 1) for name in names}


def test_restore(ordered):
    before = ordered.wait()
    result = ordered.restore("monday", verify=False)
    assert (result.kind, result.lsn, result.state, result.created) == ("restore", before + 1, "performed", {})
    assert [(one.kind, one.bytes_changed) for one in result.members] == [("restore", SIZE)] * 3 and ordered.wait() == result.lsn
    assert shown(ordered) == dict.fromkeys(NAMES, b"a") and result.bytes_changed == 3 * SIZE
    ordered.volume("logs").write(0, b"c" * SIZE)
    assert len(ordered.restore("monday", volumes=["logs"], wait=False).wait().members) == 1
    assert shown(ordered) == dict.fromkeys(NAMES, b"a")
    (told,) = [one for one in ordered.operations() if one["lsn"] == result.lsn]
    assert told["kind"] == "restore" and [one["kind"] for one in told["arguments"]["members"]] == ["restore"] * 3
    assert ordered.operation_counts()["restore", "performed"] == 2


def test_refresh_clone_and_delete(ordered):
    parts = [f"{name}-monday" for name in NAMES]
    made = ordered.clone("test", snapshot="monday")
    assert made.kind == "clone" and sorted(made.created) == sorted(f"{name}-test" for name in NAMES)
    assert set(shown(ordered, made.created).values()) == {b"a"}
    now = ordered.clone("now", volumes=[ordered.volume("data"), "logs"])
    assert shown(ordered, now.created) == {"data-now": b"b", "logs-now": b"b"}
    chosen = list(NAMES)
    assert ordered.refresh("monday", volumes=chosen).kind == "refresh" and set(shown(ordered, parts).values()) == {b"b"}
    assert ordered.delete_snapshots("monday", volumes=chosen).kind == "delete" and ordered.snapshots == []
    assert len(ordered.volumes) == 8


def test_all_or_nothing(ordered):
    ordered.add_volume("late", size=SIZE)
    ordered.volume("data").snapshot("late-odd")
    ordered.volume("data").clone("logs-copy")
    before, seen = ordered.wait(), shown(ordered)
    chosen = list(NAMES)
    for error, words, call in (
        (NotFound, "'late' has no snapshot 'late-monday': nothing was changed", lambda: ordered.restore("monday")),
        (NotFound, "'late' has no snapshot 'late-monday'", lambda: ordered.delete_snapshots("monday")),
        (NotFound, "'late-odd' .the snapshot of that name", lambda: ordered.refresh("odd", volumes=["late"])),
        (NotFound, "'logs-copy' .the volume of that name", lambda: ordered.restore("copy", volumes=["logs"])),
        (NotFound, "nothing", lambda: ordered.restore("monday", volumes=[*chosen, "nothing"])),
        (Refused, "is of its volumes", lambda: ordered.restore("monday", volumes=[*chosen, "data-monday"])),
        (Refused, "there is no volume", lambda: ordered.clone("x", volumes=[])),
        (UsageError, "given twice", lambda: ordered.restore("monday", volumes=["data", ordered.volume("data")])),
        (UsageError, "not a name|name", lambda: ordered.restore("a/b")),
        (Exists, "logs-copy", lambda: ordered.clone("copy")),
    ):
        with pytest.raises(error, match=words):
            call()
    ordered.volume("logs").resize(SIZE + REGION)
    with pytest.raises(UsageError, match="long"):
        ordered.restore("monday", volumes=chosen)
    assert ordered.wait() == before + 1 and shown(ordered) != {} and seen["data"] == b"b"


def test_what_is_forged_is_refused(ordered):
    catalog = ordered.site.end.catalog
    good = operations.restore_all(catalog, "monday", None, region_size=REGION)
    assert operations.decode(operations.encode(good)) == good and not operations.is_unordered(good)
    good.check(catalog)
    snapshot = operations.snapshot(catalog, ["data"], ["x"])
    for members, verb in (([*good.members, snapshot], "restore"), (good.members, "delete"), ([snapshot], "snapshot")):
        with pytest.raises(UsageError, match="of a group"):
            Set(members, verb).check(catalog)
    assert operations.is_unordered(Set(good.members)) and b"verb" in operations.encode(good)
    assert operations.encode(Set([snapshot])).count(b"verb") == 0


def test_at_the_secondary_it_is_one_command(tmp_path):
    with Rig(tmp_path / "rig", {"v": SIZE, "w": SIZE}, seed=3, journal=32 << 20, ordering="strict") as rig:
        for _ in range(2):
            for name in "vw":
                rig.near.volume(name).write(0, rig.rng.randbytes(SIZE))
            if not rig.near.snapshots:
                rig.near.snapshot("s")
        rig.near.wait(where=LINK, timeout=WAIT)
        with rig.near.explain() as ops:
            ops.restore_all("s")
        (link,) = ops.result["links"]
        assert (ops.result["kind"], ops.result["bytes_changed"], link["performed_as"], link["bytes_added"]) == (
            "restore", 2 * SIZE, "command", 0)
        sent = rig.link.status()["bytes_sent"]
        result = rig.near.restore("s", verify=True)
        assert result.bytes_changed == 2 * SIZE and result.bytes_avoided == 2 * SIZE
        assert result.verification["links"][LINK]["state"] == "equal"
        rig.near.clone("t", snapshot="s").wait(LINK, WAIT)
        now = rig.link.status()["bytes_sent"]
        assert now["copied"] == sent["copied"] and now["operations"] - sent["operations"] < 2 * COMMAND
        for store in (*rig.near.volumes, *rig.near.snapshots):
            assert store.read(0, SIZE) == rig.far.store(store.name).read(0, SIZE)
        rig.link.pause()
        rig.near.refresh("s", volumes=["v", "w"])
        rig.near.delete_snapshots("s", volumes=["w", "v"])
        rig.link.resume()
        rig.link.wait_synced(WAIT)
        rig.near.wait(where=LINK, timeout=WAIT)
        assert [one.name for one in rig.far.volumes] == ["v", "w", "v-t", "w-t"] and rig.far.snapshots == []
        for fill in (lambda o: o.refresh_all("t"), lambda o: o.delete_all("t")):
            with pytest.raises(NotFound), rig.near.explain() as ops:
                fill(ops)
        with rig.near.explain() as ops:
            ops.clone_all("u")
        assert ops.result["kind"] == "clone"
        with pytest.raises(UsageError, match="cannot be a member"), rig.near.explain() as ops:
            ops.clone_all("u")
            ops.clone_all("x")
