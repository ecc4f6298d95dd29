"""Where regions are found going back: the cases that a random history seldom has."""

from __future__ import annotations

from pyrepl._core import batch, layout
from pyrepl.history import Batch
from pyrepl.operations import Copied, Created, Resized
from pyrepl.provenance import Base, Begin, Pass, Provenance, Reach

REGION = 4096
V, S = 1, 2
IDS = {"group": b"g" * 16, "generation": b"n" * 16}


def wrote(lsn: int, *ranges: tuple[int, int, int], block: int = 512) -> Batch:
    """A batch of writes (store, offset, length) from this LSN on."""
    records = [(layout.WRITE, store, offset, bytes(length)) for store, offset, length in ranges]
    data = memoryview(batch.encode(layout.BATCH_EVENTS, records, first_lsn=lsn, alignment=block, **IDS))
    head = batch.head_length(len(records))
    return Batch(0, lsn, lsn + len(records) - 1, 0, data[:head], data[head:], None)


def begins(traced: Provenance) -> list[tuple[int, int, int | None, list[tuple[int, int]]]]:
    return [(step.lsn, step.store, step.base, list(step.regions.runs())) for step in traced.steps if isinstance(step, Begin)]


def test_a_copy_after_the_base_was_taken_says_nothing_of_it():
    traced = Provenance(V, 5, {V: Base(10, 4), S: Base(8, 4)}, 4, REGION)
    for lsn in (10, 9):
        traced.reach(lsn)
        traced.write(wrote(10, (V, 0, 512)), 10, 10) if lsn == 10 else traced.operate(9, [Copied(S, V, 0, 4)])
    traced.reach(5)
    traced.begin()
    assert begins(traced) == [(5, V, V, [(1, 3)])] and not traced.is_found
    assert list(traced.need[V].runs()) == [(0, 1)]


def test_a_batch_covers_a_region_with_several_writes():
    traced = Provenance(V, 9, {V: Base(20, 2)}, 2, REGION)
    traced.reach(10)
    traced.write(wrote(10, (V, 0, REGION), (V, REGION, REGION)), 10, 11)
    traced.reach(9)
    traced.begin()
    assert not traced.is_found and not traced.steps
    traced.write(wrote(6, (V, 2048, 2048 + 512), (V, 0, 1024), (V, 1024, 1024), (V, REGION + 512, REGION - 1024)), 6, 9)
    assert begins(traced) == [(5, V, None, [(0, 1)])] and list(traced.need[V].runs()) == [(1, 1)]


def test_the_lsn_in_the_middle_of_a_batch():
    traced = Provenance(V, 10, {V: Base(20, 2)}, 2, REGION)
    one = wrote(9, (V, 0, REGION), (V, REGION, REGION), (V, 0, 512))
    traced.reach(11)
    traced.write(one, 11, 11)
    traced.begin()
    assert begins(traced) == [(10, V, V, [(1, 1)])]  # region 1 is not touched later
    traced.write(one, 9, 10)
    assert begins(traced)[1:] == [(8, V, None, [(0, 1)])] and traced.is_found


def test_what_was_restored_passes_from_the_snapshot():
    traced = Provenance(V, 9, {V: Base(20, 4), S: Base(20, 4)}, 4, REGION)
    traced.reach(15)
    traced.operate(15, [Copied(V, 0, 0, 4)])  # zeroed since
    traced.begin()
    assert not traced.steps
    traced.operate(8, [Copied(V, S, 1, 2)])
    assert [(step.lsn, step.source, step.target, list(step.regions.runs())) for step in traced.steps if isinstance(step, Pass)] == [
        (8, S, V, [(1, 2)])]
    assert begins(traced) == [(7, S, S, [(1, 2)])]
    traced.operate(3, [Created(V, 4, True)])
    assert begins(traced)[1:] == [(3, V, 0, [(0, 1), (3, 1)])] and traced.is_found and traced.created_at == 3


def test_a_size_that_was_not_said_ends_what_can_be_told():
    traced = Provenance(V, 9, {V: Base(20, 4)}, 4, REGION)
    traced.reach(10)
    traced.operate(10, [Resized(V, 4)])
    traced.begin()
    assert traced.regions == 0


def test_the_reach_is_where_the_last_region_was_lost():
    reach = Reach(V, 20, {V: Base(20, 4)}, 4, REGION)
    reach.reach(20)
    reach.begin()
    for one in (wrote(12, (V, 0, 512)), wrote(11, (V, REGION, REGION)), wrote(9, (V, 512, 512)), wrote(7, (V, 0, REGION))):
        reach.write(one, one.first_lsn, one.last_lsn)
    # Region 0 is covered whole at 7, region 1 at 11: what it was before that is lost.
    assert reach.first() == 11
