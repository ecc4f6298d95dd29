"""``pyrepl link set``: what is chosen for a link is changed while it works."""

from __future__ import annotations

import pytest

from pyrepl.cli import output
from tests.support.clients import until

MIB = 1 << 20


def shown(berlin, group):
    return berlin.json(output.LinkList, "link", "list", group).links[0]


def test_set(berlin, pair):
    before = shown(berlin, pair)
    assert (before.mode, before.bandwidth, before.dead_seconds) == ("async", None, 5.0)
    said = berlin.ok("link", "set", f"{pair}/paris", "--mode", "sync", "--bandwidth", "10M", "--dead", "8s")
    assert said == f"link {pair}/paris: sync to {before.address}, at most 10 MiB/s, dead after 8 s of silence\n"
    after = shown(berlin, pair)
    assert (after.mode, after.bandwidth, after.dead_seconds, after.address) == ("sync", 10 * MIB, 8.0, before.address)
    assert "limited to 10 MiB/s" in berlin.ok("status", pair)
    berlin.ok("wait", pair, "synced", "--timeout", "30")
    assert "no limit" in berlin.ok("link", "set", f"{pair}/paris", "--bandwidth", "none")
    assert shown(berlin, pair).bandwidth is None and "limited" not in berlin.ok("status", pair)
    assert f"pyrepl_link_bandwidth_bytes{{group=\"{pair}\",link=\"paris\"}} 0.0" in berlin.ok("metrics")


def test_a_bounded_lag(berlin, pair):
    said = berlin.ok("link", "set", f"{pair}/paris", "--most-lag-bytes", "64M", "--most-lag-seconds", "30s")
    assert "at most 64 MiB or 30.0 s behind" in said
    after = shown(berlin, pair)
    assert (after.most_lag_bytes, after.most_lag_seconds, after.holds_writers) == (64 * MIB, 30.0, False)
    berlin.ok("wait", pair, "synced", "--timeout", "30")
    assert "at most 64 MiB or 30.0 s behind" in berlin.ok("status", pair) and not shown(berlin, pair).degraded
    berlin.ok("link", "pause", f"{pair}/paris")
    assert "its lag is not bounded now" in berlin.ok("status", pair)
    assert "not bounded in its lag" in berlin("status", pair, "--check").stdout
    berlin.ok("link", "resume", f"{pair}/paris")
    assert "behind" not in berlin.ok("link", "set", f"{pair}/paris", "--most-lag-bytes", "none", "--most-lag-seconds", "none")
    assert (shown(berlin, pair).most_lag_bytes, shown(berlin, pair).most_lag_seconds) == (None, None)


def test_a_limit_from_the_beginning(berlin, group):
    berlin.ok("link", "add", f"{group}/nowhere", "127.0.0.1:1", "--bandwidth", "64K")
    assert shown(berlin, group).bandwidth == 65536
    berlin.ok("link", "set", f"{group}/nowhere", "--address", "127.0.0.1:2")
    assert shown(berlin, group).address == "127.0.0.1:2"


@pytest.mark.parametrize(("options", "words"), [
    ([], "nothing to change"), (["--bandwidth", "5"], "from 1024"), (["--bandwidth", "fast"], "not a rate"),
    (["--most-lag-bytes", "5"], "from 1048576"), (["--most-lag-seconds", "0.01"], "from 0.1"), (["--most-lag-seconds", "soon"], "not a time"),
    (["--dead", "1"], "more than heartbeat"), (["--mode", "maybe"], "maybe"), (["--address", "nowhere"], "not an address")])
def test_what_cannot_be_set(berlin, pair, options, words):
    assert words in berlin.fails(2, "link", "set", f"{pair}/paris", *options)


def test_a_link_of_a_secondary(berlin, paris, pair):
    """It is told below the secondary's own line; here it is the wrong way round, and says so."""
    paris.ok("link", "add", f"{pair}/back", berlin.address)
    until(lambda: "a secondary feeds no primary" in paris.ok("status", pair), "it is refused", 20.0)
    first, second, *_ = paris.ok("status", pair).splitlines()
    assert first.startswith(f"{pair}  secondary  consistent") and second.strip().startswith("→ back  refused")
    assert [link.state for link in paris.json(output.LinkList, "link", "list", pair).links] == ["refused"]
    paris.ok("link", "remove", f"{pair}/back")
    assert "→" not in paris.ok("status", pair)


def test_a_delayed_secondary(berlin, paris, pair):
    berlin.ok("wait", pair, "applied", "--link", "paris", "--timeout", "60")
    said = paris.ok("group", "set", pair, "--delay", "2h")
    assert said == f"group {pair}: while it is a secondary this site performs what arrives 2 h 0 min after it was written\n", said
    before = paris.json(output.GroupShow, "group", "show", pair).group
    berlin.ok("snapshot", "create", f"{pair}/data", "late")
    berlin.ok("wait", pair, "synced", "--timeout", "30")
    after = paris.json(output.GroupShow, "group", "show", pair).group
    assert after.delay.seconds == 7200.0 and after.delay.waiting_bytes > 0 and after.delay.shortened is None
    assert after.lsn.applied == before.lsn.applied < after.lsn.durable and [store.name for store in after.stores] == ["data"]
    assert "delayed by 2 h 0 min, " in paris.ok("status", pair)
    assert paris.ok("group", "set", pair, "--delay", "none").endswith("performs what arrives at once\n")
    berlin.ok("wait", pair, "applied", "--link", "paris", "--timeout", "60")
    assert [store.name for store in paris.json(output.GroupShow, "group", "show", pair).group.stores] == ["data", "late"]
    assert "delayed" not in paris.ok("status", pair)
    assert "not a time" in paris.fails(2, "group", "set", pair, "--delay", "soon")
    assert "cannot be" in paris.fails(2, "group", "set", pair, "--delay", "1000000h")


def test_no_such_link(berlin, group):
    assert "no link" in berlin.fails(3, "link", "set", f"{group}/rome", "--bandwidth", "1M")


def test_a_wrong_volume_of_a_fresh_secondary_is_taken_back(berlin, paris, group):
    disk = f"{paris.folder}/{group}.disk"
    with open(disk, "wb") as made:
        made.truncate(2 * MIB)
    paris.ok("group", "create", group, "--journal", f"{paris.folder}/{group}.journal", "--journal-size", "16M", "--role", "secondary")
    paris.ok("volume", "add", f"{group}/data", "--device", disk)
    berlin.ok("link", "add", f"{group}/paris", paris.address)
    assert "pyrepl volume remove" in berlin.fails(5, "wait", group, "synced", "--timeout", "60")
    assert paris.ok("volume", "remove", f"{group}/data") == f"volume {group}/data: taken back\n"
    paris.fails(3, "volume", "remove", f"{group}/data")
    made = paris.json(output.Prepared, "volume", "add", f"{group}/data", "--size", "8M")
    gone = paris.json(output.Prepared, "volume", "remove", f"{group}/data")
    assert (made.volume, made.size, made.state, gone.size, gone.state) == ("data", 8 * MIB, "prepared", 8 * MIB, "taken-back")
    paris.ok("volume", "add", f"{group}/data", "--size", "4M")
    berlin.ok("wait", group, "synced", "--timeout", "60")
    why = paris.fails(5, "volume", "remove", f"{group}/data")
    assert "its primary's" in why and "delete the group here" in why
