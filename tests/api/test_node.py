"""The node's folder: identity, lock, list of groups; journals that may and may not be used."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import threading

import pytest

import pyrepl
from pyrepl.errors import Corrupt, DeviceError, Exists, InUse, NotFound, Refused, UsageError, WaitTimeout

MIB = 1 << 20
REGION = 64 * 1024


def test_import_is_quick():
    code = ("import sys, pyrepl; heavy = {'numpy', 'rich', 'asyncio', 'click', 'msgspec'} & set(sys.modules); "
            "assert not heavy, heavy; pyrepl.Node; heavy = {'numpy', 'rich', 'asyncio', 'click'} & set(sys.modules); "
            "assert not heavy, heavy; assert set(pyrepl.__all__) <= set(dir(pyrepl)); [getattr(pyrepl, n) for n in pyrepl.__all__]")
    path = os.pathsep.join(p for p in sys.path if p)
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})
    with pytest.raises(AttributeError, match="nothing"):
        pyrepl.nothing


def test_a_node_remembers(nodes, tmp_path):
    node = nodes("n", name="berlin")
    identity = node.node_id
    group = node.create_group("db", tmp_path / "j", journal_size=16 * MIB, resume="alone")
    group.add_volume("data", size=REGION).write(0, b"x" * REGION)
    assert node.groups == [group] and node.group("db") is group
    status = node.status()
    json.dumps(status)
    assert status["node"] == "berlin" and status["groups"][0]["state"] == "active" and status["listening"] == []
    node.close()
    node.close()
    kept = json.loads((tmp_path / "n" / "node.json").read_text())
    assert kept["groups"] == [{"name": "db", "journal": str(tmp_path / "j"), "resume": "alone", "made": True}]
    again = nodes("n")
    assert (again.node_id, again.name) == (identity, "berlin")
    assert again.group("db").volume("data").read(0, REGION) == b"x" * REGION
    with pytest.raises(NotFound, match="no group 'other'"):
        again.group("other")


def test_a_closed_node(nodes, tmp_path):
    node = nodes()
    with node:
        group = node.create_group("db", tmp_path / "j", journal_size=16 * MIB)
    for call in (lambda: node.create_group("x", tmp_path / "k", journal_size=16 * MIB), lambda: node.listen("127.0.0.1"),
                 node.events, lambda: node.group("db"), group.wait):
        with pytest.raises(Refused, match="is closed"):
            call()
    assert not (tmp_path / "k").exists()


@pytest.mark.parametrize("path", [None, 5, "", "a\0b"])
def test_no_path(nodes, path):
    with pytest.raises(UsageError, match="is not a path"):
        pyrepl.Node.open(path, create=True)
    with pytest.raises(UsageError, match="is not a path"):
        nodes().create_group("db", path, journal_size=16 * MIB)


def test_no_node(tmp_path):
    with pytest.raises(NotFound, match="create=True"):
        pyrepl.Node.open(tmp_path / "nowhere")
    with pytest.raises(NotFound, match="create=True"):
        pyrepl.Node.open(tmp_path)
    with pytest.raises(UsageError, match="cannot be a name"):
        pyrepl.Node.open(tmp_path / "new", create=True, name="a b")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match="opening the node"):
        pyrepl.Node.open(tmp_path / "file" / "x", create=True)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"node_id": "x", "name": "n"}', '{"version":1,"node_id":"%s"}' % ("0" * 32),
                                     '{"node_id":"%s","name":"n","more":1}' % ("0" * 32)])
def test_a_damaged_node(tmp_path, content):
    (tmp_path / "node.json").write_text(content)
    for create in (False, True):
        with pytest.raises(Corrupt, match="cannot be read"):
            pyrepl.Node.open(tmp_path, create=create)
    assert (tmp_path / "node.json").read_text() == content


def test_a_node_of_a_later_version(nodes, tmp_path):
    nodes("n").close()
    path = tmp_path / "n" / "node.json"
    path.write_text(path.read_text().replace('"version": 2', '"version": 3'))
    with pytest.raises(Corrupt, match="version 3"):
        nodes("n")


def test_a_node_of_the_first_version(nodes, tmp_path):
    """It had no exports, and did not say which journals the node made."""
    first = {"version": 1, "node_id": "0" * 31 + "1", "name": "old", "groups": [{"name": "db", "journal": "/gone"}]}
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "node.json").write_text(json.dumps(first))
    node = nodes("n")
    assert (node.name, [group.state for group in node.groups], node.exports) == ("old", ["failed"], [])


def test_secondaries_go_on_with_a_node_that_takes_the_group_over(nodes, tmp_path):
    """By force, from a node that will never open it again: nothing is paired, and nothing copied, anew."""
    second = nodes("second")
    far = second.create_group("db", tmp_path / "far", journal_size=16 * MIB, role="secondary")
    far.add_volume("v", size=MIB)
    host, port = second.listen("127.0.0.1", 0)
    with nodes("a") as node:
        group = node.create_group("db", tmp_path / "j", journal_size=16 * MIB)
        group.add_volume("v", size=MIB).write(0, b"kept")
        group.add_link("second", f"{host}:{port}").wait_synced(60)
    group = nodes("b").import_group(tmp_path / "j", force=True)
    group.volume("v").write(4, b"more")
    status = group.link("second").wait_synced(60)
    assert status["consistent"] and status["bytes_sent"]["copied"] == 0
    assert far.volume("v").read(0, 8) == b"keptmore"


def test_a_group_is_imported_where_its_journal_is_seen(nodes, tmp_path):
    with nodes("a") as node:
        group = node.create_group("db", tmp_path / "j", journal_size=16 * MIB)
        group.add_volume("v", size=MIB).write(0, b"kept")
    other = nodes("b")
    with pytest.raises(Refused, match="belongs to another node"):
        other.import_group(tmp_path / "j")
    assert other.import_group(tmp_path / "j", force=True).volume("v").read(0, 4) == b"kept"
    with pytest.raises(Exists, match="as 'db'"):
        other.import_group(tmp_path / "j", force=True)
    other.close()
    assert nodes("b").group("db").volume("v").read(0, 4) == b"kept"
    assert nodes("a").group("db").state == "failed"  # it is another node's now


def test_what_cannot_be_imported(nodes, tmp_path):
    (tmp_path / "zeros").write_bytes(bytes(MIB))
    node = nodes("a")
    with pytest.raises(Corrupt, match="no pyrepl journal"):
        node.import_group(tmp_path / "zeros", force=True)
    with pytest.raises(DeviceError):
        node.import_group(tmp_path / "nowhere")
    node.create_group("db", tmp_path / "j", journal_size=16 * MIB)
    with pytest.raises(InUse):
        nodes("b").import_group(tmp_path / "j", force=True)
    assert [group.name for group in nodes("c").groups] == []


def test_a_group_is_deleted(nodes, tmp_path):
    node = nodes("a")
    group = node.create_group("db", tmp_path / "j", journal_size=16 * MIB)
    given = tmp_path / "given"
    given.write_bytes(bytes(MIB))
    group.add_volume("v", given).write(0, b"kept")
    own = group.add_volume("w", size=MIB).device
    node.start_export("v", group, "v")
    with pytest.raises(Refused, match="it has 2 stores"):
        node.delete_group("db")
    group.wait()
    node.delete_group("db", force=True)
    assert (node.groups, node.exports) == ([], [])
    assert not os.path.exists(own) and not (tmp_path / "j").exists()
    assert given.read_bytes()[:4] == b"kept"
    with pytest.raises(Refused, match="closed"):
        group.volumes
    node.create_group("db", tmp_path / "j", journal_size=16 * MIB)


def test_a_journal_that_was_given_is_made_unreadable(nodes, tmp_path):
    (tmp_path / "j").write_bytes(bytes(16 * MIB))
    node = nodes("a")
    node.create_group("db", tmp_path / "j")
    node.delete_group("db")
    with pytest.raises(Corrupt, match="no pyrepl journal"):
        node.import_group(tmp_path / "j")


def test_one_process_at_a_time(nodes, tmp_path, python):
    node = nodes("n")
    with pytest.raises(InUse, match=f"process {os.getpid()}"):
        pyrepl.Node.open(tmp_path / "n")
    code = """
import sys, pyrepl
try:
    pyrepl.Node.open(sys.argv[1])
except pyrepl.errors.InUse as error:
    print(error.context["pid"])
"""
    other = python(code, str(tmp_path / "n"))
    assert other.communicate(timeout=60)[0].strip() == str(os.getpid())
    node.close()
    nodes("n")


def test_the_lock_of_a_process_that_is_dying_is_waited_for(nodes, tmp_path):
    nodes("n").close()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    lock = tmp_path / "n" / "lock"
    for pid, waits in ((gone.pid, True), (os.getppid(), False)):
        lock.write_text(f"{pid}\n")
        fd = os.open(lock, os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if waits:
            timer = threading.Timer(0.8, os.close, (fd,))
            timer.start()
            nodes("n").close()
            timer.join()
        else:
            with pytest.raises(InUse, match=f"process {pid}"):
                nodes("n")
            os.close(fd)


@pytest.mark.parametrize("name", ["", ".", "..", "-x", ".x", "a/b", "a b", "ä", "x" * 256, "a\n", None, 5])
def test_names_that_cannot_be(nodes, tmp_path, name):
    with pytest.raises(UsageError, match="cannot be a name"):
        nodes().create_group(name, tmp_path / "j", journal_size=16 * MIB)
    assert not (tmp_path / "j").exists() and nodes("other").groups == []


@pytest.mark.parametrize(("options", "kind", "words"), [
    ({"journal_size": 0}, UsageError, "multiple of 4096"), ({"journal_size": 4097}, UsageError, "multiple of 4096"),
    ({"journal_size": -4096}, UsageError, "multiple of 4096"), ({"journal_size": "1G"}, UsageError, "multiple of 4096"),
    ({"journal_size": 8192}, UsageError, "too small"), ({}, NotFound, "give the journal a size"),
    ({"journal_size": 2**55}, DeviceError, "making group"), ({"journal_size": 2**56}, UsageError, "below 2..56"),
    ({"journal_size": 2**64}, UsageError, "below 2..56"),
    ({"journal_size": 16 * MIB, "region_size": "64K"}, UsageError, "region_size = '64K': must be a whole number"),
    ({"journal_size": 16 * MIB, "region_size": 4096.0}, UsageError, "whole number"),
    ({"journal_size": 16 * MIB, "options": {}}, UsageError, "SiteOptions"),
    ({"journal_size": 16 * MIB, "role": "tertiary"}, UsageError, "primary or secondary"),
    ({"journal_size": 16 * MIB, "resume": "later"}, UsageError, "'ask' or 'alone'"),
    ({"journal_size": 16 * MIB, "region_size": 5000}, UsageError, "region_size"),
    ({"journal_size": 16 * MIB, "alignment": 1024}, UsageError, "alignment"),
])
def test_groups_that_cannot_be(nodes, tmp_path, options, kind, words):
    node = nodes()
    with pytest.raises(kind, match=words):
        node.create_group("db", tmp_path / "j", **options)
    assert not (tmp_path / "j").exists() and node.groups == []
    node.create_group("db", tmp_path / "j", journal_size=16 * MIB)


def test_a_journal_is_not_lost_by_mistake(nodes, tmp_path):
    node = nodes("n")
    node.create_group("db", tmp_path / "j", journal_size=16 * MIB).add_volume("data", size=REGION)
    with pytest.raises(Exists, match="has a group 'db'"):
        node.create_group("db", tmp_path / "k", journal_size=16 * MIB)
    with pytest.raises(Exists, match="give no size"):
        node.create_group("other", tmp_path / "j", journal_size=16 * MIB)
    with pytest.raises(InUse, match="in use"):
        node.create_group("other", tmp_path / "j")
    node.close()
    other = nodes("other")
    with pytest.raises(Refused, match="journal of a group 'db'"):
        other.create_group("other", tmp_path / "j")
    node = nodes("n")
    assert node.group("db").volume("data").size == REGION
    node.close()
    other.create_group("other", tmp_path / "j", force=True)
    other.close()
    node = nodes("n")
    with pytest.raises(Refused, match="belongs to another node"):
        node.group("db").volume("data")


def test_one_bad_group_does_not_hinder_the_others(nodes, tmp_path):
    node = nodes()
    for name in ("a", "b", "c"):
        node.create_group(name, tmp_path / name, journal_size=16 * MIB).add_volume("data", size=REGION)
    node.close()
    (tmp_path / "a").unlink()
    with open(tmp_path / "b", "r+b") as journal:
        journal.write(bytes(4096))
        journal.seek(-4096, 2)
        journal.write(bytes(4096))
    node = nodes()
    for name, kind in (("a", DeviceError), ("b", Corrupt)):
        bad = node.group(name)
        assert bad.state == "failed" and bad.status()["error"] and bad.status()["role"] is None
        for call in (lambda bad=bad: bad.volume("data"), lambda bad=bad: bad.mark("m"), lambda bad=bad: bad.role):
            with pytest.raises(kind):
                call()
    assert node.group("c").volume("data").size == REGION


def test_a_full_gigabyte_is_written(tmp_path):
    from pyrepl.runtime import placement

    placement.make_journal(str(tmp_path / "j"), 5 * MIB + 4096)
    status = os.stat(tmp_path / "j")
    assert status.st_size == 5 * MIB + 4096 <= status.st_blocks * 512
    with open(tmp_path / "j", "rb") as file:  # data, not a hole or space that is only reserved
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == status.st_size


@pytest.mark.device
def test_a_device_with_a_file_system_is_in_use(nodes, tmp_path, loop_device):
    from pyrepl._core import blockdev

    journal, held = loop_device(16 * MIB), loop_device(4 * MIB)
    with open(tmp_path / "loop-1", "rb"):
        fd = os.open(held, os.O_RDWR | os.O_EXCL)
    try:
        node = nodes()
        with pytest.raises(InUse, match="in use"):
            node.create_group("x", held)
        group = node.create_group("db", journal)
        with pytest.raises(InUse, match="release it there"):
            group.add_volume("data", held)
        with pytest.raises(InUse, match="attached to"):
            group.add_volume("data", tmp_path / "loop-1")  # the file under the device
    finally:
        os.close(fd)
    assert group.add_volume("data", held).size == 4 * MIB
    assert blockdev.in_use(held)


def test_listening(nodes, tmp_path):
    node = nodes()
    host, port = node.listen("127.0.0.1", 0)
    assert host == "127.0.0.1" and port > 0
    assert node.status()["listening"] == [[host, port]]
    with pytest.raises(InUse, match=f"127.0.0.1:{port}"):
        nodes("other").listen(host, port)
    for bad in (-1, 65536, "80", True, None):
        with pytest.raises(UsageError, match="port"):
            node.listen("127.0.0.1", bad)
    for bad in ("no-such-host.invalid", "203.0.113.7"):
        with pytest.raises(UsageError, match="cannot listen"):
            node.listen(bad, 0)
    for bad in (5, None, b"::1", "a\0b"):
        with pytest.raises(UsageError, match="give a name or an address"):
            node.listen(bad, 0)
    node.close()
    with socket.socket() as probe:
        assert probe.connect_ex((host, port)) != 0


def test_events(nodes, tmp_path):
    node = nodes()
    early, late = node.events(), None
    group = node.create_group("db", tmp_path / "j", journal_size=16 * MIB)
    late = node.events()
    snapshot = group.add_volume("data", size=REGION).snapshot("s")
    assert [early.get(30)["event"] for _ in range(3)] == ["group-created", "operation", "operation"]
    assert late.get(30)["kind"] == "add-volume"
    last = late.get(30)
    assert (last["kind"], last["lsn"], last["created"], last["group"]) == ("snapshot", snapshot.lsn, ["s"], "db")
    with pytest.raises(WaitTimeout, match="no event"):
        late.get(0.01)
    with pytest.raises(UsageError):
        late.get(-1)
    early.close()
    early.close()
    assert list(early) == []
    heard: list[dict] = []
    listener = threading.Thread(target=lambda: heard.extend(late))
    listener.start()
    group.mark("m")
    node.close()
    listener.join(60)
    assert not listener.is_alive() and [event["kind"] for event in heard] == ["mark"]


def test_slow_listeners_miss_the_oldest(nodes):
    events = nodes().events()
    for n in range(events.MOST + 10):
        events.put({"event": n})
    assert events.missed == 10 and events.get(0) == {"event": 10}
