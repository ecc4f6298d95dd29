"""Batches and records of the log against forge, the twin that packs them by hand; and what the judge says of anything else."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrepl._core import batch, layout
from tests.support import forge
from tests.support.examples import examples
from tests.support.forge import COPIED, DISCARD, EVENTS, GENERATION, GROUP, ITEM, OP, OPERATION, WRITE, ZERO

GOOD, SHORT, MAGIC, VERSION, POSITION, CHAIN, LENGTH, HEAD_CRC, BODY_CRC, KIND, RESERVED, COUNT, RECORD, OTHER_GROUP = range(14)
MIB = 1 << 20
TOP = 2**63 - 1
IDS = {"group": GROUP, "generation": GENERATION}


def judged(parts, alignment=512, group=None):
    """The judge's word, which has to be the same for one buffer and for two, wherever they lie in memory."""
    head, payload = parts
    reason = batch.judge_parts(head, payload, alignment=alignment, group=group)
    whole = head + payload
    assert batch.judge(whole, alignment=alignment, group=group) == reason
    assert batch.judge(memoryview(b"odd" + whole)[3:], alignment=alignment, group=group) == reason
    return reason


def reseal(head):
    """Travel part and descriptors with a checksum that holds, whatever else they say."""
    descriptors = head[layout.TRAVEL_SIZE :]
    return head[:124] + struct.pack("<I", forge.crc32c(descriptors, forge.crc32c(head[:124]))) + descriptors


def changed(head, offset, letter, value):
    raw = bytearray(head)
    struct.pack_into("<" + letter, raw, offset, value)
    return reseal(bytes(raw))


# ---- good ones ---------------------------------------------------------------------------------------------------------------


@st.composite
def events(draw, alignment):
    """Records of a batch of events."""
    made = []
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from([WRITE, ZERO, DISCARD]))
        length = draw(st.integers(1, 3)) * alignment
        offset = draw(st.one_of(st.integers(0, 1000), st.just((TOP - length) // alignment))) * alignment
        data = draw(st.binary(min_size=1, max_size=8)).ljust(length, b"\7") if kind == WRITE else length
        made.append((kind, draw(st.sampled_from([1, 2, 2**32 - 1])), offset, data))
    return made


@settings(max_examples=examples(100), deadline=None)
@given(st.data())
def test_encoded_as_by_hand_and_good(data):
    alignment = data.draw(st.sampled_from([512, 4096]))
    records = data.draw(events(alignment))
    kind = data.draw(st.sampled_from([EVENTS, COPIED]))
    lsn = data.draw(st.sampled_from([1, 77, TOP - 200]))
    fields = {"first_lsn": lsn}
    if kind == COPIED:
        fields |= {"item": data.draw(st.sampled_from([1, 2**64 - 1])), "read_end": data.draw(st.sampled_from([0, TOP]))}
    else:
        fields |= {"previous": data.draw(st.integers(0, 2**64 - 1)), "time_ns": data.draw(st.sampled_from([0, 1, TOP]))}
    encoded = batch.encode(kind, records, **IDS, alignment=alignment, **fields)
    parts = forge.batch(records, kind=kind, **fields)
    assert encoded == b"".join(parts)
    assert judged(parts, alignment) == judged(parts, alignment, GROUP) == GOOD
    assert batch.head(encoded)[:10] == (kind, GROUP, GENERATION, lsn, len(records), len(parts[1]), fields.get("previous", 0),
                                       fields.get("item", 0), fields.get("read_end", 0), fields.get("time_ns", 0))
    assert struct.pack("<I", batch.head(encoded).crc) == encoded[124:128]
    payload = parts[1]
    for (what, store, offset, content), record in zip(records, batch.records(encoded), strict=True):
        assert (record.kind, record.store, record.offset) == (what, store, offset)
        if what == WRITE:
            assert payload[record.payload : record.payload + record.length] == content
            assert record.crc == forge.crc32c(content)
        else:
            assert (record.length, record.crc, record.payload) == (content, 0, 0)


@pytest.mark.parametrize("kind", [OPERATION, ITEM])
@pytest.mark.parametrize("length", [1, 2, 511, 512, 513, 4095, 70001])
def test_operations_and_items_are_not_padded(kind, length):
    body = bytes(range(256)) * 280
    body = body[:length]
    fields = {"item": 9} if kind == ITEM else {}
    encoded = batch.encode(kind, [(OP, 0, 0, body)], **IDS, first_lsn=3, alignment=4096, **fields)
    assert encoded == b"".join(forge.batch([(OP, 0, 0, body)], kind=kind, first_lsn=3, **fields))
    assert len(encoded) == batch.head_length(1) + length == 160 + length
    assert batch.judge(encoded, alignment=4096) == GOOD


@pytest.mark.parametrize("alignment", [512, 4096])
def test_the_largest(alignment):
    most = [(ZERO, 1, i * MIB, MIB) for i in range(layout.MAX_RECORDS)]
    encoded = batch.encode(EVENTS, most, **IDS, first_lsn=TOP - layout.MAX_RECORDS, alignment=alignment)
    assert len(encoded) == batch.head_length(122) == 128 + 122 * 32
    assert batch.judge(encoded, alignment=alignment) == GOOD
    full = [(WRITE, 1, i * MIB, bytes([i]) * MIB) for i in range(4)]
    encoded = batch.encode(EVENTS, full, **IDS, first_lsn=1, alignment=alignment)
    assert len(encoded) == batch.head_length(4) + layout.MAX_PAYLOAD
    assert batch.judge(encoded, alignment=alignment) == GOOD
    operation = batch.encode(OPERATION, [(OP, 0, 0, bytes(4 * MIB))], **IDS, first_lsn=1, alignment=alignment)
    assert batch.judge(operation, alignment=alignment) == GOOD


def test_data_of_any_kind_of_buffer():
    data = bytes(range(256)) * 2
    same = {batch.encode(EVENTS, [(WRITE, 1, 0, kind(data))], **IDS, first_lsn=1, alignment=512) for kind in (bytes, bytearray, memoryview)}
    assert len(same) == 1


def test_encode_pads_and_the_judge_finds_it():
    encoded = batch.encode(EVENTS, [(WRITE, 1, 0, b"x" * 100), (WRITE, 1, 512, b"y" * 512)], **IDS, first_lsn=1, alignment=512)
    assert encoded[192:704] == (b"x" * 100).ljust(512, b"\0")
    assert batch.records(encoded)[1].payload == 512
    assert batch.judge(encoded, alignment=512) == RECORD


@pytest.mark.parametrize(
    ("records", "fields", "error", "text"),
    [
        ([], {}, ValueError, "a batch of 0 records: 1 to 122"),
        ([(ZERO, 1, 0, 512)] * 123, {}, ValueError, "a batch of 123 records: 1 to 122"),
        ([(WRITE, 1, 0, bytes(MIB))] * 4 + [(WRITE, 1, 0, bytes(1))], {}, ValueError, "a payload of more than 4194304 bytes"),
        ([(ZERO, 1, 0, 512)], {"group": bytes(15)}, ValueError, "16 bytes each"),
        ([(ZERO, 1, 0, 512)], {"generation": bytes(17)}, ValueError, "16 bytes each"),
        ([(ZERO, 1, 0, 512)], {"alignment": 1024}, ValueError, "alignment 1024: 512 or 4096"),
        ([(ZERO, 1, 0, 512)], {"alignment": 0}, ValueError, "alignment 0: 512 or 4096"),
        ([(ZERO, 1, 2**64, 512)], {}, OverflowError, None),
        ([(ZERO, 2**32, 0, 512)], {}, OverflowError, None),
        ([(ZERO, 1, 0, 2**32)], {}, OverflowError, None),
        ([(ZERO, 1, -1, 512)], {}, OverflowError, None),
        ([(256, 1, 0, 512)], {}, OverflowError, None),
        ([(ZERO, 1, 0, 512)], {"first_lsn": 2**64}, OverflowError, None),
        ([(WRITE, 1, 0, "text")], {}, TypeError, None),
    ],
)  # fmt: skip
def test_what_cannot_be_encoded(records, fields, error, text):
    with pytest.raises(error, match=text):
        batch.encode(EVENTS, records, **({**IDS, "first_lsn": 1, "alignment": 512} | fields))


def test_records_that_change_the_list_while_it_is_read():
    records = []

    class Growing(tuple):
        def __iter__(self):
            records.extend([(ZERO, 1, 0, 512)] * 200)
            return super().__iter__()

    records.append(Growing((ZERO, 1, 0, 512)))
    assert batch.head(batch.encode(EVENTS, records, **IDS, first_lsn=1, alignment=512)).count == 1


# ---- bad ones ----------------------------------------------------------------------------------------------------------------

ONE = [(WRITE, 1, 0, b"a" * 512)]
TWO = [(WRITE, 1, 0, b"a" * 512), (WRITE, 1, 512, b"b" * 1024)]


def field(offset, letter, value, records=ONE, **fields):
    head, payload = forge.batch(records, **fields)
    return changed(head, offset, letter, value), payload


def cut(head=None, payload=None, records=TWO):
    a, b = forge.batch(records)
    return a[:head], b[:payload]


R = 128  # the first descriptor
BAD = {
    "nothing": ((b"", b""), SHORT),
    "half a travelling part": ((cut(head=127)[0], b""), SHORT),
    "descriptors cut": ((cut(head=191)[0], b""), SHORT),
    "magic": (forge.batch(ONE, magic=0x31425251), MAGIC),
    "version 0": (forge.batch(ONE, version=0), VERSION),
    "version 2": (forge.batch(ONE, version=2), VERSION),
    "no records": (forge.batch([]), COUNT),
    "123 records": (forge.batch([(ZERO, 1, 0, 512)] * 123), COUNT),
    "2**32 - 1 records": (field(48, "I", 2**32 - 1), COUNT),
    "2**27 records, whose bytes are 0 in 32 bits": (field(48, "I", 2**27), COUNT),
    "checksum": (forge.batch(ONE, crc=5), HEAD_CRC),
    "kind 0": (forge.batch(ONE, kind=0), KIND),
    "kind 5": (forge.batch(ONE, kind=5), KIND),
    "kind 255": (forge.batch(ONE, kind=255), KIND),
    "flags": (forge.batch(ONE, flags=1), RESERVED),
    "reserved, first": (forge.batch(ONE, reserved=b"\1" + bytes(35)), RESERVED),
    "reserved, last": (forge.batch(ONE, reserved=bytes(35) + b"\1"), RESERVED),
    "payload of 4 MiB and 512": (field(52, "I", 4 * MIB + 512), LENGTH),
    "payload of 2**32 - 512": (field(52, "I", 2**32 - 512), LENGTH),
    "payload not aligned": (field(52, "I", 513), LENGTH),
    "payload longer than its records": (field(52, "I", 1024), LENGTH),
    "payload without a record": (field(52, "I", 512, records=[(ZERO, 1, 0, 512)]), LENGTH),
    "payload short": (cut(payload=-512), SHORT),
    "payload missing": (cut(payload=0), SHORT),
    "payload too long": ((forge.batch(ONE)[0], b"a" * 1024), LENGTH),
    "payload changed": ((forge.batch(ONE)[0], b"a" * 511 + b"b"), BODY_CRC),
    "payload of the second record changed": ((forge.batch(TWO)[0], b"a" * 512 + b"b" * 1023 + b"c"), BODY_CRC),
    "payloads exchanged": ((forge.batch(TWO)[0], b"b" * 1024 + b"a" * 512), BODY_CRC),
    "an event with an item number": (forge.batch(ONE, item=1), RECORD),
    "an event with an end of reading": (forge.batch(ONE, read_end=1), RECORD),
    "an event without an LSN": (forge.batch(ONE, first_lsn=0), RECORD),
    "an operation with an item number": (forge.batch([(OP, 0, 0, b"x")], kind=OPERATION, item=1), RECORD),
    "LSN 2**63": (forge.batch(ONE, first_lsn=2**63), RECORD),
    "LSN 2**64 - 1": (forge.batch(ONE, first_lsn=2**64 - 1), RECORD),
    "an LSN that its records leave": (forge.batch(TWO, first_lsn=TOP), RECORD),
    "copied without a number": (forge.batch(ONE, kind=COPIED), RECORD),
    "copied with a batch before": (forge.batch(ONE, kind=COPIED, item=1, previous=1), RECORD),
    "end of reading 2**63": (forge.batch(ONE, kind=COPIED, item=1, read_end=2**63), RECORD),
    "a time of 2**63": (forge.batch(ONE, time_ns=2**63), RECORD),
    "copied with a time": (forge.batch(ONE, kind=COPIED, item=1, time_ns=1), RECORD),
    "an item with a time": (forge.batch([(OP, 0, 0, b"x")], kind=ITEM, item=1, time_ns=1), RECORD),
    "an item with an end of reading": (forge.batch([(OP, 0, 0, b"x")], kind=ITEM, item=1, read_end=1), RECORD),
    "an item without a number": (forge.batch([(OP, 0, 0, b"x")], kind=ITEM), RECORD),
    "two operations": (forge.batch([(OP, 0, 0, b"x"), (OP, 0, 0, b"y")], kind=OPERATION), COUNT),
    "two items": (forge.batch([(OP, 0, 0, b"x"), (OP, 0, 0, b"y")], kind=ITEM, item=1), COUNT),
    "an event in an operation": (forge.batch(ONE, kind=OPERATION), RECORD),
    "an operation in events": (forge.batch([(OP, 1, 0, bytes(512))]), KIND),
    "an operation of nothing": (forge.batch([(OP, 0, 0, b"")], kind=OPERATION), RECORD),
    "an operation on a store": (forge.batch([(OP, 1, 0, b"x")], kind=OPERATION), RECORD),
    "an operation with an offset": (forge.batch([(OP, 0, 1, b"x")], kind=OPERATION), RECORD),
    "an operation behind its beginning": (forge.batch([(OP, 0, 0, b"x")], kind=OPERATION, payload_at=1), RECORD),
    "an operation shorter than the payload": (field(R + 16, "I", 1, records=[(OP, 0, 0, b"xy")], kind=OPERATION), RECORD),
    "record: kind 0": (field(R, "B", 0), KIND),
    "record: kind 5": (field(R, "B", 5), KIND),
    "record: flags": (field(R + 1, "B", 1), RESERVED),
    "record: reserved0": (field(R + 2, "H", 256), RESERVED),
    "record: reserved1": (field(R + 28, "I", 1), RESERVED),
    "record: store 0": (forge.batch([(WRITE, 0, 0, b"a" * 512)]), RECORD),
    "record: length 0": (forge.batch([(ZERO, 1, 0, 0)]), RECORD),
    "record: a write of nothing": (forge.batch([(WRITE, 1, 0, b"")]), RECORD),
    "record: length 511": (forge.batch([(ZERO, 1, 0, 511)]), RECORD),
    "record: 1 MiB and 512": (forge.batch([(ZERO, 1, 0, MIB + 512)]), RECORD),
    "record: length 2**31": (forge.batch([(ZERO, 1, 0, 2**31)]), RECORD),
    "record: length 2**32 - 512": (forge.batch([(ZERO, 1, 0, 2**32 - 512)]), RECORD),
    "record: offset 1": (forge.batch([(ZERO, 1, 1, 512)]), RECORD),
    "record: ends at 2**63": (forge.batch([(ZERO, 1, 2**63 - 512, 512)]), RECORD),
    "record: offset 2**63": (forge.batch([(ZERO, 1, 2**63, 512)]), RECORD),
    "record: offset 2**64 - 512": (forge.batch([(ZERO, 1, 2**64 - 512, 512)]), RECORD),
    "record: payload behind the end": (forge.batch(ONE, payload_at=512), RECORD),
    "record: payload at 2**32 - 512": (forge.batch(ONE, payload_at=2**32 - 512), RECORD),
    "record: payload beyond the end": (field(R + 16, "I", 1024), RECORD),
    "record: the same payload twice": (forge.batch([(WRITE, 1, 0, b"a" * 512)] * 2, payload_at=0), RECORD),
    "record: zeros with a payload": (field(R + 24, "I", 512, records=[(ZERO, 1, 0, 512), *ONE]), RECORD),
    "record: zeros with a checksum": (field(R + 20, "I", 1, records=[(DISCARD, 1, 0, 512)]), RECORD),
}


@pytest.mark.parametrize("name", BAD)
def test_each_thing_that_can_be_wrong_has_its_reason(name):
    parts, reason = BAD[name]
    assert batch.REASONS[judged(parts)] == batch.REASONS[reason]


def test_what_is_good_at_512_may_be_unaligned_at_4096():
    assert judged(forge.batch(ONE), 512) == GOOD
    assert judged(forge.batch(ONE), 4096) == LENGTH
    assert judged(forge.batch([(ZERO, 1, 512, 4096)]), 4096) == RECORD
    assert judged(forge.batch([(ZERO, 1, 4096, 512)]), 4096) == RECORD


def test_another_group():
    assert judged(forge.batch(ONE), group=GROUP) == GOOD
    assert judged(forge.batch(ONE), group=b"h" * 16) == judged(forge.batch(ONE), group=bytes(16)) == OTHER_GROUP


@pytest.mark.parametrize("call", ["judge", "judge_parts", "judge_record"])
def test_misuse_of_the_judge(call):
    arguments = {"judge": (b"",), "judge_parts": (b"", b""), "judge_record": (b"", 0)}[call]
    judge = getattr(batch, call)
    assert judge(*arguments, alignment=512) == SHORT
    for alignment in (0, 1, 511, 8192):
        with pytest.raises(ValueError, match=f"alignment {alignment}: 512 or 4096"):
            judge(*arguments, alignment=alignment)
    for length in (0, 15, 17):
        with pytest.raises(ValueError, match=f"a group's id has 16 bytes, not {length}"):
            judge(*arguments, alignment=512, group=bytes(length))


def test_every_reason_has_a_text_and_a_test():
    assert sorted(batch.REASONS) == list(range(14))
    assert batch.REASONS[0] == "good" and len(set(batch.REASONS.values())) == 14
    told = {reason for _, reason in BAD.values()} | {reason for _, reason in BAD_RECORDS.values()} | {GOOD, OTHER_GROUP}
    assert told == set(range(14)) - {CHAIN}  # the chain is the scan's to judge: test_log_tails.py


# ---- whole records of the log ------------------------------------------------------------------------------------------------

HERE = {"position": 4096 * 5, "chain": 0x1122334455667788}


def record_of(records=TWO, **fields):
    return forge.place(*forge.batch(records), **(HERE | fields))


def note_of(body=b"n" * 100, **fields):
    return forge.note(body, **(HERE | fields))


BAD_RECORDS = {
    "nothing": (b"", SHORT),
    "less than a block": (record_of()[:4095], SHORT),
    "the last block is missing": (record_of()[:4096], SHORT),
    "magic": (record_of(magic=0x314A5251), MAGIC),
    "zeros": (bytes(4096), MAGIC),
    "version": (record_of(version=2), VERSION),
    "length 0": (record_of(length=0), LENGTH),
    "length below a block": (record_of(length=2048), LENGTH),
    "length not of blocks": (record_of(length=8191), LENGTH),
    "length 2**31": (record_of(length=2**31), LENGTH),
    "length of a shorter batch": (record_of(length=4096), SHORT),
    "length of a longer batch": (record_of(length=12288) + bytes(4096), LENGTH),
    "checksum": (record_of(crc=1), HEAD_CRC),
    "another position": (record_of(position=4096 * 6), POSITION),
    "position 2**64 - 4096": (record_of(position=2**64 - 4096), POSITION),
    "reserved": (record_of(reserved=bytes(7) + b"\1"), RESERVED),
    "kind 0": (record_of(kind=0), KIND),
    "kind 3": (record_of(kind=3), KIND),
    "a batch with a type of note": (record_of(note=1), RESERVED),
    "a batch with a body": (record_of(body_length=1), LENGTH),
    "not this batch's checksum": (record_of(body_crc=1), HEAD_CRC),
    "a batch that is wrong": (forge.place(*forge.batch([(ZERO, 1, 1, 512)]), **HERE), RECORD),
    "payload changed": (record_of()[:4096] + b"?" + record_of()[4097:], BODY_CRC),
    "a note's checksum": (note_of(body_crc=1), BODY_CRC),
    "a note longer than its record": (note_of(body_length=4096 - 63), LENGTH),
    "a note shorter than its record": (note_of(bytes(4096), body_length=100, body_crc=forge.crc32c(bytes(100))), LENGTH),
    "a note of 2**32 - 1 bytes": (note_of(body_length=2**32 - 1), LENGTH),
    "a note of more than 4 MiB": (note_of(body_length=4 * MIB + 1, length=4 * MIB + 4096), LENGTH),
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_each_thing_that_can_be_wrong_with_a_record_has_its_reason(name):
    record, reason = BAD_RECORDS[name]
    for data in (record, memoryview(b"odd" + record)[3:]):
        assert batch.REASONS[batch.judge_record(data, HERE["position"], alignment=512)] == batch.REASONS[reason]


@pytest.mark.parametrize("records", [ONE, TWO, [(ZERO, 1, 0, 512)], [(WRITE, 1, 0, bytes(8192))]])
def test_placed_as_by_hand(records):
    fields = {"position": 2**63, "chain": 2**64 - 1, "durable": 4096, "seed": 2**64 - 2}
    head, payload = forge.batch(records)
    placed = batch.place(head + payload, **fields)
    assert placed == forge.place(head, payload, **fields)
    assert placed == batch.place(memoryview(b"odd" + head + payload)[3:], **fields)
    assert batch.judge_record(placed, 2**63, alignment=512, group=GROUP) == GOOD
    assert batch.judge_record(placed + bytes(4096), 2**63, alignment=512) == GOOD  # more may be at hand
    assert batch.judge_record(placed, 2**63, alignment=512, group=bytes(16)) == OTHER_GROUP
    assert batch.chain(placed) == forge.chain_after(placed)
    found = batch.local(placed)
    assert found[:9] == (1, 0, 2**63, 2**64 - 1, 4096, 2**64 - 2, len(placed), 0, batch.head(head).crc)
    assert batch.chain(placed) == found.crc << 32 | found.body_crc


@pytest.mark.parametrize("length", [0, 1, 4032, 4033, 70000, 4 * MIB])
def test_notes_as_by_hand(length):
    body = bytes(length)
    fields = {"position": 4096, "chain": 7, "durable": 0, "seed": 5}
    note = batch.note(body, 255, **fields)
    if length <= 70000:  # the twin is slow
        assert note == forge.note(body, note=255, **fields)
    assert len(note) == -(-(64 + length) // 4096) * 4096
    assert batch.judge_record(note, 4096, alignment=512) == GOOD
    assert batch.local(note)[:2] == (2, 255) and batch.local(note).body_length == length


def test_what_cannot_be_placed_or_looked_into():
    fields = {"position": 0, "chain": 0, "durable": 0, "seed": 0}
    whole = b"".join(forge.batch(TWO))
    for wrong in (whole[:-1], whole + b"\0", b"".join(forge.batch([(ZERO, 1, 0, 512)] * 123)), b"".join(field(52, "I", 2**32 - 1))):
        with pytest.raises(ValueError, match="not one whole travelling batch"):
            batch.place(wrong, **fields)
    for call in (batch.head, batch.records, lambda data: batch.place(data, **fields)):
        with pytest.raises(ValueError, match="fewer bytes than the travelling part"):
            call(whole[:127])
        for cut_off in (whole[:191], field(48, "I", 2**32 - 1)[0]):
            with pytest.raises(ValueError, match="fewer bytes than its descriptors"):
                call(cut_off)
    for call in (batch.local, batch.chain):
        with pytest.raises(ValueError, match="fewer bytes than a local part"):
            call(bytes(63))
    with pytest.raises(ValueError, match="a note of 4194305 bytes: at most 4194304"):
        batch.note(bytes(4 * MIB + 1), 1, **fields)


# ---- anything at all ---------------------------------------------------------------------------------------------------------


@settings(max_examples=examples(100), deadline=None)
@given(st.data())
def test_no_bit_that_travels_may_change(data):
    kind = data.draw(st.sampled_from([EVENTS, OPERATION]))
    records = data.draw(events(512)) if kind == EVENTS else [(OP, 0, 0, data.draw(st.binary(min_size=1, max_size=100)))]
    raw = bytearray(b"".join(forge.batch(records, kind=kind)))
    for bit in data.draw(st.lists(st.integers(0, len(raw) * 8 - 1), min_size=1, max_size=20, unique=True)):
        raw[bit // 8] ^= 1 << bit % 8
        assert batch.judge(raw, alignment=512) != GOOD
        raw[bit // 8] ^= 1 << bit % 8
    assert batch.judge(raw, alignment=512) == GOOD
    cut_at = data.draw(st.integers(0, len(raw) - 1))
    assert batch.judge(raw[:cut_at], alignment=512) in (SHORT, HEAD_CRC, LENGTH)


@settings(max_examples=examples(100), deadline=None)
@given(st.binary(max_size=400), st.sampled_from([512, 4096]))
def test_noise_is_not_a_batch(noise, alignment):
    assert judged((noise, b""), alignment) in (SHORT, MAGIC)
    begun = struct.pack("<IH", layout.TRAVEL_MAGIC, 1) + noise
    assert judged((begun, noise), alignment) in (SHORT, COUNT, HEAD_CRC)
    assert batch.judge_record(begun.ljust(4096, b"\0"), 0, alignment=alignment) == MAGIC


def is_good(head, payload, alignment):
    """The rules of layout.h and docs/formats.md once more, in the words of Python: a slow judge."""
    t = forge.TRAVEL.unpack_from(head)
    magic, version, kind, flags, _, _, lsn, count, length, previous, item, read_end, time_ns, reserved, _ = t
    rows = [forge.RECORD.unpack_from(head, 128 + 32 * i) for i in range(count)] if 1 <= count <= 122 and len(head) == 128 + 32 * count else []
    whole = kind in (OPERATION, ITEM)
    rules = [
        magic == layout.TRAVEL_MAGIC, version == 1, 1 <= kind <= 4, not flags, not any(reserved), bool(rows), length <= 4 * MIB,
        len(payload) == length, not whole or count == 1, whole or length % alignment == 0, read_end <= TOP, lsn + count <= TOP,
        lsn > 0 or kind in (COPIED, ITEM), bool(item) == (kind in (COPIED, ITEM)), not previous or kind in (EVENTS, OPERATION),
        not read_end or kind == COPIED, time_ns <= TOP, not time_ns or kind in (EVENTS, OPERATION),
    ]  # fmt: skip
    at = 0
    for what, row_flags, reserved0, store, offset, size, crc, begin, reserved1 in rows:
        rules += [not (row_flags or reserved0 or reserved1), size > 0]
        if whole:
            rules += [what == OP, not store, not offset, size == length]
        else:
            rules += [what in (WRITE, ZERO, DISCARD), store > 0, size <= MIB, size % alignment == 0, offset % alignment == 0, offset + size <= TOP]
        if what in (WRITE, OP):
            rules += [begin == at, crc == forge.crc32c(payload[begin : begin + size])]
            at += size
        else:
            rules += [not begin, not crc]
        if not all(rules):
            return False
    return all(rules) and at == length


NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 5, 127, 255, 511, 512, 513, 1024, 4096, 2**15, 2**31, 2**32 - 512, 2**32 - 1, TOP, 2**63, 2**64 - 1])
PLACES = [  # (offset, bytes) of every field, of the travelling part and of the first two descriptors
    (offset, size) for name, offset, size in layout.fields("travel") if name not in ("group", "generation", "crc", "reserved")
] + [(80 + 4 * i, 4) for i in range(11)] + [(128 + 32 * i + offset, size) for i in (0, 1) for _, offset, size in layout.fields("record")]  # fmt: skip


@settings(max_examples=examples(300), deadline=None)
@given(st.data())
def test_the_judge_and_the_slow_judge_agree_on_sealed_lies(data):
    """Fields are changed and the checksum is made to hold: what is left to notice them are the rules."""
    kind = data.draw(st.sampled_from([EVENTS, OPERATION, COPIED, ITEM]))
    records = data.draw(st.sampled_from([ONE, TWO, [(ZERO, 1, 0, 512), *TWO]])) if kind in (EVENTS, COPIED) else [(OP, 0, 0, b"body")]
    head, payload = forge.batch(records, kind=kind, item=1 if kind in (COPIED, ITEM) else 0)
    raw = bytearray(head)
    for _ in range(data.draw(st.integers(0, 2))):
        offset, size = data.draw(st.sampled_from([place for place in PLACES if sum(place) <= len(raw)]))
        raw[offset : offset + size] = (data.draw(NUMBERS) % 2 ** (8 * size)).to_bytes(size, "little")
    head = reseal(bytes(raw))
    good = is_good(head, payload, 512)
    assert (batch.judge_parts(head, payload, alignment=512) == GOOD) is good
    assert (batch.judge(head + payload, alignment=512) == GOOD) is good  # where payload may be taken for descriptors


@settings(max_examples=examples(100), deadline=None)
@given(st.data())
def test_no_bit_of_a_note_or_a_local_part_may_change(data):
    record = bytearray(data.draw(st.sampled_from([note_of(), record_of(), note_of(b"")])))
    local = batch.local(record)
    counts = 64 + local.body_length if local.kind == 2 else 64 + batch.head_length(2)
    bit = data.draw(st.integers(0, counts * 8 - 1))
    assert batch.judge_record(record, HERE["position"], alignment=512) == GOOD
    record[bit // 8] ^= 1 << bit % 8
    assert batch.judge_record(record, HERE["position"], alignment=512) != GOOD
