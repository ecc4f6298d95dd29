"""Slow, obvious twin of the records of a log (layout.h, batch.c): makes them, also wrong ones, and takes them apart.

Decides nothing: what is valid is what layout.h says. Every field can be given, so that a test can forge one of them.
"""

from __future__ import annotations

import struct
from typing import Any

LOCAL = struct.Struct("<IHBBQQQQIII8sI")
TRAVEL = struct.Struct("<IHBB16s16sQIIQQQQ36sI")
RECORD = struct.Struct("<BBHIQIIII")
BLOCK = 4096
EVENTS, OPERATION, COPIED, ITEM = 1, 2, 3, 4
WRITE, ZERO, DISCARD, OP = 1, 2, 3, 4
GROUP, GENERATION = b"g" * 16, b"e" * 16

_TABLE = []
for _byte in range(256):
    for _ in range(8):
        _byte = _byte >> 1 ^ (0x82F63B78 if _byte & 1 else 0)
    _TABLE.append(_byte)


def crc32c(data: bytes, crc: int = 0) -> int:
    """One byte at a time."""
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def local(
    *,
    position: int,
    length: int,
    chain: int = 0,
    durable: int = 0,
    seed: int = 1,
    kind: int = 1,
    note: int = 0,
    body_length: int = 0,
    body_crc: int = 0,
    magic: int = 0x314A5250,
    version: int = 1,
    reserved: bytes = bytes(8),
    crc: int | None = None,
) -> bytes:
    raw = LOCAL.pack(
        magic, version, kind, note, position, chain, durable, seed, length, body_length, body_crc, reserved, 0
    )
    return raw[:-4] + struct.pack("<I", crc32c(raw[:-4]) if crc is None else crc)


def batch(
    records: list[tuple[int, int, int, Any]],
    *,
    kind: int = EVENTS,
    first_lsn: int = 1,
    previous: int = 0,
    item: int = 0,
    read_end: int = 0,
    time_ns: int = 0,
    group: bytes = GROUP,
    generation: bytes = GENERATION,
    magic: int = 0x31425250,
    version: int = 1,
    flags: int = 0,
    reserved: bytes = bytes(36),
    crc: int | None = None,
    payload_at: int | None = None,
) -> tuple[bytes, bytes]:
    """(head, payload) of a batch. A record is (kind, store, offset, data or length)."""
    descriptors, payload = b"", b""
    for what, store, offset, data in records:
        if isinstance(data, int):
            descriptors += RECORD.pack(what, 0, 0, store, offset, data, 0, 0, 0)
        else:
            at = len(payload) if payload_at is None else payload_at
            descriptors += RECORD.pack(what, 0, 0, store, offset, len(data), crc32c(data), at, 0)
            payload += data
    raw = TRAVEL.pack(
        magic,
        version,
        kind,
        flags,
        group,
        generation,
        first_lsn,
        len(records),
        len(payload),
        previous,
        item,
        read_end,
        time_ns,
        reserved,
        0,
    )
    seal = crc32c(descriptors, crc32c(raw[:-4])) if crc is None else crc
    return raw[:-4] + struct.pack("<I", seal) + descriptors, payload


def place(head: bytes, payload: bytes, *, position: int, chain: int, **fields: Any) -> bytes:
    """The record of the log that holds this batch."""
    length = BLOCK + -(-len(payload) // BLOCK) * BLOCK
    fields.setdefault("length", length)
    fields.setdefault("body_crc", struct.unpack_from("<I", head, 124)[0])
    front = local(position=position, chain=chain, **fields) + head
    return (front.ljust(BLOCK, b"\0") + payload).ljust(length, b"\0")


def note(body: bytes, *, position: int, chain: int, **fields: Any) -> bytes:
    length = -(-(LOCAL.size + len(body)) // BLOCK) * BLOCK
    fields = {"length": length, "body_length": len(body), "body_crc": crc32c(body), "kind": 2, "note": 5} | fields
    return (local(position=position, chain=chain, **fields) + body).ljust(length, b"\0")


def chain_after(record: bytes) -> int:
    fields = LOCAL.unpack_from(record)
    return fields[12] << 32 | fields[10]


def parse(record: bytes) -> dict[str, Any]:
    """What a (valid) record says: its events, or its note."""
    f = LOCAL.unpack_from(record)
    result: dict[str, Any] = {
        "kind": f[2],
        "position": f[4],
        "chain": f[5],
        "durable": f[6],
        "seed": f[7],
        "length": f[8],
    }
    if f[2] == 2:
        return result | {"note": f[3], "body": record[64 : 64 + f[9]]}
    t = TRAVEL.unpack_from(record, 64)
    events = []
    for i in range(t[7]):
        r = RECORD.unpack_from(record, 192 + 32 * i)
        data = record[BLOCK + r[7] : BLOCK + r[7] + r[5]] if r[0] in (WRITE, OP) else r[5]
        events.append((r[0], r[3], r[4], data))
    return result | {
        "batch": t[2],
        "group": t[4],
        "generation": t[5],
        "first_lsn": t[6],
        "previous": t[9],
        "item": t[10],
        "events": events,
        "digest": t[14] << 32 | t[6] & 0xFFFFFFFF,
    }
