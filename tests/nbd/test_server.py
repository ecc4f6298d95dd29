"""The server with real sockets: who is let in, how long a client may knock, what an export's life does to its clients, TLS."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest

import pyrepl
from pyrepl.errors import Exists, InUse, NotFound, Refused, UsageError
from pyrepl.nbd import server
from pyrepl.runtime.certificates import TlsFiles
from tests.support import clients
from tests.support.nbd_client import (
    DISC,
    EINVAL,
    EIO,
    ENOTSUP,
    ESHUTDOWN,
    FAST_ZERO,
    FLUSH,
    NO_HOLE,
    READ,
    REQ_ONE,
    STATUS,
    TRIM,
    WRITE,
    ZEROES,
    Client,
    Gone,
)

MIB = 1 << 20
SIZE = 4 * MIB
REGION = 64 << 10


def dial(address, timeout=30.0, source="127.0.0.1"):
    """A connected socket; the greeting is not read. ``source``: the host that it comes from, with TCP."""
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout)
        sock.connect(address.removeprefix("unix:"))
    else:
        host, _, port = address.rpartition(":")
        sock = socket.create_connection((host.strip("[]"), int(port)), timeout, (source, 0))
    return sock


def take(sock, count):
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise Gone
        data += part
    return data


def option(sock, number, data=b""):
    """The replies to one option: [(type, data)]."""
    sock.sendall(struct.pack(">QII", 0x49484156454F5054, number, len(data)) + data)
    found = []
    while not found or found[-1][0] in (2, 3, 4):
        _, _, kind, length = struct.unpack(">QIII", take(sock, 20))
        found.append((kind, take(sock, length)))
    return found


def greet(sock, flags=3):
    assert take(sock, 18) == b"NBDMAGICIHAVEOPT\0\3"
    sock.sendall(struct.pack(">I", flags))
    return sock


def go(sock, name):
    raw = name.encode()
    return option(sock, 7, struct.pack(">I", len(raw)) + raw + b"\0\0")


def attach(address, name, *, structured=True, contexts=(), sock=None):
    """A client in the transmission phase."""
    sock = greet(dial(address)) if sock is None else sock
    raw = name.encode()
    if structured:
        assert option(sock, 8) == [(1, b"")]
    if contexts:
        data = struct.pack(">I", len(raw)) + raw + struct.pack(">I", len(contexts))
        data += b"".join(struct.pack(">I", len(one)) + one.encode() for one in contexts)
        answer = option(sock, 10, data)
        assert len(answer) == len(contexts) + 1
    answer = go(sock, name)
    if answer[-1][0] != 1:
        sock.close()
        raise LookupError(answer[-1])
    client = Client(sock, structured=structured)
    client.told = {struct.unpack_from(">H", data)[0]: data[2:] for _, data in answer[:-1]}
    return client


def until(condition, what):
    clients.until(condition, what)


@pytest.fixture
def node(nodes):
    return nodes()


@pytest.fixture
def db(node, tmp_path):
    group = node.create_group("db", tmp_path / "journal", journal_size=64 * MIB)
    group.add_volume("vm", size=SIZE)
    return group


@pytest.fixture
def unix(node, db, tmp_path):
    address = node.listen_nbd(f"unix:{tmp_path}/nbd.sock")
    node.start_export("vm", "db", "vm")
    return address


# ---- many clients of one export


def test_many_connections_over_both_transports_see_one_volume(node, db, unix):
    tcp = node.listen_nbd("127.0.0.1:0")
    many = [attach(address, "vm", structured=bool(n % 2)) for n, address in enumerate([unix, tcp] * 8)]
    for n, client in enumerate(many):
        client.write(n * 4096, bytes([n + 1]) * 4096)
    want = b"".join(bytes([n + 1]) * 4096 for n in range(16))
    assert all(client.read(0, 65536) == want for client in many) and db.volume("vm").read(0, 65536) == want
    status = node.export("vm").status()
    assert (status["clients"], status["requests"]["write"], status["bytes_written"]) == (16, 16, 65536)
    for client in many:
        client.send(DISC)
        assert client.is_gone()
    until(lambda: node.export("vm").clients == 0, "all have left")
    assert node.export("vm").status()["requests"]["disconnect"] == 16


def test_what_a_client_is_told(node, db, unix):
    db.volume("vm").snapshot("snap")
    node.start_export("snap", "db", "snap")
    node.start_export("ro", "db", "vm", read_only=True)
    flags = {name: struct.unpack(">QH", attach(unix, name).told[0]) for name in ("vm", "snap", "ro")}
    assert {name: size for name, (size, _) in flags.items()} == dict.fromkeys(flags, SIZE)
    assert flags["ro"][1] & 2 and not flags["vm"][1] & 2
    assert [data[4:] for kind, data in option(greet(dial(unix)), 3) if kind == 2] == [b"vm", b"snap", b"ro"]


def test_unknown_exports(node, unix):
    sock = greet(dial(unix))
    for name in ("missing", "VM", "vm/", "x" * 255):
        assert go(sock, name)[-1][0] == 0x80000006
    assert go(sock, "vm")[-1][0] == 1
    with pytest.raises(NotFound):
        node.start_export("b", "db", "missing")
    with pytest.raises(NotFound):
        node.start_export("b", "other", "vm")
    with pytest.raises(Exists):
        node.start_export("vm", "db", "vm")
    with pytest.raises(UsageError):
        node.start_export("a/b", "db", "vm")
    with pytest.raises(NotFound):
        node.stop_export("b")


def test_bytes_behind_the_choice_are_not_taken_for_requests(node, unix):
    """A client that does not wait for the answer to GO breaks the protocol: it is not served."""
    sock = greet(dial(unix))
    raw = struct.pack(">QII", 0x49484156454F5054, 7, 8) + b"\0\0\0\2vm\0\0"
    sock.sendall(raw + struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 1, 0, 512) + bytes(512))
    with contextlib.suppress(ConnectionError):
        while sock.recv(4096):
            pass
    assert node.export("vm").status()["requests"]["write"] == 0


def test_the_default_export_is_the_one_that_was_told(node, db, unix, monkeypatch):
    """"" meant the only one when the client chose; that there are two by now changes nothing."""
    negotiate = server._negotiate

    def and_then(*arguments):
        last = negotiate(*arguments)
        node.start_export("other", "db", "other")
        return last

    db.volume("vm").write(0, b"this" * 128)
    db.add_volume("other", size=SIZE)
    monkeypatch.setattr(server, "_negotiate", and_then)
    assert attach(unix, "").read(0, 512) == b"this" * 128
    monkeypatch.undo()
    with pytest.raises(LookupError):
        attach(unix, "")


def test_an_export_that_is_stopped_and_started_again_is_another(node, db, unix, monkeypatch):
    """Who chose the one of before is not served from the one of now."""
    negotiate = server._negotiate

    def and_then(*arguments):
        last = negotiate(*arguments)
        node.stop_export("vm")
        node.start_export("vm", "db", "other")
        return last

    db.add_volume("other", size=SIZE)
    monkeypatch.setattr(server, "_negotiate", and_then)
    with pytest.raises((Gone, ConnectionError)):
        attach(unix, "vm").read(0, 512)
    monkeypatch.undo()
    assert attach(unix, "vm").read(0, 512) == bytes(512)


# ---- the life of an export


def test_an_export_with_clients_is_stopped_by_force_only(node, unix):
    client = attach(unix, "vm")
    client.write(0, b"x" * 512)  # who was answered is attached
    with pytest.raises(InUse):
        node.stop_export("vm")
    assert client.read(0, 512) == b"x" * 512
    node.stop_export("vm", force=True)
    with pytest.raises((Gone, ConnectionError)):
        client.call(READ, 0, 512)
    with pytest.raises(LookupError):
        attach(unix, "vm")
    node.start_export("vm", "db", "vm")
    assert attach(unix, "vm").read(0, 512) == b"x" * 512


def test_exports_are_kept_and_stopped_ones_are_not(nodes, tmp_path):
    with nodes() as node:
        group = node.create_group("db", tmp_path / "journal", journal_size=16 * MIB)
        group.add_volume("vm", size=SIZE)
        for name, options in (("a", {}), ("b", {"read_only": True}), ("c", {}), ("d", {"keep": False})):
            node.start_export(name, group, "vm", **options)
        node.stop_export("c")
    node = nodes()
    assert [(export.name, export.read_only) for export in node.exports] == [("a", None), ("b", True)]
    address = node.listen_nbd(f"unix:{tmp_path}/s")
    attach(address, "a").write(0, b"y" * 512)
    assert attach(address, "b").read(0, 512) == b"y" * 512


def test_a_removed_volume_is_gone_for_its_clients(node, db, unix):
    client = attach(unix, "vm", contexts=["base:allocation"])
    client.write(0, bytes(512))
    db.volume("vm").remove(force=True)
    assert client.call(WRITE, 0, data=bytes(512)).error == client.call(READ, 0, 512).error == ESHUTDOWN
    assert client.call(STATUS, 0, 65536).error == ESHUTDOWN
    assert client.call(TRIM, 0, 2 * MIB).error == client.call(ZEROES, 1, 5).error == ESHUTDOWN
    assert node.export("vm").status()["state"] == "gone"
    with pytest.raises(LookupError):
        attach(unix, "vm")


def test_a_group_that_fails_lets_its_clients_read(node, db, unix):
    client = attach(unix, "vm")
    client.write(0, b"z" * 512)
    assert client.call(FLUSH).error == 0
    db.site.window.fail(5)
    assert client.call(WRITE, 0, data=bytes(512)).error == EIO and client.call(FLUSH).error == EIO
    assert client.read(0, 512) == b"z" * 512
    until(lambda: node.export("vm").status()["read_only"], "the export says so")


def test_a_secondary_shows_one_lsn_and_nothing_before_it_is_consistent(nodes, tmp_path):
    here, there = nodes("here"), nodes("there")
    for node, role in ((here, "primary"), (there, "secondary")):
        group = node.create_group("db", tmp_path / f"{role}.journal", journal_size=32 * MIB, role=role)
        group.add_volume("vm", size=SIZE, zero=True)
    there.start_export("copy", "db", "vm")
    address = there.listen_nbd(f"unix:{tmp_path}/there.sock")
    with pytest.raises(LookupError) as refused:
        attach(address, "copy")
    assert refused.value.args[0][0] == 0x80000007 and refused.value.args[0][1]  # the text says what to wait for
    host, port = there.listen("127.0.0.1", 0)
    group = here.group("db")
    link = group.add_link("there", f"{host}:{port}")
    volume = group.volume("vm")
    volume.write(0, b"one!" * 1024)
    until(lambda: there.export("copy").status()["state"] == "serving" and there.group("db").volume("vm").read(0, 4) == b"one!",
          "the secondary is consistent and holds the write")
    first = attach(address, "copy", contexts=["base:allocation"])
    assert struct.unpack(">QH", first.told[0])[1] & 2
    volume.write(0, b"two!" * 1024)
    until(lambda: there.group("db").volume("vm").read(0, 4) == b"two!", "the second write is there")
    second = attach(address, "copy")
    for client in (first, second):  # the same view for all who are attached
        assert client.read(0, 4096) == b"one!" * 1024 and client.call(WRITE, 0, data=bytes(512)).error == 1
    assert first.call(STATUS, 0, SIZE).statuses[1][0][1] == 0
    for client in (first, second):
        client.send(DISC)
        assert client.is_gone()
    until(lambda: there.export("copy").clients == 0 and there.export("copy").status()["view_lsn"] is None, "the view is given back")
    assert attach(address, "copy").read(0, 4) == b"two!"
    assert link is not None


# ---- block status, against a twin


@pytest.mark.parametrize("alignment", [512, 4096])
def test_allocation_against_a_twin(nodes, tmp_path, alignment):
    """What is told to be zeros reads as zeros, so nothing that was written is told to be a hole; REQ_ONE is one extent."""
    import random

    node, rng = nodes(), random.Random(alignment)
    group = node.create_group("db", tmp_path / "journal", journal_size=64 * MIB, alignment=alignment)
    group.add_volume("vm", size=SIZE)
    node.start_export("vm", "db", "vm")
    group.add_link("away", "127.0.0.1:1")
    address = node.listen_nbd(f"unix:{tmp_path}/s")
    client = attach(address, "vm", contexts=["base:allocation", "x-pyrepl:diverged/away"])
    twin = bytearray(SIZE)
    holes = 0
    for step in range(60):
        offset = rng.randrange(SIZE)
        length = min(rng.choice([1, 512, 5000, REGION, 300_000]), SIZE - offset)
        kind = rng.choice([WRITE, WRITE, ZEROES, TRIM])
        if kind == WRITE:
            client.write(offset, bytes([step + 1]) * length)
            twin[offset : offset + length] = bytes([step + 1]) * length
        else:
            assert client.call(kind, offset, length).error == 0
            twin[offset : offset + length] = bytes(length)
        at, span = rng.randrange(SIZE), rng.randrange(1, SIZE)
        span = min(span, SIZE - at)
        reply = client.call(STATUS, at, span)
        assert reply.error == 0 and set(reply.statuses) == {1, 2}
        place = at
        for count, flags in reply.statuses[1]:
            assert flags in (0, 3)
            end = min(place + count, at + span)
            if flags == 3:
                holes += 1
                assert not any(twin[place:end]), f"step {step}: [{place}, {end}) is not zeros"
            place += count
        assert place >= at + span or len(reply.statuses[1]) == 1024
        one = client.call(STATUS, at, span, flags=REQ_ONE)
        for context, extents in one.statuses.items():
            ((count, flags),) = extents
            assert count <= span
            assert context == 2 or not flags or not any(twin[at : at + count])
        assert client.read(at, min(span, 70_000)) == twin[at : at + min(span, 70_000)]
    assert holes and client.call(STATUS, SIZE - 1, 2).error == client.call(STATUS, 0, 0).error == EINVAL
    assert attach(address, "vm", contexts=[]).call(STATUS, 0, 512).error == EINVAL


def test_a_trim_of_the_whole_device(node, unix):
    client = attach(unix, "vm", contexts=["base:allocation"])
    client.write(5, b"x" * MIB)
    assert client.call(TRIM, 0, SIZE).error == 0 and client.read(0, SIZE) == bytes(SIZE)
    client.write(5, b"y" * 100)
    assert client.call(ZEROES, 1, SIZE - 2).error == 0 and client.read(0, SIZE) == bytes(SIZE)


def test_zeroes_that_must_leave_no_hole_take_their_space(node, db, unix):
    client = attach(unix, "vm", contexts=["base:allocation"])
    (file,) = (db.site.shelf.places[db.volume("vm").id].path,)

    def blocks():
        db.wait(db.flush())
        return os.stat(file).st_blocks * 512

    client.write(0, b"x" * MIB)
    assert client.call(ZEROES, 0, SIZE).error == 0 and client.call(STATUS, 0, SIZE).statuses[1] == [(SIZE, 3)]
    assert client.call(ZEROES, 0, SIZE, flags=NO_HOLE | FAST_ZERO).error == ENOTSUP and client.call(STATUS, 0, SIZE).statuses[1] == [(SIZE, 3)]
    assert client.call(ZEROES, 0, SIZE, flags=NO_HOLE).error == 0
    assert client.read(0, SIZE) == bytes(SIZE) and client.call(STATUS, 0, SIZE).statuses[1] == [(SIZE, 0)]
    assert blocks() >= SIZE and client.call(STATUS, 0, SIZE).statuses[1] == [(SIZE, 0)]


# ---- who may knock, and for how long


def knock(address, count, source="127.0.0.1"):
    """Clients that say nothing, all of them known to the server."""
    knocking = [dial(address, source=source) for _ in range(count)]
    for sock in knocking:
        assert take(sock, 18)
    return knocking


def is_let_in(sock):
    with contextlib.suppress(Gone, ConnectionError):
        return take(sock, 18) == b"NBDMAGICIHAVEOPT\0\3"
    return False


def test_the_sixty_fifth_that_knocks_is_turned_away(node, unix, monkeypatch):
    """Of one user, as long as the others have had no time."""
    monkeypatch.setattr(server, "GRACE", 60.0)
    knocking = knock(unix, server.MOST_KNOCKING)
    assert not is_let_in(dial(unix))
    knocking.pop().close()
    until(lambda: _can_read(unix), "its place is free as soon as the server has seen it go")
    client = attach(unix, "vm")
    client.write(0, b"x" * 512)  # those who knock hold up nobody
    assert all(is_open(sock) for sock in knocking)
    for sock in knocking:
        sock.close()


def test_who_is_silent_keeps_out_nobody_of_the_same_user_for_long(node, unix, monkeypatch):
    monkeypatch.setattr(server, "GRACE", 0.0)
    knocking = knock(unix, server.MOST_KNOCKING)
    for _ in range(3):
        attach(unix, "vm").write(0, b"x" * 512)
    gone = [not is_open(sock) for sock in knocking]
    assert gone == [True] + [False] * 63  # the oldest has made room, and who has chosen knocks no more


def test_who_is_silent_keeps_out_no_other_host(node, db, unix, monkeypatch):
    """Whoever has most of those who knock loses one, at once."""
    monkeypatch.setattr(server, "GRACE", 60.0)
    tcp = node.listen_nbd("127.0.0.1:0")
    many, few = knock(tcp, server.MOST_KNOCKING - 2, "127.0.0.3"), knock(tcp, 2, "127.0.0.4")
    assert not is_let_in(dial(tcp, source="127.0.0.3"))
    for _ in range(2):
        client = attach(tcp, "vm", sock=greet(dial(tcp, source="127.0.0.2")))
        client.write(0, b"x" * 512)
    assert [is_open(sock) for sock in many] == [False] + [True] * (len(many) - 1) and all(is_open(sock) for sock in few)
    late = knock(tcp, 31, "127.0.0.2")  # until both have as many, at the cost of those who have most
    assert sum(is_open(sock) for sock in many) == 31 and all(is_open(sock) for sock in [*few, *late])
    assert not is_let_in(dial(tcp, source="127.0.0.2"))
    for sock in [*many, *few, *late]:
        sock.close()


def test_users_of_a_unix_socket_are_told_apart(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with dial(f"unix:{tmp_path}/s"), listener.accept()[0] as taken:
            assert server._peer(taken) == os.getuid()


def is_open(sock):
    """Whether the server has not closed it; nothing is to be read there."""
    sock.settimeout(0)
    try:
        return sock.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def test_no_more_are_served_than_may_be(nodes, db, unix, monkeypatch):
    """128; and those who are attached are no longer among those who knock."""
    served = []
    for _ in range(128):
        served.append(attach(unix, "vm", structured=False))
        served[-1].read(0, 1)  # who was answered is served
    with pytest.raises(LookupError, match="as many clients as may be"):  # told so, not let in and then sent away
        attach(unix, "vm")
    served.pop().send(DISC)
    until(lambda: db.site is not None and _can_read(unix), "there is room again")
    assert all(client.read(0, 512) == bytes(512) for client in served)
    for client in served:
        client.sock.close()


def _can_read(address):
    with contextlib.suppress(Gone, ConnectionError, LookupError):
        return attach(address, "vm").read(0, 512) == bytes(512)
    return False


@pytest.mark.parametrize("habit", ["silent", "half an option", "one byte now and then", "never reads", "talks on"])
def test_a_slow_negotiation_is_ended(node, unix, monkeypatch, habit):
    monkeypatch.setattr(server, "NEGOTIATION", 0.6)
    sock = dial(unix)
    begin = time.monotonic()
    with contextlib.suppress(OSError, Gone):
        if habit == "half an option":
            greet(sock).sendall(b"IHAVE")
        elif habit != "silent":
            greet(sock)
        while True:
            if habit == "one byte now and then":
                sock.sendall(b"I" if time.monotonic() < begin else b"IHAVEOPT"[:1])
                time.sleep(0.1)
            elif habit == "talks on":
                option(sock, 99)
                time.sleep(0.1)
            elif habit == "never reads":
                sock.sendall(struct.pack(">QII", 0x49484156454F5054, 3, 0))
                time.sleep(0.05)
            else:
                break
            assert time.monotonic() - begin < 60, "it is served for ever"
    sock.settimeout(60)
    with contextlib.suppress(ConnectionError):
        while sock.recv(65536):
            pass
    assert time.monotonic() - begin < 60
    assert attach(unix, "vm").read(0, 512) == bytes(512)


def test_clients_that_come_and_go_leave_nothing(node, unix):
    def resources():
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    attach(unix, "vm").send(DISC)
    until(lambda: node.export("vm").clients == 0, "it has left")
    before = resources()
    for n in range(300):
        sock = dial(unix)
        if n % 3 == 0:
            client = attach(unix, "vm", sock=greet(sock))
            client.read(0, 512)
            if n % 2:
                client.send(DISC)
        elif n % 3 == 1:
            greet(sock)
        sock.close()
    until(lambda: resources() <= before and node.export("vm").clients == 0, f"descriptors and threads as before: {before}")


# ---- addresses


def test_a_port_scan_finds_the_listeners_and_nothing_else(node, db, unix):
    def listening():
        inodes = set()
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(f"/proc/self/fd/{fd}").removeprefix("socket:[").rstrip("]"))
        found = set()
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == "0A" and words[9] in inodes:
                    found.add(int(words[1].rpartition(":")[2], 16))
        return found

    assert listening() == set()
    ports = {int(node.listen_nbd("127.0.0.1:0").rpartition(":")[2]) for _ in range(2)}
    assert listening() == ports and len(ports) == 2
    _, port = node.listen("127.0.0.1", 0)
    assert listening() == ports | {port}
    address = f"127.0.0.1:{min(ports)}"
    node.stop_nbd(address)
    assert listening() == (ports | {port}) - {min(ports)}
    with pytest.raises(NotFound):
        node.stop_nbd(address)
    node.close()
    assert listening() == set()


def test_addresses_that_are_refused(node, db, tmp_path):
    with pytest.raises(Refused, match="insecure"):
        node.listen_nbd("0.0.0.0:0")
    node.listen_nbd("0.0.0.0:0", insecure=True)
    for bad in ("", "nonsense", "unix", ":0", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:65536", "::1:0", "unix:/no/such/folder/s",
                "unix:" + "x" * 200, None, 7):
        with pytest.raises(UsageError):
            node.listen_nbd(bad)
    taken = node.listen_nbd("127.0.0.1:0")
    with pytest.raises(InUse):
        node.listen_nbd(taken)
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(Exists):
        node.listen_nbd(f"unix:{tmp_path}/file")
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_stale_unix_socket_is_replaced_and_a_live_one_is_not(nodes, node, db, unix, tmp_path):
    stale = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(stale))
        sock.listen()
    address = node.listen_nbd(f"unix:{stale}")
    assert attach(address, "vm").read(0, 512) == bytes(512) and stale.stat().st_mode & 0o777 == 0o660
    other = nodes("other")
    with pytest.raises(InUse):
        other.listen_nbd(address)
    with pytest.raises(InUse):
        node.listen_nbd(address)
    node.stop_nbd(address)
    assert not stale.exists()
    assert other.listen_nbd(address) == address
    other.close()
    assert not stale.exists()


def test_the_end_is_prompt_with_64_clients(node, db, unix, monkeypatch):
    """Attached, knocking, in the midst of a write, with replies that nobody reads. Nobody who hangs is waited for."""
    monkeypatch.setattr(server, "LINGER", 600.0)
    tcp = node.listen_nbd("127.0.0.1:0")
    held = []
    for n in range(64):
        if n % 4 == 0:
            held.append(dial(unix))
            continue
        client = attach((unix, tcp)[n % 2], "vm", structured=False)
        held.append(client.sock)
        if n % 4 == 1:
            client.sock.sendall(struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 1, 0, MIB) + bytes(1000))
        elif n % 4 == 2:
            client.sock.sendall(b"".join(struct.pack(">IHHQQI", 0x25609513, 0, READ, k, 0, MIB) for k in range(30)))
    begin = time.monotonic()
    node.close()
    assert time.monotonic() - begin < 60
    for sock in held:
        with contextlib.suppress(ConnectionError):
            while sock.recv(1 << 20):
                pass
        sock.close()


# ---- TLS


def openssl(*words, folder):
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


class Authority:
    """A CA and what it has signed, as files that libnbd and qemu understand, too."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=pyrepl test CA",
                "-keyout", "ca-key.pem", "-out", "ca-cert.pem", "-days", "2", folder=folder)
        for name in ("server", "client"):
            self.sign(name)

    def sign(self, name):
        (self.folder / "ext").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}", "-keyout",
                f"{name}-key.pem", "-out", f"{name}.csr", folder=self.folder)
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-days", "2",
                "-extfile", "ext", "-out", f"{name}-cert.pem", folder=self.folder)
        os.chmod(self.folder / f"{name}-key.pem", 0o600)

    def files(self, name="server", *, ca=True):
        return TlsFiles(certificate=str(self.folder / f"{name}-cert.pem"), key=str(self.folder / f"{name}-key.pem"),
                        ca=str(self.folder / "ca-cert.pem") if ca else None)

    def context(self, own="client"):
        context = ssl.create_default_context(cafile=str(self.folder / "ca-cert.pem"))
        if own:
            context.load_cert_chain(self.folder / f"{own}-cert.pem", self.folder / f"{own}-key.pem")
        return context


@pytest.fixture(scope="module")
def authorities(tmp_path_factory):
    if clients.find("openssl") is None:
        pytest.skip("openssl is missing: apt-get install openssl")
    folder = tmp_path_factory.mktemp("tls")
    return Authority(folder / "ours"), Authority(folder / "foreign")


def attach_tls(address, name, context, **options):
    sock = greet(dial(address))
    assert go(sock, name)[-1][0] == 0x80000005  # not without TLS
    assert option(sock, 5) == [(1, b"")]
    secure = context.wrap_socket(sock, server_hostname="127.0.0.1")
    return attach(address, name, sock=secure, **options)


def test_tls_serves_what_plain_sockets_serve(node, db, unix, authorities):
    ours, _ = authorities
    address = node.listen_nbd("127.0.0.1:0", tls=ours.files())
    client = attach_tls(address, "vm", ours.context(), contexts=["base:allocation"])
    assert client.sock.version() == "TLSv1.3"
    data = os.urandom(3 * MIB + 5)
    client.write(7, data)
    assert client.read(7, len(data)) == data and attach(unix, "vm").read(7, 1000) == data[:1000]
    assert client.call(STATUS, 0, SIZE).error == 0
    many = [client.pack(READ, n * 4096, 65536) for n in range(64)]
    client.sock.sendall(b"".join(packed for packed, _ in many))  # no thread: two may not use one TLS object at once
    assert {client.reply()[:2] for _ in many} == {(cookie, 0) for _, cookie in many}
    client.send(DISC)
    assert client.is_gone()


def test_tls_refuses_who_is_not_of_the_authority(node, db, unix, authorities):
    ours, foreign = authorities
    address = node.listen_nbd("127.0.0.1:0", tls=ours.files())
    nobody, stranger = ours.context(own=None), ours.context(own=None)
    stranger.load_cert_chain(foreign.folder / "client-cert.pem", foreign.folder / "client-key.pem")
    old = ours.context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    for context in (nobody, stranger, old):
        with pytest.raises((ssl.SSLError, Gone, ConnectionError)):
            attach_tls(address, "vm", context).read(0, 512)
    with pytest.raises(ssl.SSLCertVerificationError):  # the client's own look at the server
        attach_tls(address, "vm", foreign.context())
    open_to_all = node.listen_nbd("127.0.0.1:0", tls=ours.files(ca=False))
    assert attach_tls(open_to_all, "vm", nobody).read(0, 512) == bytes(512)
    for garbage in (b"\x16\x03\x01\xff\xff" + b"x" * 2000, b"GET / HTTP/1.0\r\n\r\n", b""):
        sock = greet(dial(address))
        assert option(sock, 5) == [(1, b"")]
        sock.sendall(garbage)
        sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while sock.recv(4096):
                pass
    assert attach_tls(address, "vm", ours.context()).read(0, 512) == bytes(512)


def test_the_log_says_who_was_not_served_and_is_not_flooded(node, db, unix, authorities, caplog):
    address = node.listen_nbd("127.0.0.1:0", tls=authorities[0].files())
    begin = time.monotonic()
    with caplog.at_level("INFO", logger="pyrepl.nbd"):
        for _ in range(20):
            sock = greet(dial(address))
            assert option(sock, 5) == [(1, b"")]
            sock.sendall(b"\x16\x03\x01\xff\xff" + b"x" * 2000)
            with contextlib.suppress(ConnectionError):
                while sock.recv(4096):
                    pass
            sock.close()
        clients.until(lambda: "was not served" in caplog.text, "it is logged")
    lines = [record.getMessage() for record in caplog.records if "was not served" in record.getMessage()]
    assert lines[0].startswith("a client at 127.0.0.1 was not served: ")
    assert len(lines) <= 1 + (time.monotonic() - begin) / server.QUIET and len(lines) < 20


def test_keys_and_certificates_that_cannot_be_used(node, authorities, tmp_path):
    ours, foreign = authorities
    files = ours.files()
    key = tmp_path / "key.pem"
    key.write_bytes(Path(files.key).read_bytes())
    (tmp_path / "empty").touch(mode=0o600)
    (tmp_path / "link").symlink_to(files.key)
    (tmp_path / "text").write_text("nothing")

    def use(**changed):
        return node.listen_nbd("127.0.0.1:0", tls=TlsFiles(**{"certificate": files.certificate, "key": files.key, "ca": files.ca, **changed}))

    for mode in (0o640, 0o604, 0o660):
        key.chmod(mode)
        with pytest.raises(Refused, match="chmod 600"):
            use(key=str(key))
    for path in (tmp_path / "empty", tmp_path / "link"):
        with pytest.raises(Refused):
            use(key=str(path))
    key.chmod(0o600)
    use(key=str(key))
    for field in ("certificate", "key", "ca"):
        with pytest.raises(NotFound):
            use(**{field: str(tmp_path / "missing")})
    for wrong in ({"certificate": str(tmp_path / "text")}, {"ca": str(tmp_path / "text")}, {"key": foreign.files().key}):
        with pytest.raises(UsageError):
            use(**wrong)


def test_certificates_are_renewed_while_clients_are_attached(node, db, unix, authorities):
    ours, foreign = authorities
    address = node.listen_nbd("127.0.0.1:0", tls=ours.files())
    before = attach_tls(address, "vm", ours.context())
    with pytest.raises(NotFound):
        node.listen_nbd(address, tls=TlsFiles(certificate="/missing", key=ours.files().key))
    assert attach_tls(address, "vm", ours.context()).read(0, 1) == b"\0"  # those of before stay
    assert node.listen_nbd(address, tls=foreign.files()) == address
    assert attach_tls(address, "vm", foreign.context()).read(0, 512) == bytes(512)
    with pytest.raises(ssl.SSLError):
        attach_tls(address, "vm", ours.context())
    assert before.read(0, 512) == bytes(512)


def test_a_stopped_server_ends_its_tls_clients(node, db, unix, authorities, monkeypatch):
    monkeypatch.setattr(server, "LINGER", 600.0)
    ours, _ = authorities
    address = node.listen_nbd("127.0.0.1:0", tls=ours.files())
    client = attach_tls(address, "vm", ours.context())
    client.read(0, 512)
    threads = threading.active_count()
    begin = time.monotonic()
    node.stop_nbd(address)
    assert time.monotonic() - begin < 60 and threading.active_count() < threads
    with pytest.raises((Gone, OSError)):
        client.call(READ, 0, 512)


def test_foreign_clients_over_tls(node, db, unix, authorities, tmp_path):
    ours, _ = authorities
    address = node.listen_nbd("127.0.0.1:0", tls=ours.files())
    clients.need("libnbd for Python", "qemu-img")
    host, port = address.split(":")
    code = """
import sys, nbd
folder, host, port = sys.argv[1:]
h = nbd.NBD()
h.set_tls(nbd.TLS_REQUIRE); h.set_tls_certificates(folder); h.set_export_name("vm")
h.connect_tcp(host, port)
assert h.get_tls_negotiated() and h.get_structured_replies_negotiated()
h.pwrite(b"over tls" * 512, 4096); h.flush()
assert h.pread(4096, 4096) == b"over tls" * 512
h.shutdown(); print("good")
"""
    done = subprocess.run([clients.find("libnbd for Python"), "-c", code, str(ours.folder), host, port], capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.stdout == "good\n", done.stderr
    db.volume("vm").write(MIB, os.urandom(MIB))
    image = tmp_path / "image"
    clients.run("qemu-img", "convert", "--object", f"tls-creds-x509,id=t,dir={ours.folder},endpoint=client,verify-peer=yes", "--image-opts",
                f"driver=nbd,host={host},port={port},export=vm,tls-creds=t", "-O", "raw", image)
    assert image.read_bytes() == db.volume("vm").read(0, SIZE)


def test_pyrepl_is_imported_without_tls():
    code = "import sys, pyrepl; assert 'ssl' not in sys.modules and 'pyrepl.nbd.server' not in sys.modules"
    subprocess.run([os.sys.executable, "-c", code], check=True)
    assert pyrepl.Node
