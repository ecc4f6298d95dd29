"""Two sites in simulation and the link between them: bytes in pipes, cut into random chunks, lost with the connection.

Keeps the truth beside it: what every store of the primary holds at every LSN, computed the slow and obvious way.
Decides nothing about the engine.
"""

from __future__ import annotations

import random
from typing import Any

from pyrepl import operations
from pyrepl._core import stream, view
from pyrepl.errors import PeerError, ProtocolError, PyreplError, Refused
from pyrepl.link import Link
from pyrepl.outgoing import Out, Plan
from pyrepl.protocol.session import Session, Side, State
from pyrepl.replica import Replica
from tests.support.plugs import perform_on
from tests.support.simulation import World, create_site, entropy_of, open_site, small_options

REGION = 4096
BLOCK = 512


class Pair:
    """A primary with volumes ``a`` and ``b``, a fresh secondary with the same, a link that is not connected."""

    def __init__(self, seed: int, *, journal_size: int = 12 << 20, regions: int = 6, mode: str = "async", stores: bool = True) -> None:
        self.rng = random.Random(seed)
        self.way = random.Random(~seed)  # how batches come in: frame by frame, or by the run
        self.seed = seed
        self.fresh = 0
        self.worlds = [World(), World()]
        options = small_options()
        self.a = create_site(self.worlds[0], seed, journal_size=journal_size, role="primary", node=b"A" * 16, options=options)
        self.b = create_site(self.worlds[1], seed + 1, journal_size=journal_size, role="secondary", node=b"B" * 16, options=options)
        self.truth: dict[int, dict[int, bytes]] = {0: {}}
        self.lsn = 0
        self.session: Session | None = None
        self.replica: Replica | None = None
        self.to_b, self.to_a = bytearray(), bytearray()
        self.replies: bytes = b""
        self.errors: list[str] = []
        self.contents: dict[bytes, bytes] = {}  # digest -> content, of images that the sites may have
        if stores:
            for name in ("a", "b"):
                self.operate(operations.add_volume(self.a.end.catalog, name, regions * REGION, zero=False, region_size=REGION))
                self.b.intake.prepare_volume(name, regions * REGION)
        self.settle(self.a)
        self.a.attach(Link(self.a, "paris", address="b:1", mode=mode))

    @property
    def link(self) -> Link:
        return self.a.links["paris"]

    # ---- the primary's work, with the truth beside it

    def settle(self, site: Any) -> None:
        """All that the journal holds is written and performed."""
        while site.window.commit_pending() or site.step() or site.applier.workshop.is_busy:  # by plug-ins: it is asked again
            pass

    def _remember(self, lsn: int, stores: dict[int, bytes]) -> None:
        self.truth[lsn] = stores
        self.lsn = lsn

    def write(self, store: int, offset: int, data: bytes) -> None:
        """A write at the primary; room is made by the applier if there is none."""
        for _ in range(200):
            try:
                ticket = self.a.window.submit(store, offset, data, wait=False)
                break
            except BlockingIOError:
                self.settle(self.a)
        else:
            raise AssertionError("the journal never has room: a link holds it")
        stores = dict(self.truth[self.lsn])
        old = stores[store]
        stores[store] = old[:offset] + data + old[offset + len(data):]
        self._remember(ticket.lsn, stores)

    def operate(self, operation: operations.Operation) -> None:
        """An operation at the primary."""
        while True:
            state = self.a.window.state()
            if state.ring_used < state.ring_size // 2 and state.end_position - state.tail_position < state.log_size // 2:
                break
            self.settle(self.a)
            if not self.a.step():
                break
        lsn = self.a.admit(operation).lsn
        stores = dict(self.truth[self.lsn])
        for effect in operation.effects(REGION):
            match effect:
                case operations.Created(store, regions, _):
                    stores[store] = bytes(regions * REGION)
                case operations.Copied(target, source, first, count):
                    low, high = first * REGION, (first + count) * REGION
                    new = stores[source][low:high] if source else bytes(high - low)
                    stores[target] = stores[target][:low] + new + stores[target][high:]
                case operations.CopiedImage(target, key, first, count):
                    low, high = first * REGION, (first + count) * REGION
                    stores[target] = stores[target][:low] + self.contents[key.digest][low:high] + stores[target][high:]
                case operations.Resized(store, regions):
                    stores[store] = stores[store][:regions * REGION].ljust(regions * REGION, b"\0")
                case operations.Deleted(store):
                    del stores[store]
        perform_on(operation, REGION, stores)
        self._remember(lsn, stores)

    def some_bytes(self, length: int) -> bytes:
        """Never the same twice, now and then zeros."""
        if self.rng.random() < 0.1:
            return bytes(length)
        self.fresh += 1
        return self.fresh.to_bytes(8, "little") * (length // 8)

    def random_write(self) -> None:
        catalog = self.a.end.catalog
        store = self.rng.choice(sorted(catalog.stores))
        size = catalog[store].size
        if self.rng.random() < 0.4:
            count = self.rng.randrange(1, 4) * REGION
            offset = self.rng.randrange(size // REGION) * REGION
        else:
            count = self.rng.randrange(1, 5) * BLOCK
            offset = self.rng.randrange(size // BLOCK) * BLOCK
        self.write(store, offset, self.some_bytes(min(count, size - offset)))

    def random_operation(self) -> None:
        """Any operation; refusals of admission are passed over."""
        catalog, rng = self.a.end.catalog, self.rng
        names = [store.name for store in catalog]
        name, other = rng.choice(names), rng.choice(names)
        self.fresh += 1
        new = f"s{self.fresh}"
        try:
            match rng.randrange(9):
                case 0 | 1:
                    operation: Any = operations.snapshot(catalog, [name], [new])
                case 2:
                    operation = operations.restore(catalog, name, other, None, None, region_size=REGION)
                case 3:
                    operation = operations.synchronize(catalog, name, other, region_size=REGION)
                case 4 | 5:
                    operation = operations.delete(catalog, name)
                case 6:
                    operation = operations.resize(catalog, name, rng.randrange(1, 9) * REGION, force=True, region_size=REGION)
                case 7:
                    if len(names) > 8:
                        return
                    operation = operations.add_volume(catalog, new, 3 * REGION, zero=rng.random() < 0.5, region_size=REGION)
                case _:
                    operation = operations.zero(catalog, name, 0, REGION, region_size=REGION)
        except PyreplError:
            return
        self.operate(operation)

    def flush(self) -> None:
        """The primary's journal is durable up to here."""
        while self.a.window.commit_pending():
            pass
        self.a.window.make_durable(self.a.window.state().end_position)

    # ---- the connection

    def connect(self) -> None:
        """A new connection; what was in the pipes is gone."""
        self.cut()
        self.session = Session(Side.PRIMARY)
        self.to_b += self.link.connect(self.session)
        self.far = Session(Side.SECONDARY)
        self.replica = Replica(self.b, self.far, entropy_of(self.rng.randrange(1 << 30)))

    def cut(self, error: str = "cut") -> None:
        """The connection is gone."""
        self.to_a.clear()
        self.to_b.clear()
        if self.session is not None:
            self.link.disconnect(error)
        self.session = self.replica = None

    def send(self) -> bool:
        """The next frame into the pipe."""
        if self.session is None or not self.link.is_open:
            return False
        out = self._next()
        if out is None:
            if self.link.wants_checkpoint:
                self.a.checkpoint()
            return False
        self.to_b += b"".join(bytes(buffer) for buffer in out.buffers)
        out.release()
        return True

    def _next(self) -> Out | None:
        while isinstance(plan := self.link.stream.plan(self.a.window.state().durable_position), Plan):
            if plan.step is not None:
                self.settle(self.a)  # a reader waits for the operations on its store, and here nobody else performs them
            plan.fetch()
            out = self.link.stream.place(plan)
            if out is not None or plan.step is not None:
                return out
        return plan

    def deliver(self, most: int = 1 << 30) -> None:
        """Some bytes arrive at the secondary."""
        if self.replica is None:
            return
        data, self.to_b[:most] = bytes(self.to_b[:most]), b""
        reach = self.replica.reach() if self.far.at_frame and self.way.random() < 0.6 else None
        if reach is not None:
            data = data[stream.take(self.b.window, reach, data):]
            self.replica.took(reach)
            self.settle(self.b)
        try:
            for message in self.far.each(data):
                self.to_a += self.replica.receive(message)
                self.settle(self.b)
        except (Refused, ProtocolError) as error:
            self.errors.append(str(error))
            self.to_a += self.replica.refuse(error) if self.far.state in (State.NEW, State.GREETED, State.PAIRING) \
                else self.replica.close("protocol", str(error))
            self.hear()

    def acknowledge(self, durable: bool = True) -> None:
        """The secondary says how far it is."""
        if self.replica is None:
            return
        if durable:
            self.b.window.make_durable(self.replica.pending)
        self.to_a += self.replica.acknowledge()

    def hear(self, most: int = 1 << 30) -> None:
        """Some bytes arrive at the primary."""
        if self.session is None:
            return
        data, self.to_a[:most] = bytes(self.to_a[:most]), b""
        try:
            for message in self.session.receive_bytes(data):
                self.to_b += self.link.receive(message)
        except (Refused, PeerError) as error:
            self.errors.append(str(error))
            self.cut(str(error))

    # ---- faults

    def crash(self, which: int) -> None:
        """Power loss at one site, and its recovery."""
        self.cut("crash")
        site = (self.a, self.b)[which]
        site.abandon()
        self.worlds[which] = self.rng.choice(list(self.worlds[which].images(self.rng, 2)))
        self.reopen(which)

    def reopen(self, which: int) -> None:
        site = open_site(self.worlds[which], self.rng.randrange(1 << 30), node=(b"A", b"B")[which] * 16)
        if which:
            self.b = site
        else:
            self.a = site
            self.lsn = site.window.state().end_lsn
            self.truth = {lsn: stores for lsn, stores in self.truth.items() if lsn <= self.lsn}

    # ---- what must hold

    def check(self) -> None:
        """INV-2: a secondary that calls itself consistent equals the primary as of its LSN."""
        self.settle(self.b)
        self.b.window.make_durable(self.b.window.state().end_position)
        self.settle(self.b)
        point = self.b.here
        if point.consistent:
            self.compare(self.truth[point.lsn])

    def compare(self, want: dict[int, bytes]) -> None:
        assert set(self.b.here.catalog.stores) == set(want), f"seed {self.seed}: stores"
        for store, content in want.items():
            got = view.read(self.b.window, self.b.stores, store, 0, len(content))
            if got != content:
                regions = [r for r in range(len(content) // REGION) if got[r * REGION:][:REGION] != content[r * REGION:][:REGION]]
                raise AssertionError(f"seed {self.seed}: store {store} differs in regions {regions} at {self.b.here.lsn}")

    def heal(self, turns: int = 3000) -> None:
        """Without faults, both sites become equal, and that ends."""
        for turn in range(turns):
            if self.session is None:
                self.settle(self.b)
                self.connect()
            if not self.send():
                self.flush()
                self.settle(self.a)
            self.deliver()
            self.settle(self.b)
            if turn % 3 == 2:
                self.acknowledge()
            self.hear()
            status = self.link.status()
            if status["synced"] and not self.link.stream.flight:
                break
        else:
            raise AssertionError(f"seed {self.seed}: healing does not end: {self.link.status()} {self.errors[-3:]}")
        self.check()
        assert self.b.here.consistent and self.b.here.lsn == self.lsn
        for site in (self.a, self.b):
            for store, content in self.truth[self.lsn].items():
                self.settle(site)
                assert view.read(site.window, site.stores, store, 0, len(content)) == content, f"seed {self.seed} {site.role} {store}"
        self.compare(self.truth[self.lsn])

    def close(self) -> None:
        self.a.abandon()
        self.b.abandon()
