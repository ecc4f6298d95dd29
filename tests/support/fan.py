"""One site that leads and feeds all others, in simulation; any of these takes over, and leads the others from then on.

Each of the others is a :class:`Spoke`, a :class:`Pair` that shares leader and truth. The truth is that of the history that leads.
Decides nothing about the engine.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from pyrepl import operations
from pyrepl._core import view
from pyrepl.greeting import Greeting
from pyrepl.lineage import Lineage, common
from pyrepl.link import Link
from tests.support.pair import REGION, Pair
from tests.support.simulation import World, create_site, open_site, small_options


class Spoke(Pair):
    """The link from the one that leads to one of the others."""

    def __init__(self, fan: Fan, name: str) -> None:
        self.fan, self.name, self.seed, self.fresh = fan, name, fan.seed, 0
        self.rng = self.way = random.Random(f"{fan.seed} {name}")
        self.session = self.replica = None
        self.to_b, self.to_a, self.replies, self.errors = bytearray(), bytearray(), b"", []

    @property
    def a(self) -> Any:
        return self.fan.a

    @property
    def b(self) -> Any:
        return self.fan.sites[self.name]

    @property
    def link(self) -> Link:
        return self.a.links[self.name]

    @property
    def truth(self) -> dict[int, dict[int, bytes]]:
        return self.fan.truth

    @property
    def lsn(self) -> int:
        return self.fan.lsn

    def connect(self) -> None:
        """As the dialer does it: a checkpoint that the link wants comes first."""
        self.cut()
        if self.link.wants_checkpoint:
            self.a.checkpoint()
        super().connect()

    def send(self) -> bool:
        if self.session is not None and self.link.is_stale:
            self.cut("stale")
            return False
        return super().send()

    def tell(self) -> None:
        """A heartbeat."""
        if self.session is not None:
            self.to_b += self.link.heartbeat()

    def hear(self, most: int = 1 << 30) -> None:
        was = self.session is not None and self.link.is_open
        super().hear(most)
        if not was and self.session is not None and self.link.is_open:
            self.greeted()

    def greeted(self) -> None:
        """INV-1, at the moment at which the leader has decided what it knows: what is not in D is equal."""
        base, greeting = self.link.base, self.link.greeting
        assert isinstance(greeting, Greeting)
        self.settle(self.b)
        if self.link.connections == 1 and self.b.here.consistent:  # of who led it, or was led beside it
            maps = [*base.divergence.maps.values(), *(regions for piece in self.link.ledger.backlog for regions in piece.regions.values())]
            whole = bool(greeting.lost) and sum(regions.count() for regions in maps) >= sum(regions.size for regions in base.divergence.maps.values())
            where = "ahead" if self.b.here.lsn > base.lsn else "behind" if base.lsn < self.lsn else "equal"
            self.fan.count[f"{where}, {'whole' if whole else 'known'}"] += 1
        for store, content in self.truth[base.lsn].items():
            known, there = base.divergence.maps.get(store), self.b.here.catalog.stores.get(store)
            if known is None or there is None or there.size != len(content) or known.size * REGION != len(content):
                continue
            got = view.read(self.b.window, self.b.stores, store, 0, len(content))
            for region in range(len(content) // REGION):
                at = slice(region * REGION, (region + 1) * REGION)
                assert region in known or got[at] == content[at], \
                    f"seed {self.seed}: {self.name} differs in store {store}, region {region}, at {base.lsn}: {greeting.lost}"

    def check(self) -> None:
        """Of one who stands on the way of the history that leads."""
        self.settle(self.b)
        here = self.b.end
        if common(self.a.lineage, self.lsn, here.lineage, here.lsn) == here.lsn:
            super().check()


class Fan(Pair):
    """``sites`` by name, one of which is the ``leader``; of the others those that are not ``gone`` have links."""

    def __init__(self, seed: int, *, journal_size: int = 12 << 20, regions: int = 6, names: str = "ABC") -> None:
        self.rng, self.seed, self.fresh = random.Random(seed), seed, 0
        self.names = names
        self.far: dict[str, World] = {name: World() for name in names}
        self.sites: dict[str, Any] = {
            name: create_site(self.far[name], seed + number, journal_size=journal_size, role="secondary" if number else "primary",
                              node=name.encode() * 16, options=small_options())
            for number, name in enumerate(names)}
        self.leader = names[0]
        self.gone: set[str] = set()
        self.spokes = {name: Spoke(self, name) for name in names}
        self.truth, self.lsn, self.contents = {0: {}}, 0, {}
        self.session, self.errors = None, []
        self.generations: set[bytes] = set()
        self.count: Counter[str] = Counter()
        self.is_quiet = False  # no heartbeat goes out by itself
        for volume in ("a", "b"):
            self.operate(operations.add_volume(self.a.end.catalog, volume, regions * REGION, zero=False, region_size=REGION))
            for name in names[1:]:
                self.sites[name].intake.prepare_volume(volume, regions * REGION)
        self.settle(self.a)
        for name in names[1:]:
            self.attach(name)

    @property
    def a(self) -> Any:
        return self.sites[self.leader]

    @property
    def others(self) -> list[str]:
        """Those that have a link."""
        return [name for name in self.names if name != self.leader and name in self.a.links]

    def attach(self, name: str) -> Link:
        self.a.attach(Link(self.a, name, address=f"{name}:1"))
        return self.a.links[name]

    # ---- the story

    def talk(self, name: str, rounds: int = 1) -> None:
        """A few frames, in bits; now and then a heartbeat."""
        spoke = self.spokes[name]
        if spoke.session is None:
            spoke.connect()
        for _ in range(rounds):
            self.flush()
            if spoke.rng.random() < 0.3 and not self.is_quiet:
                spoke.tell()
            spoke.send()
            spoke.deliver(spoke.rng.choice((50, 1000, 100000)))
            if spoke.rng.random() < 0.6:
                spoke.acknowledge()
            spoke.hear()

    def tell(self) -> None:
        """Everybody who is connected hears of the others, and a checkpoint takes it in."""
        for name in self.others:
            spoke = self.spokes[name]
            if spoke.session is None:
                continue
            for _ in range(50):
                self.flush()
                spoke.send()
                spoke.deliver()
                spoke.acknowledge()
                spoke.hear()
                if spoke.session is None:
                    spoke.connect()
            spoke.tell()
            spoke.deliver()
        for name in self.others:
            self.settle(self.sites[name])
            self.sites[name].checkpoint()

    def cut_all(self) -> None:
        for name in self.others:
            self.spokes[name].cut()

    def crash(self, name: str) -> None:
        """Power loss at one site, and its recovery."""
        if name == self.leader:
            self.cut_all()
        elif name in self.others:
            self.spokes[name].cut("crash")
        self.sites[name].abandon()
        self.far[name] = self.rng.choice(list(self.far[name].images(self.rng, 2)))
        self.reopen(name)

    def reopen(self, name: str) -> None:  # type: ignore[override]
        self.sites[name] = open_site(self.far[name], self.rng.randrange(1 << 30), node=name.encode() * 16)
        if name == self.leader:
            self._lead()

    def _lead(self) -> None:
        self.lsn = self.a.window.state().end_lsn
        self.truth = {lsn: stores for lsn, stores in self.truth.items() if lsn <= self.lsn}

    def fold(self, name: str) -> None:
        """The journal drops all that it can."""
        site = self.sites[name]
        self.settle(site)
        site.siblings.advance()
        for link in site.followers:
            link.fold(site.window.state().applied_position)

    def can_take_over(self, name: str) -> bool:
        """Nobody parts from it by that, and everybody follows it."""
        site = self.sites[name]
        self.settle(site)
        kept = site.protective.snapshot
        if site.group_id is None or (not site.end.consistent and kept is None):
            return False
        then, lsn = (site.end.lineage, site.end.lsn) if site.end.consistent else (Lineage(kept.lineage), kept.lsn)
        if common(self.a.lineage, self.lsn, then, lsn) < lsn:
            return False  # what it would go back to is no state of the history that leads
        for other in self.names:
            end, here = self.sites[other].end, self.sites[other].window.state().end_lsn  # of a primary the window knows it
            fork = common(then, lsn, end.lineage, here)
            if other != name and (fork < 0 or end.lineage.tail(here, fork) - site.end.lineage.generations):
                return False
            if other not in (name, self.leader) and self.sites[other].fed_by is not None and not then.starts_with(end.lineage):
                return False
        return True

    def take_over(self, name: str, *, crash: bool = False) -> None:
        """The leader is gone, and this one leads. No link finds anybody yet."""
        self.cut_all()
        old, site = self.leader, self.sites[name]
        self.count["returned"] += not site.end.consistent
        self.count["takeover"] += 1
        site.roles.take_lead(alone=True)
        self.leader = name
        self._lead()
        if crash:
            self.crash(old)
        self.demote(old)
        self.gone.add(old)

    def demote(self, name: str) -> None:
        site = self.sites[name]
        site.roles.hold(True)
        while site.window.commit_pending():
            pass
        site.roles.step_down()
        site.forget_links()

    def check_all(self) -> None:
        for name in self.others:
            self.spokes[name].check()

    def heal(self, turns: int = 3000) -> None:
        """Without faults all become equal, and that ends."""
        for name in self.names:
            if name != self.leader and name not in self.a.links:
                self.attach(name)
        for name in self.others:
            spoke = self.spokes[name]
            for turn in range(turns):
                if spoke.session is None:
                    self.settle(spoke.b)
                    spoke.connect()
                if not spoke.send():
                    self.flush()
                    self.settle(self.a)
                spoke.deliver()
                self.settle(spoke.b)
                if turn % 3 == 2:
                    spoke.acknowledge()
                spoke.hear()
                if spoke.link.status()["synced"] and not spoke.link.stream.flight:
                    break
            else:
                raise AssertionError(f"seed {self.seed}: {name} does not heal: {spoke.link.status()} {spoke.errors[-3:]}")
            assert spoke.b.here.consistent and spoke.b.here.lsn == self.lsn
            spoke.compare(self.truth[self.lsn])
        self.gone.clear()

    def close(self) -> None:
        for site in self.sites.values():
            site.abandon()
