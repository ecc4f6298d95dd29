"""What is said before an operation is what then happens: the same stream without copies comes to the same divergence, and the
command has the same length on the wire."""

from __future__ import annotations

import collections

import pytest

from pyrepl import operations
from pyrepl.forecast import COMMAND, DATA
from pyrepl.knowledge import Performed
from pyrepl.protocol.frames import HEADER
from pyrepl.stream import Stream
from tests.engine.test_link import turn
from tests.support.pair import REGION, Pair

SEEDS = range(24)
WEIGHTS = {"write": 20, "operate": 3, "send": 20, "deliver": 14, "ack": 9, "hear": 9, "flush": 8, "apply": 6, "checkpoint": 3, "cut": 3,
           "connect": 5, "fold": 2}


class Explained(Pair):
    """Each operation is explained before it is made, if that is wanted."""

    def __init__(self, *arguments, **options):
        self.explaining, self.last = False, None
        self.lengths = {}
        super().__init__(*arguments, **options)

    def operate(self, operation):
        if self.explaining:
            self.flush()
            self.settle(self.a)
            lsn = self.a.window.state().end_lsn
            before = self.link.ledger.save(name="", address="", mode="async", options=self.link.options, paused=False)
            forecast = self.link.forecast()
            forecast.reach(lsn)
            cost = forecast.cost(operation)
            again = forecast.cost(operation)
            assert cost == again, "asking changes what is said"
            after = self.link.ledger.save(name="", address="", mode="async", options=self.link.options, paused=False)
            assert before == after, "asking changes what is known"
            assert cost.after == cost.before + cost.added - cost.removed
            self.last = (lsn + 1, cost, self.link.is_open)
        super().operate(operation)


def without_copies(one):
    """Everything up to the journal's end is performed at the secondary, and acknowledged; nothing is copied."""
    link, lengths, out = one.link, one.lengths, Stream._out

    def listened(stream, kind, head, payload, effect, entry=None):
        if isinstance(effect, Performed):
            lengths[effect.lsn] = HEADER + len(head) + len(payload)
        return out(stream, kind, head, payload, effect, entry)

    with pytest.MonkeyPatch.context() as patched:  # not of the link's stream: each connection has its own
        patched.setattr(Stream, "_copy", lambda stream: None)
        patched.setattr(Stream, "_out", listened)
        for _ in range(2000):
            if one.session is None:
                one.connect()
            if not one.send():
                one.flush()
                one.settle(one.a)
            one.deliver()
            one.acknowledge()
            one.hear()
            if link.base.lsn == one.lsn and not link.stream.flight:
                return
        raise AssertionError(f"it does not end: {link.status()} {one.errors[-3:]}")


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_said_is_what_happens(seed):
    one = Explained(9000 + seed, journal_size=(12 << 20, 640 << 10)[seed % 2])
    seen: collections.Counter[str] = collections.Counter()
    try:
        for _ in range(12):
            for what in one.rng.choices(list(WEIGHTS), WEIGHTS.values(), k=one.rng.randrange(20, 120)):
                turn(one, what)
            one.last, one.explaining = None, True
            while one.last is None:
                one.random_operation()
            one.explaining = False
            lsn, cost, was_open = one.last
            known = one.link.peer is not None
            without_copies(one)
            assert one.link.peer is not None
            if not known:  # it begins where the journal ended when it was paired, or has everything to copy anyhow
                continue
            differ = one.link.base.divergence.count()
            assert differ <= cost.after, f"{differ} differ, {cost.after} were foretold"
            assert one.lengths[lsn] == cost.command_bytes and cost.performed_as == COMMAND
            if was_open:
                assert differ == cost.after
            seen["open" if was_open else "down"] += 1
            seen["added"] += cost.added > 0
            seen["removed"] += cost.removed > 0
            seen["exact"] += differ == cost.after
        one.heal()
        print(dict(seen))
        assert seen["exact"] >= (seen["open"] + seen["down"]) * 2 // 3
    finally:
        one.close()


def test_a_link_that_was_never_paired():
    one = Explained(1)
    try:
        catalog = one.a.end.catalog
        one.flush()
        one.settle(one.a)
        forecast = one.link.forecast()
        forecast.reach(one.lsn)
        mark = forecast.cost(operations.mark("m"))
        assert mark.performed_as == COMMAND and mark.before == mark.after == 12 and not mark.added and not mark.removed
        made = forecast.cost(operations.snapshot(catalog, ["a"], ["s"]))
        assert (made.performed_as, made.command_bytes, made.added) == (DATA, 0, 6), "it may begin later, where s is there already"
    finally:
        one.close()


def test_a_restore_takes_away_and_a_synchronize_adds():
    """a was overwritten and nothing of it was sent; s is equal at both sites, b too."""
    one = Explained(2)
    try:
        one.operate(operations.snapshot(one.a.end.catalog, ["a"], ["s"]))
        one.heal()
        one.cut()
        one.write(1, 0, b"x" * 4 * REGION)
        one.flush()
        one.settle(one.a)
        one.link.fold(one.a.window.state().applied_position)
        catalog, forecast = one.a.end.catalog, one.link.forecast()
        forecast.reach(one.lsn)
        restore = forecast.cost(operations.restore(catalog, "a", "s", None, None, region_size=REGION))
        assert (restore.before, restore.after, restore.added, restore.removed) == (4, 0, 0, 4)
        part = forecast.cost(operations.restore(catalog, "a", "s", 0, REGION, region_size=REGION))
        assert (part.before, part.after, part.added, part.removed) == (4, 3, 0, 1)
        synchronize = forecast.cost(operations.synchronize(catalog, "b", "a", region_size=REGION))
        assert (synchronize.before, synchronize.after, synchronize.added, synchronize.removed) == (4, 8, 4, 0)
        snapshot = forecast.cost(operations.snapshot(catalog, ["a"], ["t"]))
        assert (snapshot.after, snapshot.added) == (8, 4), "a snapshot of what differs differs"
        removed = forecast.cost(operations.remove_volume(catalog, "a", force=True))
        assert (removed.after, removed.removed) == (0, 4)
        shrunk = forecast.cost(operations.resize(catalog, "a", REGION, force=True, region_size=REGION))
        assert (shrunk.after, shrunk.removed) == (1, 3)
        copied = one.link.bytes_sent["copied"]
        one.operate(operations.restore(catalog, "a", "s", None, None, region_size=REGION))
        one.heal()
        assert one.link.bytes_sent["copied"] == copied, "what was overwritten and restored is never sent"
    finally:
        one.close()


def test_what_the_journal_drops_meanwhile_is_begun_again(monkeypatch):
    one = Explained(3)
    try:
        one.heal()
        one.cut()
        one.write(1, 0, b"y" * REGION)
        one.flush()
        one.settle(one.a)
        forecast = one.link.forecast()
        one.link.fold(one.a.window.state().applied_position)
        one.a.checkpoint()
        for _ in range(2):
            one.a.checkpoint()
        with pytest.raises(LookupError, match="dropped"):
            forecast.reach(one.lsn)
        again = one.link.forecast()
        again.reach(one.lsn)
        assert again.cost(operations.mark("m")).before == 1
    finally:
        one.close()
