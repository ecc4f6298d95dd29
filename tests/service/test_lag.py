"""How far behind a secondary is in seconds: by the time that the oldest event carries which it lacks."""

from __future__ import annotations

import time

import pyrepl

from .conftest import MIB


def test_lag_of_a_paused_link(nodes, tmp_path) -> None:
    far = nodes("far")
    far.create_group("db", tmp_path / "f", journal_size=16 * MIB, role="secondary").add_volume("data", size=4 * MIB)
    near = nodes("near")
    group = near.create_group("db", tmp_path / "n", journal_size=16 * MIB)
    data = group.add_volume("data", size=4 * MIB)
    link = group.add_link("paris", "{}:{}".format(*far.listen("127.0.0.1")))
    link.wait_synced(60)
    assert link.status()["lag_seconds"] == 0
    link.pause()
    begin = time.time()
    data.write(0, b"x")
    written = time.time()
    for _ in range(2):  # what came after it makes it no younger, and neither does asking
        data.write(0, b"y")
        asked = time.time()
        lag, answered = link.status()["lag_seconds"], time.time()
        assert asked - written <= lag <= answered - begin
    near.close()  # a restart knows it too
    with pyrepl.Node.open(tmp_path / "near") as again:
        group, data = again.group("db"), again.group("db").volume("data")
        group.promote(alone=True)  # the link is paused: its peer cannot be asked
        link = group.link("paris")
        asked = time.time()
        lag, answered = link.status()["lag_seconds"], time.time()
        assert asked - written <= lag <= answered - begin
        for _ in range(12):  # until the journal has dropped it: it is in the backlog, with its time
            data.write(0, bytes(range(256)) * (4 * MIB // 256))
        group.wait()
        group.site.checkpoint()
        assert link.status()["backlog_bytes"]
        asked = time.time()
        lag, answered = link.status()["lag_seconds"], time.time()
        assert asked - written <= lag <= answered - begin
        link.resume()
        link.wait_synced(60)
        assert link.status()["lag_seconds"] == 0
