"""Damaged conversations: what clients say, with bytes changed, lost, doubled or moved. The server answers or closes; others
are served meanwhile, and nothing grows. A failure prints the seed that repeats it."""

from __future__ import annotations

import os
import random
import select
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

import pyrepl
from tests.nbd.test_places import Client

MIB = 1 << 20
SIZE = 4 * MIB
SEED = 20261125
EDGES = [0, 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 4096, SIZE, (32 << 20) + 1]


GONE = struct.pack(">QII", 0x3E889045565A9, 7, 1)  # the end of the answer to GO


def option(number: int, data: bytes = b"") -> bytes:
    return struct.pack(">8sII", b"IHAVEOPT", number, len(data)) + data


def request(command: int, flags: int, offset: int, length: int, data: bytes = b"") -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, flags, command, 7, offset, length) + data


def conversation(rng: random.Random) -> tuple[list[bytes], list[bytes]]:
    """What a client in order says, in pieces: until it has chosen an export, and its requests."""
    name = struct.pack(">I", 4) + b"data"
    said = [struct.pack(">I", 3)]
    if rng.random() < 0.7:
        said.append(option(8))
        said.append(option(10, name + struct.pack(">II", 1, 15) + b"base:allocation"))
    said += [option(number) for number in rng.sample([3, 5, 99], rng.randrange(3))]
    said.append(option(6, name + struct.pack(">HH", 1, 3)))
    said.append(option(7, name + struct.pack(">HH", 1, 3)))
    asked = []
    for _ in range(rng.randrange(1, 12)):
        offset, length = rng.randrange(0, SIZE, 512), rng.choice([1, 512, 4096, 5000, 65536])
        command = rng.randrange(8)
        data = rng.randbytes(length) if command == 1 else b""
        zero = command in (2, 3)
        asked.append(request(command, rng.choice([0, 0, 1]), 0 if zero else offset, 0 if zero else length, data))
    return said, asked


def damage(said: list[bytes], rng: random.Random) -> list[bytes]:
    """The same, wrong in one to three places."""
    pieces = [bytearray(piece) for piece in said]
    for _ in range(rng.randrange(1, 4)):
        piece = rng.choice(pieces)
        at = rng.randrange(min(len(piece), 60)) if piece else 0
        match rng.randrange(7):
            case 0 if piece:
                piece[at] ^= 1 << rng.randrange(8)
            case 1 if len(piece) >= 4:  # a number at an edge, wherever it falls
                at = rng.randrange(0, min(len(piece), 60) - 3)
                piece[at : at + 4] = struct.pack(">I", rng.choice(EDGES))
            case 2:
                del piece[at:]
            case 3:
                piece[at:at] = rng.randbytes(rng.randrange(1, 40))
            case 4:
                pieces.insert(rng.randrange(len(pieces) + 1), bytearray(piece))
            case 5 if len(pieces) > 1:
                pieces.remove(piece)
            case _:
                rng.shuffle(pieces)
    return [bytes(piece) for piece in pieces]


def talk(path: str, said: list[bytes], *, chosen: list[bytes], stays: bool) -> None:
    """Says it all, reading what is answered, then leaves without a word; or when all of it was taken in. Before it,
    ``chosen``, and waits for the answer to that: who sends requests before it is let go."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        if chosen:
            sock.settimeout(60)
            sock.sendall(b"".join(chosen))
            heard = b""
            while GONE not in heard:
                piece = sock.recv(1 << 16)
                assert piece, "a negotiation that is in order"
                heard += piece
        sock.setblocking(False)
        rest = b"".join(said)
        quiet = time.monotonic() + 60
        while rest:
            readable, writable, _ = select.select([sock], [sock], [], 60)
            assert time.monotonic() < quiet, "the server neither reads nor answers nor closes"
            try:
                if readable and not sock.recv(1 << 16):
                    return
                if writable:
                    rest = rest[sock.send(rest) :]
            except (BrokenPipeError, ConnectionResetError):
                return
            quiet = time.monotonic() + 60
        if stays:
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(60)  # more than a negotiation may last
            try:
                while sock.recv(1 << 16):
                    pass
            except ConnectionResetError:
                pass


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.timeout(900)
def test_damaged_conversations(tmp_path: Path, request: pytest.FixtureRequest, capsys) -> None:
    rounds = 20_000 if request.config.getoption("--long") else 1500
    with pyrepl.Node.open(tmp_path / "node", create=True) as node:
        group = node.create_group("db", tmp_path / "journal", journal_size=64 * MIB)
        group.add_volume("data", size=SIZE)
        other = group.add_volume("other", size=MIB)
        other.write(0, b"untouched" * 400)
        node.start_export("data", group, "data")
        path = node.listen_nbd(f"unix:{tmp_path}/nbd").removeprefix("unix:")
        good = Client(path)
        requests, memory, files, threads = 0, 0, 0, threading.active_count()
        for number in range(rounds):
            rng = random.Random(SEED + number)
            said, asked = conversation(rng)
            requests += len(asked)
            try:
                if rng.random() < 0.4:  # somewhere in all of it, and at once: most of them end in the negotiation
                    talk(path, damage(said + asked, rng), chosen=[], stays=rng.random() < 0.8)
                else:
                    talk(path, damage(asked, rng), chosen=said, stays=rng.random() < 0.8)
                if number % 20 == 0:
                    begin = time.monotonic()
                    assert good.flush() == 0
                    assert time.monotonic() - begin < 60, "another client had to wait"
            except BaseException:
                print(f"conversation {SEED + number}")
                raise
            if number == rounds // 3:  # pools and threads have their size
                memory, files = resident(), len(os.listdir("/proc/self/fd"))
        deadline = time.monotonic() + 60
        while threading.active_count() > threads + 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threading.active_count() <= threads + 2, "connections that have ended keep their threads"
        assert resident() - memory < 32 * MIB
        assert len(os.listdir("/proc/self/fd")) <= files + 8
        assert other.read(0, 3600) == b"untouched" * 400 and group.state == "active"
        assert group.store("data").size == SIZE
        (export,) = [one for one in node.status()["exports"] if one["name"] == "data"]
        taken, errors = sum(export["requests"].values()), export["errors"]
        assert taken > rounds and errors > rounds / 20, "hardly anything gets past the negotiation"
    with capsys.disabled():
        print(f"\nNBD: {rounds} damaged conversations with {requests} requests; {taken} were taken in by the transmission phase, "
              f"{errors} of them answered with an error (seeds {SEED} to {SEED + rounds - 1})")
