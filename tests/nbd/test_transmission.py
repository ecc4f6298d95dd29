"""The transmission phase over a socket pair, in raw bytes, on a small site in memory.

A batch is sent with one sendall, so that the server finds it whole: what is said about order does not hang on timing.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import random
import signal
import socket
import struct
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrepl._core import batch, nbdio, window
from tests.support import forge
from tests.support import nbd_client as nbd
from tests.support.devices import FailingDevice, MemoryDevice, RecordingDevice
from tests.support.examples import examples
from tests.support.nbd_client import (
    CACHE,
    DF,
    DISC,
    EINVAL,
    EIO,
    ENOSPC,
    ENOTSUP,
    EOVERFLOW,
    EPERM,
    ESHUTDOWN,
    FAST_ZERO,
    FLUSH,
    FUA,
    NO_HOLE,
    READ,
    REQ_ONE,
    STATUS,
    TRIM,
    WRITE,
    ZEROES,
    serving,
)  # fmt: skip
from tests.support.site import Site

SIZE = 64 << 10
MIB = 1 << 20


def never(*request):
    raise AssertionError(f"rare request {request}")


def made(site, store=1, *, size=SIZE, read_only=False, structured=False, statuses=False, rare=never):
    """What serves a descriptor, for ``serving``."""
    return lambda fd: nbdio.Connection(site.window, site.stores, store=store, size=size, fd=fd, read_only=read_only,
                                       structured=structured, statuses=statuses, rare=rare)  # fmt: skip


@contextlib.contextmanager
def attached(site, store=1, *, structured=False, **options):
    with serving(made(site, store, structured=structured, **options), structured=structured) as served:
        yield served


class Gate(MemoryDevice):
    """Calls of one kind wait while it is shut; ``entered`` is set when one does."""

    def __init__(self, name="gate", size=MIB, sector_size=512, *, kind="write"):
        super().__init__(name, size, sector_size)
        self.kind = kind
        self.open, self.entered = threading.Event(), threading.Event()
        self.open.set()

    def shut(self):
        self.entered.clear()
        self.open.clear()

    def _pass(self, kind):
        if kind == self.kind and not self.open.is_set():
            self.entered.set()
            assert self.open.wait(nbd.PATIENCE)

    def do_read(self, offset, length):
        self._pass("read")
        return super().do_read(offset, length)

    def do_write(self, ios):
        self._pass("write")
        super().do_write(ios)

    def do_flush(self):
        self._pass("flush")
        super().do_flush()


def gate(kind):
    return lambda name, size, sector: Gate(name, size, sector, kind=kind)


@contextlib.contextmanager
def applied(site):
    """Another thread performs what is written, all the time: there is always room again."""
    over = threading.Event()
    failures = []

    def run():
        try:
            while not over.wait(0.002):
                site.apply()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        assert not failures, failures


# ---- byte by byte


def test_simple_replies_byte_by_byte():
    site = Site()
    with attached(site) as served:
        sock = served.client.sock
        cookie = b"\x01\x02\x03\x04\xfe\xfd\xfc\xfb"
        sock.sendall(b"\x25\x60\x95\x13" b"\0\0" b"\0\1" + cookie + (512).to_bytes(8, "big") + b"\0\0\4\0" + b"ab" * 512)
        assert served.client.exactly(16) == b"\x67\x44\x66\x98" + bytes(4) + cookie
        sock.sendall(b"\x25\x60\x95\x13" b"\0\0" b"\0\0" + cookie + (1024).to_bytes(8, "big") + b"\0\0\4\0")
        assert served.client.exactly(16 + 1024) == b"\x67\x44\x66\x98" + bytes(4) + cookie + b"ab" * 256 + bytes(512)
        sock.sendall(b"\x25\x60\x95\x13" b"\0\0" b"\0\0" + cookie + b"\xff" * 8 + b"\0\0\4\0")
        assert served.client.exactly(16) == b"\x67\x44\x66\x98" b"\0\0\0\x16" + cookie
        sock.sendall(b"\x25\x60\x95\x13" b"\0\0" b"\0\2" + bytes(20))
        assert served.client.is_gone() and served.join() == "left"
    assert served.connection.counts() == {
        "requests": {"read": 2, "write": 1, "disconnect": 1, "flush": 0, "trim": 0, "cache": 0, "write_zeroes": 0, "block_status": 0},
        "errors": 1, "bytes_read": 1024, "bytes_written": 1024}  # fmt: skip


def test_structured_replies_byte_by_byte():
    site = Site()
    answer = struct.pack(">IHHQI", nbd.STRUCTURED, 1, 5, 77, 12) + b"\0\0\0\1" b"\0\0\2\0" b"\0\0\0\3"
    rare = lambda *request: (0, answer) if request == (STATUS, REQ_ONE, int.from_bytes(bytes(7) + b"\x4d", "little"), 0, 512) else (EIO, b"")  # noqa: E731
    with attached(site, structured=True, statuses=True, rare=rare) as served:
        sock, exactly = served.client.sock, served.client.exactly
        cookie = struct.pack(">Q", 77)
        sock.sendall(nbd.request(WRITE, 0, 512, cookie=77, data=b"x" * 512))
        assert exactly(16) == b"\x67\x44\x66\x98" + bytes(4) + cookie  # a simple reply is right here
        sock.sendall(nbd.request(READ, 256, 512, cookie=77))
        head = b"\x66\x8e\x33\xef" b"\0\1" b"\0\1" + cookie + b"\0\0\2\x08" + struct.pack(">Q", 256)
        assert exactly(28 + 512) == head + b"x" * 256 + bytes(256)
        sock.sendall(nbd.request(READ, SIZE, 1, cookie=77))
        assert exactly(26) == b"\x66\x8e\x33\xef" b"\0\1" b"\x80\1" + cookie + b"\0\0\0\6" b"\0\0\0\x16" b"\0\0"
        sock.sendall(nbd.request(STATUS, 0, 512, cookie=77, flags=REQ_ONE))
        assert exactly(len(answer)) == answer
        sock.sendall(nbd.request(STATUS, 0, 512, cookie=77))
        assert exactly(26) == b"\x66\x8e\x33\xef" b"\0\1" b"\x80\1" + cookie + b"\0\0\0\6" b"\0\0\0\5" b"\0\0"


# ---- what is refused

BAD = [  # command, offset, length, flags, error
    (READ, 0, 0, 0, EINVAL), (READ, SIZE, 1, 0, EINVAL), (READ, SIZE - 1, 2, 0, EINVAL), (READ, 2**64 - 1, 1, 0, EINVAL),
    (READ, 2**64 - 1, 2**32 - 1, 0, EINVAL), (READ, 2**63, 512, 0, EINVAL), (READ, 0, (32 << 20) + 1, 0, EINVAL),
    (READ, 0, 2**31 - 1, 0, EINVAL), (READ, 0, 2**31, 0, EINVAL), (READ, 0, 2**32 - 1, 0, EINVAL), (READ, 0, 512, 2, EINVAL),
    (READ, 0, 512, REQ_ONE, EINVAL), (READ, 0, 512, 0x8000, EINVAL),
    (WRITE, SIZE, 1, 0, ENOSPC), (WRITE, SIZE - 511, 512, 0, ENOSPC), (WRITE, 2**64 - 512, 1024, 0, ENOSPC), (WRITE, 0, 0, 0, EINVAL),
    (WRITE, 0, 512, DF, EINVAL), (WRITE, 0, 512, 0xFFFE, EINVAL), (WRITE, 0, 200_000, 0, ENOSPC), (WRITE, 2**63, 3 << 20, 0, ENOSPC),
    (FLUSH, 0, 1, 0, EINVAL), (FLUSH, 1, 0, 0, EINVAL), (FLUSH, 0, 0, 2, EINVAL),
    (TRIM, SIZE - 512, 1024, 0, EINVAL), (TRIM, 2**64 - 512, 512, 0, EINVAL), (TRIM, 0, 2**32 - 1, 0, EINVAL), (TRIM, 0, 0, 0, EINVAL),
    (TRIM, 0, 512, NO_HOLE, EINVAL),
    (ZEROES, SIZE - 512, 1024, 0, ENOSPC), (ZEROES, 0, 2**32 - 1, 0, ENOSPC), (ZEROES, 0, 0, 0, EINVAL), (ZEROES, 0, 512, REQ_ONE, EINVAL),
    (ZEROES, 0, 512, NO_HOLE | FAST_ZERO, ENOTSUP), (ZEROES, SIZE, 512, NO_HOLE | FAST_ZERO, ENOSPC), (ZEROES, SIZE - 511, 512, NO_HOLE, ENOSPC),
    (CACHE, 0, SIZE + 1, 0, EINVAL), (CACHE, 0, 0, 0, EINVAL), (CACHE, 0, 512, 2, EINVAL),
    (STATUS, 0, 512, 0, EINVAL), (8, 0, 512, 0, EINVAL), (9, 0, 0, 0, EINVAL), (255, 0, 0, 0, EINVAL), (65535, 2**64 - 1, 2**32 - 1, 65535, EINVAL),
]  # fmt: skip


@pytest.mark.parametrize("structured", [False, True])
def test_requests_that_are_refused_change_nothing_and_cost_nothing_but_an_error(structured):
    site = Site()
    with attached(site, structured=structured) as served:
        client = served.client
        client.write(0, b"before" * 100)
        lsn = site.window.state().end_lsn
        for command, offset, length, flags, error in BAD:
            reply = client.call(command, offset, length, flags=flags, data=bytes(length) if command == WRITE else b"")
            assert (reply.error, reply.data) == (error, b""), (command, offset, length, flags)
        assert client.read(0, 600) == b"before" * 100
        assert site.window.state().end_lsn == lsn and served.connection.counts()["errors"] == len(BAD)


def test_flags_that_each_command_may_have():
    site = Site()
    fine = [(READ, FUA), (WRITE, FUA), (FLUSH, FUA), (TRIM, FUA), (CACHE, FUA), (ZEROES, FUA | NO_HOLE), (ZEROES, FUA | FAST_ZERO)]
    with attached(site) as served:
        for command, flags in fine:
            length = 0 if command == FLUSH else 512
            assert served.client.call(command, 0, length, flags=flags, data=bytes(512) if command == WRITE else b"").error == 0


@pytest.mark.parametrize("structured", [False, True])
def test_a_read_that_must_not_be_fragmented(structured):
    site = Site(size=8 * MIB)
    with attached(site, size=8 * MIB, structured=structured) as served:
        for offset, length in ((0, 1), (3, 65536), (0, 2 * MIB), (512, 2 * MIB), (1, 2 * MIB), (0, 2 * MIB + 1), (0, 8 * MIB)):
            reply = served.client.call(READ, offset, length, flags=DF)
            if not structured:
                assert reply.error == EINVAL  # the flag was not offered
            elif offset == 1 or length > 2 * MIB:
                assert (reply.error, reply.chunks) == (EOVERFLOW, 0)
            else:
                assert (reply.error, reply.chunks, len(reply.data)) == (0, 1, length)


def test_what_is_read_only_answers_eperm_and_takes_the_payload_in():
    site = Site()
    with attached(site, read_only=True, structured=True) as served:
        client = served.client
        for length in (1, 512, 70_000, 3 * MIB):
            assert client.call(WRITE, 0, data=bytes(length)).error == EPERM
        assert client.call(TRIM, 0, 512).error == client.call(ZEROES, 0, 512).error == EPERM
        assert client.call(FLUSH).error == 0 and client.read(0, SIZE) == bytes(SIZE)
    assert site.window.state().end_lsn == 0


@pytest.mark.parametrize("magic", [0, 0x25609512, 0x25600000, 0x00009513, 0x67449513, 0x67446698, 0x668E33EF, 0xFFFFFFFF, 0x13956025])
def test_a_wrong_magic_ends_the_connection(magic):
    site = Site()
    with attached(site) as served:
        served.client.write(0, b"kept" * 128)
        served.client.sock.sendall(nbd.request(WRITE, 0, 512, magic=magic, data=bytes(512)))
        assert served.client.is_gone() and served.join() == "garbled"
    with attached(site) as served:
        assert served.client.read(0, 512) == b"kept" * 128


@pytest.mark.parametrize("length", [(32 << 20) + 1, 2**31 - 1, 2**31, 2**32 - 1])
def test_cve_2005_3534_a_write_longer_than_may_be(length):
    site = Site()
    with attached(site) as served:
        served.client.sock.sendall(nbd.request(WRITE, 0, length, data=bytes(4096)))
        assert served.client.is_gone() and served.join() == "too-long"
    assert site.window.state().end_lsn == 0


@pytest.mark.parametrize("structured", [False, True])
def test_the_longest_read_is_the_same_for_a_disk_that_is_longer(structured):
    size = 40 * MIB
    site = Site(1, size=size, region_size=1 << 16)
    with attached(site, size=size, structured=structured) as served:
        for length in ((32 << 20) + 1, 40 * MIB):
            reply = served.client.call(READ, 0, length)
            assert (reply.error, reply.data) == (EINVAL, b"")
        assert served.connection.counts()["bytes_read"] == 0
        assert len(served.client.call(READ, 0, 32 << 20).data) == 32 << 20


def test_the_longest_write_is_taken_in_even_if_it_is_refused():
    with attached(Site()) as served:
        assert served.client.call(WRITE, 0, data=bytes(32 << 20)).error == ENOSPC
        assert served.client.read(0, 4) == bytes(4)


# ---- bytes

OPERATIONS = st.lists(
    st.tuples(st.sampled_from([WRITE, WRITE, WRITE, READ, READ, ZEROES, TRIM, FLUSH, CACHE]), st.integers(0, SIZE - 1),
              st.one_of(st.integers(1, 3000), st.integers(1, SIZE)), st.sampled_from([0, 0, FUA]), st.booleans()),
    min_size=1, max_size=25)  # fmt: skip


@pytest.mark.parametrize("alignment", [512, 4096])
@pytest.mark.parametrize("structured", [False, True])
@settings(max_examples=examples(25), deadline=None)
@given(operations=OPERATIONS, together=st.integers(1, 8))
def test_a_twin_of_bytes(alignment, structured, operations, together):
    """Any offsets and lengths. Batches of writes are sent at once: they happen in the order in which they were sent."""
    site, twin = Site(size=SIZE, alignment=alignment), bytearray(SIZE)
    with attached(site, structured=structured) as served:
        client, waiting = served.client, []

        def settle():
            if waiting:
                client.sock.sendall(b"".join(packed for packed, _ in waiting))
                assert {client.reply()[:2] for _ in waiting} == {(cookie, 0) for _, cookie in waiting}
                waiting.clear()

        for step, (command, offset, length, flags, aligned) in enumerate(operations):
            if aligned or command in (ZEROES, TRIM):
                offset = offset // alignment * alignment
                length = -(-length // alignment) * alignment
            length = min(length, SIZE - offset)
            if command == WRITE:
                data = bytes([step + 1]) * length
                waiting.append(client.pack(WRITE, offset, data=data, flags=flags))
                twin[offset : offset + length] = data
            elif command in (ZEROES, TRIM):
                waiting.append(client.pack(command, offset, length, flags=flags))
                twin[offset : offset + length] = bytes(length)
            elif command == FLUSH:
                waiting.append(client.pack(FLUSH, 0, 0))
            elif command == CACHE:
                waiting.append(client.pack(CACHE, offset, length))
            else:
                settle()
                assert client.read(offset, length) == twin[offset : offset + length]
                if step % 2:
                    site.apply()
            if len(waiting) >= together:
                settle()
        settle()
        assert client.read(0, SIZE) == twin
    site.apply()
    assert site.devices[1].data == twin


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("length", [64 << 10, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (2 << 20) + 512, 5_000_001, 32 << 20])
@pytest.mark.parametrize("offset", [0, 513])
def test_long_writes_and_reads(length, offset, structured):
    size = 33 << 20
    site = Site(1, size=size, region_size=1 << 16)
    data = random.Random(length).randbytes(1 << 16) * (length // (1 << 16) + 1)
    data = data[:length]
    with applied(site), attached(site, size=size, structured=structured) as served:
        served.client.write(offset, data)
        assert served.client.read(offset, length) == data
        assert served.client.read(0, offset + 1)[:offset] == bytes(offset)
        served.client.write(offset + length - 1, b"!", flags=FUA)
        reply = served.client.call(READ, offset + length // 2, length - length // 2)
        assert reply.data == data[length // 2 : -1] + b"!" and served.connection.counts()["bytes_written"] == length + 1


# ---- order


def test_replies_come_as_requests_complete():
    """A write that the journal does not take yet is not answered; a read that came behind it is, and sees it or not."""
    site = Site(log=gate("write"))
    with attached(site) as served:
        client = served.client
        client.write(0, b"old!" * 128)
        site.log.shut()
        write, first = client.pack(WRITE, 0, data=b"new!" * 128)
        read, second = client.pack(READ, 4096, 512)
        client.sock.sendall(write + read)
        assert client.reply() == (second, 0, bytes(512), {}, 0, client_raw(second, bytes(512)))
        assert site.log.entered.wait(nbd.PATIENCE)
        assert client.call(READ, 8192, 512).error == 0  # and still no reply to the write
        site.log.open.set()
        assert client.reply()[:2] == (first, 0)
        assert client.read(0, 512) == b"new!" * 128


def client_raw(cookie, data):
    return struct.pack(">IIQ", nbd.SIMPLE, 0, cookie) + data


@pytest.mark.parametrize("command", ["flush", "fua write", "fua zero", "fua trim", "fua zero without a hole"])
def test_what_promises_durability_waits_for_the_flush(command):
    site = Site(log=gate("flush"))
    with attached(site) as served:
        client = served.client
        client.write(0, b"data" * 128)  # written, not durable: answered although no flush gets through
        site.log.shut()
        client.write(512, b"data" * 128)
        packed, cookie = {
            "flush": lambda: client.pack(FLUSH, 0, 0),
            "fua write": lambda: client.pack(WRITE, 1024, data=bytes(512), flags=FUA),
            "fua zero": lambda: client.pack(ZEROES, 0, 512, flags=FUA),
            "fua trim": lambda: client.pack(TRIM, 0, 512, flags=FUA),
            "fua zero without a hole": lambda: client.pack(ZEROES, 0, 512, flags=FUA | NO_HOLE),
        }[command]()
        read, other = client.pack(READ, 0, 512)
        client.sock.sendall(packed + read)
        assert client.reply()[:2] == (other, 0)
        assert site.log.entered.wait(nbd.PATIENCE)
        assert client.call(READ, 0, 512).error == 0
        site.log.open.set()
        assert client.reply()[:2] == (cookie, 0)


@pytest.mark.parametrize("command", ["write", "write at 1", "zero", "trim", "zero without a hole", "zero without a hole at 1", "flush"])
def test_a_link_in_sync_holds_the_reply_back_until_the_peer_has_it(command):
    site = Site()
    with attached(site) as served:
        client = served.client
        client.write(0, b"before" * 100)
        before = site.window.state().end_lsn
        site.window.set_sync(True)
        site.window.set_peer(0 if command == "flush" else before)
        packed, cookie = {
            "write": lambda: client.pack(WRITE, 512, data=bytes(512)),
            "write at 1": lambda: client.pack(WRITE, 1, data=b"x" * 5),
            "zero": lambda: client.pack(ZEROES, 0, 512),
            "trim": lambda: client.pack(TRIM, 0, 512),
            "zero without a hole": lambda: client.pack(ZEROES, 0, 512, flags=NO_HOLE),
            "zero without a hole at 1": lambda: client.pack(ZEROES, 1, 5, flags=NO_HOLE),
            "flush": lambda: client.pack(FLUSH, 0, 0),
        }[command]()
        client.sock.sendall(packed)
        while site.window.state().end_lsn < before + (command != "flush"):
            time.sleep(0.001)
        client.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.reply()
        client.sock.settimeout(nbd.PATIENCE)
        site.window.set_peer(site.window.state().end_lsn)
        assert client.reply()[:2] == (cookie, 0)
        site.window.set_sync(False)


def test_a_flush_of_what_is_read_only_waits_for_nobody():
    site = Site(log=gate("flush"))
    with attached(site) as writer, attached(site, read_only=True) as served:
        writer.client.write(0, bytes(512))
        site.log.shut()
        assert served.client.call(FLUSH).error == 0 and not site.log.entered.is_set()
        site.log.open.set()


def test_writes_and_flushes_are_counted_with_the_time_that_they_took():
    site = Site(log=gate("write"))
    with attached(site) as served:
        client = served.client
        before = {name: count for name, (_, count, _) in site.window.latencies().items()}
        client.write(0, bytes(512))
        client.write(1, bytes(5))
        assert client.call(TRIM, 0, 512).error == client.call(FLUSH).error == 0
        assert client.call(WRITE, SIZE, data=bytes(512)).error == ENOSPC
        after = {name: count for name, (_, count, _) in site.window.latencies().items()}
        assert {name: after[name] - before[name] for name in after} == {"write": 3, "flush": 1, "operation": 0}
        site.log.shut()
        client.send(WRITE, 0, data=bytes(512))
        assert site.log.entered.wait(nbd.PATIENCE)
        begin = site.window.latencies()["write"][2]
        time.sleep(0.3)
        site.log.open.set()
        assert client.reply().error == 0 and site.window.latencies()["write"][2] - begin >= 0.3


def test_signals_in_the_midst_of_a_reply():
    """The interpreter's thread is interrupted while it sends: what was not sent yet follows, and nothing twice."""
    site = Site(1, size=8 * MIB, region_size=1 << 16, device=lambda name, size, sector: MemoryDevice(name, size, sector, fill=bytes(range(251)) * 1000))
    theirs, ours = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    want = bytes(site.devices[1].data[: MIB + 512])
    client, wrong, struck = nbd.Client(ours), [], []

    def ask():
        try:
            for _ in range(10):
                if client.read(0, MIB + 512) != want:
                    wrong.append("bytes")
            client.send(DISC)
        except BaseException as error:
            wrong.append(error)
        finally:
            ours.close()

    before = signal.signal(signal.SIGALRM, lambda number, frame: struck.append(number))
    thread = threading.Thread(target=ask)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # this thread alone is to have them
    thread.start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        connection = made(site, size=8 * MIB)(theirs.fileno())
        assert connection.serve() == "left"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        thread.join(nbd.PATIENCE)
        theirs.close()
    assert not wrong and struck


def test_the_peer_has_one_of_two_writes():
    """Both are in the journal, and are looked at together: the reply to the other one waits on."""
    site = Site()
    with attached(site) as served:
        client = served.client
        site.window.set_sync(True)
        client.sock.sendall(nbd.request(WRITE, 0, 512, cookie=1, data=bytes(512)) + nbd.request(WRITE, 512, 512, cookie=2, data=bytes(512)))
        client._lengths = {1: [(WRITE, 0, 512)], 2: [(WRITE, 512, 512)]}
        while site.window.state().end_lsn < 2:
            time.sleep(0.001)
        for lsn in (1, 2):
            site.window.set_peer(lsn)
            assert client.reply()[:2] == (lsn, 0)
            client.sock.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.reply()
            client.sock.settimeout(nbd.PATIENCE)
        site.window.set_sync(False)


def test_a_write_is_not_answered_with_the_batch_before_its_own():
    class Turnstile(MemoryDevice):
        """Each write of the log waits until it is let through."""

        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.come, self.passes = threading.Semaphore(0), threading.Semaphore(0)

        def do_write(self, ios):
            self.come.release()
            assert self.passes.acquire(timeout=nbd.PATIENCE)
            super().do_write(ios)

    site = Site(log=Turnstile)
    with attached(site) as served:
        client = served.client
        first, one = client.pack(WRITE, 0, data=bytes(512))
        second, other = client.pack(WRITE, 512, data=bytes(512))
        read, third = client.pack(READ, 8192, 512)
        client.sock.sendall(first + read)  # two, so that there are threads for them
        assert client.reply()[:2] == (third, 0) and site.log.come.acquire(timeout=nbd.PATIENCE)
        client.sock.sendall(second)
        while site.window.state().end_lsn < 2:
            time.sleep(0.001)
        site.log.passes.release()
        assert client.reply()[:2] == (one, 0) and site.log.come.acquire(timeout=nbd.PATIENCE)
        client.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.reply()
        client.sock.settimeout(nbd.PATIENCE)
        site.log.passes.release()
        assert client.reply()[:2] == (other, 0)


def durable_content(log):
    """What a site would find after a power loss in this moment, with nothing that was not flushed."""
    image = log.crash(len(log.log))
    device = MemoryDevice("image", len(image))
    device.data[:] = image
    content = bytearray(SIZE)
    records = window.scan_log(device, log_offset=0, log_size=len(image), position=0, chain=1, alignment=512)[0]
    for _, raw in records:
        for _, _, offset, data in forge.parse(raw)["events"]:
            data = bytes(data)  # of a zero: its length
            content[offset : offset + len(data)] = data
    return content


@pytest.mark.parametrize("seed", range(3))
def test_a_power_loss_takes_nothing_that_a_flush_was_answered_for(seed):
    rng = random.Random(seed)
    site = Site(log=RecordingDevice, log_size=20 << 20)
    allowed = {at: [bytes(512)] for at in range(0, SIZE, 512)}  # what was promised, and what was written since
    with attached(site) as served:
        client = served.client
        for step in range(60):
            offset, kind = rng.randrange(16) * 512, rng.randrange(5)
            if kind == 0:
                assert client.call(FLUSH).error == 0
                allowed = {at: versions[-1:] for at, versions in allowed.items()}
            else:
                data = struct.pack(">II", seed, step + 1) * 64
                client.write(offset, data, flags=FUA if kind == 1 else 0)
                allowed[offset] = [data] if kind == 1 else [*allowed[offset], data]
            if kind > 1 and step % 8:
                continue
            content = durable_content(site.log)
            for at, versions in allowed.items():
                assert content[at : at + 512] in versions, f"seed {seed}, step {step}: lost at {at}"


@pytest.mark.parametrize("command", ["write", "write at 1", "zero", "trim", "zero without a hole"])
def test_fua_that_is_alone_costs_one_write_and_no_flush(command):
    site = Site(log=RecordingDevice)
    with attached(site) as served:
        client = served.client
        client.write(0, bytes(512))
        assert client.call(FLUSH).error == 0
        before = len(site.log.log)
        match command:
            case "write":
                client.write(0, b"x" * 512, flags=FUA)
            case "write at 1":
                client.write(1, b"x" * 5, flags=FUA)
            case "trim":
                assert client.call(TRIM, 0, 512, flags=FUA).error == 0
            case _:
                assert client.call(ZEROES, 0, 512, flags=FUA | (NO_HOLE if command != "zero" else 0)).error == 0
        (only,) = [call for call in site.log.log[before:] if call.what != "read"]
        assert only.what == "write" and only.fua


# ---- what breaks


def test_a_deleted_store():
    site = Site()
    with attached(site) as served, attached(site, store=2) as other:
        served.client.write(0, bytes(512))
        site.apply()
        site.window.drop_store(1)
        site.stores.drop_map(1)
        client = served.client
        assert {client.call(WRITE, 0, data=b"x" * length).error for length in (1, 512, 5000)} == {ESHUTDOWN}
        assert client.call(TRIM, 0, 512).error == client.call(ZEROES, 0, 512).error == ESHUTDOWN
        assert client.call(READ, 0, 512).error == client.call(READ, 1, 1).error == ESHUTDOWN
        assert client.call(FLUSH).error == 0  # what was written before is safe
        assert other.client.read(0, 512) == bytes(512)


def test_a_site_that_steps_down_can_still_be_read():
    site = Site()
    with attached(site) as served:
        client = served.client
        client.write(0, b"last" * 128)
        site.window.set_store(1, SIZE, writable=False)
        assert {client.call(WRITE, 0, data=b"x" * length).error for length in (1, 512)} == {ESHUTDOWN}
        assert client.call(ZEROES, 0, 512).error == client.call(TRIM, 0, 512).error == ESHUTDOWN
        assert client.read(0, 512) == b"last" * 128 and client.call(FLUSH).error == 0


@pytest.mark.parametrize("kind", ["write", "flush"])
def test_a_failed_journal_fails_writes_and_lets_reads_go_on(kind):
    site = Site(log=lambda name, size, sector: FailingDevice(name, size, sector, kind=kind, beyond={"write": 1, "flush": 2}[kind]))
    with attached(site) as served:
        client = served.client
        client.write(0, b"good" * 128)
        assert client.call(FLUSH).error == 0
        packed, _ = client.pack(WRITE, 512, data=b"lost" * 128)
        flush, _ = client.pack(FLUSH, 0, 0)
        client.sock.sendall(packed + flush)
        errors = [client.reply().error for _ in range(2)]
        assert EIO in errors and (kind == "flush" or errors == [EIO, EIO])
        assert client.call(WRITE, 0, data=bytes(512)).error == EIO
        assert client.call(WRITE, 0, data=bytes(5)).error == client.call(ZEROES, 0, 512).error == EIO
        assert client.call(FLUSH).error == EIO
        assert client.read(0, 512) == b"good" * 128
        client.send(DISC)
        assert client.is_gone() and served.join() == "left"


def test_a_journal_whose_file_system_is_full_says_so():
    site = Site(log=lambda name, size, sector: FailingDevice(name, size, sector, beyond=1, code=errno.ENOSPC))
    with attached(site) as served:
        client = served.client
        client.write(0, b"good" * 128)
        assert client.call(WRITE, 512, data=bytes(512)).error == client.call(WRITE, 0, data=bytes(5)).error == ENOSPC
        assert client.call(ZEROES, 0, 512).error == client.call(FLUSH).error == ENOSPC
        assert client.read(0, 512) == b"good" * 128


@pytest.mark.parametrize("structured", [False, True])
def test_a_device_that_fails_one_of_many_reads(structured):
    """Only the read that needs the bad place is an error, although reads are performed together."""
    class Spotted(MemoryDevice):
        def do_read(self, offset, length):
            if offset <= 8192 < offset + length:
                raise OSError(errno.EIO, "bad sector")
            return super().do_read(offset, length)

    site = Site(device=Spotted)
    with attached(site, structured=structured) as served:
        client, batch_ = served.client, [served.client.pack(READ, block * 4096, 4096) for block in range(16)]
        client.sock.sendall(b"".join(packed for packed, _ in batch_))
        errors = {reply.cookie: reply.error for reply in (client.reply() for _ in batch_)}
        assert errors == {cookie: EIO if block == 2 else 0 for block, (_, cookie) in enumerate(batch_)}
        assert client.read(0, 512) == bytes(512)


@pytest.mark.parametrize("structured", [False, True])
def test_a_device_that_fails_in_the_midst_of_a_long_read(structured):
    """Without structured replies the head is out already: the connection ends. With them it is an error."""
    class Short(MemoryDevice):
        def do_read(self, offset, length):
            if offset + length > 5 * MIB:
                raise OSError(errno.EIO, "bad sector")
            return super().do_read(offset, length)

    site = Site(1, size=8 * MIB, device=Short)
    with attached(site, size=8 * MIB, structured=structured) as served:
        served.client.send(READ, 0, 8 * MIB)
        if structured:
            reply = served.client.reply()
            assert reply.error == EIO and reply.chunks
            assert served.client.read(0, 512) == bytes(512)
        else:
            with pytest.raises(nbd.Gone):
                served.client.reply()
            assert served.join() == "lost"


def test_nothing_comes_between_the_pieces_of_a_long_simple_reply():
    """It has one head. A reply that is ready meanwhile waits for its end."""
    size, entered, go_on = 4 * MIB, threading.Event(), threading.Event()

    class Slow(MemoryDevice):
        def do_read(self, offset, length):
            if offset + length > 3 * MIB:
                entered.set()
                assert go_on.wait(nbd.PATIENCE)
            return super().do_read(offset, length)

    site = Site(1, size=size, region_size=1 << 16, log=gate("write"),
                device=lambda name, size, sector: Slow(name, size, sector, fill=b"r"))
    with attached(site, size=size) as served:
        client = served.client
        site.log.shut()
        read, reading = client.pack(READ, 0, size)
        write, writing = client.pack(WRITE, 0, data=b"w" * 512)
        client.sock.sendall(read + write)
        assert client.exactly(16) == struct.pack(">IIQ", nbd.SIMPLE, 0, reading)
        seen = client.exactly(2 * MIB)
        assert entered.wait(nbd.PATIENCE) and site.log.entered.wait(nbd.PATIENCE)
        site.log.open.set()
        client.sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.sock.recv(1)
        client.sock.settimeout(nbd.PATIENCE)
        go_on.set()
        seen += client.exactly(2 * MIB)
        assert seen[512:] == b"r" * (size - 512), "another reply stands in the midst of the data"
        assert client.exactly(16) == struct.pack(">IIQ", nbd.SIMPLE, 0, writing)


# ---- many


@pytest.mark.parametrize("structured", [False, True])
def test_more_requests_than_may_be_in_flight(structured):
    site = Site()
    with attached(site, structured=structured) as served:
        client, rng = served.client, random.Random(1)
        requests = {}
        for number in range(4 * nbdio.FLIGHT):
            block = number % (SIZE // 512)
            if rng.random() < 0.5:
                packed, cookie = client.pack(WRITE, block * 512, data=struct.pack(">Q", number) * 64)
            else:
                packed, cookie = client.pack(READ, block * 512, 512)
            requests[cookie] = packed
        sender = threading.Thread(target=client.sock.sendall, args=(b"".join(requests.values()),))
        sender.start()
        replies = [client.reply() for _ in requests]
        sender.join()
        assert {reply.cookie for reply in replies} == set(requests) and not any(reply.error for reply in replies)


@pytest.mark.parametrize("length", [300_000, 512 << 10, MIB, 2 * MIB - 512, 2 * MIB])
@pytest.mark.parametrize("structured", [False, True])
def test_many_reads_that_are_more_than_one_list_may_hold(length, structured):
    site = Site(1, size=8 * MIB, region_size=1 << 16)
    with attached(site, size=8 * MIB, structured=structured) as served:
        served.client.write(MIB, b"x" * MIB)
        want = bytes(MIB) + b"x" * MIB + bytes(MIB)
        packed = {cookie: (part, n % 3 * 4096) for n in range(40) for part, cookie in [served.client.pack(READ, n % 3 * 4096, length)]}
        served.client.sock.sendall(b"".join(part for part, _ in packed.values()))
        for _ in packed:
            reply = served.client.reply()
            assert reply.error == 0 and reply.data == want[packed[reply.cookie][1] :][:length]


def test_ten_thousand_requests_before_a_reply_is_read():
    """The server stops taking requests in rather than keep what it cannot send; then all are answered."""
    site = Site(size=MIB)
    with attached(site, size=MIB) as served:
        client = served.client
        kinds = [(WRITE, 512), (READ, 4096), (FLUSH, 0), (ZEROES, 512), (READ, 1)]
        packed = []
        for number in range(10_000):
            kind, length = kinds[number % len(kinds)]
            packed.append(client.pack(kind, 0 if kind == FLUSH else number % 256 * 4096, length, data=bytes(512) if kind == WRITE else b""))
        sent = threading.Event()

        def send():
            client.sock.sendall(b"".join(part for part, _ in packed))
            sent.set()

        sender = threading.Thread(target=send)
        sender.start()
        read_before = -1
        while (now := served.connection.counts()["bytes_read"]) != read_before:  # until it stands still
            read_before = now
            sent.wait(0.2)
        assert not sent.is_set() and now < 8 * MIB
        cookies = {client.reply()[:2] for _ in packed}
        sender.join()
        assert cookies == {(cookie, 0) for _, cookie in packed}


@pytest.mark.parametrize("shift", range(0, 28, 3))
def test_heads_that_lie_across_the_end_of_what_is_received_at_once(shift):
    """More is there than the server takes in at once, and its last piece is a part of a head."""
    site = Site()
    theirs, ours = socket.socketpair()
    with theirs, ours:
        connection, client = made(site)(theirs.fileno()), nbd.Client(ours)
        first = client.pack(WRITE, 0, data=b"w" * (512 + shift))
        packed = [first, *(client.pack(READ, 0, 1) for _ in range(3000))]
        client.sock.sendall(b"".join(part for part, _ in packed) + nbd.request(DISC))
        ends = []
        thread = threading.Thread(target=lambda: ends.append(connection.serve()))
        thread.start()
        assert {client.reply()[:2] for _ in packed} == {(cookie, 0) for _, cookie in packed}
        thread.join(nbd.PATIENCE)
        assert ends == ["left"]


def test_the_same_cookie_twice():
    site = Site()
    with attached(site) as served:
        client = served.client
        client.write(0, b"a" * 512 + b"b" * 512)
        first, _ = client.pack(READ, 0, 512, cookie=5)
        second, _ = client.pack(READ, 512, 512, cookie=5)
        client.sock.sendall(first + second)
        replies = [client.reply() for _ in range(2)]
        assert sorted(reply.data[:1] for reply in replies) == [b"a", b"b"] and {reply.cookie for reply in replies} == {5}


def test_disc_with_requests_in_flight_answers_all_of_them():
    site = Site(log=gate("write"))
    with attached(site) as served:
        client = served.client
        client.write(0, bytes(512))
        site.log.shut()
        requests = [client.pack(WRITE, n * 512, data=bytes([n + 1]) * 512) for n in range(40)]
        requests += [client.pack(READ, 0, 512), client.pack(FLUSH, 0, 0)]
        client.sock.sendall(b"".join(packed for packed, _ in requests) + nbd.request(DISC))
        assert site.log.entered.wait(nbd.PATIENCE)
        site.log.open.set()
        assert {client.reply()[:2] for _ in requests} == {(cookie, 0) for _, cookie in requests}
        assert client.is_gone() and served.join() == "left"


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_disc_that_comes_along_with_few_requests(count):
    """The end is read before anything was carried out, and before there is a thread for it."""
    for _ in range(20):
        site = Site()
        with attached(site) as served:
            requests = [served.client.pack(WRITE, n * 512, data=b"x" * 512) for n in range(count)]
            served.client.sock.sendall(b"".join(packed for packed, _ in requests) + nbd.request(DISC))
            assert {served.client.reply()[:2] for _ in requests} == {(cookie, 0) for _, cookie in requests}
            assert served.client.is_gone() and served.join() == "left"


def test_nothing_behind_disc_is_taken():
    site = Site()
    with attached(site) as served:
        served.client.sock.sendall(nbd.request(DISC) + nbd.request(WRITE, 0, 512, data=b"x" * 512))
        assert served.join() == "left"
    assert site.window.state().end_lsn == 0


# ---- clients that go, or do not go on


@pytest.mark.parametrize(("announced", "sent"), [
    (512, 0), (512, 10), (512, 511), (MIB, 10), (MIB, 400_000), (MIB, MIB - 1), (3 * MIB, 10), (3 * MIB, MIB), (3 * MIB, MIB + 5),
    (3 * MIB, 3 * MIB - 1)])
def test_a_client_that_goes_in_the_midst_of_a_write(announced, sent):
    """Nothing outside its range changes, and of the MiB that is not whole nothing happens."""
    size = 8 * MIB
    site = Site(1, size=size, region_size=1 << 16)
    with attached(site, size=size) as served:
        client = served.client
        client.write(0, b"\xaa" * 2 * MIB)
        client.sock.sendall(nbd.request(WRITE, MIB, announced) + b"\xbb" * sent)
        assert served.finish() == "lost"
    whole = sent // MIB * MIB
    with attached(site, size=size) as served:
        want = b"\xaa" * MIB + b"\xbb" * whole + (b"\xaa" * 2 * MIB)[MIB + whole :]
        assert served.client.read(0, 5 * MIB) == want + bytes(5 * MIB - len(want))


@pytest.mark.parametrize("cut", range(28))
def test_a_client_that_goes_in_the_midst_of_a_head(cut):
    site = Site()
    with attached(site) as served:
        served.client.sock.sendall(nbd.request(WRITE, 0, 512, data=b"x" * 512) + nbd.request(WRITE, 512, 512)[:cut])
        assert served.client.exactly(16)
        assert served.finish() == "lost"
    site.apply()
    assert site.devices[1].data[:1024] == b"x" * 512 + bytes(512)


def test_a_client_that_resets():
    """Not a socket pair but TCP: the other end is gone with replies on their way."""
    site = Site(size=MIB)
    listener = socket.create_server(("127.0.0.1", 0))
    ours = socket.create_connection(listener.getsockname())
    theirs, _ = listener.accept()
    connection = made(site, size=MIB)(theirs.fileno())
    ends = []
    thread = threading.Thread(target=lambda: ends.append(connection.serve()))
    thread.start()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ours.sendall(b"".join(nbd.request(READ, 0, MIB, cookie=n) for n in range(200)))
    ours.close()
    thread.join(nbd.PATIENCE)
    assert ends == ["lost"]
    theirs.close()
    listener.close()


def test_a_client_that_does_not_read_holds_up_nobody_else():
    site = Site(2, size=4 * MIB)
    with attached(site, size=4 * MIB) as slow, attached(site, size=4 * MIB) as quick:
        for number in range(64):
            slow.client.sock.sendall(nbd.request(READ, 0, MIB, cookie=number))
        slow.client.sock.sendall(nbd.request(WRITE, 0, MIB) + bytes(100))  # and in the midst of a write
        for number in range(300):
            quick.client.write(number * 512, bytes([number % 251]) * 512, flags=FUA if number % 10 == 0 else 0)
        assert quick.client.read(0, 512) == bytes(512) and quick.client.read(512, 512) == b"\1" * 512


def test_stop_from_another_thread_with_requests_in_flight():
    """They are completed; a promise that cannot be kept now (a peer that does not answer) is not waited for."""
    site = Site()
    with attached(site) as served:
        client = served.client
        client.write(0, b"x" * 512)
        site.window.set_sync(True)  # the peer never answers
        client.sock.sendall(b"".join(nbd.request(WRITE, n * 512, 512, cookie=n, data=b"y" * 512) for n in range(20)))
        while site.window.state().end_lsn < 21:
            time.sleep(0.001)
        served.connection.stop()
        assert served.join() == "lost"
        served.connection.stop()  # harmless
    site.window.set_sync(False)
    site.apply()
    assert site.devices[1].data[: 20 * 512] == b"y" * 20 * 512


def test_stop_where_a_single_write_waits_for_the_peer():
    site = Site()
    with attached(site) as served:
        site.window.set_sync(True)
        served.client.send(WRITE, 0, data=bytes(512))
        while site.window.state().end_lsn < 1:
            time.sleep(0.001)
        served.connection.stop()
        assert served.join() == "lost"


@pytest.mark.parametrize("count", [1, 2, 20])
def test_a_client_that_goes_while_its_writes_wait_for_the_peer(count):
    """Nobody waits for the replies any more."""
    site = Site()
    with attached(site) as served:
        site.window.set_sync(True)
        served.client.sock.sendall(b"".join(nbd.request(WRITE, n * 512, 512, cookie=n, data=b"y" * 512) for n in range(count)))
        while site.window.state().end_lsn < count:
            time.sleep(0.001)
        assert served.finish() == "lost"
    site.window.set_sync(False)


@pytest.mark.parametrize("offset", [0, 1])
def test_stop_where_a_write_waits_for_room(offset):
    """Nobody applies: the window is full at some time."""
    site = Site(1, size=32 * MIB, region_size=1 << 16)
    with attached(site, size=32 * MIB) as served:
        def send():
            with contextlib.suppress(OSError):
                for n in range(30):
                    served.client.sock.sendall(nbd.request(WRITE, n * MIB + offset, MIB - 512, data=bytes(MIB - 512)))

        sender = threading.Thread(target=send)
        sender.start()
        before = -1
        while (now := site.window.state().end_lsn) != before:
            before = now
            time.sleep(0.2)
        assert now < 30
        served.connection.stop()
        assert served.join() == "lost"
        sender.join()


def test_stop_where_a_write_that_is_not_aligned_waits_for_a_neighbour():
    """Another one holds the block at its edge."""
    site = Site()
    with attached(site) as served:
        site.window.hold_blocks(1, 0, 512)
        served.client.send(WRITE, 1, data=b"y" * 5)
        served.client.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            served.client.reply()
        served.connection.stop()
        served.thread.join(nbd.PATIENCE)
        stuck = served.thread.is_alive()
        site.window.release_blocks(1, 0, 512)  # so that the test ends, whatever happened
        assert not stuck and served.join() == "lost" and site.window.state().end_lsn == 0


def test_stop_before_serve():
    site = Site()
    theirs, ours = socket.socketpair()
    connection = made(site)(theirs.fileno())
    connection.stop()
    assert connection.serve() == "lost" and ours.recv(1) == b""


def test_stop_after_the_end_touches_no_descriptor():
    """The number may be another socket's by now."""
    site = Site()
    theirs, ours = socket.socketpair()
    number = theirs.fileno()
    connection = made(site)(number)
    ours.close()
    assert connection.serve() == "lost"
    theirs.close()
    one, other = socket.socketpair()
    assert number in (one.fileno(), other.fileno())
    connection.stop()
    one.sendall(b"x")
    assert other.recv(1) == b"x"


# ---- operations that have their place and are not performed yet


def test_reads_wait_for_a_pending_operation_and_others_do_not():
    site = Site()
    with attached(site) as served, attached(site, store=2) as other:
        served.client.write(0, b"x" * 512)
        site.apply()
        lsn = site.window.submit_operation(b"restore", blocks=[1], sizes=[], dropped=[])
        assert lsn == 2
        served.client.send(READ, 0, 512)
        other.client.write(0, b"z" * 512)
        assert other.client.read(0, 512) == b"z" * 512
        served.client.sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            served.client.reply()
        served.client.sock.settimeout(nbd.PATIENCE)
        site.apply()
        assert served.client.reply().data == b"x" * 512


# ---- what is rare


def test_what_is_long_or_not_aligned_of_trim_and_zeroes_is_rare():
    asked, size = [], 8 * MIB
    site = Site(1, size=size, region_size=1 << 16)

    def rare(command, flags, cookie, offset, length):
        asked.append((command, flags, offset, length))
        return 0, b""

    whole = [(ZEROES, 0, 0, MIB), (TRIM, FUA, 512, 512), (ZEROES, NO_HOLE, MIB, MIB)]
    odd = [(ZEROES, 0, 0, MIB + 512), (TRIM, 0, 0, size), (ZEROES, FUA, 1, 512), (TRIM, 0, 0, 511), (ZEROES, FAST_ZERO, 513, 4 * MIB)]
    with attached(site, size=size, rare=rare) as served:
        for command, flags, offset, length in whole + odd:
            assert served.client.call(command, offset, length, flags=flags).error == 0
    assert asked == odd


def kinds(site, lsn):
    """Of the events from this LSN on."""
    return [record.kind for entry in site.entries() if entry.first_lsn >= lsn
            for record in batch.records(bytes(entry.head) + bytes(entry.payload))]


def test_zeroes_and_trims_are_told_apart_in_the_journal():
    """Both read as zeros; only one of them gives the space back."""
    site = Site()
    with attached(site) as served:
        for number, (command, flags, kind) in enumerate([(ZEROES, 0, 2), (TRIM, 0, 3), (ZEROES, FUA, 2), (TRIM, FUA, 3), (ZEROES, NO_HOLE, 1)], 1):
            assert served.client.call(command, 0, 512, flags=flags).error == 0
            assert kinds(site, number) == [kind]


@pytest.mark.parametrize(("offset", "length"), [(0, 512), (0, MIB), (1, 1), (513, MIB), (4095, 3 * MIB + 2), (0, 8 * MIB)])
def test_zeroes_that_must_leave_no_hole_are_written_as_data(offset, length):
    size = 8 * MIB
    site = Site(1, size=size, region_size=1 << 16)
    with attached(site, size=size) as served:
        served.client.write(offset, b"x" * min(length, MIB))
        behind = served.client.read(offset + length, 512) if offset + length < size else b""
        begin = len(site.entries())
        with applied(site) if length > 4 * MIB else contextlib.nullcontext():
            assert served.client.call(ZEROES, offset, length, flags=NO_HOLE).error == 0
            assert served.client.read(offset, length) == bytes(length)
        assert not behind or served.client.read(offset + length, 512) == behind
        if length <= 4 * MIB:  # all of it is still in the window
            records = [record for entry in site.entries()[begin:] for record in batch.records(bytes(entry.head) + bytes(entry.payload))]
            assert {record.kind for record in records} == {1} and sum(record.length for record in records) >= length


def test_stop_where_zeroes_that_must_leave_no_hole_wait_for_room():
    """Nobody applies: the window is full at some time; what came before is answered, the rest is given up."""
    site = Site(1, size=64 * MIB, region_size=1 << 16)
    with attached(site, size=64 * MIB) as served:
        read, cookie = served.client.pack(READ, 0, 512)
        zeroes, _ = served.client.pack(ZEROES, 0, 64 * MIB, flags=NO_HOLE)
        served.client.sock.sendall(read + zeroes)
        assert served.client.reply()[:2] == (cookie, 0)
        before = -1
        while (now := site.window.state().end_lsn) != before:
            before = now
            time.sleep(0.2)
        assert 0 < now < 64
        served.connection.stop()
        assert served.join() == "lost" and site.window.state().end_lsn == now


def test_what_rare_says_and_raises():
    site = Site()

    def rare(command, flags, cookie, offset, length):
        if offset == 1:
            raise ZeroDivisionError("planted")
        if offset == 2:
            return ENOSPC, b""
        if offset == 3:
            return None
        if offset == 5:
            return EINVAL, b"not to be sent"
        return 0, b""

    with attached(site, rare=rare) as served:
        client = served.client
        assert [client.call(TRIM, offset, 5).error for offset in (1, 2, 3, 4)] == [EIO, ENOSPC, EIO, 0]
        assert isinstance(served.connection.failure, TypeError)
        assert client.call(TRIM, 5, 5).error == EINVAL
        assert client.read(0, 512) == bytes(512)
        many = [client.pack(TRIM, offset % 4 + 1, 5) for offset in range(100)]
        client.sock.sendall(b"".join(packed for packed, _ in many))
        assert sorted(client.reply().error for _ in many) == [0] * 25 + [EIO] * 50 + [ENOSPC] * 25


def test_long_answers_of_rare_are_whole_beside_other_replies():
    site = Site(size=MIB)
    extents = b"".join(struct.pack(">II", 512, n % 2 * 3) for n in range(1024))

    def rare(command, flags, cookie, offset, length):
        payload = struct.pack(">I", 1) + extents
        return 0, struct.pack(">IHH", nbd.STRUCTURED, 1, 5) + cookie.to_bytes(8, "little") + struct.pack(">I", len(payload)) + payload

    with attached(site, size=MIB, structured=True, statuses=True, rare=rare) as served:
        client, packed = served.client, []
        for _ in range(60):
            packed += [client.pack(STATUS, 0, MIB), client.pack(READ, 0, 65536), client.pack(WRITE, 0, data=bytes(512))]
        sender = threading.Thread(target=client.sock.sendall, args=(b"".join(part for part, _ in packed),))
        sender.start()
        replies = {reply.cookie: reply for reply in (client.reply() for _ in packed)}
        sender.join()
        assert len(replies) == len(packed) and not any(reply.error for reply in replies.values())
        assert sum(len(reply.statuses.get(1, ())) == 1024 for reply in replies.values()) == 60


# ---- lifetimes


def test_a_connection_that_is_never_served_or_twice_or_not_made():
    site = Site()
    theirs, ours = socket.socketpair()
    with theirs, ours:
        made(site)(theirs.fileno())  # and freed at once
        connection = made(site)(theirs.fileno())
        with pytest.raises(RuntimeError):
            connection.__init__(site.window, site.stores, store=1, size=SIZE, fd=theirs.fileno(), read_only=False, structured=False,
                                statuses=False, rare=never)
        ours.close()
        assert connection.serve() == "lost"
        with pytest.raises(RuntimeError):
            connection.serve()
        empty = nbdio.Connection.__new__(nbdio.Connection)
        with pytest.raises(RuntimeError):
            empty.serve()
        empty.stop()
        assert empty.counts()["errors"] == 0
        for missing in ({"window": None}, {"stores": None}):
            with pytest.raises(TypeError):
                nbdio.Connection(*[missing.get(name, getattr(site, name)) for name in ("window", "stores")], store=1, size=SIZE, fd=0,
                                 read_only=False, structured=False, statuses=False, rare=never)


def test_the_site_lives_as_long_as_its_connections():
    site = Site()
    with attached(site) as served:
        served.client.write(0, b"x" * 512)
        del site
        gc.collect()
        assert served.client.read(0, 512) == b"x" * 512


def test_a_device_that_leaves_the_table_while_it_is_read():
    """The read ends well, and the device is freed after it, not before."""
    freed = []

    class Watched(Gate):
        def __init__(self, name, size, sector_size):
            super().__init__(name, size, sector_size, kind="read")

        def __del__(self):
            freed.append(self.name)

    site = Site(4, device=Watched)
    with attached(site) as served, attached(site, store=2) as other:
        served.client.write(0, b"x" * 512)
        site.apply()
        site.devices[1].shut()
        served.client.send(READ, 0, 512)
        assert site.devices[1].entered.wait(nbd.PATIENCE)
        let_go = site.devices[1].open
        site.window.drop_store(1)
        site.stores.drop_map(1)
        del site.devices[1]
        site.stores.remove(1)
        for number in (3, 4):  # others leave meanwhile: the owner of the table frees what it may
            del site.devices[number]
            site.window.drop_store(number)
            site.stores.drop_map(number)
            site.stores.remove(number)
            gc.collect()
            assert "disk1" not in freed
        assert other.client.read(0, 512) == bytes(512)
        let_go.set()
        assert served.client.reply().error == ESHUTDOWN  # it was deleted while it was read
        for number in (21, 22, 23):
            site.stores.add(number, MemoryDevice(f"disk{number}", SIZE, 512))
            site.stores.remove(number)
        assert "disk1" in freed


# ---- several at once


class History:
    """Writes and reads of blocks, with the times at which they were sent and answered."""

    def __init__(self, connections):
        self.writes = [{} for _ in range(connections)]  # stamp -> (block, sent, answered)
        self.reads = [[] for _ in range(connections)]  # (block, stamp, sent, answered)

    def check(self):
        writes = {0: (None, 0.0, 0.0)}
        for own in self.writes:
            writes.update(own)
        by_block = {}
        for stamp, (block, sent, answered) in writes.items():
            by_block.setdefault(block, []).append((answered, sent, stamp))
        seen = {}
        for block, stamp, sent, answered in sorted((read for own in self.reads for read in own), key=lambda read: read[2]):
            of, begun, ended = writes[stamp]
            assert stamp == 0 or of == block, "a stamp of another block"
            assert begun <= answered, "a write that had not begun"
            for other_ended, other_begun, other in by_block.get(block, ()):
                overwritten = other != stamp and other_ended < sent and other_begun > ended
                assert not overwritten, f"block {block}: {stamp:#x} was overwritten by {other:#x} before the read was sent"
            for was_answered, was in seen.get(block, ()):
                if was_answered < sent and was != stamp:
                    assert not ended < writes[was][1], f"block {block}: {stamp:#x} after {was:#x} was seen"
            seen.setdefault(block, []).append((answered, stamp))
        return len(writes) - 1, sum(map(len, self.reads))


def hammer(served, number, history, rounds, blocks, alignment):
    rng, client = random.Random(number), served.client
    for step in range(rounds):
        flying = {}
        packed = b""
        for slot in range(rng.randrange(1, 9)):
            block = rng.randrange(blocks)
            if rng.random() < 0.5:
                stamp = number << 40 | step << 8 | slot
                part, cookie = client.pack(WRITE, block * alignment, data=struct.pack(">Q", stamp) * (alignment // 8),
                                           flags=FUA if rng.random() < 0.05 else 0)
                flying[cookie] = (block, stamp)
            else:
                part, cookie = client.pack(READ, block * alignment, alignment)
                flying[cookie] = (block, None)
            packed += part
        sent = time.monotonic()
        for block, stamp in flying.values():
            if stamp is not None:
                history.writes[number - 1][stamp] = (block, sent, float("inf"))
        client.sock.sendall(packed)
        for _ in range(len(flying)):
            reply = client.reply()
            answered = time.monotonic()
            assert reply.error == 0
            block, stamp = flying[reply.cookie]
            if stamp is None:
                (found,) = struct.unpack_from(">Q", reply.data)
                assert reply.data == struct.pack(">Q", found) * (alignment // 8), "a torn block"
                history.reads[number - 1].append((block, found, sent, answered))
            else:
                history.writes[number - 1][stamp] = (block, sent, answered)


@pytest.mark.parametrize("alignment", [512, 4096])
def test_connections_that_write_and_read_the_same_blocks(alignment):
    """No read shows what was overwritten before it was sent, goes back behind what another one saw, or is torn."""
    site, count = Site(alignment=alignment), 4
    history, failures = History(count), []
    with contextlib.ExitStack() as stack:
        stack.enter_context(applied(site))
        served = [stack.enter_context(attached(site, structured=bool(n % 2))) for n in range(count)]

        def run(n):
            try:
                hammer(served[n], n + 1, history, 120, 6, alignment)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures, failures
    writes, reads = history.check()
    print(f"{writes} writes, {reads} reads")
    assert writes > 500 and reads > 500


def test_writes_that_are_not_aligned_from_several_connections_lose_nothing():
    """Neighbours in one block, written by different clients at once."""
    site, count = Site(alignment=4096), 8
    with contextlib.ExitStack() as stack:
        stack.enter_context(applied(site))
        served = [stack.enter_context(attached(site)) for _ in range(count)]
        failures = []

        def run(n):
            try:
                for turn in range(1, 41):
                    served[n].client.write(n * 100 + 4096 - 400, bytes([n * 16 + turn % 16]) * 100)  # across two blocks
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures
        assert served[0].client.read(4096 - 400, 800) == b"".join(bytes([n * 16 + 8]) * 100 for n in range(count))
