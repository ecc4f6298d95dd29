"""Places of the server: who is let in, who is refused, and what stays when it is over."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

import pyrepl
from pyrepl.errors import Exists, InUse, NotFound, Refused
from pyrepl.nbd.negotiation import Answer, Option

MIB = 1 << 20


@pytest.fixture
def node(tmp_path: Path):
    with pyrepl.Node.open(tmp_path / "node", create=True) as node:
        group = node.create_group("db", tmp_path / "journal", journal_size=32 * MIB)
        group.add_volume("data", size=4 * MIB)
        node.start_export("data", group, "data")
        yield node


def receive(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise ConnectionError(f"{len(data)} of {count} bytes came")
        data += piece
    return data


class Client:
    """A client that attaches an export by GO; ``answer`` is the last reply."""

    def __init__(self, path: str, name: str = "data") -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(path)
        receive(self.socket, 18)
        body = struct.pack(">I", len(name)) + name.encode() + struct.pack(">H", 0)
        self.socket.sendall(struct.pack(">I", 3) + struct.pack(">8sII", b"IHAVEOPT", Option.GO, len(body)) + body)
        while True:
            _, _, self.answer, length = struct.unpack(">QIII", receive(self.socket, 20))
            self.text = receive(self.socket, length)
            if self.answer != Answer.INFO:
                break

    def flush(self) -> int:
        """The error of a FLUSH."""
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 3, 7, 0, 0))
        return struct.unpack(">IIQ", receive(self.socket, 16))[1]

    def close(self) -> None:
        self.socket.close()


def test_who_finds_no_room_is_refused_before_it_is_served(node, tmp_path) -> None:
    node._served = threading.BoundedSemaphore(2)  # instead of 128
    path = node.listen_nbd(f"unix:{tmp_path}/nbd").removeprefix("unix:")
    clients = [Client(path), Client(path)]
    assert [client.answer for client in clients] == [Answer.ACK, Answer.ACK]
    late = Client(path)
    assert late.answer == Answer.SHUTDOWN and b"as many clients as may be" in late.text
    assert [client.flush() for client in clients] == [0, 0]
    late.close()
    clients.pop().close()
    deadline = time.monotonic() + 60
    while (again := Client(path)).answer != Answer.ACK:  # its place is free when its connection has ended
        again.close()
        assert time.monotonic() < deadline
    assert again.flush() == 0


def test_an_unknown_export_takes_no_place(node, tmp_path) -> None:
    node._served = threading.BoundedSemaphore(1)
    path = node.listen_nbd(f"unix:{tmp_path}/nbd").removeprefix("unix:")
    unknown = [Client(path, "nothing") for _ in range(3)]
    assert {client.answer for client in unknown} == {Answer.UNKNOWN}
    assert Client(path).answer == Answer.ACK


def test_exports_start_stop_and_stay(node, tmp_path) -> None:
    path = node.listen_nbd(f"unix:{tmp_path}/nbd").removeprefix("unix:")
    client = Client(path)
    assert client.flush() == 0
    with pytest.raises(InUse, match="1 client:"):
        node.stop_export("data")
    with pytest.raises(Exists, match="stop it first"):
        node.start_export("data", "db", "data")
    with pytest.raises(NotFound):
        node.start_export("other", "db", "nothing")
    node.stop_export("data", force=True)
    with pytest.raises(ConnectionError):
        client.flush()
    assert Client(path).answer == Answer.UNKNOWN
    node.start_export("again", "db", "data", read_only=True)
    node.close()
    assert not os.path.exists(path)
    with pyrepl.Node.open(tmp_path / "node") as reopened:
        assert [(export.name, export.read_only) for export in reopened.exports] == [("again", True)]


def test_addresses(node, tmp_path) -> None:
    path = node.listen_nbd(f"unix:{tmp_path}/nbd").removeprefix("unix:")
    assert os.stat(path).st_mode & 0o777 == 0o660
    with pyrepl.Node.open(tmp_path / "second", create=True) as second:
        with pytest.raises(InUse, match="another process listens"):
            second.listen_nbd(f"unix:{path}")
        with pytest.raises(InUse):
            second.listen_nbd(node.listen_nbd("127.0.0.1:0"))
        with pytest.raises(Refused, match="without TLS"):
            second.listen_nbd("0.0.0.0:0")
    stale = f"{tmp_path}/stale"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(stale)
    assert node.listen_nbd(f"unix:{stale}") == f"unix:{stale}"
    assert Client(stale).answer == Answer.ACK


def test_the_node_closes_though_clients_are_attached(node, tmp_path) -> None:
    path = node.listen_nbd(f"unix:{tmp_path}/nbd").removeprefix("unix:")
    clients = [Client(path) for _ in range(64)]
    assert {client.flush() for client in clients} == {0}
    before = threading.active_count()
    node.close()
    assert threading.active_count() <= before - 64
    for client in clients:
        with pytest.raises(OSError):
            client.flush()
