"""Two sites in one process, joined by real TCP on loopback: threads, reconnects, refusals, slow and silent peers."""

import contextlib
import os
import socket
import threading
import time
from contextlib import ExitStack

import pytest

from pyrepl import operations
from pyrepl._core import view
from pyrepl.errors import PeerError, UsageError
from pyrepl.link import Link
from pyrepl.options import LinkOptions
from pyrepl.outgoing import Out
from pyrepl.protocol.session import Session, Side
from pyrepl.runtime.bucket import Bucket
from pyrepl.runtime.dialer import Dialer
from pyrepl.runtime.listener import MOST_KNOCKING, Listener
from pyrepl.runtime.transport import Connection, parse_address
from tests.support.simulation import World, create_site, small_options

REGION = 4096
SIZE = 256 * REGION
QUICK = LinkOptions(heartbeat=0.1, dead=2.0, backoff_first=0.01, backoff_most=0.1)


class Driver:
    """The applier's thread of a site, the plain way."""

    def __init__(self, site):
        self.site = site
        self.lock = threading.RLock()
        self.over = False
        self.error = None
        site.exclusive = self._exclusive
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _exclusive(self, call):
        with self.lock:
            return call()

    def _run(self):
        try:
            while not self.over:
                with self.lock:
                    busy = self.site.window.commit_pending() or self.site.step()
                if not busy:
                    time.sleep(0.002)
        except BaseException as error:
            self.error = error

    def close(self):
        self.over = True
        self.thread.join()
        assert self.error is None, self.error


class Node:
    """A site with its driver."""

    def __init__(self, stack, role, name, volumes=("data",)):
        self.world = World()
        self.site = create_site(self.world, ord(name), role=role, node=name.encode() * 16, journal_size=32 << 20,
                                options=small_options(checkpoint_bytes=4 << 20, epoch_bytes=1 << 20))
        self.driver = Driver(self.site)
        stack.callback(self.close)
        for volume in volumes:
            if role == "primary":
                self.operate(operations.add_volume(self.site.end.catalog, volume, SIZE, zero=True, region_size=REGION))
            else:
                self.site.intake.prepare_volume(volume, SIZE)

    def operate(self, operation):
        lsn = self.site.admit(operation).lsn
        self.site.window.commit(lsn)
        assert self.site.window.wait_applied(lsn, 20)
        return lsn

    def read(self, store=1):
        return view.read(self.site.window, self.site.stores, store, 0, SIZE)

    def close(self):
        self.driver.close()
        self.site.abandon()


@pytest.fixture
def two():
    """A primary, a secondary that listens, and a function that links them."""
    with ExitStack() as stack:
        a, b = Node(stack, "primary", "A"), Node(stack, "secondary", "B")
        listener = Listener(lambda: [b.site], os.urandom, heartbeat=0.1, dead=2.0)
        stack.callback(listener.stop)
        b.address = "{}:{}".format(*listener.start("127.0.0.1", 0))
        a.guard = threading.RLock()

        def link(mode="async", address=None, name="paris"):
            made = Link(a.site, name, address=address or b.address, mode=mode, options=QUICK, guard=a.guard)
            a.site.attach(made)
            dialer = Dialer(made, os.urandom)
            dialer.start()
            stack.callback(dialer.stop)
            return dialer
        yield a, b, listener, link


def wait(what, dialer=None, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, dialer and dialer.status()
        time.sleep(0.005)


def synced(dialer):
    wait(lambda: dialer.status()["synced"], dialer)


def equal(a, b, store=1):
    lsn = a.site.window.state().end_lsn
    wait(lambda: b.site.window.state().applied_lsn >= lsn)
    assert b.read(store) == a.read(store)


def test_writes_and_operations_arrive(two):
    a, b, listener, link = two
    a.site.window.write(1, 0, b"x" * SIZE)
    dialer = link()
    synced(dialer)
    for i in range(50):
        a.site.window.write(1, i * 512, bytes([i]) * 512)
    a.operate(operations.snapshot(a.site.end.catalog, ["data"], ["monday"]))
    a.site.window.write(1, 0, b"y" * SIZE)
    copied = dialer.status()["bytes_sent"]["copied"]
    a.operate(operations.restore(a.site.end.catalog, "data", "monday", None, None, region_size=REGION))
    synced(dialer)
    equal(a, b)
    equal(a, b, 2)
    status = dialer.status()
    assert status["bytes_sent"]["copied"] == copied
    assert sum(status["bytes_sent"].values()) <= status["wire_bytes_sent"]
    assert listener.feed(b.site).replica.bytes_received["operations"] == status["bytes_sent"]["operations"]


def test_a_cut_connection_comes_back_without_copies(two):
    a, b, listener, link = two
    dialer = link()
    synced(dialer)
    for round in range(5):
        copied = dialer.status()["bytes_sent"]["copied"]
        listener.drop(b.site)
        for i in range(20):
            a.site.window.write(1, i * 4096, bytes([round + 1, i]) * 2048)
        wait(lambda: dialer.status()["lag_events"] == 0, dialer)
        synced(dialer)
        assert dialer.status()["bytes_sent"]["copied"] == copied
    assert dialer.status()["connections"] >= 3
    equal(a, b)


def test_pause_and_resume(two):
    a, b, _, link = two
    dialer = link()
    synced(dialer)
    dialer.pause()
    wait(lambda: dialer.status()["state"] == "paused", dialer)
    a.site.window.write(1, 0, b"z" * 4096)
    assert dialer.status()["lag_events"] == 1 and not dialer.status()["connected"]
    dialer.resume()
    synced(dialer)
    equal(a, b)


def test_sync(two):
    a, b, listener, link = two
    dialer = link(mode="sync")
    synced(dialer)
    wait(lambda: not dialer.status()["degraded"], dialer)
    for i in range(20):
        lsn = a.site.window.write(1, 4096 * i, b"s" * 4096)
        assert b.site.window.state().durable_lsn >= lsn
    listener.stop()
    a.site.window.write(1, 0, b"t" * 4096)  # degrades, does not hang
    assert dialer.status()["degraded"]


def test_the_newest_connection_wins(two):
    a, b, listener, link = two
    dialer = link()
    synced(dialer)
    first = listener.feed(b.site)
    other = Connection.dial(b.address, dead=2.0)
    session = Session(Side.PRIMARY)
    shadow = Link(a.site, "shadow", address="", options=QUICK)
    other.send(shadow.connect(session))
    other.receive(session, threading.Lock(), time.monotonic() + 60)
    assert not first._thread.is_alive()
    other.close()
    synced(dialer)
    assert listener.feed(b.site) is not first


def test_refused_says_why(two):
    a, b, _, link = two
    a.operate(operations.add_volume(a.site.end.catalog, "more", SIZE, zero=True, region_size=REGION))
    dialer = link()
    wait(lambda: dialer.status()["state"] == "refused", dialer)
    assert "more" in dialer.status()["last_error"] and b.site.group_id is None


def test_nobody_there(two):
    _, _, _, link = two
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    dialer = link(address=f"127.0.0.1:{port}")
    wait(lambda: dialer.status()["state"] == "down", dialer)
    assert str(port) in dialer.status()["last_error"]


def test_a_silent_peer_is_given_up(two):
    _, _, _, link = two
    with socket.create_server(("127.0.0.1", 0)) as mute:
        dialer = link(address="127.0.0.1:{}".format(*mute.getsockname()[1:]))
        wait(lambda: "heard" in dialer.status()["last_error"] or "too long" in dialer.status()["last_error"], dialer)


def test_a_limited_link_is_taken_for_dead_by_neither_side(two):
    """A batch takes four seconds, where both sides give each other up after two seconds of silence."""
    a, b, listener, link = two
    dialer = link()
    synced(dialer)
    with a.guard:
        dialer.link.set(bandwidth=24 * 1024)
    dialer.changed()
    begin, connections = time.monotonic(), dialer.status()["connections"]
    a.site.window.write(1, 0, os.urandom(96 * 1024))
    synced(dialer)
    assert time.monotonic() - begin > 3 and dialer.status()["connections"] == connections and not listener.refused
    equal(a, b)


def test_knocking(two):
    """Silent, rude and too many callers cost a connection each, and nothing else."""
    a, b, listener, link = two
    host, port = parse_address(b.address)
    callers = [socket.create_connection((host, port)) for _ in range(MOST_KNOCKING + 8)]
    try:
        wait(lambda: listener._knocking == MOST_KNOCKING)
        callers[-1].settimeout(60)
        with contextlib.suppress(ConnectionResetError):
            assert callers[-1].recv(1) == b""
        callers[0].sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 8)
        wait(lambda: any("not a frame" in text for text in listener.refused))
    finally:
        for caller in callers:
            caller.close()
    wait(lambda: listener._knocking == 0)
    dialer = link()
    synced(dialer)


def test_a_peer_that_does_not_read_holds_no_memory():
    """What pins the journal is copied away after a moment."""
    released = []

    class Pinned:
        def release(self):
            released.append(time.monotonic())

    ours, theirs = socket.socketpair()
    connection = Connection.__new__(Connection)
    ours.setblocking(True)
    import select
    connection._socket, connection._dead, connection._poll = ours, 4.0, select.poll()
    connection._poll.register(ours, select.POLLOUT)
    connection.bytes_sent, connection._bucket = 0, Bucket()
    start = time.monotonic()
    out = Out("events", [b"h" * 32, bytes(8 << 20)], Pinned())
    with pytest.raises(PeerError, match="took no data"):
        connection.send_out(out)
    assert released and released[0] - start < 3.5 < time.monotonic() - start
    ours.close()
    theirs.close()


@pytest.mark.parametrize("bad", ["", "host", "host:", ":1", "host:x", "host:-1", "host:65536", "::1:5", "[::1:5", "host:\u0661"])
def test_addresses_that_are_none(bad):
    with pytest.raises(UsageError):
        parse_address(bad)


def test_addresses():
    assert parse_address("host:1") == ("host", 1) and parse_address("[::1]:65535") == ("::1", 65535)
