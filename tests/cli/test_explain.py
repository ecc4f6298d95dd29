"""``pyrepl explain``: the command that would be given, with ``explain`` before it."""

from __future__ import annotations

import os

import msgspec
import pytest

import pyrepl
from pyrepl.cli import output

MIB = 1 << 20


@pytest.fixture
def snapshot(berlin, pair):
    berlin.ok("volume", "write", f"{pair}/data", "--offset", "0", input=b"x" * MIB)
    berlin.ok("snapshot", "create", f"{pair}/data", "monday")
    berlin.ok("volume", "write", f"{pair}/data", "--offset", "0", input=b"y" * MIB)
    berlin.ok("wait", pair, "applied", "--timeout", "60")
    berlin.ok("wait", pair, "synced", "--timeout", "60")
    return pair


def test_explain(berlin, snapshot):
    lines = berlin.ok("explain", "volume", "restore", f"{snapshot}/data", "monday").splitlines()
    assert lines[0] == f"restore in {snapshot}: 1 MiB would change here"
    assert lines[1].startswith("  → paris  streaming: a command of ") and lines[1].endswith("; shipping would be 1 MiB")
    told = berlin.json(output.Explanation, "explain", "volume", "restore", f"{snapshot}/data", "monday")
    assert (told.group, told.kind, told.bytes_changed) == (snapshot, "restore", MIB)
    link = told.links[0]
    assert (link.name, link.performed_as, link.bytes_added, link.bytes_removed, link.bytes_avoided) == ("paris", "command", 0, 0, MIB)
    before = berlin.json(output.OperationList, "operation", "list", snapshot).operations
    made = berlin.json(output.Operation, "volume", "restore", f"{snapshot}/data", "monday", "--force")
    assert made.bytes_changed == told.bytes_changed and made.lsn == told.lsn + 1, "explaining made something"
    assert all(operation.kind != "restore" for operation in before)
    assert berlin.ok("explain", "--json", "mark", snapshot, "m").startswith("{")
    assert "more to copy" not in berlin.ok("explain", "snapshot", "create", snapshot, "all")


@pytest.mark.parametrize("words", [
    "volume add {}/more --size 1M", "volume add {}/more --size 1M --device /dev/null", "volume remove {}/data",
    "volume resize {}/data 1M", "volume restore {}/data monday --offset 64K --length 64K", "volume restore {}/data {}/monday --offset 64K",
    "volume synchronize {}/data monday", "snapshot create {}/data x", "snapshot create {} x", "snapshot refresh {}/monday",
    "snapshot clone {}/monday x", "snapshot clone {} x", "snapshot delete {}/monday", "mark {} m --payload text"])
def test_every_command_that_makes_an_operation(berlin, snapshot, words):
    said = berlin.ok("explain", *words.replace("{}", snapshot).split())
    assert "→ paris" in said and f"in {snapshot}:" in said


@pytest.mark.parametrize("words", ["snapshot create {}/data t --early", "volume restore {}/data monday --early"])
def test_of_an_early_operation(berlin, snapshot, words):
    given = words.replace("{}", snapshot).split()
    said = berlin.ok("explain", *given).splitlines()[1]
    assert "streaming: two commands of" in said and "not consistent for a while, and what changes until" in said
    assert ("or the whole volume if it is given up" in said) == ("restore" in words)
    (link,) = berlin.json(output.Explanation, "explain", *given).links
    assert link.unsettles and link.command_bytes > 0
    assert "is not compared: leave --verify out" in berlin.fails(2, "explain", *given, "--verify")


@pytest.mark.parametrize(("words", "say"), [
    ("volume restore {}/data monday --early --offset 0", "leave the part out"),
    ("volume restore {} monday --length 64K", "are of one store"), ("volume restore {} monday --early --offset 0", "are of one store"),
    ("volume restore {} nothing --early", "nothing"), ("snapshot create {} x --early --verify", "leave --verify out")])
def test_what_cannot_be_early(berlin, snapshot, words, say):
    assert say in berlin.fails(3 if "nothing" in words else 2, "explain", *words.replace("{}", snapshot).split())


def test_of_an_early_operation_of_a_group(berlin, snapshot):
    berlin.ok("volume", "add", f"{snapshot}/logs", "--size", "1M")
    berlin.ok("snapshot", "create", snapshot, "both")
    for words, given_up in (("snapshot create {} t --early", False), ("volume restore {} both --early", True)):
        given = words.replace("{}", snapshot).split()
        said = berlin.ok("explain", *given).splitlines()[1]
        assert "streaming: commands of" in said and ("or each volume, whole, if it is given up" in said) == given_up
        (link,) = berlin.json(output.Explanation, "explain", *given).links
        (once,) = berlin.json(output.Explanation, "explain", *given[:-1]).links
        assert link.unsettles and not once.unsettles and link.command_bytes > once.command_bytes


def test_of_a_set(berlin, snapshot):
    """All of it at one point: as the API tells it, and as the command makes it."""
    berlin.ok("volume", "add", f"{snapshot}/logs", "--size", "1M")
    words = ("set", snapshot, "restore data monday 0 512K", "snapshot logs before")
    assert "have no order" in berlin.fails(2, "explain", *words, "remove logs")
    first, line = berlin.ok("explain", *words).splitlines()
    assert first == f"set in {snapshot}: 1.5 MiB would change here" and line.startswith("  → paris  streaming: a command of ")
    told = berlin.json(output.Explanation, "explain", *words)
    with pyrepl.connect(berlin.socket) as node:
        with node.group(snapshot).explain() as ops:
            ops.restore("data", "monday", extent=(0, MIB // 2))
            ops.snapshot("logs", "before")
        assert msgspec.to_builtins(told)["links"] == ops.result["links"]
        assert (told.kind, told.lsn, told.bytes_changed) == ("set", ops.result["lsn"], ops.result["bytes_changed"])
    made = berlin.json(output.Operation, *words, "--force")
    assert (made.lsn, made.bytes_changed) == (told.lsn + 1, told.bytes_changed), "explaining made something"
    for wrong, status, say in [(("restore data nothing",), 3, "nothing"), (("dance",), 2, "is no operation that can be in a set"),
                               (("snapshot data a", "snapshot data a"), 4, "a"), ((), 2, "MEMBER")]:
        assert say in berlin.fails(status, "explain", "set", snapshot, *wrong)


def test_of_what_a_secondary_may_refuse(berlin, paris, snapshot, tmp_path):
    """It cannot be known before it is asked: both are said, and that it has refused the like."""
    (tmp_path / "golden.img").write_bytes(os.urandom(4 * MIB))
    berlin.ok("image", "add", f"{snapshot}/golden", str(tmp_path / "golden.img"))
    words = ("volume", "restore", f"{snapshot}/data", "golden")
    line = berlin.ok("explain", *words).splitlines()[1]
    assert line.endswith(", or 4 MiB of data if it cannot perform it; shipping would be 4 MiB")
    (link,) = berlin.json(output.Explanation, "explain", *words).links
    assert (link.performed_as, link.bytes_added, link.bytes_if_refused, link.last_refused) == ("command", 0, 4 * MIB, None)
    lsn = berlin.json(output.Operation, *words, "--force").lsn
    berlin.ok("wait", snapshot, "synced", "--timeout", "60")
    line = berlin.ok("explain", *words).splitlines()[1]
    assert f"of data if it cannot perform it (the last that it has refused is at LSN {lsn}: it has no image of that name)" in line
    (link,) = berlin.json(output.Explanation, "explain", *words).links
    assert link.last_refused.lsn == lsn and link.bytes_if_refused == 4 * MIB
    (link,) = berlin.json(output.Explanation, "explain", "volume", "restore", f"{snapshot}/data", "monday").links
    assert link.bytes_if_refused is None and link.last_refused is None
    berlin.ok("image", "remove", f"{snapshot}/golden")


def test_without_a_link(berlin, group):
    assert berlin.ok("explain", "snapshot", "create", group, "x").splitlines()[1] == "  no links"


@pytest.mark.parametrize(("words", "status", "say"), [
    ("status", 2, "'status' makes no operation"), ("volume list", 2, "'volume list' makes no operation"),
    ("volume", 2, "'volume' makes no operation"), ("nonsense", 2, "'nonsense' makes no operation"),
    ("explain mark {} m", 2, "'explain' makes no operation"), ("", 2, "OPERATION"),
    ("volume restore {}/data", 2, "SNAPSHOT"), ("volume restore {}/data nothing", 3, "nothing"),
    ("volume resize {}/data 5", 2, "whole regions"), ("volume add {}/x", 2, "give --size"),
    ("volume restore other/data monday", 3, "other"), ("mark {} -x", 2, "")])
def test_what_cannot_be_explained(berlin, group, words, status, say):
    assert say in berlin.fails(status, "explain", *words.replace("{}", group).split())


def test_at_a_secondary(berlin, paris, pair):
    assert "is a secondary" in paris.fails(5, "explain", "snapshot", "create", pair, "x")


def test_help_is_that_of_the_command(berlin):
    assert "The volume shows again" in berlin.ok("explain", "volume", "restore", "--help")
    assert "OPERATION" in berlin.ok("explain", "--help")
