"""What a secondary keeps before it goes back to another history: exact, whole or not at all, and over power losses."""

from __future__ import annotations

import pytest

from pyrepl import operations
from pyrepl._core import view
from pyrepl.errors import Refused
from pyrepl.history import History, Overtaken
from pyrepl.lineage import common
from pyrepl.roles import PRIMARY
from pyrepl.site import Site
from pyrepl.views import Views
from tests.support.pair import REGION
from tests.support.swap import SwapPair


def shown(site: Site, store: int, size: int) -> bytes:
    return view.read(site.window, site.stores, store, 0, size)


def content(site: Site) -> dict[str, bytes]:
    return {store.name: shown(site, store.id, store.size) for store in site.here.catalog}


def kept(site: Site) -> dict[str, bytes]:
    return {entry.name: shown(site, entry.id, entry.size) for entry in site.views.kept()}


def parted(one: SwapPair, *, unknown: bool) -> dict[str, bytes]:
    """The primary writes what it cannot send, the secondary takes over and writes too; the old one has stepped down.
    ``unknown``: it was started in between, and both are in the right (split brain). What its volumes show."""
    one.cut()
    one.a.checkpoint()
    for _ in range(6):
        one.random_write()
    one.flush()
    one.b.roles.take_lead(alone=True)
    one.exchange()
    one.lead()
    if unknown:
        one.b.abandon()
        one.reopen(1)
        one.b.window.write(1, 0, b"x" * REGION)
    one.settle(one.b)
    tail = content(one.b)
    for _ in range(6):
        one.random_write()
    one.flush()  # what is not durable is not told
    one.step_down(one.b)
    one.b.forget_links()
    return tail


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(3))
def test_power_loss_while_a_tail_is_kept_and_left(pair, seed):
    """Whoever has left the tail has kept it, whole and exact, whatever is written over it afterwards."""
    one = pair(seed)
    tail = parted(one, unknown=False)
    there = one.b.end.lineage, one.b.end.lsn

    def judge(site: Site) -> str:
        while site.step():
            pass
        found = kept(site)
        left = (site.end.lineage, site.end.lsn) != there
        whole = set(found) == set(tail)
        for name, bytes_ in found.items():
            assert bytes_ == tail[name], f"{name} is not what it was"
        assert whole or not left
        return "left" if left else "kept" if whole else "not yet"

    def change() -> None:
        one.heal()
        for _ in range(4):
            one.random_write()
        one.heal()

    seen = one.watched(1, change, judge, 0.5)
    assert all(seen[what] for what in ("left", "kept", "not yet")), seen
    assert kept(one.b) == tail
    (label,) = {entry.label for entry in one.b.views.kept()}
    assert label.startswith("lost-") and len(label) == 13


def keeps_while_it_is_fed(one: SwapPair) -> None:
    """What a secondary keeps in the middle of its stream is exact after a power loss, whatever comes after it."""
    for _ in range(4):
        one.random_write()
    one.heal()
    then = content(one.b)

    def judge(site: Site) -> str:
        while site.step():
            pass
        for name, bytes_ in kept(site).items():
            assert bytes_ == then[name], f"{name} is not what it was"
        return "kept" if site.views.kept() else "not yet"

    def change() -> None:
        one.b.views.keep("now", [store.id for store in one.b.end.catalog])
        for _ in range(6):
            one.random_write()
        one.heal()

    seen = one.watched(1, change, judge, 0.5)
    assert seen["kept"] and kept(one.b) == then, seen


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(2))
def test_power_loss_after_a_fed_secondary_has_kept_something(pair, seed):
    keeps_while_it_is_fed(pair(10 + seed))


@pytest.mark.timeout(120)
def test_without_its_checkpoint_it_is_not_exact(pair, monkeypatch):
    """Rule view_kept, broken."""
    real = Views._keep

    def keep(self, label, stores):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Site, "checkpoint", lambda site: None)
            real(self, label, stores)

    monkeypatch.setattr(Views, "_keep", keep)
    for seed in range(6):
        one = pair(10 + seed)
        try:
            keeps_while_it_is_fed(one)
        except (AssertionError, LookupError):
            return
    raise AssertionError("6 stories hold without it")


@pytest.mark.parametrize("overrules", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_split_brain_ends_when_a_loser_is_named(pair, seed, overrules):
    one = pair(20 + seed)
    tail = parted(one, unknown=True)
    for _ in range(2):
        one.connect()
        one.deliver()
        one.hear()
    assert "split brain" in one.errors[-1] and not one.b.views.kept()
    if overrules:
        one.link.ledger.overrules = True
        one.a.checkpoint()
        one.crash(0)
        assert one.link.ledger.overrules
    else:
        one.b.roles.give_way()
        one.crash(1)
        assert one.b.end.yields
    one.heal()
    assert kept(one.b) == tail and not one.link.ledger.overrules and not one.b.end.yields and not one.b.here.yields
    assert one.link.wants_checkpoint or not overrules
    assert one.link.bytes_sent["copied"] < 12 * REGION, "not everything"
    for _ in range(5):
        one.random_write()
        one.random_operation()
    one.crash(1)
    one.heal()
    assert kept(one.b) == tail


def test_a_primary_that_is_overruled_is_asked_to_step_down(pair):
    one = pair(30)
    one.cut()
    one.b.roles.take_lead(alone=True)
    one.exchange()
    one.lead()
    asked = []
    one.b.roles.asked = lambda: asked.append(one.b.roles.overruling)
    one.connect()
    one.deliver()
    assert "is a primary on this node" in one.errors[-1] and not asked
    one.link.ledger.overrules = True
    one.connect()
    one.deliver()
    assert "steps down for the one that overrules it" in one.errors[-1] and asked == [one.ids[0]] and one.b.role == PRIMARY
    one.b.links.clear()  # it knows nothing of that node
    one.connect()
    one.deliver()
    assert "is a primary on this node" in one.errors[-1] and len(asked) == 1


def test_a_word_is_not_kept_for_another_time(pair):
    """It ends with the next thing that a primary sends; taking the lead takes it back."""
    one = pair(31)
    one.cut()
    one.step_down(one.a)
    one.a.roles.give_way()
    assert one.a.end.yields and one.a.here.yields
    one.a.roles.take_lead(alone=True)
    assert not one.a.end.yields
    one.link.ledger.overrules = True
    one.heal()
    assert not one.link.ledger.overrules and not one.b.views.kept()


def test_what_cannot_be_kept_is_not_left(pair, monkeypatch):
    one = pair(32)
    parted(one, unknown=False)
    monkeypatch.setattr("pyrepl.views.MOST_VIEWS", 1)
    before = one.b.end.lsn
    for _ in range(6):
        if one.session is None:
            one.connect()
        one.send()
        one.deliver()
        one.hear()
    assert "cannot be kept" in " ".join(one.errors) and one.b.end.lsn == before and not one.b.views.kept()
    monkeypatch.undo()
    one.heal()
    assert len(one.b.views.kept()) == 2


def test_the_same_tail_is_kept_once(pair):
    one = pair(33)
    tail = parted(one, unknown=False)
    stores = [store.id for store in one.b.end.catalog]
    fork = common(one.a.lineage, one.lsn, one.b.end.lineage, one.b.end.lsn)
    for _ in range(2):
        one.b.roles.keep_tail(fork)
        first = one.b.views.kept()
        assert len(first) == 2 and kept(one.b) == tail
    one.b.views.close(first[0].id)  # as a crash may leave it
    one.b.roles.keep_tail(fork)
    assert kept(one.b) == tail and {entry.store for entry in one.b.views.kept()} == set(stores)
    one.b.roles.keep_tail(one.b.end.lsn)  # nothing is left behind
    with pytest.raises(Refused, match="no room to keep 80 stores"):
        one.b.views.keep("more", list(range(1, 81)))


def test_snapshots_that_only_it_had_are_kept_too(pair):
    one = pair(34)
    one.cut()
    one.operate(operations.snapshot(one.a.end.catalog, ["a"], ["mine"]))
    one.write(1, 0, one.some_bytes(REGION))
    one.flush()
    one.settle(one.a)
    tail = content(one.a)
    one.b.roles.take_lead(alone=True)
    one.exchange()
    one.lead()
    one.step_down(one.b)
    one.b.forget_links()
    one.heal()
    assert kept(one.b) == tail and "mine" in tail and "mine" not in content(one.b)
    one.crash(1)
    one.settle(one.b)
    assert kept(one.b) == tail
    for entry in one.b.views.kept():
        one.b.views.close(entry.id)
    one.settle(one.b)
    assert not one.b.shelf.zombies


def test_a_failback_does_not_wait_for_snapshots_that_nobody_can_delete(pair, monkeypatch):
    """The journal does not tell any more which of them are of the tail: the newest that there is room for are kept."""

    def touched(self: History, fork: int, region_size: int) -> set[int]:
        raise Overtaken("the journal has gone round")

    one = pair(35)
    for name in ("old", "middle"):
        one.operate(operations.snapshot(one.a.end.catalog, ["a"], [name]))
    one.heal()
    one.cut()
    one.operate(operations.snapshot(one.a.end.catalog, ["a"], ["mine"]))
    one.flush()
    one.settle(one.a)
    tail = content(one.a)
    one.b.roles.take_lead(alone=True)
    one.exchange()
    one.lead()
    one.step_down(one.b)
    one.b.forget_links()
    monkeypatch.setattr(History, "touched", touched)
    for module in ("roles", "views"):
        monkeypatch.setattr(f"pyrepl.{module}.MOST_VIEWS", 4)
    one.heal()
    assert kept(one.b) == {name: tail[name] for name in tail if name not in ("old", "middle")} | {"middle": tail["middle"]}
