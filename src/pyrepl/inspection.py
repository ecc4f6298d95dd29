"""Looks into a journal device without changing anything, also while a node is writing to it.

Decides what of a journal is sound and says what each record is. Reads only; takes no lock. What a sound journal is
stands on top of ``layout.h``; recovery goes by the same rules (``journal``), so it would accept what passes here.

A journal in use moves while it is read: a record can be written, or a checkpoint replaced, between two reads. So a
finding counts only if it stays when it is looked at again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from pyrepl import items, notes, operations
from pyrepl._core import batch, layout
from pyrepl._core.device import Device
from pyrepl._core.window import scan_log
from pyrepl.errors import Corrupt, PyreplError
from pyrepl.journal import Checkpoint, Journal
from pyrepl.lineage import Lineage

BLOCK = layout.BLOCK
AGAIN = 4  # times that a finding is looked at before it counts
LONGEST = layout.MAX_PAYLOAD + BLOCK  # of a record: how far it is to the next one from anywhere in the log

BATCHES = {
    layout.BATCH_EVENTS: "events",
    layout.BATCH_OPERATION: "operation",
    layout.BATCH_COPIED: "copied",
    layout.BATCH_ITEM: "item",
}
EVENTS = {layout.WRITE: "write", layout.ZERO: "zero", layout.DISCARD: "discard", layout.OPERATION: "operation"}


class Finding(NamedTuple):
    """Something that is not as it must be. ``fatal``: recovery would refuse the journal."""

    text: str
    fatal: bool


class Verdict(NamedTuple):
    """What check came to. A journal is sound if there are no findings."""

    findings: list[Finding]
    records: int
    bytes: int
    end_position: int
    durable_position: int
    end_reason: str


def check(device: Device) -> Verdict:
    """Judges superblocks, checkpoints and every record that recovery would read."""
    findings = _superblocks(device)
    try:
        journal = Journal.find(device)
        verdict = _check_log(journal)
        while verdict is None:  # overtaken by the node that uses it: from its newest checkpoint once more
            verdict = _check_log(journal)
    except Corrupt as error:
        verdict = Verdict([Finding(str(error), True)], 0, 0, 0, 0, "")
    return verdict._replace(findings=findings + verdict.findings)


def _superblocks(device: Device) -> list[Finding]:
    bad = []
    for offset in (0, (device.size // BLOCK - 1) * BLOCK):
        try:
            layout.unpack_superblock(device.read(offset, BLOCK))
        except ValueError as error:
            bad.append(f"the superblock at {offset} is not whole: {error}")
    return [Finding(f"{text} (the other copy will do)", False) for text in bad] if len(bad) == 1 else []


def _check_log(journal: Journal) -> Verdict | None:
    """The verdict on the log from the newest checkpoint on; None: a newer checkpoint let go of what was being read."""
    checkpoint = _checkpoint(journal)
    findings: list[Finding] = []
    position, chain = checkpoint.scan_position, checkpoint.scan_chain
    durable, count, length, looks = checkpoint.durable_position, 0, 0, 0
    while True:
        found, after, chain, reason, marked = scan_log(
            journal.device,
            log_offset=journal.log_offset,
            log_size=journal.log_size,
            position=position,
            chain=chain,
            alignment=journal.alignment,
        )
        looks = looks + 1 if after == position else 0
        position, durable = after, max(durable, marked)
        for at, record in found:
            count += 1
            length += len(record)
            problem = describe(at, record).get("problem")
            if problem:
                findings.append(Finding(f"the record at position {at} cannot be understood: {problem}", True))
        if reason and position >= durable:
            break
        if looks > AGAIN:
            if _checkpoint(journal).scan_position > position:
                return None
            findings.append(
                Finding(
                    f"the log is damaged at position {position} ({batch.REASONS[reason]}), although it was "
                    f"durable up to {durable}",
                    True,
                )
            )
            break
    return Verdict(findings, count, length, position, durable, batch.REASONS[reason])


def _checkpoint(journal: Journal) -> Checkpoint:
    """The newest checkpoint; both areas may be caught while they are written, but not again and again."""
    for _ in range(AGAIN):
        try:
            return journal.read_checkpoint()
        except Corrupt:
            pass
    return journal.read_checkpoint()


def records(journal: Journal, checkpoint: Checkpoint) -> Iterator[tuple[int, bytes]]:
    """All records along the chain: those that the log still holds from before the checkpoint, then those after it."""
    position, chain = _oldest(journal, checkpoint)
    while True:
        found, position, chain, reason, _ = scan_log(
            journal.device,
            log_offset=journal.log_offset,
            log_size=journal.log_size,
            position=position,
            chain=chain,
            alignment=journal.alignment,
        )
        yield from found
        if reason:
            return


def _oldest(journal: Journal, checkpoint: Checkpoint) -> tuple[int, int]:
    """(position, chain) of the oldest record from which the chain leads to the checkpoint."""
    target = (checkpoint.scan_position, checkpoint.scan_chain)
    first = max(journal.superblock["first_position"], checkpoint.scan_position - journal.log_size)
    for position in range(first, min(checkpoint.scan_position, first + LONGEST), BLOCK):
        try:
            head = batch.local(journal.device.read(journal.log_offset + position % journal.log_size, BLOCK))
        except ValueError:
            continue
        if head.position == position and _leads(journal, position, head.chain, target):
            return position, head.chain
    return target


def _leads(journal: Journal, position: int, chain: int, target: tuple[int, int]) -> bool:
    while True:
        found, after, next_chain, reason, _ = scan_log(
            journal.device,
            log_offset=journal.log_offset,
            log_size=journal.log_size,
            position=position,
            chain=chain,
            alignment=journal.alignment,
        )
        for at, record in found:
            if (at, batch.local(record).chain) == target:
                return True
        if (after, next_chain) == target:
            return True
        if reason or after > target[0]:
            return False
        position, chain = after, next_chain


def describe(position: int, record: bytes) -> dict[str, Any]:
    """A record of the log as names and numbers; ``problem`` if its content cannot be understood."""
    local = batch.local(record)
    told: dict[str, Any] = {
        "position": position,
        "length": local.length,
        "durable": local.durable,
        "seed": f"{local.seed:016x}",
    }
    try:
        if local.kind == layout.RECORD_NOTE:
            body = record[layout.LOCAL_SIZE : layout.LOCAL_SIZE + local.body_length]
            return {**told, "kind": "note", **_note(local.note, bytes(body))}
        return {**told, **_batch(record)}
    except (PyreplError, msgspec.MsgspecError, ValueError) as error:
        return {**told, "kind": "note" if local.kind == layout.RECORD_NOTE else "batch", "problem": str(error)}


def _note(kind: int, body: bytes) -> dict[str, Any]:
    told: dict[str, Any] = {"note": notes.NAMES.get(kind, str(kind))}
    if kind == notes.MAP:
        return {**told, "entries": len(body) // layout.MAP_ENTRY_SIZE}
    if kind == notes.PERFORMED:
        note = notes.decode_performed(body)
        what = items.decode(note.body) if note.is_item else operations.decode(note.body)
        told = {**told, "lsn": note.lsn, "until": note.position, "performed": _plain(what)}
        if note.outcomes:
            told["outcomes"] = _hex([msgspec.structs.asdict(one) for one in note.outcomes])
        if note.worked:
            told["worked"] = [{"store": one.store, "slot": one.placed.slot, "runs": len(one.runs),
                               "regions": sum(count for _, count in one.runs)} for one in note.worked]
        if note.differs:
            told["differs"] = note.differs
        return told
    if kind == notes.RELEASED:
        return {**told, "slot": notes.decode_released(body).slot}
    if kind == notes.GENERATION:
        begun = notes.decode_generation(body)
        return {**told, "generation": begun.generation.hex(), "after_lsn": begun.lsn}
    if kind == notes.GIVEN:
        return {**told, "devices": notes.decode_given(body).paths}
    if kind == notes.REFUSED:
        refused = notes.decode_refused(body)
        return {**told, "lsn": refused.lsn, "reason": refused.reason}
    if kind == notes.RETURNED:
        back = notes.decode_returned(body)
        return {**told, "lsn": back.lsn, "generation": Lineage.decode(back.lineage).at(back.lsn).hex()}
    if kind == notes.OPENED:
        return {**told, "view": msgspec.to_builtins(notes.decode_opened(body).view)}
    if kind == notes.CLOSED:
        return {**told, "views": notes.decode_closed(body).views}
    raise ValueError(f"a note of type {kind}, which this version does not know")


def _batch(record: bytes) -> dict[str, Any]:
    travelling = memoryview(record)[layout.LOCAL_SIZE :]
    head, descriptors = batch.head(travelling), batch.records(travelling)
    told: dict[str, Any] = {
        "kind": BATCHES[head.kind],
        "generation": head.generation.hex(),
        "first_lsn": head.first_lsn,
        "count": head.count,
        "payload_bytes": head.payload_length,
        "time_ns": head.time_ns,
    }
    if head.kind == layout.BATCH_EVENTS:
        return {**told, "last_lsn": head.first_lsn + head.count - 1, "events": [_extent(one) for one in descriptors]}
    if head.kind == layout.BATCH_COPIED:
        return {**told, "item": head.item, "read_end": head.read_end, "regions": [_extent(one) for one in descriptors]}
    one = descriptors[0]
    start = BLOCK + one.payload
    body = bytes(record[start : start + one.length])
    if head.kind == layout.BATCH_OPERATION:
        return {**told, "operation": _plain(operations.decode(body))}
    return {**told, "item": head.item, "does": _plain(items.decode(body))}


def _extent(one: batch.Record) -> dict[str, Any]:
    return {
        "kind": EVENTS.get(one.kind, str(one.kind)),
        "store": one.store,
        "offset": one.offset,
        "length": one.length,
        "crc": f"{one.crc:08x}",
    }


def _plain(value: operations.Operation | items.Item) -> Any:
    """Names and numbers; bytes as hex."""
    return _hex(msgspec.to_builtins(value, builtin_types=(bytes,)))


def _hex(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        if value.get("op") == "perform" and isinstance(value["arguments"], bytes):
            value = {**value, "arguments": operations.decode_arguments(value["arguments"])}
        return {key: _hex(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_hex(inner) for inner in value]
    return value


def summary(journal: Journal, checkpoint: Checkpoint) -> dict[str, Any]:
    """The journal device and its newest checkpoint as names and numbers."""
    block = {key: _hex(value) for key, value in journal.superblock.items() if key not in ("magic", "reserved", "crc")}
    name = journal.superblock["name"]
    block["name"] = name.rstrip(b"\0").decode(errors="replace") if isinstance(name, bytes) else name
    body = checkpoint.body
    return {
        "superblock": block,
        "checkpoint": {
            "sequence": checkpoint.sequence,
            "scan_position": checkpoint.scan_position,
            "applied_position": checkpoint.applied_position,
            "applied_lsn": checkpoint.applied_lsn,
            "durable_position": checkpoint.durable_position,
            "role": body.role,
            "consistent": body.consistent,
            "lineage": [{"generation": generation.hex(), "after_lsn": lsn} for generation, lsn in body.lineage],
            "stores": [
                {"id": store.id, "name": store.name, "kind": store.kind, "size": store.size} for store in body.stores
            ],
            "views": msgspec.to_builtins(body.views),
            "links": sorted(body.links),
        },
    }
