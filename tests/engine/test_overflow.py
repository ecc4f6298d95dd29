"""A journal that really overflows: writes and operations go on while the link is down until the log has wrapped, then it comes back.

Nothing is folded by hand here: the site does it when its log is full. What is checked: both sites become equal, no more is
copied than differs, and an operation is performed as a command, however long ago the log dropped it.
"""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest

import pyrepl
from pyrepl import operations
from tests.support.pair import REGION, Pair
from tests.support.simulation import open_site

MIB = 1 << 20


def outage(one: Pair, steps: int) -> None:
    """The link is down, or nearly; the primary works, and now and then a site loses power."""
    rng = one.rng
    for _ in range(steps):
        roll = rng.random()
        if roll < 0.75:
            one.random_write()
        elif roll < 0.84:
            one.random_operation()
        elif roll < 0.90:
            one.flush()
        elif roll < 0.97:
            one.a.step()
        elif roll < 0.98:
            one.connect()
            for _ in range(rng.choice((3, 20, 60))):
                one.send()
                one.deliver()
                if rng.random() < 0.5:
                    one.acknowledge()
                    one.hear()
            one.cut()
        elif roll < 0.985:
            one.crash(rng.randrange(2))
        if rng.random() < 0.3:
            one.settle(one.a)


@pytest.mark.parametrize("seed", range(40))
def test_stories_in_which_the_log_wraps(seed: int) -> None:
    rng = random.Random(seed)
    one = Pair(seed, journal_size=rng.choice((640 << 10, MIB, 2 * MIB)), regions=rng.choice((6, 40)))
    try:
        begin, size = one.a.window.state().end_position, one.a.journal.log_size
        if rng.random() < 0.8:
            one.heal()
        for _ in range(2):
            one.cut()
            outage(one, 200)
            one.heal()
        assert [error for error in one.errors if "tries again" not in error] == []
        assert one.a.window.state().end_position - begin > size
    finally:
        one.close()


def test_only_what_differs_is_copied_and_operations_are_commands() -> None:
    one = Pair(7, journal_size=MIB, regions=64)
    try:
        one.heal()
        one.cut()
        before = dict(one.link.bytes_sent)
        touched = set()
        for n in range(600):
            region = one.rng.randrange(12)
            touched.add(region)
            one.write(1, region * REGION, one.some_bytes(REGION))
            if n in (100, 300):
                one.operate(operations.snapshot(one.a.end.catalog, ["b"], [f"s{n}"]))
            if n == 400:
                one.operate(operations.restore(one.a.end.catalog, "b", "s100", None, None, region_size=REGION))
        one.settle(one.a)
        assert one.link.ledger.backlog, "the log did not overflow"
        one.heal()
        sent = {kind: one.link.bytes_sent[kind] - before[kind] for kind in before}
        assert sent["copied"] <= len(touched) * (REGION + 512) + 4096
        assert 0 < sent["operations"] < 3 * 4096
        assert one.b.here.catalog.by_name("s300").id == one.a.here.catalog.by_name("s300").id
    finally:
        one.close()


@pytest.mark.parametrize(("crash", "snapshots"), [(False, True), (True, True), (True, False)])
def test_a_link_that_is_away_for_ever_costs_no_more_than_a_checkpoint_holds(crash: bool, snapshots: bool) -> None:
    """Each operation that the log drops is kept in the checkpoint: so many that it is too long would end the group."""
    one = Pair(8, journal_size=640 << 10, regions=4)
    try:
        one.heal()
        one.cut()
        for n in range(700):
            one.operate(operations.mark(f"m{n}", bytes(200)))
            one.write(1, n % 4 * REGION, one.some_bytes(512))
            if n % 100 == 50:
                if snapshots:
                    one.operate(operations.snapshot(one.a.end.catalog, ["a"], [f"s{n}"]))
                one.operate(operations.resize(one.a.end.catalog, "b", (n // 100 + 5) * REGION, region_size=REGION))
            one.settle(one.a)
        assert len(one.link.ledger.backlog) < 350, "700 operations were folded"
        if crash:
            one.crash(0)
        one.heal()
        assert one.errors == []
    finally:
        one.close()


def test_an_acknowledgement_while_a_checkpoint_is_written() -> None:
    """The tail moves no further than what that checkpoint says of the link: a restart begins there."""
    one = Pair(3, journal_size=640 << 10)
    try:
        one.heal()
        one.cut()
        for _ in range(40):
            one.random_write()
        one.flush()
        one.settle(one.a)
        one.connect()
        for n in range(200):
            one.send()
            one.deliver()
            if n < 5:
                one.hear()
        one.acknowledge()
        held, real = one.link.position, one.a.journal.write_checkpoint

        def write_checkpoint(*arguments: object, **options: object) -> int:
            sequence = real(*arguments, **options)  # type: ignore[arg-type]
            one.hear()
            return sequence

        one.a.journal.write_checkpoint = write_checkpoint  # type: ignore[method-assign,assignment]
        one.a.checkpoint()
        assert one.link.position > held, "the acknowledgement did not come in between"
        assert one.a.window.state().tail_position <= held
        one.cut()
        with pytest.raises(BlockingIOError):
            while True:
                one.a.window.submit(1, 0, one.some_bytes(4096), wait=False)
                one.a.window.commit_pending()
        one.a.window.make_durable(one.a.window.state().end_position)
        one.a.abandon()
        one.a = open_site(one.worlds[0], 4, node=b"A" * 16)
    finally:
        one.close()


@pytest.mark.timeout(60)
def test_a_full_log_that_the_link_lets_go_of_takes_the_longest_write() -> None:
    """The link held most of the log and caught up after the last checkpoint: nothing is left to apply, and there is room."""
    one = Pair(5, journal_size=14 * MIB, regions=512)
    try:
        one.heal()
        one.cut()
        room = one.a._room
        one.a.checkpoint()
        while (state := one.a.window.state()).end_position - state.tail_position < room * 11 // 16:
            one.write(1, 0, one.some_bytes(64 << 10))
            one.settle(one.a)
        assert not one.link.ledger.backlog
        one.a.checkpoint()
        one.a.options = msgspec.structs.replace(one.a.options, checkpoint_bytes=1 << 40)
        one.heal()
        begin = one.a.window.state().end_position
        while one.a.window.state().end_position < begin + room // 4 - (160 << 10):
            one.write(1, 0, one.some_bytes(64 << 10))
            one.a.window.commit_pending()
            one.a.applier.apply()
        one.write(1, 0, one.some_bytes(MIB))  # raises if there never is room
    finally:
        one.close()


@pytest.mark.timeout(60)
def test_an_overflow_over_tcp(tmp_path: Path) -> None:
    """Journals of 16 MiB, through the public names: the log wraps four times, three operations among it."""
    rng = random.Random(1)
    with pyrepl.Node.open(tmp_path / "far", create=True) as far, pyrepl.Node.open(tmp_path / "near", create=True) as near:
        host, port = far.listen("127.0.0.1")
        backup = far.create_group("db", tmp_path / "far-journal", journal_size=16 * MIB, role="secondary")
        group = near.create_group("db", tmp_path / "journal", journal_size=16 * MIB)
        size = 32 * MIB
        backup.add_volume("v", size=size)
        volume = group.add_volume("v", size=size)
        link = group.add_link("far", f"{host}:{port}")
        link.wait_synced(timeout=30)
        link.pause()
        before = link.status()["bytes_sent"]
        hot = size // 8  # what is written meanwhile
        for n in range(60):
            for _ in range(16):
                volume.write(rng.randrange(hot // 65536) * 65536, rng.randbytes(65536))
            if n in (10, 30):
                volume.snapshot(f"s{n}")
            if n == 50:
                volume.restore("s10")
        link.resume()
        link.wait_synced(timeout=40)
        sent = link.status()["bytes_sent"]
        assert sent["copied"] - before["copied"] <= 3 * hot + 8 * MIB  # of the volume and of two snapshots
        assert 0 < sent["operations"] - before["operations"] <= 3 * 4096
        assert backup.volume("v").read(0, size) == volume.read(0, size)
        for name in ("s10", "s30"):
            assert backup.store(name).read(0, size) == group.store(name).read(0, size)


def test_what_was_shortened_is_saved_before_a_word_of_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stores of the skip's end are made before the skip: a primary that lost what it knows of that would find there
    what cannot be."""
    one = Pair(7)
    try:
        one.heal()
        one.cut()
        one.operate(operations.resize(one.a.end.catalog, "a", 9 * REGION, force=True, region_size=REGION))
        one.settle(one.a)
        with monkeypatch.context() as short:
            short.setattr(one.link.ledger, "_share", lambda: 0)
            one.link.fold(one.a.window.state().applied_position)
        one.connect()
        while not one.link.is_open:
            one.deliver()
            one.hear()
        one.flush()
        for _ in range(20):
            assert one.link.stream.next_out(one.a.window.state().durable_position) is None
        assert one.link.wants_checkpoint and one.b.end.consistent
        one.heal()
    finally:
        one.close()
