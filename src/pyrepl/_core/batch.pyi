"""Batches as bytes: encode, judge, walk (for tests, tools and the protocol; the window encodes on its own)."""
from typing import NamedTuple

from typing_extensions import Buffer

REASONS: dict[int, str]  # reason code -> one clause of plain text; 0 is "good"

class Record(NamedTuple):
    kind: int
    store: int
    offset: int  # bytes
    length: int  # bytes
    crc: int
    payload: int  # bytes from the start of the batch's payload

class Head(NamedTuple):
    """The travelling part of a batch, decoded."""
    kind: int
    group: bytes  # 16
    generation: bytes  # 16
    first_lsn: int
    count: int  # type: ignore[assignment]  # a field, although a tuple has a method of that name
    payload_length: int
    previous: int
    item: int
    read_end: int
    time_ns: int  # of events: when the primary closed the batch, ns since 1970; 0: not known
    crc: int

class Local(NamedTuple):
    """The local part of a record of the log, decoded."""
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

def encode(kind: int, records: list[tuple[int, int, int, bytes | int]], *, group: bytes, generation: bytes, first_lsn: int,
           alignment: int, previous: int = 0, item: int = 0, read_end: int = 0, time_ns: int = 0) -> bytes:
    """What travels of a batch: travel part + descriptors + payload. A record is (kind, store, offset, data), or the length in
    place of the data for zero and discard. What is encoded is not judged: wrong kinds, unaligned offsets and the like are told by
    judge(). ValueError: no or too many records, more payload than a batch may have, ids that have not 16 bytes, an alignment that
    is not 512 or 4096. OverflowError: a number that its field has no room for."""

def judge(data: Buffer, *, alignment: int, group: bytes | None = None) -> int:
    """The reason code of what travels: travel part + descriptors + payload, nothing after it. 0: good."""

def judge_record(data: Buffer, position: int, *, alignment: int, group: bytes | None = None) -> int:
    """The reason code of a whole record of the log (local part first)."""

def head(data: Buffer) -> Head: ...
def local(data: Buffer) -> Local: ...
def records(data: Buffer) -> list[Record]:
    """The descriptors of what travels (judged good before)."""

def head_length(count: int) -> int:
    """Bytes of travel part and descriptors of a batch of `count` records."""

def place(travelling: Buffer, *, position: int, chain: int, durable: int, seed: int) -> bytes:
    """The whole record of the log that holds this travelling batch: local part sealed, padding added. For tests and tools."""

def note(body: Buffer, note_type: int, *, position: int, chain: int, durable: int, seed: int) -> bytes:
    """The whole record of the log that holds a note."""

def chain(record: Buffer) -> int:
    """The chain value after this record."""

def judge_parts(head: Buffer, payload: Buffer, *, alignment: int, group: bytes | None = None) -> int:
    """judge() where head and payload lie apart, as they arrive."""
