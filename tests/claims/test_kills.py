"""Claim 33: consistent throughout. Daemons are killed at any instant, inside operations too, or their machines lose their power;
each site is looked at before it reconnects, and is at one LSN of the true order, every operation entirely or not at all."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyrepl.demo.proxy import Proxy
from pyrepl.errors import PeerError, Refused
from tests.support import clients
from tests.support.clients import until
from tests.support.daemons import Daemon
from tests.support.model import BLOCK, REGION, Model, Stores, blocks, content, differences
from tests.support.power import Machine

MIB = 1 << 20
SIZE = 2 * MIB
JOURNAL = 12 * MIB  # of which a secondary that is away may hold some 6 MiB before it is resynchronized
SLOW = MIB  # bytes a second: a resync lasts over several kills


class Sites:
    """Two daemons with group "db"; whoever is the primary is told what to do, and what it answered is told to the model. Journal
    and volume stand on disks with volatile caches, where such disks can be made."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.rng = rng
        self.model, self.stamp, self.last = Model(), 0, 0
        self.left = Model()  # the history that whoever leads has left: what the old primary goes back from
        self.of_old = 0  # protective snapshots of that history that were looked at
        self.snapshots: list[str] = []
        self.pending: tuple[str, Callable[[Stores], None]] | None = None  # begun, and not answered
        self.flushed = 0  # up to here the primary has said that it survives the loss of power
        self.dark: set[Daemon] = set()  # which have lost theirs, and were not looked at since
        self.machines: dict[Daemon, Machine] = {}
        with contextlib.ExitStack() as stack:
            self.daemons = []
            for name in ("a", "b"):
                machine = stack.enter_context(Machine(folder / f"{name}-machine"))  # outlives its daemon
                self.daemons.append(Daemon(folder / name, name))
                stack.callback(self.daemons[-1].close)
                if not clients.why_no_mounts() and clients.find("nbdfuse") and clients.find("fusermount3"):
                    self.machines[self.daemons[-1]] = machine
            self.proxies = {}
            for daemon in self.daemons:
                host, port = daemon.address.rsplit(":", 1)
                self.proxies[daemon] = stack.enter_context(Proxy((host, int(port))))
            self.primary, self.secondary = self.daemons
            for daemon, role in ((self.primary, "primary"), (self.secondary, "secondary")):
                machine = self.machines.get(daemon)
                if machine is None:
                    group = daemon.client.create_group("db", daemon.folder / "journal", journal_size=JOURNAL, role=role)
                    group.add_volume("v", size=SIZE)
                else:
                    group = daemon.client.create_group("db", machine.disk(JOURNAL).device, role=role)
                    group.add_volume("v", machine.disk(SIZE + 4 * REGION).device, size=SIZE)
            self.model.made(1, {"v": SIZE})
            self.last = 1
            self.link()
            self._cleanup = stack.pop_all()

    def close(self) -> None:
        self._cleanup.close()

    @property
    def group(self) -> Any:
        return self.primary.client.group("db")

    def link(self) -> None:
        """From the primary to the secondary; returns when that is consistent, or now and then in the middle of a resync."""
        self.group.add_link("peer", f"127.0.0.1:{self.proxies[self.secondary].port}")
        link, there = self.group.link("peer"), self.secondary.client.group("db")
        if self.last > 1 and self.rng.random() < 0.5:
            link.set(bandwidth=SLOW)
        if link.status()["bandwidth"]:
            until(lambda: not there.status()["consistent"] or link.status()["synced"], "it is resynchronized", 60)
        else:
            link.wait_synced(timeout=60)

    def fall_behind(self) -> None:
        """The journal overflows while the secondary is away, which then gets what it lacks slowly."""
        self.cut()
        link = self.group.link("peer")
        link.set(bandwidth=SLOW)
        for _ in range(200):
            if link.status()["backlog_bytes"]:
                break
            self.act("write")
        else:
            raise AssertionError("the journal does not overflow")
        self.mend()
        there = self.secondary.client.group("db")
        until(lambda: not there.status()["consistent"] or link.status()["synced"], "it is resynchronized", 60)

    def cut(self) -> None:
        for proxy in self.proxies.values():
            proxy.cut()

    def mend(self) -> None:
        for proxy in self.proxies.values():
            proxy.mend()

    # ---- one thing that is done

    def act(self, kind: str = "") -> None:
        """A write or an operation. It is pending until it is answered; then the model is told its place."""
        if self.rng.random() < 0.1:
            self.flushed = int(self.group.flush())
        what, step, call = self._choose(kind)
        self.pending = what, step
        lsn = call()
        self.pending = None
        assert lsn == self.last + 1, f"{what} got LSN {lsn} after {self.last}"
        self._take(lsn, what, step)

    def _take(self, lsn: int, what: str, step: Callable[[Stores], None]) -> None:
        self.model.did(lsn, what, step)
        self.last = lsn
        if what.startswith("snapshot"):
            self.snapshots.append(what.split()[1])
        elif what.startswith("delete"):
            self.snapshots.remove(what.split()[1])

    def _choose(self, kind: str) -> tuple[str, Callable[[Stores], None], Callable[[], int]]:
        group, rng = self.group, self.rng
        kind = kind or rng.choice(["write"] * 4 + ["snapshot", "restore", "refresh", "resize", "set", "delete"])
        if (kind in ("restore", "refresh", "set", "delete") and not self.snapshots) or (kind == "snapshot" and len(self.snapshots) > 5):
            kind = "write"
        volume = group.volume("v")
        name = rng.choice(self.snapshots) if self.snapshots else ""
        if kind == "refresh" and (name.startswith("t") or group.store(name).size != volume.size):
            kind = "restore"  # a snapshot of v, and as long, is refreshed
        if kind == "write":
            self.stamp += 1
            stamp, first = self.stamp, rng.randrange(SIZE // BLOCK - 64)
            count = rng.randrange(1, 64)
            where = slice(first, first + count)
            return (f"write {first} {count}", lambda stores: stores["v"].__setitem__(where, stamp),
                    lambda: int(volume.write(first * BLOCK, content(stamp, first, count))))
        if kind == "snapshot":
            self.stamp += 1
            made = f"s{self.stamp}"
            return (f"snapshot {made}", lambda stores: stores.__setitem__(made, stores["v"].copy()),
                    lambda: int(volume.snapshot(made).lsn))
        if kind == "restore":
            first = REGION * rng.randrange(8)
            where = blocks(first, 16 * REGION)
            return (f"restore {name}", lambda stores: stores["v"].__setitem__(where, stores[name][where]),
                    lambda: int(volume.restore(name, extent=(first, 16 * REGION)).lsn))
        if kind == "refresh":
            return (f"refresh {name}", lambda stores: stores.__setitem__(name, stores["v"].copy()),
                    lambda: int(group.store(name).refresh().lsn))
        if kind == "resize":
            regions = rng.randrange(4)

            def resize(stores: Stores) -> None:
                blank = stores["v"][:0].copy()
                blank.resize((SIZE + regions * REGION) // BLOCK)
                kept = min(len(blank), len(stores["v"]))
                blank[:kept] = stores["v"][:kept]
                stores["v"] = blank

            return f"resize {regions}", resize, lambda: int(volume.resize(SIZE + regions * REGION, force=True).lsn)
        if kind == "delete":
            return (f"delete {name}", lambda stores: stores.__delitem__(name), lambda: int(group.store(name).delete().lsn))
        self.stamp += 1
        made = f"t{self.stamp}"

        def several(stores: Stores) -> None:
            stores[made] = stores[name].copy()
            stores["v"][blocks(0, REGION)] = stores[name][blocks(0, REGION)]

        def call() -> int:
            with group.unordered() as together:
                together.snapshot(name, made)
                together.restore("v", name, extent=(0, REGION))
            return int(together.result.lsn)

        return f"snapshot {made} and restore {name}", several, call

    # ---- what happens to it

    def until_killed(self, victims: list[Daemon]) -> int:
        """Does one thing after the other until these are killed, at an instant that nobody chose. Some lose their power:
        how many."""
        dark = [daemon for daemon in victims if daemon in self.machines and self.rng.random() < 0.4]
        fate = random.Random(self.rng.random())

        def strike() -> None:
            for daemon in dark:
                self.machines[daemon].lose_power(fate)
            for daemon in victims:
                os.kill(daemon.pid, signal.SIGKILL)

        killer = threading.Timer(self.rng.random() * 0.06, strike)
        killer.start()
        try:
            while killer.is_alive():
                try:
                    self.act()
                except Refused as error:  # a primary that has just been asked to lead is about to
                    assert error.retryable and error.reason in ("asking", "role"), error
                    self.pending = None
        except (PeerError, OSError):
            assert self.primary in victims, "the primary lives and does not answer"
        finally:
            killer.join()
        self.cut()
        for daemon in victims:
            daemon.kill()
            if daemon in dark:
                self.machines[daemon].power_on()
                self.dark.add(daemon)
            daemon.start()
        return len(dark)

    def look(self, daemon: Daemon) -> int | None:
        """What a site shows that reaches no other: its LSN, if it is consistent. If not, its protective snapshot is looked
        at."""
        group = daemon.client.group("db")
        lsn = int(group.wait(group.status()["lsn"]["end"], timeout=60))
        if not group.status()["consistent"]:
            self.protective(daemon)
            return None
        if daemon is self.primary and lsn == self.last + 1 and self.pending is not None:
            self._take(lsn, *self.pending)  # it had its place when its site was killed
        if daemon is self.primary and daemon in self.dark and self.flushed <= lsn < self.last:
            self._forget_after(lsn)
        if daemon is self.primary:
            self.dark.discard(daemon)
            self.flushed = lsn
            assert lsn == self.last, f"what was answered up to {self.last} must be there, and {lsn} is"
            self.pending = None
        stores = {store.name: store for store in [*group.volumes, *group.snapshots]}
        wrong = judge(stores, self.wanted(lsn))
        assert not wrong, f"at LSN {lsn} of {daemon.name}: {wrong}"
        return lsn

    def _forget_after(self, lsn: int) -> None:
        """What came after it is lost."""
        self.model.forget_after(lsn)
        self.last, self.pending = lsn, None
        self.snapshots = [name for name in self.model.at(lsn) if name != "v"]

    def wanted(self, lsn: int) -> Stores:
        """What the history that leads has at an LSN."""
        if lsn != self.last + 1 or self.pending is None:
            return self.model.at(lsn)
        self.model.did(lsn, *self.pending)  # the other site has it, and the primary was not asked yet
        try:
            return self.model.at(lsn)
        finally:
            self.model.forget_after(self.last)

    def protective(self, daemon: Daemon) -> tuple[int, bool]:
        """A site that is being resynchronized keeps a state that there was, as a whole: its LSN, and whether it is of the
        history that leads, not of the one that was left."""
        group = daemon.client.group("db")
        kept = group.status()["protective"]
        assert kept is not None, f"{daemon.name} is inconsistent, and was consistent once: it keeps nothing"
        end, lsn = "-protective", int(kept["lsn"])
        stores = {one.name.removesuffix(end): one for one in group.kept if one.name.endswith(end)}
        assert len(stores) == kept["stores"]
        wrong = judge(stores, self.wanted(lsn)) if lsn <= self.last + (self.pending is not None) else "beyond its end"
        self.of_old += bool(wrong)
        if wrong:
            of_old = judge(stores, self.left.at(lsn))
            assert not of_old, f"at LSN {lsn}, kept by {daemon.name}: {wrong}; as of the history that was left: {of_old}"
        return lsn, not wrong

    def take_over(self) -> bool:
        """The secondary goes on from where it is, or from its protective snapshot; the old primary is led back and loses
        its tail. Where it had begun a generation of which the other site has not heard, nobody can tell that from a split
        brain, and it is ended as one. Whether the secondary had to go back."""
        old, new = self.primary.client.group("db"), self.secondary.client.group("db")
        heard = old.status()["generation"] == new.status()["generation"]
        back = None if new.status()["consistent"] else self.protective(self.secondary)
        lsn = int(new.takeover())
        assert back is None or lsn == back[0]
        if lsn == self.last + 1 and self.pending is not None and (back is None or back[1]):
            self._take(lsn, *self.pending)
            self.pending = None
        was = self.model.copy()
        if self.pending is not None:
            was.did(self.last + 1, *self.pending)  # if it has its place, it is there
        self.model, self.left = self.model if back is None or back[1] else self.left, was
        self.pending = None
        self._forget_after(lsn)
        self.flushed = lsn
        self.dark.clear()
        if heard:
            old.demote(force=True)
        else:
            old.resolve("here")
        self.primary, self.secondary = self.secondary, self.primary
        self.mend()
        self.link()
        return back is not None


def judge(stores: dict[str, Any], wanted: Stores) -> str:
    """In what stores differ from what they must be."""
    if set(stores) != set(wanted):
        return f"{sorted(stores)}, and must be {sorted(wanted)}"
    return "; ".join(text for name, store in stores.items() if (text := differences(store, wanted[name])))


@pytest.mark.device
@pytest.mark.timeout(1800)
def test_claim_33_consistent_throughout(tmp_path, times):
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    one = Sites(tmp_path, rng)
    seen = {"killed": 0, "lost power": 0, "looked": 0, "pending": 0, "taken over": 0, "in a resync": 0, "gone back": 0}
    try:
        while seen["killed"] < times(1000):
            if rng.random() < 0.15:
                one.fall_behind()
            victims = rng.choice([[one.primary], [one.secondary], [one.primary, one.secondary]])
            seen["lost power"] += one.until_killed(victims)
            seen["killed"] += len(victims)
            seen["pending"] += one.pending is not None
            over = one.secondary not in victims and rng.random() < 0.2
            shown = one.look(one.secondary)
            seen["looked"] += 1 + (shown is not None)
            seen["in a resync"] += shown is None
            if over or (shown is None and rng.random() < 0.3):
                seen["gone back"] += one.take_over()
                seen["taken over"] += 1
            else:
                one.look(one.primary)
                one.mend()
                until(lambda: not one.group.status()["asking"], "a primary that was killed leads when its peer has answered")
            if rng.random() < 0.5:
                one.group.link("peer").set(bandwidth=0)
                one.group.link("peer").wait_synced(timeout=60)
        one.group.link("peer").set(bandwidth=0)
        one.group.link("peer").wait_synced(timeout=60)
        one.group.wait(one.last, where="peer", timeout=60)
        assert one.look(one.primary) == one.look(one.secondary) == one.last
    finally:
        print(seen, "of the history that was left", one.of_old)
        one.close()
    assert seen["in a resync"] and seen["gone back"] and (seen["lost power"] or not one.machines)
    assert seen["pending"] and seen["looked"] > seen["killed"]
