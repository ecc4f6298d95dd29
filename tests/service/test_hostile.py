"""Whatever bytes come on the control socket: no crash, no growth, and others are served meanwhile."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import pyrepl
from pyrepl.errors import PeerError, PyreplError, Refused
from pyrepl.remote import frames, messages, requests, values

from .conftest import Daemon, until

SEED = int(os.environ.get("PYREPL_SEED", "20261125"))
SENT = {"requests": 0, "connections": 0}  # to the victim, damaged or not
HELLO = messages.encode_request(messages.Hello(version=messages.VERSION))


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all attacks; it lives, and has not grown, at the end."""
    daemon = Daemon(tmp_path_factory.mktemp("victim"))
    daemon.configure("[limits]\nconnections = 1024\nrequests_per_second = 10000")  # these limits have tests of their own
    daemon.start()
    try:
        with daemon.connect() as node:
            node.create_group("db", daemon.folder / "journal", journal_size=16 << 20).add_volume("data", size=1 << 20)
            before, threads = memory(daemon), len(workers(daemon))
            yield daemon
            assert node.group("db").volume("data").read(0, 1) == b"\0"
            until(lambda: len(workers(daemon)) <= threads + 2, "the threads of all attacks are gone")
            assert memory(daemon) - before < 64 << 20
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log.read_text()
        print(f"\ncontrol socket: {SENT['requests']} hostile requests on {SENT['connections']} connections (seed {SEED})")
    finally:
        daemon.kill()


def memory(daemon: Daemon) -> int:
    """Resident bytes."""
    with open(f"/proc/{daemon.pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


def workers(daemon: Daemon) -> list[str]:
    """Names of its threads, without those that the kernel lends to io_uring."""
    tasks = os.listdir(f"/proc/{daemon.pid}/task")
    names = [Path(f"/proc/{daemon.pid}/task/{task}/comm").read_text() for task in tasks]
    return [name for name in names if not name.startswith("iou-")]


def dial(daemon: Daemon) -> socket.socket:
    SENT["connections"] += 1
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(60)
    sock.connect(daemon.socket)
    return sock


def welcomed(daemon: Daemon) -> socket.socket:
    sock = dial(daemon)
    frames.send(sock, HELLO)
    assert isinstance(reply(sock), messages.Welcome)
    return sock


def frame(body: bytes, payload: bytes = b"") -> bytes:
    SENT["requests"] += body != HELLO
    return frames.HEADER.pack(frames.MAGIC, len(body), len(payload), 0) + body + payload


def reply(sock: socket.socket) -> Any:
    got = frames.receive(sock, frames.MOST_ANSWER, first=60)
    return None if got is None else messages.decode_reply(got[0])


def served(daemon: Daemon) -> None:
    """Somebody else is, at once."""
    begin = time.monotonic()
    with daemon.connect() as node:
        assert node.status()["groups"][0]["group"] == "db"
    assert time.monotonic() - begin < 60


def drained(sock: socket.socket) -> bytes:
    """All that comes until the daemon ends the connection."""
    parts = []
    try:
        while part := sock.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass  # it ended with bytes of ours unread
    return b"".join(parts)


@pytest.mark.parametrize("greeted", [False, True])
@pytest.mark.parametrize("data", [
    b"GET / HTTP/1.1\r\n\r\n" + bytes(16),
    bytes(16),
    b"\xff" * 16,
    frames.HEADER.pack(b"prc2", 4, 0, 0) + b"aaaa",
    frames.HEADER.pack(frames.MAGIC, 4, 0, 1) + b"aaaa",
    *(frames.HEADER.pack(frames.MAGIC, length, 0, 0) for length in (frames.MOST_REQUEST + 1, 1 << 31, (1 << 32) - 1)),
    *(frames.HEADER.pack(frames.MAGIC, 4, length, 0) for length in (frames.MOST_PAYLOAD + 1, 1 << 31, (1 << 32) - 1)),
], ids=["http", "zeros", "ones", "magic", "reserved", "body+1", "body31", "body32", "payload+1", "payload31", "payload32"])
def test_what_is_no_frame_ends_the_connection(victim: Daemon, greeted: bool, data: bytes) -> None:
    sock = welcomed(victim) if greeted else dial(victim)
    sock.sendall(data)
    answer = messages.decode_reply(frames.receive(sock, frames.MOST_ANSWER, first=60)[0])
    assert isinstance(answer, values.Failure) and answer.code == "protocol"
    assert drained(sock) == b""
    sock.close()
    served(victim)


BODIES = {
    "empty": b"",
    "nested arrays": b"\x91" * 60000,
    "nested maps": b"\x81\xa1a" * 20000,
    "huge array": b"\xdd\xff\xff\xff\xff",
    "huge map": b"\xdf\xff\xff\xff\xff",
    "huge string": b"\xdb\xff\xff\xff\xff",
    "huge bytes": b"\xc6\xff\xff\xff\xff",
    "huge extension": b"\xc9\xff\xff\xff\xff\x01",
    "truncated": messages.encode_request(requests.NodeStatus())[:-1],
    "trailing": messages.encode_request(requests.NodeStatus()) + b"\xc0",
    "no verb": msgspec.msgpack.encode({"group": "db"}),
    "unknown verb": msgspec.msgpack.encode({"verb": "node.explode"}),
    "private verb": msgspec.msgpack.encode({"verb": "__class__"}),
    "number as verb": msgspec.msgpack.encode({"verb": 7}),
    "unknown field": msgspec.msgpack.encode({"verb": "node.status", "more": 1}),
    "missing field": msgspec.msgpack.encode({"verb": "group.status"}),
    "wrong type": msgspec.msgpack.encode({"verb": "group.status", "group": 7}),
    "long name": msgspec.msgpack.encode({"verb": "group.status", "group": "x" * 1025}),
    "bad utf-8": b"\x82\xa4verb\xacgroup.status\xa5group\xa2\xff\xfe",
    "duplicate key": b"\x82\xa4verb\xabnode.status\xa4verb\xaanode.other",
    "float for int": msgspec.msgpack.encode({"verb": "group.operation", "group": "db", "lsn": 1.5}),
    "bool for int": msgspec.msgpack.encode({"verb": "group.operation", "group": "db", "lsn": True}),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_what_is_no_request_is_answered_and_the_connection_goes_on(victim: Daemon, body: bytes) -> None:
    sock = welcomed(victim)
    sock.sendall(frame(body))
    answer = reply(sock)
    assert isinstance(answer, values.Failure) and answer.code == "usage"
    sock.sendall(frame(messages.encode_request(requests.NodeGroups())))
    assert reply(sock) == messages.Answer(value=["db"])
    sock.close()


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_what_is_no_hello_ends_the_connection(victim: Daemon, body: bytes) -> None:
    sock = dial(victim)
    sock.sendall(frame(body))
    assert isinstance(reply(sock), values.Failure) and drained(sock) == b""
    sock.close()


def test_a_request_before_the_hello_and_a_second_hello(victim: Daemon) -> None:
    for sock, data in ((dial(victim), frame(messages.encode_request(requests.NodeStatus()))), (welcomed(victim), frame(HELLO))):
        sock.sendall(data)
        answer = reply(sock)
        assert isinstance(answer, values.Failure) and answer.code == "protocol" and drained(sock) == b""
        sock.close()


def test_extreme_numbers(victim: Daemon) -> None:
    """Every number of every request at its extremes: an error of the API, never another."""
    sock = welcomed(victim)
    key = {"group": "db", "name": "data"}
    count = 0
    for number in (-1, 0, 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, -(1 << 63), (1 << 64) - 1):
        for asked in (
            {"verb": "store.read", "store": key, "offset": number, "length": 1},
            {"verb": "store.read", "store": key, "offset": 0, "length": number},
            {"verb": "store.digest", "store": key, "offset": number, "length": number},
            {"verb": "store.zero", "store": key, "offset": number, "length": number},
            {"verb": "store.discard", "store": key, "offset": 1, "length": number},
            {"verb": "store.write", "store": key, "offset": number},
            {"verb": "store.show", "store": {**key, "id": number}},
            {"verb": "volume.resize", "store": key, "size": number},
            {"verb": "volume.restore", "store": key, "snapshot": key, "extent": [number, number]},
            {"verb": "group.add_volume", "group": "db", "name": "big", "size": number},
            {"verb": "group.wait", "group": "db", "lsn": number, "timeout": 0.0},
            {"verb": "group.operation", "group": "db", "lsn": number},
            {"verb": "group.create", "group": "g", "journal": "/nonexistent/j", "journal_size": number},
            {"verb": "group.create", "group": "g", "journal": "/nonexistent/j", "journal_size": 1 << 24, "region_size": number},
            {"verb": "node.listen", "host": "127.0.0.1", "port": max(number, 2) if number != 0 else -5},
        ):
            if asked["verb"] == "node.listen" and asked["port"] <= 65535:
                continue
            sock.sendall(frame(msgspec.msgpack.encode(asked)))
            answer = reply(sock)
            assert isinstance(answer, messages.Answer | values.Failure), asked
            assert not isinstance(answer, values.Failure) or answer.code not in ("internal", "protocol", "corrupt"), (asked, answer)
            count += 1
    assert count > 100
    sock.close()


def test_a_payload_where_none_belongs(victim: Daemon) -> None:
    sock = welcomed(victim)
    sock.sendall(frame(messages.encode_request(requests.NodeStatus()), b"x"))
    answer = reply(sock)
    assert isinstance(answer, values.Failure) and "takes no payload" in answer.text
    sock.close()


@pytest.mark.parametrize("delta", [-1, 0, 1])
def test_limit_of_a_body(victim: Daemon, delta: int) -> None:
    """A request of 64 KiB is read; one byte more ends the connection."""
    bare = len(messages.encode_request(requests.GroupMark(group="db", name="m", message=b"x" * 60000))) - 60000
    request = requests.GroupMark(group="db", name="m", message=b"x" * (frames.MOST_REQUEST - bare + delta))
    body = messages.encode_request(request)
    assert len(body) == frames.MOST_REQUEST + delta
    sock = welcomed(victim)
    sock.sendall(frame(body))
    answer = reply(sock)
    assert answer.code == ("protocol" if delta > 0 else "usage") and ("4096" in answer.text) == (delta <= 0)
    sock.close()


@pytest.mark.parametrize("delta", [-1, 0, 1])
def test_limit_of_a_payload(victim: Daemon, delta: int) -> None:
    sock = welcomed(victim)
    body = messages.encode_request(requests.StoreWrite(store=values.StoreKey(group="db", name="data"), offset=1 << 40))
    sender = threading.Thread(target=_send_all, args=(sock, frame(body, bytes(frames.MOST_PAYLOAD + delta))), daemon=True)
    sender.start()
    answer = reply(sock)
    assert answer.code == ("protocol" if delta > 0 else "usage") and ("not inside" in answer.text) == (delta <= 0)
    sock.close()
    sender.join(60)


def _send_all(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # the daemon ended the connection before it had all
        sock.sendall(data)


def test_cut_at_every_byte(victim: Daemon) -> None:
    """A client that dies anywhere in its hello, or in a request."""
    hello, request = frame(HELLO), frame(messages.encode_request(requests.GroupMark(group="db", name="m")))
    with victim.connect() as node:
        marks = sum(one["kind"] == "mark" for one in node.group("db").operations())
        for cut in range(len(hello)):
            sock = dial(victim)
            sock.sendall(hello[:cut])
            sock.close()
        for cut in range(len(request)):
            sock = welcomed(victim)
            sock.sendall(request[:cut])
            sock.close()
        assert sum(one["kind"] == "mark" for one in node.group("db").operations()) == marks


def test_random_bytes(victim: Daemon) -> None:
    """Half of them in whole frames with a right header."""
    chance = random.Random(SEED)
    for number in range(300):
        sock = welcomed(victim) if number % 2 else dial(victim)
        noise = chance.randbytes(chance.randrange(1, 400))
        _send_all(sock, frame(noise) if number % 4 < 2 else noise)
        sock.close()
    served(victim)


def test_mutated_requests(victim: Daemon, request: pytest.FixtureRequest) -> None:
    """Real requests with a byte changed: an answer, or an end; afterwards the node works."""
    chance = random.Random(SEED)
    key = values.StoreKey(group="db", name="data")
    good = [messages.encode_request(request) for request in (
        requests.GroupStatus(group="db"), requests.StoreRead(store=key, offset=0, length=512), requests.GroupShow(group="db"),
        requests.StoreShow(store=key), requests.GroupWait(group="db", timeout=0.0), requests.LinkStatus(group="db", name="x"))]
    sock = welcomed(victim)
    for _ in range(20_000 if request.config.getoption("--long") else 600):
        body = bytearray(chance.choice(good))
        for _ in range(chance.randrange(1, 3)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        sock.sendall(frame(bytes(body)))
        answer = reply(sock)
        while isinstance(answer, messages.Progress):
            answer = reply(sock)
        assert isinstance(answer, messages.Answer | values.Failure)
        assert not isinstance(answer, values.Failure) or answer.code != "internal", (bytes(body), answer)
    sock.close()


def test_silence_and_half_frames_hinder_nobody(daemons: Any) -> None:
    """One user fills its half of all places with connections that say nothing, or half; others are served, and the silent
    ones are let go."""
    daemon = daemons()
    daemon.configure("[limits]\nconnections = 8")
    daemon.start()
    with daemon.connect() as node:
        begin = time.monotonic()
        silent = [dial(daemon) for _ in range(3)]
        half = [welcomed(daemon) for _ in range(3)]
        for sock in half:
            sock.sendall(frame(messages.encode_request(requests.NodeStatus()))[:20])
        node.status()
        for sock in silent + half:
            sock.settimeout(60)
            drained(sock)
            sock.close()
        assert 5 < time.monotonic() - begin < 60
        node.status()


def test_places_for_connections(daemons: Any) -> None:
    """Up to the limit they are taken; one more hears why, and may try again."""
    daemon = daemons()
    daemon.configure("[limits]\nconnections = 4")
    daemon.start()
    nodes = [daemon.connect() for _ in range(4)]
    with pytest.raises(Refused, match=r"as many connections as it takes") as full:
        daemon.connect()
    assert full.value.retryable and full.value.reason == "limit"
    nodes[0].close()

    def again() -> Any:
        try:
            return daemon.connect()
        except Refused:
            return None
    nodes.append(until(again, "the place is free"))
    for node in nodes[1:]:
        assert node.status()["groups"] == []
        node.close()


def test_pace(daemons: Any) -> None:
    """So many requests are taken at once; who asks on waits, and is answered."""
    daemon = daemons()
    daemon.configure("[limits]\nrequests_per_second = 40")
    daemon.start()
    with daemon.connect() as node:
        begin = time.monotonic()
        for _ in range(100):
            node.status()
        assert time.monotonic() - begin >= (100 - 40 - 2) / 40


def test_a_client_that_does_not_read(victim: Daemon) -> None:
    """Its answers fill the socket; it is let go, and nobody else waits for it."""
    sock = welcomed(victim)
    key = values.StoreKey(group="db", name="data")
    asked = frame(messages.encode_request(requests.StoreRead(store=key, offset=0, length=1 << 20)))
    sock.settimeout(0.5)
    try:
        for _ in range(2000):
            sock.sendall(asked)
    except TimeoutError:
        pass  # the socket is full of requests
    served(victim)
    until(lambda: _has_ended(sock), "it was let go")
    sock.close()


def _has_ended(sock: socket.socket) -> bool:
    try:
        sock.sendall(b"")
        return sock.send(b"x") == 0
    except TimeoutError:
        return False
    except OSError:
        return True


def test_resets(victim: Daemon) -> None:
    for _ in range(50):
        sock = welcomed(victim)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.sendall(frame(messages.encode_request(requests.NodeStatus())))
        sock.close()
    served(victim)


def test_a_hostile_daemon(tmp_path: Any) -> None:
    """The client does not trust what answers either."""
    path = str(tmp_path / "false")
    answers = [b"", b"HTTP/1.1 200 OK\r\n\r\n", frames.HEADER.pack(frames.MAGIC, (1 << 32) - 1, 0, 0),
               frame(b"\x91" * 50000), frame(b"\xdd\xff\xff\xff\xff"), frame(messages.encode_reply(messages.Answer(value=1))),
               frame(messages.encode_reply(messages.Welcome(version=9, node="x", program="y"))),
               frame(messages.encode_reply(messages.Welcome(version=1, node="x", program="y"))) * 2,
               frame(messages.encode_reply(messages.Welcome(version=1, node="x", program="y")))
               + frame(messages.encode_reply(messages.Answer(value={"name": 7})))]
    with socket.socket(socket.AF_UNIX) as false:
        false.bind(path)
        false.listen()

        def answer() -> None:
            for data in answers:
                sock, _ = false.accept()
                with sock, contextlib.suppress(OSError):  # the client may have had enough
                    sock.recv(4096)
                    sock.sendall(data)
                    sock.shutdown(socket.SHUT_WR)
                    sock.recv(4096)

        server = threading.Thread(target=answer, daemon=True)
        server.start()
        for _ in answers:
            with pytest.raises((PeerError, PyreplError)):
                pyrepl.connect(path, timeout=5)  # one asks twice: the last finds nobody who answers
        server.join(60)
