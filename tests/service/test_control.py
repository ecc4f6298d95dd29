"""The control socket: the verbs of the API through a real daemon, several clients, waiting, and clients that go away."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

import pyrepl
from pyrepl.errors import Exists, NotFound, PeerError, PyreplError, Refused, UsageError, WaitTimeout
from pyrepl.remote import frames, messages, requests, values
from pyrepl.service.control import MODE, User
from pyrepl.service.jobs import KEPT, Jobs

from .conftest import MIB, Daemon, until


def test_the_verbs_of_the_api(daemon, node, group) -> None:
    data = group.volume("data")
    assert (data.kind, data.size, data.name) == ("volume", 4 * MIB, "data") and data.device.startswith(str(daemon.folder))
    lsn = data.write(10, b"before")
    assert data.read(10, 6) == b"before" and group.flush() >= lsn
    monday = data.snapshot("monday")
    assert monday.state == "performed" and monday.lsn > lsn and monday.bytes_avoided == 0 and monday.bytes_changed == 4 * MIB
    data.write(10, b"after!", fua=True)
    buffer = bytearray(6)
    assert data.readinto(10, buffer) == 6 and bytes(buffer) == b"after!"
    restored = data.restore(monday)
    assert restored.kind == "restore" and restored.wait().state == "performed" and data.read(10, 6) == b"before"
    data.write(0, bytes(4096))
    data.zero(0, 8192)
    data.discard(8192, 4096)
    assert data.read(0, 12288) == bytes(12288)
    clone = monday.clone("test")
    assert clone.read(10, 6) == b"before" and clone.result.created == {"test": clone.id}
    clone.resize(6 * MIB)
    assert clone.size == 6 * MIB
    extent = group.copy_range(monday, 0, data, 0, 65536)
    assert extent.lsn and data.read(10, 6) == b"before"
    data.restore("monday", extent=pyrepl.Extent(65536, 65536))
    both = group.snapshot("all")
    assert [snapshot.name for snapshot in both.snapshots] == ["data-all", "test-all"]
    one = group.snapshot("one", volumes=[data])
    assert [snapshot.name for snapshot in one.snapshots] == ["data-one"]
    assert group.mark("here", b"\x00\xff").lsn == group.status()["lsn"]["end"]
    monday.refresh()
    assert [snapshot.name for snapshot in group.snapshots] == ["monday", "data-all", "test-all", "data-one"]
    assert [volume.name for volume in group.volumes] == ["data", "test"]
    assert group.store("monday") == monday and hash(monday) == hash(group.store("monday"))
    monday.delete()
    clone.remove(force=True)
    assert [one["kind"] for one in group.operations()][-2:] == ["delete", "delete"]
    assert group.role == "primary" and group.state == "active" and group.fault is None
    assert (group.region_size, group.alignment) == (65536, 4096) and group.applied_lsn == group.wait()
    assert [other.name for other in node.groups] == ["db"] and node.group("db").status()["group"] == "db"
    assert group.latency()["write"]["count"] >= 1
    assert str(node.path) == f"{daemon.folder}/node" and len(node.node_id) == 16 and node.status()["node"] == node.name


def test_images(daemon, group, tmp_path) -> None:
    wanted, data, path = os.urandom(4 * MIB), group.volume("data"), tmp_path / "golden.img"
    path.write_bytes(wanted)
    told: list[dict[str, Any]] = []
    golden = group.add_image("golden", path, progress=told.append)
    assert told[-1] == {"bytes_done": 4 * MIB, "bytes_total": 4 * MIB}
    assert (golden.name, golden.size, golden.state, golden.device) == ("golden", 4 * MIB, "ready", str(path))
    assert group.images == [golden] and group.image("golden") == golden and hash(golden) == hash(group.image("golden"))
    assert data.restore(golden).kind == "restore" and data.read(0, 4 * MIB) == wanted
    snapshot = data.snapshot("s")
    data.write(0, b"x" * MIB)
    assert golden.clone("twin").read(0, 4 * MIB) == wanted
    with group.unordered() as ops:
        ops.restore(data, golden)
        ops.synchronize("twin", golden)
        ops.clone(golden, "third")
    assert data.read(0, 4 * MIB) == wanted == group.volume("third").read(0, 4 * MIB)
    data.zero(0, MIB)
    group.copy_range(golden, 0, data, 0, MIB)
    snapshot.synchronize("golden")
    assert data.read(0, 4 * MIB) == wanted == snapshot.read(0, 4 * MIB)
    golden.remove(timeout=60)
    assert golden.state == "gone" and group.images == []
    with pytest.raises(NotFound, match="no image"):
        golden.remove()
    again = group.add_image("golden", path)
    for call in (golden.remove, lambda: golden.clone("x"), lambda: data.restore(golden)):
        with pytest.raises(NotFound, match="another has its name now"):
            call()
    with pytest.raises(UsageError, match="give the whole path"):
        group.add_image("other", "relative")
    line = daemon.await_line("pyrepl.audit", "verb=group.add_image", "outcome=done")
    assert str(path) in line and again.id != golden.id


def test_a_view_lasts_as_long_as_its_connection(daemon, node, group) -> None:
    data = group.volume("data")
    before = os.urandom(4 * MIB)
    data.write(0, before)
    shown = group.open_view("data")
    assert (shown.size, shown.store, shown.name) == (4 * MIB, data, f"data@{shown.lsn}") and shown.lsn == group.applied_lsn
    data.write(0, bytes(4 * MIB))
    buffer = bytearray(5 * 1000 * 1000 - (1 << 20))
    assert shown.readinto(100, buffer) == len(buffer) and bytes(buffer) == before[100:100 + len(buffer)]
    with group.open_view(data) as later:
        assert later.read(0, 4 * MIB) == bytes(4 * MIB) and later.lsn > shown.lsn
        with pytest.raises(UsageError, match="cannot be written to"):
            later.readinto(0, b"12")
        with pytest.raises(UsageError, match="not inside view"):
            later.read(4 * MIB, 1)
        assert [one["id"] for one in group.status()["views"]] == [shown.id, later.id]
    assert later.closed and not shown.closed
    with pytest.raises(Refused, match="is closed"):
        later.read(0, 1)
    until(lambda: [one["id"] for one in group.status()["views"]] == [shown.id], "the daemon notices")
    with pytest.raises(NotFound, match="was closed"):
        node.channel.call(requests.ViewRead(group="db", view=later.id, offset=0, length=1))
    with pytest.raises(NotFound, match="no store 'none'"):
        group.open_view("none")
    script = "import pyrepl, sys, time; v = pyrepl.connect(sys.argv[1]).group('db').open_view('data'); print(v.id, flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", script, daemon.socket], stdout=subprocess.PIPE)
    assert child.stdout is not None and int(child.stdout.readline()) > later.id and len(group.status()["views"]) == 2
    child.kill()
    child.wait()
    child.stdout.close()
    until(lambda: [one["id"] for one in group.status()["views"]] == [shown.id], "the daemon notices")
    assert shown.read(0, 4096) == before[:4096]
    shown.close()
    shown.close()


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    """(node, group) of one daemon for all calls that change nothing."""
    daemon = Daemon(tmp_path_factory.mktemp("standing"))
    daemon.start()
    try:
        with daemon.connect() as connected:
            made = connected.create_group("db", daemon.folder / "journal", journal_size=16 * MIB)
            made.add_volume("data", size=4 * MIB)
            yield connected, made
        assert daemon.stop() == 0
    finally:
        daemon.kill()


def test_large_reads_and_writes_go_in_pieces(group) -> None:
    wide = group.add_volume("wide", size=16 * MIB)
    content = os.urandom(9 * MIB + 5)
    wide.write(3, content)
    assert wide.read(3, len(content)) == content
    assert wide.digest(3, len(content)) == wide.digest(3, len(content)) and len(wide.digest(0, MIB)) == 16


def test_buffers_of_every_kind(group) -> None:
    data = group.volume("data")
    for buffer in (bytearray(b"ab"), memoryview(b"ab"), memoryview(bytearray(8)).cast("I"), b"x"):
        data.write(0, buffer)
    with pytest.raises(UsageError, match=r"no buffer protocol"):
        data.write(0, "text")
    with pytest.raises(UsageError, match=r"not contiguous"):
        data.write(0, memoryview(bytearray(8))[::2])
    with pytest.raises(UsageError, match=r"cannot be written to"):
        data.readinto(0, b"fixed")


@pytest.mark.parametrize(("call", "error", "words"), [
    (lambda n, g, v: n.group("none"), NotFound, "has no group 'none'"),
    (lambda n, g, v: g.volume("none"), NotFound, "has no volume 'none'"),
    (lambda n, g, v: g.link("none"), NotFound, "has no link"),
    (lambda n, g, v: n.export("none"), NotFound, "none"),
    (lambda n, g, v: g.add_volume("data", size=MIB), Exists, "exists"),
    (lambda n, g, v: g.add_volume("../x", size=MIB), UsageError, "cannot be a name"),
    (lambda n, g, v: g.add_volume("x" * 256, size=MIB), UsageError, "cannot be a name"),
    (lambda n, g, v: g.add_volume("x" * 2000, size=MIB), UsageError, "length <= 1024"),
    (lambda n, g, v: g.add_volume("new"), UsageError, "needs a device, or a size"),
    (lambda n, g, v: g.add_volume("new", "relative"), UsageError, "whole path"),
    (lambda n, g, v: g.add_volume("new", "/nonexistent/dev"), NotFound, "/nonexistent/dev"),
    (lambda n, g, v: g.add_volume("new", size=1 << 70), UsageError, "cannot be sent"),
    (lambda n, g, v: v.read(4 * MIB, 1), UsageError, "not inside"),
    (lambda n, g, v: v.read(-1, 1), UsageError, "not below 0"),
    (lambda n, g, v: v.read("x", 1), UsageError, "whole number"),
    (lambda n, g, v: v.write(0, b""), UsageError, "empty"),
    (lambda n, g, v: v.restore("data"), PyreplError, "snapshot"),
    (lambda n, g, v: v.restore("x", extent=(1,)), UsageError, "Extent"),
    (lambda n, g, v: v.resize(MIB), Refused, "force"),
    (lambda n, g, v: v.digest(0, 65 << 20), UsageError, "at most"),
    (lambda n, g, v: g.mark("m", b"x" * 5000), UsageError, "4096"),
    (lambda n, g, v: g.mark("m", b"x" * 70000), UsageError, "at most 65536"),
    (lambda n, g, v: g.wait(1 << 40), UsageError, "the last that was given"),
    (lambda n, g, v: g.wait(timeout=-1), UsageError, "timeout"),
    (lambda n, g, v: g.wait(timeout=float("nan")), UsageError, "timeout"),
    (lambda n, g, v: g.snapshot("s", timeout="soon"), UsageError, "timeout"),
    (lambda n, g, v: g.copy_range("data", 0, "data", 65536, 65536), UsageError, "same offset"),
    (lambda n, g, v: g.add_link("l", "nonsense"), UsageError, "not an address"),
    (lambda n, g, v: g.add_link("l", "127.0.0.1:1", mode="fast"), UsageError, "mode"),
    (lambda n, g, v: n.listen("0.0.0.0", 0), Refused, "insecure"),
    (lambda n, g, v: n.listen("127.0.0.1", 99999), UsageError, "65535"),
    (lambda n, g, v: n.listen_nbd("0.0.0.0:0"), Refused, "TLS"),
    (lambda n, g, v: n.create_group("db", "/nonexistent/j", journal_size=MIB), PyreplError, "db"),
    (lambda n, g, v: n.create_group("x", "/nonexistent/j", journal_size=16 * MIB, role="third"), UsageError, "third"),
    (lambda n, g, v: n.delete_group("db"), Refused, "force"),
    (lambda n, g, v: n.import_group("/nonexistent/j"), PyreplError, "/nonexistent/j"),
    (lambda n, g, v: v.synchronize(7), UsageError, "is not a store"),
])
def test_errors_come_out_as_they_went_in(standing, call, error, words) -> None:
    node, group = standing
    before = group.status()["lsn"]["end"]
    with pytest.raises(error) as caught:
        call(node, group, group.volume("data"))
    assert words in str(caught.value) and isinstance(caught.value, PyreplError)
    assert group.status()["lsn"]["end"] == before


def test_attributes_of_errors(group) -> None:
    with pytest.raises(Refused) as refused:
        group.volume("data").resize(65536)
    assert refused.value.reason == refused.value.context["reason"] and refused.value.exit_status == 5
    with pytest.raises(WaitTimeout) as timeout:
        group.add_link("far", "127.0.0.1:1").wait_synced(0.05)
    assert timeout.value.retryable and timeout.value.context["link"] == "far" and isinstance(timeout.value, TimeoutError)
    assert timeout.value.context["status"]["state"] in ("connecting", "down")


def test_a_handle_of_what_was_deleted(group) -> None:
    data = group.volume("data")
    old = data.snapshot("monday")
    data.snapshot("monday2")
    old.delete()
    with pytest.raises(NotFound):
        old.read(0, 1)
    fresh = data.snapshot("monday")
    with pytest.raises(NotFound, match=r"another has its name now"):
        old.read(0, 1)
    assert fresh.read(0, 1) == b"\0" and fresh != old


def test_stores_of_another_group_are_refused(daemon, node, group) -> None:
    other = node.create_group("other", daemon.folder / "journal2", journal_size=16 * MIB)
    foreign = other.add_volume("data", size=4 * MIB)
    with pytest.raises(UsageError, match=r"stay within one group"):
        group.volume("data").synchronize(foreign)
    with pytest.raises(UsageError, match=r"stay within one group"):
        node.start_export("x", other, group.volume("data"))


def test_nodes_that_replicate(daemons) -> None:
    here, there = daemons("here").start(), daemons("there")
    there.configure(top='listen = ["127.0.0.1:0"]')
    there.start()
    with here.connect() as near, there.connect() as far:
        far.create_group("db", there.folder / "j", journal_size=16 * MIB, role="secondary").add_volume("data", size=MIB)
        group = near.create_group("db", here.folder / "j", journal_size=16 * MIB)
        data = group.add_volume("data", size=MIB)
        data.write(0, b"x" * MIB)
        link = group.add_link("paris", there.ready["listening"][0])
        told: list[dict[str, Any]] = []
        status = link.wait_synced(60, told.append)
        assert status["synced"] and told and {"divergent_bytes", "lag_bytes", "bytes_sent", "state"} <= told[-1].keys()
        assert link.status()["lag_seconds"] == 0 and link.divergent(data) == []
        assert data.snapshot("monday").wait("paris", 60).state == "performed"
        assert far.group("db").volume("data").read(0, MIB) == b"x" * MIB
        with pytest.raises(Refused, match=r"secondary") as refused:
            far.group("db").volume("data").write(0, b"y")
        assert refused.value.reason == "role"
        link.pause()
        assert link.status()["state"] == "paused"
        data.write(0, b"y" * 65536)
        wait = until(lambda: link.status()["lag_seconds"], "the secondary lags")
        assert wait > 0 and link.status()["lag_events"] == 1
        link.resume()
        link.wait_synced(60)
        group.wait(where="paris", timeout=60, progress=told.append)
        assert link.status()["lag_seconds"] == 0
        group.remove_link("paris")
        assert group.links == []


# ---------------------------------------------------------------- many at once


def test_a_long_wait_hinders_nobody(node, group) -> None:
    """One connection object, many threads: each call has a connection of its own."""
    link = group.add_link("far", "127.0.0.1:1")
    ended: list[BaseException | None] = []

    def wait() -> None:
        try:
            link.wait_synced(None, told.append)
        except BaseException as error:
            ended.append(error)

    told: list[Any] = []
    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    until(lambda: told, "the wait is under way")
    begin = time.monotonic()
    for _ in range(20):
        node.status()
        group.volume("data").write(0, b"x")
    assert time.monotonic() - begin < 60 and waiter.is_alive()
    group.remove_link("far")  # which ends the wait, with the same error as in process
    waiter.join(60)
    assert isinstance(ended[0], NotFound) and "removed" in str(ended[0])


def test_two_clients_at_once(daemon, group) -> None:
    """Each takes snapshots in turn with the other; every operation has an LSN of its own."""
    lsns: list[int] = []

    def work(name: str) -> None:
        with daemon.connect() as mine:
            data = mine.group("db").volume("data")
            for number in range(15):
                lsns.append(data.snapshot(f"{name}-{number}").lsn)
                data.write(0, b"x" * 100)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(lsns) == len(set(lsns)) == 45 and len(group.snapshots) == 45


WAITER = """
import sys, pyrepl
with pyrepl.connect(sys.argv[1]) as node:
    node.group("db").link("far").wait_synced(None, lambda told: print("told", flush=True))
"""


def test_a_client_killed_while_it_waits(daemon, node, group, python) -> None:
    group.add_link("far", "127.0.0.1:1")
    before = node.status()
    waiters = [python(WAITER, daemon.socket) for _ in range(3)]
    for waiter in waiters:
        assert waiter.stdout.readline() == "told\n"
    assert _connections(daemon) == 4
    for waiter in waiters:
        waiter.kill()
        waiter.wait()
    until(lambda: _connections(daemon) == 1, "the daemon has let go of them")
    assert _outcomes(node)["link.wait_synced", "left"] == 3
    assert node.status().keys() == before.keys() and group.link("far").status()["state"] in ("down", "connecting")


def test_a_client_killed_after_it_asked_for_an_operation(daemon, node, group) -> None:
    """The operation has its place and is performed; only the waiting ends."""
    sock = _raw(daemon)
    key = values.StoreKey(group="db", name="data")
    frames.send(sock, messages.encode_request(requests.StoreSnapshot(store=key, name="kept")))
    sock.close()
    until(lambda: [snapshot.name for snapshot in group.snapshots] == ["kept"], "the snapshot was taken")
    assert group.store("kept").read(0, 1) == b"\0"


def test_events_are_streamed(node, group) -> None:
    events = node.events()
    lsn = group.volume("data").snapshot("monday").lsn
    event = events.get(60)
    assert (event["event"], event["kind"], event["lsn"], event["created"]) == ("operation", "snapshot", lsn, ["monday"])
    with pytest.raises(WaitTimeout):
        events.get(0.05)
    with pytest.raises(UsageError):
        events.get(-1)
    events.close()
    assert events.get() is None and list(events) == []


def test_events_end_with_the_daemon(daemon, node) -> None:
    events = node.events()
    assert daemon.stop() == 0
    assert [event["event"] for event in events] == []


# ---------------------------------------------------------------- reaching a daemon


def test_where_no_daemon_is(tmp_path, daemon) -> None:
    with pytest.raises(NotFound, match=r"start pyrepld"):
        pyrepl.connect(tmp_path / "none")
    daemon.send(signal.SIGKILL)
    daemon.process.wait()
    with pytest.raises(PeerError, match=r"nobody listens"):
        pyrepl.connect(daemon.socket)
    (tmp_path / "file").touch()
    with pytest.raises(PyreplError):
        pyrepl.connect(tmp_path / "file")
    for wrong in (7, b"", "", "a\0b", None):
        with pytest.raises(UsageError):
            pyrepl.connect(wrong)
    for wrong in (0, -1, "x", float("inf"), True):
        with pytest.raises(UsageError):
            pyrepl.connect(daemon.socket, timeout=wrong)
    with pytest.raises(UsageError):
        pyrepl.connect("/" + "x" * 200)


def test_a_daemon_that_says_nothing(tmp_path) -> None:
    path = str(tmp_path / "mute")
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(path)
        mute.listen()
        begin = time.monotonic()
        with pytest.raises(PeerError, match=r"nothing came"):
            pyrepl.connect(path, timeout=0.3)
        assert time.monotonic() - begin < 60


def test_a_connection_that_was_closed(daemon) -> None:
    node = daemon.connect()
    node.close()
    node.close()
    with pytest.raises(Refused, match=r"connect again"):
        node.status()


def test_a_daemon_that_was_restarted(daemon, node) -> None:
    """Connections that wait for their next call notice, and are made anew."""
    node.status()
    daemon.stop()
    with pytest.raises(NotFound):
        node.status()
    daemon.start()
    assert node.status()["groups"] == []


def test_another_version_of_the_protocol(daemon) -> None:
    for version in (0, 2):
        sock = _dial(daemon)
        frames.send(sock, messages.encode_request(messages.Hello(version=version)))
        failure = messages.decode_reply(frames.receive(sock, frames.MOST_ANSWER)[0])
        assert isinstance(failure, values.Failure) and failure.context["reason"] == "version"
        sock.close()


# ---------------------------------------------------------------- credentials


def test_mode_of_the_socket(daemon) -> None:
    assert os.stat(daemon.socket).st_mode & 0o7777 == MODE == 0o660


AS_OTHERS = """
import os, sys
import pyrepl, pyrepl.remote
path, uid, gid, more = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), [int(word) for word in sys.argv[4:]]
os.setgroups(more); os.setgid(gid); os.setuid(uid)
try:
    with pyrepl.connect(path) as node:
        node.status()
    print("in")
except pyrepl.PyreplError as error:
    print(error.code, error.context.get("reason"), error)
"""


def _as_others(daemon: Any, uid: int, gid: int, *more: int) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", AS_OTHERS, daemon.socket, str(uid), str(gid), *map(str, more)],
                          capture_output=True, text=True, check=False, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _open_the_way(daemon: Any) -> None:
    """The folders above the socket let everybody through, so that what refuses is the socket, or the daemon."""
    for folder in (daemon.folder, *daemon.folder.parents[:4]):
        if os.stat(folder).st_uid == os.geteuid() and str(folder) != "/tmp":
            os.chmod(folder, 0o755)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@needs_root
def test_others_are_refused(daemon) -> None:
    _open_the_way(daemon)
    assert _as_others(daemon, 0, 0) == "in\n"
    assert _as_others(daemon, 65534, 65534).startswith("refused credentials this user may not use")  # by the mode
    os.chmod(daemon.socket, 0o666)
    refused = _as_others(daemon, 65534, 65534)  # by the daemon, although the mode would let it in
    assert refused.startswith("refused credentials user ") and "may not control this node" in refused
    assert "no group is configured" in refused
    assert _as_others(daemon, 65534, 0).startswith("refused credentials")  # the daemon's group is not the configured one
    daemon.await_line("WARNING", "may not control this node")


@needs_root
def test_members_of_the_group_are_let_in(daemons) -> None:
    import grp
    name = next(name for name in ("users", "games", "nogroup") if any(entry.gr_name == name for entry in grp.getgrall()))
    gid = grp.getgrnam(name).gr_gid
    daemon = daemons()
    daemon.configure(f'group = "{name}"')
    daemon.start()
    _open_the_way(daemon)
    assert os.stat(daemon.socket).st_gid == gid
    assert _as_others(daemon, 65533, gid) == "in\n"
    assert _as_others(daemon, 65533, 65533, gid, 65530) == "in\n"  # among others
    os.chmod(daemon.socket, 0o666)
    assert f"or in group '{name}'" in _as_others(daemon, 65533, 65533, 65530)


def test_a_group_that_is_not_there(daemons) -> None:
    daemon = daemons()
    daemon.configure('group = "no-such-group"')
    with pytest.raises(AssertionError, match=r"there is no group 'no-such-group'"):
        daemon.start()


# ---------------------------------------------------------------- jobs


def test_what_came_of_each_command(daemon, node, group) -> None:
    data = group.volume("data")
    data.write(0, b"no job")
    monday = data.snapshot("monday")
    with pytest.raises(Exists) as refused:
        data.snapshot("monday")
    group.status()
    made, failed = node.jobs("db")[-2:]
    assert (made["verb"], made["group"], made["state"], made["lsn"]) == ("store.snapshot", "db", "done", monday.lsn)
    assert (made["user"], made["pid"], made["code"], made["error"]) == ("root", os.getpid(), None, None)
    assert made["arguments"]["name"] == "monday" and 0 < made["seconds"] < 30
    assert (failed["state"], failed["code"], failed["error"]) == ("failed", "exists", refused.value.text)
    assert failed["lsn"] is None and failed["id"] == made["id"] + 1
    assert not [one for one in node.jobs() if one["verb"] in ("store.write", "group.status")]
    assert [one for one in node.jobs() if one["verb"] == "group.create"] and node.jobs("nothing") == []


def test_a_command_under_way_and_one_that_nobody_waited_for(daemon, node, group, tmp_path) -> None:
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, 64 << 30)  # its digest takes more than a minute
    began = subprocess.Popen([
        sys.executable, "-c",
        f"import pyrepl; pyrepl.connect({str(daemon.socket)!r}).group('db').add_image('large', {str(path)!r})",
    ])
    until(lambda: node.jobs("db")[-1]["verb"] == "group.add_image", "the command has come")
    running = node.jobs("db")[-1]
    assert running["state"] == "running" and running["pid"] == began.pid
    until(lambda: node.jobs("db")[-1]["progress"], "it has said how far it is")
    assert node.jobs("db")[-1]["seconds"] > running["seconds"]
    began.kill()
    began.wait()
    until(lambda: node.jobs("db")[-1]["state"] == "left", "the daemon has seen that nobody waits")
    left = node.jobs("db")[-1]
    assert left["id"] == running["id"] and left["seconds"] == node.jobs("db")[-1]["seconds"]


def test_only_the_newest_jobs_are_kept(tmp_path) -> None:
    node = pyrepl.Node.open(tmp_path / "node", create=True)
    jobs = Jobs(node)
    user = User(1, 2, 3, frozenset())
    with jobs.track(user, requests.LinkPause(group="db", name="first"), 0):
        assert jobs.list()[-1]["state"] == "running"
    for number in range(KEPT + 4):
        with jobs.track(user, requests.LinkPause(group="db", name=str(number)), 0):
            pass
    kept = jobs.list()
    assert len(kept) == KEPT and [one["id"] for one in kept] == list(range(6, KEPT + 6))
    with pytest.raises(ZeroDivisionError), jobs.track(user, requests.LinkPause(group="db", name="broken"), 0):
        raise ZeroDivisionError
    assert (jobs.list()[-1]["state"], jobs.list()[-1]["code"]) == ("failed", "internal")
    node.close()


# ---------------------------------------------------------------- the audit log


def test_commands_are_audited(daemon, node, group) -> None:
    data = group.volume("data")
    secret = b"canary-5f3a"
    data.write(0, secret)
    data.snapshot("monday")
    group.mark("m", secret)
    with pytest.raises(Exists):
        data.snapshot("monday")
    data.read(0, 16)
    end = group.status()["lsn"]["end"]
    line = daemon.await_line("pyrepl.audit", "verb=store.snapshot", "outcome=done")
    assert f"user=root uid={os.geteuid()} pid={os.getpid()}" in line and f"lsn={end - 2}..{end - 1}" in line
    assert '"name":"monday"' in line
    daemon.await_line("pyrepl.audit", "verb=store.snapshot", "outcome=exists", f"lsn={end}..{end}")
    daemon.await_line("pyrepl.audit", "verb=store.write", '"payload_bytes":11')
    daemon.await_line("pyrepl.audit", "verb=group.mark", '"message":11')
    log = daemon.log.read_text()
    assert "store.read" not in log and secret.decode() not in log and secret.hex() not in log and "Y2FuYXJ5" not in log


def test_words_of_a_client_do_not_make_lines(daemon, node) -> None:
    with pytest.raises(PyreplError):
        node.create_group("a\nb\x1b[31m", "/j\nforged line", journal_size=16 * MIB)
    daemon.await_line("verb=group.create", "outcome=usage", r"a\nb\u001b")
    assert not any(line.startswith(("forged", "b\x1b")) for line in daemon.lines())


def _dial(daemon: Any) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(daemon.socket)
    return sock


def _raw(daemon: Any) -> socket.socket:
    """A connection that was welcomed."""
    sock = _dial(daemon)
    frames.send(sock, messages.encode_request(messages.Hello(version=messages.VERSION)))
    assert isinstance(messages.decode_reply(frames.receive(sock, frames.MOST_ANSWER)[0]), messages.Welcome)
    return sock


def _connections(daemon: Any) -> int:
    with daemon.connect() as other:
        return _metric(other.metrics(), "pyrepl_control_connections") - 1


def _metric(text: str, name: str) -> int:
    return int(float(next(line for line in text.splitlines() if line.startswith(f"{name} ")).split()[1]))


def _outcomes(node: Any) -> dict[tuple[str, str], int]:
    from prometheus_client.parser import text_string_to_metric_families
    return {(sample.labels["verb"], sample.labels["outcome"]): int(sample.value)
            for family in text_string_to_metric_families(node.metrics()) if family.name == "pyrepl_control_requests"
            for sample in family.samples}


def test_a_set(daemon, group) -> None:
    """Over the socket as in the API: one point, members with their figures, conflicts refused with the two named."""
    data = group.volume("data")
    data.write(0, b"a" * 65536)
    monday = data.snapshot("monday")
    other = data.clone("other")
    data.write(0, b"b" * 65536)
    before = group.wait()
    with group.unordered() as ops:
        ops.restore(data, monday, extent=(0, 65536))
        ops.snapshot(other, "x")
    assert (ops.result.kind, ops.result.lsn, group.wait()) == ("set", before + 1, before + 1)
    assert [(m.kind, sorted(m.created), m.bytes_changed) for m in ops.result.members] == [
        ("restore", [], 65536), ("snapshot", ["x"], 4 * MIB)]  # fmt: skip
    assert data.read(0, 1) == b"a" and group.store("x").read(0, 1) == b"a"
    assert [one["kind"] for one in group.operations()[-1]["members"]] == ["restore", "snapshot"]
    told = r"number 1 \(snapshot\) writes store 'y', which number 2 \(restore\) reads"
    with pytest.raises(UsageError, match=told), group.unordered() as ops:
        ops.snapshot(data, "y")
        ops.restore("other", "y")
    assert group.wait() == before + 1
    with group.unordered() as ops:
        ops.refresh(monday)
        ops.copy_range("x", "other", 0, 65536)
    with group.unordered(wait=False) as ops:
        ops.delete("x")
        ops.clone(monday, "z")
        ops.resize(other, 6 * MIB)
    assert sorted(ops.result.wait().created) == ["z"] and other.size == 6 * MIB
    with group.unordered() as ops:
        ops.synchronize("z", data)
        ops.remove(other, force=True)
    assert [volume.name for volume in group.volumes] == ["data", "z"]
