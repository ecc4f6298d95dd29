"""``pyrepl perform`` against two daemons, of which at first only one has the plug-in; and the same by ``pyrepl.connect``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyrepl
from pyrepl.cli import output
from pyrepl.cli.outcome import kept_off
from pyrepl.errors import NotFound, UsageError
from tests.cli.conftest import Daemon
from tests.support import plugin_cases as cases

SIZE = 4 << 20
REGION = 65536


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cases.install(tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def berlin(tmp_path_factory: pytest.TempPathFactory, installed: Path) -> Iterator[Daemon]:
    """A daemon with plug-ins."""
    daemon = Daemon(tmp_path_factory.mktemp("near") / "berlin", "berlin", str(installed))
    yield daemon
    daemon.stop()


@pytest.fixture
def here(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has them, too."""
    monkeypatch.syspath_prepend(installed)


def test_perform(berlin, group):
    zeros = hashlib.sha256(bytes(SIZE)).hexdigest()
    done = berlin.json(output.Operation, "perform", group, "probe", "--arg", "store=data")
    assert (done.kind, done.state, done.digest, done.failed, done.bytes_changed) == ("perform", "performed", zeros, None, 0)
    said = berlin.ok("perform", group, "invert", "--arg", "store=data", "--arg", "offset=5", "--arg", "length=100000")
    assert said == f"invert in {group}: performed at LSN {done.lsn + 1}, 128 KiB changed\n"
    assert f"digest {zeros}" in berlin.ok("operation", "show", group, str(done.lsn))
    listed = berlin.json(output.OperationList, "operation", "list", group).operations
    assert [one.kind for one in listed] == ["add-volume", "perform", "perform"]
    assert listed[2].arguments == {
        "plugin": "invert", "version": 1, "reads": [], "writes": ["data"],
        "arguments": {"store": "data", "offset": 5, "length": 100000, "step": 10007}}
    dump = berlin.ok("journal", "dump", f"{berlin.folder}/{group}.journal")
    assert "'plugin': 'invert', 'version': 1, 'arguments': {'length': 100000, 'offset': 5, " in dump
    assert f"'said': '{zeros}'" in dump and "'regions': 2" in dump


def test_one_that_fails(berlin, group):
    done = berlin("perform", group, "fails", "--arg", "store=data")
    assert done.returncode == 1 and "it has failed, and changed nothing at any site: ValueError: a bad day" in done.stdout
    (job,) = berlin.json(output.JobList, "job", "list", group, "--last", "1").jobs
    assert (job.verb, job.state, job.result) == ("group.perform", "done", "plug-in failed: ValueError: a bad day")
    assert berlin.ok("job", "list", group).splitlines()[-1].endswith("done: plug-in failed: ValueError: a bad day")
    assert "failed, and changed nothing" in berlin.ok("operation", "show", group, "2")
    assert "perform fails (failed)" in berlin.ok("operation", "list", group)


@pytest.mark.parametrize(("arguments", "status", "words"), [
    (["nothing"], 3, "there is no plug-in 'nothing' here"),
    (["broken"], 2, "plug-in 'broken' (no_such_module:Thing) cannot be loaded"),
    (["probe"], 2, "cannot be made with the arguments []"),
    (["probe", "--arg", "store"], 2, "write NAME=VALUE"),
    (["probe", "--arg", "store=data", "--arg", "store=logs"], 2, "each name once"),
    (["probe", "--arg", "store=logs"], 3, "'logs'"),
    (["probe", "--arg", "store=5"], 2, "the footprint of plug-in 'probe'"),
])
def test_what_cannot_be(berlin, group, arguments, status, words):
    assert words in berlin.fails(status, "perform", group, *arguments)


def test_explain(berlin, pair):
    told = berlin.json(output.Explanation, "explain", "perform", pair, "invert", "--arg", "store=data", "--arg", "offset=0",
                       "--arg", "length=1")
    assert told.kind == "perform" and told.bytes_changed == SIZE and told.links[0].performed_as == "command"


def test_a_secondary_without_the_plugin(berlin, paris, pair):
    """The data come instead, on its link only; told at both sites."""
    done = berlin.json(output.Operation, "perform", pair, "invert", "--arg", "store=data", "--arg", "offset=0", "--arg", "length=9")
    berlin.ok("wait", pair, "synced", "--timeout", "30")
    shown = berlin.json(output.LinkList, "link", "list", pair).links[0]
    assert [(one.lsn, one.reason) for one in shown.refused] == [(done.lsn, "there is no plug-in 'invert' here")]
    assert berlin.ok("volume", "read", f"{pair}/data", "--length", "10") == paris.ok("volume", "read", f"{pair}/data", "--length", "10")
    assert "perform invert (data came instead at paris)" in berlin.ok("operation", "list", pair)
    assert "perform invert (data came instead)" in paris.ok("operation", "list", pair)
    assert "not all of it was performed at this site (there is no plug-in" in paris.ok("operation", "show", pair, str(done.lsn))


def test_what_is_kept_off_the_links_is_not_promised(berlin, paris, pair):
    """Whether a secondary comes to the same is known later than the command ends; then it is told as it is."""
    said = berlin.ok("perform", pair, "invert", "--arg", "store=data", "--arg", "offset=0", "--arg", "length=9")
    assert said.endswith(("changed, 64 KiB kept off the links if paris comes to the same\n",
                          "changed\nrefused at paris, which gets the data instead\n"))
    assert kept_off(15 << 20, {}) == ", 15 MiB kept off the links"
    assert kept_off(10 << 20, {"a": "performed", "b": "refused", "c": "pending"}) == (
        ", 10 MiB kept off the links if c comes to the same")
    assert kept_off(10 << 20, {"a": "pending", "b": "pending"}) == ", 10 MiB kept off the links if a, b come to the same"
    assert kept_off(0, {"a": "refused"}) == kept_off(0, {}) == ""


def test_as_members_of_a_set(berlin, group):
    zeros = hashlib.sha256(bytes(SIZE)).hexdigest()
    berlin.ok("volume", "add", f"{group}/logs", "--size", "4M")
    done = berlin.json(output.Operation, "set", group, "perform probe store=data", "snapshot data monday",
                       "perform invert store=logs offset=5 length=100000")
    assert [(one.kind, one.digest, one.failed, one.bytes_changed) for one in done.members] == [
        ("perform", zeros, None, 0), ("snapshot", None, None, SIZE), ("perform", None, None, 2 * REGION)]
    failed = berlin("set", group, "perform fails store=data", "snapshot logs then")
    assert failed.returncode == 1 and "operation 1 of the set has failed, and changed nothing" in failed.stdout
    assert "then" in berlin.ok("snapshot", "list", group), "the other has done what it does"
    for member, status, words in (
        ("perform", 2, "write perform PLUGIN [NAME=VALUE]..."), ("perform probe store", 2, "'perform probe store': 'store': write NAME=VALUE"),
        ("perform nothing", 3, "there is no plug-in 'nothing' here"), ("perform probe", 2, "cannot be made with the arguments"),
    ):
        assert words in berlin.fails(status, "set", group, member)
    told = berlin.fails(2, "set", group, "perform invert store=data offset=0 length=9", "snapshot data x")
    assert "number 1 (perform) writes store 'data', which number 2 (snapshot) reads" in told


def test_by_the_socket(berlin, group, here):
    with pyrepl.connect(berlin.socket) as node:
        db = node.group(group)
        db.volume("data").write(0, b"\x0f" * REGION + b"\xff" * REGION)
        result = db.perform(cases.Fold("data", "data", 5))
        assert (result.failed, result.digest, result.bytes_changed) == ("", b"", REGION)
        assert db.volume("data").read(5 * REGION, REGION) == b"\xf0" * REGION
        with db.unordered() as ops:
            ops.perform(cases.Probe("data"))
            ops.perform("probe", {"store": "data"})
            ops.snapshot("data", "monday")
        first, second, monday = ops.result.members
        assert first.digest == second.digest == hashlib.sha256(db.volume("data").read(0, SIZE)).digest() and first.failed == ""
        assert monday.digest is None and monday.failed is None
        result = db.perform(cases.Probe("data"), wait=False)
        assert result.wait(timeout=30).digest == hashlib.sha256(db.volume("data").read(0, SIZE)).digest()
        assert db.snapshot("tuesday").digest is None
        with db.explain() as ops:
            ops.perform(cases.Fold("data", "data", 5))
        assert ops.result["bytes_changed"] == REGION
        with pytest.raises(NotFound, match="there is no plug-in 'dreams' here"):
            db.perform("dreams")
        with pytest.raises(UsageError, match="not a plug-in operation"):
            db.perform(7)
        with pytest.raises(UsageError, match="an operation has its own"):
            db.perform(cases.Probe("data"), {})
