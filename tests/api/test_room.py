"""A secondary without space, and one whose group has failed: its primary says so, asks again by itself and sends next to
nothing meanwhile. On a real file system that is full, over real TCP, counted by a proxy between the two nodes."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pyrepl.demo.proxy import Proxy
from pyrepl.errors import PyreplError
from pyrepl.runtime import dialer
from tests.support.clients import until
from tests.support.full_disk import Small

MIB = 1 << 20
SIZE = 16 * MIB
WAIT = 60.0

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


class Pair:
    """A primary, its secondary on a small file system, and what crosses the wire between them."""

    def __init__(self, nodes: Any, path: Path, small: Small) -> None:
        self.small = small
        self.there = nodes(str(small.folder / "there"))
        self.there.create_group("db", path / "far-journal", journal_size=SIZE, role="secondary").add_volume("data", size=SIZE)
        self.address = self.there.listen("127.0.0.1")
        self.proxy = Proxy(self.address)
        self.here = nodes("here")
        self.group = self.here.create_group("db", path / "near-journal", journal_size=SIZE)
        self.volume = self.group.add_volume("data", size=SIZE)
        self.random = random.Random(4)
        self.link = self.group.add_link("paris", f"127.0.0.1:{self.proxy.port}")
        self.write(0, SIZE)
        self.link.wait_synced(WAIT)
        until(lambda: self.far.applied_lsn == self.group.applied_lsn, "all is performed there", WAIT)

    @property
    def far(self) -> Any:
        return self.there.group("db")

    def write(self, offset: int, length: int) -> None:
        for start in range(offset, offset + length, 4 * MIB):
            self.volume.write(start, self.random.randbytes(min(4 * MIB, offset + length - start)))

    def overflow(self) -> None:
        """12 MiB differ, and not all of what was written is in the journal any more."""
        self.link.pause()
        for turn in range(8):
            self.write(turn % 3 * 4 * MIB, 4 * MIB)
        self.group.flush()
        assert self.link.status()["backlog_bytes"]

    def is_equal(self) -> bool:
        self.link.wait_synced(WAIT)
        until(lambda: self.far.applied_lsn == self.group.applied_lsn, "all is performed there", WAIT)
        return bool(self.volume.read(0, SIZE) == self.far.volume("data").read(0, SIZE))


@pytest.fixture
def pair(nodes: Any, tmp_path: Path) -> Iterator[Pair]:
    small = Small(tmp_path / "small")
    try:
        made = Pair(nodes, tmp_path, small)
        try:
            yield made
        finally:
            made.proxy.close()
            for node in (made.here, made.there):
                with suppress(PyreplError):
                    node.close()
    finally:
        small.close()


@pytest.mark.parametrize("room", [3 * MIB, 14 * MIB, 22 * MIB])
def test_a_resync_without_room_stands_still_on_the_wire_too(pair: Pair, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """3 and 14 MiB: the protective snapshot is not begun, which might need more; 22: the copies come to their end."""
    monkeypatch.setattr(dialer, "PASSES", 1.0)
    pair.overflow()
    before = pair.far.volume("data").read(0, SIZE)
    pair.small.leave(room)
    crossed = pair.proxy.counts()
    begin = time.time()
    pair.link.resume()
    until(lambda: "stands still" in pair.link.status()["last_error"], "it says why", WAIT)
    until(lambda: pair.link.status()["state"] == "refused", "it has lasted", WAIT)
    end, seen = time.monotonic() + 6, set()
    while time.monotonic() < end:
        status = pair.link.status()
        seen.add(status["state"])
        if status["last_error"]:
            assert begin <= status["refused_since"] <= time.time() - 1
            assert "pyrepl group unprotect db" in status["last_error"]
        time.sleep(0.05)
    assert "refused" in seen
    late = pair.proxy.counts()
    assert late.since(crossed).total < 40 * MIB, "what differs, and what was on its way, once"
    time.sleep(4)
    assert pair.proxy.counts().since(late).total < 2 * MIB
    assert pair.far.status()["state"] == "active" and "stands still" in pair.far.status()["last_refusal"]
    assert (pair.far.status()["protective"] is not None) == (room == 22 * MIB)
    if room == 22 * MIB:
        (kept,) = pair.far.kept
        assert kept.name == "data-protective" and kept.read(0, SIZE) == before
    pair.small.give()
    assert pair.is_equal()
    assert pair.link.status()["refused_since"] is None and pair.far.status()["protective"] is None


@pytest.mark.parametrize("length", [4096, 4 * MIB])
def test_events_in_a_resync_find_no_room_either(pair: Pair, length: int) -> None:
    """What they overwrite is kept too, whole regions of it: they are refused before it cannot be."""
    pair.overflow()
    pair.small.leave(22 * MIB)
    pair.link.resume()
    until(lambda: "stands still" in pair.link.status()["last_error"], "the copies stand still", WAIT)
    pair.small.leave(6 * MIB)
    for number in range(300 if length == 4096 else 4):
        offset = number * 37 % 255 * 65536 if length == 4096 else number * length
        pair.volume.write(offset, pair.random.randbytes(length))
    pair.group.flush()
    end = time.monotonic() + 4
    while time.monotonic() < end:
        assert pair.far.fault is None
        time.sleep(0.05)
    until(lambda: "stands still" in pair.link.status()["last_error"], "it says why", WAIT)
    assert pair.small.free >= 3 * MIB
    crossed = pair.proxy.counts()
    time.sleep(4)
    assert pair.proxy.counts().since(crossed).total < 2 * MIB
    pair.small.give()
    assert pair.is_equal()


def test_giving_the_snapshot_up_is_enough(pair: Pair) -> None:
    pair.overflow()
    pair.small.leave(14 * MIB)
    pair.link.resume()
    until(lambda: "stands still" in pair.link.status()["last_error"], "it says why", WAIT)
    pair.far.unprotect()
    assert pair.is_equal()


def fail(pair: Pair) -> Callable[[], None]:
    """A snapshot keeps what is overwritten, which cannot be read at the secondary: its group fails. What is returned makes
    the disk as it was."""
    pair.volume.snapshot("monday")
    pair.group.wait(pair.group.flush(), where="paris", timeout=WAIT)
    path = Path(next(store["path"] for store in pair.far.status()["stores"] if store["name"] == "data"))
    held = path.read_bytes()
    os.truncate(path, 0)
    pair.write(0, 8 * MIB)
    until(lambda: pair.far.fault is not None, "its group fails", WAIT)

    def heal() -> None:
        with path.open("r+b") as file:
            file.write(held)

    return heal


def test_a_group_that_failed_at_the_secondary(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialer, "PASSES", 1.0)
    heal = fail(pair)
    until(lambda: pair.link.status()["state"] == "refused", "the link says so", WAIT)
    told = pair.link.status()["last_error"]
    assert "group 'db' has failed" in told and "Input/output error" in told and "pyrepl group open db" in told
    assert "on that node" in told and "create" not in told
    heal()
    pair.there.open_group("db")
    assert pair.is_equal()
    assert pair.far.store("monday").read(0, SIZE) == pair.group.store("monday").read(0, SIZE)


def test_a_group_that_fails_with_nothing_on_its_way(pair: Pair) -> None:
    """Everything was acknowledged by then: the link hears of it all the same."""
    pair.far._failed(OSError(errno.EIO, os.strerror(errno.EIO)))
    until(lambda: "group 'db' has failed" in pair.link.status()["last_error"], "the link says so", WAIT)
    assert not pair.link.status()["synced"]
    pair.there.open_group("db")
    assert pair.is_equal()


def test_a_group_that_could_not_be_opened_at_the_secondary(pair: Pair, nodes: Any, tmp_path: Path) -> None:
    """Its identity is not known then, but its name is."""
    pair.there.close()
    journal = tmp_path / "far-journal"
    journal.rename(tmp_path / "away")
    pair.there = nodes(str(pair.small.folder / "there"))
    assert pair.there.group("db").fault is not None
    pair.there.listen(*pair.address)
    until(lambda: "far-journal" in pair.link.status()["last_error"], "the link says why", WAIT)
    told = pair.link.status()["last_error"]
    assert "opening group 'db'" in told and "pyrepl group open db" in told and "create" not in told
    pair.write(0, MIB)
    (tmp_path / "away").rename(journal)
    pair.there.open_group("db")
    assert pair.is_equal()
