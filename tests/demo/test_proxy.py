"""The demo's proxy counts what passes, tells writes from the rest, and cuts."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from pyrepl._core import batch, layout
from pyrepl.demo.proxy import SIGNS, Counts, Meter, Proxy
from pyrepl.protocol.messages import NUMBERS, Ack, Heartbeat

GROUP, GENERATION = b"g" * 16, b"e" * 16


def control(length: int, number: int = 0, kind: int = 8) -> bytes:
    return layout.pack_frame(type=kind, length=length, body_crc=1, sequence=number, session=0) + b"x" * length


def batch_frame(kind: int) -> bytes:
    if kind == layout.BATCH_EVENTS:
        records: list[tuple[int, int, int, bytes | int]] = [
            (layout.WRITE, 1, 0, b"a" * 4096),
            (layout.ZERO, 1, 4096, 4096),
        ]
    elif kind == layout.BATCH_COPIED:
        records = [(layout.WRITE, 1, 0, b"a" * 4096)]
    else:
        records = [(layout.OPERATION, 0, 0, b"operation")]
    body = batch.encode(
        kind,
        records,
        group=GROUP,
        generation=GENERATION,
        first_lsn=1,
        alignment=4096,
        item=1 if kind in (layout.BATCH_COPIED, layout.BATCH_ITEM) else 0,
    )
    return layout.pack_frame(type=layout.FRAME_BATCH, length=len(body), body_crc=0, sequence=0, session=0) + body


def fed(stream: bytes, pieces: list[int]) -> dict[int, int]:
    meter, counts, position = Meter(), dict[int, int](), 0
    for piece in [*pieces, len(stream)]:
        for kind, count in meter.feed(memoryview(stream)[position : position + piece]).items():
            counts[kind] = counts.get(kind, 0) + count
        position += piece
    return counts


def test_meter_tells_batches_apart_however_they_are_cut() -> None:
    events, operation, copied = (
        batch_frame(kind) for kind in (layout.BATCH_EVENTS, layout.BATCH_OPERATION, layout.BATCH_COPIED)
    )
    small = control(3)
    ack, heartbeat = control(20, kind=NUMBERS[Ack]), control(4, kind=NUMBERS[Heartbeat])
    stream = small + events + ack + operation + control(1) + heartbeat + copied + events
    want = {
        0: len(small) + len(control(1)),
        SIGNS: len(ack) + len(heartbeat),
        layout.BATCH_EVENTS: 2 * len(events),
        layout.BATCH_OPERATION: len(operation),
        layout.BATCH_COPIED: len(copied),
    }
    assert fed(stream, []) == want
    assert fed(stream, [1] * len(stream)) == want
    for at in range(1, len(small) + 60):
        assert fed(stream, [at]) == want, f"cut at {at}"


def test_meter_counts_what_it_does_not_understand() -> None:
    assert fed(b"GET / HTTP/1.1\r\n" * 20, [7, 100]) == {0: 320}


@contextlib.contextmanager
def echo() -> Iterator[tuple[str, int]]:
    """A server that sends everything back."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                sock, _ = server.accept()
            except OSError:
                return
            with sock:
                while data := sock.recv(65536):
                    sock.sendall(data)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield server.getsockname()
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(5)


def talk(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        sock.sendall(data)
        found = b""
        while len(found) < len(data) and (piece := sock.recv(65536)):
            found += piece
    return found


def test_both_directions_are_counted() -> None:
    beat = control(10, kind=NUMBERS[Heartbeat])
    stream = batch_frame(layout.BATCH_EVENTS) + control(10) + beat
    with echo() as address, Proxy(address) as proxy:
        before = proxy.counts()
        assert talk(proxy.port, stream) == stream
        counts = proxy.counts().since(before)
    writes = len(batch_frame(layout.BATCH_EVENTS))
    assert counts == Counts(total=2 * len(stream), forward=len(stream), writes=2 * writes, signs=2 * len(beat))


def test_cut_ends_connections_and_refuses_new_ones_until_mended() -> None:
    with echo() as address, Proxy(address) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=60) as sock:
            sock.sendall(b"one")
            assert sock.recv(3) == b"one"
            proxy.cut()
            assert sock.recv(1) == b""
        with contextlib.suppress(ConnectionError):
            assert talk(proxy.port, b"two") == b""
        proxy.mend()
        assert talk(proxy.port, b"three") == b"three"


def test_target_that_is_not_there_closes_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        address = nobody.getsockname()
    with Proxy(address) as proxy, contextlib.suppress(ConnectionError):
        assert talk(proxy.port, b"x") == b""


def test_close_ends_every_thread() -> None:
    with echo() as address:
        proxy = Proxy(address)
        assert talk(proxy.port, b"x") == b"x"
        proxy.close()
        proxy.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "demo-proxy"]
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", proxy.port), timeout=1).close()
