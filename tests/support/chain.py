"""Three sites in simulation, one behind the other: a primary feeds a secondary, which feeds another one.

Two :class:`Pair` objects share the one in the middle and the truth: ``chain`` is the first link, ``chain.hop`` the second.
Decides nothing about the engine.
"""

from __future__ import annotations

import random
from typing import Any

from pyrepl._core import view
from pyrepl.lineage import common
from pyrepl.link import Link
from tests.support.pair import REGION, Pair
from tests.support.simulation import World, create_site, open_site, small_options


class Hop(Pair):
    """The link from the middle to the last site."""

    def __init__(self, chain: Chain, seed: int) -> None:
        self.chain = chain
        self.rng, self.way, self.seed, self.fresh = random.Random(seed), random.Random(~seed), seed, 0
        self.session = self.replica = None
        self.to_b, self.to_a, self.replies, self.errors = bytearray(), bytearray(), b"", []

    @property
    def a(self) -> Any:
        return self.chain.b

    @property
    def b(self) -> Any:
        return self.chain.c

    @property
    def truth(self) -> dict[int, dict[int, bytes]]:
        return self.chain.truth

    @property
    def lsn(self) -> int:
        return self.chain.lsn

    def connect(self) -> None:
        """As the dialer does it: a checkpoint that the link wants comes first."""
        self.cut()
        if self.link.wants_checkpoint:
            self.a.checkpoint()
        super().connect()

    def check(self) -> None:
        """Of one who stands on the way of the history that leads."""
        self.settle(self.b)
        here = self.b.end
        if common(self.chain.a.lineage, self.lsn, here.lineage, here.lsn) == here.lsn:
            super().check()

    def send(self) -> bool:
        if self.session is not None and self.link.is_stale:
            self.cut("stale")
            return False
        return super().send()


class Direct(Hop):
    """A link from the first to the last site, past the middle."""

    @property
    def a(self) -> Any:
        return self.chain.a

    @property
    def link(self) -> Link:
        return self.a.links["direct"]


class Chain(Pair):
    """``a`` feeds ``b``, ``b`` feeds ``c``."""

    def __init__(self, seed: int, *, journal_size: int = 12 << 20, **options: Any) -> None:
        super().__init__(seed, journal_size=journal_size, **options)
        self.worlds.append(World())
        self.c = create_site(self.worlds[2], seed + 2, journal_size=journal_size, role="secondary", node=b"C" * 16,
                             options=small_options())
        for store in self.b.end.catalog:
            self.c.intake.prepare_volume(store.name, store.size)
        self.hop = Hop(self, seed ^ 0xC0)

    def pair_up(self) -> None:
        """The middle is paired, and has a link of its own."""
        while self.b.group_id is None:
            self.talk(self)
        self.b.attach(Link(self.b, "paris", address="c:1"))

    # ---- the story

    def talk(self, hop: Pair, rounds: int = 1) -> None:
        """A few frames, in bits."""
        if hop.session is None:
            hop.connect()
        for _ in range(rounds):
            self.flush_of(hop)
            hop.send()
            hop.deliver(hop.rng.choice((50, 1000, 100000)))
            if hop.rng.random() < 0.6:
                hop.acknowledge()
            hop.hear()

    def flush_of(self, hop: Pair) -> None:
        """What its upper site holds may be sent."""
        while hop.a.window.commit_pending():
            pass
        hop.a.window.make_durable(hop.a.window.state().end_position)

    def crash(self, which: int) -> None:
        """Power loss at one site, and its recovery."""
        if which < 2:
            self.cut("crash")
        if which > 0:
            self.hop.cut("crash")
        site = (self.a, self.b, self.c)[which]
        site.abandon()
        self.worlds[which] = self.rng.choice(list(self.worlds[which].images(self.rng, 2)))
        self.reopen(which)

    def reopen(self, which: int) -> None:
        if which < 2:
            super().reopen(which)
        else:
            self.c = open_site(self.worlds[2], self.rng.randrange(1 << 30), node=b"C" * 16)

    def check(self) -> None:
        super().check()
        self.hop.check()

    def heal(self, turns: int = 3000) -> None:
        """Without faults all three become equal, and that ends."""
        super().heal(turns)
        for turn in range(turns):
            for one in (self, self.hop):
                if one.session is None:
                    self.settle(one.b)
                    one.connect()
                if not one.send():
                    self.flush_of(one)
                    self.settle(one.a)
                one.deliver()
                self.settle(one.b)
                if turn % 3 == 2:
                    one.acknowledge()
                one.hear()
            if self.link.status()["synced"] and self.hop.link.status()["synced"] and not self.hop.link.stream.flight:
                break
        else:
            raise AssertionError(f"seed {self.seed}: healing does not end: {self.hop.link.status()} {self.hop.errors[-3:]}")
        self.check()
        assert self.c.here.consistent and self.c.here.lsn == self.lsn
        self.hop.compare(self.truth[self.lsn])

    def differs_beyond(self) -> list[str]:
        """Where the last site differs from the truth and the middle does not say so: the invariant, at what the middle
        knows for certain, if nothing beside the order waits to be passed."""
        base = self.hop.link.base
        if base.lsn != self.c.here.lsn or not self.hop.link.stream._is_settled or base.position < self.b.intake.items_until:
            return []
        found = []
        for store, content in self.truth[base.lsn].items():
            if store not in base.divergence.maps or store not in self.c.here.catalog:
                continue
            if base.catalog.stores.get(store) is None or base.catalog[store].size != len(content):
                continue  # a backlog was shortened: stores are made for its end, before the skip
            got = view.read(self.c.window, self.c.stores, store, 0, len(content))
            for region in range(len(content) // REGION):
                if region not in base.divergence.maps[store] and got[region * REGION:][:REGION] != content[region * REGION:][:REGION]:
                    found.append(f"store {store} region {region} at {base.lsn}")
        return found

    def close(self) -> None:
        super().close()
        self.c.abandon()
