"""A site whose file system is full stands still and goes on by itself: on real file systems, over real TCP. Nothing fails,
nothing is sent as data for it, other links do not notice, and afterwards both sites hold the same bytes."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pyrepl.errors import PyreplError, Refused
from pyrepl.runtime import dialer
from tests.support.clients import until
from tests.support.full_disk import Small

MIB = 1 << 20
SIZE = 16 * MIB
WAIT = 60.0

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


class Fan:
    """A primary with two secondaries, synchronized: link "paris" leads to one on a small file system, "rome" to another."""

    def __init__(self, nodes: Any, path: Path, small: Small, *, mode: str = "async", primary: bool = False) -> None:
        self.small, self.random = small, random.Random(7)
        places = {"paris": small.folder / "there", "rome": path / "rome"}
        self.nodes = {name: nodes(str(folder)) for name, folder in places.items()}
        self.here = nodes(str(small.folder / "here" if primary else path / "here"))
        self.group = self.here.create_group("db", path / "near-journal", journal_size=SIZE)
        self.volume = self.group.add_volume("data", size=SIZE)
        for name, node in self.nodes.items():
            node.create_group("db", path / f"{name}-journal", journal_size=SIZE, role="secondary").add_volume("data", size=SIZE)
            self.group.add_link(name, "{}:{}".format(*node.listen("127.0.0.1")), mode=mode)
        self.write(0, SIZE)
        for link in self.group.links:
            link.wait_synced(WAIT)
            link.wait_applied(self.group.flush(), WAIT)
        self.copied = {link.name: link.status()["bytes_sent"]["copied"] for link in self.group.links}

    @property
    def far(self) -> Any:
        return self.nodes["paris"].group("db")

    @property
    def link(self) -> Any:
        return self.group.link("paris")

    def write(self, offset: int, length: int, volume: Any = None) -> None:
        for start in range(offset, offset + length, MIB):
            (volume or self.volume).write(start, self.random.randbytes(min(MIB, offset + length - start)))

    def is_equal(self) -> bool:
        """Both secondaries have everything, byte for byte, and got it as it was written and told."""
        assert self.far.fault is None
        lsn, equal = self.group.flush(), True
        for link in self.group.links:
            link.wait_synced(WAIT)
            link.wait_applied(lsn, WAIT)
            there = self.nodes[link.name].group("db")
            for store in (*self.group.volumes, *self.group.snapshots):
                equal = equal and store.read(0, store.size) == there.store(store.name).read(0, store.size)
            assert not link.status()["refused"]
        return equal

    def is_still(self) -> dict[str, Any]:
        """It says so here and there; the link works, and it has not failed."""
        until(lambda: self.link.status()["stands"], "the link says that its secondary stands still", WAIT)
        status, there = self.link.status(), self.far.status()
        assert (status["state"], status["connected"]) == ("streaming", True) and there["state"] == "active"
        assert "stands still after LSN" in status["stands"] and "bytes are free there" in status["stands"]
        assert there["stands"]["error"] == "No space left on device" and there["stands"]["text"] in status["stands"]
        return dict(there["stands"])


Maker = Callable[..., Fan]


@pytest.fixture
def fan(nodes: Any, tmp_path: Path) -> Iterator[Maker]:
    small = Small(tmp_path / "small", files=200)
    made: list[Fan] = []

    def make(**options: Any) -> Fan:
        made.append(Fan(nodes, tmp_path, small, **options))
        return made[-1]

    try:
        yield make
        for one in made:
            small.give()
            for node in (one.here, *one.nodes.values()):
                with suppress(PyreplError):
                    node.close()
    finally:
        small.close()


def test_what_a_snapshot_keeps_finds_no_room(fan: Maker) -> None:
    one = fan()
    one.volume.snapshot("monday")
    one.link.wait_applied(one.group.flush(), WAIT)
    events = one.nodes["paris"].events()
    one.small.fill()
    one.write(0, 8 * MIB)
    told = one.is_still()
    assert events.get(WAIT)["text"].startswith("it stands still after LSN")
    assert told["free"] < MIB and told["device"].startswith(str(one.small.folder))
    assert one.far.store("monday").size and one.far.volume("data").read(0, MIB) == one.volume.read(0, MIB), "it can be read"
    with pytest.raises(Refused, match="cannot show what its stores show now: it stands still"):
        one.far.open_view("data")
    done = one.group.mark("here")
    one.group.wait(done.lsn, where="rome", timeout=WAIT)
    (last,) = [known for known in one.group.operations() if known["lsn"] == done.lsn]
    assert last["secondaries"] == {"rome": "performed", "paris": "pending"}
    assert one.link.status()["durable_lsn"] >= done.lsn, "what its journal holds is acknowledged"
    with pytest.raises(PyreplError, match="stands still after LSN"):
        one.group.wait(done.lsn, where="paris", timeout=0.5)
    with pytest.raises(Refused, match=r"cannot step down: the site of link 'paris'.* says: .*stands still"):
        one.group.migrate("paris", timeout=5)
    assert one.group.role == "primary"
    one.link.pause()
    with pytest.raises(Refused, match=r"cannot lead now: it stands still after LSN .* Free some space") as refused:
        one.far.takeover()
    assert refused.value.reason == "space" and refused.value.retryable and one.far.role == "secondary"
    one.link.resume()
    one.is_still()
    one.small.give()
    assert one.is_equal() and one.far.status()["stands"] is None
    until(lambda: not one.link.status()["stands"], "its next heartbeat says that it goes on", WAIT)
    heard = events.get(WAIT)
    while heard["event"] != "goes-on":
        assert heard["event"] == "stands-still", heard
        heard = events.get(WAIT)
    assert {link.name: link.status()["bytes_sent"]["copied"] for link in one.group.links} == one.copied, "no data for it"


def test_a_store_that_needs_a_file(fan: Maker) -> None:
    one = fan()
    one.small.crowd()
    new = one.group.add_volume("new", size=4 * MIB)
    one.write(0, 2 * MIB, new)
    one.volume.snapshot("monday")
    told = one.is_still()
    assert told["free"] > MIB, "it is not bytes that are wanted"
    one.group.wait(where="rome", timeout=WAIT)
    assert [store.name for store in one.far.volumes] == ["data", "new"], "as far as readers there are told"
    one.small.give()
    assert one.is_equal()


def test_a_first_synchronization(fan: Maker, tmp_path: Path) -> None:
    """There is no earlier state that could be kept: what is copied stands still like anything else."""
    one = fan()
    there = one.nodes["paris"].create_group("more", tmp_path / "more-journal", journal_size=SIZE, role="secondary")
    there.add_volume("data", size=SIZE)
    group = one.here.create_group("more", tmp_path / "more-near", journal_size=SIZE)
    volume = group.add_volume("data", size=SIZE)
    one.write(0, SIZE, volume)
    one.small.fill()
    link = group.add_link("paris", "{}:{}".format(*one.nodes["paris"].status()["listening"][0]))
    until(lambda: link.status()["stands"], "it stands still", WAIT)
    assert there.status()["stands"] and there.fault is None and not link.status()["synced"]
    one.small.give()
    link.wait_synced(WAIT)
    link.wait_applied(group.flush(), WAIT)
    assert there.volume("data").read(0, SIZE) == volume.read(0, SIZE) and one.is_equal()


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_its_journal_takes_in_what_comes_and_pushes_back_then(
    fan: Maker, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialer, "PASSES", 1.0)
    one = fan(mode=mode)
    one.volume.snapshot("monday")
    one.link.wait_applied(one.group.flush(), WAIT)
    one.small.fill()
    one.write(0, 4 * MIB)
    one.is_still()
    until(lambda: one.link.status()["lag_events"] == 0, "it has journaled that", WAIT)
    assert not one.link.status()["degraded"], "writers of a sync link go on with what its journal holds"
    for turn in range(8):
        one.write(turn % 4 * 4 * MIB, 4 * MIB)  # no write waits for ever
    until(lambda: one.link.status()["state"] == "refused", "it pushes back", WAIT)
    status = one.link.status()
    assert "cannot take more now" in status["last_error"] and "stands still after LSN" in status["stands"]
    assert status["refused_since"] and status["degraded"] == (mode == "sync")
    assert one.far.fault is None and one.far.status()["stands"]
    until(lambda: one.group.link("rome").status()["lag_events"] == 0, "the other link goes on", WAIT)
    one.small.give()
    assert one.is_equal() and one.link.status()["refused_since"] is None


def test_a_primary_stands_still_and_writers_wait(fan: Maker) -> None:
    """As with a thin pool: what was written is in the journal, and goes on; then writers wait."""
    one = fan(primary=True)
    one.volume.snapshot("monday")
    one.group.wait(where="paris", timeout=WAIT)
    one.small.leave(MIB)
    first = one.random.randbytes(MIB)
    one.volume.write(0, first)
    one.volume.write(MIB, first)
    until(lambda: one.group.status()["stands"], "it says so", WAIT)
    assert one.group.status()["state"] == "active" and one.volume.read(0, MIB) == first
    with pytest.raises(Refused, match="cannot step down now: it stands still"):
        one.group.migrate("rome", timeout=5)
    written: list[int] = []

    def write() -> None:
        for turn in range(40):
            one.volume.write(turn % 16 * MIB, first)
            written.append(turn)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    until(lambda: len(written) > 2, "writers go on", WAIT)
    before, end = -1, time.monotonic() + WAIT
    while before != len(written) and time.monotonic() < end:
        before = len(written)
        time.sleep(1.5)
    assert len(written) < 40 and writer.is_alive() and one.group.fault is None, "then they wait"
    one.small.give()
    writer.join(WAIT)
    assert len(written) == 40 and one.is_equal()
    assert one.group.status()["stands"] is None
