"""Forged ends of a log: where the scan stops, for which reason, and what it says was durable.

After PostgreSQL's src/test/recovery/t/039_end_of_wal.pl, for the records of layout.h. The first records of each log are
written by a real window, the last one is forged from the twin in support/forge.py.
"""

from __future__ import annotations

import struct

import pytest

from pyrepl._core.window import Window, scan_log
from tests.support import forge
from tests.support.devices import FailingDevice, MemoryDevice

SHORT, MAGIC, VERSION, POSITION, CHAIN, LENGTH, HEAD_CRC, BODY_CRC, KIND, RESERVED, COUNT, RECORD, GROUP = range(1, 14)
START = 4096  # of the log on its device
LOG = 5 << 20
BLOCK = 4096


def write_log(
    *payloads: int, log: int = LOG, position: int = 0, flush_after: tuple[int, ...] = (), seed: int = 77
) -> MemoryDevice:
    """A log with one event of each of these lengths (bytes), written by the window from `position` on."""
    device = MemoryDevice(size=START + log)
    with_window(device, payloads, log, position, flush_after, seed)
    return device


def with_window(device, payloads, log, position, flush_after=(), seed=77, chain=5, lsn=0):
    window = Window(ring=17 << 20, alignment=512, reserve=0)
    window.open(
        device,
        log_offset=START,
        log_size=log,
        position=position,
        tail=position,
        chain=chain,
        lsn=lsn,
        applied_position=position,
        applied_lsn=lsn,
        group=forge.GROUP,
        generation=forge.GENERATION,
        seed=seed,
    )
    window.set_store(1, 1 << 30)
    for i, length in enumerate(payloads):
        window.write(1, 0, bytes([i + 1]) * length)
        if i in flush_after:
            window.flush()
        state = window.state()
        window.applied(state.written_position, state.written_lsn)  # the ring is smaller than the longest log
    window.close()


def scan(device, *, log=LOG, position=0, chain=5, **options):
    return scan_log(device, log_offset=START, log_size=log, position=position, chain=chain, alignment=512, **options)


def put(device, position, data, log=LOG):
    for i in range(0, len(data), 512):
        at = START + (position + i) % log
        device.data[at : at + 512] = data[i : i + 512]


def event(fill=b"\xee", length=1024):
    return forge.batch([(forge.WRITE, 1, 512, fill * length)], first_lsn=3)


def forged_batch(end, chain, *, place=None, **fields):
    head, payload = forge.batch([(forge.WRITE, 1, 512, b"\xee" * 1024)], first_lsn=3, **fields)
    return forge.place(head, payload, position=end, chain=chain, **(place or {}))


def changed(record, at, what):
    return record[:at] + what + record[at + len(what) :]


def sealed(record):
    """The local part's CRC made right again after a change of it."""
    return changed(record, 60, struct.pack("<I", forge.crc32c(record[:60])))


TAILS = {
    "length 0": (lambda e, c: forged_batch(e, c, place={"length": 0}), LENGTH),
    "length 1": (lambda e, c: forged_batch(e, c, place={"length": 1}), LENGTH),
    "length of the local part only": (lambda e, c: forged_batch(e, c, place={"length": 64}), LENGTH),
    "length 2**31": (lambda e, c: forged_batch(e, c, place={"length": 1 << 31}), LENGTH),
    "length 2**32 - 4096": (lambda e, c: forged_batch(e, c, place={"length": (1 << 32) - 4096}), LENGTH),
    "longer than any batch": (lambda e, c: forged_batch(e, c, place={"length": (4 << 20) + 2 * BLOCK}), LENGTH),
    "shorter than its payload": (lambda e, c: forged_batch(e, c, place={"length": BLOCK}), SHORT),
    "longer than its payload": (lambda e, c: forged_batch(e, c, place={"length": 3 * BLOCK}), LENGTH),
    "bad magic": (lambda e, c: forged_batch(e, c, place={"magic": 0x324A5250}), MAGIC),
    "version from the future": (lambda e, c: forged_batch(e, c, place={"version": 2}), VERSION),
    "kind unknown": (lambda e, c: forged_batch(e, c, place={"kind": 3}), KIND),
    "misdirected": (lambda e, c: forge.place(*event(), position=e + BLOCK, chain=c), POSITION),
    "an earlier lap": (
        lambda e, c: (
            forge.place(*event(), position=e - LOG, chain=c)
            if e >= LOG
            else forge.place(*event(), position=e + LOG, chain=c)
        ),
        POSITION,
    ),
    "chain of another record": (lambda e, c: forged_batch(e, c ^ 1), CHAIN),
    "chain 0": (lambda e, c: forged_batch(e, 0), CHAIN),
    "head CRC": (lambda e, c: forged_batch(e, c, place={"crc": 0x12345678}), HEAD_CRC),
    "a flipped bit in the local part": (lambda e, c: changed(forged_batch(e, c), 34, b"\x01"), HEAD_CRC),
    "CRC of the travel part": (lambda e, c: forged_batch(e, c, crc=0x12345678), HEAD_CRC),
    "local part of another batch": (lambda e, c: forged_batch(e, c, place={"body_crc": 1}), HEAD_CRC),
    "a flipped bit in a descriptor": (lambda e, c: changed(forged_batch(e, c), 192 + 9, b"\x07"), HEAD_CRC),
    "body CRC": (lambda e, c: changed(forged_batch(e, c), BLOCK + 700, b"\x00"), BODY_CRC),
    "body old, head new": (lambda e, c: changed(forged_batch(e, c), BLOCK, b"\x02" * 1024), BODY_CRC),
    "head old, body new": (
        lambda e, c: forge.place(*event(b"\x01"), position=e, chain=c ^ 1)[:BLOCK] + b"\xee" * BLOCK,
        CHAIN,
    ),
    "reserved bytes of the local part": (
        lambda e, c: forged_batch(e, c, place={"reserved": b"\0\0\0\x01\0\0\0\0"}),
        RESERVED,
    ),
    "reserved bytes of the travel part": (lambda e, c: forged_batch(e, c, reserved=b"\x01".ljust(36, b"\0")), RESERVED),
    "flags of the travel part": (lambda e, c: forged_batch(e, c, flags=1), RESERVED),
    "a note's type on a batch": (lambda e, c: forged_batch(e, c, place={"note": 1}), RESERVED),
    "wire version from the future": (lambda e, c: forged_batch(e, c, version=2), VERSION),
    "descriptor outside the payload": (lambda e, c: forged_batch(e, c, payload_at=512), RECORD),
    "descriptor far outside": (lambda e, c: forged_batch(e, c, payload_at=0xFFFFFE00), RECORD),
    "no record": (lambda e, c: forge.place(*forge.batch([], first_lsn=3), position=e, chain=c), COUNT),
    "a zero of no length": (
        lambda e, c: forge.place(*forge.batch([(forge.ZERO, 1, 0, 0)]), position=e, chain=c),
        RECORD,
    ),
    "offset 2**64 - 512": (
        lambda e, c: forge.place(*forge.batch([(forge.ZERO, 1, 2**64 - 512, 512)]), position=e, chain=c),
        RECORD,
    ),
    "another group's": (lambda e, c: forged_batch(e, c, group=b"h" * 16), GROUP),
    "note with a bad body": (lambda e, c: changed(forge.note(b"a note", position=e, chain=c), 66, b"!"), BODY_CRC),
    "note with a body beyond its length": (
        lambda e, c: forge.note(b"a note", position=e, chain=c, body_length=BLOCK),
        LENGTH,
    ),
    "note with a body of 2**32 - 1": (
        lambda e, c: forge.note(b"a note", position=e, chain=c, body_length=2**32 - 1),
        LENGTH,
    ),
    "all zero": (lambda e, c: bytes(2 * BLOCK), MAGIC),
    "all 0xff": (lambda e, c: b"\xff" * 2 * BLOCK, MAGIC),
    "torn after one sector": (lambda e, c: forged_batch(e, c)[:512] + b"\xff" * (2 * BLOCK - 512), BODY_CRC),
}


@pytest.mark.parametrize("kind", TAILS)
@pytest.mark.parametrize("lap", [0, 3])
def test_a_forged_tail_is_the_end(kind, lap):
    position = lap * LOG
    forged, reason = TAILS[kind]
    device = write_log(512, 1536, position=position)
    records, end, chain, why, durable = scan(device, position=position, group=forge.GROUP)
    assert (len(records), end, why) == (2, position + 4 * BLOCK, MAGIC), "the log before it is forged"
    record = forged(end, chain)
    put(device, end, record)
    result = scan(device, position=position, group=forge.GROUP)
    assert result == (records, end, chain, reason, durable)


@pytest.mark.parametrize(
    "record", [lambda e, c: forged_batch(e, c), lambda e, c: forge.note(b"a note" * 1000, position=e, chain=c)]
)
def test_the_forger_can_make_good_records(record):
    """Without this the table above could pass because everything forged is bad."""
    device = write_log(512)
    records, end, chain, _, _ = scan(device)
    good = record(end, chain)
    put(device, end, good)
    more, new_end, new_chain, why, _ = scan(device)
    assert more == [*records, (end, good)]
    assert (new_end, new_chain, why) == (end + len(good), forge.chain_after(good), MAGIC)


def test_without_a_group_any_group_will_do():
    device = write_log(512)
    _, end, chain, _, _ = scan(device)
    put(device, end, forged_batch(end, chain, group=b"h" * 16))
    assert scan(device)[1] == end + 2 * BLOCK
    assert scan(device, group=forge.GROUP)[1:4] == (end, chain, GROUP)


def test_longer_than_the_log():
    log = 64 * BLOCK
    head, payload = forge.batch([(forge.WRITE, 1, 0, bytes(65 * BLOCK))])
    device = MemoryDevice(size=START + log)
    put(device, 0, forge.place(head, payload, position=0, chain=5)[:log], log)
    assert scan(device, log=log) == ([], 0, 5, LENGTH, 0)


@pytest.mark.parametrize("old", ["first half", "second half", "neither"])
def test_a_record_over_the_wrap_with_one_half_old(old):
    position = LOG - 2 * BLOCK  # head and one block of payload before the wrap, the rest behind it
    device = MemoryDevice(size=START + LOG)
    chain = 5
    lap = forge.place(*forge.batch([(forge.WRITE, 1, 0, b"\x01" * 4 * BLOCK)]), position=position, chain=chain, seed=1)
    put(device, position, lap)
    assert len(scan(device, position=position)[0]) == 1
    later = position + LOG
    record = forge.place(
        *forge.batch([(forge.WRITE, 1, 0, b"\x02" * 4 * BLOCK)], first_lsn=2), position=later, chain=chain, seed=2
    )
    if old != "first half":
        put(device, later, record[: 2 * BLOCK])
    if old != "second half":
        put(device, later + 2 * BLOCK, record[2 * BLOCK :])
    records, end, _, why, _ = scan(device, position=later)
    expected = {
        "first half": ([], later, POSITION),
        "second half": ([], later, BODY_CRC),
        "neither": ([(later, record)], later + len(record), MAGIC),
    }[old]
    assert (records, end, why) == expected


def test_a_hole_above_the_durable_mark_is_the_end():
    device = write_log(512, 512, 512, 512, 512, flush_after=(1,))  # record 2 begins where the log was durable
    records, end, *_ = scan(device)
    assert len(records) == 5
    hole = records[2][0]
    put(device, hole, bytes(BLOCK))
    found, end, chain, why, durable = scan(device)
    assert (found, end, why) == (records[:2], hole, MAGIC)
    assert chain == forge.parse(records[2][1])["chain"]
    assert durable == hole  # not beyond the end: nothing that was promised is missing


@pytest.mark.parametrize("damage", [bytes(BLOCK), b"\xff" * BLOCK, None])
def test_a_hole_below_the_durable_mark_is_seen(damage):
    device = write_log(512, 512, 512, 512, 512, flush_after=(3,))
    records, *_ = scan(device)
    hole = records[1][0]
    put(device, hole, damage if damage else changed(records[1][1], BLOCK + 3, b"!!"))
    found, end, _, why, durable = scan(device)
    assert (found, end, why) == (records[:1], hole, MAGIC if damage else BODY_CRC)
    assert durable == records[4][0] > end


def test_marks_behind_a_hole_at_the_far_end_of_what_may_be_unflushed():
    """The log is flushed on its own often enough, so that the search finds the mark; and the search is bounded."""
    log = 40 << 20
    device = write_log(*[1 << 20] * 30, log=log)
    assert device.flushes >= 2  # one is open()'s
    records, _, _, _, durable = scan(device, log=log)
    assert durable > 12 << 20
    put(device, 0, bytes(BLOCK), log)
    found, end, _, why, durable = scan(device, log=log)
    assert (found, end, why) == ([], 0, MAGIC)
    assert 0 < durable <= (16 << 20) + (4 << 20) + BLOCK


def test_marks_of_an_earlier_lap_do_not_count():
    device = write_log(512, 512, 512, 512, flush_after=(2,), position=0)
    records, *_ = scan(device)
    assert forge.parse(records[3][1])["durable"] == records[3][0]
    # one lap later: nothing valid at all, and what lies behind names an old position
    assert scan(device, position=LOG) == ([], LOG, 5, POSITION, 0)


def test_a_forged_record_inside_a_good_record_behind_the_hole_does_not_count():
    """A writer's data may look like a record. Behind the hole a good record is passed over whole."""
    device = write_log(512, 512)
    records, end, chain, *_ = scan(device)
    inner = forge.place(*event(), position=end + 3 * BLOCK, chain=9, durable=1 << 40)
    outer = forge.place(
        *forge.batch([(forge.WRITE, 1, 0, inner)], first_lsn=9), position=end + 2 * BLOCK, chain=1, durable=0
    )
    put(device, end + 2 * BLOCK, outer)
    assert scan(device)[1:] == (end, chain, MAGIC, 0)


def test_the_log_of_an_earlier_start_goes_on_nowhere():
    """The chain is seeded by each start: what an earlier start wrote behind the end fits neither chain."""
    device = write_log(512, 512, 512, seed=1)
    records, *_ = scan(device)
    second = records[1][0]
    with_window(device, [512], LOG, second, seed=2, chain=forge.parse(records[1][1])["chain"], lsn=1)
    found, end, _, why, _ = scan(device)
    assert [p for p, _ in found] == [0, second] and found[1] != records[1]
    assert (end, why) == (records[2][0], CHAIN)


def test_in_parts_the_scan_finds_the_same():
    device = write_log(*[5 * 512] * 40)
    whole = scan(device)
    records, position, chain, calls, why = [], 0, 5, 0, 0
    while why == 0:
        found, position, chain, why, _ = scan(device, position=position, chain=chain, most=30000)
        records += found
        calls += 1
    assert (records, position, chain, why) == whole[:4]
    assert calls > 10


def test_a_device_that_cannot_be_read_is_an_error_not_an_end():
    device = FailingDevice(size=START + LOG, kind="read", beyond=0)
    with pytest.raises(OSError, match="failing"):
        scan(device)


@pytest.mark.parametrize(
    "wrong",
    [
        {"alignment": 1024},
        {"log_size": 0},
        {"log_size": 4095},
        {"log_offset": 1},
        {"position": 512},
        {"position": -1},
        {"position": 2**64},
        {"log_size": LOG + BLOCK},
        {"log_offset": 2**64 - BLOCK},
        {"log_size": 2**64 - BLOCK},
        {"group": b"short"},
        {"chain": 2**64},
    ],
)
def test_numbers_that_cannot_be(wrong):
    device = MemoryDevice(size=START + LOG)
    numbers = {"log_offset": START, "log_size": LOG, "position": 0, "chain": 5, "alignment": 512} | wrong
    with pytest.raises(ValueError):
        scan_log(device, **numbers)
