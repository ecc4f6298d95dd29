"""The window: order, group commit, durability, overlay, backpressure, failure.

The twin is a list of events and a dict of blocks.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pyrepl._core.window import Window, scan_log
from tests.support import forge
from tests.support.devices import FailingDevice, MemoryDevice, RecordingDevice
from tests.support.examples import examples

BLOCK = 4096
MIB = 1 << 20
RING = 4 * (4 * MIB + BLOCK)
START = 8192
LONGEST = 4 * MIB + BLOCK
OPEN = {
    "log_offset": START,
    "position": 0,
    "tail": 0,
    "chain": 5,
    "lsn": 0,
    "applied_position": 0,
    "applied_lsn": 0,
    "group": forge.GROUP,
    "generation": forge.GENERATION,
    "seed": 99,
}


def make(device=None, *, alignment=4096, log=16 * MIB, ring=RING, reserve=0, stores=((1, 64 * MIB),), **numbers):
    device = device or MemoryDevice(size=START + log)
    window = Window(ring=ring, alignment=alignment, reserve=reserve)
    window.open(device, log_size=log, **OPEN | numbers)
    for store, size in stores:
        window.set_store(store, size)
    return device, window


def scan(device, log=16 * MIB, alignment=4096, position=0, chain=5):
    records, end, chain, reason, durable = scan_log(
        device, log_offset=START, log_size=log, position=position, chain=chain, alignment=alignment
    )
    return [forge.parse(r) for _, r in records], end, chain, reason, durable


def events_of(records):
    return [
        (r["first_lsn"] + i, *e)
        for r in records
        if r["kind"] == 1 and r["batch"] in (1, 2)
        for i, e in enumerate(r["events"])
    ]


def walk(window, position=0):
    found = []
    while (entry := window.entry(position)) is not None:
        with entry:
            found.append((entry.position, entry.kind, entry.batch_kind, entry.first_lsn, entry.last_lsn, entry.count))
            position = entry.next_position
    return found, position


def in_thread(function, *args, **options):
    """Starts it; .result() joins and gives what it returned or raised."""
    box = []

    def run():
        try:
            box.append(function(*args, **options))
        except BaseException as error:
            box.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result(timeout=20):
        thread.join(timeout)
        assert not thread.is_alive(), "the thread does not come back"
        return box[0]

    thread.result = result
    return thread


class Gate(MemoryDevice):
    """Writes, or flushes, stop until they are let through; `arrived` counts them."""

    def __init__(self, kind, size=START + 16 * MIB):
        super().__init__("gate", size)
        self.kind, self.arrived, self.free, self.closed = kind, threading.Semaphore(0), threading.Semaphore(0), False

    def _pass(self, kind):
        if self.closed and kind == self.kind:
            self.arrived.release()
            assert self.free.acquire(timeout=20)

    def do_write(self, ios):
        self._pass("write")
        super().do_write(ios)

    def do_flush(self):
        self._pass("flush")
        super().do_flush()


# -- what a write is


@pytest.mark.parametrize("alignment", [512, 4096])
def test_events_are_split_and_found_in_the_log(alignment):
    device, window = make(alignment=alignment)
    data = os.urandom(2 * MIB + 3 * alignment)
    assert window.write(1, alignment, data) == 3
    assert window.zero(1, 0, alignment) == 4
    assert window.zero(1, 2 * alignment, MIB + alignment, discard=True) == 6
    assert window.submit_operation(b"an operation", blocks=[], sizes=[], dropped=[]) == 7
    end = window.append_note(9, b"a note")
    window.write_out(end)
    state = window.state()
    assert (state.end_position, state.written_position, state.end_lsn, state.written_lsn, state.durable_lsn) == (
        end,
        end,
        7,
        7,
        0,
    )
    records, position, chain, _, _ = scan(device, alignment=alignment)
    assert (position, chain) == (end, state.chain)
    assert events_of(records) == [
        (1, forge.WRITE, 1, alignment, data[:MIB]),
        (2, forge.WRITE, 1, alignment + MIB, data[MIB : 2 * MIB]),
        (3, forge.WRITE, 1, alignment + 2 * MIB, data[2 * MIB :]),
        (4, forge.ZERO, 1, 0, alignment),
        (5, forge.DISCARD, 1, 2 * alignment, MIB),
        (6, forge.DISCARD, 1, 2 * alignment + MIB, alignment),
        (7, forge.OP, 0, 0, b"an operation"),
    ]
    assert (records[-1]["note"], records[-1]["body"]) == (9, b"a note")
    batches = [r for r in records if r["kind"] == 1]
    assert [b["previous"] for b in batches] == [0, *(b["digest"] for b in batches[:-1])]
    assert {b["group"] for b in batches} == {forge.GROUP} and {b["generation"] for b in batches} == {forge.GENERATION}
    assert walk(window)[1] == end


def test_a_digest_given_at_open_is_named_by_the_first_batch():
    device, window = make(previous=0xABCDEF0123456789)
    window.append_note(1, b"notes do not count")
    window.write(1, 0, bytes(4096))
    records = scan(device)[0]
    assert records[1]["previous"] == 0xABCDEF0123456789
    with window.entry(records[1]["position"]) as entry:
        assert entry.digest == records[1]["digest"]


@pytest.mark.parametrize(
    "offset,length,error",
    [
        (64 * MIB, 4096, ValueError),
        (64 * MIB - 4096, 8192, ValueError),
        (2**63, 4096, ValueError),
        (2**64 - 4096, 4096, ValueError),
        (2**64 - 4096, 8192, ValueError),
        (2**64, 4096, ValueError),
        (-4096, 4096, ValueError),
        (512, 4096, ValueError),
        (0, 512, ValueError),
        (0, 4097, ValueError),
        (0, 0, ValueError),
    ],
)
def test_bounds(offset, length, error):
    _, window = make()
    for call in (window.write, window.submit, window.write_held):
        with pytest.raises(error):
            call(1, offset, bytes(length))
    with pytest.raises(error):
        window.zero(1, offset, length)
    with pytest.raises(error):
        window.hold_blocks(1, offset, length)
    assert window.state().end_lsn == 0


@pytest.mark.parametrize("length", [2**63, 2**64 - 4096, 2**64, -4096, 64 * MIB + 4096])
def test_lengths_that_overflow(length):
    _, window = make()
    with pytest.raises(ValueError):
        window.zero(1, 4096, length)
    with pytest.raises(ValueError):
        window.hold_blocks(1, 4096, length)


def test_stores():
    _, window = make(stores=[(7, 8192), (3, 4096)])
    assert [window.store_size(s) for s in (3, 7, 5)] == [4096, 8192, None]
    with pytest.raises(LookupError):
        window.write(5, 0, bytes(4096))
    window.set_store(3, 4096, False)
    with pytest.raises(PermissionError):
        window.write(3, 0, bytes(4096))
    window.drop_store(7)
    for call in (lambda: window.drop_store(7), lambda: window.zero(7, 0, 4096)):
        with pytest.raises(LookupError):
            call()
    for store, size in ((0, 1), (2**32, 1), (-1, 1), (1, 2**63), (1, -1)):
        with pytest.raises(ValueError):
            window.set_store(store, size)
    for i in range(1, 1024):
        window.set_store(i + 10, i)
    with pytest.raises(OSError, match="store") as full:
        window.set_store(5000, 1)
    assert full.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    "wrong",
    [
        {"ring": RING - BLOCK},
        {"ring": RING + 1},
        {"alignment": 1024},
        {"reserve": 1},
        {"reserve": -4096},
        {"ring": 2**64},
    ],
)
def test_windows_that_cannot_be(wrong):
    with pytest.raises(ValueError):
        Window(**{"ring": RING, "alignment": 512, "reserve": 0} | wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"log_size": MIB + 15 * BLOCK},
        {"log_size": 16 * MIB + 1},
        {"log_size": 17 * MIB},
        {"log_offset": 512},
        {"log_offset": 2**64 - BLOCK},
        {"position": 512},
        {"position": 2**64},
        {"tail": BLOCK},
        {"applied_position": BLOCK},
        {"position": 16 * MIB + BLOCK},
        {"group": b""},
        {"generation": b"x" * 17},
        {"seed": 2**64},
    ],
)
def test_logs_that_cannot_be(wrong):
    window = Window(ring=RING, alignment=512, reserve=MIB)
    with pytest.raises(ValueError):
        window.open(MemoryDevice(size=START + 16 * MIB), **OPEN | {"log_size": 16 * MIB} | wrong)


def test_a_sector_larger_than_the_alignment():
    with pytest.raises(ValueError, match="sectors of 4096"):
        make(MemoryDevice(size=START + 16 * MIB, sector_size=4096), alignment=512)


def test_before_open_and_twice():
    window = Window(ring=RING, alignment=512, reserve=0)
    window.set_store(1, 4096)
    for call in (
        lambda: window.write(1, 0, bytes(512)),
        lambda: window.append_note(1, b""),
        lambda: window.commit(0),
        lambda: window.entry(0),
        lambda: window.make_durable(0),
        lambda: window.set_lsn(3),
        lambda: window.hold_blocks(1, 0, 512),
        lambda: window.submit_operation(b"x", blocks=[], sizes=[], dropped=[]),
        lambda: window.append_received(*received()),
    ):
        with pytest.raises(ValueError, match="not open"):
            call()
    device = MemoryDevice(size=START + 16 * MIB)
    window.open(device, log_size=16 * MIB, **OPEN)
    with pytest.raises(ValueError):
        window.open(device, log_size=16 * MIB, **OPEN)
    with pytest.raises(ValueError):
        window.load(forge.place(*received(), position=0, chain=5))


# -- written and durable


def kinds(device):
    return ["fua" if one.fua else one.what for one in device.log if one.what != "read"]


def test_a_write_is_one_write_and_a_flush_is_one_flush():
    device, window = make(RecordingDevice(size=START + 16 * MIB))
    assert kinds(device) == ["flush"], "open() makes durable what the process before left"
    device.log.clear()
    window.write(1, 0, bytes(4096))
    assert kinds(device) == ["write"]
    assert window.state().durable_position == 0
    assert window.flush() == 1
    state = window.state()
    assert (state.durable_position, state.durable_lsn) == (state.written_position, 1)
    window.flush()
    window.make_durable(state.end_position)
    assert kinds(device) == ["write", "flush"], "nothing to do is nothing done"


def test_fua():
    device, window = make(RecordingDevice(size=START + 16 * MIB))
    device.log.clear()
    window.write(1, 0, bytes(4096), fua=True)
    assert kinds(device) == ["fua"]
    assert window.state().durable_lsn == 1
    window.write(1, 0, bytes(4096))
    window.write(1, 0, bytes(4096), fua=True)
    assert kinds(device) == ["fua", "write", "write", "flush"], "FUA says nothing of the write before"
    window.write(1, 0, bytes(2 * MIB), fua=True)
    assert kinds(device)[-1] == "flush"
    state = window.state()
    assert state.durable_position == state.end_position
    ticket = window.submit(1, 0, bytes(4096), fua=True)
    assert not ticket.done()
    assert ticket.wait() == ticket.lsn == 6 and ticket.done()
    assert window.state().durable_lsn == 6
    crashed = MemoryDevice(size=device.size)
    crashed.data[:] = device.crash(len(device.log))
    assert [e[0] for e in events_of(scan(crashed)[0])] == [1, 2, 3, 4, 5, 6]


def test_a_flush_covers_what_was_written_when_it_began():
    device, window = make(Gate("flush"))
    window.write(1, 0, bytes(4096))
    device.closed = True
    first = in_thread(window.flush)
    assert device.arrived.acquire(timeout=20)
    window.write(1, 0, bytes(4096))
    others = [in_thread(window.flush) for _ in range(5)]
    before = device.flushes
    device.free.release()
    assert first.result() == 1
    assert window.state().durable_lsn == 1
    assert device.arrived.acquire(timeout=20), "the second write needs a flush of its own"
    device.free.release()
    assert [t.result() for t in others] == [2] * 5
    assert device.flushes - before <= 2 and not device.arrived.acquire(blocking=False), "one flush for all five"


def test_who_arrives_during_a_write_is_in_the_next_batch():
    device, window = make(Gate("write"))
    device.closed = True
    leader = in_thread(window.write, 1, 0, b"1" * 4096)
    assert device.arrived.acquire(timeout=20)
    followers = [in_thread(window.write, 1, 4096 * i, b"2" * 4096) for i in range(1, 9)]
    deadline = time.monotonic() + 20
    while window.state().end_lsn < 9:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    device.free.release(2)
    assert leader.result() == 1
    assert sorted(t.result() for t in followers) == list(range(2, 10))
    assert [len(r["events"]) for r in scan(device)[0]] == [1, 8]
    assert window.state().commits == 2


def test_the_log_is_flushed_on_its_own():
    device, window = make(log=40 * MIB)
    for i in range(30):
        window.write(1, 0, bytes([i]) * MIB)
        state = window.state()
        assert state.written_position - state.durable_position <= 16 * MIB
        window.applied(state.written_position, state.written_lsn)
    records = scan(device, log=40 * MIB)[0]
    assert all(r["position"] + r["length"] - r["durable"] <= 16 * MIB for r in records)


def test_commit_and_write_out():
    device, window = make(RecordingDevice(size=START + 16 * MIB))
    device.log.clear()
    tickets = [window.submit(1, 0, bytes(4096)) for _ in range(5)]
    assert kinds(device) == [] and not any(t.done() for t in tickets)
    window.commit(3)
    assert kinds(device) == ["write"] and all(t.done() for t in tickets)
    window.commit(0)
    for call in (
        lambda: window.commit(6),
        lambda: window.write_out(2**63),
        lambda: window.make_durable(2**64 - 1),
        lambda: window.commit(2**64),
    ):
        with pytest.raises(ValueError):
            call()
    window.submit(1, 0, bytes(4096))
    assert window.commit_pending() is True
    assert window.commit_pending() is False
    assert window.state().written_lsn == 6


def test_the_committer_writes_what_nobody_waits_for():
    _, window = make()
    thread = in_thread(window.run_committer)
    position = 0
    for i in range(20):
        ticket = window.submit(1, 0, bytes(4096))
        position = window.wait_written(position, 20)
        assert ticket.done() and window.state().written_lsn == i + 1
    window.close()
    assert thread.result() is None


def test_a_batch_holds_122_records_and_4_mib():
    device, window = make()
    for i in range(130):
        window.submit(1, i * 4096, bytes(4096))
    window.commit_pending()
    for i in range(6):
        window.submit(1, 0, bytes([i]) * MIB)
    window.commit_pending()
    assert [len(r["events"]) for r in scan(device)[0]] == [122, 8, 4, 2]


# -- operations, notes, generations


def test_an_operation_is_a_batch_of_its_own_and_changes_sizes_at_its_place():
    device, window = make(stores=[(1, 8192), (2, 4096)])
    window.submit(1, 0, bytes(4096))
    assert window.submit_operation(b"grow", blocks=[1], sizes=[(1, 4096, True), (3, 4096, False)], dropped=[2]) == 2
    assert [window.store_size(s) for s in (1, 2, 3)] == [4096, None, 4096]
    with pytest.raises(ValueError):
        window.write(1, 4096, bytes(4096))
    window.submit(1, 0, bytes(4096))
    window.commit_pending()
    records, end, *_ = scan(device)
    assert [(r["batch"], r["first_lsn"]) for r in records] == [(1, 1), (2, 2), (1, 3)]
    with pytest.raises(BlockingIOError):
        window.settle(1, wait=False)
    window.settle(3, wait=False)
    window.applied(records[1]["position"], 1)
    waiter = in_thread(window.settle, 1)
    with pytest.raises(BlockingIOError):
        window.settle(1, wait=False)
    window.applied(records[2]["position"], 2)
    assert waiter.result() is None
    window.settle(1, wait=False)
    with window.entry(records[1]["position"]) as entry:
        assert (entry.body, entry.batch_kind, entry.first_lsn, entry.last_lsn, entry.stores()) == (
            b"grow",
            2,
            2,
            2,
            set(),
        )
    for bad in (b"", bytes(4 * MIB + 1)):
        with pytest.raises(ValueError):
            window.submit_operation(bad, blocks=[], sizes=[], dropped=[])
    with pytest.raises(ValueError):
        window.submit_operation(b"x", blocks=[2**32], sizes=[], dropped=[])
    with pytest.raises(OSError, match="operation"):
        window.submit_operation(b"x", blocks=[], sizes=[(i, 1, True) for i in range(100, 1200)], dropped=[])
    window.submit_operation(bytes(4 * MIB), blocks=[], sizes=[], dropped=[])
    assert window.state().end_lsn == 4


def test_notes():
    device, window = make()
    ends = [window.append_note(i, bytes([i]) * n) for i, n in enumerate([0, 1, 4032, 4033, 4 * MIB])]
    assert ends[:4] == [4096, 8192, 12288, 20480]
    window.make_durable(ends[-1])
    assert [(r["note"], len(r["body"])) for r in scan(device)[0]] == [
        (0, 0),
        (1, 1),
        (2, 4032),
        (3, 4033),
        (4, 4 * MIB),
    ]
    with window.entry(ends[2]) as entry:
        assert (entry.body, entry.note, entry.batch_kind, entry.count, bytes(entry.head), entry.stores()) == (
            b"\3" * 4033,
            3,
            0,
            0,
            b"",
            set(),
        )
        assert (entry.digest, entry.item, entry.read_end, entry.generation, bytes(entry.payload)) == (0, 0, 0, b"", b"")
        assert entry.chain == scan(device)[0][3]["chain"]
    for kind, body in ((256, b""), (-1, b""), (1, bytes(4 * MIB + 1))):
        with pytest.raises(ValueError):
            window.append_note(kind, body)


def test_a_generation_begins_with_a_batch():
    device, window = make()
    window.submit(1, 0, bytes(4096))
    window.set_generation(b"f" * 16, b"h" * 16)
    window.submit(1, 0, bytes(4096))
    window.commit_pending()
    assert [(r["generation"], r["group"]) for r in scan(device)[0]] == [
        (forge.GENERATION, forge.GROUP),
        (b"f" * 16, b"h" * 16),
    ]
    with pytest.raises(ValueError):
        window.set_generation(b"short", forge.GROUP)


# -- a secondary


def received(kind=forge.EVENTS, first=5, data=b"r" * 4096, **fields):
    if kind in (forge.COPIED, forge.ITEM):
        fields = {"item": 1} | fields
    record = (forge.OP, 0, 0, data) if kind in (forge.OPERATION, forge.ITEM) else (forge.WRITE, 1, 4096, data)
    return forge.batch([record], kind=kind, first_lsn=first, generation=b"p" * 16, **fields)


def test_received_batches_are_kept_as_they_came():
    device, window = make()
    window.submit(1, 0, bytes(4096))
    came = [
        received(forge.EVENTS, 5, previous=77),
        received(forge.OPERATION, 6, b"op"),
        received(forge.COPIED, 6, b"c" * 4096),
        received(forge.ITEM, 6, b"item"),
    ]
    places, lsns = [], []
    for head, payload in came:
        places.append(window.append_received(head, payload, blocks=[1] if len(places) == 1 else ()))
        lsns.append(window.state().end_lsn)
    assert lsns == [5, 6, 6, 6]
    window.commit_pending()
    for (head, payload), (position, end) in zip(came, places, strict=True):
        with window.entry(position) as entry:
            assert (bytes(entry.head), bytes(entry.payload), entry.next_position, entry.generation) == (
                head,
                payload,
                end,
                b"p" * 16,
            )
    records = scan(device)[0]
    assert [r["position"] for r in records[1:]] == [p for p, _ in places]
    with pytest.raises(BlockingIOError):
        window.settle(1, wait=False)
    window.write(1, 0, bytes(4096))  # a takeover: its events follow those that were received
    last = scan(device)[0][-1]
    assert (last["first_lsn"], last["previous"]) == (7, records[2]["digest"])
    assert window.overlay(1, 0, 8192) == (bytes(4096) + b"c" * 4096, b"\1\1"), "order is by place, not by LSN"


def test_received_batches_that_do_not_fit_together():
    _, window = make()
    head, payload = received()
    wrong = [
        (head[:-1], payload),
        (head + b"\0", payload),
        (head, payload[:-1]),
        (head, payload + b"\0"),
        (b"", b""),
        (head[:100], payload),
        (bytes(5000), b""),
        forge.batch([]),
        forge.batch([(forge.WRITE, 1, 0, bytes(4096))], payload_at=4096),
        forge.batch([(forge.WRITE, 1, 0, bytes(4096))], payload_at=2**32 - 4096),
        forge.batch([(forge.ZERO, 1, 0, 0)]),
        forge.batch([(forge.ZERO, 1, 0, 2 * MIB)]),
        forge.batch([(forge.ZERO, 1, 2**63, 4096)]),
        forge.batch([(forge.ZERO, 1, 100, 4096)]),
        forge.batch([(9, 1, 0, 4096)]),
        forge.batch([(forge.OP, 0, 0, b"x")], kind=forge.OPERATION, payload_at=1),
    ]
    for head, payload in wrong:
        with pytest.raises(ValueError):
            window.append_received(head, payload)
    assert window.state().end_position == 0


def test_set_lsn_jumps():
    device, window = make()
    window.write(1, 0, bytes(4096))
    window.set_lsn(100)
    assert window.state().written_lsn == 100
    assert window.write(1, 0, bytes(4096)) == 101
    window.submit(1, 0, bytes(4096))
    window.set_lsn(7)
    window.submit(1, 0, bytes(4096))
    window.flush()
    state = window.state()
    assert (state.end_lsn, state.written_lsn, state.durable_lsn) == (8, 8, 8)
    assert [r["first_lsn"] for r in scan(device)[0]] == [1, 101, 102, 8]
    with pytest.raises(ValueError):
        window.set_lsn(2**64)


# -- readers


def test_overlay_shows_the_newest_and_forgets_what_is_applied():
    _, window = make(alignment=512)
    window.write(1, 0, b"a" * 4096)
    first = window.state().end_position
    window.write(1, 512, b"b" * 512)
    window.zero(1, 1024, 512)
    window.write(2, 0, bytes(512)) if window.store_size(2) else None
    data, have = window.overlay(1, 0, 5120)
    assert data == b"a" * 512 + b"b" * 512 + bytes(512) + b"a" * 2560 + bytes(1024)
    assert have == b"\1" * 8 + b"\0" * 2
    window.applied(first, 1)
    assert window.overlay(1, 0, 4096)[1] == b"\0\1\1" + bytes(5)
    window.applied(window.state().end_position, 3)
    assert window.overlay(1, 0, 4096)[1] == bytes(8)
    assert window.state().ring_used == 0
    for offset, length in ((1, 512), (0, 100), (-512, 512), (0, 2**40)):
        with pytest.raises(ValueError):
            window.overlay(1, offset, length)


@pytest.mark.parametrize("alignment", [512, 4096])
def test_overlay_with_a_crowded_index(alignment):
    """Many scattered blocks, written again and again, while others are applied: cells move about when others go."""
    _, window = make(alignment=alignment, log=64 * MIB, stores=[(1, 1 << 40), (2, 1 << 40)])
    rng, pending, batches = random.Random(7), {}, []
    places = [(rng.choice((1, 2)), rng.randrange(1 << 27)) for _ in range(5000)]
    for n in range(9000):
        store, block = rng.choice(places)
        window.submit(store, block * alignment, n.to_bytes(4, "little") * (alignment // 4), wait=False)
        batches.append(((store, block), n))
        pending[store, block] = n
        if n % 60 == 59:
            window.commit_pending()
        if n % 60 == 59 and len(batches) > 2400:  # about 2400 are pending
            with window.entry(window.state().applied_position) as entry:
                position, lsn, count = entry.next_position, entry.last_lsn, entry.count
            window.applied(position, lsn)
            for key, version in batches[:count]:
                if pending.get(key) == version:
                    del pending[key]
            del batches[:count]
        if n % 900 == 899:
            for store, block in places:
                data, have = window.overlay(store, block * alignment, alignment)
                expected = pending.get((store, block))
                assert have == (b"\0" if expected is None else b"\1")
                assert expected is None or data[:4] == expected.to_bytes(4, "little")


def test_what_is_submitted_is_seen_before_it_is_written():
    _, window = make()
    window.submit(1, 0, b"x" * 4096)
    assert window.overlay(1, 0, 4096) == (b"x" * 4096, b"\1")
    assert window.entry(0) is None


def test_entries_stay_while_somebody_holds_them():
    _, window = make()
    window.write(1, 0, b"1" * 4096)
    window.write(1, 0, b"2" * 4096)
    end = window.state().end_position
    entry, other = window.entry(0), window.entry(0)
    view = entry.payload
    entry.release()
    window.applied(end, 2)
    window.set_tail(end)
    assert window.state().ring_used == end, "the ring is freed in order, and the first is pinned"
    other.release()
    other.release()
    assert window.state().ring_used == end and bytes(view) == b"1" * 4096, "the view keeps it"
    with pytest.raises(TypeError):
        view[0] = 1
    with pytest.raises(ValueError, match="released"):
        _ = entry.position
    view.release()
    assert window.state().ring_used == 0


def test_entries_are_read_back():
    device, window = make(log=LONGEST + MIB)
    window.write(1, 0, b"1" * 4096)
    window.append_note(3, b"n" * 100000)
    window.write(1, 0, b"2" * 2 * MIB)
    window.write_out(window.state().end_position)
    before = [
        (e.position, e.length, e.kind, e.note, e.first_lsn, e.last_lsn, e.body, bytes(e.payload), e.digest)
        for e in entries(window)
    ]
    window.applied(window.state().end_position, 3)
    assert window.state().ring_used == 0
    assert [
        (e.position, e.length, e.kind, e.note, e.first_lsn, e.last_lsn, e.body, bytes(e.payload), e.digest)
        for e in entries(window)
    ] == before
    for position in (512, 4096, BLOCK * 3):  # inside a record
        with pytest.raises(ValueError):
            window.entry(position)
    device.data[START + 5000] ^= 1
    with pytest.raises(ValueError, match="not a valid record"):
        window.entry(0)
    window.set_tail(8192)
    for position in (0, window.state().end_position + BLOCK, 2**64 - 1):
        with pytest.raises(ValueError):
            window.entry(position)


def entries(window, position=0):
    while (entry := window.entry(position)) is not None:
        position = entry.next_position
        yield entry


def test_a_failing_read_back_is_an_error():
    device = FailingDevice(size=START + 16 * MIB, kind="read", beyond=0)
    _, window = make(device)
    window.write(1, 0, bytes(4096))
    window.applied(8192, 1)
    with pytest.raises(OSError, match="failing"):
        window.entry(0)
    window.write(1, 0, bytes(4096))  # a read that fails is not the end of the log


def test_applied_and_tail_are_positions_of_records():
    _, window = make()
    window.write(1, 0, bytes(8192))
    window.submit(1, 0, bytes(4096))
    for position in (4096, 12288 + 4096, 2**64 - 1):
        with pytest.raises(ValueError):
            window.applied(position, 1)
    with pytest.raises(ValueError):
        window.set_tail(12288)
    window.applied(12288, 1)
    window.set_tail(12288)
    for call in (lambda: window.applied(0, 0), lambda: window.set_tail(0), lambda: window.set_tail(2**64)):
        with pytest.raises(ValueError):
            call()


# -- room


def advance(window):
    window.write_out(window.state().end_position)
    state = window.state()
    window.applied(state.written_position, state.written_lsn)
    window.set_tail(state.written_position)


def test_a_full_log_says_so_and_notes_use_the_reserve():
    reserve = 40 * BLOCK
    log = LONGEST + 30 * BLOCK + reserve
    _, window = make(log=log, reserve=reserve)
    with pytest.raises(BlockingIOError):
        while True:
            window.submit(1, 0, bytes(64 * 1024), wait=False)
    full = window.state()
    assert log - reserve - 64 * 1024 - BLOCK <= full.end_position <= log - reserve
    for call in (
        lambda: window.submit_operation(bytes(68 * 1024), blocks=[], sizes=[], dropped=[], wait=False),
        lambda: window.append_received(*received(data=bytes(68 * 1024)), wait=False),
        lambda: window.write_held(1, 0, bytes(68 * 1024), wait=False),
    ):
        with pytest.raises(BlockingIOError):
            call()
    assert window.state().end_lsn == full.end_lsn
    notes = 0
    with pytest.raises(OSError, match="full") as error:
        while True:
            window.append_note(1, b"n")
            notes += 1
    assert error.value.errno == errno.ENOSPC
    assert notes == (log - full.end_position) // BLOCK
    advance(window)
    window.submit(1, 0, bytes(64 * 1024), wait=False)


def test_a_full_ring_says_so():
    _, window = make(log=64 * MIB)
    count = 0
    with pytest.raises(BlockingIOError):
        while True:
            window.submit(1, 0, bytes(MIB), wait=False)
            count += 1
    assert 15 <= count <= 16
    window.append_note(1, bytes(MIB))  # notes have memory of their own
    advance(window)
    window.submit(1, 0, bytes(MIB), wait=False)


def test_an_open_batch_does_not_grow_over_what_is_not_applied():
    _, window = make(log=64 * MIB)
    window.submit(1, 0, bytes(5 * MIB))
    advance(window)  # the oldest record lies in the middle of the ring from here on
    oldest = os.urandom(8192)
    window.write(1, 0, oldest)
    with pytest.raises(BlockingIOError):
        while True:
            window.submit(1, MIB, bytes(60 * 1024), wait=False)
    state = window.state()
    assert state.ring_size - MIB < state.ring_used <= state.ring_size
    assert window.overlay(1, 0, 8192) == (oldest, b"\1\1")


def test_zeros_need_no_ring_but_are_bounded():
    _, window = make(log=64 * MIB, stores=[(1, 1 << 40)])
    at = 0
    with pytest.raises(BlockingIOError):
        while True:
            window.zero(1, at, MIB, wait=False)
            at += MIB
    assert at // 4096 <= 4 * RING // 4096 + 256
    window.submit(1, 0, bytes(4096), wait=False)
    advance(window)
    assert window.overlay(1, 0, 8 * MIB)[1] == bytes(2048)
    window.zero(1, at, MIB, wait=False)


def test_all_or_nothing_without_waiting():
    _, window = make(log=64 * MIB)
    before = window.state().end_lsn
    with pytest.raises(BlockingIOError):
        window.submit(1, 0, bytes(17 * MIB), wait=False)
    assert window.state().end_lsn == before
    assert window.submit(1, 0, bytes(10 * MIB), wait=False).lsn == 10


def waits(thread, seconds):
    thread.join(seconds)
    return thread.is_alive()


def test_a_bound_holds_writes_back_and_nothing_else():
    _, window = make(log=64 * MIB)
    window.submit(1, 0, bytes(8192))
    end = window.state().end_position
    window.set_bound(end + 1)
    window.submit(1, 0, bytes(8192))  # the end was below the bound
    state = window.state()
    assert state.end_position > end + 1
    with pytest.raises(BlockingIOError):
        window.submit(1, 0, bytes(8192), wait=False)
    with pytest.raises(BlockingIOError):
        window.zero(1, 0, 4096, wait=False)
    assert window.state().end_lsn == state.end_lsn
    writer = in_thread(lambda: window.write(1, 0, b"held".ljust(4096)))
    lsn = window.submit_operation(b"an operation", blocks=[], sizes=[], dropped=[])
    window.append_note(1, b"a note")
    assert waits(writer, 0.2)
    window.set_bound(window.state().end_position)
    assert waits(writer, 0.1), "the bound is where the end is"
    window.set_bound(None)
    assert writer.result(20) > lsn
    window.set_bound(0)
    large = in_thread(lambda: window.submit(1, 0, bytes(3 * MIB)).lsn)
    assert waits(large, 0.1)
    window.set_bound(window.state().end_position + 1)  # one write that has begun gets all of its place
    assert large.result(20) == window.state().end_lsn
    for bad in (-1, 2**64, "x", 1.5):
        with pytest.raises((ValueError, TypeError, OverflowError)):
            window.set_bound(bad)


def test_who_is_held_by_a_bound_hears_of_the_end():
    _, window = make(log=64 * MIB)
    window.set_bound(0)
    writer = in_thread(lambda: window.write(1, 0, bytes(4096)))
    assert waits(writer, 0.1)
    window.fail(errno.EIO)
    assert isinstance(writer.result(20), OSError)


def test_who_finds_no_room_in_the_log_calls_the_applier():
    """A bound is nothing that applying helps with; a full log, or an index that is full of zeros, is."""
    device, window = make(log=LONGEST + 64 * 1024, stores=((1, 1 << 30),))
    window.set_bound(0)
    bound = in_thread(lambda: window.write(1, 0, bytes(4096)))
    assert waits(bound, 0.1) and window.state()[-2:] == (0, False)
    window.set_bound(None)
    bound.result()
    window.submit(1, 0, bytes(3 * MIB))
    window.commit_pending()
    state = window.state()
    assert window.wait_written(state.end_position, 0.01, wants=0) == state.end_position
    applier = in_thread(lambda: window.wait_written(state.end_position, 20, wants=0))
    sender = in_thread(lambda: window.wait_written(state.end_position, 20))
    writer = in_thread(lambda: window.write(1, 0, bytes(MIB + 65536)))
    assert applier.result() == window.state().written_position, "it is called"
    assert window.state().wants >= 1 and window.state().wanting and waits(writer, 0.1)
    assert window.wait_written(state.end_position + 9 * MIB, 20, wants=0) < 9 * MIB, "it has been called before it asked"
    advance(window)
    window.set_tail(window.state().applied_position)
    writer.result()
    assert not window.state().wanting
    assert sender.result() > state.end_position, "who has not asked hears of what is written only"


def test_who_finds_no_room_for_zeros_calls_the_applier():
    _, window = make(log=64 * MIB, ring=RING, stores=((1, 1 << 30),))
    zeros = in_thread(lambda: [window.zero(1, offset, MIB) for offset in range(0, 8 * RING, MIB)])
    while not window.state().wanting:
        assert zeros.is_alive()
    assert window.state().ring_used < RING // 2
    window.fail(errno.EIO)
    assert isinstance(zeros.result(), OSError) and not window.state().wanting


def test_who_waits_for_room_is_let_in_by_applied_and_set_tail():
    device, window = make(log=LONGEST + 64 * 1024)
    data = [os.urandom(64 * 1024) for _ in range(300)]
    writer, committer = in_thread(lambda: [window.submit(1, 0, d).lsn for d in data]), in_thread(window.run_committer)
    seen, position = [], 0
    while len(seen) < len(data):
        assert window.wait_written(position, 20) > position
        while (entry := window.entry(position)) is not None:
            with entry:
                seen += [bytes(entry.payload[r * 65536 : (r + 1) * 65536]) for r in range(entry.count)]
                position, lsn = entry.next_position, entry.last_lsn
        window.applied(position, lsn)
        window.set_tail(position)
    assert writer.result() == list(range(1, 301))
    assert seen == data
    window.close()
    assert committer.result() is None


@pytest.mark.parametrize("alignment", [512, 4096])
def test_a_tiny_log_splits_smaller_and_refuses_what_never_fits(alignment):
    log = 24 * BLOCK
    device, window = make(log=log, reserve=4 * BLOCK, alignment=alignment)
    assert window.write(1, 0, bytes(36 * 1024)) == 1
    with pytest.raises(BlockingIOError):
        window.submit(1, 0, bytes(72 * 1024), wait=False)
    advance(window)
    data = os.urandom(72 * 1024)
    writer = in_thread(window.write, 1, 0, data)
    position, got = window.state().applied_position, b""
    while len(got) < len(data):
        position = window.wait_written(position, 20)
        got += b"".join(bytes(e.payload) for e in entries(window, window.state().applied_position))
        window.applied(position, 9)
        window.set_tail(position)
    assert got == data and writer.result() == 3
    for call in (
        lambda: window.submit_operation(bytes(80 * 1024), blocks=[], sizes=[], dropped=[]),
        lambda: window.append_received(*received(data=bytes(80 * 1024))),
    ):
        with pytest.raises(OSError) as error:
            call()
        assert error.value.errno == errno.ENOSPC


# -- holding blocks


def test_held_blocks_keep_others_out():
    _, window = make()
    window.hold_blocks(1, 4096, 8192)
    for offset, length in ((0, 8192), (8192, 4096), (0, 65536)):
        with pytest.raises(BlockingIOError):
            window.submit(1, offset, bytes(length), wait=False)
        with pytest.raises(BlockingIOError):
            window.hold_blocks(1, offset, length, wait=False)
    assert window.write(1, 0, bytes(4096)) == 1
    assert window.write(1, 12288, bytes(4096)) == 2
    waiters = [in_thread(window.write, 1, 4096, b"w" * 4096), in_thread(window.hold_blocks, 1, 8192, 4096)]
    assert window.write_held(1, 4096, b"h" * 8192, wait=False) == 3
    assert all(t.is_alive() for t in waiters)
    window.release_blocks(1, 4096, 8192)
    assert [t.result() for t in waiters] == [4, None]
    assert window.overlay(1, 4096, 8192)[0] == b"w" * 4096 + b"h" * 4096
    for call in (lambda: window.release_blocks(1, 4096, 8192), lambda: window.release_blocks(1, 0, 2**64)):
        with pytest.raises(ValueError):
            call()
    for i in range(40):
        window.hold_blocks(1, MIB + i * 4096, 4096)


# -- failure and the end


@pytest.mark.parametrize("kind", ["write", "flush"])
def test_a_failure_is_final(kind):
    device = FailingDevice(size=START + 16 * MIB, kind=kind, calls={2}, code=errno.ENOSPC)
    _, window = make(device)
    done = 0
    with pytest.raises(OSError, match="failing") as error:
        for _ in range(5):
            window.write(1, 0, bytes(4096))
            window.flush()
            done += 1
    assert error.value.errno == errno.ENOSPC
    state = window.state()
    assert (state.failed, state.durable_lsn) == (errno.ENOSPC, done)
    assert state.written_lsn == done + (kind == "flush")
    for call in (
        lambda: window.write(1, 0, bytes(4096)),
        lambda: window.append_note(1, b""),
        lambda: window.wait_durable(state.end_position, 20),
        lambda: window.wait_applied(99),
        lambda: window.make_durable(state.end_position),
        lambda: window.hold_blocks(1, 0, 4096),
        lambda: window.submit_operation(b"x", blocks=[], sizes=[], dropped=[]),
    ):
        with pytest.raises(OSError):
            call()
    assert window.run_committer() is None
    assert window.overlay(1, 0, 4096)[1] == b"\1", "what it holds can still be read"


def test_a_device_error_is_never_taken_for_misuse():
    for code in (errno.EINVAL, errno.ENOENT, errno.EAGAIN, errno.ERANGE, errno.EACCES, errno.ENOSPC):
        _, window = make(FailingDevice(size=START + 16 * MIB, kind="write", calls={0}, code=code))
        for _ in range(2):
            with pytest.raises(OSError) as error:
                window.write(1, 0, bytes(4096))
            assert error.value.errno == code


def test_every_waiter_gets_the_failure():
    device, window = make(Gate("write"))
    device.closed = True
    threads = [in_thread(window.write, 1, 4096 * i, bytes(4096)) for i in range(4)]
    threads += [in_thread(window.wait_applied, 50), in_thread(window.wait_durable, 0, 20), in_thread(window.flush)]
    assert device.arrived.acquire(timeout=20)
    window.fail(errno.EIO)
    device.free.release(10)
    assert {getattr(t.result(), "errno", None) for t in threads[:-1]} == {errno.EIO}
    assert window.state().written_position == 0
    with pytest.raises(ValueError):
        window.fail(2**40)


def test_close_wakes_everyone():
    _, window = make(log=LONGEST)
    window.submit_operation(b"x", blocks=[1], sizes=[], dropped=[])
    window.hold_blocks(1, 0, 4096)
    window.commit_pending()
    beyond = window.state().end_position
    threads = [
        in_thread(window.wait_applied, 5),
        in_thread(window.settle, 1),
        in_thread(window.write, 1, 0, bytes(4096)),
        in_thread(window.hold_blocks, 1, 0, 4096),
        in_thread(window.submit_operation, bytes(4 * MIB), blocks=[], sizes=[], dropped=[]),
    ]
    waits, committer = (
        [in_thread(window.wait_durable, beyond, 20), in_thread(window.wait_written, beyond, 20)],
        in_thread(window.run_committer),
    )
    assert all(t.is_alive() for t in threads)
    window.close()
    window.close()
    assert [t.result().errno for t in threads] == [errno.ESHUTDOWN] * 5
    assert [t.result() for t in waits] == [0, beyond]
    assert committer.result() is None
    with pytest.raises(OSError, match="closed") as error:
        window.write(1, 4096, bytes(4096))
    assert error.value.errno == errno.ESHUTDOWN


def test_close_waits_for_the_write_in_flight():
    device, window = make(Gate("write"))
    device.closed = True
    writer = in_thread(window.write, 1, 0, bytes(4096))
    assert device.arrived.acquire(timeout=20)
    closer = in_thread(window.close)
    while not window.state().failed:
        time.sleep(0.001)
    assert closer.is_alive()
    device.free.release()
    assert closer.result() is None
    assert isinstance(writer.result(), OSError), "what was not acknowledged before close() is not afterwards"


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_closed_window_gives_its_ring_back(kept):
    """But not what somebody holds, which stays as it is."""

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    _, window = make(log=64 * MIB, ring=64 * MIB)
    for i in range(12):
        window.write(1, i * 2 * MIB, bytes([i + 1]) * 2 * MIB)
        window.commit_pending()
    state, places = window.state(), [found[0] for found in walk(window)[0]]
    held = [window.entry(place) for place in places[len(places) - kept:]]
    window.applied(state.end_position, state.end_lsn)
    before = resident()
    window.close()
    given = before - resident()
    assert given >= (24 - 2 * kept - 1) * MIB
    for i, entry in enumerate(held, 12 - kept):
        with entry:
            assert bytes(entry.payload) == bytes([i + 1]) * 2 * MIB


def test_a_signal_ends_a_wait():
    _, window = make()

    def interrupt(*_):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        for wait in (
            lambda: window.wait_applied(9),
            lambda: window.wait_durable(0, 20),
            lambda: window.wait_applied(9, 20),
        ):
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            began = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                wait()
            assert time.monotonic() - began < 10
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_waits_with_a_time():
    _, window = make()
    assert window.wait_applied(0) is True
    assert window.wait_applied(1, 0) is False
    assert window.wait_applied(1, 0.15) is False
    assert window.wait_durable(0, 0) == window.wait_written(0, 0.01) == 0
    waiter = in_thread(window.wait_applied, 1)
    window.write(1, 0, bytes(4096))
    window.applied(8192, 1)
    assert waiter.result() is True


# -- sync mode


def test_sync_mode_waits_for_the_peer():
    device, window = make(RecordingDevice(size=START + 16 * MIB))
    window.write(1, 0, bytes(4096))  # not durable, so that FUA alone does not make the next one so
    window.set_sync(1)
    window.set_lsn(0)
    writer = in_thread(window.write, 1, 0, bytes(4096))
    assert window.wait_durable(0, 20) == 16384, "only what is durable is sent, so the writer sees to it"
    assert writer.is_alive()
    window.set_peer(1)
    assert writer.result() == 1
    ticket = window.submit(1, 0, bytes(4096))
    with pytest.raises(TimeoutError):
        ticket.wait(0.01)
    with pytest.raises(TimeoutError):
        ticket.wait(0)
    assert not ticket.done() and window.state().durable_lsn == 2
    waiters = [
        in_thread(window.flush),
        in_thread(window.commit, 2),
        in_thread(ticket.wait),
        in_thread(window.zero, 1, 0, 4096),
    ]
    window.set_peer(2)
    assert [t.result() for t in waiters[1:3]] == [None, 2]
    window.set_sync(0)
    assert waiters[0].result() in (2, 3) and waiters[3].result() == 3
    assert ticket.done() and window.state().peer_lsn == 2
    with pytest.raises(ValueError):
        window.set_sync(2)
    with pytest.raises(ValueError):
        window.set_peer(-1)


# -- recovery


def test_loaded_batches_are_shown_until_they_are_applied():
    device, window = make()
    window.write(1, 0, b"a" * 4096)
    window.append_note(1, b"between")
    window.write(1, 4096, b"b" * 4096)
    window.write(1, 0, b"c" * 4096)
    window.close()
    records, end, chain, *_ = scan_log(device, log_offset=START, log_size=16 * MIB, position=0, chain=5, alignment=4096)
    again = Window(ring=RING, alignment=4096, reserve=0)
    for position, record in records[2:]:
        again.load(record, blocks=[1] if position == records[3][0] else ())
        with pytest.raises(ValueError):
            again.load(record)
    for bad in (records[0][1], records[1][1], b"", bytes(8192), records[2][1][:-4096], records[2][1] + bytes(4096)):
        with pytest.raises(ValueError):
            again.load(bad)
    options = OPEN | {"position": end, "chain": chain, "lsn": 3, "applied_lsn": 1, "seed": 100}
    for bad in ({"applied_position": records[3][0]}, {"position": records[3][0]}):
        with pytest.raises(ValueError):
            again.open(device, log_size=16 * MIB, **options | {"applied_position": records[2][0]} | bad)
    again.open(device, log_size=16 * MIB, **options | {"applied_position": records[2][0]})
    again.set_store(1, 64 * MIB)
    assert again.overlay(1, 0, 8192) == (b"c" * 4096 + b"b" * 4096, b"\1\1")
    assert [p for p, *_ in walk(again)[0]] == [p for p, _ in records]
    with pytest.raises(BlockingIOError):
        again.settle(1, wait=False)
    assert again.write(1, 0, b"d" * 4096) == 4
    assert again.overlay(1, 0, 4096)[0] == b"d" * 4096
    again.applied(end, 3)
    assert again.overlay(1, 0, 8192)[1] == b"\1\0"
    again.settle(1, wait=False)
    parsed, new_end, _, _, durable = scan(device)
    assert [r["seed"] for r in parsed] == [99] * 4 + [100] and durable == end and new_end == end + 8192


# -- threads


@pytest.mark.parametrize("alignment", [512, 4096])
def test_eight_writers(alignment):
    log = 8 * MIB
    device, window = make(alignment=alignment, log=log, reserve=64 * 1024)
    per, writers = 500, 8
    lsns, wrong, applied, stop = [[] for _ in range(writers)], [], [], threading.Event()

    def write(who):
        rng = random.Random(who)
        for n in range(per):
            length = alignment * rng.choice((1, 1, 1, 2, 5, 16))
            offset = (who << 20) + alignment * rng.randrange(32)
            data = (bytes([who]) + n.to_bytes(3, "little")) * (length // 4)
            lsns[who].append((window.write(1, offset, data, fua=n % 50 == 0), offset, data))
            got, have = window.overlay(1, offset, length)
            if any(have[i] and got[i * alignment : (i + 1) * alignment] != data[:alignment] for i in range(len(have))):
                wrong.append((who, n))

    def apply():
        position = lsn = 0
        while not (stop.is_set() and window.state().written_position == position):
            window.wait_written(position, 0.05)
            while (entry := window.entry(position)) is not None:
                with entry:
                    payload, records = bytes(entry.payload), bytes(entry.head)[128:]
                    for i in range(entry.count):
                        r = forge.RECORD.unpack_from(records, 32 * i)
                        applied.append((entry.first_lsn + i, r[4], payload[r[7] : r[7] + r[5]]))
                    position, lsn = entry.next_position, entry.last_lsn
            window.applied(position, lsn)
            window.set_tail(position)

    threads = [in_thread(write, who) for who in range(writers)]
    applier = in_thread(apply)
    assert [t.result(60) for t in threads] == [None] * writers
    stop.set()
    assert applier.result() is None
    assert wrong == []
    everything = sorted(one for some in lsns for one in some)
    assert [one[0] for one in everything] == list(range(1, writers * per + 1)), "distinct and without gaps"
    assert all(some == sorted(some) for some in lsns)
    assert applied == everything
    state = window.state()
    assert state.ring_used == 0 and state.records == writers * per


def test_a_reader_never_sees_what_is_still_being_copied():
    """It sees for each block a version that is whole, and none older than the last one that had returned."""
    _, window = make(log=64 * MIB)
    returned, begun, wrong, stop = [0], [0], [], threading.Event()

    def write():
        for n in range(1, 201):
            data = n.to_bytes(8, "little") * (MIB // 8)
            begun[0] = n
            window.submit(1, 0, data)
            returned[0] = n
            if n % 10 == 0:
                advance(window)
        stop.set()

    def read():
        while not stop.is_set():
            least = returned[0]
            data, have = window.overlay(1, 0, MIB)
            for i in range(256):
                first, last = data[4096 * i : 4096 * i + 8], data[4096 * i + 4088 : 4096 * i + 4096]
                if have[i] and not (first == last and least <= int.from_bytes(first, "little") <= begun[0]):
                    wrong.append((i, least, first, last))

    threads = [in_thread(write), in_thread(read), in_thread(read)]
    assert [t.result(60) for t in threads] == [None] * 3
    assert wrong == []


def test_memory_of_the_ring_is_used_again_without_a_trace():
    """Where an item stood, an event stands a lap later: nothing of the item's head shows through."""
    device, window = make(log=64 * MIB)
    head, payload = forge.batch([(forge.WRITE, 1, 0, b"i" * 4096)], kind=forge.COPIED, item=3, read_end=9)
    for n in range(3 * RING // 8192):
        if n < RING // 8192:
            window.append_received(head, payload)
        else:
            window.write(1, 0, b"e" * 4096)
        if n % 100 == 99:
            advance(window)
        if n == RING // 8192 - 1:
            advance(window)
            state = window.state()
    records, end, *_ = scan(device, 64 * MIB, 4096, state.written_position, state.chain)
    assert end == window.state().written_position
    assert len(records) == 3 * RING // 8192 - RING // 8192 and {r["item"] for r in records} == {0}


# -- all of it against the twin


class Disk(MemoryDevice):
    """Keeps what a flush has not covered, so that a power loss can take it."""

    def __init__(self, size):
        super().__init__("disk", size)
        self.stable, self.cache = bytearray(size), []

    def do_write(self, ios):
        super().do_write(ios)
        for offset, data, fua in ios:
            if fua:
                self.stable[offset : offset + len(data)] = data
            else:
                self.cache += [(offset + i, data[i : i + 512]) for i in range(0, len(data), 512)]

    def do_flush(self):
        for offset, data in self.cache:
            self.stable[offset : offset + len(data)] = data
        self.cache.clear()

    def power_loss(self, rng):
        keep = rng.choice((0.0, 0.5, 0.97, 1.0))
        for offset, data in self.cache:
            if rng.random() < keep:
                self.stable[offset : offset + len(data)] = data
        self.cache.clear()
        self.data[:] = self.stable


class LogMachine(RuleBasedStateMachine):
    """Writes, notes, items, commits, applies, crashes. Twin: `items` in order, and what they leave in the stores."""

    @initialize(alignment=st.sampled_from((512, 4096)), extra=st.integers(0, 40), seed=st.integers(0, 2**32))
    def begin(self, alignment, extra, seed):
        self.unit, self.rng = alignment, random.Random(seed)
        self.log, self.reserve = LONGEST + (16 + extra) * BLOCK, 16 * BLOCK
        self.disk = Disk(START + self.log)
        self.disk.data[:] = self.disk.stable[:] = random.Random(seed).randbytes(4096) * (self.disk.size // 4096)
        self.items = []  # (lsn or None, what, ...) in the order of their places
        self.home = {}  # (store, block) -> bytes: what an applier has written
        self.applied_items = 0
        self.tail = self.applied = 0
        self.chain_at = {0: 5}
        self.lsn = self.applied_lsn = self.starts = 0
        self.item_number = 0
        self.window = Window(ring=RING, alignment=alignment, reserve=self.reserve)
        self.open(0, 5, 0)

    def open(self, position, chain, previous):
        self.starts += 1
        self.window.open(
            self.disk,
            log_offset=START,
            log_size=self.log,
            position=position,
            tail=self.tail,
            chain=chain,
            lsn=self.lsn,
            applied_position=self.applied,
            applied_lsn=self.applied_lsn,
            group=forge.GROUP,
            generation=forge.GENERATION,
            seed=self.starts,
            previous=previous,
        )
        for store in (1, 2):
            self.window.set_store(store, 64 * MIB)

    def data(self, blocks):
        return self.rng.randbytes(8) * (self.unit * blocks // 8)

    def try_(self, call):
        try:
            result = call()
        except BlockingIOError:
            return None
        assert self.window.state().end_position <= self.tail + self.log - self.reserve, "that part is the notes'"
        return result

    @rule(
        store=st.sampled_from((1, 2)),
        at=st.integers(0, 40),
        blocks=st.integers(1, 20),
        fua=st.booleans(),
        how=st.sampled_from("sswh"),
    )
    def write(self, store, at, blocks, fua, how):
        data, offset = self.data(blocks), at * self.unit
        if how == "s":
            ticket = self.try_(lambda: self.window.submit(store, offset, data, fua=fua, wait=False))
            lsn = ticket and ticket.lsn
        elif how == "h":
            self.window.hold_blocks(store, offset, len(data), wait=False)
            assert self.try_(lambda: self.window.submit(store, offset, data, wait=False)) is None
            lsn = self.try_(lambda: self.window.write_held(store, offset, data, fua=fua, wait=False))
            self.window.release_blocks(store, offset, len(data))
        else:
            lsn = self.try_(lambda: self.window.write_held(store, offset, data, fua=fua, wait=False))
        if lsn:
            self.lsn += 1
            assert lsn == self.lsn
            self.items.append((lsn, forge.WRITE, store, offset, data))

    @rule(store=st.sampled_from((1, 2)), blocks=st.integers(1, 900))
    def large(self, store, blocks):
        data = self.data(blocks * 4096 // self.unit)
        ticket = self.try_(lambda: self.window.submit(store, 0, data, wait=False))
        if ticket:
            for i in range(0, len(data), MIB):
                self.lsn += 1
                self.items.append((self.lsn, forge.WRITE, store, i, data[i : i + MIB]))
            assert ticket.lsn == self.lsn

    @rule(store=st.sampled_from((1, 2)), at=st.integers(0, 40), blocks=st.integers(1, 600), discard=st.booleans())
    def zero(self, store, at, blocks, discard):
        length = blocks * self.unit
        if self.try_(lambda: self.window.zero(store, at * self.unit, length, discard=discard, wait=False)):
            for i in range(0, length, MIB):
                self.lsn += 1
                self.items.append(
                    (
                        self.lsn,
                        forge.DISCARD if discard else forge.ZERO,
                        store,
                        at * self.unit + i,
                        min(MIB, length - i),
                    )
                )

    @rule(length=st.integers(1, 9000))
    def operation(self, length):
        body = self.rng.randbytes(length)
        lsn = self.try_(lambda: self.window.submit_operation(body, blocks=[], sizes=[], dropped=[], wait=False))
        if lsn:
            self.lsn += 1
            assert lsn == self.lsn
            self.items.append((lsn, forge.OP, 0, 0, body))

    @rule(length=st.integers(0, 9000))
    def note(self, length):
        body = self.rng.randbytes(length)
        try:
            self.window.append_note(4, body)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            return
        self.items.append((None, "note", 4, body))

    @rule(store=st.sampled_from((1, 2)), at=st.integers(0, 40), blocks=st.integers(1, 4))
    def copied(self, store, at, blocks):
        data = self.data(blocks)
        head, payload = forge.batch(
            [(forge.WRITE, store, at * self.unit, data), (forge.ZERO, store, (at + blocks) * self.unit, self.unit)],
            kind=forge.COPIED,
            first_lsn=self.lsn,
            item=1,
        )
        if self.try_(lambda: self.window.append_received(head, payload, wait=False)):
            self.items.append((None, forge.WRITE, store, at * self.unit, data))
            self.items.append((None, forge.ZERO, store, (at + blocks) * self.unit, self.unit))

    @rule()
    def commit(self):
        self.window.commit_pending()

    @rule()
    def durable(self):
        self.window.make_durable(self.window.state().end_position)

    @rule(most=st.integers(1, 8))
    def apply(self, most):
        for _ in range(most):
            entry = self.window.entry(self.applied)
            if entry is None or entry.next_position > self.window.state().durable_position:
                break  # no store is written before the log is durable
            with entry:
                for one in self.decode(entry):
                    assert one == self.items[self.applied_items]
                    self.perform(self.home, one)
                    self.applied_items += 1
                self.applied = entry.next_position
                if entry.batch_kind in (1, 2):
                    self.applied_lsn = entry.last_lsn
        self.window.applied(self.applied, self.applied_lsn)

    @precondition(lambda self: self.tail < self.applied)
    @rule()
    def forget(self):
        with_chain = self.window.entry(self.applied)
        self.tail = self.applied
        self.chain_at[self.tail] = with_chain.chain if with_chain else self.chain_now()
        self.window.set_tail(self.tail)

    def chain_now(self):
        self.window.commit_pending()
        if self.window.state().written_position != self.applied:
            return self.window.entry(self.applied).chain
        return self.window.state().chain

    def decode(self, entry):
        if entry.kind == 2:
            return [(None, "note", entry.note, entry.body)]
        if entry.batch_kind == forge.OPERATION:
            return [(entry.first_lsn, forge.OP, 0, 0, entry.body)]
        head, payload = bytes(entry.head), bytes(entry.payload)
        found = []
        for i in range(entry.count):
            r = forge.RECORD.unpack_from(head, 128 + 32 * i)
            found.append(
                (
                    entry.first_lsn + i if entry.batch_kind == forge.EVENTS else None,
                    r[0],
                    r[3],
                    r[4],
                    payload[r[7] : r[7] + r[5]] if r[0] == forge.WRITE else r[5],
                )
            )
        return found

    def perform(self, blocks, item):
        if item[1] in (forge.WRITE, forge.ZERO, forge.DISCARD):
            _, _, store, offset, data = item
            raw = bytes(data) if isinstance(data, int) else data
            for i in range(0, len(raw), self.unit):
                blocks[store, (offset + i) // self.unit] = raw[i : i + self.unit]

    @rule(store=st.sampled_from((1, 2)), at=st.integers(0, 60), blocks=st.integers(1, 70))
    def read(self, store, at, blocks):
        """What the window holds, over what was applied, is what all events leave."""
        truth, pending = dict(self.home), {}
        for item in self.items[self.applied_items :]:
            self.perform(pending, item)
        data, have = self.window.overlay(store, at * self.unit, blocks * self.unit)
        for i in range(blocks):
            key = (store, at + i)
            assert bool(have[i]) == (key in pending)
            shown = data[i * self.unit : (i + 1) * self.unit] if have[i] else truth.get(key)
            assert shown == pending.get(key, truth.get(key))

    @rule(power=st.booleans())
    def crash(self, power):
        state = self.window.state()
        self.window.close()
        if power:
            self.disk.power_loss(self.rng)
        records, end, chain, _, durable = scan_log(
            self.disk,
            log_offset=START,
            log_size=self.log,
            position=self.tail,
            chain=self.chain_at[self.tail],
            alignment=self.unit,
            group=forge.GROUP,
        )
        assert durable <= end, "no corruption is seen where there is none"
        assert state.durable_position <= end <= state.written_position
        if not power:
            assert (end, chain) == (state.written_position, state.chain)
        survivors = [one for p, r in records if p >= self.applied for one in self.items_of(r)]
        assert survivors == self.items[self.applied_items : self.applied_items + len(survivors)]
        del self.items[self.applied_items + len(survivors) :]
        self.lsn = max([self.applied_lsn, *(one[0] for one in survivors if one[0])])
        self.window = Window(ring=RING, alignment=self.unit, reserve=self.reserve)
        previous = 0
        for position, record in records:
            if position >= self.applied and forge.parse(record)["kind"] == 1:
                self.window.load(record)
            parsed = forge.parse(record)
            if parsed["kind"] == 1 and parsed["batch"] in (1, 2):
                previous = parsed["digest"]
        self.open(end, chain, previous)

    def items_of(self, record):
        parsed = forge.parse(record)
        if parsed["kind"] == 2:
            return [(None, "note", parsed["note"], parsed["body"])]
        lsn = parsed["first_lsn"] if parsed["batch"] in (1, 2) else None
        return [(None if lsn is None else lsn + i, *event) for i, event in enumerate(parsed["events"])]

    @invariant()
    def positions_are_in_order(self):
        if not hasattr(self, "window"):
            return
        s = self.window.state()
        assert s.tail_position <= s.applied_position <= s.written_position <= s.end_position
        assert s.durable_position <= s.written_position
        assert s.end_position - s.tail_position <= self.log and s.ring_used <= s.ring_size
        assert s.end_lsn == self.lsn and s.failed == 0

    def teardown(self):
        if hasattr(self, "window"):
            self.window.close()


LogMachine.TestCase.settings = settings(max_examples=examples(80), stateful_step_count=40, deadline=None)
TestLogMachine = LogMachine.TestCase
