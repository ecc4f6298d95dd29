"""A takeover in the middle of a resync, over TCP: the secondary goes back to its protective snapshot, a state that the
primary really had, and leads from there; the old primary is led back by what diverged alone."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from pyrepl.errors import NotFound, Refused
from tests.api.test_links import REGION, SIZE, WAIT
from tests.api.test_roles import Swap
from tests.nbd.test_server import attach
from tests.support.clients import until
from tests.support.nbd_client import DISC, WRITE

MIB = 1 << 20
BIG = 64 * MIB


class Story(Swap):
    """A primary whose writes are known by LSN, and a secondary that is slow to take copies."""

    def __init__(self, nodes, tmp_path, rng):
        super().__init__(nodes, tmp_path)
        self.rng, self.path = rng, tmp_path
        self.did: list[tuple[int, str, int, bytes]] = []  # LSN, volume, offset, data; ascending
        self.one.add_volume("big", size=BIG, zero=True)
        self.sizes = {"data": SIZE, "big": BIG}
        for offset in range(4 * MIB, 22 * MIB, MIB):  # what is not zeros has to travel
            self.write(("big", offset, MIB))
            self.one.wait(where=self.link.name, timeout=WAIT)
        for _ in range(20):
            self.write()

    def write(self, where=None):
        name = self.rng.choice(["data", "big"])
        count = self.rng.randrange(1, 2 * REGION // 4096) * 4096
        offset = self.rng.randrange((self.sizes[name] - count) // 4096) * 4096
        name, offset, count = where or (name, offset, count)
        data = self.rng.randbytes(count)
        self.did.append((int(self.one.volume(name).write(offset, data)), name, offset, data))

    def at(self, lsn: int) -> dict[str, bytearray]:
        """What the volumes were after the event of that LSN."""
        stores = {name: bytearray(size) for name, size in self.sizes.items()}
        for place, name, offset, data in self.did:
            if place <= lsn:
                stores[name][offset:offset + len(data)] = data
        return stores

    def regions_after(self, lsn: int) -> set[tuple[str, int]]:
        return {(name, region) for place, name, offset, data in self.did if place > lsn
                for region in range(offset // REGION, (offset + len(data) - 1) // REGION + 1)}

    def into_a_resync(self) -> int:
        """The journal overflows while the secondary is away, which then takes copies slowly; the LSN of its snapshot."""
        self.one.wait(where=self.link.name, timeout=WAIT)
        self.link.pause()
        for offset in itertools.cycle(range(4 * MIB, 22 * MIB, MIB)):
            self.write(("big", offset, MIB))
            # Until it has just dropped the last of them: what it still has goes before the copies.
            if self.link.status()["backlog_bytes"] >= 18 * MIB and self.one.status()["journal"]["used"] < 4 * MIB:
                break
        self.one.volume("data").snapshot("later")
        self.link.set(bandwidth=MIB // 2)  # more than half a minute
        self.link.resume()
        until(lambda: self.link.status()["bytes_sent"]["copied"] > 4 * REGION, "regions are copied")
        until(lambda: self.other.status()["protective"], "the secondary keeps its last consistent state")
        status = self.other.status()
        assert not status["consistent"]
        return status["protective"]["lsn"]

    def take_over(self):
        deadline = time.monotonic() + WAIT
        while True:
            try:
                return self.other.takeover()
            except Refused as error:
                assert error.reason == "connected" and time.monotonic() < deadline
                time.sleep(0.01)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("restarts", [False, True])
def test_takeover_in_the_middle_of_a_resync(nodes, tmp_path, restarts):
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    story = Story(nodes, tmp_path, random.Random(seed))
    lsn = story.into_a_resync()
    then = story.at(lsn)
    for _ in range(5):
        story.write()  # streamed beside the copies
    kept = {one.origin: one for one in story.other.kept}
    assert set(kept) == set(then) and {one.lsn for one in kept.values()} == {lsn}
    assert {one.name for one in kept.values()} == {"data-protective", "big-protective"}
    for name, bytes_ in then.items():
        assert kept[name].read(0, len(bytes_)) == bytes_, f"seed {seed}: {name} at LSN {lsn}"
    with pytest.raises(Refused, match="given up as a whole"):
        kept["data"].delete()
    if restarts:
        story.nodes[story.other].close()
        there = nodes("there")
        story.other, before = there.group("db"), story.other
        story.nodes[story.other] = there
        del story.nodes[before]
        assert story.other.status()["protective"]["lsn"] == lsn
    with pytest.raises(Refused, match=f"snapshot, of LSN {lsn}") as caught:
        story.other.promote()
    assert caught.value.reason == "inconsistent"
    story.nodes[story.one].close()  # it is gone
    assert story.take_over() == lsn
    new = story.other
    assert new.status()["protective"] is None and new.kept == [] and new.snapshots == []
    for name, bytes_ in then.items():
        assert new.volume(name).read(0, len(bytes_)) == bytes_, f"seed {seed}: {name} at LSN {lsn}"
    lost = story.regions_after(lsn)
    story.did = [event for event in story.did if event[0] <= lsn]
    story.one = new
    for _ in range(4):
        story.write()
    here = nodes("here")
    old = here.group("db")
    old.demote(force=True)
    host, port = here.listen("127.0.0.1", 0)
    home = new.add_link("home", f"{host}:{port}")
    home.wait_synced(WAIT)
    new.wait(where="home", timeout=WAIT)
    want = story.at(int(new.status()["lsn"]["end"]))
    for name, bytes_ in want.items():
        assert new.volume(name).read(0, len(bytes_)) == old.volume(name).read(0, len(bytes_)) == bytes_, f"seed {seed}: {name}"
    assert old.snapshots == [], "what only the old primary performed is taken back"
    diverged = len(lost | story.regions_after(lsn)) * REGION
    copied = home.status()["bytes_sent"]["copied"]
    print(f"{copied} bytes copied, {diverged} diverged, of {SIZE + BIG}")
    assert 0 < copied <= diverged * 1.02 + 4096 < (SIZE + BIG) / 2
    new.volume("data").snapshot("after").wait("home", WAIT)
    assert old.store("after").read(0, SIZE) == want["data"]


@pytest.mark.timeout(120)
def test_a_snapshot_that_is_given_up_makes_no_primary(nodes, tmp_path):
    story = Story(nodes, tmp_path, random.Random(1))
    story.into_a_resync()
    with pytest.raises(Refused, match="is a primary"):
        story.one.unprotect()
    story.other.unprotect()
    status = story.other.status()
    assert status["protective"] is None and status["waived"] and story.other.kept == []
    with pytest.raises(NotFound):
        story.other.kept_snapshot("data-protective")
    story.link.pause()
    until(lambda: not any(feed.is_open for feed in story.other.feeds(story.other.site)), "the connection has ended")
    with pytest.raises(Refused, match="keeps none") as caught:
        story.other.takeover()
    assert caught.value.reason == "inconsistent"
    story.link.set(bandwidth=0)
    story.link.resume()
    story.equal()
    assert not story.other.status()["waived"]


@pytest.mark.timeout(120)
def test_exports_of_a_secondary_go_on_while_it_is_resynchronized(nodes, tmp_path):
    """A client that attaches then sees what it was before; one that attaches afterwards what it is."""
    story = Story(nodes, tmp_path, random.Random(2))
    lsn = story.into_a_resync()
    there, then = story.nodes[story.other], story.at(lsn)["big"]
    there.start_export("copy", "db", "big")
    address = there.listen_nbd(f"unix:{tmp_path}/there.sock")
    client = attach(address, "copy")
    assert there.export("copy").status()["view_lsn"] == lsn
    with story.other.open_view("data") as shown:
        assert shown.lsn == lsn and shown.read(0, SIZE) == story.at(lsn)["data"]
    with story.other.open_trial() as trial:  # of what a takeover would go back to
        assert trial.lsn == lsn and trial.volume("data").read(0, SIZE) == story.at(lsn)["data"]
        trial.volume("data").write(0, b"tried")
    assert client.read(4 * MIB, MIB) == then[4 * MIB:5 * MIB] and client.call(WRITE, 0, data=bytes(512)).error == 1
    story.link.set(bandwidth=0)
    story.equal()
    until(lambda: story.other.status()["protective"] is None, "it is not needed any more")
    for offset in range(0, BIG, 4 * MIB):
        assert client.read(offset, 4 * MIB) == then[offset:offset + 4 * MIB], "what it shows stays, whatever is copied beneath it"
    client.send(DISC)
    assert client.is_gone()
    until(lambda: there.export("copy").status()["view_lsn"] is None, "the view is given back")
    now = story.at(int(story.one.status()["lsn"]["end"]))["big"]
    assert attach(address, "copy").read(4 * MIB, MIB) == now[4 * MIB:5 * MIB]
