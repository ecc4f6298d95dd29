"""Roles from the command line: sites swap, take over, and refuse what would part histories."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import pyrepl
from pyrepl import errors
from pyrepl.cli import output
from tests.cli.conftest import COMMAND, environment
from tests.support.clients import until

REFUSED = errors.Refused.exit_status


def role(daemon, group):
    return daemon.json(output.GroupShow, "group", "show", group).group.role


def test_sites_swap(berlin, paris, pair):
    berlin.ok("volume", "write", f"{pair}/data", input=b"from berlin")
    down = berlin.json(output.RoleChange, "demote", pair)
    assert (down.group, down.role) == (pair, "secondary") and role(berlin, pair) == "secondary"
    assert berlin("volume", "write", f"{pair}/data", input=b"x").returncode == REFUSED
    assert "its primary has stepped down, at LSN" in paris.ok("status", pair).splitlines()[0]
    up = paris.json(output.RoleChange, "promote", pair)
    assert up.role == "primary" and up.lsn >= down.lsn and role(paris, pair) == "primary"
    assert paris("volume", "read", f"{pair}/data", "--length", "11").stdout == "from berlin"
    paris.ok("volume", "write", f"{pair}/data", input=b"from paris!")
    paris.ok("link", "add", f"{pair}/berlin", berlin.address, "--wait", "--timeout", "60")
    assert berlin("volume", "read", f"{pair}/data", "--length", "11").stdout == "from paris!"


def test_a_second_primary_beside_one_that_is_connected_wants_force(berlin, paris, pair):
    told = paris.fails(errors.UsageError.exit_status, "promote", pair, "--alone")
    assert "its primary is connected, leads, and feeds this site" in told and "split brain" in told and "with force" in told
    assert "its primary has not stepped down" in paris.fails(errors.Refused.exit_status, "promote", pair, "--force")
    assert (role(berlin, pair), role(paris, pair)) == ("primary", "secondary")
    berlin.ok("volume", "write", f"{pair}/data", input=b"from berlin")
    berlin.ok("wait", pair, "synced", "--timeout", "60")
    berlin.ok("link", "pause", f"{pair}/paris")
    until(lambda: "no primary is connected" in paris("status", pair, "--check").stdout, "paris hears of it")
    paris.ok("promote", pair, "--alone")  # it asks nobody who cannot be asked, as before
    assert role(paris, pair) == "primary"


def test_a_migration_and_back(berlin, paris, pair):
    berlin.ok("volume", "write", f"{pair}/data", input=b"from berlin")
    done = berlin.json(output.RoleChange, "migrate", pair, "--to", "paris")
    assert (done.group, done.role, done.leader) == (pair, "secondary", "paris") and (role(berlin, pair), role(paris, pair)) == ("secondary", "primary")
    paris.ok("volume", "write", f"{pair}/data", input=b"from paris!")
    paris.ok("wait", pair, "synced", "--timeout", "60")
    assert berlin("volume", "read", f"{pair}/data", "--length", "11").stdout == "from paris!"
    (link,) = paris.json(output.LinkList, "link", "list", pair).links
    assert (link.name, link.bytes_sent.copied) == (berlin.name, 0)
    told = paris.ok("migrate", pair, "--to", berlin.name, "--back", paris.address)
    assert told.startswith(f"{pair}: secondary from LSN") and f"the site of link {berlin.name} leads now" in told
    assert (role(berlin, pair), role(paris, pair)) == ("primary", "secondary")
    assert "no link 'rome'" in berlin.fails(errors.NotFound.exit_status, "migrate", pair, "--to", "rome")
    assert "secondary here already" in paris.fails(REFUSED, "migrate", pair, "--to", "x")


def test_a_migration_whose_link_back_leads_nowhere(berlin, paris, pair):
    told = berlin.fails(errors.WaitTimeout.exit_status, "migrate", pair, "--to", "paris", "--back", "127.0.0.1:1", "--timeout", "5")
    assert "has not linked back to 127.0.0.1:1 yet" in told and role(paris, pair) == "primary"
    assert berlin.json(output.GroupShow, "group", "show", pair).group.successor is None


def test_a_split_brain_is_resolved(berlin, paris, pair):
    berlin.ok("link", "pause", f"{pair}/paris")
    until(lambda: "no primary is connected" in paris("status", pair, "--check").stdout, "paris hears of it")
    paris.ok("takeover", pair, "--force")
    assert berlin.stop() == 0
    berlin.start()
    assert berlin("volume", "write", f"{pair}/data", input=b"from berlin").returncode == REFUSED
    assert f"{pair}  primary  inactive: it asks paris whether another site leads" in berlin.ok("status", pair)
    assert "paris did not answer who leads" in berlin("status", pair, "--check").stdout
    assert berlin.json(output.GroupShow, "group", "show", pair).group.asking == ["paris"]
    assert "asks first whether another site leads" in berlin.fails(REFUSED, "promote", pair)
    berlin.ok("promote", pair, "--alone")
    berlin.ok("volume", "write", f"{pair}/data", input=b"from berlin")
    paris.ok("volume", "write", f"{pair}/data", input=b"from paris!")
    told = berlin.fails(errors.UsageError.exit_status, "resolve", pair, "--loser", "here")
    assert "this site alone has written" in told and "is not known: the two have not met" in told and "--force" in told
    fork = berlin.json(output.GroupShow, "group", "show", pair).group.lsn.durable - 1
    berlin.ok("snapshot", "create", f"{pair}/data", "evening")
    berlin.ok("link", "resume", f"{pair}/paris")
    until(lambda: berlin.json(output.GroupShow, "group", "show", pair).group.split_brain, "they have met")
    parted = berlin.json(output.GroupShow, "group", "show", pair).group.split_brain
    assert [(one.link, one.fork_lsn, one.lsn) for one in parted] == [("paris", fork, fork + 2)]
    (there,) = paris.json(output.GroupShow, "group", "show", pair).group.split_brain
    assert (there.link, there.fork_lsn, there.lsn, there.there_lsn) == (None, fork, fork + 1, fork + 2)
    assert parted[0].node == paris.json(output.Status, "status").node.node_id
    told = f"SPLIT BRAIN with paris: both sites have written since event {fork}, this one up to {fork + 2}, the other up to {fork + 1};"
    assert told in berlin.ok("status", pair).splitlines()[0] and f"resolve {pair} --loser here" in berlin.ok("status", pair)
    assert f"SPLIT BRAIN with node {there.node[:8]}" in paris.ok("status", pair).splitlines()[0]
    for daemon in (berlin, paris):
        done = daemon("status", pair, "--check")
        assert (done.returncode, done.stdout.count("SPLIT BRAIN")) == (2, 1) and done.stdout.startswith(f"CRITICAL: {pair} SPLIT BRAIN")
        assert f'pyrepl_group_split_brain{{group="{pair}"}} 1.0' in daemon.ok("metrics")
        until(lambda d=daemon: "event=split-brain" in (d.folder / "log").read_text(), "it is logged")
        (line,) = [line for line in (daemon.folder / "log").read_text().splitlines() if "event=split-brain" in line]
        assert " ERROR " in line and f"fork_lsn={fork} " in line and f"`pyrepl resolve {pair} --loser here`" in line
    told = berlin.fails(errors.UsageError.exit_status, "resolve", pair, "--loser", "here")
    assert f"alone has written since event {fork}, up to event {fork + 2}, from 20" in told and "at least" not in told
    label = told.partition(f"leaves group {pair}: 4 KiB written to data, 1 operation; it is kept here as data-lost-")[2][:8]
    assert f"data-lost-{label}, evening-lost-{label}: give --force" in told
    told = paris.fails(errors.UsageError.exit_status, "resolve", pair, "--loser", "here")
    assert "it is kept here as data-lost-" in told, "a primary that has performed nothing but writes since"
    told = berlin.fails(errors.UsageError.exit_status, "resolve", pair, "--loser", "paris")
    assert f"the site of link paris alone has written since event {fork}, up to event {fork + 1}, leaves" in told and "tells there" in told
    assert "knows no 'rome'" in berlin.fails(errors.NotFound.exit_status, "resolve", pair, "--loser", "rome", "--force")
    done = berlin.json(output.RoleChange, "resolve", pair, "--loser", "here", "--force")
    assert (done.role, role(berlin, pair), role(paris, pair)) == ("secondary", "secondary", "primary")
    assert "gives way to whoever leads" in berlin.ok("status", pair).splitlines()[0]
    paris.ok("link", "add", f"{pair}/berlin", berlin.address, "--wait", "--timeout", "60")
    paris.ok("wait", pair, "synced", "--timeout", "60")
    until(lambda: not berlin.json(output.GroupShow, "group", "show", pair).group.protective, "it is not needed any more")
    kept, evening = [store for store in berlin.json(output.StoreList, "snapshot", "list", pair).stores if store.kind == "kept"]
    assert (kept.name, evening.name) == (f"data-lost-{label}", f"evening-lost-{label}") and kept.name in berlin.ok("snapshot", "list", pair)
    assert kept.name in berlin.ok("status", pair)
    with pyrepl.connect(berlin.socket) as node:
        (one, other) = node.group(pair).kept
        assert (one.name, one.origin, one.label, one.lsn, one.size) == (kept.name, "data", f"lost-{label}", fork + 2, 4 << 20)
        assert other.origin == "evening" and one.read(0, 11) == b"from berlin"
        with pytest.raises(errors.PyreplError):
            one.write(0, b"x")
    assert berlin.json(output.GroupShow, "group", "show", pair).group.kept[0].name == kept.name
    assert berlin("volume", "read", f"{pair}/{kept.name}", "--length", "11").stdout == "from berlin"
    assert berlin("volume", "read", f"{pair}/data", "--length", "11").stdout == "from paris!"
    assert "this site alone" in berlin.fails(errors.UsageError.exit_status, "snapshot", "delete", f"{pair}/{kept.name}")
    assert berlin("volume", "write", f"{pair}/{kept.name}", input=b"x").returncode != 0
    gone = berlin.json(output.KeptDeleted, "snapshot", "delete", f"{pair}/{kept.name}", "--force")
    berlin.ok("snapshot", "delete", f"{pair}/{evening.name}", "--force")
    assert gone.snapshot == kept.name and "lost" not in berlin.ok("snapshot", "list", pair)
    for daemon in (berlin, paris):
        assert daemon.json(output.GroupShow, "group", "show", pair).group.split_brain == []
        assert "SPLIT" not in daemon.ok("status", pair) and daemon("status", pair, "--check").returncode == 0
        assert (daemon.folder / "log").read_text().count("event=split-brain") == 1, "it is said once"


def test_what_is_refused(berlin, paris, pair):
    assert "primary here already" in berlin.fails(REFUSED, "promote", pair)
    assert "primary here already" in berlin.fails(REFUSED, "takeover", pair, "--force")
    assert "secondary here already" in paris.fails(REFUSED, "demote", pair)
    paris.fails(REFUSED, "promote", pair)  # its primary has not stepped down
    for force in ((), ("--force",)):
        assert "primary is connected" in paris.fails(REFUSED, "takeover", pair, *force), "before it is asked whether it may cost something"
    berlin.ok("link", "pause", f"{pair}/paris")
    until(lambda: "its primary is not connected" in paris.ok("status", pair), "the link has ended")
    assert paris.json(output.GroupShow, "group", "show", pair).group.primary_connected is False
    assert "no primary is connected" in paris("status", pair, "--check").stdout
    told = paris.fails(errors.UsageError.exit_status, "takeover", pair)
    assert "what its primary wrote after that is lost" in told and "--force" in told
    berlin.ok("volume", "write", f"{pair}/data", input=b"x" * 4096)
    told = berlin.fails(REFUSED, "demote", pair)
    assert "cannot step down: link 'paris' is paused, 8192 bytes behind" in told and "is lost to it" in told
    assert (role(berlin, pair), role(paris, pair)) == ("primary", "secondary")


def test_what_a_forced_demotion_costs_is_told(berlin, paris, pair):
    berlin.ok("link", "pause", f"{pair}/paris")
    berlin.ok("volume", "write", f"{pair}/data", input=b"x" * 4096)
    done = berlin("demote", pair, "--force", "--json")
    assert done.returncode == 0 and '"role":"secondary"' in done.stdout
    assert "not waited for: paris (8 KiB behind)" in done.stderr and f"pyrepl promote {pair} --alone" in done.stderr
    berlin.ok("promote", pair, "--alone")
    assert berlin.ok("volume", "read", f"{pair}/data", "--length", "1") == "x", "this site still has it"
    berlin.ok("demote", pair, "--force")
    berlin.fails(REFUSED, "demote", pair, "--force")


def test_a_forced_demotion_that_costs_nothing_tells_nothing(berlin, pair):
    berlin.ok("wait", pair, "synced", "--timeout", "60")
    assert berlin("demote", pair, "--force").stderr == ""


def test_takeover_of_a_primary_that_is_gone(daemons, paris):
    lost = daemons("killed-tromso")
    group = lost.new_group()
    for arguments in (["group", "create", group, "--journal", f"{paris.folder}/{group}.journal", "--journal-size", "16M",
                       "--role", "secondary"], ["volume", "add", f"{group}/data", "--size", "4M"]):
        paris.ok(*arguments)
    lost.ok("link", "add", f"{group}/paris", paris.address, "--wait", "--timeout", "60")
    lost.ok("volume", "write", f"{group}/data", input=b"kept")
    lost.ok("wait", group, "synced", "--timeout", "60")
    lost.stop(9)
    paris.ok("takeover", group, "--force")
    assert role(paris, group) == "primary"
    paris.ok("volume", "write", f"{group}/data", "--offset", "4", input=b", and goes on")
    assert paris("volume", "read", f"{group}/data", "--length", "17").stdout == "kept, and goes on"
    lost.start()


def test_promote_alone(berlin, paris, pair):
    berlin.ok("link", "pause", f"{pair}/paris")
    paris.fails(REFUSED, "promote", pair)
    assert paris.ok("promote", pair, "--alone").startswith(f"{pair}: primary from LSN ")


def test_two_promotes_at_once(berlin, paris, pair):
    """One of them makes the site primary, the other is told that it is."""
    berlin.ok("demote", pair)
    running = [subprocess.Popen([sys.executable, "-c", COMMAND, "promote", pair], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True, env=environment(PYREPL_SOCKET=paris.socket)) for _ in range(2)]
    told = [process.communicate(timeout=60) for process in running]
    assert sorted(process.returncode for process in running) == [0, REFUSED], told
    assert "is a primary here already" in "".join(err for _, err in told)
    assert role(paris, pair) == "primary"


def in_a_resync(berlin, paris, pair):
    """The journal overflows while paris is away, which then gets what it lacks slowly; the LSN of its protective snapshot."""
    berlin.ok("volume", "write", f"{pair}/data", input=b"before")
    berlin.ok("wait", pair, "synced", "--timeout", "60")
    berlin.ok("link", "pause", f"{pair}/paris")
    for _ in range(4):
        berlin.ok("volume", "write", f"{pair}/data", input=b"during" + bytes((4 << 20) - 6))
        berlin.ok("volume", "write", f"{pair}/data", input=os.urandom(4 << 20))
    berlin.ok("link", "set", f"{pair}/paris", "--bandwidth", "64K")
    berlin.ok("link", "resume", f"{pair}/paris")
    until(lambda: paris.json(output.GroupShow, "group", "show", pair).group.protective, "it is resynchronized")
    kept = paris.json(output.GroupShow, "group", "show", pair).group.protective
    assert kept.stores == 1
    berlin.ok("link", "pause", f"{pair}/paris")
    return kept.lsn


def test_a_takeover_in_a_resync_goes_back(berlin, paris, pair):
    lsn = in_a_resync(berlin, paris, pair)
    told = paris.ok("status", pair)
    assert f"secondary  inconsistent (a takeover goes back to LSN {lsn})" in told.splitlines()[0]
    assert f"protected  1 store(s) as of LSN {lsn}" in paris.ok("group", "show", pair)
    berlin.ok("snapshot", "create", f"{pair}/data", "evening")
    for daemon, where in ((berlin, ["paris"]), (paris, ["here"])):
        (listed,) = daemon.json(output.StoreList, "volume", "list", pair).stores
        assert listed.diverged == where
        shown = daemon.ok("volume", "list", pair).splitlines()
        assert "DIVERGED" in shown[0] and where[0] in shown[1]
    (evening,) = berlin.json(output.StoreList, "snapshot", "list", pair).stores
    assert evening.diverged == ["paris"], "what it shows has not come there"
    assert "diverged: paris" in berlin.ok("group", "show", pair)
    (kept,) = [store for store in paris.json(output.StoreList, "snapshot", "list", pair).stores if store.kind == "kept"]
    assert kept.name == "data-protective"
    assert paris("volume", "read", f"{pair}/{kept.name}", "--length", "6").stdout == "before"
    assert paris("volume", "read", f"{pair}/data", "--length", "6").stdout == "before", "and none of what is copied"
    assert "given up as a whole" in paris.fails(REFUSED, "snapshot", "delete", f"{pair}/{kept.name}", "--force")
    assert "can go back to its protective snapshot" in paris.fails(REFUSED, "promote", pair)
    told = paris.fails(errors.UsageError.exit_status, "takeover", pair)
    assert f"would go on from LSN {lsn}, its protective snapshot" in told
    done = paris.json(output.RoleChange, "takeover", pair, "--force")
    assert (done.role, done.lsn) == ("primary", lsn)
    assert paris("volume", "read", f"{pair}/data", "--length", "6").stdout == "before"


def test_a_snapshot_that_was_given_up(berlin, paris, pair):
    lsn = in_a_resync(berlin, paris, pair)
    assert "only a secondary keeps" in berlin.fails(REFUSED, "group", "unprotect", pair, "--force")
    told = paris.fails(errors.UsageError.exit_status, "group", "unprotect", pair)
    assert f"of LSN {lsn}, is lost" in told and "--force" in told
    group = paris.json(output.GroupShow, "group", "unprotect", pair, "--force").group
    assert group.protective is None and group.waived and not group.kept
    assert "protected  none, by command" in paris.ok("group", "show", pair)
    assert "keeps none" in paris.fails(REFUSED, "takeover", pair, "--force")
    assert "when status says consistent" in paris.fails(REFUSED, "volume", "read", f"{pair}/data")
    berlin.ok("link", "set", f"{pair}/paris", "--bandwidth", "0")
    berlin.ok("link", "resume", f"{pair}/paris")
    berlin.ok("wait", pair, "synced", "--timeout", "60")
    assert not paris.json(output.GroupShow, "group", "show", pair).group.waived
    told = paris.fails(errors.UsageError.exit_status, "group", "unprotect", pair)
    assert "is consistent, so it keeps no protective snapshot now" in told and "is lost" not in told
