"""A story: a random history of one site in simulation, its oracle beside it, and the check of what a crash may leave.

The same choices drive the engine and the naive system (:mod:`tests.support.oracle`). Everything comes from one seed, which
every failure names.
"""

from __future__ import annotations

import random

from pyrepl import operations
from pyrepl._core import view
from pyrepl.catalog import SNAPSHOT, VOLUME, View
from pyrepl.errors import PyreplError
from pyrepl.operations import Operation
from pyrepl.options import SiteOptions
from pyrepl.site import Site
from tests.support.oracle import Oracle
from tests.support.simulation import World, create_site, open_site, small_options


class Violation(AssertionError):
    """The engine and the oracle disagree."""


class Story:
    """``act()`` does one random thing. ``check(world)`` recovers a site from a world that a crash left, and judges it."""

    def __init__(self, seed: int, *, sector_size: int = 512, alignment: int = 512, region_size: int = 4096) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.region = region_size
        self.unit = alignment
        self.options: SiteOptions = small_options(region_size=region_size, alignment=alignment)
        self.world = World(sector_size=sector_size)
        self.site = create_site(self.world, seed, options=self.options)
        self.oracle = Oracle(region_size)
        self.promised = 0
        self.stamp = 0
        self.log: list[str] = []
        for n in range(self.rng.choice((1, 2))):
            size = self.rng.choice((4, 6, 9)) * region_size
            catalog = self.site.end.catalog
            self.perform(operations.add_volume(catalog, f"v{n}", size, zero=True, region_size=region_size))

    def say(self, *what: object) -> None:
        self.log.append(" ".join(str(w) for w in what))

    # ---- things that happen

    def perform(self, operation: Operation) -> None:
        admission = self.site.admit(operation)
        self.oracle.perform(admission.lsn, operation)
        self.say(admission.lsn, operation)

    def content(self, length: int) -> bytes:
        self.stamp += 1
        return self.stamp.to_bytes(4, "little") * (length // 4)

    def make_room(self) -> None:
        while True:
            state = self.site.window.state()
            if state.end_position - state.tail_position < state.log_size // 2:
                return
            if not self.site.step():
                self.site.checkpoint()

    def write(self) -> None:
        self.make_room()
        stores = [s for s in self.site.end.catalog]
        store = self.rng.choice(stores)
        units = store.size // self.unit
        count = self.rng.choice((1, 1, 2, 3, self.region // self.unit, 2 * self.region // self.unit))
        first = self.rng.randrange(max(1, units - count + 1))
        if self.rng.random() < 0.4:  # region-aligned
            first = min(first * self.unit // self.region * self.region // self.unit, units - count)
        count = min(count, units - first)
        offset, length = first * self.unit, count * self.unit
        if self.rng.random() < 0.12:
            self.oracle.write(self.oracle.lsn + 1, store.id, offset, bytes(length))
            lsn = self.site.window.zero(store.id, offset, length, discard=self.rng.random() < 0.5)
        else:
            data = self.content(length)
            lsn = self.site.window.submit(store.id, offset, data, wait=False).lsn
            self.oracle.write(lsn, store.id, offset, data)
        if lsn != self.oracle.lsn:
            raise Violation(f"the write got LSN {lsn}, expected {self.oracle.lsn}")
        self.say(lsn, "write", store.id, offset, length)

    def operate(self) -> None:
        self.make_room()
        catalog = self.site.end.catalog
        names = [s.name for s in catalog]
        volumes = [s.name for s in catalog if s.kind == VOLUME]
        snapshots = [s for s in catalog if s.kind == SNAPSHOT]
        rng, region = self.rng, self.region
        roll = rng.random()
        try:
            if roll < 0.3 and len(names) < 7:
                some = rng.sample(names, rng.choice((1, 1, min(2, len(names)))))
                operation: Operation = operations.snapshot(catalog, some, [f"s{self.oracle.lsn}-{i}" for i in range(len(some))])
            elif roll < 0.5 and snapshots:
                operation = operations.restore(catalog, rng.choice(volumes), rng.choice(snapshots).name, region_size=region)
            elif roll < 0.6 and snapshots:
                operation = operations.refresh(catalog, rng.choice(snapshots).name, region_size=region)
            elif roll < 0.72 and len(names) > 1:
                a, b = rng.sample(names, 2)
                operation = operations.copy_range(catalog, a, b, rng.randrange(3) * region, rng.choice((1, 2)) * region,
                                                  region_size=region)
            elif roll < 0.80 and snapshots:
                operation = operations.delete(catalog, rng.choice(snapshots).name)
            elif roll < 0.86 and len(names) < 7:
                operation = operations.clone(catalog, rng.choice(names), f"c{self.oracle.lsn}")
            elif roll < 0.92:
                name = rng.choice(volumes)
                size = catalog.by_name(name).size + rng.choice((-1, 1, 2)) * region
                operation = operations.resize(catalog, name, max(size, 3 * region), force=True, region_size=region)
            elif roll < 0.96:
                operation = operations.zero(catalog, rng.choice(names), region, region, region_size=region)
            else:
                operation = operations.mark("m", b"x" * rng.randrange(20))
        except PyreplError:
            return  # refused at admission: another test says when and why
        self.perform(operation)

    def act(self) -> None:
        roll = self.rng.random()
        if roll < 0.45:
            self.write()
        elif roll < 0.55:
            self.operate()
        elif roll < 0.65:
            self.site.window.commit_pending()
        elif roll < 0.75:
            lsn = self.site.window.flush()
            if lsn != self.oracle.lsn:
                raise Violation(f"flush returned LSN {lsn}, expected {self.oracle.lsn}")
            self.promised = lsn
            self.say("flushed", lsn)
        elif roll < 0.96:
            self.site.step()
        else:
            self.site.checkpoint()
            self.say("checkpoint")

    # ---- judging

    def compare(self, site: Site, lsn: int, when: str) -> None:
        want, catalog = self.oracle.states[lsn], self.oracle.catalogs[lsn]
        if {s.id: s for s in site.end.catalog} != catalog.stores:
            raise Violation(f"{when}: stores {site.end.catalog.stores}, expected {catalog.stores}")
        for store, content in want.items():
            got = view.read(site.window, site.stores, store, 0, len(content))
            if got != content:
                first = next(i for i in range(len(content)) if got[i] != content[i])
                raise Violation(f"{when}: store {store} differs from LSN {lsn} at byte {first} (region {first // self.region}): "
                                f"{got[first:first + 4].hex()} instead of {content[first:first + 4].hex()}")

    def settle(self, site: Site) -> None:
        for _ in range(5000):
            if not site.step():
                return
        raise Violation("the site does not come to rest")

    def drain(self, site: Site) -> None:
        """Until every event is in the stores."""
        for _ in range(5000):
            state = site.window.state()
            if state.applied_position == state.end_position:
                return
            site.step()
        raise Violation("the applier does not reach the end")

    def check(self, world: World, rng: random.Random, *, again: bool = True) -> int:
        """Recovers what a crash left and judges it; the LSN that it came to."""
        site = open_site(world, rng.getrandbits(32), options=self.options)
        try:
            self.opened(site)
            lsn = site.end.lsn
            if not self.promised <= lsn <= self.oracle.lsn:
                raise Violation(f"recovered LSN {lsn}, promised {self.promised}, ever given {self.oracle.lsn}")
            self.drain(site)
            self.compare(site, lsn, "after recovery")
            if again and rng.random() < 0.3:  # a crash inside or after recovery changes nothing
                for image in world.images(rng, 1):
                    self.check(image, rng, again=False)
            self.settle(site)
            self.compare(site, lsn, "at rest")
            self.find_leaks(site, world)
        finally:
            site.abandon()
        return lsn

    def opened(self, site: Site) -> None:
        """What must be so as soon as a site is open."""
        if site.views.opened:
            raise Violation(f"views of a dead process are open: {site.views.opened}")

    def find_leaks(self, site: Site, world: World) -> None:
        """At rest, devices, slots and maps are those of the stores that there are (and the scratch)."""
        shelf = site.shelf
        stores = set(site.here.catalog.stores)
        slots = {place.slot for place in shelf.places.values()} | ({shelf.scratch.slot} if shelf.scratch else set())
        slots |= {image.slot for image in shelf.images.values()}
        if set(shelf.places) != stores or set(site.stores.slots()) != slots or shelf.zombies:
            raise Violation(f"at rest: places {shelf.places}, zombies {shelf.zombies}, slots {site.stores.slots()}")
        going = list(shelf.graveyard)
        site.checkpoint()
        if shelf.graveyard or any(path in world.disks for path in going if path.startswith("made-")):
            raise Violation(f"devices that nobody shows are still there: {shelf.graveyard}, {sorted(world.disks)}")

    def run(self, steps: int, crash_rate: float, some: int) -> int:
        """``steps`` acts; at each disk event, with that chance, what a power loss could leave is checked. Images checked."""
        rng = random.Random(self.seed ^ 0x5EED)
        count = 0

        def on_tick(what: str, path: str) -> None:
            nonlocal count
            if what == "read" or rng.random() >= crash_rate:
                return
            failure = []
            for image in self.world.images(rng, some):
                count += 1
                try:
                    self.check(image, rng)
                except Exception as error:
                    failure.append(error)
            if failure:
                self.failures += failure

        self.failures: list[Exception] = []
        self.world.on_tick = on_tick
        for _ in range(steps):
            self.act()
            if self.failures:
                self.world.on_tick = None
                tail = "\n  ".join(self.log[-12:])
                raise Violation(f"seed {self.seed}: {self.failures[0]!r}\n  {tail}") from self.failures[0]
        self.world.on_tick = None
        self.drain(self.site)
        self.compare(self.site, self.oracle.lsn, "live")
        self.settle(self.site)
        self.compare(self.site, self.oracle.lsn, "live, at rest")
        return count


class ViewStory(Story):
    """A story in which views are opened, read and closed; a view is the oracle at its LSN for as long as it is open."""

    def __init__(self, seed: int, **options: int) -> None:
        super().__init__(seed, **options)
        self.dice = random.Random(seed ^ 0x71E3)
        self.shown = 0

    def act(self) -> None:
        views = self.site.views
        roll = self.dice.random()
        if roll < 0.12 and len(views.opened) < 4:
            self.open_view()
        elif roll < 0.18 and views.opened:
            number = self.dice.choice(list(views.opened))
            self.say("close view", views.opened[number])
            views.close(number)
        else:
            super().act()
        self.look(self.dice.choice([*views.opened.values(), None]))

    def open_view(self) -> None:
        self.make_room()
        store = self.dice.choice(sorted(self.site.end.catalog.stores))
        view = self.site.views.open(store)
        self.say("open view", view)
        if view.lsn != self.oracle.lsn:
            raise Violation(f"a view at LSN {view.lsn} does not show what was written before it: {self.oracle.lsn}")

    def look(self, entry: View | None) -> None:
        """This view, if any, is what it was."""
        if entry is None:
            return
        want = self.oracle.states[entry.lsn][entry.store]
        got = view.read(self.site.window, self.site.stores, entry.id, 0, entry.size)
        if got != want:
            first = next(i for i in range(len(want)) if got[i] != want[i])
            raise Violation(f"{entry} differs from LSN {entry.lsn} at byte {first} (region {first // self.region})")
        self.shown += 1

    def run(self, steps: int, crash_rate: float, some: int) -> int:
        count = super().run(steps, crash_rate, some)
        for number, entry in list(self.site.views.opened.items()):
            self.look(entry)
            self.site.views.close(number)
        self.settle(self.site)
        self.find_leaks(self.site, self.world)
        return count
