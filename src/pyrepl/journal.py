"""The journal device: format it, find its newest checkpoint, walk its log, write checkpoints.

Decides where superblocks, checkpoint areas and log lie (formats: ``layout.h``) and what a checkpoint's body holds.
Must not know what the records mean: it hands them out in order (``recovery``), and the window appends them
(``_core.window``).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from pyrepl._core import layout
from pyrepl._core.batch import REASONS
from pyrepl._core.crc32c import crc32c
from pyrepl._core.device import Device
from pyrepl._core.window import scan_log
from pyrepl.catalog import Image, Place, ProtectiveSnapshot, Store, View
from pyrepl.errors import Corrupt, UsageError
from pyrepl.items import Decided, FoundDifferent, LinkInfo, Refusal, Tail
from pyrepl.operations import Outcome
from pyrepl.options import MIB, SiteOptions

BLOCK = layout.BLOCK
LEAST_LOG = 64 * BLOCK


class Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a checkpoint holds: a site as of ``applied_position``, and all that it knows of its links."""

    version: int = 1
    name: str
    role: str
    node_id: bytes
    group_id: bytes | None
    lineage: list[tuple[bytes, int]]
    lsn: int
    consistent: bool
    item: int
    stores: list[Store]
    next_id: int
    places: dict[int, Place]
    zombies: dict[int, str]
    scratch: Place | None
    scratch_size: int
    maps: dict[int, bytes]
    packed: bytes = b""  # of the maps, if they are long: see pack_maps; `maps` is empty then
    links: dict[str, bytes]
    fed_by: bytes | None
    given: dict[int, str] = {}  # store -> device that an operation which is not performed yet was given for it
    handed_over: bool = False  # the primary has stepped down here: this secondary may be promoted
    succession: list[LinkInfo] | None = None  # links of the successor that is to lead by itself, or is to be asked to
    successor: str = ""  # this site was the primary and has stepped down: the link by which its successor is asked
    tails: dict[bytes, Tail] = {}  # it was the primary and has stepped down here: what each secondary may lack
    yields: bool = False  # this site was told to lose what no other site has
    remembered: dict[bytes, bytes] = {}  # node that fed this site -> what is known of it, as of a link
    siblings: dict[bytes, bytes] = {}  # node fed by the one that feeds this site -> likewise
    views: list[View] = []  # their places and maps stand among those of the stores
    next_view: int = layout.FIRST_LOCAL
    ordering: str = "relaxed"  # "strict": no sets
    images: list[Image] = []
    refusals: list[Refusal] = []  # of a secondary, since it was last consistent
    protective: ProtectiveSnapshot | None = None  # of a secondary that is not consistent; its views are among the views
    waived: bool = False  # none is kept until it is consistent again
    different: FoundDifferent | None = None  # of a secondary: what its primary has found different here
    refusing: dict[int, str] = {}  # LSN of an operation that is not performed yet -> why not all of it will be
    decided: Decided | None = None  # of a secondary: what came at the primary of the operation that is next
    outcomes: dict[int, list[Outcome]] = {}  # LSN -> what came of its plug-ins, until all links have passed it
    delay: float = 0.0  # seconds: a secondary performs an event when it is so old
    turns: int = 0  # how often another node has come to feed this secondary in place of the one before
    turns_there: int = 0  # the same count of the one that feeds it, as that has told
    above: list[bytes] = []  # nodes that feed the one that feeds this secondary, nearest first
    items_until: int = 0  # position behind the last thing in the journal that came beside the order


def pack_maps(body: Body) -> Body:
    """The same with its maps compressed: those of many snapshots of a volume are nearly alike."""
    return msgspec.structs.replace(body, maps={}, packed=zlib.compress(msgspec.msgpack.encode(body.maps), 1))


def unpack_maps(body: Body) -> Body:
    """A body as it was before it was packed.

    Raises:
        ValueError: what is packed is no maps.
    """
    if not body.packed:
        return body
    try:
        maps = msgspec.msgpack.decode(zlib.decompress(body.packed), type=dict[int, bytes])
    except (zlib.error, msgspec.MsgspecError) as error:
        raise ValueError(f"the maps cannot be read: {error}") from error
    return msgspec.structs.replace(body, maps=maps, packed=b"")


class Checkpoint(NamedTuple):
    """A checkpoint as it was found: its header's numbers and its body."""

    sequence: int
    scan_position: int
    scan_chain: int
    applied_position: int
    applied_lsn: int
    note_position: int
    durable_position: int
    body: Body


class Scan(NamedTuple):
    """What a walk of the log came to."""

    end_position: int
    chain: int
    reason: int


class Journal:
    """A formatted journal device. ``entropy`` and clocks are the caller's; this only reads and writes."""

    def __init__(self, device: Device, superblock: dict[str, Any], sequence: int) -> None:
        self.device = device
        self.superblock = superblock
        self.sequence = sequence  # of the newest checkpoint; the next one goes to the other area
        self.log_offset: int = superblock["log_offset"]
        self.log_size: int = superblock["log_size"]
        self.area_size: int = superblock["area_size"]
        self.alignment: int = superblock["alignment"]
        self.region_size: int = superblock["region_size"]

    # ---- making and finding

    @classmethod
    def format(
        cls,
        device: Device,
        *,
        name: str,
        node_id: bytes,
        journal_id: bytes,
        first_position: int,
        options: SiteOptions,
        created_ns: int,
    ) -> Journal:
        """Lays a new journal out on the device; the first checkpoint is the caller's next act.

        Nothing on the device is a journal until the superblocks are durable, and they are written last.

        Raises:
            UsageError: the device is too small.
        """
        size = device.size // BLOCK * BLOCK
        area = options.area_bytes or min(max(size // 16 // BLOCK * BLOCK, MIB), 64 * MIB)
        log_offset = BLOCK + 2 * area
        log_size = size - BLOCK - log_offset
        if log_size < LEAST_LOG:
            raise UsageError(
                f"{device.name} is too small for a journal: {size} bytes, but two checkpoint areas of {area} and "
                f"a log of at least {LEAST_LOG} are needed",
                device=device.name,
                size=size,
            )
        if device.sector_size > options.alignment:
            raise UsageError(
                f"{device.name} has sectors of {device.sector_size} bytes: make the group with an alignment of "
                f"{device.sector_size}",
                device=device.name,
            )
        block = layout.pack_superblock(
            version=layout.DISK_VERSION, block_size=BLOCK, journal=journal_id, node=node_id, device_size=size,
            area_offset=(BLOCK, BLOCK + area), area_size=area, log_offset=log_offset, log_size=log_size,
            alignment=options.alignment, region_size=options.region_size, max_event=layout.MAX_EVENT,
            max_payload=layout.MAX_PAYLOAD, created_ns=created_ns, first_position=first_position,
            name=name.encode()[:64])
        for offset in (BLOCK, BLOCK + area):
            device.write(offset, bytes(BLOCK))
        device.flush()
        device.write(0, block)
        device.write(size - BLOCK, block)
        device.flush()
        return cls(device, layout.unpack_superblock(block), 0)

    @classmethod
    def find(cls, device: Device) -> Journal:
        """The journal on this device.

        Raises:
            Corrupt: neither superblock is whole; the text says what is wrong with each.
        """
        problems = []
        for offset in (0, (device.size // BLOCK - 1) * BLOCK):
            try:
                superblock = layout.unpack_superblock(device.read(offset, BLOCK))
            except ValueError as error:
                problems.append(f"at {offset}: {error}")
                continue
            if superblock["device_size"] > device.size:
                problems.append(
                    f"at {offset}: made for a device of {superblock['device_size']} bytes, this one has {device.size}"
                )
                continue
            return cls(device, superblock, 0)
        raise Corrupt(
            f"{device.name} holds no pyrepl journal: {'; '.join(problems)}", device=device.name, reason="superblock"
        )

    # ---- checkpoints

    def read_checkpoint(self) -> Checkpoint:
        """The newest valid checkpoint.

        Raises:
            Corrupt: there is none.
        """
        found: Checkpoint | None = None
        problems = []
        for offset in self.superblock["area_offset"]:
            try:
                checkpoint = self._read_area(offset)
            except ValueError as error:
                problems.append(f"at {offset}: {error}")
                continue
            if found is None or checkpoint.sequence > found.sequence:
                found = checkpoint
        if found is None:
            raise Corrupt(f"{self.device.name} has no valid checkpoint: {'; '.join(problems)}", device=self.device.name,
                          reason="checkpoint")
        self.sequence = found.sequence
        return found

    def _read_area(self, offset: int) -> Checkpoint:
        header = layout.unpack_checkpoint(self.device.read(offset, BLOCK))
        if header["journal"] != self.superblock["journal"]:
            raise ValueError("of another journal")
        length = header["body_length"]
        if length > self.area_size - BLOCK:
            raise ValueError(f"a body of {length} bytes does not fit its area")
        body = self.device.read(offset + BLOCK, (length + BLOCK - 1) // BLOCK * BLOCK)[:length]
        if crc32c(body) != header["body_crc"]:
            raise ValueError("checksum of the body is wrong")
        try:
            decoded = unpack_maps(msgspec.msgpack.decode(body, type=Body))
        except msgspec.MsgspecError as error:
            raise ValueError(f"the body cannot be read: {error}") from error
        return Checkpoint(header["sequence"], header["scan_position"], header["scan_chain"], header["applied_position"],
                          header["applied_lsn"], header["note_position"], header["durable_position"], decoded)

    def fits(self, body_length: int) -> bool:
        """Whether a checkpoint's body of that many bytes has room."""
        return body_length <= self.area_size - BLOCK

    def write_checkpoint(
        self,
        body: bytes,
        *,
        scan_position: int,
        scan_chain: int,
        applied_lsn: int,
        note_position: int,
        durable_position: int,
    ) -> int:
        """Writes a checkpoint into the area that does not hold the newest, and makes it durable; its sequence number.

        The stores have been flushed after the body was captured; the tail moves after this returns (crash model:
        ckpt_area, ckpt_flush, ckpt_fence, tail_after).
        """
        sequence = self.sequence + 1
        header = layout.pack_checkpoint(
            version=layout.DISK_VERSION, body_crc=crc32c(body), journal=self.superblock["journal"], sequence=sequence,
            body_length=len(body), scan_position=scan_position, scan_chain=scan_chain, applied_position=scan_position,
            applied_lsn=applied_lsn, note_position=note_position, durable_position=durable_position)
        offset = self.superblock["area_offset"][sequence % 2]
        self.device.write(offset, header + body + bytes(-len(body) % BLOCK))
        self.device.flush()
        self.sequence = sequence
        return sequence

    # ---- the log

    def walk(
        self, position: int, chain: int, known_durable: int, found: Callable[[Scan], None]
    ) -> Iterator[tuple[int, bytes]]:
        """The records of the log from ``position`` on, along the chain, as (position, record); at the end ``found``
        is told.

        Raises:
            Corrupt: the log ends before a position that a later record, or ``known_durable``, says was durable.
        """
        durable = known_durable
        while True:
            records, position, chain, reason, marked = scan_log(
                self.device, log_offset=self.log_offset, log_size=self.log_size, position=position, chain=chain,
                alignment=self.alignment)
            yield from records
            durable = max(durable, marked)
            if reason:
                break
        if position < durable:
            raise Corrupt(
                f"the log of {self.device.name} is damaged at position {position} ({REASONS[reason]}), although it was "
                f"durable up to {durable}",
                device=self.device.name,
                position=position,
                durable=durable,
                reason=REASONS[reason],
            )
        found(Scan(position, chain, reason))
