"""Claim 19: the secondary holds what was copied. Its power is cut right after an acknowledgement; its disks have caches."""

from __future__ import annotations

import contextlib
import random
import threading
from pathlib import Path

import pytest

import pyrepl
from tests.support import clients
from tests.support.power import Machine
from tests.support.rig import MIB, REGION, Rig

SIZE = 2 * MIB
JOURNAL = 32 * MIB


class Site:
    """The far site is a machine whose power can be cut; the near one stands on files."""

    def __init__(self, folder: Path, machine: Machine, mode: str, seed: int) -> None:
        self.machine = machine
        places = [str(machine.disk(size).device) for size in (JOURNAL, SIZE)]

        def place(size: int) -> str:
            if places:
                return places.pop(0)
            path = folder / f"near-{size}"
            path.touch()
            with path.open("wb") as file:
                file.truncate(size)
            return str(path)

        self.rig = Rig(folder / "rig", {"v": SIZE}, seed=seed, place=place, journal=JOURNAL, mode=mode)
        self.rng = self.rig.rng
        self.snapshots: list[str] = []

    def act(self) -> None:
        rig, rng = self.rig, self.rng
        kind = rng.choice(["write"] * 6 + ["snapshot", "restore"])
        if kind == "snapshot" and len(self.snapshots) < 8:
            name = f"s{rig.stamp}"
            rig.snapshot("v", name)
            self.snapshots.append(name)
            rig.stamp += 1
        elif kind == "restore" and self.snapshots:
            rig.restore("v", rng.choice(self.snapshots), (REGION * rng.randrange(8), 8 * REGION))
        else:
            length = rng.randrange(4096, 65536 + 4096, 4096)
            rig.write("v", rng.randrange((SIZE - length) // 4096) * 4096, length)

    def cut_power(self, mode: str) -> tuple[int, int]:
        """Acts until an acknowledgement, and cuts; the LSN that was acknowledged, and how many writes were in caches."""
        rig = self.rig
        if mode == "sync":
            for _ in range(self.rng.randrange(1, 12)):
                self.act()
            acknowledged = rig.near.status()["lsn"]["end"]
            assert not rig.link.status()["degraded"]
            return acknowledged, self.machine.lose_power(self.rng)
        stopping = threading.Event()

        def go_on() -> None:
            while not stopping.is_set():
                self.act()

        writer = threading.Thread(target=go_on)
        writer.start()
        try:
            first = rig.link.status()["durable_lsn"]
            wanted = first + self.rng.randrange(1, 24)
            while (acknowledged := rig.link.status()["durable_lsn"]) < wanted:
                pass
            return acknowledged, self.machine.lose_power(self.rng)
        finally:
            stopping.set()
            writer.join()

    def restart(self) -> None:
        """The machine comes up, and nobody reaches it."""
        rig = self.rig
        with contextlib.suppress(pyrepl.PyreplError):
            rig.far_node.close()
        self.machine.power_on()
        rig.open_far(listen=False)


@pytest.mark.device
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_claim_19_the_secondary_holds_what_was_copied(tmp_path, times, mode):
    if why := clients.why_no_mounts():
        pytest.skip(why)
    clients.need("nbdfuse", "fusermount3")
    seed = random.SystemRandom().randrange(1 << 30)
    lost = beyond = 0
    with Machine(tmp_path / "machine") as machine:
        one = Site(tmp_path, machine, mode, seed)
        with one.rig as rig:
            for _ in range(times(100)):
                acknowledged, cached = one.cut_power(mode)
                lost += cached
                one.restart()
                shown = rig.check(rig.far)
                assert shown >= acknowledged, f"seed {seed}: acknowledged up to {acknowledged}, and {shown} is there"
                beyond += shown - acknowledged
                rig.listen_far()
                rig.drain()
            rig.check_both()
    print(f"{mode}: {times(100)} cuts, {lost} writes in caches, {beyond} events more than acknowledged")
    assert lost
