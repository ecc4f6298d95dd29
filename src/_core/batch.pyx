"""Batches as bytes, for tests, tools and the protocol; the window encodes on its own.

Decides nothing: batch.c fills, seals and judges. Takes buffers and checks lengths; must not know what operations mean.
"""
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

from typing import NamedTuple


cdef extern from "batch.h" nogil:
    const uint32_t PR_BLOCK, PR_MAX_RECORDS, PR_MAX_PAYLOAD, PR_MAX_NOTE
    const uint8_t PR_RECORD_BATCH, PR_RECORD_NOTE, PR_WRITE, PR_ZERO, PR_DISCARD, PR_OPERATION
    const uint8_t PR_BATCH_OPERATION, PR_BATCH_ITEM
    const int PR_GOOD, PR_BAD_SHORT, PR_BAD_LENGTH
    struct pr_local:
        uint8_t kind, note
        uint64_t position, chain, durable, seed
        uint32_t length, body_length, body_crc, crc
    struct pr_travel:
        uint8_t kind
        uint8_t group[16]
        uint8_t generation[16]
        uint64_t first_lsn
        uint32_t count, payload_length
        uint64_t previous, item, read_end, time_ns
        uint32_t crc
    struct pr_record:
        uint8_t kind
        uint32_t store
        uint64_t offset
        uint32_t length, crc, payload
    void pr_batch_fill(pr_travel *travel, pr_record *records, uint32_t count, const uint8_t *const *data, uint32_t unit,
                       uint8_t *payload, uint32_t payload_length)
    int pr_batch_judge(const pr_travel *travel, const pr_record *records, size_t head_length, const uint8_t *payload,
                       size_t payload_length, uint32_t alignment, const uint8_t *group)
    void pr_local_seal(pr_local *local, uint8_t kind, uint8_t note, uint64_t position, uint64_t chain, uint64_t durable,
                       uint64_t seed, uint32_t length, uint32_t body_length, uint32_t body_crc)
    int pr_record_judge(const uint8_t *record, size_t length, uint64_t position, uint32_t alignment,
                        const uint8_t *group)
    uint64_t pr_chain(const pr_local *local)
    uint64_t pr_align(uint64_t n, uint64_t unit)
    uint64_t pr_batch_length(uint32_t payload_length)


cdef extern from "crc32c.h" nogil:
    uint32_t pr_crc32c(uint32_t crc, const void *data, size_t length)


REASONS = {
    0: "good",
    1: "fewer bytes than its header says",
    2: "no magic number",
    3: "a version that cannot be read",
    4: "a record that belongs to another position",
    5: "not the record that follows the one before",
    6: "a length that cannot be",
    7: "the checksum of its head is wrong",
    8: "the checksum of its content is wrong",
    9: "an unknown kind",
    10: "reserved bytes that are not zero",
    11: "an impossible number of records",
    12: "a descriptor that cannot be",
    13: "of another group",
}


class Record(NamedTuple):
    kind: int
    store: int
    offset: int
    length: int
    crc: int
    payload: int


class Head(NamedTuple):
    kind: int
    group: bytes
    generation: bytes
    first_lsn: int
    count: int
    payload_length: int
    previous: int
    item: int
    read_end: int
    time_ns: int
    crc: int


class Local(NamedTuple):
    kind: int
    note: int
    position: int
    chain: int
    durable: int
    seed: int
    length: int
    body_length: int
    body_crc: int
    crc: int


cdef const uint8_t *_group(object group, list keep) except? NULL:
    if group is None:
        return NULL
    raw = bytes(group)
    if len(raw) != 16:
        raise ValueError(f"a group's id has 16 bytes, not {len(raw)}")
    keep.append(raw)
    return <const uint8_t *><const char *>raw


cdef int _alignment(uint32_t alignment) except -1:
    if alignment not in (512, 4096):
        raise ValueError(f"alignment {alignment}: 512 or 4096")
    return 0


def head_length(uint32_t count):
    return sizeof(pr_travel) + count * sizeof(pr_record)


def encode(uint8_t kind, list records not None, *, bytes group not None, bytes generation not None, uint64_t first_lsn,
           uint32_t alignment, uint64_t previous=0, uint64_t item=0, uint64_t read_end=0, uint64_t time_ns=0):
    cdef const uint8_t *sources[122]  # PR_MAX_RECORDS; the check below says if that changes
    cdef pr_record descriptors[122]
    cdef tuple own = tuple(records)  # its length stays what is checked, whatever the items do
    cdef bint whole = kind == PR_BATCH_OPERATION or kind == PR_BATCH_ITEM  # one encoding, not padded
    cdef uint32_t count = len(own), unit = 1 if whole else alignment, i = 0
    cdef size_t head = sizeof(pr_travel) + count * sizeof(pr_record)
    cdef uint64_t payload = 0
    cdef pr_travel *travel
    cdef pr_record *record
    cdef bytes raw, made
    cdef list keep = []  # what sources point into
    _alignment(alignment)
    if not 1 <= count <= PR_MAX_RECORDS or PR_MAX_RECORDS > sizeof(sources) // sizeof(sources[0]):
        raise ValueError(f"a batch of {count} records: 1 to {PR_MAX_RECORDS}")
    if len(group) != 16 or len(generation) != 16:
        raise ValueError("group and generation have 16 bytes each")
    memset(descriptors, 0, count * sizeof(pr_record))
    for record_kind, store, offset, data in own:
        record = descriptors + i
        record.kind, record.store, record.offset = record_kind, store, offset
        sources[i] = NULL
        if isinstance(data, int):
            record.length = data
        else:
            raw = data if type(data) is bytes else bytes(memoryview(data))
            keep.append(raw)
            record.length = len(raw)
            sources[i] = <const uint8_t *><const char *>raw
            payload = pr_align(payload + record.length, unit)
            if payload > PR_MAX_PAYLOAD:
                raise ValueError(f"a payload of more than {PR_MAX_PAYLOAD} bytes")
        i += 1
    made = PyBytes_FromStringAndSize(NULL, head + payload)
    travel = <pr_travel *><char *>made
    memset(travel, 0, sizeof(pr_travel))
    travel.kind = kind
    memcpy(travel.group, <const char *>group, 16)
    memcpy(travel.generation, <const char *>generation, 16)
    travel.first_lsn, travel.previous, travel.item, travel.read_end = first_lsn, previous, item, read_end
    travel.time_ns = time_ns
    record = <pr_record *>(travel + 1)
    memcpy(record, descriptors, count * sizeof(pr_record))
    with nogil:
        pr_batch_fill(travel, record, count, sources, unit, <uint8_t *>travel + head, payload)
    return made


cdef const uint8_t[::1] _aligned(const uint8_t[::1] data):
    """The bytes where structs may be read in place: copied if they begin at an odd address."""
    return data if data.shape[0] == 0 or <uintptr_t>&data[0] % 8 == 0 else bytes(data)


cdef size_t _head_bytes(const uint8_t[::1] data) except 0:
    """Bytes of travel part and descriptors; ValueError: they are not all here."""
    if data.shape[0] < <Py_ssize_t>sizeof(pr_travel):
        raise ValueError("fewer bytes than the travelling part of a batch has")
    cdef uint64_t length = sizeof(pr_travel) + <uint64_t>(<const pr_travel *>&data[0]).count * sizeof(pr_record)
    if length > <uint64_t>data.shape[0]:
        raise ValueError("fewer bytes than its descriptors have")
    return length


cdef int _judge(const uint8_t *head, size_t head_at_hand, const uint8_t *payload, size_t length, uint32_t alignment,
                const uint8_t *group) noexcept nogil:
    """The one question of judge() and judge_parts(). `payload` NULL: it follows the head."""
    cdef const pr_travel *travel = <const pr_travel *>head
    cdef size_t whole
    cdef int code
    if head_at_hand < sizeof(pr_travel):
        return PR_BAD_SHORT
    whole = sizeof(pr_travel) + <size_t>travel.count * sizeof(pr_record)
    if whole > head_at_hand:  # what is wrong with it the head tells; if nothing is, it is too short
        return pr_batch_judge(travel, <const pr_record *>(travel + 1), head_at_hand, NULL, 0, alignment, group)
    if payload == NULL:
        payload, length, head_at_hand = head + whole, head_at_hand - whole, whole
    code = pr_batch_judge(travel, <const pr_record *>(travel + 1), whole, payload, length, alignment, group)
    if code == PR_GOOD and (length != travel.payload_length or head_at_hand != whole):
        return PR_BAD_LENGTH
    return code


def judge(const uint8_t[::1] data not None, *, uint32_t alignment, group=None):
    cdef list keep = []
    cdef const uint8_t *wanted = _group(group, keep)
    cdef int code
    _alignment(alignment)
    data = _aligned(data)
    if data.shape[0] == 0:
        return PR_BAD_SHORT
    with nogil:
        code = _judge(&data[0], data.shape[0], NULL, 0, alignment, wanted)
    return code


def judge_parts(const uint8_t[::1] head not None, const uint8_t[::1] payload not None, *, uint32_t alignment,
                group=None):
    cdef list keep = []
    cdef const uint8_t *wanted = _group(group, keep)
    cdef const uint8_t *start = &payload[0] if payload.shape[0] else <const uint8_t *>b""
    cdef int code
    _alignment(alignment)
    head = _aligned(head)
    if head.shape[0] == 0:
        return PR_BAD_SHORT
    with nogil:
        code = _judge(&head[0], head.shape[0], start, payload.shape[0], alignment, wanted)
    return code


def judge_record(const uint8_t[::1] data not None, uint64_t position, *, uint32_t alignment, group=None):
    cdef list keep = []
    cdef const uint8_t *wanted = _group(group, keep)
    cdef int code
    _alignment(alignment)
    data = _aligned(data)
    if data.shape[0] == 0:
        return PR_BAD_SHORT
    with nogil:
        code = pr_record_judge(&data[0], data.shape[0], position, alignment, wanted)
    return code


def head(const uint8_t[::1] data not None):
    data = _aligned(data)
    _head_bytes(data)
    cdef const pr_travel *t = <const pr_travel *>&data[0]
    return Head(t.kind, (<const char *>t.group)[:16], (<const char *>t.generation)[:16], t.first_lsn, t.count,
                t.payload_length, t.previous, t.item, t.read_end, t.time_ns, t.crc)


def local(const uint8_t[::1] data not None):
    data = _aligned(data)
    if data.shape[0] < <Py_ssize_t>sizeof(pr_local):
        raise ValueError("fewer bytes than a local part has")
    cdef const pr_local *p = <const pr_local *>&data[0]
    return Local(p.kind, p.note, p.position, p.chain, p.durable, p.seed, p.length, p.body_length, p.body_crc, p.crc)


def records(const uint8_t[::1] data not None):
    data = _aligned(data)
    _head_bytes(data)
    cdef const pr_travel *t = <const pr_travel *>&data[0]
    cdef const pr_record *r = <const pr_record *>(t + 1)
    return [Record(r[i].kind, r[i].store, r[i].offset, r[i].length, r[i].crc, r[i].payload) for i in range(t.count)]


def place(const uint8_t[::1] travelling not None, *, uint64_t position, uint64_t chain, uint64_t durable,
          uint64_t seed):
    travelling = _aligned(travelling)
    cdef size_t head = _head_bytes(travelling)
    cdef const pr_travel *t = <const pr_travel *>&travelling[0]
    if t.count > PR_MAX_RECORDS or head + t.payload_length != <uint64_t>travelling.shape[0]:
        raise ValueError("not one whole travelling batch")
    cdef uint64_t length = pr_batch_length(t.payload_length)
    cdef bytearray record = bytearray(length)
    cdef uint8_t[::1] into = record
    pr_local_seal(<pr_local *>&into[0], PR_RECORD_BATCH, 0, position, chain, durable, seed, length, 0, t.crc)
    memcpy(&into[sizeof(pr_local)], t, head)
    if t.payload_length:
        memcpy(&into[PR_BLOCK], &travelling[0] + head, t.payload_length)
    return bytes(record)


def note(const uint8_t[::1] body not None, uint8_t note_type, *, uint64_t position, uint64_t chain, uint64_t durable,
         uint64_t seed):
    cdef size_t length = body.shape[0]
    if length > PR_MAX_NOTE:
        raise ValueError(f"a note of {length} bytes: at most {PR_MAX_NOTE}")
    cdef bytearray record = bytearray(pr_align(sizeof(pr_local) + length, PR_BLOCK))
    cdef uint8_t[::1] into = record
    if length:
        memcpy(&into[sizeof(pr_local)], &body[0], length)
    pr_local_seal(<pr_local *>&into[0], PR_RECORD_NOTE, note_type, position, chain, durable, seed, len(record), length,
                  pr_crc32c(0, &into[sizeof(pr_local)], length))
    return bytes(record)


def chain(const uint8_t[::1] record not None):
    record = _aligned(record)
    if record.shape[0] < <Py_ssize_t>sizeof(pr_local):
        raise ValueError("fewer bytes than a local part has")
    return pr_chain(<const pr_local *>&record[0])
