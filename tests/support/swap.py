"""A pair whose sites change roles: planned swaps, takeovers from a primary that is gone, crashes of both in between.

``a`` is whoever is primary. The truth beside it is that of the history that leads: a takeover forgets what only the old
primary had. Decides nothing about the engine.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from pyrepl.lineage import Lineage, common
from pyrepl.link import Link
from pyrepl.site import Site
from tests.support.pair import Pair
from tests.support.simulation import open_site


class SwapPair(Pair):
    """``swap`` and ``take_over`` exchange ``a`` and ``b``; so do crashes know which world is whose."""

    def __init__(self, seed: int, **options: object) -> None:
        super().__init__(seed, **options)  # type: ignore[arg-type]
        self.ids = [b"A" * 16, b"B" * 16]
        self.generations: set[bytes] = set()
        self.gone_back = 0  # takeovers from a protective snapshot

    def reopen(self, which: int) -> None:
        site = open_site(self.worlds[which], self.rng.randrange(1 << 30), node=self.ids[which])
        if which:
            self.b = site
        else:
            self.a = site
            self.lsn = site.window.state().end_lsn
            self.truth = {lsn: stores for lsn, stores in self.truth.items() if lsn <= self.lsn}

    def connect(self) -> None:
        """As the dialer does it: a checkpoint that the link wants comes first."""
        self.cut()
        if self.link.wants_checkpoint:
            self.a.checkpoint()
        super().connect()

    def check(self) -> None:
        """Of one who stands on the way of the history that leads; an old primary may call itself consistent beside it."""
        self.settle(self.b)
        here = self.b.end
        if common(self.a.lineage, self.lsn, here.lineage, here.lsn) == here.lsn:
            super().check()

    def exchange(self) -> None:
        self.a, self.b = self.b, self.a
        self.worlds.reverse()
        self.ids.reverse()

    def lead(self) -> None:
        """What every new primary does: it adds a link to the other one."""
        assert self.a.role == "primary" and self.a.accepts
        self.lsn = self.a.window.state().end_lsn
        self.truth = {lsn: stores for lsn, stores in self.truth.items() if lsn <= self.lsn}
        assert self.a.end.lineage.generation not in self.generations
        self.generations.add(self.a.end.lineage.generation)
        if "paris" not in self.a.links:
            self.a.attach(Link(self.a, "paris", address="b:1"))

    def step_down(self, site: Site) -> None:
        site.roles.hold(True)
        while site.window.commit_pending():
            pass
        site.roles.step_down()

    def tell(self) -> None:
        """The primary that has stepped down says so, and ends its links."""
        self.link.handing_over = True
        for _ in range(200):
            if self.link.handed_over:
                break
            self.send()
            self.deliver()
            self.acknowledge()
            self.hear()
        else:
            raise AssertionError(f"seed {self.seed}: the secondary does not hear of it: {self.link.status()}")
        self.cut()
        self.a.forget_links()

    def swap(self) -> None:
        """A planned swap; nothing is lost."""
        self.heal()
        lsn = self.lsn
        self.step_down(self.a)
        self.tell()
        self.b.roles.take_lead(alone=False, force=True)
        self.exchange()
        self.lead()
        assert self.lsn == lsn

    def can_take_over(self) -> bool:
        """Consistent, or it was and goes back to that; and it has heard of every generation in which the primary wrote,
        else the two part (split brain)."""
        self.settle(self.b)
        here, lineage, kept = self.b.end, self.a.lineage, self.b.protective.snapshot
        if self.b.group_id is None or (not here.consistent and kept is None):
            return False
        then, lsn = (here.lineage, here.lsn) if here.consistent else (Lineage(kept.lineage), kept.lsn)
        fork = common(lineage, self.lsn, then, lsn)
        if fork < lsn:
            return False  # what it would go back to is no state of the history that leads
        return not lineage.tail(self.lsn, fork) - here.lineage.generations

    def take_over(self, *, crash: bool) -> None:
        """The primary is gone; it comes back as it is, or after a power loss, and is demoted."""
        self.cut()
        self.gone_back += not self.b.end.consistent
        self.b.roles.take_lead(alone=True, force=True)
        self.exchange()
        self.lead()
        if crash:
            self.b.abandon()
            self.worlds[1] = self.rng.choice(list(self.worlds[1].images(self.rng, 2)))
            self.reopen(1)
        self.step_down(self.b)
        self.b.forget_links()

    def again_and_again(self, chances: dict[str, float], steps: int) -> dict[str, int]:
        """A story of so many steps; how often each thing happened."""
        count = dict.fromkeys(chances, 0)
        actions: dict[str, Callable[[], object]] = {
            "write": self.random_write,
            "operate": self.random_operation,
            "talk": self.talk,
            "cut": self.cut,
            "crash": lambda: self.crash(self.rng.randrange(2)),
            "checkpoint": lambda: self.rng.choice((self.a, self.b)).checkpoint(),
            "fold": self.fold,
            "swap": self.swap,
            "takeover": lambda: self.can_take_over() and self.take_over(crash=self.rng.random() < 0.5),
        }
        for _ in range(steps):
            what = self.rng.choices(list(chances), list(chances.values()))[0]
            count[what] += actions[what]() is not False
            if what == "crash" and self.a.role == "primary":
                self.generations.add(self.a.end.lineage.generation)
            self.check()
        self.heal()
        return count

    def watched(
        self, which: int, change: Callable[[], object], judge: Callable[[Site], str], share: float = 1.0
    ) -> Counter[str]:
        """Runs the change; at each disk event of that site, or at this share of them, ``judge`` says what each image of a
        power loss is."""
        world, seen, failures = self.worlds[which], Counter[str](), []
        rng = random.Random(self.seed)

        def on_tick(what: str, path: str) -> None:
            if what == "read" or failures or rng.random() >= share:
                return
            world.on_tick = None
            try:
                for image in world.images(rng, 2):
                    site = open_site(image, rng.randrange(1 << 30), node=self.ids[which])
                    try:
                        seen[judge(site)] += 1
                    finally:
                        site.abandon()
            except Exception as error:
                failures.append(error)
            world.on_tick = on_tick

        world.on_tick = on_tick
        try:
            change()
        finally:
            world.on_tick = None
        if failures:
            raise failures[0]
        return seen

    def fold(self) -> None:
        self.settle(self.a)
        for link in self.a.followers:
            link.fold(self.a.window.state().applied_position)

    def talk(self) -> None:
        if self.session is None:
            self.connect()
        for _ in range(self.rng.choice((2, 10, 40))):
            self.flush()
            self.send()
            self.deliver(self.rng.choice((100, 10000)))
            if self.rng.random() < 0.7:
                self.acknowledge()
            self.hear()
