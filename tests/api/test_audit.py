"""What is told of operations: arguments, times, cost, and what came of them at each site; over restarts from the journal."""

from __future__ import annotations

import time

import pyrepl

MIB = 1 << 20
SIZE = 4 * MIB


def test_one_of_each_at_both_sites_and_after_a_restart(nodes, tmp_path):
    far_node = nodes("far")
    far = far_node.create_group("db", tmp_path / "f", journal_size=32 * MIB, role="secondary")
    far.add_volume("data", size=SIZE)
    node = nodes("near")
    group = node.create_group("db", tmp_path / "n", journal_size=32 * MIB)
    data = group.add_volume("data", size=SIZE)
    link = group.add_link("paris", "{}:{}".format(*far_node.listen("127.0.0.1")))
    link.wait_synced(30)
    data.write(0, b"x" * SIZE)
    begin = time.time()
    wanted = {}
    for kind, arguments, result in (
        ("snapshot", {"of": {"monday": "data"}}, data.snapshot("monday")),
        ("restore", {"target": "data", "source": "monday", "first": 0, "count": 16},
         data.restore("monday", extent=(0, MIB))),
        ("clone", {"name": "twin", "of": "data"}, data.clone("twin")),
        ("resize", {"id": "twin", "size": 2 * SIZE, "was": SIZE}, group.volume("twin").resize(2 * SIZE)),
        ("mark", {"name": "here", "payload": "00ff"}, group.mark("here", b"\x00\xff")),
        ("rewind", {"name": "back", "of": "data", "to_lsn": 2, "size": SIZE}, data.rewind(2, "back")),
        ("delete", {"name": "twin"}, group.volume("twin").remove()),
    ):
        lsn = next(one["lsn"] for one in group.operations() if one["kind"] == kind)
        wanted[lsn] = (kind, arguments)
        if kind not in ("rewind",):
            assert result.lsn == lsn
    last = group.wait()
    link.wait_applied(last, 30)
    listed = {one["lsn"]: one for one in group.operations()}
    there = {one["lsn"]: one for one in far.operations()}
    for lsn, (kind, arguments) in wanted.items():
        for one in (listed[lsn], there[lsn]):
            assert (one["kind"], one["arguments"]) == (kind, arguments)
            assert begin <= one["time"] <= time.time() and 0 <= one["seconds"] <= time.time() - begin
        assert listed[lsn]["time"] == there[lsn]["time"] and listed[lsn]["bytes_changed"] == there[lsn]["bytes_changed"]
        assert listed[lsn]["secondaries"] == {"paris": "performed"} and there[lsn]["secondaries"] == {}
        assert listed[lsn]["bytes_avoided"] == listed[lsn]["bytes_changed"] and there[lsn]["bytes_avoided"] == 0
    assert group.status()["bytes_avoided"] == sum(one["bytes_avoided"] for one in group.operations()) > 0
    assert far.status()["bytes_avoided"] == 0
    link.pause()
    alone = group.mark("alone").lsn
    assert group.operations()[-1]["lsn"] == alone and group.operations()[-1]["secondaries"] == {"paris": "pending"}
    node.close()
    with pyrepl.Node.open(tmp_path / "near") as again:
        group = again.group("db")
        assert [one for one in group.operations() if one["lsn"] <= last] == []
        group.promote(alone=True)  # the link is paused: its peer cannot be asked
        group.mark("after")
        told = group.operations(earlier=True)
        assert [one["lsn"] for one in told] == sorted(one["lsn"] for one in told)
        found = {one["lsn"]: one for one in told}
        for lsn, (kind, arguments) in wanted.items():
            assert (found[lsn]["kind"], found[lsn]["time"]) == (kind, listed[lsn]["time"])
            assert found[lsn]["arguments"] == arguments
            assert found[lsn]["bytes_changed"] is found[lsn]["seconds"] is None
        assert found[alone]["kind"] == "mark" and told[-1]["arguments"]["name"] == "after"
