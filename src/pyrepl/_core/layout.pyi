"""The numbers of disk and wire formats (src/_core/layout.h), and packing of the structs that Python handles."""
from typing import Any

from typing_extensions import Buffer

BLOCK: int
DISK_VERSION: int
WIRE_VERSION: int
MAX_EVENT: int
MAX_PAYLOAD: int
MAX_RECORDS: int
MAX_NOTE: int
MAX_UNFLUSHED: int
MAX_STORES: int
MAX_REGION: int
FIRST_LOCAL: int  # store ids from here on are of one site alone
SOURCE_ZERO: int
LOCAL_MAGIC: int
TRAVEL_MAGIC: int
FRAME_MAGIC: int
FRAME_BATCH: int
RECORD_BATCH: int
RECORD_NOTE: int
BATCH_EVENTS: int
BATCH_OPERATION: int
BATCH_COPIED: int
BATCH_ITEM: int
WRITE: int
ZERO: int
DISCARD: int
OPERATION: int
SUPERBLOCK_SIZE: int
CHECKPOINT_SIZE: int
LOCAL_SIZE: int
TRAVEL_SIZE: int
RECORD_SIZE: int
FRAME_SIZE: int
MAP_ENTRY_SIZE: int

def fields(struct_name: str) -> list[tuple[str, int, int]]:
    """(field, offset, size) of superblock, checkpoint, local, travel, record, frame or map_entry. ValueError: no such struct."""

def pack_superblock(**values: Any) -> bytes:
    """The struct with these fields; the others are zero, magic, version and crc are filled in. Numbers are ints, bytes may be shorter
    than the field, area_offset is a tuple. ValueError: no such field, or it has no room for the value."""

def unpack_superblock(data: Buffer) -> dict[str, Any]:
    """Its fields. ValueError: magic, version, checksum or reserved bytes are wrong; the text says which."""

def pack_checkpoint(**values: Any) -> bytes: ...
def unpack_checkpoint(data: Buffer) -> dict[str, Any]: ...
def pack_frame(**values: Any) -> bytes: ...
def unpack_frame(data: Buffer) -> dict[str, Any]: ...
